//! What config.json says of the rotary embedding: its base, and how its frequencies are stretched. Numbers are resolved as
//! transformers' `modeling_rope_utils` does; YaRN is of Peng et al. 2023 (arXiv:2309.00071), llama3 of Llama 3.1.
#![forbid(unsafe_code)]

use serde_json::{Value, json};

use super::config_fields::{Fields, MAX_EXTENT, contradiction};
use crate::backend::ops;
use crate::error::{Error, Fault, Result, brief};

/// The rotary embedding's constants.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f64,
    /// How the frequencies are stretched to a longer context.
    pub scaling: Option<RopeScaling>,
}

/// A way to stretch the frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// All alike, by a factor of at least 1.
    Linear(f64),
    /// By the frequency: fast ones kept, slow ones divided, with a ramp between.
    Llama3(Llama3),
    /// By the dimension, with a factor on the angles' cosines and sines.
    Yarn(Yarn),
}

/// Constants of Llama 3.1's scaling.
#[derive(Clone, Debug, PartialEq)]
pub struct Llama3 {
    /// What slow frequencies are divided by, at least 1.
    pub factor: f64,
    /// Turns over the original context below which a frequency is slow.
    pub low_freq_factor: f64,
    /// Turns above which it is fast.
    pub high_freq_factor: f64,
    /// Positions before the extension.
    pub original_max_position: usize,
}

/// YaRN's constants, defaults resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// How many times longer the context is, at least 1.
    pub factor: f64,
    /// Positions before the extension.
    pub original_max_position: usize,
    /// What cosines and sines are multiplied by.
    pub attention_factor: f64,
    /// Rotations above which a frequency is kept.
    pub beta_fast: f64,
    /// Rotations below which a frequency is divided by `factor`.
    pub beta_slow: f64,
    /// Whether the ramp's ends are rounded to whole dimensions.
    pub truncate: bool,
}

/// Reads both spellings, `rope_parameters` and `rope_scaling`, of a model of `max_position` positions.
pub(super) fn read_rope(top: &Fields, max_position: usize) -> Result<Rope> {
    let parameters = top.object("rope_parameters")?;
    let scaling = top.object("rope_scaling")?;
    let outer = top.number("rope_theta")?;
    let inner = match &parameters {
        Some(parameters) => parameters.number("rope_theta")?,
        None => None,
    };
    if let (Some(a), Some(b)) = (outer, inner)
        && a != b
    {
        return Err(contradiction(format!("rope_theta is {a}, rope_parameters.rope_theta {b}")));
    }
    let theta = inner.or(outer).unwrap_or(10_000.0);
    if !(theta > 0.0 && theta.is_finite()) {
        return Err(contradiction(format!("rope_theta: wanted a positive number, found {theta}")));
    }
    let mut stretched = None;
    for fields in [parameters, scaling].into_iter().flatten() {
        stretched = read_rope_kind(&fields, max_position)?.or(stretched);
    }
    Ok(Rope { theta, scaling: stretched })
}

impl Rope {
    /// The inverse frequencies of heads of `head_dim`, and what cosines and sines are multiplied by.
    pub(super) fn frequencies(&self, head_dim: usize) -> (Vec<f32>, f32) {
        let plain = || ops::inverse_frequencies(head_dim, self.theta);
        match &self.scaling {
            None => (plain(), 1.0),
            Some(RopeScaling::Linear(factor)) => (plain().into_iter().map(|f| f / *factor as f32).collect(), 1.0),
            Some(RopeScaling::Llama3(l)) => {
                let turns = (l.low_freq_factor, l.high_freq_factor);
                let f = ops::llama3_inverse_frequencies(head_dim, self.theta, l.factor, turns, l.original_max_position);
                (f, 1.0)
            }
            Some(RopeScaling::Yarn(y)) => {
                let (theta, original, truncate) = (self.theta, y.original_max_position, y.truncate);
                let (fast, slow) = (y.beta_fast, y.beta_slow);
                let f = ops::yarn_inverse_frequencies(head_dim, theta, y.factor, original, fast, slow, truncate);
                (f, y.attention_factor as f32)
            }
        }
    }

    /// Positions that the scaling makes of a model of `positions`. YaRN's factor counts from the positions before; what
    /// the others say is in max_position_embeddings already (as folders of Llama 3.1 and of DeepSeek-Coder have it).
    pub(super) fn extended_to(&self, positions: usize) -> usize {
        match &self.scaling {
            Some(RopeScaling::Yarn(y)) => (y.factor * y.original_max_position as f64) as usize,
            _ => positions,
        }
    }
}

impl RopeScaling {
    /// As `rope_scaling` of config.json.
    pub(super) fn to_json(&self) -> Value {
        match self {
            RopeScaling::Linear(factor) => json!({ "rope_type": "linear", "factor": factor }),
            RopeScaling::Llama3(l) => json!({
                "rope_type": "llama3",
                "factor": l.factor,
                "low_freq_factor": l.low_freq_factor,
                "high_freq_factor": l.high_freq_factor,
                "original_max_position_embeddings": l.original_max_position,
            }),
            RopeScaling::Yarn(yarn) => json!({
                "rope_type": "yarn",
                "factor": yarn.factor,
                "original_max_position_embeddings": yarn.original_max_position,
                "attention_factor": yarn.attention_factor,
                "beta_fast": yarn.beta_fast,
                "beta_slow": yarn.beta_slow,
                "truncate": yarn.truncate,
            }),
        }
    }

