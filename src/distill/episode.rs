//! One run of the host's environment: begin, observe, decide, act or replay, outcome, end.
//!
//! The host owns the loop; an episode only says who acts and writes down what happened. Student and
//! teacher each have a timeline of their own with the same ids: whoever did not act gets the actor's
//! exact ids, so nothing sampled is tokenised again and a teacher computes each token once.
#![forbid(unsafe_code)]

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::actor::Actor;
use super::distiller::Distiller;
use super::knobs::Kernel;
use super::learner::Finished;
use super::policy::{DecideInput, Decision, decide};
use super::spec::EpisodeSpec;
use super::trajectory::{Action, Heading, Outcome, Trajectory};
use crate::backend::ops::Sampling;
use crate::error::{Error, Fault, Result};
use crate::random::{Stream, bits};
use crate::serve::{Cancel, Generation, GenerationOptions, Session, Token};
use crate::text::RenderOptions;
use crate::text::source::Source;
use crate::text::tokenizer::Control;

/// Where an episode stands: what happened last.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// It began, or a turn's outcome was given: an observation is due.
    Open,
    /// Something was observed: more of it, or the decision.
    Observed,
    /// It is decided who acts.
    Decided(Decision),
    /// The actor generates, from this length of the timeline on.
    Acting { decision: Decision, start: usize },
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
            Phase::Acting { .. } => "outcome, once the generation has ended",
            Phase::Acted => "outcome",
            Phase::Ended => "nothing: the episode has ended",
        }
    }
}

/// An episode. Dropped without an end, it is thrown away.
pub struct Episode {
    distiller: Distiller,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    trajectory: Trajectory,
    student: Session,
    teacher: Option<Session>,
    spec: EpisodeSpec,
    max_turns: u32,
    turn: u32,
}

