//! `%` on strings.
#![forbid(unsafe_code)]

use super::format::{ascii, float_text, int_digits, is_negative, size};
use super::number::{self, Number};
use super::value::{Text, Value};
use super::{Failure, Meter, fail, markup, operators, repr};

type Res<T> = Result<T, Failure>;

/// What a `%` conversion asks for.
#[derive(Clone, Copy, Default)]
struct Conversion {
    left: bool,
    plus: bool,
    space: bool,
    zero: bool,
    alternate: bool,
    width: usize,
    precision: Option<usize>,
}

/// The values that a `%` format takes.
struct Given<'v> {
    tuple: Option<&'v [Value]>,
    single: &'v Value,
    next: usize,
}

impl Given<'_> {
    fn take(&mut self) -> Res<Value> {
        let value = match self.tuple {
            Some(items) => items.get(self.next).cloned(),
            None if self.next == 0 => Some(self.single.clone()),
            None => None,
        };
        self.next += 1;
        value.ok_or_else(|| fail("not enough arguments for format string"))
    }

    fn size(&mut self) -> Res<i64> {
        match self.take()? {
            Value::Int(n) => Ok(n),
            Value::Bool(b) => Ok(b as i64),
            _ => Err(fail("* wants int")),
        }
    }
}

/// `text % values`.
pub fn percent(text: &Text, values: &Value, meter: &mut Meter) -> Res<Value> {
    let is_mapping = matches!(values, Value::List(_) | Value::Dict(_) | Value::Range(_) | Value::Undefined(_));
    let mut given = Given {
        tuple: if let Value::Tuple(list) = values { Some(&list.items) } else { None },
        single: values,
        next: 0,
    };
    let mut out = String::new();
    let mut rest = &*text.text;
    while let Some(n) = rest.find('%') {
        meter.step(1)?;
        out.push_str(&rest[..n]);
        rest = &rest[n + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let mut keyed = None;
        if rest.starts_with('(') {
            let mut open = 0;
            let end = rest.char_indices().find(|&(_, c)| {
                open += (c == '(') as i32 - (c == ')') as i32;
                open == 0
            });
            let Some((end, _)) = end else { return Err(fail("incomplete format key")) };
            if !is_mapping {
                return Err(fail("format requires a mapping"));
            }
            let key = Value::str(&rest[1..end]);
            rest = &rest[end + 1..];
            let Value::Dict(_) = values else {
                return Err(match values {
                    Value::Undefined(undefined) => fail(undefined.message()),
                    _ => fail("list indices must be integers or slices, not str"),
                });
            };
            let found = operators::item(values, &key, meter)?;
            keyed = Some(found.ok_or_else(|| fail(format!("KeyError: {}", repr::plain(&key).unwrap_or_default())))?);
        }
        let mut how = Conversion::default();
        let flags = rest.find(|c| !matches!(c, '#' | '0' | '-' | ' ' | '+')).unwrap_or(rest.len());
        for flag in rest[..flags].chars() {
            match flag {
                '#' => how.alternate = true,
                '0' => how.zero = true,
                '-' => how.left = true,
                ' ' => how.space = true,
                _ => how.plus = true,
            }
        }
        rest = &rest[flags..];
        let number = |rest: &mut &str, given: &mut Given| -> Res<Option<i64>> {
            if let Some(after) = rest.strip_prefix('*') {
                *rest = after;
                return given.size().map(Some);
            }
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let digits = &rest[..end];
            *rest = &rest[end..];
            if digits.is_empty() {
                return Ok(None);
            }
            digits.parse().map(Some).map_err(|_| fail("width too big"))
        };
        if let Some(width) = number(&mut rest, &mut given)? {
            how.left |= width < 0;
            how.width = size(width.saturating_abs())?;
        }
        if let Some(after) = rest.strip_prefix('.') {
            rest = after;
            how.precision = Some(size(number(&mut rest, &mut given)?.unwrap_or(0).max(0))?);
        }
        rest = rest.strip_prefix(['h', 'l', 'L']).unwrap_or(rest);
        let Some(kind) = rest.chars().next() else { return Err(fail("incomplete format")) };
        rest = &rest[kind.len_utf8()..];
        let value = match keyed {
            Some(value) => value,
            None => given.take()?,
        };
        meter.take(how.width + how.precision.unwrap_or(0))?;
        convert(&value, kind, &how, text.markup, &mut out, meter)?;
    }
    out.push_str(rest);
    let unused = match given.tuple {
        Some(items) => given.next < items.len(),
        None => given.next == 0 && !text.text.contains("%(") && !is_mapping,
    };
    if unused {
        return Err(fail("not all arguments converted during string formatting"));
    }
    meter.take(out.len())?;
    Ok(Value::like(text, out))
}

fn convert(value: &Value, kind: char, how: &Conversion, escape: bool, out: &mut String, meter: &mut Meter) -> Res<()> {
    let numeric = |negative: bool, prefix: &str, body: String, out: &mut String| {
        let sign = if negative {
            "-"
        } else if how.plus {
            "+"
        } else if how.space {
            " "
        } else {
            ""
        };
        let missing = how.width.saturating_sub(sign.len() + prefix.len() + body.chars().count());
        let (before, zeros, after) = match (how.left, how.zero) {
            (true, _) => (0, 0, missing),
            (_, true) => (0, missing, 0),
            _ => (missing, 0, 0),
        };
        out.extend(std::iter::repeat_n(' ', before));
        out.push_str(sign);
        out.push_str(prefix);
        out.extend(std::iter::repeat_n('0', zeros));
        out.push_str(&body);
        out.extend(std::iter::repeat_n(' ', after));
    };
    match kind {
        's' | 'r' | 'a' => {
            let mut text = match kind {
                's' => repr::text(value, meter)?.text.to_string(),
                _ => {
                    let mut text = String::new();
                    repr::repr(value, &mut text, meter)?;
                    if kind == 'a' { ascii(&text) } else { text }
                }
            };
            if escape {
                let is_safe = kind == 's' && matches!(value, Value::Str(text) if text.markup);
                text = if is_safe { text } else { markup::forced(&text, meter)?.text.to_string() };
            }
            pad_text(&text, how, out);
        }
        'c' => {
            let text = match value {
                Value::Str(text) if text.chars == 1 => text.text.to_string(),
                Value::Int(_) | Value::Bool(_) => {
                    let code = operators::index(value).and_then(Result::ok).and_then(|n| u32::try_from(n).ok());
                    let c = code.and_then(char::from_u32).ok_or_else(|| fail("%c arg not in range(0x110000)"))?;
                    c.to_string()
                }
                _ => return Err(fail("%c requires int or char")),
            };
            pad_text(&text, &Conversion { precision: None, ..*how }, out);
        }
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' => {
            let n = match (Number::of(value), kind) {
                (Some(Number::Float(x)), 'd' | 'i' | 'u') if x.is_finite() => {
                    Number::of(&number::int(number::truncate(x)))
                }
                (Some(Number::Float(_)), _) => None,
                (n, _) => n,
            };
            let Some(n) = n else {
                return Err(match value {
                    Value::Undefined(undefined) => fail(undefined.message()),
                    _ => fail(format!("%{kind} format: a number is required, not {}", value.kind())),
                });
            };
            let (negative, mut body) = int_digits(&n, kind)?;
            if let Some(least) = how.precision {
                body.insert_str(0, &"0".repeat(least.saturating_sub(body.len())));
            }
            let prefix = match (how.alternate, kind) {
                (true, 'x') => "0x",
                (true, 'X') => "0X",
                (true, 'o') => "0o",
                _ => "",
            };
            numeric(negative, prefix, body, out);
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let x = match (Number::of(value), value) {
                (Some(n), _) => n.to_float()?,
                (None, Value::Undefined(undefined)) => return Err(fail(undefined.message())),
                (None, Value::Str(text)) if escape => {
                    number::parse_float(&text.text).ok_or_else(|| fail("could not convert string to float"))?
                }
                _ => return Err(fail(format!("must be real number, not {}", value.kind()))),
            };
            numeric(is_negative(x), "", float_text(x, kind, how.precision, how.alternate), out);
        }
        other => return Err(fail(format!("unsupported format character '{other}'"))),
    }
    Ok(())
}

fn pad_text(text: &str, how: &Conversion, out: &mut String) {
    let length = text.chars().count().min(how.precision.unwrap_or(usize::MAX));
    let missing = how.width.saturating_sub(length);
    if !how.left {
        out.extend(std::iter::repeat_n(' ', missing));
    }
    out.extend(text.chars().take(length));
    if how.left {
        out.extend(std::iter::repeat_n(' ', missing));
    }
}
