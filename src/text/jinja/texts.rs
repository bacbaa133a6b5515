//! The filters on text.
#![forbid(unsafe_code)]

use std::rc::Rc;

use super::args::{Args, integer, integer_or};
use super::dict::Dict;
use super::eval::Machine;
use super::strings::{self, between};
use super::value::{Text, Value};
use super::{Failure, fail, markup, methods, percent, repr};

type Res<T> = Result<T, Failure>;

/// `soft_str(value)`: a string stays the string it is.
fn soft(machine: &mut Machine<'_>, value: &Value) -> Res<Text> {
    match value {
        Value::Str(text) => Ok(text.clone()),
        other => repr::text(other, &mut machine.meter),
    }
}

/// Applies one of this module's filters.
pub fn apply(machine: &mut Machine<'_>, name: &str, value: &Value, args: Args) -> Res<Value> {
    match name {
        "lower" | "upper" | "capitalize" => {
            args.bind::<0>(name, [], 0)?;
            let text = Value::Str(soft(machine, value)?);
            let method = match name {
                "lower" => "lower",
                "upper" => "upper",
                _ => "capitalize",
            };
            methods::call(machine, &text, method, Args::default())
        }
        "title" => {
            args.bind::<0>(name, [], 0)?;
            let text = soft(machine, value)?;
            machine.meter.take(text.text.len())?;
            Ok(Value::str(title(&text.text)))
        }
        "trim" => {
            let [chars] = args.bind(name, ["chars"], 0)?;
            let text = Value::Str(soft(machine, value)?);
            let positional = chars.into_iter().collect();
            methods::call(machine, &text, "strip", Args { positional, named: Vec::new() })
        }
        "center" => {
            let [width] = args.bind(name, ["width"], 0)?;
            let text = soft(machine, value)?;
            let width = integer_or(name, &width, 80)?;
            methods::pad(machine, &text, width, " ", "center")
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"], 2)?;
            let text = repr::text(value, &mut machine.meter)?;
            let old = repr::text(&old.unwrap_or(Value::None), &mut machine.meter)?;
            let new = repr::text(&new.unwrap_or(Value::None), &mut machine.meter)?;
            let count = match &count {
                None | Some(Value::None) => -1,
                Some(count) => integer(name, count)?,
            };
            methods::replace(machine, &text, &old.text, &new.text, count)
        }
        "format" => {
            let text = soft(machine, value)?;
            if args.named.is_empty() {
                return percent::percent(&text, &Value::tuple(args.positional)?, &mut machine.meter);
            }
            if !args.positional.is_empty() {
                return Err(fail("can't handle positional and keyword arguments at the same time"));
            }
            let mut dict = Dict::default();
            for (name, value) in args.named {
                dict.insert(Value::str(name), value, &mut machine.meter)?;
            }
            percent::percent(&text, &Value::Dict(Rc::new(dict)), &mut machine.meter)
        }
        "indent" => indent(machine, value, args),
        "truncate" => truncate(machine, value, args),
        "wordwrap" => word_wrap(machine, value, args),
        "wordcount" => {
            args.bind::<0>(name, [], 0)?;
            let text = soft(machine, value)?;
            machine.meter.step(text.text.len() as u64 / 16)?;
            let words = text.text.split(|c: char| !is_word(c)).filter(|word| !word.is_empty());
            Ok(Value::from(words.count()))
        }
        "urlencode" => url_encode(machine, value, args),
        "xmlattr" => xml_attributes(machine, value, args),
        _ => pretty(machine, value, args),
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// jinja2's own title case: words begin after spaces, hyphens and opening brackets.
fn title(text: &str) -> String {
    let begins = |c: char| strings::is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let marks = rest.find(|c| !begins(c)).unwrap_or(rest.len());
        out.push_str(&rest[..marks]);
        rest = &rest[marks..];
        let end = rest.find(begins).unwrap_or(rest.len());
        let mut word = rest[..end].chars();
        if let Some(first) = word.next() {
            out.extend(first.to_uppercase());
            out.push_str(&word.as_str().to_lowercase());
        }
        rest = &rest[end..];
    }
    out
}

fn indent(machine: &mut Machine<'_>, value: &Value, args: Args) -> Res<Value> {
    let [width, first, blank] = args.bind("indent", ["width", "first", "blank"], 0)?;
    let text = match value {
        Value::Str(text) => text,
        Value::Undefined(undefined) => return Err(fail(undefined.message())),
        other => return Err(fail(format!("indent: wanted a str, not {}", other.kind()))),
    };
    let indention = match &width {
        None => "    ".to_string(),
        Some(Value::Str(text)) => text.text.to_string(),
        Some(width) => {
            let width = usize::try_from(integer("indent", width)?).unwrap_or(0);
            machine.meter.take(width)?;
            " ".repeat(width)
        }
    };
    let truth = |value: Option<Value>| value.is_some_and(|value| value.truth());
    let (first, blank) = (truth(first), truth(blank));
    let count = text.text.matches(strings::ends_line).count() + 1;
    machine.meter.elements(count)?;
    machine.meter.take(count.saturating_mul(indention.len()).saturating_add(2 * text.text.len()))?;
    let source = format!("{}\n", text.text);
    let lines = strings::lines(&source, false);
    let mut out = String::new();
    for (n, line) in lines.iter().enumerate() {
        if n > 0 {
            out.push('\n');
        }
        if if n == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&indention);
        }
        out.push_str(line);
    }
    Ok(Value::like(text, out))
}

