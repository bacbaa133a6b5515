//! What controls must know of a timeline before its next token: the ids that stand in it and how often, and which n-grams.
//!
//! It is made once, when a generation begins, and kept up token by token, so that a step looks at the ids that are edited and
//! never at the whole timeline. It belongs to the job: pages that are lost and computed again change nothing, and after a
//! truncation, a fork or a rewind the next generation makes its own.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use super::controls::Controls;
use super::timeline::Token;
use crate::backend::ops::Edit;
use crate::error::{Error, Fault, Result};
use crate::memory;

/// The edits of the next token's logits, under some controls.
pub(super) struct History {
    repetition: f32,
    presence: f32,
    frequency: f32,
    /// one for each id that a bias or a penalty touches; behind them the ids that are ruled out now
    edits: Vec<Edit>,
    /// times that each of them was sampled in the turn under way
    counts: Vec<u32>,
    at: HashMap<i32, usize>,
    ngrams: Option<Ngrams>,
}

const EDITED: &str = "the ids whose logits are edited";

impl History {
    /// Of a timeline; None where nothing edits logits. Errors: `OutOfHostMemory`.
    pub(super) fn of(controls: &Controls, tokens: &[Token], ids: &[i32]) -> Result<Option<History>> {
        let mut history = History {
            repetition: controls.repetition_penalty,
            presence: controls.presence_penalty,
            frequency: controls.frequency_penalty,
            edits: Vec::new(),
            counts: Vec::new(),
            at: HashMap::new(),
            ngrams: None,
        };
        for &(id, bias) in &controls.logit_bias {
            let at = history.edit_of(id)?;
            history.edits[at].bias = bias;
        }
        if controls.no_repeat_ngram_size > 0 {
            history.ngrams = Some(Ngrams::of(ids, controls.no_repeat_ngram_size as usize)?);
        }
        // The turn under way: what was sampled since somebody else wrote. A generation that was cut in two counts as one.
        let turn = tokens.iter().rposition(|t| !t.source.is_action()).map_or(0, |at| at + 1);
        for (i, &id) in ids.iter().enumerate() {
            history.count(id, i >= turn)?;
        }
        let edits_nothing = history.edits.is_empty() && history.ngrams.is_none() && !history.counts_sampled();
        Ok((!edits_nothing).then_some(history))
    }

    fn counts_sampled(&self) -> bool {
        self.presence != 0.0 || self.frequency != 0.0 || self.repetition != 1.0
    }

    /// The place of an id's lasting edit.
    fn edit_of(&mut self, id: i32) -> Result<usize> {
        if let Some(&at) = self.at.get(&id) {
            return Ok(at);
        }
        self.edits.truncate(self.counts.len());
        memory::reserve(&mut self.edits, 1, EDITED)?;
        memory::reserve(&mut self.counts, 1, EDITED)?;
        self.at.try_reserve(1).map_err(|_| memory::refused(size_of::<(i32, usize)>(), EDITED))?;
        let at = self.counts.len();
        self.edits.push(Edit { id: id as u32, bias: 0.0, penalty: 1.0, less: 0.0 });
        self.counts.push(0);
        self.at.insert(id, at);
        Ok(at)
    }

    /// Counts an id of the timeline.
    fn count(&mut self, id: i32, sampled: bool) -> Result<()> {
        let counts = sampled && (self.presence != 0.0 || self.frequency != 0.0);
        if !counts && self.repetition == 1.0 {
            return Ok(());
        }
        let at = self.edit_of(id)?;
        self.edits[at].penalty = self.repetition;
        if counts {
            self.counts[at] += 1;
            let less = self.frequency as f64 * f64::from(self.counts[at]) + self.presence as f64;
            self.edits[at].less = less as f32;
        }
        Ok(())
    }

    /// Takes the id that was sampled; it stands at the end of `ids` already.
    pub(super) fn push(&mut self, ids: &[i32]) -> Result<()> {
        let Some(&id) = ids.last() else { return Ok(()) };
        self.count(id, true)?;
        self.ngrams.as_mut().map_or(Ok(()), |ngrams| ngrams.push(ids))
    }

    /// The edits for the token after `ids`. An id that is ruled out has two, the second of which does it.
    pub(super) fn edits(&mut self, ids: &[i32]) -> Result<&[Edit]> {
        self.edits.truncate(self.counts.len());
        if let Some(ngrams) = &self.ngrams {
            let starts = ngrams.followers(ids);
            memory::reserve(&mut self.edits, starts.len(), EDITED)?;
            let ruled_out = starts.iter().map(|&start| ids[start as usize + ngrams.n - 1]);
            self.edits.extend(ruled_out.map(|id| Edit { id: id as u32, bias: 0.0, penalty: 1.0, less: f32::INFINITY }));
        }
        Ok(&self.edits)
    }
}

/// The refusal of a token where no id is left that could be drawn.
pub(super) fn all_ruled_out(position: usize, n: u32) -> Error {
    let why = format!(
        "no_repeat_ngram_size: {n} rules out every id that could stand at position {position}; wanted a larger number, or 0"
    );
    Error::new(Fault::BadOption, why)
}

/// The distinct n-grams of a timeline.
struct Ngrams {
    n: usize,
    /// where each begins first, in the order of the n-grams
    starts: Vec<u32>,
}

