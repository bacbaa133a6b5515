//! Strict reading of one JSON document: every value is asked for by type and range, every key must be
//! known, and every refusal names the path of the offender (`optimizer.beta1`), what was wanted and
//! what was found.
#![forbid(unsafe_code)]

use crate::error::{Error, Fault, Result};
use serde_json::{Map, Value};

/// The path of `key` inside `path` (empty at the top of the document).
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_string() } else { format!("{path}.{key}") }
}

/// The fields of the object at `path`, all of whose keys stand in `known`.
pub(super) fn fields<'a>(value: &'a Value, path: &str, known: &[&str]) -> Result<&'a Map<String, Value>> {
    let Value::Object(map) = value else {
        return Err(bad(value, path, "an object"));
    };
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(map),
        Some(key) => {
            let (key, known) = (join(path, &shorten(key)), known.join(", "));
            Err(Error::new(Fault::UnknownKey, format!("unknown key `{key}`; known here: {known}")))
        }
    }
}

/// A number for which `holds` is true; `wanted` says in words what that is. JSON has no infinities.
pub(super) fn number(value: &Value, path: &str, wanted: &str, holds: impl Fn(f64) -> bool) -> Result<f64> {
    value.as_f64().filter(|&x| x.is_finite() && holds(x)).ok_or_else(|| bad(value, path, wanted))
}

/// A whole number in `low..=high`, written without point or exponent.
pub(super) fn integer(value: &Value, path: &str, low: u64, high: u64) -> Result<u64> {
    let found = value.as_u64().filter(|x| (low..=high).contains(x));
    found.ok_or_else(|| bad(value, path, &format!("a whole number from {low} to {high}")))
}

/// One of the words in `table`.
pub(super) fn word<T: Copy>(value: &Value, path: &str, table: &[(&str, T)]) -> Result<T> {
    let found = value.as_str().and_then(|text| table.iter().find(|(name, _)| *name == text));
    found.map(|&(_, choice)| choice).ok_or_else(|| {
        let names: Vec<_> = table.iter().map(|(name, _)| *name).collect();
        bad(value, path, &format!("one of {}", names.join(", ")))
    })
}

/// The key, the value and the value's path of an object with one of the `known` keys: a choice that has a value of its own.
pub(super) fn choice<'a>(
    value: &'a Value,
    path: &str,
    known: &[&str],
    wanted: &str,
) -> Result<(&'a str, &'a Value, String)> {
    let one = value.as_object().filter(|map| map.len() == 1).and_then(|map| map.iter().next());
    let (key, inner) = one.ok_or_else(|| bad(value, path, wanted))?;
    fields(value, path, known)?;
    Ok((key, inner, join(path, key)))
}

/// The word that stands for `choice` in `table`; every enumerator stands in its table (tested).
pub(super) fn name_of<T: Copy + PartialEq>(choice: T, table: &[(&'static str, T)]) -> &'static str {
    table.iter().find(|(_, c)| *c == choice).map_or("", |(name, _)| name)
}

/// A refusal that names path, wanted and found.
pub(super) fn bad(value: &Value, path: &str, wanted: &str) -> Error {
    let found = match value {
        Value::Object(_) => "an object".to_string(),
        Value::Array(_) => "an array".to_string(),
        Value::String(text) => format!("\"{}\"", shorten(text)),
        plain => plain.to_string(),
    };
    let path = if path.is_empty() { "the document" } else { path };
    Error::new(Fault::BadValue, format!("{path} must be {wanted}, found {found}"))
}

/// A piece of the host's text fit for a message: at most 64 characters, control characters escaped.
pub(super) fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(64).flat_map(char::escape_debug).collect();
    if text.chars().nth(64).is_some() {
        short.push_str("...");
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_unknown_key_is_named_with_its_path_and_the_known_ones() {
        let e = fields(&json!({"beta3": 1}), "optimizer", &["beta1", "beta2"]).unwrap_err();
        assert_eq!(e.fault(), Fault::UnknownKey);
        assert_eq!(e.message(), "unknown key `optimizer.beta3`; known here: beta1, beta2");
    }

    #[test]
    fn long_or_odd_text_is_shortened_and_escaped_in_messages() {
        let key = "x\n".repeat(1000);
        let e = fields(&json!({ key: 1 }), "", &["steps"]).unwrap_err();
        assert!(e.message().len() < 200 && !e.message().contains('\n'), "{e}");
    }

    #[test]
    fn wrong_types_and_ranges_name_path_wanted_and_found() {
        let e = integer(&json!(1.5), "steps", 1, 9).unwrap_err();
        assert_eq!(e.message(), "steps must be a whole number from 1 to 9, found 1.5");
        assert_eq!(integer(&json!(-1), "steps", 0, 9).unwrap_err().fault(), Fault::BadValue);
        let e = word(&json!("both"), "filter", &[("none", 0), ("success", 1)]).unwrap_err();
        assert_eq!(e.message(), "filter must be one of none, success, found \"both\"");
        let e = number(&json!([1]), "sampling.top_p", "a number", |_| true).unwrap_err();
        assert_eq!(e.message(), "sampling.top_p must be a number, found an array");
        let e = fields(&json!(3), "", &[]).unwrap_err();
        assert_eq!(e.message(), "the document must be an object, found 3");
    }
}
