//! Unicode normal forms, as tokenizer.json's normalizer asks for them.
//!
//! The tables are those of the crate that Hugging Face's tokenizers use (Unicode 9), so that the same
//! characters compose.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use serde_json::Value;
use unicode_normalization_alignments::{IsNormalized, UnicodeNormalization, is_nfc_quick, is_nfkc_quick};
use unicode_normalization_alignments::{is_nfd_quick, is_nfkd_quick};

use super::reading::{form, list_of, type_of, unsupported};
use crate::error::{Error, Result, brief};
use crate::memory;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Nfc,
    Nfd,
    Nfkc,
    Nfkd,
}

impl Form {
    /// Error: `OutOfHostMemory`.
    fn apply<'t>(self, text: &'t str) -> Result<Cow<'t, str>> {
        if text.is_ascii() {
            return Ok(Cow::Borrowed(text));
        }
        let quick = match self {
            Form::Nfc => is_nfc_quick(text.chars()),
            Form::Nfd => is_nfd_quick(text.chars()),
            Form::Nfkc => is_nfkc_quick(text.chars()),
            Form::Nfkd => is_nfkd_quick(text.chars()),
        };
        if quick == IsNormalized::Yes {
            return Ok(Cow::Borrowed(text));
        }
        // The library allocates by itself: the result, and what it holds of a run of marks.
        let other = text.bytes().filter(|byte| !byte.is_ascii()).count();
        memory::room_for(text.len().saturating_add(other.saturating_mul(SPACE)), "the normal form of a text")?;
        let mut normal = String::with_capacity(text.len());
        match self {
            Form::Nfc => normal.extend(text.nfc().map(|(c, _)| c)),
            Form::Nfd => normal.extend(text.nfd().map(|(c, _)| c)),
            Form::Nfkc => normal.extend(text.nfkc().map(|(c, _)| c)),
            Form::Nfkd => normal.extend(text.nfkd().map(|(c, _)| c)),
        }
        Ok(Cow::Owned(normal))
    }
}

/// The most that a byte of a text outside ASCII may take while it is brought into a normal form, in bytes: a mark of two
/// bytes waits in 16 for its place in a run, and no character grows to more than eleven times its length.
const SPACE: usize = 16;
/// How many times longer than its normal form a text may be at most: a character of four bytes becomes one of ASCII.
/// What is composed of several, of at most four bytes each, is longer than that.
const SHRINKS: usize = 8;
/// The most steps; one normal form says it all.
const MAX_STEPS: usize = 16;

/// The normal forms of a tokenizer, one after another; none leaves a text as it is.
#[derive(Clone, Debug, Default)]
pub(super) struct Normalizer(Vec<Form>);

impl Normalizer {
    /// Reads the `normalizer` of tokenizer.json.
    pub(super) fn from_json(part: &Value) -> Result<Normalizer> {
        let mut normalizer = Normalizer::default();
        normalizer.read(part)?;
        Ok(normalizer)
    }

    fn read(&mut self, part: &Value) -> Result<()> {
        if part.is_null() {
            return Ok(());
        }
        match type_of(part, "normalizer")? {
            "NFC" => self.0.push(Form::Nfc),
            "NFD" => self.0.push(Form::Nfd),
            "NFKC" => self.0.push(Form::Nfkc),
            "NFKD" => self.0.push(Form::Nfkd),
            "Sequence" => {
                let parts = list_of(part, "normalizers", "normalizer")?;
                if parts.len() > MAX_STEPS {
                    return Err(too_many());
                }
                parts.iter().try_for_each(|part| self.read(part))?;
            }
            other => {
                let other = brief(other);
                return Err(unsupported(format!(
                    "normalizer: wanted NFC, NFD, NFKC, NFKD or a Sequence of them, found {other}; use a tokenizer \
                     without it, as Qwen3's is"
                )));
            }
        }
        if self.0.len() > MAX_STEPS {
            return Err(too_many());
        }
        Ok(())
    }

