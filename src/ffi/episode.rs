//! Episodes: the host's loop over its environment, one call a step of it.

use std::ffi::c_char;
use std::ptr::null;

use super::cancel::{self, squire_cancel};
use super::distiller::squire_distiller;
use super::error::squire_error;
use super::gen_options::{gen_options, refuse_ignored, squire_gen_options, wants_parts};
use super::generation::{Pulled, squire_gen};
use super::guard::{Outcome, guard, guard_out};
use super::handle::{self, Object};
use super::input;
use super::options::{self, Versioned};
use super::output::Slot;
use super::status::squire_status;
use super::text::{CText, squire_text};
use crate::distill::{Actor, Decision, Episode, EpisodeSpec, ForkOptions, Reason, Replay};

/// One run of the host's environment. Freed by squire_episode_release; without squire_episode_end it is thrown away.
///
/// The order: begin; then for each turn observe once or more, decide, perhaps override, then act (and pull the generation
/// to its end) or replay, then outcome; at last end. Any other order is SQUIRE_E_STATE (detail OUT_OF_ORDER), names the
/// expected call and changes nothing.
pub struct squire_episode {
    _opaque: [u8; 0],
}

impl Object for squire_episode {
    type Body = Episode;
    const TAG: [u8; 8] = *b"sq episd";
    const NAME: &'static str = "squire_episode";
}

/// actor: nobody, the rollout ends here.
pub const SQUIRE_ACTOR_STOP: i32 = 0;
/// actor: the student samples.
pub const SQUIRE_ACTOR_STUDENT: i32 = 1;
/// actor: the teacher samples.
pub const SQUIRE_ACTOR_TEACHER: i32 = 2;
/// actor: a demonstration is replayed.
pub const SQUIRE_ACTOR_REPLAY: i32 = 3;

/// reason: the method always lets this actor act.
pub const SQUIRE_REASON_METHOD: i32 = 1;
/// reason: drawn against the teacher's share at this step.
pub const SQUIRE_REASON_CURRICULUM: i32 = 2;
/// reason: the depth curriculum ends the rollout here.
pub const SQUIRE_REASON_DEPTH_CAP: i32 = 3;
/// reason: the host asked for this actor.
pub const SQUIRE_REASON_HOST_OVERRIDE: i32 = 4;
/// reason: an evaluation episode is the student's alone.
pub const SQUIRE_REASON_EVALUATION: i32 = 5;
/// reason: the teacher's turn, but there is no teacher, so the student acts.
pub const SQUIRE_REASON_TEACHER_NOT_ABLE: i32 = 6;
/// reason: the demonstration has no action for this turn.
pub const SQUIRE_REASON_REPLAY_ENDED: i32 = 7;
/// reason: the episode's turn cap is reached.
pub const SQUIRE_REASON_TURN_CAP: i32 = 8;
/// reason: the teacher's turn, but its tokens until the next update are spent, so the student acts.
pub const SQUIRE_REASON_TEACHER_SPENT: i32 = 9;
/// reason: the student proposes; when it has spoken, squire_episode_judge says whether that stands.
pub const SQUIRE_REASON_PROPOSAL: i32 = 10;
/// reason: what the student proposed stands; the outcome is due.
pub const SQUIRE_REASON_PROPOSAL_STANDS: i32 = 11;
/// reason: what the student proposed was too uncertain and is dropped; the teacher acts in its place.
pub const SQUIRE_REASON_PROPOSAL_REPLACED: i32 = 12;
/// reason: the teacher's turn, but it failed to take it, so the student acts (setting teacher_fails). Since 0.8.
pub const SQUIRE_REASON_TEACHER_FAILED: i32 = 13;

/// Of squire_episode_outcome: reward is given.
pub const SQUIRE_OUTCOME_HAS_REWARD: u32 = 1;
/// Of squire_episode_outcome: the host executed something other than what was said; the turn carries no loss.
pub const SQUIRE_OUTCOME_EXECUTED_OTHER: u32 = 2;

