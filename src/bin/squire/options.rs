//! Options that several subcommands share: what the engine computes with.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use squire::backend::{Compute, KernelSet};
use squire::serve::{DeviceChoice, Engine, EngineOptions, LoadOptions, ServedModel, Session};

use crate::output::Failure;

/// What the engine computes with.
#[derive(clap::Args)]
pub struct EngineArgs {
    /// What activations are rounded to: f32 or bf16
    #[arg(long, value_name = "KIND", default_value = "bf16", value_parser = compute)]
    pub compute: Compute,
    /// Threads that compute; 0 takes one a core
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub threads: usize,
    /// Instruction set: scalar, avx2, avx512 or avx512-bf16; the best of the machine if not given
    #[arg(long, value_name = "SET", value_parser = kernels)]
    pub kernels: Option<KernelSet>,
    /// What to compute on: cpu, cuda, or best, which is the first GPU if it can be used
    #[arg(long, value_name = "NAME", default_value = "cpu", value_parser = ["cpu", "cuda", "best"])]
    pub backend: String,
    /// Which GPU, counted from 0, with --backend cuda
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub device: usize,
    /// Bytes of device memory that may be taken; 0 takes whatever is free
    #[arg(long, value_name = "BYTES", default_value_t = 0, allow_negative_numbers = true)]
    pub device_budget: u64,
}

impl EngineArgs {
    /// The engine's options.
    pub fn engine(&self) -> Result<EngineOptions, Failure> {
        let device = match self.backend.as_str() {
            "cuda" => DeviceChoice::Cuda { index: self.device },
            name if self.device != 0 => {
                return Err(Failure::Usage(format!("--device {} needs --backend cuda, found {name}", self.device)));
            }
            "best" => DeviceChoice::Best,
            _ => DeviceChoice::Cpu,
        };
        Ok(EngineOptions {
            device,
            device_budget: self.device_budget,
            compute: self.compute,
            n_threads: self.threads,
            kernels: self.kernels,
            ..EngineOptions::default()
        })
    }
}

/// A model to serve.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// The model folder
    pub dir: PathBuf,
    /// A folder with an adapter (LoRA) of the model, as PEFT or squire wrote it
    #[arg(long, value_name = "FOLDER")]
    pub adapter: Option<PathBuf>,
}

impl ModelArgs {
    /// The model, and a session on it or on its adapter.
    pub fn load(&self, engine: &EngineArgs) -> Result<(ServedModel, Session), Failure> {
        const NAME: &str = "adapter";
        let model = Engine::new(engine.engine()?)?.load(&self.dir, LoadOptions::default())?;
        let session = match &self.adapter {
            None => Session::new(&model)?,
            Some(folder) => {
                model.load_adapter(NAME, folder)?;
                Session::with_adapter(&model, NAME)?
            }
        };
        Ok((model, session))
    }
}

/// A kind of compute by its name.
pub fn compute(name: &str) -> Result<Compute, String> {
    let known = [Compute::F32, Compute::Bf16];
    known.into_iter().find(|c| c.name() == name).ok_or_else(|| "known are f32 and bf16".to_string())
}

fn kernels(name: &str) -> Result<KernelSet, String> {
    let names = KernelSet::ALL.map(KernelSet::name).join(", ");
    KernelSet::ALL.into_iter().find(|k| k.name() == name).ok_or_else(|| format!("known are {names}"))
}
