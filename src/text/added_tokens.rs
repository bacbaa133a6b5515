//! Added tokens: texts with an id of their own that no merge makes, such as `<|im_end|>`.
//!
//! They are found by leftmost-longest scans, which the tokenizer and the chat template share, so that
//! what counts as control is decided in one place. As in Hugging Face's tokenizers there are two scans:
//! one of the text as it is, for most tokens, and one of what lies between those in its normal form, for
//! tokens that are `normalized` (as a token added as a plain string is), in their own normal form.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use serde_json::Value;

use super::normalizer::{Normalizer, begins_with_mark, decomposed};
use crate::error::{Error, Fault, Result, brief};
use crate::memory;

/// The most added tokens a tokenizer may have; Qwen3 has 26.
const MAX_ADDED: usize = 1 << 16;
/// The longest text of an added token, in bytes; Qwen3's longest has 20.
const MAX_TEXT: usize = 4096;
/// All their texts together, in bytes; those of a model with 32,768 picture tokens have 1 MB.
const MAX_TEXTS: usize = 4 << 20;

/// One added token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AddedToken {
    /// The text in tokenizer.json.
    pub(super) text: String,
    /// The text that is looked for: for a normalized token its normal form.
    pub(super) form: String,
    pub(super) id: i32,
    /// Part of the protocol (`<|im_end|>`) rather than of what a model says (`<think>`).
    pub(super) special: bool,
    /// Only where no word character stands beside it.
    single_word: bool,
    /// With the white space before it.
    lstrip: bool,
    /// With the white space behind it.
    rstrip: bool,
}

/// All added tokens of a tokenizer, and the normalizer that stands between their two scans.
#[derive(Clone, Debug)]
pub(super) struct AddedTokens {
    normalizer: Normalizer,
    /// Those found in the text as it is.
    plain: Tokens,
    /// Those found in normalised text.
    normalized: Tokens,
    /// The normalized ones by their decomposed form: a beginning of it may be composed with what follows.
    decomposed: Tokens,
}

/// A piece of text: an added token, or what lies between two, normalised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece<'t> {
    Text(Cow<'t, str>),
    Token(i32),
}

/// Tokens in the order of their forms' bytes, so that those with a common beginning lie together.
#[derive(Clone, Debug)]
struct Tokens {
    sorted: Vec<AddedToken>,
    /// Where the tokens of each first byte begin, and at the end their number.
    starts: Vec<u32>,
    /// The length of the longest form, in bytes.
    longest: usize,
}

impl Tokens {
    fn new(mut sorted: Vec<AddedToken>) -> Tokens {
        sorted.sort_by(|a, b| a.form.cmp(&b.form));
        let before = |byte: usize| sorted.partition_point(|token| usize::from(token.form.as_bytes()[0]) < byte) as u32;
        let starts = (0..=256).map(before).collect();
        let longest = sorted.iter().map(|token| token.form.len()).max().unwrap_or(0);
        Tokens { sorted, starts, longest }
    }

    fn of_first_byte(&self, byte: u8) -> &[AddedToken] {
        &self.sorted[self.starts[usize::from(byte)] as usize..self.starts[usize::from(byte) + 1] as usize]
    }

    /// The longest token that `text` begins with and `wanted` accepts.
    fn at_start(&self, text: &str, wanted: impl Fn(&AddedToken) -> bool) -> Option<&AddedToken> {
        let text = text.as_bytes();
        let mut tokens = self.of_first_byte(*text.first()?);
        let mut found = None;
        let mut len = 1;
        while let Some(first) = tokens.first() {
            // The shortest of those with one beginning comes first, and no other has its form.
            if first.form.len() == len {
                if wanted(first) {
                    found = Some(first);
                }
                tokens = &tokens[1..];
            }
            let Some(&byte) = text.get(len) else { break };
            let from = tokens.partition_point(|token| token.form.as_bytes()[len] < byte);
            let to = tokens.partition_point(|token| token.form.as_bytes()[len] <= byte);
            tokens = &tokens[from..to];
            len += 1;
        }
        found
    }

