//! Typed look-ups in config.json. A key that is absent or null is None; one of the wrong type is
//! `ConfigForm`, naming the key, the type wanted and the value found.
#![forbid(unsafe_code)]

use serde_json::{Map, Value};

use crate::error::{Error, Fault, Result};

/// A JSON object of the configuration.
pub(super) struct Fields<'a>(&'a Map<String, Value>);

fn form(why: String) -> Error {
    Error::new(Fault::ConfigForm, format!("config.json: {why}"))
}

impl<'a> Fields<'a> {
    /// The whole document, which must be an object.
    pub(super) fn of(document: &'a Value) -> Result<Fields<'a>> {
        document.as_object().map(Fields).ok_or_else(|| form("wanted a JSON object".into()))
    }

    /// Any value but null.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    fn typed<T>(&self, key: &str, wanted: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| {
            let mut found = value.to_string();
            if let Some((cut, _)) = found.char_indices().nth(80) {
                found.truncate(cut);
                found.push('…');
            }
            form(format!("{key}: wanted {wanted}, found {found}"))
        })
    }

    /// A whole number from 0.
    pub(super) fn count(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number", |v| v.as_u64().and_then(|v| usize::try_from(v).ok()))
    }

    /// A whole number that must be there.
    pub(super) fn extent(&self, key: &str) -> Result<usize> {
        self.count(key)?.ok_or_else(|| form(format!("{key}: missing")))
    }

    /// A number.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// true or false.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A string.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", Value::as_str)
    }

    /// A list.
    pub(super) fn list(&self, key: &str) -> Result<Option<&'a [Value]>> {
        self.typed(key, "a list", |v| v.as_array().map(Vec::as_slice))
    }

    /// An object.
    pub(super) fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        self.typed(key, "an object", |v| v.as_object().map(Fields))
    }

    /// The first key whose value is itself an object.
    pub(super) fn first_object(&self) -> Option<&'a str> {
        self.0.iter().find(|(_, v)| v.is_object()).map(|(key, _)| key.as_str())
    }
}