/// What a replayed turn consists of.
#[derive(Clone, Copy, Debug)]
pub enum Replay<'a> {
    /// The demonstration's action for this turn, from the specification.
    Stored,
    /// These ids, the end of turn included.
    Ids(&'a [i32]),
    /// This text, tokenised as plain text; the end of turn is added.
    Text(&'a str),
}

impl Episode {
    pub(super) fn begin(distiller: &Distiller, spec: EpisodeSpec, heading: Heading) -> Result<Episode> {
        let student = Session::new(distiller.student())?;
        let teacher = match distiller.teacher() {
            Some(t) if !heading.evaluation => {
                let session = Session::new(t)?;
                session.keep_hidden()?;
                Some(session)
            }
            _ => None,
        };
        let max_turns = spec.max_turns.unwrap_or(distiller.config().max_turns);
        let heading = Heading { revision: student.revision().number, ..heading };
        let state = State {
            phase: Phase::Open,
            trajectory: Trajectory::new(heading),
            student,
            teacher,
            spec,
            max_turns,
            turn: 0,
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

    /// Shows messages (a JSON list of `{role, content}`) to the actors. Computes nothing. Returns the
    /// tokens added.
    pub fn observe(&self, messages: &Value) -> Result<usize> {
        self.observe_by(|student| Ok(student.append_chat(messages, &RenderOptions::default())?.len()))
    }

    /// The same with ids, for hosts that render for themselves.
    pub fn observe_ids(&self, ids: &[i32]) -> Result<usize> {
        self.observe_by(|student| student.append(ids, Source::Host).map(|()| ids.len()))
    }

    fn observe_by(&self, append: impl FnOnce(&Session) -> Result<usize>) -> Result<usize> {
        let mut state = self.state.lock();
        match state.phase {
            Phase::Open | Phase::Observed => {}
            phase => return Err(out_of_order("observe", phase)),
        }
        let n = append(&state.student)?;
        state.phase = Phase::Observed;
        Ok(n)
    }

    /// Decides who acts. No model work; the same answer for the same (seed, episode, turn, step). Asked
    /// again before anybody acts, it answers the same.
    pub fn decide(&self) -> Result<Decision> {
        let mut state = self.state.lock();
        match state.phase {
            Phase::Observed => self.decide_for(&mut state, None),
            Phase::Decided(decision) => Ok(decision),
            phase => Err(out_of_order("decide", phase)),
        }
    }

    /// Lets `actor` act in this turn, whatever the curriculum says.
    pub fn override_actor(&self, actor: Actor) -> Result<Decision> {
        let mut state = self.state.lock();
        match state.phase {
            Phase::Observed | Phase::Decided(_) => self.decide_for(&mut state, Some(actor)),
            phase => Err(out_of_order("override", phase)),
        }
    }

    fn decide_for(&self, state: &mut State, asked: Option<Actor>) -> Result<Decision> {
        let heading = &state.trajectory.heading;
        let input = DecideInput {
            seed: self.distiller.config().seed,
            episode: heading.episode,
            turn: state.turn,
            step: heading.step,
            evaluation: heading.evaluation,
            has_teacher: state.teacher.is_some(),
            // A host that replays brings its action when it is asked; a stored demonstration has an end.
            replay_available: state.spec.demonstration.as_ref().is_none_or(|d| d.len() > state.turn as usize),
            asked,
            max_turns: state.max_turns,
        };
        let decision = decide(self.distiller.config(), &input)?;
        state.phase = Phase::Decided(decision);
        Ok(decision)
    }

    /// Starts the decided actor's turn. Temperature and cuts come from the settings in training and from
    /// `options` in evaluation; seed and author are the episode's own in both. The generation's ids are
    /// the turn. After a cancelled generation `act` may be called again and goes on from where it stopped.
    pub fn act(&self, options: &GenerationOptions) -> Result<Generation> {
        let mut state = self.state.lock();
        let (decision, begun) = match state.phase {
            Phase::Decided(decision) => (decision, None),
            Phase::Acting { decision, start } => (decision, Some(start)),
            phase => return Err(out_of_order("act", phase)),
        };
        let teacher_acts = match decision.actor {
            Some(Actor::Student) => false,
            Some(Actor::Teacher) => true,
            _ => return Err(out_of_order("act", state.phase)),
        };
        let heading = &state.trajectory.heading;
        let config = self.distiller.config();
        let key = [config.seed, heading.episode, u64::from(state.turn), u64::from(heading.evaluation)];
        let training = Sampling {
            temperature: config.sampling.temperature as f32,
            top_k: config.sampling.top_k,
            top_p: config.sampling.top_p as f32,
        };
        let options = GenerationOptions {
            sampling: if heading.evaluation { options.sampling } else { training },
            seed: bits(Stream::Rollout, &key),
            source: if teacher_acts { Source::Teacher } else { Source::Student },
            ..options.clone()
        };
        options.check()?;
        let start = match begun {
            Some(start) => start,
            None => begin_turn(&state.student)?,
        };
        // From here on the turn is begun; a refusal below leaves it so, and `act` may be tried again.
        state.phase = Phase::Acting { decision, start };
        let actor = match (&state.teacher, teacher_acts) {
            (Some(teacher), true) => {
                catch_up(teacher, &state.student)?;
                teacher
            }
            _ => &state.student,
        };
        actor.generate(options)
    }

    /// Writes down an action that nobody sampled here as this turn.
    pub fn replay(&self, action: Replay) -> Result<()> {
        let mut state = self.state.lock();
        let decision = match state.phase {
            Phase::Decided(d) if d.actor == Some(Actor::Replay) => d,
            phase => return Err(out_of_order("replay", phase)),
        };
        let stored;
        let action = match action {
            Replay::Stored => {
                let none =
                    || Error::new(Fault::BadValue, "the episode's specification has no demonstration for this turn");
                let text =
                    state.spec.demonstration.as_ref().and_then(|d| d.get(state.turn as usize)).ok_or_else(none)?;
                stored = text.clone();
                Replay::Text(&stored)
            }
            other => other,
        };
        let ids = match action {
            Replay::Ids(ids) => ids.to_vec(),
            Replay::Text(text) => {
                let model = self.distiller.student();
                let mut ids = model.tokenizer()?.encode(text, Control::None);
                ids.extend(model.stop_ids().first());
                ids
            }
            Replay::Stored => Vec::new(),
        };
        if ids.is_empty() {
            return Err(Error::new(Fault::BadLength, "a replayed action needs at least one token"));
        }
        let before = state.student.len()?;
        let start = begin_turn(&state.student)?;
        if let Err(e) = state.student.append(&ids, Source::Replay) {
            state.student.truncate(before)?;
            return Err(e);
        }
        self.write_down(&mut state, decision, start)
    }

    /// Ends the turn: its reward, if the environment gives one, and whether the host executed what was
    /// said (`executed` false takes the turn out of the loss).
    pub fn outcome(&self, reward: Option<f64>, executed: bool) -> Result<()> {
        let mut state = self.state.lock();
        self.settle(&mut state)?;
        if state.phase != Phase::Acted {
            return Err(out_of_order("outcome", state.phase));
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
        self.settle(&mut state)?;
        if state.phase == Phase::Ended {
            return Err(out_of_order("end", state.phase));
        }
        state.trajectory.end(Outcome { score, success })?;
        state.phase = Phase::Ended;
        let Heading { evaluation, episode, .. } = state.trajectory.heading;
        let trajectory = state.trajectory.clone();
        let mut answer = None;
        if let Some(teacher) = state.teacher.take()
            && trajectory.turns().iter().any(|t| t.train && needs_teacher(t.loss.kernel))
        {
            // The teacher computes what it has not seen yet, in the rounds of whoever else is running.
            let scored = teacher.start_prefill(&Cancel::default())?;
            answer = Some((teacher, scored));
        }
        self.distiller.finished(evaluation, episode, move || match answer {
            None => Ok(Finished { trajectory, teacher: Default::default() }),
            Some((teacher, scored)) => {
                teacher.wait(scored)??;
                Ok(Finished { trajectory, teacher: teacher.take_hidden()? })
            }
        });
        Ok(())
    }

    /// The record so far.
    pub fn trace(&self) -> Result<Value> {
        let mut state = self.state.lock();
        self.settle(&mut state)?;
        let mut trace = state.trajectory.to_json();
        trace["phase"] = json!(state.phase.expected());
        Ok(trace)
    }

    /// A copy of the record so far.
    pub fn trajectory(&self) -> Result<Trajectory> {
        let mut state = self.state.lock();
        self.settle(&mut state)?;
        Ok(state.trajectory.clone())
    }

    /// Rows that the teacher has computed for this episode.
    pub fn teacher_computed(&self) -> Result<u64> {
        self.state.lock().teacher.as_ref().map_or(Ok(0), |t| t.n_computed())
    }

    /// If a generation has ended since, writes its turn down. Refused as busy while it runs.
    fn settle(&self, state: &mut State) -> Result<()> {
        let Phase::Acting { decision, start } = state.phase else { return Ok(()) };
        if decision.actor == Some(Actor::Teacher) {
            let teacher = state.teacher.as_ref().ok_or_else(|| out_of_order("outcome", state.phase))?;
            let said = teacher.tokens()?;
            let said = &said[start.min(said.len())..];
            if said.is_empty() {
                return Err(out_of_order("outcome", Phase::Decided(decision)));
            }
            state.student.append_tokens(said)?;
        } else if state.student.len()? == start {
            // Cancelled before its first token: the turn is still to be acted.
            return Err(out_of_order("outcome", Phase::Decided(decision)));
        }
        self.write_down(state, decision, start)
    }

    /// Copies the timeline from where the record ends: context, then the turn from `start` on.
    fn write_down(&self, state: &mut State, decision: Decision, start: usize) -> Result<()> {
        let tokens = state.student.tokens()?;
        let (context, turn) = (&tokens[state.trajectory.ids().len()..start], &tokens[start..]);
        for run in context.chunk_by(|a, b| a.source == b.source) {
            state.trajectory.add_context(&run.iter().map(|t| t.id).collect::<Vec<_>>(), run[0].source)?;
        }
        let actor = decision.actor.ok_or_else(|| out_of_order("outcome", state.phase))?;
        let column = |f: fn(&Token) -> f32| -> Vec<f32> {
            if actor == Actor::Replay { Vec::new() } else { turn.iter().map(f).collect() }
        };
        let (ids, logprobs, sampled) =
            (turn.iter().map(|t| t.id).collect::<Vec<_>>(), column(|t| t.logprob), column(|t| t.sampled_logprob));
        let action = Action { actor, ids: &ids, logprobs: &logprobs, sampled_logprobs: &sampled };
        let loss = self.distiller.config().loss_of(actor);
        state.trajectory.add_turn(&action, &decision, loss)?;
        if let Some(teacher) = &state.teacher {
            catch_up(teacher, &state.student)?;
        }
        state.phase = Phase::Acted;
        Ok(())
    }
}

fn needs_teacher(kernel: Kernel) -> bool {
    matches!(kernel, Kernel::ReverseKl | Kernel::ForwardKl)
}

/// Appends the generation prompt, where the model has a template, and returns where the turn starts.
fn begin_turn(student: &Session) -> Result<usize> {
    if student.model().template().is_ok() {
        let prompt = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        student.append_chat(&json!([]), &prompt)?;
    }
    student.len()
}

/// Gives a teacher's timeline what the student's has and it has not.
fn catch_up(teacher: &Session, student: &Session) -> Result<()> {
    let tokens = student.tokens()?;
    teacher.append_tokens(&tokens[teacher.len()?.min(tokens.len())..])
}

fn out_of_order(call: &str, phase: Phase) -> Error {
    Error::new(Fault::OutOfOrder, format!("{call} is out of order; expected now: {}", phase.expected()))
}
