//! What is remembered of the values that flow through a network.
//!
//! Everything is bounded in memory and merged in picture order, so the result
//! is the same whatever the number of threads:
//!
//! - [`Columns`]: exact bounds, mean and mean square of each channel;
//! - [`Histogram`]: all values of a group of channels (a tensor, a head),
//!   re-binned as its range grows;
//! - a few whole rows of some pictures, for the distribution of one channel.
//!
//! They end as a [`Distribution`], from which a range is fitted by min-max,
//! percentile or least squared error.

use std::ops::Range;

use crate::quantizers::Distribution;

/// Bins of a [`Histogram`], over `-half_range..half_range`.
const BINS: usize = 4096;

/// Bounds and first two moments of each column of a matrix.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Columns {
    /// Smallest value, by column.
    pub low: Vec<f32>,
    /// Largest value, by column.
    pub high: Vec<f32>,
    sum: Vec<f64>,
    square: Vec<f64>,
    rows: u64,
}

impl Columns {
    /// Nothing seen yet of `cols` columns.
    pub fn new(cols: usize) -> Self {
        Columns {
            low: vec![f32::INFINITY; cols],
            high: vec![f32::NEG_INFINITY; cols],
            sum: vec![0.0; cols],
            square: vec![0.0; cols],
            rows: 0,
        }
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.low.len()
    }

    /// Adds rows of values, `[rows, cols]`.
    pub fn add(&mut self, values: &[f32]) {
        let cols = self.cols();
        for row in values.chunks_exact(cols) {
            for (i, &x) in row.iter().enumerate() {
                self.low[i] = self.low[i].min(x);
                self.high[i] = self.high[i].max(x);
                self.sum[i] += f64::from(x);
                self.square[i] += f64::from(x) * f64::from(x);
            }
            self.rows += 1;
        }
    }

    /// Adds what another saw of the same columns.
    pub fn merge(&mut self, other: &Columns) {
        for i in 0..self.cols() {
            self.low[i] = self.low[i].min(other.low[i]);
            self.high[i] = self.high[i].max(other.high[i]);
            self.sum[i] += other.sum[i];
            self.square[i] += other.square[i];
        }
        self.rows += other.rows;
    }

    /// The mean of a column.
    pub fn mean(&self, col: usize) -> f64 {
        self.sum[col] / self.rows.max(1) as f64
    }

    /// The variance of a column, not negative.
    pub fn variance(&self, col: usize) -> f64 {
        let square = self.square[col] / self.rows.max(1) as f64;
        (square - self.mean(col).powi(2)).max(0.0)
    }
}

/// Counts of values in even bins around 0.
///
/// The range is a power of two, and doubling it adds up pairs of bins: no
/// count is ever lost or moved to a wrong bin, and two histograms of any
/// ranges merge exactly.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// The range is `-2^exponent..2^exponent`.
    exponent: i32,
    /// Empty until the first value.
    counts: Vec<u64>,
}

impl Histogram {
    /// Adds finite values.
    pub fn add(&mut self, values: impl Iterator<Item = f32> + Clone) {
        let largest = values.clone().fold(0.0f32, |m, x| m.max(x.abs()));
        let exponent = if largest > 1e-30 {
            largest.log2().floor() as i32 + 1
        } else {
            -100
        };
        self.grow(exponent);
        let per_bin = (BINS / 2) as f32 * (-self.exponent as f32).exp2();
        for x in values {
            let bin = (x * per_bin).floor() as i32 + (BINS / 2) as i32;
            self.counts[bin.clamp(0, BINS as i32 - 1) as usize] += 1;
        }
    }

    /// Adds what another counted.
    pub fn merge(&mut self, other: &Histogram) {
        if other.counts.is_empty() {
            return;
        }
        let mut other = other.clone();
        self.grow(other.exponent);
        other.grow(self.exponent);
        for (to, from) in self.counts.iter_mut().zip(&other.counts) {
            *to += from;
        }
    }

