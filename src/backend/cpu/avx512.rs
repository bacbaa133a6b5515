//! The sixteen lanes as one AVX-512 register, with and without the bf16 dot instruction.
//!
//! Both sets share every operation but `dot_pairs`, so one macro writes the two implementations.

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

/// AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy)]
pub struct Avx512(__m512);

/// The same with AVX512-BF16.
#[derive(Clone, Copy)]
pub struct Avx512Bf16(__m512);

#[inline(always)]
unsafe fn first(n: usize) -> __mmask16 {
    ((1u32 << n) - 1) as __mmask16
}

#[inline(always)]
unsafe fn round(x: __m512) -> __m512 {
    by_contract!({
        let bits = _mm512_castps_si512(x);
        let lsb = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        let up = _mm512_add_epi32(bits, _mm512_add_epi32(lsb, _mm512_set1_epi32(0x7fff)));
        let nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        let chosen = _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x0040_0000));
        _mm512_castsi512_ps(_mm512_and_si512(chosen, _mm512_set1_epi32(0xffff_0000u32 as i32)))
    })
}

/// Lanes [i] = a[i] + a[i + half] in the lower part and the same of b in the upper part: one level of
/// the reduction tree for two accumulators at once.
#[inline(always)]
unsafe fn fold8(a: __m512, b: __m512) -> __m512 {
    by_contract!({
        // (a.lo, b.lo) + (a.hi, b.hi), halves of eight lanes
        let low = _mm512_shuffle_f32x4(a, b, 0b01_00_01_00);
        let high = _mm512_shuffle_f32x4(a, b, 0b11_10_11_10);
        _mm512_add_ps(low, high)
    })
}

#[inline(always)]
unsafe fn fold4(a: __m512, b: __m512) -> __m512 {
    by_contract!({
        // quarters 0 and 2 hold the lower parts, 1 and 3 the upper ones
        let low = _mm512_shuffle_f32x4(a, b, 0b10_00_10_00);
        let high = _mm512_shuffle_f32x4(a, b, 0b11_01_11_01);
        _mm512_add_ps(low, high)
    })
}

/// Sums of eight accumulators by the canonical tree; lane order given by `EIGHT_ORDER`.
#[inline(always)]
unsafe fn sum8(r: [__m512; 8]) -> [f32; 8] {
    by_contract!({
        // after fold8: halves (r0 | r1); after fold4: quarters (r0, r1, r2, r3), four lanes each
        let q0 = fold4(fold8(r[0], r[1]), fold8(r[2], r[3]));
        let q1 = fold4(fold8(r[4], r[5]), fold8(r[6], r[7]));
        // lanes i and i+2 of each quarter: (q0 pairs, q1 pairs) interleaved per quarter
        let low = _mm512_shuffle_ps(q0, q1, 0b01_00_01_00);
        let high = _mm512_shuffle_ps(q0, q1, 0b11_10_11_10);
        let two = _mm512_add_ps(low, high); // per quarter: q0 a, q0 b, q1 a, q1 b
        let one = _mm512_add_ps(two, _mm512_permute_ps(two, 0b10_11_00_01)); // a+b in lanes 0,1 and 2,3
        let sums = _mm512_add_ps(one, _mm512_setzero_ps());
        let mut x = [0.0f32; 16];
        _mm512_storeu_ps(x.as_mut_ptr(), sums);
        [x[0], x[4], x[8], x[12], x[2], x[6], x[10], x[14]]
    })
}

