//! The account of one update: what was learnt from, how far the student was from the teacher, by turn.
#![forbid(unsafe_code)]

use serde::Serialize;

use super::actor::Actor;
use super::batch::{BatchPlan, TokenLoss};
use super::trajectory::Trajectory;
use crate::backend::ops::Loss;

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
    /// Mean of ln p - ln q of what the student said likewise: an estimate of the reverse KL, which may be negative.
    pub sampled_reverse_kl: Option<f64>,
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
    /// Episodes that the host called successful.
    pub successes: usize,
    /// Episodes dropped because they lag too many revisions.
    pub stale: usize,
    /// Episodes dropped by the filter.
    pub filtered: usize,
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
    by_turn: Vec<(f64, usize)>,
    /// turn index by trajectory and position
    turns: Vec<Vec<(usize, usize)>>,
}

impl Tally {
    pub(super) fn new(trajectories: &[&Trajectory], batch: &BatchPlan) -> Tally {
        let mut report = Report {
            episodes: trajectories.len(),
            trained_episodes: batch.n_trajectories,
            trained_turns: batch.n_turns,
            trained_tokens: batch.tokens.len(),
            stale: batch.n_stale,
            filtered: batch.n_filtered,
            ..Report::default()
        };
        for t in trajectories {
            report.successes += usize::from(t.outcome().and_then(|o| o.success) == Some(true));
            for turn in t.turns() {
                let (turns, tokens) = match turn.actor {
                    Actor::Student => (&mut report.student_turns, &mut report.student_tokens),
                    Actor::Teacher => (&mut report.teacher_turns, &mut report.teacher_tokens),
                    Actor::Replay => (&mut report.replay_turns, &mut report.replay_tokens),
                };
                *turns += 1;
                *tokens += turn.range.len();
            }
        }
        let ends = |t: &&Trajectory| t.turns().iter().enumerate().map(|(i, turn)| (turn.range.end, i)).collect();
        Tally {
            report,
            reverse_kl: (0.0, 0),
            forward_kl: (0.0, 0),
            jsd: (0.0, 0),
            cross_entropy: (0.0, 0),
            sampled_reverse_kl: (0.0, 0),
            by_turn: Vec::new(),
            turns: trajectories.iter().map(ends).collect(),
        }
    }

    /// A trained token's unweighted loss.
    pub(super) fn add(&mut self, token: &TokenLoss, value: f64) {
        self.report.loss += token.weight * value;
        let sum = match token.kind {
            Loss::ReverseKl => &mut self.reverse_kl,
            Loss::ForwardKl => &mut self.forward_kl,
            Loss::JensenShannon(_) => &mut self.jsd,
            Loss::CrossEntropy => &mut self.cross_entropy,
            Loss::SampledReverseKl => &mut self.sampled_reverse_kl,
        };
        *sum = (sum.0 + value, sum.1 + 1);
        let ends = &self.turns[token.trajectory];
        let turn = ends.partition_point(|(end, _)| *end <= token.position);
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
        self.report.loss_by_turn = self.by_turn.into_iter().map(mean).collect();
        self.report.gradient_norm = gradient_norm;
        self.report.seconds = seconds;
        self.report
    }
}