/// What squire_episode_decide gives. Set up by squire_decision_init.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct squire_decision {
    /// Set by _init.
    pub struct_size: u32,
    /// One of SQUIRE_ACTOR_...
    pub actor: i32,
    /// One of SQUIRE_REASON_...
    pub reason: i32,
    /// 1 if the turn's tokens will carry loss, else 0.
    pub train_on_this: i32,
    /// The turn, counted from 0.
    pub turn: u32,
    /// Turns left to the cap in force, this one included; 0 when the rollout ends.
    pub horizon: u32,
    /// The teacher's share that the draw was held against; 0 in evaluation.
    pub probability: f64,
    /// Identity of the episode.
    pub episode: u64,
    /// The update at which the episode began, which fixes its share and depth.
    pub step: u64,
    /// Revision that the student acts with.
    pub revision: u64,
}

// SAFETY: numbers; the sizes are checked where the header is compiled.
unsafe impl Versioned for squire_decision {
    const NAME: &'static str = "squire_decision";
    const FIRST_SIZE: usize = size_of::<squire_decision>();

    fn defaults() -> squire_decision {
        squire_decision {
            struct_size: size_of::<squire_decision>() as u32,
            actor: SQUIRE_ACTOR_STOP,
            reason: 0,
            train_on_this: 0,
            turn: 0,
            horizon: 0,
            probability: 0.0,
            episode: 0,
            step: 0,
            revision: 0,
        }
    }
}

impl squire_decision {
    fn of(episode: &Episode, decision: Decision) -> squire_decision {
        let heading = episode.heading();
        squire_decision {
            actor: match decision.actor {
                None => SQUIRE_ACTOR_STOP,
                Some(Actor::Student) => SQUIRE_ACTOR_STUDENT,
                Some(Actor::Teacher) => SQUIRE_ACTOR_TEACHER,
                Some(Actor::Replay) => SQUIRE_ACTOR_REPLAY,
            },
            reason: match decision.reason {
                Reason::Method => SQUIRE_REASON_METHOD,
                Reason::Curriculum => SQUIRE_REASON_CURRICULUM,
                Reason::DepthCap => SQUIRE_REASON_DEPTH_CAP,
                Reason::HostOverride => SQUIRE_REASON_HOST_OVERRIDE,
                Reason::Evaluation => SQUIRE_REASON_EVALUATION,
                Reason::TeacherNotAble => SQUIRE_REASON_TEACHER_NOT_ABLE,
                Reason::ReplayEnded => SQUIRE_REASON_REPLAY_ENDED,
                Reason::TurnCap => SQUIRE_REASON_TURN_CAP,
                Reason::TeacherSpent => SQUIRE_REASON_TEACHER_SPENT,
                Reason::Proposal => SQUIRE_REASON_PROPOSAL,
                Reason::ProposalStands => SQUIRE_REASON_PROPOSAL_STANDS,
                Reason::ProposalReplaced => SQUIRE_REASON_PROPOSAL_REPLACED,
                Reason::TeacherFailed => SQUIRE_REASON_TEACHER_FAILED,
            },
            train_on_this: i32::from(decision.train_on_this),
            turn: episode.turn(),
            horizon: decision.horizon,
            probability: f64::from(decision.probability),
            episode: heading.episode,
            step: heading.step,
            revision: heading.revision,
            ..squire_decision::defaults()
        }
    }
}

/// Sets up a decision: squire_decision_init(&d, sizeof d). NULL, and a size that no struct has, does nothing. Any thread,
/// also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_decision_init(decision: *mut squire_decision, size: usize) {
    // SAFETY: the conventions at the head of the header.
    unsafe { options::init(decision, size) }
}

