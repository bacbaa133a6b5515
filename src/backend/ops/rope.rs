//! Query and key heads before attention: RMSNorm of each head where the model has one, then rotary position embedding, one
//! rounding.
//!
//! x, y [N, H*D] f32, w [D] as stored, `positions[n]` the token's position. With u = x r w (see `rmsnorm`, the
//! mean over D; u = x without a norm), element i < D/2 is paired with i + D/2 (the rotate-half convention of Hugging Face):
//! y[i] = u[i] cos - u[i + D/2] sin, y[i + D/2] = u[i + D/2] cos + u[i] sin. RoPE is from Su et al. 2021
//! (arXiv 2104.09864), the stretched frequencies from YaRN, Peng et al. 2023 (arXiv 2309.00071).

use super::rmsnorm::{Norm, NormGradients, inverse_rms};
use super::split::{SUM_ROWS, add_chunks, items_per_task};
use crate::backend::cpu::dot::Widen;
use crate::backend::cpu::{Cpu, FloatEnv, Kernel, Lanes, Shared, math, piece};
use crate::backend::cuda::Address;
use crate::backend::{Compute, Device, Elements, Tensor};
use crate::error::Result;
use crate::tensor::Dtype;

/// 1 / theta^(2i/D) for i < D/2, rounded where torch rounds: the exponent, the power and the reciprocal to f32.
pub fn inverse_frequencies(head_dim: usize, theta: f64) -> Vec<f32> {
    let _env = FloatEnv::set();
    frequencies(head_dim, theta).map(|f| 1.0 / f).collect()
}

fn frequencies(head_dim: usize, theta: f64) -> impl Iterator<Item = f32> {
    (0..head_dim / 2).map(move |i| math::pow(theta, ((2 * i) as f32 / head_dim as f32) as f64) as f32)
}

/// YaRN's inverse frequencies, as `_compute_yarn_parameters` of transformers: slow dimensions are interpolated
/// by `factor`, fast ones are kept, with a linear ramp between the dimensions that turn `beta_fast` and
/// `beta_slow` times over the original context; `truncate` widens the ramp to whole dimensions.
pub fn yarn_inverse_frequencies(
    head_dim: usize,
    theta: f64,
    factor: f64,
    original_max_position: usize,
    beta_fast: f64,
    beta_slow: f64,
    truncate: bool,
) -> Vec<f32> {
    let _env = FloatEnv::set();
    let dim = head_dim as f64;
    let dimension_of = |rotations: f64| {
        let per_radian = original_max_position as f64 / (rotations * 2.0 * std::f64::consts::PI);
        dim * math::ln(per_radian) / (2.0 * math::ln(theta))
    };
    let (mut low, mut high) = (dimension_of(beta_fast), dimension_of(beta_slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dim - 1.0));
    if low == high {
        high += 0.001;
    }
    let kept = |i: usize| 1.0 - ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
    let blend = |(i, f): (usize, f32)| {
        let (interpolated, extrapolated) = (1.0 / (factor as f32 * f), 1.0 / f);
        interpolated * (1.0 - kept(i)) + extrapolated * kept(i)
    };
    frequencies(head_dim, theta).enumerate().map(blend).collect()
}

/// Llama 3.1's inverse frequencies, as `_compute_llama3_parameters` of transformers: those that turn less than `turns.0`
/// times over the original context are divided by `factor`, those that turn more than `turns.1` times are kept, and between
/// the two a blend goes with the number of turns.
pub fn llama3_inverse_frequencies(
    head_dim: usize,
    theta: f64,
    factor: f64,
    turns: (f64, f64),
    original_max_position: usize,
) -> Vec<f32> {
    let _env = FloatEnv::set();
    let (low, high, original) = (turns.0 as f32, turns.1 as f32, original_max_position as f64);
    let factor = factor as f32;
    let stretched = |f: f32| {
        let f = 1.0 / f;
        let wavelength = 2.0 * std::f32::consts::PI / f;
        if f64::from(wavelength) > original / turns.0 {
            f / factor
        } else if f64::from(wavelength) < original / turns.1 {
            f
        } else {
            let kept = (original as f32 / wavelength - low) / (high - low);
            (1.0 - kept) * f / factor + kept * f
        }
    };
    frequencies(head_dim, theta).map(stretched).collect()
}

