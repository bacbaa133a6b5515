//! Sessions: one timeline of token ids each, bound to a revision of a model.

use std::ffi::c_void;
use std::ops::ControlFlow;

use serde_json::json;

use super::callbacks::{Progress, squire_progress_fn};
use super::cancel::squire_cancel;
use super::error::squire_error;
use super::guard::{Outcome, guard, guard_out};
use super::handle::{self, Object};
use super::input;
use super::model::squire_model;
use super::output::Slot;
use super::status::squire_status;
use super::text::{CText, squire_text};
use super::tokens::squire_tokens;
use crate::error::{Error, Fault};
use crate::memory;
use crate::serve::{Session, Token};
use crate::text::source::Source;

/// One timeline of token ids and its KV cache. Shared: see squire_session_retain.
pub struct squire_session {
    _opaque: [u8; 0],
}

impl Object for squire_session {
    type Body = Session;
    const TAG: [u8; 8] = *b"sq sessn";
    const NAME: &'static str = "squire_session";
}

/// Most bytes of text that a token takes in a trace.
const TRACED: usize = 128;

/// Makes an empty session on the model's current revision, which it keeps until squire_session_rebase. SQUIRE_E_BUDGET
/// if max_sessions exist. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_session_create(
    model: *mut squire_model,
    out: *mut *mut squire_session,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe { guard_out(out, err, |call| Session::new(&*call.shared(model)?)) }
}

/// Adds a reference and gives the same pointer; NULL for NULL. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_session_retain(session: *mut squire_session) -> *mut squire_session {
    // SAFETY: the conventions at the head of the header.
    unsafe { handle::retain(session) }
}

/// Drops a reference. A generation under way goes on; the timeline is freed when it has ended. NULL is allowed. Any
/// thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_session_release(session: *mut squire_session) {
    // SAFETY: the conventions at the head of the header.
    unsafe { handle::release(session) }
}

/// Makes the timeline equal to ids: keeps the longest common beginning, drops the rest, appends the remainder. *reused,
/// unless reused is NULL, gets the number of tokens that need no computing again. Computes nothing yet.
/// SQUIRE_E_ARGUMENT for ids outside the vocabulary, SQUIRE_E_CONTEXT_FULL for more than the context holds,
/// SQUIRE_E_BUSY while a generation runs. A call that fails leaves the timeline as it was. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_session_sync(
    session: *mut squire_session,
    ids: *const i32,
    ids_len: usize,
    reused: *mut u64,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let session = call.subject(session)?;
            let ids = input::ids(ids, ids_len, "ids")?;
            let reused = Slot::optional(reused, "reused")?;
            reused.set(session.sync(ids)? as u64);
            Ok(Outcome::Done)
        })
    }
}

/// Appends ids as the host's. Computes nothing yet. Errors as squire_session_sync. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_session_append(
    session: *mut squire_session,
    ids: *const i32,
    ids_len: usize,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let session = call.subject(session)?;
            session.append(input::ids(ids, ids_len, "ids")?, Source::Host)?;
            Ok(Outcome::Done)
        })
    }
}

/// Keeps the first keep tokens and drops the rest. SQUIRE_E_ARGUMENT for more than there are, SQUIRE_E_BUSY while a
/// generation runs. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_session_truncate(
    session: *mut squire_session,
    keep: u64,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let session = call.subject(session)?;
            let keep = usize::try_from(keep)
                .map_err(|_| Error::new(Fault::BadLength, format!("{keep} tokens cannot be kept")))?;
            session.truncate(keep)?;
            Ok(Outcome::Done)
        })
    }
}

/// Makes a session with the same timeline on the same revision; what was computed is shared until one of them writes.
/// SQUIRE_E_BUSY while a generation runs, SQUIRE_E_BUDGET if max_sessions exist. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_session_fork(
    session: *const squire_session,
    out: *mut *mut squire_session,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe { guard_out(out, err, |call| call.shared(session)?.fork()) }
}

