//! The marks between which a model of Qwen3's kind puts its thoughts and its tool calls.
#![forbid(unsafe_code)]

/// A mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// `<think>`
    ThoughtBegins,
    /// `</think>`
    ThoughtEnds,
    /// `<tool_call>`
    CallBegins,
    /// `</tool_call>`
    CallEnds,
}

impl Mark {
    /// All marks.
    pub const ALL: [Mark; 4] = [Mark::ThoughtBegins, Mark::ThoughtEnds, Mark::CallBegins, Mark::CallEnds];

    /// How it is spelled.
    pub fn text(self) -> &'static str {
        match self {
            Mark::ThoughtBegins => "<think>",
            Mark::ThoughtEnds => "</think>",
            Mark::CallBegins => "<tool_call>",
            Mark::CallEnds => "</tool_call>",
        }
    }

    /// Whether it begins something.
    pub(super) fn opens(self) -> bool {
        matches!(self, Mark::ThoughtBegins | Mark::CallBegins)
    }
}
