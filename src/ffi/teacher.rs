//! A teacher in the host's own code: requests come out of a queue, answers go back, on any thread and over any transport.

use std::ffi::c_char;
use std::mem::offset_of;
use std::sync::Arc;
use std::time::Duration;

use super::distiller::squire_distiller;
use super::error::squire_error;
use super::gen_options::squire_stop_string;
use super::guard::{Call, Outcome, guard, guard_out, guard_out_unless};
use super::handle::{self, Object};
use super::input;
use super::model::squire_model;
use super::options::{self, Versioned};
use super::status::squire_status;
use crate::distill::{Config, Distiller, QueueOptions, Reply, Request, Teacher, TeacherQueue, TeacherSays, Words};
use crate::error::{Error, Fault, Result};
use crate::serve::ServedModel;

/// A teacher in the host's own code. Episodes of the distillers that it was given to ask it for scores, and for turns where it acts:
/// any number of threads take requests by squire_teacher_next and answer each by squire_teacher_reply, _say, _say_text or _fail. Shared: see
/// squire_teacher_retain. Freed by squire_teacher_release and with the last distiller that has it.
pub struct squire_teacher {
    _opaque: [u8; 0],
}

impl Object for squire_teacher {
    type Body = TeacherQueue;
    const TAG: [u8; 8] = *b"sq teach";
    const NAME: &'static str = "squire_teacher";
}

/// Requests that were taken together. Freed by squire_teacher_batch_release; what points into it lives as long.
pub struct squire_teacher_batch {
    _opaque: [u8; 0],
}

impl Object for squire_teacher_batch {
    type Body = Batch;
    const TAG: [u8; 8] = *b"sq tbatc";
    const NAME: &'static str = "squire_teacher_batch";
}

/// What stands behind a `squire_teacher_batch`.
pub(crate) struct Batch {
    requests: Vec<Arc<Request>>,
    /// of each request, for the host; they point into it
    stop_strings: Vec<Vec<squire_stop_string>>,
    deadline_ms: u64,
}

impl Batch {
    fn new(requests: Vec<Arc<Request>>, deadline: Duration) -> Batch {
        let shown = |text: &String| squire_stop_string { text: text.as_ptr().cast(), len: text.len() };
        let of =
            |request: &Arc<Request>| request.turn.iter().flat_map(|turn| turn.stop_strings.iter().map(shown)).collect();
        let stop_strings = requests.iter().map(of).collect();
        Batch { requests, stop_strings, deadline_ms: deadline.as_millis() as u64 }
    }
}

/// kind: the log-probs of ids[from..] are wanted, each given all ids before it, of the raw logits at temperature 1. Answered by
/// squire_teacher_reply.
pub const SQUIRE_REQUEST_SCORES: i32 = 0;
/// kind: the turn that follows the ids is wanted. Answered by squire_teacher_say or squire_teacher_say_text.
pub const SQUIRE_REQUEST_TURN: i32 = 1;

/// Of squire_teacher_say and squire_teacher_say_text: the turn ended for want of room, before the teacher was done.
pub const SQUIRE_SAY_CUT_OFF: u32 = 1;

/// What a teacher is asked, for scores or, where it acts, for a turn. Set up by squire_teacher_request_init.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct squire_teacher_request {
    /// Set by _init.
    pub struct_size: u32,
    /// How many of the most likely ids are wanted in each place; 0: none.
    pub top_k: i32,
    /// Its number, by which it is answered.
    pub number: u64,
    /// Identity of the episode whose ids these are, among those of its distiller; UINT64_MAX: of squire_distiller_check_teacher.
    pub episode: u64,
    /// The whole text so far as the teacher is to read it. Lives as long as the batch.
    pub ids: *const i32,
    /// How many.
    pub n_ids: usize,
    /// The first id that is asked about, at least 1: the answer has n_ids - from places. n_ids where a turn is wanted.
    pub from: usize,
    /// Ids that there are: those of an answer lie below.
    pub vocabulary: usize,
    /// Milliseconds from squire_teacher_next on in which the answer is wanted.
    pub deadline_ms: u64,
    /// The number of the distiller that asks, as squire_distiller_number tells it. Since 0.7, as all that follows.
    pub distiller: u64,
    /// Updates that were applied when the episode began.
    pub step: u64,
    /// The student's revision that acts in it.
    pub revision: u64,
    /// One of SQUIRE_REQUEST_... Since 0.8, as all that follows, which is of a turn and 0 or NULL where scores are wanted.
    pub kind: i32,
    /// As the settings draw: the most likely ids to draw from; 0: all.
    pub draw_top_k: i32,
    /// Draw from the fewest most likely ids whose probabilities reach this together; 1: from all.
    pub top_p: f64,
    /// Temperature to draw at; 0: the most likely id.
    pub temperature: f64,
    /// The seed of this turn's draws, for teachers that take one.
    pub seed: u64,
    /// Tokens of the turn at most, the one that ends it among them; of a text as the teacher counts them.
    pub max_tokens: usize,
    /// Ids that end a turn. They live as long as the batch, as does the text.
    pub stop_ids: *const i32,
    /// How many.
    pub n_stop_ids: usize,
    /// What was said so far as the teacher is to read it, as a JSON list of messages (UTF-8, not ended by NUL). NULL where ids were
    /// observed.
    pub messages: *const c_char,
    /// Its bytes.
    pub messages_len: usize,
    /// Texts that end a turn (UTF-8, not ended by NUL): it ends with the token that completes the first of them, and what is said
    /// behind that does not count. They live as long as the batch. Since 0.11, as all that follows.
    pub stop_strings: *const squire_stop_string,
    /// How many.
    pub n_stop_strings: usize,
    /// Milliseconds that were left of the turn's time limit when this was filled; what is said later is not taken. 0: it has none,
    /// or none is left and nobody waits.
    pub time_left_ms: u64,
}

