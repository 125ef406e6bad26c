//! From a row of scores to a row of table entries, without an exponential.
//!
//! A code counts the thresholds below `v = 64 * d + offset`. Up to 4 bits the
//! thresholds of the row are turned into limits on the score itself, once, and
//! each score is compared with all of them:
//!
//! ```text
//! v > threshold  <=>  d > floor((threshold - offset) / 64)  <=>  score < max - floor(...)
//! table[code]  =  table[0]  +  sum over c of (score < limit[c] ? table[c + 1] - table[c] : 0)
//! ```
//!
//! The second line needs no code and no lookup: the comparisons select the steps
//! of the table. It takes 2 or 3 vector operations per threshold.
//!
//! At 6 and 8 bits that would be 63 and 255 comparisons. There, `v` is cut into at
//! most 1024 equal cells, narrow enough that each holds thresholds of one value
//! only; a cell knows the code below and above it, and one comparison decides.
//! Thresholds too close for that are counted by binary search.

use super::float::sum16;
use crate::{
    SoftmaxCodes, SoftmaxKind,
    reference::exp_log::{exp2_nonpositive, log2, round_nonnegative},
};

/// A lookup table of one byte per code.
pub(crate) type Table = [u8; 256];

/// What is added to every `64 * d` of a row: [`crate::reference::softmax_codes::offset`].
#[inline(always)]
pub(crate) fn offset(kind: SoftmaxKind, scores: &[i32], max: i32) -> i32 {
    match kind {
        SoftmaxKind::RowMax => 0,
        SoftmaxKind::Static { alpha, scale: _ } => {
            let z = sum16(scores, |score| {
                exp2_nonpositive(-alpha * (max - score) as f32)
            });
            round_nonnegative(64.0 * log2(z) / alpha)
        }
    }
}

/// The largest score; `i32::MIN` of none.
#[inline(always)]
pub(crate) fn row_max(scores: &[i32]) -> i32 {
    scores
        .iter()
        .fold(i32::MIN, |max, &score| i32::max(max, score))
}

/// `out[j] = table[code of scores[j]]` by comparing with each of `N` thresholds.
///
/// `scores` and `out` are whole blocks of sixteen.
#[inline(always)]
pub(crate) fn lookup_by_steps<const N: usize>(
    thresholds: &[i32; N],
    max: i32,
    offset: i32,
    scores: &[i32],
    table: &Table,
    out: &mut [u8],
) {
    let limits = limits(thresholds, max, offset);
    let mut steps = [0; N];
    for (c, step) in steps.iter_mut().enumerate() {
        *step = i32::from(table[c + 1]) - i32::from(table[c]);
    }
    // The compiler turns this into vectors of scores; blocks of sixteen written out are 3 times slower.
    for (out, &score) in out.iter_mut().zip(scores) {
        let mut entry = i32::from(table[0]);
        for c in 0..N {
            entry += if score < limits[c] { steps[c] } else { 0 };
        }
        *out = entry as u8;
    }
}

/// The scores below which each code is reached.
#[inline(always)]
pub(crate) fn limits<const N: usize>(thresholds: &[i32; N], max: i32, offset: i32) -> [i32; N] {
    thresholds.map(|threshold| {
        let steps = match threshold {
            i32::MAX => i32::MAX,
            reached => ((i64::from(reached) - i64::from(offset)) >> 6) as i32,
        };
        max.saturating_sub(steps)
    })
}

/// How many cells the range of `v` is cut into.
pub(crate) const CELLS: usize = 1024;

/// The range of `v`, cut so that one comparison within a cell decides.
pub(crate) struct Cells {
    /// A cell is `2^shift` wide.
    shift: u32,
    threshold: [i32; CELLS],
    below: [u8; CELLS],
    above: [u8; CELLS],
}

