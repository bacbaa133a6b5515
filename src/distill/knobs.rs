//! The values that knobs take, each with the words that stand for it in a document. What the knobs
//! are stands in [`knob_table`](super::knob_table).
#![forbid(unsafe_code)]

use super::document::{choice, fields, integer, join, name_of, number, word};
use super::schedule::Schedule;
use crate::error::{Error, Fault, Result};
use crate::model::activations::Recompute;
use serde_json::{Value, json};

/// Over what the loss is averaged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Normaliser {
    /// Every trained token of the batch counts the same.
    TokenMean,
    /// Every trajectory counts the same, within it every token.
    SequenceMean,
    /// Every trained turn of the batch counts the same, within it every token.
    TurnMean,
    /// So much of the turn mean, the rest of the token mean.
    Blend(Schedule),
    /// Every trained token counts the same: one over this, however many there are.
    Fixed(f64),
}

impl Normaliser {
    /// The normaliser written at `path` of a document.
    pub(super) fn from_json(value: &Value, path: &str) -> Result<Normaliser> {
        let known = [
            ("token-mean", Normaliser::TokenMean),
            ("sequence-mean", Normaliser::SequenceMean),
            ("turn-mean", Normaliser::TurnMean),
        ];
        if !value.is_object() {
            return word(value, path, &known);
        }
        let wanted = "token-mean, sequence-mean, turn-mean, {\"blend\": share of turns} or {\"fixed\": tokens}";
        let (key, inner, path) = choice(value, path, &["blend", "fixed"], wanted)?;
        match key {
            "blend" => Ok(Normaliser::Blend(Schedule::within(inner, &path, 0.0, 1.0)?)),
            _ => number(inner, &path, "a number from 1 to 1e12", |x| (1.0..=1e12).contains(&x)).map(Normaliser::Fixed),
        }
    }

    /// The form that is read.
    pub(super) fn to_json(self) -> Value {
        match self {
            Normaliser::TokenMean => json!("token-mean"),
            Normaliser::SequenceMean => json!("sequence-mean"),
            Normaliser::TurnMean => json!("turn-mean"),
            Normaliser::Blend(share) => json!({"blend": share.to_json()}),
            Normaliser::Fixed(tokens) => json!({"fixed": tokens}),
        }
    }
}

/// Whose tokens are averaged together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of the batch.
    Batch,
    /// Each actor's by themselves, so that the losses of actors are averages that are added.
    Actor,
}

pub(super) const SCOPES: &[(&str, Scope)] = &[("batch", Scope::Batch), ("actor", Scope::Actor)];

/// Which turns of an episode are learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LearnTurns {
    /// All that carry loss.
    All,
    /// Of those the last.
    Last,
}

pub(super) const LEARN_TURNS: &[(&str, LearnTurns)] = &[("all", LearnTurns::All), ("last", LearnTurns::Last)];

/// What becomes of turns that `max_tokens`, the context or a time limit cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncated {
    /// They are learnt like others.
    Learn,
    /// They carry no loss.
    Mask,
    /// Their episodes are not learnt.
    Drop,
}

pub(super) const TRUNCATED: &[(&str, Truncated)] =
    &[("learn", Truncated::Learn), ("mask", Truncated::Mask), ("drop", Truncated::Drop)];

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
    /// The student, and from turn K on the teacher; K is drawn evenly for each episode.
    Switch {
        /// The least K.
        from: u32,
        /// The largest.
        to: u32,
    },
    /// The episode's demonstration to the turn before its last, less so many as are withdrawn; then the student.
    Prefix {
        /// Turns that the student plays beyond the last.
        withdrawn: Schedule,
    },
    /// The student proposes every turn; where a proposal is uncertain the teacher takes the turn in its place.
    Proposal(Proposal),
    /// Each episode wholly replayed or wholly the student's, drawn with this probability of a replay.
    Mixture {
        /// Within 0 to 1.
        replay: Schedule,
    },
}

/// Who takes a turn that the teacher fails to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TeacherFails {
    /// The teacher, when it is asked again.
    Again,
    /// The student.
    Student,
}

/// Those, by name.
pub(super) const TEACHER_FAILS: &[(&str, TeacherFails)] =
    &[("again", TeacherFails::Again), ("student", TeacherFails::Student)];

/// Whose uncertainty counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The teacher's of what the student said.
    Teacher,
    /// The student's own.
    Student,
}

const BY: &[(&str, By)] = &[("teacher", By::Teacher), ("student", By::Student)];

