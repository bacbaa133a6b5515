//! Moving whole rows: gather y[i, :] = x[rows[i], :], and its transpose, scatter y[rows[i], :] += x[i, :].

use super::split::items_per_task;
use crate::backend::cpu::{Kernel, Lanes, Shared, piece};
use crate::backend::{Device, Tensor};

/// Columns that one task of a scatter owns.
const SCATTER_COLUMNS: usize = 64;

/// Copies rows of x [M, C]. Overwrites the first `rows.len()` rows of y [N, C].
pub fn gather_rows(device: &Device, y: &mut Tensor, x: &Tensor, rows: &[usize]) {
    let c = x.extent(1);
    assert!(y.extent(0) >= rows.len() && y.extent(1) == c, "y is {}, x {}", y.shape(), x.shape());
    assert!(rows.iter().all(|&r| r < x.extent(0)), "a row lies outside x, {}", x.shape());
    let cpu = device.cpu();
    let y = Shared::new(&mut y.f32_mut()[..rows.len() * c]);
    let task_rows = items_per_task(cpu, rows.len(), c);
    cpu.launch(rows.len().div_ceil(task_rows), &Gather { y, x: x.f32(), rows, c, task_rows });
}

/// Adds row i of x [N, C] to row `rows[i]` of y [M, C], in the order of i.
pub fn scatter_add_rows(device: &Device, y: &mut Tensor, x: &Tensor, rows: &[usize]) {
    let c = x.extent(1);
    assert!(x.extent(0) >= rows.len() && y.extent(1) == c, "y is {}, x {}", y.shape(), x.shape());
    assert!(rows.iter().all(|&r| r < y.extent(0)), "a row lies outside y, {}", y.shape());
    let cpu = device.cpu();
    let y = Shared::new(y.f32_mut());
    cpu.launch(c.div_ceil(SCATTER_COLUMNS), &ScatterAdd { y, x: x.f32(), rows, c });
}

struct Gather<'a> {
    y: Shared<f32>,
    x: &'a [f32],
    rows: &'a [usize],
    c: usize,
    task_rows: usize,
}

impl Kernel for Gather<'_> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        for i in piece(index, self.task_rows, self.rows.len()) {
            // SAFETY: tasks own disjoint rows of y.
            let y = unsafe { self.y.slice(i * self.c, self.c) };
            y.copy_from_slice(&self.x[self.rows[i] * self.c..][..self.c]);
        }
    }
}

struct ScatterAdd<'a> {
    y: Shared<f32>,
    x: &'a [f32],
    rows: &'a [usize],
    c: usize,
}

impl Kernel for ScatterAdd<'_> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        let columns = piece(index, SCATTER_COLUMNS, self.c);
        for (i, &row) in self.rows.iter().enumerate() {
            // SAFETY: rows lie inside y, and tasks own disjoint columns of it.
            let y = unsafe { self.y.slice(row * self.c + columns.start, columns.len()) };
            for (y, x) in y.iter_mut().zip(&self.x[i * self.c..][columns.clone()]) {
                *y += x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::claims::*;
    use super::*;
    use crate::tensor::Dtype;

    #[test]
    fn gather_copies_and_scatter_adds_in_order() {
        for (m, n, c) in [(1, 1, 1), (5, 9, 17), (40, 23, 131)] {
            let rows: Vec<usize> = (0..n).map(|i| (i * i + 1) % m).collect();
            let x = random(1, &[m, c]);
            for device in devices() {
                let mut y = Tensor::zeros(Dtype::F32, &[n, c]).unwrap();
                gather_rows(&device, &mut y, &x, &rows);
                let mut sum = stored(&x, Dtype::F32);
                scatter_add_rows(&device, &mut sum, &y, &rows);
                let mut wanted = x.f32().to_vec();
                for (i, &r) in rows.iter().enumerate() {
                    assert_same_bits("row", &y.f32()[i * c..(i + 1) * c], &x.f32()[r * c..(r + 1) * c]);
                    (0..c).for_each(|j| wanted[r * c + j] += x.f32()[r * c + j]);
                }
                assert_same_bits("sum", sum.f32(), &wanted);
            }
        }
    }
}
