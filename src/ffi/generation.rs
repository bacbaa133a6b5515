//! Generations: options in, events out, pulled by the host.

use std::collections::VecDeque;
use std::ffi::c_char;
use std::mem::offset_of;
use std::ptr::null;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::adapter::optional_name;
use super::error::squire_error;
use super::event::{Shown, squire_event};
use super::guard::{Outcome, guard, guard_out};
use super::handle::{self, Object};
use super::input;
use super::model::squire_model;
use super::options::{self, Versioned};
use super::output::Slot;
use super::session::squire_session;
use super::status::squire_status;
use super::within;
use crate::backend::ops::Sampling;
use crate::error::{Error, Fault, Result};
use crate::serve::{Finish, Generation, GenerationOptions, Next, ServedModel};
use crate::sync::Mutex;
use crate::text::source::Source;
use crate::text::{Part, PartStream};

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
    shown: Shown,
    /// what tells parts apart, where the host asked for them, until the end
    parts: Option<PartStream>,
    /// parts that were not pulled yet
    waiting: VecDeque<Part>,
}

impl Pulled {
    /// With `parts`, events of parts follow those of tokens.
    pub(crate) fn new(generation: Generation, parts: bool) -> Result<Pulled> {
        let parts = parts.then(|| generation.parts()).transpose()?;
        let last = Mutex::new(Last { parts, ..Last::default() });
        Ok(Pulled { generation, last, released: AtomicBool::new(false) })
    }
}

impl Last {
    /// The event of the next part that waits.
    fn next_part(&mut self) -> Option<squire_event> {
        self.waiting.pop_front().map(|part| self.shown.part(part))
    }
}

impl Object for squire_gen {
    type Body = Pulled;
    const TAG: [u8; 8] = *b"sq gener";
    const NAME: &'static str = "squire_gen";
}

/// Of squire_gen_options: the model's own stop ids do not end the generation.
pub const SQUIRE_GEN_IGNORE_MODEL_STOPS: u32 = 1;
/// Of squire_gen_options: what is said is told apart too, so that behind the events of tokens, which stay as they are, come
/// those of thought, answer and tool calls.
pub const SQUIRE_GEN_PARTS: u32 = 2;

/// Of temperature, top_k and top_p: as the model's makers advise, and where they do not, 1, 0 and 1.
pub const SQUIRE_GEN_UNSET: i32 = -1;
/// Of seed: drawn for this generation, so that no two runs say the same. squire_gen_seed tells which it was.
pub const SQUIRE_GEN_RANDOM_SEED: u64 = 0xffff_ffff_ffff_ffff;

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
        }
    }
}

impl squire_gen_options {
    /// The fields that are set over the model's own.
    ///
    /// # Safety
    /// The stop ids are readable for their length.
    pub(crate) unsafe fn convert(&self, model: &ServedModel) -> Result<GenerationOptions> {
        let flags = options::flags(self.flags, "flags", SQUIRE_GEN_IGNORE_MODEL_STOPS | SQUIRE_GEN_PARTS)?;
        let own = model.generation_options();
        let set = |field: f32, own: f32| if field == SQUIRE_GEN_UNSET as f32 { own } else { field };
        let top_k = match self.top_k {
            SQUIRE_GEN_UNSET => own.sampling.top_k,
            top_k => options::count(top_k, "top_k")? as u32,
        };
        Ok(GenerationOptions {
            max_tokens: options::count(self.max_tokens, "max_tokens")?,
            sampling: Sampling {
                temperature: set(self.temperature, own.sampling.temperature),
                top_k,
                top_p: set(self.top_p, own.sampling.top_p),
            },
            seed: if self.seed == SQUIRE_GEN_RANDOM_SEED { own.seed } else { self.seed },
            // SAFETY: passed on.
            stop_ids: unsafe { input::ids(self.stop_ids, self.stop_ids_len, "stop_ids") }?.to_vec(),
            ignore_model_stops: flags & SQUIRE_GEN_IGNORE_MODEL_STOPS != 0,
            source: Source::Student,
            vocabulary: 0,
        })
    }
}

/// Sets up the options: squire_gen_options_init(&o, sizeof o). NULL, and a size that no struct has, does nothing. Any
/// thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_gen_options_init(options: *mut squire_gen_options, size: usize) {
    // SAFETY: the conventions at the head of the header.
    unsafe { options::init(options, size) }
}

/// Shows how the model generates where nobody says otherwise: options, set up by its _init, gets temperature, top_k and
/// top_p as the folder's generation_config.json advises and the neutral 1, 0 and 1 where it does not, and every other field
/// its default. Any thread.
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
            let Sampling { temperature, top_k, top_p } = model.generation_options().sampling;
            let top_k = i32::try_from(top_k).unwrap_or(i32::MAX);
            to.set(squire_gen_options { temperature, top_k, top_p, ..squire_gen_options::defaults() });
            Ok(Outcome::Done)
        })
    }
}

