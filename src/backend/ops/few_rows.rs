//! Products of a few rows in bf16 where the registers are few: bit for bit those of `product`.
//!
//! A tile of dot products feeds R x C products from R + C loads, and of bf16 pairs each load must be split into its odd and even
//! elements before they are multiplied. Where sixteen lanes are two of sixteen registers, splitting and spilling take more time than
//! multiplying. Here the rows are split once, before all outputs, and lie in memory as f32, so that a product takes its x straight from
//! there; a row of w is split once for four rows. Many rows do better with packed weights (`packed`), up to three are as fast as
//! memory.

use super::product::Extents;
use crate::backend::cpu::dot::B16;
use crate::backend::cpu::lanes::round_bf16_bits;
use crate::backend::cpu::{Cpu, Kernel, Lanes, Shared, piece};
use crate::error::Result;

/// Rows from which on it pays, and from which on packing pays.
const LEAST: usize = 4;
const MOST: usize = 23;
/// Rows of a tile: two registers each, beside four of w.
const ROWS: usize = 4;
/// Bytes of split rows that stay in the first-level cache beside a row of w.
const X_TILE: usize = 24 << 10;
/// Outputs of a task, at most: about a millisecond.
const OUTPUTS: usize = 256;
/// Elements of a block: sixteen odd ones and sixteen even ones.
const BLOCK: usize = 32;

/// Whether so many rows are made here.
pub(super) fn suits(cpu: &Cpu, n: usize) -> bool {
    cpu.kernels().packs() && (LEAST..=MOST).contains(&n)
}

/// Elements of a split row of `k` terms.
fn split_len(k: usize) -> usize {
    k.next_multiple_of(BLOCK)
}

/// Bytes of scratch that a product of up to `n` rows of `k` terms takes at most.
pub(super) fn few_rows_scratch_bytes(cpu: &Cpu, n: usize, k: usize) -> u64 {
    let n = n.min(MOST);
    if suits(cpu, n) { Cpu::scratch_bytes(n * split_len(k) * size_of::<f32>()) } else { 0 }
}

/// y = x w^T for x [N, K], w [O, K], y [N, O], rounded to bf16 where asked.
pub(super) fn few_rows(cpu: &Cpu, x: &[B16], w: &[B16], y: Shared<f32>, extents: Extents, round: bool) -> Result<()> {
    let Extents { n, o, k } = extents;
    assert!(x.len() >= n * k && w.len() >= o * k && y.len() >= n * o, "{n} rows of [{o}, {k}]");
    let mut rows = cpu.scratch::<f32>(n * split_len(k))?;
    for (row, x) in rows.chunks_exact_mut(split_len(k)).zip(x.chunks_exact(k)) {
        split(row, x);
    }
    cpu.count_weight_bytes(size_of_val(w));
    let outputs_per_task = o.div_ceil(4 * cpu.n_threads()).clamp(1, OUTPUTS);
    let kernel = FewRows { rows: &rows, w, y, n, o, k, outputs_per_task, round };
    cpu.launch(o.div_ceil(outputs_per_task), &kernel);
    Ok(())
}

/// Blocks of odd elements and even elements, zeros behind the last.
fn split(row: &mut [f32], x: &[B16]) {
    let wide = |x: Option<&B16>| x.map_or(0.0, |x| f32::from_bits(u32::from(x.0) << 16));
    for (row, x) in row.chunks_exact_mut(BLOCK).zip(x.chunks(BLOCK)) {
        for lane in 0..BLOCK / 2 {
            (row[lane], row[BLOCK / 2 + lane]) = (wide(x.get(2 * lane + 1)), wide(x.get(2 * lane)));
        }
    }
}

struct FewRows<'a> {
    rows: &'a [f32],
    w: &'a [B16],
    y: Shared<f32>,
    n: usize,
    o: usize,
    k: usize,
    outputs_per_task: usize,
    round: bool,
}

impl FewRows<'_> {
    /// `R` rows from `n` on against `C` outputs from `o` on.
    #[inline(always)]
    unsafe fn tile<V: Lanes, const R: usize, const C: usize>(&self, n: usize, o: usize) {
        let len = split_len(self.k);
        // SAFETY: the caller's: rows and outputs lie inside the operands, and no other task writes them; a split row has whole
        // blocks.
        unsafe {
            let x = self.rows.as_ptr().add(n * len);
            let w = self.w.as_ptr().cast::<u16>().add(o * self.k);
            let mut acc = [[V::zero(); R]; C];
            let mut i = 0;
            while i < self.k {
                let left = self.k - i;
                for (c, acc) in acc.iter_mut().enumerate() {
                    let at = w.add(c * self.k + i);
                    let pairs = if left >= BLOCK { V::load_pairs(at) } else { V::load_pairs_tail(at, left) };
                    // The order of `dot_pairs`: the odd ones first.
                    let odd = V::odd_of_pairs(pairs);
                    for (r, acc) in acc.iter_mut().enumerate() {
                        *acc = V::load(x.add(r * len + i)).fma(odd, *acc);
                    }
                    let even = V::even_of_pairs(pairs);
                    for (r, acc) in acc.iter_mut().enumerate() {
                        *acc = V::load(x.add(r * len + i + BLOCK / 2)).fma(even, *acc);
                    }
                }
                i += BLOCK;
            }
            for (c, acc) in acc.iter().enumerate() {
                for (r, acc) in acc.iter().enumerate() {
                    let v = acc.reduce_add();
                    let v = if self.round { f32::from_bits(round_bf16_bits(v.to_bits())) } else { v };
                    *self.y.at((n + r) * self.o + o + c) = v;
                }
            }
        }
    }

    /// All outputs of a task for `rows` rows from `n` on.
    #[inline(always)]
    unsafe fn outputs<V: Lanes, const R: usize, const C: usize>(&self, n: usize, outputs: std::ops::Range<usize>) {
        let mut o = outputs.start;
        // SAFETY: the caller's.
        unsafe {
            while o + C <= outputs.end {
                self.tile::<V, R, C>(n, o);
                o += C;
            }
            while o < outputs.end {
                self.tile::<V, R, 1>(n, o);
                o += 1;
            }
        }
    }
}

/// Weight bytes that stay in the second-level cache while the rows pass by.
const W_BLOCK: usize = 128 << 10;

impl Kernel for FewRows<'_> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        let outputs = piece(index, self.outputs_per_task, self.o);
        let block = (W_BLOCK / (self.k * size_of::<B16>()).max(1)).max(2);
        // Of long rows two are in the first-level cache, and two outputs share them.
        let wide = ROWS * split_len(self.k) * size_of::<f32>() > X_TILE;
        for first in outputs.clone().step_by(block) {
            let some = first..outputs.end.min(first + block);
            let mut n = 0;
            while n < self.n {
                // SAFETY: rows and outputs lie inside the operands, and tasks own disjoint outputs.
                n += unsafe {
                    match (self.n - n, wide) {
                        (1, _) => {
                            self.outputs::<V, 1, 2>(n, some.clone());
                            1
                        }
                        (2, _) | (_, true) => {
                            self.outputs::<V, 2, 2>(n, some.clone());
                            2
                        }
                        (3, false) => {
                            self.outputs::<V, 3, 1>(n, some.clone());
                            3
                        }
                        (_, false) => {
                            self.outputs::<V, ROWS, 1>(n, some.clone());
                            ROWS
                        }
                    }
                };
            }
        }
    }
}
