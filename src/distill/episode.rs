//! One run of the host's environment: begin, observe, decide, act or replay, outcome, end.
//!
//! The host owns the loop; an episode only says who acts and writes down what happened. Student and
//! teacher each have a timeline of their own with the same ids: whoever did not act gets the actor's
//! exact ids, so nothing sampled is tokenised again and a teacher computes each token once.
#![forbid(unsafe_code)]

use std::sync::Arc;

use serde_json::{Value, json};

use super::actor::Actor;
use super::config::Config;
use super::distiller::Distiller;
use super::ended::Ended;
use super::policy::{DecideInput, Decision, Reason, decide};
use super::scoring::Scoring;
use super::shown::{Shown, shown_nothing};
use super::spec::EpisodeSpec;
use super::teacher;
use super::trajectory::{Action, Heading, Outcome, Trajectory, check_reward};
use crate::backend::cpu::FloatEnv;
use crate::backend::ops::Sampling;
use crate::error::{Error, Fault, Result};
use crate::random::{Stream, bits};
use crate::serve::{Ending, Generation, GenerationOptions, Mark, Session, Token};
use crate::sync::Mutex;
use crate::text::source::Source;
use crate::text::tokenizer::{Control, Room};
use crate::text::{Json, RenderOptions, Watch, unsaid};

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
                self.phase = Phase::Decided(decision);
            } else if self.ending.as_ref().is_some_and(Ending::failed) {
                self.phase = Phase::Broken(decision);
            }
        }
        Ok(self.phase)
    }

    /// The same for calls that are out of order while somebody speaks, which keeps the timeline busy.
    pub(super) fn phase_or_last(&mut self) -> Phase {
        self.phase().unwrap_or(self.phase)
    }

    /// Appends the generation prompt, where the model has a template, and returns where the turn starts.
    /// Once a turn: whoever acts after a refusal or an override finds the prompt standing.
    fn begin_turn(&mut self) -> Result<usize> {
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
        if let (true, Some(teacher)) = (teacher_said, teacher) {
            let (said, from) = (teacher.tokens()?, self.shown.view.position(tokens.len()));
            tokens.extend_from_slice(&said[from.min(said.len())..]);
        }
        Ok((tokens, start))
    }

    /// Whether whoever speaks in the turn under way was stopped before it had finished.
    pub(super) fn was_stopped(&self) -> bool {
        self.ending.as_ref().is_some_and(Ending::was_stopped)
    }

    /// Whether the turn under way ended for want of room.
    fn was_cut_off(&self) -> bool {
        self.ending.as_ref().is_some_and(Ending::was_cut_off)
    }

    /// Writes the turn under way down.
    fn write_down(&mut self, decision: Decision, config: &Config) -> Result<()> {
        let (tokens, start) = self.timeline()?;
        let Sessions { student, teacher } = self.sessions()?;
        student.append_tokens(&tokens[student.len()?..])?;
        if let Some(teacher) = teacher {
            self.shown.catch_up(teacher, student)?;
        }
        let was_cut_off = self.was_cut_off();
        record(&mut self.trajectory, (&tokens, start, &self.shown), &decision, (config, was_cut_off))?;
        (self.phase, self.start) = (Phase::Acted, None);
        Ok(())
    }

    /// The record, with the turn under way as far as it is said. Refused as busy while it is being said.
    fn view(&self, config: &Config) -> Result<Trajectory> {
        let mut trajectory = self.trajectory.clone();
        if let Phase::Acting(decision) | Phase::Broken(decision) | Phase::Judging(decision) = self.phase {
            let (tokens, start) = self.timeline()?;
            if tokens.len() > start {
                record(&mut trajectory, (&tokens, start, &self.shown), &decision, (config, self.was_cut_off()))?;
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
            has_teacher: state.sessions()?.teacher.is_some(),
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

    /// Starts the decided actor's turn. Temperature and cuts come from the settings in training and from
    /// `options` in evaluation; seed and author are the episode's own in both. The generation's ids are
    /// the turn. After a cancelled or failed generation `act` may be called again and goes on from where it stopped.
    pub fn act(&self, options: &GenerationOptions) -> Result<Generation> {
        let mut state = self.state.lock();
        let decision = match state.phase()? {
            Phase::Decided(decision) | Phase::Acting(decision) | Phase::Broken(decision) => decision,
            phase => return Err(out_of_order("act", phase)),
        };
        let teacher_acts = match decision.actor {
            Some(Actor::Student) => false,
            Some(Actor::Teacher) => true,
            _ => return Err(out_of_order("act", state.phase)),
        };
        let heading = &state.trajectory.heading;
        let config = self.distiller.config();
        let (episode, turn) = (heading.episode, u64::from(state.turn));
        let seed = match heading.evaluation {
            false => bits(Stream::Rollout, &[config.seed, heading.step, episode, turn, 0]),
            // Evaluations draw alike at every step, so that what differs is the student.
            true => bits(Stream::Rollout, &[config.seed, episode, turn, 1]),
        };
        let training = Sampling {
            temperature: config.sampling.temperature as f32,
            top_k: config.sampling.top_k,
            top_p: config.sampling.top_p as f32,
        };
        let mut options = GenerationOptions {
            sampling: if heading.evaluation { options.sampling } else { training },
            seed,
            source: if teacher_acts { Source::Teacher } else { Source::Student },
            // What one says in training the other must be able to read.
            vocabulary: if heading.evaluation { 0 } else { self.distiller.vocabulary_to_draw_from(teacher_acts) },
            ..options.clone()
        };
        options.check()?;
        let start = state.begin_turn()?;
        let Sessions { student, teacher } = state.sessions()?;
        let actor = match teacher {
            Some(teacher) if teacher_acts => {
                state.shown.catch_up(teacher, student)?;
                teacher
            }
            _ => student,
        };
        state.shown.fit_both(student, (actor, teacher_acts), start, &mut options)?;
        let start = if teacher_acts { state.shown.view.position(start) } else { start };
        if let Some(last) = actor.tokens()?.get(start..).and_then(|said| said.last()) {
            let model_stops = actor.model().stop_ids().contains(&last.id) && !options.ignore_model_stops;
            if model_stops || options.stop_ids.contains(&last.id) {
                return Err(out_of_order("act", state.phase));
            }
        }
        let generation = actor.generate(options)?;
        state.ending = Some(generation.ending());
        state.phase = Phase::Acting(decision);
        Ok(generation)
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
        let model = self.distiller.student();
        let end = model.end_of_turn(state.prompt())?;
        // As an assistant's message of the template: what a model is made to say keeps its ids, control does not.
        let spoken = |text: &str| {
            let mut ids = Vec::new();
            let room = Room { ids: model.model().max_context(), watch: &Watch::default() };
            model.tokenizer()?.encode_within(text, Control::NotSpecial, room, &mut ids)?;
            Ok(ids.into_iter().chain(end).collect::<Vec<_>>())
        };
        let mut ids = match action {
            Replay::Ids(ids) => ids.to_vec(),
            Replay::Text(text) => spoken(text)?,
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
            let before: Vec<i32> = state.sessions()?.student.tokens()?.iter().map(|t| t.id).collect();
            let left = unsaid(model.tokenizer()?, &before, text);
            if left.len() < text.len() {
                ids = spoken(left)?;
            }
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
        state.teacher_computed = teacher_computed;
        state.trajectory = trajectory.clone();
        state.phase = Phase::Ended;
        let teacher = state.sessions.take().and_then(|sessions| sessions.teacher);
        let scoring = asked.or_else(|| teacher.zip(next).map(|(teacher, next)| Scoring::local(engine, teacher, next)));
        self.distiller.ended(Ended::Waiting { trajectory, scoring });
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
    (config, was_cut_off): (&Config, bool),
) -> Result<()> {
    let (context, turn) = (&tokens[trajectory.ids().len()..start], &tokens[start..]);
    let actor = decision.actor.ok_or_else(|| out_of_order("outcome", Phase::Decided(*decision)))?;
    let (mut logprobs, mut sampled_logprobs) = (Vec::new(), Vec::new());
    if actor != Actor::Replay {
        logprobs.extend(turn.iter().map(|t| t.logprob));
        sampled_logprobs.extend(turn.iter().map(|t| t.sampled_logprob));
    }
    for run in context.chunk_by(|a, b| a.source == b.source) {
        trajectory.add_context(&run.iter().map(|t| t.id).collect::<Vec<_>>(), run[0].source)?;
    }
    let ids: Vec<i32> = turn.iter().map(|t| t.id).collect();
    let truncated = was_cut_off && actor != Actor::Replay;
    let action = Action { actor, ids: &ids, logprobs: &logprobs, sampled_logprobs: &sampled_logprobs, truncated };
    let loss = config.loss_at(actor, trajectory.heading.step);
    trajectory.add_turn(&action, decision, loss)?;
    trajectory.seen_as(shown.view.clone());
    Ok(())
}

pub(super) fn out_of_order(call: &str, phase: Phase) -> Error {
    Error::new(Fault::OutOfOrder, format!("{call} is out of order; expected now: {}", phase.expected()))
}
