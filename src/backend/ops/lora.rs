//! What an adapter adds to a linear layer (LoRA): y[n, :] += s (x[n, :] A^T) B^T for the rows that it applies to.
//!
//! x [N, K], A [R, K], y [N, O], and B [O, R] kept as its transpose [R, O]. For a row: u[r] = s * (x . A[r, :]) with the dot
//! product in the canonical order (`cpu::dot`), and then for every output y[o] = fma(u[r], B[o, r], y[o]) with r in order,
//! starting from the product in f32 with its bias. One rounding follows, in bf16 compute. Neither the neighbours of a row
//! nor their adapters change its bits, and where B is zero neither does the adapter: what the product leaves is never
//! -0 (`Lanes::reduce_add`), so nothing added to it changes a sign.
//!
//! Backward, dy given: du[n, r] = s * sum over o of dy[n, o] B[o, r]; dB += dy^T u, dA += du^T x, dx += du A.

use std::ops::Range;

use super::convert;
use super::product::{Extents, input_gradient, product, weight_gradient};
use crate::backend::cpu::dot::{B16, H16, Wide, Widen, tile};
use crate::backend::cpu::outer::Outer;
use crate::backend::cpu::{Cpu, Kernel, Lanes, Shared, piece};
use crate::backend::{Device, Elements, LoraPair, Tensor, Weight, host};
use crate::error::Result;
use crate::tensor::Dtype;

/// Rows of one task.
const ROWS: usize = 12;
/// Columns of y of the smallest part: four vectors.
const COLUMNS: usize = 64;

/// Rows that are treated alike.
struct Piece<'a> {
    rows: Range<usize>,
    pair: Option<&'a LoraPair>,
}

/// The rows of a batch in pieces of one adapter or none each.
fn pieces<'a>(w: Weight<'a>, n: usize) -> Result<Vec<Piece<'a>>> {
    let mut pieces = Vec::new();
    let mut cut = |rows: Range<usize>, pair| -> Result<()> {
        host::reserve(&mut pieces, rows.len().div_ceil(ROWS))?;
        let starts = rows.clone().step_by(ROWS);
        pieces.extend(starts.map(|start| Piece { rows: start..rows.end.min(start + ROWS), pair }));
        Ok(())
    };
    let mut done = 0;
    for (rows, pair) in w.pairs() {
        let rows = rows.start.min(n)..rows.end.min(n);
        cut(done..rows.start, None)?;
        cut(rows.clone(), Some(pair))?;
        done = rows.end;
    }
    cut(done..n, None)?;
    Ok(pieces)
}

/// From the bare product y = x w^T in f32 to the layer's result: adds bias and adapters, and rounds.
pub(super) fn adapt(cpu: &Cpu, y: Shared<f32>, x: &[f32], w: Weight, extents: Extents, round: bool) -> Result<()> {
    let Extents { n, o, k } = extents;
    let mut rank = 0;
    for (rows, pair) in w.pairs() {
        let (a, b) = (&pair.a, &pair.b);
        assert!(a.extent(1) == k && b.extent(1) == o && a.extent(0) == b.extent(0), "A is {a:?}, B {b:?}");
        rank = rank.max(a.extent(0));
        if rows.start < n {
            cpu.count_weight_bytes(a.n_bytes() + b.n_bytes());
        }
    }
    let pieces = pieces(w, n)?;
    // Few pieces are cut across, and u is computed in each part again.
    let n_parts = cpu.n_threads().div_ceil(pieces.len().max(1)).min(o.div_ceil(COLUMNS));
    let part = o.div_ceil(n_parts).next_multiple_of(COLUMNS);
    let mut u = cpu.scratch::<f32>(pieces.len() * n_parts * ROWS * rank)?;
    let kernel = Adapt {
        y,
        x,
        u: Shared::new(&mut u),
        bias: w.matrix.bias.as_ref().map(Tensor::elements),
        pieces: &pieces,
        n_parts,
        part,
        o,
        k,
        rank,
        round,
    };
    cpu.launch(pieces.len() * n_parts, &kernel);
    Ok(())
}