/// Begins an episode on the student's current revision. spec_json: {"task", "group": the name of the episodes with which its rewards are
/// compared (those of its task, where there is none), "panel" and "task_seed": for the record, the fixed set of tasks that it is of and the environment's seed, "episode", "evaluation", "max_turns",
/// "demonstration": a list of texts, "teacher_prefix": messages that the teacher alone is shown, before everything else, and "tools", "documents", "chat_template", "chat_template_kwargs": what every prompt
/// is rendered with, as in squire_chat_render}, all optional but for what the settings build on: actor prefix wants a demonstration,
/// and rewards that are compared a group or a task; {} for a training episode. Takes one session of the
/// engine's, and one more if there is a teacher and it is no evaluation. SQUIRE_E_ARGUMENT for unknown keys or values, SQUIRE_E_BUDGET if
/// max_sessions exist; of settings with teacher_adapter also the errors of squire_session_create_on. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_episode_begin(
    distiller: *mut squire_distiller,
    spec_json: *const c_char,
    spec_len: usize,
    out: *mut *mut squire_episode,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |call| {
            let distiller = call.shared(distiller)?;
            let text = input::text(spec_json, spec_len, "spec_json")?;
            let spec = EpisodeSpec::from_json(text, distiller.student().template().ok())?;
            distiller.begin(spec)
        })
    }
}

/// Forks an episode at a turn: *out is a new episode that stands where this one stands between two turns, or stood before
/// the turn that is asked for, with what was observed for it; who acts is decided anew. fork_json: {"episode": its number,
/// the key of its draws (the next), "turn": the first turn of its own, counted from 0 (the present one), "train_prefix":
/// whether the turns before carry loss in it too (false: they are learnt from this episode alone), "demonstration": texts
/// from turn 0 on, and "max_turns" (this episode's)}, all optional; NULL with length 0 is {}. Task, step, revision, options
/// of prompts, and whether it is an evaluation are this episode's; its trace says where it was forked. Computes nothing,
/// and nothing that was computed is computed again: pages of KV are shared until one writes (squire_episode_prefill
/// computes first). Takes as many sessions as squire_episode_begin. Neither needs the other afterwards. SQUIRE_E_STATE
/// while a turn is said or waits for its outcome, and after the end; SQUIRE_E_BUSY while a generation runs;
/// SQUIRE_E_ARGUMENT for unknown keys or values and a turn that is not reached yet; SQUIRE_E_BUDGET if max_sessions exist.
/// Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_episode_fork(
    episode: *const squire_episode,
    fork_json: *const c_char,
    fork_len: usize,
    out: *mut *mut squire_episode,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |call| {
            let episode = call.shared(episode)?;
            let text = input::text(fork_json, fork_len, "fork_json")?;
            let options = if fork_json.is_null() { ForkOptions::default() } else { ForkOptions::from_json(text)? };
            episode.fork(options)
        })
    }
}

/// Computes what stands in the episode, so that forks made afterwards share it: the student's side, and the teacher's where the
/// settings ask for a teacher. Blocks. cancel (may be NULL) stops it with SQUIRE_CANCELLED between two chunks, and what is
/// computed by then stays. Nothing to compute is no failure. SQUIRE_E_STATE and SQUIRE_E_BUSY as squire_episode_fork,
/// SQUIRE_E_BUDGET if the KV budget runs out. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_episode_prefill(
    episode: *mut squire_episode,
    cancel: *const squire_cancel,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let episode = call.subject(episode)?;
            let cancel = call.optional(cancel)?.map(|c| c.clone()).unwrap_or_default();
            episode.prefill(&cancel)?;
            Ok(Outcome::Done)
        })
    }
}

/// Shows messages to the actors: messages_json is a list of {"role", "content", ...}, or an object {"messages": that
/// list, "teacher_messages": a list that the teacher is shown in its place (empty: nothing), "tools", "documents",
/// "chat_template", "chat_template_kwargs": what this turn, its further messages and its generation prompt included, is
/// rendered with over the episode's own}, rendered by the student's template; what they say never becomes control. *added,
/// unless added is NULL, gets the number of tokens that the student reads. Computes nothing. SQUIRE_E_TEMPLATE without a
/// template, SQUIRE_E_CONTEXT_FULL, SQUIRE_E_ARGUMENT, SQUIRE_E_STATE. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_episode_observe(
    episode: *mut squire_episode,
    messages_json: *const c_char,
    messages_len: usize,
    added: *mut u64,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: passed on.
    unsafe { squire_episode_observe_until(episode, messages_json, messages_len, null(), added, err) }
}

