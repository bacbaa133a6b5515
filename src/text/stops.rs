//! Stop strings: texts that end a generation, found byte by byte as the text grows (Knuth, Morris and Pratt's automaton, one for
//! each of them).
#![forbid(unsafe_code)]

use crate::error::{Error, Fault, Result};
use crate::memory;

/// Stop strings of one generation at most: each of them looks at every byte.
pub const MAX_STOP_STRINGS: usize = 128;
/// Bytes of a stop string at most: as many of the text are held back.
pub const MAX_STOP_STRING_BYTES: usize = 4096;

/// Refuses lists of stop strings that are too long, and strings that are empty or too long.
pub fn check_stop_strings<S: AsRef<str>>(strings: &[S]) -> Result<()> {
    let refuse = |why| Err(Error::new(Fault::BadOption, why));
    if strings.len() > MAX_STOP_STRINGS {
        return refuse(format!("stop_strings: wanted at most {MAX_STOP_STRINGS}, found {}", strings.len()));
    }
    let is_wrong = |s: &S| !(1..=MAX_STOP_STRING_BYTES).contains(&s.as_ref().len());
    match strings.iter().position(is_wrong) {
        None => Ok(()),
        Some(i) => {
            let found = strings[i].as_ref().len();
            refuse(format!("stop_strings[{i}]: wanted 1 to {MAX_STOP_STRING_BYTES} bytes, found {found}"))
        }
    }
}

/// Some stop strings, and how much of each the text so far ends with.
pub struct Stops(Vec<Stop>);

struct Stop {
    bytes: Vec<u8>,
    /// of each beginning bytes[..=i], the longest shorter beginning that it ends with
    shorter: Vec<u32>,
    matched: usize,
}

impl Stops {
    /// None of them begun. Errors: as [`check_stop_strings`], and `OutOfHostMemory`.
    pub fn new<S: AsRef<str>>(strings: &[S]) -> Result<Stops> {
        check_stop_strings(strings)?;
        let mut stops = memory::reserved(strings.len(), "the stop strings")?;
        for string in strings {
            let bytes = memory::copied(string.as_ref().as_bytes(), "a stop string")?;
            let mut stop = Stop { shorter: memory::reserved(bytes.len(), "a stop string")?, bytes, matched: 0 };
            stop.shorter.push(0);
            for i in 1..stop.bytes.len() {
                // A string without its first byte, put through itself.
                stop.advance(stop.bytes[i]);
                stop.shorter.push(stop.matched as u32);
            }
            stop.matched = 0;
            stops.push(stop);
        }
        Ok(Stops(stops))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of the i-th.
    pub fn len_of(&self, i: usize) -> usize {
        self.0[i].bytes.len()
    }

    /// Takes the next byte of the text. Which of them ends with it: of several the one that began first, of equal ones the first.
    pub fn advance(&mut self, byte: u8) -> Option<usize> {
        let mut complete: Option<usize> = None;
        for i in 0..self.0.len() {
            self.0[i].advance(byte);
            let is_longer = |other| self.len_of(i) > self.len_of(other);
            if self.0[i].is_complete() && complete.is_none_or(is_longer) {
                complete = Some(i);
            }
        }
        complete
    }

    /// How many of the text's last bytes may turn out to be of one of them.
    pub fn begun(&self) -> usize {
        self.0.iter().map(|stop| stop.matched).max().unwrap_or(0)
    }
}

impl Stop {
    fn is_complete(&self) -> bool {
        self.matched == self.bytes.len()
    }

    fn advance(&mut self, byte: u8) {
        while self.matched > 0 && self.bytes.get(self.matched) != Some(&byte) {
            self.matched = self.shorter[self.matched - 1] as usize;
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Stream, below};

    #[test]
    fn the_first_to_be_complete_is_found_as_by_looking_at_every_place() {
        for case in 0..3000u64 {
            let draw = |i: u64, n| below(Stream::World, &[case, i], n);
            let text =
                |key: u64, n: u64| (0..n).map(|i| (b'a' + draw(1000 * key + i, 2) as u8) as char).collect::<String>();
            let strings: Vec<String> = (0..1 + draw(1, 4)).map(|k| text(10 + k, 1 + draw(20 + k, 6))).collect();
            let text = text(99, 40);
            let mut stops = Stops::new(&strings).unwrap();
            let found = text.bytes().enumerate().find_map(|(i, byte)| {
                let found = stops.advance(byte);
                let begins = |s: &String, n: usize| n < s.len() && text[..=i].ends_with(&s[..n]);
                let begun = strings.iter().flat_map(|s| (1..s.len()).filter(|&n| begins(s, n))).max().unwrap_or(0);
                assert!(found.is_some() || stops.begun() == begun, "{strings:?} in {:?}", &text[..=i]);
                found.map(|which| (i, which))
            });
            let end = (0..text.len()).find(|&i| strings.iter().any(|s| text[..=i].ends_with(s)));
            let wanted = end.map(|i| {
                let longest = strings.iter().filter(|s| text[..=i].ends_with(*s)).map(String::len).max().unwrap();
                (i, strings.iter().position(|s| s.len() == longest && text[..=i].ends_with(s)).unwrap())
            });
            assert_eq!(found, wanted, "{strings:?} in {text}");
        }
    }

    #[test]
    fn lists_that_are_too_long_and_strings_of_no_bytes_or_too_many_are_refused_by_name() {
        let message = |strings: &[String]| {
            let e = Stops::new(strings).err().unwrap();
            assert_eq!(e.fault(), Fault::BadOption);
            e.message().to_string()
        };
        assert_eq!(message(&["a".into(), String::new()]), "stop_strings[1]: wanted 1 to 4096 bytes, found 0");
        assert_eq!(message(&["x".repeat(4097)]), "stop_strings[0]: wanted 1 to 4096 bytes, found 4097");
        assert_eq!(message(&vec!["a".to_string(); 129]), "stop_strings: wanted at most 128, found 129");
        assert!(Stops::new(&vec!["x".repeat(4096); 128]).is_ok());
    }
}
