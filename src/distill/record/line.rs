//! The lines of a record, and an episode from and to its line. docs/record.md has the form.
//!
//! What is read is checked by what checks an episode that is played: a line becomes a trajectory by the calls that would have
//! made it.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::distill::actor::Actor;
use crate::distill::learner::ByModel;
use crate::distill::policy::{Decision, Reason};
use crate::distill::run_id::RunId;
use crate::distill::teacher_request::Said;
use crate::distill::teacher_turn::is_logprob;
use crate::distill::trajectory::{Action, Heading, MOST_EPISODES, Outcome, Trajectory, Turn};
use crate::distill::turn_end::TurnEnd;
use crate::distill::turn_loss::TurnLoss;
use crate::distill::view::View;
use crate::error::{Error, Fault, Result, brief};
use crate::text::Tokenizer;
use crate::text::source::Source;

/// The version of the form that is written, and the latest that is read.
pub const VERSION: u64 = 1;

/// What every line begins with.
#[derive(Debug, Deserialize)]
pub(super) struct Any {
    pub(super) kind: String,
    pub(super) run: RunId,
}

/// Where a run, or a process that goes on with it, begins to write.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RecordLine {
    pub(super) kind: String,
    /// The run.
    pub run: RunId,
    /// Of the form.
    pub version: u64,
    /// Fingerprint of the student's tokenizer, 16 hexadecimal digits; None without one.
    pub vocabulary: Option<String>,
    /// Ids that there are.
    pub rows: usize,
    /// What activations were rounded to; empty in files that do not say it.
    #[serde(default)]
    pub compute: String,
    /// All knobs.
    pub settings: Value,
    /// Of the settings.
    pub fingerprint: String,
    /// The version of squire that wrote it.
    #[serde(default)]
    pub squire: String,
}

/// An episode.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EpisodeLine {
    pub(super) kind: String,
    /// The run; with the number it is the episode's identity.
    pub run: RunId,
    /// Its number.
    pub episode: u64,
    /// Updates that were applied when it began.
    pub step: u64,
    /// The host's name of the task.
    pub task: String,
    /// Its group; empty: its task's.
    #[serde(default)]
    pub group: String,
    /// The host's name of the fixed set of tasks.
    #[serde(default)]
    pub panel: String,
    /// The host's seed of the environment.
    #[serde(default)]
    pub task_seed: Option<u64>,
    /// Of its draws.
    pub seed: u64,
    /// The student's that acted.
    pub revision: u64,
    /// Whether it is an evaluation.
    pub evaluation: bool,
    /// Whose fork it is.
    #[serde(default)]
    pub forked_from: Option<ForkedFrom>,
    /// Fingerprint of the settings that it was played under.
    pub settings: String,
    /// The host's.
    pub score: f64,
    /// The host's.
    pub success: Option<bool>,
    /// One a token.
    pub ids: Vec<i32>,
    /// Runs of one source.
    pub sources: Vec<(String, usize)>,
    /// In order.
    pub turns: Vec<TurnLine>,
    /// What the teacher read instead.
    #[serde(default)]
    pub views: Vec<ViewLine>,
    /// The text after the last turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest: Option<String>,
}

/// A parent and a turn of it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ForkedFrom {
    /// Its number in the same run.
    pub episode: u64,
    /// The first turn of the fork's own.
    pub turn: u32,
}

/// A turn of an episode.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TurnLine {
    /// Who acted.
    pub actor: String,
    /// Its tokens.
    pub start: usize,
    /// Behind them.
    pub end: usize,
    /// Of the decision.
    pub reason: String,
    /// Of the decision.
    pub probability: f32,
    /// Of the decision.
    pub horizon: u32,
    /// The environment's.
    pub reward: Option<f64>,
    /// The loss that it carried when it was played.
    pub kernel: String,
    /// Its factor.
    pub weight: f64,
    /// Whether it carried it.
    pub train: bool,
    /// Whether the decision lets it carry a loss.
    pub learnable: bool,
    /// Whether it was taken out since.
    pub left_out: bool,
    /// Whether a limit cut it off.
    #[serde(default)]
    pub truncated: bool,
    /// What ended it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_by: Option<String>,
    /// The stop string, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_string: Option<String>,
    /// Whether its ids were made of a text.
    #[serde(default)]
    pub from_text: bool,
    /// Raw ones, one a token; empty where there are none.
    pub logprobs: Vec<f32>,
    /// Of the distribution drawn from.
    pub sampled_logprobs: Vec<f32>,
    /// The text before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// What was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// What the teacher read in place of a part.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ViewLine {
    /// The part.
    pub start: usize,
    /// Behind it.
    pub end: usize,
    /// What it read.
    pub ids: Vec<i32>,
}

