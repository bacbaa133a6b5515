//! RMSNorm: y[n, c] = round(x[n, c] * r[n] * w[c]) with r[n] = 1 / sqrt(mean over c of x[n, c]^2 + eps).
//!
//! x, y [N, C] f32, w [C] as stored. The sum of squares runs in sixteen lanes in the canonical order; there
//! is one rounding at the end. With g = dy * w, the gradient is dx = r (g - x r^2 mean(g x)), dw = sum over n of dy x r.

use super::split::{SUM_ROWS, add_chunks, items_per_task};
use crate::backend::cpu::dot::Widen;
use crate::backend::cpu::{Cpu, Kernel, Lanes, Shared, piece};
use crate::backend::cuda::rows;
use crate::backend::{Compute, Device, Elements, Tensor};
use crate::error::Result;

/// A norm of C elements.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// `[C]`, as stored
    pub weight: &'a Tensor,
    /// added to the mean of squares
    pub eps: f32,
}

impl Norm<'_> {
    /// As kernels take it.
    pub(super) fn on_gpu(&self) -> rows::Norm {
        rows::Norm { weight: self.weight.bf16_address(), eps: self.eps }
    }
}

/// Gradients that a norm adds to.
pub struct NormGradients<'a> {
    /// [N, C] by the input
    pub dx: &'a mut Tensor,
    /// `[C]` by the weight, f32 whatever that is stored as; None where it is not trained
    pub dw: Option<&'a mut Tensor>,
}

/// y = x / rms(x) * w. Overwrites the first `n` rows of `y`.
pub fn rmsnorm_forward(device: &Device, y: &mut Tensor, x: &Tensor, norm: Norm, n: usize, compute: Compute) {
    let (w, eps) = (norm.weight, norm.eps);
    let c = w.extent(0);
    assert!(x.extent(0) >= n && x.extent(1) == c, "x is {}, w {}", x.shape(), w.shape());
    assert!(y.extent(0) >= n && y.extent(1) == c, "y is {}, w {}", y.shape(), w.shape());
    let cpu = match device {
        Device::Cpu(cpu) => cpu,
        Device::Cuda(cuda) => {
            return rows::rmsnorm(cuda, y.bf16_address(), x.bf16_address(), 0, norm.on_gpu(), n, c);
        }
    };
    let x = &x.f32()[..n * c];
    let y = Shared::new(&mut y.f32_mut()[..n * c]);
    let round = compute.rounds();
    match w.elements() {
        Elements::F32(w) => forward(cpu, y, x, w, n, eps, round),
        Elements::Bf16(w) => forward(cpu, y, x, w, n, eps, round),
        Elements::F16(w) => forward(cpu, y, x, w, n, eps, round),
    }
}

fn forward<W: Widen>(cpu: &Cpu, y: Shared<f32>, x: &[f32], w: &[W], n: usize, eps: f32, round: bool) {
    let rows = items_per_task(cpu, n, w.len());
    cpu.launch(n.div_ceil(rows), &RmsnormForward { y, x, w, n, rows, eps, round });
}

/// Adds the gradients to the first `n` rows of `to.dx` and to `to.dw`; dy, x [N, C].
pub fn rmsnorm_backward(
    device: &Device,
    to: NormGradients,
    dy: &Tensor,
    x: &Tensor,
    norm: Norm,
    n: usize,
) -> Result<()> {
    let NormGradients { dx, dw } = to;
    let (w, eps) = (norm.weight, norm.eps);
    let c = w.extent(0);
    assert!(dw.as_ref().is_none_or(|dw| dw.extent(0) == c), "dw is {dw:?}, w {}", w.shape());
    for (name, t) in [("dx", &*dx), ("dy", dy), ("x", x)] {
        assert!(t.extent(0) >= n && t.extent(1) == c, "{name} is {}, w {}", t.shape(), w.shape());
    }
    let cpu = device.cpu();
    let (dy, x) = (&dy.f32()[..n * c], &x.f32()[..n * c]);
    let dx = Shared::new(&mut dx.f32_mut()[..n * c]);
    let mut parts = cpu.scratch::<f32>(n.div_ceil(SUM_ROWS) * c)?;
    parts.fill(0.0);
    let shared = Shared::new(&mut parts);
    let n_tasks = n.div_ceil(SUM_ROWS);
    match w.elements() {
        Elements::F32(w) => cpu.launch(n_tasks, &RmsnormBackward { dx, parts: shared, dy, x, w, n, eps }),
        Elements::Bf16(w) => cpu.launch(n_tasks, &RmsnormBackward { dx, parts: shared, dy, x, w, n, eps }),
        Elements::F16(w) => cpu.launch(n_tasks, &RmsnormBackward { dx, parts: shared, dy, x, w, n, eps }),
    }
    if let Some(dw) = dw {
        add_chunks(cpu, dw.f32_mut(), &parts);
    }
    Ok(())
}

