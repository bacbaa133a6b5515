//! Python's operators: arithmetic, comparison, membership, subscripts and slices.
#![forbid(unsafe_code)]

use std::cmp::Ordering;
use std::rc::Rc;

use super::ast::Binary;
use super::dict::{Dict, Key};
use super::number::{self, Number};
use super::strings::{between, byte_of};
use super::value::{Object, Range, Text, Value, View};
use super::{Failure, Meter, fail, markup, percent};

type Res<T> = Result<T, Failure>;

fn symbol(op: Binary) -> &'static str {
    match op {
        Binary::Add => "+",
        Binary::Subtract => "-",
        Binary::Multiply => "*",
        Binary::Divide => "/",
        Binary::FloorDivide => "//",
        Binary::Modulo => "%",
        Binary::Power => "** or pow()",
    }
}

/// `a op b`.
pub fn binary(op: Binary, a: &Value, b: &Value, meter: &mut Meter) -> Res<Value> {
    if let (Some(a), Some(b)) = (Number::of(a), Number::of(b)) {
        meter.step(number::work(&a, &b))?;
        return match op {
            Binary::Add => number::add(&a, &b),
            Binary::Subtract => number::subtract(&a, &b),
            Binary::Multiply => number::multiply(&a, &b),
            Binary::Divide => number::divide(&a, &b),
            Binary::FloorDivide => number::floor_divide(&a, &b).map(|(quotient, _)| quotient),
            Binary::Modulo => modulo(&a, &b),
            Binary::Power => {
                if let Number::Int(exponent) = b {
                    meter.step(exponent.unsigned_abs().min(1 << 20) / 64)?;
                }
                number::power(&a, &b)
            }
        };
    }
    match (op, a, b) {
        (Binary::Modulo, Value::Str(text), _) => return percent::percent(text, b, meter),
        (_, Value::Undefined(undefined), _) | (_, _, Value::Undefined(undefined)) => {
            return Err(fail(undefined.message()));
        }
        (Binary::Add, Value::Str(a), Value::Str(b)) => return add_text(a, b, meter),
        (Binary::Add, Value::List(a), Value::List(b)) => {
            meter.elements(a.items.len() + b.items.len())?;
            return Value::list(a.items.iter().chain(&b.items).cloned().collect());
        }
        (Binary::Add, Value::Tuple(a), Value::Tuple(b)) => {
            meter.elements(a.items.len() + b.items.len())?;
            return Value::tuple(a.items.iter().chain(&b.items).cloned().collect());
        }
        (Binary::Multiply, sequence @ (Value::Str(_) | Value::List(_) | Value::Tuple(_)), times)
        | (Binary::Multiply, times, sequence @ (Value::Str(_) | Value::List(_) | Value::Tuple(_))) => {
            if let Some(times) = index(times) {
                return repeat(sequence, times?, meter);
            }
            return Err(fail(format!("can't multiply sequence by non-int of type '{}'", times.kind())));
        }
        (Binary::Add, Value::Str(text), other) => {
            let to = if text.markup { "Markup" } else { "str" };
            return Err(fail(format!("can only concatenate str (not \"{}\") to {to}", other.kind())));
        }
        (Binary::Add, list @ (Value::List(_) | Value::Tuple(_)), other) => {
            let kind = list.kind();
            return Err(fail(format!("can only concatenate {kind} (not \"{}\") to {kind}", other.kind())));
        }
        _ => {}
    }
    // Python merges dictionaries with `|` alone and subtracts sets, which a template cannot write.
    if let (Value::View(..), Binary::Subtract) = (a, op) {
        return Err(fail("the difference of dictionary views is a set, and sets are not supported here"));
    }
    Err(unsupported(symbol(op), a, b))
}

fn modulo(a: &Number, b: &Number) -> Res<Value> {
    if let Number::Float(0.0) = b {
        return Err(fail("float modulo"));
    }
    if let (Number::Float(x), true) = (a, matches!(b, Number::Float(y) if y.is_infinite())) {
        // fmod of a finite number is the number itself, brought to the sign of the other.
        let y = b.to_float()?;
        if x.is_finite() {
            let same = *x == 0.0 || (*x < 0.0) == (y < 0.0);
            return Ok(Value::Float(if *x == 0.0 {
                0f64.copysign(y)
            } else if same {
                *x
            } else {
                y
            }));
        }
    }
    number::floor_divide(a, b).map(|(_, rest)| rest)
}

fn unsupported(op: &str, a: &Value, b: &Value) -> Failure {
    fail(format!("unsupported operand type(s) for {op}: '{}' and '{}'", a.kind(), b.kind()))
}

