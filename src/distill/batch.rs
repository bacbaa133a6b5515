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

use super::config::Config;
use super::knobs::{Filter, Normaliser};
use super::trajectory::{Trajectory, Turn};
use crate::backend::host;
use crate::backend::ops::Loss;
use crate::error::Result;
use std::borrow::Borrow;

/// The loss of one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLoss {
    /// Index of the trajectory in the batch.
    pub trajectory: usize,
    /// Position of the token, at least 1; its logits stand at the position before it.
    pub position: usize,
    /// Which loss.
    pub kind: Loss,
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

impl BatchPlan {
    /// Tokens that must be fed: of each trajectory all before its last trained one.
    pub fn n_fed(&self) -> usize {
        self.tokens
            .chunk_by(|a, b| a.trajectory == b.trajectory)
            .filter_map(|of_one| of_one.last())
            .map(|t| t.position)
            .sum()
    }
}

/// Plans the batch for a student at `revision`. Without a trained token, `tokens` is empty. Errors: `OutOfHostMemory`.
pub fn plan<T: Borrow<Trajectory>>(trajectories: &[T], config: &Config, revision: u64) -> Result<BatchPlan> {
    let mut plan = BatchPlan::default();
    let mut kept = Vec::new();
    for (index, trajectory) in trajectories.iter().map(Borrow::borrow).enumerate() {
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
    host::reserve(&mut plan.tokens, n_batch_tokens)?;
    for &(index, n_tokens) in &kept {
        for turn in trained(trajectories[index].borrow()) {
            let share = match config.normaliser {
                Normaliser::TokenMean => 1.0 / n_batch_tokens as f64,
                Normaliser::SequenceMean => 1.0 / (kept.len() as f64 * n_tokens as f64),
                Normaliser::TurnMean => 1.0 / (plan.n_turns as f64 * turn.range.len() as f64),
            };
            let Some(kind) = turn.loss.kind else { continue };
            let weight = turn.loss.weight * share;
            plan.tokens.extend(turn.range.clone().map(|position| TokenLoss {
                trajectory: index,
                position,
                kind,
                weight,
            }));
        }
    }
    Ok(plan)
}

fn trained(trajectory: &Trajectory) -> impl Iterator<Item = &Turn> {
    trajectory.turns().iter().filter(|turn| turn.train)
}

#[cfg(test)]
mod tests {
    use super::super::actor::Actor;
    use super::super::policy::{Decision, Reason};
    use super::super::trajectory::{Action, Heading, Outcome};
    use super::super::turn_loss::TurnLoss;
    use super::*;
    use crate::text::source::Source;
    use serde_json::json;

    /// A trajectory at `revision` with two context tokens before each turn; a turn is (tokens, loss, weight).
    fn trajectory(revision: u64, turns: &[(usize, Option<Loss>, f64)]) -> Trajectory {
        let (task, evaluation, forked_from) = (String::new(), false, None);
        let heading = Heading { episode: 1, step: 0, task, seed: 1, revision, evaluation, forked_from };
        let mut t = Trajectory::new(heading);
        for &(n, kind, weight) in turns {
            t.add_context(&[9, 9], Source::Host).unwrap();
            let logprobs = vec![-1.0; n];
            let ids = vec![5; n];
            let action = Action { actor: Actor::Student, ids: &ids, logprobs: &logprobs, sampled_logprobs: &logprobs };
            let decision = Decision {
                actor: Some(Actor::Student),
                reason: Reason::Method,
                train_on_this: true,
                horizon: 1,
                probability: 0.0,
            };
            t.add_turn(&action, &decision, TurnLoss { kind, weight }).unwrap();
        }
        t
    }

    fn planned(batch: &[Trajectory], config: &Config, revision: u64) -> BatchPlan {
        plan(batch, config, revision).unwrap()
    }

    const RKL: Option<Loss> = Some(Loss::ReverseKl);

    fn config(normaliser: &str) -> Config {
        Config::from_value(&json!({ "normaliser": normaliser })).unwrap()
    }

    /// Two trajectories: turns of 2 and 6 tokens; one turn of 1 token beside an untrained one of 3.
    fn batch() -> Vec<Trajectory> {
        vec![trajectory(0, &[(2, RKL, 1.0), (6, RKL, 1.0)]), trajectory(0, &[(3, None, 1.0), (1, RKL, 1.0)])]
    }

    /// (trajectory, position, weight) of the first token of each turn of `batch`.
    fn firsts(plan: &BatchPlan) -> Vec<(usize, usize, f64)> {
        [0, 2, 8].map(|i| (plan.tokens[i].trajectory, plan.tokens[i].position, plan.tokens[i].weight)).to_vec()
    }

    #[test]
    fn token_mean_shares_one_evenly_among_the_trained_tokens() {
        let plan = planned(&batch(), &config("token-mean"), 0);
        assert_eq!((plan.tokens.len(), plan.n_trajectories, plan.n_turns), (9, 2, 3));
        assert_eq!(firsts(&plan), [(0, 2, 1.0 / 9.0), (0, 6, 1.0 / 9.0), (1, 7, 1.0 / 9.0)]);
    }

    #[test]
    fn sequence_mean_gives_each_trajectory_the_same() {
        // Half for the first trajectory's 8 tokens, half for the second one's single trained token.
        let plan = planned(&batch(), &config("sequence-mean"), 0);
        assert_eq!(firsts(&plan), [(0, 2, 1.0 / 16.0), (0, 6, 1.0 / 16.0), (1, 7, 0.5)]);
    }

    #[test]
    fn turn_mean_gives_each_trained_turn_the_same() {
        // A third a turn: of 2, of 6 and of 1 token.
        let plan = planned(&batch(), &config("turn-mean"), 0);
        assert_eq!(firsts(&plan), [(0, 2, 1.0 / 6.0), (0, 6, 1.0 / 18.0), (1, 7, 1.0 / 3.0)]);
    }

    #[test]
    fn weights_sum_to_one_and_scale_with_the_kernel_weight() {
        for normaliser in ["token-mean", "sequence-mean", "turn-mean"] {
            let total = |weight| -> f64 {
                let batch = [
                    trajectory(0, &[(3, RKL, weight), (5, Some(Loss::CrossEntropy), weight)]),
                    trajectory(0, &[(7, Some(Loss::ForwardKl), weight)]),
                ];
                planned(&batch, &config(normaliser), 0).tokens.iter().map(|token| token.weight).sum()
            };
            assert!((total(1.0) - 1.0).abs() < 1e-12, "{normaliser}");
            assert!((total(0.5) - 0.5).abs() < 1e-12, "{normaliser}");
        }
    }

    #[test]
    fn only_tokens_of_trained_turns_are_planned() {
        let mut batch = batch();
        batch[0].executed_otherwise().unwrap();
        let plan = planned(&batch, &config("token-mean"), 0);
        let positions: Vec<_> = plan.tokens.iter().map(|token| (token.trajectory, token.position)).collect();
        assert_eq!(positions, [(0, 2), (0, 3), (1, 7)]);
        assert!(plan.tokens.iter().all(|token| batch[token.trajectory].sources()[token.position] == Source::Student));
    }

    #[test]
    fn trajectories_that_lag_too_far_are_dropped_and_counted() {
        // At revision 10 with a lag of 2 allowed, 8 is the oldest one kept.
        let batch: Vec<_> = [7, 8, 10, 11].map(|revision| trajectory(revision, &[(1, RKL, 1.0)])).into();
        let plan = planned(&batch, &config("token-mean"), 10);
        assert_eq!((plan.n_stale, plan.n_trajectories), (1, 3));
        assert!(plan.tokens.iter().all(|token| token.trajectory != 0 && token.weight == 1.0 / 3.0));
    }

    #[test]
    fn the_success_filter_keeps_only_what_the_host_called_a_success() {
        let batch: Vec<_> = [None, Some(false), Some(true)]
            .map(|success| {
                let mut t = trajectory(0, &[(1, RKL, 1.0)]);
                t.end(Outcome { score: 1.0, success }).unwrap();
                t
            })
            .into();
        let success = Config::from_value(&json!({"filter": "success"})).unwrap();
        let filtered = planned(&batch, &success, 0);
        assert_eq!((filtered.n_filtered, filtered.tokens.len(), filtered.tokens[0].trajectory), (2, 1, 2));
        assert_eq!(planned(&batch, &config("token-mean"), 0).tokens.len(), 3);
    }

    #[test]
    fn evaluations_are_never_learnt() {
        let mut t = trajectory(0, &[(1, RKL, 1.0)]);
        t.heading.evaluation = true;
        let plan = planned(&[t], &config("token-mean"), 0);
        assert_eq!((plan.n_evaluations, plan.tokens.len()), (1, 0));
    }

    #[test]
    fn a_batch_without_a_trained_token_is_empty() {
        for normaliser in ["token-mean", "sequence-mean", "turn-mean"] {
            let batch = [trajectory(0, &[(4, None, 1.0)]), trajectory(0, &[])];
            let plan = planned(&batch, &config(normaliser), 0);
            assert_eq!((plan.tokens.len(), plan.n_trajectories, plan.n_turns), (0, 0, 0));
        }
    }
}
