//! AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101) with the semantics of torch, and what an update needs beside
//! it: the sum of squares for clipping, and the rounding of master weights to what the model stores.
//!
//! With g scaled by `grad_scale`: w -= lr wd w; m += (1 - beta1) (g - m); v = beta2 v + (1 - beta2) g^2;
//! w -= lr / bc1 * m / (sqrt(v) / sqrt(bc2) + eps). All f32, element by element.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use super::split::{Elementwise, launch_elementwise};
use crate::backend::cpu::lanes::round_bf16_bits;
use crate::backend::cpu::{FloatEnv, Kernel, Lanes, Shared, piece};
use crate::backend::{Device, Tensor};
use crate::error::Result;
use crate::tensor::Dtype;

/// Elements of one partial sum of squares, fixed so that the thread count cannot change a bit.
const SQUARES_CHUNK: usize = 1 << 16;
/// Elements summed in f32 lanes before the sum moves on to f64.
const SQUARES_BLOCK: usize = 1 << 10;

/// The numbers of one step. f64, since 1 - 0.999 in f32 is wrong in the fifth digit.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// 1 - beta1^t at step t, counted from 1.
    pub bias_correction1: f64,
    /// 1 - beta2^t.
    pub bias_correction2: f64,
    /// Factor on the gradient before all else: clipping, and the mean over tokens.
    pub grad_scale: f32,
}

/// One step: updates the master weights `w` and the moments `m` and `v`, all f32 with as many elements as `g`.
pub fn adamw_step(device: &Device, w: &mut Tensor, m: &mut Tensor, v: &mut Tensor, g: &Tensor, step: AdamW) {
    let g = g.f32();
    let len = g.len();
    for (name, t) in [("w", &*w), ("m", &*m), ("v", &*v)] {
        assert!(t.f32().len() == len, "{name} is {}, the gradient has {len} elements", t.shape());
    }
    let cpu = device.cpu();
    let _env = FloatEnv::set();
    let kernel = Step {
        w: Shared::new(w.f32_mut()),
        m: Shared::new(m.f32_mut()),
        v: Shared::new(v.f32_mut()),
        g,
        grad_scale: step.grad_scale,
        decay: (step.lr * step.weight_decay) as f32,
        toward1: (1.0 - step.beta1) as f32,
        beta2: step.beta2 as f32,
        toward2: (1.0 - step.beta2) as f32,
        step_size: (step.lr / step.bias_correction1) as f32,
        root2: (1.0 / step.bias_correction2.sqrt()) as f32,
        eps: step.eps as f32,
    };
    launch_elementwise(cpu, len, &kernel);
}

/// Sum of g^2, in an order that does not depend on the threads. Not finite where an element is not (or where
/// one is above 1e19).
pub fn sum_of_squares(device: &Device, g: &Tensor) -> Result<f64> {
    let g = g.f32();
    let cpu = device.cpu();
    let mut parts = cpu.scratch::<f64>(g.len().div_ceil(SQUARES_CHUNK))?;
    let _env = FloatEnv::set();
    let n_tasks = parts.len();
    cpu.launch(n_tasks, &SumOfSquares { parts: Shared::new(&mut parts), g });
    Ok(parts.iter().sum())
}

/// Rounds master weights to the stored dtype, to nearest, ties to even; f16 overflows to infinity.
pub fn convert(device: &Device, stored: &mut Tensor, master: &Tensor) {
    assert!(stored.shape() == master.shape(), "stored is {}, master {}", stored.shape(), master.shape());
    let cpu = device.cpu();
    let x = master.f32();
    match stored.dtype() {
        Dtype::F32 => launch_elementwise(cpu, x.len(), &ToF32 { y: Shared::new(stored.f32_mut()), x }),
        Dtype::Bf16 => launch_elementwise(cpu, x.len(), &ToBf16 { y: Shared::new(stored.u16_mut()), x }),
        Dtype::F16 => launch_elementwise(cpu, x.len(), &ToF16 { y: Shared::new(stored.u16_mut()), x }),
    }
}

