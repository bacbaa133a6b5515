//! `str.format` with its language of specifications.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use super::args::Args;
use super::eval::Machine;
use super::number::{self, Number, big_text, float_repr};
use super::value::{Text, Value};
use super::{Failure, Meter, fail, markup, operators, repr};

type Res<T> = Result<T, Failure>;

/// The widest field and the longest fraction.
const MAX_WIDTH: usize = 1 << 20;

/// A finite float's digits after `kind` (one of e, f, g), without its sign.
fn digits(x: f64, kind: char, precision: usize, alternate: bool, at_least_one: bool) -> String {
    let x = x.abs();
    let exponential = |precision: usize| {
        let text = format!("{x:.precision$e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let exponent: i32 = exponent.parse().unwrap_or(0);
        (mantissa.to_string(), exponent)
    };
    let spelled = |mantissa: String, exponent: i32| {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
    };
    let pointed = |text: String| if alternate && !text.contains('.') { text + "." } else { text };
    match kind {
        'f' => pointed(format!("{x:.precision$}")),
        'e' => {
            let (mantissa, exponent) = exponential(precision);
            spelled(pointed(mantissa), exponent)
        }
        _ => {
            let precision = precision.max(1);
            let (mantissa, exponent) = exponential(precision - 1);
            let most = precision as i32 - at_least_one as i32;
            let trimmed = |text: String| {
                if alternate || !text.contains('.') {
                    return pointed(text);
                }
                text.trim_end_matches('0').trim_end_matches('.').to_string()
            };
            if exponent < -4 || exponent >= most {
                return spelled(trimmed(mantissa), exponent);
            }
            let fixed = trimmed(format!("{x:.*}", (precision as i32 - 1 - exponent).max(0) as usize));
            if at_least_one && !fixed.contains('.') { fixed + ".0" } else { fixed }
        }
    }
}

/// A float's text after `kind`, without its sign.
pub fn float_text(x: f64, kind: char, precision: Option<usize>, alternate: bool) -> String {
    let text = if x.is_nan() {
        "nan".into()
    } else if x.is_infinite() {
        "inf".into()
    } else {
        digits(x, kind.to_ascii_lowercase(), precision.unwrap_or(6), alternate, false)
    };
    if kind.is_ascii_uppercase() { text.to_uppercase() } else { text }
}

pub fn is_negative(x: f64) -> bool {
    x.is_sign_negative() && !x.is_nan()
}

/// An integer's digits in a base, without its sign, and the sign.
pub fn int_digits(n: &Number, kind: char) -> Res<(bool, String)> {
    let big = match n {
        Number::Int(n) => num_bigint::BigInt::from(*n),
        Number::Big(n) => (**n).clone(),
        Number::Float(_) => return Err(fail("an integer is required, not float")),
    };
    let negative = big.sign() == num_bigint::Sign::Minus;
    let base = match kind {
        'x' | 'X' => 16,
        'o' => 8,
        'b' => 2,
        _ => return Ok((negative, big_text(&big)?.trim_start_matches('-').to_string())),
    };
    let text = big.magnitude().to_str_radix(base);
    Ok((negative, if kind == 'X' { text.to_uppercase() } else { text }))
}

/// A width or a precision. Error: more than a template may use.
pub fn size(n: i64) -> Res<usize> {
    usize::try_from(n)
        .ok()
        .filter(|&n| n <= MAX_WIDTH)
        .ok_or_else(|| fail(format!("a width or precision of {n} is more than a template may use")))
}

/// `ascii(text)` of a `repr`.
pub fn ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c as u32 {
            0..0x80 => out.push(c),
            n @ ..0x100 => out += &format!("\\x{n:02x}"),
            n @ ..0x10000 => out += &format!("\\u{n:04x}"),
            n => out += &format!("\\U{n:08x}"),
        }
    }
    out
}

