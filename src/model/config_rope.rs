//! What config.json says of the rotary embedding. YaRN's numbers are resolved as transformers' `_compute_yarn_parameters`
//! does (Peng et al. 2023, arXiv:2309.00071).
#![forbid(unsafe_code)]

use super::config_fields::{Fields, MAX_EXTENT, contradiction};
use crate::error::{Error, Fault, Result, brief};

/// The rotary embedding's constants.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f64,
    /// Context extension by YaRN.
    pub yarn: Option<Yarn>,
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
    let mut yarn = None;
    for fields in [parameters, scaling].into_iter().flatten() {
        yarn = read_rope_kind(&fields, max_position)?.or(yarn);
    }
    Ok(Rope { theta, yarn })
}

/// The extension that `rope_parameters` or `rope_scaling` asks for.
fn read_rope_kind(fields: &Fields, max_position: usize) -> Result<Option<Yarn>> {
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
        "yarn" => read_yarn(fields, max_position).map(Some),
        other => {
            let other = brief(other);
            Err(unsupported(format!("rope type: wanted default or yarn, found {other}; use YaRN to extend it")))
        }
    }
}

fn read_yarn(fields: &Fields, max_position: usize) -> Result<Yarn> {
    let original_max_position = fields.count("original_max_position_embeddings")?.unwrap_or(max_position);
    if original_max_position == 0 || original_max_position > MAX_EXTENT {
        let why = format!("wanted 1 to {MAX_EXTENT}, found {original_max_position}");
        return Err(contradiction(format!("original_max_position_embeddings: {why}")));
    }
    let ratio = max_position as f64 / original_max_position as f64;
    let factor = fields.number("factor")?.unwrap_or(ratio);
    if !(1.0..=1e6).contains(&factor) {
        return Err(contradiction(format!("yarn factor: wanted 1 to 1000000, found {factor}")));
    }
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
