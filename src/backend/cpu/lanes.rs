//! Sixteen f32 lanes: the unit in which every CPU kernel is written, once for all kernel sets.
//!
//! The contract that makes the sets equal bit for bit: each operation here is either exact or
//! correctly rounded in every lane, and the two operations that combine lanes (`reduce_add` and
//! `dot_pair`) have one fixed order. A kernel written over `Lanes` therefore has one set of bits,
//! whether the sixteen lanes are a loop, two AVX2 registers or one AVX-512 register.
//!
//! Kernels pass lanes between `#[inline(always)]` functions only, never into a closure: a closure (and with
//! it `array::from_fn` or `map`) is compiled without the instruction set of the function around it, and if the
//! compiler then does not inline it, every single operation in it is a call through memory.

/// Sixteen lanes of f32.
///
/// # Safety
/// All methods: the processor has the set's instructions (checked by `KernelSet::available`), pointers
/// are readable or writable for the stated number of elements, and the thread computes under `FloatEnv`.
#[allow(clippy::missing_safety_doc)] // stated once, above
pub trait Lanes: Copy {
    /// Thirty-two bf16 values, as sixteen (even, odd) pairs.
    type Pairs: Copy;
    /// Outputs a dot-product tile takes at once: as many as the registers hold beside three rows.
    const COLUMNS: usize;

    /// x in every lane.
    unsafe fn splat(x: f32) -> Self;
    /// 16 elements.
    unsafe fn load(p: *const f32) -> Self;
    /// `n` elements (below 16), the other lanes zero.
    unsafe fn load_tail(p: *const f32, n: usize) -> Self;
    /// 16 bf16 elements, widened.
    unsafe fn load_bf16(p: *const u16) -> Self;
    /// 16 f16 elements, widened. f16 denormals become ordinary f32 numbers.
    unsafe fn load_f16(p: *const u16) -> Self;
    /// Stores 16 lanes.
    unsafe fn store(self, p: *mut f32);
    /// The first `n` lanes (below 16).
    unsafe fn store_tail(self, p: *mut f32, n: usize);

    /// self + b.
    unsafe fn add(self, b: Self) -> Self;
    /// self - b.
    unsafe fn sub(self, b: Self) -> Self;
    /// self * b.
    unsafe fn mul(self, b: Self) -> Self;
    /// self / b.
    unsafe fn div(self, b: Self) -> Self;
    /// The square root.
    unsafe fn sqrt(self) -> Self;
    /// self * b + c, one rounding.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    /// self > b ? self : b, so a NaN in either gives b.
    unsafe fn max(self, b: Self) -> Self;
    /// self < b ? self : b, so a NaN in either gives b.
    unsafe fn min(self, b: Self) -> Self;
    /// 2^n for t = 1.5 * 2^23 + n with -126 <= n <= 127: puts the low bits of t into the exponent.
    unsafe fn pow2_of_magic(self) -> Self;
    /// Nearest bf16, ties to even, kept as f32. NaN stays NaN.
    unsafe fn round_bf16(self) -> Self;
    /// Stores 16 lanes that hold bf16 values.
    unsafe fn store_bf16(self, p: *mut u16);

    /// Sum over lanes by halving: lane i with i+8, then i+4, i+2, i+1. Never -0 by a final + 0.
    unsafe fn reduce_add(self) -> f32;
    /// `reduce_add` of C accumulators, the same bits as one at a time.
    #[inline(always)]
    unsafe fn reduce_add_each<const C: usize>(rows: [Self; C]) -> [f32; C] {
        let mut sums = [0.0; C];
        for (sum, row) in sums.iter_mut().zip(rows) {
            // SAFETY: the trait's contract.
            *sum = unsafe { row.reduce_add() };
        }
        sums
    }
    /// Largest lane; for inputs without NaN.
    unsafe fn reduce_max(self) -> f32;

    /// 32 bf16 elements.
    unsafe fn load_pairs(p: *const u16) -> Self::Pairs;
    /// `n` elements (below 32), the others zero.
    unsafe fn load_pairs_tail(p: *const u16, n: usize) -> Self::Pairs;
    /// Per lane: acc + odd*odd, rounded, then + even*even, rounded: the order of `vdpbf16ps`.
    unsafe fn dot_pairs(acc: Self, a: Self::Pairs, b: Self::Pairs) -> Self;

    /// The odd elements, widened: the second of each pair.
    unsafe fn odd_of_pairs(p: Self::Pairs) -> Self;
    /// The even elements, widened: the first of each pair.
    unsafe fn even_of_pairs(p: Self::Pairs) -> Self;

    /// Zero in every lane.
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the trait's contract.
        unsafe { Self::splat(0.0) }
    }
    /// Stores after rounding to bf16 where asked.
    #[inline(always)]
    unsafe fn store_rounded(self, p: *mut f32, n: usize, round: bool) {
        // SAFETY: the trait's contract.
        unsafe {
            let v = if round { self.round_bf16() } else { self };
            if n >= 16 { v.store(p) } else { v.store_tail(p, n) }
        }
    }
    /// 16 elements, or the first `n` and zeros.
    #[inline(always)]
    unsafe fn load_up_to(p: *const f32, n: usize) -> Self {
        // SAFETY: the trait's contract.
        unsafe { if n >= 16 { Self::load(p) } else { Self::load_tail(p, n) } }
    }
}

/// Nearest bf16 (ties to even) of one f32, as f32 bits. The judge of the vector versions.
#[inline(always)]
pub fn round_bf16_bits(bits: u32) -> u32 {
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        return (bits | 0x0040_0000) & 0xffff_0000;
    }
    bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000
}

/// f16 bits to f32, exactly.
#[inline(always)]
pub fn f16_to_f32(h: u16) -> f32 {
    half::f16::from_bits(h).to_f32_const()
}
