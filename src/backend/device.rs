//! What a model runs on.
#![forbid(unsafe_code)]

use super::cpu::Cpu;
use super::cuda::{Buffer, Cuda, GraphKey, Graphs, rows};
use super::ops;
use crate::error::{Error, Fault, Result};
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

    /// Refuses, with `NoKernels`, extents that its kernels were not made for.
    pub fn check_extents(&self, e: &Extents) -> Result<()> {
        let Device::Cuda(cuda) = self else { return Ok(()) };
        let shared = cuda.facts().shared_bytes as usize;
        let group = e.n_heads / e.n_kv_heads.max(1);
        let experts = e.n_experts_per_token;
        let demands = [
            (
                e.hidden_size.is_multiple_of(32),
                format!("a hidden size that is a multiple of 32, not {}", e.hidden_size),
            ),
            (
                e.ffn_size.is_multiple_of(32),
                format!("an intermediate size that is a multiple of 32, not {}", e.ffn_size),
            ),
            (rows::norm_bytes(1, e.hidden_size) <= shared, format!("a smaller hidden size than {}", e.hidden_size)),
            (ops::select_bytes(e.vocab_size) <= shared, format!("a smaller vocabulary than {} ids", e.vocab_size)),
            ([32, 64, 128].contains(&e.head_dim), format!("heads of 32, 64 or 128, not {}", e.head_dim)),
            (group <= 8, format!("at most 8 query heads a key head, not {group}")),
            (e.n_experts <= 256, format!("at most 256 experts, not {}", e.n_experts)),
            (experts <= 8, format!("at most 8 experts a token, not {experts}")),
        ];
        match demands.into_iter().find(|(met, _)| !met) {
            Some((_, wanted)) => {
                let why = format!("the cuda backend has kernels for {wanted}; use the cpu backend");
                Err(Error::new(Fault::NoKernels, why))
            }
            None => Ok(()),
        }
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

/// The extents of a model that kernels depend on.
#[derive(Clone, Copy, Debug)]
pub struct Extents {
    /// C
    pub hidden_size: usize,
    /// V
    pub vocab_size: usize,
    /// F, of every feed-forward block
    pub ffn_size: usize,
    /// D
    pub head_dim: usize,
    /// H
    pub n_heads: usize,
    /// G
    pub n_kv_heads: usize,
    /// E; 0 without experts
    pub n_experts: usize,
    /// k; 0 without experts
    pub n_experts_per_token: usize,
}

/// What activations are rounded to at the named points (docs/numerics.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compute {
    /// Nothing is rounded; stored weights are widened exactly.
    F32,
    /// bf16 at the named points; bf16 weights are multiplied as pairs.
    Bf16,
}

impl Compute {
    /// Whether results are rounded to bf16.
    pub fn rounds(self) -> bool {
        self == Compute::Bf16
    }

    /// The name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Compute::F32 => "f32",
            Compute::Bf16 => "bf16",
        }
    }
}
