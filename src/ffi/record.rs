//! The record of a run: written into a folder, read back, learnt from; and every token of an episode as arrays.

use std::ffi::c_char;
use std::ptr::null;

use super::distiller::squire_distiller;
use super::episode::squire_episode;
use super::error::squire_error;
use super::guard::{Outcome, guard, guard_out};
use super::handle::{self, Object};
use super::input;
use super::output::Slot;
use super::status::squire_status;
use super::text::{CText, squire_text, write_len};
use crate::distill::trajectory::Trajectory;
use crate::distill::{Record, RecordOptions};
use crate::error::{Error, Fault, Result};
use crate::text::source::Source;

/// Of squire_trajectory_sources: text of the host.
pub const SQUIRE_SOURCE_HOST: u8 = 0;
/// Of the same: markers of the chat template.
pub const SQUIRE_SOURCE_GLUE: u8 = 1;
/// Of the same: sampled by the student.
pub const SQUIRE_SOURCE_STUDENT: u8 = 2;
/// Of the same: said by the teacher.
pub const SQUIRE_SOURCE_TEACHER: u8 = 3;
/// Of the same: an action of a demonstration.
pub const SQUIRE_SOURCE_REPLAY: u8 = 4;

/// A record that was read. Freed by squire_record_release.
pub struct squire_record {
    _opaque: [u8; 0],
}

impl Object for squire_record {
    type Body = Record;
    const TAG: [u8; 8] = *b"sq recrd";
    const NAME: &'static str = "squire_record";
}

/// An episode token by token, as it stood when it was asked for. Freed by squire_trajectory_release.
pub struct squire_trajectory {
    _opaque: [u8; 0],
}

/// Arrays of T tokens, and of N times K likeliest ids of the N tokens that the teacher spoke of.
pub(crate) struct Tokens {
    ids: Box<[i32]>,
    sources: Box<[u8]>,
    logprobs: Box<[f32]>,
    sampled_logprobs: Box<[f32]>,
    teacher_logprobs: Box<[f32]>,
    top_ids: Box<[i32]>,
    top_logprobs: Box<[f32]>,
    facts: CText,
}

impl Tokens {
    fn of(trajectory: &Trajectory, facts: &str) -> Tokens {
        Tokens {
            ids: trajectory.ids().into(),
            sources: trajectory.sources().iter().map(|&source: &Source| source as u8).collect(),
            logprobs: trajectory.logprobs().into(),
            sampled_logprobs: trajectory.sampled_logprobs().into(),
            teacher_logprobs: Box::default(),
            top_ids: Box::default(),
            top_logprobs: Box::default(),
            facts: CText::new(facts),
        }
    }
}

impl Object for squire_trajectory {
    type Body = Tokens;
    const TAG: [u8; 8] = *b"sq trajc";
    const NAME: &'static str = "squire_trajectory";
}

/// Writes from now on every episode that ends, what the host's teacher says of it, and what becomes of the run into a folder, made if
/// it is not there: record.jsonl and metrics.jsonl, whose form docs/record.md has. recording_json: {"texts": whether episodes come with texts
/// for people, true}. A distiller that is resumed from a checkpoint is the same run and goes on in its folder. The record comes first: an episode
/// that cannot be written has not ended (squire_episode_end answers SQUIRE_E_IO and may be called again); where the metrics alone cannot be
/// written the log says so and the run goes on. With path NULL and length 0 nothing more is written, whatever the options. SQUIRE_E_IO, SQUIRE_E_BUSY (detail RECORD_IN_USE) where another distiller writes
/// into the folder, SQUIRE_E_MISMATCH where another run lies in it, SQUIRE_E_FORMAT where something else does. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_distiller_record(
    distiller: *mut squire_distiller,
    path: *const c_char,
    path_len: usize,
    recording_json: *const c_char,
    recording_len: usize,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let distiller = call.subject(distiller)?;
            if path.is_null() && path_len == 0 {
                distiller.stop_recording();
                return Ok(Outcome::Done);
            }
            let path = input::path(path, path_len, "path")?;
            let options = RecordOptions::from_json(input::text(recording_json, recording_len, "recording_json")?)?;
            distiller.record(path, options)?;
            Ok(Outcome::Done)
        })
    }
}

