//! Dot products of many rows with outputs in the lanes, bit for bit those of `dot`.
//!
//! A dot product's sixteen accumulators are one vector in `dot`: a tile of R x C outputs is R * C vectors, and R + C loads
//! feed R * C products. Where sixteen lanes are two of sixteen registers, that is 3 x 2 at the most. Here the same
//! accumulator of sixteen neighbouring outputs is one vector, and the accumulators are made one after the other: 6 rows of
//! them fit, two loads and six broadcasts feed twelve products, and the lane tree adds whole vectors. Each output still
//! walks its terms accumulator by accumulator in the order that `dot` gives them. It wants the weights in another order, so
//! it pays where many rows share one packing.

use std::mem::MaybeUninit;

use super::dot::{Form, Widen};
use super::lanes::Lanes;

/// Outputs of a panel of packed weights: the lanes.
pub const PANEL: usize = 16;
/// Rows of a tile.
pub const ROWS: usize = 6;
/// Terms for which rows of x stay in the first-level cache, beside the sums of a tile.
const CHUNK: usize = 768;

/// Terms of k as a panel holds them: whole blocks.
fn padded<F: Form>(k: usize) -> usize {
    k.next_multiple_of(F::STEP)
}

/// Elements of a packed panel of `k` terms.
pub fn panel_len<F: Form>(k: usize) -> usize {
    PANEL * padded::<F>(k)
}

/// Which term of a block an accumulator takes in its `step`th step.
#[inline(always)]
fn term<F: Form>(accumulator: usize, step: usize) -> usize {
    // One term a block; or a pair, the odd one first.
    if F::STEP == 16 { accumulator } else { 2 * accumulator + 1 - step }
}

/// `n` elements as f32, and zeros up to `STEP`.
///
/// # Safety
/// The contract of [`Lanes`]; `n` elements are readable, and `to` has room for `STEP`.
#[inline(always)]
unsafe fn widen<V: Lanes, F: Form, E: Widen>(to: *mut f32, from: *const E, n: usize) {
    for part in (0..F::STEP).step_by(16) {
        // SAFETY: the caller's; of a part that begins behind the end nothing is read.
        unsafe {
            let n = n.saturating_sub(part).min(16);
            let x: V = if n == 0 { V::zero() } else { E::load(from.add(part), n) };
            x.store(to.add(part));
        }
    }
}

/// Packs sixteen rows `w` of `k` terms: chunk after chunk, in it accumulator after accumulator, in it step after step, and in
/// it the sixteen outputs.
///
/// # Safety
/// The contract of [`Lanes`]; `PANEL` rows of `k` elements are readable from `w`, and `panel` has room for `panel_len`.
#[inline(always)]
pub unsafe fn pack<V: Lanes, F: Form>(panel: *mut f32, w: *const F::W, k: usize) {
    let mut block = [[0.0f32; 32]; PANEL];
    for (chunk, len) in chunks::<F>(k) {
        for i in (0..len).step_by(F::STEP) {
            for (o, block) in block.iter_mut().enumerate() {
                // SAFETY: the caller's; a block begins inside the k terms.
                unsafe { widen::<V, F, F::W>(block.as_mut_ptr(), w.add(o * k + chunk + i), k - chunk - i) };
            }
            for accumulator in 0..16 {
                for step in 0..F::STEP / 16 {
                    let at = chunk * PANEL + accumulator * len + i + step * 16;
                    let from = term::<F>(accumulator, step);
                    for (o, block) in block.iter().enumerate() {
                        // SAFETY: chunks before it, accumulators before it, steps before it and the output lie in the panel.
                        unsafe { *panel.add(at + o) = block[from] };
                    }
                }
            }
        }
    }
}

/// The chunks of k terms: where each starts, and its terms with the zeros behind the last.
#[inline(always)]
fn chunks<F: Form>(k: usize) -> impl Iterator<Item = (usize, usize)> {
    let end = padded::<F>(k);
    (0..end).step_by(CHUNK).map(move |start| (start, CHUNK.min(end - start)))
}