/// squire_episode_observe that cancel (may be NULL) stops from another thread as squire_chat_render_until is stopped:
/// SQUIRE_CANCELLED, and the episode is as it was. For environments that may say much.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_episode_observe_until(
    episode: *mut squire_episode,
    messages_json: *const c_char,
    messages_len: usize,
    cancel: *const squire_cancel,
    added: *mut u64,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let episode = call.subject(episode)?;
            let text = input::text(messages_json, messages_len, "messages_json")?;
            let added = Slot::optional(added, "added")?;
            let watch = cancel::watch(call, cancel)?;
            added.set(episode.observe_watched(text, &watch).map_err(|e| e.within("messages_json"))? as u64);
            Ok(Outcome::Done)
        })
    }
}

/// The same with ids, for hosts that render for themselves and for models without a tokenizer. Ids that begin the actor's
/// turn, as a rendering with add_generation_prompt does, begin it: no generation prompt is added then. SQUIRE_E_ARGUMENT
/// while a teacher_prefix waits for messages. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_episode_observe_ids(
    episode: *mut squire_episode,
    ids: *const i32,
    ids_len: usize,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let episode = call.subject(episode)?;
            episode.observe_ids(input::ids(ids, ids_len, "ids")?)?;
            Ok(Outcome::Done)
        })
    }
}

/// The same where the teacher is to read other ids: teacher_ids in the place of ids, none of them shows it nothing. Both begin
/// the actor's turn, with the same ids, or neither does: squire_episode_decide and _override refuse the rest with
/// SQUIRE_E_ARGUMENT, and more may be observed then. Where nobody teaches, as in an evaluation, teacher_ids are not read.
/// SQUIRE_E_CONTEXT_FULL where the teacher's context has no room. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_episode_observe_view_ids(
    episode: *mut squire_episode,
    ids: *const i32,
    ids_len: usize,
    teacher_ids: *const i32,
    teacher_ids_len: usize,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let episode = call.subject(episode)?;
            let (ids, theirs) =
                (input::ids(ids, ids_len, "ids")?, input::ids(teacher_ids, teacher_ids_len, "teacher_ids")?);
            episode.observe_ids_as(ids, theirs)?;
            Ok(Outcome::Done)
        })
    }
}

/// Decides who acts: no model work, and the same answer for the same (seed, episode, turn, step); asked again before
/// anybody acts, the same again. decision is filled. SQUIRE_E_STATE before anything was observed, SQUIRE_E_ARGUMENT
/// where ids begin the actor's turn for the student and the teacher's view otherwise, or the teacher was shown nothing, SQUIRE_E_BUSY
/// where a view is to be looked at while the episode is prefilled. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_episode_decide(
    episode: *mut squire_episode,
    decision: *mut squire_decision,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let episode = call.subject(episode)?;
            let to = options::fill(decision)?;
            to.set(squire_decision::of(&episode, episode.decide()?));
            Ok(Outcome::Done)
        })
    }
}

/// Lets an actor (SQUIRE_ACTOR_STUDENT, _TEACHER or _REPLAY) act in this turn, whatever the curriculum says. decision is
/// filled unless it is NULL. SQUIRE_E_ARGUMENT for an actor that the episode does not have. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_episode_override(
    episode: *mut squire_episode,
    actor: i32,
    decision: *mut squire_decision,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let episode = call.subject(episode)?;
            let actors = [
                (SQUIRE_ACTOR_STUDENT, Actor::Student),
                (SQUIRE_ACTOR_TEACHER, Actor::Teacher),
                (SQUIRE_ACTOR_REPLAY, Actor::Replay),
            ];
            let actor = options::choice(actor, "actor", &actors)?;
            let to = if decision.is_null() { None } else { Some(options::fill(decision)?) };
            let decided = episode.override_actor(actor)?;
            if let Some(to) = to {
                to.set(squire_decision::of(&episode, decided));
            }
            Ok(Outcome::Done)
        })
    }
}

