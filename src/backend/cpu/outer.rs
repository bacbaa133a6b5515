//! Sums of outer products: C[i, j] += sum over r of A(r, i) * B[r, j], vectorised over j.
//!
//! Both gradients of a linear layer have this form: dx = dy W sums over outputs, dW = dy^T x sums over
//! rows. r runs in order for every output, whatever the tile, the cache block or the thread, so the
//! result has one set of bits for any thread count.

use super::dot::Widen;
use super::lanes::Lanes;
use super::{Kernel, Shared, piece};

/// Columns of C in a task: four vectors.
pub const COLUMNS: usize = 64;
/// Rows of C in a task.
pub const ROWS: usize = 48;
/// Rows of the register tile: four vectors wide where lanes are one register (AVX-512: 24 accumulators of 32), one where they
/// are two of sixteen (AVX2: 12 accumulators, two of B and one of A; with more the compiler begins to move them about).
const TILE: usize = 6;
/// Terms per cache block: the panel of B (64 columns) stays in the first-level cache.
const BLOCK: usize = 128;

/// One product. A(r, i) = a[r * a_step_r + i * a_step_i]; B[r, j] = b[r * n_columns + j]; C[i, j] = c[i * n_columns + j].
pub struct Outer<'a, B> {
    /// The coefficients.
    pub a: &'a [f32],
    /// Distance in `a` between consecutive terms.
    pub a_step_r: usize,
    /// Distance in `a` between consecutive rows of C.
    pub a_step_i: usize,
    /// The vectors, [n_terms, n_columns].
    pub b: &'a [B],
    /// The result, [n_rows, n_columns], accumulated into.
    pub c: Shared<f32>,
    /// Number of terms r.
    pub n_terms: usize,
    /// Number of rows i.
    pub n_rows: usize,
    /// Number of columns j.
    pub n_columns: usize,
}

impl<B: Widen> Outer<'_, B> {
    /// Number of tasks for `Cpu::launch`.
    pub fn n_tasks(&self) -> usize {
        self.n_rows.div_ceil(ROWS) * self.n_columns.div_ceil(COLUMNS)
    }

    #[inline(always)]
    unsafe fn tile<V: Lanes, const R: usize, const N: usize>(
        &self,
        i: usize,
        j: usize,
        width: usize,
        terms: std::ops::Range<usize>,
    ) {
        // SAFETY: the caller's: rows, columns and terms lie inside the operands, and no other task writes these of C.
        unsafe {
            let mut vectors = [0; N];
            for (v, n) in vectors.iter_mut().enumerate() {
                *n = width.saturating_sub(16 * v).min(16);
            }
            let mut acc = [[V::zero(); N]; R];
            for (row, acc) in acc.iter_mut().enumerate() {
                let c = self.c.at((i + row) * self.n_columns + j);
                for v in 0..N {
                    if vectors[v] > 0 {
                        acc[v] = V::load_up_to(c.add(16 * v), vectors[v]);
                    }
                }
            }
            let mut a = self.a.as_ptr().add(terms.start * self.a_step_r + i * self.a_step_i);
            let mut b = self.b.as_ptr().add(terms.start * self.n_columns + j);
            if width == 16 * N {
                for _ in terms {
                    let mut vb = [V::zero(); N];
                    for (v, vb) in vb.iter_mut().enumerate() {
                        *vb = B::load(b.add(16 * v), 16);
                    }
                    for (row, acc) in acc.iter_mut().enumerate() {
                        let va = V::splat(*a.add(row * self.a_step_i));
                        for v in 0..N {
                            acc[v] = va.fma(vb[v], acc[v]);
                        }
                    }
                    a = a.wrapping_add(self.a_step_r);
                    b = b.wrapping_add(self.n_columns);
                }
            } else {
                for _ in terms {
                    for v in 0..N {
                        if vectors[v] == 0 {
                            continue;
                        }
                        let vb: V = B::load(b.add(16 * v), vectors[v]);
                        for (row, acc) in acc.iter_mut().enumerate() {
                            acc[v] = V::splat(*a.add(row * self.a_step_i)).fma(vb, acc[v]);
                        }
                    }
                    a = a.wrapping_add(self.a_step_r);
                    b = b.wrapping_add(self.n_columns);
                }
            }
            for (row, acc) in acc.iter().enumerate() {
                let c = self.c.at((i + row) * self.n_columns + j);
                for v in 0..N {
                    match vectors[v] {
                        0 => {}
                        16 => acc[v].store(c.add(16 * v)),
                        n => acc[v].store_tail(c.add(16 * v), n),
                    }
                }
            }
        }
    }
}

impl<B: Widen> Outer<'_, B> {
    /// Tiles of `R` rows, and what is left of them, over the columns.
    #[inline(always)]
    unsafe fn rows<V: Lanes, const R: usize, const N: usize>(
        &self,
        rows: std::ops::Range<usize>,
        columns: std::ops::Range<usize>,
        terms: std::ops::Range<usize>,
    ) {
        let (j, width, mut i) = (columns.start, columns.len(), rows.start);
        // SAFETY: the caller's.
        unsafe {
            while i + R <= rows.end {
                self.tile::<V, R, N>(i, j, width, terms.clone());
                i += R;
            }
            match rows.end - i {
                1 => self.tile::<V, 1, N>(i, j, width, terms),
                2 => self.tile::<V, 2, N>(i, j, width, terms),
                3 => self.tile::<V, 3, N>(i, j, width, terms),
                4 => self.tile::<V, 4, N>(i, j, width, terms),
                5 => self.tile::<V, 5, N>(i, j, width, terms),
                _ => {}
            }
        }
    }
}

impl<B: Widen> Kernel for Outer<'_, B> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        let n_column_blocks = self.n_columns.div_ceil(COLUMNS);
        let columns = piece(index % n_column_blocks, COLUMNS, self.n_columns);
        let rows = piece(index / n_column_blocks, ROWS, self.n_rows);
        for block in 0..self.n_terms.div_ceil(BLOCK) {
            let terms = piece(block, BLOCK, self.n_terms);
            // SAFETY: rows and columns lie inside C by construction, and tasks own disjoint blocks of it.
            unsafe {
                if V::COLUMNS == 8 {
                    self.rows::<V, TILE, 4>(rows.clone(), columns.clone(), terms);
                } else {
                    for vector in columns.clone().step_by(16) {
                        let columns = vector..columns.end.min(vector + 16);
                        self.rows::<V, TILE, 1>(rows.clone(), columns, terms.clone());
                    }
                }
            }
        }
    }
}
