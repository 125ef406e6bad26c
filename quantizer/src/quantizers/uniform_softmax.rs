//! Uniform quantizer of probabilities: what APHQ-ViT (Wu et al. 2025,
//! arXiv:2504.02508), FIMA-Q (Wu et al. 2025, arXiv:2506.11543) and GLF-Q use
//! after softmax, per head.
//!
//! ```text
//! q  = clamp(round(p / s), 0, n),    n = 2^bits - 1
//! p ~= s * q
//! ```
//!
//! The zero point is 0, since no probability is negative. Up to `n * s` the error
//! is half a step at most; what lies above is clipped. Codes count from the
//! largest level down, `code = n - q`, as those of every other quantizer here,
//! and the multipliers are simply `n ..= 0`.
//!
//! The range `n * s` is searched from the largest probability down for the least
//! A·V error: a quarter of an octave at a time, then finer.

use tpvit_models::{BitWidth, SoftmaxMethod, SoftmaxQuant};

use super::softmax::{AttentionSamples, SoftmaxQuantizer, best, nearest_level};

/// How far below the largest probability the range may end, in quarters of an octave.
const QUARTERS: u8 = 48;

/// Octaves by which the range is then moved, coarse to fine.
const REFINEMENTS: [f64; 2] = [0.125, 0.0625];

/// Evenly spaced probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UniformSoftmax {
    /// Whether rows are divided by their sum; the publications do not.
    pub renormalise: bool,
}

impl SoftmaxQuantizer for UniformSoftmax {
    fn method(&self) -> SoftmaxMethod {
        SoftmaxMethod::Uniform
    }

    fn name(&self) -> &'static str {
        "uniform"
    }

    fn fit(&self, bits: BitWidth, samples: &AttentionSamples) -> SoftmaxQuant {
        let [largest] = samples.percentiles(&[1.0]).map(f64::from);
        let build = |octaves: f64| self.with_range(bits, largest * (-octaves).exp2());
        let grid: Vec<f64> = (0..=QUARTERS).map(|k| 0.25 * f64::from(k)).collect();
        let mut found = best(samples, &grid, build);
        for by in REFINEMENTS {
            found = best(samples, &[found, found - by, found + by], build);
        }
        build(found)
    }
}

impl UniformSoftmax {
    /// The quantizer of probabilities up to `range`.
    pub fn with_range(&self, bits: BitWidth, range: f64) -> SoftmaxQuant {
        let last = i16::from(bits.max_code());
        let levels: Vec<i16> = (0..=last).rev().collect();
        self.with_codebook(
            bits,
            self.renormalise,
            nearest_level(bits, range / f64::from(last), &levels),
        )
    }
}
