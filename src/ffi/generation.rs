//! Generations: started with the host's options, events out, pulled by the host.

use std::borrow::Borrow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::adapter::optional_name;
use super::cancel::squire_cancel;
use super::error::squire_error;
use super::event::{Shown, squire_event};
use super::gen_options::{gen_options, squire_gen_options, wants_parts};
use super::guard::{Outcome, guard, guard_out};
use super::handle::{self, Object};
use super::options::{self, Filled};
use super::output::{Slot, Slots};
use super::session::squire_session;
use super::status::squire_status;
use super::within;
use crate::error::{Error, Fault, Result};
use crate::serve::{Finish, Generation, Next};
use crate::sync::Mutex;
use crate::text::source::Source;
use crate::text::{Part, PartStream};

/// One running generation. Freed by the last squire_gen_release, which cancels it. Shared: see squire_gen_retain.
pub struct squire_gen {
    _opaque: [u8; 0],
}

/// What stands behind a `squire_gen`: the generation, and what the last event points to.
pub(crate) struct Pulled {
    generation: Generation,
    last: Mutex<Last>,
    /// the host's; at none it is cancelled, though another thread may wait in a pull
    references: AtomicUsize,
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
    pub(crate) fn new(generation: Generation, parts: bool) -> Result<Arc<Pulled>> {
        let parts = parts.then(|| generation.parts()).transpose()?;
        let last = Mutex::new(Last { parts, ..Last::default() });
        Ok(Arc::new(Pulled { generation, last, references: AtomicUsize::new(1) }))
    }

    /// Whether the host has released it for good.
    pub(crate) fn is_released(&self) -> bool {
        self.references.load(Ordering::Acquire) == 0
    }
}

impl Borrow<Generation> for Pulled {
    fn borrow(&self) -> &Generation {
        &self.generation
    }
}

impl Last {
    /// The event of the next part that waits.
    fn next_part(&mut self) -> Option<squire_event> {
        self.waiting.pop_front().map(|part| self.shown.part(part))
    }
}

impl Object for squire_gen {
    /// Queues know it too, and hold it for moments only.
    type Body = Arc<Pulled>;
    const TAG: [u8; 8] = *b"sq gener";
    const NAME: &'static str = "squire_gen";
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

/// Starts n generations on n forks of the session, which share its pages: several continuations of one prompt. What is pending
/// is computed first, once, and waited for, as squire_session_prefill does; cancel (may be NULL) stops that, and so does the flag of
/// options. A time limit counts from there on. sessions and gens
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
            let parts = wants_parts(options, session.model())?;
            let options = gen_options(options, session.model())?;
            let all = session.continuations(n, &options, &cancel)?;
            let all: Vec<_> = all
                .into_iter()
                .map(|one| Ok((one.session, Pulled::new(one.generation, parts)?)))
                .collect::<Result<_>>()?;
            for (i, (session, pulled)) in all.into_iter().enumerate() {
                sessions.set(i, handle::into_raw::<squire_session>(session));
                gens.set(i, handle::into_raw::<squire_gen>(pulled));
            }
            Ok(Outcome::Done)
        })
    }
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
            pull(&pulled, timeout, event)
        })
    }
}

/// Pulls a generation: the body of squire_gen_next.
pub(crate) fn pull(pulled: &Pulled, timeout: Option<Duration>, event: Filled<squire_event>) -> Result<Outcome> {
    let Pulled { generation, last, .. } = pulled;
    let busy = || Error::new(Fault::SessionBusy, "another call waits for this generation");
    let mut last = last.try_lock().ok_or_else(busy)?;
    let actor = match generation.source() {
        Source::Teacher => 2,
        _ => 1,
    };
    if let Some(part) = last.next_part() {
        event.set(squire_event { actor, ..part });
        return Ok(Outcome::Done);
    }
    // What a released generation points to goes with this call: its waiter hears of the end alone.
    let next = generation.next(timeout);
    let released = pulled.is_released();
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
            event.set(squire_event { actor, ..squire_event::end(finish).stopped(generation.stopped_by()) });
            Ok(Outcome::End)
        }
        Next::Chunk(chunk) => {
            let parts = last.parts.as_mut().map(|parts| parts.push(&chunk.ids));
            last.waiting.extend(parts.unwrap_or_default());
            event.set(squire_event { actor, ..last.shown.tokens(chunk) });
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

/// Adds a reference and gives the same pointer; NULL for NULL. Any thread, also inside a callback. Since 0.11.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_gen_retain(generation: *mut squire_gen) -> *mut squire_gen {
    // SAFETY: the conventions at the head of the header.
    if let Some(pulled) = unsafe { handle::peek_alive(generation) } {
        pulled.references.fetch_add(1, Ordering::AcqRel);
    }
    // SAFETY: as above.
    unsafe { handle::retain(generation) }
}

/// Drops a reference; the last one cancels the generation if it runs and frees it. Waits for nothing: the session's next call waits for the forward pass
/// under way, which is given up between two layers if nobody else wants it, and finds the session idle. A call of
/// squire_gen_next that waits on another thread answers SQUIRE_END with SQUIRE_FINISH_CANCELLED. NULL is allowed. Any
/// thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_gen_release(generation: *mut squire_gen) {
    // SAFETY: the conventions at the head of the header.
    if let Some(pulled) = unsafe { handle::peek_alive(generation) }
        && pulled.references.fetch_sub(1, Ordering::AcqRel) == 1
    {
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
    use super::super::options::Versioned;
    use super::super::status::SQUIRE_END;
    use super::*;
    use crate::model::ModelConfig;
    use crate::serve::{Engine, EngineOptions, GenerationOptions, Session};
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
