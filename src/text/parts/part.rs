//! What a model's output is told apart into.
#![forbid(unsafe_code)]

/// A part of what a model said, in its order. Texts are what is new of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// More of a thought.
    Reasoning(String),
    /// More of the answer.
    Content(String),
    /// A whole call of a tool.
    ToolCall(ToolCall),
    /// What cannot be read as it was begun, its marks included.
    Unparsed {
        /// As it was said. Empty where the output ended within a thought, which was given as it came.
        text: String,
        /// Why.
        reason: String,
    },
}

/// A call of a tool. The name need not be one of the tools that the model was told of, nor need the arguments fit their
/// schema: the host that runs tools knows both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// Which call of its turn, from 0.
    pub index: usize,
    /// A name for the call that is its own in the conversation, for the message that holds the result.
    pub id: String,
    /// The tool.
    pub name: String,
    /// A JSON object: as it was said in Qwen3's form, made of the parameters in the coder's.
    pub arguments: String,
}

/// The parts with neighbours of one kind joined: the same however the output was cut into pieces.
pub fn joined(parts: impl IntoIterator<Item = Part>) -> Vec<Part> {
    let mut all: Vec<Part> = Vec::new();
    for part in parts {
        match (all.last_mut(), part) {
            (Some(Part::Reasoning(text)), Part::Reasoning(more)) | (Some(Part::Content(text)), Part::Content(more)) => {
                text.push_str(&more);
            }
            (Some(Part::Unparsed { text, reason }), Part::Unparsed { text: more, reason: same }) if *reason == same => {
                text.push_str(&more);
            }
            (_, part) => all.push(part),
        }
    }
    all
}
