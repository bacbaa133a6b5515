//! Which run an episode is of: a number that is drawn when a distiller is made and kept in its checkpoints, so that a resumed run
//! is the same run, and two runs that count their episodes alike are two.
#![forbid(unsafe_code)]

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::random::{fresh_seed, mix};

/// The identity of a run: 128 bits, written as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(pub u128);

impl RunId {
    /// A new one.
    pub fn drawn() -> RunId {
        RunId(u128::from(mix(fresh_seed())) << 64 | u128::from(mix(fresh_seed())))
    }

    /// Reads the digits; None for anything else.
    pub fn parse(text: &str) -> Option<RunId> {
        let are_digits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        are_digits.then(|| u128::from_str_radix(text, 16).ok().map(RunId)).flatten()
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Serialize for RunId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RunId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RunId, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let wanted = "32 hexadecimal digits, lower case";
        RunId::parse(&text).ok_or_else(|| serde::de::Error::invalid_value(serde::de::Unexpected::Str(&text), &wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_as_it_is_read() {
        let run = RunId(0x0123_4567_89ab_cdef_0000_0000_0000_0001);
        assert_eq!(run.to_string(), "0123456789abcdef0000000000000001");
        assert_eq!(serde_json::from_str::<RunId>(&serde_json::to_string(&run).unwrap()).unwrap(), run);
        for text in ["", "1", "0123456789ABCDEF0000000000000001", "+123456789abcdef0000000000000001"] {
            assert_eq!(RunId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn two_that_are_drawn_are_two() {
        assert_ne!(RunId::drawn(), RunId::drawn());
    }
}
