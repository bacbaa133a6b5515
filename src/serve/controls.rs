//! What changes the distribution of a generation besides temperature, top-k and top-p (docs/numerics.md has the order and
//! where each comes from).
#![forbid(unsafe_code)]

use std::collections::HashSet;

use crate::backend::ops::Cuts;
use crate::error::{Error, Fault, Result};
use crate::format::GenerationDefaults;
use crate::memory;

/// Ids of an n-gram that may not come again, at most.
pub const MAX_NGRAM: u32 = 64;
/// The most that is added to a logit or taken from it.
pub const MAX_BIAS: f32 = 100.0;

/// Controls of one generation. The default changes nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Controls {
    /// Keep the ids with at least this share of the likeliest one's probability, after top-p; from 0, which keeps all, to 1.
    pub min_p: f32,
    /// Keep the ids whose surprise lies nearest to the entropy, up to this mass, after min-p; above 0, at most 1, which keeps
    /// all.
    pub typical_p: f32,
    /// Divides the positive logits of ids that stand anywhere in the timeline, the prompt included, and multiplies the
    /// negative ones; from 0.01 to 100, 1 leaves them.
    pub repetition_penalty: f32,
    /// Taken once from the logits of ids that were sampled in the turn under way; from -2 to 2.
    pub presence_penalty: f32,
    /// Taken from them for each time that they were; from -2 to 2.
    pub frequency_penalty: f32,
    /// No n ids of the timeline that stand side by side, the prompt included, come again; 0: they may. At most 64.
    pub no_repeat_ngram_size: u32,
    /// Added to the logits of these ids, each once; from -100 to 100.
    pub logit_bias: Vec<(i32, f32)>,
}

impl Default for Controls {
    fn default() -> Controls {
        let Cuts { min_p, typical_p } = Cuts::default();
        Controls {
            min_p,
            typical_p,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            no_repeat_ngram_size: 0,
            logit_bias: Vec::new(),
        }
    }
}

impl Controls {
    /// As a folder advises; what it leaves open is neutral.
    pub(super) fn advised(folder: &GenerationDefaults) -> Controls {
        let neutral = Controls::default();
        Controls {
            min_p: folder.min_p.unwrap_or(neutral.min_p),
            typical_p: folder.typical_p.unwrap_or(neutral.typical_p),
            repetition_penalty: folder.repetition_penalty.unwrap_or(neutral.repetition_penalty),
            presence_penalty: folder.presence_penalty.unwrap_or(neutral.presence_penalty),
            frequency_penalty: folder.frequency_penalty.unwrap_or(neutral.frequency_penalty),
            no_repeat_ngram_size: folder.no_repeat_ngram_size.unwrap_or(neutral.no_repeat_ngram_size),
            logit_bias: folder.logit_bias.clone(),
        }
    }

    /// What is cut.
    pub fn cuts(&self) -> Cuts {
        Cuts { min_p: self.min_p, typical_p: self.typical_p }
    }

