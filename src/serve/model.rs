//! A model that an engine serves: a lineage of weight revisions with one tokenizer and one template.
//!
//! Publishing makes a new revision; sessions made afterwards get it, sessions under way keep theirs, and
//! a revision's memory goes when its last session does.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Weak};

use serde_json::{Value, json};

use super::controls::Controls;
use super::documents::{StopId, stop_ids_json, with_history};
use super::engine::Engine;
use super::generation_options::GenerationOptions;
use super::log::Level;
use super::revision::{Bound, Counted, Lineage, Revision, Upon};
use super::slot::Slots;
use super::timeline::check_ids;
use crate::backend::ops::Sampling;
use crate::backend::page::PAGE;
use crate::error::{Error, Fault, Result};
use crate::format::{GenerationDefaults, ModelDir, save_model};
use crate::model::{Adapter, KvPool, Model, ModelConfig, Parameters, Weights};
use crate::random::fresh_seed;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::text::tokenizer::Tokenizer;
use crate::text::{ChatTemplate, History, Json, RenderOptions, encode_chat, end_of_turn, notices};

/// A served model. Cheap to clone; clones are the same model.
#[derive(Clone)]
pub struct ServedModel(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) model: Arc<Model>,
    pub(super) pool: Arc<KvPool>,
    /// the timelines of its sessions
    pub(super) slots: Arc<Slots>,
    pub(super) tokenizer: Option<Arc<Tokenizer>>,
    template: Option<ChatTemplate>,
    /// the folder's documents, written again beside other weights; its tensors are not kept
    documents: ModelDir,
    stop_ids: Vec<i32>,
    /// the same with the places that name them
    stops: Vec<StopId>,
    end_of_turn: Option<i32>,
    defaults: GenerationDefaults,
    /// what of earlier turns' thoughts stays where a request does not say
    history: Mutex<History>,
    pub(super) lineage: Lineage,
    /// what the host was told of its requests
    told: Mutex<HashSet<String>>,
    /// tells models apart
    id: u64,
    /// the last field, so that everything else is gone when it tells the engine
    engine: Released,
}

/// The engine of a model, which hears when the model is gone.
struct Released(Engine);

impl Drop for Released {
    fn drop(&mut self) {
        self.0.model_released();
    }
}

/// What a model is made of.
pub(super) struct Parts {
    pub(super) model: Model,
    pub(super) weights: Weights,
    pub(super) tokenizer: Option<Arc<Tokenizer>>,
    pub(super) template: Option<ChatTemplate>,
    pub(super) end_of_turn: Option<i32>,
    pub(super) stop_ids: Vec<StopId>,
    pub(super) defaults: GenerationDefaults,
    pub(super) history: History,
    /// without tensors
    pub(super) documents: ModelDir,
}

