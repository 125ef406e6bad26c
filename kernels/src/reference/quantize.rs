//! Float to code.
//!
//! ```text
//! t    = clamp(y * inv_scale, -zero, max - zero)
//! code = round_half_even(t) + zero
//! ```
//!
//! Rounding adds 1.5 * 2^23: a float of that size has no fraction bits left, so
//! the addition itself rounds, half to even, and the low mantissa bits are the
//! integer. It needs |t| <= 2^22; after the clamp |t| <= 255.

use crate::ActQuant;

/// 1.5 * 2^23.
pub const MAGIC: f32 = 12_582_912.0;

/// The code of `y`: see [`ActQuant`].
#[inline(always)]
pub fn code(y: f32, inv_scale: f32, zero_point: u8, max_code: u8) -> u8 {
    let lo = -f32::from(zero_point);
    let hi = f32::from(max_code) - f32::from(zero_point);
    let t = y * inv_scale;
    // The order of the operands sends NaN to `lo`, as maxps does.
    let t = if t > lo { t } else { lo };
    let t = if t < hi { t } else { hi };
    let rounded = (t + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32;
    (rounded + i32::from(zero_point)) as u8
}

/// `out[m, d] = code(x[m, d])`, one scale and zero point per column.
pub fn quantize(x: &[f32], m: usize, d: usize, quant: &ActQuant, out: &mut [u8]) {
    for row in 0..m {
        for c in 0..d {
            let i = row * d + c;
            out[i] = code(
                x[i],
                quant.inv_scale[c],
                quant.zero_point[c],
                quant.max_code,
            );
        }
    }
}

/// `out = x + y`, element by element.
pub fn add(x: &[f32], y: &[f32], out: &mut [f32]) {
    for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
        *out = x + y;
    }
}

#[cfg(test)]
mod tests {
    use super::code;

    #[test]
    fn ties_go_to_even() {
        let codes = [0.5, 1.5, 2.5, 3.5, -0.5, -1.5].map(|y| code(y, 1.0, 8, 15));
        assert_eq!(codes, [8, 10, 10, 12, 8, 6]);
    }

    #[test]
    fn out_of_range_is_clamped_and_nan_is_zero() {
        assert_eq!(code(f32::INFINITY, 1.0, 3, 15), 15);
        assert_eq!(code(f32::NEG_INFINITY, 1.0, 3, 15), 0);
        assert_eq!(code(f32::NAN, 1.0, 3, 15), 0);
        assert_eq!(code(1e38, 1e38, 0, 255), 255);
    }

    #[test]
    fn every_code_is_a_fixed_point() {
        for zero in [0, 100, 255] {
            for c in 0..=255_u8 {
                assert_eq!(
                    code((f32::from(c) - f32::from(zero)) * 0.5, 2.0, zero, 255),
                    c
                );
            }
        }
    }

    #[test]
    fn agrees_with_the_formula_in_f64() {
        let mut y = -40.0_f32;
        while y < 40.0 {
            let exact = (f64::from(y) * 0.75).clamp(-7.0, 8.0).round_ties_even() + 7.0;
            assert_eq!(f64::from(code(y, 0.75, 7, 15)), exact, "{y}");
            y += 0.003_906_25; // 2^-8: the product with 0.75 is exact
        }
    }
}
