//! `str(value)` and `repr(value)` as Python writes them.
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::rc::Rc;

use super::number::{big_text, float_repr};
use super::strings::is_printable;
use super::value::{Global, Object, Text, Value, View};
use super::{Failure, Meter, fail};

type Res<T> = Result<T, Failure>;

/// A string as `repr` quotes it.
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    quote(text, &mut out);
    out
}

fn quote(text: &str, out: &mut String) {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(mark);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == mark => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            // Writing into a String cannot fail.
            c => drop(match c as u32 {
                n @ ..0x100 => write!(out, "\\x{n:02x}"),
                n @ ..0x10000 => write!(out, "\\u{n:04x}"),
                n => write!(out, "\\U{n:08x}"),
            }),
        }
    }
    out.push(mark);
}

/// `repr` of a value that is not a container, for messages.
pub fn plain(value: &Value) -> Option<String> {
    Some(match value {
        Value::None => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Int(n) => n.to_string(),
        Value::Float(x) => float_repr(*x),
        Value::Str(text) => quoted(&text.text),
        Value::Undefined(_) => "Undefined".into(),
        _ => return None,
    })
}

/// `str(value)`.
pub fn text(value: &Value, meter: &mut Meter) -> Res<Text> {
    match value {
        Value::Str(text) if text.markup => Ok(Text { markup: false, ..text.clone() }),
        Value::Str(text) => Ok(text.clone()),
        other => {
            let mut out = String::new();
            print(other, &mut out, meter)?;
            Ok(Text::new(out))
        }
    }
}

/// Appends `str(value)`.
pub fn print(value: &Value, out: &mut String, meter: &mut Meter) -> Res<()> {
    match value {
        Value::Undefined(_) => Ok(()),
        Value::Str(text) => {
            meter.take(text.text.len())?;
            out.push_str(&text.text);
            Ok(())
        }
        other => repr(other, out, meter),
    }
}

/// Appends `repr(value)`.
pub fn repr(value: &Value, out: &mut String, meter: &mut Meter) -> Res<()> {
    write(value, out, meter, &mut Open::default())
}

/// The containers that are being written: only a namespace can make one contain itself, and Python cuts it short.
#[derive(Default)]
struct Open {
    containers: Vec<*const ()>,
    namespaces: u32,
}

impl Open {
    /// Whether the value is being written already; what takes its place.
    fn within(&self, value: &Value) -> Option<&'static str> {
        let (this, short) = (address_of(value)?, shortened(value));
        (self.namespaces > 0 && self.containers.contains(&this)).then_some(short)
    }
}

fn address_of(value: &Value) -> Option<*const ()> {
    Some(match value {
        Value::List(list) | Value::Tuple(list) => Rc::as_ptr(list).cast(),
        Value::Dict(dict) => Rc::as_ptr(dict).cast(),
        _ => return None,
    })
}

fn shortened(value: &Value) -> &'static str {
    match value {
        Value::List(_) => "[...]",
        Value::Tuple(_) => "(...)",
        _ => "{...}",
    }
}

fn write(value: &Value, out: &mut String, meter: &mut Meter, within: &mut Open) -> Res<()> {
    if let Some(short) = within.within(value) {
        out.push_str(short);
        return Ok(());
    }
    let address = address_of(value);
    within.containers.extend(address);
    let written = write_new(value, out, meter, within);
    if address.is_some() {
        within.containers.pop();
    }
    written
}

