//! Python's strings: what counts as white space, a digit or a letter, and how they are cut.
//!
//! Where Python asks for Unicode's tables, Rust's are used; they may be of another year.
#![forbid(unsafe_code)]

use super::value::Text;

/// `str.isspace` of one character.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn chars_of(chars: Option<&str>) -> impl Fn(char) -> bool + '_ {
    move |c| chars.map_or_else(|| is_space(c), |chars| chars.contains(c))
}

pub fn strip_start<'s>(text: &'s str, chars: Option<&str>) -> &'s str {
    text.trim_start_matches(chars_of(chars))
}

pub fn strip_end<'s>(text: &'s str, chars: Option<&str>) -> &'s str {
    text.trim_end_matches(chars_of(chars))
}

pub fn strip<'s>(text: &'s str, chars: Option<&str>) -> &'s str {
    strip_end(strip_start(text, chars), chars)
}

/// Whether a character ends a line for Python's `splitlines`.
pub fn ends_line(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// `str.splitlines`.
pub fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut start = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((n, c)) = chars.next() {
        if !ends_line(c) {
            continue;
        }
        let mut end = n + c.len_utf8();
        if c == '\r' && chars.next_if(|&(_, c)| c == '\n').is_some() {
            end += 1;
        }
        lines.push(&text[start..if keep_ends { end } else { n }]);
        start = end;
    }
    if start < text.len() {
        lines.push(&text[start..]);
    }
    lines
}

/// `str.split(separator, most)`; `most` below zero is without bound. The separator is not empty.
pub fn split<'s>(text: &'s str, separator: Option<&str>, most: i64) -> Vec<&'s str> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    if let Some(separator) = separator {
        return text.splitn(most.saturating_add(1), separator).collect();
    }
    let mut parts = Vec::new();
    let mut rest = strip_start(text, None);
    while !rest.is_empty() {
        if parts.len() == most {
            parts.push(rest);
            break;
        }
        let end = rest.find(is_space).unwrap_or(rest.len());
        parts.push(&rest[..end]);
        rest = strip_start(&rest[end..], None);
    }
    parts
}

/// `str.rsplit(separator, most)`.
pub fn split_from_end<'s>(text: &'s str, separator: Option<&str>, most: i64) -> Vec<&'s str> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let mut parts = Vec::new();
    if let Some(separator) = separator {
        parts.extend(text.rsplitn(most.saturating_add(1), separator));
    } else {
        let mut rest = strip_end(text, None);
        while !rest.is_empty() {
            if parts.len() == most {
                parts.push(rest);
                break;
            }
            let start = rest.char_indices().rev().find(|&(_, c)| is_space(c)).map_or(0, |(n, c)| n + c.len_utf8());
            parts.push(&rest[start..]);
            rest = strip_end(&rest[..start], None);
        }
    }
    parts.reverse();
    parts
}

/// The byte at which a character begins; the length for a number beyond.
pub fn byte_of(text: &Text, n: usize) -> usize {
    if text.is_ascii() {
        return n.min(text.text.len());
    }
    text.text.char_indices().nth(n).map_or(text.text.len(), |(byte, _)| byte)
}

/// How many characters stand before a byte.
pub fn char_of(text: &Text, byte: usize) -> usize {
    if text.is_ascii() { byte } else { text.text[..byte].chars().count() }
}

/// The characters from `start` to `end`, which are in order.
pub fn between(text: &Text, start: usize, end: usize) -> &str {
    let from = byte_of(text, start);
    let to = if end >= text.chars { text.text.len() } else { byte_of(text, end) };
    &text.text[from..to.max(from)]
}

/// A character's title case: of the letters that are two in one, only the first is large.
pub fn title_char(c: char) -> String {
    match c {
        'Ǆ' | 'ǅ' | 'ǆ' => "ǅ".into(),
        'Ǉ' | 'ǈ' | 'ǉ' => "ǈ".into(),
        'Ǌ' | 'ǋ' | 'ǌ' => "ǋ".into(),
        'Ǳ' | 'ǲ' | 'ǳ' => "ǲ".into(),
        '\u{10d0}'..='\u{10fa}' | '\u{10fd}'..='\u{10ff}' => c.into(),
        '\u{1f80}'..='\u{1faf}' => char::from_u32(c as u32 | 8).unwrap_or(c).into(),
        '\u{1fb3}' | '\u{1fc3}' | '\u{1ff3}' => char::from_u32(c as u32 + 9).unwrap_or(c).into(),
        'ŉ' => "ʼN".into(),
        _ => {
            let upper: Vec<char> = c.to_uppercase().collect();
            match upper[..] {
                [first, ref rest @ ..] if c.is_lowercase() && rest.iter().all(|c| c.is_alphabetic()) => {
                    std::iter::once(first).chain(rest.iter().flat_map(|c| c.to_lowercase())).collect()
                }
                _ => upper.into_iter().collect(),
            }
        }
    }
}

