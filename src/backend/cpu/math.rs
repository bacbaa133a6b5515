//! Own elementary functions: the system's differ between machines, and bits are contract here.
//!
//! `exp` works on lanes in f32; `sin_cos`, `ln`, `exp_f64` and `pow` are scalar f64 for tables and sums.

use super::lanes::Lanes;

/// 1.5 * 2^23: adding it to a small f32 rounds that to an integer held in the low mantissa bits.
const MAGIC: f32 = 12_582_912.0;

/// e^x per lane, within 2 units in the last place (tested over the whole range); arguments are
/// clamped to [-87.3, 88.3], so the result is always a normal number; NaN stays NaN.
///
/// Reduction x = n ln 2 + r with |r| <= 0.35, ln 2 in two parts, then the Taylor polynomial of degree 7
/// (truncation below 3e-9 relative).
///
/// # Safety
/// The contract of [`Lanes`].
#[inline(always)]
pub unsafe fn exp<V: Lanes>(x: V) -> V {
    // SAFETY: the caller's: the contract of `Lanes`.
    unsafe {
        let x = V::splat(-87.3).max(x);
        let x = V::splat(88.3).min(x);
        let t = x.fma(V::splat(std::f32::consts::LOG2_E), V::splat(MAGIC));
        let n = t.sub(V::splat(MAGIC));
        let r = n.fma(V::splat(-0.693_145_75), x);
        let r = n.fma(V::splat(-1.428_606_8e-6), r);
        let mut p = V::splat(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = p.fma(r, V::splat(c));
        }
        p.mul(t.pow2_of_magic())
    }
}

/// 1 / (1 + e^-x) per lane.
///
/// # Safety
/// The contract of [`Lanes`].
#[inline(always)]
pub unsafe fn sigmoid<V: Lanes>(x: V) -> V {
    // SAFETY: the caller's: the contract of `Lanes`.
    unsafe { V::splat(1.0).div(V::splat(1.0).add(exp(V::zero().sub(x)))) }
}

/// ln(1 + x) per lane for x from -0.999 to 0, with a relative error below 1e-6; of 0 it is 0.
///
/// With y the eighth root of 1 + x it is 16 atanh((y - 1) / (y + 1)). Each root's distance from 1 comes from the one before,
/// sqrt(z) - 1 = (z - 1) / (sqrt(z) + 1), so that nothing cancels near 0.
///
/// # Safety
/// The contract of [`Lanes`].
#[inline(always)]
pub unsafe fn ln_1p<V: Lanes>(x: V) -> V {
    // SAFETY: the caller's: the contract of `Lanes`.
    unsafe {
        let one = V::splat(1.0);
        let (mut y, mut distance) = (one.add(x), x);
        for _ in 0..3 {
            y = y.sqrt();
            distance = distance.div(y.add(one));
        }
        let s = distance.div(y.add(one));
        let s2 = s.mul(s);
        let mut p = V::splat(1.0 / 15.0);
        for c in [1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 0.2, 1.0 / 3.0, 1.0] {
            p = p.fma(s2, V::splat(c));
        }
        p.mul(s).mul(V::splat(16.0))
    }
}

/// Natural logarithm of a positive, finite, normal number; relative error below 1e-14.
pub fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut e = ((bits >> 52) as i64) - 1023;
    let mut m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        e += 1;
    }
    // ln m = 2 atanh(s), |s| < 0.172, so s^2 < 0.03 and ten terms reach 1e-17.
    let s = (m - 1.0) / (m + 1.0);
    let s2 = s * s;
    let mut sum = 0.0;
    for k in (0..12).rev() {
        sum = sum * s2 + 1.0 / (2 * k + 1) as f64;
    }
    e as f64 * std::f64::consts::LN_2 + 2.0 * s * sum
}

/// e^x for |x| < 700; relative error below 1e-14.
pub fn exp_f64(x: f64) -> f64 {
    let n = (x * std::f64::consts::LOG2_E).round();
    let r = x - n * 0.693_147_180_369_123_8 - n * 1.908_214_929_270_587_7e-10;
    let mut sum = 1.0;
    for k in (1..16).rev() {
        sum = 1.0 + sum * r / k as f64;
    }
    sum * f64::from_bits(((n as i64 + 1023) as u64) << 52)
}

/// base^exponent for a positive base.
pub fn pow(base: f64, exponent: f64) -> f64 {
    exp_f64(exponent * ln(base))
}

/// Sine and cosine of an angle with |x| < 2^30; absolute error below 1e-12.
pub fn sin_cos(x: f64) -> (f64, f64) {
    let q = (x * std::f64::consts::FRAC_2_PI).round();
    // pi/2 in three parts of 33 bits, so that q * part is exact for |q| < 2^20 and nearly so above.
    let r = x - q * 1.570_796_326_734_125_6;
    let r = r - q * 6.077_100_506_303_966e-11;
    let r = r - q * 2.022_266_248_795_950_7e-21;
    let r2 = r * r;
    let (mut s, mut c) = (0.0, 0.0);
    for k in (0..9).rev() {
        let k = k as f64;
        s = 1.0 - s * r2 / ((2.0 * k + 2.0) * (2.0 * k + 3.0));
        c = 1.0 - c * r2 / ((2.0 * k + 1.0) * (2.0 * k + 2.0));
    }
    let s = s * r;
    match (q as i64).rem_euclid(4) {
        0 => (s, c),
        1 => (c, -s),
        2 => (-s, -c),
        _ => (-c, s),
    }
}

#[cfg(test)]
mod tests {
    use super::super::float_env::FloatEnv;
    use super::super::scalar::Scalar;
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let _env = FloatEnv::set();
        let mut worst = 0.0f64;
        for i in 0..200_000u32 {
            let x = -87.2 + i as f32 * (175.4 / 200_000.0);
            let mut y = [0.0f32; 16];
            // SAFETY: the scalar set runs everywhere.
            unsafe { exp(Scalar::splat(x)).store(y.as_mut_ptr()) };
            let truth = (x as f64).exp();
            let ulp = f32::from_bits((truth as f32).to_bits() + 1) as f64 - truth as f32 as f64;
            worst = worst.max(((y[0] as f64 - truth) / ulp).abs());
        }
        assert!(worst < 2.0, "{worst}");
    }

    #[test]
    fn exp_clamps_and_keeps_nan() {
        let _env = FloatEnv::set();
        // SAFETY: the scalar set runs everywhere.
        let at = |x: f32| unsafe {
            let mut y = [0.0f32; 16];
            exp(Scalar::splat(x)).store(y.as_mut_ptr());
            y[0]
        };
        assert!(at(f32::NEG_INFINITY) < 2e-38 && at(f32::NEG_INFINITY) >= 0.0);
        assert!(at(f32::INFINITY) > 1e38 && at(f32::INFINITY).is_finite());
        assert!(at(f32::NAN).is_nan());
        assert_eq!(at(0.0), 1.0);
    }

    #[test]
    fn scalar_functions_agree_with_the_systems() {
        for i in 1..100_000u64 {
            let x = i as f64 * 0.37;
            assert!((ln(x) - x.ln()).abs() < 1e-13 * x.ln().abs().max(1.0));
            let (s, c) = sin_cos(x);
            assert!((s - x.sin()).abs() < 1e-11 && (c - x.cos()).abs() < 1e-11, "{x}");
            let y = x / 100.0 - 180.0;
            assert!((exp_f64(y) / y.exp() - 1.0).abs() < 1e-13, "{y}");
        }
        assert!((pow(1e6, -0.328125) / 1e6f64.powf(-0.328125) - 1.0).abs() < 1e-13);
    }
}
