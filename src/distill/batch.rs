//! From trajectories to loss weights: which tokens of a batch are learnt, by which loss, how strongly.
//!
//! Trajectories are dropped first (evaluations, too stale, filtered out, cut off, repetitive), each kind counted. Every token of a
//! trained turn then gets weight omega v: omega is its turn's weight and v the normaliser's share,
//!
//! - token mean: v = 1 / N, N trained tokens in the batch;
//! - sequence mean: v = 1 / (I N_i), I trajectories with a trained token, N_i such tokens in trajectory i;
//! - turn mean: v = 1 / (U n_u), U trained turns in the batch, n_u tokens in turn u;
//! - blend: (1 - a) of the token mean's and a of the turn mean's (TurnOPD, arXiv 2607.05804, blends within a trajectory);
//! - fixed: v = 1 / Z.
//!
//! So all v together are 1, but for the fixed one. Where actors are averaged by themselves, N, I, N_i and U count the tokens of the
//! token's own actor, and each actor's v together are 1. The shares do not depend on omega: halving a turn's weight halves its loss.
//!
//! A policy gradient's token is given what its advantage is made of: kappa and rho of the step at which its episode began, and what
//! its turn's rewards come to. How much the teacher's part counts in each turn is multiplied in when it has said its part
//! (`weighing`).
#![forbid(unsafe_code)]

use super::actor::Actor;
use super::config::Config;
use super::knobs::{Filter, LearnTurns, Normaliser, Scope, Truncated};
use super::rewards::{GroupReport, rewards};
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
    /// Index of the turn in it.
    pub turn: usize,
    /// Position of the token, at least 1; its logits stand at the position before it.
    pub position: usize,
    /// Which loss.
    pub kind: Loss,
    /// Factor of this token's loss in the batch's.
    pub weight: f64,
    /// Factor of what the teacher says in its advantage; read of a policy gradient.
    pub teacher: f64,
    /// The rest of its advantage; read of a policy gradient.
    pub rest: f64,
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
    /// Trajectories dropped because a turn was cut off.
    pub n_truncated: usize,
    /// Trajectories dropped because an action stands too often in a row.
    pub n_repetitive: usize,
    /// The groups whose rewards are compared, where there are any.
    pub groups: Option<GroupReport>,
    /// The mean weight of the turns that are weighed.
    pub mean_turn_weight: Option<f64>,
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

/// What is averaged together: trained tokens, turns, and trajectories with one.
#[derive(Clone, Copy, Default)]
struct Count {
    tokens: usize,
    turns: usize,
    trajectories: usize,
}

/// Plans the batch for a student at `revision`. Without a trained token, `tokens` is empty. Errors: `OutOfHostMemory`.
pub fn plan<T: Borrow<Trajectory>>(trajectories: &[T], config: &Config, revision: u64) -> Result<BatchPlan> {
    let trajectories: Vec<&Trajectory> = trajectories.iter().map(Borrow::borrow).collect();
    let mut plan = BatchPlan::default();
    let scope = |actor: Actor| match config.normaliser_scope {
        Scope::Batch => 0,
        Scope::Actor => actor as usize,
    };
    let mut counts = [Count::default(); 4];
    let mut kept = Vec::new();
    for (index, trajectory) in trajectories.iter().enumerate() {
        if let Some(dropped) = dropped(trajectory, config, revision, &mut plan) {
            *dropped += 1;
            continue;
        }
        let turns = trained(trajectory, config);
        // Trained tokens of the trajectory that are averaged together.
        let mut own = [0; 4];
        for &turn in &turns {
            let turn = &trajectory.turns()[turn];
            own[scope(turn.actor)] += turn.range.len();
            counts[scope(turn.actor)].tokens += turn.range.len();
            counts[scope(turn.actor)].turns += 1;
        }
        for (count, own) in counts.iter_mut().zip(own) {
            count.trajectories += usize::from(own > 0);
        }
        if !turns.is_empty() {
            plan.n_turns += turns.len();
            kept.push((index, turns, own));
        }
    }
    plan.n_trajectories = kept.len();
    let rewards = takes_rewards(config).then(|| rewards(&trajectories, &config.reward));
    plan.groups = rewards.as_ref().map(|r| r.report).filter(|report| report.groups > 0);
    host::reserve(&mut plan.tokens, counts.iter().map(|count| count.tokens).sum())?;
    for (index, turns, own) in kept {
        let trajectory = trajectories[index];
        let at = |schedule: &super::schedule::Schedule| schedule.value(trajectory.heading.step, config.steps);
        let (kappa, rho) = (at(&config.advantage.teacher), at(&config.advantage.reward));
        for turn_index in turns {
            let turn = &trajectory.turns()[turn_index];
            let (count, own) = (counts[scope(turn.actor)], own[scope(turn.actor)]);
            let of_tokens = 1.0 / count.tokens as f64;
            let of_turns = 1.0 / (count.turns as f64 * turn.range.len() as f64);
            let share = match &config.normaliser {
                Normaliser::TokenMean => of_tokens,
                Normaliser::SequenceMean => 1.0 / (count.trajectories as f64 * own as f64),
                Normaliser::TurnMean => of_turns,
                Normaliser::Blend(turns) => (1.0 - at(turns)) * of_tokens + at(turns) * of_turns,
                Normaliser::Fixed(tokens) => 1.0 / tokens,
            };
            let Some(kind) = turn.loss.kind else { continue };
            let reward = rewards.as_ref().map_or(0.0, |r| rho * r.of_turns[index][turn_index]);
            plan.tokens.extend(turn.range.clone().map(|position| TokenLoss {
                trajectory: index,
                turn: turn_index,
                position,
                kind,
                weight: turn.loss.weight * share,
                teacher: kappa,
                rest: reward + config.advantage.constant,
            }));
        }
    }
    Ok(plan)
}