// SAFETY: numbers and pointers; the sizes are checked where the header is compiled.
unsafe impl Versioned for squire_teacher_request {
    const NAME: &'static str = "squire_teacher_request";
    const FIRST_SIZE: usize = offset_of!(squire_teacher_request, distiller);

    fn defaults() -> squire_teacher_request {
        squire_teacher_request {
            struct_size: size_of::<squire_teacher_request>() as u32,
            top_k: 0,
            number: 0,
            episode: 0,
            ids: std::ptr::null(),
            n_ids: 0,
            from: 0,
            vocabulary: 0,
            deadline_ms: 0,
            distiller: 0,
            step: 0,
            revision: 0,
            kind: SQUIRE_REQUEST_SCORES,
            draw_top_k: 0,
            top_p: 0.0,
            temperature: 0.0,
            seed: 0,
            max_tokens: 0,
            stop_ids: std::ptr::null(),
            n_stop_ids: 0,
            messages: std::ptr::null(),
            messages_len: 0,
            stop_strings: std::ptr::null(),
            n_stop_strings: 0,
            time_left_ms: 0,
        }
    }
}

/// Sets up a request: squire_teacher_request_init(&r, sizeof r). NULL, and a size that no struct has, does nothing. Any
/// thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_teacher_request_init(request: *mut squire_teacher_request, size: usize) {
    // SAFETY: the conventions at the head of the header.
    unsafe { options::init(request, size) }
}

/// Makes a teacher that nobody has asked yet. options_json: {"vocabulary", "top_k", "deadline_ms", "acts", "scores"}. vocabulary says how its
/// ids are known to mean what the student's mean, and must be there: {"tokenizer": path of its tokenizer.json},
/// {"fingerprint": 16 hex digits}, "the-students", where the host knows that it is, or "another",
/// where it is known to be another: such a teacher acts, by text, and scores nothing. acts (false; of another vocabulary true): it
/// takes turns; scores (true; of another vocabulary false): it scores what was said; one of them it must. top_k (0 to 1024; 0): most likely ids
/// that it gives in each place. deadline_ms (60000): how long an answer may take from squire_teacher_next on; a request that
/// nobody takes runs out when a build, or whoever pulls a turn, has waited so long. SQUIRE_E_ARGUMENT for unknown keys or values, SQUIRE_E_IO and
/// SQUIRE_E_FORMAT for the tokenizer. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_teacher_create(
    options_json: *const c_char,
    options_len: usize,
    out: *mut *mut squire_teacher,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |_| {
            let text = input::text(options_json, options_len, "options_json")?;
            Ok(TeacherQueue::new(QueueOptions::from_json(text)?))
        })
    }
}

/// Adds a reference and gives the same pointer; NULL for NULL. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_teacher_retain(teacher: *mut squire_teacher) -> *mut squire_teacher {
    // SAFETY: the conventions at the head of the header.
    unsafe { handle::retain(teacher) }
}

/// Drops a reference. Distillers keep their teacher; without anybody who answers its requests run out. NULL is allowed. Any
/// thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_teacher_release(teacher: *mut squire_teacher) {
    // SAFETY: the conventions at the head of the header.
    unsafe { handle::release(teacher) }
}