/// Cosines and sines of every position.
pub struct RopeTable {
    /// [P, D/2] f32.
    cos: Tensor,
    /// [P, D/2] f32.
    sin: Tensor,
}

impl RopeTable {
    /// Positions 0 to `n_positions` - 1 for the given inverse frequencies [D/2]. The angle is rounded to f32 (as
    /// torch does), its cosine and sine to f32, then both are multiplied by `scaling` (YaRN's attention factor, else 1).
    pub fn new(inv_freq: &[f32], n_positions: usize, scaling: f32) -> Result<RopeTable> {
        let _env = FloatEnv::set();
        let mut cos = Tensor::zeros(Dtype::F32, &[n_positions, inv_freq.len()])?;
        let mut sin = Tensor::zeros(Dtype::F32, &[n_positions, inv_freq.len()])?;
        let entries = cos.f32_mut().iter_mut().zip(sin.f32_mut());
        let angles = (0..n_positions).flat_map(|pos| inv_freq.iter().map(move |f| pos as f32 * f));
        for ((cos, sin), angle) in entries.zip(angles) {
            let (s, c) = math::sin_cos(angle as f64);
            *cos = c as f32 * scaling;
            *sin = s as f32 * scaling;
        }
        Ok(RopeTable { cos, sin })
    }

    /// Bytes of a table of so many positions and heads of so many elements.
    pub fn bytes(device: &Device, n_positions: usize, head_dim: usize) -> u64 {
        2 * device.taken(n_positions * (head_dim / 2) * Dtype::F32.size())
    }

    /// Number of positions P.
    pub fn n_positions(&self) -> usize {
        self.cos.extent(0)
    }

    /// Elements of a head, D.
    pub fn head_dim(&self) -> usize {
        2 * self.cos.extent(1)
    }

    /// The table where `device` computes.
    pub fn on(self, device: &Device) -> Result<RopeTable> {
        match device {
            Device::Cpu(_) => Ok(self),
            Device::Cuda(_) => self.to_device(device),
        }
    }

    /// A copy where `device` computes.
    pub fn to_device(&self, device: &Device) -> Result<RopeTable> {
        Ok(RopeTable { cos: self.cos.to_device(device)?, sin: self.sin.to_device(device)? })
    }

    /// Where the cosines and the sines lie on a GPU.
    pub(super) fn addresses(&self) -> [Address; 2] {
        [self.cos.address(), self.sin.address()]
    }

    fn assert_fits(&self, norm: Option<Norm>, positions: &[u32]) {
        let d = norm.map_or(self.head_dim(), |norm| norm.weight.extent(0));
        assert!(d == self.head_dim(), "the norm is of {d}, the table for heads of {}", self.head_dim());
        let p = self.n_positions();
        assert!(positions.iter().all(|&pos| (pos as usize) < p), "a position lies outside the table of {p}");
    }
}

/// How heads are normed and turned.
#[derive(Clone, Copy)]
pub struct HeadNorm<'a> {
    /// `[D]`, as stored, with its eps; None where heads are turned as they are
    pub norm: Option<Norm<'a>>,
    /// angles of all positions
    pub table: &'a RopeTable,
    /// heads of a row
    pub n_heads: usize,
}

/// y = rope(rmsnorm(x) * w) for each head of each row, x, y [N, H*D]; `positions` has one entry a row in use. Overwrites
/// their rows of `y`.
pub fn qk_norm_rope_forward(
    device: &Device,
    y: &mut Tensor,
    x: &Tensor,
    how: HeadNorm,
    positions: &[u32],
    compute: Compute,
) {
    let (table, n) = (how.table, positions.len());
    let width = how.n_heads * table.head_dim();
    assert!(x.extent(0) >= n && x.extent(1) == width, "x is {}, wanted rows of {width}", x.shape());
    assert!(y.extent(0) >= n && y.extent(1) == width, "y is {}, wanted rows of {width}", y.shape());
    table.assert_fits(how.norm, positions);
    let cpu = device.cpu();
    let x = &x.f32()[..n * width];
    let y = Shared::new(&mut y.f32_mut()[..n * width]);
    let heads = Heads::new(&how, positions);
    let round = compute.rounds();
    match how.norm.map(|norm| norm.weight.elements()) {
        None => forward(cpu, y, x, ones(how.table), heads, round),
        Some(Elements::F32(w)) => forward(cpu, y, x, w, heads, round),
        Some(Elements::Bf16(w)) => forward(cpu, y, x, w, heads, round),
        Some(Elements::F16(w)) => forward(cpu, y, x, w, heads, round),
    }
}

