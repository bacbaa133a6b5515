//! The record of one episode: every token with its source and log-probs, every turn with its decision
//! and the loss it will carry. It only grows, and each call keeps the invariants: one source and two
//! log-probs a token; turns in order, apart, never empty, never at position 0 (a first token has no
//! history to be predicted from); an action's tokens all from its actor.
//!
//! Two log-probs are kept for a sampled token, both in nats: the raw one (temperature 1, whole
//! vocabulary), which losses and teachers use, and that of the distribution actually sampled from.
//! Both are NaN where nothing was sampled.
#![forbid(unsafe_code)]

use super::actor::Actor;
use super::policy::Decision;
use super::run_id::RunId;
use super::turn_end::TurnEnd;
use super::turn_loss::TurnLoss;
use super::view::View;
use crate::error::{Error, Fault, Result};
use crate::text::source::Source;
use serde_json::{Value, json};
use std::ops::Range;

/// The largest number that an episode may be given. Far beyond use, and so far below the largest that counting on from it comes to no
/// number twice, and never to the one that stands for no episode.
pub const MOST_EPISODES: u64 = (1 << 63) - 1;

/// The largest reward or score, either way: the squares of many are numbers, and so are losses in 32 bits.
const LARGEST_REWARD: f64 = 1e9;

/// How far above 0 a log-prob may lie: another stack's rounding, not a probability above 1.
const ROUNDING: f32 = 1e-3;

/// One full response of an actor, without what follows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// Who wrote it.
    pub actor: Actor,
    /// Its positions in the trajectory.
    pub range: Range<usize>,
    /// The decision that led to it.
    pub decision: Decision,
    /// What the environment gave for it.
    pub reward: Option<f64>,
    /// The loss of its tokens.
    pub loss: TurnLoss,
    /// Whether its tokens carry that loss: there is one, the decision lets it, and nobody took the turn out.
    pub train: bool,
    /// Whether it was taken out: the host executed something other than what was said, or a fork leaves it to its parent.
    pub left_out: bool,
    /// Whether a limit cut it off: `max_tokens`, the end of the context, or of its time.
    pub truncated: bool,
    /// What ended it, where it was generated and that is known.
    pub ended_by: Option<TurnEnd>,
    /// Whether its ids were made here of a text of the teacher's, so that they may be others than those that it said.
    pub from_text: bool,
}

impl Turn {
    /// Takes the loss off it.
    fn leave_out(&mut self) {
        (self.train, self.left_out) = (false, true);
    }

    /// The same in a fork, which learns from it where `train` says so.
    fn shared_by_a_fork(&self, train: bool) -> Turn {
        let mut turn = self.clone();
        if !train {
            turn.leave_out();
        }
        turn
    }
}

/// An action as an actor hands it over.
#[derive(Clone, Copy, Debug)]
pub struct Action<'a> {
    /// Who wrote it.
    pub actor: Actor,
    /// Its token ids, the end marker included if it was sampled.
    pub ids: &'a [i32],
    /// Raw log-probs, one an id; empty where nothing was sampled or they are not known.
    pub logprobs: &'a [f32],
    /// Log-probs of the distribution sampled from; empty likewise.
    pub sampled_logprobs: &'a [f32],
    /// Whether it ended for want of room.
    pub truncated: bool,
    /// Whether the ids were made of a text.
    pub from_text: bool,
}

/// How an episode ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// The host's score.
    pub score: f64,
    /// The host's verdict, if it gave one.
    pub success: Option<bool>,
}

/// What an episode is called and where it stands in the run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heading {
    /// Identity of the episode.
    pub episode: u64,
    /// The run that it is of.
    pub run: RunId,
    /// The optimiser step at its begin.
    pub step: u64,
    /// The host's name of the task.
    pub task: String,
    /// The host's name of the episodes with which its rewards are compared; empty: those of its task.
    pub group: String,
    /// The host's name of the fixed set of tasks that the task is of.
    pub panel: String,
    /// The host's seed of the environment.
    pub task_seed: Option<u64>,
    /// Seed of its draws.
    pub seed: u64,
    /// Revision of the student that acts; the oldest one if the host rebased the episode.
    pub revision: u64,
    /// Evaluation episodes are never trained on.
    pub evaluation: bool,
    /// The episode that it was forked from, and the turn, counted from 0, with which its own part begins.
    pub forked_from: Option<(u64, u32)>,
}

