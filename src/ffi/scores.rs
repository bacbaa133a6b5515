//! Log-probabilities of given tokens, one row a token, that the library owns and the host reads.

use super::error::squire_error;
use super::guard::{Outcome, guard};
use super::handle::{self, Object};
use super::output::Slot;
use super::status::squire_status;
use crate::error::{Error, Fault, Result};

/// Log-probabilities of given tokens, owned by the library. Freed by squire_scores_release.
pub struct squire_scores {
    _opaque: [u8; 0],
}

/// What stands behind a `squire_scores`: N rows of one log-prob, and of K best ids with theirs.
pub(crate) struct Scores {
    logprobs: Box<[f32]>,
    top_ids: Box<[i32]>,
    top_logprobs: Box<[f32]>,
    top_k: usize,
}

impl Scores {
    /// `logprobs`: `[N]`; `top_ids` and `top_logprobs`: `[N, K]`, best first.
    pub(crate) fn new(logprobs: Vec<f32>, top_ids: Vec<i32>, top_logprobs: Vec<f32>, top_k: usize) -> Result<Scores> {
        let wanted = logprobs.len().checked_mul(top_k);
        if wanted != Some(top_ids.len()) || wanted != Some(top_logprobs.len()) {
            let (n, ids, lps) = (logprobs.len(), top_ids.len(), top_logprobs.len());
            let message = format!("{n} rows of scores with top {top_k} have {ids} ids and {lps} log-probs");
            return Err(Error::new(Fault::BadLength, message));
        }
        let (logprobs, top_ids, top_logprobs) = (logprobs.into(), top_ids.into(), top_logprobs.into());
        Ok(Scores { logprobs, top_ids, top_logprobs, top_k })
    }
}

impl Object for squire_scores {
    type Body = Scores;
    const TAG: [u8; 8] = *b"sq score";
    const NAME: &'static str = "squire_scores";
}

/// Row i: the log-probability (nats, temperature 1) of the i-th given token, and the k most probable ids with theirs,
/// best first. Each out-parameter may be NULL if not wanted; the arrays live as long as the object. An i at or past
/// the number of tokens gives SQUIRE_E_ARGUMENT. Costs no device work. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_scores_row(
    scores: *const squire_scores,
    i: usize,
    logprob: *mut f32,
    top_ids: *mut *const i32,
    top_logprobs: *mut *const f32,
    k: *mut usize,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            call.shared(scores)?;
            let (logprob, k) = (Slot::optional(logprob, "logprob")?, Slot::optional(k, "k")?);
            let top_ids = Slot::optional(top_ids, "top_ids")?;
            let top_logprobs = Slot::optional(top_logprobs, "top_logprobs")?;
            // The pointers handed out live as long as the host's reference, not this call's.
            let rows = handle::peek(scores).ok_or_else(|| Error::new(Fault::WrongHandle, "squire_scores is gone"))?;
            let Some(&value) = rows.logprobs.get(i) else {
                let n = rows.logprobs.len();
                return Err(Error::new(Fault::BadLength, format!("row {i} of squire_scores, which has {n}")));
            };
            // `Scores::new` checked that every row has its K entries.
            let row = i * rows.top_k..(i + 1) * rows.top_k;
            logprob.set(value);
            top_ids.set(rows.top_ids[row.clone()].as_ptr());
            top_logprobs.set(rows.top_logprobs[row].as_ptr());
            k.set(rows.top_k);
            Ok(Outcome::Done)
        })
    }
}

/// Frees the scores. NULL is allowed. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_scores_release(scores: *mut squire_scores) {
    // SAFETY: the conventions at the head of the header.
    unsafe { handle::release(scores) }
}

#[cfg(test)]
mod tests {
    use super::super::status::{SQUIRE_E_ARGUMENT, SQUIRE_OK};
    use super::*;
    use std::ptr::{null, null_mut};

    #[test]
    fn a_row_gives_its_log_prob_and_its_best_ids() {
        let body = Scores::new(vec![-1.0, -2.0], vec![5, 6, 7, 8], vec![-0.1, -0.2, -0.3, -0.4], 2).unwrap();
        let scores = handle::into_raw::<squire_scores>(body);
        // SAFETY: a live handle whose rows are read before its release; the slots are locals or NULL.
        unsafe {
            let (mut lp, mut ids, mut lps, mut k) = (0.0, null(), null(), 0);
            let status = squire_scores_row(scores, 1, &mut lp, &mut ids, &mut lps, &mut k, null_mut());
            assert_eq!((status, lp, k), (SQUIRE_OK, -2.0, 2));
            assert_eq!(std::slice::from_raw_parts(ids, k), [7, 8]);
            assert_eq!(std::slice::from_raw_parts(lps, k), [-0.3, -0.4]);
            let none = (null_mut(), null_mut(), null_mut(), null_mut());
            assert_eq!(squire_scores_row(scores, 0, none.0, none.1, none.2, none.3, null_mut()), SQUIRE_OK);
            let status = squire_scores_row(scores, 2, &mut lp, &mut ids, &mut lps, &mut k, null_mut());
            assert_eq!((status, lp), (SQUIRE_E_ARGUMENT, -2.0), "nothing is written on failure");
            squire_scores_release(scores);
        }
    }

    #[test]
    fn rows_that_do_not_fit_their_k_are_refused() {
        assert!(Scores::new(vec![0.0], vec![1], vec![0.0, 0.0], 1).is_err());
        assert!(Scores::new(vec![0.0, 0.0], vec![], vec![], usize::MAX).is_err());
    }
}
