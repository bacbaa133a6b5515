//! From trajectories to loss weights: which tokens of a batch are learnt, by which loss, how strongly.
//!
//! Trajectories are dropped first (evaluations, too stale, filtered out), each kind counted. Every token of a
//! trained turn then gets weight omega v: omega is its turn's weight and v the normaliser's share,
//!
//! - token mean: v = 1 / N, N trained tokens in the batch;
//! - sequence mean: v = 1 / (I N_i), I trajectories with a trained token, N_i such tokens in trajectory i;
//! - turn mean: v = 1 / (U n_u), U trained turns in the batch, n_u tokens in turn u.
//!
//! So all v together are 1. The shares do not depend on omega: halving a turn's weight halves its loss.
#![forbid(unsafe_code)]

use super::config::{Config, Filter, Kernel, Normaliser};
use super::trajectory::{Trajectory, Turn};

/// The loss of one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLoss {
    /// Index of the trajectory in the batch.
    pub trajectory: usize,
    /// Position of the token, at least 1; its logits stand at the position before it.
    pub position: usize,
    /// Which loss.
    pub kernel: Kernel,
    /// Factor of this token's loss in the batch's.
    pub weight: f64,
}

/// The losses of a batch, and what was left out.
#[derive(Clone, Debug, Default)]
pub struct BatchPlan {
    /// Trained tokens, by trajectory and position.
    pub tokens: Vec<TokenLoss>,
    /// Trajectories with at least one trained token.
    pub n_trajectories: usize,
    /// Trained turns.
    pub n_turns: usize,
    /// Trajectories dropped as evaluations.
    pub n_evaluations: usize,
    /// Trajectories dropped because they lag too many revisions.
    pub n_stale: usize,
    /// Trajectories dropped by the filter.
    pub n_filtered: usize,
}

/// Plans the batch for a student at `revision`. Without a trained token, `tokens` is empty.
pub fn plan(trajectories: &[Trajectory], config: &Config, revision: u64) -> BatchPlan {
    let mut plan = BatchPlan::default();
    let mut kept = Vec::new();
    for (index, trajectory) in trajectories.iter().enumerate() {
        let heading = &trajectory.heading;
        let success = trajectory.outcome().and_then(|outcome| outcome.success);
        if heading.evaluation {
            plan.n_evaluations += 1;
        } else if revision.saturating_sub(heading.revision) > config.max_staleness {
            plan.n_stale += 1;
        } else if config.filter == Filter::Success && success != Some(true) {
            plan.n_filtered += 1;
        } else {
            let n_tokens: usize = trained(trajectory).map(|turn| turn.range.len()).sum();
            if n_tokens > 0 {
                kept.push((index, n_tokens));
                plan.n_turns += trained(trajectory).count();
            }
        }
    }
    plan.n_trajectories = kept.len();
    let n_batch_tokens: usize = kept.iter().map(|&(_, n_tokens)| n_tokens).sum();
    plan.tokens.reserve_exact(n_batch_tokens);
    for &(index, n_tokens) in &kept {
        for turn in trained(&trajectories[index]) {
            let share = match config.normaliser {
                Normaliser::TokenMean => 1.0 / n_batch_tokens as f64,
                Normaliser::SequenceMean => 1.0 / (kept.len() as f64 * n_tokens as f64),
                Normaliser::TurnMean => 1.0 / (plan.n_turns as f64 * turn.range.len() as f64),
            };
            plan.tokens.extend(turn.range.clone().map(|position| TokenLoss {
                trajectory: index,
                position,
                kernel: turn.loss.kernel,
                weight: turn.loss.weight * share,
            }));
        }
    }
    plan
}

fn trained(trajectory: &Trajectory) -> impl Iterator<Item = &Turn> {
    trajectory.turns().iter().filter(|turn| turn.train)
}