/// What the teacher said of an episode.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TeacherLine {
    pub(super) kind: String,
    /// The run.
    pub run: RunId,
    /// The episode's number.
    pub episode: u64,
    /// The episode's step.
    pub step: u64,
    /// Who: "host", or "model", which says the log-probs alone.
    #[serde(default)]
    pub by: String,
    /// In the episode's ids, ascending.
    pub positions: Vec<usize>,
    /// Of the ids that stand there.
    pub logprobs: Vec<f32>,
    /// Ids a place.
    pub top_k: usize,
    /// A place after the other.
    pub top_ids: Vec<i32>,
    /// Likewise.
    pub top_logprobs: Vec<f32>,
}

fn broken(why: impl Into<String>) -> Error {
    Error::new(Fault::RecordForm, why)
}

impl EpisodeLine {
    /// Its identity: run, whether it is an evaluation, step, number.
    pub fn identity(&self) -> (RunId, bool, u64, u64) {
        (self.run, self.evaluation, self.step, self.episode)
    }

    /// The line of an episode that has ended, played under the settings of this fingerprint; with a tokenizer, with texts.
    pub(in crate::distill) fn of(trajectory: &Trajectory, settings: &str, texts: Option<&Tokenizer>) -> EpisodeLine {
        let heading = &trajectory.heading;
        let decoded =
            |from: usize, to: usize| texts.map(|tokenizer| tokenizer.decode(&trajectory.ids()[from..to], false));
        let mut turns = Vec::with_capacity(trajectory.turns().len());
        let mut end = 0;
        for turn in trajectory.turns() {
            let (before, text) = (decoded(end, turn.range.start), decoded(turn.range.start, turn.range.end));
            end = turn.range.end;
            turns.push(turn_line(turn, trajectory, (before, text)));
        }
        let outcome = trajectory.outcome();
        EpisodeLine {
            kind: "episode".into(),
            run: heading.run,
            episode: heading.episode,
            step: heading.step,
            task: heading.task.clone(),
            group: heading.group.clone(),
            panel: heading.panel.clone(),
            task_seed: heading.task_seed,
            seed: heading.seed,
            revision: heading.revision,
            evaluation: heading.evaluation,
            forked_from: heading.forked_from.map(|(episode, turn)| ForkedFrom { episode, turn }),
            settings: settings.to_string(),
            score: outcome.map_or(0.0, |o| o.score),
            success: outcome.and_then(|o| o.success),
            ids: trajectory.ids().to_vec(),
            sources: trajectory
                .sources()
                .chunk_by(|a, b| a == b)
                .map(|run| (run[0].name().into(), run.len()))
                .collect(),
            turns,
            views: views_of(trajectory.view()),
            rest: decoded(end, trajectory.ids().len()),
        }
    }

    /// The episode, with the losses that `loss_at` gives an actor's turns at the episode's step, of a vocabulary of `rows` ids.
    /// Errors: `RecordForm`, with what contradicts what.
    pub fn trajectory(&self, rows: usize, loss_at: impl Fn(Actor, u64) -> TurnLoss) -> Result<Trajectory> {
        self.read(rows, loss_at).map_err(|e| match e.fault() {
            Fault::RecordForm => e.within(format!("episode {}", self.episode)),
            _ => broken(format!("episode {}: {}", self.episode, e.message())),
        })
    }

