//! Learning from a record: its episodes wait for an update like those that were just played.
//!
//! Their losses follow from this distiller's settings, so that a record may be learnt by another method than it was played
//! under; under the same settings the update is the same bit for bit. What the host's teacher said comes from the record, a
//! teacher that is a model computes its side anew when a build takes the episode.
#![forbid(unsafe_code)]

use serde::Serialize;

use super::reader::{Record, RecordedEpisode};
use super::writing::{fingerprint, summary};
use crate::backend::cpu::FloatEnv;
use crate::backend::ops::Needs;
use crate::distill::distiller::Distiller;
use crate::distill::ended::{Ended, Waiting};
use crate::distill::scoring::Scoring;
use crate::distill::teacher::{self, Teacher};
use crate::distill::teacher_request::Said;
use crate::distill::trajectory::Trajectory;
use crate::distill::unlearnt::identity;
use crate::distill::workspace::{Finished, Scores};
use crate::error::{Error, Fault, Result};
use crate::serve::Token;
use crate::text::source::Source;

/// What became of a record's episodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// Episodes that wait for an update now.
    pub episodes: u64,
    /// Evaluations, which are never learnt.
    pub evaluations: u64,
    /// Episodes that this run has had before: played, or taken from a record.
    pub known: u64,
    /// Episodes beyond the number that was asked for.
    pub left: u64,
    /// Of those that wait: played under other settings than this distiller's.
    pub other_settings: u64,
    /// Of those that wait: without all that the teacher has to say of them, so that it is asked when a build takes them.
    pub unscored: u64,
}

impl Distiller {
    /// Takes up to `most` episodes (0: all) of a record that this run has not had, in the order of their steps
    /// and numbers.
    ///
    /// Errors: `RecordMismatch` where the record is of another vocabulary or an episode is longer than the student's context;
    /// `RecordForm`. Nothing is taken then.
    pub fn import(&self, record: &Record, most: u64) -> Result<Imported> {
        // Losses follow from schedules.
        let _floats = FloatEnv::scalars();
        self.check_record(record)?;
        let mut imported = Imported::default();
        let own = fingerprint(self.config());
        let mut order: Vec<&RecordedEpisode> = record.episodes.iter().collect();
        order.sort_by_key(|e| (e.played.step, e.played.episode, e.played.run));
        let mut wanted = Vec::new();
        for episode in order {
            let played = &episode.played;
            if played.evaluation {
                imported.evaluations += 1;
            } else if self.0.state.lock().has_had(self.run(), &(played.run, played.step, played.episode)) {
                imported.known += 1;
            } else if most > 0 && wanted.len() as u64 == most {
                imported.left += 1;
            } else {
                wanted.push(episode);
            }
        }
        // Others may play meanwhile: what takes long is done without the lock.
        let mut taken = Vec::new();
        for episode in wanted {
            taken.push((self.waiting(episode)?, episode.played.settings != own));
        }
        let (mut state, mut own_again) = (self.0.state.lock(), Vec::new());
        for ((waiting, is_scored), has_other_settings) in taken {
            let identity = identity(&waiting.trajectory().heading);
            // Of two calls at once each episode is one's.
            if state.has_had(self.run(), &identity) {
                imported.known += 1;
                continue;
            }
            state.takes(self.run(), identity);
            own_again.extend((identity.0 == self.run()).then(|| summary(waiting.trajectory())));
            state.ended.push(waiting);
            imported.episodes += 1;
            imported.unscored += u64::from(!is_scored);
            imported.other_settings += u64::from(has_other_settings);
        }
        drop(state);
        // What a process that was killed had told of them is void, since this one began again at an earlier step.
        own_again.into_iter().for_each(|summary| self.note("episode", || summary));
        Ok(imported)
    }

