//! Log2 quantizer of FQ-ViT (Lin et al. 2022, arXiv:2111.13824, Eq. 13).
//!
//! ```text
//! code = clamp(round(-log2(p)), 0, 2^bits - 1)
//! p   ~= 2^-code
//! ```
//!
//! The published code also maps everything beyond the last code to an exact
//! zero, which is a level more than `bits` can tell apart. Here the last code
//! *is* the zero by default, or the plain clamp of the equation.
//!
//! Every multiplier is a power of two or 0, so a shift executes it. Levels
//! below half a unit of the codebook (`2^-14` and smaller, see
//! [`height`]) are 0 too: beyond 4 bits there is nothing to gain.

use tpvit_models::{BitWidth, SoftmaxCodebook, SoftmaxKind, SoftmaxMethod, SoftmaxQuant};

use super::softmax::{AttentionSamples, SoftmaxQuantizer, height};

/// FQ-ViT's log2; nothing to fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log2 {
    /// Whether the last code stands for 0 instead of `2^-(2^bits - 1)`.
    pub zero_code: bool,
    /// Whether rows are divided by their sum; the publication does not.
    pub renormalise: bool,
}

impl Default for Log2 {
    fn default() -> Self {
        Log2 {
            zero_code: true,
            renormalise: false,
        }
    }
}

impl SoftmaxQuantizer for Log2 {
    fn method(&self) -> SoftmaxMethod {
        SoftmaxMethod::Log2
    }

    fn name(&self) -> &'static str {
        "log2"
    }

    fn fit(&self, bits: BitWidth, samples: &AttentionSamples) -> SoftmaxQuant {
        let height = height(samples.tokens());
        let last = bits.max_code();
        let multiplier = |code: u8| {
            let zero = u32::from(code) > height.ilog2() || (self.zero_code && code == last);
            if zero { 0 } else { height >> code }
        };
        let multipliers: Vec<i16> = (0..=last).map(multiplier).collect();
        let threshold = |code: u8| {
            // Past the first zero there is nothing left to tell apart.
            let used = multipliers[usize::from(code)] != 0;
            if used {
                f32::from(code) + 0.5
            } else {
                f32::INFINITY
            }
        };
        SoftmaxQuant {
            bits,
            method: self.method(),
            kind: SoftmaxKind::Static,
            renormalise: self.renormalise,
            codebooks: vec![SoftmaxCodebook {
                scale: 1.0 / f32::from(height),
                thresholds: (0..last).map(threshold).collect(),
                multipliers,
            }],
        }
    }
}