/// Starts the decided actor's turn: pull the generation to its end, what it sampled is the turn. options may be NULL.
/// Temperature, top_k and top_p are the settings' in training and those of options, then the student's own, in evaluation;
/// the seed is the episode's own. Stop ids, stop strings, max_tokens, time_limit_ms and cancel count, in training too: they change nothing of what is drawn,
/// the turn is the ids that stand there when it ends, and the trace says what ended it (ended_by). Options that would not count, the seed and in training the first three, must be unset:
/// SQUIRE_E_ARGUMENT (detail BAD_OPTION). After a generation that was cancelled, failed or ran into a limit, act may be called again and goes on where it
/// stopped, and of one without a token the turn is still to be acted; a stop string is looked for in what one generation says; after a failed one override hands the turn over from its beginning, and squire_episode_end drops it. A teacher of the
/// host's is asked for its turn, which comes as a whole or not at all, within its time limit; SQUIRE_E_TEACHER (detail TEACHER_CLOSED) where it is closed.
/// Errors as squire_gen_start, and SQUIRE_E_STATE. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_episode_act(
    episode: *mut squire_episode,
    options: *const squire_gen_options,
    out: *mut *mut squire_gen,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard_out(out, err, |call| {
            let episode = call.subject(episode)?;
            refuse_ignored(options, episode.heading().evaluation)?;
            let parts = wants_parts(options, episode.distiller().student())?;
            let options = gen_options(options, episode.distiller().student())?;
            Pulled::new(episode.act(&options)?, parts)
        })
    }
}

/// Writes down ids as this turn's action, the end of turn included; the decision must be replay. SQUIRE_E_ARGUMENT for no
/// ids or ids outside the vocabulary, SQUIRE_E_CONTEXT_FULL, SQUIRE_E_STATE. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_episode_replay_ids(
    episode: *mut squire_episode,
    ids: *const i32,
    ids_len: usize,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let episode = call.subject(episode)?;
            episode.replay(Replay::Ids(input::ids(ids, ids_len, "ids")?))?;
            Ok(Outcome::Done)
        })
    }
}

/// The same with text, tokenised as an assistant's message is: tokens that are not special, such as `<think>` and
/// `<tool_call>`, keep their ids, special ones are text. The id with which the template ends a turn is added (without one
/// the first stop id). What the turn's generation prompt has written of the text already, such as an empty thought, is
/// left out; the rest stands exactly as given. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_episode_replay_text(
    episode: *mut squire_episode,
    text: *const c_char,
    text_len: usize,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let episode = call.subject(episode)?;
            episode.replay(Replay::Text(input::text(text, text_len, "text")?))?;
            Ok(Outcome::Done)
        })
    }
}

/// The same with this turn's action from the demonstration in the episode's specification. SQUIRE_E_ARGUMENT if it has
/// none. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_episode_replay_stored(
    episode: *mut squire_episode,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            call.subject(episode)?.replay(Replay::Stored)?;
            Ok(Outcome::Done)
        })
    }
}

