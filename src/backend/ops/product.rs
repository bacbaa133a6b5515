//! The products of a linear layer on the CPU: x w^T by tiles of dot products, and the gradients by sums of outer products.
//! `linear` and `lora` are made of them.

use crate::backend::cpu::dot::{Form, Widen, tile};
use crate::backend::cpu::lanes::round_bf16_bits;
use crate::backend::cpu::outer::Outer;
use crate::backend::cpu::{Cpu, Kernel, Lanes, Shared, packed, piece, worker};
use crate::error::Result;

/// Weight bytes above which a matrix comes from memory and not from a cache. Then, with few rows, weight
/// rows are streamed one at a time (full read bandwidth); otherwise eight at a time share the reduction.
const STREAMED: usize = 4 << 20;
/// Bytes of x kept in the second-level cache while all of w passes by.
const X_BLOCK: usize = 512 << 10;
/// Products of numbers of a task, at least and at most: the most takes about a millisecond.
const LEAST: usize = 1 << 15;
const MOST: usize = 1 << 25;
/// Rows from which on it pays to pack the weights (`cpu::packed`), where the outputs suffice for the threads.
const PACKED: usize = 24;
/// Outputs that are packed at once: rows that were read for the first panel serve the second.
const PANELS: usize = 2 * packed::PANEL;

/// Extents of one product.
#[derive(Clone, Copy)]
pub(super) struct Extents {
    /// rows
    pub(super) n: usize,
    /// outputs
    pub(super) o: usize,
    /// terms
    pub(super) k: usize,
}

struct Product<'a, F: Form> {
    x: &'a [F::X],
    w: &'a [F::W],
    y: Shared<f32>,
    n: usize,
    o: usize,
    k: usize,
    outputs_per_task: usize,
    rows_per_block: usize,
    streamed: bool,
    round: bool,
}

/// y = x w^T in the canonical order.
pub(super) fn product<F: Form>(
    cpu: &Cpu,
    x: &[F::X],
    w: &[F::W],
    y: Shared<f32>,
    extents: Extents,
    round: bool,
) -> Result<()> {
    let Extents { n, o, k } = extents;
    let streamed = std::mem::size_of_val(w) > STREAMED && n <= 3;
    let rows_per_block = (X_BLOCK / (k * std::mem::size_of::<F::X>())).max(3) / 3 * 3;
    // About four tasks a thread, whole tiles, and neither so small that handing them out costs more than doing them nor so
    // large that who waits for one to end (`turns`) waits long.
    let products = (n.min(rows_per_block) * k).max(1);
    let outputs_per_task =
        o.div_ceil(4 * cpu.n_threads()).clamp(LEAST / products, MOST.div_ceil(products).max(LEAST / products));
    let outputs_per_task = outputs_per_task.next_multiple_of(8);
    let product = Product::<F> { x, w, y, n, o, k, outputs_per_task, rows_per_block, streamed, round };
    // At twice the rate, half the threads are enough.
    let suffices = o >= packed::PANEL && 2 * o.div_ceil(PANELS) >= cpu.n_threads();
    if cpu.kernels().packs() && n >= PACKED && suffices {
        cpu.count_weight_bytes(std::mem::size_of_val(w));
        let mut panels = cpu.scratch::<f32>(cpu.n_threads() * panels_len::<F>(k))?;
        cpu.launch(o.div_ceil(PANELS), &Packed { of: product, panels: Shared::new(&mut panels) });
        return Ok(());
    }
    // Every block of rows passes over all of w once.
    let n_blocks = n.div_ceil(rows_per_block);
    cpu.count_weight_bytes(std::mem::size_of_val(w) * n_blocks);
    cpu.launch(o.div_ceil(outputs_per_task) * n_blocks, &product);
    Ok(())
}

/// Elements of a thread's packed weights.
fn panels_len<F: Form>(k: usize) -> usize {
    PANELS / packed::PANEL * packed::panel_len::<F>(k)
}

/// Bytes of scratch that a product of `n` rows of `k` terms takes at most.
pub(super) fn product_scratch_bytes<F: Form>(cpu: &Cpu, n: usize, k: usize) -> u64 {
    let packs = cpu.kernels().packs() && n >= PACKED;
    if packs { Cpu::scratch_bytes(4 * cpu.n_threads() * panels_len::<F>(k)) } else { 0 }
}

