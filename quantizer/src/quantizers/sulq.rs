//! Shift-uniform-log2 quantizer of I&S-ViT (arXiv:2311.10126, Eq. 13–14).
//!
//! ```text
//! y    = -log2(p + eta)
//! code = clamp(round(y / s) + z, 0, 2^bits - 1)      (s, z) min-max over y
//! p   ~= 2^-round(s * (code - z)) - eta
//! ```
//!
//! The shift `eta` comes from the published grid, chosen here by the A·V
//! error. It lies on the integer grid of the multipliers, so a level is
//! `2^i - h` with one integer `h` for all: shifts execute the first term, and
//! `h` times the column sum of the values is subtracted once per head.
//!
//! The published code has `2^bits + 1` levels; this one has `2^bits`, of
//! which rounding the exponent can make neighbours equal.

use tpvit_models::{BitWidth, SoftmaxCodebook, SoftmaxMethod, SoftmaxQuant};

use super::softmax::{AttentionSamples, SoftmaxQuantizer, best, height, threshold};

/// The published candidates for `eta`.
pub const ETA: [f64; 11] = [
    0.001, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.2, 0.5, 1.0,
];

/// I&S-ViT's SULQ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sulq {
    /// Whether rows are divided by their sum; the publication does not.
    pub renormalise: bool,
}

impl SoftmaxQuantizer for Sulq {
    fn method(&self) -> SoftmaxMethod {
        SoftmaxMethod::Sulq
    }

    fn name(&self) -> &'static str {
        "sulq"
    }

    fn fit(&self, bits: BitWidth, samples: &AttentionSamples) -> SoftmaxQuant {
        let range = samples.percentiles(&[0.0, 1.0]).map(f64::from);
        let height = height(samples.tokens());
        let build = |eta| self.with_shift(bits, eta, range, height);
        build(best(samples, &ETA, build))
    }
}

impl Sulq {
    /// SULQ with a given shift, over probabilities from `low` to `high`; the
    /// largest power is `height`.
    pub fn with_shift(
        &self,
        bits: BitWidth,
        eta: f64,
        [low, high]: [f64; 2],
        height: i16,
    ) -> SoftmaxQuant {
        let last = bits.max_code();
        let [y_low, y_high] = [-(high + eta).log2(), -(low + eta).log2()];
        let step = ((y_high - y_low) / f64::from(last)).max(1e-6);
        let zero = (-y_low / step).round_ties_even();
        let y = |code: f64| step * (code - zero);

        let least = y(0.0).round_ties_even();
        let unit = (-least).exp2() / f64::from(height);
        let shift = (eta / unit).round_ties_even() as i16;
        let multiplier = |code: u8| {
            let exponent = y(f64::from(code)).round_ties_even() - least;
            let power = (f64::from(height) * (-exponent).exp2()).round_ties_even() as i16;
            // Rounding the exponent down can take more than `eta` away. A row that
            // is divided by its sum has no place for that.
            let least = if self.renormalise { 0 } else { i16::MIN };
            least.max(power - shift)
        };
        // On the grid, the shift is not exactly the one asked for.
        let eta = f64::from(shift) * unit;
        let limit = |code: u8| threshold((-y(f64::from(code) + 0.5)).exp2() - eta);
        self.with_codebook(
            bits,
            self.renormalise,
            SoftmaxCodebook {
                scale: unit as f32,
                thresholds: (0..last).map(limit).collect(),
                multipliers: (0..=last).map(multiplier).collect(),
            },
        )
    }
}
