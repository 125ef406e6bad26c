//! Log√2 quantizer of RepQ-ViT (Li et al. 2023, arXiv:2212.08254).
//!
//! ```text
//! code = clamp(round(-2 log2(p / s)), 0, 2^bits - 1)
//! p   ~= s * 2^-ceil(code / 2) * sqrt(2)^(code mod 2)  =  s * 2^-(code / 2)
//! ```
//!
//! Twice as fine as log2 and half as far-reaching: 3 octaves at 3 bits, 7 at 4.
//! The scale `s` is one of the published percentiles of the probabilities,
//! chosen here by the A·V error. The published code adds a level for exact
//! zero; here the last code is the zero.
//!
//! The factor that depends on parity is in the integer multipliers, so nothing
//! re-parameterises it into a base-2 grid as the publication does.

use tpvit_models::{BitWidth, SoftmaxMethod, SoftmaxQuant};

use super::log_grid::LogGrid;
use super::softmax::{AttentionSamples, SoftmaxQuantizer, best, height, octaves};

/// The published candidates for the percentile that is `s`.
pub const PERCENTILES: [f64; 3] = [0.999, 0.9999, 0.99999];

/// RepQ-ViT's log√2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogSqrt2 {
    /// Whether rows are divided by their sum; the publication does not.
    pub renormalise: bool,
}

impl SoftmaxQuantizer for LogSqrt2 {
    fn method(&self) -> SoftmaxMethod {
        SoftmaxMethod::LogSqrt2
    }

    fn name(&self) -> &'static str {
        "log-sqrt2"
    }

    fn fit(&self, bits: BitWidth, samples: &AttentionSamples) -> SoftmaxQuant {
        let scales = samples.percentiles(&PERCENTILES);
        let height = height(samples.tokens());
        let build = |scale| self.with_scale(bits, scale, height);
        build(best(samples, &scales, build))
    }
}

impl LogSqrt2 {
    /// The quantizer whose first level is the probability `scale`, with `height`
    /// as its multiplier.
    pub fn with_scale(&self, bits: BitWidth, scale: f32, height: i16) -> SoftmaxQuant {
        let grid = LogGrid {
            low: f64::from(octaves(scale)),
            step: 0.5,
            zero_code: true,
        };
        self.with_codebook(bits, self.renormalise, grid.codebook(bits, height))
    }
}
