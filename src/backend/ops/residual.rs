//! Residual add: y[n, c] = round(y[n, c] + x[n, c]), in place.
//!
//! The backward is the identity (the gradient of y flows unchanged to both terms), so there is no function for it.

use super::split::{Elementwise, launch_elementwise};
use crate::backend::cpu::{Lanes, Shared};
use crate::backend::{Compute, Device, Tensor};

/// y += x on the first `n` rows of y [N, C] and x [N, C]; the sum is rounded to bf16 in bf16 compute.
pub fn residual_forward(device: &Device, y: &mut Tensor, x: &Tensor, n: usize, compute: Compute) {
    let c = y.extent(1);
    assert!(y.extent(0) >= n, "y is {} for {n} rows", y.shape());
    assert!(x.extent(0) >= n && x.extent(1) == c, "x is {}, y {}", x.shape(), y.shape());
    let cpu = device.cpu();
    let x = &x.f32()[..n * c];
    let y = Shared::new(&mut y.f32_mut()[..n * c]);
    launch_elementwise(cpu, n * c, &Residual { y, x, round: compute.rounds() });
}

struct Residual<'a> {
    y: Shared<f32>,
    x: &'a [f32],
    round: bool,
}

impl Elementwise for Residual<'_> {
    #[inline(always)]
    unsafe fn block<V: Lanes>(&self, i: usize, n: usize) {
        // SAFETY: both have the elements i..i + n, and blocks are disjoint.
        unsafe {
            let y = self.y.at(i);
            V::load_up_to(y, n).add(V::load_up_to(self.x.as_ptr().add(i), n)).store_rounded(y, n, self.round);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::claims::*;
    use super::*;
    use crate::tensor::Dtype;

    #[test]
    fn residual_adds_in_place_and_rounds_once_with_one_set_of_bits() {
        for (n, c) in [(1, 1), (3, 7), (5, 48), (40, 1031)] {
            let (start, x) = (random(1, &[n + 1, c]), random(2, &[n, c]));
            for compute in [Compute::F32, Compute::Bf16] {
                for device in devices() {
                    let mut y = stored(&start, Dtype::F32);
                    residual_forward(&device, &mut y, &x, n, compute);
                    let wanted: Vec<f32> = (0..n * c).map(|i| start.f32()[i] + x.f32()[i]).collect();
                    let wanted = Tensor::from_f32(&[n, c], &wanted).unwrap();
                    let wanted = if compute.rounds() { stored(&wanted, Dtype::Bf16) } else { wanted };
                    assert_same_bits("y", &y.f32()[..n * c], &wanted.to_f32());
                    assert_same_bits("the row not in use", &y.f32()[n * c..], &start.f32()[n * c..]);
                }
            }
        }
    }
}
