//! Moving whole rows: fill, copy, scatter. x and y [N, C] f32.

use crate::backend::{Device, Tensor, host};
use crate::error::Result;
use crate::tensor::Shape;

/// Sets the first `n` rows of `y` to `value`.
pub fn fill(device: &Device, y: &mut Tensor, value: f32, n: usize) {
    device.cpu();
    let width = y.extent(1);
    y.f32_mut()[..n * width].fill(value);
}

/// Copies the first `n` rows of `x` to those of `y`.
pub fn copy_rows(device: &Device, y: &mut Tensor, x: &Tensor, n: usize) {
    device.cpu();
    assert_eq!(x.extent(1), y.extent(1), "x is {}, y {}", x.shape(), y.shape());
    let len = n * x.extent(1);
    y.f32_mut()[..len].copy_from_slice(&x.f32()[..len]);
}

/// Copies row i of `x` to row `rows[i]` of `y`.
pub fn scatter_rows(device: &Device, y: &mut Tensor, x: &Tensor, rows: &[usize]) {
    device.cpu();
    let width = x.extent(1);
    assert_eq!(width, y.extent(1), "x is {}, y {}", x.shape(), y.shape());
    for (i, &row) in rows.iter().enumerate() {
        y.f32_mut()[row * width..][..width].copy_from_slice(&x.f32()[i * width..][..width]);
    }
}

/// Rows of x [N, C] as f32 in host memory, one behind another, after all that was launched.
pub fn read_rows(device: &Device, x: &Tensor, rows: &[usize]) -> Result<Vec<f32>> {
    let c = x.extent(1);
    let mut all = host::filled(rows.len() * c, 0.0)?;
    for (to, &row) in all.chunks_exact_mut(c.max(1)).zip(rows) {
        match device {
            Device::Cpu(_) => to.copy_from_slice(&x.f32()[row * c..][..c]),
            Device::Cuda(_) => {
                let bytes = c * x.dtype().size();
                let one = Shape::new(&[c]).expect("a row of a tensor is a shape");
                Tensor::over(x.dtype(), one, x.buffer().view(row * bytes, bytes)).to_host()?.widen_into(to);
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::super::claims::*;
    use super::*;

    #[test]
    fn rows_go_where_they_are_sent_and_nowhere_else() {
        let x = random(1, &[3, 5]);
        let mut y = random(2, &[6, 5]);
        let before = y.f32().to_vec();
        scatter_rows(&device(), &mut y, &x, &[4, 0]);
        assert_same_bits("row 4", &y.f32()[20..25], &x.f32()[..5]);
        assert_same_bits("row 0", &y.f32()[..5], &x.f32()[5..10]);
        assert_same_bits("others", &y.f32()[5..20], &before[5..20]);
        copy_rows(&device(), &mut y, &x, 2);
        assert_same_bits("copied", &y.f32()[..10], &x.f32()[..10]);
        fill(&device(), &mut y, 2.0, 1);
        assert_same_bits("filled", &y.f32()[..6], &[2.0, 2.0, 2.0, 2.0, 2.0, x.f32()[5]]);
    }
}