impl Ngrams {
    fn of(ids: &[i32], n: usize) -> Result<Ngrams> {
        let count = (ids.len() + 1).saturating_sub(n);
        let mut starts = memory::reserved(count, "the n-grams of a timeline")?;
        starts.extend(0..count as u32);
        let at = |start: u32| &ids[start as usize..][..n];
        starts.sort_unstable_by(|&a, &b| at(a).cmp(at(b)).then(a.cmp(&b)));
        starts.dedup_by(|later, first| at(*later) == at(*first));
        Ok(Ngrams { n, starts })
    }

    /// Takes the n-gram that `ids` end with.
    fn push(&mut self, ids: &[i32]) -> Result<()> {
        let Some(start) = ids.len().checked_sub(self.n) else { return Ok(()) };
        let (n, new) = (self.n, &ids[start..]);
        if let Err(at) = self.starts.binary_search_by(|&other| ids[other as usize..][..n].cmp(new)) {
            memory::reserve(&mut self.starts, 1, "the n-grams of a timeline")?;
            self.starts.insert(at, start as u32);
        }
        Ok(())
    }

    /// Where the n-grams begin whose last id would make one twice if it followed `ids`.
    fn followers(&self, ids: &[i32]) -> &[u32] {
        let Some(from) = (ids.len() + 1).checked_sub(self.n) else { return &[] };
        let begun = &ids[from..];
        let beginning = |start: u32| &ids[start as usize..][..self.n - 1];
        let first = self.starts.partition_point(|&start| beginning(start) < begun);
        let n = self.starts[first..].partition_point(|&start| beginning(start) == begun);
        &self.starts[first..first + n]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Stream, below};
    use crate::text::source::Source;

    fn tokens(ids: &[i32], source: Source) -> Vec<Token> {
        ids.iter().map(|&id| Token::given(id, source)).collect()
    }

    /// Edits merged by id, in order of id.
    fn merged(edits: &[Edit]) -> Vec<(u32, f32, f32, f32)> {
        let mut all: Vec<(u32, f32, f32, f32)> = Vec::new();
        for e in edits {
            match all.iter_mut().find(|one| one.0 == e.id) {
                Some(one) => one.3 += e.less,
                None => all.push((e.id, e.bias, e.penalty, e.less)),
            }
        }
        all.retain(|&(_, bias, penalty, less)| (bias, penalty, less) != (0.0, 1.0, 0.0));
        all.sort_by_key(|one| one.0);
        all
    }

    #[test]
    fn a_history_that_was_kept_up_is_one_made_anew() {
        for case in 0..300u64 {
            let draw = |i: u64, n: u64| below(Stream::World, &[case, i], n);
            let controls = Controls {
                repetition_penalty: [1.0, 1.5][draw(0, 2) as usize],
                presence_penalty: [0.0, 0.5][draw(1, 2) as usize],
                frequency_penalty: [0.0, 0.25][draw(2, 2) as usize],
                no_repeat_ngram_size: draw(3, 5) as u32,
                logit_bias: (0..draw(4, 3) as i32).map(|id| (3 * id, 1.0 + id as f32)).collect(),
                ..Controls::default()
            };
            let ids: Vec<i32> = (0..60).map(|i| draw(100 + i, 6) as i32).collect();
            let all = [tokens(&ids[..20], Source::Host), tokens(&ids[20..], Source::Student)].concat();
            let mut kept = History::of(&controls, &all[..20], &ids[..20]).unwrap();
            for n in 20..60 {
                let mut anew = History::of(&controls, &all[..n], &ids[..n]).unwrap();
                assert_eq!(kept.is_some(), anew.is_some());
                let (Some(kept), Some(anew)) = (&mut kept, &mut anew) else { break };
                assert_eq!(
                    merged(kept.edits(&ids[..n]).unwrap()),
                    merged(anew.edits(&ids[..n]).unwrap()),
                    "{controls:?}"
                );
                // By looking at every place.
                let before = &ids[..n];
                let size = controls.no_repeat_ngram_size as usize;
                for id in 0..6 {
                    let mut next = before.to_vec();
                    next.push(id);
                    let comes_again = size > 0 && next.len() > size && before.windows(size).any(|w| next.ends_with(w));
                    let edits = anew.edits(before).unwrap();
                    let is_out = edits.iter().any(|e| e.id == id as u32 && e.less == f32::INFINITY);
                    assert_eq!(is_out, comes_again, "{size} {next:?}");
                }
                kept.push(&ids[..n + 1]).unwrap();
            }
        }
    }

    #[test]
    fn the_prompt_counts_for_repetition_and_the_turn_alone_for_presence_and_frequency() {
        let controls =
            Controls { repetition_penalty: 2.0, presence_penalty: 1.0, frequency_penalty: 0.5, ..Controls::default() };
        let ids = [1, 2, 1, 3, 1, 3, 3];
        let all = [
            tokens(&ids[..1], Source::Host),
            tokens(&ids[1..2], Source::Student),
            tokens(&ids[2..3], Source::Host),
            tokens(&ids[3..], Source::Student),
        ]
        .concat();
        let mut history = History::of(&controls, &all, &ids).unwrap().unwrap();
        assert_eq!(merged(history.edits(&ids).unwrap()), [(1, 0.0, 2.0, 1.5), (2, 0.0, 2.0, 0.0), (3, 0.0, 2.0, 2.5)]);
        assert!(History::of(&Controls::default(), &all, &ids).unwrap().is_none());
    }
}
