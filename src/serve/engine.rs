//! The engine: a device, the models on it, and the thread that steps them.
//!
//! By default one worker thread steps while there is work and sleeps when there is none. In caller-driven
//! mode there is no thread: the host steps, or whatever blocks steps for itself. A panic in a step poisons
//! the engine: running calls fail, their sessions are lost, every later call is refused, the host lives on.
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender, TryRecvError, unbounded};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::cancel::Cancel;
use super::device::{self, DeviceChoice};
use super::job::Job;
use super::log::{Level, Log};
use super::metrics::{Counters, Metrics};
use super::model::{LoadOptions, ServedModel};
use super::scheduler::Scheduler;
use crate::backend::{Compute, Device, KernelSet};
use crate::error::{Error, Fault, Result};
use crate::format::{ModelDir, within_folder};
use crate::model::{Load, MemoryPlan, ModelConfig};
use crate::tensor::Dtype;

/// How to make an engine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// What it computes on.
    pub device: DeviceChoice,
    /// Threads that compute, the engine's own included; 0: one a core.
    pub n_threads: usize,
    /// The instruction set; None: the best of the machine.
    pub kernels: Option<KernelSet>,
    /// What activations are rounded to.
    pub compute: Compute,
    /// Bytes that the weights of all models together may take; 0: no limit. Looked at when a model is made.
    pub host_budget: u64,
    /// Bytes of device memory that may be taken in all; 0: whatever is free. No matter on the processor.
    pub device_budget: u64,
    /// Bytes that each model's KV pages may take.
    pub kv_budget: u64,
    /// Sessions that may exist.
    pub max_sessions: usize,
    /// Rows of one round.
    pub max_batch_tokens: usize,
    /// Whether the host steps the engine, and no thread of its own exists.
    pub caller_driven: bool,
    /// Who hears the log lines.
    pub log: Option<Log>,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            device: DeviceChoice::Cpu,
            n_threads: 0,
            kernels: None,
            compute: Compute::Bf16,
            host_budget: 0,
            device_budget: 0,
            kv_budget: 4 << 30,
            max_sessions: 1024,
            max_batch_tokens: 512,
            caller_driven: false,
            log: None,
        }
    }
}

/// An engine. Cheap to clone; clones are the same engine. It ends with its last clone, model and session.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    options: EngineOptions,
    device: Device,
    counters: Arc<Counters>,
    /// bytes of weights that revisions hold
    weight_bytes: Arc<AtomicU64>,
    inbox: Option<Sender<Job>>,
    poisoned: Arc<AtomicBool>,
    /// the scheduler of a caller-driven engine
    stepper: Option<Mutex<Stepper>>,
    worker: Option<JoinHandle<()>>,
    #[cfg(feature = "drill")]
    drill: Arc<AtomicBool>,
}

/// A scheduler with its inbox.
struct Stepper {
    scheduler: Scheduler,
    arrivals: Receiver<Job>,
    counters: Arc<Counters>,
    poisoned: Arc<AtomicBool>,
    #[cfg(feature = "drill")]
    drill: Arc<AtomicBool>,
}

impl Stepper {
    fn take_arrivals(&mut self) {
        while let Ok(job) = self.arrivals.try_recv() {
            self.scheduler.add(job);
        }
    }

