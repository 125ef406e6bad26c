//! Twin uniform quantizer of PTQ4ViT (Yuan et al. 2022, arXiv:2111.12293).
//!
//! One bit of the code chooses between two uniform quantizers of
//! `k = 2^(bits - 1) - 1` steps:
//!
//! ```text
//! p >= sigma:   p ~= j / k             1 / k a step
//! p <  sigma:   p ~= j * sigma / k     sigma / k a step,     j in 0..=k
//! sigma = 2^-i, so that 1 / k is sigma / k shifted left by i
//! ```
//!
//! In units of `sigma / k` the levels are `0..=k` and `j << i`. `i` comes from
//! the published candidates, by the A·V error.
//!
//! The upper quantizer's levels below `sigma`, its zero among them, would make
//! a probability just above `sigma` less than one just below. They are left
//! out, and a probability takes the nearest level of all: so there are
//! `2^bits - 1` levels at most, and fewer for a large `sigma`. Up to `sigma` the
//! error is `sigma / 2k` at most, above it `1 / 2k`.

use tpvit_models::{BitWidth, SoftmaxMethod, SoftmaxQuant};

use super::softmax::{AttentionSamples, SoftmaxQuantizer, best, height, nearest_level};

/// The largest of the published candidates for `i`.
pub const MOST_OCTAVES: u32 = 9;

/// PTQ4ViT's twin uniform.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TwinUniform {
    /// Whether rows are divided by their sum; the publication does not.
    pub renormalise: bool,
}

impl SoftmaxQuantizer for TwinUniform {
    fn method(&self) -> SoftmaxMethod {
        SoftmaxMethod::TwinUniform
    }

    fn name(&self) -> &'static str {
        "twin"
    }

    fn fit(&self, bits: BitWidth, samples: &AttentionSamples) -> SoftmaxQuant {
        let height = height(samples.tokens());
        let fits = |octaves: &u32| steps(bits) << octaves <= i32::from(height);
        let splits: Vec<u32> = (0..=MOST_OCTAVES).filter(fits).collect();
        let build = |octaves| self.with_split(bits, octaves);
        build(best(samples, &splits, build))
    }
}

/// Steps of each half, `k`.
fn steps(bits: BitWidth) -> i32 {
    i32::from(bits.center()) - 1
}

impl TwinUniform {
    /// The quantizer of `sigma = 2^-octaves`.
    ///
    /// # Panics
    /// If 1 is more units than an i16 holds.
    pub fn with_split(&self, bits: BitWidth, octaves: u32) -> SoftmaxQuant {
        let k = steps(bits);
        let above = (1..=k).map(|j| j << octaves).filter(|&level| level > k);
        let levels = (0..=k).chain(above).rev();
        let levels: Vec<i16> = levels
            .map(|level| i16::try_from(level).expect("1 is a multiplier"))
            .collect();
        let unit = (-f64::from(octaves)).exp2() / f64::from(k);
        self.with_codebook(bits, self.renormalise, nearest_level(bits, unit, &levels))
    }
}
