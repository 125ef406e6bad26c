//! Row-maximum log2 quantizer: codes relative to the largest of each row.
//!
//! With scores `x_j`, their maximum `m`, and `n = 2^bits - 1`:
//!
//! ```text
//! t_j     = (m - x_j) * log2(e)                 = -log2(p_j / max p): no exp, no log
//! code    = #{ c in 1..=n : t > theta_c },  theta_c = -log2(2^-((c - 1/2) step) - 2^-(n step))
//! a[c]    = round(S * (2^-(c step) - 2^-(n step)) / (1 - 2^-(n step)))
//! output  = sum of a[code_j] * v_j / sum of a[code_j]
//! ```
//!
//! The thresholds are zero-anchored: code `n` is an exact zero. The scale
//! cancels in the quotient, so there is neither anything to calibrate nor a
//! softmax denominator to compute; the row sum cannot be 0, for the maximum
//! has code 0. This quantizer is the project's own. In comparisons, say that the
//! range is dynamic, per row, where SULQ and TULQ are static, per tensor.
//!
//! Multipliers stay at 127 or below up to 4 bits, so the u8 x s8 dot product
//! executes them; at 3 bits (step 1) they are `2^i - 1`, for shifts. Finer
//! codes need i16 multipliers to be of any use: relative error of the product
//! with v, median over the 12 layers of ViT-Ti/16,
//!
//! | bits | step | S = 127 | S = 16384 |
//! |---|---|---|---|
//! | 3 | 1 | .0645 | .0645 |
//! | 4 | 1/2 | .0418 | .0291 |
//! | 4 | 3/8 | .0369 | .0309 |
//! | 6 | 1/8 | .0304 | .0073 |
//! | 8 | 1/32 | .0305 | .0020 |
//!
//! so 6 and 8 bits take the larger height.

use tpvit_models::{BitWidth, SoftmaxCodebook, SoftmaxKind, SoftmaxMethod, SoftmaxQuant};

use super::softmax::{self, AttentionSamples, SoftmaxQuantizer, threshold};

/// Row-maximum codes; nothing to fit. Rows are always renormalised: without
/// that, the largest probability of a row would have to be known after all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowMaximum;

impl SoftmaxQuantizer for RowMaximum {
    fn method(&self) -> SoftmaxMethod {
        SoftmaxMethod::RowMax
    }

    fn name(&self) -> &'static str {
        "row-max"
    }

    fn fit(&self, bits: BitWidth, samples: &AttentionSamples) -> SoftmaxQuant {
        with_constants(bits, step(bits), height(bits, samples.tokens()))
    }
}

/// Octaves between neighbouring codes.
pub fn step(bits: BitWidth) -> f64 {
    match bits {
        BitWidth::B2 | BitWidth::B3 => 1.0,
        BitWidth::B4 => 0.5,
        BitWidth::B6 => 0.125,
        BitWidth::B8 => 0.03125,
    }
}

/// The largest multiplier, for rows of `tokens`.
pub fn height(bits: BitWidth, tokens: usize) -> i16 {
    match bits {
        BitWidth::B2 | BitWidth::B3 | BitWidth::B4 => softmax::height(tokens).min(127),
        BitWidth::B6 | BitWidth::B8 => softmax::height(tokens),
    }
}

/// Row-maximum codes `step` octaves apart, of which the first means `height`.
///
/// # Panics
/// If `step` or `height` is not positive.
pub fn with_constants(bits: BitWidth, step: f64, height: i16) -> SoftmaxQuant {
    assert!(step > 0.0 && height > 0, "step {step}, height {height}");
    let last = bits.max_code();
    let level = |code: f64| (-step * code).exp2();
    let anchor = level(f64::from(last));
    let multiplier = |code: u8| {
        let fraction = (level(f64::from(code)) - anchor) / (1.0 - anchor);
        (f64::from(height) * fraction).round_ties_even() as i16
    };
    SoftmaxQuant {
        bits,
        method: SoftmaxMethod::RowMax,
        kind: SoftmaxKind::RowMax,
        renormalise: true,
        codebooks: vec![SoftmaxCodebook {
            scale: 0.0,
            thresholds: (0..last)
                .map(|code| threshold(level(f64::from(code) + 0.5) - anchor))
                .collect(),
            multipliers: (0..=last).map(multiplier).collect(),
        }],
    }
}