struct Step<'a> {
    w: Shared<f32>,
    m: Shared<f32>,
    v: Shared<f32>,
    g: &'a [f32],
    grad_scale: f32,
    decay: f32,
    toward1: f32,
    beta2: f32,
    toward2: f32,
    step_size: f32,
    root2: f32,
    eps: f32,
}

impl Elementwise for Step<'_> {
    #[inline(always)]
    unsafe fn block<V: Lanes>(&self, i: usize, n: usize) {
        // SAFETY: all have the elements i..i + n, and blocks are disjoint.
        unsafe {
            let g = V::load_up_to(self.g.as_ptr().add(i), n).mul(V::splat(self.grad_scale));
            let w = V::load_up_to(self.w.at(i), n);
            let w = w.fma(V::splat(-self.decay), w);
            let m = V::load_up_to(self.m.at(i), n);
            let m = g.sub(m).fma(V::splat(self.toward1), m);
            let v = V::load_up_to(self.v.at(i), n).mul(V::splat(self.beta2));
            let v = g.mul(g).fma(V::splat(self.toward2), v);
            let denominator = v.sqrt().fma(V::splat(self.root2), V::splat(self.eps));
            let w = m.div(denominator).fma(V::splat(-self.step_size), w);
            m.store_rounded(self.m.at(i), n, false);
            v.store_rounded(self.v.at(i), n, false);
            w.store_rounded(self.w.at(i), n, false);
        }
    }
}

struct SumOfSquares<'a> {
    parts: Shared<f64>,
    g: &'a [f32],
}

impl Kernel for SumOfSquares<'_> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        let chunk = &self.g[piece(index, SQUARES_CHUNK, self.g.len())];
        let mut sum = 0.0f64;
        for block in chunk.chunks(SQUARES_BLOCK) {
            // SAFETY: reads inside the block.
            unsafe {
                let mut acc = V::zero();
                let mut i = 0;
                while i < block.len() {
                    let g = V::load_up_to(block.as_ptr().add(i), block.len() - i);
                    acc = g.fma(g, acc);
                    i += 16;
                }
                sum += acc.reduce_add() as f64;
            }
        }
        // SAFETY: each task writes its own element.
        unsafe { *self.parts.at(index) = sum };
    }
}

struct ToF32<'a> {
    y: Shared<f32>,
    x: &'a [f32],
}

impl Elementwise for ToF32<'_> {
    #[inline(always)]
    unsafe fn block<V: Lanes>(&self, i: usize, n: usize) {
        // SAFETY: both have the elements i..i + n, and blocks are disjoint.
        unsafe { self.y.slice(i, n) }.copy_from_slice(&self.x[i..i + n]);
    }
}

struct ToBf16<'a> {
    y: Shared<u16>,
    x: &'a [f32],
}

impl Elementwise for ToBf16<'_> {
    #[inline(always)]
    unsafe fn block<V: Lanes>(&self, i: usize, n: usize) {
        // SAFETY: both have the elements i..i + n, and blocks are disjoint.
        unsafe {
            if n == 16 {
                V::load(self.x.as_ptr().add(i)).round_bf16().store_bf16(self.y.at(i));
                return;
            }
            for (y, x) in self.y.slice(i, n).iter_mut().zip(&self.x[i..i + n]) {
                *y = (round_bf16_bits(x.to_bits()) >> 16) as u16;
            }
        }
    }
}

struct ToF16<'a> {
    y: Shared<u16>,
    x: &'a [f32],
}

