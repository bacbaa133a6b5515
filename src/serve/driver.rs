//! What drives the scheduler: a thread that steps while there is work and sleeps when there is none, or, in
//! caller-driven mode, the host. It knows jobs, and neither models nor sessions.
//!
//! A panic in a step poisons the driver: running jobs fail, their sessions are lost, every later call is refused, the
//! host lives on.
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::job::Job;
use super::log::{Level, Log};
use super::metrics::Counters;
use super::scheduler::Scheduler;
use crate::backend::cpu::FloatEnv;
use crate::error::{Error, Fault, Result};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};
use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded, unbounded};

/// Drives one scheduler. Dropping it ends its thread and waits for that.
pub(super) struct Driver {
    /// None while it is dropped
    inbox: Option<Sender<Message>>,
    status: Arc<Status>,
    log: Option<Log>,
    /// the scheduler that the host steps
    stepper: Option<Mutex<Stepper>>,
    worker: Option<JoinHandle<()>>,
}

/// How long a step in which nothing moves waits for news.
const A_WHILE: Duration = Duration::from_millis(1);

/// What everybody may look at.
#[derive(Default)]
struct Status {
    poisoned: AtomicBool,
    /// somebody cancelled a job, or a model was released, and the stepper is to look, whoever holds it
    news: AtomicBool,
    #[cfg(feature = "drill")]
    drill: AtomicBool,
}

enum Message {
    Work(Box<Job>),
    /// a model was released, or its memory is wanted; who wants it waits for the answer
    ForgetReleased(Option<Sender<()>>),
}

/// What came of a round.
#[derive(Clone, Copy, PartialEq)]
enum Round {
    /// There was no work.
    Idle,
    /// All wait for pages that are on their way.
    Waits,
    Ran,
}

/// A scheduler with its inbox.
struct Stepper {
    scheduler: Scheduler,
    arrivals: Receiver<Message>,
    counters: Arc<Counters>,
    status: Arc<Status>,
}

impl Stepper {
    fn arrive(&mut self, message: Message) {
        match message {
            Message::Work(job) => self.scheduler.add(*job),
            Message::ForgetReleased(answer) => {
                self.scheduler.forget_released();
                // Who asked may have gone.
                let _ = answer.map(|answer| answer.send(()));
            }
        }
    }

    fn take_arrivals(&mut self) {
        while let Ok(message) = self.arrivals.try_recv() {
            self.arrive(message);
        }
    }

    /// Takes what arrived and runs one round, within a time as far as that can be seen to.
    fn round(&mut self, budget: Option<Duration>) -> Result<Round> {
        self.take_arrivals();
        if self.status.poisoned.load(Ordering::Acquire) {
            self.scheduler.abandon(&poisoned());
            return Err(poisoned());
        }
        if self.scheduler.is_idle() {
            return Ok(Round::Idle);
        }
        self.scheduler.bound(budget);
        Ok(if self.guarded(Scheduler::step)? { Round::Ran } else { Round::Waits })
    }

    /// The same with all the time there is. Returns whether there was work.
    fn step(&mut self) -> Result<bool> {
        let round = self.round(None)?;
        if round == Round::Idle {
            return Ok(false);
        }
        if round == Round::Waits {
            // Pages are on their way to whoever waits: with work that has not arrived, with a session that somebody is just
            // using. Nobody wakes us for the second.
            match self.arrivals.recv_timeout(A_WHILE) {
                Ok(message) => self.arrive(message),
                Err(_) => std::thread::yield_now(),
            }
        }
        Ok(true)
    }

    /// Ends what was cancelled, without a round.
    fn end_cancelled(&mut self) -> Result<()> {
        self.take_arrivals();
        if self.scheduler.has_stopped() { self.guarded(Scheduler::end_stopped) } else { Ok(()) }
    }

