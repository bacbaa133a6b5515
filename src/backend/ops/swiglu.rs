//! SwiGLU: y[n, f] = round(silu(gate[n, f]) * up[n, f]) with silu(g) = g * sigmoid(g).
//!
//! All [N, F] f32. sigmoid(g) = 1 / (1 + e^-g), so silu'(g) = s + g s (1 - s).

use super::split::{Elementwise, launch_elementwise};
use super::{Norm, linear_forward, rmsnorm_forward};
use crate::backend::cpu::{Lanes, Shared, math};
use crate::backend::cuda::rows::{self, SwigluProduct};
use crate::backend::cuda::{Cuda, tile};
use crate::backend::terms::MAX_DECODE_ROWS;
use crate::backend::{Compute, Device, Tensor, Weight};
use crate::error::Result;

/// The matrices of one SwiGLU block.
#[derive(Clone, Copy)]
pub struct FfnWeights<'a> {
    /// [F, C]
    pub gate: Weight<'a>,
    /// [F, C]
    pub up: Weight<'a>,
    /// [C, F]
    pub down: Weight<'a>,
}

/// Results of `gate_up_forward`. A GPU writes `product` alone.
pub struct GateUp<'a> {
    /// [N, C]
    pub normed: &'a mut Tensor,
    /// [N, F]
    pub gate: &'a mut Tensor,
    /// [N, F]
    pub up: &'a mut Tensor,
    /// [N, F]
    pub product: &'a mut Tensor,
}

/// product = silu(gate x) * up x with x = rmsnorm(stream); of `w` gate and up are read. Rounded after the norm, after each
/// projection and after the product. Overwrites the first `n` rows of the results.
pub fn gate_up_forward(
    device: &Device,
    out: GateUp,
    stream: &Tensor,
    norm: Norm,
    w: FfnWeights,
    n: usize,
    compute: Compute,
) -> Result<()> {
    if let Device::Cuda(cuda) = device {
        gate_up_on(cuda, out, stream, norm, w, n);
        return Ok(());
    }
    rmsnorm_forward(device, out.normed, stream, norm, n, compute);
    linear_forward(device, out.gate, out.normed, w.gate, n, compute)?;
    linear_forward(device, out.up, out.normed, w.up, n, compute)?;
    swiglu_forward(device, out.product, out.gate, out.up, n, compute);
    Ok(())
}

fn gate_up_on(cuda: &Cuda, out: GateUp, stream: &Tensor, norm: Norm, w: FfnWeights, n: usize) {
    let (gate, up) = (w.gate.plain(), w.up.plain());
    let (f, c) = (gate.extent(0), norm.weight.extent(0));
    assert!(gate.extent(1) == c && up.shape() == gate.shape(), "gate is {gate:?}, up {up:?}, the norm of {c}");
    assert!(stream.extent(0) >= n && stream.extent(1) == c, "stream is {stream:?}");
    assert!(out.product.extent(0) >= n && out.product.extent(1) == f, "product is {:?}", out.product);
    let (x, norm) = if rows::norms_within(cuda, n, c) {
        (stream, Some(norm.on_gpu()))
    } else {
        rmsnorm_forward(&Device::Cuda(cuda.clone()), out.normed, stream, norm, n, Compute::Bf16);
        (&*out.normed, None)
    };
    let (y, x) = (out.product.bf16_address(), x.bf16_address());
    let (gate, up) = (gate.bf16_address(), up.bf16_address());
    if n <= MAX_DECODE_ROWS {
        rows::swiglu(cuda, &SwigluProduct { y, x, norm, gate, up, n, f, c });
    } else {
        let scratch = [out.gate.bf16_address(), out.up.bf16_address()];
        tile::gate_up(cuda, &tile::GateUpProduct { y, x, gate, up, n, f, k: c }, scratch);
    }
}

/// y = silu(gate) * up. Overwrites the first `n` rows of `y`.
pub fn swiglu_forward(device: &Device, y: &mut Tensor, gate: &Tensor, up: &Tensor, n: usize, compute: Compute) {
    let f = y.extent(1);
    assert!(y.extent(0) >= n, "y is {} for {n} rows", y.shape());
    assert!(gate.extent(0) >= n && gate.extent(1) == f, "gate is {}, y {}", gate.shape(), y.shape());
    assert!(up.extent(0) >= n && up.extent(1) == f, "up is {}, y {}", up.shape(), y.shape());
    let cpu = device.cpu();
    let (gate, up) = (&gate.f32()[..n * f], &up.f32()[..n * f]);
    let y = Shared::new(&mut y.f32_mut()[..n * f]);
    launch_elementwise(cpu, n * f, &SwigluForward { y, gate, up, round: compute.rounds() });
}