fn add_text(a: &Text, b: &Text, meter: &mut Meter) -> Res<Value> {
    let (a, b) = match (a.markup, b.markup) {
        (true, false) => (a.clone(), markup::escape_text(b, meter)?),
        (false, true) => (markup::escape_text(a, meter)?, b.clone()),
        _ => (a.clone(), b.clone()),
    };
    meter.take(a.text.len() + b.text.len())?;
    let mut text = String::with_capacity(a.text.len() + b.text.len());
    text.push_str(&a.text);
    text.push_str(&b.text);
    Ok(Value::Str(Text { text: text.into(), chars: a.chars + b.chars, markup: a.markup }))
}

/// The value as an index: an integer or a bool. The inner error: more than 64 bits.
pub fn index(value: &Value) -> Option<Res<i64>> {
    match value {
        Value::Int(n) => Some(Ok(*n)),
        Value::Bool(b) => Some(Ok(*b as i64)),
        Value::Big(_) => Some(Err(fail("cannot fit 'int' into an index-sized integer"))),
        _ => None,
    }
}

fn repeat(sequence: &Value, times: i64, meter: &mut Meter) -> Res<Value> {
    let times = usize::try_from(times).unwrap_or(0);
    match sequence {
        Value::Str(text) => {
            meter.take(text.text.len().saturating_mul(times))?;
            Ok(Value::Str(Text {
                text: text.text.repeat(times).into(),
                chars: text.chars * times,
                markup: text.markup,
            }))
        }
        Value::List(list) | Value::Tuple(list) => {
            meter.elements(list.items.len().saturating_mul(times))?;
            let items = list.items.iter().cycle().take(list.items.len() * times).cloned().collect();
            if matches!(sequence, Value::List(_)) { Value::list(items) } else { Value::tuple(items) }
        }
        _ => Err(fail("only a sequence can be repeated")),
    }
}

/// `+value` and `-value`.
pub fn signed(value: &Value, minus: bool, meter: &mut Meter) -> Res<Value> {
    if let Value::Big(n) = value {
        meter.read(n.bits() as usize / 8)?;
    }
    match (Number::of(value), value) {
        (Some(n), _) if minus => Ok(number::negate(&n)),
        (Some(_), Value::Bool(b)) => Ok(Value::Int(*b as i64)),
        (Some(_), _) => Ok(value.clone()),
        (None, Value::Undefined(undefined)) => Err(fail(undefined.message())),
        (None, _) => {
            Err(fail(format!("bad operand type for unary {}: '{}'", if minus { '-' } else { '+' }, value.kind())))
        }
    }
}

/// `a == b`.
pub fn equal(a: &Value, b: &Value, meter: &mut Meter) -> Res<bool> {
    meter.step(1)?;
    if let (Some(a), Some(b)) = (Number::of(a), Number::of(b)) {
        return Ok(number::compare(&a, &b) == Some(Ordering::Equal));
    }
    Ok(match (a, b) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Str(a), Value::Str(b)) => {
            meter.read(a.text.len().min(b.text.len()))?;
            a.text == b.text
        }
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            if a.items.len() != b.items.len() {
                return Ok(false);
            }
            for (a, b) in a.items.iter().zip(&b.items) {
                if !equal(a, b, meter)? {
                    return Ok(false);
                }
            }
            true
        }
        (Value::Dict(a), Value::Dict(b)) => return equal_dicts(a, b, meter),
        (Value::Range(a), Value::Range(b)) => {
            a.len() == b.len() && (a.len() == 0 || a.start == b.start && (a.len() == 1 || a.step == b.step))
        }
        (Value::View(View::Keys, a), Value::View(View::Keys, b)) => {
            charge_keys(a, meter)?;
            a.len() == b.len() && a.keyed().all(|(key, _)| b.get(key).is_some())
        }
        (Value::View(View::Items, a), Value::View(View::Items, b)) => return equal_dicts(a, b, meter),
        (Value::Iter(a), Value::Iter(b)) => Rc::ptr_eq(a, b),
        (Value::Object(a), Value::Object(b)) => match (&**a, &**b) {
            (Object::Method { of: a, name: x, .. }, Object::Method { of: b, name: y, .. }) => x == y && same(a, b),
            (Object::Global(a), Object::Global(b)) => a == b,
            _ => Rc::ptr_eq(a, b),
        },
        _ => false,
    })
}

/// Pays for looking up every key of a dictionary in another.
fn charge_keys(dict: &Dict, meter: &mut Meter) -> Res<()> {
    for (name, _) in dict.iter() {
        Key::of(name, meter)?;
    }
    Ok(())
}

