//! Attributes of values, and the methods of strings. What exists in Python exists here; what would
//! change a value or shows Python's insides is as unsafe as in jinja2's immutable sandbox.
#![forbid(unsafe_code)]

use std::rc::Rc;
use std::sync::Arc;

use super::args::{Args, integer, integer_or};
use super::eval::Machine;
use super::operators::window;
use super::strings::{self, char_of};
use super::value::{Global, Object, Text, Undefined, Value};
use super::{Failure, containers, fail, format, globals, markup, repr};

type Res<T> = Result<T, Failure>;

const STRING: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];
const MARKUP: &[&str] = &["escape", "striptags", "unescape"];
const LIST: &[&str] = &["copy", "count", "index"];
const LIST_CHANGES: &[&str] = &["append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove"];
const TUPLE: &[&str] = &["count", "index"];
const DICT: &[&str] = &["copy", "fromkeys", "get", "items", "keys", "values"];
const DICT_CHANGES: &[&str] = &["clear", "pop", "popitem", "setdefault", "update"];
const INT: &[&str] = &["as_integer_ratio", "bit_count", "bit_length", "conjugate", "from_bytes", "to_bytes"];
const FLOAT: &[&str] = &["as_integer_ratio", "conjugate", "fromhex", "hex", "is_integer"];
const VIEW: &[&str] = &["isdisjoint", "mapping"];
const GENERATOR: &[&str] =
    &["close", "send", "throw", "gi_frame", "gi_code", "gi_running", "gi_suspended", "gi_yieldfrom"];

/// What every object of Python's has.
const OF_ALL: &[&str] = &[
    "__class__",
    "__delattr__",
    "__dir__",
    "__doc__",
    "__eq__",
    "__format__",
    "__ge__",
    "__getattribute__",
    "__getstate__",
    "__gt__",
    "__hash__",
    "__init__",
    "__init_subclass__",
    "__le__",
    "__lt__",
    "__ne__",
    "__new__",
    "__reduce__",
    "__reduce_ex__",
    "__repr__",
    "__setattr__",
    "__sizeof__",
    "__str__",
    "__subclasshook__",
];

