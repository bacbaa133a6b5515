//! Ended episodes, until an update takes them: the record, and the teacher that may still be computing.
//!
//! The teacher scores an episode when it ends, in the rounds of whoever else is running. If that fails (its
//! pages cannot be had, say), the episode stays and the next build asks again; if nobody will ask, the work
//! is cancelled when the episode is dropped.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, TryRecvError};

use super::trajectory::Trajectory;
use super::workspace::{Finished, Scores};
use crate::error::{Error, Fault, Result, Status};
use crate::serve::{Cancel, Session};
use crate::text::source::Source;

/// How long whoever waits for a teacher waits before it looks whether it should go on.
const SLICE: Duration = Duration::from_millis(20);

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

    /// Waits for the teacher; `progress` is asked every now and then. Where it says no, that is `Cancelled`, and the teacher
    /// computes on for whoever asks next.
    fn scores(&mut self, progress: &mut dyn FnMut() -> bool) -> Result<Scores> {
        if self.answer.is_none() {
            self.answer = Some(self.teacher.start_prefill(&self.cancel, Some(self.next))?);
        }
        while let Some(answer) = &self.answer {
            match self.wait_a_moment(answer) {
                Ok(None) if progress() => {}
                Ok(None) => return Err(Error::new(Fault::Cancelled, "the update was cancelled")),
                Ok(Some(told)) => {
                    self.answer = None;
                    told?;
                }
                Err(e) => {
                    self.answer = None;
                    return Err(e);
                }
            }
        }
        Ok(Scores { hidden: self.teacher.take_hidden()?, revision: self.teacher.revision() })
    }

    /// The answer, None where it is still to come. Steps the engine where the caller drives it.
    fn wait_a_moment(&self, answer: &Receiver<Result<()>>) -> Result<Option<Result<()>>> {
        let stopped = || Error::new(Fault::EngineStopped, "the engine stopped before the teacher was done");
        let engine = self.teacher.model().engine();
        if engine.is_caller_driven() {
            return match answer.try_recv() {
                Ok(answer) => Ok(Some(answer)),
                Err(TryRecvError::Disconnected) => Err(stopped()),
                Err(TryRecvError::Empty) => engine.step().map(|_| None),
            };
        }
        match answer.recv_timeout(SLICE) {
            Ok(answer) => Ok(Some(answer)),
            Err(RecvTimeoutError::Disconnected) => Err(stopped()),
            Err(RecvTimeoutError::Timeout) => Ok(None),
        }
    }
}

impl Drop for Scoring {
    /// Cancels the teacher and waits until the engine is done with it: after the last episode, session and model an engine
    /// is gone, threads and all, and a job that nobody waits for would run on beyond that.
    fn drop(&mut self) {
        let Some(answer) = self.answer.take() else { return };
        self.cancel.set();
        let engine = self.teacher.model().engine();
        engine.end_cancelled();
        if !engine.is_caller_driven() {
            let _ = answer.recv();
        }
    }
}

/// An ended episode in the distiller's hands.
pub(super) struct Waiting {
    /// Identity of the episode.
    pub(super) episode: u64,
    pub(super) ended: Ended,
    /// Why the teacher could not score it, once a build went on without it.
    pub(super) set_aside: Option<Error>,
}

impl Waiting {
    /// Whether a build takes it: what was set aside for want of memory may find some now.
    pub(super) fn is_asked_for(&self) -> bool {
        self.set_aside.as_ref().is_none_or(lacked_memory)
    }

    /// The record.
    pub(super) fn trajectory(&self) -> &Trajectory {
        match &self.ended {
            Ended::Waiting { trajectory, .. } => trajectory,
            Ended::Whole(finished) => &finished.trajectory,
        }
    }

    /// Waits for the teacher. On an error the episode comes back, to be asked again.
    fn finish(self, progress: &mut dyn FnMut() -> bool) -> std::result::Result<Finished, Box<(Waiting, Error)>> {
        let Waiting { episode, ended, set_aside } = self;
        match ended {
            Ended::Whole(finished) => Ok(finished),
            Ended::Waiting { trajectory, scoring: None } => Ok(Finished { trajectory, scores: None }),
            Ended::Waiting { trajectory, scoring: Some(mut scoring) } => match scoring.scores(progress) {
                Ok(scores) => Ok(Finished { trajectory, scores: Some(scores) }),
                Err(e) => {
                    if e.fault() != Fault::Cancelled {
                        // Its pages go to others; what was computed is computed again. A session that is lost has none.
                        let _ = scoring.teacher.rebase();
                    }
                    let ended = Ended::Waiting { trajectory, scoring: Some(scoring) };
                    Err(Box::new((Waiting { episode, ended, set_aside }, e)))
                }
            },
        }
    }
}

/// Whether the same may succeed later, when others have given memory back.
pub(super) fn lacked_memory(e: &Error) -> bool {
    matches!(e.status(), Status::Budget | Status::HostMemory | Status::DeviceMemory)
}

/// The episodes of a build, while their teachers are waited for.
#[derive(Default)]
pub(super) struct Gathering {
    /// still to be finished; whether they are asked for the second time
    queue: VecDeque<(Waiting, bool)>,
    /// done, by identity
    pub(super) finished: Vec<(u64, Finished)>,
    /// those that cannot be scored, with the reason
    pub(super) failed: Vec<(Waiting, Error)>,
}

impl Gathering {
    pub(super) fn add(&mut self, episodes: Vec<Waiting>) {
        self.queue.extend(episodes.into_iter().map(|waiting| (waiting, false)));
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
    ) -> Result<()> {
        while let Some((waiting, again)) = self.queue.pop_front() {
            let episode = waiting.episode;
            match waiting.finish(progress) {
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
        self.finished.sort_by_key(|(episode, _)| *episode);
        Ok(())
    }

    /// Everything, as it was before the build.
    pub(super) fn give_back(self) -> impl Iterator<Item = Waiting> {
        let whole = |(episode, finished)| Waiting { episode, ended: Ended::Whole(finished), set_aside: None };
        let waiting = self.queue.into_iter().map(|(waiting, _)| waiting);
        waiting.chain(self.failed.into_iter().map(|(waiting, _)| waiting)).chain(self.finished.into_iter().map(whole))
    }
}