fn equal_dicts(a: &Dict, b: &Dict, meter: &mut Meter) -> Res<bool> {
    if a.len() != b.len() {
        return Ok(false);
    }
    charge_keys(a, meter)?;
    for (key, value) in a.keyed() {
        match b.get(key) {
            Some(other) if equal(value, other, meter)? => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// `a is b`, as far as Python promises it.
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::None, Value::None) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Int(a), Value::Int(b)) => a == b && (-5..=256).contains(a),
        (Value::Str(a), Value::Str(b)) => std::sync::Arc::ptr_eq(&a.text, &b.text),
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => Rc::ptr_eq(a, b),
        (Value::Dict(a), Value::Dict(b)) => Rc::ptr_eq(a, b),
        (Value::Undefined(a), Value::Undefined(b)) => Rc::ptr_eq(a, b),
        (Value::Iter(a), Value::Iter(b)) => Rc::ptr_eq(a, b),
        (Value::Object(a), Value::Object(b)) => match (&**a, &**b) {
            (Object::Global(a), Object::Global(b)) => a == b,
            _ => Rc::ptr_eq(a, b),
        },
        _ => false,
    }
}

/// Which of two values comes first. None: neither (a NaN). Error: they have no order.
pub fn order(a: &Value, b: &Value, op: &str, meter: &mut Meter) -> Res<Option<Ordering>> {
    meter.step(1)?;
    if let (Some(a), Some(b)) = (Number::of(a), Number::of(b)) {
        return Ok(number::compare(&a, &b));
    }
    match (a, b) {
        (Value::Str(a), Value::Str(b)) => {
            meter.step(a.text.len().min(b.text.len()) as u64 / 64)?;
            Ok(Some(a.text.cmp(&b.text)))
        }
        (Value::List(x), Value::List(y)) | (Value::Tuple(x), Value::Tuple(y)) => {
            for (a, b) in x.items.iter().zip(&y.items) {
                if !equal(a, b, meter)? {
                    return order(a, b, op, meter);
                }
            }
            Ok(Some(x.items.len().cmp(&y.items.len())))
        }
        (Value::Undefined(undefined), _) | (_, Value::Undefined(undefined)) => Err(fail(undefined.message())),
        (Value::View(View::Keys | View::Items, _), Value::View(View::Keys | View::Items, _)) => {
            Err(fail("the order of dictionary views is not supported here"))
        }
        _ => {
            let (a, b) = (a.kind(), b.kind());
            Err(fail(format!("'{op}' not supported between instances of '{a}' and '{b}'")))
        }
    }
}