/// A format specification: `[[fill]align][sign][#][0][width][,][.precision][kind]`.
struct Spec {
    fill: char,
    align: Option<char>,
    sign: char,
    alternate: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

fn spec(text: &str) -> Res<Spec> {
    let invalid = || fail(format!("Invalid format specifier {}", repr::quoted(text)));
    let chars: Vec<char> = text.chars().collect();
    let at = |n: usize| chars.get(n).copied();
    let is_align = |c: Option<char>| c.filter(|c| matches!(c, '<' | '>' | '=' | '^'));
    let mut n = 0;
    let mut spec = Spec {
        fill: ' ',
        align: None,
        sign: '-',
        alternate: false,
        width: 0,
        grouping: None,
        precision: None,
        kind: None,
    };
    if let (Some(fill), Some(align)) = (at(0), is_align(at(1))) {
        (spec.fill, spec.align, n) = (fill, Some(align), 2);
    } else if let Some(align) = is_align(at(0)) {
        (spec.align, n) = (Some(align), 1);
    }
    if let Some(sign @ ('+' | '-' | ' ')) = at(n) {
        (spec.sign, n) = (sign, n + 1);
    }
    if at(n) == Some('#') {
        (spec.alternate, n) = (true, n + 1);
    }
    if at(n) == Some('0') {
        if spec.align.is_none() {
            (spec.fill, spec.align) = ('0', Some('='));
        }
        n += 1;
    }
    let number = |n: &mut usize| -> Res<Option<usize>> {
        let start = *n;
        while at(*n).is_some_and(|c| c.is_ascii_digit()) {
            *n += 1;
        }
        let digits: String = chars[start..*n].iter().collect();
        if digits.is_empty() {
            return Ok(None);
        }
        size(digits.parse().map_err(|_| fail("Too many decimal digits in format string"))?).map(Some)
    };
    spec.width = number(&mut n)?.unwrap_or(0);
    if let Some(grouping @ (',' | '_')) = at(n) {
        (spec.grouping, n) = (Some(grouping), n + 1);
    }
    if at(n) == Some('.') {
        n += 1;
        spec.precision = Some(number(&mut n)?.ok_or_else(|| fail("Format specifier missing precision"))?);
    }
    if let Some(kind) = at(n) {
        (spec.kind, n) = (Some(kind), n + 1);
    }
    if n < chars.len() { Err(invalid()) } else { Ok(spec) }
}

/// `format(value, spec)`.
fn formatted(value: &Value, specification: &str, meter: &mut Meter) -> Res<String> {
    if specification.is_empty() {
        return Ok(repr::text(value, meter)?.text.to_string());
    }
    let refused = || fail(format!("unsupported format string passed to {}.__format__", value.kind()));
    let spec = spec(specification)?;
    meter.take(spec.width + spec.precision.unwrap_or(0))?;
    let unknown = |kind: char| fail(format!("Unknown format code '{kind}' for object of type '{}'", value.kind()));
    match value {
        Value::Str(text) => {
            if let Some(kind) = spec.kind.filter(|&kind| kind != 's') {
                return Err(unknown(kind));
            }
            if spec.sign != '-' || specification.contains('+') {
                return Err(fail("Sign not allowed in string format specifier"));
            }
            if spec.alternate || spec.grouping.is_some() || (spec.align == Some('=') && spec.fill != '0') {
                return Err(fail("this format specifier is not allowed for strings"));
            }
            let kept: String = text.text.chars().take(spec.precision.unwrap_or(usize::MAX)).collect();
            let align = if spec.align == Some('=') { '<' } else { spec.align.unwrap_or('<') };
            Ok(aligned("", &kept, align, &spec))
        }
        _ => match Number::of(value) {
            None => Err(refused()),
            Some(Number::Float(x)) => float_spec(x, &spec, unknown),
            Some(n) => match spec.kind.unwrap_or('d') {
                'e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%' => float_spec(n.to_float()?, &spec, unknown),
                'd' | 'b' | 'o' | 'x' | 'X' | 'n' => int_spec(&n, &spec),
                'c' => {
                    let code = operators::index(value).and_then(Result::ok).and_then(|n| u32::try_from(n).ok());
                    let c = code.and_then(char::from_u32).ok_or_else(|| fail("%c arg not in range(0x110000)"))?;
                    if spec.precision.is_some()
                        || spec.grouping.is_some()
                        || spec.alternate
                        || specification.contains(['+', '-'])
                    {
                        return Err(fail("this format specifier is not allowed with 'c'"));
                    }
                    Ok(aligned("", &c.to_string(), spec.align.unwrap_or('>'), &spec))
                }
                kind => Err(unknown(kind)),
            },
        },
    }
}

fn signed(negative: bool, sign: char) -> &'static str {
    match (negative, sign) {
        (true, _) => "-",
        (_, '+') => "+",
        (_, ' ') => " ",
        _ => "",
    }
}

fn int_spec(n: &Number, spec: &Spec) -> Res<String> {
    if spec.precision.is_some() {
        return Err(fail("Precision not allowed in integer format specifier"));
    }
    let kind = spec.kind.unwrap_or('d');
    let (negative, body) = int_digits(n, kind)?;
    let prefix = match (spec.alternate, kind) {
        (true, 'b' | 'o' | 'x' | 'X') => format!("0{kind}"),
        _ => String::new(),
    };
    if spec.grouping == Some(',') && matches!(kind, 'b' | 'o' | 'x' | 'X' | 'n') {
        return Err(fail(format!("Cannot specify ',' with '{kind}'.")));
    }
    let every = if matches!(kind, 'b' | 'o' | 'x' | 'X') { 4 } else { 3 };
    Ok(grouped(&format!("{}{prefix}", signed(negative, spec.sign)), &body, "", every, spec))
}