impl Heading {
    /// Of which group it is: the named one, or its task's.
    pub fn group(&self) -> &str {
        if self.group.is_empty() { &self.task } else { &self.group }
    }
}

/// The record of one episode.
#[derive(Clone, Debug)]
pub struct Trajectory {
    /// What it is called and where it stands in the run.
    pub heading: Heading,
    ids: Vec<i32>,
    sources: Vec<Source>,
    logprobs: Vec<f32>,
    sampled_logprobs: Vec<f32>,
    turns: Vec<Turn>,
    /// of what is recorded
    view: View,
    outcome: Option<Outcome>,
}

impl Trajectory {
    /// An empty record.
    pub fn new(heading: Heading) -> Trajectory {
        Trajectory {
            heading,
            ids: Vec::new(),
            sources: Vec::new(),
            logprobs: Vec::new(),
            sampled_logprobs: Vec::new(),
            turns: Vec::new(),
            view: View::default(),
            outcome: None,
        }
    }

    /// The record of a fork: a copy up to the end of the first `n_turns` turns, which carry loss as they do here where `train`
    /// says so, and none otherwise.
    pub fn fork(&self, heading: Heading, n_turns: usize, train: bool) -> Trajectory {
        let turns = &self.turns[..n_turns.min(self.turns.len())];
        let n = turns.last().map_or(0, |turn| turn.range.end);
        Trajectory {
            heading,
            ids: self.ids[..n].to_vec(),
            sources: self.sources[..n].to_vec(),
            logprobs: self.logprobs[..n].to_vec(),
            sampled_logprobs: self.sampled_logprobs[..n].to_vec(),
            turns: turns.iter().map(|turn| turn.shared_by_a_fork(train)).collect(),
            view: turns.last().map_or_else(View::default, |turn| self.view.before(turn.range.start)),
            outcome: None,
        }
    }

    /// Adds tokens that no actor wrote: `source` is host or glue. [`Fault::BadOption`] for another
    /// source, [`Fault::IdOutOfRange`] for a negative id, [`Fault::OutOfOrder`] after the end.
    pub fn add_context(&mut self, ids: &[i32], source: Source) -> Result<()> {
        self.check_open()?;
        if source.is_action() {
            let message = format!("context must come from host or glue, found {}", source.name());
            return Err(Error::new(Fault::BadOption, message));
        }
        check_ids(ids)?;
        self.push(ids, source, &[], &[]);
        Ok(())
    }

    /// Adds a turn and returns its index. It will be trained if `decision` says so and `loss` is a loss.
    /// [`Fault::BadLength`] for an empty action, log-probs of another length, or a turn at position 0;
    /// [`Fault::IdOutOfRange`], [`Fault::OutOfOrder`] as above; [`Fault::BadValue`] where a log-prob is not a number of at most 0
    /// (within rounding). The student's must be there, others may be empty.
    pub fn add_turn(&mut self, action: &Action, decision: &Decision, loss: TurnLoss) -> Result<usize> {
        self.check_open()?;
        let (n, actor) = (action.ids.len(), action.actor);
        let refuse = |message: String| Err(Error::new(Fault::BadLength, message));
        if n == 0 {
            return refuse(format!("a turn needs at least one token, the {}'s has none", actor.name()));
        }
        if self.ids.is_empty() {
            return refuse("a turn needs at least one token before it, the trajectory is empty".to_string());
        }
        check_ids(action.ids)?;
        for (name, logprobs) in [("log-probs", action.logprobs), ("sampled log-probs", action.sampled_logprobs)] {
            let may_lack = actor != Actor::Student && logprobs.is_empty();
            if logprobs.len() != n && !may_lack {
                return refuse(format!("the {}'s turn of {n} tokens has {} {name}", actor.name(), logprobs.len()));
            }
            if let Some(i) = logprobs.iter().position(|&x| !x.is_finite() || x > ROUNDING) {
                let message = format!("{name}[{i}] must be a number of at most 0, found {}", logprobs[i]);
                return Err(Error::new(Fault::BadValue, message));
            }
        }
        let start = self.ids.len();
        self.push(action.ids, actor.source(), action.logprobs, action.sampled_logprobs);
        self.turns.push(Turn {
            actor,
            range: start..start + n,
            decision: *decision,
            reward: None,
            loss,
            train: decision.train_on_this && loss.kind.is_some(),
            left_out: false,
            truncated: action.truncated,
            ended_by: None,
            from_text: action.from_text,
        });
        Ok(self.turns.len() - 1)
    }

