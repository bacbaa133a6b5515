//! Chats: a whole conversation to ids, and messages appended to a timeline.

use std::ffi::c_char;
use std::ptr::null;

use super::cancel::{self, squire_cancel};
use super::error::squire_error;
use super::guard::{Outcome, guard, guard_out};
use super::input;
use super::model::squire_model;
use super::options;
use super::output::Slot;
use super::session::squire_session;
use super::status::squire_status;
use super::tokens::squire_tokens;
use crate::error::Result;
use crate::serve::ServedModel;
use crate::text::{ChatRequest, RenderOptions};

/// Reads a request for a model's template.
///
/// # Safety
/// As [`input::text`].
unsafe fn request(model: &ServedModel, p: *const c_char, n: usize) -> Result<ChatRequest> {
    // SAFETY: passed on.
    let text = unsafe { input::text(p, n, "request_json") }?;
    ChatRequest::parse(text, model.template().ok()).map_err(|e| e.within("request_json"))
}

/// The ids of a whole conversation by the model's chat template. request_json has the keys of transformers'
/// apply_chat_template: {"messages": [{"role", "content", ...}], "tools": [...], "documents": [...],
/// "add_generation_prompt": true or false, the default; "continue_final_message": likewise, true leaves the last
/// message open, so that what is generated goes on with it; "chat_template": the name of one of the folder's templates,
/// without it tool_use where tools are given and there is one, else default; "chat_template_kwargs":
/// {"enable_thinking": false and other variables of the template}, "history": what of earlier turns' thoughts stays,
/// "keep", "strip_thinking" or "tool_cycle", without it the model's (see squire_model_set_history)}. A variable that
/// the template reads is taken at the top level too; other keys are refused. Numbers keep every digit.
///
/// What messages, tools and variables say never becomes control: a forged <|im_end|> stays text. In messages of the role
/// assistant, tokens that are not special, such as `<think>`, keep their ids. Tool results must have the role tool: a
/// `<tool_response>` that a user message spells out is text, and the template does not see it as its own (the engine's log
/// says so).
///
/// SQUIRE_E_ARGUMENT for a wrong request, with its place, or a role that the template has no place for;
/// SQUIRE_E_TEMPLATE if the model has no template, or it fails or does more than a rendering may (steps and bytes are
/// counted; a request may take 30 seconds at most); SQUIRE_E_IO (detail MISSING_FILE) without a tokenizer;
/// SQUIRE_E_HOST_MEMORY, also where no thread with 4 MiB of stack and 128 MiB of address space can be had for the template.
/// Any thread, of any stack.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_chat_render(
    model: *const squire_model,
    request_json: *const c_char,
    request_len: usize,
    out: *mut *mut squire_tokens,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: passed on.
    unsafe { squire_chat_render_until(model, request_json, request_len, null(), out, err) }
}

/// squire_chat_render that cancel (may be NULL) stops from another thread: SQUIRE_CANCELLED, within milliseconds while the
/// template runs and tokens are made. A request is read, and its text brought into its normal form, as a whole: a second or
/// a few for 50 MB. For requests that may be large and templates that are not known.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_chat_render_until(
    model: *const squire_model,
    request_json: *const c_char,
    request_len: usize,
    cancel: *const squire_cancel,
    out: *mut *mut squire_tokens,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |call| {
            let model = call.shared(model)?;
            let ChatRequest { messages, mut options } = request(&model, request_json, request_len)?;
            options.watch = cancel::watch(call, cancel)?;
            Ok(model.encode_chat(messages, &options)?.into())
        })
    }
}

/// Appends messages to a session's timeline, and closes the turn that stands open there; what was sampled before stays
/// as it was sampled, but for thoughts that another history than keep cuts out: what stands behind them is computed
/// again, and squire_engine_metrics counts it in prefix_breaks. The request is that of squire_chat_render with the new
/// messages only; with no messages and add_generation_prompt, the beginning of an assistant turn alone. *added, unless
/// added is NULL, gets the number of tokens. Computes nothing yet. Errors as squire_chat_render; SQUIRE_E_BUSY while a
/// generation runs, SQUIRE_E_CONTEXT_FULL if there is no room, before a text far too long is made into tokens.
/// Templates print tools and documents at a conversation's head, so they belong into the first call: given later they
/// are seen by the template and mostly leave no text. A call that fails leaves the timeline as it was. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_chat_append(
    session: *mut squire_session,
    request_json: *const c_char,
    request_len: usize,
    added: *mut u64,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: passed on.
    unsafe { squire_chat_append_until(session, request_json, request_len, null(), added, err) }
}

/// squire_chat_append that cancel (may be NULL) stops from another thread as squire_chat_render_until is stopped:
/// SQUIRE_CANCELLED, and the timeline is as it was.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_chat_append_until(
    session: *mut squire_session,
    request_json: *const c_char,
    request_len: usize,
    cancel: *const squire_cancel,
    added: *mut u64,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let session = call.subject(session)?;
            let ChatRequest { messages, mut options } = request(session.model(), request_json, request_len)?;
            let added = Slot::optional(added, "added")?;
            options.watch = cancel::watch(call, cancel)?;
            added.set(session.append_chat(messages, &options)?.len() as u64);
            Ok(Outcome::Done)
        })
    }
}

/// Of squire_chat_append_message: the beginning of an assistant turn follows the message.
pub const SQUIRE_MESSAGE_GENERATION_PROMPT: u32 = 1;

/// squire_chat_append of one message that has a role and a text, for hosts without JSON at hand: the role and the content by
/// pointer and length, of which the content may be empty. flags: SQUIRE_MESSAGE_GENERATION_PROMPT or 0. cancel and added may
/// be NULL. The content never becomes control, and the history is the model's (see squire_model_set_history). Errors as
/// squire_chat_append_until; SQUIRE_E_ARGUMENT for unknown flags, text that is not UTF-8 and a role that the template has no
/// place for. A call that fails leaves the timeline as it was. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_chat_append_message(
    session: *mut squire_session,
    role: *const c_char,
    role_len: usize,
    content: *const c_char,
    content_len: usize,
    flags: u32,
    cancel: *const squire_cancel,
    added: *mut u64,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let session = call.subject(session)?;
            let role = input::text(role, role_len, "role")?;
            let content = input::text(content, content_len, "content")?;
            let flags = options::flags(flags, "flags", SQUIRE_MESSAGE_GENERATION_PROMPT)?;
            let added = Slot::optional(added, "added")?;
            let options = RenderOptions {
                add_generation_prompt: flags & SQUIRE_MESSAGE_GENERATION_PROMPT != 0,
                watch: cancel::watch(call, cancel)?,
                ..RenderOptions::default()
            };
            added.set(session.append_message(role, content, &options)?.len() as u64);
            Ok(Outcome::Done)
        })
    }
}
