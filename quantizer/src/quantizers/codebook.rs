//! Levels of an activation that are not uniform: `2^b` points of an 8-bit grid.
//!
//! ```text
//! fine   = clamp(round(x / scale) + zero_point, 0, 255)
//! level  = levels[#{ i : fine > thresholds[i] }]
//! x     ~= scale * (level - zero_point)
//! ```
//!
//! At run time the codes of the grid are moved to levels by byte shuffles, and
//! the next layer sees an 8-bit activation. Only the levels are chosen here; a
//! threshold always lies half way between two, so that every code of the grid
//! goes to its nearest level.
//!
//! **Least squares** ([`Grid::least_squares`]) is the exact optimum,
//!
//! ```text
//! minimise over the levels   sum over x of weight(x) (x - nearest level)^2
//! ```
//!
//! On a line the values of one level are consecutive, so with `E[l, j]` the least
//! error of the codes below `j` by `l` levels (Wang and Song 2011, R Journal 3(2)),
//!
//! ```text
//! E[l, j] = min over i of  E[l - 1, i] + error of codes i .. j by one level
//! ```
//!
//! which takes `2^b * 256^2 / 2` steps, as the sums of a span are differences of
//! sums that are known from the start.
//!
//! **Shifted log** ([`Grid::shifted_log`]) is for the output of GELU: all of it
//! lies above -0.17, and most of it near 0. AdaLog (Wu et al. 2024,
//! arXiv:2407.12951) puts a logarithmic code of free base above that minimum:
//!
//! ```text
//! levels[c] = minimum + height * 2^(-c delta),    c = 0 .. 2^b - 1
//! ```
//!
//! rounded to the grid. The minimum, the height and `delta` are searched. It has
//! three parameters where least squares has `2^b`.

use tpvit_models::{BitWidth, Codebook};

use super::uniform::Affine;

/// Codes of the grid.
const CODES: usize = 256;

/// Octaves between levels that a shifted logarithm is tried with first.
const COARSE_DELTAS: [f64; 10] = [0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0];

/// Rounds of a search that comes ever nearer.
const ROUNDS: usize = 12;

/// The codebook with these levels, each code of the grid going to the nearest
/// one; half way between two, to the lower one.
///
/// # Panics
/// If the levels do not ascend.
pub fn nearest(levels: Vec<u8>) -> Codebook {
    assert!(levels.is_sorted(), "levels ascend: {levels:?}");
    let half_way = |pair: &[u8; 2]| u8::midpoint(pair[0], pair[1]);
    Codebook {
        thresholds: levels.array_windows().map(half_way).collect(),
        levels,
    }
}

/// An 8-bit grid, and what was seen at each of its codes.
#[derive(Clone, Debug)]
pub struct Grid {
    affine: Affine,
    /// Of the values that have the code or a smaller one, 0 first: sum of the
    /// weights, of weight times value and of weight times its square, in units
    /// of the grid with the zero point at its place.
    below: Vec<[f64; 3]>, // [CODES + 1]
}

impl Grid {
    /// Puts values with their weights on the grid of `affine`, an 8-bit quantizer.
    pub fn new(affine: Affine, values: impl Iterator<Item = (f32, f32)>) -> Self {
        let mut below = vec![[0.0; 3]; CODES + 1];
        for (value, weight) in values {
            let code = usize::from(affine.encode(BitWidth::B8, value));
            let x = f64::from(value) / f64::from(affine.scale) + f64::from(affine.zero_point);
            let weight = f64::from(weight);
            let terms = [weight, weight * x, weight * x * x];
            for (sum, term) in below[code + 1].iter_mut().zip(terms) {
                *sum += term;
            }
        }
        for code in 0..CODES {
            let [before, this] = [below[code], below[code + 1]];
            below[code + 1] = [0, 1, 2].map(|i| before[i] + this[i]);
        }
        Grid { affine, below }
    }

    /// The grid's quantizer.
    pub fn affine(&self) -> Affine {
        self.affine
    }

    /// Weighted sum of squared errors of the values with codes `from .. to`, if
    /// `level` stands for all of them.
    fn error_of(&self, from: usize, to: usize, level: f64) -> f64 {
        let [weight, first, second] = self.sums(from, to);
        (second - 2.0 * level * first + level * level * weight).max(0.0)
    }

    fn sums(&self, from: usize, to: usize) -> [f64; 3] {
        [0, 1, 2].map(|i| self.below[to][i] - self.below[from][i])
    }

    /// The code that best stands for the values with codes `from .. to`.
    fn best_level(&self, from: usize, to: usize) -> u8 {
        let [weight, first, _] = self.sums(from, to);
        let mean = if weight > 0.0 {
            first / weight
        } else {
            (from + to) as f64 / 2.0
        };
        mean.round().clamp(0.0, 255.0) as u8
    }

    /// Weighted sum of squared errors under `codebook`, clipping included.
    pub fn error(&self, codebook: &Codebook) -> f64 {
        let ends = codebook.thresholds.iter().map(|&t| usize::from(t) + 1);
        let mut from = 0;
        let spans = ends.chain([CODES]).zip(&codebook.levels);
        let error = spans.map(|(to, &level)| {
            let to = to.max(from);
            let error = self.error_of(from, to, level.into());
            from = to;
            error
        });
        error.sum::<f64>() * f64::from(self.affine.scale).powi(2)
    }

