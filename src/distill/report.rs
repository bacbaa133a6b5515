//! The account of one update: what was learnt from, how far the student was from the teacher, by turn.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use serde::Serialize;

use super::actor::Actor;
use super::batch::{BatchPlan, TokenLoss, takes_rewards};
use super::config::Config;
use super::quantities::{Counting, Quantities, TokenFacts};
use super::rewards::GroupReport;
use super::run_id::RunId;
use super::trajectory::Trajectory;
use crate::backend::ops::{Loss, Surrogate, Worth};

/// One update in numbers. Losses in nats per token.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The weighted loss that was differentiated.
    pub loss: f64,
    /// Mean reverse KL over the trained tokens that carry it; None without such a token.
    pub reverse_kl: Option<f64>,
    /// Mean forward KL likewise.
    pub forward_kl: Option<f64>,
    /// Mean Jensen-Shannon divergence likewise.
    pub jsd: Option<f64>,
    /// Mean cross-entropy likewise.
    pub cross_entropy: Option<f64>,
    /// Mean of ln p - ln q over the tokens that the student drew and the teacher scored for a sampled loss (sampled-reverse-kl, k2,
    /// weighted-k3, policy-gradient): an estimate of the reverse KL, which may be negative.
    pub sampled_reverse_kl: Option<f64>,
    /// Mean of ln p - ln q squared over 2 likewise, of the tokens that carry k2.
    pub k2: Option<f64>,
    /// Mean importance-weighted k3 likewise.
    pub weighted_k3: Option<f64>,
    /// What policy gradients weighed; None without such a token.
    pub policy_gradient: Option<PolicyGradientReport>,
    /// Mean weight of the turns that turn_weights weighs; None where none is.
    pub turn_weight: Option<f64>,
    /// Groups whose rewards are compared; None where none are.
    pub groups: Option<GroupReport>,
    /// Mean loss of the trained tokens by turn index, whichever it is; None where no token is.
    pub loss_by_turn: Vec<Option<f64>>,
    /// Episodes in the batch.
    pub episodes: usize,
    /// Episodes with a trained token.
    pub trained_episodes: usize,
    /// Trained turns.
    pub trained_turns: usize,
    /// Trained tokens.
    pub trained_tokens: usize,
    /// Action tokens by who wrote them.
    pub student_tokens: usize,
    /// The teacher's.
    pub teacher_tokens: usize,
    /// Replayed ones.
    pub replay_tokens: usize,
    /// Turns by who acted.
    pub student_turns: usize,
    /// The teacher's.
    pub teacher_turns: usize,
    /// Replayed ones.
    pub replay_turns: usize,
    /// Turns of the teacher's that it said as text: their ids were made here, and need not be those that it said.
    pub text_turns: usize,
    /// Episodes that the host called successful.
    pub successes: usize,
    /// Episodes dropped because they lag too many revisions.
    pub stale: usize,
    /// Episodes dropped by the filter.
    pub filtered: usize,
    /// Episodes dropped because a turn was cut off.
    pub truncated: usize,
    /// Episodes dropped because an action stands too often in a row.
    pub repetitive: usize,
    /// Episodes that the teacher could not score, so that the update does without them.
    pub set_aside: Vec<SetAside>,
    /// Student tokens whose log-prob of the rollout was compared with the training forward's.
    pub compared: usize,
    /// Those whose bits differ; 0 unless squire has a defect.
    pub differing: usize,
    /// The largest difference.
    pub largest_difference: f64,
    /// Global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Once it is applied: mean KL in nats a token from the revision that was served then to what publishing would
    /// serve, over at most `update_kl_tokens` trained tokens. None before, where none are asked for, and where it is no finite
    /// number or could not be computed.
    pub update_kl: Option<f64>,
    /// What is told beside losses.
    #[serde(flatten)]
    pub quantities: Quantities,
    /// What the numbers above do not mean.
    pub warnings: Vec<String>,
    /// Wall time of the build.
    pub seconds: f64,
}

/// KL in nats a token below which bf16 compute says nothing: what rounding alone makes between two models of equal weights. With
/// experts it changes who is chosen. docs/numerics.md says where the numbers come from.
pub(super) const BF16_FLOOR: f64 = 5e-4;
pub(super) const BF16_FLOOR_OF_EXPERTS: f64 = 3e-3;

