//! Scores of given tokens.

use super::cancel::squire_cancel;
use super::error::squire_error;
use super::guard::guard_out;
use super::input;
use super::options;
use super::scores::{Scores, squire_scores};
use super::session::squire_session;
use super::status::squire_status;

/// Appends ids to the session as the host's and gives each one's log-prob, given all before it, with the top_k (0 for
/// none) likeliest tokens there: one row an id. ids_len times top_k may be 16777216 at most, otherwise SQUIRE_E_ARGUMENT
/// (detail BAD_OPTION). Blocks; set cancel (may be NULL) to stop it with SQUIRE_CANCELLED. The session must not be
/// empty: SQUIRE_E_STATE (detail EMPTY_SESSION). SQUIRE_E_DIVERGED (detail NOT_FINITE) where a row of logits is NaN or
/// infinite. Other errors as squire_session_sync. A call that fails or is cancelled
/// leaves the timeline as it was. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_score(
    session: *mut squire_session,
    ids: *const i32,
    ids_len: usize,
    top_k: i32,
    cancel: *const squire_cancel,
    out: *mut *mut squire_scores,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |call| {
            let session = call.subject(session)?;
            let ids = input::ids(ids, ids_len, "ids")?;
            let top_k = options::count(top_k, "top_k")?;
            let cancel = call.optional(cancel)?.map(|c| c.clone()).unwrap_or_default();
            let rows = session.score(ids, top_k, &cancel)?;
            let top = || rows.iter().flat_map(|row| &row.top);
            let (top_ids, top_logprobs) = (top().map(|t| t.0).collect(), top().map(|t| t.1).collect());
            let logprobs = rows.iter().map(|row| row.logprob).collect();
            Scores::new(logprobs, top_ids, top_logprobs, top_k)
        })
    }
}