fn forward<W: Widen>(cpu: &Cpu, y: Shared<f32>, x: &[f32], w: &[W], heads: Heads<'_>, round: bool) {
    let n = heads.positions.len() * heads.n_heads;
    let per_task = items_per_task(cpu, n, w.len());
    cpu.launch(n.div_ceil(per_task), &QkNormRopeForward { y, x, w, heads, n, per_task, round });
}

/// The weight of a norm that is not there.
#[derive(Clone, Copy, Default)]
struct One;

impl Widen for One {
    #[inline(always)]
    unsafe fn load<V: Lanes>(_: *const One, _: usize) -> V {
        // SAFETY: the caller's.
        unsafe { V::splat(1.0) }
    }
}

/// As many as a head has elements; they take no memory.
fn ones(table: &RopeTable) -> &'static [One] {
    const MOST: [One; 1 << 16] = [One; 1 << 16];
    &MOST[..table.head_dim()]
}

/// Adds the gradients to the rows in use of `to.dx` [N, H*D] and to `to.dw` `[D]`; dy, x [N, H*D].
pub fn qk_norm_rope_backward(
    device: &Device,
    to: NormGradients,
    dy: &Tensor,
    x: &Tensor,
    how: HeadNorm,
    positions: &[u32],
) -> Result<()> {
    let NormGradients { dx, dw } = to;
    let (n, d) = (positions.len(), how.table.head_dim());
    let width = how.n_heads * d;
    assert!(dw.as_ref().is_none_or(|dw| dw.extent(0) == d), "dw is {dw:?} for heads of {d}");
    for (name, t) in [("dx", &*dx), ("dy", dy), ("x", x)] {
        assert!(t.extent(0) >= n && t.extent(1) == width, "{name} is {}, wanted rows of {width}", t.shape());
    }
    how.table.assert_fits(how.norm, positions);
    let cpu = device.cpu();
    let (dy, x) = (&dy.f32()[..n * width], &x.f32()[..n * width]);
    let dx = Shared::new(&mut dx.f32_mut()[..n * width]);
    let mut sums = cpu.scratch::<f32>(n.div_ceil(SUM_ROWS) * d)?;
    sums.fill(0.0);
    let parts = Shared::new(&mut sums);
    let heads = Heads::new(&how, positions);
    let n_tasks = n.div_ceil(SUM_ROWS);
    match how.norm.map(|norm| norm.weight.elements()) {
        None => cpu.launch(n_tasks, &QkNormRopeBackward { dx, parts, dy, x, w: ones(how.table), heads }),
        Some(Elements::F32(w)) => cpu.launch(n_tasks, &QkNormRopeBackward { dx, parts, dy, x, w, heads }),
        Some(Elements::Bf16(w)) => cpu.launch(n_tasks, &QkNormRopeBackward { dx, parts, dy, x, w, heads }),
        Some(Elements::F16(w)) => cpu.launch(n_tasks, &QkNormRopeBackward { dx, parts, dy, x, w, heads }),
    }
    if let Some(dw) = dw {
        add_chunks(cpu, dw.f32_mut(), &sums);
    }
    Ok(())
}

/// What both directions know about the heads; positions has one entry for each row in use.
#[derive(Clone, Copy)]
struct Heads<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    positions: &'a [u32],
    n_heads: usize,
    /// of the norm, where there is one
    eps: Option<f32>,
}

impl<'a> Heads<'a> {
    fn new(how: &HeadNorm<'a>, positions: &'a [u32]) -> Heads<'a> {
        let (cos, sin) = (how.table.cos.f32(), how.table.sin.f32());
        Heads { cos, sin, positions, n_heads: how.n_heads, eps: how.norm.map(|norm| norm.eps) }
    }
}

struct QkNormRopeForward<'a, W> {
    y: Shared<f32>,
    x: &'a [f32],
    w: &'a [W],
    heads: Heads<'a>,
    n: usize,
    per_task: usize,
    round: bool,
}

