//! The text of ids as they are sampled, up to the first stop string: what may turn out to be the beginning of one is held back
//! until it is certain, so that nothing that was handed out is ever of one.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;

use super::stops::Stops;
use super::stream::TextStream;
use super::tokenizer::Tokenizer;
use crate::error::Result;

/// A stop string that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopFound {
    /// Which of the generation's stop strings.
    pub index: usize,
    /// Byte of the generation's text at which it begins: as many were handed out.
    pub byte: u64,
    /// Which of the generation's tokens, counted from 0, holds its first byte.
    pub token: u64,
}

/// Makes text of ids until a stop string is complete. Special tokens are no text; without a tokenizer there is none at all.
pub struct TextUntilStop {
    tokenizer: Option<Arc<Tokenizer>>,
    stream: TextStream,
    stops: Stops,
    /// the token that began the character which `stream` holds
    began: u64,
    tokens: u64,
    /// bytes of text that were handed out
    told: u64,
    held: String,
    /// where the text of tokens begins, as far as it may be asked for: byte and token
    origins: VecDeque<(u64, u64)>,
    found: Option<StopFound>,
}

impl TextUntilStop {
    /// No text so far. Errors: those of `Stops::new`.
    pub fn new<S: AsRef<str>>(tokenizer: Option<Arc<Tokenizer>>, stop_strings: &[S]) -> Result<TextUntilStop> {
        Ok(TextUntilStop {
            tokenizer,
            stream: TextStream::new(),
            stops: Stops::new(stop_strings)?,
            began: 0,
            tokens: 0,
            told: 0,
            held: String::new(),
            origins: VecDeque::new(),
            found: None,
        })
    }

    /// Takes the next id; the text that is certain now.
    pub fn push(&mut self, id: i32) -> String {
        let tokenizer = self.tokenizer.clone();
        let tokenizer = tokenizer.as_deref().filter(|t| !t.is_special(id));
        self.push_bytes(tokenizer.and_then(|t| t.token_bytes(id)).unwrap_or_default())
    }

    fn push_bytes(&mut self, bytes: &[u8]) -> String {
        let token = self.tokens;
        self.tokens += 1;
        if self.found.is_some() {
            return String::new();
        }
        let first = if self.stream.held() > 0 { self.began } else { token };
        let text = self.stream.push(bytes);
        if first == token || !text.is_empty() {
            // What is held now began here.
            self.began = token;
        }
        self.take(text, first, token)
    }

    /// Ends the text: what was held back is certain, and a character that was broken off will not be whole.
    pub fn finish(&mut self) -> String {
        if self.found.is_some() {
            return String::new();
        }
        let (text, began) = (self.stream.finish(), self.began);
        let mut told = self.take(text, began, began);
        told.push_str(&std::mem::take(&mut self.held));
        told
    }

    /// The stop string that ended it. Nothing behind it is text.
    pub fn found(&self) -> Option<StopFound> {
        self.found
    }

    /// More text, whose first character is of the token `first` and the rest of `token`.
    fn take(&mut self, text: String, first: u64, token: u64) -> String {
        if self.stops.is_empty() {
            self.told += text.len() as u64;
            return text;
        }
        let at = self.told + self.held.len() as u64;
        let Some(character) = text.chars().next().map(char::len_utf8) else { return text };
        self.origins.push_back((at, first));
        if first != token && text.len() > character {
            self.origins.push_back((at + character as u64, token));
        }
        self.held.push_str(&text);
        let complete = text.bytes().enumerate().find_map(|(i, byte)| Some((i, self.stops.advance(byte)?)));
        let certain = match complete {
            Some((i, index)) => {
                let byte = at + i as u64 + 1 - self.stops.len_of(index) as u64;
                self.found = Some(StopFound { index, byte, token: self.token_of(byte) });
                (byte - self.told) as usize
            }
            None => self.held.len() - self.stops.begun(),
        };
        let rest = self.held.split_off(certain);
        let told = std::mem::replace(&mut self.held, rest);
        self.told += told.len() as u64;
        if self.found.is_some() {
            self.held.clear();
        }
        while self.origins.get(1).is_some_and(|&(byte, _)| byte <= self.told) {
            self.origins.pop_front();
        }
        told
    }

