//! The sixteen lanes as a plain loop: runs everywhere and judges the other sets.

use super::lanes::{Lanes, f16_to_f32, round_bf16_bits};

/// Sixteen lanes in an array.
#[derive(Clone, Copy)]
pub struct Scalar([f32; 16]);

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> Scalar {
    Scalar(std::array::from_fn(f))
}

impl Lanes for Scalar {
    type Pairs = [u16; 32];
    const COLUMNS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Scalar([x; 16])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: 16 elements are readable.
        Scalar(unsafe { p.cast::<[f32; 16]>().read() })
    }
    #[inline(always)]
    unsafe fn load_tail(p: *const f32, n: usize) -> Self {
        let mut x = [0.0; 16];
        // SAFETY: `n` elements are readable, and `x` has room for them.
        unsafe { std::ptr::copy_nonoverlapping(p, x.as_mut_ptr(), n) };
        Scalar(x)
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: 16 elements are readable.
        let x = unsafe { p.cast::<[u16; 16]>().read() };
        each(|i| f32::from_bits((x[i] as u32) << 16))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: 16 elements are readable.
        let x = unsafe { p.cast::<[u16; 16]>().read() };
        each(|i| f16_to_f32(x[i]))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: 16 elements are writable.
        unsafe { p.cast::<[f32; 16]>().write(self.0) };
    }
    #[inline(always)]
    unsafe fn store_tail(self, p: *mut f32, n: usize) {
        // SAFETY: `n` elements, at most 16, are writable.
        unsafe { std::ptr::copy_nonoverlapping(self.0.as_ptr(), p, n) };
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        each(|i| self.0[i] + b.0[i])
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        each(|i| self.0[i] - b.0[i])
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        each(|i| self.0[i] * b.0[i])
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        each(|i| self.0[i] / b.0[i])
    }
    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        each(|i| self.0[i].sqrt())
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        each(|i| self.0[i].mul_add(b.0[i], c.0[i]))
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        each(|i| if self.0[i] > b.0[i] { self.0[i] } else { b.0[i] })
    }
    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        each(|i| if self.0[i] < b.0[i] { self.0[i] } else { b.0[i] })
    }
    #[inline(always)]
    unsafe fn pow2_of_magic(self) -> Self {
        each(|i| f32::from_bits(self.0[i].to_bits().wrapping_add(127) << 23))
    }
    #[inline(always)]
    unsafe fn round_bf16(self) -> Self {
        each(|i| f32::from_bits(round_bf16_bits(self.0[i].to_bits())))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16) {
        let x: [u16; 16] = std::array::from_fn(|i| (self.0[i].to_bits() >> 16) as u16);
        // SAFETY: 16 elements are writable.
        unsafe { p.cast::<[u16; 16]>().write(x) };
    }
    #[inline(always)]
    unsafe fn reduce_add(self) -> f32 {
        let mut x = self.0;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                x[i] += x[i + half];
            }
        }
        x[0] + 0.0
    }
    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        self.0.iter().fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
    }
    #[inline(always)]
    unsafe fn load_pairs(p: *const u16) -> [u16; 32] {
        // SAFETY: 32 elements are readable.
        unsafe { p.cast::<[u16; 32]>().read() }
    }
    #[inline(always)]
    unsafe fn load_pairs_tail(p: *const u16, n: usize) -> [u16; 32] {
        let mut x = [0; 32];
        // SAFETY: `n` elements are readable, and `x` has room for them.
        unsafe { std::ptr::copy_nonoverlapping(p, x.as_mut_ptr(), n) };
        x
    }
    #[inline(always)]
    unsafe fn dot_pairs(acc: Self, a: [u16; 32], b: [u16; 32]) -> Self {
        let wide = |x: u16| f32::from_bits((x as u32) << 16);
        each(|i| {
            let odd = wide(a[2 * i + 1]).mul_add(wide(b[2 * i + 1]), acc.0[i]);
            wide(a[2 * i]).mul_add(wide(b[2 * i]), odd)
        })
    }
    #[inline(always)]
    unsafe fn odd_of_pairs(p: [u16; 32]) -> Self {
        each(|i| f32::from_bits((p[2 * i + 1] as u32) << 16))
    }
    #[inline(always)]
    unsafe fn even_of_pairs(p: [u16; 32]) -> Self {
        each(|i| f32::from_bits((p[2 * i] as u32) << 16))
    }
}
