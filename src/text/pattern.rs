//! The pattern of a splitting step as a finite automaton.
//!
//! A backtracking matcher has a limit, and a text that reaches it is cut elsewhere than another
//! implementation cuts it. An automaton has none: its time is linear in the text. What it cannot do is
//! look around; the patterns in use do so only in `\s+(?!\S)`, a run of one class that must not be
//! followed by another, and that is the same as "the run up to the end of the text, or the run without
//! its last character where that is outside the other class". So each alternative of a pattern becomes
//! one or two automata, and of some the last character matched is context.
//!
//! The syntax is Oniguruma's, as Hugging Face's tokenizers read it. What the two read differently, or an
//! automaton cannot do, is refused by name when the tokenizer is read.
#![forbid(unsafe_code)]

use regex_automata::meta::Regex;
use regex_automata::{Anchored, Input};
use regex_syntax::ast::{self, Ast};
use regex_syntax::hir::{Class, Hir, HirKind};

use super::reading::{form, unsupported};
use crate::error::{Error, Result};
use crate::memory;

/// The longest pattern, in bytes; Qwen3's has 130.
const MAX_PATTERN: usize = 4096;
/// Groups and classes within each other; the patterns in use have three. Compiling recurses on the caller's stack.
const MAX_NESTING: u32 = 24;
/// The most memory that the automata of one pattern may take, in bytes; Qwen3's take 1 MB.
const MAX_AUTOMATA: usize = 16 << 20;

/// A pattern that finds pieces of text.
#[derive(Debug)]
pub(super) struct Pattern {
    regex: Regex,
    /// Of each automaton, whether the last character of a match is context and no part of it.
    has_context: Vec<bool>,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// Errors: `TokenizerForm` where it is no pattern; `UnsupportedTokenizer` where it is one that cannot
    /// be matched as Oniguruma would in linear time.
    pub(super) fn new(source: &str) -> Result<Pattern> {
        if source.len() > MAX_PATTERN {
            let n = source.len();
            return Err(broken(source, &format!("wanted at most {MAX_PATTERN} bytes, found {n}; write it shorter")));
        }
        memory::room_for(2 * MAX_AUTOMATA, "tokenizer.json: pre_tokenizer: the automata of a pattern")?;
        let mut automata = Vec::new();
        for alternative in alternatives(source)? {
            alternative.add_to(&mut automata)?;
        }
        let (hirs, has_context): (Vec<Hir>, Vec<bool>) = automata.into_iter().unzip();
        let config = Regex::config().nfa_size_limit(Some(MAX_AUTOMATA)).hybrid_cache_capacity(8 << 20);
        let regex = Regex::builder().configure(config).build_many_from_hir(&hirs);
        let regex = regex.map_err(|e| broken(source, &format!("{e}; write it simpler")))?;
        Ok(Pattern { regex, has_context })
    }

    /// The first match from `at` on, a character's beginning: where it begins and ends. What stands before
    /// `at` is seen by assertions.
    pub(super) fn find(&self, text: &str, at: usize) -> Option<(usize, usize)> {
        let input = Input::new(text).range(at..);
        // Most patterns match wherever the last match ended, and where the start is known only the end is sought.
        let here = input.clone().anchored(Anchored::Yes);
        let (pattern, start, end) = match self.regex.search_half(&here) {
            Some(found) => (found.pattern(), at, found.offset()),
            None => self.regex.search(&input).map(|found| (found.pattern(), found.start(), found.end()))?,
        };
        let context = if self.has_context[pattern.as_usize()] { text[..end].chars().next_back() } else { None };
        Some((start, end - context.map_or(0, char::len_utf8)))
    }
}

fn broken(pattern: &str, why: &str) -> Error {
    form(format!("pre_tokenizer: pattern {:?}: {why}", shortened(pattern)))
}

fn refused(pattern: &str, why: &str) -> Error {
    unsupported(format!("pre_tokenizer: pattern {:?}: {why}", shortened(pattern)))
}

fn shortened(pattern: &str) -> String {
    pattern.chars().take(200).collect()
}

/// One alternative of a pattern.
struct Alternative<'p> {
    text: &'p str,
    /// The body of the look-ahead at its end, and whether it must not match.
    ahead: Option<(&'p str, bool)>,
    /// Whether it is the whole pattern, where a flag at its beginning changes nothing else.
    is_whole: bool,
}