    /// Takes what arrived and runs one round. Returns whether there was work. A panic poisons the engine and fails
    /// every job; it is the error of the step that it fell into.
    fn step(&mut self) -> Result<bool> {
        self.take_arrivals();
        if self.poisoned.load(Ordering::Acquire) {
            self.scheduler.abandon(&poisoned());
            return Err(poisoned());
        }
        if self.scheduler.is_idle() {
            return Ok(false);
        }
        #[cfg(feature = "drill")]
        let drilled = self.drill.load(Ordering::Acquire);
        #[cfg(not(feature = "drill"))]
        let drilled = false;
        let (scheduler, counters) = (&mut self.scheduler, &self.counters);
        let stepped = catch_unwind(AssertUnwindSafe(|| {
            assert!(!drilled, "a drill in a step");
            scheduler.step(counters)
        }));
        stepped.map(|()| true).map_err(|payload| {
            let text = payload.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no text");
            let error = Error::new(Fault::Panic, format!("a step of the engine panicked, which poisons it: {text}"));
            self.poisoned.store(true, Ordering::Release);
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
                    Ok(job) => self.scheduler.add(job),
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

/// Tells the host of a step that panicked.
fn report<T>(log: &Option<Log>, stepped: &Result<T>) {
    if let (Some(Log(log)), Err(e)) = (log, stepped)
        && e.fault() == Fault::Panic
    {
        log(Level::Error, "engine", e.message());
    }
}

impl Engine {
    /// Makes an engine on the device that the options name.
    pub fn new(options: EngineOptions) -> Result<Engine> {
        for (name, value) in [("max_sessions", options.max_sessions), ("max_batch_tokens", options.max_batch_tokens)] {
            if value == 0 || value > 1 << 20 {
                let why = format!("{name} must lie between 1 and {}, found {value}", 1 << 20);
                return Err(Error::new(Fault::BadOption, why));
            }
        }
        if options.n_threads > 1024 {
            let why = format!("n_threads must be at most 1024, found {}", options.n_threads);
            return Err(Error::new(Fault::BadOption, why));
        }
        let (device, what) = device::open(&options)?;
        let (counters, poisoned) = (Arc::new(Counters::default()), Arc::new(AtomicBool::new(false)));
        #[cfg(feature = "drill")]
        let drill = Arc::new(AtomicBool::new(false));
        let (inbox, arrivals) = unbounded();
        let stepper = Stepper {
            scheduler: Scheduler::new(options.max_batch_tokens),
            arrivals,
            counters: counters.clone(),
            poisoned: poisoned.clone(),
            #[cfg(feature = "drill")]
            drill: drill.clone(),
        };
        let (mut worker, mut own_stepper) = (None, None);
        if options.caller_driven {
            own_stepper = Some(Mutex::new(stepper));
        } else {
            let log = options.log.clone();
            let spawned = std::thread::Builder::new().name("squire-engine".into()).spawn(move || stepper.run(log));
            worker =
                Some(spawned.map_err(|e| {
                    Error::new(Fault::OutOfHostMemory, format!("cannot start the engine's thread: {e}"))
                })?);
        }
        let inbox = Some(inbox);
        let engine = Engine(Arc::new(Inner {
            options,
            device,
            counters,
            weight_bytes: Arc::default(),
            inbox,
            poisoned,
            stepper: own_stepper,
            worker,
            #[cfg(feature = "drill")]
            drill,
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
        self.0.drill.store(true, Ordering::Release);
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
        self.0.stepper.is_some()
    }

    /// A snapshot of its counters.
    pub fn metrics(&self) -> Metrics {
        Metrics { weight_bytes: self.0.device.weight_bytes(), ..self.0.counters.snapshot() }
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// Refuses once a failure poisoned the engine, or its device is lost.
    pub fn check_alive(&self) -> Result<()> {
        if self.0.poisoned.load(Ordering::Acquire) {
            return Err(poisoned());
        }
        self.0.device.check_present()
    }

    /// Runs one round in caller-driven mode and says whether there was work. Refused on an engine with a
    /// thread of its own. [`Fault::Panic`] where the round panicked, [`Fault::Poisoned`] ever after.
    pub fn step(&self) -> Result<bool> {
        match &self.0.stepper {
            Some(stepper) => {
                let stepped = stepper.lock().step();
                report(&self.0.options.log, &stepped);
                stepped
            }
            None => Err(Error::new(Fault::OutOfOrder, "this engine steps itself; make it caller-driven to step it")),
        }
    }

    /// Ends what was cancelled without running a round, in caller-driven mode: else a dropped generation would
    /// stay until the host steps again, and keep the engine alive if it never does.
    pub(crate) fn end_cancelled(&self) {
        if let Some(stepper) = &self.0.stepper {
            let mut stepper = stepper.lock();
            stepper.take_arrivals();
            let Stepper { scheduler, counters, .. } = &mut *stepper;
            scheduler.end_cancelled(counters);
        }
    }

    pub(super) fn submit(&self, job: Job) -> Result<()> {
        let stopped = || Error::new(Fault::EngineStopped, "the engine has stopped");
        self.0.inbox.as_ref().ok_or_else(stopped)?.send(job).map_err(|_| stopped())
    }

    /// Waits for an answer, stepping where the caller drives.
    pub(crate) fn wait<T>(&self, answer: Receiver<T>) -> Result<T> {
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

    /// Loads a model folder. Fails with `HostBudget` or `DeviceBudget` before anything is made if the plan does not fit.
    pub fn load(&self, path: &Path, options: LoadOptions) -> Result<ServedModel> {
        self.load_watched(path, options, &Cancel::default(), &mut |_, _| true)
    }

    /// The same; `progress` is told bytes of weights done and in all and may stop it by returning false.
    pub fn load_watched(
        &self,
        path: &Path,
        options: LoadOptions,
        cancel: &Cancel,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<ServedModel> {
        self.check_alive()?;
        let begun = Instant::now();
        let context = |e| within_folder(e, path);
        if self.0.options.host_budget > 0 || self.0.device.free_bytes()?.is_some() {
            let (plan, _) = self.memory_plan(path, options)?;
            match (plan.device(), self.0.device.free_bytes()?) {
                (Some(needed), Some(free)) if needed > free => {
                    let why = format!("the model needs {needed} bytes of device memory, {free} are free");
                    return Err(context(Error::memory(Fault::DeviceBudget, needed, free, why)));
                }
                (Some(_), _) => {}
                (None, _) => self.check_budget(plan.weights).map_err(context)?,
            }
        }
        let go_on = &mut |done, all| {
            if progress(done, all) && !cancel.is_set() {
                return Ok(());
            }
            Err(Error::new(Fault::Cancelled, "loading was cancelled"))
        };
        let model = ServedModel::load(self, path, options, go_on).map_err(context)?;
        let (weights, at) = (&model.current().weights, path.display());
        let (parameters, bytes) = (weights.n_parameters(), weights.bytes());
        let context = model.model().max_context();
        let what = format!("{at}, {parameters} parameters in {bytes} bytes, context of {context} tokens");
        self.log_phase("ready", &what, begun);
        for warning in model.warnings() {
            self.log(Level::Warning, "model", &format!("{at}: {warning}"));
        }
        Ok(model)
    }

    /// Refuses weights of `needed` bytes that do not fit into the host budget beside those of other models.
    pub(super) fn check_budget(&self, needed: u64) -> Result<()> {
        let (budget, held) = (self.0.options.host_budget, self.0.weight_bytes.load(Ordering::Relaxed));
        let free = budget.saturating_sub(held);
        if budget > 0 && needed > free {
            let why = format!("the weights need {needed} bytes, of the host budget of {budget} are {free} free");
            return Err(Error::memory(Fault::HostBudget, needed, free, why));
        }
        Ok(())
    }

    pub(super) fn weight_bytes(&self) -> &Arc<AtomicU64> {
        &self.0.weight_bytes
    }

    /// A model with random weights and no tokenizer, for benches and tests; a function of the seed.
    pub fn random_model(
        &self,
        config: ModelConfig,
        dtype: Dtype,
        seed: u64,
        max_context: usize,
    ) -> Result<ServedModel> {
        ServedModel::random(self, config, dtype, seed, max_context)
    }

    /// What a model folder would need, before anything is allocated. Bytes throughout.
    pub fn plan(&self, path: &Path, options: LoadOptions) -> Result<Value> {
        let (plan, found) = self.memory_plan(path, options)?;
        let free = self.0.device.free_bytes()?;
        Ok(json!({
            "parameters": found.parameters,
            "weight_bytes": found.stored,
            "weights_are": if plan.on_device { "on the device" } else if options.copy { "copied" } else { "mapped" },
            "device_bytes": plan.device(),
            "device_bytes_free": free,
            "kv_bytes_per_token": plan.kv_per_token,
            "kv_bytes_per_full_session": plan.kv_session(),
            "kv_budget": self.0.options.kv_budget,
            "activation_bytes": plan.activations + plan.scratch,
            "logit_bytes": plan.head,
            "table_bytes": plan.rotary_table,
            "training_bytes": plan.training.fixed(),
            "max_context": plan.max_context,
            "warnings": found.warnings,
        }))
    }

    /// The plan of a model folder, and what was found in it.
    fn memory_plan(&self, path: &Path, options: LoadOptions) -> Result<(MemoryPlan, Found)> {
        let plan = || {
            let mut dir = ModelDir::open(path)?;
            let config = ModelConfig::of_folder(&mut dir)?;
            dir.generation_defaults();
            let stored = dir.tensors.values().map(|t| t.bytes.len() as u64).sum();
            let parameters = dir.tensors.values().map(|t| t.shape.elements() as u64).sum();
            let (max_context, rows) = (options.max_context, self.0.options.max_batch_tokens);
            let load = Load { max_context, rows, parameters, stored };
            let plan = MemoryPlan::new(&config, &self.0.device, self.0.options.compute, load)?;
            Ok((plan, Found { parameters, stored, warnings: dir.warnings }))
        };
        plan().map_err(|e| within_folder(e, path))
    }
}

/// What a model folder holds, for its plan.
struct Found {
    parameters: u64,
    stored: u64,
    warnings: Vec<String>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Closing the inbox ends the worker. The last handle may be dropped on the worker itself, by a job
        // it finishes; then there is nobody to wait for.
        self.inbox = None;
        if let Some(worker) = self.worker.take()
            && worker.thread().id() != std::thread::current().id()
        {
            let _ = worker.join();
        }
    }
}