fn float_spec(x: f64, spec: &Spec, unknown: impl Fn(char) -> Failure) -> Res<String> {
    let special = !x.is_finite();
    let body = match spec.kind {
        Some(kind @ ('e' | 'E' | 'f' | 'F' | 'g' | 'G')) => float_text(x, kind, spec.precision, spec.alternate),
        Some('n') => float_text(x, 'g', spec.precision, spec.alternate),
        Some('%') => float_text(x * 100.0, 'f', spec.precision, spec.alternate) + "%",
        None if special => float_text(x, 'g', None, false),
        None => match spec.precision {
            None => float_repr(x.abs()),
            Some(precision) => digits(x, 'g', precision, spec.alternate, true),
        },
        Some(kind) => return Err(unknown(kind)),
    };
    let whole = body.find(|c: char| !c.is_ascii_digit()).unwrap_or(body.len());
    Ok(grouped(signed(is_negative(x), spec.sign), &body[..whole], &body[whole..], 3, spec))
}

/// Joins sign, whole part and the rest, with separators in the whole part and padding around.
fn grouped(head: &str, whole: &str, rest: &str, every: usize, spec: &Spec) -> String {
    let mut whole = whole.to_string();
    if let Some(separator) = spec.grouping.filter(|_| !whole.is_empty()) {
        let zeros = spec.fill == '0' && spec.align == Some('=');
        let wanted = spec.width.saturating_sub(head.len() + rest.len());
        let length = |digits: usize| digits + (digits.max(1) - 1) / every;
        let mut digits = whole.len();
        while zeros && length(digits) < wanted {
            digits += 1;
        }
        whole.insert_str(0, &"0".repeat(digits - whole.len()));
        let mut out = String::new();
        for (n, c) in whole.chars().enumerate() {
            if n > 0 && (whole.len() - n).is_multiple_of(every) {
                out.push(separator);
            }
            out.push(c);
        }
        whole = out;
    }
    aligned(head, &(whole + rest), spec.align.unwrap_or('>'), spec)
}

fn aligned(head: &str, body: &str, align: char, spec: &Spec) -> String {
    let missing = spec.width.saturating_sub(head.chars().count() + body.chars().count());
    let fill = |n: usize| spec.fill.to_string().repeat(n);
    match align {
        '<' => format!("{head}{body}{}", fill(missing)),
        '^' => format!("{}{head}{body}{}", fill(missing / 2), fill(missing - missing / 2)),
        '=' => format!("{head}{}{body}", fill(missing)),
        _ => format!("{}{head}{body}", fill(missing)),
    }
}

/// `text.format(...)`.
pub fn format(machine: &mut Machine<'_>, text: &Text, args: Args) -> Res<Value> {
    machine.meter.elements(2 * args.named.len())?;
    let named: HashMap<&str, &Value> = args.named.iter().map(|(name, value)| (&**name, value)).collect();
    let lookup = |name: &str| named.get(name).map(|value| (*value).clone());
    let out = write(machine, &text.text, &args.positional, &lookup, text.markup, &mut Some(0), 2)?;
    Ok(Value::like(text, out))
}

/// `text.format_map(mapping)`.
pub fn format_map(machine: &mut Machine<'_>, text: &Text, mapping: &Value) -> Res<Value> {
    let Value::Dict(dict) = mapping else { return Err(fail("format_map() wants a mapping")) };
    let lookup = |name: &str| dict.get_str(&name.into()).cloned();
    let out = write(machine, &text.text, &[], &lookup, text.markup, &mut Some(0), 2)?;
    Ok(Value::like(text, out))
}