fn truncate(machine: &mut Machine<'_>, value: &Value, args: Args) -> Res<Value> {
    let [length, kill, end, leeway] = args.bind("truncate", ["length", "killwords", "end", "leeway"], 0)?;
    let length = integer_or("truncate", &length, 255)?;
    let end = match end {
        None => Text::new("..."),
        Some(Value::Str(text)) => text,
        Some(other) => return Err(fail(format!("truncate: wanted a str for end, not {}", other.kind()))),
    };
    let leeway = match &leeway {
        None | Some(Value::None) => 5,
        Some(leeway) => integer("truncate", leeway)?,
    };
    let wanted = end.chars as i64;
    if length < wanted {
        return Err(fail(format!("expected length >= {wanted}, got {length}")));
    }
    if leeway < 0 {
        return Err(fail(format!("expected leeway >= 0, got {leeway}")));
    }
    if machine.length(value)? as i64 <= length.saturating_add(leeway) {
        return Ok(value.clone());
    }
    let Value::Str(text) = value else { return Err(fail(format!("truncate: wanted a str, not {}", value.kind()))) };
    machine.meter.take(text.text.len() + end.text.len())?;
    let mut kept = between(text, 0, (length - wanted) as usize);
    if !kill.is_some_and(|kill| kill.truth()) {
        kept = kept.rsplit_once(' ').map_or(kept, |(before, _)| before);
    }
    Ok(Value::like(text, format!("{kept}{}", end.text)))
}

fn url_encode(machine: &mut Machine<'_>, value: &Value, args: Args) -> Res<Value> {
    args.bind::<0>("urlencode", [], 0)?;
    let pairs = match value {
        Value::Dict(dict) => {
            machine.meter.elements(2 * dict.len())?;
            dict.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
        }
        Value::List(_) | Value::Tuple(_) | Value::Range(_) | Value::View(..) | Value::Iter(_) | Value::Undefined(_) => {
            let mut pairs = Vec::new();
            for pair in machine.collect(value)? {
                let pair = machine.collect(&pair)?;
                let [key, value] = &pair[..] else { return Err(fail("urlencode: wanted pairs of key and value")) };
                pairs.push((key.clone(), value.clone()));
            }
            pairs
        }
        single => {
            let text = repr::text(single, &mut machine.meter)?;
            return quote(machine, &text.text, false).map(Value::str);
        }
    };
    let mut parts = Vec::new();
    for (key, value) in pairs {
        let key = repr::text(&key, &mut machine.meter)?;
        let value = repr::text(&value, &mut machine.meter)?;
        parts.push(format!("{}={}", quote(machine, &key.text, true)?, quote(machine, &value.text, true)?));
    }
    Ok(Value::str(parts.join("&")))
}

