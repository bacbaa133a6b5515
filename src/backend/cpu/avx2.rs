//! The sixteen lanes as two AVX2 registers, with FMA and F16C.

use std::arch::x86_64::*;

use super::lanes::Lanes;

/// Runs what only the set has, or what reads or writes through a pointer. Every function of this file hands the contract
/// of [`Lanes`] on to its caller, so one reason is that of all.
macro_rules! by_contract {
    ($what:expr) => {
        // SAFETY: by the contract of `Lanes` the processor has the set's instructions, and a pointer reaches the number of
        // elements that the method names; arrays of a function's own have room for all lanes.
        unsafe { $what }
    };
}

/// Lanes 0..8 and 8..16.
#[derive(Clone, Copy)]
pub struct Avx2(__m256, __m256);

/// Applies an intrinsic to both halves.
macro_rules! both {
    ($f:ident, $a:expr, $b:expr) => {
        Avx2(by_contract!($f($a.0, $b.0)), by_contract!($f($a.1, $b.1)))
    };
}

#[inline(always)]
unsafe fn round(x: __m256) -> __m256 {
    by_contract!({
        let bits = _mm256_castps_si256(x);
        let lsb = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        let up = _mm256_add_epi32(bits, _mm256_add_epi32(lsb, _mm256_set1_epi32(0x7fff)));
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
        let nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        let chosen = _mm256_blendv_epi8(up, quiet, nan);
        _mm256_castsi256_ps(_mm256_and_si256(chosen, _mm256_set1_epi32(0xffff_0000u32 as i32)))
    })
}

#[inline(always)]
unsafe fn widen_bf16(p: *const u16) -> __m256 {
    by_contract!({
        let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p as *const __m128i));
        _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))
    })
}

/// acc + odd*odd, then + even*even, for eight pairs.
#[inline(always)]
unsafe fn dot(acc: __m256, a: __m256i, b: __m256i) -> __m256 {
    by_contract!(_mm256_fmadd_ps(even(a), even(b), _mm256_fmadd_ps(odd(a), odd(b), acc)))
}

#[inline(always)]
unsafe fn odd(x: __m256i) -> __m256 {
    by_contract!(_mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(0xffff_0000u32 as i32))))
}

#[inline(always)]
unsafe fn even(x: __m256i) -> __m256 {
    by_contract!(_mm256_castsi256_ps(_mm256_slli_epi32(x, 16)))
}

#[inline(always)]
unsafe fn widen_f16(p: *const u16) -> __m256 {
    by_contract!(_mm256_cvtph_ps(_mm_loadu_si128(p as *const __m128i)))
}

/// 2^n of magic numbers, see [`Lanes::pow2_of_magic`].
#[inline(always)]
unsafe fn pow2(x: __m256) -> __m256 {
    by_contract!({
        let biased = _mm256_add_epi32(_mm256_castps_si256(x), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23))
    })
}

impl Lanes for Avx2 {
    type Pairs = (__m256i, __m256i);
    const COLUMNS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        by_contract!(Avx2(_mm256_set1_ps(x), _mm256_set1_ps(x)))
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        by_contract!(Avx2(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))))
    }
    #[inline(always)]
    unsafe fn load_tail(p: *const f32, n: usize) -> Self {
        let mut x = [0.0f32; 16];
        by_contract!({
            std::ptr::copy_nonoverlapping(p, x.as_mut_ptr(), n);
            Self::load(x.as_ptr())
        })
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        by_contract!(Avx2(widen_bf16(p), widen_bf16(p.add(8))))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        by_contract!(Avx2(widen_f16(p), widen_f16(p.add(8))))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        by_contract!({
            _mm256_storeu_ps(p, self.0);
            _mm256_storeu_ps(p.add(8), self.1);
        })
    }
    #[inline(always)]
    unsafe fn store_tail(self, p: *mut f32, n: usize) {
        let mut x = [0.0f32; 16];
        by_contract!({
            self.store(x.as_mut_ptr());
            std::ptr::copy_nonoverlapping(x.as_ptr(), p, n);
        })
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        both!(_mm256_add_ps, self, b)
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        both!(_mm256_sub_ps, self, b)
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        both!(_mm256_mul_ps, self, b)
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        both!(_mm256_div_ps, self, b)
    }
    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        by_contract!(Avx2(_mm256_sqrt_ps(self.0), _mm256_sqrt_ps(self.1)))
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        by_contract!(Avx2(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1)))
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        both!(_mm256_max_ps, self, b)
    }
    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        both!(_mm256_min_ps, self, b)
    }
    #[inline(always)]
    unsafe fn pow2_of_magic(self) -> Self {
        by_contract!(Avx2(pow2(self.0), pow2(self.1)))
    }
    #[inline(always)]
    unsafe fn round_bf16(self) -> Self {
        by_contract!(Avx2(round(self.0), round(self.1)))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16) {
        let mut x = [0.0f32; 16];
        by_contract!({
            self.store(x.as_mut_ptr());
            for (i, v) in x.iter().enumerate() {
                p.add(i).write((v.to_bits() >> 16) as u16);
            }
        })
    }
    #[inline(always)]
    unsafe fn reduce_add(self) -> f32 {
        by_contract!({
            let eight = _mm256_add_ps(self.0, self.1);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            let one = _mm_add_ss(two, _mm_shuffle_ps(two, two, 1));
            _mm_cvtss_f32(one) + 0.0
        })
    }
    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        by_contract!({
            let eight = _mm256_max_ps(self.0, self.1);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)))
        })
    }
    #[inline(always)]
    unsafe fn load_pairs(p: *const u16) -> Self::Pairs {
        by_contract!((_mm256_loadu_si256(p as *const __m256i), _mm256_loadu_si256(p.add(16) as *const __m256i)))
    }
    #[inline(always)]
    unsafe fn load_pairs_tail(p: *const u16, n: usize) -> Self::Pairs {
        let mut x = [0u16; 32];
        by_contract!({
            std::ptr::copy_nonoverlapping(p, x.as_mut_ptr(), n);
            Self::load_pairs(x.as_ptr())
        })
    }
    #[inline(always)]
    unsafe fn dot_pairs(acc: Self, a: Self::Pairs, b: Self::Pairs) -> Self {
        by_contract!(Avx2(dot(acc.0, a.0, b.0), dot(acc.1, a.1, b.1)))
    }
    #[inline(always)]
    unsafe fn odd_of_pairs(p: Self::Pairs) -> Self {
        by_contract!(Avx2(odd(p.0), odd(p.1)))
    }
    #[inline(always)]
    unsafe fn even_of_pairs(p: Self::Pairs) -> Self {
        by_contract!(Avx2(even(p.0), even(p.1)))
    }
}
