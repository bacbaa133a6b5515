//! What an engine computes on: chosen by its options, opened when it is made.
#![forbid(unsafe_code)]

use super::options::{DeviceChoice, EngineOptions};
use crate::backend::cpu::Cpu;
use crate::backend::cuda::{Cuda, CudaOptions};
use crate::backend::{Compute, Device};
use crate::error::{Error, Fault, Result};

/// Opens the device of the options. The text says what it is and, where the processor is second best, why.
pub(super) fn open(options: &EngineOptions) -> Result<(Device, String)> {
    match options.device {
        DeviceChoice::Cpu => on_cpu(options),
        DeviceChoice::Cuda { index } => on_cuda(options, index),
        DeviceChoice::Best => on_cuda(options, 0).or_else(|why| {
            let (device, text) = on_cpu(options)?;
            Ok((device, format!("{text}; not on cuda: {why}")))
        }),
    }
}

fn on_cpu(options: &EngineOptions) -> Result<(Device, String)> {
    let cpu = Cpu::new(options.n_threads, options.kernels)?;
    let (compute, threads, kernels) = (options.compute.name(), cpu.n_threads(), cpu.kernels());
    Ok((Device::Cpu(cpu), format!("on cpu: {kernels} kernels, {threads} threads, compute {compute}")))
}

fn on_cuda(options: &EngineOptions, index: usize) -> Result<(Device, String)> {
    if Cuda::BUILT && options.compute == Compute::F32 {
        let why = "the cuda backend computes in bf16; compute f32 needs the cpu backend";
        return Err(Error::new(Fault::UnsupportedBackend, why));
    }
    let cuda = Cuda::open(&CudaOptions { index, budget: options.device_budget, ..CudaOptions::default() })?;
    let (facts, compute) = (cuda.facts(), options.compute.name());
    let (major, minor) = (facts.capability / 10, facts.capability % 10);
    let text =
        format!("on cuda: device {index}, {}, compute capability {major}.{minor}, compute {compute}", facts.name);
    Ok((Device::Cuda(cuda), text))
}
