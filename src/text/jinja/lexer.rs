//! Template text into tokens, with jinja2's rules for white space: `trim_blocks`, `lstrip_blocks`, the
//! signs `-` and `+`, line ends of any kind read as `\n`, and one trailing newline dropped.
#![forbid(unsafe_code)]

use std::sync::Arc;

use num_bigint::BigInt;

use super::strings::is_space;
use super::{Failure, fail_at};

type Res<T> = Result<T, Failure>;

#[derive(Clone, Debug, PartialEq)]
pub enum Tok {
    Data(String),
    BlockBegin,
    BlockEnd,
    PrintBegin,
    PrintEnd,
    Name(Arc<str>),
    Str(String),
    Int(BigInt),
    Float(f64),
    Op(&'static str),
    End,
}

impl Tok {
    /// The token as an error message names it.
    pub fn describe(&self) -> String {
        match self {
            Tok::Data(_) => "template data / text".into(),
            Tok::BlockBegin => "begin of statement block".into(),
            Tok::BlockEnd => "end of statement block".into(),
            Tok::PrintBegin => "begin of print statement".into(),
            Tok::PrintEnd => "end of print statement".into(),
            Tok::Name(name) => name.to_string(),
            Tok::Str(_) => "string".into(),
            Tok::Int(_) => "integer".into(),
            Tok::Float(_) => "float".into(),
            Tok::Op(op) => op.to_string(),
            Tok::End => "end of template".into(),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Token {
    pub line: u32,
    pub tok: Tok,
}

const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",", ";",
];

struct Lexer<'s> {
    source: &'s str,
    at: usize,
    line: u32,
    /// Whether the last token ended a line.
    line_starting: bool,
    /// The closing brackets that are due.
    due: Vec<&'static str>,
    tokens: Vec<Token>,
}

/// Cuts a template into tokens; the last is `End`.
pub fn tokens(source: &str) -> Res<Vec<Token>> {
    let normal = normalize(source);
    let normal = normal.strip_suffix('\n').unwrap_or(&normal);
    let mut lexer = Lexer { source: normal, at: 0, line: 1, line_starting: true, due: Vec::new(), tokens: Vec::new() };
    lexer.root()?;
    lexer.push(Tok::End);
    Ok(lexer.tokens)
}

/// Whether a character may stand in a name, behind its first.
fn is_name(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '\u{b7}' | '\u{300}'..='\u{36f}')
}

/// Line ends of any kind as `\n`.
fn normalize(text: &str) -> String {
    if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n") } else { text.to_string() }
}

fn newlines(text: &str) -> u32 {
    text.bytes().filter(|&c| c == b'\n').count() as u32
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    fn push(&mut self, tok: Tok) {
        self.tokens.push(Token { line: self.line, tok });
    }

    fn error<T>(&self, why: impl Into<String>) -> Res<T> {
        Err(fail_at(self.line, why))
    }

    /// Goes on by `n` bytes, which are one token.
    fn advance(&mut self, n: usize) {
        let taken = &self.source[self.at..self.at + n];
        self.line += newlines(taken);
        if !taken.is_empty() {
            self.line_starting = taken.ends_with('\n');
        }
        self.at += n;
    }

    fn spaces(&self, from: usize) -> usize {
        self.source[from..].chars().take_while(|&c| is_space(c)).map(char::len_utf8).sum()
    }

    fn sign(&self, from: usize) -> Option<char> {
        self.source[from..].chars().next().filter(|c| matches!(c, '-' | '+'))
    }

    /// Writes text before a tag, stripped as the tag's sign asks.
    fn data(&mut self, text: &'s str, sign: Option<char>, print: bool) {
        let mut kept = text;
        if sign == Some('-') {
            kept = text.trim_end_matches(is_space);
        } else if sign.is_none() && !print {
            let line = text.rfind('\n').map_or(0, |n| n + 1);
            if (line > 0 || self.line_starting) && text[line..].chars().all(is_space) {
                kept = &text[..line];
            }
        }
        if !kept.is_empty() {
            self.push(Tok::Data(kept.to_string()));
        }
        self.line += newlines(text);
    }

    fn root(&mut self) -> Res<()> {
        loop {
            let rest = self.rest();
            let begins = |n: &usize| matches!(rest.as_bytes().get(n + 1), Some(b'{' | b'%' | b'#'));
            let Some(n) = rest.match_indices('{').map(|(n, _)| n).find(begins) else {
                if !rest.is_empty() {
                    self.push(Tok::Data(rest.to_string()));
                    self.line += newlines(rest);
                }
                return Ok(());
            };
            let tag = self.at + n;
            let sign = self.sign(tag + 2);
            let after = tag + 2 + sign.is_some() as usize;
            let kind = rest.as_bytes()[n + 1];
            let text = &rest[..n];
            if kind == b'%'
                && let Some(end) = self.raw_begin(after)
            {
                self.data(text, sign, false);
                self.at = tag;
                self.advance(end - tag);
                if !self.raw()? {
                    return Ok(());
                }
                continue;
            }
            self.data(text, sign, kind == b'{');
            self.at = tag;
            self.advance(after - tag);
            let goes_on = match kind {
                b'#' => self.comment()?,
                b'{' => {
                    self.push(Tok::PrintBegin);
                    self.code(true)?
                }
                _ => {
                    self.push(Tok::BlockBegin);
                    self.code(false)?
                }
            };
            if !goes_on {
                return Ok(());
            }
        }
    }

    /// Where the tag `raw` ends, if that is what follows.
    fn raw_begin(&self, from: usize) -> Option<usize> {
        let word = from + self.spaces(from);
        let after = word + self.source[word..].strip_prefix("raw").map(|_| 3)?;
        let end = after + self.spaces(after);
        let rest = &self.source[end..];
        if rest.starts_with("-%}") {
            return Some(end + 3 + self.spaces(end + 3));
        }
        rest.starts_with("%}").then_some(end + 2)
    }

    /// The text of a raw block, up to and with its end tag. False: the template ends here.
    fn raw(&mut self) -> Res<bool> {
        if self.rest().is_empty() {
            return Ok(false);
        }
        let start = self.at;
        for (n, _) in self.rest().match_indices("{%") {
            let tag = start + n;
            let sign = self.sign(tag + 2);
            let from = tag + 2 + sign.is_some() as usize;
            let word = from + self.spaces(from);
            if !self.source[word..].starts_with("endraw") {
                continue;
            }
            let end = word + 6 + self.spaces(word + 6);
            if let Some(n) = self.tag_end(end) {
                let text = &self.source[start..tag];
                self.data(text, sign, false);
                self.at = tag;
                self.advance(end + n - tag);
                return Ok(true);
            }
        }
        self.error("Missing end of raw directive")
    }

    /// How long the end of a block tag is, with the white space that it takes along.
    fn tag_end(&self, from: usize) -> Option<usize> {
        let rest = &self.source[from..];
        if rest.starts_with("+%}") {
            Some(3)
        } else if rest.starts_with("-%}") {
            Some(3 + self.spaces(from + 3))
        } else if rest.starts_with("%}\n") {
            Some(3)
        } else {
            rest.starts_with("%}").then_some(2)
        }
    }

    fn comment(&mut self) -> Res<bool> {
        let rest = self.rest();
        if rest.is_empty() {
            return Ok(false);
        }
        let Some(end) = rest.find("#}") else { return self.error("Missing end of comment tag") };
        let after = self.at + end + 2;
        let taken = match rest[..end].chars().next_back() {
            Some('-') => self.spaces(after),
            Some('+') => 0,
            _ => self.source[after..].starts_with('\n') as usize,
        };
        self.advance(end + 2 + taken);
        Ok(true)
    }

    /// The tokens inside a tag, and its end. False: the template ends here.
    fn code(&mut self, print: bool) -> Res<bool> {
        loop {
            let rest = self.rest();
            let Some(c) = rest.chars().next() else { return Ok(false) };
            if self.due.is_empty() {
                let end = match print {
                    true if rest.starts_with("-}}") => Some(3 + self.spaces(self.at + 3)),
                    true => rest.starts_with("}}").then_some(2),
                    false => self.tag_end(self.at),
                };
                if let Some(n) = end {
                    self.push(if print { Tok::PrintEnd } else { Tok::BlockEnd });
                    self.advance(n);
                    return Ok(true);
                }
            }
            if is_space(c) {
                self.advance(self.spaces(self.at));
            } else if c.is_ascii_digit() {
                self.number()?;
            } else if c.is_alphanumeric() || c == '_' {
                let n = rest.chars().take_while(|&c| is_name(c)).map(char::len_utf8).sum();
                self.push(Tok::Name(rest[..n].into()));
                if c.is_numeric() {
                    return self.error("Invalid character in identifier");
                }
                self.advance(n);
            } else if c == '\'' || c == '"' {
                self.string(c)?;
            } else {
                self.operator(c)?;
            }
        }
    }

    fn operator(&mut self, c: char) -> Res<()> {
        let Some(op) = OPERATORS.iter().find(|op| self.rest().starts_with(**op)) else {
            return self.error(format!("unexpected char {}", super::repr::quoted(&c.to_string())));
        };
        match *op {
            "(" => self.due.push(")"),
            "[" => self.due.push("]"),
            "{" => self.due.push("}"),
            ")" | "]" | "}" => match self.due.pop() {
                None => return self.error(format!("unexpected '{op}'")),
                Some(due) if due != *op => return self.error(format!("unexpected '{op}', expected '{due}'")),
                Some(_) => {}
            },
            _ => {}
        }
        self.push(Tok::Op(op));
        self.advance(op.len());
        Ok(())
    }

    /// How many bytes the digits at a place take, single underscores between them included.
    fn digits(&self, from: usize, digit: impl Fn(char) -> bool) -> usize {
        let bytes = &self.source.as_bytes()[from..];
        let is_digit = |n: usize| bytes.get(n).is_some_and(|&c| digit(c as char));
        let mut n = 0;
        while is_digit(n) || (n > 0 && bytes.get(n) == Some(&b'_') && is_digit(n + 1)) {
            n += 1;
        }
        n
    }

    fn number(&mut self) -> Res<()> {
        let at = self.at;
        let decimal = |c: char| c.is_ascii_digit();
        if !self.source[..at].ends_with('.') {
            let mut end = at + self.digits(at, decimal);
            let mut float = false;
            if self.source[end..].starts_with('.') {
                let n = self.digits(end + 1, decimal);
                float = n > 0;
                end += if n > 0 { n + 1 } else { 0 };
            }
            if self.source[end..].starts_with(['e', 'E']) {
                let sign = self.sign(end + 1).is_some() as usize;
                let n = self.digits(end + 1 + sign, decimal);
                float |= n > 0;
                end += if n > 0 { n + 1 + sign } else { 0 };
            }
            if float {
                let text = self.source[at..end].replace('_', "");
                let x: f64 = text.parse().map_err(|_| fail_at(self.line, format!("not a number: {text}")))?;
                if x.is_infinite() {
                    return self.error(format!("the number {text} is infinite, which is not supported here"));
                }
                self.push(Tok::Float(x));
                self.advance(end - at);
                return Ok(());
            }
        }
        let rest = self.rest();
        let prefixed = |prefix: &str| rest.get(..2).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
        for (prefix, base) in [("0b", 2), ("0o", 8), ("0x", 16)] {
            let under = (rest.as_bytes().get(2) == Some(&b'_')) as usize;
            let n = if prefixed(prefix) { self.digits(at + 2 + under, |c| c.is_digit(base)) } else { 0 };
            if n > 0 {
                return self.integer(2 + under, n, base);
            }
        }
        let n = match rest.starts_with('0') {
            true => self.digits(at, |c| c == '0'),
            false => self.digits(at, decimal),
        };
        self.integer(0, n, 10)
    }

    fn integer(&mut self, skip: usize, n: usize, base: u32) -> Res<()> {
        let digits = self.rest()[skip..skip + n].replace('_', "");
        if base == 10 && digits.len() > 4300 {
            return self.error("Exceeds the limit (4300 digits) for integer string conversion");
        }
        let value = BigInt::parse_bytes(digits.as_bytes(), base);
        self.push(Tok::Int(value.ok_or_else(|| fail_at(self.line, "not a number"))?));
        self.advance(skip + n);
        Ok(())
    }

    fn string(&mut self, quote: char) -> Res<()> {
        let mut escaped = false;
        let end = self.rest().char_indices().skip(1).find(|&(_, c)| {
            let found = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            found
        });
        let Some((end, _)) = end else {
            return self.error(format!("unexpected char {}", super::repr::quoted(&quote.to_string())));
        };
        let text = unescape(&self.rest()[1..end]).map_err(|why| fail_at(self.line, why))?;
        self.push(Tok::Str(text));
        self.advance(end + 1);
        Ok(())
    }
}

/// Resolves the escapes of a string literal as Python's codec `unicode_escape` does.
fn unescape(literal: &str) -> Result<String, String> {
    if !literal.contains('\\') {
        return Ok(literal.to_string());
    }
    let mut text = String::with_capacity(literal.len());
    let mut rest = literal;
    while let Some(n) = rest.find('\\') {
        text.push_str(&rest[..n]);
        rest = &rest[n + 1..];
        let Some(c) = rest.chars().next() else { break };
        rest = &rest[c.len_utf8()..];
        let simple = match c {
            '\n' => continue,
            '\\' | '\'' | '"' => c,
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            '0'..='7' => {
                let more = rest.chars().take(2).take_while(|c| c.is_digit(8)).count();
                let digits = format!("{c}{}", &rest[..more]);
                rest = &rest[more..];
                u32::from_str_radix(&digits, 8).ok().and_then(char::from_u32).ok_or("octal escape out of range")?
            }
            'x' | 'u' | 'U' => {
                let width = match c {
                    'x' => 2,
                    'u' => 4,
                    _ => 8,
                };
                let digits = rest.get(..width).filter(|digits| digits.bytes().all(|c| c.is_ascii_hexdigit()));
                let digits = digits.ok_or_else(|| format!("truncated \\{c} escape"))?;
                rest = &rest[width..];
                let code = u32::from_str_radix(digits, 16).map_err(|_| "illegal Unicode character")?;
                char::from_u32(code).ok_or("a surrogate or illegal Unicode character, which is not supported here")?
            }
            'N' => return Err("\\N{...} escapes are not supported here; write the character itself".into()),
            // Python escapes what is not ASCII first, so that the backslash meets another backslash.
            c if !c.is_ascii() => {
                text += &match c as u32 {
                    n @ ..0x100 => format!("\\x{n:02x}"),
                    n @ ..0x10000 => format!("\\u{n:04x}"),
                    n => format!("\\U{n:08x}"),
                };
                continue;
            }
            other => {
                text.push('\\');
                other
            }
        };
        text.push(simple);
    }
    text.push_str(rest);
    Ok(text)
}
