//! How a batch goes by: its trained tokens, and which trajectories are packed side by side into one pass.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::batch::{BatchPlan, TokenLoss, plan};
use super::config::Config;
use super::room::pages_of;
use super::workspace::Finished;
use crate::error::{Error, Fault, Result};

/// A batch in micro-batches.
pub struct Packing {
    pub(super) batch: BatchPlan,
    /// the trajectories that have trained tokens
    pub(super) trained: Vec<usize>,
    /// ranges of `trained` that are packed together, each with the tokens that it feeds
    pub(super) micro_batches: Vec<(Range<usize>, usize)>,
}

impl Packing {
    /// Trajectories side by side, at most `micro_tokens` tokens of them or one. `published`: the revision from which
    /// staleness is counted. Errors: `NothingToLearn`, `OutOfHostMemory`.
    pub(super) fn of(finished: &[&Finished], config: &Config, published: u64) -> Result<Packing> {
        let trajectories: Vec<_> = finished.iter().map(|f| &f.trajectory).collect();
        let batch = plan(&trajectories, config, published)?;
        if batch.tokens.is_empty() {
            return Err(Error::new(Fault::NothingToLearn, "no finished episode has a token that carries loss"));
        }
        let of_each = batch.tokens.chunk_by(|a, b| a.trajectory == b.trajectory);
        let trained: Vec<usize> = of_each.map(|tokens| tokens[0].trajectory).collect();
        let mut micro_batches: Vec<(Range<usize>, usize)> = Vec::new();
        for (i, &trajectory) in trained.iter().enumerate() {
            let n = last_loss(&batch.tokens, trajectory);
            match micro_batches.last_mut() {
                Some((members, fed)) if *fed + n <= config.micro_tokens as usize => {
                    members.end = i + 1;
                    *fed += n;
                }
                _ => micro_batches.push((i..i + 1, n)),
            }
        }
        Ok(Packing { batch, trained, micro_batches })
    }

    /// The most tokens of a pass, and the most pages of the timelines of one.
    pub(super) fn extent(&self) -> (usize, usize) {
        let pages = |(members, _): &(Range<usize>, usize)| -> usize {
            self.trained[members.clone()].iter().map(|&i| pages_of(last_loss(&self.batch.tokens, i))).sum()
        };
        let rows = self.micro_batches.iter().map(|(_, n)| *n).max().unwrap_or(0);
        (rows, self.micro_batches.iter().map(pages).max().unwrap_or(0))
    }

    /// Names the episode in the refusal of a batch that does not fit, where one is too long by itself: the host may discard
    /// the batch and play it shorter.
    pub(super) fn refused(&self, finished: &[&Finished], e: Error) -> Error {
        let (rows, _) = self.extent();
        match self.micro_batches.iter().find(|(members, n)| members.len() == 1 && *n == rows) {
            Some((members, _)) => {
                let episode = finished[self.trained[members.start]].trajectory.heading.episode;
                e.within(format!("episode {episode}"))
            }
            None => e,
        }
    }
}

/// Tokens of trajectory `i` that must be fed: all before its last trained one.
pub(super) fn last_loss(losses: &[TokenLoss], i: usize) -> usize {
    losses.iter().rev().find(|t| t.trajectory == i).map_or(0, |t| t.position)
}
