//! The knobs of a policy gradient: what an advantage is made of, how it makes up for what drew the tokens, and what the
//! environment's rewards come to. Its formulas stand in `backend/ops/sampled.rs`, those of rewards in
//! [`rewards`](super::rewards).
#![forbid(unsafe_code)]

use super::document::{bad, choice, fields, join, number, word};
use super::schedule::Schedule;
use crate::backend::ops::{AdvantageShape, Clip, Ratio, Reference};
use crate::error::Result;
use serde_json::{Value, json};

/// What an advantage is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Advantage {
    /// kappa: factor of what the teacher says.
    pub teacher: Schedule,
    /// rho: factor of what the rewards come to.
    pub reward: Schedule,
    /// Added to every token's.
    pub constant: f64,
    /// What the teacher's log-prob is compared with.
    pub reference: Reference,
    /// What the comparison counts as.
    pub shape: AdvantageShape,
}

/// How a policy gradient makes up for what drew the tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Importance {
    /// Whose ratio weighs a token.
    pub of: Ratio,
    /// How it is bounded.
    pub clip: Clip,
    /// PPO's second bound where the advantage is below 0; 0 for none.
    pub dual_clip: f64,
}

/// What the environment gave for a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RewardOf {
    /// The episode's score, for each of its turns.
    Score,
    /// 1 where the host called the episode a success, else 0.
    Success,
    /// The turn's own reward; 0 where it has none.
    Turn,
    /// The discounted sum of the rewards from the turn on.
    Return,
}

/// With what a reward is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Baseline {
    /// With nothing.
    None,
    /// The group's mean is taken off.
    GroupMean,
    /// The group's mean is taken off, and its standard deviation divides.
    Group,
}

/// What rewards come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reward {
    /// What was given.
    pub of: RewardOf,
    /// What it is compared with.
    pub baseline: Baseline,
    /// Episodes of one task that are compared.
    pub group: u32,
    /// Added to the standard deviation that divides.
    pub eps: f64,
    /// Factor of a reward one turn later.
    pub discount: f64,
}

pub(super) const REFERENCES: &[(&str, Reference)] =
    &[("frozen", Reference::Frozen), ("recomputed", Reference::Recomputed)];
pub(super) const RATIOS: &[(&str, Ratio)] = &[("none", Ratio::None), ("token", Ratio::Token), ("turn", Ratio::Turn)];
pub(super) const REWARDS: &[(&str, RewardOf)] = &[
    ("score", RewardOf::Score),
    ("success", RewardOf::Success),
    ("turn", RewardOf::Turn),
    ("return", RewardOf::Return),
];
pub(super) const BASELINES: &[(&str, Baseline)] =
    &[("none", Baseline::None), ("group-mean", Baseline::GroupMean), ("group", Baseline::Group)];

/// The shape written at `path`.
pub(super) fn shape(value: &Value, path: &str) -> Result<AdvantageShape> {
    if !value.is_object() {
        return word(value, path, &[("identity", AdvantageShape::Identity)]);
    }
    let wanted = "identity, {\"clamp\": nats}, {\"tanh\": nats} or {\"power\": exponent}";
    let (key, inner, path) = choice(value, path, &["clamp", "tanh", "power"], wanted)?;
    let x = number(inner, &path, "a number above 0, at most 1e6", |x| x > 0.0 && x <= 1e6)?;
    Ok(match key {
        "clamp" => AdvantageShape::Clamp(x),
        "tanh" => AdvantageShape::Tanh(x),
        _ => AdvantageShape::Power(x),
    })
}

pub(super) fn shape_to_json(shape: AdvantageShape) -> Value {
    match shape {
        AdvantageShape::Identity => json!("identity"),
        AdvantageShape::Clamp(x) => json!({"clamp": x}),
        AdvantageShape::Tanh(x) => json!({"tanh": x}),
        AdvantageShape::Power(x) => json!({"power": x}),
    }
}

/// The clip written at `path`.
pub(super) fn clip(value: &Value, path: &str) -> Result<Clip> {
    if !value.is_object() {
        return word(value, path, &[("none", Clip::None)]);
    }
    let wanted = "none, {\"truncate\": most} or {\"ppo\": bound}";
    let (key, inner, path) = choice(value, path, &["truncate", "ppo"], wanted)?;
    let low = |value: &Value, path: &str| number(value, path, "a number above 0, below 1", |x| x > 0.0 && x < 1.0);
    if key == "truncate" {
        let most = number(inner, &path, "a number from 1 to 1e6", |x| (1.0..=1e6).contains(&x))?;
        return Ok(Clip::Truncate(most));
    }
    if !inner.is_object() {
        let bound = low(inner, &path)?;
        return Ok(Clip::Ppo { low: bound, high: bound });
    }
    let bounds = fields(inner, &path, &["low", "high"])?;
    let bound = |key: &str| bounds.get(key).ok_or_else(|| bad(inner, &path, "a bound, or {\"low\", \"high\"}"));
    let high = |x: f64| x > 0.0 && x <= 1e6;
    Ok(Clip::Ppo {
        low: low(bound("low")?, &join(&path, "low"))?,
        high: number(bound("high")?, &join(&path, "high"), "a number above 0, at most 1e6", high)?,
    })
}

pub(super) fn clip_to_json(clip: Clip) -> Value {
    match clip {
        Clip::None => json!("none"),
        Clip::Truncate(most) => json!({"truncate": most}),
        Clip::Ppo { low, high } => json!({"ppo": {"low": low, "high": high}}),
    }
}

/// PPO's second bound, or 0.
pub(super) fn dual_clip(value: &Value, path: &str) -> Result<f64> {
    number(value, path, "0, or a number above 1, at most 1e6", |x| x == 0.0 || (x > 1.0 && x <= 1e6))
}