struct Adapt<'a> {
    y: Shared<f32>,
    x: &'a [f32],
    /// [tasks, ROWS, the largest rank]
    u: Shared<f32>,
    bias: Option<Elements<'a>>,
    pieces: &'a [Piece<'a>],
    /// parts of a piece, by columns
    n_parts: usize,
    /// columns of a part
    part: usize,
    o: usize,
    k: usize,
    /// the largest
    rank: usize,
    round: bool,
}

impl Kernel for Adapt<'_> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        let Piece { rows, pair } = &self.pieces[index / self.n_parts];
        let columns = piece(index % self.n_parts, self.part, self.o);
        // SAFETY: a task has its own rows and columns of y and its own part of u; the extents were checked.
        unsafe {
            match self.bias {
                None => {}
                Some(Elements::F32(b)) => self.add_bias::<V, f32>(rows.clone(), columns.clone(), b),
                Some(Elements::Bf16(b)) => self.add_bias::<V, B16>(rows.clone(), columns.clone(), b),
                Some(Elements::F16(b)) => self.add_bias::<V, H16>(rows.clone(), columns.clone(), b),
            }
            let Some(pair) = pair else { return self.finish::<V>(rows.clone(), columns) };
            let u = self.u.at(index * ROWS * self.rank);
            match (pair.a.elements(), pair.b.elements()) {
                (Elements::F32(a), Elements::F32(b)) => self.both::<V, f32>(u, rows.clone(), columns, (a, b), pair),
                (Elements::Bf16(a), Elements::Bf16(b)) => self.both::<V, B16>(u, rows.clone(), columns, (a, b), pair),
                (Elements::F16(a), Elements::F16(b)) => self.both::<V, H16>(u, rows.clone(), columns, (a, b), pair),
                _ => unreachable!("a pair has one dtype"),
            }
        }
    }
}

