//! A grid evenly spaced in the logarithm: what log2, log√2, AdaLog, TULQ-A and
//! TULQ-Z have in common.
//!
//! ```text
//! t    = -log2(p),    n = 2^bits - 1
//! code = clamp(round((t - low) / step), 0, n)
//! p   ~= 2^-(low + step * code)               the last one 0 instead, with a zero code
//! ```
//!
//! They differ in how `low` and `step` are found. Publications that have a zero
//! on top of these `2^bits` codes have a level more than `bits` can tell apart;
//! here the last code *is* the zero.
//!
//! Up to the last level, `t` is off by half a step at most, and the level by half
//! a unit of the codebook. Levels below half a unit (`2^-15` of the largest, see
//! [`height`](super::softmax::height)) are 0 too.

use tpvit_models::{BitWidth, SoftmaxCodebook};

use super::softmax::threshold;

/// Where the levels lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogGrid {
    /// Octaves from 1 down to the first level.
    pub low: f64,
    /// Octaves from level to level; positive.
    pub step: f64,
    /// Whether the last code stands for 0.
    pub zero_code: bool,
}

impl LogGrid {
    /// The codebook whose first multiplier is `height`.
    ///
    /// # Panics
    /// If the step is not positive.
    pub fn codebook(&self, bits: BitWidth, height: i16) -> SoftmaxCodebook {
        assert!(self.step > 0.0, "a step of {} octaves", self.step);
        let last = bits.max_code();
        let largest = (-self.low).exp2();
        let level = |code: f64| (-self.step * code).exp2();
        let multiplier = |code: u8| {
            let power = (f64::from(height) * level(f64::from(code))).round_ties_even();
            let zero = self.zero_code && code == last;
            if zero { 0 } else { power as i16 }
        };
        let multipliers: Vec<i16> = (0..=last).map(multiplier).collect();
        let limit = |code: u8| {
            // Past the first zero there is nothing left to tell apart.
            let used = multipliers[usize::from(code)] != 0;
            if used {
                threshold(largest * level(f64::from(code) + 0.5))
            } else {
                f32::INFINITY
            }
        };
        SoftmaxCodebook {
            scale: (largest / f64::from(height)) as f32,
            thresholds: (0..last).map(limit).collect(),
            multipliers,
        }
    }
}
