//! The text of a call, between its marks, to names and arguments.
//!
//! Qwen3's form is `{"name": "look", "arguments": {...}}`. The arguments stay as they were said, so that a rendering of the
//! conversation has the same ids again. Qwen3-Coder's form is in `coder`.
#![forbid(unsafe_code)]

use super::super::json::Json;
use super::coder::{functions, is_coders};
use super::tools::Tools;

/// The tools that a call's text names, with their arguments as JSON objects; or why it cannot be read.
pub(super) fn calls(text: &str, tools: &Tools) -> Result<Vec<(String, String)>, String> {
    let text = text.trim();
    if is_coders(text) {
        return functions(text, tools);
    }
    let document = Json::parse(text).map_err(|e| e.message().to_string())?;
    let Json::Object(entries) = &document else {
        return Err(format!("wanted an object of name and arguments, found {}", document.kind()));
    };
    if let Some((key, _)) = entries.iter().find(|(key, _)| key != "name" && key != "arguments") {
        return Err(format!("wanted name and arguments, found {key:.60} too"));
    }
    let name = match document.get("name") {
        Some(Json::String(name)) if !name.is_empty() => name.clone(),
        Some(Json::String(_)) => return Err("name is empty".into()),
        Some(other) => return Err(format!("name: wanted a string, found {}", other.kind())),
        None => return Err("name is missing".into()),
    };
    match document.get("arguments") {
        Some(Json::Object(_)) => {}
        Some(other) => return Err(format!("arguments: wanted an object, found {}", other.kind())),
        None => return Err("arguments are missing".into()),
    }
    // Of a key given twice the last value counts, as in Python.
    let said = objects_entries(text)
        .into_iter()
        .rev()
        .find(|(key, _)| Json::parse(key).is_ok_and(|k| k.as_str() == Some("arguments")));
    let (_, arguments) = said.ok_or("arguments are missing")?;
    Ok(vec![(name, arguments.to_string())])
}

/// The texts of the keys and values of a valid document that is an object.
fn objects_entries(text: &str) -> Vec<(&str, &str)> {
    let (mut entries, mut depth, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    let (mut from, mut key) = (0, "");
    for (at, byte) in text.bytes().enumerate() {
        if quoted {
            (quoted, escaped) = (escaped || byte != b'"', !escaped && byte == b'\\');
            continue;
        }
        match byte {
            b'"' => quoted = true,
            b'{' | b'[' => {
                depth += 1;
                if depth == 1 {
                    from = at + 1;
                }
            }
            b':' if depth == 1 => (key, from) = (text[from..at].trim(), at + 1),
            b',' | b'}' if depth == 1 => {
                entries.push((key, text[from..at].trim()));
                (from, depth) = (at + 1, depth - i32::from(byte == b'}'));
            }
            b'}' | b']' => depth -= 1,
            _ => {}
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(String, String)>, String> {
        calls(text, &Tools::default())
    }

    #[test]
    fn arguments_stay_as_they_were_said() {
        for said in [
            "{}",
            r#"{"at": "mug"}"#,
            r#"{ "a" : [1, 1e2, {"b": "}\",:{"}], "é\\": "\u00e9" , "wei": 100000000000000000000000 }"#,
            "{\n  \"arguments\": {\"name\": null}\n}",
        ] {
            for call in [
                format!("\n{{\"name\": \"look\", \"arguments\": {said}}}\n"),
                format!("{{\"arguments\":{said},\"name\":\"look\"}}"),
                format!(r#"{{"arguments": {{"x": 1}}, "name": "look", "argument\u0073": {said} }}"#),
            ] {
                assert_eq!(read(&call).unwrap(), [("look".to_string(), said.to_string())], "{call}");
            }
        }
    }

    #[test]
    fn what_is_no_call_says_why() {
        for (text, why) in [
            ("", "expected a value, found the document's end (byte 0)"),
            ("look", "expected a value, found 'l' (byte 0)"),
            (r#"{"name": "look", "arguments": {}"#, "expected `,` or `}`, found the document's end (byte 32)"),
            (r#"{"name": "look", "arguments": {"at": }}"#, "arguments.at: expected a value, found '}' (byte 37)"),
            (r#"[{"name": "look"}]"#, "wanted an object of name and arguments, found a list"),
            (r#"{"name": "look"}"#, "arguments are missing"),
            (r#"{"arguments": {}}"#, "name is missing"),
            (r#"{"name": "", "arguments": {}}"#, "name is empty"),
            (r#"{"name": 1, "arguments": {}}"#, "name: wanted a string, found a number"),
            (r#"{"name": "f", "arguments": "{}"}"#, "arguments: wanted an object, found a string"),
            (r#"{"name": "f", "arguments": {}, "why": 1}"#, "wanted name and arguments, found why too"),
            (r#"{"name": "f", "arguments": {}} {}"#, "more text after the document's end (byte 31)"),
        ] {
            assert_eq!(read(text).unwrap_err(), why, "{text}");
        }
        let deep = format!(r#"{{"name": "f", "arguments": {{"a": {}{}}}}}"#, "[".repeat(200), "]".repeat(200));
        assert!(read(&deep).unwrap_err().contains("128 lists and objects within each other"));
    }
}