fn write_new(value: &Value, out: &mut String, meter: &mut Meter, within: &mut Open) -> Res<()> {
    meter.step(1)?;
    match value {
        Value::Big(n) => {
            meter.step(n.bits() / 16)?;
            let digits = big_text(n)?;
            meter.take(digits.len())?;
            out.push_str(&digits);
        }
        Value::Str(text) => {
            meter.take(text.text.len())?;
            if text.markup {
                out.push_str("Markup(");
            }
            quote(&text.text, out);
            if text.markup {
                out.push(')');
            }
        }
        Value::List(list) => {
            out.push('[');
            write_all(list.items.iter(), out, meter, within)?;
            out.push(']');
        }
        Value::Tuple(list) => {
            out.push('(');
            write_all(list.items.iter(), out, meter, within)?;
            out.push_str(if list.items.len() == 1 { ",)" } else { ")" });
        }
        Value::Dict(dict) => write_dict(dict, out, meter, within)?,
        Value::Range(range) => {
            let _ = write!(out, "range({}, {}", range.start, range.stop);
            if range.step != 1 {
                let _ = write!(out, ", {}", range.step);
            }
            out.push(')');
        }
        Value::View(view, dict) => {
            let _ = write!(out, "{}([", value.kind());
            for (n, (key, item)) in dict.iter().enumerate() {
                if n > 0 {
                    out.push_str(", ");
                }
                match view {
                    View::Keys => write(key, out, meter, within)?,
                    View::Values => write(item, out, meter, within)?,
                    View::Items => {
                        out.push('(');
                        write(key, out, meter, within)?;
                        out.push_str(", ");
                        write(item, out, meter, within)?;
                        out.push(')');
                    }
                }
            }
            out.push_str("])");
        }
        Value::Object(object) => write_object(object, out, meter, within)?,
        Value::Iter(_) => return Err(address(value)),
        other => out.push_str(&plain(other).unwrap_or_default()),
    }
    meter.take(8)
}

fn address(value: &Value) -> Failure {
    fail(format!(
        "printing a {} is not supported: Python prints its address in memory; did you mean to call it, or to use |list?",
        value.kind()
    ))
}

fn write_all<'v>(
    items: impl Iterator<Item = &'v Value>,
    out: &mut String,
    meter: &mut Meter,
    within: &mut Open,
) -> Res<()> {
    for (n, item) in items.enumerate() {
        if n > 0 {
            out.push_str(", ");
        }
        write(item, out, meter, within)?;
    }
    Ok(())
}

fn write_dict(dict: &super::dict::Dict, out: &mut String, meter: &mut Meter, within: &mut Open) -> Res<()> {
    out.push('{');
    for (n, (key, item)) in dict.iter().enumerate() {
        if n > 0 {
            out.push_str(", ");
        }
        write(key, out, meter, within)?;
        out.push_str(": ");
        write(item, out, meter, within)?;
    }
    out.push('}');
    Ok(())
}

fn write_object(object: &Rc<Object>, out: &mut String, meter: &mut Meter, within: &mut Open) -> Res<()> {
    match &**object {
        Object::Namespace(attributes) => {
            out.push_str("<Namespace ");
            let this = Rc::as_ptr(object).cast();
            if within.containers.contains(&this) {
                out.push_str("{...}");
            } else if within.namespaces >= 8 {
                return Err(fail("namespaces within namespaces are nested too deeply to print"));
            } else {
                within.containers.push(this);
                within.namespaces += 1;
                write_dict(&attributes.borrow(), out, meter, within)?;
                within.namespaces -= 1;
                within.containers.pop();
            }
            out.push('>');
        }
        Object::Loop(looped) => match looped.length.get() {
            Some(length) => drop(write!(out, "<LoopContext {}/{length}>", looped.index0.get() + 1)),
            None => return Err(address(&Value::Object(object.clone()))),
        },
        Object::Macro(of) => match &of.of.name {
            Some(name) => drop(write!(out, "<Macro {}>", quoted(name))),
            None => out.push_str("<Macro anonymous>"),
        },
        Object::Global(Global::Dict) => out.push_str("<class 'dict'>"),
        Object::Global(global @ (Global::Cycler | Global::Joiner | Global::Namespace)) => {
            let _ = write!(out, "<class 'jinja2.utils.{global:?}'>");
        }
        Object::Template => out.push_str("<TemplateReference None>"),
        _ => return Err(address(&Value::Object(object.clone()))),
    }
    Ok(())
}
