//! Added tokens: texts with an id of their own that no merge makes, such as `<|im_end|>`.
//!
//! They are found by one leftmost-longest scan, which the tokenizer and the chat template share, so
//! that what counts as control is decided in one place.
#![forbid(unsafe_code)]

use serde_json::Value;

use crate::error::{Error, Fault, Result};

/// The most added tokens a tokenizer may have; Qwen3 has 26.
const MAX_ADDED: usize = 1 << 16;

/// One added token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AddedToken {
    pub(super) text: String,
    pub(super) id: i32,
    /// Part of the protocol (`<|im_end|>`) rather than of what a model says (`<think>`).
    pub(super) special: bool,
}

/// All added tokens of a tokenizer.
#[derive(Clone, Debug)]
pub(super) struct AddedTokens {
    /// By first byte, longest text first.
    by_first_byte: Vec<Vec<AddedToken>>,
}

/// A piece of text: an added token, or what lies between two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece<'t> {
    Text(&'t str),
    Token(i32),
}

impl AddedTokens {
    /// Reads the `added_tokens` list of tokenizer.json.
    pub(super) fn from_json(list: &Value, has_normalizer: bool, max_id: i32) -> Result<AddedTokens> {
        let form = |why: String| Error::new(Fault::TokenizerForm, format!("added_tokens: {why}"));
        let list = match list {
            Value::Null => &[][..],
            Value::Array(list) => list,
            other => return Err(form(format!("wanted a list, found {other}"))),
        };
        if list.len() > MAX_ADDED {
            return Err(form(format!("{} tokens, more than the {MAX_ADDED} allowed", list.len())));
        }
        let mut by_first_byte: Vec<Vec<AddedToken>> = vec![Vec::new(); 256];
        let mut ids = std::collections::HashSet::new();
        let mut texts = std::collections::HashSet::new();
        for entry in list {
            let text = entry.get("content").and_then(Value::as_str).filter(|text| !text.is_empty());
            let text = text.ok_or_else(|| form(format!("wanted a content, found {entry}")))?;
            let id = entry.get("id").and_then(Value::as_i64).filter(|id| (0..=max_id as i64).contains(id));
            let id = id.ok_or_else(|| form(format!("{text:?}: wanted an id up to {max_id}")))? as i32;
            if !ids.insert(id) || !texts.insert(text) {
                return Err(form(format!("{text:?}: the token or its id {id} occurs twice")));
            }
            let flag = |key: &str| entry.get(key).and_then(Value::as_bool).unwrap_or(false);
            for key in ["single_word", "lstrip", "rstrip"] {
                if flag(key) {
                    let why = format!("added token {text:?}: {key} is not implemented");
                    return Err(Error::new(Fault::UnsupportedTokenizer, why));
                }
            }
            if has_normalizer && flag("normalized") {
                let why = format!("added token {text:?}: matching in normalized text is not implemented");
                return Err(Error::new(Fault::UnsupportedTokenizer, why));
            }
            let token = AddedToken { text: text.to_string(), id, special: flag("special") };
            by_first_byte[text.as_bytes()[0] as usize].push(token);
        }
        for bucket in &mut by_first_byte {
            bucket.sort_by_key(|token| std::cmp::Reverse(token.text.len()));
        }
        Ok(AddedTokens { by_first_byte })
    }

    /// All tokens, in no order that means anything.
    pub(super) fn iter(&self) -> impl Iterator<Item = &AddedToken> {
        self.by_first_byte.iter().flatten()
    }

    /// The longest token that `text` begins with and `wanted` accepts.
    pub(super) fn at_start(&self, text: &str, wanted: impl Fn(&AddedToken) -> bool) -> Option<&AddedToken> {
        let bucket = &self.by_first_byte[*text.as_bytes().first()? as usize];
        bucket.iter().find(|token| text.starts_with(&token.text) && wanted(token))
    }

    /// Whether `text` is the beginning of a token that `wanted` accepts, but not the whole.
    pub(super) fn begins_any(&self, text: &str, wanted: impl Fn(&AddedToken) -> bool) -> bool {
        let Some(&first) = text.as_bytes().first() else { return false };
        let bucket = &self.by_first_byte[first as usize];
        // Longest first: where the longest is no longer than the text, none is.
        bucket
            .iter()
            .take_while(|token| token.text.len() > text.len())
            .any(|token| token.text.starts_with(text) && wanted(token))
    }

    /// Cuts a text at the tokens that `wanted` accepts, leftmost first, the longest of those that begin
    /// at one place. No piece of text is empty.
    pub(super) fn split<'t>(&self, text: &'t str, wanted: impl Fn(&AddedToken) -> bool) -> Vec<Piece<'t>> {
        let mut pieces = Vec::new();
        let (mut from, mut at) = (0, 0);
        while at < text.len() {
            // A token begins at a character's first byte, and UTF-8 tells those apart from the others.
            let found = if text.is_char_boundary(at) { self.at_start(&text[at..], &wanted) } else { None };
            let Some(token) = found else {
                at += 1;
                continue;
            };
            if from < at {
                pieces.push(Piece::Text(&text[from..at]));
            }
            pieces.push(Piece::Token(token.id));
            at += token.text.len();
            from = at;
        }
        if from < text.len() {
            pieces.push(Piece::Text(&text[from..]));
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tokens(list: &[(&str, i32, bool)]) -> AddedTokens {
        let entry = |&(text, id, special): &(&str, i32, bool)| json!({"content": text, "id": id, "special": special});
        AddedTokens::from_json(&list.iter().map(entry).collect(), true, 1000).unwrap()
    }

    #[test]
    fn the_leftmost_token_wins_and_of_those_the_longest() {
        let added = tokens(&[("<a>", 1, true), ("<a>b", 2, true), ("a>b<", 3, true), ("é", 4, true)]);
        let all = |text| added.split(text, |_| true);
        assert_eq!(all("x<a>b<"), [Piece::Text("x"), Piece::Token(2), Piece::Text("<")]);
        assert_eq!(all("<a><a>"), [Piece::Token(1), Piece::Token(1)]);
        assert_eq!(all("eé€"), [Piece::Text("e"), Piece::Token(4), Piece::Text("€")]);
        assert_eq!(all(""), []);
        // A longer token that is not wanted does not hide a shorter one.
        assert_eq!(added.split("<a>b", |t| t.id != 2), [Piece::Token(1), Piece::Text("b")]);
    }

    #[test]
    fn tokens_that_need_more_than_a_plain_match_are_refused_by_name() {
        for key in ["single_word", "lstrip", "rstrip", "normalized"] {
            let mut entry = json!({"content": "<x>", "id": 1});
            entry[key] = true.into();
            let e = AddedTokens::from_json(&json!([entry]), true, 1000).unwrap_err();
            assert_eq!(e.fault(), Fault::UnsupportedTokenizer);
            assert!(e.message().contains("<x>"), "{e}");
            // Without a normalizer, normalized text is the text.
            assert_eq!(AddedTokens::from_json(&json!([entry]), false, 1000).is_ok(), key == "normalized");
        }
    }
}
