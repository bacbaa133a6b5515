//! Ended episodes, until an update takes them: the record, and the teacher that may still be computing.
//!
//! The teacher scores an episode when it ends, in the rounds of whoever else is running. If that fails (its
//! pages cannot be had, say), the episode stays and the next build asks again; if nobody will ask, the work
//! is cancelled when the episode is dropped.
#![forbid(unsafe_code)]

use crossbeam::channel::Receiver;

use super::learner::{Finished, Scores};
use super::trajectory::Trajectory;
use crate::error::{Error, Result};
use crate::serve::{Cancel, Session};
use crate::text::source::Source;

/// One ended training episode.
pub(super) enum Ended {
    /// The record, with what of the teacher is still to come.
    Waiting { trajectory: Trajectory, scoring: Option<Scoring> },
    /// Everything is there: an update took it and gave it back.
    Whole(Finished),
}

/// A teacher at work on one episode.
pub(super) struct Scoring {
    teacher: Session,
    /// who wrote the token that follows the teacher's timeline
    next: Source,
    cancel: Cancel,
    /// None until it is asked, and after it failed
    answer: Option<Receiver<Result<()>>>,
}

impl Scoring {
    /// Asks the teacher to compute all pending ids of its timeline.
    pub(super) fn start(teacher: Session, next: Source) -> Scoring {
        let mut scoring = Scoring { teacher, next, cancel: Cancel::default(), answer: None };
        // Refused now, it is asked again when an update is built.
        scoring.answer = scoring.teacher.start_prefill(&scoring.cancel, Some(next)).ok();
        scoring
    }

    fn scores(&mut self) -> Result<Scores> {
        let answer = match self.answer.take() {
            Some(answer) => answer,
            None => self.teacher.start_prefill(&self.cancel, Some(self.next))?,
        };
        self.teacher.wait(answer)??;
        Ok(Scores { hidden: self.teacher.take_hidden()?, revision: self.teacher.revision() })
    }
}

impl Drop for Scoring {
    fn drop(&mut self) {
        // A job that nobody waits for would otherwise run on, or in caller-driven mode stay for ever.
        self.cancel.set();
        self.teacher.model().engine().end_cancelled();
    }
}

impl Ended {
    /// Waits for the teacher. On an error the episode comes back as it was, to be asked again.
    pub(super) fn settle(self) -> std::result::Result<Finished, Box<(Ended, Error)>> {
        match self {
            Ended::Whole(finished) => Ok(finished),
            Ended::Waiting { trajectory, scoring: None } => Ok(Finished { trajectory, scores: None }),
            Ended::Waiting { trajectory, scoring: Some(mut scoring) } => match scoring.scores() {
                Ok(scores) => Ok(Finished { trajectory, scores: Some(scores) }),
                Err(e) => Err(Box::new((Ended::Waiting { trajectory, scoring: Some(scoring) }, e))),
            },
        }
    }
}
