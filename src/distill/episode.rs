//! One run of the host's environment: begin, observe, decide, act or replay, outcome, end.
//!
//! The host owns the loop; an episode only says who acts and writes down what happened. Student and
//! teacher each have a timeline of their own with the same ids: whoever did not act gets the actor's
//! exact ids, so nothing sampled is tokenised again and a teacher computes each token once.
#![forbid(unsafe_code)]

use std::sync::Arc;

use serde_json::{Value, json};

use super::actor::Actor;
use super::asked_turn::AskedTurn;
use super::config::Config;
use super::conversation::Conversation;
use super::distiller::Distiller;
use super::ended::Ended;
use super::policy::{DecideInput, Decision, Reason, decide};
use super::scoring::Scoring;
use super::shown::{Shown, shown_nothing};
use super::spec::EpisodeSpec;
use super::spoken::Spoken;
use super::teacher;
use super::trajectory::{Action, Heading, Outcome, Trajectory, check_reward};
use super::turn_end::{Asked, TurnEnd};
use crate::backend::cpu::FloatEnv;
use crate::error::{Error, Fault, Result};
use crate::serve::{Ending, Mark, Session, Token};
use crate::sync::Mutex;
use crate::text::source::Source;
use crate::text::{Json, RenderOptions};

/// Where an episode stands: what happened last.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Phase {
    /// It began, or a turn's outcome was given: an observation is due.
    Open,
    /// Something was observed: more of it, or the decision.
    Observed,
    /// It is decided who acts.
    Decided(Decision),
    /// The actor generates, or has generated.
    Acting(Decision),
    /// The actor's generation failed after it had said something, which stands.
    Broken(Decision),
    /// What the student proposed is being judged by a call that waits for the teacher.
    Judging(Decision),
    /// The turn is written down: its outcome is due.
    Acted,
    /// It ended.
    Ended,
}

impl Phase {
    /// What the host may call now.
    fn expected(self) -> &'static str {
        match self {
            Phase::Open => "observe, or end",
            Phase::Observed => "observe, decide, or end",
            Phase::Decided(d) => match d.actor {
                Some(Actor::Replay) => "replay, override, or end",
                Some(_) => "act, override, or end",
                None => "end",
            },
            Phase::Acting(d) if d.reason == Reason::Proposal => {
                "judge or override, once the generation has ended, or act again where it was cancelled"
            }
            Phase::Broken(d) if d.reason == Reason::Proposal => {
                "act again, override, or end without what was said before the failure"
            }
            Phase::Acting(_) => "outcome, once the generation has ended, or act again where it was cancelled",
            Phase::Broken(_) => "act again, override, outcome of what was said before the failure, or end without it",
            Phase::Judging(_) => "nothing, until the proposal is judged",
            Phase::Acted => "outcome",
            Phase::Ended => "nothing: the episode has ended",
        }
    }
}

/// An episode. Dropped without an end, it is thrown away.
pub struct Episode {
    pub(super) distiller: Distiller,
    pub(super) state: Mutex<State>,
}

pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) trajectory: Trajectory,
    /// None once the episode has ended: an ended episode holds no pages and no revision
    pub(super) sessions: Option<Sessions>,
    /// where the turn under way starts, once its generation prompt stands
    pub(super) start: Option<usize>,
    /// of each turn, as far as something was observed for it
    pub(super) seen: Vec<Seen>,
    /// what the teacher was shown so far
    pub(super) shown: Shown,
    /// how the last generation ended
    pub(super) ending: Option<Ending>,
    /// what it was asked to end by
    pub(super) asked: Asked,
    /// the turn that the host's teacher was asked for last
    pub(super) asked_turn: Option<Arc<AskedTurn>>,
    /// what was said so far, where the host's teacher acts
    pub(super) conversation: Option<Conversation>,
    /// whether the student's turns carry loss, where it takes those that the teacher fails to take
    pub(super) steps_in: Option<bool>,
    /// what prompts are rendered with unless a turn says otherwise
    pub(super) prompt: Arc<RenderOptions>,
    pub(super) demonstration: Option<Arc<Vec<String>>>,
    pub(super) max_turns: u32,
    pub(super) turn: u32,
    /// what the teacher had computed when the episode ended
    pub(super) teacher_computed: u64,
}

