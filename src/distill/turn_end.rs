//! What ended a turn that was generated, as its record says it: whatever it was, the turn is what stands there.
#![forbid(unsafe_code)]

use crate::serve::{Ending, Finish, GenerationOptions};

/// What ended a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TurnEnd {
    /// An id that ends turns, its last; of a teacher's text the one that was added to it.
    StopId,
    /// This stop string, which its last token completed.
    StopString(String),
    /// The `max_tokens` of its options.
    MaxTokens,
    /// There was no room for more, in the student's context or in the teacher's.
    Context,
    /// The time limit of its options.
    Time,
    /// The host's teacher, which said that it was cut off.
    CutOff,
    /// The host cancelled it, and took what stood there for the turn.
    Cancelled,
    /// It failed, and the host took what stood there for the turn.
    Failed,
}

impl TurnEnd {
    /// Its word in a record.
    pub fn name(&self) -> &'static str {
        match self {
            TurnEnd::StopId => "stop_id",
            TurnEnd::StopString(_) => "stop_string",
            TurnEnd::MaxTokens => "max_tokens",
            TurnEnd::Context => "context",
            TurnEnd::Time => "time",
            TurnEnd::CutOff => "cut_off",
            TurnEnd::Cancelled => "cancelled",
            TurnEnd::Failed => "failed",
        }
    }

    /// The stop string.
    pub fn stop_string(&self) -> Option<&str> {
        match self {
            TurnEnd::StopString(string) => Some(string),
            _ => None,
        }
    }

    /// From a record; None for what a later version may say.
    pub fn of_record(name: &str, stop_string: Option<&str>) -> Option<TurnEnd> {
        let plain = [
            TurnEnd::StopId,
            TurnEnd::MaxTokens,
            TurnEnd::Context,
            TurnEnd::Time,
            TurnEnd::CutOff,
            TurnEnd::Cancelled,
            TurnEnd::Failed,
        ];
        match (name, stop_string) {
            ("stop_string", Some(string)) => Some(TurnEnd::StopString(string.to_string())),
            _ => plain.into_iter().find(|end| end.name() == name),
        }
    }

    /// Whether it was cut off by a limit before the actor was done.
    pub fn is_cut_off(&self) -> bool {
        matches!(self, TurnEnd::MaxTokens | TurnEnd::Context | TurnEnd::Time | TurnEnd::CutOff)
    }
}

/// What a turn's generation was asked to end by, as far as that says what ended it.
#[derive(Default)]
pub(super) struct Asked {
    stop_strings: Vec<String>,
    /// the host's limit, 0 for none
    max_tokens: usize,
    /// what is left of it where there is less room; 0: all that the context holds
    most: usize,
}

impl Asked {
    /// Of a turn whose options are these, and which has room for `most` tokens.
    pub(super) fn new(options: &GenerationOptions, max_tokens: usize, most: usize) -> Asked {
        Asked { stop_strings: options.stop_strings.clone(), max_tokens, most }
    }

    /// What ended a turn of `n` tokens, of which some are words of the host's teacher (`from_text`); None while it runs.
    pub(super) fn ended_by(&self, ending: &Ending, n: usize, from_text: bool) -> Option<TurnEnd> {
        let string = || ending.stop_string().and_then(|i| self.stop_strings.get(i)).cloned();
        Some(match ending.finish()? {
            Finish::Stop => string().map_or(TurnEnd::StopId, TurnEnd::StopString),
            // A text's tokens are counted by whoever says it.
            Finish::Length if from_text || n < self.most => TurnEnd::CutOff,
            Finish::Length if self.most == self.max_tokens => TurnEnd::MaxTokens,
            Finish::Length | Finish::ContextFull => TurnEnd::Context,
            Finish::Time => TurnEnd::Time,
            Finish::Cancelled => TurnEnd::Cancelled,
            Finish::Failed => TurnEnd::Failed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_gives_back_what_it_was_told_and_nothing_for_what_it_does_not_know() {
        let all = [
            TurnEnd::StopId,
            TurnEnd::StopString("\n\n".into()),
            TurnEnd::MaxTokens,
            TurnEnd::Context,
            TurnEnd::Time,
            TurnEnd::CutOff,
            TurnEnd::Cancelled,
            TurnEnd::Failed,
        ];
        for end in all {
            assert_eq!(TurnEnd::of_record(end.name(), end.stop_string()), Some(end));
        }
        assert_eq!(TurnEnd::of_record("struck_by_lightning", None), None);
        assert_eq!(TurnEnd::of_record("stop_string", None), None);
    }
}
