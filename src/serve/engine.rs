//! The engine: a device, what drives it, and what all its models share.
#![forbid(unsafe_code)]

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;

use super::device;
use super::driver::Driver;
use super::job::Job;
use super::log::{Level, Log};
use super::metrics::{Counters, Metrics};
use super::options::EngineOptions;
use super::scheduler::Scheduler;
use crate::backend::Device;
use crate::error::{Error, Fault, Result};
use crate::model::KvPool;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};

/// An engine. Cheap to clone; clones are the same engine. It ends with its last clone, model and session, and its threads
/// are gone then.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    driver: Driver,
    options: EngineOptions,
    device: Device,
    counters: Arc<Counters>,
    /// bytes of weights that revisions hold, and of what updates reserve
    host_bytes: Arc<AtomicU64>,
    /// of its models
    pools: Mutex<Vec<Weak<KvPool>>>,
}

impl Engine {
    /// Makes an engine on the device that the options name.
    pub fn new(options: EngineOptions) -> Result<Engine> {
        options.check()?;
        let (device, what) = device::open(&options)?;
        let counters = Arc::new(Counters::default());
        device.set_slice(options.learning_slice);
        let scheduler = Scheduler::new(device.clone(), options.max_batch_tokens, options.prefill_slice);
        let driver = Driver::new(scheduler, &counters, options.log.clone(), options.caller_driven)?;
        let engine = Engine(Arc::new(Inner {
            driver,
            options,
            device,
            counters,
            host_bytes: Arc::default(),
            pools: Mutex::default(),
        }));
        engine.log(Level::Info, "engine", &what);
        Ok(engine)
    }

    /// Tells the host of a phase of loading that began at `begun` and is over.
    pub(super) fn log_phase(&self, phase: &str, what: &str, begun: Instant) {
        self.log(Level::Info, "model", &format!("{phase}: {what}, {:.3} s", begun.elapsed().as_secs_f64()));
    }

    /// Tells the host, if it listens. Call it with no lock held.
    pub(crate) fn log(&self, level: Level, target: &str, message: &str) {
        if let Some(Log(log)) = &self.0.options.log {
            log(level, target, message);
        }
    }

    /// Whether the host listens to its log.
    pub(super) fn is_heard(&self) -> bool {
        self.0.options.log.is_some()
    }

    /// Test builds only: every step from now on panics.
    #[cfg(feature = "drill")]
    pub fn drill_panic(&self) {
        self.0.driver.drill_panic();
    }

    /// How it was made.
    pub fn options(&self) -> &EngineOptions {
        &self.0.options
    }

    /// Whether two handles are one engine.
    pub fn is(&self, other: &Engine) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// Whether the host steps it.
    pub fn is_caller_driven(&self) -> bool {
        self.0.driver.is_caller_driven()
    }

    /// A snapshot of its counters.
    pub fn metrics(&self) -> Metrics {
        let mut metrics = Metrics { weight_bytes: self.0.device.weight_bytes(), ..self.0.counters.snapshot() };
        metrics.weight_bytes_per_round = metrics.round_weight_bytes.checked_div(metrics.rounds).unwrap_or(0);
        for pool in self.0.pools.lock().iter().filter_map(Weak::upgrade) {
            let [in_use, idle, budget] = pool.bytes();
            metrics.kv_in_use_bytes = metrics.kv_in_use_bytes.saturating_add(in_use);
            metrics.kv_idle_bytes = metrics.kv_idle_bytes.saturating_add(idle);
            metrics.kv_budget_bytes = metrics.kv_budget_bytes.saturating_add(budget);
        }
        metrics
    }

    /// Counts a pool's pages from now on, for as long as it exists.
    pub(super) fn watch_pool(&self, pool: &Arc<KvPool>) {
        let mut pools = self.0.pools.lock();
        pools.retain(|pool| pool.strong_count() > 0);
        pools.push(Arc::downgrade(pool));
    }

    pub(super) fn counters(&self) -> &Arc<Counters> {
        &self.0.counters
    }

    /// Refuses once a failure poisoned the engine, or its device is lost.
    pub fn check_alive(&self) -> Result<()> {
        self.0.driver.check_alive()?;
        self.0.device.check_present()
    }

    /// Runs one round in caller-driven mode and says whether there was work. Refused on an engine with a
    /// thread of its own. [`Fault::Panic`] where the round panicked, [`Fault::Poisoned`] ever after.
    pub fn step(&self) -> Result<bool> {
        self.0.driver.step()
    }

    /// Runs rounds for about `time` in caller-driven mode, and says whether there is work left: until the time is over, nothing is
    /// left, or all wait. At least one, however short the time; another one only where it ends in time by what was measured, and
    /// rows of prompts as many as fit, where the device tells how long they take (the processor does). Refused as
    /// [`Engine::step`] is.
    pub fn step_for(&self, time: Duration) -> Result<bool> {
        self.0.driver.step_for(time)
    }

    /// Ends what was cancelled, in caller-driven mode, without running a round.
    pub(crate) fn end_cancelled(&self) {
        self.0.driver.end_cancelled();
    }

    pub(super) fn submit(&self, job: Job) -> Result<()> {
        self.0.driver.submit(job)
    }

    /// Waits for an answer, stepping where the caller drives.
    pub(crate) fn wait<T>(&self, answer: &Receiver<T>) -> Result<T> {
        self.0.driver.wait(answer)
    }

    /// Says that a model was released, whose rounds' memory can go.
    pub(super) fn model_released(&self) {
        self.0.driver.model_released();
    }

    /// Frees what released models' rounds needed, and waits for that: what follows counts what is free.
    pub(super) fn forget_released(&self) {
        self.0.driver.forget_released();
    }

    /// Refuses weights of `needed` bytes that do not fit into the host budget beside those of other models and what updates hold.
    pub(super) fn check_budget(&self, needed: u64) -> Result<()> {
        let (budget, held) = (self.0.options.host_budget, self.0.host_bytes.load(Ordering::Relaxed));
        if budget > 0 && needed > budget.saturating_sub(held) {
            return Err(self.beyond_budget("the weights need", needed, held));
        }
        Ok(())
    }

    /// The refusal of what needs so many bytes where others hold so many.
    pub(super) fn beyond_budget(&self, what: &str, needed: u64, held: u64) -> Error {
        let budget = self.0.options.host_budget;
        let free = budget.saturating_sub(held);
        let why = format!("{what} {needed} bytes, of the host budget of {budget} are {free} free");
        Error::memory(Fault::HostBudget, needed, free, why)
    }

    pub(super) fn host_bytes(&self) -> &Arc<AtomicU64> {
        &self.0.host_bytes
    }
}