/// Takes up to most requests that wait, in the order in which they were asked, each once. Blocks until there is one:
/// SQUIRE_TIMEOUT, and *out NULL, where none comes within timeout_ms (0: looks and does not wait; at most a day); SQUIRE_END,
/// and *out NULL, at once where the teacher is closed, and for ever after. What is
/// taken must be answered, or it runs out. SQUIRE_E_ARGUMENT for a most of 0. Any thread, any number of them at once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_teacher_next(
    teacher: *mut squire_teacher,
    most: usize,
    timeout_ms: u64,
    out: *mut *mut squire_teacher_batch,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out_unless(out, err, |call| {
            let teacher = call.shared(teacher)?;
            if most == 0 {
                return Err(Error::new(Fault::BadOption, "most is 0: no request can be taken"));
            }
            let requests = teacher.next(most, Duration::from_millis(timeout_ms));
            if requests.is_empty() {
                return Ok(Err(if teacher.is_closed() { Outcome::End } else { Outcome::Timeout }));
            }
            Ok(Ok(Batch::new(requests, teacher.options().deadline)))
        })
    }
}

/// Request i of a batch; SQUIRE_END past the last, and *request stays as it was. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_teacher_batch_request(
    batch: *const squire_teacher_batch,
    i: usize,
    request: *mut squire_teacher_request,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let (batch, filled) = (call.shared(batch)?, options::fill(request)?);
            let Some((of, stop_strings)) = batch.requests.get(i).zip(batch.stop_strings.get(i)) else {
                return Ok(Outcome::End);
            };
            let turn = of.turn.as_ref().map(|turn| squire_teacher_request {
                kind: SQUIRE_REQUEST_TURN,
                draw_top_k: turn.sampling.top_k as i32,
                top_p: f64::from(turn.sampling.top_p),
                temperature: f64::from(turn.sampling.temperature),
                seed: turn.seed,
                max_tokens: turn.max_tokens,
                stop_ids: turn.stop_ids.as_ptr(),
                n_stop_ids: turn.stop_ids.len(),
                messages: turn.messages.as_ref().map_or(std::ptr::null(), |text| text.as_ptr().cast()),
                messages_len: turn.messages.as_ref().map_or(0, String::len),
                stop_strings: stop_strings.as_ptr(),
                n_stop_strings: stop_strings.len(),
                time_left_ms: turn.time_left().map_or(0, |left| left.as_millis().try_into().unwrap_or(u64::MAX)),
                ..squire_teacher_request::defaults()
            });
            filled.set(squire_teacher_request {
                top_k: of.top_k as i32,
                number: of.number,
                episode: of.asker.episode,
                // It stands as long as the host's batch, which holds the request.
                ids: of.ids.as_ptr(),
                n_ids: of.ids.len(),
                from: of.from,
                vocabulary: of.vocabulary,
                deadline_ms: batch.deadline_ms,
                distiller: of.asker.distiller,
                step: of.asker.step,
                revision: of.asker.revision,
                ..turn.unwrap_or_else(squire_teacher_request::defaults)
            });
            Ok(Outcome::Done)
        })
    }
}

/// Frees the batch; its requests wait for their answers all the same. NULL is allowed. Any thread, also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_teacher_batch_release(batch: *mut squire_teacher_batch) {
    // SAFETY: the conventions at the head of the header.
    unsafe { handle::release(batch) }
}

/// Answers a request. ids repeats the n_ids ids that were asked about, ids[from..] of the request, and logprobs has one log-prob
/// (nats) for each. top_ids and top_logprobs have n_top entries, top_k for each place one behind another, in any order, each
/// place's ids all different; both NULL where top_k is 0. An answer that does not fit is SQUIRE_E_MISMATCH (detail
/// TEACHER_REPLY), names the position, and the request waits on: another length, other ids, log-probs that are not finite or
/// above 0 (a missing one is never 0), ids beyond the vocabulary or twice. SQUIRE_E_STATE (detail TEACHER_REQUEST) where no
/// request of this number waits, with what became of it. What the arrays hold is copied. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_teacher_reply(
    teacher: *mut squire_teacher,
    number: u64,
    ids: *const i32,
    n_ids: usize,
    logprobs: *const f32,
    top_ids: *const i32,
    top_logprobs: *const f32,
    n_top: usize,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let teacher = call.shared(teacher)?;
            let reply = Reply {
                ids: input::ids(ids, n_ids, "ids")?,
                logprobs: input::slice(logprobs, n_ids, "logprobs")?,
                top_ids: input::ids(top_ids, n_top, "top_ids")?,
                top_logprobs: input::slice(top_logprobs, n_top, "top_logprobs")?,
            };
            teacher.reply(number, reply)?;
            Ok(Outcome::Done)
        })
    }
}

