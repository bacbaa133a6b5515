//! Distillers: a student that learns, the model that teaches it, and the settings as one JSON document.

use std::ffi::c_char;
use std::time::Duration;

use super::cancel::squire_cancel;
use super::error::squire_error;
use super::guard::{Call, Outcome, guard, guard_out};
use super::handle::{self, Object};
use super::input;
use super::model::squire_model;
use super::output::Slot;
use super::status::squire_status;
use super::text::{CText, squire_text};
use crate::distill::explain::explain;
use crate::distill::{CheckText, Config, Distiller};
use crate::error::Result;
use crate::serve::ServedModel;

/// A student that learns while it works. Its teacher is a model, of the same engine or another, or one in the
/// host's own code (squire_distiller_create_taught). Freed by squire_distiller_release.
pub struct squire_distiller {
    _opaque: [u8; 0],
}

impl Object for squire_distiller {
    type Body = Distiller;
    const TAG: [u8; 8] = *b"sq distl";
    const NAME: &'static str = "squire_distiller";
}

/// The models and settings that make a distiller.
///
/// # Safety
/// As [`Call::shared`] and [`input::text`].
unsafe fn parts(
    call: &Call,
    student: *const squire_model,
    teacher: *const squire_model,
    (settings, len): (*const c_char, usize),
) -> Result<(ServedModel, Option<ServedModel>, Config)> {
    // SAFETY: passed on.
    unsafe {
        let student = call.shared(student)?.clone();
        let teacher = call.optional(teacher)?.map(|teacher| teacher.clone());
        Ok((student, teacher, Config::from_json(input::text(settings, len, "settings_json")?)?))
    }
}

/// What a run with these settings will do, as a JSON object: preset, steps, knobs (each with value and source), notes (what
/// the values do not say, a list of texts), and schedules (columns, rows, mean), a row a step. steps is the length of the
/// run; 0: that of the settings. Errors as squire_distiller_create. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_distiller_explain(
    settings_json: *const c_char,
    settings_len: usize,
    steps: u64,
    out: *mut *mut squire_text,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |_| {
            let config = Config::from_json(input::text(settings_json, settings_len, "settings_json")?)?;
            let steps = if steps == 0 { config.steps } else { steps };
            Ok(CText::new(&explain(&config, steps).to_string()))
        })
    }
}

/// Makes a distiller. teacher may be NULL where nothing asks for one (imitation of demonstrations, presets "sft").
/// settings_json: {"preset": ..., and knobs}; {} for the defaults; squire_distiller_explain shows them all. The optimiser's
/// memory, 12 bytes a trained parameter, is taken by the first update. SQUIRE_E_ARGUMENT for unknown keys or values and where
/// the settings ask for a teacher that is not there, or (UNKNOWN_ADAPTER) for an adapter that it does not have, SQUIRE_E_UNSUPPORTED for settings under which nothing would be
/// learnt, SQUIRE_E_MISMATCH if the two models do not share one vocabulary (of one tokenizer they may differ in rows of
/// padding, which training leaves out), SQUIRE_E_BUDGET (with bytes needed and free) if training_budget, or what is
/// free of the engine's host_budget, cannot hold an update of one token. The models may come from
/// two engines, each with its own threads, budgets and log: the teacher's weights and its side of the episodes are paid by its own,
/// the update by the student's, and where a caller drives either, the calls that wait step it. The distiller keeps them alive. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_distiller_create(
    student: *mut squire_model,
    teacher: *mut squire_model,
    settings_json: *const c_char,
    settings_len: usize,
    out: *mut *mut squire_distiller,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |call| {
            let (student, teacher, config) = parts(call, student, teacher, (settings_json, settings_len))?;
            Distiller::new(&student, teacher.as_ref(), config)
        })
    }
}

/// Goes on from the newest checkpoint in a folder, bit for bit: the student gets the checkpoint's weights and revision.
/// SQUIRE_E_IO if there is none, SQUIRE_E_FORMAT if it is broken or a file of it is no regular one, SQUIRE_E_MISMATCH if
/// model, vocabulary or settings are not the checkpoint's, nor of an adapter the base weights, but for steps, which may be more (schedules by the fraction of
/// the run go on by the new number), and update_kl_tokens, max_update_kl, refuse_update_kl, probe_rows,
/// rollback_revisions, recompute and training_budget. Otherwise as squire_distiller_create. Blocks.
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_distiller_resume(
    student: *mut squire_model,
    teacher: *mut squire_model,
    settings_json: *const c_char,
    settings_len: usize,
    path: *const c_char,
    path_len: usize,
    out: *mut *mut squire_distiller,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |call| {
            let (student, teacher, config) = parts(call, student, teacher, (settings_json, settings_len))?;
            let path = input::path(path, path_len, "path")?;
            Distiller::resume(&student, teacher.as_ref(), config, path)
        })
    }
}

