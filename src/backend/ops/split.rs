//! How an op's work is cut into tasks: pieces big enough to be worth handing out, about four a thread.
//!
//! A cut may depend on the number of threads only where it cannot change a bit: outputs that are computed
//! alone. Sums over rows use the fixed chunks of `SUM_ROWS` rows instead, added up in order.

use crate::backend::cpu::{Cpu, Kernel, Lanes, Shared, piece};

/// Elements below which handing out a task costs more than computing it (a few microseconds).
const TASK_ELEMENTS: usize = 1 << 13;

/// Rows whose contributions to a parameter's gradient are added up in one task.
pub const SUM_ROWS: usize = 16;

/// Items (rows, heads, vectors) of `item_elements` elements that one task takes.
pub fn items_per_task(cpu: &Cpu, n_items: usize, item_elements: usize) -> usize {
    let floor = TASK_ELEMENTS.div_ceil(item_elements.max(1));
    n_items.div_ceil(4 * cpu.n_threads()).max(floor)
}

/// A computation that treats every element alike.
pub trait Elementwise: Sync {
    /// Computes elements `i..i + n`, `n` at most 16. Mark the implementation `#[inline(always)]`.
    ///
    /// # Safety
    /// The contract of [`Lanes`] for `V`; each element is computed once.
    unsafe fn block<V: Lanes>(&self, i: usize, n: usize);
}

struct Flat<'a, E> {
    inner: &'a E,
    len: usize,
    task_len: usize,
}

impl<E: Elementwise> Kernel for Flat<'_, E> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        let range = piece(index, self.task_len, self.len);
        let mut i = range.start;
        // SAFETY: passed on from the caller; pieces are disjoint.
        unsafe {
            while i + 16 <= range.end {
                self.inner.block::<V>(i, 16);
                i += 16;
            }
            if i < range.end {
                self.inner.block::<V>(i, range.end - i);
            }
        }
    }
}

/// Computes `len` elements.
pub fn launch_elementwise<E: Elementwise>(cpu: &Cpu, len: usize, inner: &E) {
    let task_len = 16 * items_per_task(cpu, len.div_ceil(16), 16);
    cpu.launch(len.div_ceil(task_len), &Flat { inner, len, task_len });
}

struct AddChunks<'a> {
    sum: Shared<f32>,
    parts: &'a [f32],
    len: usize,
}

impl Elementwise for AddChunks<'_> {
    #[inline(always)]
    unsafe fn block<V: Lanes>(&self, i: usize, n: usize) {
        // SAFETY: `sum` and each part have `len` elements.
        unsafe {
            let mut acc = V::load_up_to(self.sum.at(i), n);
            for part in self.parts.chunks_exact(self.len) {
                acc = acc.add(V::load_up_to(part.as_ptr().add(i), n));
            }
            acc.store_rounded(self.sum.at(i), n, false);
        }
    }
}

/// Adds the parts [n_chunks, len] to `sum` [len], in order.
pub fn add_chunks(cpu: &Cpu, sum: &mut [f32], parts: &[f32]) {
    let len = sum.len();
    launch_elementwise(cpu, len, &AddChunks { sum: Shared::new(sum), parts, len });
}