fn is_title(c: char) -> bool {
    matches!(c, 'ǅ' | 'ǈ' | 'ǋ' | 'ǲ')
        || matches!(c as u32, 0x1f88..=0x1f8f | 0x1f98..=0x1f9f | 0x1fa8..=0x1faf | 0x1fbc | 0x1fcc | 0x1ffc)
}

/// Whether a character has a case.
fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase() || is_title(c)
}

/// `str.capitalize`.
pub fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        None => String::new(),
        // The rest is lowered within the whole, where a final sigma is seen.
        Some(first) => {
            let lower = text.to_lowercase();
            let skip: usize = first.to_lowercase().map(char::len_utf8).sum();
            title_char(first) + lower.get(skip..).unwrap_or_default()
        }
    }
}

/// `str.title`.
pub fn title(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut within = false;
    for c in text.chars() {
        if within {
            result.extend(c.to_lowercase());
        } else {
            result += &title_char(c);
        }
        within = is_cased(c);
    }
    result
}

pub fn swap_case(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_uppercase() {
            result.extend(c.to_lowercase());
        } else if c.is_lowercase() {
            result.extend(c.to_uppercase());
        } else {
            result.push(c);
        }
    }
    result
}

pub fn fold_case(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            'ß' | 'ẞ' => result += "ss",
            'ς' => result.push('σ'),
            'ŉ' => result += "ʼn",
            'µ' => result.push('μ'),
            'ſ' => result.push('s'),
            c => result.extend(c.to_lowercase()),
        }
    }
    result
}

pub fn is_lower(text: &str) -> bool {
    text.chars().any(|c| c.is_lowercase()) && !text.chars().any(|c| c.is_uppercase() || is_title(c))
}

pub fn is_upper(text: &str) -> bool {
    text.chars().any(|c| c.is_uppercase()) && !text.chars().any(|c| c.is_lowercase() || is_title(c))
}

/// `str.istitle`.
pub fn is_title_case(text: &str) -> bool {
    let mut within = false;
    let mut any = false;
    for c in text.chars() {
        if c.is_uppercase() || is_title(c) {
            if within {
                return false;
            }
            (within, any) = (true, true);
        } else if c.is_lowercase() {
            if !within {
                return false;
            }
        } else {
            within = false;
        }
    }
    any
}

/// Where Unicode's runs of ten decimal digits begin.
const ZEROS: [u32; 66] = [
    0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6, 0xe50, 0xed0,
    0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620,
    0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10, 0x104a0, 0x10d30, 0x11066, 0x110f0, 0x11136, 0x111d0,
    0x112f0, 0x11450, 0x114d0, 0x11650, 0x116c0, 0x11730, 0x118e0, 0x11950, 0x11c50, 0x11d50, 0x11da0, 0x16a60,
    0x16ac0, 0x16b50, 0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec, 0x1d7f6, 0x1e140, 0x1e2f0, 0x1e950, 0x1fbf0,
];

/// The digits that are not decimal: superscripts, circled ones and their like.
const OTHER_DIGITS: [(u32, u32); 20] = [
    (0xb2, 0xb3),
    (0xb9, 0xb9),
    (0x1369, 0x1371),
    (0x19da, 0x19da),
    (0x2070, 0x2070),
    (0x2074, 0x2079),
    (0x2080, 0x2089),
    (0x2460, 0x2468),
    (0x2474, 0x247c),
    (0x2488, 0x2490),
    (0x24ea, 0x24ea),
    (0x24f5, 0x24fd),
    (0x24ff, 0x24ff),
    (0x2776, 0x277e),
    (0x2780, 0x2788),
    (0x278a, 0x2792),
    (0x10a40, 0x10a43),
    (0x10e60, 0x10e68),
    (0x11052, 0x1105a),
    (0x1f100, 0x1f10a),
];

/// What a decimal digit counts.
pub fn decimal(c: char) -> Option<u32> {
    if c.is_ascii() {
        return c.to_digit(10);
    }
    let n = ZEROS.partition_point(|&zero| zero <= c as u32);
    ZEROS.get(n.checked_sub(1)?).map(|zero| c as u32 - zero).filter(|&digit| digit < 10)
}

pub fn is_digit(c: char) -> bool {
    decimal(c).is_some() || OTHER_DIGITS.iter().any(|&(from, to)| (from..=to).contains(&(c as u32)))
}

/// Whether Python prints the character as it is in a `repr`.
pub fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return (' '..='~').contains(&c);
    }
    // Rust escapes the same kinds of character: other, separators but the space, unassigned. Behind a
    // letter, marks are not escaped for what they join.
    let mut buffer = String::from("a");
    buffer.push(c);
    buffer.escape_debug().nth(1) != Some('\\')
}