    fn read(&self, rows: usize, loss_at: impl Fn(Actor, u64) -> TurnLoss) -> Result<Trajectory> {
        let n = self.ids.len();
        if self.episode > MOST_EPISODES || self.step > MOST_EPISODES {
            let why = format!(
                "wanted a number and a step of at most {MOST_EPISODES}, found {} and {}",
                self.episode, self.step
            );
            return Err(broken(why));
        }
        if let Some(at) = self.ids.iter().position(|&id| id < 0 || id as usize >= rows) {
            return Err(broken(format!("ids[{at}]: wanted one of {rows} ids, found {}", self.ids[at])));
        }
        let mut trajectory = Trajectory::new(self.heading());
        let sources = self.sources_of_tokens()?;
        let mut end = 0;
        let context = |trajectory: &mut Trajectory, from: usize, to: usize| -> Result<()> {
            let mut at = from;
            for run in sources[from..to].chunk_by(|a, b| a == b) {
                trajectory.add_context(&self.ids[at..at + run.len()], run[0])?;
                at += run.len();
            }
            Ok(())
        };
        for (index, turn) in self.turns.iter().enumerate() {
            let wrong = |why: String| broken(format!("turns[{index}]: {why}"));
            if turn.start < end || turn.end <= turn.start || turn.end > n {
                return Err(wrong(format!(
                    "wanted tokens from {end} on, at least one, of {n} in all, found {} to {}",
                    turn.start, turn.end
                )));
            }
            let actor = [Actor::Student, Actor::Teacher, Actor::Replay].into_iter().find(|a| a.name() == turn.actor);
            let actor = actor.ok_or_else(|| {
                wrong(format!("actor: wanted student, teacher or replay, found {}", brief(&turn.actor)))
            })?;
            if let Some(at) = (turn.start..turn.end).find(|&at| sources[at] != actor.source()) {
                let found = sources[at].name();
                return Err(wrong(format!("token {at} is of the source {found}, the actor is the {}", actor.name())));
            }
            context(&mut trajectory, end, turn.start).map_err(|e| wrong(e.message().to_string()))?;
            let reason = Reason::ALL.into_iter().find(|reason| reason.text() == turn.reason);
            let decision = Decision {
                actor: Some(actor),
                // A later version may know more of them; nothing is learnt by it.
                reason: reason.unwrap_or(Reason::Method),
                train_on_this: turn.learnable,
                horizon: turn.horizon,
                probability: turn.probability,
            };
            let action = Action {
                actor,
                ids: &self.ids[turn.start..turn.end],
                logprobs: &turn.logprobs,
                sampled_logprobs: &turn.sampled_logprobs,
                truncated: turn.truncated,
                from_text: turn.from_text,
            };
            let mut add = || -> Result<()> {
                trajectory.add_turn(&action, &decision, loss_at(actor, self.step))?;
                turn.reward.map_or(Ok(()), |reward| trajectory.reward(reward))?;
                let ended_by = turn.ended_by.as_deref();
                // A later version may know of more; nothing is learnt by it.
                let end = ended_by.and_then(|name| TurnEnd::of_record(name, turn.stop_string.as_deref()));
                end.map_or(Ok(()), |end| trajectory.ended_by(end))?;
                if turn.left_out { trajectory.executed_otherwise() } else { Ok(()) }
            };
            add().map_err(|e| wrong(e.message().to_string()))?;
            end = turn.end;
        }
        context(&mut trajectory, end, n)?;
        trajectory.seen_as(self.view(rows)?);
        trajectory.end(Outcome { score: self.score, success: self.success })?;
        Ok(trajectory)
    }

    fn heading(&self) -> Heading {
        Heading {
            episode: self.episode,
            run: self.run,
            step: self.step,
            task: self.task.clone(),
            group: self.group.clone(),
            panel: self.panel.clone(),
            task_seed: self.task_seed,
            seed: self.seed,
            revision: self.revision,
            evaluation: self.evaluation,
            forked_from: self.forked_from.map(|ForkedFrom { episode, turn }| (episode, turn)),
        }
    }

    /// The source of each token.
    fn sources_of_tokens(&self) -> Result<Vec<Source>> {
        let n = self.ids.len();
        let mut sources = Vec::with_capacity(n);
        for (name, len) in &self.sources {
            let source = Source::ALL.into_iter().find(|source| source.name() == name).ok_or_else(|| {
                broken(format!("sources: wanted host, glue, student, teacher or replay, found {}", brief(name)))
            })?;
            if *len > n - sources.len() {
                return Err(broken(format!("sources: they are of more than the {n} tokens of ids")));
            }
            sources.resize(sources.len() + len, source);
        }
        match sources.len() {
            found if found == n => Ok(sources),
            found => Err(broken(format!("sources: wanted {n} tokens, as many as ids, found {found}"))),
        }
    }

    /// What the teacher read: parts in order, apart, and between actions.
    fn view(&self, rows: usize) -> Result<View> {
        let (mut view, mut from) = (View::default(), 0);
        for (index, part) in self.views.iter().enumerate() {
            let is_in_order = part.start >= from && part.end >= part.start && part.end <= self.ids.len();
            let touches = |turn: &TurnLine| turn.start < part.end && part.start < turn.end;
            if !is_in_order || self.turns.iter().any(touches) {
                let (start, end) = (part.start, part.end);
                let why =
                    format!("views[{index}]: wanted a part between two turns from {from} on, found {start} to {end}");
                return Err(broken(why));
            }
            if let Some(id) = part.ids.iter().find(|&&id| id < 0 || id as usize >= rows) {
                return Err(broken(format!("views[{index}]: wanted one of {rows} ids, found {id}")));
            }
            from = part.end;
            view.replace(part.start..part.end, &self.ids[part.start..part.end], part.ids.clone());
        }
        Ok(view)
    }
}

