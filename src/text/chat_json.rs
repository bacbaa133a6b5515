//! JSON as Python's `json.dumps(value, ensure_ascii=False)` writes it, for the templates' `tojson`: a
//! space after comma and colon, keys in their order, nothing escaped that JSON does not ask for, and
//! floats as Python's `repr` has them. Models were trained on tool descriptions in exactly this form.
#![forbid(unsafe_code)]

use std::fmt::Write;

use serde_json::Value;

/// Writes a value on one line, or indented by `indent` spaces a level.
pub(super) fn dumps(value: &Value, indent: Option<usize>) -> String {
    let mut text = String::new();
    write_value(value, indent, 0, &mut text);
    text
}

fn write_value(value: &Value, indent: Option<usize>, level: usize, text: &mut String) {
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(true) => text.push_str("true"),
        Value::Bool(false) => text.push_str("false"),
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(x) => text.push_str(&float(x)),
            None => text.push_str(&number.to_string()),
        },
        Value::String(string) => write_string(string, text),
        Value::Array(list) => {
            let items = list.iter().map(|item| (None, item));
            write_items(['[', ']'], items, indent, level, text);
        }
        Value::Object(map) => {
            let items = map.iter().map(|(key, item)| (Some(key.as_str()), item));
            write_items(['{', '}'], items, indent, level, text);
        }
    }
}

fn write_items<'a>(
    [open, close]: [char; 2],
    items: impl ExactSizeIterator<Item = (Option<&'a str>, &'a Value)>,
    indent: Option<usize>,
    level: usize,
    text: &mut String,
) {
    let line = |text: &mut String, level: usize| {
        if let Some(indent) = indent {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', indent * level));
        }
    };
    let empty = items.len() == 0;
    text.push(open);
    for (n, (key, item)) in items.enumerate() {
        if n > 0 {
            text.push_str(if indent.is_some() { "," } else { ", " });
        }
        line(text, level + 1);
        if let Some(key) = key {
            write_string(key, text);
            text.push_str(": ");
        }
        write_value(item, indent, level + 1, text);
    }
    if !empty {
        line(text, level);
    }
    text.push(close);
}

fn write_string(string: &str, text: &mut String) {
    text.push('"');
    for c in string.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            // Writing into a String cannot fail.
            '\0'..='\u{1f}' => drop(write!(text, "\\u{:04x}", c as u32)),
            c => text.push(c),
        }
    }
    text.push('"');
}

/// Python's `repr` of a float: the shortest digits that read back the same, with an exponent below
/// 1e-4 and from 1e16 on.
fn float(x: f64) -> String {
    let scientific = format!("{x:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific }; // not finite
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{x}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        let cases = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (123456789.125, "123456789.125"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (-2.5e100, "-2.5e+100"),
        ];
        for (x, text) in cases {
            assert_eq!(float(x), text);
        }
    }

    #[test]
    fn layout_and_escapes_are_pythons() {
        let value = json!({"b": ["é<&'\"\\/\n\u{1}\u{7f}", 1, -2, 3.0, null, true], "a": {}, "c": []});
        let line = "{\"b\": [\"é<&'\\\"\\\\/\\n\\u0001\u{7f}\", 1, -2, 3.0, null, true], \"a\": {}, \"c\": []}";
        assert_eq!(dumps(&value, None), line);
        let value = json!({"a": [1, {"b": 2}], "c": []});
        assert_eq!(dumps(&value, Some(2)), "{\n  \"a\": [\n    1,\n    {\n      \"b\": 2\n    }\n  ],\n  \"c\": []\n}");
    }
}
