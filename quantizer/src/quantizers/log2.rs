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
//! Every multiplier is a power of two or 0, so a shift executes it. Beyond 4
//! bits there is nothing to gain: the codebook ends 14 octaves down.

use tpvit_models::{BitWidth, SoftmaxMethod, SoftmaxQuant};

use super::log_grid::LogGrid;
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
        let grid = LogGrid {
            low: 0.0,
            step: 1.0,
            zero_code: self.zero_code,
        };
        self.with_codebook(
            bits,
            self.renormalise,
            grid.codebook(bits, height(samples.tokens())),
        )
    }
}
