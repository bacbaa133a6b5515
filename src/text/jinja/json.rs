//! `json.dumps`, as transformers' `tojson` calls it. Models were trained on tool descriptions in exactly
//! this form.
#![forbid(unsafe_code)]

use std::fmt::Write;

use super::args::Args;
use super::dict::Dict;
use super::eval::Machine;
use super::number::{big_text, float_repr};
use super::sequences::sorted;
use super::value::Value;
use super::{Failure, fail};
use crate::text::json::Json;

type Res<T> = Result<T, Failure>;

struct Style {
    ascii: bool,
    /// What one level is indented by.
    indent: Option<String>,
    comma: String,
    colon: String,
    sort: bool,
}

/// `value|tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub fn tojson(machine: &mut Machine<'_>, value: &Value, args: Args) -> Res<Value> {
    let [ascii, indent, separators, sort] =
        args.bind("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"], 0)?;
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(Value::Str(text)) => Some(text.text.to_string()),
        Some(Value::Int(n)) => Some(spaces(n)?),
        Some(Value::Bool(b)) => Some(spaces(b as i64)?),
        Some(other) => return Err(fail(format!("tojson: an indent is a number or a string, not {}", other.kind()))),
    };
    let (mut comma, mut colon) = (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string());
    if let Some(pair) = separators.filter(|pair| !matches!(pair, Value::None)) {
        match &machine.collect(&pair)?[..] {
            [Value::Str(first), Value::Str(second)] => {
                (comma, colon) = (first.text.to_string(), second.text.to_string())
            }
            _ => return Err(fail("tojson: separators are two strings")),
        }
    }
    let truth = |value: Option<Value>| value.is_some_and(|value| value.truth());
    let style = Style { ascii: truth(ascii), indent, comma, colon, sort: truth(sort) };
    let mut out = String::new();
    write(machine, value, &style, 0, &mut out)?;
    Ok(Value::str(out))
}

fn spaces(n: i64) -> Res<String> {
    match n {
        ..=0 => Ok(String::new()),
        1..=1000 => Ok(" ".repeat(n as usize)),
        _ => Err(fail(format!("tojson: an indent of {n} is more than a template may use"))),
    }
}

fn write(machine: &mut Machine<'_>, value: &Value, style: &Style, level: usize, out: &mut String) -> Res<()> {
    machine.meter.step(1)?;
    let before = out.len();
    match value {
        Value::Str(text) => {
            machine.meter.take(text.text.len())?;
            string(&text.text, style.ascii, out);
        }
        Value::List(list) | Value::Tuple(list) => {
            if list.items.is_empty() {
                out.push_str("[]");
                return Ok(());
            }
            out.push('[');
            for (n, item) in list.items.iter().enumerate() {
                separate(machine, n, style, level + 1, out)?;
                write(machine, item, style, level + 1, out)?;
            }
            line(machine, style, level, out)?;
            out.push(']');
            return Ok(());
        }
        Value::Dict(dict) => return object(machine, dict, style, level, out),
        other => match scalar(other)? {
            Some(text) => out.push_str(&text),
            None => return Err(fail(format!("Object of type {} is not JSON serializable", value.kind()))),
        },
    }
    machine.meter.take(out.len() - before)
}

/// The text of None, a bool or a number, which may also be a key.
fn scalar(value: &Value) -> Res<Option<String>> {
    Ok(Some(match value {
        Value::None => "null".into(),
        Value::Bool(b) => b.to_string(),
        Value::Int(n) => n.to_string(),
        Value::Big(n) => big_text(n)?,
        Value::Float(x) if x.is_nan() => "NaN".into(),
        Value::Float(x) if x.is_infinite() => if *x > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        Value::Float(x) => float_repr(*x),
        _ => return Ok(None),
    }))
}

fn line(machine: &mut Machine<'_>, style: &Style, level: usize, out: &mut String) -> Res<()> {
    if let Some(indent) = &style.indent {
        machine.meter.take(1 + indent.len() * level)?;
        out.push('\n');
        for _ in 0..level {
            out.push_str(indent);
        }
    }
    Ok(())
}

fn separate(machine: &mut Machine<'_>, n: usize, style: &Style, level: usize, out: &mut String) -> Res<()> {
    if n > 0 {
        machine.meter.take(style.comma.len())?;
        out.push_str(&style.comma);
    }
    line(machine, style, level, out)
}

fn object(machine: &mut Machine<'_>, dict: &Dict, style: &Style, level: usize, out: &mut String) -> Res<()> {
    if dict.len() == 0 {
        out.push_str("{}");
        return Ok(());
    }
    let mut entries: Vec<(Value, Value)> = dict.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    machine.meter.elements(entries.len() * 2)?;
    if style.sort {
        let keys = entries.iter().map(|(key, _)| key.clone()).collect();
        let order = sorted(machine, keys, false)?;
        entries = order.into_iter().map(|n| entries[n].clone()).collect();
    }
    out.push('{');
    for (n, (key, value)) in entries.iter().enumerate() {
        separate(machine, n, style, level + 1, out)?;
        match key {
            Value::Str(text) => {
                machine.meter.take(text.text.len())?;
                string(&text.text, style.ascii, out);
            }
            other => match scalar(other)? {
                Some(text) => string(&text, style.ascii, out),
                None => {
                    let kind = key.kind();
                    return Err(fail(format!("keys must be str, int, float, bool or None, not {kind}")));
                }
            },
        }
        machine.meter.take(style.colon.len())?;
        out.push_str(&style.colon);
        write(machine, value, style, level + 1, out)?;
    }
    line(machine, style, level, out)?;
    out.push('}');
    Ok(())
}

fn string(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            // Writing into a String cannot fail.
            '\0'..='\u{1f}' => drop(write!(out, "\\u{:04x}", c as u32)),
            '\u{7f}'.. if ascii => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

impl From<&Json> for Value {
    fn from(json: &Json) -> Value {
        match json {
            Json::Null => Value::None,
            Json::Bool(b) => Value::Bool(*b),
            Json::Int(n) => super::number::int(n.clone()),
            Json::Float(x) => Value::Float(*x),
            Json::String(text) => Value::str(text.as_str()),
            Json::List(items) => Value::given_list(items.iter().map(Value::from).collect()),
            Json::Object(entries) => {
                let mut dict = Dict::default();
                for (name, value) in entries {
                    dict.insert_given(name, Value::from(value));
                }
                Value::Dict(std::rc::Rc::new(dict))
            }
        }
    }
}
