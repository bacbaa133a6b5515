//! Sums of outer products: C[i, j] += sum over r of A(r, i) * B[r, j], vectorised over j.
//!
//! Both gradients of a linear layer have this form: dx = dy W sums over outputs, dW = dy^T x sums over rows; and all three
//! gradients of attention. r runs in order for every output, whatever the tile, the cache block or the thread, so the result
//! has one set of bits for any thread count. The products of matrices pack a block of both operands first: rows whose
//! distance is a multiple of 4,096 bytes, as those of most models are, share the same eight places of a first-level cache.

use std::mem::MaybeUninit;

use super::dot::Widen;
use super::lanes::Lanes;
use super::{Kernel, Shared, piece};

/// Columns of C in a task: four vectors.
pub const COLUMNS: usize = 64;
/// Rows of C in a task: so many share one packing of B. A multiple of the tile and of sixteen.
pub const ROWS: usize = 96;
/// Rows of the register tile: four vectors wide where lanes are one register (AVX-512: 24 accumulators of 32), one where they
/// are two of sixteen (AVX2: 12 accumulators, two of B and one of A; with more the compiler begins to move them about).
pub const TILE: usize = 6;
/// Terms per cache block: the packed columns of a tile and the coefficients of its rows stay in the first-level cache.
const BLOCK: usize = 64;

/// So many terms, whose coefficients and vectors lie so far apart.
#[derive(Clone, Copy)]
pub struct Steps {
    /// how many
    pub n: usize,
    /// elements from one coefficient to the next
    pub a: usize,
    /// elements from one vector to the next
    pub b: usize,
}

impl Steps {
    /// A single one.
    pub const ONE: Steps = Steps { n: 1, a: 0, b: 0 };
}

/// Terms of a sum: for each of `outer` in order, each of `inner` in order.
#[derive(Clone, Copy)]
pub struct Terms<B> {
    /// the coefficient of the first term and the first row of C
    pub a: *const f32,
    /// elements from one row's coefficient to the next row's
    pub a_row: usize,
    /// the first vector
    pub b: *const B,
    /// the outer terms
    pub outer: Steps,
    /// the inner ones
    pub inner: Steps,
}

/// Rows that are added to.
#[derive(Clone, Copy)]
pub struct Rows {
    /// the first one
    pub at: *mut f32,
    /// elements from one to the next
    pub stride: usize,
    /// how many
    pub n: usize,
}

/// Adds the terms to the first `n_columns` of each row.
///
/// # Safety
/// The contract of [`Lanes`]; every coefficient, `n_columns` elements of every vector and of every row are readable, and those of
/// the rows the caller's to write.
#[inline(always)]
pub unsafe fn add<V: Lanes, B: Widen>(c: Rows, terms: Terms<B>, n_columns: usize) {
    let mut j = 0;
    // SAFETY: the caller's.
    unsafe {
        while j < n_columns {
            let width = (n_columns - j).min(if V::COLUMNS == 8 { COLUMNS } else { 16 });
            let (c, terms) = (Rows { at: c.at.add(j), ..c }, Terms { b: terms.b.add(j), ..terms });
            if V::COLUMNS == 8 {
                tiles::<V, B, 4>(c, terms, width);
            } else {
                tiles::<V, B, 1>(c, terms, width);
            }
            j += width;
        }
    }
}

/// Tiles of rows, and what is left of them, over `N` vectors of columns.
#[inline(always)]
unsafe fn tiles<V: Lanes, B: Widen, const N: usize>(c: Rows, terms: Terms<B>, width: usize) {
    let mut i = 0;
    // SAFETY: the caller's.
    unsafe {
        while i < c.n {
            let at = (c.at.add(i * c.stride), c.stride);
            let terms = Terms { a: terms.a.add(i * terms.a_row), ..terms };
            match c.n - i {
                1 => tile::<V, B, 1, N>(at, terms, width),
                2 => tile::<V, B, 2, N>(at, terms, width),
                3 => tile::<V, B, 3, N>(at, terms, width),
                4 => tile::<V, B, 4, N>(at, terms, width),
                5 => tile::<V, B, 5, N>(at, terms, width),
                _ => tile::<V, B, TILE, N>(at, terms, width),
            }
            i += TILE;
        }
    }
}

