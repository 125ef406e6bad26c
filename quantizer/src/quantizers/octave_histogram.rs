//! Where post-softmax values lie, by octave.
//!
//! ```text
//! t   = -log2(p)                     octaves below 1, or below the row's largest
//! bin = floor(t * BINS_PER_OCTAVE)   the last one holds all that is smaller
//! ```
//!
//! Most values are tiny and say little: beside how many there are, each bin knows
//! which part of all attention they carry.

/// Counts and sums of probabilities by their logarithm.
#[derive(Clone, Debug, PartialEq)]
pub struct OctaveHistogram {
    /// By bin: how many probabilities.
    pub counts: Vec<u64>,
    /// By bin: their sum. Of all bins, the number of rows.
    pub mass: Vec<f64>,
}

impl Default for OctaveHistogram {
    fn default() -> Self {
        let bins = Self::OCTAVES * Self::BINS_PER_OCTAVE;
        OctaveHistogram {
            counts: vec![0; bins],
            mass: vec![0.0; bins],
        }
    }
}

impl OctaveHistogram {
    /// Bins of one octave.
    pub const BINS_PER_OCTAVE: usize = 4;

    /// Octaves that have bins; attention of trained models spans some 26.
    pub const OCTAVES: usize = 32;

    /// Adds a probability that lies `octaves` below what is 1.
    pub(super) fn add(&mut self, octaves: f32, probability: f32) {
        // The cast saturates: what rounding puts above 1 is in the first bin.
        let bin = (octaves * Self::BINS_PER_OCTAVE as f32) as usize;
        let bin = bin.min(self.counts.len() - 1);
        self.counts[bin] += 1;
        self.mass[bin] += f64::from(probability);
    }
}
