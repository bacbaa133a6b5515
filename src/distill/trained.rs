//! What is trained of a student, as the settings say: all its weights, or an adapter beside them; and from what training
//! begins.
#![forbid(unsafe_code)]

use super::config::Config;
use crate::backend::Device;
use crate::error::{Error, Fault, Result};
use crate::model::{Adapter, ModelConfig, Parameters, Weights};
use crate::serve::Revision;
use crate::tensor::Dtype;

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
    let dtype = current.adapter().map_or_else(|| fresh_dtype(&current.weights), Adapter::dtype);
    form_in(config, model, current, dtype)
}

/// The same of an adapter in a given dtype.
pub(super) fn form_in(config: &Config, model: &ModelConfig, current: &Revision, dtype: Dtype) -> Result<Parameters> {
    match &config.lora {
        None => Weights::like(model, &current.weights).map(Parameters::Weights),
        Some(lora) => Adapter::zeros(model, lora, dtype).map(Parameters::Adapter),
    }
}

/// The dtype of a fresh adapter's served form.
pub(super) fn fresh_dtype(base: &Weights) -> Dtype {
    base.layers.first().map_or(Dtype::F32, |layer| layer.q.dense().dtype())
}
