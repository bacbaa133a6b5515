//! Events: what a pull of a generation gives, and the texts that it points to.

use std::ffi::c_char;
use std::mem::offset_of;
use std::ptr::null;

use super::options::{self, Versioned};
use super::text::CText;
use crate::serve::{Chunk, Finish};
use crate::text::{Part, StopFound, ToolCall};

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

/// finish: the time limit of its options was over; the timeline stands at the last whole token within it. Since 0.11.
pub const SQUIRE_FINISH_TIME: i32 = 6;

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
    /// The event of the end.
    pub(crate) fn end(finish: Finish) -> squire_event {
        let finish = match finish {
            Finish::Stop => SQUIRE_FINISH_STOP,
            Finish::Length => SQUIRE_FINISH_LENGTH,
            Finish::ContextFull => SQUIRE_FINISH_CONTEXT_FULL,
            Finish::Cancelled => SQUIRE_FINISH_CANCELLED,
            Finish::Failed => SQUIRE_FINISH_FAILED,
            Finish::Time => SQUIRE_FINISH_TIME,
        };
        squire_event { kind: SQUIRE_EVENT_END, finish, ..squire_event::defaults() }
    }

    /// The same with where a stop string was found.
    pub(crate) fn stopped(self, found: Option<StopFound>) -> squire_event {
        match found {
            None => self,
            // At most 128 are taken.
            Some(StopFound { index, byte, token }) => {
                squire_event { stop_string: index as i32, stop_byte: byte, stop_token: token, ..self }
            }
        }
    }
}

/// What the last event points to.
#[derive(Default)]
pub(crate) struct Shown {
    chunk: Chunk,
    text: Option<CText>,
    call: Option<Called>,
    reason: Option<CText>,
}

/// The texts of a tool call.
struct Called {
    id: CText,
    name: CText,
    arguments: CText,
}

impl Shown {
    /// The event of sampled tokens.
    pub(crate) fn tokens(&mut self, chunk: Chunk) -> squire_event {
        *self = Shown { text: Some(CText::new(&chunk.text)), chunk, ..Shown::default() };
        let Chunk { ids, logprobs, sampled_logprobs, top_ids, top_logprobs, position, revision, stop, .. } =
            &self.chunk;
        let mut event = squire_event {
            kind: SQUIRE_EVENT_TOKENS,
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
        event = event.stopped(*stop);
        event.text = hand_out(self.text.as_ref(), &mut event.text_len);
        event
    }

    /// The event of a part of what was said.
    pub(crate) fn part(&mut self, part: Part) -> squire_event {
        *self = Shown::default();
        let mut event = squire_event::defaults();
        event.kind = match part {
            Part::Reasoning(text) => {
                self.text = Some(CText::new(&text));
                SQUIRE_EVENT_REASONING
            }
            Part::Content(text) => {
                self.text = Some(CText::new(&text));
                SQUIRE_EVENT_CONTENT
            }
            Part::Unparsed { text, reason } => {
                (self.text, self.reason) = (Some(CText::new(&text)), Some(CText::new(&reason)));
                SQUIRE_EVENT_UNPARSED
            }
            Part::ToolCall(ToolCall { index, id, name, arguments }) => {
                let [id, name, arguments] = [id, name, arguments].map(|text| CText::new(&text));
                self.call = Some(Called { id, name, arguments });
                event.call_index = index as u64;
                SQUIRE_EVENT_TOOL_CALL
            }
        };
        let call = self.call.as_ref();
        event.text = hand_out(self.text.as_ref(), &mut event.text_len);
        event.reason = hand_out(self.reason.as_ref(), &mut event.reason_len);
        event.call_id = hand_out(call.map(|call| &call.id), &mut event.call_id_len);
        event.name = hand_out(call.map(|call| &call.name), &mut event.name_len);
        event.arguments = hand_out(call.map(|call| &call.arguments), &mut event.arguments_len);
        event
    }
}

/// A text of an event and its length; NULL and 0 for none.
fn hand_out(text: Option<&CText>, len: &mut usize) -> *const c_char {
    // SAFETY: the length is a reference.
    unsafe { CText::hand_out(text, len) }
}

/// Sets up an event: squire_event_init(&e, sizeof e). NULL, and a size that no struct has, does nothing. Any thread, also
/// inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_event_init(event: *mut squire_event, size: usize) {
    // SAFETY: the conventions at the head of the header.
    unsafe { options::init(event, size) }
}
