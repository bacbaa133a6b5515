//! Where a token came from: the mark that every token of a timeline carries for life. Serving writes
//! it, distillation reads it; nothing else tells a sampled id from the same id typed by the host.
#![forbid(unsafe_code)]

/// Who put a token into the timeline. The numbers are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Source {
    /// Text of the host: instructions, observations, tool results.
    Host = 0,
    /// Markers that the chat template puts around messages.
    Glue = 1,
    /// Sampled by the student.
    Student = 2,
    /// Sampled by the teacher.
    Teacher = 3,
    /// An action of a stored demonstration.
    Replay = 4,
}

impl Source {
    /// All sources, in the order of their numbers.
    pub const ALL: [Source; 5] = [Source::Host, Source::Glue, Source::Student, Source::Teacher, Source::Replay];

    /// The word used in traces.
    pub fn name(self) -> &'static str {
        match self {
            Source::Host => "host",
            Source::Glue => "glue",
            Source::Student => "student",
            Source::Teacher => "teacher",
            Source::Replay => "replay",
        }
    }

    /// Whether an actor wrote the token, so that it may carry loss.
    pub fn is_action(self) -> bool {
        matches!(self, Source::Student | Source::Teacher | Source::Replay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_an_actor_wrote_is_an_action() {
        let actions: Vec<_> = Source::ALL.iter().filter(|s| s.is_action()).map(|s| s.name()).collect();
        assert_eq!(actions, ["student", "teacher", "replay"]);
    }

    #[test]
    fn numbers_follow_the_order_of_the_list() {
        assert!(Source::ALL.iter().enumerate().all(|(i, &s)| s as usize == i));
    }
}