macro_rules! lanes {
    ($name:ident, $pairs:ty, $load_pairs:expr, $dot:expr) => {
        impl Lanes for $name {
            type Pairs = $pairs;
            const COLUMNS: usize = 8;

            #[inline(always)]
            unsafe fn splat(x: f32) -> Self {
                by_contract!($name(_mm512_set1_ps(x)))
            }
            #[inline(always)]
            unsafe fn load(p: *const f32) -> Self {
                by_contract!($name(_mm512_loadu_ps(p)))
            }
            #[inline(always)]
            unsafe fn load_tail(p: *const f32, n: usize) -> Self {
                by_contract!($name(_mm512_maskz_loadu_ps(first(n), p)))
            }
            #[inline(always)]
            unsafe fn load_bf16(p: *const u16) -> Self {
                by_contract!({
                    let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p as *const __m256i));
                    $name(_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)))
                })
            }
            #[inline(always)]
            unsafe fn load_f16(p: *const u16) -> Self {
                by_contract!($name(_mm512_cvtph_ps(_mm256_loadu_si256(p as *const __m256i))))
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut f32) {
                by_contract!(_mm512_storeu_ps(p, self.0))
            }
            #[inline(always)]
            unsafe fn store_tail(self, p: *mut f32, n: usize) {
                by_contract!(_mm512_mask_storeu_ps(p, first(n), self.0))
            }
            #[inline(always)]
            unsafe fn add(self, b: Self) -> Self {
                by_contract!($name(_mm512_add_ps(self.0, b.0)))
            }
            #[inline(always)]
            unsafe fn sub(self, b: Self) -> Self {
                by_contract!($name(_mm512_sub_ps(self.0, b.0)))
            }
            #[inline(always)]
            unsafe fn mul(self, b: Self) -> Self {
                by_contract!($name(_mm512_mul_ps(self.0, b.0)))
            }
            #[inline(always)]
            unsafe fn div(self, b: Self) -> Self {
                by_contract!($name(_mm512_div_ps(self.0, b.0)))
            }
            #[inline(always)]
            unsafe fn sqrt(self) -> Self {
                by_contract!($name(_mm512_sqrt_ps(self.0)))
            }
            #[inline(always)]
            unsafe fn fma(self, b: Self, c: Self) -> Self {
                by_contract!($name(_mm512_fmadd_ps(self.0, b.0, c.0)))
            }
            #[inline(always)]
            unsafe fn max(self, b: Self) -> Self {
                by_contract!($name(_mm512_max_ps(self.0, b.0)))
            }
            #[inline(always)]
            unsafe fn min(self, b: Self) -> Self {
                by_contract!($name(_mm512_min_ps(self.0, b.0)))
            }
            #[inline(always)]
            unsafe fn pow2_of_magic(self) -> Self {
                by_contract!({
                    let biased = _mm512_add_epi32(_mm512_castps_si512(self.0), _mm512_set1_epi32(127));
                    $name(_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23)))
                })
            }
            #[inline(always)]
            unsafe fn round_bf16(self) -> Self {
                by_contract!($name(round(self.0)))
            }
            #[inline(always)]
            unsafe fn store_bf16(self, p: *mut u16) {
                by_contract!({
                    let upper = _mm512_srli_epi32(_mm512_castps_si512(self.0), 16);
                    _mm256_storeu_si256(p as *mut __m256i, _mm512_cvtepi32_epi16(upper))
                })
            }
            #[inline(always)]
            unsafe fn reduce_add(self) -> f32 {
                by_contract!({
                    let upper = _mm512_extractf32x8_ps(self.0, 1);
                    let eight = _mm256_add_ps(_mm512_castps512_ps256(self.0), upper);
                    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
                    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                    let one = _mm_add_ss(two, _mm_shuffle_ps(two, two, 1));
                    _mm_cvtss_f32(one) + 0.0
                })
            }
            #[inline(always)]
            unsafe fn reduce_add_each<const C: usize>(rows: [Self; C]) -> [f32; C] {
                let mut sums = [0.0; C];
                let mut c = 0;
                while c + 8 <= C {
                    let mut eight = [rows[c].0; 8];
                    for i in 1..8 {
                        eight[i] = rows[c + i].0;
                    }
                    sums[c..c + 8].copy_from_slice(&by_contract!(sum8(eight)));
                    c += 8;
                }
                while c < C {
                    sums[c] = by_contract!(rows[c].reduce_add());
                    c += 1;
                }
                sums
            }
            #[inline(always)]
            unsafe fn reduce_max(self) -> f32 {
                by_contract!(_mm512_reduce_max_ps(self.0))
            }
            #[inline(always)]
            unsafe fn load_pairs(p: *const u16) -> Self::Pairs {
                by_contract!($load_pairs(_mm512_loadu_si512(p as *const __m512i)))
            }
            #[inline(always)]
            unsafe fn load_pairs_tail(p: *const u16, n: usize) -> Self::Pairs {
                let mask = ((1u64 << n) - 1) as __mmask32;
                by_contract!($load_pairs(_mm512_maskz_loadu_epi16(mask, p as *const i16)))
            }
            #[inline(always)]
            unsafe fn dot_pairs(acc: Self, a: Self::Pairs, b: Self::Pairs) -> Self {
                by_contract!($name($dot(acc.0, a, b)))
            }
            #[inline(always)]
            unsafe fn odd_of_pairs(p: Self::Pairs) -> Self {
                by_contract!($name(odd(std::mem::transmute_copy(&p))))
            }
            #[inline(always)]
            unsafe fn even_of_pairs(p: Self::Pairs) -> Self {
                by_contract!($name(even(std::mem::transmute_copy(&p))))
            }
        }
    };
}

/// acc + odd*odd, then + even*even.
#[inline(always)]
unsafe fn dot_by_fma(acc: __m512, a: __m512i, b: __m512i) -> __m512 {
    by_contract!(_mm512_fmadd_ps(even(a), even(b), _mm512_fmadd_ps(odd(a), odd(b), acc)))
}

#[inline(always)]
unsafe fn odd(x: __m512i) -> __m512 {
    by_contract!(_mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(0xffff_0000u32 as i32))))
}

#[inline(always)]
unsafe fn even(x: __m512i) -> __m512 {
    by_contract!(_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)))
}

/// The same thirty-two bytes of bits under the bf16 type.
#[inline(always)]
unsafe fn as_bf16(x: __m512i) -> __m512bh {
    // SAFETY: both are 512 plain bits.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(x) }
}

#[inline(always)]
unsafe fn same(x: __m512i) -> __m512i {
    x
}

lanes!(Avx512, __m512i, same, dot_by_fma);
lanes!(Avx512Bf16, __m512bh, as_bf16, _mm512_dpbf16_ps);