impl Cells {
    /// Cuts the range; `None` if two thresholds that differ are too close.
    pub(crate) fn new(thresholds: &[i32]) -> Option<Self> {
        // What is never reached needs no cell; negative thresholds are always passed.
        let reached = &thresholds[..thresholds.partition_point(|&threshold| threshold < i32::MAX)];
        let always = reached.partition_point(|&threshold| threshold < 0);
        let last = reached.last().copied().unwrap_or(0).max(0);
        // The last cell also takes all that lies beyond, so it begins above every threshold.
        let mut shift = 0;
        while (last >> shift) as usize >= CELLS - 1 {
            shift += 1;
        }
        let mut cells = Self {
            shift,
            threshold: [i32::MAX; CELLS],
            below: [0; CELLS],
            above: [0; CELLS],
        };
        let mut code = always;
        for cell in 0..CELLS {
            cells.below[cell] = code as u8;
            let inside = |&threshold: &i32| (threshold >> shift) as usize == cell;
            let len = reached[code..]
                .iter()
                .take_while(|threshold| inside(threshold))
                .count();
            if let Some(&first) = reached[code..code + len].first() {
                if reached[code + len - 1] != first {
                    return None;
                }
                cells.threshold[cell] = first;
            }
            code += len;
            cells.above[cell] = code as u8;
        }
        Some(cells)
    }

    /// The code of `v >= 0`.
    #[inline(always)]
    fn code(&self, v: i32) -> u8 {
        let cell = usize::min((v >> self.shift) as usize, CELLS - 1);
        if v > self.threshold[cell] {
            self.above[cell]
        } else {
            self.below[cell]
        }
    }
}

/// `v = 64 * (max - score) + offset`, saturating, for `offset >= 0`.
#[inline(always)]
fn scaled(max: i32, score: i32, offset: i32) -> i32 {
    let d = max - score;
    let largest = (i32::MAX - offset) / 64;
    if d > largest {
        i32::MAX
    } else {
        64 * d + offset
    }
}

/// `out[j] = code of scores[j]`, by cells.
#[inline(always)]
pub(crate) fn codes_by_cells(cells: &Cells, max: i32, offset: i32, scores: &[i32], out: &mut [u8]) {
    for (out, &score) in out.iter_mut().zip(scores) {
        *out = cells.code(scaled(max, score, offset));
    }
}

/// `out[j] = code of scores[j]`, by binary search.
pub(crate) fn codes_by_search(
    softmax: &SoftmaxCodes,
    max: i32,
    offset: i32,
    scores: &[i32],
    out: &mut [u8],
) {
    for (out, &score) in out.iter_mut().zip(scores) {
        let v = scaled(max, score, offset);
        *out = softmax
            .thresholds
            .partition_point(|&threshold| threshold < v) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::{Cells, scaled};
    use crate::reference::softmax_codes;

    /// Compares at every threshold, one below and one above.
    fn check(thresholds: &[i32]) {
        let cells = Cells::new(thresholds).unwrap();
        for &threshold in thresholds {
            for v in [
                threshold.saturating_sub(1),
                threshold,
                threshold.saturating_add(1),
                i32::MAX,
                0,
            ] {
                let v = v.max(0);
                let expected = thresholds
                    .iter()
                    .filter(|&&threshold| v > threshold)
                    .count();
                assert_eq!(usize::from(cells.code(v)), expected, "{v}");
            }
        }
    }

    #[test]
    fn cells_count_thresholds() {
        let even: [i32; 255] = core::array::from_fn(|c| c as i32 * 40 + 17);
        check(&even);
        let repeated: [i32; 63] = core::array::from_fn(|c| c as i32 / 3 * 1000);
        check(&repeated);
        check(&[i32::MIN, -5, 0, i32::MAX - 1, i32::MAX, i32::MAX]);
        check(&[i32::MAX; 63]);
        check(&[-1; 63]);
        check(&[0; 63]);
    }

    #[test]
    fn thresholds_too_close_have_no_cells() {
        assert!(Cells::new(&[100, 101, 1_000_000]).is_none());
    }

    #[test]
    fn scaling_saturates_as_the_reference_does() {
        for offset in [0, 1, 1000, i32::MAX - 64, i32::MAX] {
            for d in [0, 1, 2, 33_554_431, 33_554_432, 66_000_000] {
                for threshold in [0, 63, 64, 65, i32::MAX - 1, i32::MAX] {
                    let counted = u8::from(scaled(7, 7 - d, offset) > threshold);
                    assert_eq!(counted, softmax_codes::code(&[threshold], d, offset));
                }
            }
        }
    }
}