impl Adapt<'_> {
    #[inline(always)]
    unsafe fn add_bias<V: Lanes, W: Widen>(&self, rows: Range<usize>, columns: Range<usize>, bias: &[W]) {
        for row in rows {
            let mut c = columns.start;
            while c < columns.end {
                let n = (columns.end - c).min(16);
                // SAFETY: the caller's: rows and columns lie inside y, and the bias has as many columns.
                unsafe {
                    let y = self.y.at(row * self.o + c);
                    V::load_up_to(y, n).add(W::load(bias.as_ptr().add(c), n)).store_rounded(y, n, false);
                }
                c += 16;
            }
        }
    }

    /// Rounds rows that have no adapter.
    #[inline(always)]
    unsafe fn finish<V: Lanes>(&self, rows: Range<usize>, columns: Range<usize>) {
        if !self.round {
            return;
        }
        for row in rows {
            let mut c = columns.start;
            while c < columns.end {
                let n = (columns.end - c).min(16);
                // SAFETY: the caller's.
                unsafe {
                    let y = self.y.at(row * self.o + c);
                    V::load_up_to(y, n).store_rounded(y, n, true);
                }
                c += 16;
            }
        }
    }

    /// u = s x A^T, then y += u B^T.
    #[inline(always)]
    unsafe fn both<V: Lanes, W: Widen>(
        &self,
        u: *mut f32,
        rows: Range<usize>,
        columns: Range<usize>,
        (a, b): (&[W], &[W]),
        pair: &LoraPair,
    ) {
        let rank = pair.a.extent(0);
        // SAFETY: the caller's.
        unsafe {
            let mut row = 0;
            while row < rows.len() {
                let x = self.x.as_ptr().add((rows.start + row) * self.k);
                let u = u.add(row * rank);
                match rows.len() - row {
                    1 => self.shrink::<V, W, 1>(u, x, a, rank, pair.scale),
                    2 => self.shrink::<V, W, 2>(u, x, a, rank, pair.scale),
                    _ => self.shrink::<V, W, 3>(u, x, a, rank, pair.scale),
                }
                row += 3;
            }
            let mut row = 0;
            while row < rows.len() {
                let (at, u) = (rows.start + row, u.add(row * rank).cast_const());
                match (V::COLUMNS == 8, rows.len() - row) {
                    (true, 1) => self.grow::<V, W, 1, 4>(u, at, columns.clone(), b, rank),
                    (true, 2) => self.grow::<V, W, 2, 4>(u, at, columns.clone(), b, rank),
                    (true, _) => self.grow::<V, W, 3, 4>(u, at, columns.clone(), b, rank),
                    // Lanes that are two registers each: what is held is half as wide.
                    (false, 1) => self.grow::<V, W, 1, 2>(u, at, columns.clone(), b, rank),
                    (false, 2) => self.grow::<V, W, 2, 2>(u, at, columns.clone(), b, rank),
                    (false, _) => self.grow::<V, W, 3, 2>(u, at, columns.clone(), b, rank),
                }
                row += 3;
            }
        }
    }

    /// u of `N` rows.
    #[inline(always)]
    unsafe fn shrink<V: Lanes, W: Widen, const N: usize>(
        &self,
        u: *mut f32,
        x: *const f32,
        a: &[W],
        rank: usize,
        scale: f32,
    ) {
        // SAFETY: the caller's.
        unsafe {
            let mut xs = [x; N];
            for (n, row) in xs.iter_mut().enumerate() {
                *row = x.add(n * self.k);
            }
            let a = a.as_ptr();
            let mut r = 0;
            while r + 4 <= rank {
                let mut of = [a; 4];
                for (c, of) in of.iter_mut().enumerate() {
                    *of = a.add((r + c) * self.k);
                }
                let dots = tile::<V, Wide<W>, N, 4>(xs, of, self.k);
                for (n, dots) in dots.iter().enumerate() {
                    for (c, dot) in dots.iter().enumerate() {
                        *u.add(n * rank + r + c) = scale * dot;
                    }
                }
                r += 4;
            }
            while r < rank {
                let dots = tile::<V, Wide<W>, N, 1>(xs, [a.add(r * self.k)], self.k);
                for (n, dots) in dots.iter().enumerate() {
                    *u.add(n * rank + r) = scale * dots[0];
                }
                r += 1;
            }
        }
    }

    /// y of `N` rows, `VECTORS` of sixteen columns at a time.
    #[inline(always)]
    unsafe fn grow<V: Lanes, W: Widen, const N: usize, const VECTORS: usize>(
        &self,
        u: *const f32,
        row: usize,
        columns: Range<usize>,
        b: &[W],
        rank: usize,
    ) {
        let mut c = columns.start;
        while c < columns.end {
            let width = (columns.end - c).min(16 * VECTORS);
            let mut lens = [0; VECTORS];
            for (v, len) in lens.iter_mut().enumerate() {
                *len = width.saturating_sub(16 * v).min(16);
            }
            // SAFETY: the caller's.
            unsafe {
                let mut acc = [[V::zero(); VECTORS]; N];
                for (n, acc) in acc.iter_mut().enumerate() {
                    for v in 0..VECTORS {
                        if lens[v] > 0 {
                            acc[v] = V::load_up_to(self.y.at((row + n) * self.o + c + 16 * v), lens[v]);
                        }
                    }
                }
                for r in 0..rank {
                    let b = b.as_ptr().add(r * self.o + c);
                    for v in 0..VECTORS {
                        if lens[v] == 0 {
                            continue;
                        }
                        let b: V = W::load(b.add(16 * v), lens[v]);
                        for (n, acc) in acc.iter_mut().enumerate() {
                            acc[v] = V::splat(*u.add(n * rank + r)).fma(b, acc[v]);
                        }
                    }
                }
                for (n, acc) in acc.iter().enumerate() {
                    for v in 0..VECTORS {
                        if lens[v] > 0 {
                            acc[v].store_rounded(self.y.at((row + n) * self.o + c + 16 * v), lens[v], self.round);
                        }
                    }
                }
            }
            c += 16 * VECTORS;
        }
    }
}