fn quote(machine: &mut Machine<'_>, text: &str, for_query: bool) -> Res<String> {
    machine.meter.take(3 * text.len())?;
    let mut out = String::with_capacity(text.len());
    for c in text.bytes() {
        match c {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => out.push(c as char),
            b'/' if !for_query => out.push('/'),
            b' ' if for_query => out.push('+'),
            c => out += &format!("%{c:02X}"),
        }
    }
    Ok(out)
}

fn xml_attributes(machine: &mut Machine<'_>, value: &Value, args: Args) -> Res<Value> {
    let [autospace] = args.bind("xmlattr", ["autospace"], 0)?;
    let dict = match value {
        Value::Dict(dict) => dict,
        Value::Undefined(undefined) => return Err(fail(undefined.message())),
        other => return Err(fail(format!("'{}' object has no attribute 'items'", other.kind()))),
    };
    let mut parts = Vec::new();
    for (key, value) in dict.iter() {
        if matches!(value, Value::None | Value::Undefined(_)) {
            continue;
        }
        let Value::Str(name) = key else { return Err(fail("xmlattr: the keys must be strings")) };
        if name.text.contains([' ', '\t', '\n', '\r', '\u{b}', '\u{c}', '/', '>', '=']) {
            return Err(fail(format!("Invalid character in attribute name: {}", repr::quoted(&name.text))));
        }
        let name = markup::escape_text(name, &mut machine.meter)?;
        let value = markup::escape(value, &mut machine.meter)?;
        parts.push(format!("{}=\"{}\"", name.text, value.text));
    }
    let mut text = parts.join(" ");
    if autospace.is_none_or(|autospace| autospace.truth()) && !text.is_empty() {
        text.insert(0, ' ');
    }
    Ok(Value::str(text))
}

/// `pprint`, where it is `repr`.
fn pretty(machine: &mut Machine<'_>, value: &Value, args: Args) -> Res<Value> {
    args.bind::<0>("pprint", [], 0)?;
    let simple = |value: &Value| !matches!(value, Value::Dict(dict) if dict.len() > 1);
    let flat = match value {
        Value::List(list) | Value::Tuple(list) => {
            list.items.iter().all(|item| repr::plain(item).is_some() || matches!(item, Value::Big(_)))
        }
        Value::Dict(dict) => dict.len() <= 1 && dict.iter().all(|(_, item)| repr::plain(item).is_some()),
        other => simple(other),
    };
    let mut text = String::new();
    repr::repr(value, &mut text, &mut machine.meter)?;
    if !flat || text.chars().count() > 79 {
        return Err(fail(
            "the filter pprint is not supported in chat templates for what does not stay on one line; use tojson",
        ));
    }
    Ok(Value::str(text))
}

fn word_wrap(machine: &mut Machine<'_>, value: &Value, args: Args) -> Res<Value> {
    let [width, long, wrap, hyphens] =
        args.bind("wordwrap", ["width", "break_long_words", "wrapstring", "break_on_hyphens"], 0)?;
    let text = match value {
        Value::Str(text) => text,
        Value::Undefined(undefined) => return Err(fail(undefined.message())),
        other => return Err(fail(format!("'{}' object has no attribute 'splitlines'", other.kind()))),
    };
    let width = integer_or("wordwrap", &width, 79)?;
    let with = match wrap {
        None | Some(Value::None) => "\n".to_string(),
        Some(Value::Str(text)) => text.text.to_string(),
        Some(other) => return Err(fail(format!("wordwrap: wanted a str for wrapstring, not {}", other.kind()))),
    };
    let is_on = |value: Option<Value>| value.is_none_or(|value| value.truth());
    let (long, hyphens) = (is_on(long), is_on(hyphens));
    machine.meter.step(4 * text.chars as u64)?;
    machine.meter.take(text.text.len().saturating_mul(8))?;
    let mut out = Vec::new();
    for line in strings::lines(&text.text, false) {
        if width <= 0 {
            return Err(fail(format!("invalid width {width} (must be > 0)")));
        }
        let lines = wrapped(line, width as usize, long, hyphens);
        machine.meter.elements(lines.len())?;
        machine.meter.take(lines.len().saturating_mul(with.len()))?;
        out.push(lines.join(&with));
    }
    machine.meter.take(out.len().saturating_mul(with.len()).saturating_add(text.text.len()))?;
    Ok(Value::str(out.join(&with)))
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{b}' | '\u{c}')
}