/// Whether a folder holds a checkpoint that squire_distiller_resume could go on from: SQUIRE_OK, and the newest one's step
/// in *step unless step is NULL, or SQUIRE_END where there is none or no such folder. Looks at its documents and the
/// headers of its tensors, not at their values. SQUIRE_E_FORMAT if the newest is broken, SQUIRE_E_IO if the folder cannot
/// be read. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_checkpoint_probe(
    path: *const c_char,
    path_len: usize,
    step: *mut u64,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |_| {
            let path = input::path(path, path_len, "path")?;
            let slot = Slot::optional(step, "step")?;
            match Distiller::checkpoint(path)? {
                None => Ok(Outcome::End),
                Some(step) => {
                    slot.set(step);
                    Ok(Outcome::Done)
                }
            }
        })
    }
}

/// Writes a checkpoint into a folder, which is made if it is not there, and then removes older ones and what saves that were
/// killed have left; at every moment the newest is whole. Only folders that hold exactly a checkpoint's files are ever
/// removed. Once the new one stands the answer is SQUIRE_OK: an older one that cannot be removed is a warning in the log.
/// One process at a time saves into a folder. 12 bytes a parameter. Blocks. SQUIRE_E_STATE while ended episodes wait for an
/// update (build it, or squire_distiller_discard; those that are set aside are no part of a checkpoint, of which a warning in
/// the log tells), SQUIRE_E_BUSY while an update is built or applied, SQUIRE_E_MISMATCH where checkpoints of another run lie
/// in the folder, or of a later step, SQUIRE_E_IO. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_distiller_save(
    distiller: *mut squire_distiller,
    path: *const c_char,
    path_len: usize,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let distiller = call.subject(distiller)?;
            distiller.save(input::path(path, path_len, "path")?)?;
            Ok(Outcome::Done)
        })
    }
}

/// Makes the applied weights the revision that new sessions and episodes get; its number goes to *revision unless
/// revision is NULL. Without an update since, the current revision's number. squire_model_save then writes the student
/// as a model folder. SQUIRE_E_BUDGET if more than kept_revisions would be alive: end or rebase older sessions first.
/// SQUIRE_E_DIVERGED if the update moves the student beyond refuse_update_kl of the settings (detail UPDATE_TOO_FAR) or
/// has made weights that are not finite (detail NOT_FINITE): the old revision serves on, and squire_distiller_save is
/// refused likewise, so that the last checkpoint stays to be resumed; squire_distiller_rollback goes back without one.
/// SQUIRE_E_BUSY while an update is built or applied. Before it returns, what is served is compared on probe_rows tokens with what
/// was trained, bit for bit: squire_distiller_metrics has what was found, and a difference is an error in the log and no status.
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_distiller_publish(
    distiller: *mut squire_distiller,
    revision: *mut u64,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let distiller = call.subject(distiller)?;
            let revision = Slot::optional(revision, "revision")?;
            revision.set(distiller.publish()?);
            Ok(Outcome::Done)
        })
    }
}

/// The same however far the update moves the student: for a host that looked at it. Weights that are not finite are
/// refused all the same. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_distiller_publish_anyway(
    distiller: *mut squire_distiller,
    revision: *mut u64,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let distiller = call.subject(distiller)?;
            let revision = Slot::optional(revision, "revision")?;
            revision.set(distiller.publish_anyway()?);
            Ok(Outcome::Done)
        })
    }
}

/// Goes back to a published revision that rollback_revisions of the settings keeps: new sessions and episodes get its weights under a
/// new number, the current one's and 1, since a number never means two weights and staleness counts on numbers; it goes to
/// *published unless published is NULL. The current revision's own number changes nothing that is served. Either way a step that was applied
/// and not published is dropped, updates that were built before are stale, and learning goes on from what is served: masters from
/// its weights, moments of zero and a bias correction that begins anew, while the run's step and its schedules go on. It takes no
/// memory, so kept_revisions does not refuse it. A resumed run keeps none yet. SQUIRE_E_ARGUMENT (detail UNKNOWN_REVISION) for a
/// revision that is not kept; the message lists those that are, as squire_distiller_metrics does. SQUIRE_E_BUSY while an update is
/// built, applied or published. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_distiller_rollback(
    distiller: *mut squire_distiller,
    revision: u64,
    published: *mut u64,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let distiller = call.subject(distiller)?;
            let published = Slot::optional(published, "published")?;
            published.set(distiller.rollback(revision)?);
            Ok(Outcome::Done)
        })
    }
}

