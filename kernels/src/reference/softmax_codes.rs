//! Softmax without an exponential per element: a code counts thresholds.
//!
//! ```text
//! offset_i = 0                                              row maximum
//!          = round_half_even(64 * log2(Z_i) / alpha)        static;  Z_i = sum16 of exp2(-alpha * d_ij)
//! v_ij     = 64 * d_ij + offset_i                           saturating
//! code_ij  = #{ c in 1..=n : v_ij > thresholds[c - 1] }
//! ```
//!
//! `-log2` of a softmax value is `alpha * (d_ij + log2(Z_i) / alpha)`, linear in the
//! score, so a quantizer in the log domain is a comparison with constants. The
//! factor 64 keeps fractions of a score unit: low-bit scores are coarse.

use super::{
    exp_log::{exp2_nonpositive, log2, round_nonnegative},
    sum16,
};
use crate::{SoftmaxCodes, SoftmaxKind};

/// What is added to every `64 * d` of a row.
pub fn offset(kind: SoftmaxKind, d: &[i32]) -> i32 {
    match kind {
        SoftmaxKind::RowMax => 0,
        SoftmaxKind::Static { alpha, scale: _ } => {
            let z = sum16(d.iter().map(|&d| exp2_nonpositive(-alpha * d as f32)));
            round_nonnegative(64.0 * log2(z) / alpha)
        }
    }
}

/// The code of one difference `d >= 0` from the row's maximum.
pub fn code(thresholds: &[i32], d: i32, offset: i32) -> u8 {
    let v = (64 * i64::from(d) + i64::from(offset)).min(i64::from(i32::MAX)) as i32;
    thresholds
        .iter()
        .map(|&threshold| u8::from(v > threshold))
        .sum()
}

/// The codes of one row of scores.
pub fn codes(softmax: &SoftmaxCodes, scores: &mut [i32], out: &mut [u8]) {
    let max = scores.iter().copied().fold(i32::MIN, i32::max);
    for score in scores.iter_mut() {
        *score = max - *score;
    }
    let offset = offset(softmax.kind, scores);
    for (code_out, &d) in out.iter_mut().zip(scores.iter()) {
        *code_out = code(softmax.thresholds, d, offset);
    }
}

#[cfg(test)]
mod tests {
    use super::{code, offset};
    use crate::SoftmaxKind;

    #[test]
    fn a_code_counts_the_thresholds_below() {
        let thresholds = [0, 64, 200, i32::MAX];
        assert_eq!(code(&thresholds, 0, 0), 0);
        assert_eq!(code(&thresholds, 1, 0), 1);
        assert_eq!(code(&thresholds, 1, 1), 2);
        assert_eq!(code(&thresholds, i32::MAX, i32::MAX), 3);
    }

    #[test]
    fn the_offset_is_the_log_of_the_denominator() {
        // Four equal scores: Z = 4, log2 = 2, in 64ths of a unit of half an octave.
        let kind = SoftmaxKind::Static {
            alpha: 0.5,
            scale: 1.0,
        };
        assert_eq!(offset(kind, &[0; 4]), 256);
        assert_eq!(offset(SoftmaxKind::RowMax, &[0; 4]), 0);
        assert_eq!(offset(kind, &[0]), 0);
    }
}