fn within(names: &[&'static str], name: &str) -> Option<&'static str> {
    names.iter().find(|known| **known == name).copied()
}

fn method(of: &Value, name: &'static str) -> Value {
    Value::object(Object::Method { of: of.clone(), name, depth: of.depth() + 1 })
}

/// `getattr(of, name)` as the sandbox allows it; None where there is no such attribute.
pub fn attribute(machine: &mut Machine<'_>, of: &Value, name: &Arc<str>) -> Res<Option<Value>> {
    machine.meter.step(1)?;
    let hidden = || Ok(Some(Value::Undefined(Rc::new(Undefined::Unsafe { of: of.kind().into(), name: name.clone() }))));
    if name.starts_with('_') && within(OF_ALL, name).is_some() {
        return hidden();
    }
    let (methods, changes): (&[&'static str], &[&'static str]) = match of {
        Value::Str(text) => {
            if text.markup
                && let Some(name) = within(MARKUP, name)
            {
                return Ok(Some(method(of, name)));
            }
            (STRING, &[])
        }
        Value::List(_) => (LIST, LIST_CHANGES),
        Value::Tuple(list) => {
            match &**name {
                "grouper" if list.group => return Ok(list.items.first().cloned()),
                "list" if list.group => return Ok(list.items.get(1).cloned()),
                _ => {}
            }
            (TUPLE, &[])
        }
        Value::Dict(_) => (DICT, DICT_CHANGES),
        Value::Bool(_) | Value::Int(_) | Value::Big(_) => {
            match &**name {
                "real" | "numerator" => return super::operators::signed(of, false, &mut machine.meter).map(Some),
                "imag" => return Ok(Some(Value::Int(0))),
                "denominator" => return Ok(Some(Value::Int(1))),
                _ => {}
            }
            (INT, &[])
        }
        Value::Float(_) => {
            match &**name {
                "real" => return Ok(Some(of.clone())),
                "imag" => return Ok(Some(Value::Float(0.0))),
                _ => {}
            }
            (FLOAT, &[])
        }
        Value::Range(range) => {
            match &**name {
                "start" => return Ok(Some(Value::Int(range.start))),
                "stop" => return Ok(Some(Value::Int(range.stop))),
                "step" => return Ok(Some(Value::Int(range.step))),
                _ => {}
            }
            (TUPLE, &[])
        }
        Value::View(..) => (VIEW, &[]),
        Value::Iter(iter) if iter.kind == "generator" => match within(GENERATOR, name) {
            Some("gi_frame" | "gi_code") => return hidden(),
            Some(name) => return Ok(Some(method(of, name))),
            None => (&[], &[]),
        },
        Value::Object(object) => return containers::object_attribute(machine, of, object, name),
        Value::Undefined(undefined) if name.starts_with("_undefined_") || &**name == "_fail_with_undefined_error" => {
            let _ = undefined;
            return hidden();
        }
        Value::Undefined(_) | Value::None | Value::Iter(_) => (&[], &[]),
    };
    if within(changes, name).is_some() {
        return hidden();
    }
    Ok(within(methods, name).map(|name| method(of, name)))
}

/// Calls a method of a value.
pub fn call(machine: &mut Machine<'_>, of: &Value, name: &'static str, args: Args) -> Res<Value> {
    match of {
        Value::Str(text) => of_text(machine, text, name, args),
        _ => containers::call(machine, of, name, args),
    }
}

fn unsupported(name: &str) -> Failure {
    fail(format!("the string method {name} is not supported in chat templates"))
}

fn of_text(machine: &mut Machine<'_>, text: &Text, name: &'static str, args: Args) -> Res<Value> {
    // Most methods read the string once.
    machine.meter.step(text.text.len() as u64 / 64)?;
    match name {
        "format" => return format::format(machine, text, args),
        "format_map" => {
            let [mapping] = args.plain("format_map", 1)?;
            return format::format_map(machine, text, &mapping.unwrap_or(Value::None));
        }
        "split" | "rsplit" | "splitlines" | "join" | "replace" | "partition" | "rpartition" => {
            return cutting(machine, text, name, args);
        }
        "center" | "ljust" | "rjust" | "zfill" | "expandtabs" => return padding(machine, text, name, args),
        "find" | "rfind" | "index" | "rindex" | "count" | "startswith" | "endswith" => {
            return searching(machine, text, name, args);
        }
        "strip" | "lstrip" | "rstrip" | "removeprefix" | "removesuffix" => return stripping(machine, text, name, args),
        "encode" | "maketrans" | "translate" => return Err(unsupported(name)),
        "escape" => {
            let [value] = args.plain("escape", 1)?;
            return markup::escape(&value.unwrap_or(Value::None), &mut machine.meter).map(Value::Str);
        }
        _ => {}
    }
    args.plain::<0>(name, 0)?;
    machine.meter.take(text.text.len())?;
    let of = &*text.text;
    let all = |test: &dyn Fn(char) -> bool| Value::Bool(!of.is_empty() && of.chars().all(test));
    Ok(match name {
        "lower" => Value::like(text, of.to_lowercase()),
        "upper" => Value::like(text, of.to_uppercase()),
        "title" => Value::like(text, strings::title(of)),
        "capitalize" => Value::like(text, strings::capitalize(of)),
        "swapcase" => Value::like(text, strings::swap_case(of)),
        "casefold" => Value::like(text, strings::fold_case(of)),
        "striptags" => Value::str(markup::strip_tags(of, &mut machine.meter)?),
        "islower" => Value::Bool(strings::is_lower(of)),
        "isupper" => Value::Bool(strings::is_upper(of)),
        "istitle" => Value::Bool(strings::is_title_case(of)),
        "isascii" => Value::Bool(of.is_ascii()),
        "isprintable" => Value::Bool(of.chars().all(strings::is_printable)),
        "isspace" => all(&strings::is_space),
        "isalpha" => all(&char::is_alphabetic),
        "isdecimal" => all(&|c| strings::decimal(c).is_some()),
        "isdigit" => all(&strings::is_digit),
        "isnumeric" => all(&|c| c.is_numeric() || strings::is_digit(c)),
        "isalnum" => all(&|c| c.is_alphanumeric() || strings::is_digit(c)),
        "isidentifier" => {
            let word = all(&|c| c == '_' || c.is_alphanumeric());
            Value::Bool(word.truth() && !of.starts_with(|c: char| c.is_numeric()))
        }
        _ => return Err(unsupported(name)),
    })
}

/// An argument that must be a string.
fn string<'v>(of: &str, value: &'v Option<Value>) -> Res<&'v Text> {
    match value {
        Some(Value::Str(text)) => Ok(text),
        Some(other) => Err(fail(format!("{of}: wanted a str, not {}", other.kind()))),
        None => Err(fail(format!("{of}: missing an argument"))),
    }
}

/// A string argument that may be left out or None.
fn optional<'v>(of: &str, value: &'v Option<Value>) -> Res<Option<&'v str>> {
    match value {
        None | Some(Value::None) => Ok(None),
        value => string(of, value).map(|text| Some(&*text.text)),
    }
}