    /// The levels with the least error; equal ones where fewer suffice.
    ///
    /// # Panics
    /// If `bits` is above 4.
    pub fn least_squares(&self, bits: BitWidth) -> Codebook {
        let count = level_count(bits);
        // By number of codes: the error, and for each number of levels the code
        // at which the last one begins.
        let mut error: Vec<f64> = (0..=CODES)
            .map(|to| self.error_of(0, to, self.best_level(0, to).into()))
            .collect();
        let mut starts = vec![[0; CODES + 1]];
        for _ in 1..count {
            let (mut next, mut start) = (error.clone(), [0; CODES + 1]);
            for to in 1..=CODES {
                start[to] = to; // a level for nothing: as good as one level less
                for (from, before) in error.iter().enumerate().take(to).skip(1) {
                    let level = self.best_level(from, to).into();
                    let with = before + self.error_of(from, to, level);
                    if with < next[to] {
                        (next[to], start[to]) = (with, from);
                    }
                }
            }
            error = next;
            starts.push(start);
        }
        let mut levels = Vec::with_capacity(count);
        let mut to = CODES;
        for start in starts.iter().rev() {
            let from = start[to];
            if from < to {
                levels.push(self.best_level(from, to));
            }
            to = from;
        }
        levels.reverse();
        let last = levels.last().copied().unwrap_or(0);
        levels.resize(count, last);
        nearest(levels)
    }

    /// The shifted logarithm with the least error found: the best of a coarse
    /// lattice of minima, heights and `delta`, then the best of its neighbours at
    /// ever smaller distances.
    ///
    /// # Panics
    /// If `bits` is above 4.
    pub fn shifted_log(&self, bits: BitWidth) -> Codebook {
        let count = level_count(bits);
        let seen = |code: &usize| self.sums(*code, *code + 1)[0] > 0.0;
        let lowest = (0..CODES).find(seen).unwrap_or(0) as f64;
        let highest = (0..CODES).rev().find(seen).unwrap_or(0) as f64;
        // The minimum need not be the lowest value: where few are below 0, or
        // many are at 0, one nearer to those is better.
        let zero = f64::from(self.affine.zero_point).max(lowest);
        let mut best = (f64::INFINITY, ShiftedLog::default());
        let offer = |best: &mut (f64, ShiftedLog), log: ShiftedLog| {
            let error = self.error(&nearest(log.levels(count)));
            if error < best.0 {
                *best = (error, log);
            }
        };
        for minimum in [0.0, 0.5, 1.0].map(|share| lowest + share * (zero - lowest)) {
            for height in [1.0, 0.85, 0.7, 0.55].map(|share| share * (highest - minimum)) {
                for delta in COARSE_DELTAS {
                    let log = ShiftedLog {
                        minimum,
                        height,
                        delta,
                    };
                    offer(&mut best, log);
                }
            }
        }
        let mut width = ShiftedLog {
            minimum: 0.25 * (zero - lowest),
            height: 0.1 * (highest - lowest),
            delta: 0.05,
        };
        for _ in 0..ROUNDS {
            let centre = best.1;
            for [a, b, c] in neighbours() {
                let log = ShiftedLog {
                    minimum: centre.minimum + a * width.minimum,
                    height: centre.height + b * width.height,
                    delta: centre.delta + c * width.delta,
                };
                offer(&mut best, log);
            }
            width = ShiftedLog {
                minimum: 0.7 * width.minimum,
                height: 0.7 * width.height,
                delta: 0.7 * width.delta,
            };
        }
        nearest(best.1.levels(count))
    }
}

/// The parameters of a shifted logarithm, in units of the grid and octaves.
#[derive(Clone, Copy, Debug, Default)]
struct ShiftedLog {
    minimum: f64,
    height: f64,
    delta: f64,
}

impl ShiftedLog {
    /// `count` levels, ascending; flat for a height or `delta` below 0.
    fn levels(self, count: usize) -> Vec<u8> {
        let level = |c: usize| {
            let level =
                self.minimum + self.height.max(0.0) * (-(c as f64) * self.delta.max(0.0)).exp2();
            level.round().clamp(0.0, 255.0) as u8
        };
        (0..count).rev().map(level).collect()
    }
}

/// The 26 steps to the neighbours in a lattice.
fn neighbours() -> impl Iterator<Item = [f64; 3]> {
    let steps = [-1.0, 0.0, 1.0];
    let all = steps.into_iter().flat_map(move |a| {
        steps
            .into_iter()
            .flat_map(move |b| steps.map(|c| [a, b, c]))
    });
    all.filter(|step| *step != [0.0; 3])
}

/// `2^bits`.
fn level_count(bits: BitWidth) -> usize {
    assert!(
        bits <= BitWidth::B4,
        "a codebook has at most 4 bits, not {}",
        bits.bits()
    );
    usize::from(bits.max_code()) + 1
}
