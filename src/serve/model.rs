//! A model that an engine serves: a lineage of weight revisions with one tokenizer and one template.
//!
//! Publishing makes a new revision; sessions made afterwards get it, sessions under way keep theirs, and
//! a revision's memory goes when its last session does.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::documents::{Documents, StopId, stop_ids_json};
use super::engine::Engine;
use super::generation::GenerationOptions;
use super::log::Level;
use super::timeline::check_ids;
use crate::backend::Tensor;
use crate::backend::ops::Sampling;
use crate::backend::page::PAGE;
use crate::error::{Error, Fault, Result};
use crate::format::{GenerationDefaults, ModelDir, save_model};
use crate::model::{KvPool, Model, ModelConfig, Weights, context_of};
use crate::random::fresh_seed;
use crate::tensor::Dtype;
use crate::text::tokenizer::Tokenizer;
use crate::text::{ChatTemplate, Json, RenderOptions, encode_chat, end_of_turn, notices};

/// One set of weights, never changed.
pub struct Revision {
    /// Its number in the lineage, from 1.
    pub number: u64,
    /// The weights.
    pub weights: Weights,
    /// bytes of all revisions of the engine, these included
    total: Arc<AtomicU64>,
}

impl Revision {
    fn new(engine: &Engine, number: u64, weights: Weights) -> Arc<Revision> {
        let total = engine.weight_bytes().clone();
        total.fetch_add(weights.bytes(), Ordering::Relaxed);
        Arc::new(Revision { number, weights, total })
    }
}

impl Drop for Revision {
    fn drop(&mut self) {
        self.total.fetch_sub(self.weights.bytes(), Ordering::Relaxed);
    }
}

/// How to load a model.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// Tokens a session may hold; 0: the model's own limit.
    pub max_context: usize,
    /// Copy the weights instead of mapping them (a mapped file must not be truncated).
    pub copy: bool,
}

/// A served model. Cheap to clone; clones are the same model.
#[derive(Clone)]
pub struct ServedModel(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) engine: Engine,
    pub(super) model: Arc<Model>,
    pub(super) pool: Arc<KvPool>,
    pub(super) tokenizer: Option<Arc<Tokenizer>>,
    template: Option<ChatTemplate>,
    /// the folder's documents, written again beside other weights; its tensors are not kept
    documents: ModelDir,
    stop_ids: Vec<i32>,
    /// the same with the places that name them
    stops: Vec<StopId>,
    end_of_turn: Option<i32>,
    defaults: GenerationDefaults,
    revisions: Mutex<Revisions>,
    /// what the host was told of its requests
    told: Mutex<HashSet<String>>,
    /// tells models apart
    id: u64,
}

/// Distinct lines that a host is told of its requests.
const MAX_TOLD: usize = 64;

struct Revisions {
    current: Arc<Revision>,
    alive: Vec<Weak<Revision>>,
}

impl Revisions {
    fn check_room(&mut self, limit: usize) -> Result<()> {
        self.alive.retain(|r| r.strong_count() > 0);
        // If nobody but the lineage holds the current revision, it goes when it is replaced.
        let goes = usize::from(Arc::strong_count(&self.current) == 1);
        let alive = self.alive.len() - goes + 1;
        if alive > limit.max(1) {
            let bytes = self.current.weights.bytes();
            let why = format!("{alive} revisions would be alive, {limit} may be; end or rebase older sessions first");
            return Err(Error::memory(Fault::HostBudget, bytes, 0, why));
        }
        Ok(())
    }
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl ServedModel {
    /// `go_on` is told the bytes of weights done and in all.
    pub(super) fn load(
        engine: &Engine,
        path: &Path,
        options: LoadOptions,
        go_on: &mut dyn FnMut(u64, u64) -> Result<()>,
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
        go_on(done, all)?;
        if options.copy && engine.device().free_bytes()?.is_none() {
            for t in weights.tensors_mut() {
                let mut own = Tensor::zeros(t.dtype(), t.shape().extents())?;
                own.bytes_mut().copy_from_slice(t.bytes());
                *t = own;
                done += t.bytes().len() as u64;
                go_on(done, all)?;
            }
        }
        let (weights, copied) = (weights.to_device(&config, engine.device(), go_on)?, done > 0);
        let place = match engine.device().free_bytes()? {
            Some(_) => "on the device",
            None if copied => "copied",
            None => {
                // They are there at once.
                go_on(all, all)?;
                "mapped"
            }
        };
        engine.log_phase("weights", &format!("{all} bytes {place}"), begun);
        ServedModel::assemble(engine, dir, config, weights, options.max_context)
    }

    /// A model with random weights and no tokenizer, for benches and tests.
    pub(super) fn random(
        engine: &Engine,
        config: ModelConfig,
        dtype: Dtype,
        seed: u64,
        max_context: usize,
    ) -> Result<ServedModel> {
        context_of(&config, engine.device(), max_context)?;
        let weights = Weights::random(&config, engine.device(), dtype, seed, 0.02)?;
        let documents = ModelDir::of_config(config.to_json());
        ServedModel::assemble(engine, documents, config, weights, max_context)
    }

    fn assemble(
        engine: &Engine,
        mut documents: ModelDir,
        config: ModelConfig,
        weights: Weights,
        max_context: usize,
    ) -> Result<ServedModel> {
        let begun = Instant::now();
        let Documents { tokenizer, template, end_of_turn, stop_ids } =
            Documents::read(&mut documents, config.vocab_size)?;
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
        let current = Revision::new(engine, 1, weights);
        Ok(ServedModel(Arc::new(Inner {
            engine: engine.clone(),
            pool: KvPool::new(&model.device, model.page_shape(), engine.options().kv_budget),
            model: Arc::new(model),
            tokenizer,
            template,
            documents,
            stop_ids: stop_ids.iter().map(|stop| stop.id).collect(),
            stops: stop_ids,
            end_of_turn,
            defaults,
            revisions: Mutex::new(Revisions { alive: vec![Arc::downgrade(&current)], current }),
            told: Mutex::default(),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
        })))
    }

    /// The engine it belongs to.
    pub fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// Extents, device and rotary table.
    pub fn model(&self) -> &Arc<Model> {
        &self.0.model
    }

    /// Its configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.0.model.config
    }

