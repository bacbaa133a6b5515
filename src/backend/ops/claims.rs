//! What every op's tests share: random tensors, devices of every kernel set, comparison in one place.

use crate::backend::cpu::{Cpu, KernelSet};
use crate::backend::cuda::{Cuda, CudaOptions};
use crate::backend::{Device, Matrix, Tensor};
use crate::random::{Stream, uniform};
use crate::tensor::Dtype;

/// A device for each kernel set of this machine, with one thread and with three.
pub fn devices() -> Vec<Device> {
    let sets = KernelSet::ALL.into_iter().filter(|s| s.available());
    sets.flat_map(|s| [1, 3].map(|n| Device::Cpu(Cpu::new(n, Some(s)).unwrap()))).collect()
}

/// One device, the machine's best.
pub fn device() -> Device {
    Device::Cpu(Cpu::new(2, None).unwrap())
}

/// f32 elements spread over (-1, 1), a function of the seed.
pub fn random(seed: u64, extents: &[usize]) -> Tensor {
    let n: usize = extents.iter().product();
    let x: Vec<f32> = (0..n as u64).map(|i| 2.0 * uniform(Stream::World, &[seed, i]) - 1.0).collect();
    Tensor::from_f32(extents, &x).unwrap()
}

/// A matrix of the same elements; on a GPU the same memory.
pub fn matrix(t: &Tensor) -> Matrix {
    if t.is_on_gpu() {
        return Tensor::over(t.dtype(), t.shape(), t.buffer().view(0, t.n_bytes())).into();
    }
    t.to_host().unwrap().into()
}

/// The same numbers rounded to a stored dtype.
pub fn stored(t: &Tensor, dtype: Dtype) -> Tensor {
    if dtype == Dtype::F32 {
        return Tensor::from_f32(t.shape().extents(), &t.to_f32()).unwrap();
    }
    let mut out = Tensor::zeros(dtype, t.shape().extents()).unwrap();
    for (o, x) in out.u16_mut().iter_mut().zip(t.to_f32()) {
        *o = match dtype {
            Dtype::Bf16 => half::bf16::from_f32(x).to_bits(),
            _ => half::f16::from_f32(x).to_bits(),
        };
    }
    out
}

/// Panics with the first difference above `tolerance` (relative to the largest wanted value).
pub fn assert_close(what: &str, got: &[f32], wanted: &[f64], tolerance: f64) {
    assert_eq!(got.len(), wanted.len(), "{what}: lengths");
    let largest = wanted.iter().fold(1e-30f64, |m, x| m.max(x.abs()));
    for (i, (&g, &w)) in got.iter().zip(wanted).enumerate() {
        let error = (g as f64 - w).abs() / largest;
        assert!(error <= tolerance, "{what}: element {i} is {g} and not {w}: {error:.2e} of the largest, {largest}");
    }
}

/// Panics with the first differing bits.
pub fn assert_same_bits(what: &str, got: &[f32], wanted: &[f32]) {
    assert_eq!(got.len(), wanted.len(), "{what}: lengths");
    for (i, (g, w)) in got.iter().zip(wanted).enumerate() {
        assert_eq!(g.to_bits(), w.to_bits(), "{what}: element {i} is {g} and not {w}");
    }
}

/// Central differences of a scalar function by every element of `x`, in f64.
pub fn finite_difference(x: &[f64], mut f: impl FnMut(&[f64]) -> f64) -> Vec<f64> {
    let mut at = x.to_vec();
    (0..x.len())
        .map(|i| {
            let h = 1e-5 * x[i].abs().max(1.0);
            at[i] = x[i] + h;
            let up = f(&at);
            at[i] = x[i] - h;
            let down = f(&at);
            at[i] = x[i];
            (up - down) / (2.0 * h)
        })
        .collect()
}

/// A tensor's elements as f64.
pub fn wide(t: &Tensor) -> Vec<f64> {
    t.to_f32().into_iter().map(f64::from).collect()
}

/// GPUs to hold against the CPU: the host shim in two orders of threads and blocks, or the machine's first device;
/// none in a build or on a machine without one.
pub fn gpus() -> Vec<Device> {
    let open = |seed| Cuda::open(&CudaOptions { seed, no_pool: true, ..CudaOptions::default() }).ok().map(Device::Cuda);
    let seeds: &[u64] = if cfg!(feature = "shim") { &[1, 2] } else { &[1] };
    let gpus: Vec<Device> = seeds.iter().filter_map(|&seed| open(seed)).collect();
    if gpus.is_empty() {
        eprintln!("skipped: no GPU and no host shim (feature shim)");
    }
    gpus
}

/// The same numbers rounded to bf16, on a GPU.
pub fn bf16_on(device: &Device, t: &Tensor) -> Tensor {
    stored(t, Dtype::Bf16).to_device(device).unwrap()
}

/// A GPU tensor's elements, after all that was launched.
pub fn read(t: &Tensor) -> Vec<f32> {
    t.to_host().unwrap().to_f32()
}

/// Row counts on both sides of every width of a product for few rows.
pub const ROW_COUNTS: [usize; 11] = [1, 2, 3, 5, 8, 9, 16, 17, 31, 33, 64];

/// The same numbers rounded to bf16, as f32: what the CPU keeps in bf16 compute.
pub fn rounded(t: &Tensor) -> Tensor {
    stored(&stored(t, Dtype::Bf16), Dtype::F32)
}

/// Rows of a tensor.
pub fn rows_of(t: &Tensor, rows: std::ops::Range<usize>) -> Tensor {
    let width = t.extent(1);
    Tensor::from_f32(&[rows.len(), width], &t.f32()[rows.start * width..rows.end * width]).unwrap()
}

/// An activation of `n` rows on a GPU, contents undefined.
pub fn room(device: &Device, n: usize, width: usize) -> Tensor {
    Tensor::on(device, device.activation_dtype(), &[n, width]).unwrap()
}