/// 1 / sqrt(mean of squares + eps) of `c` elements.
///
/// # Safety
/// The contract of [`Lanes`]; `c` elements are readable.
#[inline(always)]
pub(super) unsafe fn inverse_rms<V: Lanes>(x: *const f32, c: usize, eps: f32) -> f32 {
    let mut i = 0;
    // SAFETY: the caller's.
    unsafe {
        let mut acc = V::zero();
        while i + 16 <= c {
            let v = V::load(x.add(i));
            acc = v.fma(v, acc);
            i += 16;
        }
        if i < c {
            let v = V::load_tail(x.add(i), c - i);
            acc = v.fma(v, acc);
        }
        1.0 / (acc.reduce_add() / c as f32 + eps).sqrt()
    }
}

struct RmsnormForward<'a, W> {
    y: Shared<f32>,
    x: &'a [f32],
    w: &'a [W],
    n: usize,
    rows: usize,
    eps: f32,
    round: bool,
}

impl<W: Widen> Kernel for RmsnormForward<'_, W> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        let c = self.w.len();
        for row in piece(index, self.rows, self.n) {
            // SAFETY: the row lies inside x and y, and tasks own disjoint rows.
            unsafe {
                let x = self.x.as_ptr().add(row * c);
                let r = V::splat(inverse_rms::<V>(x, c, self.eps));
                let mut i = 0;
                while i < c {
                    let n = (c - i).min(16);
                    let w: V = W::load(self.w.as_ptr().add(i), n);
                    let y = V::load_up_to(x.add(i), n).mul(r).mul(w);
                    y.store_rounded(self.y.at(row * c + i), n, self.round);
                    i += 16;
                }
            }
        }
    }
}

/// One task takes `SUM_ROWS` rows: their dx, and their sum towards dw in row `index` of `parts`.
struct RmsnormBackward<'a, W> {
    dx: Shared<f32>,
    parts: Shared<f32>,
    dy: &'a [f32],
    x: &'a [f32],
    w: &'a [W],
    n: usize,
    eps: f32,
}