impl<W: Widen> Kernel for QkNormRopeForward<'_, W> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        let d = self.w.len();
        let half = d / 2;
        for head in piece(index, self.per_task, self.n) {
            let pos = self.heads.positions[head / self.heads.n_heads] as usize;
            // SAFETY: the head lies inside x and y, the position inside the table; tasks own disjoint heads.
            unsafe {
                let (cos, sin) = (self.heads.cos.as_ptr().add(pos * half), self.heads.sin.as_ptr().add(pos * half));
                let (x, w) = (self.x.as_ptr().add(head * d), self.w.as_ptr());
                let r = V::splat(match self.heads.eps {
                    Some(eps) => inverse_rms::<V>(x, d, eps),
                    None => 1.0,
                });
                let mut i = 0;
                while i < half {
                    let n = (half - i).min(16);
                    let (w0, w1): (V, V) = (W::load(w.add(i), n), W::load(w.add(half + i), n));
                    let u0 = V::load_up_to(x.add(i), n).mul(r).mul(w0);
                    let u1 = V::load_up_to(x.add(half + i), n).mul(r).mul(w1);
                    let (c, s) = (V::load_up_to(cos.add(i), n), V::load_up_to(sin.add(i), n));
                    let y0 = u0.fma(c, V::zero().sub(u1.mul(s)));
                    let y1 = u1.fma(c, u0.mul(s));
                    y0.store_rounded(self.y.at(head * d + i), n, self.round);
                    y1.store_rounded(self.y.at(head * d + half + i), n, self.round);
                    i += 16;
                }
            }
        }
    }
}

/// One task takes `SUM_ROWS` rows: their dx, and their sum towards dw in row `index` of `parts`.
struct QkNormRopeBackward<'a, W> {
    dx: Shared<f32>,
    parts: Shared<f32>,
    dy: &'a [f32],
    x: &'a [f32],
    w: &'a [W],
    heads: Heads<'a>,
}

impl<W: Widen> Kernel for QkNormRopeBackward<'_, W> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        let d = self.w.len();
        let half = d / 2;
        for row in piece(index, SUM_ROWS, self.heads.positions.len()) {
            let pos = self.heads.positions[row] as usize;
            for head in row * self.heads.n_heads..(row + 1) * self.heads.n_heads {
                // SAFETY: the head lies inside x, dy and dx, the position inside the table; tasks own disjoint
                // rows, and one row of `parts` each.
                unsafe {
                    let cos = self.heads.cos.as_ptr().add(pos * half);
                    let sin = self.heads.sin.as_ptr().add(pos * half);
                    let (x, dy) = (self.x.as_ptr().add(head * d), self.dy.as_ptr().add(head * d));
                    let w = self.w.as_ptr();
                    let (r, slope) = match self.heads.eps {
                        Some(eps) => {
                            let r = inverse_rms::<V>(x, d, eps);
                            (r, r * r * r)
                        }
                        None => (1.0, 0.0),
                    };
                    let mut acc = V::zero();
                    let mut i = 0;
                    while i < half {
                        let n = (half - i).min(16);
                        let (w0, w1): (V, V) = (W::load(w.add(i), n), W::load(w.add(half + i), n));
                        let (d0, d1): (V, V) = rotate_back(dy.add(i), half, cos.add(i), sin.add(i), n);
                        acc = d0.mul(w0).fma(V::load_up_to(x.add(i), n), acc);
                        acc = d1.mul(w1).fma(V::load_up_to(x.add(half + i), n), acc);
                        i += 16;
                    }
                    let along = -slope * (acc.reduce_add() / d as f32);
                    let factors = (V::splat(r), V::splat(along));
                    let (dx, dw) = (self.dx.at(head * d), self.parts.at(index * d));
                    let mut i = 0;
                    while i < half {
                        let n = (half - i).min(16);
                        let (d0, d1): (V, V) = rotate_back(dy.add(i), half, cos.add(i), sin.add(i), n);
                        let (w0, w1): (V, V) = (W::load(w.add(i), n), W::load(w.add(half + i), n));
                        add_gradients(dx.add(i), dw.add(i), d0, x.add(i), w0, factors, n);
                        add_gradients(dx.add(half + i), dw.add(half + i), d1, x.add(half + i), w1, factors, n);
                        i += 16;
                    }
                }
            }
        }
    }
}

