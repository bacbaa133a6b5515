//! Generations: options in, events out, pulled by the host.

use std::borrow::Borrow;
use std::ffi::c_char;
use std::mem::offset_of;
use std::ptr::null;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::adapter::optional_name;
use super::cancel::squire_cancel;
use super::error::squire_error;
use super::guard::{Outcome, guard, guard_out};
use super::handle::{self, Object};
use super::input::{self, Bits};
use super::model::squire_model;
use super::options::{self, Filled, Versioned};
use super::output::{Slot, Slots};
use super::session::squire_session;
use super::status::squire_status;
use super::text::CText;
use super::within;
use crate::backend::ops::Sampling;
use crate::error::{Error, Fault, Result};
use crate::memory;
use crate::serve::{Chunk, Controls, Finish, Generation, GenerationOptions, Next, ServedModel};
use crate::sync::Mutex;
use crate::text::source::Source;
use crate::text::{MAX_STOP_STRINGS, StopFound, check_stop_strings};

/// One running generation. Freed by squire_gen_release, which cancels it.
pub struct squire_gen {
    _opaque: [u8; 0],
}

/// What stands behind a `squire_gen`: the generation, and what the last event points to.
pub(crate) struct Pulled {
    generation: Generation,
    last: Mutex<Last>,
    /// whether the host has released it, perhaps while another of its threads waits in a pull
    released: AtomicBool,
}

#[derive(Default)]
struct Last {
    chunk: Chunk,
    text: Option<CText>,
}

impl Pulled {
    pub(crate) fn new(generation: Generation) -> Arc<Pulled> {
        Arc::new(Pulled { generation, last: Mutex::default(), released: AtomicBool::new(false) })
    }
}

impl Borrow<Generation> for Pulled {
    fn borrow(&self) -> &Generation {
        &self.generation
    }
}

impl Object for squire_gen {
    /// Queues know it too, and hold it for moments only.
    type Body = Arc<Pulled>;
    const TAG: [u8; 8] = *b"sq gener";
    const NAME: &'static str = "squire_gen";
}

/// Of squire_gen_options: the model's own stop ids do not end the generation.
pub const SQUIRE_GEN_IGNORE_MODEL_STOPS: u32 = 1;

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

/// How to generate. Set up by squire_gen_options_init, which leaves the sampling to the model; squire_gen_options_for
/// shows what that is. Each field that is set counts for itself.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct squire_gen_options {
    /// Set by _init.
    pub struct_size: u32,
    /// SQUIRE_GEN_IGNORE_MODEL_STOPS or 0, the default.
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
    /// Nothing; 0.
    pub reserved: i32,
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
            reserved: 0,
        }
    }
}

impl squire_gen_options {
    /// The fields that are set over the model's own.
    ///
    /// # Safety
    /// The stop ids, the biases and the stop strings are readable for their lengths.
    pub(crate) unsafe fn convert(&self, model: &ServedModel) -> Result<GenerationOptions> {
        let flags = options::flags(self.flags, "flags", SQUIRE_GEN_IGNORE_MODEL_STOPS)?;
        let own = model.generation_options();
        let set = |field: f32, own: f32| if field == SQUIRE_GEN_UNSET as f32 { own } else { field };
        let penalty = |field: f32, own: f32| if field == SQUIRE_GEN_UNSET_PENALTY as f32 { own } else { field };
        let number = |field: i32, name: &str, own: u32| match field {
            SQUIRE_GEN_UNSET => Ok(own),
            field => options::count(field, name).map(|n| n as u32),
        };
        let top_k = number(self.top_k, "top_k", own.sampling.top_k)?;
        if self.reserved != 0 {
            let why = format!("reserved: wanted 0, found {}", self.reserved);
            return Err(Error::new(Fault::BadOption, why));
        }
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
            ignore_model_stops: flags & SQUIRE_GEN_IGNORE_MODEL_STOPS != 0,
            source: Source::Student,
            vocabulary: 0,
        })
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