/// Asks the teacher for one sequence twice and once in two parts, and tells how far its answers lie apart beside how far
/// teacher and student do: to be done before a run, since a teacher that moves by itself as much as it differs from the student
/// teaches noise. check_json: {"ids": [...]}, {"text": "..."} or {"tokens": 64}; {}: 64 tokens that the student says after its own
/// template (SQUIRE_E_TEMPLATE where it has none), drawn as the settings draw. The report is a JSON object: ids, positions,
/// middle, top_k; again and in_parts, each with the largest and mean difference of the log-probs of what stands there, top_largest
/// and top_mean of the likeliest ids, and share, what it is of the signal; signal (largest, mean), what teacher and student lie
/// apart; warnings, a list of texts, which the log has too. A model has 0 in again and in_parts. Keys may be added. Nothing of the
/// run changes. Blocks. A teacher of the host's is asked with an episode of UINT64_MAX, and answers within timeout_ms
/// (0: its deadline_ms; at most a day) or it is SQUIRE_E_TEACHER, as where it fails or is closed. cancel may be NULL.
/// SQUIRE_E_ARGUMENT without a teacher, for fewer than 3 ids, or for ids that are none. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_distiller_check_teacher(
    distiller: *const squire_distiller,
    check_json: *const c_char,
    check_len: usize,
    timeout_ms: u64,
    cancel: *const squire_cancel,
    out: *mut *mut squire_text,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |call| {
            let distiller = call.shared(distiller)?;
            let cancel = call.optional(cancel)?.map(|c| c.clone()).unwrap_or_default();
            let text = CheckText::from_json(input::text(check_json, check_len, "check_json")?)?;
            let timeout = Duration::from_millis(timeout_ms.min(86_400_000));
            Ok(CText::new(&distiller.check_teacher(&text, timeout, &cancel)?.to_string()))
        })
    }
}

/// Throws away all ended episodes that wait for an update or are set aside; how many goes to *thrown_away unless that is
/// NULL. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_distiller_discard(
    distiller: *mut squire_distiller,
    thrown_away: *mut u64,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let distiller = call.subject(distiller)?;
            let thrown_away = Slot::optional(thrown_away, "thrown_away")?;
            thrown_away.set(distiller.discard() as u64);
            Ok(Outcome::Done)
        })
    }
}

/// The distiller's number, from 1, of which the process has no other: a teacher that several distillers share is told it with
/// each request. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_distiller_number(
    distiller: *const squire_distiller,
    number: *mut u64,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let (distiller, slot) = (call.shared(distiller)?, Slot::required(number, "number")?);
            slot.set(distiller.number());
            Ok(Outcome::Done)
        })
    }
}

/// Where the run stands, as a JSON object: step, steps, beta, depth, learning_rate, revision, revisions_alive, episodes,
/// evaluations, updates, thrown_away, schedules (what else moves, by name, at this step), teacher_tokens (what the teacher said in
/// training since the last update), waiting (ended episodes that no update took yet), set_aside (those that the teacher
/// could not score; no part of a checkpoint, and no hindrance to one), kept_for_rollback (numbers of revisions), probe (of the last
/// published revision: rows, differing, largest_difference of log-probs by serving and by training; null where it was not
/// looked at), run (32 hexadecimal digits, which a resumed run keeps), recording (folder, episodes, failed: why the metrics could not
/// be written, or null; null where nothing is recorded). Keys may be added. Waits for nothing but a line
/// of the record that is being written. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_distiller_metrics(
    distiller: *const squire_distiller,
    out: *mut *mut squire_text,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe { guard_out(out, err, |call| Ok(CText::new(&call.shared(distiller)?.metrics().to_string()))) }
}

/// Drops the distiller; its episodes and updates keep it. NULL is allowed. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_distiller_release(distiller: *mut squire_distiller) {
    // SAFETY: the conventions at the head of the header.
    unsafe { handle::release(distiller) }
}
