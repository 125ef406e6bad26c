//! Softmax codes by a binary search whose tables stay in vector registers.
//!
//! ```text
//! code = #{ c : d > limit[c] },   d = max - score,   limit[c] = floor((threshold[c] - offset) / 64)
//!
//! level 0               limit[7]              2^b - 1 sorted limits, here b = 4
//! level 1       limit[3]        limit[11]
//! level 2    [1]     [5]      [9]     [13]    each lane looks its node up (a permute),
//! level 3   0   2   4   6   8  10   12  14    compares, and notes one bit of its code
//! ```
//!
//! b levels instead of 2^b - 1 comparisons, whatever the limits are: equal, too
//! close, negative or never reached. The bits are noted lowest first, so a lane's
//! path `p` after k levels is below 2^k and level k is one small table; its nodes
//! lie in the order of `p`:
//!
//! ```text
//! p = bit_0 + 2 * bit_1 + ..       code = 2^(b-1) * bit_0 + 2^(b-2) * bit_1 + ..
//! tree[2^k - 1 + p] = the limit between code_k(p) and the codes above it
//! ```
//!
//! The last level needs no further table: the entries of its two codes lie side by
//! side in one 16-bit word, and the comparison selects one of them.
//!
//! **16 bits are mostly enough.** Lanes hold `d` in 16 bits where every limit that
//! can be reached is below 2^16 - 2; a larger `d` saturates, which is above all of
//! them. The 65535 values of `d` become `d - 32767`, so that 16-bit signed
//! comparisons know "always" (limit -1) and "never":
//!
//! ```text
//! d:           -1       0      1      ..   65533     65534 and more
//! word:     -32768  -32767  -32766    ..   32766     32767
//!           always                                   never, as a limit
//! ```
//!
//! Other rows (8-bit queries whose scores are a small fraction of an octave) are
//! searched in 32 bits.

use crate::{
    BitWidth,
    arch::common::softmax::{Codebook, MAX_PLANES, Row},
};

/// The largest limit that 16 bits can tell from "never".
const LARGEST_NARROW: i32 = 65_533;

/// Limits in tree order, as words; what lies beyond the tree is never used.
pub(super) type Words = [i16; 256];

/// Limits in tree order.
pub(super) type Dwords = [i32; 256];

/// The entries of two neighbouring codes: the lower code's in the low byte.
pub(super) type Pairs = [i16; 128];

/// 32 bytes from `32 - n` on keep the first `n` of a block.
static KEEP: [u8; 64] = {
    let mut keep = [0; 64];
    let mut i = 0;
    while i < 32 {
        keep[i] = 0xff;
        i += 1;
    }
    keep
};

/// The bytes of block `block` of a row that belong to a token: 255, others 0.
#[inline(always)]
pub(super) fn keep(tokens: usize, block: usize) -> &'static [u8; 32] {
    let tokens = usize::min(32, tokens.saturating_sub(32 * block));
    KEEP[32 - tokens..]
        .first_chunk()
        .expect("at most 32 of 64 are skipped")
}

/// The limits of a row.
pub(super) enum Limits<'a> {
    Narrow(&'a Words),
    Wide(&'a Dwords),
}

/// A codebook as a search tree.
pub(super) struct Search<'a> {
    pub(super) book: &'a Codebook<'a>,
    /// Thresholds in tree order. None is below -1, which is always passed as well.
    tree: Dwords,
    /// The largest threshold that can be reached.
    last: i32,
    /// By plane, in the order of paths of `bits - 1` levels.
    pub(super) pairs: [Pairs; MAX_PLANES],
    /// The limits of a row without offset.
    words: Words,
    dwords: Dwords,
}

impl<'a> Search<'a> {
    pub(super) fn new(book: &'a Codebook) -> Self {
        let bits = book.softmax.bits.bits() as usize;
        let thresholds = book.softmax.thresholds;
        let mut tree = [i32::MAX; 256];
        let mut pairs = [[0; 128]; MAX_PLANES];
        for level in 0..bits {
            for path in 0..1_usize << level {
                // The path's bits are the code's, highest first.
                let code = match level {
                    0 => 0,
                    level => {
                        path.reverse_bits() >> (usize::BITS as usize - level) << (bits - level)
                    }
                };
                let above = code + (1 << (bits - 1 - level));
                tree[(1 << level) - 1 + path] = i32::max(-1, thresholds[above - 1]);
                if level == bits - 1 {
                    for (pairs, table) in pairs.iter_mut().zip(&book.tables) {
                        pairs[path] = i16::from_le_bytes([table[code], table[above]]);
                    }
                }
            }
        }
        let reached = thresholds.partition_point(|&threshold| threshold < i32::MAX);
        let last = thresholds[..reached]
            .last()
            .map_or(-1, |&last| last.max(-1));
        let mut search = Self {
            book,
            tree,
            last,
            pairs,
            words: [0; 256],
            dwords: [0; 256],
        };
        search.words = search.words(0);
        search.dwords = search.dwords(0);
        search
    }

    pub(super) const fn bits(&self) -> BitWidth {
        self.book.softmax.bits
    }

    /// Calls `then` with the limits of `row`.
    #[inline(always)]
    pub(super) fn with_limits<T>(&self, row: &Row, then: impl FnOnce(Limits) -> T) -> T {
        let narrow = limit(self.last, row.offset) <= LARGEST_NARROW;
        match (narrow, row.offset) {
            (true, 0) => then(Limits::Narrow(&self.words)),
            (true, offset) => then(Limits::Narrow(&self.words(offset))),
            (false, 0) => then(Limits::Wide(&self.dwords)),
            (false, offset) => then(Limits::Wide(&self.dwords(offset))),
        }
    }