    /// Number of values counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The centres of the bins that hold something, between exact bounds.
    pub fn distribution(&self, low: f32, high: f32) -> Distribution {
        let width = (self.exponent as f32).exp2() / (BINS / 2) as f32;
        let centre = |bin: usize| (bin as f32 + 0.5 - (BINS / 2) as f32) * width;
        let held = (0..self.counts.len()).filter(|&bin| self.counts[bin] > 0);
        let (values, counts) = held
            .map(|bin| (centre(bin).clamp(low, high), self.counts[bin] as f32))
            .unzip();
        Distribution::from_sorted(values, counts, low, high)
    }

    fn grow(&mut self, exponent: i32) {
        if self.counts.is_empty() {
            self.counts = vec![0; BINS];
            self.exponent = exponent;
        }
        while self.exponent < exponent {
            let mut grown = vec![0; BINS];
            for (bin, count) in self.counts.iter().enumerate() {
                grown[BINS / 4 + bin / 2] += count;
            }
            self.counts = grown;
            self.exponent += 1;
        }
    }
}

/// Everything remembered of one coded buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct BufferStats {
    /// Of each channel.
    pub columns: Columns,
    /// Channels that may share a scale, with all their values.
    groups: Vec<(Range<usize>, Histogram)>,
    /// Whole rows of some pictures, `[rows, cols]` each, by slot.
    samples: Vec<Vec<f32>>,
}

impl BufferStats {
    /// Nothing seen yet; `groups` are the ranges of channels to pool.
    pub(super) fn new(cols: usize, groups: &[Range<usize>]) -> Self {
        BufferStats {
            columns: Columns::new(cols),
            groups: groups
                .iter()
                .map(|g| (g.clone(), Histogram::default()))
                .collect(),
            samples: Vec::new(),
        }
    }

    /// Adds one picture's values, `[rows, cols]`.
    pub(super) fn add(&mut self, values: &[f32]) {
        let cols = self.columns.cols();
        self.columns.add(values);
        for (group, histogram) in &mut self.groups {
            let rows = values.chunks_exact(cols);
            histogram.add(rows.flat_map(|row| row[group.clone()].iter().copied()));
        }
    }

    /// Keeps `rows` for slot `slot`, instead of what was there.
    pub(super) fn keep(&mut self, slot: usize, rows: Vec<f32>) {
        put(&mut self.samples, slot, rows);
    }

    /// Adds what was seen of the next picture.
    pub(super) fn merge(&mut self, other: BufferStats) {
        self.columns.merge(&other.columns);
        for ((_, to), (_, from)) in self.groups.iter_mut().zip(&other.groups) {
            to.merge(from);
        }
        for (slot, rows) in other.samples.into_iter().enumerate() {
            if !rows.is_empty() {
                self.keep(slot, rows);
            }
        }
    }

    /// The distribution of channel `col`, from the rows that were kept.
    pub fn column(&self, col: usize) -> Distribution {
        let cols = self.columns.cols();
        let rows = self.samples.iter().flat_map(|s| s.chunks_exact(cols));
        let values = rows.map(|row| row[col]).collect();
        Distribution::from_sample(values, self.columns.low[col], self.columns.high[col])
    }

    /// The rows that were kept, the exact bounds of the channels after them:
    /// the rarest values of a Vision Transformer matter most.
    pub fn rows(&self) -> impl Iterator<Item = &[f32]> {
        let kept = self.samples.iter();
        let kept = kept.flat_map(|s| s.chunks_exact(self.columns.cols()));
        kept.chain([&self.columns.low[..], &self.columns.high[..]])
    }