impl<F: Form> Product<'_, F> {
    /// Rows n.., outputs o.., a tile of R x C.
    #[inline(always)]
    unsafe fn tile<V: Lanes, const R: usize, const C: usize>(&self, n: usize, o: usize) {
        // SAFETY: the caller's: the rows and the outputs lie inside the operands, and no other task writes them.
        unsafe {
            let x = std::array::from_fn(|r| self.x.as_ptr().add((n + r) * self.k));
            let w = std::array::from_fn(|c| self.w.as_ptr().add((o + c) * self.k));
            let y = tile::<V, F, R, C>(x, w, self.k);
            for (r, row) in y.iter().enumerate() {
                for (c, &v) in row.iter().enumerate() {
                    let v = if self.round { f32::from_bits(round_bf16_bits(v.to_bits())) } else { v };
                    *self.y.at((n + r) * self.o + o + c) = v;
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn tiles<V: Lanes, const C: usize>(&self, rows: std::ops::Range<usize>, o: usize) {
        let mut n = rows.start;
        // SAFETY: the caller's; rows beyond the last are not touched.
        unsafe {
            while n + 3 <= rows.end {
                self.tile::<V, 3, C>(n, o);
                n += 3;
            }
            match rows.end - n {
                1 => self.tile::<V, 1, C>(n, o),
                2 => self.tile::<V, 2, C>(n, o),
                _ => {}
            }
        }
    }
}

/// Weight bytes that stay in the second-level cache while the rows pass by.
const W_BLOCK: usize = 128 << 10;

impl<F: Form> Product<'_, F> {
    /// Where few outputs fit the registers, x would pass by too often: here three rows of it stay in the first-level cache
    /// while a block of w passes by from the second. Returns the first output that is left.
    #[inline(always)]
    unsafe fn by_rows<V: Lanes>(&self, rows: std::ops::Range<usize>, outputs: std::ops::Range<usize>) -> usize {
        let block = (W_BLOCK / (self.k * std::mem::size_of::<F::W>())).max(2) / 2 * 2;
        let end = outputs.end - outputs.len() % 2;
        for first in (outputs.start..end).step_by(block) {
            for n in rows.clone().step_by(3) {
                let three = n..rows.end.min(n + 3);
                for o in (first..end.min(first + block)).step_by(2) {
                    // SAFETY: the caller's.
                    unsafe { self.tiles::<V, 2>(three.clone(), o) };
                }
            }
        }
        end
    }
}

impl<F: Form> Kernel for Product<'_, F> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        let n_pieces = self.o.div_ceil(self.outputs_per_task);
        let outputs = piece(index % n_pieces, self.outputs_per_task, self.o);
        let rows = piece(index / n_pieces, self.rows_per_block, self.n);
        let mut o = outputs.start;
        // SAFETY: rows and outputs lie inside the operands, and no two tasks have both in common.
        unsafe {
            if !self.streamed && V::COLUMNS != 8 {
                o = self.by_rows::<V>(rows.clone(), outputs.clone());
            }
            if !self.streamed {
                while o + V::COLUMNS <= outputs.end {
                    if V::COLUMNS == 8 {
                        self.tiles::<V, 8>(rows.clone(), o)
                    } else {
                        self.tiles::<V, 2>(rows.clone(), o)
                    }
                    o += V::COLUMNS;
                }
            }
            while o < outputs.end {
                self.tiles::<V, 1>(rows.clone(), o);
                o += 1;
            }
        }
    }
}

/// The same with packed weights, `PANELS` outputs a task; each thread has its own panels.
struct Packed<'a, F: Form> {
    of: Product<'a, F>,
    panels: Shared<f32>,
}

impl<F: Form> Kernel for Packed<'_, F> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        let outputs = piece(index, PANELS, self.of.o);
        // SAFETY: each thread has its own panels, and tasks own disjoint outputs.
        unsafe {
            let panels = self.panels.at(worker() * panels_len::<F>(self.of.k));
            let o = match outputs.len() / packed::PANEL {
                2 => self.panels::<V, 2>(panels, outputs.start),
                1 => self.panels::<V, 1>(panels, outputs.start),
                _ => outputs.start,
            };
            for o in self.of.by_rows::<V>(0..self.of.n, o..outputs.end)..outputs.end {
                self.of.tiles::<V, 1>(0..self.of.n, o);
            }
        }
    }
}

impl<F: Form> Packed<'_, F> {
    /// Packs `N` panels from output `o` on and lets all rows pass by. Returns the first output that is left.
    #[inline(always)]
    unsafe fn panels<V: Lanes, const N: usize>(&self, panels: *mut f32, o: usize) -> usize {
        let Product { x, w, y, n, k, round, .. } = self.of;
        let end = o + N * packed::PANEL;
        let tiled = n - n % packed::ROWS;
        // SAFETY: the caller's: the panels have room, and the outputs lie inside the operands and are this task's.
        unsafe {
            for p in 0..N {
                let w = w.as_ptr().add((o + p * packed::PANEL) * k);
                packed::pack::<V, F>(panels.add(p * packed::panel_len::<F>(k)), w, k);
            }
            for row in (0..tiled).step_by(packed::ROWS) {
                let y = (y.at(row * self.of.o + o), self.of.o);
                packed::tile::<V, F, N>(y, x.as_ptr().add(row * k), panels, k, round);
            }
            for o in (o..end).step_by(2) {
                self.of.tiles::<V, 2>(tiled..n, o);
            }
        }
        end
    }
}

/// dx += dy w for w [O, K].
pub(super) fn input_gradient<W: Widen>(cpu: &Cpu, dx: Shared<f32>, dy: &[f32], w: &[W], extents: Extents) {
    let Extents { n, o, k } = extents;
    assert!(dy.len() >= n * o && w.len() >= o * k && dx.len() >= n * k, "{n} rows of [{o}, {k}]");
    let outer = Outer { a: dy, a_step_r: 1, a_step_i: o, b: w, c: dx, n_terms: o, n_rows: n, n_columns: k };
    cpu.launch(outer.n_tasks(), &outer);
}

/// dw += dy^T x for dy [N, O], x [N, K] and dw [O, K].
pub(super) fn weight_gradient(cpu: &Cpu, dw: Shared<f32>, dy: &[f32], x: &[f32], extents: Extents) {
    let Extents { n, o, k } = extents;
    assert!(dy.len() >= n * o && x.len() >= n * k && dw.len() >= o * k, "{n} rows of [{o}, {k}]");
    let outer = Outer { a: dy, a_step_r: o, a_step_i: 1, b: x, c: dw, n_terms: n, n_rows: o, n_columns: k };
    cpu.launch(outer.n_tasks(), &outer);
}
