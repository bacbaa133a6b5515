//! The filters by name, and those on single values.
#![forbid(unsafe_code)]

use super::args::{Args, integer, integer_or};
use super::ast::Binary;
use super::eval::Machine;
use super::number::{self, Number};
use super::value::{Text, Value};
use super::{Failure, fail, json, markup, methods, operators, repr, sequences, texts};

type Res<T> = Result<T, Failure>;

const NAMES: [&str; 54] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "items",
    "map",
    "min",
    "max",
    "pprint",
    "random",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "striptags",
    "sum",
    "title",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "urlize",
    "wordcount",
    "wordwrap",
    "xmlattr",
    "tojson",
];

/// Whether there is a filter of this name.
pub fn exists(name: &str) -> bool {
    NAMES.contains(&name)
}

/// `value|name(args)`.
pub fn apply(machine: &mut Machine<'_>, name: &str, value: Value, args: Args) -> Res<Value> {
    machine.meter.step(1)?;
    match name {
        "default" | "d" => {
            let [default, boolean] = args.bind(name, ["default_value", "boolean"], 0)?;
            let boolean = boolean.is_some_and(|boolean| boolean.truth());
            if value.is_undefined() || (boolean && !value.truth()) {
                return Ok(default.unwrap_or_else(|| Value::str("")));
            }
            Ok(value)
        }
        "length" | "count" => {
            args.plain::<0>(name, 0)?;
            machine.length(&value).map(Value::from)
        }
        "tojson" => json::tojson(machine, &value, args),
        "string" => {
            args.bind::<0>(name, [], 0)?;
            match &value {
                Value::Str(_) => Ok(value),
                other => repr::text(other, &mut machine.meter).map(Value::Str),
            }
        }
        "abs" => {
            args.plain::<0>(name, 0)?;
            match (Number::of(&value), &value) {
                (Some(n), _) => {
                    machine.meter.step(n.words() / 8)?;
                    Ok(number::absolute(&n))
                }
                (None, Value::Undefined(undefined)) => Err(fail(undefined.message())),
                _ => Err(fail(format!("bad operand type for abs(): '{}'", value.kind()))),
            }
        }
        "int" => int(machine, &value, args),
        "float" => float(machine, &value, args),
        "round" => round(machine, &value, args),
        "filesizeformat" => file_size(machine, &value, args),
        "attr" => attr(machine, &value, args),
        "e" | "escape" => {
            args.bind::<0>(name, [], 0)?;
            markup::escape(&value, &mut machine.meter).map(Value::Str)
        }
        "forceescape" => {
            args.bind::<0>(name, [], 0)?;
            let text = repr::text(&value, &mut machine.meter)?;
            markup::forced(&text.text, &mut machine.meter).map(Value::Str)
        }
        "safe" => {
            args.bind::<0>(name, [], 0)?;
            let text = repr::text(&value, &mut machine.meter)?;
            Ok(Value::Str(Text { markup: true, ..text }))
        }
        "striptags" => {
            args.bind::<0>(name, [], 0)?;
            let text = repr::text(&value, &mut machine.meter)?;
            markup::strip_tags(&text.text, &mut machine.meter).map(Value::str)
        }
        "random" => Err(fail("the filter random is not supported in chat templates: a rendering must be repeatable")),
        "urlize" => Err(fail("the filter urlize is not supported in chat templates: it writes HTML links")),
        "batch" | "dictsort" | "first" | "groupby" | "items" | "join" | "last" | "list" | "map" | "max" | "min"
        | "reject" | "rejectattr" | "reverse" | "select" | "selectattr" | "slice" | "sort" | "sum" | "unique" => {
            sequences::apply(machine, name, value, args)
        }
        _ if exists(name) => texts::apply(machine, name, &value, args),
        _ => Err(fail(format!("No filter named {}.", repr::quoted(name)))),
    }
}

fn undefined_fails(value: &Value) -> Res<()> {
    match value {
        Value::Undefined(undefined) => Err(fail(undefined.message())),
        _ => Ok(()),
    }
}

fn int(machine: &mut Machine<'_>, value: &Value, args: Args) -> Res<Value> {
    let [default, base] = args.bind("int", ["default", "base"], 0)?;
    undefined_fails(value)?;
    let default = default.unwrap_or(Value::Int(0));
    let of_float = |x: f64| if x.is_finite() { Some(number::int(number::truncate(x))) } else { None };
    Ok(match value {
        Value::Str(text) => {
            digits(machine, value)?;
            let base = integer_or("int", &base, 10);
            // A base that is no number is a TypeError, one out of range a ValueError: both are caught.
            let base = base
                .ok()
                .and_then(|base| u32::try_from(base).ok())
                .filter(|&base| base == 0 || (2..=36).contains(&base));
            let whole = base.and_then(|base| number::parse_int(&text.text, base));
            whole.or_else(|| number::parse_float(&text.text).and_then(of_float)).unwrap_or(default)
        }
        Value::Bool(b) => Value::Int(*b as i64),
        Value::Int(_) | Value::Big(_) => value.clone(),
        // An infinite float raises OverflowError at once, which is not caught.
        Value::Float(x) if x.is_infinite() => return Err(fail("cannot convert float infinity to integer")),
        Value::Float(x) => of_float(*x).unwrap_or(default),
        _ => default,
    })
}