/// Answers a request for a turn with n_ids ids of the student's vocabulary, the one that ends the turn (one of stop_ids) included, and
/// their log-probs (nats, of the raw logits at temperature 1), n_logprobs of them: as many, or 0 where they are not known. They are
/// the turn as they stand, up to the one that completes the first of its stop_strings; whoever pulls its generation gets them at once. A turn that
/// ends by neither has max_tokens ids, or SQUIRE_SAY_CUT_OFF in flags. What does not fit is SQUIRE_E_MISMATCH (detail TEACHER_REPLY), and the request waits on: none or
/// too many ids, ids beyond the vocabulary or behind one that ends a turn, log-probs as squire_teacher_reply refuses them, a teacher
/// of another vocabulary. SQUIRE_E_STATE (detail TEACHER_REQUEST) where no request of this number waits. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_teacher_say(
    teacher: *mut squire_teacher,
    number: u64,
    ids: *const i32,
    n_ids: usize,
    logprobs: *const f32,
    n_logprobs: usize,
    flags: u32,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let teacher = call.shared(teacher)?;
            let (ids, logprobs) = (input::ids(ids, n_ids, "ids")?, input::slice(logprobs, n_logprobs, "logprobs")?);
            let cut_off = options::flags(flags, "flags", SQUIRE_SAY_CUT_OFF)? != 0;
            teacher.say(number, TeacherSays { what: Words::Ids(ids, logprobs), cut_off })?;
            Ok(Outcome::Done)
        })
    }
}

/// Answers a request for a turn with a text (UTF-8), without what ends the turn, for teachers whose ids are not known here or are
/// another vocabulary's. It becomes ids as a replayed text does (squire_episode_replay_text), which need not be those that the
/// teacher said: the trace says so of the turn (from_text). SQUIRE_E_MISMATCH (detail TEACHER_REPLY) where it is
/// more than the student's context has room for, SQUIRE_E_IO (detail MISSING_FILE) where the student has no tokenizer; the request
/// waits on. Otherwise as squire_teacher_say. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_teacher_say_text(
    teacher: *mut squire_teacher,
    number: u64,
    text: *const c_char,
    text_len: usize,
    flags: u32,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let teacher = call.shared(teacher)?;
            let text = input::text(text, text_len, "text")?;
            let cut_off = options::flags(flags, "flags", SQUIRE_SAY_CUT_OFF)? != 0;
            teacher.say(number, TeacherSays { what: Words::Text(text), cut_off })?;
            Ok(Outcome::Done)
        })
    }
}

/// Says that a request cannot be answered, and why. Of scores, its episode is set aside with that reason, and a later build asks
/// again; of a turn, its generation fails (SQUIRE_E_TEACHER, detail TEACHER_FAILED) and the turn is taken again, or by the student
/// (setting teacher_fails).
/// SQUIRE_E_STATE (detail TEACHER_REQUEST) where no request of this number waits. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_teacher_fail(
    teacher: *mut squire_teacher,
    number: u64,
    why: *const c_char,
    why_len: usize,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let teacher = call.shared(teacher)?;
            teacher.fail(number, input::text(why, why_len, "why")?)?;
            Ok(Outcome::Done)
        })
    }
}

/// Closes the teacher, for good: everybody who waits in squire_teacher_next returns at once with SQUIRE_END, requests that
/// nobody took are refused, and so is whatever is asked from now on, with SQUIRE_E_TEACHER (detail TEACHER_CLOSED) where a build
/// would have waited. Requests that were taken may still be answered. A second time it does nothing. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_teacher_close(
    teacher: *mut squire_teacher,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            call.shared(teacher)?.close();
            Ok(Outcome::Done)
        })
    }
}

/// The model, teacher and settings that make a distiller.
///
/// # Safety
/// As [`Call::shared`] and [`input::text`].
unsafe fn parts(
    call: &Call,
    student: *const squire_model,
    teacher: *const squire_teacher,
    (settings, len): (*const c_char, usize),
) -> Result<(ServedModel, Teacher, Config)> {
    // SAFETY: passed on.
    unsafe {
        let (student, teacher) = (call.shared(student)?.clone(), call.shared(teacher)?.clone());
        Ok((student, Teacher::Queue(teacher), Config::from_json(input::text(settings, len, "settings_json")?)?))
    }
}

/// Makes a distiller whose teacher is the host's. SQUIRE_E_ARGUMENT where the settings ask it for what it does not give: turns, scores,
/// or distributions while its top_k is 0; SQUIRE_E_MISMATCH (detail TEACHER_VOCABULARY) where its
/// fingerprint is not that of the student's tokenizer. Otherwise as squire_distiller_create. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_distiller_create_taught(
    student: *mut squire_model,
    teacher: *mut squire_teacher,
    settings_json: *const c_char,
    settings_len: usize,
    out: *mut *mut squire_distiller,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |call| {
            let (student, teacher, config) = parts(call, student, teacher, (settings_json, settings_len))?;
            Distiller::taught(&student, Some(teacher), config)
        })
    }
}

/// Goes on from the newest checkpoint in a folder with a teacher of the host's: as squire_distiller_resume and
/// squire_distiller_create_taught. Blocks. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_distiller_resume_taught(
    student: *mut squire_model,
    teacher: *mut squire_teacher,
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
            Distiller::resume_taught(&student, Some(teacher), config, path)
        })
    }
}
