//! Updates: built from ended episodes, looked at, applied.

use std::ffi::{c_char, c_void};
use std::ops::ControlFlow;

use serde_json::json;

use super::callbacks::{Progress, squire_progress_fn};
use super::cancel::squire_cancel;
use super::distiller::squire_distiller;
use super::error::squire_error;
use super::guard::{Outcome, guard, guard_out};
use super::handle::{self, Object};
use super::status::squire_status;
use super::text::{CText, squire_text};
use super::within::callback;
use crate::distill::Update;
use crate::error::{Error, Fault};
use crate::sync::RwLock;

/// Gradients with their report. Freed by squire_update_release.
pub struct squire_update {
    _opaque: [u8; 0],
}

impl Object for squire_update {
    type Body = RwLock<Update>;
    const TAG: [u8; 8] = *b"sq updat";
    const NAME: &'static str = "squire_update";
}

/// dtype of a tensor: IEEE 754 single precision.
pub const SQUIRE_DTYPE_F32: i32 = 0;

/// Takes a tensor: its name (UTF-8, not ended by NUL), one of SQUIRE_DTYPE_..., its shape of rank extents, outermost
/// first, and its elements without gaps, bytes in all. Everything lives until the callback returns. Return 0 to go on,
/// anything else to stop: the call then answers SQUIRE_CANCELLED. Called on the thread of the call that was given it.
/// Must not throw or jump out.
pub type squire_tensor_fn = Option<
    unsafe extern "C" fn(
        user: *mut c_void,
        name: *const c_char,
        name_len: usize,
        dtype: i32,
        shape: *const u64,
        rank: usize,
        data: *const c_void,
        bytes: usize,
    ) -> i32,
>;

fn applying() -> Error {
    Error::new(Fault::DistillerBusy, "the update is being applied or read by another call")
}

/// Builds an update from up to max_episodes ended episodes (0: batch_episodes of the settings), in the order of their
/// identity; further ones wait for the next. Blocks: it waits for
/// the teacher and computes gradients, while sessions go on being served. progress (may be NULL) hears of tokens (phase
/// "update") on the calling thread, of none done while the teacher is waited for, and then before each layer and each chunk
/// of rows with losses, so often with the same number done; it and cancel (may be NULL) stop the build there with
/// SQUIRE_CANCELLED. It may use the engine, and wait. Stopped or failed, the episodes wait on. An episode that the teacher cannot
/// score is set aside and the next one takes its place: report and log name it with the reason. Later builds ask again
/// where memory was lacking, and a teacher of the host's that failed or was silent is asked anew at once; any other stays until
/// squire_distiller_discard. Where none is left the build fails with
/// the first reason. SQUIRE_E_STATE if no token carries loss (detail NOTHING_TO_LEARN) or the settings' steps are all
/// done (detail RUN_COMPLETE; a resumed run may have more), SQUIRE_E_BUSY while another
/// update is built or applied, SQUIRE_E_DIVERGED if loss or gradients are not finite, SQUIRE_E_TEACHER,
/// SQUIRE_E_BUDGET (with bytes needed and free) if the batch does not fit training_budget or what is free of the engine's
/// host_budget, before anything is computed or taken, SQUIRE_E_HOST_MEMORY. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_update_build(
    distiller: *mut squire_distiller,
    max_episodes: u32,
    cancel: *const squire_cancel,
    progress: squire_progress_fn,
    progress_user: *mut c_void,
    out: *mut *mut squire_update,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |call| {
            let distiller = call.subject(distiller)?;
            let cancel = call.optional(cancel)?.map(|c| c.clone()).unwrap_or_default();
            let progress = Progress::new(progress, progress_user);
            let mut tell = |done, all| progress.tell("update", done, all) == ControlFlow::Continue(());
            Ok(RwLock::new(distiller.build(max_episodes as usize, &cancel, &mut tell)?))
        })
    }
}

