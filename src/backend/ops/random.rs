//! Random weights: element i is spread * c(i), c uniform over (-1/2, 1/2) in steps of 2^-16.
//!
//! A value is a function of seed, tensor and index alone, so every device makes the same bits. Each draw of 64 bits
//! gives four elements.

use crate::backend::cuda::{Address, Cuda, KernelArgs, Launch};
use crate::backend::{Device, Tensor};
use crate::random::{Stream, bits};
use crate::tensor::Dtype;

/// Fills tensor number `number` of `seed`, rounded to its dtype. On a GPU it is a bf16 tensor.
pub fn fill_random(device: &Device, tensor: &mut Tensor, seed: u64, number: u64, spread: f32) {
    let element = |i: u64| spread * centred(seed, number, i);
    match device {
        Device::Cpu(cpu) => match tensor.dtype() {
            Dtype::F32 => fill(cpu.n_threads(), tensor.f32_mut(), element),
            Dtype::Bf16 => fill(cpu.n_threads(), tensor.u16_mut(), |i| half::bf16::from_f32(element(i)).to_bits()),
            Dtype::F16 => fill(cpu.n_threads(), tensor.u16_mut(), |i| half::f16::from_f32(element(i)).to_bits()),
        },
        Device::Cuda(cuda) => fill_on(cuda, tensor, bits(Stream::Weights, &[seed, number]), spread),
    }
}

/// Element `i` of a random tensor before it is scaled.
#[inline(always)]
fn centred(seed: u64, tensor: u64, i: u64) -> f32 {
    let word = bits(Stream::Weights, &[seed, tensor, i / 4]) >> (16 * (i % 4));
    (f32::from(word as u16) - 32_767.5) * (1.0 / 65_536.0)
}

/// Elements below which a part is not worth a thread.
const LEAST_PART: usize = 1 << 18;

/// Sets each element from its index.
fn fill<T: Send>(n_threads: usize, elements: &mut [T], element: impl Fn(u64) -> T + Sync) {
    let size = elements.len().div_ceil(n_threads).max(LEAST_PART);
    let fill_part = |n: usize, part: &mut [T]| {
        for (i, x) in part.iter_mut().enumerate() {
            *x = element((n * size + i) as u64);
        }
    };
    if size >= elements.len() {
        return fill_part(0, elements);
    }
    std::thread::scope(|scope| {
        for (n, part) in elements.chunks_mut(size).enumerate() {
            let fill_part = &fill_part;
            scope.spawn(move || fill_part(n, part));
        }
    });
}

#[repr(C)]
#[derive(Clone, Copy)]
struct FillRandomArgs {
    out: Address,
    key: u64,
    n: u64,
    spread: f32,
    unused: u32,
}

// SAFETY: the kernel's struct, without padding.
unsafe impl KernelArgs for FillRandomArgs {}

/// `key` is the draws' key up to the index.
fn fill_on(cuda: &Cuda, tensor: &mut Tensor, key: u64, spread: f32) {
    const THREADS: u32 = 256;
    const EACH: usize = 8;
    assert_eq!(tensor.dtype(), Dtype::Bf16, "random weights on a GPU are bf16");
    let n = tensor.shape().elements();
    let n_blocks = n.div_ceil(EACH * THREADS as usize) as u32;
    let args = FillRandomArgs { out: tensor.address(), key, n: n as u64, spread, unused: 0 };
    cuda.launch(Launch::new("squire_fill_random", [n_blocks, 1, 1], THREADS, 0), &args);
}

#[cfg(test)]
mod tests {
    use super::super::claims::*;
    use super::*;
    use crate::backend::cpu::Cpu;

    #[test]
    fn random_elements_depend_on_their_index_alone_and_have_the_deviation() {
        let element = |i| 2.0 * 3f32.sqrt() * centred(7, 3, i);
        let mut judge = vec![0.0f32; 3 * LEAST_PART + 5];
        fill(1, &mut judge, element);
        for n_threads in [2, 3, 5] {
            let mut x = vec![0.0f32; judge.len()];
            fill(n_threads, &mut x, element);
            assert!(x == judge, "{n_threads} threads");
        }
        let n = judge.len() as f64;
        let mean = judge.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let square = judge.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n;
        assert!(mean.abs() < 5e-3 && (square - 1.0).abs() < 5e-3, "mean {mean}, mean square {square}");
    }

    #[test]
    fn a_gpu_makes_the_same_bits() {
        let cpu = Device::Cpu(Cpu::new(1, None).unwrap());
        for gpu in gpus() {
            for (i, extents) in [[1, 1], [3, 7], [16, 16], [33, 129]].iter().enumerate() {
                for (seed, spread) in [(0, 1.0), (u64::MAX, 0.069), (7, 3e-5)] {
                    let mut judge = Tensor::zeros(Dtype::Bf16, extents).unwrap();
                    fill_random(&cpu, &mut judge, seed, i as u64, spread);
                    let mut tensor = Tensor::on(&gpu, Dtype::Bf16, extents).unwrap();
                    fill_random(&gpu, &mut tensor, seed, i as u64, spread);
                    assert_eq!(tensor.to_host().unwrap().bytes(), judge.bytes(), "{extents:?}, seed {seed}");
                }
            }
        }
    }
}
