//! Whole characters out of a stream of bytes: a token may end in the middle of a character.
#![forbid(unsafe_code)]

/// Turns pieces of bytes into pieces of UTF-8 text. Bytes that may still become a character are held
/// back, at most three; those that no longer can become U+FFFD, exactly as
/// [`String::from_utf8_lossy`] would have it of the whole.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    held: Vec<u8>,
}

impl TextStream {
    /// A stream that holds nothing.
    pub fn new() -> TextStream {
        TextStream::default()
    }

    /// Takes bytes and gives back the characters that are complete.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::new();
        let mut complete = 0;
        for chunk in self.held.utf8_chunks() {
            let (valid, invalid) = (chunk.valid(), chunk.invalid());
            text.push_str(valid);
            complete += valid.len();
            let last = complete + invalid.len() == self.held.len();
            if last && may_continue(invalid) {
                break;
            }
            if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
                complete += invalid.len();
            }
        }
        self.held.drain(..complete);
        text
    }

    /// Ends the stream: what is still held becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        String::from_utf8_lossy(&held).into_owned()
    }

    /// How many bytes are held back.
    pub fn held(&self) -> usize {
        self.held.len()
    }
}

/// Whether the bytes are the beginning of a character.
fn may_continue(bytes: &[u8]) -> bool {
    !bytes.is_empty() && std::str::from_utf8(bytes).is_err_and(|e| e.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Stream, below};

    #[test]
    fn a_character_appears_once_its_last_byte_is_there() {
        let mut stream = TextStream::new();
        let bytes = "a€😀".as_bytes();
        let pieces: Vec<String> = bytes.iter().map(|&b| stream.push(&[b])).collect();
        assert_eq!(pieces, ["a", "", "", "€", "", "", "", "😀"]);
        assert_eq!((stream.held(), stream.finish().as_str()), (0, ""));
    }

    #[test]
    fn a_broken_tail_becomes_one_replacement_character() {
        let mut stream = TextStream::new();
        assert_eq!(stream.push(&"😀".as_bytes()[..3]), "");
        assert_eq!(stream.held(), 3);
        assert_eq!(stream.finish(), "\u{fffd}");
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn pieces_of_any_bytes_join_to_the_lossy_whole() {
        // Bytes drawn from those that begin, continue and break characters.
        let pool = [b'a', 0x80, 0xbf, 0xc3, 0xe2, 0x82, 0xac, 0xf0, 0x9f, 0x98, 0xed, 0xa0, 0xff, 0xc0];
        for case in 0..2000 {
            let draw = |i, n| below(Stream::World, &[case, i], n) as usize;
            let bytes: Vec<u8> = (0..40).map(|i| pool[draw(i, pool.len() as u64)]).collect();
            let mut stream = TextStream::new();
            let (mut text, mut at) = (String::new(), 0);
            while at < bytes.len() {
                let end = (at + 1 + draw(1000 + at as u64, 5)).min(bytes.len());
                text += &stream.push(&bytes[at..end]);
                assert!(stream.held() <= 3);
                at = end;
            }
            text += &stream.finish();
            assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