/// kind of an event: tokens were sampled.
pub const SQUIRE_EVENT_TOKENS: i32 = 1;
/// kind of an event: nothing more will come; finish says why.
pub const SQUIRE_EVENT_END: i32 = 2;

/// finish: a stop id was sampled, or a stop string was completed.
pub const SQUIRE_FINISH_STOP: i32 = 1;
/// finish: max_tokens were sampled.
pub const SQUIRE_FINISH_LENGTH: i32 = 2;
/// finish: the context has no room for another token.
pub const SQUIRE_FINISH_CONTEXT_FULL: i32 = 3;
/// finish: it was cancelled; the timeline stands at the last whole token.
pub const SQUIRE_FINISH_CANCELLED: i32 = 4;
/// finish: it failed, as the call before said; the timeline stands at the last whole token.
pub const SQUIRE_FINISH_FAILED: i32 = 5;

/// What squire_gen_next gives. Set up by squire_event_init. The pointers live until the generation's next
/// squire_gen_next, or its release.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct squire_event {
    /// Set by _init.
    pub struct_size: u32,
    /// One of SQUIRE_EVENT_...
    pub kind: i32,
    /// One of SQUIRE_FINISH_... at the end, else 0.
    pub finish: i32,
    /// Who wrote the tokens: 1 the student, 2 the teacher, as SQUIRE_ACTOR_... has them.
    pub actor: i32,
    /// Whole UTF-8 text of the tokens, ended by NUL, without special tokens; the bytes of a broken-off character come
    /// with a later event. Empty for a model without a tokenizer.
    pub text: *const c_char,
    /// Bytes of text.
    pub text_len: usize,
    /// The exact sampled ids.
    pub ids: *const i32,
    /// Their log-probs at temperature 1 over the whole vocabulary, in nats; ids_len of them. NaN where the host's teacher told none.
    pub logprobs: *const f32,
    /// Their log-probs in the distribution sampled from; ids_len of them. NaN of a turn of the host's teacher.
    pub sampled_logprobs: *const f32,
    /// Number of ids.
    pub ids_len: usize,
    /// Position of the first id in the timeline.
    pub position: u64,
    /// Revision of the weights that sampled them.
    pub revision: u64,
    /// The likeliest ids beside each token, likeliest first: ids_len times top_k of them, -1 where there are no more.
    pub top_ids: *const i32,
    /// Their log-probs at temperature 1, in nats; -INFINITY where there are no more.
    pub top_logprobs: *const f32,
    /// Entries beside each token: top_logprobs of the options; 0 in a turn of the host's teacher.
    pub top_k: usize,
    /// Which of the stop strings the last of these ids completed; at the end, which ended the generation. -1: none.
    pub stop_string: i32,
    /// Nothing; 0.
    pub reserved: i32,
    /// Where a stop string ended it: the byte of the generation's text at which that begins, which is as many as all events had.
    pub stop_byte: u64,
    /// And which of the generation's ids, counted from 0, holds its first byte.
    pub stop_token: u64,
}

// SAFETY: numbers and pointers; the sizes are checked where the header is compiled.
unsafe impl Versioned for squire_event {
    const NAME: &'static str = "squire_event";
    const FIRST_SIZE: usize = offset_of!(squire_event, top_ids);

    fn defaults() -> squire_event {
        squire_event {
            struct_size: size_of::<squire_event>() as u32,
            kind: 0,
            finish: 0,
            actor: 0,
            text: null(),
            text_len: 0,
            ids: null(),
            logprobs: null(),
            sampled_logprobs: null(),
            ids_len: 0,
            position: 0,
            revision: 0,
            top_ids: null(),
            top_logprobs: null(),
            top_k: 0,
            stop_string: -1,
            reserved: 0,
            stop_byte: 0,
            stop_token: 0,
        }
    }
}

