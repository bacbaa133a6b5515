//! Python's numbers: integers of any size, floats as `repr` writes them, and the arithmetic between.
#![forbid(unsafe_code)]

use std::cmp::Ordering;
use std::rc::Rc;

use num_bigint::{BigInt, Sign};

use super::value::Value;
use super::{Failure, fail};

type Res<T> = Result<T, Failure>;

/// The most bits of an integer; Python has no bound, and no template a use for more.
const MAX_BITS: u64 = 1 << 20;
/// The most digits that Python turns into text or reads (sys.int_info.default_max_str_digits).
const MAX_DIGITS: usize = 4300;

/// A number: bool counts as int, as in Python.
#[derive(Clone)]
pub enum Number {
    Int(i64),
    Big(Rc<BigInt>),
    Float(f64),
}

impl Number {
    /// The number that a value is.
    pub fn of(value: &Value) -> Option<Number> {
        Some(match value {
            Value::Bool(b) => Number::Int(*b as i64),
            Value::Int(n) => Number::Int(*n),
            Value::Big(n) => Number::Big(n.clone()),
            Value::Float(x) => Number::Float(*x),
            _ => return None,
        })
    }

    fn big(&self) -> BigInt {
        match self {
            Number::Int(n) => BigInt::from(*n),
            Number::Big(n) => (**n).clone(),
            Number::Float(_) => BigInt::ZERO,
        }
    }

    fn is_float(&self) -> bool {
        matches!(self, Number::Float(_))
    }

    fn is_zero(&self) -> bool {
        matches!(self, Number::Int(0)) || matches!(self, Number::Float(x) if *x == 0.0)
    }

    pub fn words(&self) -> u64 {
        match self {
            Number::Big(n) => n.bits() / 64 + 1,
            _ => 1,
        }
    }

    /// The float nearest to it. Error: an integer beyond the floats.
    pub fn to_float(&self) -> Res<f64> {
        match self {
            Number::Int(n) => Ok(*n as f64),
            Number::Float(x) => Ok(*x),
            Number::Big(n) => big_to_float(n).ok_or_else(|| fail("int too large to convert to float")),
        }
    }
}

/// The nearest float, ties to even; None beyond the floats.
fn big_to_float(n: &BigInt) -> Option<f64> {
    // Decimal digits are read with correct rounding, and an integer this size has at most 310 of them.
    if n.bits() > 1024 {
        return None;
    }
    n.to_string().parse::<f64>().ok().filter(|x| x.is_finite())
}

/// The value of an integer, small where it fits.
pub fn int(n: BigInt) -> Value {
    match i64::try_from(&n) {
        Ok(n) => Value::Int(n),
        Err(_) => Value::Big(Rc::new(n)),
    }
}

/// The work that an operation on these numbers costs beyond one step.
pub fn work(a: &Number, b: &Number) -> u64 {
    a.words().saturating_mul(b.words()) / 16
}

fn bounded(n: BigInt) -> Res<Value> {
    if n.bits() > MAX_BITS {
        return Err(fail(format!("an integer above 2**{MAX_BITS} is more than a template may make")));
    }
    Ok(int(n))
}

pub fn add(a: &Number, b: &Number) -> Res<Value> {
    if let (Number::Int(a), Number::Int(b)) = (a, b)
        && let Some(n) = a.checked_add(*b)
    {
        return Ok(Value::Int(n));
    }
    if a.is_float() || b.is_float() {
        return Ok(Value::Float(a.to_float()? + b.to_float()?));
    }
    bounded(a.big() + b.big())
}

pub fn subtract(a: &Number, b: &Number) -> Res<Value> {
    if let (Number::Int(a), Number::Int(b)) = (a, b)
        && let Some(n) = a.checked_sub(*b)
    {
        return Ok(Value::Int(n));
    }
    if a.is_float() || b.is_float() {
        return Ok(Value::Float(a.to_float()? - b.to_float()?));
    }
    bounded(a.big() - b.big())
}

pub fn multiply(a: &Number, b: &Number) -> Res<Value> {
    if let (Number::Int(a), Number::Int(b)) = (a, b)
        && let Some(n) = a.checked_mul(*b)
    {
        return Ok(Value::Int(n));
    }
    if a.is_float() || b.is_float() {
        return Ok(Value::Float(a.to_float()? * b.to_float()?));
    }
    bounded(a.big() * b.big())
}