    /// The first of them that is not as in `other`.
    pub fn differs_from(&self, other: &Controls) -> Option<&'static str> {
        let differ = [
            ("min_p", self.min_p != other.min_p),
            ("typical_p", self.typical_p != other.typical_p),
            ("repetition_penalty", self.repetition_penalty != other.repetition_penalty),
            ("presence_penalty", self.presence_penalty != other.presence_penalty),
            ("frequency_penalty", self.frequency_penalty != other.frequency_penalty),
            ("no_repeat_ngram_size", self.no_repeat_ngram_size != other.no_repeat_ngram_size),
            ("logit_bias", self.logit_bias != other.logit_bias),
        ];
        differ.iter().find(|(_, differs)| *differs).map(|&(name, _)| name)
    }

    /// Refuses values outside their range, and biases of ids that lie outside of `vocabulary` or come twice.
    pub fn check(&self, vocabulary: usize) -> Result<()> {
        let refuse = |why: String| Err(Error::new(Fault::BadOption, why));
        let within = |name: &str, found: f32, least: f32, most: f32| match (least..=most).contains(&found) {
            true => Ok(()),
            false => refuse(format!("{name}: wanted a number from {least} to {most}, found {found}")),
        };
        within("min_p", self.min_p, 0.0, 1.0)?;
        if !(self.typical_p > 0.0 && self.typical_p <= 1.0) {
            return refuse(format!("typical_p: wanted a number above 0, at most 1, found {}", self.typical_p));
        }
        within("repetition_penalty", self.repetition_penalty, 0.01, 100.0)?;
        within("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        if self.no_repeat_ngram_size > MAX_NGRAM {
            let found = self.no_repeat_ngram_size;
            return refuse(format!("no_repeat_ngram_size: wanted a number from 0 to {MAX_NGRAM}, found {found}"));
        }
        let mut seen = HashSet::new();
        let n = self.logit_bias.len().min(vocabulary);
        seen.try_reserve(n).map_err(|_| memory::refused(n * size_of::<i32>(), "the biases of a generation"))?;
        for (i, &(id, bias)) in self.logit_bias.iter().enumerate() {
            if id < 0 || id as usize >= vocabulary {
                let why = format!("logit_bias[{i}]: wanted an id of the vocabulary of {vocabulary}, found {id}");
                return Err(Error::new(Fault::IdOutOfRange, why));
            }
            within(&format!("logit_bias[{i}], of id {id}"), bias, -MAX_BIAS, MAX_BIAS)?;
            // As many at most as the vocabulary has: the next would be a second of some id.
            if !seen.insert(id) {
                return refuse(format!("logit_bias[{i}]: wanted each id once, found {id} again"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_refused_by_name_and_bounds_are_taken() {
        let neutral = Controls::default();
        assert!(neutral.check(10).is_ok());
        let bad = [
            (Controls { min_p: 2.0, ..neutral.clone() }, "min_p: wanted a number from 0 to 1, found 2"),
            (Controls { min_p: f32::NAN, ..neutral.clone() }, "min_p: wanted a number from 0 to 1, found NaN"),
            (Controls { typical_p: 0.0, ..neutral.clone() }, "typical_p: wanted a number above 0, at most 1, found 0"),
            (
                Controls { repetition_penalty: 0.0, ..neutral.clone() },
                "repetition_penalty: wanted a number from 0.01 to 100, found 0",
            ),
            (
                Controls { presence_penalty: -2.5, ..neutral.clone() },
                "presence_penalty: wanted a number from -2 to 2, found -2.5",
            ),
            (
                Controls { frequency_penalty: f32::INFINITY, ..neutral.clone() },
                "frequency_penalty: wanted a number from -2 to 2, found inf",
            ),
            (
                Controls { no_repeat_ngram_size: 65, ..neutral.clone() },
                "no_repeat_ngram_size: wanted a number from 0 to 64, found 65",
            ),
            (
                Controls { logit_bias: vec![(9, 1.0), (10, 1.0)], ..neutral.clone() },
                "logit_bias[1]: wanted an id of the vocabulary of 10, found 10",
            ),
            (
                Controls { logit_bias: vec![(-1, 1.0)], ..neutral.clone() },
                "logit_bias[0]: wanted an id of the vocabulary of 10, found -1",
            ),
            (
                Controls { logit_bias: vec![(3, 101.0)], ..neutral.clone() },
                "logit_bias[0], of id 3: wanted a number from -100 to 100, found 101",
            ),
            (
                Controls { logit_bias: vec![(3, 1.0), (3, 1.0)], ..neutral.clone() },
                "logit_bias[1]: wanted each id once, found 3 again",
            ),
        ];
        for (controls, wanted) in bad {
            assert_eq!(controls.check(10).unwrap_err().message(), wanted);
            let name = wanted.split([':', '[']).next();
            assert_eq!(controls.differs_from(&neutral), name);
        }
        let bounds = Controls {
            min_p: 1.0,
            typical_p: 1.0,
            repetition_penalty: 100.0,
            presence_penalty: -2.0,
            frequency_penalty: 2.0,
            no_repeat_ngram_size: 64,
            logit_bias: vec![(0, -100.0), (9, 100.0)],
        };
        assert!(bounds.check(10).is_ok());
    }
}
