//! The lines of `metrics.jsonl` as this program reads them. A number that is absent or null is None; keys that stand
//! here not are skipped.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// What every line has.
#[derive(Deserialize)]
pub struct Head {
    pub kind: String,
    pub run: String,
    #[serde(default)]
    pub time: f64,
}

#[derive(Deserialize)]
pub struct RunBegins {
    pub step: u64,
    /// Whether it is the same process that goes on.
    #[serde(default)]
    pub goes_on: bool,
    #[serde(default)]
    pub settings: Value,
    pub squire: Option<String>,
    #[serde(default)]
    pub student: Student,
}

/// The student's shape.
#[derive(Clone, Copy, Default, Deserialize)]
pub struct Student {
    pub parameters: Option<f64>,
    pub layers: Option<f64>,
    pub hidden_size: Option<f64>,
}

#[derive(Deserialize)]
pub struct EpisodeEnded {
    pub step: u64,
    #[serde(default)]
    pub evaluation: bool,
    #[serde(default, deserialize_with = "verdict")]
    pub success: Option<bool>,
    #[serde(rename = "return")]
    pub gain: Option<f64>,
    pub truncated: Option<f64>,
}

/// An update that was built.
#[derive(Deserialize)]
pub struct Update {
    pub step: u64,
    #[serde(default)]
    pub schedules: BTreeMap<String, Option<f64>>,
    pub learning_rate: Option<f64>,
    #[serde(default)]
    pub report: Report,
}

/// Its account: what the page shows of it.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Report {
    pub loss: Option<f64>,
    pub reverse_kl: Option<f64>,
    pub forward_kl: Option<f64>,
    pub jsd: Option<f64>,
    pub cross_entropy: Option<f64>,
    pub sampled_reverse_kl: Option<f64>,
    pub k2: Option<f64>,
    pub weighted_k3: Option<f64>,
    pub loss_by_turn: Vec<Option<f64>>,
    pub turns: Vec<Turn>,
    pub episodes: Option<f64>,
    pub successes: Option<f64>,
    pub trained_tokens: Option<f64>,
    pub student_tokens: Option<f64>,
    pub teacher_tokens: Option<f64>,
    pub replay_tokens: Option<f64>,
    pub student_turns: Option<f64>,
    pub teacher_turns: Option<f64>,
    pub replay_turns: Option<f64>,
    pub set_aside: Vec<SetAside>,
    pub gradient_norm: Option<f64>,
    pub update_kl: Option<f64>,
    pub warnings: Vec<String>,
    pub seconds: Option<f64>,
    pub teacher_seconds: Option<f64>,
    pub entropy: Option<f64>,
    pub teacher_entropy: Option<f64>,
    pub response_length: Option<f64>,
    pub lag: Option<Lag>,
}

/// Of one turn index, over a batch.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Turn {
    pub log_ratio: Option<f64>,
}

#[derive(Deserialize)]
pub struct SetAside {
    #[serde(default)]
    pub reason: String,
}

/// Revisions that the episodes of a batch lag.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub struct Lag {
    pub mean: Option<f64>,
    pub largest: Option<f64>,
}

#[derive(Deserialize)]
pub struct Failed {
    pub step: u64,
    #[serde(default)]
    pub what: String,
    #[serde(default)]
    pub reason: String,
}

#[derive(Deserialize)]
pub struct Applied {
    pub step: u64,
    pub update_kl: Option<f64>,
    pub finite: Option<bool>,
    pub seconds: Option<f64>,
}

#[derive(Deserialize)]
pub struct Published {
    pub step: u64,
    pub revision: Option<u64>,
    #[serde(default)]
    pub probe: Value,
}

#[derive(Deserialize)]
pub struct Refused {
    pub step: u64,
    #[serde(default)]
    pub reason: String,
}

#[derive(Deserialize)]
pub struct RolledBack {
    pub step: u64,
    pub revision: Option<u64>,
}

#[derive(Deserialize)]
pub struct Saved {
    pub step: u64,
}

/// A verdict as the files have it, or as the C interface does: 1, 0, and -1 where it is not known.
pub fn verdict<'a, D: Deserializer<'a>>(from: D) -> Result<Option<bool>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Said {
        Plain(bool),
        Number(i64),
    }
    Ok(match Option::<Said>::deserialize(from)? {
        Some(Said::Plain(said)) => Some(said),
        Some(Said::Number(n)) if n >= 0 => Some(n > 0),
        _ => None,
    })
}