    /// Whether `text` is the beginning of a token that `wanted` accepts, but not the whole.
    fn begins_any(&self, text: &str, wanted: impl Fn(&AddedToken) -> bool) -> bool {
        let Some(&first) = text.as_bytes().first() else { return false };
        if text.len() >= self.longest {
            return false;
        }
        let tokens = self.of_first_byte(first);
        let from = tokens.partition_point(|token| token.form.as_str() <= text);
        tokens[from..].iter().take_while(|token| token.form.starts_with(text)).any(wanted)
    }

    /// Cuts a text at the tokens that `wanted` accepts, in the very steps of Hugging Face's tokenizers.
    fn cut(
        &self,
        text: &str,
        wanted: impl Fn(&AddedToken) -> bool,
        mut found: impl FnMut(Cut) -> Result<()>,
    ) -> Result<()> {
        let (mut from, mut at) = (0, 0);
        // The white space behind the last token that takes it, found once however many tokens lie in it.
        let mut space = 0..0;
        while at < text.len() && !self.sorted.is_empty() {
            // A token begins at a character's first byte, which no other byte of UTF-8 equals.
            let token = match self.of_first_byte(text.as_bytes()[at]) {
                [] => None,
                _ => self.at_start(&text[at..], &wanted),
            };
            let Some(token) = token else {
                at += 1;
                continue;
            };
            let (mut start, mut stop) = (at, at + token.form.len());
            at = stop;
            let is_word = |c: Option<char>| c.is_some_and(regex_syntax::is_word_character);
            if token.single_word && (is_word(text[..start].chars().next_back()) || is_word(text[stop..].chars().next()))
            {
                continue;
            }
            if token.lstrip && from < start {
                start = from + text[from..start].trim_end().len();
            }
            if token.rstrip {
                if !space.contains(&stop) {
                    space = stop..text.len() - text[stop..].trim_start().len();
                }
                stop = stop.max(space.end);
            }
            if from < start {
                found(Cut::Text(from..start))?;
            }
            found(Cut::Token(token.id))?;
            from = stop;
        }
        if from < text.len() {
            found(Cut::Text(from..text.len()))?;
        }
        Ok(())
    }
}

enum Cut {
    Text(std::ops::Range<usize>),
    Token(i32),
}

impl AddedTokens {
    /// Reads the `added_tokens` list of tokenizer.json.
    pub(super) fn from_json(list: &Value, normalizer: Normalizer, max_id: i32) -> Result<AddedTokens> {
        let form = |why: String| Error::new(Fault::TokenizerForm, format!("added_tokens: {why}"));
        let list = match list {
            Value::Null => &[][..],
            Value::Array(list) => list,
            other => return Err(form(format!("wanted a list, found {}; save the tokenizer again", brief(other)))),
        };
        if list.len() > MAX_ADDED {
            let n = list.len();
            return Err(form(format!("wanted at most {MAX_ADDED} tokens, found {n}; put them into the vocabulary")));
        }
        let (mut plain, mut normalized) = (Vec::new(), Vec::new());
        let mut all_bytes = 0;
        let mut ids = std::collections::HashSet::new();
        let mut texts = std::collections::HashSet::new();
        for entry in list {
            let text = entry.get("content").and_then(Value::as_str).filter(|text| !text.is_empty());
            let text =
                text.ok_or_else(|| form(format!("wanted a content, found {}; remove the entry", brief(entry))))?;
            all_bytes += text.len();
            if all_bytes > MAX_TEXTS {
                return Err(form(format!("wanted at most {MAX_TEXTS} bytes of texts, found more; remove tokens")));
            }
            if text.len() > MAX_TEXT {
                let (n, begin) = (text.len(), text.chars().take(40).collect::<String>());
                return Err(form(format!(
                    "{begin:?}...: wanted at most {MAX_TEXT} bytes, found {n}; shorten the token"
                )));
            }
            let found = entry.get("id").unwrap_or(&Value::Null);
            let id = found.as_i64().filter(|id| (0..=max_id as i64).contains(id));
            let id = id.ok_or_else(|| {
                let (text, found) = (brief(format_args!("{text:?}")), brief(found));
                form(format!("{text}: wanted an id from 0 to {max_id}, found {found}; save the tokenizer again"))
            })? as i32;
            if !ids.insert(id) || !texts.insert(text) {
                let text = brief(format_args!("{text:?}"));
                let why = format!("{text}: the token or its id {id} occurs twice, wanted once; remove one entry");
                return Err(form(why));
            }
            let flag = |key: &str| entry.get(key).and_then(Value::as_bool).unwrap_or(false);
            let is_normalized = flag("normalized");
            let token = AddedToken {
                text: text.to_string(),
                form: if is_normalized { normalizer.apply(text)?.into_owned() } else { text.to_string() },
                id,
                special: flag("special"),
                single_word: flag("single_word"),
                lstrip: flag("lstrip"),
                rstrip: flag("rstrip"),
            };
            if is_normalized { normalized.push(token) } else { plain.push(token) }
        }
        let bare = |token: &AddedToken| AddedToken { form: decomposed(&token.form), ..token.clone() };
        let without_form = if normalizer.is_identity() { &[][..] } else { &normalized };
        let decomposed = Tokens::new(without_form.iter().map(bare).collect());
        let normalized = Tokens::new(normalized);
        if let Some(pair) = normalized.sorted.windows(2).find(|pair| pair[0].form == pair[1].form) {
            let [a, b] = [0, 1].map(|n| brief(format_args!("{:?}", pair[n].text)));
            return Err(form(format!("{a} and {b}: wanted two normal forms, found one; remove one of them")));
        }
        Ok(AddedTokens { normalizer, plain: Tokens::new(plain), normalized, decomposed })
    }