/// Reads a record: a file, or the one in a run's folder. Every line is checked; of several episodes of one identity the last one counts, and a last line
/// that was cut off is left out. Blocks. SQUIRE_E_IO, SQUIRE_E_FORMAT with the line (detail RECORD_VERSION where it is of a later squire). Any
/// thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_record_open(
    path: *const c_char,
    path_len: usize,
    out: *mut *mut squire_record,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe { guard_out(out, err, |_| Record::read(input::path(path, path_len, "path")?)) }
}

/// What a record holds, as a JSON object: runs (run, episodes, vocabulary, rows, settings, fingerprint), episodes, evaluations (which are
/// among them), scored (those of which the host's teacher spoke), superseded (that stood there again), cut (bytes of a last line that was cut
/// off, or null). Keys may be added. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_record_info(
    record: *const squire_record,
    out: *mut *mut squire_text,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe { guard_out(out, err, |call| Ok(CText::new(&call.shared(record)?.to_json().to_string()))) }
}

/// Episodes of a record, evaluations too. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_record_count(
    record: *const squire_record,
    count: *mut usize,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let (record, slot) = (call.shared(record)?, Slot::required(count, "count")?);
            slot.set(record.episodes.len());
            Ok(Outcome::Done)
        })
    }
}

/// An episode of a record, counted from 0 in the order of the file. SQUIRE_E_ARGUMENT for an index that is not below
/// squire_record_count. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_record_episode(
    record: *const squire_record,
    index: usize,
    out: *mut *mut squire_trajectory,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |call| {
            let record = call.shared(record)?;
            let n = record.episodes.len();
            let none = || Error::new(Fault::BadLength, format!("index: wanted one of {n} episodes, found {index}"));
            recorded(&record, index, none)
        })
    }
}

fn recorded(record: &Record, index: usize, none: impl FnOnce() -> Error) -> Result<Tokens> {
    let episode = record.episodes.get(index).ok_or_else(none)?;
    let trajectory = episode.trajectory()?;
    let mut tokens = Tokens::of(&trajectory, &episode.facts(&trajectory).to_string());
    if let Some(said) = &episode.said {
        let mut logprobs = vec![f32::NAN; tokens.ids.len()];
        // Checked when it was read: each of them is a token's.
        said.positions.iter().zip(&said.logprobs).for_each(|(&at, &logprob)| logprobs[at] = logprob);
        tokens.teacher_logprobs = logprobs.into();
        tokens.top_ids = said.top_ids.as_slice().into();
        tokens.top_logprobs = said.top_logprobs.as_slice().into();
    }
    Ok(tokens)
}

/// Frees a record. NULL is allowed. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_record_release(record: *mut squire_record) {
    // SAFETY: the conventions at the head of the header.
    unsafe { handle::release(record) }
}

/// Lets up to max_episodes (0: all) episodes of a record that this run has not had wait for an update, in the order of their numbers, as if they
/// had just been played: under the settings that they were played under, the update is the same bit for bit. Under others their losses are those of the
/// distiller's settings. What the host's teacher said comes from the record; a teacher that is a model computes its part when an update takes the
/// episode, and the host's is asked where the record lacks what the settings ask for. The answer is a JSON object: episodes (that wait now), evaluations (never
/// learnt), known (had before: played by this run, or imported, also before the checkpoint that it was resumed from), left (beyond max_episodes),
/// other_settings and unscored (of those that wait). SQUIRE_E_MISMATCH where the record is of another vocabulary, or an episode longer than
/// the student's context; nothing is taken then. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_distiller_import(
    distiller: *mut squire_distiller,
    record: *const squire_record,
    max_episodes: u64,
    out: *mut *mut squire_text,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |call| {
            let (distiller, record) = (call.subject(distiller)?, call.shared(record)?);
            let imported = distiller.import(&record, max_episodes)?;
            Ok(CText::new(&serde_json::json!(imported).to_string()))
        })
    }
}

/// Every token of an episode so far, the turn under way as far as it is said. SQUIRE_E_BUSY while a generation runs. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_episode_trajectory(
    episode: *const squire_episode,
    out: *mut *mut squire_trajectory,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |call| {
            let trajectory = call.shared(episode)?.trajectory()?;
            Ok(Tokens::of(&trajectory, &trajectory.facts().to_string()))
        })
    }
}