/// Distinct lines that a host is told of its requests.
const MAX_TOLD: usize = 64;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl ServedModel {
    /// A model of an engine, with `weights` as its first revision.
    pub(super) fn of(engine: &Engine, parts: Parts) -> ServedModel {
        let Parts { model, weights, tokenizer, template, end_of_turn, stop_ids, defaults, history, documents } = parts;
        let options = engine.options();
        let pool = KvPool::keeping(&model.device, model.page_shape(), options.kv_budget, options.prefix_budget);
        engine.watch_pool(&pool);
        ServedModel(Arc::new(Inner {
            slots: Arc::default(),
            model: Arc::new(model),
            tokenizer,
            template,
            documents,
            stop_ids: stop_ids.iter().map(|stop| stop.id).collect(),
            stops: stop_ids,
            end_of_turn,
            defaults,
            history: Mutex::new(history),
            lineage: Lineage::new(engine.host_bytes(), weights, &pool),
            pool,
            told: Mutex::default(),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            engine: Released(engine.clone()),
        }))
    }

    /// The engine it belongs to.
    pub fn engine(&self) -> &Engine {
        &self.0.engine.0
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

    /// The tokenizer, if it has one, for whoever outlives this.
    pub(crate) fn shared_tokenizer(&self) -> Option<Arc<Tokenizer>> {
        self.0.tokenizer.clone()
    }

    /// What tells vocabularies apart wherever one is written down: 16 hexadecimal digits; None without a tokenizer.
    pub fn vocabulary_fingerprint(&self) -> Option<String> {
        self.0.tokenizer.as_ref().map(|tokenizer| format!("{:016x}", tokenizer.fingerprint()))
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

    /// The ids of a whole conversation by the model's template, in the options' mode of history, else the model's.
    ///
    /// Errors: `MissingFile` without a tokenizer, `NoTemplate`, and those of [`encode_chat`].
    pub fn encode_chat(&self, messages: impl Into<Json>, options: &RenderOptions) -> Result<Vec<i32>> {
        let messages = options.history.unwrap_or(self.history()).of_messages(messages.into());
        let ids = encode_chat(self.tokenizer()?, self.template()?, &messages, options)?;
        self.tell_of(&messages, options);
        Ok(ids)
    }

    /// Tells the host, once each, what it should hear of a request that is rendered.
    pub(super) fn tell_of(&self, messages: &Json, options: &RenderOptions) {
        let engine = self.engine();
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
    ///
    /// Errors: as [`end_of_turn`].
    pub fn end_of_turn(&self, options: &RenderOptions) -> Result<Option<i32>> {
        let own = match (&self.0.tokenizer, &self.0.template) {
            (Some(tokenizer), Some(template)) if template.sources().len() > 1 => {
                end_of_turn(tokenizer, template, options)?
            }
            _ => self.0.end_of_turn,
        };
        Ok(own.or_else(|| self.0.stop_ids.first().copied()))
    }

    /// How the model's makers advise to sample.
    pub fn generation_defaults(&self) -> &GenerationDefaults {
        &self.0.defaults
    }

    /// How a generation goes where nobody says otherwise: as the folder advises, what it leaves open neutral, with a seed
    /// drawn for this call.
    pub fn generation_options(&self) -> GenerationOptions {
        let (folder, neutral) = (&self.0.defaults, GenerationOptions::default());
        let sampling = neutral.sampling;
        GenerationOptions {
            sampling: Sampling {
                temperature: folder.temperature.unwrap_or(sampling.temperature),
                top_k: folder.top_k.unwrap_or(sampling.top_k),
                top_p: folder.top_p.unwrap_or(sampling.top_p),
            },
            controls: Controls::advised(folder),
            stop_strings: folder.stop_strings.clone(),
            seed: fresh_seed(),
            ..neutral
        }
    }

    /// What of earlier turns' thoughts stays where a request does not say.
    pub fn history(&self) -> History {
        *self.0.history.lock()
    }

    /// Makes a mode of history the model's, from the next request on and in folders that are saved.
    pub fn set_history(&self, history: History) {
        *self.0.history.lock() = history;
    }

    /// What is not as it should be in the folder and was understood all the same.
    pub fn warnings(&self) -> &[String] {
        &self.0.documents.warnings
    }

    /// Pages of KV cache that its sessions hold.
    pub fn kv_pages(&self) -> usize {
        self.0.pool.pages_in_use()
    }

    /// Pages that no session holds, kept for whoever asks for the ids that they were computed from.
    pub fn idle_kv_pages(&self) -> usize {
        self.0.pool.pages_idle()
    }

    /// The revision that new sessions get.
    pub fn current(&self) -> Arc<Revision> {
        self.0.lineage.current()
    }

    /// The same for whoever uses it for long: it counts among those alive until it is let go of.
    pub(crate) fn bind(&self) -> Bound {
        self.0.lineage.bind()
    }

    /// Revisions that somebody still uses, the current one included.
    pub fn n_revisions_alive(&self) -> usize {
        self.0.lineage.n_alive()
    }

    /// Refuses with `HostBudget` if one more revision would make more than `limit` alive.
    pub fn check_room(&self, limit: usize) -> Result<()> {
        self.0.lineage.check_room(limit)
    }

    /// Makes `weights` the revision that new sessions get, and returns its number. Refused with
    /// `HostBudget` if more than `limit` revisions would then be alive, with `TensorShape` if they are not
    /// weights of this model. Adapters that were loaded for the weights before can then be used by nobody new.
    pub fn publish(&self, weights: Weights, limit: usize) -> Result<u64> {
        self.publish_upon(Parameters::Weights(weights), Upon::Anything, limit).map_err(|refused| refused.1)
    }

    /// Makes a generation of an adapter over the current base the revision that new sessions get, and returns its number.
    /// It takes the adapter's bytes. Refused as [`ServedModel::publish`], and with `AdapterMismatch` if it is not one of
    /// this model.
    pub fn publish_adapter(&self, adapter: Adapter, limit: usize) -> Result<u64> {
        self.publish_upon(Parameters::Adapter(adapter), Upon::Anything, limit).map_err(|refused| refused.1)
    }

    /// The same of either, of an adapter over `base` alone; what is refused comes back.
    pub(crate) fn publish_or_give_back(
        &self,
        parameters: Parameters,
        base: &Weak<Counted<Weights>>,
        limit: usize,
    ) -> std::result::Result<u64, Box<(Parameters, Error)>> {
        match (&parameters, base.upgrade()) {
            (Parameters::Weights(_), _) => self.publish_upon(parameters, Upon::Anything, limit),
            (Parameters::Adapter(_), Some(base)) => self.publish_upon(parameters, Upon::Base(&base), limit),
            (Parameters::Adapter(_), None) => {
                let why = "the base weights that the adapter was trained beside are gone; make a new distiller";
                Err(Box::new((parameters, Error::new(Fault::AdapterMismatch, why))))
            }
        }
    }

    pub(super) fn publish_upon(
        &self,
        parameters: Parameters,
        upon: Upon,
        limit: usize,
    ) -> std::result::Result<u64, Box<(Parameters, Error)>> {
        let checked = match &parameters {
            Parameters::Weights(weights) => weights.check(self.config()),
            Parameters::Adapter(adapter) => self.check_adapter(adapter),
        };
        if let Err(e) = checked {
            return Err(Box::new((parameters, e)));
        }
        let number = self.0.lineage.publish(parameters, upon, limit)?;
        self.engine().log(Level::Info, "model", &format!("revision {number} is published"));
        Ok(number)
    }

    /// Makes what one of its revisions is the current one once more, under the next number, which is returned.
    pub(crate) fn publish_again(&self, revision: &Revision) -> u64 {
        let number = self.0.lineage.publish_again(revision);
        let again = revision.number;
        self.engine().log(Level::Info, "model", &format!("revision {number} is published, the weights of {again}"));
        number
    }

    /// Makes `parameters` the current revision under a number from a checkpoint.
    pub fn restore(&self, parameters: impl Into<Parameters>, number: u64) {
        self.0.lineage.restore(parameters.into(), number);
    }

    /// Writes the current revision as a Hugging Face folder that loads again, its adapter merged.
    pub fn save(&self, path: &Path) -> Result<()> {
        // Bound, since it takes long: its memory counts meanwhile.
        let revision = self.0.lineage.bind();
        let merged = revision.adapter().map(|adapter| self.merged(&revision.weights, adapter)).transpose()?;
        let weights = merged.as_ref().unwrap_or(&revision.weights);
        let on_host = self.engine().device().free_bytes()?.map(|_| weights.to_host(self.config())).transpose()?;
        let tensors = on_host.as_ref().unwrap_or(weights).tensors();
        let list = tensors.iter().map(|(name, t)| (name.as_str(), t.dtype(), t.shape(), t.bytes()));
        let tokenizer_config = with_history(&self.0.documents, self.history());
        let mut companions = self.0.documents.companions();
        companions.tokenizer_config = tokenizer_config.as_ref().or(companions.tokenizer_config);
        save_model(path, &self.0.documents.config, list, companions)
    }

    /// What the model is: extents, dtypes, revision, vocabulary, template, bytes.
    pub fn info(&self) -> Value {
        let (revision, model) = (self.current(), &self.0.model);
        let own = self.generation_options();
        let (Sampling { temperature, top_k, top_p }, controls) = (own.sampling, own.controls);
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
            "kv_pages_idle": self.idle_kv_pages(),
            "revision": revision.number,
            "adapter": revision.adapter().map(Adapter::describe),
            "adapters": self.adapters(),
            "revisions_alive": self.n_revisions_alive(),
            "tokenizer": self.0.tokenizer.is_some(),
            // Of what every id means: equal for two tokenizers that agree.
            "vocabulary_fingerprint": self.vocabulary_fingerprint(),
            "chat_template": self.0.template.is_some(),
            "chat_templates": self.0.documents.chat_templates.by_name.keys().collect::<Vec<_>>(),
            "history": self.history().name(),
            "stop_ids": self.0.stop_ids,
            "stop_ids_from": stop_ids_json(&self.0.stops, self.0.tokenizer.as_deref()),
            "generation_defaults": {
                "temperature": short(temperature), "top_k": top_k, "top_p": short(top_p),
                "min_p": short(controls.min_p), "typical_p": short(controls.typical_p),
                "repetition_penalty": short(controls.repetition_penalty),
                "presence_penalty": short(controls.presence_penalty),
                "frequency_penalty": short(controls.frequency_penalty),
                "no_repeat_ngram_size": controls.no_repeat_ngram_size,
                "logit_bias": controls.logit_bias.iter().map(|&(id, bias)| json!([id, short(bias)])).collect::<Vec<_>>(),
                "stop_strings": own.stop_strings,
            },
            "warnings": self.0.documents.warnings,
        })
    }
}
