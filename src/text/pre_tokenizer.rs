//! Cutting normalised text into the pieces that are merged each for itself, as the `pre_tokenizer` of
//! tokenizer.json asks.
#![forbid(unsafe_code)]

use std::ops::Range;

use serde_json::Value;

use super::pattern::Pattern;
use super::reading::{form, list_of, type_of, unsupported};
use crate::error::Result;

/// The most steps of a sequence; DeepSeek's has four.
const MAX_STEPS: usize = 64;
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
            let why =
                format!("pre_tokenizer: wanted ByteLevel as the last step, found {name} behind it; remove that step");
            return Err(unsupported(why));
        }
        let flag = |key: &str, default: bool| part.get(key).and_then(Value::as_bool).unwrap_or(default);
        let isolated = |delimiter| Step { delimiter, invert: false, behavior: Behavior::Isolated };
        match name {
            "Sequence" => {
                for part in list_of(part, "pretokenizers", "pre_tokenizer")? {
                    self.read(part)?;
                }
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
                return Err(unsupported(format!(
                    "pre_tokenizer: wanted ByteLevel, Split, Digits or a Sequence of them, found {other}; use a \
                     tokenizer of byte-level BPE, as Qwen3's is"
                )));
            }
        }
        if self.steps.len() > MAX_STEPS {
            return Err(form(format!("pre_tokenizer: wanted at most {MAX_STEPS} steps, found more; remove some")));
        }
        Ok(())
    }

    /// The pieces of a text, in order; none is empty, and together they are the text.
    pub(super) fn split(&self, text: &str) -> Vec<Range<usize>> {
        let mut pieces = Vec::new();
        pieces.extend((!text.is_empty()).then_some(0..text.len()));
        for step in &self.steps {
            let mut next = Vec::with_capacity(pieces.len().max(text.len() / 4));
            for piece in pieces {
                step.split(&text[piece.clone()], piece.start, &mut next);
            }
            pieces = next;
        }
        pieces
    }
}

fn read_split(part: &Value, invert: bool) -> Result<Step> {
    let pattern = part.get("pattern").unwrap_or(&Value::Null);
    let text = |key: &str| pattern.get(key).and_then(Value::as_str);
    let pattern = match (text("Regex"), text("String")) {
        (Some(regex), None) => Pattern::new(regex)?,
        (None, Some(string)) => Pattern::new(&regex_syntax::escape(string))?,
        _ => {
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
            return Err(form(format!("pre_tokenizer: Split: behavior: {why}, found {other:?}; write one of them")));
        }
    };
    Ok(Step { delimiter: Delimiter::Pattern(pattern), invert, behavior })
}

impl Step {
    /// Appends the pieces of `text`, which begins at `offset` of the whole.
    fn split(&self, text: &str, offset: usize, pieces: &mut Vec<Range<usize>>) {
        let mut join = Join { behavior: self.behavior, first: pieces.len(), previous: false, offset, pieces };
        let mut end = 0;
        let mut found = |start: usize, stop: usize| {
            if end != start {
                join.add(end, start, self.invert);
            }
            join.add(start, stop, !self.invert);
            end = stop;
        };
        match &self.delimiter {
            Delimiter::Numeric => {
                for (at, c) in text.char_indices().filter(|(_, c)| c.is_numeric()) {
                    found(at, at + c.len_utf8());
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
                    found(start, stop);
                    (at, last) = (stop, Some(stop));
                }
            }
        }
        if end < text.len() {
            join.add(end, text.len(), self.invert);
        }
        join.finish();
    }
}

/// Puts pieces and delimiters together as the behavior says.
struct Join<'a> {
    behavior: Behavior,
    /// Where the pieces of this text begin in `pieces`.
    first: usize,
    /// Whether the last one was a delimiter.
    previous: bool,
    offset: usize,
    pieces: &'a mut Vec<Range<usize>>,
}

impl Join<'_> {
    fn add(&mut self, start: usize, stop: usize, is_delimiter: bool) {
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
        let has_last = self.pieces.len() > self.first;
        match self.pieces.last_mut() {
            Some(last) if joins && has_last => last.end = stop,
            _ => self.pieces.push(start..stop),
        }
    }

    /// Drops empty pieces, which empty matches leave.
    fn finish(self) {
        let first = self.first;
        if self.pieces[first..].iter().any(Range::is_empty) {
            let kept: Vec<Range<usize>> = self.pieces.drain(first..).filter(|piece| !piece.is_empty()).collect();
            self.pieces.extend(kept);
        }
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
                        assert_eq!(ours.split(&text), wanted, "{part} {text:?}");
                    }
                }
            }
        }
    }
}
