//! Adaptive-base logarithm quantizer of AdaLog (Wu et al. 2024, arXiv:2407.12951).
//!
//! ```text
//! base = 2^(q / r),   r = 37,   q in 10..=137
//! code = clamp(round(-log_base(p)), 0, 2^bits - 1)
//! p   ~= base^-code
//! ```
//!
//! `q` is the one with the least error of the product with v, as published. The
//! published code adds a level for exact zero; here the last code is the zero.
//! It executes a level as a shift by the whole part of `code * q / r` after a
//! multiplication by the fractional part, rounded to a table of
//! `2^(bits + 1) - 2` entries; the codebook of 14-bit multipliers holds the whole
//! level and is finer.

use tpvit_models::{BitWidth, SoftmaxMethod, SoftmaxQuant};

use super::log_grid::LogGrid;
use super::softmax::{AttentionSamples, SoftmaxQuantizer, best, height};

/// The denominator `r` of the exponent.
pub const DENOMINATOR: u8 = 37;

/// The published candidates for the numerator `q`: bases from 1.21 to 13.
pub const NUMERATORS: std::ops::RangeInclusive<u8> = 10..=137;

/// AdaLog.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdaptiveBaseLog {
    /// Whether rows are divided by their sum; the publication does not.
    pub renormalise: bool,
}

impl SoftmaxQuantizer for AdaptiveBaseLog {
    fn method(&self) -> SoftmaxMethod {
        SoftmaxMethod::AdaLog
    }

    fn name(&self) -> &'static str {
        "adalog"
    }

    fn fit(&self, bits: BitWidth, samples: &AttentionSamples) -> SoftmaxQuant {
        let numerators: Vec<u8> = NUMERATORS.collect();
        let height = height(samples.tokens());
        let build = |numerator| self.with_base(bits, numerator, height);
        build(best(samples, &numerators, build))
    }
}

impl AdaptiveBaseLog {
    /// The quantizer of base `2^(numerator / 37)`, where `height` means 1.
    ///
    /// # Panics
    /// If the numerator is 0.
    pub fn with_base(&self, bits: BitWidth, numerator: u8, height: i16) -> SoftmaxQuant {
        let grid = LogGrid {
            low: 0.0,
            step: f64::from(numerator) / f64::from(DENOMINATOR),
            zero_code: true,
        };
        self.with_codebook(bits, self.renormalise, grid.codebook(bits, height))
    }
}
