//! Powers and logarithms of two, for the denominator of a softmax.
//!
//! ```text
//! 2^x     = 2^i * p(x - i)            i = round(x), p of degree 6 on [-1/2, 1/2]
//! log2(x) = e + s * q(s^2)            x = 2^e * m,  m in [sqrt 1/2, sqrt 2),  s = (m - 1) / (m + 1)
//! ```
//!
//! p and q (degree 3) were fitted for this crate by Lawson-weighted least squares
//! on 4000 Chebyshev points: relative error 1.9e-9 and 6.9e-10 before rounding
//! to f32, so what remains is the rounding of the evaluation.

use super::quantize::MAGIC;

/// `2^x` for `x <= 0`, absolute error at most 2e-7; 0 below -126.
///
/// NaN gives 0.
#[inline(always)]
pub fn exp2_nonpositive(x: f32) -> f32 {
    let lowest = -126.0;
    let clamped = if x > lowest { x } else { lowest };
    let shifted = clamped + MAGIC; // its low bits are round(x), half to even
    let f = clamped - (shifted - MAGIC);
    let p = 1.534_581_2e-4;
    let p = p * f + 1.339_993_1e-3;
    let p = p * f + 9.618_489e-3;
    let p = p * f + 5.550_328_6e-2;
    let p = p * f + 2.402_264_7e-1;
    let p = p * f + 6.931_472e-1;
    let p = p * f + 1.0;
    // 2^i for i in -126 ..= 0 is the float whose exponent field is i + 127.
    let i = (shifted.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
    let power = f32::from_bits(((i + 127) << 23) as u32);
    if x > lowest { p * power } else { 0.0 }
}

/// `log2(x)` for a normal `x > 0`, absolute error at most 1e-6 up to 2^14;
/// `log2(1)` is exactly 0.
pub fn log2(x: f32) -> f32 {
    // Adding the distance from sqrt(1/2) to 1 carries into the exponent where m >= sqrt(1/2).
    let offset = 1.0_f32.to_bits() - core::f32::consts::FRAC_1_SQRT_2.to_bits();
    let biased = x.to_bits() + offset;
    let e = (biased >> 23) as i32 - 127;
    let m = f32::from_bits((biased & 0x007f_ffff) + core::f32::consts::FRAC_1_SQRT_2.to_bits());
    let s = (m - 1.0) / (m + 1.0);
    let u = s * s;
    let q = 0.431_734_35;
    let q = q * u + 0.576_714_45;
    let q = q * u + 0.961_798_85;
    let q = q * u + 2.885_39;
    e as f32 + s * q
}

/// `x` rounded half to even, for `x >= 0`; saturates at `i32::MAX`.
pub fn round_nonnegative(x: f32) -> i32 {
    let no_fraction = 8_388_608.0; // 2^23: from here on floats are integers
    let rounded = if x < no_fraction {
        (x + no_fraction) - no_fraction
    } else {
        x
    };
    rounded as i32
}

#[cfg(test)]
mod tests {
    use super::{exp2_nonpositive, log2, round_nonnegative};

    #[test]
    fn exp2_is_close_to_f64() {
        let mut worst: f64 = 0.0;
        for i in 0..4_000_000 {
            let x = -(i as f32) / 31_001.0;
            let exact = f64::from(x).exp2();
            worst = worst.max((f64::from(exp2_nonpositive(x)) - exact).abs());
        }
        assert!(worst <= 2e-7, "{worst}");
        assert_eq!(exp2_nonpositive(0.0), 1.0);
        assert_eq!(exp2_nonpositive(-1.0), 0.5);
        assert_eq!(exp2_nonpositive(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp2_nonpositive(f32::NAN), 0.0);
    }

    #[test]
    fn log2_is_close_to_f64() {
        let mut worst: f64 = 0.0;
        for bits in (0x0080_0000..16_384.0_f32.to_bits()).step_by(331) {
            let x = f32::from_bits(bits);
            // Far from 1 the result itself has fewer fraction bits: half an ulp of 127 is 3.8e-6.
            if x < 1.0 / 256.0 {
                continue;
            }
            worst = worst.max((f64::from(log2(x)) - f64::from(x).log2()).abs());
        }
        assert!(worst <= 1e-6, "{worst}");
        assert_eq!(log2(1.0), 0.0);
        assert_eq!(log2(2.0), 1.0);
        assert_eq!(log2(0.125), -3.0);
    }

    #[test]
    fn rounding_is_half_to_even_at_every_size() {
        for (x, rounded) in [
            (0.0, 0),
            (0.5, 0),
            (1.5, 2),
            (2.5, 2),
            (4_194_304.5, 4_194_304),
            (4_194_305.5, 4_194_306),
        ] {
            assert_eq!(round_nonnegative(x), rounded);
        }
        assert_eq!(round_nonnegative(8_388_607.5), 8_388_608);
        assert_eq!(round_nonnegative(16_777_218.0), 16_777_218);
        assert_eq!(round_nonnegative(1e20), i32::MAX);
    }
}
