//! Ended episodes, until an update takes them: the record, and the teacher that may still be computing.
//!
//! The teacher scores an episode when it ends. If that fails (its pages cannot be had, or nobody answers), the episode stays and
//! a later build asks again; if nobody will ask, the work is cancelled when the episode is dropped.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::Instant;

use super::scoring::Scoring;
use super::trajectory::Trajectory;
use super::workspace::Finished;
use crate::error::{Error, Fault, Result, Status};

/// One ended training episode.
pub(super) enum Ended {
    /// The record, with what of the teacher is still to come.
    Waiting { trajectory: Trajectory, scoring: Option<Scoring> },
    /// Everything is there: an update took it and gave it back, or a record has it.
    Whole(Finished),
    /// Of a record, and no teacher was asked yet: it is when a build takes the episode, since what it computes takes pages.
    Imported(Trajectory),
}

/// An ended episode in the distiller's hands.
pub(super) struct Waiting {
    /// Identity of the episode.
    pub(super) episode: u64,
    pub(super) ended: Ended,
    /// Why the teacher could not score it, once a build went on without it.
    pub(super) set_aside: Option<Error>,
    /// Whether it came from a record.
    pub(super) is_imported: bool,
}

impl Waiting {
    /// Whether a build takes it: what was set aside for want of memory may find some now, and a teacher that was silent or
    /// failed may answer.
    pub(super) fn is_asked_for(&self) -> bool {
        self.set_aside.as_ref().is_none_or(may_succeed_later)
    }

    /// The record.
    pub(super) fn trajectory(&self) -> &Trajectory {
        match &self.ended {
            Ended::Waiting { trajectory, .. } | Ended::Imported(trajectory) => trajectory,
            Ended::Whole(finished) => &finished.trajectory,
        }
    }

    /// Asks the teacher of an episode of a record.
    fn asked(self, score: &Score) -> std::result::Result<Waiting, Box<(Waiting, Error)>> {
        let Ended::Imported(trajectory) = self.ended else { return Ok(self) };
        match score(&trajectory) {
            Ok(scoring) => Ok(Waiting { ended: Ended::Waiting { trajectory, scoring }, ..self }),
            Err(e) => Err(Box::new((Waiting { ended: Ended::Imported(trajectory), ..self }, e))),
        }
    }

    /// Waits for the teacher. On an error the episode comes back, to be asked again.
    fn finish(
        self,
        since: Instant,
        progress: &mut dyn FnMut() -> bool,
        score: &Score,
    ) -> std::result::Result<Finished, Box<(Waiting, Error)>> {
        let Waiting { episode, ended, set_aside, is_imported } = self.asked(score)?;
        match ended {
            Ended::Whole(finished) => Ok(finished),
            Ended::Waiting { trajectory, scoring: None } | Ended::Imported(trajectory) => {
                Ok(Finished { trajectory, scores: None, is_noted: false, is_imported })
            }
            Ended::Waiting { trajectory, scoring: Some(mut scoring) } => match scoring.scores(since, progress) {
                Ok(scores) => Ok(Finished { trajectory, scores: Some(scores), is_noted: false, is_imported }),
                Err(e) => {
                    if e.fault() != Fault::Cancelled {
                        scoring.give_up();
                    }
                    let ended = Ended::Waiting { trajectory, scoring: Some(scoring) };
                    Err(Box::new((Waiting { episode, ended, set_aside, is_imported }, e)))
                }
            },
        }
    }
}

/// Asks the teacher of a recorded episode; None where no loss asks for it.
pub(super) type Score<'a> = dyn Fn(&Trajectory) -> Result<Option<Scoring>> + 'a;

/// Whether the same may succeed in a later build: a teacher that is closed answers nobody again.
pub(super) fn may_succeed_later(e: &Error) -> bool {
    lacked_memory(e) || (e.status() == Status::Teacher && e.fault() != Fault::TeacherClosed)
}

/// Whether the same may succeed when others have given memory back.
fn lacked_memory(e: &Error) -> bool {
    matches!(e.status(), Status::Budget | Status::HostMemory | Status::DeviceMemory)
}

/// The episodes of a build, while their teachers are waited for.
pub(super) struct Gathering {
    /// when it began to wait
    since: Instant,
    /// still to be finished; whether they are asked for the second time
    queue: VecDeque<(Waiting, bool)>,
    /// done, by identity
    pub(super) finished: Vec<(u64, Finished)>,
    /// those that cannot be scored, with the reason
    pub(super) failed: Vec<(Waiting, Error)>,
}

impl Default for Gathering {
    fn default() -> Gathering {
        Gathering { since: Instant::now(), queue: VecDeque::new(), finished: Vec::new(), failed: Vec::new() }
    }
}

impl Gathering {
    /// Those whose teacher cannot be asked now, for want of a session say, are asked in their turn.
    pub(super) fn add(&mut self, episodes: Vec<Waiting>, score: &Score) {
        // From now on they are waited for.
        self.since = Instant::now();
        for waiting in episodes {
            let mut waiting = waiting.asked(score).unwrap_or_else(|failed| failed.0);
            if let Ended::Waiting { scoring: Some(scoring), .. } = &mut waiting.ended {
                scoring.start();
            }
            self.queue.push_back((waiting, false));
        }
    }

    /// The records of all that may be learnt from.
    pub(super) fn trajectories(&self) -> Vec<&Trajectory> {
        let waiting = self.queue.iter().map(|(waiting, _)| waiting.trajectory());
        self.finished.iter().map(|(_, finished)| &finished.trajectory).chain(waiting).collect()
    }

    /// Waits for the teacher of each. An episode that cannot be scored is put with the failed; one that lacked memory is
    /// asked once more after all others, which then hold none. An error stops everything: `progress` said no, or `is_alive`
    /// finds that the engine is dead.
    pub(super) fn finish(
        &mut self,
        progress: &mut dyn FnMut() -> bool,
        is_alive: impl Fn() -> Result<()>,
        score: &Score,
    ) -> Result<()> {
        while let Some((waiting, again)) = self.queue.pop_front() {
            let episode = waiting.episode;
            match waiting.finish(self.since, progress, score) {
                Ok(finished) => self.finished.push((episode, finished)),
                Err(failed) => {
                    let (waiting, e) = *failed;
                    if e.fault() == Fault::Cancelled || is_alive().is_err() {
                        self.queue.push_front((waiting, again));
                        return Err(if e.fault() == Fault::Cancelled {
                            e
                        } else {
                            e.within(format!("episode {episode}"))
                        });
                    }
                    match !again && lacked_memory(&e) {
                        true => self.queue.push_back((waiting, true)),
                        false => self.failed.push((waiting, e)),
                    }
                }
            }
        }
        self.finished.sort_by_key(|(episode, finished)| (*episode, finished.trajectory.heading.run));
        Ok(())
    }

    /// Everything, as it was before the build.
    pub(super) fn give_back(self) -> impl Iterator<Item = Waiting> {
        let whole = |(episode, finished): (u64, Finished)| {
            let is_imported = finished.is_imported;
            Waiting { episode, ended: Ended::Whole(finished), set_aside: None, is_imported }
        };
        let waiting = self.queue.into_iter().map(|(waiting, _)| waiting);
        waiting.chain(self.failed.into_iter().map(|(waiting, _)| waiting)).chain(self.finished.into_iter().map(whole))
    }
}
