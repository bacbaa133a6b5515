//! A teacher at work on one episode that ended: a local one computes in the rounds of its engine, which may be the student's or
//! another, and the host's is asked through its queue. Who waits for it keeps going whichever engine is driven by its caller.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, TryRecvError};

use super::teacher_queue::{Ask, TeacherQueue};
use super::teacher_request::{Asker, Said};
use super::trajectory::{Heading, Trajectory};
use super::workspace::Scores;
use crate::backend::host;
use crate::error::{Error, Fault, Result};
use crate::serve::{Cancel, Engine, Session};
use crate::text::source::Source;

/// How long whoever waits for a teacher waits before it looks whether it should go on.
pub(super) const SLICE: Duration = Duration::from_millis(20);

/// A teacher at work on one episode.
pub(super) enum Scoring {
    /// A model.
    Local(Local),
    /// The host's.
    Queue(Asked),
}

impl Scoring {
    /// Asks a model to compute all pending ids of its timeline. `engine`: the student's.
    pub(super) fn local(engine: &Engine, teacher: Session, next: Source) -> Scoring {
        Scoring::Local(Local::start(engine.clone(), teacher, next))
    }

    /// Asks the host's teacher for the tokens of a record that carry a loss which needs it, as it is shown them; None where there
    /// is none.
    pub(super) fn queue(
        queue: &TeacherQueue,
        engine: &Engine,
        (distiller, trajectory): (u64, &Trajectory),
        vocabulary: usize,
    ) -> Result<Option<Scoring>> {
        let turns = || trajectory.turns().iter().filter(|turn| turn.train && turn.loss.needs_teacher());
        let mut positions = host::with_room(turns().map(|turn| turn.range.len()).sum())?;
        positions.extend(turns().flat_map(|turn| turn.range.clone().map(|at| trajectory.view().position(at))));
        let Some(last) = positions.last() else { return Ok(None) };
        let Heading { episode, step, revision, .. } = trajectory.heading;
        let asker = Asker { distiller, episode, step, revision };
        let ids = &trajectory.teacher_ids()?[..=*last];
        let mut asked = Asked::new(queue, engine, asker, ids, positions, vocabulary)?;
        // Refused now, it is asked again when an update is built.
        let _ = asked.start();
        Ok(Some(Scoring::Queue(asked)))
    }

    /// Asks where nobody is asked yet, so that all of a build are asked before any is waited for.
    pub(super) fn start(&mut self) {
        if let Scoring::Queue(asked) = self {
            // Refused, whoever waits for it is told.
            let _ = asked.start();
        }
    }

    /// Waits for the teacher; `progress` is asked every now and then. Where it says no, that is `Cancelled`, and the teacher
    /// goes on for whoever asks next. `since`: when the caller began to wait for this one and others.
    pub(super) fn scores(&mut self, since: Instant, progress: &mut dyn FnMut() -> bool) -> Result<Scores> {
        match self {
            Scoring::Local(local) => local.scores(progress),
            Scoring::Queue(asked) => asked.said(since, progress).map(Scores::Said),
        }
    }

    /// Gives back what it holds while nobody waits for it, and asks again from the beginning where that costs nothing: the host
    /// may answer until the next build.
    pub(super) fn give_up(&mut self) {
        match self {
            // Its pages go to others; what was computed is computed again, by the adapter that the episode was begun with if
            // that has a name. A session that is lost has none.
            Scoring::Local(local) => drop(match local.teacher.revision().name {
                None => local.teacher.rebase().map(drop),
                Some(_) => local.teacher.give_up_pages(),
            }),
            Scoring::Queue(asked) => drop(asked.start()),
        }
    }
}

fn cancelled() -> Error {
    Error::new(Fault::Cancelled, "the update was cancelled")
}

/// The host's teacher, asked for the tokens of one episode.
pub(super) struct Asked {
    queue: TeacherQueue,
    /// the student's
    engine: Engine,
    asker: Asker,
    ids: Vec<i32>,
    positions: Vec<usize>,
    vocabulary: usize,
    /// None until it is asked, and after it failed
    ask: Option<Ask>,
}

impl Asked {
    /// Nobody is asked yet. `engine`: the student's, which is stepped meanwhile where its caller drives it.
    pub(super) fn new(
        queue: &TeacherQueue,
        engine: &Engine,
        asker: Asker,
        ids: &[i32],
        positions: Vec<usize>,
        vocabulary: usize,
    ) -> Result<Asked> {
        let (queue, engine, ids) = (queue.clone(), engine.clone(), host::collected(ids.iter().copied())?);
        Ok(Asked { queue, engine, asker, ids, positions, vocabulary, ask: None })
    }

