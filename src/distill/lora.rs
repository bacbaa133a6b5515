//! The knob that says what is trained: all weights, or an adapter (LoRA); and what training begins from.
#![forbid(unsafe_code)]

use super::config::Config;
use super::document::{bad, fields, integer, join, number};
use crate::backend::Device;
use crate::error::{Error, Fault, Result};
use crate::model::adapter::MAX_RANK;
use crate::model::{Adapter, Lora, ModelConfig, Parameters, Weights, adapter_target};
use crate::serve::Revision;
use crate::tensor::Dtype;
use serde_json::{Value, json};

/// The adapter written at `path` of a document; null for none.
pub(super) fn from_json(value: &Value, path: &str) -> Result<Option<Lora>> {
    if value.is_null() {
        return Ok(None);
    }
    let mut lora = Lora { rank: 16, alpha: 32.0, rslora: false, targets: Vec::new() };
    for (key, value) in fields(value, path, &["rank", "alpha", "rslora", "targets", "dropout"])? {
        let knob = join(path, key);
        match key.as_str() {
            "rank" => lora.rank = integer(value, &knob, 1, MAX_RANK as u64)? as usize,
            "alpha" => lora.alpha = number(value, &knob, "a number above 0, at most 1e6", |x| x > 0.0 && x <= 1e6)?,
            "rslora" => lora.rslora = value.as_bool().ok_or_else(|| bad(value, &knob, "true or false"))?,
            "targets" => lora.targets = targets(value, &knob)?,
            _ => {
                let why = "squire trains by the forward pass that serves, whose log-probs a dropout would change";
                number(value, &knob, &format!("0, since {why}"), |x| x == 0.0).map(drop)?;
            }
        }
    }
    Ok(Some(lora))
}

fn targets(value: &Value, path: &str) -> Result<Vec<crate::backend::Projection>> {
    let wanted = "a list of projections by their names, or left out for all";
    let list = value.as_array().filter(|list| !list.is_empty()).ok_or_else(|| bad(value, path, wanted))?;
    let one = |v: &Value| {
        let name = v.as_str().ok_or_else(|| bad(v, path, wanted))?;
        adapter_target(name).map_err(|e| Error::new(Fault::BadValue, format!("{path}: {}", e.message())))
    };
    let mut targets = list.iter().map(one).collect::<Result<Vec<_>>>()?;
    targets.sort();
    targets.dedup();
    Ok(targets)
}

/// The form that is read.
pub(super) fn to_json(lora: Option<&Lora>) -> Value {
    lora.map_or(Value::Null, |lora| {
        let mut document = json!({"rank": lora.rank, "alpha": lora.alpha, "rslora": lora.rslora});
        if !lora.targets.is_empty() {
            document["targets"] = json!(lora.target_names());
        }
        document
    })
}

/// Refuses what cannot be trained of a student at `current`. Before anything changes.
pub(super) fn check(config: &Config, model: &ModelConfig, current: &Revision) -> Result<()> {
    let Some(lora) = &config.lora else {
        return match &current.adapter {
            None => Ok(()),
            Some(_) => {
                let why = "the student's current revision has an adapter, and the settings train all weights: give lora \
                           settings like the adapter's, or merge it first";
                Err(Error::new(Fault::AdapterMismatch, why))
            }
        };
    };
    let wanted = lora.of(model).map_err(|e| e.within("lora"))?;
    let Some(found) = current.adapter().map(|adapter| &adapter.lora).filter(|found| **found != wanted) else {
        return Ok(());
    };
    let pairs = [
        ("rank", wanted.rank.to_string(), found.rank.to_string()),
        ("alpha", wanted.alpha.to_string(), found.alpha.to_string()),
        ("rslora", wanted.rslora.to_string(), found.rslora.to_string()),
        ("targets", wanted.target_names().join(", "), found.target_names().join(", ")),
    ];
    let differs = pairs.iter().find(|(_, wanted, found)| wanted != found);
    let why = differs.map_or(String::new(), |(what, wanted, found)| {
        format!("lora.{what}: wanted {wanted}, found {found} in the adapter that the student has; give the same")
    });
    Err(Error::new(Fault::AdapterMismatch, why))
}

/// The f32 masters that training begins from: the student's weights, its adapter, or a fresh one.
pub(super) fn masters(config: &Config, model: &ModelConfig, device: &Device, current: &Revision) -> Result<Parameters> {
    match (&config.lora, current.adapter()) {
        (None, _) => Weights::widened(model, &current.weights).map(Parameters::Weights),
        (Some(lora), None) => Adapter::fresh(model, lora, device, config.seed).map(Parameters::Adapter),
        (Some(_), Some(adapter)) => adapter.widened(model).map(Parameters::Adapter),
    }
}

/// Zeros in the form that the student serves: the dtypes of its weights, or of its adapter; a fresh one has the dtype of
/// its base's first projection.
pub(super) fn served_form(config: &Config, model: &ModelConfig, current: &Revision) -> Result<Parameters> {
    match (&config.lora, current.adapter()) {
        (None, _) => Weights::like(model, &current.weights).map(Parameters::Weights),
        (Some(lora), adapter) => {
            let dtype = adapter.map_or_else(|| fresh_dtype(&current.weights), Adapter::dtype);
            Adapter::zeros(model, lora, dtype).map(Parameters::Adapter)
        }
    }
}

/// The dtype of a fresh adapter's served form.
pub(super) fn fresh_dtype(base: &Weights) -> Dtype {
    base.layers.first().map_or(Dtype::F32, |layer| layer.q.dense().dtype())
}
