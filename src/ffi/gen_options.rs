//! How to generate, as the host says it: over the model's own.

use std::ffi::c_char;
use std::mem::offset_of;
use std::ptr::null;
use std::time::Duration;

use super::cancel::squire_cancel;
use super::error::squire_error;
use super::guard::{Outcome, guard};
use super::handle;
use super::input::{self, Bits};
use super::model::squire_model;
use super::options::{self, Versioned};
use super::status::squire_status;
use crate::backend::ops::Sampling;
use crate::error::{Error, Fault, Result};
use crate::memory;
use crate::serve::{Cancel, Controls, GenerationOptions, ServedModel};
use crate::text::source::Source;
use crate::text::{MAX_STOP_STRINGS, check_stop_strings};

/// Of squire_gen_options: the model's own stop ids do not end the generation.
pub const SQUIRE_GEN_IGNORE_MODEL_STOPS: u32 = 1;
/// Of squire_gen_options: what is said is told apart too, so that behind the events of tokens, which stay as they are, come
/// those of thought, answer and tool calls. Not beside stop strings, which may end amid any of them.
pub const SQUIRE_GEN_PARTS: u32 = 2;

/// Of temperature, top_k, top_p, min_p, typical_p, repetition_penalty and no_repeat_ngram_size: as the model's makers advise,
/// and where they do not, what changes nothing (1, 0, 1, 0, 1, 1 and 0).
pub const SQUIRE_GEN_UNSET: i32 = -1;
/// The same of presence_penalty and frequency_penalty, of which -1 is a value: as the makers advise, else 0.
pub const SQUIRE_GEN_UNSET_PENALTY: i32 = -1000;
/// Of seed: drawn for this generation, so that no two runs say the same. squire_gen_seed tells which it was.
pub const SQUIRE_GEN_RANDOM_SEED: u64 = 0xffff_ffff_ffff_ffff;

/// What is added to the logit of an id.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct squire_logit_bias {
    /// The id.
    pub id: i32,
    /// From -100 to 100.
    pub bias: f32,
}

// SAFETY: two numbers.
unsafe impl Bits for squire_logit_bias {}

/// A text that ends a generation.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct squire_stop_string {
    /// UTF-8.
    pub text: *const c_char,
    /// Its bytes, 1 to 4096.
    pub len: usize,
}

// SAFETY: a pointer and a number; the pointer is checked before it is read.
unsafe impl Bits for squire_stop_string {}
// SAFETY: as above; what squire hands out points to texts that nobody changes.
unsafe impl Send for squire_stop_string {}
// SAFETY: as above.
unsafe impl Sync for squire_stop_string {}

