//! What a model runs on.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::cpu::{Cpu, Round, Work};
use super::cuda::{Buffer, Cuda, GraphKey, Graphs};
use super::host::Lines;
use crate::error::Result;
use crate::tensor::Dtype;

/// A device. An enum and not a type parameter: the caller picks it at run time, and one device can judge
/// another in one process.
#[derive(Clone)]
pub enum Device {
    /// The host's processor.
    Cpu(Cpu),
    /// An NVIDIA GPU, or in tests the shim that stands for one.
    Cuda(Cuda),
}

impl Device {
    /// Host threads that it computes with; 1 where the host only asks.
    pub fn n_threads(&self) -> usize {
        match self {
            Device::Cpu(cpu) => cpu.n_threads(),
            Device::Cuda(_) => 1,
        }
    }

    /// A turn to compute a round in, which somebody waits for; None where launches are ordered by the device itself.
    pub fn round(&self) -> Option<Round<'_>> {
        match self {
            Device::Cpu(cpu) => Some(cpu.round()),
            Device::Cuda(_) => None,
        }
    }

    /// From here on, until the guard goes, what the thread computes gives way to rounds. None where nothing is cut.
    pub fn work_that_waits(&self) -> Option<Work<'_>> {
        match self {
            Device::Cpu(cpu) => Some(cpu.work_that_waits()),
            Device::Cuda(_) => None,
        }
    }

    /// Calls `f` as a thread that is at no such work: it may take its time, and wait for rounds itself.
    pub fn at_rest<T>(&self, f: impl FnOnce() -> T) -> T {
        match self {
            Device::Cpu(cpu) => cpu.at_rest(f),
            Device::Cuda(_) => f(),
        }
    }

    /// Calls `f`, which computes on `other`, as work that gives way to that one's rounds and keeps none waiting here.
    pub fn working_on<T>(&self, other: &Device, f: impl FnOnce() -> T) -> T {
        match (self, other) {
            (Device::Cpu(own), Device::Cpu(other)) => own.working_on(other, f),
            _ => f(),
        }
    }

    /// How long such work may keep a round waiting at a time; None: until it is done.
    pub fn set_slice(&self, slice: Option<Duration>) {
        if let Device::Cpu(cpu) = self {
            cpu.set_slice(slice);
        }
    }

    /// Bytes of weights that forward products have read so far; 0 where nobody counts them.
    pub fn weight_bytes(&self) -> u64 {
        match self {
            Device::Cpu(cpu) => cpu.weight_bytes(),
            Device::Cuda(_) => 0,
        }
    }

    /// The processor, for ops that exist there alone: gradients and the optimiser. Models on other devices are refused
    /// by the distiller, so nobody comes here with one.
    pub fn cpu(&self) -> &Cpu {
        match self {
            Device::Cpu(cpu) => cpu,
            Device::Cuda(_) => panic!("this op exists on the CPU alone"),
        }
    }

    /// What activations are kept as: rounded values in f32 on the CPU, bf16 on a GPU.
    pub fn activation_dtype(&self) -> Dtype {
        match self {
            Device::Cpu(_) => Dtype::F32,
            Device::Cuda(_) => Dtype::Bf16,
        }
    }

    /// Runs what `record` launches. On a GPU the launches of a key are recorded the first time and replayed from then on, so
    /// `record` must launch the same for the same key, and what differs must lie in device memory.
    pub fn replay(&self, graphs: &mut Graphs, key: GraphKey, record: impl FnOnce() -> Result<()>) -> Result<()> {
        match self {
            Device::Cpu(_) => record(),
            Device::Cuda(cuda) => cuda.replay(graphs, key, record),
        }
    }

    /// Whether a piece of so many bytes that is given back is at once, and at no cost, the next request's.
    pub fn reuses_memory(&self, bytes: usize) -> bool {
        matches!(self, Device::Cuda(_)) && Buffer::is_carved(bytes)
    }

    /// What a tensor of so many bytes takes of the memory that it lies in.
    pub fn taken(&self, bytes: usize) -> u64 {
        match self {
            Device::Cpu(_) => Lines::taken(bytes) as u64,
            Device::Cuda(_) => Buffer::taken_by(bytes),
        }
    }

    /// Gives back what is kept for the next op and nobody uses.
    pub fn release_scratch(&self) {
        if let Device::Cpu(cpu) = self {
            cpu.release_scratch();
        }
    }

    /// Memory of the device's own; None where tensors lie in host memory.
    pub fn allocate(&self, bytes: usize) -> Result<Option<Buffer>> {
        match self {
            Device::Cpu(_) => Ok(None),
            Device::Cuda(cuda) => cuda.allocate(bytes).map(Some),
        }
    }

    /// Bytes of its own memory that can still be had; None where tensors lie in host memory.
    pub fn free_bytes(&self) -> Result<Option<u64>> {
        match self {
            Device::Cpu(_) => Ok(None),
            Device::Cuda(cuda) => cuda.free().map(Some),
        }
    }

    /// Whether gradients and optimisers exist for it.
    pub fn trains(&self) -> bool {
        matches!(self, Device::Cpu(_))
    }

    /// Whether rows of all kinds may share a forward pass at no loss. Where not, rows that decode have one of their own.
    pub fn mixes_rows(&self) -> bool {
        matches!(self, Device::Cpu(_))
    }

    /// Whether results come later than they are asked for, so that it pays to ask for the next step meanwhile.
    pub fn runs_ahead(&self) -> bool {
        matches!(self, Device::Cuda(_))
    }

    /// Refuses, with `DeviceLost`, once the device is gone.
    pub fn check_present(&self) -> Result<()> {
        match self {
            Device::Cpu(_) => Ok(()),
            Device::Cuda(cuda) => cuda.check_present(),
        }
    }

    /// Waits for all that was launched and tells the first failure.
    pub fn finish(&self) -> Result<()> {
        match self {
            Device::Cpu(_) => Ok(()),
            Device::Cuda(cuda) => cuda.finish(),
        }
    }

    /// Tells the first failure of what was launched so far. Ops on a GPU launch and do not wait.
    pub fn check(&self) -> Result<()> {
        match self {
            Device::Cpu(_) => Ok(()),
            Device::Cuda(cuda) => cuda.check(),
        }
    }
}