/// y [N, O] = scale * x w^T for w [O, K], as f32 slices.
fn scaled_product(cpu: &Cpu, y: &mut [f32], x: &[f32], w: &Tensor, n: usize, scale: f32) -> Result<()> {
    let extents = Extents { n, o: w.extent(0), k: w.extent(1) };
    let to = Shared::new(y);
    match w.elements() {
        Elements::F32(w) => product::<Wide<f32>>(cpu, x, w, to, extents, false)?,
        Elements::Bf16(w) => product::<Wide<B16>>(cpu, x, w, to, extents, false)?,
        Elements::F16(w) => product::<Wide<H16>>(cpu, x, w, to, extents, false)?,
    }
    y[..n * extents.o].iter_mut().for_each(|u| *u *= scale);
    Ok(())
}

/// Adds what passes through the adapter to the first `n` rows of `dx`, and to `dpair` where the pair is trained; of that
/// the scale is not read. dy [N, O], x [N, K].
pub(super) fn lora_backward(
    device: &Device,
    dx: &mut Tensor,
    dy: &Tensor,
    x: &Tensor,
    pair: &LoraPair,
    dpair: Option<&mut LoraPair>,
    n: usize,
) -> Result<()> {
    let (cpu, rank, k, o) = (device.cpu(), pair.a.extent(0), pair.a.extent(1), pair.b.extent(1));
    assert!(dy.extent(1) == o && x.extent(1) == k && dx.extent(1) == k, "dy is {dy:?}, x {x:?}, dx {dx:?}");
    let (dy, x) = (&dy.f32()[..n * o], &x.f32()[..n * k]);
    let mut du = cpu.scratch::<f32>(n * rank)?;
    scaled_product(cpu, &mut du, dy, &pair.b, n, pair.scale)?;
    if let Some(dpair) = dpair {
        let fits = dpair.a.shape() == pair.a.shape() && dpair.b.shape() == pair.b.shape();
        assert!(
            fits,
            "the gradient is of A {} and B {}, the pair of {}",
            dpair.a.shape(),
            dpair.b.shape(),
            pair.a.shape()
        );
        let mut u = cpu.scratch::<f32>(n * rank)?;
        scaled_product(cpu, &mut u, x, &pair.a, n, pair.scale)?;
        let to = Shared::new(dpair.b.f32_mut());
        weight_gradient(cpu, to, &u, dy, Extents { n, o: rank, k: o });
        let to = Shared::new(dpair.a.f32_mut());
        weight_gradient(cpu, to, &du, x, Extents { n, o: rank, k });
    }
    let dx = Shared::new(&mut dx.f32_mut()[..n * k]);
    let extents = Extents { n, o: rank, k };
    match pair.a.elements() {
        Elements::F32(a) => input_gradient(cpu, dx, &du, a, extents),
        Elements::Bf16(a) => input_gradient(cpu, dx, &du, a, extents),
        Elements::F16(a) => input_gradient(cpu, dx, &du, a, extents),
    }
    Ok(())
}