    /// Notes the reward of the last turn. [`Fault::OutOfOrder`] without a turn or after the end, [`Fault::BadValue`] if it is no
    /// number within +-1e9.
    pub fn reward(&mut self, reward: f64) -> Result<()> {
        check_reward("reward", reward)?;
        self.last_turn()?.reward = Some(reward);
        Ok(())
    }

    /// Notes what ended the last turn. [`Fault::OutOfOrder`] without a turn or after the end.
    pub fn ended_by(&mut self, end: TurnEnd) -> Result<()> {
        self.last_turn()?.ended_by = Some(end);
        Ok(())
    }

    /// Takes the loss off the last turn: the host executed something other than what the actor said.
    /// [`Fault::OutOfOrder`] without a turn or after the end.
    pub fn executed_otherwise(&mut self) -> Result<()> {
        self.last_turn()?.leave_out();
        Ok(())
    }

    /// Ends the episode. [`Fault::OutOfOrder`] a second time, [`Fault::BadValue`] if the score is no number within +-1e9.
    pub fn end(&mut self, outcome: Outcome) -> Result<()> {
        self.check_open()?;
        check_reward("score", outcome.score)?;
        self.outcome = Some(outcome);
        Ok(())
    }

    /// Token ids, `[T]`.
    pub fn ids(&self) -> &[i32] {
        &self.ids
    }

    /// Who wrote each token, `[T]`.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// Raw log-probs in nats, `[T]`, NaN where nothing was sampled.
    pub fn logprobs(&self) -> &[f32] {
        &self.logprobs
    }

    /// Log-probs of the distribution sampled from in nats, `[T]`, NaN where nothing was sampled.
    pub fn sampled_logprobs(&self) -> &[f32] {
        &self.sampled_logprobs
    }

    /// The turns, in order.
    pub fn turns(&self) -> &[Turn] {
        &self.turns
    }

    /// Turns that it shares with the episode from which it was forked.
    pub fn shared_turns(&self) -> usize {
        self.heading.forked_from.map_or(0, |(_, turn)| turn as usize).min(self.turns.len())
    }

    /// What the teacher read where that is not what the student read.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Notes what the teacher read of what is recorded.
    pub(super) fn seen_as(&mut self, view: View) {
        self.view = view;
    }

    /// Token ids as the teacher read them: those of actions are the same, and stand where [`View::position`] says.
    pub fn teacher_ids(&self) -> Result<Vec<i32>> {
        self.view.woven(&self.ids, |id| id)
    }

    /// How it ended; `None` while it runs.
    pub fn outcome(&self) -> Option<Outcome> {
        self.outcome
    }

    /// The record as JSON for a trace; log-probs that are not there become null.
    pub fn to_json(&self) -> Value {
        let sources: Vec<_> = self.sources.iter().map(|source| source.name()).collect();
        let mut facts = self.facts();
        facts["ids"] = json!(self.ids);
        facts["sources"] = json!(sources);
        facts["logprobs"] = json!(self.logprobs);
        facts["sampled_logprobs"] = json!(self.sampled_logprobs);
        facts
    }

    /// All but what is said of each token.
    pub fn facts(&self) -> Value {
        let heading = &self.heading;
        let turns: Vec<_> = self.turns.iter().map(|turn| turn_json(turn, &self.view)).collect();
        json!({
            "episode": heading.episode,
            "step": heading.step,
            "task": heading.task,
            "group": heading.group(),
            "panel": heading.panel,
            "task_seed": heading.task_seed,
            "run": heading.run,
            "seed": heading.seed,
            "revision": heading.revision,
            "evaluation": heading.evaluation,
            "forked_from": heading.forked_from.map(|(episode, turn)| json!({"episode": episode, "turn": turn})),
            "score": self.outcome.map(|outcome| outcome.score),
            "success": self.outcome.and_then(|outcome| outcome.success),
            "turns": turns,
            "views": self.view.to_json(),
        })
    }

    fn check_open(&self) -> Result<()> {
        match self.outcome {
            None => Ok(()),
            Some(_) => {
                let message = format!("episode {} has ended; begin a new one", self.heading.episode);
                Err(Error::new(Fault::OutOfOrder, message))
            }
        }
    }

    fn last_turn(&mut self) -> Result<&mut Turn> {
        self.check_open()?;
        let episode = self.heading.episode;
        let absent =
            || Error::new(Fault::OutOfOrder, format!("episode {episode} has no turn yet; act or replay first"));
        self.turns.last_mut().ok_or_else(absent)
    }

