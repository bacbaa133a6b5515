//! What a model runs on.
#![forbid(unsafe_code)]

use super::cpu::Cpu;

/// A device. An enum and not a type parameter: the caller picks it at run time, and one device can judge
/// another in one process.
#[derive(Clone)]
pub enum Device {
    /// The host's processor.
    Cpu(Cpu),
}

impl Device {
    /// Host threads that it computes with.
    pub fn n_threads(&self) -> usize {
        match self {
            Device::Cpu(cpu) => cpu.n_threads(),
        }
    }

    /// Bytes of weights that forward products have read so far.
    pub fn weight_bytes(&self) -> u64 {
        match self {
            Device::Cpu(cpu) => cpu.weight_bytes(),
        }
    }
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
