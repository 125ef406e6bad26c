//! Uniform affine quantizer: per tensor, per head or per channel.
//!
//! ```text
//! code = clamp(round(x * (1 / scale)) + zero_point, 0, 2^bits - 1)
//! x   ~= scale * (code - zero_point)
//! ```
//!
//! Jacob et al. 2018, arXiv:1712.05877, Eq. 1. Ties round to even. The
//! granularity is the caller's: one [`Affine`] is fitted to one
//! [`Distribution`], and what that distribution pools (a tensor, the columns
//! of a head, one column) is what shares a scale.
//!
//! The clipping range is the observed one, a percentile of it, or the one
//! with the least squared error (the search that PTQ4ViT, RepQ-ViT and
//! I&S-ViT start from as well; theirs runs over percentiles).

use tpvit_models::BitWidth;

/// `1.5 * 2^23`: adding and subtracting it rounds an f32 of magnitude up to
/// `2^22` to the nearest integer, ties to even.
const ROUND: f32 = 12_582_912.0;

/// The largest magnitude of a free zero point; larger ones would cost the
/// exactness of `x / scale` in f32.
const MAX_FREE_ZERO_POINT: f32 = 65_536.0;

/// Rounds to the nearest integer, ties to even; `|x| <= 2^22`.
#[inline]
pub fn round_even(x: f32) -> f32 {
    (x + ROUND) - ROUND
}

/// How the clipping range is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RangeFit {
    /// The smallest and largest value seen.
    MinMax,
    /// The fraction `p` of the values below the upper bound, and above the
    /// lower one: `0.5 < p <= 1`.
    Percentile(f64),
    /// The range with the least squared quantization error.
    Mse,
}

/// Where a zero point may lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroPoint {
    /// In `0..=2^bits - 1`, so that the range holds 0 and the zero point is
    /// itself a code: what the integer runtime stores.
    Code,
    /// Any integer: for ranges that are re-parameterised into the layer before.
    Free,
}

/// A weighted sample of the values that will share a scale.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution {
    /// Ascending.
    values: Vec<f32>,
    /// One per value: how often it was seen.
    counts: Vec<f32>,
    low: f32,
    high: f32,
}

impl Distribution {
    /// A sample in which every value counts once; NaN is not allowed.
    ///
    /// `low` and `high` are the exact bounds of what was sampled, which the
    /// sample itself may have missed. They count once more: the rarest values
    /// of a Vision Transformer matter most.
    ///
    /// # Panics
    /// If the bounds are not finite.
    pub fn from_sample(mut values: Vec<f32>, low: f32, high: f32) -> Self {
        values.extend([low, high]);
        values.sort_unstable_by(f32::total_cmp);
        let counts = vec![1.0; values.len()];
        Distribution::from_sorted(values, counts, low, high)
    }

    /// Values in ascending order with how often each was seen.
    ///
    /// # Panics
    /// If there is no value, the lengths differ, or the bounds are not finite.
    pub fn from_sorted(values: Vec<f32>, counts: Vec<f32>, low: f32, high: f32) -> Self {
        assert!(!values.is_empty(), "a distribution needs a value");
        assert_eq!(values.len(), counts.len(), "one count for each value");
        assert!(
            low.is_finite() && high.is_finite() && low <= high,
            "bounds {low} to {high} are not a finite range"
        );
        Distribution {
            values,
            counts,
            low,
            high,
        }
    }

    /// The smallest and largest value.
    pub fn bounds(&self) -> (f32, f32) {
        (self.low, self.high)
    }

    /// The range that leaves out the fraction `1 - p` at either end.
    pub fn percentile(&self, p: f64) -> (f32, f32) {
        if p >= 1.0 {
            return self.bounds();
        }
        let total: f64 = self.counts.iter().map(|&c| f64::from(c)).sum();
        let tail = (1.0 - p) * total;
        let pairs = || self.values.iter().zip(&self.counts);
        (
            first_beyond(pairs(), tail),
            first_beyond(pairs().rev(), tail),
        )
    }

    /// Weighted sum of squared errors under `affine`.
    pub fn squared_error(&self, bits: BitWidth, affine: Affine) -> f64 {
        let inverse = 1.0 / affine.scale;
        let low = -affine.zero_point as f32;
        let high = (i32::from(bits.max_code()) - affine.zero_point) as f32;
        let chunks = self.values.chunks(256).zip(self.counts.chunks(256));
        chunks
            .map(|(values, counts)| {
                let mut sum = [0.0f32; 8];
                for (v, c) in values.chunks(8).zip(counts.chunks(8)) {
                    for ((s, &x), &c) in sum.iter_mut().zip(v).zip(c) {
                        let q = round_even((x * inverse).clamp(low, high));
                        let e = x - affine.scale * q;
                        *s += c * e * e;
                    }
                }
                f64::from(sum.iter().sum::<f32>())
            })
            .sum()
    }
}

/// The first value at which the counts passed exceed `tail`.
fn first_beyond<'a>(pairs: impl Iterator<Item = (&'a f32, &'a f32)>, tail: f64) -> f32 {
    let mut passed = 0.0;
    let mut last = 0.0;
    for (&value, &count) in pairs {
        passed += f64::from(count);
        last = value;
        if passed > tail {
            break;
        }
    }
    last
}