impl squire_event {
    /// The same with where a stop string was found.
    fn stopped(self, found: Option<StopFound>) -> squire_event {
        match found {
            None => self,
            // At most 128 are taken.
            Some(StopFound { index, byte, token }) => {
                squire_event { stop_string: index as i32, stop_byte: byte, stop_token: token, ..self }
            }
        }
    }
}

/// Sets up the options: squire_gen_options_init(&o, sizeof o). NULL, and a size that no struct has, does nothing. Any
/// thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_gen_options_init(options: *mut squire_gen_options, size: usize) {
    // SAFETY: the conventions at the head of the header.
    unsafe { options::init(options, size) }
}

/// Sets up an event: squire_event_init(&e, sizeof e). NULL, and a size that no struct has, does nothing. Any thread, also
/// inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_event_init(event: *mut squire_event, size: usize) {
    // SAFETY: the conventions at the head of the header.
    unsafe { options::init(event, size) }
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

/// Starts to generate after the session's last token; options may be NULL for the model's own. The session is busy until
/// the generation has ended or is released. SQUIRE_E_STATE (detail EMPTY_SESSION) for an empty session,
/// SQUIRE_E_CONTEXT_FULL without room for a token, SQUIRE_E_BUSY while another generation runs, SQUIRE_E_ARGUMENT for
/// options out of range; those of squire_session_use_adapter where an adapter is named. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_gen_start(
    session: *mut squire_session,
    options: *const squire_gen_options,
    out: *mut *mut squire_gen,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |call| {
            let session = call.subject(session)?;
            let adapter = match options.is_null() {
                true => None,
                false => {
                    let options = options::read(options)?;
                    optional_name(options.adapter, options.adapter_len, "adapter")?
                }
            };
            let options = gen_options(options, session.model())?;
            Ok(Pulled::new(match adapter {
                None => session.generate(options)?,
                Some(adapter) => session.generate_on(adapter, options)?,
            }))
        })
    }
}

/// Starts n generations on n forks of the session, which share its pages: several continuations of one prompt. What is pending
/// is computed first, once, and waited for, as squire_session_prefill does; cancel (may be NULL) stops that. sessions and gens
/// have room for n pointers each; all are released by the host, in any order. The first draws by the seed of options (may be NULL), each
/// other by one derived from it, which squire_gen_seed tells. The session itself stays idle. On an error, or SQUIRE_CANCELLED,
/// none is started and the pointers are as they were. Errors are those of squire_gen_start and squire_session_prefill;
/// SQUIRE_E_BUDGET (SESSION_BUDGET) where the engine has no room for n more sessions; SQUIRE_E_ARGUMENT where n is 0 or an
/// adapter is named. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_gen_start_n(
    session: *mut squire_session,
    options: *const squire_gen_options,
    n: usize,
    cancel: *const squire_cancel,
    sessions: *mut *mut squire_session,
    gens: *mut *mut squire_gen,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let session = call.subject(session)?;
            let (sessions, gens) = (Slots::required(sessions, n, "sessions")?, Slots::required(gens, n, "gens")?);
            let cancel = call.optional(cancel)?.map(|c| c.clone()).unwrap_or_default();
            if !options.is_null() && !options::read(options)?.adapter.is_null() {
                let why =
                    "adapter is set, but continuations stand on the session's own; use squire_session_use_adapter";
                return Err(Error::new(Fault::BadOption, why));
            }
            let options = gen_options(options, session.model())?;
            for (i, one) in session.continuations(n, &options, &cancel)?.into_iter().enumerate() {
                sessions.set(i, handle::into_raw::<squire_session>(one.session));
                gens.set(i, handle::into_raw::<squire_gen>(Pulled::new(one.generation)));
            }
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

/// The seed of the generation's draws, in *seed: given again with the same ids, options and revision, it repeats the run.
/// Never waits. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_gen_seed(
    generation: *const squire_gen,
    seed: *mut u64,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let pulled = call.shared(generation)?;
            let seed = Slot::required(seed, "seed")?;
            seed.set(pulled.generation.seed());
            Ok(Outcome::Done)
        })
    }
}

