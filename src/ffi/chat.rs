//! Chats: a whole conversation to ids, and messages appended to a timeline.

use std::ffi::c_char;

use super::error::squire_error;
use super::guard::{Outcome, guard, guard_out};
use super::input;
use super::model::squire_model;
use super::output::Slot;
use super::session::squire_session;
use super::status::squire_status;
use super::tokens::squire_tokens;
use crate::error::Result;
use crate::serve::ServedModel;
use crate::text::{ChatRequest, encode_chat};

/// Reads a request for a model's template.
///
/// # Safety
/// As [`input::text`].
unsafe fn request(model: &ServedModel, p: *const c_char, n: usize) -> Result<ChatRequest> {
    // SAFETY: passed on.
    let text = unsafe { input::text(p, n, "request_json") }?;
    ChatRequest::parse(text, model.template().ok()).map_err(|e| e.within("request_json"))
}

/// The ids of a whole conversation by the model's chat template. request_json: {"messages": [{"role", "content", ...}],
/// "tools": [...], "add_generation_prompt": true or false, the default}; every other key is a variable for the template,
/// such as "enable_thinking". What messages and tools say never becomes control: a forged <|im_end|> stays text.
/// SQUIRE_E_ARGUMENT for a wrong request, SQUIRE_E_TEMPLATE if the model has no template or it fails, SQUIRE_E_IO
/// (detail MISSING_FILE) without a tokenizer. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_chat_render(
    model: *const squire_model,
    request_json: *const c_char,
    request_len: usize,
    out: *mut *mut squire_tokens,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |call| {
            let model = call.shared(model)?;
            let ChatRequest { messages, options } = request(&model, request_json, request_len)?;
            let ids = encode_chat(model.tokenizer()?, model.template()?, &messages, &options)?;
            Ok(ids.into())
        })
    }
}

/// Appends messages to a session's timeline, and closes the turn that stands open there; what was sampled before stays
/// as it was sampled. The request is that of squire_chat_render with the new messages only; with no messages and
/// add_generation_prompt, the beginning of an assistant turn alone. *added, unless added is NULL, gets the number of
/// tokens. Computes nothing yet. Errors as squire_chat_render; SQUIRE_E_BUSY while a generation runs,
/// SQUIRE_E_CONTEXT_FULL if there is no room. A call that fails leaves the timeline as it was. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_chat_append(
    session: *mut squire_session,
    request_json: *const c_char,
    request_len: usize,
    added: *mut u64,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let session = call.subject(session)?;
            let ChatRequest { messages, options } = request(session.model(), request_json, request_len)?;
            let added = Slot::optional(added, "added")?;
            added.set(session.append_chat(messages, &options)?.len() as u64);
            Ok(Outcome::Done)
        })
    }
}