    fn push(&mut self, ids: &[i32], source: Source, logprobs: &[f32], sampled_logprobs: &[f32]) {
        self.ids.extend_from_slice(ids);
        let n = self.ids.len();
        self.sources.resize(n, source);
        self.logprobs.extend_from_slice(logprobs);
        self.logprobs.resize(n, f32::NAN);
        self.sampled_logprobs.extend_from_slice(sampled_logprobs);
        self.sampled_logprobs.resize(n, f32::NAN);
    }
}

fn turn_json(turn: &Turn, view: &View) -> Value {
    json!({
        "actor": turn.actor.name(),
        "start": turn.range.start,
        "end": turn.range.end,
        "reason": turn.decision.reason.text(),
        "probability": turn.decision.probability,
        "horizon": turn.decision.horizon,
        "reward": turn.reward,
        "kernel": turn.loss.name(),
        "weight": turn.loss.weight,
        "train": turn.train,
        "left_out": turn.left_out,
        "truncated": turn.truncated,
        "ended_by": turn.ended_by.as_ref().map(TurnEnd::name),
        "stop_string": turn.ended_by.as_ref().and_then(TurnEnd::stop_string),
        "from_text": turn.from_text,
        "view": view.turn_json(turn.range.start),
    })
}

/// One that is larger would make the loss of its whole batch no number.
pub(super) fn check_reward(what: &str, value: f64) -> Result<()> {
    if value.is_finite() && value.abs() <= LARGEST_REWARD {
        return Ok(());
    }
    Err(Error::new(Fault::BadValue, format!("a {what} must be a number from -1e9 to 1e9, found {value}")))
}

