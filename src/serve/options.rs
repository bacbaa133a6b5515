//! How to make an engine.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::log::Log;
use crate::backend::cpu::SLICE;
use crate::backend::{Compute, KernelSet};
use crate::error::{Error, Fault, Result};

/// Which device an engine computes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The host's processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda {
        /// Which of the machine's, counted from 0.
        index: usize,
    },
    /// The first GPU if it can be used, else the processor.
    Best,
}

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
    /// Bytes that the weights of all models and the updates of their distillers together may take; 0: no limit. Looked at
    /// when a model is made, a distiller is made, and before an update is built.
    pub host_budget: u64,
    /// Bytes of device memory that may be taken in all; 0: whatever is free. No matter on the processor.
    pub device_budget: u64,
    /// Bytes that each model's KV pages may take.
    pub kv_budget: u64,
    /// Of them, bytes that each model's pages may take that no session holds, kept for whoever asks for the same ids.
    pub prefix_budget: u64,
    /// Sessions that may exist.
    pub max_sessions: usize,
    /// Rows of one round.
    pub max_batch_tokens: usize,
    /// How long the rows of prompts may keep those who decode waiting in one round, as measured (`pace`); None: as long as
    /// `max_batch_tokens` of them take.
    pub prefill_slice: Option<Duration>,
    /// How long an update that is being built or applied may keep a round waiting at a time; None: until it is done.
    pub learning_slice: Option<Duration>,
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
            prefix_budget: 1 << 30,
            max_sessions: 1024,
            max_batch_tokens: 512,
            prefill_slice: Some(Duration::from_millis(10)),
            learning_slice: Some(SLICE),
            caller_driven: false,
            log: None,
        }
    }
}

impl EngineOptions {
    /// Refuses values outside their range.
    pub(super) fn check(&self) -> Result<()> {
        for (name, value) in [("max_sessions", self.max_sessions), ("max_batch_tokens", self.max_batch_tokens)] {
            if value == 0 || value > 1 << 20 {
                let why = format!("{name} must lie between 1 and {}, found {value}", 1 << 20);
                return Err(Error::new(Fault::BadOption, why));
            }
        }
        if self.learning_slice == Some(Duration::ZERO) {
            let why = "learning_slice must be longer than nothing: an update would do one task between two rounds";
            return Err(Error::new(Fault::BadOption, why));
        }
        if self.n_threads > 1024 {
            let why = format!("n_threads must be at most 1024, found {}", self.n_threads);
            return Err(Error::new(Fault::BadOption, why));
        }
        Ok(())
    }
}