/// How to generate. Set up by squire_gen_options_init, which leaves the sampling to the model; squire_gen_options_for
/// shows what that is. Each field that is set counts for itself.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct squire_gen_options {
    /// Set by _init.
    pub struct_size: u32,
    /// SQUIRE_GEN_IGNORE_MODEL_STOPS and SQUIRE_GEN_PARTS, or 0, the default.
    pub flags: u32,
    /// Most tokens to sample; 0, the default: as many as the context holds.
    pub max_tokens: i32,
    /// Only the k likeliest tokens are sampled from; 0: all. SQUIRE_GEN_UNSET, the default: the model's.
    pub top_k: i32,
    /// 0 takes the likeliest token; 10000 is the most. SQUIRE_GEN_UNSET, the default: the model's.
    pub temperature: f32,
    /// Only the likeliest tokens that make up this share are sampled from; above 0, at most 1. SQUIRE_GEN_UNSET, the
    /// default: the model's.
    pub top_p: f32,
    /// Draws are keyed by (seed, position): they depend neither on what else runs nor on what was rewound.
    /// SQUIRE_GEN_RANDOM_SEED, the default: another one each time.
    pub seed: u64,
    /// Ids that end the generation besides the model's own. The id that ends it is part of the timeline.
    pub stop_ids: *const i32,
    /// Number of stop_ids.
    pub stop_ids_len: usize,
    /// Name of the adapter that the session is moved to first, as squire_session_use_adapter does; NULL, the default: it
    /// stays on what it is on.
    pub adapter: *const c_char,
    /// Bytes of adapter.
    pub adapter_len: usize,
    /// After top_p: only ids with at least this share of the likeliest one's probability are sampled from; from 0, which keeps
    /// all, to 1. SQUIRE_GEN_UNSET, the default: the model's. docs/numerics.md has the order of all controls.
    pub min_p: f32,
    /// After min_p: only ids whose -ln p lies nearest to the entropy are sampled from, up to this mass; above 0, at most 1, which
    /// keeps all. SQUIRE_GEN_UNSET, the default: the model's.
    pub typical_p: f32,
    /// Before all cuts: logits of ids that stand in the timeline, the prompt included, are divided by this where they are
    /// positive, else multiplied; from 0.01 to 100. SQUIRE_GEN_UNSET, the default: the model's.
    pub repetition_penalty: f32,
    /// Then taken once from logits of ids that were sampled in the turn under way; from -2 to 2. SQUIRE_GEN_UNSET_PENALTY, the
    /// default: the model's.
    pub presence_penalty: f32,
    /// And for each time that they were; from -2 to 2. SQUIRE_GEN_UNSET_PENALTY, the default: the model's.
    pub frequency_penalty: f32,
    /// No so many ids of the timeline side by side come again; at most 64, 0: they may. SQUIRE_GEN_UNSET, the default: the
    /// model's.
    pub no_repeat_ngram_size: i32,
    /// Added to logits before anything else, each id once. NULL, the default: the model's.
    pub logit_bias: *const squire_logit_bias,
    /// Number of logit_bias.
    pub logit_bias_len: usize,
    /// Texts that end the generation, at most 128: the text of the events ends before the first that is complete, the ids with the
    /// token that completes it, and so does the timeline. Text that may become one is held back until that is certain. NULL, the
    /// default: the model's.
    pub stop_strings: *const squire_stop_string,
    /// Number of stop_strings.
    pub stop_strings_len: usize,
    /// How many of the likeliest ids events have beside each token, with their log-probs at temperature 1; at most 128. 0, the
    /// default: none.
    pub top_logprobs: i32,
    /// From -100 to 100: a higher one is served first, and gets the KV pages where there are not enough for all; what gave way
    /// to it is computed again in its turn. Those of one priority are served alike. 0, the default.
    pub priority: i32,
    /// Milliseconds that it may take, from its beginning on, on a clock that nobody sets; 0, the default: as long as it takes. Waits
    /// count, for KV pages say, and so does the prompt: it ends with SQUIRE_FINISH_TIME behind the last whole token within, which
    /// may be none. On an engine that the caller drives, in the first step after it. Since 0.11, as all that follows.
    pub time_limit_ms: u64,
    /// A flag that cancels it, and whatever else was given it, as squire_gen_cancel does: set before the start, it ends without a
    /// token. It keeps the flag, which the host may release. On an engine that the caller drives, in the first step after it was
    /// set. NULL, the default: none.
    pub cancel: *const squire_cancel,
}

// SAFETY: numbers and pointers; the sizes are checked where the header is compiled.
unsafe impl Versioned for squire_gen_options {
    const NAME: &'static str = "squire_gen_options";
    const FIRST_SIZE: usize = offset_of!(squire_gen_options, adapter);

    fn defaults() -> squire_gen_options {
        squire_gen_options {
            struct_size: size_of::<squire_gen_options>() as u32,
            flags: 0,
            max_tokens: 0,
            top_k: SQUIRE_GEN_UNSET,
            temperature: SQUIRE_GEN_UNSET as f32,
            top_p: SQUIRE_GEN_UNSET as f32,
            seed: SQUIRE_GEN_RANDOM_SEED,
            stop_ids: null(),
            stop_ids_len: 0,
            adapter: null(),
            adapter_len: 0,
            min_p: SQUIRE_GEN_UNSET as f32,
            typical_p: SQUIRE_GEN_UNSET as f32,
            repetition_penalty: SQUIRE_GEN_UNSET as f32,
            presence_penalty: SQUIRE_GEN_UNSET_PENALTY as f32,
            frequency_penalty: SQUIRE_GEN_UNSET_PENALTY as f32,
            no_repeat_ngram_size: SQUIRE_GEN_UNSET,
            logit_bias: null(),
            logit_bias_len: 0,
            stop_strings: null(),
            stop_strings_len: 0,
            top_logprobs: 0,
            priority: 0,
            time_limit_ms: 0,
            cancel: null(),
        }
    }
}