fn turn_line(turn: &Turn, trajectory: &Trajectory, (before, text): (Option<String>, Option<String>)) -> TurnLine {
    // All of a turn's are there or none.
    let known = |all: &[f32]| {
        let own = &all[turn.range.clone()];
        if own.iter().any(|x| x.is_nan()) { Vec::new() } else { own.to_vec() }
    };
    TurnLine {
        actor: turn.actor.name().into(),
        start: turn.range.start,
        end: turn.range.end,
        reason: turn.decision.reason.text().into(),
        probability: turn.decision.probability,
        horizon: turn.decision.horizon,
        reward: turn.reward,
        kernel: turn.loss.name().into(),
        weight: turn.loss.weight,
        train: turn.train,
        learnable: turn.decision.train_on_this,
        left_out: turn.left_out,
        truncated: turn.truncated,
        ended_by: turn.ended_by.as_ref().map(|end| end.name().to_string()),
        stop_string: turn.ended_by.as_ref().and_then(TurnEnd::stop_string).map(str::to_string),
        from_text: turn.from_text,
        logprobs: known(trajectory.logprobs()),
        sampled_logprobs: known(trajectory.sampled_logprobs()),
        before,
        text,
    }
}

fn views_of(view: &View) -> Vec<ViewLine> {
    let line = |part: &crate::distill::view::Instead| ViewLine {
        start: part.range.start,
        end: part.range.end,
        ids: part.ids.to_vec(),
    };
    view.parts().iter().map(line).collect()
}

impl TeacherLine {
    /// The line of what the host's teacher said of an episode.
    pub(in crate::distill) fn of(trajectory: &Trajectory, said: &Said) -> TeacherLine {
        // The positions are those in what the teacher read.
        let own: Vec<usize> = trajectory.turns().iter().flat_map(|turn| turn.range.clone()).collect();
        let own = own.into_iter().filter(|&at| said.positions.binary_search(&trajectory.view().position(at)).is_ok());
        TeacherLine {
            top_k: said.top_k,
            top_ids: said.top_ids.clone(),
            top_logprobs: said.top_logprobs.clone(),
            ..TeacherLine::plain(trajectory, "host", (own.collect(), said.logprobs.clone()))
        }
    }

    /// The line of what a teacher that is a model says of tokens of an episode, in ascending order.
    pub(in crate::distill) fn by_model(trajectory: &Trajectory, tokens: &[ByModel]) -> TeacherLine {
        // A log-prob beyond what a record takes, of logits beyond f32 say, is not known.
        let said = tokens.iter().filter(|(_, _, logprob)| is_logprob(*logprob));
        TeacherLine::plain(trajectory, "model", said.map(|&(_, position, logprob)| (position, logprob)).unzip())
    }

    /// Log-probs at these places alone.
    fn plain(trajectory: &Trajectory, by: &str, (positions, logprobs): (Vec<usize>, Vec<f32>)) -> TeacherLine {
        let heading = &trajectory.heading;
        TeacherLine {
            kind: "teacher".into(),
            run: heading.run,
            episode: heading.episode,
            step: heading.step,
            by: by.into(),
            positions,
            logprobs,
            top_k: 0,
            top_ids: Vec::new(),
            top_logprobs: Vec::new(),
        }
    }

    /// What was said, of an episode whose line is `of`. Errors: `RecordForm`.
    pub(in crate::distill) fn said(&self, trajectory: &Trajectory, rows: usize) -> Result<Said> {
        let wrong = |why: String| Err(broken(format!("what the teacher said of episode {}: {why}", self.episode)));
        let (n, k) = (self.positions.len(), self.top_k);
        let all = n.checked_mul(k);
        for (what, found, wanted) in [
            ("logprobs", self.logprobs.len(), Some(n)),
            ("top_ids", self.top_ids.len(), all),
            ("top_logprobs", self.top_logprobs.len(), all),
        ] {
            if Some(found) != wanted {
                return wrong(format!("{what}: wanted {n} places with top_k {k}, found {found} numbers"));
            }
        }
        let is_action = |at: usize| trajectory.sources().get(at).is_some_and(|source| source.is_action());
        if let Some(at) =
            (0..n).find(|&i| !is_action(self.positions[i]) || (i > 0 && self.positions[i] <= self.positions[i - 1]))
        {
            return wrong(format!(
                "positions[{at}]: wanted tokens of turns in ascending order, found {}",
                self.positions[at]
            ));
        }
        let numbers = self.logprobs.iter().chain(&self.top_logprobs);
        if let Some(x) = numbers.into_iter().find(|x| !is_logprob(**x)) {
            return wrong(format!("wanted log-probs, found {x}"));
        }
        for place in self.top_ids.chunks(k.max(1)) {
            let mut sorted = place.to_vec();
            sorted.sort_unstable();
            let outside = sorted.iter().find(|&&id| id < 0 || id as usize >= rows);
            let twice = sorted.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| &pair[0]);
            if let Some(id) = outside.or(twice) {
                return wrong(format!("top_ids: wanted different ids below {rows} in a place, found {id}"));
            }
        }
        Ok(Said {
            positions: self.positions.iter().map(|&at| trajectory.view().position(at)).collect(),
            logprobs: self.logprobs.clone(),
            top_k: k,
            top_ids: self.top_ids.clone(),
            top_logprobs: self.top_logprobs.clone(),
        })
    }
}