fn check_ids(ids: &[i32]) -> Result<()> {
    match ids.iter().position(|&id| id < 0) {
        None => Ok(()),
        Some(i) => Err(Error::new(Fault::IdOutOfRange, format!("token id {} at {i} is negative", ids[i]))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::policy::Reason;
    use super::*;

    fn heading() -> Heading {
        Heading {
            episode: 7,
            step: 3,
            task: "mug".into(),
            group: String::new(),
            seed: 42,
            revision: 5,
            evaluation: false,
            ..Heading::default()
        }
    }

    fn decision(train_on_this: bool) -> Decision {
        let (reason, horizon, probability) = (Reason::Curriculum, 4, 0.5);
        Decision { actor: Some(Actor::Student), reason, train_on_this, horizon, probability }
    }

    const LOSS: TurnLoss = TurnLoss { kind: Some(crate::backend::ops::Loss::ReverseKl), weight: 1.0 };

    fn student<'a>(ids: &'a [i32], logprobs: &'a [f32]) -> Action<'a> {
        Action { actor: Actor::Student, ids, logprobs, sampled_logprobs: logprobs, truncated: false, from_text: false }
    }

    fn begun() -> Trajectory {
        let mut t = Trajectory::new(heading());
        t.add_context(&[1, 2], Source::Host).unwrap();
        t
    }

    /// The fault of a turn that must be refused, and that the record stayed as it was.
    fn refused(t: &mut Trajectory, action: &Action) -> Fault {
        let before = t.to_json();
        let fault = t.add_turn(action, &decision(true), LOSS).unwrap_err().fault();
        assert_eq!(t.to_json(), before);
        fault
    }

    #[test]
    fn every_token_has_a_source_and_two_logprobs() {
        let mut t = begun();
        t.add_turn(&student(&[3, 4], &[-0.5, -1.5]), &decision(true), LOSS).unwrap();
        t.add_context(&[5], Source::Glue).unwrap();
        let replay = Action {
            actor: Actor::Replay,
            ids: &[6],
            logprobs: &[],
            sampled_logprobs: &[],
            truncated: false,
            from_text: false,
        };
        assert_eq!(t.add_turn(&replay, &decision(false), LOSS).unwrap(), 1);
        use Source::*;
        assert_eq!(t.ids(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(t.sources(), [Host, Host, Student, Student, Glue, Replay]);
        assert_eq!((t.logprobs().len(), t.sampled_logprobs().len()), (6, 6));
        assert_eq!(t.logprobs()[2..4], [-0.5, -1.5]);
        assert!([0, 1, 4, 5].iter().all(|&i| t.logprobs()[i].is_nan() && t.sampled_logprobs()[i].is_nan()));
        let ranges: Vec<_> = t.turns().iter().map(|turn| (turn.range.clone(), turn.train)).collect();
        assert_eq!(ranges, [(2..4, true), (5..6, false)]);
    }

    #[test]
    fn a_turn_without_a_loss_kernel_is_not_trained() {
        let mut t = begun();
        let silent = TurnLoss { kind: None, weight: 1.0 };
        t.add_turn(&student(&[3], &[-0.5]), &decision(true), silent).unwrap();
        assert!(!t.turns()[0].train);
    }

    #[test]
    fn a_turn_that_was_not_executed_as_said_is_not_trained() {
        let mut t = begun();
        t.add_turn(&student(&[3], &[-0.5]), &decision(true), LOSS).unwrap();
        t.executed_otherwise().unwrap();
        assert!(!t.turns()[0].train);
    }

    #[test]
    fn an_empty_turn_or_one_without_history_is_refused() {
        assert_eq!(refused(&mut begun(), &student(&[], &[])), Fault::BadLength);
        assert_eq!(refused(&mut Trajectory::new(heading()), &student(&[3], &[-1.0])), Fault::BadLength);
    }

    #[test]
    fn logprobs_of_another_length_are_refused() {
        assert_eq!(refused(&mut begun(), &student(&[3, 4], &[-1.0])), Fault::BadLength);
        assert_eq!(refused(&mut begun(), &student(&[3], &[])), Fault::BadLength);
        let teacher = Action {
            actor: Actor::Teacher,
            ids: &[3, 4],
            logprobs: &[],
            sampled_logprobs: &[-1.0],
            truncated: false,
            from_text: false,
        };
        assert_eq!(refused(&mut begun(), &teacher), Fault::BadLength);
    }

    #[test]
    fn logprobs_that_are_no_logprobs_are_refused() {
        for x in [f32::NAN, f32::NEG_INFINITY, 0.5] {
            assert_eq!(refused(&mut begun(), &student(&[3], &[x])), Fault::BadValue);
        }
    }

    #[test]
    fn negative_ids_and_forged_sources_are_refused() {
        assert_eq!(refused(&mut begun(), &student(&[-1], &[-1.0])), Fault::IdOutOfRange);
        assert_eq!(begun().add_context(&[3, -4], Source::Host).unwrap_err().fault(), Fault::IdOutOfRange);
        assert_eq!(begun().add_context(&[3], Source::Student).unwrap_err().fault(), Fault::BadOption);
    }

    #[test]
    fn nothing_is_added_after_the_end() {
        let mut t = begun();
        assert_eq!(t.reward(1.0).unwrap_err().message(), "episode 7 has no turn yet; act or replay first");
        t.add_turn(&student(&[3], &[-0.5]), &decision(true), LOSS).unwrap();
        for x in [f64::NAN, f64::INFINITY, 1.1e9, -1e300] {
            assert_eq!(t.reward(x).unwrap_err().fault(), Fault::BadValue);
            let e = t.end(Outcome { score: x, success: None }).unwrap_err();
            assert_eq!(e.message(), format!("a score must be a number from -1e9 to 1e9, found {x}"));
        }
        let outcome = Outcome { score: 1.0, success: Some(true) };
        t.end(outcome).unwrap();
        for result in [t.end(outcome), t.reward(1.0), t.executed_otherwise(), t.add_context(&[1], Source::Glue)] {
            assert_eq!(result.unwrap_err().fault(), Fault::OutOfOrder);
        }
        assert_eq!(refused(&mut t, &student(&[3], &[-0.5])), Fault::OutOfOrder);
    }

    #[test]
    fn the_trace_holds_the_record() {
        let mut t = begun();
        t.add_turn(&student(&[3], &[-0.5]), &decision(true), LOSS).unwrap();
        t.reward(0.25).unwrap();
        t.end(Outcome { score: 1.0, success: None }).unwrap();
        let trace = t.to_json();
        assert_eq!(trace["ids"], json!([1, 2, 3]));
        assert_eq!(trace["sources"], json!(["host", "host", "student"]));
        assert_eq!(trace["logprobs"], json!([null, null, -0.5]));
        assert_eq!((&trace["score"], &trace["success"]), (&json!(1.0), &Value::Null));
        let turn = &trace["turns"][0];
        assert_eq!(
            (&turn["actor"], &turn["kernel"], &turn["reward"]),
            (&json!("student"), &json!("reverse-kl"), &json!(0.25))
        );
        assert_eq!((&turn["start"], &turn["end"], &turn["train"]), (&json!(2), &json!(3), &json!(true)));
    }
}