/// `a / b`, always a float.
pub fn divide(a: &Number, b: &Number) -> Res<Value> {
    if b.is_zero() {
        return Err(fail(if a.is_float() || b.is_float() { "float division by zero" } else { "division by zero" }));
    }
    const EXACT: i64 = 1 << 53;
    match (a, b) {
        (Number::Int(x), Number::Int(y)) if x.abs() <= EXACT && y.abs() <= EXACT => {
            Ok(Value::Float(*x as f64 / *y as f64))
        }
        _ if a.is_float() || b.is_float() => Ok(Value::Float(a.to_float()? / b.to_float()?)),
        _ => big_quotient(&a.big(), &b.big()).map(Value::Float),
    }
}

/// The float nearest to the quotient of two integers.
fn big_quotient(a: &BigInt, b: &BigInt) -> Res<f64> {
    let too_large = || fail("integer division result too large for a float");
    let negative = (a.sign() == Sign::Minus) != (b.sign() == Sign::Minus);
    let (a, b) = (a.magnitude(), b.magnitude());
    // A quotient of 66 bits or more and a sticky last bit round as the exact quotient does.
    let shift = 66 + b.bits() as i64 - a.bits() as i64;
    let (a, b) = if shift >= 0 { (a << shift as u64, b.clone()) } else { (a.clone(), b << (-shift) as u64) };
    let quotient = &a / &b;
    let sticky = &quotient * &b != a;
    let mut bits = u128::try_from(&quotient).map_err(|_| too_large())?;
    bits = (bits << 1) | sticky as u128;
    let scale = -shift - 1;
    let width = 128 - bits.leading_zeros() as i64;
    // Below the normal range fewer bits remain.
    let keep = 53.min(width + scale + 1074);
    if keep < 0 {
        return Ok(if negative { -0.0 } else { 0.0 });
    }
    let drop = (width - keep).max(0) as u32;
    let (kept, rest) = if drop == 0 { (bits, 0) } else { (bits >> drop, bits & ((1 << drop) - 1)) };
    let half = if drop == 0 { 1 } else { 1u128 << (drop - 1) };
    let rounded = kept + (rest > half || (rest == half && kept & 1 == 1 && drop > 0)) as u128;
    let exponent = scale + drop as i64;
    // Two exact steps: each power of two is a float of its own.
    let half_way = (exponent / 2) as i32;
    let x = rounded as f64 * 2f64.powi(half_way) * 2f64.powi(exponent as i32 - half_way);
    if x.is_infinite() {
        return Err(too_large());
    }
    Ok(if negative { -x } else { x })
}

/// `a // b` and `a % b` with Python's signs.
pub fn floor_divide(a: &Number, b: &Number) -> Res<(Value, Value)> {
    if a.is_float() || b.is_float() {
        let (x, y) = (a.to_float()?, b.to_float()?);
        if y == 0.0 {
            return Err(fail("float floor division by zero"));
        }
        let (quotient, rest) = float_divmod(x, y);
        return Ok((Value::Float(quotient), Value::Float(rest)));
    }
    if b.is_zero() {
        return Err(fail("integer division or modulo by zero"));
    }
    if let (Number::Int(x), Number::Int(y)) = (a, b)
        && let (Some(q), Some(r)) = (x.checked_div(*y), x.checked_rem(*y))
    {
        let down = r != 0 && (r < 0) != (*y < 0);
        return Ok((Value::Int(q - down as i64), Value::Int(if down { r + y } else { r })));
    }
    let (x, y) = (a.big(), b.big());
    let (mut q, mut r) = (&x / &y, &x % &y);
    if r.sign() != Sign::NoSign && (r.sign() == Sign::Minus) != (y.sign() == Sign::Minus) {
        q -= 1;
        r += y;
    }
    Ok((int(q), int(r)))
}

fn float_divmod(x: f64, y: f64) -> (f64, f64) {
    let mut rest = x % y;
    let mut quotient = (x - rest) / y;
    if rest != 0.0 {
        if (y < 0.0) != (rest < 0.0) {
            rest += y;
            quotient -= 1.0;
        }
    } else {
        rest = 0f64.copysign(y);
    }
    if quotient != 0.0 {
        let floor = quotient.floor();
        quotient = if quotient - floor > 0.5 { floor + 1.0 } else { floor };
    } else {
        quotient = 0f64.copysign(x / y);
    }
    (quotient, rest)
}