#[inline(always)]
unsafe fn tile<V: Lanes, B: Widen, const R: usize, const N: usize>(
    (c, stride): (*mut f32, usize),
    terms: Terms<B>,
    width: usize,
) {
    let Terms { a, a_row, b, outer, inner } = terms;
    let mut vectors = [0; N];
    for (v, n) in vectors.iter_mut().enumerate() {
        *n = width.saturating_sub(16 * v).min(16);
    }
    // SAFETY: the caller's; vectors of no columns are not touched.
    unsafe {
        let mut acc = [[V::zero(); N]; R];
        for (row, acc) in acc.iter_mut().enumerate() {
            for v in 0..N {
                if vectors[v] > 0 {
                    acc[v] = V::load_up_to(c.add(row * stride + 16 * v), vectors[v]);
                }
            }
        }
        let (mut outer_a, mut outer_b) = (a, b);
        for _ in 0..outer.n {
            let (mut a, mut b) = (outer_a, outer_b);
            if width == 16 * N {
                for _ in 0..inner.n {
                    let mut vb = [V::zero(); N];
                    for (v, vb) in vb.iter_mut().enumerate() {
                        *vb = B::load(b.add(16 * v), 16);
                    }
                    for (row, acc) in acc.iter_mut().enumerate() {
                        let va = V::splat(*a.add(row * a_row));
                        for v in 0..N {
                            acc[v] = va.fma(vb[v], acc[v]);
                        }
                    }
                    a = a.wrapping_add(inner.a);
                    b = b.wrapping_add(inner.b);
                }
            } else {
                for _ in 0..inner.n {
                    for v in 0..N {
                        if vectors[v] == 0 {
                            continue;
                        }
                        let vb: V = B::load(b.add(16 * v), vectors[v]);
                        for (row, acc) in acc.iter_mut().enumerate() {
                            acc[v] = V::splat(*a.add(row * a_row)).fma(vb, acc[v]);
                        }
                    }
                    a = a.wrapping_add(inner.a);
                    b = b.wrapping_add(inner.b);
                }
            }
            outer_a = outer_a.wrapping_add(outer.a);
            outer_b = outer_b.wrapping_add(outer.b);
        }
        for (row, acc) in acc.iter().enumerate() {
            for v in 0..N {
                match vectors[v] {
                    0 => {}
                    16 => acc[v].store(c.add(row * stride + 16 * v)),
                    n => acc[v].store_tail(c.add(row * stride + 16 * v), n),
                }
            }
        }
    }
}

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
}

/// Columns that are packed side by side: those of a tile.
#[inline(always)]
fn packed_columns<V: Lanes>() -> usize {
    if V::COLUMNS == 8 { COLUMNS } else { 16 }
}

/// Copies `n_columns` of the `n_terms` vectors, as f32 and one behind the other: as they stand their rows may all fall into the
/// same few sets of the first-level cache.
///
/// # Safety
/// The contract of [`Lanes`]; the vectors are readable, and `to` has room for whole groups of `packed_columns`.
#[inline(always)]
unsafe fn pack<V: Lanes, B: Widen>(to: *mut f32, (b, stride): (*const B, usize), n_terms: usize, n_columns: usize) {
    let group = packed_columns::<V>();
    for first in (0..n_columns).step_by(group) {
        for r in 0..n_terms {
            for j in (0..group).step_by(16) {
                let n = n_columns.saturating_sub(first + j).min(16);
                if n == 0 {
                    break;
                }
                // SAFETY: the caller's; groups before it, terms before it and vectors before it lie in the panel.
                unsafe {
                    let x: V = B::load(b.add(r * stride + first + j), n);
                    x.store(to.add(first * n_terms + r * group + j));
                }
            }
        }
    }
}

/// Copies the coefficients of so many rows that lie side by side, `ROWS` from one term to the next.
///
/// # Safety
/// The contract of [`Lanes`]; the coefficients are readable, and `to` has room for `n_terms` times `ROWS`.
#[inline(always)]
unsafe fn pack_rows<V: Lanes>(to: *mut f32, (a, stride): (*const f32, usize), n_terms: usize, n_rows: usize) {
    for r in 0..n_terms {
        for i in (0..n_rows).step_by(16) {
            // SAFETY: the caller's; `ROWS` is a multiple of 16.
            unsafe { V::load_up_to(a.add(r * stride + i), n_rows - i).store(to.add(r * ROWS + i)) };
        }
    }
}

impl<B: Widen> Kernel for Outer<'_, B> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        let n_column_blocks = self.n_columns.div_ceil(COLUMNS);
        let columns = piece(index % n_column_blocks, COLUMNS, self.n_columns);
        let rows = piece(index / n_column_blocks, ROWS, self.n_rows);
        let group = packed_columns::<V>();
        // Not cleared: what is read of them was packed before.
        let mut panel = MaybeUninit::<[f32; BLOCK * COLUMNS]>::uninit();
        let mut coefficients = MaybeUninit::<[f32; BLOCK * ROWS]>::uninit();
        let (panel, coefficients) = (panel.as_mut_ptr().cast::<f32>(), coefficients.as_mut_ptr().cast::<f32>());
        for block in 0..self.n_terms.div_ceil(BLOCK) {
            let terms = piece(block, BLOCK, self.n_terms);
            // SAFETY: rows and columns lie inside C by construction, and tasks own disjoint blocks of it; the panel has room for
            // a block of terms.
            unsafe {
                let b = self.b.as_ptr().add(terms.start * self.n_columns + columns.start);
                pack::<V, B>(panel, (b, self.n_columns), terms.len(), columns.len());
                let mut a = self.a.as_ptr().add(terms.start * self.a_step_r + rows.start * self.a_step_i);
                let (mut a_step, n_terms) = (self.a_step_r, terms.len());
                if self.a_step_i == 1 && rows.len() > TILE {
                    pack_rows::<V>(coefficients, (a, a_step), n_terms, rows.len());
                    (a, a_step) = (coefficients.cast_const(), ROWS);
                }
                for first in (0..columns.len()).step_by(group) {
                    let at = self.c.at(rows.start * self.n_columns + columns.start + first);
                    let c = Rows { at, stride: self.n_columns, n: rows.len() };
                    let inner = Steps { n: n_terms, a: a_step, b: group };
                    let b = panel.add(first * n_terms).cast_const();
                    let terms = Terms { a, a_row: self.a_step_i, b, outer: Steps::ONE, inner };
                    add::<V, f32>(c, terms, (columns.len() - first).min(group));
                }
            }
        }
    }
}