/// What an actor sees before its turn.
#[derive(Clone)]
pub(super) struct Seen {
    /// the end of it, before the turn's generation prompt
    pub(super) end: Mark,
    /// what the turn's messages and its generation prompt are rendered with
    pub(super) prompt: Arc<RenderOptions>,
    /// whether the last of it was ids, which may have begun the actor's turn already
    pub(super) by_ids: bool,
    /// messages of the conversation by then, if it was one
    pub(super) n_messages: Option<usize>,
    /// what the teacher was shown by then
    pub(super) shown: Shown,
}

/// The sessions of those who can act.
pub(super) struct Sessions {
    pub(super) student: Session,
    pub(super) teacher: Option<Session>,
}

impl State {
    pub(super) fn sessions(&self) -> Result<&Sessions> {
        self.sessions.as_ref().ok_or_else(|| out_of_order("this", Phase::Ended))
    }

    pub(super) fn student(&self) -> Result<&Session> {
        Ok(&self.sessions()?.student)
    }

    /// The phase. A generation that ended before its first token leaves the turn to be acted still; one that failed later
    /// leaves what was said, to be gone on with or dropped.
    pub(super) fn phase(&mut self) -> Result<Phase> {
        if let Phase::Acting(decision) = self.phase {
            let (tokens, start) = self.timeline()?;
            if tokens.len() == start {
                self.phase = Phase::Decided(self.after_silence(decision));
            } else if self.ending.as_ref().is_some_and(Ending::failed) {
                self.phase = Phase::Broken(decision);
            }
        }
        Ok(self.phase)
    }

    /// Who takes a turn of which nothing was said: whoever was to, unless the teacher failed and the settings have the student step
    /// in. A turn that the host gave to the teacher stays the teacher's.
    fn after_silence(&self, decision: Decision) -> Decision {
        let failed = self.ending.as_ref().is_some_and(Ending::failed);
        match self.steps_in {
            Some(trains) if failed => stepped_in(decision, trains),
            _ => decision,
        }
    }

    /// The same for calls that are out of order while somebody speaks, which keeps the timeline busy.
    pub(super) fn phase_or_last(&mut self) -> Phase {
        self.phase().unwrap_or(self.phase)
    }

    /// Appends the generation prompt, where the model has a template, and returns where the turn starts.
    /// Once a turn: whoever acts after a refusal or an override finds the prompt standing.
    pub(super) fn begin_turn(&mut self) -> Result<usize> {
        if let Some(start) = self.start {
            return Ok(start);
        }
        let student = self.student()?;
        let mut prompts = None;
        if student.model().template().is_ok()
            && !(self.observed_ids() && student.turn_is_begun(self.trajectory.ids().len(), self.prompt())?)
        {
            let prompt = RenderOptions { add_generation_prompt: true, ..RenderOptions::clone(self.prompt()) };
            let theirs = self.shown.prompt(student, &prompt)?;
            if theirs.as_ref().is_some_and(Vec::is_empty) && self.shown.view.position(student.len()?) == 0 {
                return Err(shown_nothing());
            }
            prompts = Some((student.append_chat(Json::List(Vec::new()), &prompt)?, theirs));
        }
        let start = student.len()?;
        if let Some((own, theirs)) = prompts {
            self.shown.show(start, &own.iter().map(|token| token.id).collect::<Vec<_>>(), theirs);
        }
        self.shown.begin_turn(start);
        self.start = Some(start);
        Ok(start)
    }

    /// What a turn's next messages are rendered with unless they say otherwise: what holds for the turn already, or for
    /// the episode.
    pub(super) fn prompt(&self) -> &Arc<RenderOptions> {
        self.seen.get(self.turn as usize).map_or(&self.prompt, |seen| &seen.prompt)
    }

    /// Whether the turn's last observation was ids.
    fn observed_ids(&self) -> bool {
        self.seen.get(self.turn as usize).is_some_and(|seen| seen.by_ids)
    }

    /// Drops what was said in the turn under way; the generation prompt stays.
    pub(super) fn discard_turn(&self) -> Result<()> {
        let (Some(start), Sessions { student, teacher }) = (self.start, self.sessions()?) else { return Ok(()) };
        let theirs = teacher.iter().map(|teacher| (teacher, self.shown.view.position(start)));
        for (actor, start) in theirs.chain([(student, start)]) {
            if actor.len()? > start {
                actor.truncate(start)?;
            }
        }
        Ok(())
    }

