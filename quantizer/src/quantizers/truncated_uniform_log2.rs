//! Truncated uniform-log2 quantizer (TULQ): this project's reading of TP-ViT
//! (Zhou et al. 2026, doi:10.1631/ENG.ITEE.2025.0081).
//!
//! Only the abstract is public. It gives the name and the purpose (outliers
//! of post-softmax attention); that the *small* probabilities are truncated,
//! which stretch a uniform grid in the log domain to 26 octaves, is inferred.
//!
//! TULQ-A, a uniform quantizer of `t = -log2(p)` between two bounds:
//!
//! ```text
//! code = clamp(round((t - T_lo) / step), 0, n),    n = 2^bits - 1
//! p   ~= 2^-(T_lo + step * code),                  T_hi = T_lo + n * step
//! ```
//!
//! It has no zero: what is truncated stands for `2^-T_hi`, and so many small
//! probabilities add up. TULQ-Z gives them a code of their own beside the grid,
//! which is a level shorter:
//!
//! ```text
//! code = clamp(round((t - T_lo) / step), 0, n)
//! p   ~= 2^-(T_lo + step * code) for code < n,     T_hi = T_lo + (n - 1) * step
//! p   ~= 0                       for code = n
//! ```
//!
//! TULQ-ZA is anchored at zero instead, tying SULQ's shift to the truncation
//! bound:
//!
//! ```text
//! eta  = 2^-T_hi
//! code = clamp(round((-log2(p + eta) - T_lo) / step), 0, n)
//! p   ~= 2^-T_lo * (2^-(step * code) - 2^-(step * n))     code n means 0
//! ```
//!
//! `T_lo` starts at a percentile of the probabilities and is refined; it is
//! absorbed in the scale and may be any number. `step` is a multiple of
//! `2^(1 - bits)` octaves (so `k/4` at 3 bits and `k/8` at 4): the grid moves
//! `T_hi` by almost 2 octaves a step at every width, and `2^(bits - 1)`
//! mantissas describe all levels. With integer steps a level is a power of two
//! (TULQ-A, TULQ-Z) or a difference of two (TULQ-ZA), up to rounding to the codebook's
//! unit: shifts execute them.

use tpvit_models::{BitWidth, SoftmaxCodebook, SoftmaxMethod, SoftmaxQuant};

use super::log_grid::LogGrid;
use super::softmax::{AttentionSamples, SoftmaxQuantizer, best, height, octaves, threshold};

/// Percentiles of the probabilities that `T_lo` starts from.
const PERCENTILES: [f64; 5] = [0.99, 0.999, 0.9999, 0.99999, 1.0];

/// Octaves by which `T_lo` is then moved, coarse to fine.
const REFINEMENTS: [f64; 3] = [0.5, 0.25, 0.125];

/// Widest `T_hi - T_lo`, in octaves.
const MAX_RANGE: f64 = 16.0;

/// What the last code stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastCode {
    /// `2^-T_hi`: TULQ-A, what the abstract says.
    Bound,
    /// Exactly 0, beside the grid: TULQ-Z.
    BesideZero,
    /// Exactly 0, to which the grid is anchored: TULQ-ZA.
    Zero,
}

/// TP-ViT's quantizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TruncatedUniformLog2 {
    /// TULQ-A, TULQ-Z or TULQ-ZA.
    pub last_code: LastCode,
    /// Only whole octaves, which a shift executes.
    pub integer_step: bool,
    /// Whether rows are divided by their sum.
    pub renormalise: bool,
}

impl Default for TruncatedUniformLog2 {
    fn default() -> Self {
        TruncatedUniformLog2 {
            last_code: LastCode::Bound,
            integer_step: false,
            renormalise: false,
        }
    }
}

impl SoftmaxQuantizer for TruncatedUniformLog2 {
    fn method(&self) -> SoftmaxMethod {
        match self.last_code {
            LastCode::Bound => SoftmaxMethod::TulqA,
            LastCode::BesideZero => SoftmaxMethod::TulqZ,
            LastCode::Zero => SoftmaxMethod::TulqZa,
        }
    }

    fn name(&self) -> &'static str {
        match self.last_code {
            LastCode::Bound => "tulq-a",
            LastCode::BesideZero => "tulq-z",
            LastCode::Zero => "tulq-za",
        }
    }

    fn fit(&self, bits: BitWidth, samples: &AttentionSamples) -> SoftmaxQuant {
        let starts = samples.percentiles(&PERCENTILES);
        let height = height(samples.tokens());
        let build = |(low, step)| self.with_range(bits, low, step, height);

        let mut grid = Vec::new();
        for low in starts.map(|p| f64::from(octaves(p))) {
            grid.extend(self.steps(bits).into_iter().map(|step| (low, step)));
        }
        let (mut low, step) = best(samples, &grid, build);
        for by in REFINEMENTS {
            let moved = [low, low - by, low + by].map(|low| (low, step));
            (low, _) = best(samples, &moved, build);
        }
        build((low, step))
    }
}

impl TruncatedUniformLog2 {
    /// The steps that may be chosen at this width, in octaves.
    fn steps(&self, bits: BitWidth) -> Vec<f64> {
        let unit = if self.integer_step {
            1.0
        } else {
            1.0 / f64::from(bits.center())
        };
        let widest = (MAX_RANGE / (unit * f64::from(bits.max_code()))) as u32;
        (1..=widest.max(1)).map(|k| f64::from(k) * unit).collect()
    }

    /// The quantizer from `low` octaves on, `step` octaves a code.
    ///
    /// `height` is the multiplier of `2^-low`, see [`height`].
    ///
    /// # Panics
    /// If `step` is not positive.
    pub fn with_range(&self, bits: BitWidth, low: f64, step: f64, height: i16) -> SoftmaxQuant {
        let grid = |zero_code| LogGrid {
            low,
            step,
            zero_code,
        };
        let codebook = match self.last_code {
            LastCode::Bound => grid(false).codebook(bits, height),
            LastCode::BesideZero => grid(true).codebook(bits, height),
            LastCode::Zero => anchored(bits, low, step, height),
        };
        self.with_codebook(bits, self.renormalise, codebook)
    }
}

/// The codebook of TULQ-ZA.
fn anchored(bits: BitWidth, low: f64, step: f64, height: i16) -> SoftmaxCodebook {
    assert!(step > 0.0, "a step of {step} octaves");
    let last = bits.max_code();
    let level = |code: f64| (-step * code).exp2();
    let anchor = level(f64::from(last));
    let limit = |code: u8| threshold((-low).exp2() * (level(f64::from(code) + 0.5) - anchor));
    let unit = f64::from(height);
    // Each power is rounded by itself: whole steps stay differences of powers.
    let power = |code: u8| (unit * level(f64::from(code))).round_ties_even();
    let anchor_multiplier = (unit * anchor).round_ties_even();
    SoftmaxCodebook {
        scale: ((-low).exp2() / unit) as f32,
        thresholds: (0..last).map(limit).collect(),
        multipliers: (0..=last)
            .map(|code| (power(code) - anchor_multiplier) as i16)
            .collect(),
    }
}