    /// Runs `f`. A panic in it poisons the driver, fails every job, and is the error.
    fn guarded<T>(&mut self, f: impl FnOnce(&mut Scheduler, &Counters) -> T) -> Result<T> {
        #[cfg(feature = "drill")]
        let drilled = self.status.drill.load(Ordering::Acquire);
        #[cfg(not(feature = "drill"))]
        let drilled = false;
        let (scheduler, counters) = (&mut self.scheduler, &self.counters);
        let run = || {
            // A thread inherits its maker's mode, and the host may have set its own.
            let _floats = FloatEnv::scalars();
            assert!(!drilled, "a drill in a step");
            f(scheduler, counters)
        };
        catch_unwind(AssertUnwindSafe(run)).map_err(|payload| {
            let text = payload.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no text");
            let error = Error::new(Fault::Panic, format!("a step of the engine panicked, which poisons it: {text}"));
            self.status.poisoned.store(true, Ordering::Release);
            self.take_arrivals();
            self.scheduler.abandon(&error);
            // Dropping a payload could panic again.
            std::mem::forget(payload);
            error
        })
    }

    /// The worker thread: until the last sender is gone.
    fn run(mut self, log: Option<Log>) {
        loop {
            if self.scheduler.is_idle() {
                match self.arrivals.recv() {
                    Ok(message) => self.arrive(message),
                    Err(_) => return,
                }
            }
            report(&log, &self.step());
        }
    }
}

fn poisoned() -> Error {
    Error::new(Fault::Poisoned, "an earlier panic poisoned the engine; release it and make a new one")
}

fn stopped() -> Error {
    Error::new(Fault::EngineStopped, "the engine has stopped")
}

/// Whether a round that takes so long at least ends within what is left of a time.
fn fits(least: Option<Duration>, left: Duration) -> bool {
    !left.is_zero() && least.is_none_or(|least| least <= left)
}

/// Tells the host of a step that panicked.
fn report<T>(log: &Option<Log>, stepped: &Result<T>) {
    if let (Some(Log(log)), Err(e)) = (log, stepped)
        && e.fault() == Fault::Panic
    {
        log(Level::Error, "engine", e.message());
    }
}

impl Driver {
    /// A driver with a thread of its own, or one that the host steps.
    pub(super) fn new(
        scheduler: Scheduler,
        counters: &Arc<Counters>,
        log: Option<Log>,
        caller_driven: bool,
    ) -> Result<Driver> {
        let (inbox, arrivals) = unbounded();
        let status = Arc::new(Status::default());
        let stepper = Stepper { scheduler, arrivals, counters: counters.clone(), status: status.clone() };
        let mut driver = Driver { inbox: Some(inbox), status, log: log.clone(), stepper: None, worker: None };
        if caller_driven {
            driver.stepper = Some(Mutex::new(stepper));
        } else {
            let spawned = std::thread::Builder::new().name("squire-engine".into()).spawn(move || stepper.run(log));
            let cannot = |e| Error::new(Fault::OutOfHostMemory, format!("cannot start the engine's thread: {e}"));
            driver.worker = Some(spawned.map_err(cannot)?);
        }
        Ok(driver)
    }

    /// Test builds only: every step from now on panics.
    #[cfg(feature = "drill")]
    pub(super) fn drill_panic(&self) {
        self.status.drill.store(true, Ordering::Release);
    }

    pub(super) fn is_caller_driven(&self) -> bool {
        self.stepper.is_some()
    }

    /// Refuses once a panic poisoned it.
    pub(super) fn check_alive(&self) -> Result<()> {
        if self.status.poisoned.load(Ordering::Acquire) { Err(poisoned()) } else { Ok(()) }
    }

    pub(super) fn submit(&self, job: Job) -> Result<()> {
        self.send(Message::Work(Box::new(job)))
    }

    fn send(&self, message: Message) -> Result<()> {
        self.inbox.as_ref().ok_or_else(stopped)?.send(message).map_err(|_| stopped())
    }

    /// Runs one round in caller-driven mode and says whether there was work. Refused on a driver with a
    /// thread of its own. `Panic` where the round panicked, `Poisoned` ever after.
    pub(super) fn step(&self) -> Result<bool> {
        match &self.stepper {
            Some(stepper) => {
                let stepped = self.with(stepper, Stepper::step);
                report(&self.log, &stepped);
                stepped
            }
            None => Err(Error::new(Fault::OutOfOrder, "this engine steps itself; make it caller-driven to step it")),
        }
    }