    /// The distribution of all values of the channels `range`.
    ///
    /// # Panics
    /// If `range` is not the union of groups that were pooled.
    pub fn pooled(&self, range: Range<usize>) -> Distribution {
        let mut all = Histogram::default();
        let mut covered = 0;
        for (group, histogram) in &self.groups {
            if range.start <= group.start && group.end <= range.end {
                all.merge(histogram);
                covered += group.len();
            }
        }
        assert_eq!(covered, range.len(), "channels {range:?} were not pooled");
        let low = self.columns.low[range.clone()].iter().copied();
        let high = self.columns.high[range].iter().copied();
        all.distribution(
            low.fold(f32::INFINITY, f32::min),
            high.fold(f32::NEG_INFINITY, f32::max),
        )
    }
}

/// Sets element `slot`, making room for it.
pub(super) fn put<T: Default>(slots: &mut Vec<T>, slot: usize, value: T) {
    if slots.len() <= slot {
        slots.resize_with(slot + 1, T::default);
    }
    slots[slot] = value;
}

/// The slot in which picture `index` is kept, if it is: reservoir sampling
/// (Vitter's algorithm R) whose draws depend on nothing but seed and index.
pub(super) fn slot(seed: u64, index: usize, capacity: usize) -> Option<usize> {
    if index < capacity {
        return Some(index);
    }
    let drawn = (mix(seed ^ index as u64) % (index as u64 + 1)) as usize;
    (drawn < capacity).then_some(drawn)
}

/// `count` of `rows` row numbers, evenly spaced from a drawn start, ascending.
pub(super) fn spaced_rows(seed: u64, index: usize, rows: usize, count: usize) -> Vec<usize> {
    let count = count.min(rows);
    let start = (mix(seed ^ mix(index as u64)) % rows as u64) as usize;
    let mut chosen: Vec<usize> = (0..count)
        .map(|i| (start + i * rows / count) % rows)
        .collect();
    chosen.sort_unstable();
    chosen
}

/// SplitMix64's finaliser: a fixed, well mixed function of 64 bits.
pub(crate) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_merge_to_the_same_whatever_the_order() {
        let small: Vec<f32> = (0..1000).map(|i| (i as f32 - 500.0) / 700.0).collect();
        let large: Vec<f32> = small.iter().map(|x| x * 37.0).collect();
        let mut one = Histogram::default();
        one.add(small.iter().copied());
        one.add(large.iter().copied());
        let (mut a, mut b) = (Histogram::default(), Histogram::default());
        b.add(small.iter().copied());
        a.add(large.iter().copied());
        a.merge(&b);
        assert_eq!(a, one);
        assert_eq!(a.total(), 2000);
    }

    #[test]
    fn a_histogram_keeps_percentiles_within_a_bin() {
        let values: Vec<f32> = (0..10_000).map(|i| i as f32 / 1000.0).collect();
        let mut histogram = Histogram::default();
        for chunk in values.chunks(7) {
            histogram.add(chunk.iter().copied());
        }
        let (low, high) = histogram.distribution(0.0, 9.999).percentile(0.99);
        let bin = 16.0 / 2048.0;
        assert!(
            (low - 0.1).abs() <= bin && (high - 9.9).abs() <= bin,
            "{low} {high}"
        );
    }

    #[test]
    fn columns_know_their_moments() {
        let mut columns = Columns::new(2);
        columns.add(&[1.0, -1.0, 3.0, -1.0]);
        assert_eq!((columns.mean(0), columns.variance(0)), (2.0, 1.0));
        assert_eq!((columns.mean(1), columns.variance(1)), (-1.0, 0.0));
        assert_eq!((columns.low[0], columns.high[0]), (1.0, 3.0));
    }

    #[test]
    fn slots_fill_up_and_then_sample() {
        assert!((0..8).all(|i| slot(1, i, 8) == Some(i)));
        let later = (8..8000).filter(|&i| slot(1, i, 8).is_some()).count();
        // The expected number is 8 * ln(8000 / 8) = 55.
        assert!((25..100).contains(&later), "{later}");
    }

    #[test]
    fn rows_are_distinct() {
        let mut rows = spaced_rows(3, 5, 197, 8);
        rows.dedup();
        assert_eq!(rows.len(), 8);
        assert_eq!(spaced_rows(3, 5, 1, 8), [0]);
    }
}