/// W + s B A in the place of W [O, K], rounded to its dtype: each element's sum in f32 with r in order.
pub fn lora_merge(device: &Device, w: &mut Tensor, pair: &LoraPair) -> Result<()> {
    let (cpu, rank, o, k) = (device.cpu(), pair.a.extent(0), pair.b.extent(1), pair.a.extent(1));
    assert!(w.extent(0) == o && w.extent(1) == k, "w is {w:?}, the pair of [{o}, {k}]");
    let mut sum = Tensor::zeros(Dtype::F32, &[o, k])?;
    w.widen_into(sum.f32_mut());
    let mut b = cpu.scratch::<f32>(rank * o)?;
    pair.b.widen_into(&mut b);
    b.iter_mut().for_each(|b| *b *= pair.scale);
    let c = Shared::new(sum.f32_mut());
    let terms = (&b[..], o, k, rank);
    match pair.a.elements() {
        Elements::F32(a) => merge(cpu, c, terms, a),
        Elements::Bf16(a) => merge(cpu, c, terms, a),
        Elements::F16(a) => merge(cpu, c, terms, a),
    }
    convert(device, w, &sum);
    Ok(())
}

fn merge<W: Widen>(cpu: &Cpu, c: Shared<f32>, (b, o, k, rank): (&[f32], usize, usize, usize), a: &[W]) {
    let outer = Outer { a: b, a_step_r: o, a_step_i: 1, b: a, c, n_terms: rank, n_rows: o, n_columns: k };
    cpu.launch(outer.n_tasks(), &outer);
}

#[cfg(test)]
mod tests {
    use super::super::claims::*;
    use super::super::{LinearGradient, linear_backward, linear_forward};
    use super::*;
    use crate::backend::{AdaptedRows, Compute, LayerPairs, Matrix, Projection};

    /// (rows, outputs, terms, rank): odd ones, ranks that are no multiple of anything, more rows than a task has.
    const EXTENTS: [(usize, usize, usize, usize); 4] =
        [(1, 1, 1, 1), (5, 33, 48, 3), (14, 130, 100, 16), (40, 70, 129, 7)];

    fn pair(o: usize, k: usize, rank: usize, seed: u64, dtype: Dtype) -> LoraPair {
        let (a, b) = (random(seed, &[rank, k]), random(seed + 1, &[rank, o]));
        LoraPair { a: stored(&a, dtype), b: stored(&b, dtype), scale: 0.5 + seed as f32 / 100.0 }
    }

    fn only(pair: LoraPair) -> LayerPairs {
        let mut pairs = LayerPairs::default();
        pairs[Projection::Up as usize] = Some(pair);
        pairs
    }

    /// y of one row by the definition, in f64: from the product, through what an adapter adds, to the bias.
    fn formula(x: &[f64], w: &Tensor, bias: Option<&Tensor>, pair: Option<&LoraPair>) -> Vec<f64> {
        let (o, k, w) = (w.extent(0), w.extent(1), wide(w));
        let mut y: Vec<f64> = (0..o).map(|i| (0..k).map(|l| x[l] * w[i * k + l]).sum()).collect();
        if let Some(bias) = bias {
            y.iter_mut().zip(wide(bias)).for_each(|(y, b)| *y += b);
        }
        if let Some(pair) = pair {
            let (a, b) = (wide(&pair.a), wide(&pair.b));
            for r in 0..pair.a.extent(0) {
                let u: f64 = f64::from(pair.scale) * (0..k).map(|l| x[l] * a[r * k + l]).sum::<f64>();
                (0..o).for_each(|i| y[i] += u * b[r * o + i]);
            }
        }
        y
    }

