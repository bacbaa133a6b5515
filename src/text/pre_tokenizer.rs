//! Cutting normalised text into the pieces that are merged each for itself, as the `pre_tokenizer` of
//! tokenizer.json asks.
#![forbid(unsafe_code)]

use std::ops::Range;

use serde_json::Value;

use super::pattern::Pattern;
use super::reading::{form, list_of, quoted, type_of, unsupported};
use crate::error::{Error, Result, brief};

/// The most steps of a sequence; DeepSeek's has four.
const MAX_STEPS: usize = 16;
/// Their patterns together, in bytes; the longest in use has 400.
const MAX_PATTERNS: usize = 16 << 10;
/// The pattern that ByteLevel splits with where it is asked to (GPT-2's).
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The steps, one after another, each on the pieces of the one before.
#[derive(Debug, Default)]
pub(super) struct PreTokenizer {
    steps: Vec<Step>,
    /// Whether ByteLevel came, after which nothing may.
    ended: bool,
}

#[derive(Debug)]
struct Step {
    delimiter: Delimiter,
    /// Whether what lies between the delimiters counts as delimiter instead.
    invert: bool,
    behavior: Behavior,
}

#[derive(Debug)]
enum Delimiter {
    Pattern(Pattern),
    /// Every single numeric character.
    Numeric,
}

/// What becomes of delimiters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behavior {
    Isolated,
    MergedWithPrevious,
    MergedWithNext,
    Contiguous,
}

impl PreTokenizer {
    /// Reads the `pre_tokenizer` of tokenizer.json.
    pub(super) fn from_json(part: &Value) -> Result<PreTokenizer> {
        let mut pre_tokenizer = PreTokenizer::default();
        pre_tokenizer.read(part)?;
        if !pre_tokenizer.ended {
            let why = "pre_tokenizer: wanted ByteLevel as the last step, found none; use a tokenizer of \
                       byte-level BPE, as Qwen3's is";
            return Err(unsupported(why));
        }
        Ok(pre_tokenizer)
    }

    fn read(&mut self, part: &Value) -> Result<()> {
        if part.is_null() {
            return Ok(());
        }
        let name = type_of(part, "pre_tokenizer")?;
        if self.ended && name != "Sequence" {
            let name = brief(name);
            let why =
                format!("pre_tokenizer: wanted ByteLevel as the last step, found {name} behind it; remove that step");
            return Err(unsupported(why));
        }
        let flag = |key: &str, default: bool| part.get(key).and_then(Value::as_bool).unwrap_or(default);
        let isolated = |delimiter| Step { delimiter, invert: false, behavior: Behavior::Isolated };
        match name {
            "Sequence" => {
                let parts = list_of(part, "pretokenizers", "pre_tokenizer")?;
                let pattern = |part: &Value| part["pattern"].as_object()?.values().next()?.as_str().map(str::len);
                if parts.len() > MAX_STEPS || parts.iter().filter_map(pattern).sum::<usize>() > MAX_PATTERNS {
                    return Err(too_many());
                }
                parts.iter().try_for_each(|part| self.read(part))?;
            }
            "ByteLevel" => {
                if flag("add_prefix_space", true) {
                    let why = "pre_tokenizer: ByteLevel: wanted add_prefix_space false, found true, which puts a space \
                               before every text; set it to false if the model was trained so";
                    return Err(unsupported(why));
                }
                if flag("use_regex", true) {
                    self.steps.push(isolated(Delimiter::Pattern(Pattern::new(GPT2)?)));
                }
                self.ended = true;
            }
            "Digits" if flag("individual_digits", false) => self.steps.push(isolated(Delimiter::Numeric)),
            "Digits" => {
                let behavior = Behavior::Contiguous;
                self.steps.push(Step { delimiter: Delimiter::Numeric, invert: false, behavior });
            }
            "Split" => self.steps.push(read_split(part, flag("invert", false))?),
            other => {
                let other = brief(other);
                return Err(unsupported(format!(
                    "pre_tokenizer: wanted ByteLevel, Split, Digits or a Sequence of them, found {other}; use a \
                     tokenizer of byte-level BPE, as Qwen3's is"
                )));
            }
        }
        if self.steps.len() > MAX_STEPS {
            return Err(too_many());
        }
        Ok(())
    }