    /// The normal form of a text. Error: `OutOfHostMemory`.
    pub(super) fn apply<'t>(&self, text: &'t str) -> Result<Cow<'t, str>> {
        let mut normal = Cow::Borrowed(text);
        for form in &self.0 {
            if let Cow::Owned(changed) = form.apply(&normal)? {
                normal = Cow::Owned(changed);
            }
        }
        Ok(normal)
    }

    /// The fewest bytes that the normal form of a text of so many bytes can have.
    pub(super) fn least(&self, bytes: usize) -> usize {
        if self.is_identity() { bytes } else { bytes / SHRINKS }
    }

    /// Whether every text is its own normal form.
    pub(super) fn is_identity(&self) -> bool {
        self.0.is_empty()
    }
}

fn too_many() -> Error {
    form(format!("normalizer: wanted at most {MAX_STEPS} steps, found more; one normal form says it all"))
}

/// The canonical decomposition: what a text may be spelt like before it is composed.
pub(super) fn decomposed(text: &str) -> String {
    text.nfd().map(|(c, _)| c).collect()
}

/// Whether a text's first character may join, or change places with, what stands before it.
pub(super) fn begins_with_mark(text: &str) -> bool {
    use unicode_normalization_alignments::char::canonical_combining_class;
    let joins = |c: char| canonical_combining_class(c) != 0 || is_nfc_quick([c].into_iter()) != IsNormalized::Yes;
    text.chars().next().is_some_and(joins)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Stream, below};
    use serde_json::json;

    #[test]
    fn the_quick_answer_is_the_whole_one() {
        let pool = ["a", "e", "\u{301}", "\u{323}", "é", "ẹ", "가", "ᄀ", "ᅡ", "ᆨ", "ﬁ", "\u{a0}", "漢", "\u{1e9b}", "ǆ"];
        for case in 0..3000 {
            let draw = |i, n: usize| below(Stream::World, &[case, i], n as u64) as usize;
            let text: String = (0..draw(0, 8)).map(|i| pool[draw(i as u64 + 1, pool.len())]).collect();
            assert_eq!(Form::Nfc.apply(&text).unwrap(), text.nfc().map(|(c, _)| c).collect::<String>());
            assert_eq!(Form::Nfd.apply(&text).unwrap(), text.nfd().map(|(c, _)| c).collect::<String>());
            assert_eq!(Form::Nfkc.apply(&text).unwrap(), text.nfkc().map(|(c, _)| c).collect::<String>());
            assert_eq!(Form::Nfkd.apply(&text).unwrap(), text.nfkd().map(|(c, _)| c).collect::<String>());
        }
        for c in '\0'..=char::MAX {
            let text = c.to_string();
            assert_eq!(Form::Nfc.apply(&text).unwrap(), text.nfc().map(|(c, _)| c).collect::<String>(), "{c:?}");
            assert_eq!(Form::Nfkc.apply(&text).unwrap(), text.nfkc().map(|(c, _)| c).collect::<String>(), "{c:?}");
        }
    }

    #[test]
    fn no_text_is_longer_than_its_normal_form_by_more_than_is_said() {
        let forms = [Form::Nfc, Form::Nfd, Form::Nfkc, Form::Nfkd];
        for c in '\0'..=char::MAX {
            let text = c.to_string();
            for form in forms {
                let normal = form.apply(&text).unwrap();
                assert!(normal.len() * SHRINKS >= text.len() && normal.len() <= text.len() * 11, "{c:?} {form:?}");
            }
            // What composes to two bytes or more comes of four characters at most.
            assert!(text.nfd().count() <= 4, "{c:?}");
        }
    }

    #[test]
    fn forms_are_applied_in_their_order() {
        let parts = json!({"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "NFC"}]});
        assert_eq!(Normalizer::from_json(&parts).unwrap().apply("e\u{301}").unwrap(), "é");
        let parts = json!({"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "NFD"}]});
        assert_eq!(Normalizer::from_json(&parts).unwrap().apply("ﬁé").unwrap(), "fie\u{301}");
        assert!(Normalizer::from_json(&json!(null)).unwrap().is_identity());
    }
}