pub fn power(a: &Number, b: &Number) -> Res<Value> {
    if a.is_float() || b.is_float() {
        return float_power(a.to_float()?, b.to_float()?).map(Value::Float);
    }
    let Number::Int(exponent) = b else {
        return match a {
            Number::Int(0) | Number::Int(1) | Number::Int(-1) if b.big().sign() == Sign::Plus => {
                let odd = b.big().bit(0);
                Ok(if let (Number::Int(-1), false) = (a, odd) { Value::Int(1) } else { int(a.big()) })
            }
            _ => Err(fail("the exponent is more than a template may raise to")),
        };
    };
    if *exponent < 0 {
        return float_power(a.to_float()?, *exponent as f64).map(Value::Float);
    }
    let base = a.big();
    if base.bits() > 1 && base.bits().saturating_mul(*exponent as u64) > MAX_BITS {
        return Err(fail(format!("an integer above 2**{MAX_BITS} is more than a template may make")));
    }
    if base.bits() <= 1 {
        // -1, 0 or 1, whose powers need no multiplication.
        let n =
            if *exponent == 0 || (base.sign() == Sign::Minus && exponent % 2 == 0) { BigInt::from(1) } else { base };
        return Ok(int(n));
    }
    Ok(int(base.pow(*exponent as u32)))
}

fn float_power(x: f64, y: f64) -> Res<f64> {
    if x == 0.0 && y < 0.0 {
        return Err(fail("0.0 cannot be raised to a negative power"));
    }
    if x < 0.0 && x.is_finite() && y.is_finite() && y.fract() != 0.0 {
        return Err(fail("a negative number to a broken power is complex, and complex numbers are not supported here"));
    }
    let power = x.powf(y);
    if power.is_infinite() && x.is_finite() && y.is_finite() {
        return Err(fail("(34, 'Numerical result out of range')"));
    }
    Ok(power)
}

pub fn negate(a: &Number) -> Value {
    match a {
        Number::Int(n) => n.checked_neg().map_or_else(|| int(-BigInt::from(*n)), Value::Int),
        Number::Big(n) => int(-(**n).clone()),
        Number::Float(x) => Value::Float(-x),
    }
}

pub fn absolute(a: &Number) -> Value {
    match a {
        Number::Int(n) if *n >= 0 => Value::Int(*n),
        Number::Big(n) if n.sign() == Sign::Plus => Value::Big(n.clone()),
        Number::Float(x) => Value::Float(x.abs()),
        negative => negate(negative),
    }
}

/// Compares exactly, floats against integers too. None: one of them is not a number.
pub fn compare(a: &Number, b: &Number) -> Option<Ordering> {
    match (a, b) {
        (Number::Int(a), Number::Int(b)) => Some(a.cmp(b)),
        (Number::Float(a), Number::Float(b)) => a.partial_cmp(b),
        (Number::Float(x), n) => compare_float(*x, n),
        (n, Number::Float(x)) => compare_float(*x, n).map(Ordering::reverse),
        _ => Some(a.big().cmp(&b.big())),
    }
}

fn compare_float(x: f64, n: &Number) -> Option<Ordering> {
    if x.is_nan() {
        return None;
    }
    if x.is_infinite() {
        return Some(if x > 0.0 { Ordering::Greater } else { Ordering::Less });
    }
    let whole = floor(x);
    Some(whole.cmp(&n.big()).then(if x.fract() == 0.0 { Ordering::Equal } else { Ordering::Greater }))
}

/// The greatest integer not above a finite float.
pub fn floor(x: f64) -> BigInt {
    truncate(x.floor())
}

/// A finite float without its fraction.
pub fn truncate(x: f64) -> BigInt {
    let x = x.trunc();
    if x.abs() < 9e18 {
        return BigInt::from(x as i64);
    }
    // A finite float above 2**53 is a whole number, and its bits say which.
    let bits = x.abs().to_bits();
    let mantissa = BigInt::from((bits & ((1 << 52) - 1)) | (1 << 52));
    let n = mantissa << ((bits >> 52) as usize - 1075);
    if x < 0.0 { -n } else { n }
}