    /// The token that holds a byte which was not handed out yet.
    fn token_of(&self, byte: u64) -> u64 {
        let before = self.origins.partition_point(|&(from, _)| from <= byte);
        before.checked_sub(1).map_or(0, |i| self.origins[i].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Stream, below};

    fn until(stops: &[&str]) -> TextUntilStop {
        TextUntilStop::new(None, stops).unwrap()
    }

    #[test]
    fn a_stop_string_across_tokens_and_characters_is_found_and_never_handed_out() {
        let mut text = until(&["€!"]);
        let pieces: Vec<String> = [&b"a"[..], b"\xe2", b"\x82", b"\xac", b"?\xe2\x82", b"\xac!b", b"c"]
            .iter()
            .map(|bytes| text.push_bytes(bytes))
            .collect();
        assert_eq!(pieces, ["a", "", "", "", "€?", "", ""]);
        assert_eq!(text.found(), Some(StopFound { index: 0, byte: 5, token: 4 }));
        assert_eq!(text.finish(), "");
    }

    #[test]
    fn a_beginning_that_is_none_is_handed_out_later_and_at_the_end() {
        let mut text = until(&["aab", "b!"]);
        let pieces: Vec<String> = [&b"aa"[..], b"a", b"c", b"b"].iter().map(|bytes| text.push_bytes(bytes)).collect();
        assert_eq!(pieces, ["", "a", "aac", ""]);
        assert_eq!((text.finish().as_str(), text.found()), ("b", None));
    }

    #[test]
    fn a_replaced_character_can_be_a_stop_string_also_at_the_end() {
        let mut text = until(&["x\u{fffd}"]);
        assert_eq!((text.push_bytes(b"ax"), text.push_bytes(b"\xf0\x9f")), ("a".into(), "".into()));
        assert_eq!(text.finish(), "");
        assert_eq!(text.found(), Some(StopFound { index: 0, byte: 1, token: 0 }));
        let mut text = until(&["\u{fffd}"]);
        assert_eq!((text.push_bytes(b"a\xf0\x9f"), text.push_bytes(b"b")), ("a".into(), "".into()));
        assert_eq!(text.found(), Some(StopFound { index: 0, byte: 1, token: 0 }));
    }

    /// Bytes cut into tokens anyhow: the text handed out is the whole one up to the first stop string to be complete, and the
    /// token is the one whose bytes begin it.
    #[test]
    fn however_bytes_are_cut_into_tokens_the_text_ends_before_the_first_stop_string() {
        let pool = ["a", "b", "é", "€", "😀", "\u{fffd}"];
        let mut n_found = 0;
        for case in 0..3000u64 {
            let draw = |i: u64, n: usize| below(Stream::World, &[case, i], n as u64) as usize;
            let word =
                |key: u64, n: usize| (0..n as u64).map(|i| pool[draw(1000 * key + i, pool.len())]).collect::<String>();
            let stops: Vec<String> = (0..1 + draw(1, 3) as u64).map(|k| word(10 + k, 1 + draw(20 + k, 3))).collect();
            // Some bytes are lost, so that characters are broken.
            let bytes: Vec<u8> = word(99, 20)
                .bytes()
                .enumerate()
                .filter(|&(i, _)| draw(5000 + i as u64, 12) > 0)
                .map(|(_, b)| b)
                .collect();
            let mut tokens: Vec<&[u8]> = Vec::new();
            let mut at = 0;
            while at < bytes.len() {
                let end = (at + draw(7000 + tokens.len() as u64, 6)).min(bytes.len());
                tokens.push(&bytes[at..end]);
                at = end;
            }
            let mut text = TextUntilStop::new(None, &stops).unwrap();
            let mut told = String::new();
            for token in &tokens {
                told += &text.push_bytes(token);
                assert!(stops.iter().all(|stop| !told.contains(stop.as_str())), "{stops:?} in {told:?}");
            }
            told += &text.finish();
            let whole = String::from_utf8_lossy(&bytes);
            let longest = |end: usize| {
                let ends = |s: &&String| whole.as_bytes()[..end].ends_with(s.as_bytes());
                stops.iter().filter(ends).map(String::len).max()
            };
            let Some((end, length)) = (1..=whole.len()).find_map(|end| Some((end, longest(end)?))) else {
                assert_eq!((told.as_str(), text.found()), (&*whole, None));
                continue;
            };
            n_found += 1;
            let begin = end - length;
            assert_eq!(told, whole[..begin]);
            let found = text.found().unwrap();
            assert_eq!((found.byte, &whole[begin..end]), (begin as u64, stops[found.index].as_str()));
            // The raw byte that the stop string's first character begins with, and the token that holds it.
            let mut raw = 0;
            let mut shown = 0;
            for chunk in bytes.utf8_chunks() {
                if begin < shown + chunk.valid().len() {
                    raw += begin - shown;
                    break;
                }
                (raw, shown) = (raw + chunk.valid().len(), shown + chunk.valid().len());
                if begin == shown && !chunk.invalid().is_empty() {
                    break;
                }
                (raw, shown) = (raw + chunk.invalid().len(), shown + 3 * usize::from(!chunk.invalid().is_empty()));
            }
            let mut before = 0;
            let holds = |token: &&[u8]| {
                before += token.len();
                raw < before
            };
            assert_eq!(Some(found.token as usize), tokens.iter().position(holds), "{stops:?} in {whole:?} at {begin}");
        }
        assert!(n_found > 500, "{n_found}");
    }
}