/// The longest text that is read as a number, in bytes: the digits of the largest integer, written with two.
const MAX_NUMBER: usize = 1 << 20;

/// Pays for reading a text as a number. Error: it is longer than any number here.
fn digits(machine: &mut Machine<'_>, value: &Value) -> Res<()> {
    let Value::Str(text) = value else { return Ok(()) };
    if text.text.len() > MAX_NUMBER {
        return Err(fail(format!("a text of {} bytes is more than a template may read as a number", text.text.len())));
    }
    machine.meter.read(text.text.len())?;
    machine.meter.take(4 * text.text.len())
}

fn float(machine: &mut Machine<'_>, value: &Value, args: Args) -> Res<Value> {
    let [default] = args.bind("float", ["default"], 0)?;
    undefined_fails(value)?;
    digits(machine, value)?;
    let x = match value {
        Value::Str(text) => number::parse_float(&text.text),
        value => Number::of(value).map(|n| n.to_float()).transpose()?,
    };
    Ok(x.map_or_else(|| default.unwrap_or(Value::Float(0.0)), Value::Float))
}

fn round(machine: &mut Machine<'_>, value: &Value, args: Args) -> Res<Value> {
    let [precision, method] = args.bind("round", ["precision", "method"], 0)?;
    let method = method.unwrap_or_else(|| Value::str("common"));
    let method = match method.as_str() {
        Some(method @ ("common" | "ceil" | "floor")) => method,
        _ => return Err(fail("method must be common, ceil or floor")),
    };
    let precision = precision.unwrap_or(Value::Int(0));
    if method == "common" {
        let Some(n) = Number::of(value) else {
            undefined_fails(value)?;
            return Err(fail(format!("type {} doesn't define __round__ method", value.kind())));
        };
        let Number::Float(x) = n else {
            machine.meter.step(number::work(&n, &n))?;
            return match &precision {
                Value::None => Ok(number::round_int(&n, 0)),
                precision => Ok(number::round_int(&n, integer("round", precision)?)),
            };
        };
        if let Value::None = precision {
            if !x.is_finite() {
                return Err(fail("cannot convert float infinity or NaN to integer"));
            }
            return Ok(number::int(number::truncate(number::round_float(x, 0)?)));
        }
        return number::round_float(x, integer("round", &precision)?).map(Value::Float);
    }
    let meter = &mut machine.meter;
    let scale = operators::binary(Binary::Power, &Value::Int(10), &precision, meter)?;
    let scaled = operators::binary(Binary::Multiply, value, &scale, meter)?;
    let whole = match Number::of(&scaled) {
        None => return Err(fail(format!("must be real number, not {}", scaled.kind()))),
        Some(Number::Float(x)) if !x.is_finite() => {
            return Err(fail("cannot convert float infinity or NaN to integer"));
        }
        Some(Number::Float(x)) => number::int(if method == "ceil" { -number::floor(-x) } else { number::floor(x) }),
        Some(_) => operators::signed(&scaled, false, meter)?,
    };
    operators::binary(Binary::Divide, &whole, &scale, meter)
}

fn file_size(machine: &mut Machine<'_>, value: &Value, args: Args) -> Res<Value> {
    let [binary] = args.bind("filesizeformat", ["binary"], 0)?;
    undefined_fails(value)?;
    digits(machine, value)?;
    let bytes = match value {
        Value::Str(text) => number::parse_float(&text.text),
        value => Number::of(value).map(|n| n.to_float()).transpose()?,
    };
    let bytes = bytes.ok_or_else(|| fail(format!("filesizeformat: wanted a number, not {}", value.kind())))?;
    let binary = binary.is_some_and(|binary| binary.truth());
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return Ok(Value::str("1 Byte"));
    }
    if bytes < base {
        if !bytes.is_finite() {
            return Err(fail("cannot convert float infinity to integer"));
        }
        return Ok(Value::str(format!("{} Bytes", number::truncate(bytes))));
    }
    let mut text = String::new();
    for (n, letter) in "kMGTPEZY".chars().enumerate() {
        // The units are integers in Python, each of them a float exactly or rounded once.
        let unit: f64 =
            num_bigint::BigInt::from(base as i64).pow(n as u32 + 2).to_string().parse().unwrap_or(f64::INFINITY);
        let letter = if binary { letter.to_ascii_uppercase().to_string() + "i" } else { letter.into() };
        let amount = base * bytes / unit;
        let amount = if amount.is_nan() { "nan".into() } else { format!("{amount:.1}") };
        text = format!("{amount} {letter}B");
        if bytes < unit {
            break;
        }
    }
    Ok(Value::str(text))
}

fn attr(machine: &mut Machine<'_>, value: &Value, args: Args) -> Res<Value> {
    let [name] = args.bind("attr", ["name"], 1)?;
    let Some(Value::Str(name)) = name else { return Err(fail("attr: wanted an attribute's name")) };
    match methods::attribute(machine, value, &name.text)? {
        Some(found) => Ok(found),
        None => {
            undefined_fails(value)?;
            Ok(super::eval::missing(value, Value::Str(name)))
        }
    }
}