fn stripping(machine: &mut Machine<'_>, text: &Text, name: &'static str, args: Args) -> Res<Value> {
    let of = &*text.text;
    let stripped = match name {
        "removeprefix" | "removesuffix" => {
            let [affix] = args.plain(name, 1)?;
            let affix = string(name, &affix)?;
            let cut =
                if name == "removeprefix" { of.strip_prefix(&*affix.text) } else { of.strip_suffix(&*affix.text) };
            cut.unwrap_or(of)
        }
        _ => {
            let [chars] = args.plain(name, 0)?;
            let chars = optional(name, &chars)?;
            machine.meter.step(chars.map_or(1, str::len) as u64 * (of.len() as u64 / 64 + 1))?;
            match name {
                "strip" => strings::strip(of, chars),
                "lstrip" => strings::strip_start(of, chars),
                _ => strings::strip_end(of, chars),
            }
        }
    };
    if stripped.len() == of.len() {
        return Ok(Value::Str(text.clone()));
    }
    machine.meter.take(stripped.len())?;
    Ok(Value::like(text, stripped))
}

fn searching(machine: &mut Machine<'_>, text: &Text, name: &'static str, args: Args) -> Res<Value> {
    let [needle, start, end] = args.plain(name, 1)?;
    let bound = |value: &Option<Value>| match value {
        None | Some(Value::None) => Ok(None),
        Some(value) => integer(name, value).map(Some),
    };
    let found = window(text, bound(&start)?, bound(&end)?);
    if let "startswith" | "endswith" = name {
        let held = |needle: &Value| match needle {
            Value::Str(needle) => Ok(found.is_some_and(|(from, to)| match name {
                "startswith" => text.text[from..to].starts_with(&*needle.text),
                _ => text.text[from..to].ends_with(&*needle.text),
            })),
            other => Err(fail(format!("{name} first arg must be str or a tuple of str, not {}", other.kind()))),
        };
        return match &needle {
            Some(Value::Tuple(needles)) => {
                machine.meter.step(needles.items.len() as u64)?;
                let mut any = false;
                for needle in &needles.items {
                    any = any || held(needle)?;
                }
                Ok(Value::Bool(any))
            }
            needle => held(needle.as_ref().unwrap_or(&Value::None)).map(Value::Bool),
        };
    }
    let needle = string(name, &needle)?;
    let Some((from, to)) = found else {
        return match name {
            "count" => Ok(Value::Int(0)),
            "find" | "rfind" => Ok(Value::Int(-1)),
            _ => Err(fail("substring not found")),
        };
    };
    let of = &text.text[from..to];
    if name == "count" {
        let count = if needle.text.is_empty() { of.chars().count() + 1 } else { of.matches(&*needle.text).count() };
        return Ok(Value::from(count));
    }
    let at = if name.starts_with('r') { of.rfind(&*needle.text) } else { of.find(&*needle.text) };
    match at {
        Some(n) => Ok(Value::from(char_of(text, from + n))),
        None if name.ends_with("find") => Ok(Value::Int(-1)),
        None => Err(fail("substring not found")),
    }
}

fn cutting(machine: &mut Machine<'_>, text: &Text, name: &'static str, args: Args) -> Res<Value> {
    let of = &*text.text;
    let list = |machine: &mut Machine<'_>, parts: Vec<&str>| {
        machine.meter.elements(parts.len())?;
        machine.meter.take(of.len())?;
        Value::list(parts.into_iter().map(|part| Value::like(text, part)).collect())
    };
    match name {
        "split" | "rsplit" => {
            let [separator, most] = args.bind(name, ["sep", "maxsplit"], 0)?;
            let separator = optional(name, &separator)?;
            if separator == Some("") {
                return Err(fail("empty separator"));
            }
            let most = integer_or(name, &most, -1)?;
            let parts = match name {
                "split" => strings::split(of, separator, most),
                _ => strings::split_from_end(of, separator, most),
            };
            list(machine, parts)
        }
        "splitlines" => {
            let [keep] = args.bind(name, ["keepends"], 0)?;
            let keep = integer_or(name, &keep, 0)? != 0;
            list(machine, strings::lines(of, keep))
        }
        "join" => {
            let [items] = args.plain(name, 1)?;
            join(machine, text, &items.unwrap_or(Value::None))
        }
        "replace" => {
            let [old, new, count] = args.plain(name, 2)?;
            let count = integer_or(name, &count, -1)?;
            let old = string(name, &old)?;
            let new = string(name, &new)?.clone();
            let new = if text.markup { markup::escape_text(&new, &mut machine.meter)? } else { new };
            replace(machine, text, &old.text, &new.text, count)
        }
        _ => {
            let [separator] = args.plain(name, 1)?;
            let separator = &*string(name, &separator)?.text;
            if separator.is_empty() {
                return Err(fail("empty separator"));
            }
            machine.meter.take(of.len())?;
            let parts = match (name, of.split_once(separator), of.rsplit_once(separator)) {
                ("partition", Some((before, after)), _) => [before, separator, after],
                ("partition", None, _) => [of, "", ""],
                (_, _, Some((before, after))) => [before, separator, after],
                _ => ["", "", of],
            };
            Value::tuple(parts.into_iter().map(|part| Value::like(text, part)).collect())
        }
    }
}