    /// Rows of four adapters and of none: of another rank, of another dtype, of one that leaves this matrix alone.
    fn mixed(n: usize, pairs: &[LayerPairs; 3]) -> Vec<AdaptedRows<'_>> {
        let cuts = [0, n / 5, n / 4, n / 2, n / 2 + n / 8, n];
        let of = [None, Some(0), Some(1), None, Some(2)];
        let runs = cuts.windows(2).zip(of).filter(|(cut, _)| cut[0] < cut[1]);
        runs.filter_map(|(cut, of)| of.map(|i: usize| AdaptedRows { rows: cut[0]..cut[1], pairs: &pairs[i] })).collect()
    }

    #[test]
    fn each_row_is_the_formula_under_its_own_adapter_with_one_set_of_bits() {
        for (n, o, k, rank) in EXTENTS {
            let pairs = [
                only(pair(o, k, rank, 10, Dtype::F32)),
                only(pair(o, k, rank + 2, 20, Dtype::Bf16)),
                only(pair(o, k, rank, 30, Dtype::F16)),
            ];
            for (dtype, compute) in
                [(Dtype::F32, Compute::F32), (Dtype::Bf16, Compute::F32), (Dtype::Bf16, Compute::Bf16)]
            {
                for biased in [false, true] {
                    let x = random(1, &[n, k]);
                    let x = if compute.rounds() { stored(&stored(&x, Dtype::Bf16), Dtype::F32) } else { x };
                    let mut w = Matrix::from(stored(&random(2, &[o, k]), dtype));
                    w.bias = biased.then(|| stored(&random(3, &[o]), dtype));
                    let rows = mixed(n, &pairs);
                    let weight = || Weight::adapted(&w, Projection::Up, &rows);
                    let mut judge: Option<Vec<f32>> = None;
                    for device in devices() {
                        let mut y = Tensor::zeros(Dtype::F32, &[n, o]).unwrap();
                        linear_forward(&device, &mut y, &x, weight(), n, compute).unwrap();
                        let judge = judge.get_or_insert_with(|| y.f32().to_vec());
                        assert_same_bits("y", y.f32(), judge);
                        for i in 0..n {
                            let own = rows.iter().find(|r| r.rows.contains(&i)).map(|r| r.pairs);
                            let one = Tensor::from_f32(&[1, k], &x.f32()[i * k..][..k]).unwrap();
                            let alone: Vec<AdaptedRows> =
                                own.iter().map(|pairs| AdaptedRows { rows: 0..1, pairs }).collect();
                            let mut row = Tensor::zeros(Dtype::F32, &[1, o]).unwrap();
                            let w = Weight::adapted(&w, Projection::Up, &alone);
                            linear_forward(&device, &mut row, &one, w, 1, compute).unwrap();
                            assert_same_bits("a row alone", row.f32(), &judge[i * o..][..o]);
                        }
                    }
                    let (judge, xs) = (judge.unwrap(), wide(&x));
                    let wanted: Vec<f64> = (0..n)
                        .flat_map(|i| {
                            let own = rows.iter().find(|r| r.rows.contains(&i));
                            let pair = own.and_then(|r| r.pairs[Projection::Up as usize].as_ref());
                            formula(&xs[i * k..][..k], w.dense(), w.bias.as_ref(), pair)
                        })
                        .collect();
                    assert_close("y", &judge, &wanted, if compute.rounds() { 1.0 / 200.0 } else { 1e-5 });
                }
            }
        }
    }

    #[test]
    fn an_adapter_of_another_projection_changes_nothing() {
        let (x, w) = (random(1, &[6, 20]), matrix(&random(2, &[9, 20])));
        let pairs = only(pair(9, 20, 3, 10, Dtype::F32));
        let rows = [AdaptedRows { rows: 0..6, pairs: &pairs }];
        let of = |w: Weight| {
            let mut y = Tensor::zeros(Dtype::F32, &[6, 9]).unwrap();
            linear_forward(&device(), &mut y, &x, w, 6, Compute::F32).unwrap();
            y.f32().to_vec()
        };
        assert_same_bits("y", &of(Weight::adapted(&w, Projection::Gate, &rows)), &of((&w).into()));
        assert_ne!(of(Weight::adapted(&w, Projection::Up, &rows)), of((&w).into()));
    }

    #[test]
    fn backward_matches_finite_difference_accumulates_and_does_not_depend_on_the_thread_count() {
        for (n, o, k, rank) in [(1, 1, 1, 1), (3, 5, 7, 2), (7, 19, 21, 4)] {
            let (x, dy) = (random(5, &[n, k]), random(7, &[n, o]));
            let mut w = matrix(&random(6, &[o, k]));
            w.bias = Some(random(8, &[o]));
            let pairs = only(pair(o, k, rank, 10, Dtype::F32));
            let rows = [AdaptedRows { rows: 0..n, pairs: &pairs }];
            let own = pairs[Projection::Up as usize].as_ref().unwrap();
            let weighted = |x: &[f64], a: &[f64], b: &[f64], bias: &[f64]| -> f64 {
                let (w, dy, s) = (wide(w.dense()), wide(&dy), f64::from(own.scale));
                let mut sum = 0.0;
                for i in 0..n {
                    let x = &x[i * k..][..k];
                    for j in 0..o {
                        let mut y: f64 = bias[j] + (0..k).map(|l| x[l] * w[j * k + l]).sum::<f64>();
                        for r in 0..rank {
                            y += s * (0..k).map(|l| x[l] * a[r * k + l]).sum::<f64>() * b[r * o + j];
                        }
                        sum += dy[i * o + j] * y;
                    }
                }
                sum
            };
            let (xs, a, b, bias) = (wide(&x), wide(&own.a), wide(&own.b), wide(w.bias.as_ref().unwrap()));
            let wanted = [
                finite_difference(&xs, |x| weighted(x, &a, &b, &bias)),
                finite_difference(&a, |a| weighted(&xs, a, &b, &bias)),
                finite_difference(&b, |b| weighted(&xs, &a, b, &bias)),
                finite_difference(&bias, |bias| weighted(&xs, &a, &b, bias)),
            ];
            let mut judge: Option<Vec<f32>> = None;
            for device in devices() {
                let zeros = |s: &[usize]| Tensor::zeros(Dtype::F32, s).unwrap();
                let mut dx = zeros(&[n, k]);
                let mut dpair = LoraPair { a: zeros(&[rank, k]), b: zeros(&[rank, o]), scale: 0.0 };
                let mut dw = Matrix::from(zeros(&[o, k]));
                dw.bias = Some(zeros(&[o]));
                for _ in 0..2 {
                    let to = LinearGradient { matrix: Some(&mut dw), pair: Some(&mut dpair) };
                    let w = Weight::adapted(&w, Projection::Up, &rows);
                    linear_backward(&device, &mut dx, &dy, &x, w, to, n).unwrap();
                }
                let found = [dx.f32(), dpair.a.f32(), dpair.b.f32(), dw.bias.as_ref().unwrap().f32()];
                for ((found, wanted), name) in found.iter().zip(&wanted).zip(["dx", "dA", "dB", "db"]) {
                    let twice: Vec<f64> = wanted.iter().map(|w| 2.0 * w).collect();
                    assert_close(name, found, &twice, 1e-5);
                }
                let all = found.concat();
                assert_same_bits("gradients", &all, judge.get_or_insert_with(|| all.clone()));
            }
        }
    }

    #[test]
    fn merging_adds_the_product_and_rounds_to_the_stored_dtype() {
        for (o, k, rank) in [(1, 1, 1), (33, 48, 5)] {
            for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
                let (mut w, pair) = (stored(&random(2, &[o, k]), dtype), pair(o, k, rank, 10, Dtype::F32));
                let (a, b, s) = (wide(&pair.a), wide(&pair.b), f64::from(pair.scale));
                let add = |i: usize| s * (0..rank).map(|r| b[r * o + i / k] * a[r * k + i % k]).sum::<f64>();
                let wanted: Vec<f64> = wide(&w).iter().enumerate().map(|(i, w)| w + add(i)).collect();
                lora_merge(&device(), &mut w, &pair).unwrap();
                assert_eq!(w.dtype(), dtype);
                assert_close("w", &w.to_f32(), &wanted, if dtype == Dtype::F32 { 1e-6 } else { 1.0 / 200.0 });
            }
        }
    }
}