    /// Refuses ids outside the vocabulary.
    pub fn check_ids(&self, ids: &[i32]) -> Result<()> {
        check_ids(ids, self.config().vocab_size)
    }

    /// Whether two handles are one model.
    pub fn is(&self, other: &ServedModel) -> bool {
        self.0.id == other.0.id
    }

    /// The tokenizer, or a refusal where the folder has none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        let missing = || {
            Error::new(Fault::MissingFile, "the model folder has no tokenizer.json; put the model's there, or give ids")
        };
        self.0.tokenizer.as_deref().ok_or_else(missing)
    }

    /// The chat template, or a refusal where the folder has none.
    pub fn template(&self) -> Result<&ChatTemplate> {
        let missing = || {
            Error::new(
                Fault::NoTemplate,
                "the model folder has no chat template; put chat_template.jinja there, or give text or ids",
            )
        };
        self.0.template.as_ref().ok_or_else(missing)
    }

    /// The ids of a whole conversation by the model's template.
    ///
    /// Errors: `MissingFile` without a tokenizer, `NoTemplate`, and those of [`encode_chat`].
    pub fn encode_chat(&self, messages: impl Into<Json>, options: &RenderOptions) -> Result<Vec<i32>> {
        let messages = messages.into();
        let ids = encode_chat(self.tokenizer()?, self.template()?, &messages, options)?;
        self.tell_of(&messages, options);
        Ok(ids)
    }

    /// Tells the host, once each, what it should hear of a request that is rendered.
    pub(super) fn tell_of(&self, messages: &Json, options: &RenderOptions) {
        let engine = &self.0.engine;
        let (true, Ok(tokenizer), Ok(template)) = (engine.is_heard(), self.tokenizer(), self.template()) else {
            return;
        };
        // The call is done already. What is rendered here alone, without what stands before it, may fail by itself.
        for notice in notices(tokenizer, template, messages, options).unwrap_or_default() {
            let mut told = self.0.told.lock();
            if told.len() < MAX_TOLD && told.insert(notice.clone()) {
                drop(told);
                engine.log(Level::Warning, "chat", &notice);
            }
        }
    }

    /// Ids that end a turn.
    pub fn stop_ids(&self) -> &[i32] {
        &self.0.stop_ids
    }

    /// Whether a turn is over once this id stands in it: a stop id, and where no template closes turns by a token every
    /// special one, since it belongs to the next message then.
    pub(super) fn ends_turn(&self, id: i32) -> bool {
        let special = || self.0.tokenizer.as_ref().is_some_and(|tokenizer| tokenizer.is_special(id));
        self.0.stop_ids.contains(&id) || (self.0.end_of_turn.is_none() && special())
    }

    /// The id that ends a turn which nobody sampled: the one with which the template that `options` choose closes an
    /// assistant's message, else the first stop id.
    pub fn end_of_turn(&self, options: &RenderOptions) -> Option<i32> {
        let own = match (&self.0.tokenizer, &self.0.template) {
            (Some(tokenizer), Some(template)) if template.sources().len() > 1 => {
                end_of_turn(tokenizer, template, options)
            }
            _ => self.0.end_of_turn,
        };
        own.or_else(|| self.0.stop_ids.first().copied())
    }

    /// How the model's makers advise to sample.
    pub fn generation_defaults(&self) -> GenerationDefaults {
        self.0.defaults
    }

    /// How a generation goes where nobody says otherwise: as the folder advises, what it leaves open neutral, with a seed
    /// drawn for this call.
    pub fn generation_options(&self) -> GenerationOptions {
        let GenerationDefaults { temperature, top_k, top_p } = self.0.defaults;
        let mut options = GenerationOptions { seed: fresh_seed(), ..GenerationOptions::default() };
        let Sampling { temperature: t, top_k: k, top_p: p } = &mut options.sampling;
        (*t, *k, *p) = (temperature.unwrap_or(*t), top_k.unwrap_or(*k), top_p.unwrap_or(*p));
        options
    }

    /// What is not as it should be in the folder and was understood all the same.
    pub fn warnings(&self) -> &[String] {
        &self.0.documents.warnings
    }

    /// Pages of KV cache that its sessions hold.
    pub fn kv_pages(&self) -> usize {
        self.0.pool.pages_in_use()
    }

    /// The revision that new sessions get.
    pub fn current(&self) -> Arc<Revision> {
        self.0.revisions.lock().current.clone()
    }

    /// Revisions that somebody still uses, the current one included.
    pub fn n_revisions_alive(&self) -> usize {
        let mut revisions = self.0.revisions.lock();
        revisions.alive.retain(|r| r.strong_count() > 0);
        revisions.alive.len()
    }

    /// Refuses with `HostBudget` if one more revision would make more than `limit` alive.
    pub fn check_room(&self, limit: usize) -> Result<()> {
        self.0.revisions.lock().check_room(limit)
    }

    /// Makes `weights` the revision that new sessions get, and returns its number. Refused with
    /// `HostBudget` if more than `limit` revisions would then be alive, with `TensorShape` if they are not
    /// weights of this model.
    pub fn publish(&self, weights: Weights, limit: usize) -> Result<u64> {
        weights.check(self.config())?;
        let mut revisions = self.0.revisions.lock();
        revisions.check_room(limit)?;
        let number = revisions.current.number + 1;
        let revision = Revision::new(&self.0.engine, number, weights);
        revisions.alive.push(Arc::downgrade(&revision));
        revisions.current = revision;
        drop(revisions);
        self.0.engine.log(Level::Info, "model", &format!("revision {number} is published"));
        Ok(number)
    }

    /// Makes `weights` the current revision under a number from a checkpoint.
    pub fn restore(&self, weights: Weights, number: u64) {
        let mut revisions = self.0.revisions.lock();
        let revision = Revision::new(&self.0.engine, number, weights);
        revisions.alive.push(Arc::downgrade(&revision));
        revisions.current = revision;
    }

    /// Writes the current revision as a Hugging Face folder that loads again.
    pub fn save(&self, path: &Path) -> Result<()> {
        let revision = self.current();
        let on_host =
            self.0.engine.device().free_bytes()?.map(|_| revision.weights.to_host(self.config())).transpose()?;
        let tensors = on_host.as_ref().unwrap_or(&revision.weights).tensors();
        let list = tensors.iter().map(|(name, t)| (name.as_str(), t.dtype(), t.shape(), t.bytes()));
        save_model(path, &self.0.documents.config, list, self.0.documents.companions())
    }

    /// What the model is: extents, dtypes, revision, vocabulary, template, bytes.
    pub fn info(&self) -> Value {
        let (revision, model) = (self.current(), &self.0.model);
        let Sampling { temperature, top_k, top_p } = self.generation_options().sampling;
        // 0.6, and not what f32 makes of it in f64.
        let short = |x: f32| x.to_string().parse::<f64>().unwrap_or(x.into());
        json!({
            "config": model.config.to_json(),
            "parameters": revision.weights.n_parameters(),
            "weight_bytes": revision.weights.bytes(),
            "weight_dtype": revision.weights.dtypes(),
            "compute": model.compute.name(),
            "max_context": model.max_context(),
            "kv_bytes_per_token": model.page_shape().bytes() / PAGE,
            "kv_pages_in_use": self.kv_pages(),
            "revision": revision.number,
            "revisions_alive": self.n_revisions_alive(),
            "tokenizer": self.0.tokenizer.is_some(),
            "chat_template": self.0.template.is_some(),
            "chat_templates": self.0.documents.chat_templates.by_name.keys().collect::<Vec<_>>(),
            "history": "keep",
            "stop_ids": self.0.stop_ids,
            "stop_ids_from": stop_ids_json(&self.0.stops, self.0.tokenizer.as_deref()),
            "generation_defaults": { "temperature": short(temperature), "top_k": top_k, "top_p": short(top_p) },
            "warnings": self.0.documents.warnings,
        })
    }
}