/// `needle in hay`, for what is not read as an iterator.
pub fn contains(hay: &Value, needle: &Value, meter: &mut Meter) -> Res<bool> {
    meter.step(1)?;
    match hay {
        Value::Str(text) => match needle {
            Value::Str(needle) => {
                meter.step(text.text.len() as u64 / 64)?;
                Ok(text.text.contains(&*needle.text))
            }
            other => Err(fail(format!("'in <string>' requires string as left operand, not {}", other.kind()))),
        },
        Value::List(list) | Value::Tuple(list) => {
            for item in &list.items {
                if same(item, needle) || equal(item, needle, meter)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Value::Dict(dict) | Value::View(View::Keys, dict) => Ok(dict.get(&Key::of(needle, meter)?).is_some()),
        Value::View(View::Values, dict) => {
            for (_, item) in dict.iter() {
                if equal(item, needle, meter)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Value::View(View::Items, dict) => match needle {
            Value::Tuple(pair) if pair.items.len() == 2 => match dict.get(&Key::of(&pair.items[0], meter)?) {
                Some(item) => equal(item, &pair.items[1], meter),
                None => Ok(false),
            },
            _ => Ok(false),
        },
        Value::Range(range) => {
            meter.step(range.len())?;
            (0..range.len()).try_fold(false, |found, n| Ok(found || equal(&range.get(n), needle, meter)?))
        }
        Value::Undefined(_) => Ok(false),
        other => Err(fail(format!("argument of type '{}' is not iterable", other.kind()))),
    }
}

fn position(n: i64, length: usize) -> Option<usize> {
    let n = if n < 0 { n.checked_add(length as i64)? } else { n };
    usize::try_from(n).ok().filter(|&n| n < length)
}

/// `of[key]`; None where Python raises what jinja2 turns into undefined. Error: what it lets through.
pub fn item(of: &Value, key: &Value, meter: &mut Meter) -> Res<Option<Value>> {
    meter.step(1)?;
    let at = |length: usize| index(key).and_then(Result::ok).and_then(|n| position(n, length));
    Ok(match of {
        Value::Dict(dict) => match key {
            Value::Str(name) => {
                meter.read(name.text.len())?;
                dict.get_str(&name.text).cloned()
            }
            key => Key::of(key, meter).ok().and_then(|key| dict.get(&key).cloned()),
        },
        Value::List(list) | Value::Tuple(list) => at(list.items.len()).map(|n| list.items[n].clone()),
        Value::Str(text) => match at(text.chars) {
            None => None,
            Some(n) => {
                if !text.is_ascii() {
                    meter.step(n as u64 / 32)?;
                }
                Some(Value::like(text, between(text, n, n + 1)))
            }
        },
        Value::Range(range) => at(range.len() as usize).map(|n| range.get(n as u64)),
        Value::Undefined(undefined) => return Err(fail(undefined.message())),
        _ => None,
    })
}

/// `of[start:stop:step]`.
pub fn slice(of: &Value, parts: [Option<Value>; 3], meter: &mut Meter) -> Res<Value> {
    let length = match of {
        Value::Str(text) => text.chars,
        Value::List(list) | Value::Tuple(list) => list.items.len(),
        Value::Range(range) => range.len() as usize,
        Value::Undefined(undefined) => return Err(fail(undefined.message())),
        Value::Dict(_) => return Err(fail("unhashable type: 'slice'")),
        other => return Err(fail(format!("'{}' object is not subscriptable", other.kind()))),
    };
    let length = length as i64;
    let bound = |part: &Option<Value>| match part {
        None | Some(Value::None) => Ok(None),
        // Beyond every index, where a slice stops anyway.
        Some(Value::Big(n)) => Ok(Some(if n.sign() == num_bigint::Sign::Minus { -i64::MAX } else { i64::MAX })),
        Some(value) => match index(value) {
            Some(n) => n.map(Some),
            None => Err(fail("slice indices must be integers or None or have an __index__ method")),
        },
    };
    let step = bound(&parts[2])?.unwrap_or(1).max(-i64::MAX);
    if step == 0 {
        return Err(fail("slice step cannot be zero"));
    }
    let (low, high) = if step < 0 { (-1, length - 1) } else { (0, length) };
    let clamp = |n: i64| if n < 0 { n.saturating_add(length).max(low) } else { n.min(high) };
    let (start, stop) = if step < 0 { (high, low) } else { (low, high) };
    let start = bound(&parts[0])?.map_or(start, clamp);
    let stop = bound(&parts[1])?.map_or(stop, clamp);
    let taken = Range { start, stop, step };
    meter.elements(if matches!(of, Value::Range(_)) { 0 } else { taken.len() as usize })?;
    let positions = || (0..taken.len()).map(|n| (start as i128 + n as i128 * step as i128) as usize);
    match of {
        Value::Str(text) if step == 1 => {
            meter.take(text.text.len())?;
            Ok(Value::like(text, between(text, start as usize, stop.max(start) as usize)))
        }
        Value::Str(text) if text.is_ascii() => {
            let bytes = text.text.as_bytes();
            Ok(Value::like(text, positions().map(|n| bytes[n] as char).collect::<String>()))
        }
        Value::Str(text) => {
            meter.elements(text.chars)?;
            let chars: Vec<char> = text.text.chars().collect();
            Ok(Value::like(text, positions().map(|n| chars[n]).collect::<String>()))
        }
        Value::List(list) => Value::list(positions().map(|n| list.items[n].clone()).collect()),
        Value::Tuple(list) => Value::tuple(positions().map(|n| list.items[n].clone()).collect()),
        Value::Range(range) => {
            let at = |n: i64| range.start as i128 + n as i128 * range.step as i128;
            let fit = |n: i128| i64::try_from(n).map_err(|_| fail("the slice of the range goes beyond 64 bits"));
            let step = range.step as i128 * step as i128;
            Ok(Value::Range(Rc::new(Range { start: fit(at(start))?, stop: fit(at(stop))?, step: fit(step)? })))
        }
        _ => Err(fail("only a sequence has slices")),
    }
}

/// The bytes of a text from one character to another, both as Python counts them from the end too.
pub fn window(text: &Text, start: Option<i64>, stop: Option<i64>) -> Option<(usize, usize)> {
    let length = text.chars as i64;
    let clamp = |n: i64| if n < 0 { n.saturating_add(length).max(0) } else { n };
    let start = clamp(start.unwrap_or(0));
    let stop = clamp(stop.unwrap_or(length)).min(length);
    if start > stop {
        return None;
    }
    Some((byte_of(text, start as usize), byte_of(text, stop as usize)))
}