/// dgate = dy * up * silu'(gate), dup = dy * silu(gate). Overwrites the first `n` rows of `dgate` and `dup`.
pub fn swiglu_backward(
    device: &Device,
    dgate: &mut Tensor,
    dup: &mut Tensor,
    dy: &Tensor,
    gate: &Tensor,
    up: &Tensor,
    n: usize,
) {
    let f = dy.extent(1);
    for (name, t) in [("dgate", &*dgate), ("dup", &*dup), ("dy", dy), ("gate", gate), ("up", up)] {
        assert!(t.extent(0) >= n && t.extent(1) == f, "{name} is {}, dy {}", t.shape(), dy.shape());
    }
    let cpu = device.cpu();
    let (dy, gate, up) = (&dy.f32()[..n * f], &gate.f32()[..n * f], &up.f32()[..n * f]);
    let dgate = Shared::new(&mut dgate.f32_mut()[..n * f]);
    let dup = Shared::new(&mut dup.f32_mut()[..n * f]);
    launch_elementwise(cpu, n * f, &SwigluBackward { dgate, dup, dy, gate, up });
}

struct SwigluForward<'a> {
    y: Shared<f32>,
    gate: &'a [f32],
    up: &'a [f32],
    round: bool,
}

impl Elementwise for SwigluForward<'_> {
    #[inline(always)]
    unsafe fn block<V: Lanes>(&self, i: usize, n: usize) {
        // SAFETY: all have the elements i..i + n, and blocks are disjoint.
        unsafe {
            let g = V::load_up_to(self.gate.as_ptr().add(i), n);
            let u = V::load_up_to(self.up.as_ptr().add(i), n);
            g.mul(math::sigmoid(g)).mul(u).store_rounded(self.y.at(i), n, self.round);
        }
    }
}

struct SwigluBackward<'a> {
    dgate: Shared<f32>,
    dup: Shared<f32>,
    dy: &'a [f32],
    gate: &'a [f32],
    up: &'a [f32],
}

