//! From a folder to a served model: what it would need, and making it.
#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::cancel::Cancel;
use super::controls::Controls;
use super::documents::{Documents, history_of};
use super::engine::Engine;
use super::log::Level;
use super::model::{Parts, ServedModel};
use crate::backend::Tensor;
use crate::error::{Error, Fault, Result};
use crate::format::{GenerationDefaults, ModelDir, within_folder};
use crate::model::{Load, MemoryPlan, Model, ModelConfig, Weights, context_of};
use crate::tensor::Dtype;

/// How to load a model.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// Tokens a session may hold; 0: the model's own limit.
    pub max_context: usize,
    /// Copy the weights instead of mapping them (a mapped file must not be truncated).
    pub copy: bool,
}

impl Engine {
    /// Loads a model folder. Fails with `HostBudget` or `DeviceBudget` before anything is made if the plan does not fit.
    pub fn load(&self, path: &Path, options: LoadOptions) -> Result<ServedModel> {
        self.load_watched(path, options, &Cancel::default(), &mut |_, _| true)
    }

    /// The same; `progress` is told bytes of weights done and in all and may stop it by returning false.
    pub fn load_watched(
        &self,
        path: &Path,
        options: LoadOptions,
        cancel: &Cancel,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<ServedModel> {
        self.check_alive()?;
        self.forget_released();
        let begun = Instant::now();
        let context = |e| within_folder(e, path);
        if self.options().host_budget > 0 || self.device().free_bytes()?.is_some() {
            let (plan, _) = self.memory_plan(path, options)?;
            match (plan.device(), self.device().free_bytes()?) {
                (Some(needed), Some(free)) if needed > free => {
                    let why = format!("the model needs {needed} bytes of device memory, {free} are free");
                    return Err(context(Error::memory(Fault::DeviceBudget, needed, free, why)));
                }
                (Some(_), _) => {}
                (None, _) => self.check_budget(plan.weights).map_err(context)?,
            }
        }
        let tell = &mut |done, all| {
            if progress(done, all) && !cancel.is_set() {
                return Ok(());
            }
            Err(Error::new(Fault::Cancelled, "loading was cancelled"))
        };
        let model = from_folder(self, path, options, tell).map_err(context)?;
        let (weights, at) = (&model.current().weights, path.display());
        let (parameters, bytes) = (weights.n_parameters(), weights.bytes());
        let context = model.model().max_context();
        let what = format!("{at}, {parameters} parameters in {bytes} bytes, context of {context} tokens");
        self.log_phase("ready", &what, begun);
        for warning in model.warnings() {
            self.log(Level::Warning, "model", &format!("{at}: {warning}"));
        }
        Ok(model)
    }

    /// A model with random weights and no tokenizer, for benches and tests; a function of the seed.
    pub fn random_model(
        &self,
        config: ModelConfig,
        dtype: Dtype,
        seed: u64,
        max_context: usize,
    ) -> Result<ServedModel> {
        context_of(&config, self.device(), max_context)?;
        let weights = Weights::random(&config, self.device(), dtype, seed, 0.02)?;
        let documents = ModelDir::of_config(config.to_json());
        assemble(self, documents, config, weights, max_context)
    }

    /// What a model folder would need, before anything is allocated. Bytes throughout.
    pub fn plan(&self, path: &Path, options: LoadOptions) -> Result<Value> {
        let (plan, found) = self.memory_plan(path, options)?;
        let free = self.device().free_bytes()?;
        Ok(json!({
            "parameters": found.parameters,
            "weight_bytes": found.stored,
            "weights_are": if plan.on_device { "on the device" } else if options.copy { "copied" } else { "mapped" },
            "device_bytes": plan.device(),
            "device_bytes_free": free,
            "kv_bytes_per_token": plan.kv_per_token,
            "kv_bytes_per_full_session": plan.kv_session(),
            "kv_budget": self.options().kv_budget,
            "activation_bytes": plan.activations + plan.scratch,
            "logit_bytes": plan.head,
            "table_bytes": plan.rotary_table,
            "training_bytes": plan.training.fixed(),
            "max_context": plan.max_context,
            "warnings": found.warnings,
        }))
    }

    /// The plan of a model folder, and what was found in it.
    fn memory_plan(&self, path: &Path, options: LoadOptions) -> Result<(MemoryPlan, Found)> {
        let plan = || {
            let mut dir = ModelDir::open(path)?;
            let config = ModelConfig::of_folder(&mut dir)?;
            dir.generation_defaults();
            let stored = dir.tensors.values().map(|t| t.bytes.len() as u64).sum();
            let parameters = dir.tensors.values().map(|t| t.shape.elements() as u64).sum();
            let (max_context, rows) = (options.max_context, self.options().max_batch_tokens);
            let load = Load { max_context, rows, parameters, stored };
            let plan = MemoryPlan::new(&config, self.device(), self.options().compute, load)?;
            Ok((plan, Found { parameters, stored, warnings: dir.warnings }))
        };
        plan().map_err(|e| within_folder(e, path))
    }
}

/// What a model folder holds, for its plan.
struct Found {
    parameters: u64,
    stored: u64,
    warnings: Vec<String>,
}

/// `tell` is told the bytes of weights done and in all, and stops the loading by an error.
fn from_folder(
    engine: &Engine,
    path: &Path,
    options: LoadOptions,
    tell: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<ServedModel> {
    let begun = Instant::now();
    let mut dir = ModelDir::open(path)?;
    let config = ModelConfig::of_folder(&mut dir)?;
    let tensors = dir.tensors.len();
    engine.log_phase("documents", &format!("{tensors} tensors in the headers"), begun);
    let begun = Instant::now();
    let mut weights = Weights::from_stored(&config, &dir.tensors)?;
    dir.tensors.clear();
    let (mut done, all) = (0, weights.bytes());
    tell(done, all)?;
    if options.copy && engine.device().free_bytes()?.is_none() {
        for t in weights.tensors_mut() {
            let mut own = Tensor::zeros(t.dtype(), t.shape().extents())?;
            own.bytes_mut().copy_from_slice(t.bytes());
            *t = own;
            done += t.bytes().len() as u64;
            tell(done, all)?;
        }
    }
    let (weights, copied) = (weights.to_device(&config, engine.device(), tell)?, done > 0);
    let place = match engine.device().free_bytes()? {
        Some(_) => "on the device",
        None if copied => "copied",
        None => {
            // They are there at once.
            tell(all, all)?;
            "mapped"
        }
    };
    engine.log_phase("weights", &format!("{all} bytes {place}"), begun);
    assemble(engine, dir, config, weights, options.max_context)
}

fn assemble(
    engine: &Engine,
    mut documents: ModelDir,
    config: ModelConfig,
    weights: Weights,
    max_context: usize,
) -> Result<ServedModel> {
    let begun = Instant::now();
    let Documents { tokenizer, template, end_of_turn, stop_ids } = Documents::read(&mut documents, config.vocab_size)?;
    let tokenizer = tokenizer.map(Arc::new);
    if let Some(t) = &tokenizer {
        let (ids, bytes) = (t.n_ids(), documents.tokenizer.as_ref().map_or(0, |text| text.len()));
        engine.log_phase("tokenizer", &format!("{ids} ids out of {bytes} bytes"), begun);
    }
    let history = history_of(&documents)?;
    let defaults = defaults_for(engine, &mut documents, config.vocab_size, tokenizer.is_some());
    let model = Model::new(config, engine.device().clone(), engine.options().compute, max_context)?;
    weights.check(&model.config)?;
    if engine.device().free_bytes()?.is_none() {
        engine.check_budget(weights.bytes())?;
    }
    Ok(ServedModel::of(
        engine,
        Parts { model, weights, tokenizer, template, end_of_turn, stop_ids, defaults, history, documents },
    ))
}

/// What the folder advises, as far as this model can follow it; what is left out becomes a warning.
fn defaults_for(engine: &Engine, documents: &mut ModelDir, vocabulary: usize, has_text: bool) -> GenerationDefaults {
    let mut defaults = documents.generation_defaults();
    let mut left_out = |why: String| documents.warnings.push(format!("generation_config.json: {why}; it is left out"));
    if let Some(&(id, _)) = defaults.logit_bias.iter().find(|one| one.0 as usize >= vocabulary) {
        left_out(format!("sequence_bias names id {id}, outside the vocabulary of {vocabulary}"));
        defaults.logit_bias.clear();
    }
    if !has_text && !defaults.stop_strings.is_empty() {
        left_out("stop_strings need a tokenizer, and the folder has none".into());
        defaults.stop_strings.clear();
    }
    if engine.device().runs_ahead() {
        let plain = GenerationDefaults {
            temperature: defaults.temperature,
            top_k: defaults.top_k,
            top_p: defaults.top_p,
            stop_strings: std::mem::take(&mut defaults.stop_strings),
            ..GenerationDefaults::default()
        };
        if let Some(name) = Controls::advised(&defaults).differs_from(&Controls::default()) {
            left_out(format!("{name} is no control of a GPU's"));
        }
        return plain;
    }
    defaults
}