/// Cuts a pattern at the bars that stand in no group.
fn alternatives(pattern: &str) -> Result<Vec<Alternative<'_>>> {
    let bytes = pattern.as_bytes();
    let (mut found, mut from, mut ahead) = (Vec::new(), 0, None);
    let (mut groups, mut classes, mut at) = (0usize, 0usize, 0);
    let unbalanced = || broken(pattern, "a bracket has no partner; every ( needs a ), every [ a ]");
    let alternative = |from: usize, to: usize, ahead: Option<usize>| match ahead {
        None => Ok(Alternative { text: &pattern[from..to], ahead: None, is_whole: to - from == pattern.len() }),
        // The group that looks ahead must be the alternative's last part.
        Some(open) if last_group(&bytes[open..to]) => {
            let body = (&pattern[open + 3..to - 1], bytes[open + 2] == b'!');
            Ok(Alternative { text: &pattern[from..open], ahead: Some(body), is_whole: false })
        }
        Some(_) => Err(look_around(pattern)),
    };
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 1,
            b'[' => classes += 1,
            b']' if classes > 0 => classes -= 1,
            _ if classes > 0 => {}
            b'(' => {
                let looks = ["(?=", "(?!", "(?<=", "(?<!", "(?>"].iter().any(|open| pattern[at..].starts_with(open));
                if looks && (groups > 0 || ahead.is_some() || matches!(bytes[at + 2], b'<' | b'>')) {
                    ahead = Some(usize::MAX);
                } else if looks {
                    ahead = Some(at);
                }
                groups += 1;
            }
            b')' => groups = groups.checked_sub(1).ok_or_else(unbalanced)?,
            b'|' if groups == 0 => {
                found.push((from, at, ahead));
                (from, ahead) = (at + 1, None);
            }
            _ => {}
        }
        at += 1;
    }
    if groups > 0 || classes > 0 || at > bytes.len() {
        return Err(unbalanced());
    }
    found.push((from, bytes.len(), ahead));
    if found.len() > 1 && (pattern.starts_with("(?i)") || pattern.starts_with("(?-i)")) {
        // Such a flag holds for all alternatives, so they stay together.
        if found.iter().all(|(_, _, ahead)| ahead.is_none()) {
            return Ok(vec![Alternative { text: pattern, ahead: None, is_whole: true }]);
        }
        return Err(refused(pattern, "a flag before a look-ahead; write (?i:...) around what it is meant for"));
    }
    let cut = |(from, to, ahead): (usize, usize, Option<usize>)| match ahead {
        Some(usize::MAX) => Err(look_around(pattern)),
        ahead => alternative(from, to, ahead),
    };
    found.into_iter().map(cut).collect()
}

/// Whether one group fills the text that it opens.
fn last_group(bytes: &[u8]) -> bool {
    let (mut groups, mut classes, mut at) = (0usize, 0usize, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 1,
            b'[' => classes += 1,
            b']' if classes > 0 => classes -= 1,
            b'(' if classes == 0 => groups += 1,
            b')' if classes == 0 => groups -= 1,
            _ => {}
        }
        at += 1;
        if groups == 0 {
            return at == bytes.len();
        }
    }
    false
}

fn look_around(pattern: &str) -> Error {
    let why = "wanted no look-around, atomic group or back reference but one at the end of an alternative, as in \
               \\s+(?!\\S): a repeated class, then a look-ahead at one character; rewrite the pattern so, or use \
               the splitting pattern of the tokenizer that the model was trained with";
    refused(pattern, why)
}

impl Alternative<'_> {
    /// Adds this alternative's automata, the one that is preferred first, each with whether the last
    /// character it matches is context.
    fn add_to(&self, automata: &mut Vec<(Hir, bool)>) -> Result<()> {
        let body = hir(self.text, self.is_whole)?;
        let Some((ahead, negative)) = self.ahead else {
            automata.push((body, false));
            return Ok(());
        };
        let run = match body.kind() {
            HirKind::Repetition(run) if run.greedy && run.max.is_none() && run.min > 0 => class_of(&run.sub),
            _ => None,
        };
        let (Some(_), Some(mut next)) = (run, class_of(&hir(ahead, false)?)) else {
            return Err(look_around(&format!("{}(?{}{ahead})", self.text, if negative { '!' } else { '=' })));
        };
        if negative {
            next.negate();
            let end = Hir::look(regex_syntax::hir::Look::End);
            automata.push((Hir::concat(vec![body.clone(), end]), false));
        }
        automata.push((Hir::concat(vec![body, Hir::class(next)]), true));
        Ok(())
    }
}

