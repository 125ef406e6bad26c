//! GELU, the exact (erf) form, without a division.
//!
//! ```text
//! gelu(x) = x * Phi(x) = max(x, 0) - g(|x|),     g(t) = t * Phi(-t)
//! ```
//!
//! Hendrycks and Gimpel 2016, arXiv:1606.08415; Phi is the normal distribution
//! function. g is a bump of height 0.17 that is 0 at 0 and 5e-7 at 5.2. Eight
//! pieces approximate it there, each a polynomial in the distance from its middle:
//!
//! ```text
//! u = min(STEPS * |x|, 7)      i = round(u)      s = u - i,  |s| <= 1/2
//! g = ((((c5[i] * s + c4[i]) * s + c3[i]) * s + c2[i]) * s + c1[i]) * s + c0[i]
//! ```
//!
//! Eight f32 are one AVX register or two of NEON: a coefficient is fetched by
//! one permutation. The first and the last piece are half as long and have
//! `c0 = 0`, so that gelu is 0 at 0 and at minus infinity, and x at infinity.
//!
//! The polynomials are minimax: least squares on 400 Chebyshev nodes a piece,
//! Lawson-weighted. Measured over every 499th float, f32's roundings included:
//! |error| <= 5e-7 * max(1, |x|).

use super::quantize::MAGIC;

/// Pieces per unit of x.
pub(crate) const STEPS: f32 = 1.343_75;

/// The last piece.
pub(crate) const LAST: f32 = 7.0;

/// Coefficients of 1, s, .. s^5 of each piece.
pub(crate) const PIECES: [[f32; 8]; 6] = [
    [
        0.0,
        0.169_958_84,
        0.101_695_51,
        0.028_552_16,
        0.004_335_96,
        3.692_959e-4,
        1.787_169_5e-5,
        0.0,
    ],
    [
        0.372_091_86,
        0.002_459_888_6,
        -0.095_124_23,
        -0.045_318_503,
        -0.009_440_082,
        -0.001_014_485_1,
        -5.913_211_5e-5,
        -5.117_384e-5,
    ],
    [
        -0.220_905_99,
        -0.121_130_794,
        0.007_825_733,
        0.027_284_32,
        0.009_030_874,
        0.001_288_338_7,
        9.242_572_6e-5,
        -7.843_300_7e-4,
    ],
    [
        -3.111_865_7e-4,
        0.053_254_846,
        0.024_059_959,
        -0.004_977_829,
        -0.004_725_444,
        -9.893_073e-4,
        -9.114_561_5e-5,
        -0.004_415_647,
    ],
    [
        0.021_664_53,
        0.001_802_578_2,
        -0.010_799_504,
        -0.002_656_218_8,
        0.001_190_457_7,
        5.053_439e-4,
        6.683_665_6e-5,
        -0.010_079_117,
    ],
    [
        -0.002_379_248_4,
        -0.005_056_298,
        4.548_871_7e-4,
        0.001_651_071_2,
        4.882_195_2e-5,
        -1.578_529_9e-4,
        -3.254_691_5e-5,
        -0.008_069_158_5,
    ],
];

/// GELU of `x`. NaN gives NaN, minus infinity gives 0.0.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    let u = x.abs() * STEPS;
    // The order of the operands sends NaN to LAST, as minps does.
    let u = if u < LAST { u } else { LAST };
    let shifted = u + MAGIC;
    let s = u - (shifted - MAGIC);
    let piece = (shifted.to_bits() & 7) as usize;
    let [c0, c1, c2, c3, c4, c5] = PIECES.map(|c| c[piece]);
    let g = ((((c5 * s + c4) * s + c3) * s + c2) * s + c1) * s + c0;
    // Not `max`: NaN stays.
    let positive = if 0.0 > x { 0.0 } else { x };
    positive - g
}

#[cfg(test)]
mod tests {
    use super::gelu;

    /// erf by its Maclaurin series up to 3, by the continued fraction of erfc above.
    fn erf(z: f64) -> f64 {
        if z.abs() < 3.0 {
            let (mut term, mut sum, mut n) = (z, z, 0.0);
            while term.abs() > 1e-18 {
                n += 1.0;
                term *= -z * z / n;
                sum += term / (2.0 * n + 1.0);
            }
            sum * core::f64::consts::FRAC_2_SQRT_PI
        } else {
            let a = z.abs();
            let tail = (1..=60).rev().fold(a, |f, i| a + f64::from(i) * 0.5 / f);
            let erfc = (-a * a).exp() / (tail * core::f64::consts::PI.sqrt());
            (1.0 - erfc).copysign(z)
        }
    }

    fn relative_error(x: f32) -> f64 {
        let z = f64::from(x);
        let exact = 0.5 * z * (1.0 + erf(z * core::f64::consts::FRAC_1_SQRT_2));
        (f64::from(gelu(x)) - exact).abs() / z.abs().max(1.0)
    }

    /// Every 499th float of either sign.
    #[test]
    fn error_is_below_5e_7() {
        let mut worst = (0.0, 0.0);
        for bits in (0..f32::INFINITY.to_bits()).step_by(499) {
            for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
                let error = relative_error(x);
                if error > worst.0 {
                    worst = (error, x);
                }
            }
        }
        assert!(worst.0 <= 5.0e-7, "{worst:?}");
    }

    #[test]
    fn special_values() {
        assert_eq!(gelu(0.0), 0.0);
        assert_eq!(gelu(f32::INFINITY), f32::INFINITY);
        assert_eq!(gelu(f32::NEG_INFINITY), 0.0);
        assert_eq!(gelu(f32::MAX), f32::MAX);
        assert_eq!(gelu(-f32::MAX), 0.0);
        assert!(gelu(f32::NAN).is_nan());
    }
}
