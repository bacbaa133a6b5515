//! The three who can write the action of a turn.
#![forbid(unsafe_code)]

use crate::text::source::Source;

/// Who writes the action of a turn. The numbers are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Actor {
    /// The student samples it.
    Student = 1,
    /// The teacher samples it.
    Teacher = 2,
    /// It is taken from a stored demonstration.
    Replay = 3,
}

impl Actor {
    /// The word that stands for it in documents and traces.
    pub fn name(self) -> &'static str {
        self.source().name()
    }

    /// The mark of the tokens it writes.
    pub fn source(self) -> Source {
        match self {
            Actor::Student => Source::Student,
            Actor::Teacher => Source::Teacher,
            Actor::Replay => Source::Replay,
        }
    }
}