    /// Calls `found` for the pieces of a text, in order; none is empty, and together they are the text. It stops at the
    /// first error. No list of the pieces is made: a long text has many.
    pub(super) fn split(&self, text: &str, found: &mut dyn FnMut(Range<usize>) -> Result<()>) -> Result<()> {
        split(&self.steps, text, 0..text.len(), found)
    }
}

/// The pieces of a range of the text by these steps, each on the pieces of the one before.
fn split(
    steps: &[Step],
    text: &str,
    range: Range<usize>,
    found: &mut dyn FnMut(Range<usize>) -> Result<()>,
) -> Result<()> {
    match steps.split_first() {
        None if range.is_empty() => Ok(()),
        None => found(range),
        Some((step, rest)) => {
            step.split(&text[range.clone()], range.start, &mut |piece| split(rest, text, piece, found))
        }
    }
}

fn too_many() -> Error {
    form(format!(
        "pre_tokenizer: wanted at most {MAX_STEPS} steps with {MAX_PATTERNS} bytes of patterns, found more; remove some"
    ))
}

fn read_split(part: &Value, invert: bool) -> Result<Step> {
    let pattern = part.get("pattern").unwrap_or(&Value::Null);
    let text = |key: &str| pattern.get(key).and_then(Value::as_str);
    let pattern = match (text("Regex"), text("String")) {
        (Some(regex), None) => Pattern::new(regex)?,
        (None, Some(string)) => Pattern::new(&regex_syntax::escape(string))?,
        _ => {
            let pattern = brief(pattern);
            let why = format!("pre_tokenizer: Split: wanted a pattern with Regex or String, found {pattern}; give one");
            return Err(form(why));
        }
    };
    let behavior = match part.get("behavior").and_then(Value::as_str).unwrap_or("") {
        "Isolated" => Behavior::Isolated,
        "MergedWithPrevious" => Behavior::MergedWithPrevious,
        "MergedWithNext" => Behavior::MergedWithNext,
        "Contiguous" => Behavior::Contiguous,
        "Removed" => {
            let why = "pre_tokenizer: Split: wanted a behavior that keeps the text, found Removed, which removes text; \
                       use Isolated if the model was trained so";
            return Err(unsupported(why));
        }
        other => {
            let why = "wanted Isolated, MergedWithPrevious, MergedWithNext or Contiguous";
            let other = quoted(other);
            return Err(form(format!("pre_tokenizer: Split: behavior: {why}, found {other}; write one of them")));
        }
    };
    Ok(Step { delimiter: Delimiter::Pattern(pattern), invert, behavior })
}

impl Step {
    /// Calls `out` for the pieces of `text`, which begins at `offset` of the whole; none is empty.
    fn split(&self, text: &str, offset: usize, out: &mut dyn FnMut(Range<usize>) -> Result<()>) -> Result<()> {
        let mut join = Join { behavior: self.behavior, last: None, previous: false, offset, out };
        let mut end = 0;
        let mut found = |start: usize, stop: usize| -> Result<()> {
            if end != start {
                join.add(end, start, self.invert)?;
            }
            join.add(start, stop, !self.invert)?;
            end = stop;
            Ok(())
        };
        match &self.delimiter {
            Delimiter::Numeric => {
                for (at, c) in text.char_indices().filter(|(_, c)| c.is_numeric()) {
                    found(at, at + c.len_utf8())?;
                }
            }
            Delimiter::Pattern(pattern) => {
                let (mut at, mut last) = (0, None);
                while let Some((start, stop)) = (at <= text.len()).then(|| pattern.find(text, at)).flatten() {
                    if start == stop && last == Some(stop) {
                        // An empty match behind the last one is none.
                        at = stop + text[stop..].chars().next().map_or(1, char::len_utf8);
                        continue;
                    }
                    found(start, stop)?;
                    (at, last) = (stop, Some(stop));
                }
            }
        }
        if end < text.len() {
            join.add(end, text.len(), self.invert)?;
        }
        join.finish()
    }
}