    /// Runs rounds until a time is over, nothing is left or all wait, in caller-driven mode, and says whether there is work left.
    /// The first runs in any case, and no other one that by what was measured would end too late. Refused as `step` is.
    pub(super) fn step_for(&self, time: Duration) -> Result<bool> {
        let Some(stepper) = &self.stepper else { return self.step() };
        let begun = Instant::now();
        let mut last = None;
        loop {
            let left = time.saturating_sub(begun.elapsed());
            let round = Instant::now();
            let stepped = self.with(stepper, |stepper| {
                let least = stepper.scheduler.least_round().or(last);
                if last.is_some() && !fits(least, left) {
                    stepper.take_arrivals();
                    return Ok((Round::Waits, stepper.scheduler.is_idle()));
                }
                stepper.round(Some(left)).map(|round| (round, stepper.scheduler.is_idle()))
            });
            report(&self.log, &stepped);
            match stepped? {
                (Round::Ran, false) => last = Some(round.elapsed()),
                (_, is_idle) => return Ok(!is_idle),
            }
        }
    }

    /// Ends what was cancelled, in caller-driven mode, without running a round: else a generation that was let go of
    /// would stay until the host steps again, for ever if it never does. Where another thread is stepping, that one does
    /// it when its round is over, and nobody waits here.
    pub(super) fn end_cancelled(&self) {
        if let Some(stepper) = &self.stepper {
            self.status.news.store(true, Ordering::SeqCst);
            self.look_at_news(stepper);
        }
    }

    /// Runs `f` on the stepper, and then what others could not do meanwhile.
    fn with<T>(&self, stepper: &Mutex<Stepper>, f: impl FnOnce(&mut Stepper) -> T) -> T {
        let done = f(&mut stepper.lock());
        self.look_at_news(stepper);
        done
    }

    fn look_at_news(&self, stepper: &Mutex<Stepper>) {
        // Whoever holds the lock looks again after letting go of it, so no news is overlooked.
        while self.status.news.load(Ordering::SeqCst) {
            let Some(mut stepper) = stepper.try_lock() else { return };
            self.status.news.store(false, Ordering::SeqCst);
            let ended = stepper.end_cancelled();
            stepper.scheduler.forget_released();
            drop(stepper);
            report(&self.log, &ended);
        }
    }

    /// Waits for an answer, stepping where the caller drives.
    pub(super) fn wait<T>(&self, answer: &Receiver<T>) -> Result<T> {
        let stopped = || Error::new(Fault::EngineStopped, "the engine stopped before the call was done");
        if !self.is_caller_driven() {
            return answer.recv().map_err(|_| stopped());
        }
        loop {
            match answer.try_recv() {
                Ok(value) => return Ok(value),
                Err(TryRecvError::Disconnected) => return Err(stopped()),
                Err(TryRecvError::Empty) => drop(self.step()?),
            }
        }
    }

    /// Says that a model was released: memory that only its rounds needed goes. Waits for nothing.
    pub(super) fn model_released(&self) {
        match &self.stepper {
            Some(_) => self.end_cancelled(),
            // A driver that ends frees everything.
            None => drop(self.send(Message::ForgetReleased(None))),
        }
    }

    /// Frees the memory of models that were released, and waits until that is done.
    pub(super) fn forget_released(&self) {
        if let Some(stepper) = &self.stepper {
            return self.with(stepper, |stepper| stepper.scheduler.forget_released());
        }
        let (answer, done) = bounded(1);
        if self.send(Message::ForgetReleased(Some(answer))).is_ok() {
            // Nothing to wait for where the thread has ended.
            let _ = done.recv();
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Closing the inbox ends the worker. A host may let go of the last handle in a log line of that very thread; then
        // there is nobody to wait for.
        self.inbox = None;
        if let Some(worker) = self.worker.take()
            && worker.thread().id() != std::thread::current().id()
        {
            let _ = worker.join();
        }
    }
}