    /// The timeline with what the actor has said in the turn under way, and where that starts.
    pub(super) fn timeline(&self) -> Result<(Vec<Token>, usize)> {
        let Sessions { student, teacher } = self.sessions()?;
        let mut tokens = student.tokens()?;
        let start = self.start.unwrap_or(tokens.len());
        let teacher_said = matches!(self.phase, Phase::Acting(d) | Phase::Broken(d) if d.actor == Some(Actor::Teacher));
        match (teacher, &self.asked_turn) {
            (Some(teacher), _) if teacher_said => {
                let (said, from) = (teacher.tokens()?, self.shown.view.position(tokens.len()));
                tokens.extend_from_slice(&said[from.min(said.len())..]);
            }
            (None, Some(asked)) if teacher_said => tokens.extend(asked.said()?),
            _ => {}
        }
        Ok((tokens, start))
    }

    /// Whether the turn under way is a text of the teacher's.
    fn is_from_text(&self, decision: &Decision) -> bool {
        decision.actor == Some(Actor::Teacher) && self.asked_turn.as_ref().is_some_and(|asked| asked.is_from_text())
    }

    /// Whether whoever speaks in the turn under way was stopped before it had finished.
    pub(super) fn was_stopped(&self) -> bool {
        self.ending.as_ref().is_some_and(Ending::was_stopped)
    }

    /// What ended the turn under way, of `n` tokens; None where nobody generated it.
    fn ended_by(&self, decision: &Decision, n: usize) -> Option<TurnEnd> {
        let ending = self.ending.as_ref().filter(|_| decision.actor != Some(Actor::Replay))?;
        self.asked.ended_by(ending, n, self.is_from_text(decision))
    }

    /// Writes the turn under way down.
    fn write_down(&mut self, decision: Decision, config: &Config) -> Result<()> {
        let (tokens, start) = self.timeline()?;
        let Sessions { student, teacher } = self.sessions()?;
        student.append_tokens(&tokens[student.len()?..])?;
        if let Some(teacher) = teacher {
            self.shown.catch_up(teacher, student)?;
        }
        let how = (self.ended_by(&decision, tokens.len() - start), self.is_from_text(&decision));
        let model = student.model().clone();
        record(&mut self.trajectory, (&tokens, start, &self.shown), &decision, (config, how))?;
        let ids: Vec<i32> = tokens[start..].iter().map(|token| token.id).collect();
        if let (Some(conversation), Ok(tokenizer)) = (&mut self.conversation, model.tokenizer()) {
            conversation.say(tokenizer.decode(&ids, true));
        }
        (self.phase, self.start) = (Phase::Acted, None);
        Ok(())
    }

    /// The record, with the turn under way as far as it is said. Refused as busy while it is being said.
    fn view(&self, config: &Config) -> Result<Trajectory> {
        let mut trajectory = self.trajectory.clone();
        if let Phase::Acting(decision) | Phase::Broken(decision) | Phase::Judging(decision) = self.phase {
            let (tokens, start) = self.timeline()?;
            if tokens.len() > start {
                let how = (self.ended_by(&decision, tokens.len() - start), self.is_from_text(&decision));
                record(&mut trajectory, (&tokens, start, &self.shown), &decision, (config, how))?;
            }
        }
        Ok(trajectory)
    }
}