impl Report {
    /// Warns of divergences that are no larger than the rounding of bf16 compute.
    pub(super) fn warn_of_rounding(&mut self, has_experts: bool) {
        let floor = if has_experts { BF16_FLOOR_OF_EXPERTS } else { BF16_FLOOR };
        for (name, value) in [("reverse_kl", self.reverse_kl), ("forward_kl", self.forward_kl)] {
            if let Some(value) = value.filter(|value| *value < floor) {
                self.warnings.push(format!(
                    "{name} is {value:.1e} nats a token: below {floor:.0e} it is rounding in bf16 compute; f32 compute tells \
                     more"
                ));
            }
        }
    }
}

/// What policy gradients weighed, over the tokens that carry one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PolicyGradientReport {
    /// Mean of -phi A.
    pub loss: f64,
    /// Mean advantage.
    pub advantage: f64,
    /// The least.
    pub least_advantage: f64,
    /// The largest.
    pub largest_advantage: f64,
    /// Mean importance ratio.
    pub ratio: f64,
    /// The largest.
    pub largest_ratio: f64,
    /// Share of tokens whose gradient a clip holds.
    pub clipped: f64,
}

/// An episode that an update does without.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SetAside {
    /// Its identity.
    pub episode: u64,
    /// Why the teacher could not score it.
    pub reason: String,
}

/// Sums of a report under way.
pub(super) struct Tally {
    report: Report,
    /// (sum, tokens) of each loss
    reverse_kl: (f64, usize),
    forward_kl: (f64, usize),
    jsd: (f64, usize),
    cross_entropy: (f64, usize),
    sampled_reverse_kl: (f64, usize),
    k2: (f64, usize),
    weighted_k3: (f64, usize),
    /// sums of loss, advantage, ratio and clips; extremes
    policy_gradient: (PolicyGradientReport, usize),
    by_turn: Vec<(f64, usize)>,
    quantities: Counting,
}

impl Tally {
    /// `published`: the revision that new episodes get.
    pub(super) fn new(trajectories: &[&Trajectory], batch: &BatchPlan, config: &Config, published: u64) -> Tally {
        let mut report = Report {
            episodes: trajectories.len(),
            trained_episodes: batch.n_trajectories,
            trained_turns: batch.n_turns,
            trained_tokens: batch.tokens.len(),
            stale: batch.n_stale,
            filtered: batch.n_filtered,
            truncated: batch.n_truncated,
            repetitive: batch.n_repetitive,
            turn_weight: batch.mean_turn_weight,
            groups: batch.groups,
            ..Report::default()
        };
        let identities: BTreeSet<(RunId, u64)> =
            trajectories.iter().map(|t| (t.heading.run, t.heading.episode)).collect();
        for t in trajectories {
            // What a fork shares with its parent was said once, and is counted there if that is here.
            let parent = t.heading.forked_from.filter(|(parent, _)| identities.contains(&(t.heading.run, *parent)));
            let shared = parent.map_or(0, |_| t.shared_turns());
            report.successes += usize::from(t.outcome().and_then(|o| o.success) == Some(true));
            for turn in &t.turns()[shared..] {
                let (turns, tokens) = match turn.actor {
                    Actor::Student => (&mut report.student_turns, &mut report.student_tokens),
                    Actor::Teacher => (&mut report.teacher_turns, &mut report.teacher_tokens),
                    Actor::Replay => (&mut report.replay_turns, &mut report.replay_tokens),
                };
                report.text_turns += usize::from(turn.from_text);
                *turns += 1;
                *tokens += turn.range.len();
            }
        }
        if report.text_turns > 0 {
            report.warnings.push(format!(
                "{} turns are texts of the teacher's: their ids were made here, and need not be those that it said",
                report.text_turns
            ));
        }
        Tally {
            report,
            reverse_kl: (0.0, 0),
            forward_kl: (0.0, 0),
            jsd: (0.0, 0),
            cross_entropy: (0.0, 0),
            sampled_reverse_kl: (0.0, 0),
            k2: (0.0, 0),
            weighted_k3: (0.0, 0),
            policy_gradient: (PolicyGradientReport::default(), 0),
            by_turn: Vec::new(),
            quantities: Counting::new(trajectories, published, takes_rewards(config).then_some(&config.reward)),
        }
    }