/// Whether a policy gradient has a part that comes from rewards.
pub(super) fn takes_rewards(config: &Config) -> bool {
    matches!(config.student_turns.kind, Some(Loss::PolicyGradient(_))) && config.advantage.reward.bounds() != (0.0, 0.0)
}

/// Where a trajectory that is not learnt is counted.
fn dropped<'a>(t: &Trajectory, config: &Config, revision: u64, plan: &'a mut BatchPlan) -> Option<&'a mut usize> {
    if t.heading.evaluation {
        Some(&mut plan.n_evaluations)
    } else if revision.saturating_sub(t.heading.revision) > config.max_staleness {
        Some(&mut plan.n_stale)
    } else if config.filter == Filter::Success && t.outcome().and_then(|outcome| outcome.success) != Some(true) {
        Some(&mut plan.n_filtered)
    } else if config.truncated == Truncated::Drop && t.turns().iter().any(|turn| turn.truncated) {
        Some(&mut plan.n_truncated)
    } else if config.max_repeats > 0 && repeats(t) > config.max_repeats as usize {
        Some(&mut plan.n_repetitive)
    } else {
        None
    }
}

/// How often one action stands in a row at most.
fn repeats(trajectory: &Trajectory) -> usize {
    let said = |turn: &Turn| &trajectory.ids()[turn.range.clone()];
    trajectory.turns().chunk_by(|a, b| said(a) == said(b)).map(<[Turn]>::len).max().unwrap_or(0)
}