/// Starts to generate after the session's last token; options may be NULL for the model's own. The session is busy until
/// the generation has ended or is released. SQUIRE_E_STATE (detail EMPTY_SESSION) for an empty session,
/// SQUIRE_E_CONTEXT_FULL without room for a token, SQUIRE_E_BUSY while another generation runs, SQUIRE_E_ARGUMENT for
/// options out of range, SQUIRE_E_IO (detail MISSING_FILE) for SQUIRE_GEN_PARTS without a tokenizer; those of
/// squire_session_use_adapter where an adapter is named. Any thread.
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
            let parts = wants_parts(options, session.model())?;
            let options = gen_options(options, session.model())?;
            let generation = match adapter {
                None => session.generate(options)?,
                Some(adapter) => session.generate_on(adapter, options)?,
            };
            Pulled::new(generation, parts)
        })
    }
}

/// Whether the host asks for parts. Error: `MissingFile` where it does and the model has no tokenizer.
///
/// # Safety
/// As [`options::read`].
pub(crate) unsafe fn wants_parts(options: *const squire_gen_options, model: &ServedModel) -> Result<bool> {
    // SAFETY: passed on.
    let wanted = !options.is_null() && unsafe { options::read(options) }?.flags & SQUIRE_GEN_PARTS != 0;
    if wanted {
        model.tokenizer()?;
    }
    Ok(wanted)
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
    let unset = SQUIRE_GEN_UNSET as f32;
    let ignored = [
        ("temperature", given.temperature != unset && !evaluation),
        ("top_k", given.top_k != SQUIRE_GEN_UNSET && !evaluation),
        ("top_p", given.top_p != unset && !evaluation),
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
        Some((field, _)) => {
            let why = format!(
                "{field} is set, but training rollouts sample as the distiller's settings say (sampling.{field}); leave \
                 it unset, or set it there"
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
/// with an event of tokens, or with SQUIRE_GEN_PARTS of a part of what was said; SQUIRE_END, again and again, with the
/// event of the end, once all tokens were pulled; SQUIRE_TIMEOUT with the event as it was. On an engine that the caller
/// drives, it steps meanwhile. SQUIRE_E_BUSY while another call waits for this generation; SQUIRE_E_BUDGET if the KV
/// budget ran out; SQUIRE_E_DIVERGED (detail NOT_FINITE) where the next token's logits are NaN or infinite: nothing of
/// that row is kept; SQUIRE_E_TEACHER where the host's teacher was to speak and failed or was silent beyond its
/// deadline; SQUIRE_E_PANIC or SQUIRE_E_POISONED if the engine failed. After an error the generation has ended, and but
/// for the last two the session is idle with what was sampled before. Any thread.
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
            let busy = || Error::new(Fault::SessionBusy, "another call waits for this generation");
            let mut last = pulled.last.try_lock().ok_or_else(busy)?;
            let actor = match pulled.generation.source() {
                Source::Teacher => 2,
                _ => 1,
            };
            if let Some(part) = last.next_part() {
                event.set(squire_event { actor, ..part });
                return Ok(Outcome::Done);
            }
            // What a released generation points to goes with this call: its waiter hears of the end alone.
            let next = pulled.generation.next(timeout);
            let released = pulled.released.load(Ordering::Acquire);
            let next = if released { Next::End(Finish::Cancelled) } else { next? };
            match next {
                Next::Timeout => Ok(Outcome::Timeout),
                Next::End(finish) => {
                    let rest = last.parts.take().filter(|_| !released).map(|mut parts| parts.finish());
                    last.waiting.extend(rest.unwrap_or_default());
                    if let Some(part) = last.next_part() {
                        event.set(squire_event { actor, ..part });
                        return Ok(Outcome::Done);
                    }
                    *last = Last::default();
                    event.set(squire_event { actor, ..squire_event::end(finish) });
                    Ok(Outcome::End)
                }
                Next::Chunk(chunk) => {
                    let parts = last.parts.as_mut().map(|parts| parts.push(&chunk.ids));
                    last.waiting.extend(parts.unwrap_or_default());
                    event.set(squire_event { actor, ..last.shown.tokens(chunk) });
                    Ok(Outcome::Done)
                }
            }
        })
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
    use super::super::event::{SQUIRE_EVENT_END, SQUIRE_FINISH_CANCELLED};
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
            let handle = handle::into_raw::<squire_gen>(Pulled::new(generation, false).unwrap()) as usize;
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