    /// A trained token's unweighted loss, what a sampled one is made of, and what its rows say.
    pub(super) fn add(&mut self, token: &TokenLoss, value: f64, worth: Option<&Worth>, facts: &TokenFacts) {
        self.quantities.add(token, value, worth, facts);
        self.report.loss += token.weight * value;
        let count = |sum: &mut (f64, usize), value: f64| *sum = (sum.0 + value, sum.1 + 1);
        if let Some(gap) = worth.and_then(|worth| worth.gap) {
            count(&mut self.sampled_reverse_kl, f64::from(gap));
        }
        match token.kind {
            Loss::ReverseKl => count(&mut self.reverse_kl, value),
            Loss::ForwardKl => count(&mut self.forward_kl, value),
            Loss::JensenShannon(_) => count(&mut self.jsd, value),
            Loss::CrossEntropy => count(&mut self.cross_entropy, value),
            Loss::K2 => count(&mut self.k2, value),
            Loss::WeightedK3 => count(&mut self.weighted_k3, value),
            // Its value is the gap.
            Loss::SampledReverseKl => {}
            Loss::PolicyGradient(_) => {
                let Surrogate { ratio, advantage, clipped, .. } = worth.and_then(|w| w.surrogate).unwrap_or_default();
                let (sums, n) = &mut self.policy_gradient;
                let extremes = match *n {
                    0 => (advantage, advantage, ratio),
                    _ => {
                        let least = sums.least_advantage.min(advantage);
                        (least, sums.largest_advantage.max(advantage), sums.largest_ratio.max(ratio))
                    }
                };
                (sums.least_advantage, sums.largest_advantage, sums.largest_ratio) = extremes;
                sums.loss += value;
                sums.advantage += advantage;
                sums.ratio += ratio;
                sums.clipped += f64::from(u8::from(clipped));
                *n += 1;
            }
        }
        let turn = token.turn;
        if self.by_turn.len() <= turn {
            self.by_turn.resize(turn + 1, (0.0, 0));
        }
        let sum = &mut self.by_turn[turn];
        *sum = (sum.0 + value, sum.1 + 1);
    }

    /// A sampled token's log-prob in the rollout and in the training forward.
    pub(super) fn compare(&mut self, rollout: f32, training: f32) {
        self.report.compared += 1;
        if rollout.to_bits() != training.to_bits() {
            self.report.differing += 1;
            let gap = (rollout as f64 - training as f64).abs();
            self.report.largest_difference = self.report.largest_difference.max(gap);
        }
    }

    pub(super) fn report(mut self, gradient_norm: f64, seconds: f64) -> Report {
        let mean = |(sum, n): (f64, usize)| (n > 0).then(|| sum / n as f64);
        self.report.reverse_kl = mean(self.reverse_kl);
        self.report.forward_kl = mean(self.forward_kl);
        self.report.jsd = mean(self.jsd);
        self.report.cross_entropy = mean(self.cross_entropy);
        self.report.sampled_reverse_kl = mean(self.sampled_reverse_kl);
        self.report.k2 = mean(self.k2);
        self.report.weighted_k3 = mean(self.weighted_k3);
        let (sums, n) = self.policy_gradient;
        let share = |sum: f64| sum / n as f64;
        self.report.policy_gradient = (n > 0).then(|| PolicyGradientReport {
            loss: share(sums.loss),
            advantage: share(sums.advantage),
            ratio: share(sums.ratio),
            clipped: share(sums.clipped),
            ..sums
        });
        if let Some(GroupReport { groups, alone, uneven, .. }) = self.report.groups.filter(|groups| groups.uneven > 0) {
            self.report.warnings.push(format!(
                "{uneven} of {groups} groups have not the episodes that reward.group says, {alone} of them one, whose reward comes \
                 to 0: give a batch as many of one task or group"
            ));
        }
        self.report.loss_by_turn = self.by_turn.into_iter().map(mean).collect();
        self.report.quantities = self.quantities.told();
        self.report.gradient_norm = gradient_norm;
        self.report.seconds = seconds;
        self.report
    }
}