/// What a replayed turn consists of.
#[derive(Clone, Copy, Debug)]
pub enum Replay<'a> {
    /// The demonstration's action for this turn, from the specification.
    Stored,
    /// These ids, the end of turn included.
    Ids(&'a [i32]),
    /// This text, tokenised as an assistant's message: tokens that are not special keep their ids (`<think>`), special
    /// ones are text. What the generation prompt has written of it already, such as an empty thought, is left out. The id
    /// with which the template ends a turn is added, without one the first stop id.
    Text(&'a str),
}

impl Distiller {
    /// Begins an episode on the student's current revision.
    pub fn begin(&self, spec: EpisodeSpec) -> Result<Episode> {
        Episode::begin(self, spec)
    }
}

impl Drop for Episode {
    fn drop(&mut self) {
        let state = self.state.lock();
        if !matches!(state.phase, Phase::Ended) {
            self.distiller.given_up(&state.trajectory.heading);
        }
    }
}

impl Episode {
    pub(super) fn begin(distiller: &Distiller, spec: EpisodeSpec) -> Result<Episode> {
        spec.check(distiller.config())?;
        let student = Session::new(distiller.student())?;
        let teacher = match distiller.teacher() {
            Some(t) if !spec.evaluation => {
                let session = teacher::session(t, distiller.config())?;
                session.keep_hidden()?;
                Some(session)
            }
            _ => None,
        };
        let shown = Shown::new(distiller, spec.evaluation, spec.teacher_prefix.clone())?;
        // Last, so that a begin that is refused takes no number: the draws of later episodes are keyed by theirs.
        let heading = distiller.heading(&spec, student.revision().number);
        let state = State {
            phase: Phase::Open,
            trajectory: Trajectory::new(heading),
            sessions: Some(Sessions { student, teacher }),
            start: None,
            seen: Vec::new(),
            shown,
            ending: None,
            asked: Asked::default(),
            asked_turn: None,
            conversation: (distiller.acting_queue().is_some() && !spec.evaluation)
                .then(|| Conversation::new(spec.teacher_prefix.clone().unwrap_or_default())),
            steps_in: distiller.config().student_steps_in(),
            prompt: Arc::new(spec.prompt),
            demonstration: spec.demonstration.map(Arc::new),
            max_turns: spec.max_turns.unwrap_or(distiller.config().max_turns),
            turn: 0,
            teacher_computed: 0,
        };
        Ok(Episode { distiller: distiller.clone(), state: Mutex::new(state) })
    }

    /// The distiller it belongs to.
    pub fn distiller(&self) -> &Distiller {
        &self.distiller
    }

    /// What it is called and where it stands in the run; the revision is the one that the student acts with.
    pub fn heading(&self) -> Heading {
        self.state.lock().trajectory.heading.clone()
    }

    /// The turn that is decided or acted now, or is next, counted from 0.
    pub fn turn(&self) -> u32 {
        self.state.lock().turn
    }

    /// Decides who acts. No model work; the same answer for the same (seed, episode, turn, step). Asked
    /// again before anybody acts, it answers the same.
    pub fn decide(&self) -> Result<Decision> {
        let mut state = self.state.lock();
        match state.phase()? {
            Phase::Observed => self.decide_for(&mut state, None),
            Phase::Decided(decision) | Phase::Broken(decision) => Ok(decision),
            phase => Err(out_of_order("decide", phase)),
        }
    }

    /// Lets `actor` act in this turn, whatever the curriculum says. Of a proposal that nobody can judge the student's is taken as
    /// it stands, and for another actor it is dropped.
    pub fn override_actor(&self, actor: Actor) -> Result<Decision> {
        let mut state = self.state.lock();
        match state.phase()? {
            Phase::Observed | Phase::Decided(_) => self.decide_for(&mut state, Some(actor)),
            Phase::Broken(_) => {
                let decision = self.decide_for(&mut state, Some(actor))?;
                state.discard_turn()?;
                Ok(decision)
            }
            Phase::Acting(proposed) if proposed.reason == Reason::Proposal => {
                let decision = self.decide_for(&mut state, Some(actor))?;
                match actor {
                    Actor::Student => state.phase = Phase::Acting(decision),
                    _ => state.discard_turn()?,
                }
                Ok(decision)
            }
            phase => Err(out_of_order("override", phase)),
        }
    }

    fn decide_for(&self, state: &mut State, asked: Option<Actor>) -> Result<Decision> {
        // The teacher's share is a number of a schedule.
        let _floats = FloatEnv::scalars();
        let heading = &state.trajectory.heading;
        let input = DecideInput {
            seed: self.distiller.config().seed,
            episode: heading.episode,
            turn: state.turn,
            step: heading.step,
            evaluation: heading.evaluation,
            has_teacher: state.sessions()?.teacher.is_some()
                || (!heading.evaluation && self.distiller.acting_queue().is_some()),
            // A host that replays brings its action when it is asked; a stored demonstration has an end.
            replay_available: state.demonstration.as_ref().is_none_or(|d| d.len() > state.turn as usize),
            demonstration: state.demonstration.as_ref().map_or(0, |d| d.len() as u32),
            teacher_spent: self.distiller.teacher_spent(),
            asked,
            max_turns: state.max_turns,
        };
        let decision = decide(self.distiller.config(), &input)?;
        if decision.actor.is_some() && state.start.is_none() {
            let seen = (state.trajectory.ids().len(), state.observed_ids());
            state.shown.check_opening(state.student()?, seen, state.prompt())?;
        }
        state.phase = Phase::Decided(decision);
        Ok(decision)
    }

    /// Writes down an action that nobody sampled here as this turn.
    pub fn replay(&self, action: Replay) -> Result<()> {
        let mut state = self.state.lock();
        let decision = match state.phase_or_last() {
            Phase::Decided(d) if d.actor == Some(Actor::Replay) => d,
            phase => return Err(out_of_order("replay", phase)),
        };
        let stored;
        let action = match action {
            Replay::Stored => {
                let none =
                    || Error::new(Fault::BadValue, "the episode's specification has no demonstration for this turn");
                let text = state.demonstration.as_ref().and_then(|d| d.get(state.turn as usize)).ok_or_else(none)?;
                stored = text.clone();
                Replay::Text(&stored)
            }
            other => other,
        };
        let spoken = |before| Spoken::new(self.distiller.student(), state.prompt(), before);
        let mut ids = match action {
            Replay::Ids(ids) => ids.to_vec(),
            // Before anything changes: what cannot be said is refused, wherever it was to stand.
            Replay::Text(text) => spoken(Vec::new()).ids(text, true, self.distiller.student().model().max_context())?,
            Replay::Stored => Vec::new(),
        };
        if ids.is_empty() {
            return Err(Error::new(Fault::BadLength, "a replayed action needs at least one token"));
        }
        self.distiller.check_shared(&ids)?;
        if state.begin_turn()? == 0 {
            return Err(Error::new(Fault::BadLength, "a replayed action needs at least one token before it"));
        }
        if let Replay::Text(text) = action {
            let before = state.student()?.tokens()?.iter().map(|t| t.id).collect();
            ids = Spoken::new(self.distiller.student(), state.prompt(), before).ids(
                text,
                true,
                self.distiller.student().model().max_context(),
            )?;
        }
        let student = state.student()?;
        state.shown.check_room(student.len()?, ids.len())?;
        student.append(&ids, Source::Replay)?;
        state.write_down(decision, self.distiller.config())
    }

    /// Ends the turn: its reward, if the environment gives one, and whether the host executed what was
    /// said (`executed` false takes the turn out of the loss).
    pub fn outcome(&self, reward: Option<f64>, executed: bool) -> Result<()> {
        // Refused, nothing has changed.
        reward.map_or(Ok(()), |reward| check_reward("reward", reward))?;
        let mut state = self.state.lock();
        match state.phase()? {
            phase @ (Phase::Acting(d) | Phase::Broken(d)) if d.reason == Reason::Proposal => {
                return Err(out_of_order("outcome", phase));
            }
            Phase::Acting(decision) | Phase::Broken(decision) => {
                state.write_down(decision, self.distiller.config())?;
                let turn = state.trajectory.turns().last();
                if let Some(turn) = turn.filter(|turn| turn.actor == Actor::Teacher) {
                    self.distiller.teacher_said(turn.range.len() as u64);
                }
            }
            Phase::Acted => {}
            phase => return Err(out_of_order("outcome", phase)),
        }
        if let Some(reward) = reward {
            state.trajectory.reward(reward)?;
        }
        if !executed {
            state.trajectory.executed_otherwise()?;
        }
        state.phase = Phase::Open;
        state.turn += 1;
        Ok(())
    }

    /// Ends the episode with the host's score and verdict. A training episode then waits for an update.
    pub fn end(&self, score: f64, success: Option<bool>) -> Result<()> {
        let mut state = self.state.lock();
        match state.phase()? {
            Phase::Open | Phase::Observed | Phase::Decided(_) | Phase::Broken(_) => {}
            phase => return Err(out_of_order("end", phase)),
        }
        let mut trajectory = state.trajectory.clone();
        trajectory.end(Outcome { score, success })?;
        let teacher_computed = state.sessions()?.teacher.as_ref().map_or(Ok(0), Session::n_computed)?;
        // The teacher computes what it has not seen of the turns that it scores, up to the row that predicts
        // their last token, in the rounds of whoever else is running.
        let scored = trajectory.turns().iter().rfind(|t| t.train && t.loss.needs_teacher());
        let next = match (&state.sessions()?.teacher, scored) {
            (Some(teacher), Some(turn)) => {
                teacher.truncate(trajectory.view().position(turn.range.end - 1))?;
                Some(turn.actor.source())
            }
            _ => None,
        };
        // Refused, the episode has not ended.
        let engine = self.distiller.student().engine();
        let asked = match self.distiller.teacher_queue() {
            Some(queue) if !trajectory.heading.evaluation => {
                Scoring::queue(queue, engine, (self.distiller.number(), &trajectory), self.distiller.vocabulary())?
            }
            _ => None,
        };
        let summary = self.distiller.record_episode(&trajectory)?;
        state.teacher_computed = teacher_computed;
        state.trajectory = trajectory.clone();
        state.phase = Phase::Ended;
        let teacher = state.sessions.take().and_then(|sessions| sessions.teacher);
        let scoring = asked.or_else(|| teacher.zip(next).map(|(teacher, next)| Scoring::local(engine, teacher, next)));
        self.distiller.ended(Ended::Waiting { trajectory, scoring });
        // The host may be told of metrics that cannot be written, and ask the episode meanwhile.
        drop(state);
        if let Some(summary) = summary {
            self.distiller.note("episode", || summary);
        }
        Ok(())
    }

    /// The record so far.
    pub fn trace(&self) -> Result<Value> {
        let mut state = self.state.lock();
        let phase = state.phase()?;
        let mut trace = state.view(self.distiller.config())?.to_json();
        trace["phase"] = json!(phase.expected());
        Ok(trace)
    }

    /// A copy of the record so far.
    pub fn trajectory(&self) -> Result<Trajectory> {
        self.state.lock().view(self.distiller.config())
    }

    /// Rows that the teacher has computed for this episode; those it computes after the end are not counted.
    pub fn teacher_computed(&self) -> Result<u64> {
        let state = self.state.lock();
        match &state.sessions {
            Some(Sessions { teacher: Some(teacher), .. }) => teacher.n_computed(),
            _ => Ok(state.teacher_computed),
        }
    }
}

/// Adds to a record the context between its end and `start`, and the turn that stands from there on.
fn record(
    trajectory: &mut Trajectory,
    (tokens, start, shown): (&[Token], usize, &Shown),
    decision: &Decision,
    (config, (ended_by, from_text)): (&Config, (Option<TurnEnd>, bool)),
) -> Result<()> {
    let (context, turn) = (&tokens[trajectory.ids().len()..start], &tokens[start..]);
    let actor = decision.actor.ok_or_else(|| out_of_order("outcome", Phase::Decided(*decision)))?;
    let (mut logprobs, mut sampled_logprobs) = (Vec::new(), Vec::new());
    // A teacher of the host's may have told none, or none of what it drew from.
    let told = |of: fn(&Token) -> f32| actor != Actor::Teacher || turn.iter().all(|t| !of(t).is_nan());
    if actor != Actor::Replay && told(|t| t.logprob) {
        logprobs.extend(turn.iter().map(|t| t.logprob));
    }
    if actor != Actor::Replay && told(|t| t.sampled_logprob) {
        sampled_logprobs.extend(turn.iter().map(|t| t.sampled_logprob));
    }
    for run in context.chunk_by(|a, b| a.source == b.source) {
        trajectory.add_context(&run.iter().map(|t| t.id).collect::<Vec<_>>(), run[0].source)?;
    }
    let ids: Vec<i32> = turn.iter().map(|t| t.id).collect();
    let truncated = ended_by.as_ref().is_some_and(TurnEnd::is_cut_off);
    let action =
        Action { actor, ids: &ids, logprobs: &logprobs, sampled_logprobs: &sampled_logprobs, truncated, from_text };
    let loss = config.loss_at(actor, trajectory.heading.step);
    trajectory.add_turn(&action, decision, loss)?;
    if let Some(end) = ended_by {
        trajectory.ended_by(end)?;
    }
    trajectory.seen_as(shown.view.clone());
    Ok(())
}

/// A teacher's turn that the student takes; one that the host gave to the teacher stays as it is.
pub(super) fn stepped_in(decision: Decision, trains: bool) -> Decision {
    match (decision.actor, decision.reason) {
        (_, Reason::HostOverride) => decision,
        (Some(Actor::Teacher), _) => {
            Decision { actor: Some(Actor::Student), reason: Reason::TeacherFailed, train_on_this: trains, ..decision }
        }
        _ => decision,
    }
}

pub(super) fn out_of_order(call: &str, phase: Phase) -> Error {
    Error::new(Fault::OutOfOrder, format!("{call} is out of order; expected now: {}", phase.expected()))
}