/// The pointer of an accessor, its length written unless `len` is NULL. NULL and 0 for no object.
///
/// # Safety
/// As [`handle::peek`]; `len` is NULL or writable.
unsafe fn array<T>(trajectory: *const squire_trajectory, len: *mut usize, of: impl Fn(&Tokens) -> &[T]) -> *const T {
    // SAFETY: passed on.
    unsafe {
        let (data, n) = handle::peek(trajectory).map_or((null(), 0), |tokens| {
            let array = of(tokens);
            (array.as_ptr(), array.len())
        });
        write_len(len, n);
        data
    }
}

/// T token ids, their number in *len unless len is NULL; T is that of all arrays of an episode. They live as long as the object. NULL and 0 for
/// NULL. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_trajectory_ids(trajectory: *const squire_trajectory, len: *mut usize) -> *const i32 {
    // SAFETY: the conventions at the head of the header.
    unsafe { array(trajectory, len, |tokens| &tokens.ids) }
}

/// Who wrote each token, T of SQUIRE_SOURCE_..., otherwise as squire_trajectory_ids. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_trajectory_sources(trajectory: *const squire_trajectory, len: *mut usize) -> *const u8 {
    // SAFETY: the conventions at the head of the header.
    unsafe { array(trajectory, len, |tokens| &tokens.sources) }
}

/// Log-probs in nats at temperature 1 over the whole vocabulary, T of them, NaN where nothing was sampled or it is not known,
/// otherwise as squire_trajectory_ids. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_trajectory_logprobs(
    trajectory: *const squire_trajectory,
    len: *mut usize,
) -> *const f32 {
    // SAFETY: the conventions at the head of the header.
    unsafe { array(trajectory, len, |tokens| &tokens.logprobs) }
}

/// The same of the distribution that was drawn from. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_trajectory_sampled_logprobs(
    trajectory: *const squire_trajectory,
    len: *mut usize,
) -> *const f32 {
    // SAFETY: the conventions at the head of the header.
    unsafe { array(trajectory, len, |tokens| &tokens.sampled_logprobs) }
}

/// What the host's teacher said of each token, T log-probs, NaN of which it said nothing, of an episode of a record; of length 0 where it
/// said nothing of the episode. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_trajectory_teacher_logprobs(
    trajectory: *const squire_trajectory,
    len: *mut usize,
) -> *const f32 {
    // SAFETY: the conventions at the head of the header.
    unsafe { array(trajectory, len, |tokens| &tokens.teacher_logprobs) }
}

/// Its most likely ids, N times K: K of each of the N tokens that it said something of, one token after the other. Any thread, also
/// inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_trajectory_teacher_top_ids(
    trajectory: *const squire_trajectory,
    len: *mut usize,
) -> *const i32 {
    // SAFETY: the conventions at the head of the header.
    unsafe { array(trajectory, len, |tokens| &tokens.top_ids) }
}

/// Their log-probs, N times K. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_trajectory_teacher_top_logprobs(
    trajectory: *const squire_trajectory,
    len: *mut usize,
) -> *const f32 {
    // SAFETY: the conventions at the head of the header.
    unsafe { array(trajectory, len, |tokens| &tokens.top_logprobs) }
}

/// The rest of the episode, as a JSON object ended by NUL, its length without the NUL in *len unless len is NULL: what
/// squire_episode_trace has without an entry a token, and of a record also settings (their fingerprint) and of each turn before and text. Keys may be added. It
/// lives as long as the object. NULL and 0 for NULL. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_trajectory_json(
    trajectory: *const squire_trajectory,
    len: *mut usize,
) -> *const c_char {
    // SAFETY: the conventions at the head of the header.
    unsafe { CText::hand_out(handle::peek(trajectory).map(|tokens| &tokens.facts), len) }
}

/// Frees a trajectory. NULL is allowed. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_trajectory_release(trajectory: *mut squire_trajectory) {
    // SAFETY: the conventions at the head of the header.
    unsafe { handle::release(trajectory) }
}
