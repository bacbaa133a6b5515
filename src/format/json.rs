//! JSON as people's tools write it: a byte order mark in front (Windows editors), and `NaN`, `Infinity`, `-Infinity` in
//! place of numbers (Python's `json`). None of it is JSON, all of it lies in model folders.
//!
//! A number that JSON lacks is read as a string that says so: whoever needs a number there refuses it with that string
//! in the message, whoever does not need it is not stopped, and [`write`] gives it back as it was.
#![forbid(unsafe_code)]

use serde_json::Value;

/// What Python writes, and the string that stands for it here.
const NUMBERS: [(&str, &str); 3] = [
    ("NaN", "NaN, which is no JSON number"),
    ("Infinity", "Infinity, which is no JSON number"),
    ("-Infinity", "-Infinity, which is no JSON number"),
];

/// The bytes behind a byte order mark, if there is one.
pub(super) fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// Reads a document; the error is that of strict JSON.
pub(super) fn read(bytes: &[u8]) -> serde_json::Result<Value> {
    let bytes = without_mark(bytes);
    serde_json::from_slice(bytes).or_else(|e| match with_words_quoted(bytes) {
        Some(quoted) => serde_json::from_slice(&quoted).map_err(|_| e),
        None => Err(e),
    })
}

/// Writes a document, indented, with a line end.
pub(super) fn write(value: &Value) -> String {
    let mut text = format!("{value:#}\n");
    for (number, stand_in) in NUMBERS {
        text = text.replace(&format!("\"{stand_in}\""), number);
    }
    text
}

/// The document with every bare NaN, Infinity and -Infinity made a string; None where there is none.
fn with_words_quoted(bytes: &[u8]) -> Option<Vec<u8>> {
    let (mut out, mut inside, mut i, mut found) = (Vec::with_capacity(bytes.len()), false, 0, false);
    while let Some(&byte) = bytes.get(i) {
        let word = NUMBERS.iter().find(|(number, _)| !inside && bytes[i..].starts_with(number.as_bytes()));
        if let Some((number, stand_in)) = word {
            out.push(b'"');
            out.extend_from_slice(stand_in.as_bytes());
            out.push(b'"');
            (i, found) = (i + number.len(), true);
            continue;
        }
        out.push(byte);
        i += 1;
        if inside && byte == b'\\' {
            out.extend(bytes.get(i));
            i += 1;
        } else if byte == b'"' {
            inside = !inside;
        }
    }
    found.then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_that_only_python_writes_are_read_and_written_again() {
        let text = r#"{"a": NaN, "b": [-Infinity, 1, Infinity], "c": "NaN \" Infinity\\", "NaN": {"d": NaN}}"#;
        let value = read(text.as_bytes()).unwrap();
        assert_eq!(value["c"], "NaN \" Infinity\\");
        assert_eq!(value["a"], "NaN, which is no JSON number");
        let again: String = write(&value).split_whitespace().collect();
        assert_eq!(again, text.split_whitespace().collect::<String>());
    }

    #[test]
    fn a_byte_order_mark_is_passed_over_and_what_is_broken_stays_broken() {
        assert_eq!(read(b"\xef\xbb\xbf{\"a\": 1}").unwrap(), json!({"a": 1}));
        for broken in [&b""[..], b"\xef\xbb\xbf", b"{NaN}", b"NaNN", b"{\"a\": nan}", b"{\"a\": NaN", b"\"\\"] {
            assert!(read(broken).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn plain_documents_are_written_as_they_were() {
        let value = json!({"b": 1, "a": [1.5, "NaN", null]});
        assert_eq!(write(&value), format!("{value:#}\n"));
    }
}