    /// Asks, where nobody is asked yet.
    pub(super) fn start(&mut self) -> Result<()> {
        if self.ask.is_none() {
            self.ask = Some(self.queue.ask(self.asker, &self.ids, &self.positions, self.vocabulary)?);
        }
        Ok(())
    }

    /// Waits for the answer, as [`Scoring::scores`].
    pub(super) fn said(&mut self, since: Instant, progress: &mut dyn FnMut() -> bool) -> Result<Said> {
        self.start()?;
        let missing = || Error::new(Fault::TeacherFailed, "nobody was asked");
        let ask = self.ask.take().ok_or_else(missing)?;
        loop {
            // Where the caller drives the engine, sessions go on meanwhile.
            let is_at_work = self.engine.is_caller_driven() && self.engine.step()?;
            match ask.wait(if is_at_work { Duration::ZERO } else { SLICE }, since)? {
                Some(said) => return Ok(said),
                None if progress() => {}
                None => {
                    self.ask = Some(ask);
                    return Err(cancelled());
                }
            }
        }
    }
}

/// A local teacher at work on one episode.
pub(super) struct Local {
    /// the student's
    engine: Engine,
    teacher: Session,
    /// who wrote the token that follows the teacher's timeline
    next: Source,
    cancel: Cancel,
    /// None until it is asked, and after it failed
    answer: Option<Receiver<Result<()>>>,
}

impl Local {
    fn start(engine: Engine, teacher: Session, next: Source) -> Local {
        let mut scoring = Local { engine, teacher, next, cancel: Cancel::default(), answer: None };
        // Refused now, it is asked again when an update is built.
        scoring.answer = scoring.teacher.start_prefill(&scoring.cancel, Some(next)).ok();
        scoring
    }

    /// Waits for the teacher; `progress` is asked every now and then. Where it says no, that is `Cancelled`, and the teacher
    /// computes on for whoever asks next.
    fn scores(&mut self, progress: &mut dyn FnMut() -> bool) -> Result<Scores> {
        if self.answer.is_none() {
            let asked = self.teacher.start_prefill(&self.cancel, Some(self.next));
            self.answer = Some(asked.map_err(|e| self.of_teacher(e))?);
        }
        while let Some(answer) = &self.answer {
            // Where the caller drives the student's engine, and that is another, its sessions go on meanwhile.
            let own_steps = self.is_elsewhere() && self.engine.is_caller_driven();
            let is_at_work = own_steps && self.engine.step()?;
            match self.wait_a_moment(answer, if is_at_work { Duration::ZERO } else { SLICE }) {
                Ok(None) if progress() => {}
                Ok(None) => return Err(cancelled()),
                Ok(Some(told)) => {
                    self.answer = None;
                    told.map_err(|e| self.of_teacher(e))?;
                }
                Err(e) => {
                    self.answer = None;
                    return Err(self.of_teacher(e));
                }
            }
        }
        let hidden = self.teacher.take_hidden().map_err(|e| self.of_teacher(e))?;
        Ok(Scores::Hidden { hidden, revision: self.teacher.revision() })
    }

    /// Whether the teacher's engine is not the student's.
    fn is_elsewhere(&self) -> bool {
        !self.teacher.model().engine().is(&self.engine)
    }

    /// Tells whose engine it was, whose memory was short say, where there are two.
    fn of_teacher(&self, e: Error) -> Error {
        if self.is_elsewhere() { e.within("the teacher's engine") } else { e }
    }

    /// The answer, None where it is still to come. Steps the teacher's engine where the caller drives it.
    fn wait_a_moment(&self, answer: &Receiver<Result<()>>, slice: Duration) -> Result<Option<Result<()>>> {
        let stopped = || Error::new(Fault::EngineStopped, "the engine stopped before the teacher was done");
        let engine = self.teacher.model().engine();
        if engine.is_caller_driven() {
            return match answer.try_recv() {
                Ok(answer) => Ok(Some(answer)),
                Err(TryRecvError::Disconnected) => Err(stopped()),
                Err(TryRecvError::Empty) => engine.step().map(|_| None),
            };
        }
        match answer.recv_timeout(slice) {
            Ok(answer) => Ok(Some(answer)),
            Err(RecvTimeoutError::Disconnected) => Err(stopped()),
            Err(RecvTimeoutError::Timeout) => Ok(None),
        }
    }
}

impl Drop for Local {
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