impl Elementwise for ToF16<'_> {
    #[inline(always)]
    unsafe fn block<V: Lanes>(&self, i: usize, n: usize) {
        // SAFETY: both have the elements i..i + n, and blocks are disjoint.
        let y = unsafe { self.y.slice(i, n) };
        y.reinterpret_cast_mut::<half::f16>().convert_from_f32_slice(&self.x[i..i + n]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::claims::*;
    use super::*;

    const STEP: AdamW = AdamW {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.1,
        bias_correction1: 0.1,
        bias_correction2: 0.001,
        grad_scale: 0.5,
    };

    #[test]
    fn adamw_steps_equal_the_formula_with_one_set_of_bits() {
        for len in [1, 17, 1031, 40_000] {
            let start = random(1, &[len]);
            let (mut w, mut m, mut v) = (wide(&start), vec![0.0; len], vec![0.0; len]);
            let at = |t: i32| AdamW {
                bias_correction1: 1.0 - STEP.beta1.powi(t),
                bias_correction2: 1.0 - STEP.beta2.powi(t),
                ..STEP
            };
            for t in 1..4 {
                let g = wide(&random(10 + t as u64, &[len]));
                let s = at(t);
                for i in 0..len {
                    let g = g[i] * s.grad_scale as f64;
                    w[i] -= s.lr * s.weight_decay * w[i];
                    m[i] = s.beta1 * m[i] + (1.0 - s.beta1) * g;
                    v[i] = s.beta2 * v[i] + (1.0 - s.beta2) * g * g;
                    let denominator = v[i].sqrt() / s.bias_correction2.sqrt() + s.eps;
                    w[i] -= s.lr / s.bias_correction1 * m[i] / denominator;
                }
            }
            let mut judge: Option<[Vec<f32>; 3]> = None;
            for device in devices() {
                let mut got = [stored(&start, Dtype::F32), random(0, &[len]), random(0, &[len])];
                got[1].f32_mut().fill(0.0);
                got[2].f32_mut().fill(0.0);
                let [gw, gm, gv] = &mut got;
                for t in 1..4 {
                    adamw_step(&device, gw, gm, gv, &random(10 + t as u64, &[len]), at(t));
                }
                for (name, got, wanted) in [("w", &*gw, &w), ("m", gm, &m), ("v", gv, &v)] {
                    assert_close(name, got.f32(), wanted, 1e-6);
                }
                let bits = got.map(|t| t.f32().to_vec());
                let judge = judge.get_or_insert_with(|| bits.clone());
                (0..3).for_each(|i| assert_same_bits("state", &bits[i], &judge[i]));
            }
        }
    }

    #[test]
    fn sum_of_squares_is_exact_enough_finite_or_not_and_independent_of_threads() {
        for len in [1, 1000, 65_537, 300_001] {
            let g = random(2, &[len]);
            let wanted: f64 = wide(&g).iter().map(|x| x * x).sum();
            let mut judge = None;
            for device in devices() {
                let got = sum_of_squares(&device, &g).unwrap();
                assert!((got / wanted - 1.0).abs() < 1e-6);
                assert_eq!(got.to_bits(), *judge.get_or_insert(got.to_bits()));
            }
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut g = stored(&g, Dtype::F32);
                g.f32_mut()[len - 1] = bad;
                assert!(!sum_of_squares(&device(), &g).unwrap().is_finite());
            }
        }
    }

    #[test]
    fn convert_rounds_to_nearest_even_in_every_dtype() {
        let mut x: Vec<f32> =
            random(3, &[50_001]).f32().iter().map(|x| x * 10f32.powi((x * 40.0) as i32 % 9)).collect();
        // Ties, overflow of f16, its smallest denormal and below.
        x.extend([1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 2049.0, 2051.0, 65_519.0, 65_520.0, -1e9, 6e-8, 2e-8, -0.0]);
        let master = Tensor::from_f32(&[x.len()], &x).unwrap();
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            for device in devices() {
                let mut got = Tensor::zeros(dtype, &[x.len()]).unwrap();
                convert(&device, &mut got, &master);
                assert_eq!(got.bytes(), stored(&master, dtype).bytes(), "{dtype}");
            }
        }
    }
}
