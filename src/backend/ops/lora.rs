//! What an adapter adds to a linear layer (LoRA): y[n, :] += s (x[n, :] A^T) B^T for the rows that it applies to.
//!
//! x [N, K], A [R, K], y [N, O], and B [O, R] kept as its transpose [R, O]. For a row: u[r] = s * (x . A[r, :]) with the dot
//! product in the canonical order (`cpu::dot`), and then for every output y[o] = fma(u[r], B[o, r], y[o]) with r in order,
//! starting from the product in f32 with its bias. One rounding follows, in bf16 compute. Neither the neighbours of a row
//! nor their adapters change its bits, and where B is zero neither does the adapter: a sum is never -0.
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
/// Columns of y that a task holds in registers: four vectors.
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

/// Bytes of scratch that the adapters of `n` rows take at most.
pub fn lora_scratch_bytes(cpu: &Cpu, n: usize, rank: usize) -> u64 {
    // Every row may be a piece of its own.
    Cpu::scratch_bytes(n.max(cpu.n_threads()) * ROWS * rank * size_of::<f32>())
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
                match rows.len() - row {
                    1 => self.grow::<V, W, 1>(u, at, columns.clone(), b, rank),
                    2 => self.grow::<V, W, 2>(u, at, columns.clone(), b, rank),
                    3 => self.grow::<V, W, 3>(u, at, columns.clone(), b, rank),
                    _ => self.grow::<V, W, 4>(u, at, columns.clone(), b, rank),
                }
                row += 4;
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

    /// y of `N` rows.
    #[inline(always)]
    unsafe fn grow<V: Lanes, W: Widen, const N: usize>(
        &self,
        u: *const f32,
        row: usize,
        columns: Range<usize>,
        b: &[W],
        rank: usize,
    ) {
        let mut c = columns.start;
        while c < columns.end {
            let width = (columns.end - c).min(COLUMNS);
            let mut lens = [0; 4];
            for (v, len) in lens.iter_mut().enumerate() {
                *len = width.saturating_sub(16 * v).min(16);
            }
            // SAFETY: the caller's.
            unsafe {
                let mut acc = [[V::zero(); 4]; N];
                for (n, acc) in acc.iter_mut().enumerate() {
                    for v in 0..4 {
                        if lens[v] > 0 {
                            acc[v] = V::load_up_to(self.y.at((row + n) * self.o + c + 16 * v), lens[v]);
                        }
                    }
                }
                for r in 0..rank {
                    let b = b.as_ptr().add(r * self.o + c);
                    for v in 0..4 {
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
                    for v in 0..4 {
                        if lens[v] > 0 {
                            acc[v].store_rounded(self.y.at((row + n) * self.o + c + 16 * v), lens[v], self.round);
                        }
                    }
                }
            }
            c += COLUMNS;
        }
    }
}

/// y [N, O] = scale * x w^T for w [O, K], as f32 slices.
fn scaled_product(cpu: &Cpu, y: &mut [f32], x: &[f32], w: &Tensor, n: usize, scale: f32) {
    let extents = Extents { n, o: w.extent(0), k: w.extent(1) };
    let to = Shared::new(y);
    match w.elements() {
        Elements::F32(w) => product::<Wide<f32>>(cpu, x, w, to, extents, false),
        Elements::Bf16(w) => product::<Wide<B16>>(cpu, x, w, to, extents, false),
        Elements::F16(w) => product::<Wide<H16>>(cpu, x, w, to, extents, false),
    }
    y[..n * extents.o].iter_mut().for_each(|u| *u *= scale);
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
    scaled_product(cpu, &mut du, dy, &pair.b, n, pair.scale);
    if let Some(dpair) = dpair {
        let mut u = cpu.scratch::<f32>(n * rank)?;
        scaled_product(cpu, &mut u, x, &pair.a, n, pair.scale);
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