/// `text.replace(old, new, count)`.
pub fn replace(machine: &mut Machine<'_>, text: &Text, old: &str, new: &str, count: i64) -> Res<Value> {
    let of = &*text.text;
    let most = usize::try_from(count).unwrap_or(usize::MAX);
    let places = if old.is_empty() { text.chars + 1 } else { of.matches(old).count() };
    machine.meter.step(of.len() as u64 / 64)?;
    machine.meter.take(places.min(most).saturating_mul(new.len()).saturating_add(of.len()))?;
    if places == 0 || most == 0 {
        return Ok(Value::Str(text.clone()));
    }
    Ok(Value::like(text, of.replacen(old, new, most)))
}

/// `separator.join(items)`.
fn join(machine: &mut Machine<'_>, separator: &Text, items: &Value) -> Res<Value> {
    let items = machine.collect(items)?;
    let mut joined = String::new();
    for (n, item) in items.iter().enumerate() {
        let part = match item {
            item if separator.markup => markup::escape(item, &mut machine.meter)?,
            Value::Str(part) => part.clone(),
            _ => return Err(fail(format!("sequence item {n}: expected str instance, {} found", item.kind()))),
        };
        let before = if n > 0 { &*separator.text } else { "" };
        machine.meter.take(part.text.len() + before.len())?;
        joined.push_str(before);
        joined.push_str(&part.text);
    }
    Ok(Value::like(separator, joined))
}

fn padding(machine: &mut Machine<'_>, text: &Text, name: &'static str, args: Args) -> Res<Value> {
    let of = &*text.text;
    if name == "expandtabs" {
        let [size] = args.bind(name, ["tabsize"], 0)?;
        let size = usize::try_from(integer_or(name, &size, 8)?).unwrap_or(0);
        machine.meter.take(of.matches('\t').count().saturating_mul(size).saturating_add(of.len()))?;
        let mut column = 0;
        let mut out = String::new();
        for c in of.chars() {
            match c {
                '\t' if size > 0 => {
                    let n = size - column % size;
                    out.extend(std::iter::repeat_n(' ', n));
                    column += n;
                }
                '\t' => {}
                c => {
                    column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
                    out.push(c);
                }
            }
        }
        return Ok(Value::like(text, out));
    }
    if name == "zfill" {
        let [width] = args.plain(name, 1)?;
        let width = integer_or(name, &width, 0)?;
        let fill = usize::try_from(width).unwrap_or(0).saturating_sub(text.chars);
        machine.meter.take(of.len() + fill)?;
        let sign = if of.starts_with(['+', '-']) { 1 } else { 0 };
        return Ok(Value::like(text, format!("{}{}{}", &of[..sign], "0".repeat(fill), &of[sign..])));
    }
    let [width, fill] = args.plain(name, 1)?;
    let width = integer_or(name, &width, 0)?;
    let fill = match &fill {
        None => " ",
        fill => match string(name, fill)? {
            fill if fill.chars == 1 => &*fill.text,
            _ => return Err(fail("The fill character must be exactly one character long")),
        },
    };
    pad(machine, text, width, fill, name)
}

/// `center`, `ljust` and `rjust`.
pub fn pad(machine: &mut Machine<'_>, text: &Text, width: i64, fill: &str, how: &str) -> Res<Value> {
    let width = usize::try_from(width).unwrap_or(0);
    let missing = width.saturating_sub(text.chars);
    machine.meter.take(missing.saturating_mul(fill.len()).saturating_add(text.text.len()))?;
    let left = match how {
        // Python puts an odd space left where the width is odd.
        "center" => missing / 2 + (missing & width & 1),
        "rjust" => missing,
        _ => 0,
    };
    let padded = format!("{}{}{}", fill.repeat(left), text.text, fill.repeat(missing - left));
    Ok(Value::like(text, padded))
}

/// The function that a type's name calls, `dict.fromkeys` and its like left out.
pub fn of_type(global: Global, name: &str) -> Failure {
    fail(format!("{} of {} is not supported in chat templates", repr::quoted(name), globals::name(global)))
}