/// When a proposal is replaced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Proposal {
    /// Whose uncertainty counts.
    pub by: By,
    /// Share of the turns that are replaced, within 0 to 1.
    pub rate: Schedule,
    /// Proposals before it by which one is judged.
    pub window: u32,
    /// As long as there are fewer none is replaced.
    pub minimum: u32,
}

/// A policy's name and the keys that it has besides.
const POLICIES: &[(&str, &[&str])] = &[
    ("student", &[]),
    ("teacher", &[]),
    ("replay", &[]),
    ("bernoulli", &["beta"]),
    ("switch", &["from", "to"]),
    ("prefix", &["withdrawn"]),
    ("mixture", &["replay"]),
    ("proposal", &["by", "rate", "window", "minimum"]),
];

impl ActorPolicy {
    /// The policy written at `path` of a document.
    pub(super) fn from_json(value: &Value, path: &str) -> Result<ActorPolicy> {
        let mut known: Vec<&str> = vec!["kind"];
        known.extend(POLICIES.iter().flat_map(|(_, keys)| *keys));
        let map = fields(value, path, &known)?;
        let kinds: Vec<_> = POLICIES.iter().map(|(name, keys)| (*name, (*name, *keys))).collect();
        let (kind, keys) = word(map.get("kind").unwrap_or(&Value::Null), &join(path, "kind"), &kinds)?;
        if let Some(key) = map.keys().find(|key| *key != "kind" && !keys.contains(&key.as_str())) {
            let owner = POLICIES.iter().find(|(_, keys)| keys.contains(&key.as_str())).map_or("", |(name, _)| name);
            let why = format!("{} has meaning only with kind {owner}", join(path, key));
            return Err(Error::new(Fault::BadValue, why));
        }
        let need = |key: &str| {
            let missing = || Error::new(Fault::BadValue, format!("{} is missing", join(path, key)));
            map.get(key).map(|value| (value, join(path, key))).ok_or_else(missing)
        };
        let schedule = |key: &str, high: f64| {
            let (value, path) = need(key)?;
            Schedule::within(value, &path, 0.0, high)
        };
        let turn = |key: &str, low: u64| {
            let (value, path) = need(key)?;
            Ok::<_, Error>(integer(value, &path, low, 1_000_000)? as u32)
        };
        Ok(match kind {
            "student" => ActorPolicy::Student,
            "teacher" => ActorPolicy::Teacher,
            "replay" => ActorPolicy::Replay,
            "bernoulli" => ActorPolicy::Bernoulli { beta: schedule("beta", 1.0)? },
            "switch" => {
                let from = turn("from", 0)?;
                ActorPolicy::Switch { from, to: turn("to", u64::from(from))? }
            }
            "prefix" => ActorPolicy::Prefix { withdrawn: schedule("withdrawn", 1_000_000.0)? },
            "mixture" => ActorPolicy::Mixture { replay: schedule("replay", 1.0)? },
            _ => {
                let (by, of_by) = need("by")?;
                let by = word(by, &of_by, BY)?;
                let count = |key: &str, default: u32, most: u32| match map.get(key) {
                    None => Ok(default),
                    Some(value) => integer(value, &join(path, key), 1, u64::from(most)).map(|n| n as u32),
                };
                let window = count("window", 1000, 10_000)?;
                let minimum = count("minimum", 300.min(window), window)?;
                ActorPolicy::Proposal(Proposal { by, rate: schedule("rate", 1.0)?, window, minimum })
            }
        })
    }

    /// The form that is read.
    pub(super) fn to_json(self) -> Value {
        match self {
            ActorPolicy::Student => json!({"kind": "student"}),
            ActorPolicy::Teacher => json!({"kind": "teacher"}),
            ActorPolicy::Replay => json!({"kind": "replay"}),
            ActorPolicy::Bernoulli { beta } => json!({"kind": "bernoulli", "beta": beta.to_json()}),
            ActorPolicy::Switch { from, to } => json!({"kind": "switch", "from": from, "to": to}),
            ActorPolicy::Prefix { withdrawn } => json!({"kind": "prefix", "withdrawn": withdrawn.to_json()}),
            ActorPolicy::Mixture { replay } => json!({"kind": "mixture", "replay": replay.to_json()}),
            ActorPolicy::Proposal(Proposal { by, rate, window, minimum }) => {
                let (by, rate) = (name_of(by, BY), rate.to_json());
                json!({"kind": "proposal", "by": by, "rate": rate, "window": window, "minimum": minimum})
            }
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