/// The class that an expression is, if it is one character of a class.
fn class_of(hir: &Hir) -> Option<Class> {
    match hir.kind() {
        HirKind::Class(class @ Class::Unicode(_)) => Some(class.clone()),
        HirKind::Literal(literal) => {
            let text = std::str::from_utf8(&literal.0).ok()?;
            let mut chars = text.chars();
            let (c, None) = (chars.next()?, chars.next()) else { return None };
            let range = regex_syntax::hir::ClassUnicodeRange::new(c, c);
            Some(Class::Unicode(regex_syntax::hir::ClassUnicode::new([range])))
        }
        _ => None,
    }
}

fn hir(text: &str, is_whole: bool) -> Result<Hir> {
    let parse = |text: &str| {
        let mut parser = ast::parse::ParserBuilder::new().nest_limit(MAX_NESTING).build();
        parser.parse(text).map_err(|e| e.kind().clone())
    };
    let parsed = parse(text).map_err(|e| {
        use ast::ErrorKind::{UnsupportedBackreference, UnsupportedLookAround};
        match e {
            UnsupportedBackreference | UnsupportedLookAround => look_around(text),
            kind => broken(text, &format!("{kind}; correct it")),
        }
    })?;
    let mut plain = text.to_string();
    // From the last on, so that the places of the others stay.
    for plus in possessive(text, &parsed)?.into_iter().rev() {
        plain.remove(plus);
    }
    let parsed = parse(&plain).map_err(|kind| broken(text, &format!("{kind}; correct it")))?;
    ast::visit(&parsed, Oniguruma { pattern: text, is_whole })?;
    translate(&plain, &parsed)
}

fn translate(text: &str, ast: &Ast) -> Result<Hir> {
    // In Oniguruma's syntax `$` is the end of any line.
    let mut translator = regex_syntax::hir::translate::TranslatorBuilder::new().multi_line(true).build();
    translator.translate(text, ast).map_err(|e| broken(text, &format!("{}; correct it", e.kind())))
}

/// The places of the `+` that make a repetition possessive (`[^a]++`, `b?+`), each checked to be without
/// effect: what follows it takes no character that the repetition would have to give back.
fn possessive(text: &str, parsed: &Ast) -> Result<Vec<usize>> {
    let parts = match parsed {
        Ast::Concat(concat) => &concat.asts[..],
        other => std::slice::from_ref(other),
    };
    let translated = parts.iter().map(|part| translate(text, part)).collect::<Result<Vec<Hir>>>()?;
    // From where on all that follows may be nothing.
    let optional_from = translated.iter().rposition(|part| !is_optional(part)).map_or(0, |last| last + 1);
    let mut places = Vec::new();
    for (n, part) in parts.iter().enumerate() {
        let Ast::Repetition(outer) = part else { continue };
        let (Ast::Repetition(inner), ast::RepetitionKind::OneOrMore) = (&*outer.ast, &outer.op.kind) else { continue };
        // After a range it is a repetition of the range.
        if !inner.greedy || !outer.greedy || matches!(inner.op.kind, ast::RepetitionKind::Range(_)) {
            continue;
        }
        let taken = class_of(&translate(text, &inner.ast)?);
        let mut gives_back = taken.is_none();
        for (m, next) in translated.iter().enumerate().skip(n + 1) {
            let disjoint = match (first_class(next), &taken) {
                (Some(Class::Unicode(next)), Some(Class::Unicode(taken))) => {
                    let mut both = next.clone();
                    both.intersect(taken);
                    both.ranges().is_empty()
                }
                _ => false,
            };
            if disjoint && next.properties().minimum_len() > Some(0) {
                break;
            }
            // Where all that follows may be nothing, nothing is ever given back.
            if !disjoint && m < optional_from {
                gives_back = true;
                break;
            }
        }
        if gives_back {
            let why = "a possessive repetition that changes what matches; write it without the second +";
            return Err(refused(text, why));
        }
        places.push(outer.op.span.start.offset);
    }
    Ok(places)
}

/// The class of an expression's first character, where that is simple to say.
fn first_class(hir: &Hir) -> Option<Class> {
    match hir.kind() {
        HirKind::Repetition(repetition) => class_of(&repetition.sub),
        _ => class_of(hir),
    }
}

/// Whether an expression is a repetition that matches nothing too, without a condition.
fn is_optional(hir: &Hir) -> bool {
    hir.properties().minimum_len() == Some(0) && hir.properties().look_set().is_empty()
}

/// Refuses what Oniguruma reads otherwise than the parser here.
struct Oniguruma<'p> {
    pattern: &'p str,
    is_whole: bool,
}