/// A scale and a zero point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// Finite, positive.
    pub scale: f32,
    /// The code of 0; inside `0..=2^bits - 1` unless fitted with
    /// [`ZeroPoint::Free`].
    pub zero_point: i32,
}

impl Affine {
    /// The quantizer whose range is `low..=high`, widened to hold 0 for
    /// [`ZeroPoint::Code`].
    ///
    /// A range of no width gets a tiny one, so the scale is always positive.
    pub fn from_range(bits: BitWidth, zero: ZeroPoint, low: f32, high: f32) -> Self {
        let levels = f32::from(bits.max_code());
        let (low, high) = match zero {
            ZeroPoint::Code => (low.min(0.0), high.max(0.0)),
            ZeroPoint::Free => (low, high),
        };
        let magnitude = low.abs().max(high.abs());
        let narrowest = levels * magnitude / (MAX_FREE_ZERO_POINT - levels);
        let width = (high - low).max(narrowest).max(1e-12);
        let scale = width / levels;
        let zero_point = round_even(-low / scale) as i32;
        match zero {
            ZeroPoint::Code => Affine {
                scale,
                zero_point: zero_point.clamp(0, i32::from(bits.max_code())),
            },
            ZeroPoint::Free => Affine { scale, zero_point },
        }
    }

    /// Fits the range of `distribution` by `fit`.
    ///
    /// ```
    /// use tpvit_models::BitWidth;
    /// use tpvit_quantizer::quantizers::{Affine, Distribution, RangeFit, ZeroPoint};
    ///
    /// let values: Vec<f32> = (0..=30).map(|i| i as f32 / 10.0 - 1.0).collect();
    /// let distribution = Distribution::from_sample(values, -1.0, 2.0);
    /// let affine = Affine::fit(BitWidth::B4, ZeroPoint::Code, RangeFit::MinMax, &distribution);
    /// assert_eq!(affine.zero_point, 5);
    /// assert_eq!(affine.scale, 0.2);
    /// ```
    pub fn fit(
        bits: BitWidth,
        zero: ZeroPoint,
        fit: RangeFit,
        distribution: &Distribution,
    ) -> Self {
        let (low, high) = match fit {
            RangeFit::MinMax => distribution.bounds(),
            RangeFit::Percentile(p) => distribution.percentile(p),
            RangeFit::Mse => return search(bits, zero, distribution),
        };
        Affine::from_range(bits, zero, low, high)
    }

    /// The code of `x`, `0..=2^bits - 1`.
    pub fn encode(self, bits: BitWidth, x: f32) -> u8 {
        let low = -self.zero_point as f32;
        let high = (i32::from(bits.max_code()) - self.zero_point) as f32;
        let q = round_even((x * (1.0 / self.scale)).clamp(low, high)) as i32;
        (q + self.zero_point) as u8
    }

    /// What `code` stands for.
    pub fn decode(self, code: u8) -> f32 {
        self.scale * (i32::from(code) - self.zero_point) as f32
    }
}

/// The least squared error: first both bounds shrunk together, then one at a
/// time around the best. The observed range is a candidate.
fn search(bits: BitWidth, zero: ZeroPoint, distribution: &Distribution) -> Affine {
    let (low, high) = distribution.bounds();
    // Shrinking is towards a point inside the range: 0 where it holds 0.
    let centre = match zero {
        ZeroPoint::Code => 0.0,
        ZeroPoint::Free => 0.0f32.clamp(low, high),
    };
    let ranged = |a: f32, b: f32| {
        let (l, h) = (centre + a * (low - centre), centre + b * (high - centre));
        Affine::from_range(bits, zero, l, h)
    };
    let mut best = Best::new(
        ranged(1.0, 1.0),
        distribution.squared_error(bits, ranged(1.0, 1.0)),
    );
    let try_range = |best: &mut Best, a: f32, b: f32| {
        let affine = ranged(a, b);
        best.offer((a, b), affine, distribution.squared_error(bits, affine));
    };
    for step in 1..32 {
        let shrink = 0.92f32.powi(step);
        try_range(&mut best, shrink, shrink);
    }
    for width in [0.25f32, 0.08, 0.03] {
        for side in 0..2 {
            let (a, b) = best.factors;
            for step in [-3.0f32, -2.0, -1.0, 1.0, 2.0, 3.0] {
                let factor = 1.0 + width * step / 3.0;
                let (a, b) = if side == 0 {
                    (a * factor, b)
                } else {
                    (a, b * factor)
                };
                try_range(&mut best, a.min(1.0), b.min(1.0));
            }
        }
    }
    best.affine
}

/// The best range so far.
struct Best {
    factors: (f32, f32),
    affine: Affine,
    error: f64,
}

impl Best {
    fn new(affine: Affine, error: f64) -> Self {
        let factors = (1.0, 1.0);
        Best {
            factors,
            affine,
            error,
        }
    }

    fn offer(&mut self, factors: (f32, f32), affine: Affine, error: f64) {
        if error < self.error {
            *self = Best {
                factors,
                affine,
                error,
            };
        }
    }
}
