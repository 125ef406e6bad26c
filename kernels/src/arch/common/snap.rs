//! The levels of a codebook as tables for a byte shuffle.
//!
//! A shuffle looks 16 bytes up at once, by indices of 4 bits: just the codes.
//! The code is found as in a binary search, its highest bit first, where the
//! bits that are known look up the threshold to compare with:
//!
//! ```text
//! code = 0
//! for step in 8, 4, 2, 1
//!     code += step if fine > thresholds[code + step - 1]
//! level = levels[code]
//! ```
//!
//! Four shuffles and four comparisons, where counting takes fifteen comparisons.
//! A code of fewer bits has thresholds of 255 above its own, which no byte exceeds.

use crate::ActCodebook;

/// What is added to the code at each comparison.
pub(crate) const STEPS: [u8; 4] = [8, 4, 2, 1];

/// The tables of a search.
pub(crate) struct Tables {
    /// For each of [`STEPS`] the thresholds, by the code so far.
    pub(crate) thresholds: [[u8; 16]; 4],
    /// By code.
    pub(crate) levels: [u8; 16],
}

impl Tables {
    #[inline(always)]
    pub(crate) fn new(book: &ActCodebook) -> Self {
        let mut sorted = [255; 16];
        sorted[..book.thresholds.len()].copy_from_slice(book.thresholds);
        let mut thresholds = [[255; 16]; 4];
        for (table, step) in thresholds.iter_mut().zip(STEPS) {
            let step = usize::from(step);
            for code in (0..16).step_by(2 * step) {
                table[code] = sorted[code + step - 1];
            }
        }
        let mut levels = [0; 16];
        levels[..book.levels.len()].copy_from_slice(book.levels);
        Self { thresholds, levels }
    }
}