    /// Refuses a record whose ids mean something else.
    fn check_record(&self, record: &Record) -> Result<()> {
        let own = self.student().vocabulary_fingerprint();
        for (run, line) in &record.runs {
            let shown = |vocabulary: &Option<String>, rows: usize| match vocabulary {
                Some(fingerprint) => format!("the fingerprint {fingerprint}"),
                None => format!("no tokenizer and {rows} ids"),
            };
            let rows = self.vocabulary();
            if line.vocabulary != own || (own.is_none() && line.rows != rows) {
                let why = format!(
                    "the record of run {run} is of another vocabulary: wanted {}, found {}",
                    shown(&own, rows),
                    shown(&line.vocabulary, line.rows)
                );
                return Err(Error::new(Fault::RecordMismatch, why));
            }
        }
        Ok(())
    }

    /// A recorded episode as one that waits, and whether the teacher needs to say nothing more of it.
    fn waiting(&self, recorded: &RecordedEpisode) -> Result<(Waiting, bool)> {
        let (config, rows) = (self.config(), self.vocabulary());
        let trajectory = recorded.played.trajectory(rows, |actor, step| config.loss_at(actor, step))?;
        let (episode, n) = (trajectory.heading.episode, trajectory.ids().len());
        let context = self.student().model().max_context();
        if n > context {
            let why = format!("episode {episode} of the record has {n} tokens, the student's context holds {context}");
            return Err(Error::new(Fault::RecordMismatch, why));
        }
        let said = match &recorded.said {
            Some(said) => Some(said.said(&trajectory, rows)?).filter(|said| self.suffices(&trajectory, said)),
            None => None,
        };
        let needs = trajectory.turns().iter().any(|turn| turn.train && turn.loss.needs_teacher());
        let is_scored = said.is_some() || !needs;
        let ended = match is_scored {
            true => {
                Ended::Whole(Finished { trajectory, scores: said.map(Scores::Said), is_noted: true, is_imported: true })
            }
            false => Ended::Imported(trajectory),
        };
        Ok((Waiting { episode, ended, set_aside: None, is_imported: true }, is_scored))
    }

    /// Whether what was said once is what this distiller's teacher would be asked for: of every token whose loss asks, and with as
    /// many likely ids.
    fn suffices(&self, trajectory: &Trajectory, said: &Said) -> bool {
        let Some(queue) = self.teacher_queue() else { return false };
        let mut asked = trajectory.turns().iter().filter(|turn| turn.train && turn.loss.needs_teacher());
        said.top_k == queue.options().top_k as usize
            && asked.all(|turn| {
                let has_all =
                    turn.range.clone().all(|at| said.positions.binary_search(&trajectory.view().position(at)).is_ok());
                has_all && (turn.loss.needs() != Needs::Distribution || said.top_k > 0)
            })
    }

    /// The teacher at work on an episode of a record; None where no loss asks for it.
    pub(in crate::distill) fn scoring_of(&self, trajectory: &Trajectory) -> Result<Option<Scoring>> {
        let Some(last) = trajectory.turns().iter().rfind(|turn| turn.train && turn.loss.needs_teacher()) else {
            return Ok(None);
        };
        let engine = self.student().engine();
        match &self.0.teacher {
            None => Ok(None),
            Some(Teacher::Queue(queue)) => {
                Scoring::queue(queue, engine, (self.number(), trajectory), self.vocabulary())
            }
            Some(Teacher::Local(model)) => {
                let session = teacher::session(model, self.config())?;
                session.keep_hidden()?;
                // As an episode that is played leaves it: up to the row that predicts the last token that is asked about.
                let students: Vec<Token> = trajectory
                    .ids()
                    .iter()
                    .zip(trajectory.sources())
                    .map(|(&id, &source)| Token::given(id, source))
                    .collect();
                let mut tokens = trajectory.view().woven(&students, |id| Token::given(id, Source::Host))?;
                tokens.truncate(trajectory.view().position(last.range.end - 1));
                session.append_tokens(&tokens)?;
                Ok(Some(Scoring::local(engine, session, last.actor.source())))
            }
        }
    }
}
