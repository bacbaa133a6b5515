//! Dot products in the canonical order, several outputs at once.
//!
//! One output is one accumulator of sixteen lanes that walks k in order, blocks of 16 (f32 forms) or
//! 32 (bf16 pairs), the tail filled with zeros, and one lane tree at the end. Instruction parallelism
//! comes from a tile of R x C outputs that share their loads; the tile's shape cannot change a bit.

use super::lanes::Lanes;
use crate::backend::host::Plain;

/// How the two operands of a dot product are stored and multiplied.
pub trait Form: Send + Sync {
    /// Stored element of the left operand (activations).
    type X: Widen;
    /// Stored element of the right operand (weights, keys).
    type W: Widen;
    /// A loaded block of the left operand.
    type LoadedX<V: Lanes>: Copy;
    /// A loaded block of the right operand.
    type LoadedW<V: Lanes>: Copy;
    /// Elements of k in a block.
    const STEP: usize;

    /// # Safety
    /// The contract of [`Lanes`]; `n` elements are readable, `n` at most `STEP`.
    unsafe fn x<V: Lanes>(p: *const Self::X, n: usize) -> Self::LoadedX<V>;
    /// # Safety
    /// As for `x`.
    unsafe fn w<V: Lanes>(p: *const Self::W, n: usize) -> Self::LoadedW<V>;
    /// # Safety
    /// The contract of [`Lanes`].
    unsafe fn mac<V: Lanes>(acc: V, x: Self::LoadedX<V>, w: Self::LoadedW<V>) -> V;
}

/// An operand that widens to f32.
pub trait Widen: Copy + Send + Sync + Default + 'static {
    /// # Safety
    /// The contract of [`Lanes`]; `n` elements are readable, `n` at most 16.
    unsafe fn load<V: Lanes>(p: *const Self, n: usize) -> V;
}

impl Widen for f32 {
    #[inline(always)]
    unsafe fn load<V: Lanes>(p: *const f32, n: usize) -> V {
        // SAFETY: the caller's: `n` elements are readable.
        unsafe { V::load_up_to(p, n) }
    }
}

/// bf16 bits.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub struct B16(pub u16);

// SAFETY: two bytes without padding, and any bits are one.
unsafe impl Plain for B16 {}

/// f16 bits.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub struct H16(pub u16);

impl Widen for B16 {
    #[inline(always)]
    unsafe fn load<V: Lanes>(p: *const B16, n: usize) -> V {
        // SAFETY: `n` elements are readable by the caller's word; the local array has room for 16.
        unsafe {
            if n >= 16 {
                return V::load_bf16(p as *const u16);
            }
            let mut x = [0u16; 16];
            std::ptr::copy_nonoverlapping(p as *const u16, x.as_mut_ptr(), n);
            V::load_bf16(x.as_ptr())
        }
    }
}

impl Widen for H16 {
    #[inline(always)]
    unsafe fn load<V: Lanes>(p: *const H16, n: usize) -> V {
        // SAFETY: `n` elements are readable by the caller's word; the local array has room for 16.
        unsafe {
            if n >= 16 {
                return V::load_f16(p as *const u16);
            }
            let mut x = [0u16; 16];
            std::ptr::copy_nonoverlapping(p as *const u16, x.as_mut_ptr(), n);
            V::load_f16(x.as_ptr())
        }
    }
}

/// f32 activations against anything that widens to f32: one FMA a block.
pub struct Wide<W>(std::marker::PhantomData<W>);

impl<W: Widen> Form for Wide<W> {
    type X = f32;
    type W = W;
    type LoadedX<V: Lanes> = V;
    type LoadedW<V: Lanes> = V;
    const STEP: usize = 16;

    #[inline(always)]
    unsafe fn x<V: Lanes>(p: *const f32, n: usize) -> V {
        // SAFETY: the caller's.
        unsafe { V::load_up_to(p, n) }
    }
    #[inline(always)]
    unsafe fn w<V: Lanes>(p: *const W, n: usize) -> V {
        // SAFETY: the caller's.
        unsafe { W::load(p, n) }
    }
    #[inline(always)]
    unsafe fn mac<V: Lanes>(acc: V, x: V, w: V) -> V {
        // SAFETY: the caller's.
        unsafe { x.fma(w, acc) }
    }
}

/// bf16 against bf16: pairs.
pub struct Paired;

impl Form for Paired {
    type X = B16;
    type W = B16;
    type LoadedX<V: Lanes> = V::Pairs;
    type LoadedW<V: Lanes> = V::Pairs;
    const STEP: usize = 32;

    #[inline(always)]
    unsafe fn x<V: Lanes>(p: *const B16, n: usize) -> V::Pairs {
        // SAFETY: the caller's.
        unsafe { if n >= 32 { V::load_pairs(p as *const u16) } else { V::load_pairs_tail(p as *const u16, n) } }
    }
    #[inline(always)]
    unsafe fn w<V: Lanes>(p: *const B16, n: usize) -> V::Pairs {
        // SAFETY: the caller's.
        unsafe { Self::x::<V>(p, n) }
    }
    #[inline(always)]
    unsafe fn mac<V: Lanes>(acc: V, x: V::Pairs, w: V::Pairs) -> V {
        // SAFETY: the caller's.
        unsafe { V::dot_pairs(acc, x, w) }
    }
}

/// R x C dot products over `k` elements: rows `x`, columns `w`.
///
/// # Safety
/// The contract of [`Lanes`]; every pointer is readable for `k` elements.
#[inline(always)]
pub unsafe fn tile<V: Lanes, F: Form, const R: usize, const C: usize>(
    x: [*const F::X; R],
    w: [*const F::W; C],
    k: usize,
) -> [[f32; C]; R] {
    // SAFETY: the caller's.
    unsafe {
        let mut acc = [[V::zero(); C]; R];
        let mut i = 0;
        while i + F::STEP <= k {
            block::<V, F, R, C>(&mut acc, x, w, i, F::STEP);
            i += F::STEP;
        }
        if i < k {
            block::<V, F, R, C>(&mut acc, x, w, i, k - i);
        }
        let mut sums = [[0.0; C]; R];
        for r in 0..R {
            sums[r] = V::reduce_add_each(acc[r]);
        }
        sums
    }
}

#[inline(always)]
unsafe fn block<V: Lanes, F: Form, const R: usize, const C: usize>(
    acc: &mut [[V; C]; R],
    x: [*const F::X; R],
    w: [*const F::W; C],
    i: usize,
    n: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut xs = [F::x::<V>(x[0].add(i), n); R];
        for r in 1..R {
            xs[r] = F::x::<V>(x[r].add(i), n);
        }
        for c in 0..C {
            let wc = F::w::<V>(w[c].add(i), n);
            for r in 0..R {
                acc[r][c] = F::mac(acc[r][c], xs[r], wc);
            }
        }
    }
}