impl<W: Widen> Kernel for RmsnormBackward<'_, W> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        let c = self.w.len();
        for row in piece(index, SUM_ROWS, self.n) {
            // SAFETY: the row lies inside x, dy and dx; tasks own disjoint rows, and one row of `parts` each.
            unsafe {
                let (x, dy) = (self.x.as_ptr().add(row * c), self.dy.as_ptr().add(row * c));
                let r = inverse_rms::<V>(x, c, self.eps);
                let mut acc = V::zero();
                let mut i = 0;
                while i < c {
                    let n = (c - i).min(16);
                    let w: V = W::load(self.w.as_ptr().add(i), n);
                    let g = V::load_up_to(dy.add(i), n).mul(w);
                    acc = g.fma(V::load_up_to(x.add(i), n), acc);
                    i += 16;
                }
                let along = V::splat(-(r * r * r) * (acc.reduce_add() / c as f32));
                let r = V::splat(r);
                let mut i = 0;
                while i < c {
                    let n = (c - i).min(16);
                    let w: V = W::load(self.w.as_ptr().add(i), n);
                    let (x, dy) = (V::load_up_to(x.add(i), n), V::load_up_to(dy.add(i), n));
                    let dx = self.dx.at(row * c + i);
                    let d = x.fma(along, dy.mul(w).fma(r, V::load_up_to(dx, n)));
                    d.store_rounded(dx, n, false);
                    let dw = self.parts.at(index * c + i);
                    dy.fma(x.mul(r), V::load_up_to(dw, n)).store_rounded(dw, n, false);
                    i += 16;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::claims::*;
    use super::*;
    use crate::tensor::Dtype;

    const EXTENTS: [(usize, usize); 5] = [(1, 1), (2, 7), (17, 48), (5, 131), (40, 300)];
    const EPS: f32 = 1e-5;

    fn norm(weight: &Tensor) -> Norm<'_> {
        Norm { weight, eps: EPS }
    }

    fn formula(x: &[f64], w: &[f64]) -> Vec<f64> {
        let c = w.len();
        let row = |x: &[f64]| {
            let r = 1.0 / (x.iter().map(|v| v * v).sum::<f64>() / c as f64 + EPS as f64).sqrt();
            x.iter().zip(w).map(|(x, w)| x * r * w).collect::<Vec<_>>()
        };
        x.chunks_exact(c).flat_map(row).collect()
    }

    #[test]
    fn rmsnorm_forward_equals_the_formula_for_every_stored_dtype_with_one_set_of_bits() {
        for (n, c) in EXTENTS {
            let x = random(1, &[n, c]);
            for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
                let w = stored(&random(2, &[c]), dtype);
                for (compute, tolerance) in [(Compute::F32, 1e-6), (Compute::Bf16, 1.0 / 256.0)] {
                    let mut judge: Option<Vec<f32>> = None;
                    for device in devices() {
                        let mut y = Tensor::zeros(Dtype::F32, &[n, c]).unwrap();
                        rmsnorm_forward(&device, &mut y, &x, norm(&w), n, compute);
                        assert_close("y", y.f32(), &formula(&wide(&x), &wide(&w)), tolerance);
                        assert_same_bits("y", y.f32(), judge.get_or_insert_with(|| y.f32().to_vec()));
                    }
                }
            }
        }
    }

    #[test]
    fn rmsnorm_backward_matches_finite_difference_and_accumulates() {
        for (n, c) in [(1, 1), (2, 7), (18, 17)] {
            let (x, w, dy) = (random(1, &[n, c]), random(2, &[c]), random(3, &[n, c]));
            let weighted = |x: &[f64], w: &[f64]| formula(x, w).iter().zip(wide(&dy)).map(|(y, d)| y * d).sum::<f64>();
            let (mut dx, mut dw) = (random(4, &[n, c]), random(5, &[c]));
            let mut wanted_x = finite_difference(&wide(&x), |x| weighted(x, &wide(&w)));
            wanted_x.iter_mut().zip(wide(&dx)).for_each(|(d, s)| *d += s);
            let mut wanted_w = finite_difference(&wide(&w), |w| weighted(&wide(&x), w));
            wanted_w.iter_mut().zip(wide(&dw)).for_each(|(d, s)| *d += s);
            let to = NormGradients { dx: &mut dx, dw: Some(&mut dw) };
            rmsnorm_backward(&device(), to, &dy, &x, norm(&w), n).unwrap();
            assert_close("dx", dx.f32(), &wanted_x, 2e-6);
            assert_close("dw", dw.f32(), &wanted_w, 2e-6);
        }
    }

    #[test]
    fn rmsnorm_backward_does_not_depend_on_the_thread_count() {
        for (n, c) in EXTENTS {
            let (x, w, dy) = (random(1, &[n, c]), stored(&random(2, &[c]), Dtype::Bf16), random(3, &[n, c]));
            let mut judge: Option<(Vec<f32>, Vec<f32>)> = None;
            for device in devices() {
                let mut dx = Tensor::zeros(Dtype::F32, &[n, c]).unwrap();
                let mut dw = Tensor::zeros(Dtype::F32, &[c]).unwrap();
                let to = NormGradients { dx: &mut dx, dw: Some(&mut dw) };
                rmsnorm_backward(&device, to, &dy, &x, norm(&w), n).unwrap();
                let judge = judge.get_or_insert_with(|| (dx.f32().to_vec(), dw.f32().to_vec()));
                assert_same_bits("dx", dx.f32(), &judge.0);
                assert_same_bits("dw", dw.f32(), &judge.1);
            }
        }
    }

    #[test]
    fn rmsnorm_on_a_gpu_equals_the_cpu() {
        for (n, c) in [(1, 32), (5, 96), (70, 2080)] {
            let (x, w) = (rounded(&random(1, &[n, c])), stored(&random(2, &[c]), Dtype::Bf16));
            let mut wanted = Tensor::zeros(Dtype::F32, &[n, c]).unwrap();
            rmsnorm_forward(&device(), &mut wanted, &x, norm(&w), n, Compute::Bf16);
            for gpu in gpus() {
                let mut y = room(&gpu, n, c);
                rmsnorm_forward(&gpu, &mut y, &bf16_on(&gpu, &x), norm(&bf16_on(&gpu, &w)), n, Compute::Bf16);
                assert_close("y", &read(&y), &wide(&wanted), 1.0 / 128.0);
            }
        }
    }
}
