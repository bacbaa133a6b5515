//! How a run is written down: a JSON document, unknown keys refused.
#![forbid(unsafe_code)]

use serde_json::Value;

use crate::distill::document::{bad, fields};
use crate::error::{Error, Fault, Result};

/// How a run is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordOptions {
    /// Whether episodes come with texts for people.
    pub texts: bool,
}

impl Default for RecordOptions {
    fn default() -> RecordOptions {
        RecordOptions { texts: true }
    }
}

impl RecordOptions {
    /// Reads a document: `texts`, true or false. [`Fault::BadJson`], [`Fault::UnknownKey`], [`Fault::BadValue`].
    pub fn from_json(text: &str) -> Result<RecordOptions> {
        let mut options = RecordOptions::default();
        let document: Value = serde_json::from_str(text)
            .map_err(|e| Error::new(Fault::BadJson, format!("the record's options are not JSON: {e}")))?;
        if let Some(value) = fields(&document, "", &["texts"])?.get("texts") {
            options.texts = value.as_bool().ok_or_else(|| bad(value, "texts", "true or false"))?;
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_and_others_refused() {
        assert!(RecordOptions::from_json("{}").unwrap().texts);
        assert!(!RecordOptions::from_json(r#"{"texts": false}"#).unwrap().texts);
        for (text, fault, said) in [
            ("{", Fault::BadJson, "the record's options are not JSON"),
            (r#"{"text": true}"#, Fault::UnknownKey, "unknown key `text`; known here: texts"),
            (r#"{"texts": 1}"#, Fault::BadValue, "texts must be true or false, found 1"),
        ] {
            let e = RecordOptions::from_json(text).unwrap_err();
            assert!(e.fault() == fault && e.message().starts_with(said), "{text}: {e}");
        }
    }
}