    #[inline(always)]
    fn words(&self, offset: i32) -> Words {
        let mut words = [0; 256];
        match self.bits() {
            BitWidth::B2 | BitWidth::B3 | BitWidth::B4 => self.fill_words::<16>(offset, &mut words),
            BitWidth::B6 => self.fill_words::<64>(offset, &mut words),
            BitWidth::B8 => self.fill_words::<256>(offset, &mut words),
        }
        words
    }

    /// The limits of `N` nodes: a number known beforehand makes this vector code.
    #[inline(always)]
    fn fill_words<const N: usize>(&self, offset: i32, words: &mut Words) {
        for (word, &threshold) in words[..N].iter_mut().zip(&self.tree[..N]) {
            let limit = i32::min(limit(threshold, offset), LARGEST_NARROW + 1);
            let limit = if threshold == i32::MAX {
                LARGEST_NARROW + 1
            } else {
                limit
            };
            *word = (i32::max(limit, -1) - 32_767) as i16;
        }
    }

    #[inline(always)]
    fn dwords(&self, offset: i32) -> Dwords {
        let mut dwords = [0; 256];
        match self.bits() {
            BitWidth::B2 | BitWidth::B3 | BitWidth::B4 => {
                self.fill_dwords::<16>(offset, &mut dwords)
            }
            BitWidth::B6 => self.fill_dwords::<64>(offset, &mut dwords),
            BitWidth::B8 => self.fill_dwords::<256>(offset, &mut dwords),
        }
        dwords
    }

    #[inline(always)]
    fn fill_dwords<const N: usize>(&self, offset: i32, dwords: &mut Dwords) {
        for (dword, &threshold) in dwords[..N].iter_mut().zip(&self.tree[..N]) {
            *dword = if threshold == i32::MAX {
                i32::MAX
            } else {
                limit(threshold, offset)
            };
        }
    }
}

/// The `d` above which a threshold of at least -1 is passed, for `offset >= 0`:
/// no difference is below `i32::MIN`.
#[inline(always)]
const fn limit(threshold: i32, offset: i32) -> i32 {
    (threshold - offset) >> 6
}

#[cfg(test)]
mod tests {
    use super::{Limits, Search};
    use crate::{
        AttentionMethod, BitWidth, SoftmaxCodes, SoftmaxKind,
        arch::common::softmax::{Codebook, Row},
        reference::softmax_codes,
    };

    /// Walks the tree as the vector code does.
    fn code(search: &Search, limits: &Limits, d: i32) -> u8 {
        let bits = search.bits().bits() as usize;
        let (mut path, mut above) = (0, false);
        for level in 0..bits {
            let node = (1 << level) - 1 + path;
            above = match limits {
                Limits::Narrow(words) => {
                    let d = (d - 32_767).clamp(-32_768, 32_767) as i16;
                    d > words[node]
                }
                Limits::Wide(dwords) => d > dwords[node],
            };
            if level < bits - 1 {
                path += usize::from(above) << level;
            }
        }
        search.pairs[0][path].to_le_bytes()[usize::from(above)]
    }

    #[test]
    fn the_tree_counts_as_the_reference_does() {
        for bits in [
            BitWidth::B2,
            BitWidth::B3,
            BitWidth::B4,
            BitWidth::B6,
            BitWidth::B8,
        ] {
            let n = usize::from(bits.max_code());
            // Multipliers that tell codes apart: the entry is the code.
            let multipliers: Vec<i16> = (0..=n as i16).collect();
            for (base, step) in [
                (17, 64),
                (-5000, 64 * 37),
                (0, 0),
                (i32::MIN, 0),
                (64 * 65_533, 0),
                (64 * 65_534, 0),
                (64 * 65_533 - 300, 2),
                (1 << 29, 4_000_000),
            ] {
                let mut thresholds: Vec<i32> = (0..n as i32)
                    .map(|c| base.saturating_add(c * step))
                    .collect();
                thresholds[n - 1] = i32::MAX;
                thresholds[0] = thresholds[n / 2].min(thresholds[0]);
                let softmax = SoftmaxCodes {
                    bits,
                    thresholds: &thresholds,
                    multipliers: &multipliers,
                    kind: SoftmaxKind::RowMax,
                    renormalise: true,
                };
                let book = Codebook::new(&softmax, &AttentionMethod::Decode, 8);
                let search = Search::new(&book);
                for offset in [0, 1, 63, 64, 5000, 1 << 22, i32::MAX] {
                    let row = Row {
                        scores: &[],
                        tokens: 0,
                        max: 0,
                        offset,
                        plane: 0,
                    };
                    search.with_limits(&row, |limits| {
                        let near = thresholds.iter().flat_map(|&threshold| {
                            let at = (i64::from(threshold) - i64::from(offset)) >> 6;
                            [at - 1, at, at + 1]
                        });
                        for d in near.chain([0, 65_534, 65_535, 1 << 27]) {
                            if (0..1 << 28).contains(&d) {
                                let d = d as i32;
                                assert_eq!(
                                    code(&search, &limits, d),
                                    softmax_codes::code(&thresholds, d, offset),
                                    "{bits:?} {base} {step} {offset} {d}"
                                );
                            }
                        }
                    });
                }
            }
        }
    }
}