/// The pieces between which a line may be broken, as Python's textwrap finds them.
fn chunks(chars: &[char], hyphens: bool) -> Vec<&[char]> {
    let at = |n: usize| chars.get(n).copied();
    let is_letter = |c: Option<char>| c.is_some_and(|c| is_word(c) && strings::decimal(c).is_none());
    let joins = |c: Option<char>| c.is_some_and(|c| is_word(c) || "!\"'&.,?".contains(c));
    // Two hyphens or more that a word follows.
    let dash = |n: usize| {
        let length = chars[n..].iter().take_while(|c| **c == '-').count();
        (length >= 2 && at(n + length).is_some_and(is_word)).then_some(length)
    };
    let mut chunks = Vec::new();
    let mut start = 0;
    while start < chars.len() {
        let blank = is_blank(chars[start]);
        let mut end = start + 1;
        if blank || !hyphens {
            while end < chars.len() && is_blank(chars[end]) == blank {
                end += 1;
            }
        } else if let (true, Some(length)) = (start > 0 && joins(at(start - 1)), dash(start)) {
            end = start + length;
        } else {
            while end < chars.len() && !is_blank(chars[end]) {
                let before = |n: usize| end.checked_sub(n).and_then(at);
                let word =
                    is_letter(before(1)) && (is_letter(before(2)) || before(2) == Some('-') && is_letter(before(3)));
                let next = if at(end + 2) == Some('-') { at(end + 3) } else { at(end + 2) };
                if chars[end] == '-' && word && is_letter(at(end + 1)) && is_letter(next) {
                    end += 1;
                    break;
                }
                if joins(before(1)) && dash(end).is_some() {
                    break;
                }
                end += 1;
            }
        }
        chunks.push(&chars[start..end]);
        start = end;
    }
    chunks
}

/// `textwrap.wrap(line, ...)`.
fn wrapped(line: &str, width: usize, long: bool, hyphens: bool) -> Vec<String> {
    let chars: Vec<char> = line.chars().collect();
    let mut left = chunks(&chars, hyphens);
    left.reverse();
    let mut lines: Vec<String> = Vec::new();
    let blank = |chunk: &[char]| chunk.iter().all(|&c| strings::is_space(c));
    while !left.is_empty() {
        let mut current: Vec<&[char]> = Vec::new();
        let mut length = 0;
        if !lines.is_empty() && left.last().is_some_and(|chunk| blank(chunk)) {
            left.pop();
        }
        while let Some(chunk) = left.pop_if(|chunk| length + chunk.len() <= width) {
            length += chunk.len();
            current.push(chunk);
        }
        if let Some(chunk) = left.pop_if(|chunk| chunk.len() > width) {
            if long {
                let mut end = width - length;
                if hyphens && chunk.len() > end {
                    let hyphen = chunk[..end].iter().rposition(|&c| c == '-').filter(|&n| n > 0);
                    if let Some(hyphen) = hyphen.filter(|&n| chunk[..n].iter().any(|&c| c != '-')) {
                        end = hyphen + 1;
                    }
                }
                let (first, rest) = chunk.split_at(end);
                current.push(first);
                left.push(rest);
            } else if current.is_empty() {
                current.push(chunk);
            } else {
                left.push(chunk);
            }
        }
        if current.last().is_some_and(|chunk| blank(chunk)) {
            current.pop();
        }
        if !current.is_empty() {
            lines.push(current.into_iter().flatten().collect());
        }
    }
    lines
}