/// The gradient of u by that of y: both halves of `dy` at one place, turned the other way.
///
/// # Safety
/// The contract of [`Lanes`]; `n` elements are readable at each place.
#[inline(always)]
unsafe fn rotate_back<V: Lanes>(dy: *const f32, half: usize, cos: *const f32, sin: *const f32, n: usize) -> (V, V) {
    // SAFETY: the caller's.
    unsafe {
        let (d0, d1) = (V::load_up_to(dy, n), V::load_up_to(dy.add(half), n));
        let (c, s) = (V::load_up_to(cos, n), V::load_up_to(sin, n));
        (d0.fma(c, d1.mul(s)), d1.fma(c, V::zero().sub(d0.mul(s))))
    }
}

/// dx += du w r + x along, dw += du x r, where `factors` are (r, along).
///
/// # Safety
/// The contract of [`Lanes`]; `n` elements are readable and, of dx and dw, writable.
#[inline(always)]
unsafe fn add_gradients<V: Lanes>(
    dx: *mut f32,
    dw: *mut f32,
    du: V,
    x: *const f32,
    w: V,
    (r, along): (V, V),
    n: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let x = V::load_up_to(x, n);
        x.fma(along, du.mul(w).fma(r, V::load_up_to(dx, n))).store_rounded(dx, n, false);
        du.fma(x.mul(r), V::load_up_to(dw, n)).store_rounded(dw, n, false);
    }
}

#[cfg(test)]
mod tests {
    use super::super::claims::*;
    use super::*;

    /// (rows, heads, elements of a head)
    const EXTENTS: [(usize, usize, usize); 5] = [(1, 1, 2), (3, 2, 14), (2, 3, 34), (19, 2, 64), (5, 16, 128)];
    const EPS: f32 = 1e-6;

    fn positions(n: usize) -> Vec<u32> {
        (0..n as u32).map(|i| (i * 7 + 3) % 50).collect()
    }

    fn table(d: usize) -> RopeTable {
        RopeTable::new(&inverse_frequencies(d, 1e4), 50, 1.25).unwrap()
    }

    fn of<'a>(weight: &'a Tensor, table: &'a RopeTable, n_heads: usize) -> HeadNorm<'a> {
        HeadNorm { norm: Some(Norm { weight, eps: EPS }), table, n_heads }
    }

    fn formula(x: &[f64], w: &[f64], n: usize) -> Vec<f64> {
        let d = w.len();
        let n_heads = x.len() / d / n;
        let freq = inverse_frequencies(d, 1e4);
        let head = |(h, x): (usize, &[f64])| {
            let r = 1.0 / (x.iter().map(|v| v * v).sum::<f64>() / d as f64 + EPS as f64).sqrt();
            let u: Vec<f64> = x.iter().zip(w).map(|(x, w)| x * r * w).collect();
            let pos = positions(n)[h / n_heads];
            let turn = |i: usize| (pos as f64 * freq[i % (d / 2)] as f64).sin_cos();
            let other = |i: usize| if i < d / 2 { -u[i + d / 2] } else { u[i - d / 2] };
            (0..d).map(|i| 1.25 * (u[i] * turn(i).1 + other(i) * turn(i).0)).collect::<Vec<_>>()
        };
        x.chunks_exact(d).enumerate().flat_map(head).collect()
    }

