//! markupsafe: `escape`, and what `striptags` leaves.
#![forbid(unsafe_code)]

use super::value::{Text, Value};
use super::{Failure, Meter, fail, repr, strings};

type Res<T> = Result<T, Failure>;

fn replaced(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    out
}

/// Escapes a string unless it is Markup already.
pub fn escape_text(text: &Text, meter: &mut Meter) -> Res<Text> {
    if text.markup {
        return Ok(text.clone());
    }
    forced(&text.text, meter)
}

/// Escapes a string whatever it is.
pub fn forced(text: &str, meter: &mut Meter) -> Res<Text> {
    meter.take(text.len())?;
    let escaped = replaced(text);
    meter.take(escaped.len() - text.len())?;
    Ok(Text { markup: true, ..Text::new(escaped) })
}

/// `escape(value)`.
pub fn escape(value: &Value, meter: &mut Meter) -> Res<Text> {
    match value {
        Value::Str(text) => escape_text(text, meter),
        other => forced(&repr::text(other, meter)?.text, meter),
    }
}

/// `Markup(text).striptags()`.
pub fn strip_tags(text: &str, meter: &mut Meter) -> Res<String> {
    meter.take(text.len())?;
    let without = cut(text, "<!--", "-->");
    let without = cut(&without, "<", ">");
    let spaced = strings::split(&without, None, -1).join(" ");
    unescape(&spaced)
}

/// Cuts out what stands between the marks, from the first on, until one is not closed.
fn cut(text: &str, open: &str, close: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    loop {
        // Text on both sides of a cut may make a new mark.
        let joined = (1..open.len()).rev().find(|&n| out.ends_with(&open[..n]) && rest.starts_with(&open[n..]));
        let found = match joined {
            Some(n) => {
                // The closing mark may begin within the opening one.
                let over = (0..n)
                    .find(|&at| format!("{}{}", &open[at..n], rest.get(..2).unwrap_or_default()).starts_with(close));
                let end = over.map(|at| at + close.len() - n).or_else(|| rest.find(close).map(|at| at + close.len()));
                end.map(|end| (out.len() - n, 0, end))
            }
            None => rest.find(open).and_then(|start| {
                let end = rest[start..].find(close)? + start + close.len();
                Some((out.len(), start, end))
            }),
        };
        let Some((keep, start, end)) = found else {
            out.push_str(rest);
            return out;
        };
        out.truncate(keep);
        out.push_str(&rest[..start]);
        rest = &rest[end..];
    }
}

/// HTML's entities back into characters. Error: one that is not known here.
fn unescape(text: &str) -> Res<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(n) = rest.find('&') {
        out.push_str(&rest[..n]);
        rest = &rest[n..];
        let end = rest[1..].find(|c: char| !(c.is_ascii_alphanumeric() || c == '#')).map_or(rest.len(), |n| n + 1);
        let name = &rest[1..end];
        let known = match name {
            "amp" => Some('&'),
            "lt" => Some('<'),
            "gt" => Some('>'),
            "quot" => Some('"'),
            "apos" => Some('\''),
            "nbsp" => Some('\u{a0}'),
            "raquo" => Some('»'),
            "laquo" => Some('«'),
            "copy" => Some('©'),
            name if name.starts_with("#x") || name.starts_with("#X") => code(&name[2..], 16),
            name if name.starts_with('#') => code(&name[1..], 10),
            _ => None,
        };
        match known {
            Some(c) if rest[end..].starts_with(';') => {
                out.push(c);
                rest = &rest[end + 1..];
            }
            _ if name.is_empty() => {
                out.push('&');
                rest = &rest[1..];
            }
            _ => return Err(fail(format!("striptags: the entity &{name} is not supported here"))),
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn code(digits: &str, base: u32) -> Option<char> {
    let code = u32::from_str_radix(digits, base).ok()?;
    // The numbers that HTML reads otherwise are left to the error.
    if code < 0x20 && !matches!(code, 9 | 10) || (0x7f..0xa0).contains(&code) {
        return None;
    }
    char::from_u32(code)
}