/// Moves the session to the model's current revision, or one that is on a named adapter to the newest of that name; its
/// number goes to *revision unless revision is NULL. The ids stay; what was computed is computed again when it is needed.
/// SQUIRE_E_BUSY while a generation runs; of a named adapter also the errors of squire_session_create_on, after which the
/// session is where it was. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_session_rebase(
    session: *mut squire_session,
    revision: *mut u64,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let session = call.subject(session)?;
            let revision = Slot::optional(revision, "revision")?;
            revision.set(session.rebase()?);
            Ok(Outcome::Done)
        })
    }
}

/// How far the timeline reaches, in tokens: *length, *room (how many still fit into the context) and *pending (of length,
/// those that are not computed yet). Each out-parameter may be NULL if not wanted. SQUIRE_E_BUSY while a generation runs.
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_session_length(
    session: *const squire_session,
    length: *mut u64,
    room: *mut u64,
    pending: *mut u64,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let session = call.shared(session)?;
            let (length, room) = (Slot::optional(length, "length")?, Slot::optional(room, "room")?);
            let pending = Slot::optional(pending, "pending")?;
            let extent = session.extent()?;
            length.set(extent.len as u64);
            room.set(extent.room as u64);
            pending.set(extent.pending as u64);
            Ok(Outcome::Done)
        })
    }
}

/// Computes what is pending, so that forks made afterwards share it: a system prompt that many sessions begin with is
/// computed once. Blocks. progress (may be NULL) hears of the tokens (phase "prefill") on the calling thread; it and
/// cancel (may be NULL) stop it with SQUIRE_CANCELLED between two chunks, and what is computed by then stays. Nothing
/// pending is no failure. SQUIRE_E_BUSY while a generation runs, SQUIRE_E_BUDGET if the KV budget runs out; the ids stay.
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_session_prefill(
    session: *mut squire_session,
    cancel: *const squire_cancel,
    progress: squire_progress_fn,
    progress_user: *mut c_void,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let session = call.subject(session)?;
            let cancel = call.optional(cancel)?.map(|c| c.clone()).unwrap_or_default();
            let progress = Progress::new(progress, progress_user);
            let mut tell = |done, all| progress.tell("prefill", done, all) == ControlFlow::Continue(());
            session.prefill_watched(&cancel, &mut tell)?;
            Ok(Outcome::Done)
        })
    }
}

/// The ids of the timeline, exactly as given and sampled. SQUIRE_E_BUSY while a generation runs. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_session_tokens(
    session: *const squire_session,
    out: *mut *mut squire_tokens,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |call| {
            let tokens = call.shared(session)?.tokens()?;
            Ok(tokens.iter().map(|token| token.id).collect())
        })
    }
}

/// Everything known of the timeline's tokens, as a JSON object: revision (that the session is bound to), and arrays with
/// an entry a token: ids, sources ("host", "glue", "student", "teacher", "replay"), logprobs (nats, temperature 1),
/// sampled_logprobs (of the distribution sampled from), revisions (of the weights that sampled it). The last three are
/// null where nothing was sampled. Keys may be added. SQUIRE_E_BUSY while a generation runs. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_session_trace(
    session: *const squire_session,
    out: *mut *mut squire_text,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |call| {
            let session = call.shared(session)?;
            let tokens = session.tokens()?;
            // Five columns of values, and their text twice.
            let each = 5 * size_of::<serde_json::Value>() + 2 * TRACED;
            memory::room_for(tokens.len().saturating_mul(each), "the trace of a session")?;
            let column = |of: fn(&Token) -> serde_json::Value| tokens.iter().map(of).collect::<Vec<_>>();
            let trace = json!({
                "revision": session.revision().number,
                "ids": column(|token| json!(token.id)),
                "sources": column(|token| json!(token.source.name())),
                "logprobs": column(|token| json!(token.logprob)),
                "sampled_logprobs": column(|token| json!(token.sampled_logprob)),
                "revisions": column(|token| json!((token.revision > 0).then_some(token.revision))),
            });
            Ok(CText::new(&trace.to_string()))
        })
    }
}
