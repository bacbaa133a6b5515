//! JSON as a host hands it over, with nothing lost: integers of any size, keys in their order, and a
//! place in the message where the document is broken.
//!
//! `serde_json` turns an integer beyond 64 bits into a float, so a wei amount in a tool call would reach
//! the model with other digits, and it names a lone surrogate by line and column alone, where the host
//! wants to know which message was cut inside an emoji. Floats are what Python's `json` reads: f64.
#![forbid(unsafe_code)]

use std::fmt::Write;

use num_bigint::BigInt;

use crate::error::{Error, Fault, Result};
use crate::memory;

/// Lists and objects within each other, at most; as `serde_json` has it.
const MAX_DEPTH: usize = 128;
/// Digits of an integer, at most: what Python's `int` reads by default.
const MAX_DIGITS: usize = 4300;

/// A JSON value.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Json {
    /// null
    #[default]
    Null,
    /// true or false
    Bool(bool),
    /// A number without fraction and exponent.
    Int(BigInt),
    /// A number with either; finite.
    Float(f64),
    /// A string.
    String(String),
    /// A list.
    List(Vec<Json>),
    /// An object, keys in their order, each once: of a key given twice the last value counts, as in Python.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Reads a document. `BadJson`, naming the place: `messages[2].content: a lone surrogate \ud83d ...`.
    pub fn parse(text: &str) -> Result<Json> {
        // Messages and the template's values are copies of it.
        let bytes = memory::json_bytes(text.len(), memory::json_values(text.as_bytes()));
        memory::room_for(bytes.saturating_mul(2), "the document")?;
        let mut reader = Reader { text, at: 0, place: Vec::new() };
        reader.space();
        let value = reader.value(0)?;
        reader.space();
        match reader.peek() {
            None => Ok(value),
            Some(_) => Err(reader.wrong("more text after the document's end")),
        }
    }

    /// An object's entry.
    pub fn get(&self, key: &str) -> Option<&Json> {
        match self {
            Json::Object(entries) => entries.iter().find(|(k, _)| k == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// An object's entry, to be changed.
    pub(super) fn get_mut(&mut self, key: &str) -> Option<&mut Json> {
        match self {
            Json::Object(entries) => entries.iter_mut().find(|(k, _)| k == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The text, of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Json::String(text) => Some(text),
            _ => None,
        }
    }

    /// The items, of a list.
    pub fn as_list(&self) -> Option<&[Json]> {
        match self {
            Json::List(items) => Some(items),
            _ => None,
        }
    }

    /// What kind of value it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Json::Null => "null",
            Json::Bool(_) => "true or false",
            Json::Int(_) | Json::Float(_) => "a number",
            Json::String(_) => "a string",
            Json::List(_) => "a list",
            Json::Object(_) => "an object",
        }
    }

    /// Calls `f` for every text in the value, keys included.
    pub(super) fn texts(&self, f: &mut impl FnMut(&str)) {
        match self {
            Json::String(text) => f(text),
            Json::List(items) => items.iter().for_each(|item| item.texts(f)),
            Json::Object(entries) => entries.iter().for_each(|(key, value)| {
                f(key);
                value.texts(f);
            }),
            _ => {}
        }
    }

    /// How many values a value holds, itself included.
    pub(super) fn count(&self) -> u64 {
        match self {
            Json::List(items) => 1 + items.iter().map(Json::count).sum::<u64>(),
            Json::Object(entries) => 1 + entries.iter().map(|(_, value)| value.count()).sum::<u64>(),
            _ => 1,
        }
    }
}

impl From<&serde_json::Value> for Json {
    fn from(value: &serde_json::Value) -> Json {
        match value {
            serde_json::Value::Null => Json::Null,
            serde_json::Value::Bool(b) => Json::Bool(*b),
            serde_json::Value::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(n), _) => Json::Int(n.into()),
                (None, Some(n)) => Json::Int(n.into()),
                (None, None) => Json::Float(n.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => Json::String(text.clone()),
            serde_json::Value::Array(items) => Json::List(items.iter().map(Json::from).collect()),
            serde_json::Value::Object(map) => {
                Json::Object(map.iter().map(|(key, value)| (key.clone(), value.into())).collect())
            }
        }
    }
}

impl From<serde_json::Value> for Json {
    fn from(value: serde_json::Value) -> Json {
        Json::from(&value)
    }
}

impl From<&Json> for Json {
    fn from(value: &Json) -> Json {
        value.clone()
    }
}

impl From<bool> for Json {
    fn from(value: bool) -> Json {
        Json::Bool(value)
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Json {
        Json::String(text.to_string())
    }
}

/// A step on the way to a value.
enum Step {
    Key(String),
    Item(usize),
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
    place: Vec<Step>,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// An error at this place of the document.
    fn wrong(&self, what: &str) -> Error {
        let mut place = String::new();
        for step in &self.place {
            // Writing into a String cannot fail.
            let _ = match step {
                Step::Item(i) => write!(place, "[{i}]"),
                Step::Key(key) if place.is_empty() => write!(place, "{key:.60}"),
                Step::Key(key) => write!(place, ".{key:.60}"),
            };
        }
        let separator = if place.is_empty() { "" } else { ": " };
        Error::new(Fault::BadJson, format!("{place}{separator}{what} (byte {})", self.at))
    }

    fn expected(&self, what: &str) -> Error {
        match self.text.get(self.at..).and_then(|rest| rest.chars().next()) {
            Some(c) => self.wrong(&format!("expected {what}, found {c:?}")),
            None => self.wrong(&format!("expected {what}, found the document's end")),
        }
    }

    fn value(&mut self, depth: usize) -> Result<Json> {
        if depth > MAX_DEPTH {
            return Err(self.wrong(&format!("more than {MAX_DEPTH} lists and objects within each other")));
        }
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.list(depth),
            Some(b'"') => self.string().map(Json::String),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => {
                for (word, value) in [("null", Json::Null), ("true", Json::Bool(true)), ("false", Json::Bool(false))] {
                    if self.text.as_bytes()[self.at..].starts_with(word.as_bytes()) {
                        self.at += word.len();
                        return Ok(value);
                    }
                }
                Err(self.expected("a value"))
            }
        }
    }

    fn list(&mut self, depth: usize) -> Result<Json> {
        let mut items = Vec::new();
        self.at += 1;
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Json::List(items));
        }
        loop {
            self.place.push(Step::Item(items.len()));
            items.push(self.value(depth + 1)?);
            self.place.pop();
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(Json::List(items));
                }
                _ => return Err(self.expected("`,` or `]`")),
            }
            self.space();
        }
    }

    fn object(&mut self, depth: usize) -> Result<Json> {
        let mut entries: Vec<(String, Json)> = Vec::new();
        let mut places = std::collections::HashMap::new();
        self.at += 1;
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Json::Object(entries));
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.expected("a key in quotes"));
            }
            let key = self.string()?;
            self.space();
            if self.peek() != Some(b':') {
                return Err(self.expected("`:`"));
            }
            self.at += 1;
            self.space();
            self.place.push(Step::Key(key.clone()));
            let value = self.value(depth + 1)?;
            self.place.pop();
            match places.get(&key) {
                Some(&place) => entries[place] = (key, value),
                None => {
                    places.insert(key.clone(), entries.len());
                    entries.push((key, value));
                }
            }
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(Json::Object(entries));
                }
                _ => return Err(self.expected("`,` or `}`")),
            }
            self.space();
        }
    }

    fn digits(&mut self) -> Result<()> {
        if !matches!(self.peek(), Some(b'0'..=b'9')) {
            return Err(self.expected("a digit"));
        }
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        Ok(())
    }

    fn number(&mut self) -> Result<Json> {
        let from = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        let leading = self.at;
        self.digits()?;
        if self.text.as_bytes()[leading] == b'0' && self.at > leading + 1 {
            return Err(self.wrong("a number begins with 0"));
        }
        let mut whole = true;
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
            whole = false;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
            whole = false;
        }
        let text = &self.text[from..self.at];
        if whole {
            if text.len() > MAX_DIGITS {
                return Err(self.wrong(&format!("an integer of {} digits, over {MAX_DIGITS}", text.len())));
            }
            return text.parse().map(Json::Int).map_err(|_| self.wrong("a number that is none"));
        }
        match text.parse::<f64>() {
            Ok(x) if x.is_finite() => Ok(Json::Float(x)),
            _ => Err(self.wrong(&format!("the number {text:.40} is beyond the range of a double"))),
        }
    }

    fn string(&mut self) -> Result<String> {
        self.at += 1;
        let mut out = String::new();
        loop {
            let rest = &self.text.as_bytes()[self.at..];
            let plain = rest.iter().position(|b| matches!(b, b'"' | b'\\' | 0..=0x1f));
            let Some(plain) = plain else {
                self.at = self.text.len();
                return Err(self.wrong("a string has no end"));
            };
            // Quotes, backslashes and controls are single bytes, so the cut lies between characters.
            out.push_str(&self.text[self.at..self.at + plain]);
            self.at += plain;
            match rest[plain] {
                b'"' => {
                    self.at += 1;
                    return Ok(out);
                }
                b'\\' => out.push(self.escape()?),
                control => {
                    return Err(self.wrong(&format!("a string holds the control character {control:#04x} unescaped")));
                }
            }
        }
    }

    /// The character of an escape; the reader stands at the backslash.
    fn escape(&mut self) -> Result<char> {
        let c = self.text.as_bytes().get(self.at + 1).copied();
        let simple = match c {
            Some(c @ (b'"' | b'\\' | b'/')) => char::from(c),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode(),
            _ => return Err(self.wrong("a backslash that begins no escape")),
        };
        self.at += 2;
        Ok(simple)
    }

    fn unit(&self, at: usize) -> Option<u32> {
        let bytes = self.text.as_bytes();
        let hex = self.text.get(at + 2..at + 6).filter(|h| h.bytes().all(|b| b.is_ascii_hexdigit()))?;
        (bytes.get(at..at + 2)? == b"\\u").then(|| u32::from_str_radix(hex, 16).ok())?
    }

    fn unicode(&mut self) -> Result<char> {
        let at = self.at;
        let Some(unit) = self.unit(at) else { return Err(self.wrong("\\u without four hexadecimal digits")) };
        if let Some(c) = char::from_u32(unit) {
            self.at += 6;
            return Ok(c);
        }
        if let (0xd800..=0xdbff, Some(low @ 0xdc00..=0xdfff)) = (unit, self.unit(at + 6))
            && let Some(c) = char::from_u32(0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00))
        {
            self.at += 12;
            return Ok(c);
        }
        let why = format!(
            "a lone surrogate \\u{unit:04x}: half of a character, as of a text cut inside an emoji; cut between \
             characters, or put U+FFFD in its place"
        );
        Err(self.wrong(&why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn integers_keep_their_digits_and_floats_are_doubles() {
        let value = Json::parse("[1000000000000000000000, -18446744073709551617, 0, -0, 1e-05, 1E+16, -0.0]").unwrap();
        let Json::List(items) = value else { panic!() };
        let texts: Vec<String> =
            items[..4].iter().map(|i| if let Json::Int(n) = i { n.to_string() } else { panic!() }).collect();
        assert_eq!(texts, ["1000000000000000000000", "-18446744073709551617", "0", "0"]);
        assert_eq!(items[4..6], [Json::Float(1e-5), Json::Float(1e16)]);
        assert!(matches!(items[6], Json::Float(x) if x == 0.0 && x.is_sign_negative()));
    }

    #[test]
    fn what_serde_reads_is_read_alike() {
        let texts = [
            r#"{"a": [1, 2.5, {"b": null}], "c": "é\n\"\\\/\b\f\r\t\u00e9\ud83d\ude00", "d": true, "": {}}"#,
            "  [ ] ",
            "\"\"",
            "-12",
            "[[], {}, [[1]]]",
            "1.5e300",
        ];
        for text in texts {
            let wanted: serde_json::Value = serde_json::from_str(text).unwrap();
            assert_eq!(Json::parse(text).unwrap(), Json::from(wanted), "{text}");
        }
    }

    #[test]
    fn what_serde_refuses_is_refused() {
        let texts = [
            "",
            " ",
            "{",
            "[1,]",
            "[1 2]",
            "{\"a\"}",
            "{\"a\":}",
            "{a: 1}",
            "01",
            "1.",
            ".5",
            "+1",
            "1e",
            "-",
            "nul",
            "'a'",
            "\"a",
            "\"\n\"",
            "\"\\x\"",
            "\"\\u12\"",
            "[1] 2",
            "NaN",
            "Infinity",
            "1e999",
            "\"\\ud83d\"",
            "\"\\ude00\\ud83d\"",
            "{\"a\": 1,}",
        ];
        for text in texts {
            assert!(serde_json::from_str::<serde_json::Value>(text).is_err(), "{text}");
            assert_eq!(Json::parse(text).unwrap_err().fault(), Fault::BadJson, "{text}");
        }
        let deep = "[".repeat(200_000);
        assert!(Json::parse(&deep).unwrap_err().message().contains("within each other"));
        let long = "1".repeat(10_000);
        assert!(Json::parse(&long).unwrap_err().message().contains("10000 digits"));
    }

    #[test]
    fn a_lone_surrogate_is_named_with_its_place() {
        let text = r#"{"messages":[{"role":"user","content":"x"},{"role":"tool","content":"cut here \ud83d"}]}"#;
        let e = Json::parse(text).unwrap_err();
        assert!(e.message().starts_with("messages[1].content: a lone surrogate \\ud83d"), "{e}");
        assert!(e.message().contains("emoji"), "{e}");
    }

    #[test]
    fn of_a_key_given_twice_the_last_value_counts() {
        assert_eq!(Json::parse(r#"{"a": 1, "b": 2, "a": 3}"#).unwrap(), Json::from(json!({"a": 3, "b": 2})));
    }
}