/// The turns of a trajectory that are learnt.
fn trained(trajectory: &Trajectory, config: &Config) -> Vec<usize> {
    let is_learnt = |turn: &Turn| turn.train && !(config.truncated == Truncated::Mask && turn.truncated);
    let mut turns = trajectory.turns().iter().enumerate().filter(|(_, turn)| is_learnt(turn)).map(|(i, _)| i);
    match config.learn_turns {
        LearnTurns::All => turns.collect(),
        LearnTurns::Last => turns.next_back().into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::actor::Actor;
    use super::super::policy::{Decision, Reason};
    use super::super::trajectory::{Action, Heading, Outcome};
    use super::super::turn_loss::TurnLoss;
    use super::*;
    use crate::text::source::Source;
    use serde_json::{Value, json};

    /// A trajectory at `revision` with two context tokens before each turn; a turn is (tokens, loss, weight).
    fn trajectory(revision: u64, turns: &[(usize, Option<Loss>, f64)]) -> Trajectory {
        let heading = Heading {
            episode: 1,
            step: 0,
            task: String::new(),
            group: String::new(),
            seed: 1,
            revision,
            evaluation: false,
            ..Heading::default()
        };
        let mut t = Trajectory::new(heading);
        for &(n, kind, weight) in turns {
            t.add_context(&[9, 9], Source::Host).unwrap();
            let logprobs = vec![-1.0; n];
            let ids = vec![5; n];
            let action = Action {
                actor: Actor::Student,
                ids: &ids,
                logprobs: &logprobs,
                sampled_logprobs: &logprobs,
                truncated: false,
                from_text: false,
            };
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

    /// A trajectory of turns by these actors, of so many tokens each, which say `ids`.
    fn by_actors(turns: &[(Actor, usize, i32)]) -> Trajectory {
        let mut t = trajectory(0, &[]);
        for &(actor, n, id) in turns {
            t.add_context(&[9, 9], Source::Host).unwrap();
            let (ids, logprobs) = (vec![id; n], vec![-1.0; n]);
            let action = Action {
                actor,
                ids: &ids,
                logprobs: &logprobs,
                sampled_logprobs: &logprobs,
                truncated: id == CUT,
                from_text: false,
            };
            let (reason, train_on_this, horizon, probability) = (Reason::Method, true, 1, 0.0);
            let decision = Decision { actor: Some(actor), reason, train_on_this, horizon, probability };
            t.add_turn(&action, &decision, TurnLoss { kind: RKL, weight: 1.0 }).unwrap();
        }
        t
    }

    /// What a turn says that was cut off.
    const CUT: i32 = 77;

    #[test]
    fn a_blend_is_so_much_of_the_turn_mean() {
        let of = |normaliser: Value| {
            let config = Config::from_value(&json!({ "normaliser": normaliser, "steps": 10 })).unwrap();
            firsts(&planned(&batch(), &config, 0)).into_iter().map(|(_, _, weight)| weight).collect::<Vec<_>>()
        };
        let (token, turn) = (of(json!("token-mean")), of(json!("turn-mean")));
        assert_eq!((of(json!({"blend": 0})), of(json!({"blend": 1}))), (token.clone(), turn.clone()));
        let blended = of(json!({"blend": 0.25}));
        for i in 0..3 {
            assert!((blended[i] - (0.75 * token[i] + 0.25 * turn[i])).abs() < 1e-15);
        }
        // The share is that of the step at which the episode began: half way it is half.
        let half = json!({"blend": {"start": 0, "end": 1, "shape": "linear", "finish": 1, "clock": "fraction"}});
        let config = Config::from_value(&json!({ "normaliser": half, "steps": 10 })).unwrap();
        let mut batch = batch();
        batch.iter_mut().for_each(|t| t.heading.step = 5);
        let weights: Vec<f64> = firsts(&planned(&batch, &config, 0)).into_iter().map(|(_, _, weight)| weight).collect();
        assert!((weights[0] - 0.5 * (token[0] + turn[0])).abs() < 1e-15);
    }

    #[test]
    fn a_fixed_normaliser_does_not_know_the_batch() {
        let config = Config::from_value(&json!({"normaliser": {"fixed": 100}})).unwrap();
        assert!(planned(&batch(), &config, 0).tokens.iter().all(|t| t.weight == 0.01));
        assert!(planned(&batch()[..1], &config, 0).tokens.iter().all(|t| t.weight == 0.01));
    }

    #[test]
    fn actors_that_are_averaged_by_themselves_each_sum_to_one() {
        use Actor::{Student, Teacher};
        let batch = [by_actors(&[(Student, 2, 5), (Teacher, 6, 5)]), by_actors(&[(Student, 3, 5)])];
        for normaliser in ["token-mean", "sequence-mean", "turn-mean"] {
            let document = json!({"normaliser": normaliser, "normaliser_scope": "actor"});
            let plan = planned(&batch, &Config::from_value(&document).unwrap(), 0);
            let sum = |actor: Actor| -> f64 {
                let of = |t: &&TokenLoss| batch[t.trajectory].sources()[t.position] == actor.source();
                plan.tokens.iter().filter(of).map(|t| t.weight).sum()
            };
            assert!((sum(Student) - 1.0).abs() < 1e-12 && (sum(Teacher) - 1.0).abs() < 1e-12, "{normaliser}");
            let first = plan.tokens[0].weight;
            let wanted = match normaliser {
                "token-mean" => 1.0 / 5.0,
                _ => 1.0 / 4.0,
            };
            assert!((first - wanted).abs() < 1e-15, "{normaliser}: {first}");
        }
    }

    #[test]
    fn the_last_turn_alone_is_learnt_where_that_is_asked_for() {
        let config = Config::from_value(&json!({"learn_turns": "last"})).unwrap();
        let plan = planned(&batch(), &config, 0);
        let positions: Vec<_> = plan.tokens.iter().map(|t| (t.trajectory, t.turn, t.position)).collect();
        assert_eq!(positions, (6..12).map(|p| (0, 1, p)).chain([(1, 1, 7)]).collect::<Vec<_>>());
        assert_eq!((plan.n_turns, plan.n_trajectories), (2, 2));
    }

    #[test]
    fn turns_that_were_cut_off_are_learnt_masked_or_drop_their_episode() {
        let batch =
            [by_actors(&[(Actor::Student, 2, 5), (Actor::Student, 3, CUT)]), by_actors(&[(Actor::Student, 4, 5)])];
        let of = |word: &str| {
            let plan = planned(&batch, &Config::from_value(&json!({ "truncated": word })).unwrap(), 0);
            (plan.tokens.len(), plan.n_trajectories, plan.n_truncated)
        };
        assert_eq!((of("learn"), of("mask"), of("drop")), ((9, 2, 0), (6, 2, 0), (4, 1, 1)));
    }

    #[test]
    fn an_episode_that_repeats_itself_is_dropped() {
        use Actor::Student;
        // Three times the same in a row; twice, and a third time later; never, of another length.
        let three = by_actors(&[(Student, 2, 5), (Student, 2, 5), (Student, 2, 5)]);
        let apart = by_actors(&[(Student, 2, 5), (Student, 2, 5), (Student, 2, 6), (Student, 2, 5)]);
        let other = by_actors(&[(Student, 1, 5), (Student, 2, 5), (Student, 3, 5)]);
        let batch = [three, apart, other];
        let of = |most: u32| {
            let plan = planned(&batch, &Config::from_value(&json!({ "max_repeats": most })).unwrap(), 0);
            (plan.n_repetitive, plan.n_trajectories)
        };
        assert_eq!((of(0), of(3), of(2), of(1)), ((0, 3), (0, 3), (1, 2), (2, 1)));
    }
}
