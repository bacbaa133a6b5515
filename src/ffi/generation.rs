//! Generations: started with the host's options, events out, pulled by the host.

use std::borrow::Borrow;
use std::collections::VecDeque;
use std::ffi::c_char;
use std::mem::offset_of;
use std::ptr::null;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::adapter::optional_name;
use super::cancel::squire_cancel;
use super::error::squire_error;
use super::gen_options::{gen_options, squire_gen_options, wants_parts};
use super::guard::{Outcome, guard, guard_out};
use super::handle::{self, Object};
use super::options::{self, Filled, Versioned};
use super::output::{Slot, Slots};
use super::session::squire_session;
use super::status::squire_status;
use super::text::CText;
use super::within;
use crate::error::{Error, Fault, Result};
use crate::serve::{Chunk, Finish, Generation, Next};
use crate::sync::Mutex;
use crate::text::source::Source;
use crate::text::{Part, PartStream, StopFound, ToolCall};

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
    call: Option<Called>,
    reason: Option<CText>,
    /// what tells parts apart, where the host asked for them, until the end
    parts: Option<PartStream>,
    /// parts that were not pulled yet
    waiting: VecDeque<Part>,
}

/// The texts of a tool call.
struct Called {
    id: CText,
    name: CText,
    arguments: CText,
}

impl Pulled {
    /// With `parts`, events of parts follow those of tokens.
    pub(crate) fn new(generation: Generation, parts: bool) -> Result<Arc<Pulled>> {
        let parts = parts.then(|| generation.parts()).transpose()?;
        let last = Mutex::new(Last { parts, ..Last::default() });
        Ok(Arc::new(Pulled { generation, last, released: AtomicBool::new(false) }))
    }
}

impl Pulled {
    /// Whether the host has released it.
    pub(crate) fn is_released(&self) -> bool {
        self.released.load(Ordering::Acquire)
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
        let part = self.waiting.pop_front()?;
        (self.chunk, self.text, self.call, self.reason) = Default::default();
        let mut event = squire_event::defaults();
        let mut text = None;
        event.kind = match part {
            Part::Reasoning(said) => {
                text = Some(said);
                SQUIRE_EVENT_REASONING
            }
            Part::Content(said) => {
                text = Some(said);
                SQUIRE_EVENT_CONTENT
            }
            Part::Unparsed { text: said, reason } => {
                text = Some(said);
                let reason = self.reason.insert(CText::new(&reason));
                event.reason = hand_out(reason, &mut event.reason_len);
                SQUIRE_EVENT_UNPARSED
            }
            Part::ToolCall(ToolCall { index, id, name, arguments }) => {
                let texts = [id, name, arguments].map(|text| CText::new(&text));
                let [id, name, arguments] = texts;
                let call = self.call.insert(Called { id, name, arguments });
                event.call_index = index as u64;
                event.call_id = hand_out(&call.id, &mut event.call_id_len);
                event.name = hand_out(&call.name, &mut event.name_len);
                event.arguments = hand_out(&call.arguments, &mut event.arguments_len);
                SQUIRE_EVENT_TOOL_CALL
            }
        };
        if let Some(text) = text {
            event.text = hand_out(self.text.insert(CText::new(&text)), &mut event.text_len);
        }
        Some(event)
    }
}

/// A text of an event and its length.
fn hand_out(text: &CText, len: &mut usize) -> *const c_char {
    // SAFETY: the length is a reference.
    unsafe { CText::hand_out(Some(text), len) }
}

impl Object for squire_gen {
    /// Queues know it too, and hold it for moments only.
    type Body = Arc<Pulled>;
    const TAG: [u8; 8] = *b"sq gener";
    const NAME: &'static str = "squire_gen";
}

/// kind of an event: tokens were sampled.
pub const SQUIRE_EVENT_TOKENS: i32 = 1;
/// kind of an event: nothing more will come; finish says why.
pub const SQUIRE_EVENT_END: i32 = 2;
/// kind of an event of SQUIRE_GEN_PARTS: text has more of a thought.
pub const SQUIRE_EVENT_REASONING: i32 = 3;
/// kind of an event of SQUIRE_GEN_PARTS: text has more of the answer.
pub const SQUIRE_EVENT_CONTENT: i32 = 4;
/// kind of an event of SQUIRE_GEN_PARTS: a whole tool call, in call_id, name and arguments.
pub const SQUIRE_EVENT_TOOL_CALL: i32 = 5;
/// kind of an event of SQUIRE_GEN_PARTS: text, marks included, cannot be read as it was begun, a broken tool call or a mark out
/// of place; reason says why. Empty where the output ended within a thought, which was told as it came.
pub const SQUIRE_EVENT_UNPARSED: i32 = 6;

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
    /// with a later event. Empty for a model without a tokenizer. Of a part its text: all that was said stands in the events of
    /// tokens, so take the texts of one or of the other.
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
    /// Of a tool call: the tool, ended by NUL. It need not be one that the model was told of. NULL in other events, as
    /// are the next.
    pub name: *const c_char,
    /// Bytes of name.
    pub name_len: usize,
    /// Of a tool call: a JSON object, ended by NUL. Checked as JSON, not against the tool's schema.
    pub arguments: *const c_char,
    /// Bytes of arguments.
    pub arguments_len: usize,
    /// Of a tool call: a name for it that no other call of the timeline has, ended by NUL.
    pub call_id: *const c_char,
    /// Bytes of call_id.
    pub call_id_len: usize,
    /// Of a tool call: which of its turn, from 0.
    pub call_index: u64,
    /// Of what cannot be read: why, ended by NUL.
    pub reason: *const c_char,
    /// Bytes of reason.
    pub reason_len: usize,
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
            name: null(),
            name_len: 0,
            arguments: null(),
            arguments_len: 0,
            call_id: null(),
            call_id_len: 0,
            call_index: 0,
            reason: null(),
            reason_len: 0,
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

/// Sets up an event: squire_event_init(&e, sizeof e). NULL, and a size that no struct has, does nothing. Any thread, also
/// inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_event_init(event: *mut squire_event, size: usize) {
    // SAFETY: the conventions at the head of the header.
    unsafe { options::init(event, size) }
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
    let Pulled { generation, last, released } = pulled;
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
    let released = released.load(Ordering::Acquire);
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
            let parts = last.parts.as_mut().map(|parts| parts.push(&chunk.ids));
            last.waiting.extend(parts.unwrap_or_default());
            let mut text_len = 0;
            let text = hand_out(last.text.insert(CText::new(&chunk.text)), &mut text_len);
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
