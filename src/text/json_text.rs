//! JSON as text again, for whoever reads what a host said: the same values and keys in their order, no spaces. Integers keep every
//! digit, floats are the same number.
#![forbid(unsafe_code)]

use std::fmt::Write;

use super::json::Json;

impl Json {
    /// The document as text, without spaces.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) {
        match self {
            Json::Null => out.push_str("null"),
            Json::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            // Writing to a string does not fail.
            Json::Int(value) => drop(write!(out, "{value}")),
            Json::Float(value) => drop(write!(out, "{value:?}")),
            Json::String(text) => out.push_str(&serde_json::Value::from(text.as_str()).to_string()),
            Json::List(values) => {
                for (i, value) in values.iter().enumerate() {
                    out.push(if i == 0 { '[' } else { ',' });
                    value.write(out);
                }
                out.push_str(if values.is_empty() { "[]" } else { "]" });
            }
            Json::Object(entries) => {
                for (i, (key, value)) in entries.iter().enumerate() {
                    out.push(if i == 0 { '{' } else { ',' });
                    out.push_str(&serde_json::Value::from(key.as_str()).to_string());
                    out.push(':');
                    value.write(out);
                }
                out.push_str(if entries.is_empty() { "{}" } else { "}" });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_written_with_nothing_lost() {
        let text = r#"[{"role":"user","content":"\"é\\n😀\u0001","n":[1e300,-0.5,123456789012345678901234567890,null,true]},{},[]]"#;
        let read = Json::parse(text).unwrap();
        assert_eq!(Json::parse(&read.to_text()).unwrap(), read);
        assert_eq!(read.to_text(), text);
    }
}
