//! What all parts of tokenizer.json are read with.
#![forbid(unsafe_code)]

use serde_json::Value;

use crate::error::{Error, Fault, Result, brief};

/// What to do about a file that is not as it was written.
pub(super) const DAMAGED: &str = "fetch the file again, or save the tokenizer again";

/// The file is broken or contradicts itself.
pub(super) fn form(why: impl Into<String>) -> Error {
    Error::new(Fault::TokenizerForm, why)
}

/// The file asks for what squire lacks.
pub(super) fn unsupported(why: impl Into<String>) -> Error {
    Error::new(Fault::UnsupportedTokenizer, why)
}

/// A text of the file as a message shows it, in quotes and not too long.
pub(super) fn quoted(text: &str) -> String {
    brief(format_args!("{text:?}"))
}

/// The type that a part names.
pub(super) fn type_of<'a>(part: &'a Value, name: &str) -> Result<&'a str> {
    let found = part.get("type").and_then(Value::as_str);
    found.ok_or_else(|| form(format!("{name}: wanted an object with a type, found none; {DAMAGED}")))
}

/// The list under a part's key.
pub(super) fn list_of<'a>(part: &'a Value, key: &str, name: &str) -> Result<&'a Vec<Value>> {
    let found = part.get(key).and_then(Value::as_array);
    found.ok_or_else(|| form(format!("{name}: wanted a list {key}, found none; {DAMAGED}")))
}