/// Says whether what the student proposed for this turn stands (settings with actor kind proposal), once it has spoken. decision
/// is filled: the student, whose outcome is due, or the teacher, which acts next while the proposal is dropped. Asked again it
/// answers the same. Where the teacher is the judge it computes the proposal and the call blocks; cancel (may be NULL) stops it with
/// SQUIRE_CANCELLED, and it may be judged again. SQUIRE_E_STATE where nothing was proposed, another call
/// judges, or the student was cancelled or failed before it had finished (squire_episode_override takes it as it stands, or drops
/// it for another actor); SQUIRE_E_BUSY while the student speaks, SQUIRE_E_DIVERGED where the judge's log-probs are no numbers, SQUIRE_E_BUDGET if the KV budget
/// runs out, SQUIRE_E_TEACHER where the host's teacher is the judge and fails or is silent. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_episode_judge(
    episode: *mut squire_episode,
    decision: *mut squire_decision,
    cancel: *const squire_cancel,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let episode = call.subject(episode)?;
            let cancel = call.optional(cancel)?.map(|c| c.clone()).unwrap_or_default();
            let to = options::fill(decision)?;
            to.set(squire_decision::of(&episode, episode.judge(&cancel)?));
            Ok(Outcome::Done)
        })
    }
}

/// Ends the turn, once its generation has ended. reward counts with SQUIRE_OUTCOME_HAS_REWARD in flags and must be a
/// number within +-1e9; SQUIRE_OUTCOME_EXECUTED_OTHER takes the turn out of the loss. SQUIRE_E_BUSY while the generation runs,
/// SQUIRE_E_STATE, SQUIRE_E_ARGUMENT. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_episode_outcome(
    episode: *mut squire_episode,
    reward: f64,
    flags: u32,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let episode = call.subject(episode)?;
            let known = SQUIRE_OUTCOME_HAS_REWARD | SQUIRE_OUTCOME_EXECUTED_OTHER;
            let flags = options::flags(flags, "flags", known)?;
            let reward = (flags & SQUIRE_OUTCOME_HAS_REWARD != 0).then_some(reward);
            episode.outcome(reward, flags & SQUIRE_OUTCOME_EXECUTED_OTHER == 0)?;
            Ok(Outcome::Done)
        })
    }
}

/// Ends the episode with the host's score, a number within +-1e9, and verdict: success 1, failure 0, not known -1. A
/// training episode then waits for an update, and what the teacher has not computed of it yet is computed in the rounds
/// of whoever else runs. SQUIRE_E_BUSY while a generation runs, SQUIRE_E_STATE, SQUIRE_E_ARGUMENT. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_episode_end(
    episode: *mut squire_episode,
    score: f64,
    success: i32,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe {
        guard(err, |call| {
            let episode = call.subject(episode)?;
            let success = options::choice(success, "success", &[(-1, None), (0, Some(false)), (1, Some(true))])?;
            episode.end(score, success)?;
            Ok(Outcome::Done)
        })
    }
}

/// The record so far, as a JSON object: episode, run, step, task, panel, task_seed, seed, revision, evaluation, forked_from (episode and turn, or
/// null), group, score, success, turns (actor, start, end, reason, probability, horizon, reward, kernel, weight, train, left_out: whether it was taken out of the loss, truncated: whether
/// a limit cut it off, ended_by: what ended it, "stop_id", "stop_string", "max_tokens", "context", "time", "cut_off" (a teacher of the host's said so), "cancelled", "failed", or null of a replay,
/// stop_string: the one that did, or null, from_text: whether its ids were made of a text of the teacher's, view: where it starts for the teacher, or null), views (start, end, ids: what the
/// teacher read in place of these tokens), phase (the
/// calls that are expected now), and arrays with an entry a token: ids, sources, logprobs, sampled_logprobs. Keys may be
/// added. SQUIRE_E_BUSY while a generation runs. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_episode_trace(
    episode: *const squire_episode,
    out: *mut *mut squire_text,
    err: *mut *mut squire_error,
) -> squire_status {
    // SAFETY: the conventions at the head of the header.
    unsafe { guard_out(out, err, |call| Ok(CText::new(&call.shared(episode)?.trace()?.to_string()))) }
}

/// Frees the episode; without squire_episode_end it is thrown away. Its generation may go on. NULL is allowed. Any thread,
/// also inside a callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn squire_episode_release(episode: *mut squire_episode) {
    // SAFETY: the conventions at the head of the header.
    unsafe { handle::release(episode) }
}