/// `auto` counts the fields without a number; None once one has a number.
fn write(
    machine: &mut Machine<'_>,
    text: &str,
    positional: &[Value],
    named: &dyn Fn(&str) -> Option<Value>,
    escape: bool,
    auto: &mut Option<usize>,
    depth: u32,
) -> Res<String> {
    if depth == 0 && text.contains('{') {
        return Err(fail("Max string recursion exceeded"));
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some(n) = rest.find(['{', '}']) {
        machine.meter.take(n + 1)?;
        machine.meter.step(1)?;
        out.push_str(&rest[..n]);
        let c = &rest[n..=n];
        rest = &rest[n + 1..];
        if rest.starts_with(c) {
            out.push_str(c);
            rest = &rest[1..];
            continue;
        }
        if c == "}" {
            return Err(fail("Single '}' encountered in format string"));
        }
        let mut open = 1;
        let end = rest.char_indices().find(|&(_, c)| {
            open += (c == '{') as i32 - (c == '}') as i32;
            open == 0
        });
        let Some((end, _)) = end else { return Err(fail("expected '}' before end of string")) };
        let field = &rest[..end];
        rest = &rest[end + 1..];
        let bracketed = field.find('[').unwrap_or(field.len());
        let cut = field.find([':', '!']).map_or(field.len(), |n| {
            if bracketed < n {
                field[bracketed..].find(']').map_or(field.len(), |close| {
                    let from = bracketed + close;
                    field[from..].find([':', '!']).map_or(field.len(), |n| from + n)
                })
            } else {
                n
            }
        });
        let (name, mut tail) = field.split_at(cut);
        let mut conversion = None;
        if let Some(after) = tail.strip_prefix('!') {
            let Some(kind) = after.chars().next() else {
                return Err(fail("end of string while looking for conversion specifier"));
            };
            conversion = Some(kind);
            tail = &after[kind.len_utf8()..];
            if !tail.is_empty() && !tail.starts_with(':') {
                return Err(fail("expected ':' after conversion specifier"));
            }
        }
        let specification = tail.strip_prefix(':').unwrap_or("");
        let value = field_value(machine, name, positional, named, auto)?;
        let value = match conversion {
            None => value,
            Some('s') => Value::Str(repr::text(&value, &mut machine.meter)?),
            Some(kind @ ('r' | 'a')) => {
                let mut text = String::new();
                repr::repr(&value, &mut text, &mut machine.meter)?;
                Value::str(if kind == 'a' { ascii(&text) } else { text })
            }
            Some(kind) => return Err(fail(format!("Unknown conversion specifier {kind}"))),
        };
        let specification = write(machine, specification, positional, named, false, auto, depth - 1)?;
        let safe = matches!(&value, Value::Str(text) if text.markup);
        if safe && escape && !specification.is_empty() {
            return Err(fail("Unsupported format specification for Markup."));
        }
        let text = formatted(&value, &specification, &mut machine.meter)?;
        if escape && !safe {
            out.push_str(&markup::forced(&text, &mut machine.meter)?.text);
        } else {
            machine.meter.take(text.len())?;
            out.push_str(&text);
        }
    }
    machine.meter.take(rest.len())?;
    out.push_str(rest);
    Ok(out)
}

fn field_value(
    machine: &mut Machine<'_>,
    name: &str,
    positional: &[Value],
    named: &dyn Fn(&str) -> Option<Value>,
    auto: &mut Option<usize>,
) -> Res<Value> {
    let end = name.find(['.', '[']).unwrap_or(name.len());
    let (first, mut path) = name.split_at(end);
    let numbered = !first.is_empty() && first.bytes().all(|c| c.is_ascii_digit());
    let index = if name.is_empty() {
        let n =
            auto.ok_or_else(|| fail("cannot switch from manual field specification to automatic field numbering"))?;
        *auto = Some(n + 1);
        Some(n)
    } else if numbered {
        if auto.is_some_and(|n| n > 0) {
            return Err(fail("cannot switch from manual field specification to automatic field numbering"));
        }
        if path.is_empty() {
            *auto = None;
        }
        Some(first.parse().map_err(|_| fail("Too many decimal digits in format string"))?)
    } else {
        None
    };
    let found = match index {
        Some(n) => {
            positional.get(n).cloned().ok_or_else(|| fail("Replacement index out of range for positional args tuple"))
        }
        None => named(first).ok_or_else(|| fail(format!("KeyError: {}", repr::quoted(first)))),
    };
    let mut value = found?;
    while !path.is_empty() {
        if let Some(rest) = path.strip_prefix('.') {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            if end == 0 {
                return Err(fail("Empty attribute in format string"));
            }
            value = machine.attribute(&value, &rest[..end].into())?;
            path = &rest[end..];
        } else {
            let Some(end) = path.find(']') else { return Err(fail("Missing ']' in format string")) };
            let key = &path[1..end];
            if key.is_empty() {
                return Err(fail("Empty attribute in format string"));
            }
            let key = match key.bytes().all(|c| c.is_ascii_digit()) {
                true => number::parse_int(key, 10).ok_or_else(|| fail("Too many decimal digits in format string"))?,
                false => Value::str(key),
            };
            value = machine.item(&value, &key)?;
            path = &path[end + 1..];
            if !path.is_empty() && !path.starts_with(['.', '[']) {
                return Err(fail("Only '.' or '[' may follow ']' in format field specifier"));
            }
        }
    }
    Ok(value)
}