/// Waits up to timeout_ms (-1: as long as it takes; 0: not at all) for what was sampled since the last call. SQUIRE_OK
/// with an event of tokens; SQUIRE_END, again and again, with the event of the end, once all tokens were pulled;
/// SQUIRE_TIMEOUT with the event as it was. On an engine that the caller drives, it steps meanwhile. SQUIRE_E_BUSY while
/// another call waits for this generation; SQUIRE_E_BUDGET if the KV budget ran out; SQUIRE_E_DIVERGED (detail NOT_FINITE)
/// where the next token's logits are NaN or infinite: nothing of that row is kept; SQUIRE_E_TEACHER where the host's teacher was to
/// speak and failed or was silent beyond its deadline; SQUIRE_E_PANIC or SQUIRE_E_POISONED if
/// the engine failed. After an error the generation has ended, and but for the last two the session is idle with what was
/// sampled before. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_gen_next(
    generation: *mut squire_gen,
    timeout_ms: i32,
    event: *mut squire_event,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let pulled = call.subject(generation)?;
            let event = options::fill(event)?;
            let timeout = match timeout_ms {
                -1 => None,
                ms => Some(Duration::from_millis(options::count(ms, "timeout_ms")? as u64)),
            };
            pull(&pulled, timeout, event)
        })
    }
}

/// Pulls a generation: the body of squire_gen_next.
pub(crate) fn pull(pulled: &Pulled, timeout: Option<Duration>, event: Filled<squire_event>) -> Result<Outcome> {
    let Pulled { generation, last, released } = pulled;
    let busy = || Error::new(Fault::SessionBusy, "another call waits for this generation");
    let mut last = last.try_lock().ok_or_else(busy)?;
    let actor = match generation.source() {
        Source::Teacher => 2,
        _ => 1,
    };
    // What a released generation points to goes with this call: its waiter hears of the end alone.
    let next = generation.next(timeout);
    let next = if released.load(Ordering::Acquire) { Next::End(Finish::Cancelled) } else { next? };
    match next {
        Next::Timeout => Ok(Outcome::Timeout),
        Next::End(finish) => {
            *last = Last::default();
            let finish = match finish {
                Finish::Stop => SQUIRE_FINISH_STOP,
                Finish::Length => SQUIRE_FINISH_LENGTH,
                Finish::ContextFull => SQUIRE_FINISH_CONTEXT_FULL,
                Finish::Cancelled => SQUIRE_FINISH_CANCELLED,
                Finish::Failed => SQUIRE_FINISH_FAILED,
            };
            let end = squire_event { kind: SQUIRE_EVENT_END, finish, actor, ..squire_event::defaults() };
            event.set(end.stopped(generation.stopped_by()));
            Ok(Outcome::End)
        }
        Next::Chunk(chunk) => {
            let text = last.text.insert(CText::new(&chunk.text));
            let mut text_len = 0;
            // SAFETY: the length is a local.
            let text = unsafe { CText::hand_out(Some(text), &mut text_len) };
            last.chunk = chunk;
            let Chunk { ids, logprobs, sampled_logprobs, top_ids, top_logprobs, position, revision, stop, .. } =
                &last.chunk;
            let tokens = squire_event {
                kind: SQUIRE_EVENT_TOKENS,
                actor,
                text,
                text_len,
                ids: ids.as_ptr(),
                logprobs: logprobs.as_ptr(),
                sampled_logprobs: sampled_logprobs.as_ptr(),
                ids_len: ids.len(),
                position: *position,
                revision: *revision,
                top_ids: top_ids.as_ptr(),
                top_logprobs: top_logprobs.as_ptr(),
                top_k: top_ids.len().checked_div(ids.len()).unwrap_or(0),
                ..squire_event::defaults()
            };
            event.set(tokens.stopped(*stop));
            Ok(Outcome::Done)
        }
    }
}