impl Oniguruma<'_> {
    fn flags(&self, flags: &ast::Flags) -> Result<()> {
        use ast::FlagsItemKind::{Flag, Negation};
        let known = |item: &ast::FlagsItem| matches!(item.kind, Negation | Flag(ast::Flag::CaseInsensitive));
        if flags.items.iter().all(known) {
            return Ok(());
        }
        Err(refused(self.pattern, "wanted no flag but i; write what it changes into the pattern"))
    }
}

impl ast::Visitor for Oniguruma<'_> {
    type Output = ();
    type Err = Error;

    fn finish(self) -> Result<()> {
        Ok(())
    }

    fn visit_pre(&mut self, part: &Ast) -> Result<()> {
        use ast::AssertionKind::{EndLine, EndText, NotWordBoundary, StartText, WordBoundary};
        match part {
            Ast::Flags(set) if set.span.start.offset > 0 || !self.is_whole => {
                Err(refused(self.pattern, "wanted a flag at the beginning of the whole pattern only; write (?i:...)"))
            }
            Ast::Flags(set) => self.flags(&set.flags),
            Ast::Group(group) => group.flags().map_or(Ok(()), |flags| self.flags(flags)),
            Ast::Assertion(assertion) => match assertion.kind {
                EndLine | EndText | StartText | WordBoundary | NotWordBoundary => Ok(()),
                _ => Err(refused(
                    self.pattern,
                    "wanted no ^, \\< or \\>, which engines read differently; write \\A, < or >",
                )),
            },
            Ast::Repetition(repetition) => {
                let is_exact =
                    matches!(repetition.op.kind, ast::RepetitionKind::Range(ast::RepetitionRange::Exactly(_)));
                if matches!(*repetition.ast, Ast::Repetition(_)) || (is_exact && !repetition.greedy) {
                    let why = "wanted one repetition sign, found two, which engines read differently; put the first \
                               into a group, as in (?:a+)*";
                    return Err(refused(self.pattern, why));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn visit_class_set_item_pre(&mut self, item: &ast::ClassSetItem) -> Result<()> {
        match item {
            ast::ClassSetItem::Ascii(_) => {
                Err(refused(self.pattern, "wanted no class like [:alpha:]; write \\p{...} instead"))
            }
            _ => Ok(()),
        }
    }

    fn visit_class_set_binary_op_pre(&mut self, op: &ast::ClassSetBinaryOp) -> Result<()> {
        match op.kind {
            ast::ClassSetBinaryOpKind::Intersection => Ok(()),
            _ => Err(refused(self.pattern, "wanted no -- or ~~ in a class; write \\- or one ~")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Stream, below};

    /// The splitting patterns of GPT-2, Qwen, Llama 3, o200k, DeepSeek V3 (its parts) and Ling.
    const PATTERNS: [&str; 11] = [
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        super::super::tiny_tokenizer::PATTERN,
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"[一-龥぀-ゟ゠-ヿ]+",
        r"[!#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        r"\s+(?=\n)|[a-z]+(?![!?])|\d+(?=x)",
        r"\s*",
        r"(?i)bc|[x-z]",
        r" ?[^(\s|[.,!?…。])]+",
    ];

    /// Texts of what the patterns tell apart.
    fn draw_text(case: u64) -> String {
        let pool = [
            " ", "  ", "\n", "\r\n", "\t", "\u{a0}", "\u{3000}", "a", "Bc", "x", "é", "\u{301}", "漢", "か", "1",
            "234", "'s", "'LL", "ſ", "!", "?", "...", "/", "(", "|", "😀", "-ab",
        ];
        let draw = |i, n: usize| below(Stream::World, &[case, i], n as u64) as usize;
        (0..draw(0, 14)).map(|i| pool[draw(i as u64 + 1, pool.len())]).collect()
    }

    #[test]
    fn every_family_splits_as_a_backtracking_matcher_does() {
        for source in PATTERNS {
            let ours = Pattern::new(source).unwrap();
            let theirs = tokenizers::utils::SysRegex::new(source).unwrap();
            for case in 0..1500 {
                let text = draw_text(case);
                for (at, _) in text.char_indices() {
                    let wanted = theirs.find_iter(&text[at..]).next();
                    // What stands before is no part of the slice that the reference sees; no pattern here asks.
                    assert_eq!(ours.find(&text[at..], 0), wanted, "{source} {text:?} {at}");
                }
            }
        }
    }
}