/// Puts pieces and delimiters together as the behavior says.
struct Join<'a> {
    behavior: Behavior,
    /// The piece that may still be joined.
    last: Option<Range<usize>>,
    /// Whether it was a delimiter.
    previous: bool,
    offset: usize,
    out: &'a mut dyn FnMut(Range<usize>) -> Result<()>,
}

impl Join<'_> {
    fn add(&mut self, start: usize, stop: usize, is_delimiter: bool) -> Result<()> {
        let (start, stop) = (start + self.offset, stop + self.offset);
        let joins = match self.behavior {
            Behavior::Isolated => false,
            Behavior::Contiguous => is_delimiter == self.previous,
            Behavior::MergedWithPrevious => is_delimiter && !self.previous,
            // A piece joins the delimiter before it, unless a delimiter follows that one; the last delimiter of a
            // row is the one before the piece.
            Behavior::MergedWithNext => self.previous && !is_delimiter,
        };
        self.previous = is_delimiter;
        match &mut self.last {
            Some(last) if joins => last.end = stop,
            _ => {
                let finished = self.last.replace(start..stop);
                self.emit(finished)?;
            }
        }
        Ok(())
    }

    /// Hands a finished piece on, but for the empty ones that empty matches leave.
    fn emit(&mut self, piece: Option<Range<usize>>) -> Result<()> {
        match piece {
            Some(piece) if !piece.is_empty() => (self.out)(piece),
            _ => Ok(()),
        }
    }

    fn finish(mut self) -> Result<()> {
        let last = self.last.take();
        self.emit(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Stream, below};
    use serde_json::json;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _, PreTokenizerWrapper};

    #[test]
    fn every_behavior_cuts_as_the_reference_does() {
        let pool = [" ", "-", "--", "a", "bc", "é", "1", "22", "½", "\n", "."];
        for pattern in
            [json!({"String": "-"}), json!({"String": ""}), json!({"Regex": r"\s|-+"}), json!({"Regex": "-*"})]
        {
            for behavior in ["Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"] {
                for (invert, individual) in [(false, false), (true, true), (false, true), (true, false)] {
                    let part = json!({"type": "Sequence", "pretokenizers": [
                        {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert},
                        {"type": "Digits", "individual_digits": individual},
                        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": individual}]});
                    let ours = PreTokenizer::from_json(&part).unwrap();
                    let theirs: PreTokenizerWrapper = serde_json::from_value(part.clone()).unwrap();
                    for case in 0..200 {
                        let draw = |i, n: usize| below(Stream::World, &[case, i], n as u64) as usize;
                        let text: String = (0..draw(0, 10)).map(|i| pool[draw(i as u64 + 1, pool.len())]).collect();
                        let mut pieces = PreTokenizedString::from(text.as_str());
                        theirs.pre_tokenize(&mut pieces).unwrap();
                        let wanted: Vec<Range<usize>> = pieces
                            .get_splits(OffsetReferential::Original, OffsetType::Byte)
                            .iter()
                            .map(|(_, (start, stop), _)| *start..*stop)
                            .collect();
                        let mut found = Vec::new();
                        ours.split(&text, &mut |piece| {
                            found.push(piece);
                            Ok(())
                        })
                        .unwrap();
                        assert_eq!(found, wanted, "{part} {text:?}");
                    }
                }
            }
        }
    }
}
