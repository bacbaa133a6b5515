//! Typed look-ups in config.json. A key that is absent or null is None; one of the wrong type is
//! `ConfigForm`, naming the key, the type wanted and the value found.
#![forbid(unsafe_code)]

use serde_json::{Map, Value};

use crate::error::{Error, Fault, Result, brief};

/// The largest extent: indices inside the kernels are 32 bits.
pub(super) const MAX_EXTENT: usize = i32::MAX as usize;

/// What config.json says cannot be true together.
pub(super) fn contradiction(why: String) -> Error {
    let remedy = "take config.json from the model's own folder, or undo what was edited";
    Error::new(Fault::ConfigContradiction, format!("config.json: {why}; {remedy}"))
}

/// A JSON object of the configuration.
pub(super) struct Fields<'a>(&'a Map<String, Value>);

fn form(why: String) -> Error {
    let remedy = "take config.json from the model's own folder, or mend the value";
    Error::new(Fault::ConfigForm, format!("config.json: {why}; {remedy}"))
}

/// A whole number from 0, also where it is written with a point (40960.0).
pub(super) fn whole(value: &Value) -> Option<usize> {
    const MOST: f64 = (1u64 << 53) as f64; // above it an f64 no longer tells whole numbers apart
    let pointed = || value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..=MOST).contains(x)).map(|x| x as u64);
    value.as_u64().or_else(pointed).and_then(|v| usize::try_from(v).ok())
}

/// Values as a message shows them: what is long is cut.
pub(super) fn shortened<'a>(values: impl Iterator<Item = &'a Value>) -> String {
    let some: Vec<String> = values.take(20).map(brief).collect();
    brief(some.join(", "))
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

    /// Whether the key is there, and then whether it is null.
    pub(super) fn has(&self, key: &str) -> Option<bool> {
        self.0.get(key).map(Value::is_null)
    }

    fn typed<T>(&self, key: &str, wanted: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        read(value)
            .map(Some)
            .ok_or_else(|| form(format!("{key}: wanted {wanted}, found {}", shortened(std::iter::once(value)))))
    }

    /// A whole number from 0.
    pub(super) fn count(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number", whole)
    }

    /// A whole number that must be there.
    pub(super) fn extent(&self, key: &str) -> Result<usize> {
        self.count(key)?.ok_or_else(|| form(format!("{key}: wanted a whole number, found nothing")))
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