/// Asks the generation to stop at the next token; within a prompt, between two layers of the forward pass if nobody else
/// wants it, else after it. Its end comes with finish
/// SQUIRE_FINISH_CANCELLED, unless it ends by itself before. NULL does nothing. Never blocks. Any thread, also inside a
/// callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_gen_cancel(generation: *mut squire_gen) {
    // SAFETY: the conventions at the head of the header.
    if let Some(pulled) = unsafe { handle::peek_alive(generation) } {
        pulled.generation.cancel();
    }
}

/// Cancels the generation if it runs and frees it. Waits for nothing: the session's next call waits for the forward pass
/// under way, which is given up between two layers if nobody else wants it, and finds the session idle. A call of
/// squire_gen_next that waits on another thread answers SQUIRE_END with SQUIRE_FINISH_CANCELLED. NULL is allowed. Any
/// thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_gen_release(generation: *mut squire_gen) {
    // SAFETY: the conventions at the head of the header.
    if let Some(pulled) = unsafe { handle::peek_alive(generation) } {
        pulled.released.store(true, Ordering::Release);
        // A waiter on another thread keeps the object for a moment more; the session is free of it already. There is nobody
        // to tell of a panic.
        let _ = within::squire(|| pulled.generation.let_go());
    }
    // SAFETY: as above.
    unsafe { handle::release(generation) }
}

#[cfg(test)]
mod tests {
    use super::super::status::SQUIRE_END;
    use super::*;
    use crate::model::ModelConfig;
    use crate::serve::{Engine, EngineOptions, Session};
    use crate::tensor::Dtype;
    use std::ptr::null_mut;

    /// A session with a prompt that takes a while, and a model of it.
    fn long_prompt(caller_driven: bool) -> Session {
        let document = serde_json::json!({
            "model_type": "qwen3", "vocab_size": 64, "hidden_size": 128, "intermediate_size": 256,
            "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
            "max_position_embeddings": 20_000,
        });
        let engine = Engine::new(EngineOptions { caller_driven, ..EngineOptions::default() }).unwrap();
        let config = ModelConfig::from_json(&document).unwrap();
        let model = engine.random_model(config, Dtype::Bf16, 1, 0).unwrap();
        let session = Session::new(&model).unwrap();
        let ids: Vec<i32> = (0..19_000).map(|i| i % 64).collect();
        session.append(&ids, Source::Host).unwrap();
        session
    }

    #[test]
    fn a_release_wakes_who_waits_in_a_pull_and_leaves_the_session_to_its_next_call() {
        for caller_driven in [false, true] {
            let session = long_prompt(caller_driven);
            let generation = session.generate(GenerationOptions::default()).unwrap();
            let handle = handle::into_raw::<squire_gen>(Pulled::new(generation)) as usize;
            let (begun, begins) = std::sync::mpsc::channel();
            let waiter = std::thread::spawn(move || {
                let mut event = squire_event::defaults();
                begun.send(()).unwrap();
                // SAFETY: the handle lives until the release below, which this call precedes.
                let status = unsafe { squire_gen_next(handle as *mut squire_gen, -1, &mut event, null_mut()) };
                (status, event.kind, event.finish, event.ids_len)
            });
            begins.recv().unwrap();
            // The waiter has the handle in hand: its call must have begun before the release.
            std::thread::sleep(Duration::from_millis(50));
            // SAFETY: the one release of the one reference.
            unsafe { squire_gen_release(handle as *mut squire_gen) };
            assert_eq!(session.len().unwrap(), 19_000, "the session is idle whether or not the waiter has returned");
            let wanted = (SQUIRE_END, SQUIRE_EVENT_END, SQUIRE_FINISH_CANCELLED, 0);
            assert_eq!(waiter.join().unwrap(), wanted, "driven by the caller: {caller_driven}");
            let extent = session.extent().unwrap();
            assert!(extent.pending > 0, "the prompt was not computed to its end: {extent:?}");
        }
    }
}