impl Elementwise for SwigluBackward<'_> {
    #[inline(always)]
    unsafe fn block<V: Lanes>(&self, i: usize, n: usize) {
        // SAFETY: all have the elements i..i + n, and blocks are disjoint.
        unsafe {
            let g = V::load_up_to(self.gate.as_ptr().add(i), n);
            let u = V::load_up_to(self.up.as_ptr().add(i), n);
            let dy = V::load_up_to(self.dy.as_ptr().add(i), n);
            let s = math::sigmoid(g);
            let silu = g.mul(s);
            let slope = silu.fma(V::splat(1.0).sub(s), s);
            dy.mul(u).mul(slope).store_rounded(self.dgate.at(i), n, false);
            dy.mul(silu).store_rounded(self.dup.at(i), n, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::claims::*;
    use super::*;
    use crate::tensor::Dtype;

    const EXTENTS: [(usize, usize); 4] = [(1, 1), (3, 7), (5, 48), (37, 1031)];

    fn formula(g: f64, u: f64) -> f64 {
        g / (1.0 + (-g).exp()) * u
    }

    /// Gates over (-10, 10), so that both tails of the sigmoid occur.
    fn gates(n: usize, f: usize) -> Tensor {
        let g: Vec<f32> = random(1, &[n, f]).f32().iter().map(|x| 10.0 * x).collect();
        Tensor::from_f32(&[n, f], &g).unwrap()
    }

    #[test]
    fn swiglu_forward_equals_the_formula_with_one_set_of_bits() {
        for (n, f) in EXTENTS {
            let (gate, up) = (gates(n, f), random(2, &[n, f]));
            let wanted: Vec<f64> = wide(&gate).iter().zip(wide(&up)).map(|(&g, u)| formula(g, u)).collect();
            for (compute, tolerance) in [(Compute::F32, 1e-6), (Compute::Bf16, 1.0 / 256.0)] {
                let mut judge: Option<Vec<f32>> = None;
                for device in devices() {
                    let mut y = Tensor::zeros(Dtype::F32, &[n, f]).unwrap();
                    swiglu_forward(&device, &mut y, &gate, &up, n, compute);
                    assert_close("y", y.f32(), &wanted, tolerance);
                    assert_same_bits("y", y.f32(), judge.get_or_insert_with(|| y.f32().to_vec()));
                }
            }
        }
    }

    #[test]
    fn swiglu_of_extreme_gates_is_finite() {
        let gate = Tensor::from_f32(&[1, 4], &[-3e38, -100.0, 100.0, 3e38]).unwrap();
        let up = Tensor::from_f32(&[1, 4], &[1.0, 1.0, 0.5, 0.5]).unwrap();
        let mut y = Tensor::zeros(Dtype::F32, &[1, 4]).unwrap();
        swiglu_forward(&device(), &mut y, &gate, &up, 1, Compute::F32);
        assert_close("y", y.f32(), &[0.0, 0.0, 50.0, 1.5e38], 1e-6);
    }

    #[test]
    fn swiglu_backward_matches_finite_difference_and_does_not_depend_on_the_thread_count() {
        for (n, f) in EXTENTS {
            let (gate, up, dy) = (gates(n, f), random(2, &[n, f]), random(3, &[n, f]));
            let by_gate = |g: &[f64], u: &[f64]| -> Vec<f64> {
                let dy = wide(&dy);
                let at = |i: usize, h: f64| formula(g[i] + h, u[i]) * dy[i];
                (0..n * f).map(|i| (at(i, 1e-5) - at(i, -1e-5)) / 2e-5).collect()
            };
            let wanted_gate = by_gate(&wide(&gate), &wide(&up));
            let wanted_up: Vec<f64> = wide(&gate).iter().zip(wide(&dy)).map(|(&g, dy)| formula(g, 1.0) * dy).collect();
            let mut judge: Option<(Vec<f32>, Vec<f32>)> = None;
            for device in devices() {
                let (mut dgate, mut dup) = (random(8, &[n, f]), random(9, &[n, f]));
                swiglu_backward(&device, &mut dgate, &mut dup, &dy, &gate, &up, n);
                assert_close("dgate", dgate.f32(), &wanted_gate, 2e-6);
                assert_close("dup", dup.f32(), &wanted_up, 1e-6);
                let judge = judge.get_or_insert_with(|| (dgate.f32().to_vec(), dup.f32().to_vec()));
                assert_same_bits("dgate", dgate.f32(), &judge.0);
                assert_same_bits("dup", dup.f32(), &judge.1);
            }
        }
    }

    #[test]
    fn gate_up_of_few_rows_on_a_gpu_equals_the_cpu_and_does_not_depend_on_the_row_count() {
        for (f, c) in [(8, 32), (200, 96), (136, 288)] {
            let stream = rounded(&random(1, &[70, c]));
            let norm = stored(&random(2, &[c]), Dtype::Bf16);
            let [gate, up] = [3, 4].map(|seed| stored(&random(seed, &[f, c]), Dtype::Bf16));
            let forward = |device: &Device, stream: &Tensor, norm: &Tensor, w: (&Tensor, &Tensor)| {
                let n = stream.extent(0);
                let (mut normed, mut y) = (room(device, n, c), room(device, n, f));
                let (mut gate, mut up) = (room(device, n, f), room(device, n, f));
                let out = GateUp { normed: &mut normed, gate: &mut gate, up: &mut up, product: &mut y };
                let (gate_w, up_w) = (matrix(w.0), matrix(w.1));
                let norm = Norm { weight: norm, eps: 1e-5 };
                let w = FfnWeights { gate: (&gate_w).into(), up: (&up_w).into(), down: (&gate_w).into() };
                gate_up_forward(device, out, stream, norm, w, n, Compute::Bf16).unwrap();
                y
            };
            let wanted = wide(&forward(&device(), &stream, &norm, (&gate, &up)));
            for gpu in gpus() {
                let [norm, gate, up] = [&norm, &gate, &up].map(|t| bf16_on(&gpu, t));
                let of = |rows: std::ops::Range<usize>| {
                    read(&forward(&gpu, &bf16_on(&gpu, &rows_of(&stream, rows)), &norm, (&gate, &up)))
                };
                let judge = of(0..64);
                for n in ROW_COUNTS {
                    let y = of(0..n);
                    assert_close("y", &y, &wanted[..n * f], 1.0 / 64.0);
                    assert_same_bits("y by the row count", &y, &judge[..n * f]);
                }
                for i in [0, 7, 63] {
                    assert_same_bits("a row alone", &of(i..i + 1), &judge[i * f..(i + 1) * f]);
                }
                let library = matches!(&gpu, Device::Cuda(cuda) if cuda.api().has_matmul());
                if !library {
                    assert_same_bits("a row among many", &of(0..70)[..64 * f], &judge);
                }
            }
        }
    }
}