    #[test]
    fn qk_norm_rope_forward_equals_the_formula_with_one_set_of_bits() {
        for (n, h, d) in EXTENTS {
            let (x, table) = (random(1, &[n, h * d]), table(d));
            for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
                let w = stored(&random(2, &[d]), dtype);
                for (compute, tolerance) in [(Compute::F32, 1e-5), (Compute::Bf16, 1.0 / 256.0)] {
                    let mut judge: Option<Vec<f32>> = None;
                    for device in devices() {
                        let mut y = Tensor::zeros(Dtype::F32, &[n, h * d]).unwrap();
                        qk_norm_rope_forward(&device, &mut y, &x, of(&w, &table, h), &positions(n), compute);
                        assert_close("y", y.f32(), &formula(&wide(&x), &wide(&w), n), tolerance);
                        assert_same_bits("y", y.f32(), judge.get_or_insert_with(|| y.f32().to_vec()));
                    }
                }
            }
        }
    }

    #[test]
    fn qk_norm_rope_backward_matches_finite_difference_and_accumulates() {
        for (n, h, d) in [(1, 1, 2), (3, 2, 14), (18, 1, 34)] {
            let (x, w, dy) = (random(1, &[n, h * d]), random(2, &[d]), random(3, &[n, h * d]));
            let weighted =
                |x: &[f64], w: &[f64]| formula(x, w, n).iter().zip(wide(&dy)).map(|(y, d)| y * d).sum::<f64>();
            let (mut dx, mut dw) = (random(4, &[n, h * d]), random(5, &[d]));
            let mut wanted_x = finite_difference(&wide(&x), |x| weighted(x, &wide(&w)));
            wanted_x.iter_mut().zip(wide(&dx)).for_each(|(d, s)| *d += s);
            let mut wanted_w = finite_difference(&wide(&w), |w| weighted(&wide(&x), w));
            wanted_w.iter_mut().zip(wide(&dw)).for_each(|(d, s)| *d += s);
            let to = NormGradients { dx: &mut dx, dw: Some(&mut dw) };
            qk_norm_rope_backward(&device(), to, &dy, &x, of(&w, &table(d), h), &positions(n)).unwrap();
            assert_close("dx", dx.f32(), &wanted_x, 1e-5);
            assert_close("dw", dw.f32(), &wanted_w, 1e-5);
        }
    }

    #[test]
    fn qk_norm_rope_backward_does_not_depend_on_the_thread_count() {
        for (n, h, d) in EXTENTS {
            let (x, w, dy) = (random(1, &[n, h * d]), random(2, &[d]), random(3, &[n, h * d]));
            let mut judge: Option<(Vec<f32>, Vec<f32>)> = None;
            for device in devices() {
                let mut dx = Tensor::zeros(Dtype::F32, &[n, h * d]).unwrap();
                let mut dw = Tensor::zeros(Dtype::F32, &[d]).unwrap();
                let to = NormGradients { dx: &mut dx, dw: Some(&mut dw) };
                qk_norm_rope_backward(&device, to, &dy, &x, of(&w, &table(d), h), &positions(n)).unwrap();
                let judge = judge.get_or_insert_with(|| (dx.f32().to_vec(), dw.f32().to_vec()));
                assert_same_bits("dx", dx.f32(), &judge.0);
                assert_same_bits("dw", dw.f32(), &judge.1);
            }
        }
    }

    #[test]
    fn position_zero_does_not_rotate_and_far_positions_are_exact() {
        let freq = inverse_frequencies(128, 1e6);
        let table = RopeTable::new(&freq, 40_960, 1.0).unwrap();
        assert_eq!((table.n_positions(), table.head_dim()), (40_960, 128));
        assert!(table.cos.f32()[..64].iter().all(|&c| c == 1.0) && table.sin.f32()[..64].iter().all(|&s| s == 0.0));
        for pos in [1usize, 777, 40_959] {
            for (i, f) in freq.iter().enumerate() {
                let angle = (pos as f32 * f) as f64;
                assert!((table.cos.f32()[pos * 64 + i] as f64 - angle.cos()).abs() < 1e-7);
                assert!((table.sin.f32()[pos * 64 + i] as f64 - angle.sin()).abs() < 1e-7);
            }
        }
    }

    #[test]
    fn yarn_keeps_fast_dimensions_and_stretches_slow_ones() {
        let plain = inverse_frequencies(128, 1e6);
        let yarn = yarn_inverse_frequencies(128, 1e6, 4.0, 32_768, 32.0, 1.0, true);
        // The dimensions that turn 32 times and once: 64 ln(32768 / 2 pi r) / ln 1e6, rounded outwards: 23 and 40.
        for i in 0..64 {
            let ratio = yarn[i] as f64 / plain[i] as f64;
            let ramp = ((i as f64 - 23.0) / 17.0).clamp(0.0, 1.0);
            let wanted = 1.0 - ramp + ramp / 4.0;
            assert!((ratio - wanted).abs() < 1e-6, "dimension {i}: {ratio} and not {wanted}");
        }
        let smooth = yarn_inverse_frequencies(128, 1e6, 4.0, 32_768, 32.0, 1.0, false);
        assert_ne!(smooth, yarn);
        assert!(smooth.windows(2).all(|w| w[0] > w[1]));
    }

    #[test]
    #[should_panic(expected = "outside the table")]
    fn a_position_outside_the_table_panics() {
        let (x, w) = (random(1, &[1, 4]), random(2, &[4]));
        let mut y = Tensor::zeros(Dtype::F32, &[1, 4]).unwrap();
        qk_norm_rope_forward(&device(), &mut y, &x, of(&w, &table(4), 1), &[50], Compute::F32);
    }
}