/// The sums of a tile: of each accumulator, each row and each output of a panel.
type Sums = [[[f32; PANEL]; ROWS]; 16];

/// `ROWS` rows of `x` against `N` panels of packed weights that lie behind each other, into so many rows of y.
///
/// # Safety
/// The contract of [`Lanes`]; `k` is not 0; x has `ROWS` rows of `k` terms, the panels were packed for `k`, and y has so many
/// rows of `y_stride` elements, of which the first `N * PANEL` from its start on are the caller's.
#[inline(always)]
pub unsafe fn tile<V: Lanes, F: Form, const N: usize>(
    y: (*mut f32, usize),
    x: *const F::X,
    panels: *const f32,
    k: usize,
    round: bool,
) {
    // Not cleared: that would take longer than what is saved.
    let mut rows = MaybeUninit::<[[f32; CHUNK]; ROWS]>::uninit();
    let mut sums = MaybeUninit::<[Sums; N]>::uninit();
    let (rows, sums) = (rows.as_mut_ptr().cast::<f32>(), sums.as_mut_ptr().cast::<Sums>());
    let (y, y_stride) = y;
    // SAFETY: the caller's for x, y and the panels. Of `rows` a chunk's blocks are written before they are read, and the first
    // chunk writes all sums.
    unsafe {
        for (chunk, len) in chunks::<F>(k) {
            for r in 0..ROWS {
                for i in (0..len).step_by(F::STEP) {
                    widen::<V, F, F::X>(rows.add(r * CHUNK + i), x.add(r * k + chunk + i), k - chunk - i);
                }
            }
            for p in 0..N {
                let panel = panels.add(p * panel_len::<F>(k) + chunk * PANEL);
                let sums = sums.add(p).cast::<f32>();
                for a in 0..16 {
                    accumulate::<V, F>(sums.add(a * ROWS * PANEL), rows, panel.add(a * len), a, len, chunk == 0);
                }
            }
        }
        for p in 0..N {
            for r in 0..ROWS {
                reduce::<V>(&*sums.add(p), r).store_rounded(y.add(r * y_stride + p * PANEL), PANEL, round);
            }
        }
    }
}

/// Accumulator `a` of `ROWS` x `PANEL` outputs goes on over a chunk of `len` terms, or begins with it.
///
/// # Safety
/// The contract of [`Lanes`]; `sums` are `ROWS` x `PANEL`, `rows` hold the chunk, and `panel` its terms of the accumulator.
#[inline(always)]
unsafe fn accumulate<V: Lanes, F: Form>(
    sums: *mut f32,
    rows: *const f32,
    panel: *const f32,
    a: usize,
    len: usize,
    begins: bool,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut acc = [V::zero(); ROWS];
        if !begins {
            for (r, acc) in acc.iter_mut().enumerate() {
                *acc = V::load(sums.add(r * PANEL));
            }
        }
        for i in (0..len).step_by(F::STEP) {
            for step in 0..F::STEP / 16 {
                let w = V::load(panel.add(i + step * 16));
                let x = rows.add(i + term::<F>(a, step));
                for (r, acc) in acc.iter_mut().enumerate() {
                    *acc = V::splat(*x.add(r * CHUNK)).fma(w, *acc);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            acc.store(sums.add(r * PANEL));
        }
    }
}

/// The lane tree of row `r`, for sixteen outputs at once: `Lanes::reduce_add`.
///
/// # Safety
/// The contract of [`Lanes`].
#[inline(always)]
unsafe fn reduce<V: Lanes>(sums: &Sums, r: usize) -> V {
    // SAFETY: the caller's.
    unsafe {
        let mut acc = [V::zero(); 8];
        for (i, acc) in acc.iter_mut().enumerate() {
            *acc = V::load(sums[i][r].as_ptr()).add(V::load(sums[i + 8][r].as_ptr()));
        }
        for half in [4, 2, 1] {
            for i in 0..half {
                acc[i] = acc[i].add(acc[i + half]);
            }
        }
        acc[0].add(V::zero())
    }
}