    /// What a person reads of it.
    pub fn describe(&self) -> String {
        match self {
            RopeScaling::Linear(factor) => format!("linear x {factor}"),
            RopeScaling::Llama3(l) => format!("llama3 x {} from {}", l.factor, l.original_max_position),
            RopeScaling::Yarn(y) => format!("yarn x {} from {}", y.factor, y.original_max_position),
        }
    }
}

/// The extension that `rope_parameters` or `rope_scaling` asks for.
fn read_rope_kind(fields: &Fields, max_position: usize) -> Result<Option<RopeScaling>> {
    let unsupported = |why: String| Error::new(Fault::UnsupportedRope, format!("config.json: {why}"));
    if let Some(key) = fields.first_object() {
        let key = brief(key);
        let why = format!("rope_parameters.{key}: wanted one rope for all layers, found one for a kind of layer");
        return Err(unsupported(format!("{why}; write its keys into rope_parameters itself")));
    }
    if let Some(share) = fields.number("partial_rotary_factor")?.filter(|&share| share != 1.0) {
        return Err(unsupported(format!(
            "partial_rotary_factor: wanted 1, found {share}; give a model that rotates whole heads"
        )));
    }
    let kind = match fields.text("rope_type")? {
        Some(kind) => kind,
        None => fields.text("type")?.unwrap_or("default"),
    };
    match kind {
        "default" => Ok(None),
        "linear" => {
            let factor = fields.number("factor")?.unwrap_or(1.0);
            Ok(Some(RopeScaling::Linear(check_factor("linear", factor)?)))
        }
        "llama3" => read_llama3(fields, max_position).map(|l| Some(RopeScaling::Llama3(l))),
        "yarn" => read_yarn(fields, max_position).map(|y| Some(RopeScaling::Yarn(y))),
        other => {
            let other = brief(other);
            let why =
                format!("rope type: wanted default, linear, llama3 or yarn, found {other}; use YaRN to extend it");
            Err(unsupported(why))
        }
    }
}

fn check_factor(kind: &str, factor: f64) -> Result<f64> {
    match (1.0..=1e6).contains(&factor) {
        true => Ok(factor),
        false => Err(contradiction(format!("{kind} factor: wanted 1 to 1000000, found {factor}"))),
    }
}

/// Positions before the extension.
fn read_original(fields: &Fields, max_position: usize) -> Result<usize> {
    let original_max_position = fields.count("original_max_position_embeddings")?.unwrap_or(max_position);
    if original_max_position == 0 || original_max_position > MAX_EXTENT {
        let why = format!("wanted 1 to {MAX_EXTENT}, found {original_max_position}");
        return Err(contradiction(format!("original_max_position_embeddings: {why}")));
    }
    Ok(original_max_position)
}

fn read_llama3(fields: &Fields, max_position: usize) -> Result<Llama3> {
    let wanted = |key: &str| {
        let missing = || contradiction(format!("{key}: wanted a number with rope type llama3, found none"));
        fields.number(key)?.ok_or_else(missing)
    };
    let (factor, low, high) = (wanted("factor")?, wanted("low_freq_factor")?, wanted("high_freq_factor")?);
    if !(low > 0.0 && high > low && high.is_finite()) {
        let why = format!("wanted 0 < low_freq_factor < high_freq_factor, found {low} and {high}");
        return Err(contradiction(why));
    }
    Ok(Llama3 {
        factor: check_factor("llama3", factor)?,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position: read_original(fields, max_position)?,
    })
}

fn read_yarn(fields: &Fields, max_position: usize) -> Result<Yarn> {
    let original_max_position = read_original(fields, max_position)?;
    let ratio = max_position as f64 / original_max_position as f64;
    let factor = check_factor("yarn", fields.number("factor")?.unwrap_or(ratio))?;
    let softening = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let nonzero = |x: Option<f64>| x.filter(|&x| x != 0.0); // transformers takes 0 for absent here
    let mscales = (nonzero(fields.number("mscale")?), nonzero(fields.number("mscale_all_dim")?));
    let attention_factor = match (fields.number("attention_factor")?, mscales) {
        (Some(given), _) => given,
        (None, (Some(mscale), Some(all_dim))) => softening(mscale) / softening(all_dim),
        (None, _) => softening(1.0),
    };
    if !(attention_factor > 0.0 && attention_factor <= f32::MAX as f64) {
        return Err(contradiction(format!("attention_factor: wanted a positive number, found {attention_factor}")));
    }
    let beta_fast = nonzero(fields.number("beta_fast")?).unwrap_or(32.0);
    let beta_slow = nonzero(fields.number("beta_slow")?).unwrap_or(1.0);
    if !(beta_slow > 0.0 && beta_fast >= beta_slow && beta_fast.is_finite()) {
        let why = format!("wanted 0 < beta_slow <= beta_fast, found {beta_slow} and {beta_fast}");
        return Err(contradiction(why));
    }
    let truncate = fields.flag("truncate")?.unwrap_or(true);
    Ok(Yarn { factor, original_max_position, attention_factor, beta_fast, beta_slow, truncate })
}
