//! From a folder to a served model: what it would need, and making it.
#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::cancel::Cancel;
use super::documents::Documents;
use super::engine::Engine;
use super::log::Level;
use super::model::{Parts, ServedModel};
use crate::backend::Tensor;
use crate::backend::page::PAGE;
use crate::error::{Error, Fault, Result};
use crate::format::{ModelDir, within_folder};
use crate::model::{Model, ModelConfig, Weights, context_of, page_shape, step_bytes_on_gpu};
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
            let plan = self.plan(path, options)?;
            let bytes = |key: &str| plan[key].as_u64();
            match (bytes("device_bytes"), bytes("device_bytes_free")) {
                (Some(needed), Some(free)) if needed > free => {
                    let why = format!("the model needs {needed} bytes of device memory, {free} are free");
                    return Err(context(Error::memory(Fault::DeviceBudget, needed, free, why)));
                }
                (Some(_), _) => {}
                _ => self.check_budget(bytes("weight_bytes").unwrap_or(0)).map_err(context)?,
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
        self.plan_of(path, options).map_err(|e| within_folder(e, path))
    }

    fn plan_of(&self, path: &Path, options: LoadOptions) -> Result<Value> {
        let mut dir = ModelDir::open(path)?;
        let config = ModelConfig::of_folder(&mut dir)?;
        dir.generation_defaults();
        let weight_bytes: u64 = dir.tensors.values().map(|t| t.bytes.len() as u64).sum();
        let parameters: u64 = dir.tensors.values().map(|t| t.shape.elements() as u64).sum();
        let max_context = context_of(&config, self.device(), options.max_context)?;
        let (c, page) = (&config, page_shape(&config, self.options().compute));
        let per_token = page.bytes() as u64 / PAGE as u64;
        let widths =
            5 * c.hidden_size + 3 * c.n_heads * c.head_dim + 3 * c.n_kv_heads * c.head_dim + 3 * c.intermediate_size;
        let table_bytes = (max_context * c.head_dim * size_of::<f32>()) as u64;
        let activation_bytes = (self.options().max_batch_tokens * widths) as u64;
        let logit_bytes = 32 * 4 * c.vocab_size as u64;
        // On a GPU weights become bf16, activations are bf16, and everything comes out of its memory.
        let free = self.device().free_bytes()?;
        let on_gpu = Weights::bytes_on_gpu(c)
            + table_bytes
            + activation_bytes * 2
            + step_bytes_on_gpu(c, max_context)
            + page.bytes() as u64;
        Ok(json!({
            "parameters": parameters,
            "weight_bytes": weight_bytes,
            "weights_are": if free.is_some() { "on the device" } else if options.copy { "copied" } else { "mapped" },
            "device_bytes": free.map(|_| on_gpu),
            "device_bytes_free": free,
            "kv_bytes_per_token": per_token,
            "kv_bytes_per_full_session": per_token * max_context as u64,
            "kv_budget": self.options().kv_budget,
            "activation_bytes": activation_bytes * if free.is_some() { 2 } else { 4 },
            "logit_bytes": logit_bytes,
            "table_bytes": table_bytes,
            "training_bytes": parameters * 16 + weight_bytes,
            "max_context": max_context,
            "warnings": dir.warnings,
        }))
    }
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
    let defaults = documents.generation_defaults();
    let model = Model::new(config, engine.device().clone(), engine.options().compute, max_context)?;
    weights.check(&model.config)?;
    if engine.device().free_bytes()?.is_none() {
        engine.check_budget(weights.bytes())?;
    }
    Ok(ServedModel::of(
        engine,
        Parts { model, weights, tokenizer, template, end_of_turn, stop_ids, defaults, documents },
    ))
}