/// Python's `repr` of a float: the shortest digits that read back the same, with an exponent below
/// 1e-4 and from 1e16 on.
pub fn float_repr(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    let scientific = format!("{x:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific }; // inf, -inf
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{x}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
}

/// An integer's digits. Error: more than Python writes.
pub fn big_text(n: &BigInt) -> Res<String> {
    // Four bits are more than a digit, so that an integer far too long is not written first.
    let too_long = || fail(format!("Exceeds the limit ({MAX_DIGITS} digits) for integer string conversion"));
    if n.bits() > 4 * MAX_DIGITS as u64 {
        return Err(too_long());
    }
    let text = n.to_string();
    if text.trim_start_matches('-').len() > MAX_DIGITS {
        return Err(too_long());
    }
    Ok(text)
}

/// Digits with underscores between them, as Python allows; None where they stand elsewhere.
fn without_underscores(digits: &str) -> Option<String> {
    if digits.starts_with('_') || digits.ends_with('_') || digits.contains("__") {
        return None;
    }
    Some(digits.replace('_', ""))
}

/// The text without the space around it, digits of other scripts as ASCII's.
fn plain_digits(text: &str) -> String {
    let text = super::strings::strip(text, None);
    if text.is_ascii() {
        return text.to_string();
    }
    let ascii = |c| super::strings::decimal(c).and_then(|digit| char::from_digit(digit, 10)).unwrap_or(c);
    text.chars().map(ascii).collect()
}

/// `int(text, base)`; None where Python raises.
pub fn parse_int(text: &str, base: u32) -> Option<Value> {
    let text = plain_digits(text);
    let text = text.as_str();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let mut base = base;
    let mut digits = lower.as_str();
    for (prefix, of) in [("0x", 16), ("0o", 8), ("0b", 2)] {
        if let Some(rest) = digits.strip_prefix(prefix)
            && (base == of || base == 0)
        {
            digits = rest.strip_prefix('_').unwrap_or(rest);
            base = of;
            break;
        }
    }
    if base == 0 {
        // A leading zero would be an octal number of old.
        if digits.starts_with('0') && digits.bytes().any(|c| c != b'0' && c != b'_') {
            return None;
        }
        base = 10;
    }
    let digits = without_underscores(digits)?;
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(base)) {
        return None;
    }
    if !base.is_power_of_two() && digits.len() > MAX_DIGITS {
        return None;
    }
    let n = BigInt::parse_bytes(digits.as_bytes(), base)?;
    Some(int(if negative { -n } else { n }))
}

/// `float(text)`; None where Python raises.
pub fn parse_float(text: &str) -> Option<f64> {
    let text = plain_digits(text).to_ascii_lowercase();
    let unsigned = text.trim_start_matches(['+', '-']);
    if text.len() - unsigned.len() > 1 {
        return None;
    }
    if matches!(unsigned, "inf" | "infinity" | "nan") {
        let x = if unsigned == "nan" { f64::NAN } else { f64::INFINITY };
        return Some(if text.starts_with('-') { -x } else { x });
    }
    // An underscore stands only between digits.
    let bytes = text.as_bytes();
    let between = |n: usize| n > 0 && bytes[n - 1].is_ascii_digit() && bytes.get(n + 1).is_some_and(u8::is_ascii_digit);
    if (0..bytes.len()).any(|n| bytes[n] == b'_' && !between(n)) {
        return None;
    }
    if !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    text.replace('_', "").parse().ok()
}

/// `round(x, digits)` of a float, correctly rounded, ties to even.
pub fn round_float(x: f64, digits: i64) -> Res<f64> {
    if !x.is_finite() || x == 0.0 || digits > 323 {
        return Ok(x);
    }
    if digits < -308 {
        return Ok(0f64.copysign(x));
    }
    let rounded: f64 = if digits >= 0 {
        format!("{x:.*}", digits as usize).parse().unwrap_or(x)
    } else {
        let scientific = format!("{x:e}");
        let exponent: i64 = scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
        match exponent + digits {
            kept if kept >= 0 => format!("{x:.*e}", kept as usize).parse().unwrap_or(x),
            -1 => {
                let half: f64 = format!("5e{exponent}").parse().unwrap_or(f64::INFINITY);
                let unit: f64 = format!("1e{}", exponent + 1).parse().unwrap_or(f64::INFINITY);
                if x.abs() > half { unit.copysign(x) } else { 0f64.copysign(x) }
            }
            _ => 0f64.copysign(x),
        }
    };
    if rounded.is_infinite() {
        return Err(fail("rounded value too large to represent"));
    }
    Ok(rounded)
}

/// `round(n, digits)` of an integer: ties to even.
pub fn round_int(n: &Number, digits: i64) -> Value {
    if digits >= 0 {
        return int(n.big());
    }
    let n = n.big();
    if (digits.unsigned_abs()).saturating_mul(3) > n.bits() + 4 {
        return Value::Int(0);
    }
    let unit = BigInt::from(10).pow(digits.unsigned_abs() as u32);
    let (_, rest) = match floor_divide(&Number::Big(Rc::new(n.clone())), &Number::Big(Rc::new(unit.clone()))) {
        Ok((q, r)) => (q, Number::of(&r).map_or(BigInt::ZERO, |r| r.big())),
        Err(_) => return int(n), // the unit is never zero
    };
    let down = &n - &rest;
    let up = &down + &unit;
    let twice = &rest * 2;
    let odd = (&down / &unit).bit(0);
    int(if twice > unit || (twice == unit && odd) { up } else { down })
}
