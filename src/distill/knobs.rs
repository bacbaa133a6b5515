//! The values that knobs take, each with the words that stand for it in a document. What the knobs
//! are and how a document sets them stands in [`config`](super::config).
#![forbid(unsafe_code)]

use super::document::{fields, join, word};
use super::schedule::Schedule;
use crate::error::{Error, Fault, Result};
use crate::model::activations::Recompute;
use serde_json::{Value, json};

/// Over what the loss is averaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normaliser {
    /// Every trained token of the batch counts the same.
    TokenMean,
    /// Every trajectory counts the same, within it every token.
    SequenceMean,
    /// Every trained turn of the batch counts the same, within it every token.
    TurnMean,
}

pub(super) const NORMALISERS: &[(&str, Normaliser)] = &[
    ("token-mean", Normaliser::TokenMean),
    ("sequence-mean", Normaliser::SequenceMean),
    ("turn-mean", Normaliser::TurnMean),
];

/// Which trajectories are learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// All.
    None,
    /// Those that the host called a success.
    Success,
}

pub(super) const FILTERS: &[(&str, Filter)] = &[("none", Filter::None), ("success", Filter::Success)];

/// What the backward computes again, by name.
pub(super) const RECOMPUTE: [(&str, Recompute); 3] = {
    let [a, b, c] = Recompute::ALL;
    [(a.name(), a), (b.name(), b), (c.name(), c)]
};

/// Who produces the action of a training turn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ActorPolicy {
    /// Always the student.
    Student,
    /// Always the teacher.
    Teacher,
    /// A stored demonstration; where it has ended, the teacher, if its turns are trained.
    Replay,
    /// The teacher with probability beta, drawn for each turn on its own, else the student.
    Bernoulli {
        /// The teacher's probability, within 0 to 1.
        beta: Schedule,
    },
}

impl ActorPolicy {
    /// The policy written at `path` of a document.
    pub(super) fn from_json(value: &Value, path: &str) -> Result<ActorPolicy> {
        let map = fields(value, path, &["kind", "beta"])?;
        let known = [("student", 0), ("teacher", 1), ("replay", 2), ("bernoulli", 3)];
        let kind = word(map.get("kind").unwrap_or(&Value::Null), &join(path, "kind"), &known)?;
        let beta_path = join(path, "beta");
        match (kind, map.get("beta")) {
            (0, None) => Ok(ActorPolicy::Student),
            (1, None) => Ok(ActorPolicy::Teacher),
            (2, None) => Ok(ActorPolicy::Replay),
            (3, Some(beta)) => Ok(ActorPolicy::Bernoulli { beta: Schedule::within(beta, &beta_path, 0.0, 1.0)? }),
            (_, None) => Err(Error::new(Fault::BadValue, format!("{beta_path} is missing"))),
            (_, Some(_)) => {
                Err(Error::new(Fault::BadValue, format!("{beta_path} has meaning only with kind bernoulli")))
            }
        }
    }

    /// The form that is read.
    pub(super) fn to_json(self) -> Value {
        match self {
            ActorPolicy::Student => json!({"kind": "student"}),
            ActorPolicy::Teacher => json!({"kind": "teacher"}),
            ActorPolicy::Replay => json!({"kind": "replay"}),
            ActorPolicy::Bernoulli { beta } => json!({"kind": "bernoulli", "beta": beta.to_json()}),
        }
    }
}

/// How training rollouts are sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f64,
    /// Keeps only that many tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the smallest set of tokens with at least this probability.
    pub top_p: f64,
}

/// AdamW and its learning rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Optimizer {
    /// Learning rate by step, before the warm-up factor.
    pub learning_rate: Schedule,
    /// Steps over which the warm-up factor rises to 1.
    pub warmup_steps: u64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest norm of the whole gradient; 0 leaves it alone.
    pub grad_clip: f64,
}

impl Optimizer {
    /// The learning rate of step `step` (counted from 0) of `n_steps`.
    pub fn learning_rate_at(&self, step: u64, n_steps: u64) -> f64 {
        let warm = (step.saturating_add(1) as f64 / self.warmup_steps.max(1) as f64).min(1.0);
        self.learning_rate.value(step, n_steps) * warm
    }
}