impl squire_gen_options {
    /// The fields that are set over the model's own.
    ///
    /// # Safety
    /// The stop ids, the biases and the stop strings are readable for their lengths; of the flag as [`handle::hold`].
    pub(crate) unsafe fn convert(&self, model: &ServedModel) -> Result<GenerationOptions> {
        let flags = options::flags(self.flags, "flags", SQUIRE_GEN_IGNORE_MODEL_STOPS | SQUIRE_GEN_PARTS)?;
        let own = model.generation_options();
        let set = |field: f32, own: f32| if field == SQUIRE_GEN_UNSET as f32 { own } else { field };
        let penalty = |field: f32, own: f32| if field == SQUIRE_GEN_UNSET_PENALTY as f32 { own } else { field };
        let number = |field: i32, name: &str, own: u32| match field {
            SQUIRE_GEN_UNSET => Ok(own),
            field => options::count(field, name).map(|n| n as u32),
        };
        let top_k = number(self.top_k, "top_k", own.sampling.top_k)?;
        let controls = Controls {
            min_p: set(self.min_p, own.controls.min_p),
            typical_p: set(self.typical_p, own.controls.typical_p),
            repetition_penalty: set(self.repetition_penalty, own.controls.repetition_penalty),
            presence_penalty: penalty(self.presence_penalty, own.controls.presence_penalty),
            frequency_penalty: penalty(self.frequency_penalty, own.controls.frequency_penalty),
            no_repeat_ngram_size: number(
                self.no_repeat_ngram_size,
                "no_repeat_ngram_size",
                own.controls.no_repeat_ngram_size,
            )?,
            // SAFETY: passed on.
            logit_bias: unsafe { self.biases(model) }?.unwrap_or(own.controls.logit_bias),
        };
        Ok(GenerationOptions {
            max_tokens: options::count(self.max_tokens, "max_tokens")?,
            sampling: Sampling {
                temperature: set(self.temperature, own.sampling.temperature),
                top_k,
                top_p: set(self.top_p, own.sampling.top_p),
            },
            controls,
            seed: if self.seed == SQUIRE_GEN_RANDOM_SEED { own.seed } else { self.seed },
            // SAFETY: passed on.
            stop_ids: unsafe { input::ids(self.stop_ids, self.stop_ids_len, "stop_ids") }?.to_vec(),
            // SAFETY: passed on.
            stop_strings: unsafe { self.strings() }?.unwrap_or(own.stop_strings),
            top_logprobs: options::count(self.top_logprobs, "top_logprobs")?,
            time_limit: (self.time_limit_ms > 0).then(|| Duration::from_millis(self.time_limit_ms)),
            // SAFETY: passed on.
            cancel: unsafe { self.flag() }?,
            ignore_model_stops: flags & SQUIRE_GEN_IGNORE_MODEL_STOPS != 0,
            source: Source::Student,
            priority: self.priority,
            vocabulary: 0,
        })
    }

    /// The flag, None where none is given.
    ///
    /// # Safety
    /// As [`squire_gen_options::convert`].
    unsafe fn flag(&self) -> Result<Option<Cancel>> {
        // SAFETY: passed on.
        let held = || unsafe { handle::hold(self.cancel) }.map_err(|e| e.within("cancel"));
        (!self.cancel.is_null()).then(held).transpose().map(|held| held.map(|flag| flag.clone()))
    }

    /// The biases, None where none are given.
    ///
    /// # Safety
    /// As [`squire_gen_options::convert`].
    unsafe fn biases(&self, model: &ServedModel) -> Result<Option<Vec<(i32, f32)>>> {
        // SAFETY: passed on.
        let given = unsafe { input::slice(self.logit_bias, self.logit_bias_len, "logit_bias") }?;
        let (found, most) = (given.len(), model.config().vocab_size);
        if found > most {
            let why = format!("logit_bias_len: wanted at most one for each of the {most} ids, found {found}");
            return Err(Error::new(Fault::BadOption, why));
        }
        let mut all = memory::reserved(found, "the biases of a generation")?;
        all.extend(given.iter().map(|one| (one.id, one.bias)));
        Ok((!self.logit_bias.is_null()).then_some(all))
    }

    /// The stop strings, None where none are given.
    ///
    /// # Safety
    /// As [`squire_gen_options::convert`].
    unsafe fn strings(&self) -> Result<Option<Vec<String>>> {
        // SAFETY: passed on.
        let given = unsafe { input::slice(self.stop_strings, self.stop_strings_len, "stop_strings") }?;
        if given.len() > MAX_STOP_STRINGS {
            let why = format!("stop_strings: wanted at most {MAX_STOP_STRINGS}, found {}", given.len());
            return Err(Error::new(Fault::BadOption, why));
        }
        let mut texts = memory::reserved(given.len(), "the stop strings of a generation")?;
        for (i, one) in given.iter().enumerate() {
            // SAFETY: passed on.
            texts.push(unsafe { input::text(one.text, one.len, &format!("stop_strings[{i}]")) }?);
        }
        // Huge ones are refused before they are copied.
        check_stop_strings(&texts)?;
        Ok((!self.stop_strings.is_null()).then(|| texts.into_iter().map(str::to_string).collect()))
    }
}

/// Sets up the options: squire_gen_options_init(&o, sizeof o). NULL, and a size that no struct has, does nothing. Any
/// thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_gen_options_init(options: *mut squire_gen_options, size: usize) {
    // SAFETY: the conventions at the head of the header.
    unsafe { options::init(options, size) }
}