/// The account of the update, as a JSON object: step, loss, reverse_kl, forward_kl, jsd, cross_entropy,
/// sampled_reverse_kl (nats a token; null without such a token), loss_by_turn, counts of episodes, turns and tokens by actor, successes, stale, filtered,
/// set_aside (a list of {"episode", "reason"}), compared, differing, largest_difference (log-probs of rollout and
/// training), gradient_norm, update_kl, warnings (a list of texts: what the numbers do not mean), seconds. update_kl is null until the update is applied, and then how far it
/// moves the student: the mean KL in nats a token from the revision that was served to what publishing would serve,
/// over at most update_kl_tokens trained tokens (null again where none are asked for or it is no finite number). Beside losses, means
/// in nats over trained tokens: entropy, teacher_entropy (null of a teacher that gives its most likely ids alone), log_ratio
/// (|ln p - ln q| of what stands there), teacher_mass (the student's probability of the teacher's most likely ids); turns, a list by
/// index of {"tokens", "loss_share", "log_ratio", "teacher_nll", "teacher_entropy", "entropy", "episodes", "student", "teacher",
/// "replay"}; response_length (tokens of a student's turn), repetition and executed_otherwise (shares of turns), lag {"mean",
/// "largest"}, rewards {"mean", "least", "largest", "clipped": tokens with a reward that a bound of ratio holds} or null,
/// clipped_advantages (tokens whose teacher's part advantage.shape holds), by_task {task: [successes, episodes]}, teacher_seconds (what
/// the build waited for the teacher). Keys may be added. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_update_report(
    update: *const squire_update,
    out: *mut *mut squire_text,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |call| {
            let update = call.shared(update)?;
            let update = update.try_read().ok_or_else(applying)?;
            let mut report = json!(update.report());
            report["step"] = json!(update.step());
            Ok(CText::new(&report.to_string()))
        })
    }
}

/// Hands every gradient to a function, one tensor a call, f32, by its Hugging Face name: for hosts with an optimiser of
/// their own, or that average over a fleet. Of an adapter they have PEFT's names, and lora_B comes transposed, [rank,
/// outputs]. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_update_gradients(
    update: *const squire_update,
    tensor: squire_tensor_fn,
    tensor_user: *mut c_void,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let update = call.shared(update)?;
            let tensor = tensor.ok_or_else(|| Error::new(Fault::NullPointer, "tensor is NULL"))?;
            let update = update.try_read().ok_or_else(applying)?;
            for (name, gradient) in update.gradients().tensors() {
                let shape: Vec<u64> = gradient.shape().extents().iter().map(|&extent| extent as u64).collect();
                let (data, dtype) = (gradient.bytes(), SQUIRE_DTYPE_F32);
                let (name, name_len) = (name.as_ptr().cast(), name.len());
                let answer = callback(|| {
                    let (start, bytes) = (data.as_ptr().cast(), data.len());
                    tensor(tensor_user, name, name_len, dtype, shape.as_ptr(), shape.len(), start, bytes)
                });
                if answer != 0 {
                    return Ok(Outcome::Cancelled);
                }
            }
            Ok(Outcome::Done)
        })
    }
}

/// Applies the update: one step of the optimiser on the distiller's f32 masters. The student serves the result once it is
/// published. How far that moves it is then in the update's report, and in the log as a warning beyond max_update_kl of the
/// settings. An update is applied once, and only at the step that it was built for: SQUIRE_E_STATE (detail
/// STALE_UPDATE). SQUIRE_E_ARGUMENT (detail FOREIGN_HANDLE) for another distiller's, SQUIRE_E_BUSY, SQUIRE_E_HOST_MEMORY.
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_update_apply(
    distiller: *mut squire_distiller,
    update: *mut squire_update,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let (distiller, update) = (call.subject(distiller)?, call.subject(update)?);
            let mut update = update.try_write().ok_or_else(applying)?;
            distiller.apply(&mut update)?;
            Ok(Outcome::Done)
        })
    }
}

/// Frees the update; not applied, it changes nothing. Its episodes are spent. NULL is allowed. Any thread, also inside a
/// callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_update_release(update: *mut squire_update) {
    // SAFETY: the conventions at the head of the header.
    unsafe { handle::release(update) }
}