    /// All tokens, in no order that means anything.
    pub(super) fn iter(&self) -> impl Iterator<Item = &AddedToken> {
        self.plain.sorted.iter().chain(&self.normalized.sorted)
    }

    /// The normal form of a text. Error: `OutOfHostMemory`.
    pub(super) fn normal_form<'t>(&self, text: &'t str) -> Result<Cow<'t, str>> {
        self.normalizer.apply(text)
    }

    /// The fewest bytes that the normal form of a text of so many bytes can have.
    pub(super) fn normalizer_least(&self, bytes: usize) -> usize {
        self.normalizer.least(bytes)
    }

    /// The fewest bytes that the ids of a text of so many bytes can stand for; None where a token may take any number of
    /// them with it.
    pub(super) fn least(&self, bytes: usize) -> Option<usize> {
        let strips = self.iter().any(|token| token.lstrip || token.rstrip);
        (!strips).then(|| self.normalizer.least(bytes))
    }

    /// A text in the form in which tokens are looked for, so that none is hidden in another spelling: if
    /// there are tokens to be found in normalised text, all but the other tokens normalised.
    ///
    /// Error: `OutOfHostMemory`.
    pub(super) fn searched<'t>(&self, text: &'t str) -> Result<Cow<'t, str>> {
        if self.decomposed.sorted.is_empty() || text.is_ascii() {
            return Ok(Cow::Borrowed(text));
        }
        memory::room_for(2 * text.len(), "the text of a message")?;
        let mut searched = String::with_capacity(text.len());
        let (mut from, mut at) = (0, 0);
        while at < text.len() {
            let Some(token) = self.plain.at_start(&text[at..], |_| true) else {
                at += text[at..].chars().next().map_or(1, char::len_utf8);
                continue;
            };
            searched.push_str(&self.normalizer.apply(&text[from..at])?);
            searched.push_str(&token.form);
            at += token.form.len();
            from = at;
        }
        searched.push_str(&self.normalizer.apply(&text[from..])?);
        Ok(Cow::Owned(searched))
    }

    /// Whether what stands before a text may be changed by the text's first character when both are
    /// normalised as one, in a way that could make or unmake a token.
    pub(super) fn joins_before(&self, text: &str) -> bool {
        !self.decomposed.sorted.is_empty() && begins_with_mark(text)
    }

    /// The longest token that `text` begins with and `wanted` accepts.
    pub(super) fn at_start(&self, text: &str, wanted: impl Fn(&AddedToken) -> bool) -> Option<&AddedToken> {
        let found = [self.plain.at_start(text, &wanted), self.normalized.at_start(text, &wanted)];
        found.into_iter().flatten().max_by_key(|token| token.form.len())
    }

    /// Whether `text` is the beginning of a token that `wanted` accepts, but not the whole.
    pub(super) fn begins_any(&self, text: &str, wanted: impl Fn(&AddedToken) -> bool) -> bool {
        let found = |tokens: &Tokens, text: &str| tokens.begins_any(text, &wanted);
        if found(&self.plain, text) || found(&self.normalized, text) {
            return true;
        }
        // Decomposing makes no text shorter than a third.
        text.len() / 3 < self.decomposed.longest && found(&self.decomposed, &decomposed(text))
    }

    /// Cuts a text at the tokens that `wanted` accepts, leftmost first, the longest of those that begin
    /// at one place, and normalises what lies between. `found` gets the pieces in order; no piece of text is empty. It
    /// stops at the first error.
    pub(super) fn split<'t>(
        &self,
        text: &'t str,
        wanted: impl Fn(&AddedToken) -> bool,
        mut found: impl FnMut(Piece<'t>) -> Result<()>,
    ) -> Result<()> {
        self.plain.cut(text, &wanted, |cut| match cut {
            Cut::Token(id) => found(Piece::Token(id)),
            Cut::Text(range) => {
                let normal = self.normalizer.apply(&text[range])?;
                if self.normalized.sorted.is_empty() {
                    return found(Piece::Text(normal));
                }
                self.normalized.cut(&normal, &wanted, |cut| {
                    found(match cut {
                        Cut::Token(id) => Piece::Token(id),
                        Cut::Text(range) => Piece::Text(match &normal {
                            Cow::Borrowed(text) => Cow::Borrowed(&text[range]),
                            Cow::Owned(text) => Cow::Owned(text[range].to_string()),
                        }),
                    })
                })
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tokens(list: &[(&str, i32, bool)]) -> AddedTokens {
        let entry = |&(text, id, special): &(&str, i32, bool)| json!({"content": text, "id": id, "special": special});
        let nfc = Normalizer::from_json(&json!({"type": "NFC"})).unwrap();
        AddedTokens::from_json(&list.iter().map(entry).collect(), nfc, 1000).unwrap()
    }

    fn text(text: &str) -> Piece<'_> {
        Piece::Text(text.into())
    }

    #[test]
    fn the_leftmost_token_wins_and_of_those_the_longest() {
        let added = tokens(&[("<a>", 1, true), ("<a>b", 2, true), ("a>b<", 3, true), ("é", 4, true)]);
        let split = |text, wanted: fn(&AddedToken) -> bool| {
            let mut pieces = Vec::new();
            let keep = |piece| {
                pieces.push(piece);
                Ok(())
            };
            added.split(text, wanted, keep).unwrap();
            pieces
        };
        let all = |text| split(text, |_| true);
        assert_eq!(all("x<a>b<"), [text("x"), Piece::Token(2), text("<")]);
        assert_eq!(all("<a><a>"), [Piece::Token(1), Piece::Token(1)]);
        assert_eq!(all("eé€"), [text("e"), Piece::Token(4), text("€")]);
        assert_eq!(all(""), []);
        // A longer token that is not wanted does not hide a shorter one.
        assert_eq!(split("<a>b", |t| t.id != 2), [Piece::Token(1), text("b")]);
    }

    #[test]
    fn the_beginning_of_a_token_is_known_and_the_whole_is_none() {
        let added = tokens(&[("<a>", 1, true), ("<a>b", 2, false), ("<abc>", 3, true)]);
        for (text, begins) in
            [("<", true), ("<a", true), ("<a>", true), ("<a>b", false), ("<abc>", false), ("x", false)]
        {
            assert_eq!(added.begins_any(text, |_| true), begins, "{text}");
        }
        assert!(!added.begins_any("<a>", |token| token.special));
        assert_eq!(added.at_start("<a>bc", |_| true).map(|token| token.id), Some(2));
        assert_eq!(added.at_start("<ab", |_| true), None);
    }
}