/// Shows how the model generates where nobody says otherwise: options, set up by its _init, gets temperature, top_k, top_p,
/// min_p, typical_p, no_repeat_ngram_size and the three penalties as the folder's generation_config.json advises and what changes
/// nothing where it does not, and every other field its default; the folder's biases and stop strings stand in
/// squire_model_info. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_gen_options_for(
    model: *const squire_model,
    options: *mut squire_gen_options,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let model = call.shared(model)?;
            let to = options::fill(options)?;
            let own = model.generation_options();
            let Sampling { temperature, top_k, top_p } = own.sampling;
            let whole = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
            to.set(squire_gen_options {
                temperature,
                top_k: whole(top_k),
                top_p,
                min_p: own.controls.min_p,
                typical_p: own.controls.typical_p,
                repetition_penalty: own.controls.repetition_penalty,
                presence_penalty: own.controls.presence_penalty,
                frequency_penalty: own.controls.frequency_penalty,
                no_repeat_ngram_size: whole(own.controls.no_repeat_ngram_size),
                ..squire_gen_options::defaults()
            });
            Ok(Outcome::Done)
        })
    }
}

/// Refuses what an episode would ignore: its draws are keyed by the settings' seed, and in training it samples as the
/// settings say.
///
/// # Safety
/// As [`options::read`].
pub(crate) unsafe fn refuse_ignored(options: *const squire_gen_options, evaluation: bool) -> Result<()> {
    if options.is_null() {
        return Ok(());
    }
    // SAFETY: passed on.
    let given = unsafe { options::read(options) }?;
    let (unset, unset_penalty) = (SQUIRE_GEN_UNSET as f32, SQUIRE_GEN_UNSET_PENALTY as f32);
    let ignored = [
        ("temperature", given.temperature != unset && !evaluation),
        ("top_k", given.top_k != SQUIRE_GEN_UNSET && !evaluation),
        ("top_p", given.top_p != unset && !evaluation),
        ("min_p", given.min_p != unset && !evaluation),
        ("typical_p", given.typical_p != unset && !evaluation),
        ("repetition_penalty", given.repetition_penalty != unset && !evaluation),
        ("presence_penalty", given.presence_penalty != unset_penalty && !evaluation),
        ("frequency_penalty", given.frequency_penalty != unset_penalty && !evaluation),
        ("no_repeat_ngram_size", given.no_repeat_ngram_size != SQUIRE_GEN_UNSET && !evaluation),
        ("logit_bias", !given.logit_bias.is_null() && !evaluation),
        ("seed", given.seed != SQUIRE_GEN_RANDOM_SEED),
        ("adapter", !given.adapter.is_null()),
    ];
    match ignored.iter().find(|(_, set)| *set) {
        None => Ok(()),
        Some(("seed", _)) => {
            let why = "seed is set, but an episode draws by the seed of the distiller's settings; leave it unset";
            Err(Error::new(Fault::BadOption, why))
        }
        Some(("adapter", _)) => {
            let why = "adapter is set, but an episode plays on the student's own revision; leave it unset";
            Err(Error::new(Fault::BadOption, why))
        }
        Some((field @ ("temperature" | "top_k" | "top_p"), _)) => {
            let why = format!(
                "{field} is set, but training rollouts sample as the distiller's settings say (sampling.{field}); leave \
                 it unset, or set it there"
            );
            Err(Error::new(Fault::BadOption, why))
        }
        Some((field, _)) => {
            let why = format!(
                "{field} is set, but training rollouts sample as the distiller's settings say, which have no {field}; leave \
                 it unset"
            );
            Err(Error::new(Fault::BadOption, why))
        }
    }
}

/// The host's options over the model's, or the model's for NULL.
///
/// # Safety
/// As [`options::read`], and the stop ids are readable.
pub(crate) unsafe fn gen_options(options: *const squire_gen_options, model: &ServedModel) -> Result<GenerationOptions> {
    if options.is_null() {
        return Ok(model.generation_options());
    }
    // SAFETY: passed on.
    unsafe { options::read(options)?.convert(model) }
}

/// Whether the host asks for parts. Errors: `MissingFile` where it does and the model has no tokenizer; `BadOption` beside stop
/// strings.
///
/// # Safety
/// As [`gen_options`].
pub(crate) unsafe fn wants_parts(options: *const squire_gen_options, model: &ServedModel) -> Result<bool> {
    // SAFETY: passed on.
    let wanted = !options.is_null() && unsafe { options::read(options) }?.flags & SQUIRE_GEN_PARTS != 0;
    if wanted {
        model.tokenizer()?;
        // SAFETY: passed on.
        if !unsafe { gen_options(options, model) }?.stop_strings.is_empty() {
            let why = "flags has SQUIRE_GEN_PARTS, and there are stop strings, which may end amid a part; wanted one of the two";
            return Err(Error::new(Fault::BadOption, why));
        }
    }
    Ok(wanted)
}
