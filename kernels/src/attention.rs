//! What attention takes and gives: one head at a time, on integers.
//!
//! ```text
//! s_ij    = sum over d of (q_id - q_zero) * (k_jd - center) + bias_ij       exact, i32
//! d_ij    = max over j of s_ij, minus s_ij                        >= 0
//! v_ij    = 64 * d_ij + offset_i                                  saturating
//! code_ij = how many thresholds lie below v_ij
//! w_ij    = multipliers[code_ij]
//! P_id    = sum over j of w_ij * (v_jd - center),   R_i = sum over j of w_ij
//! y_id    = ((P_id - (v_zero[d] - center) * R_i) as f32 * f_i) * v_scale[d]
//! ```
//!
//! `center` is 2^(b-1) of the operands' codes; it makes them signed and cancels.
//! The zero point of k would add a term constant in j, which cancels against
//! the maximum, so it is not asked for. No element needs an exponential.

use crate::{ActQuant, BitWidth};

/// One attention head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    /// Keys and values: the rows of the qkv buffer.
    pub tokens: usize,
    /// Columns of q, of k and of v; at most [`MAX_HEAD_DIM`].
    pub head_dim: usize,
    /// The largest code of q, k and v. A larger one gives a wrong sum.
    pub act_max: u8,
}

/// The widest head: `255 * 255 * MAX_HEAD_DIM < 2^31` bounds a score difference.
pub const MAX_HEAD_DIM: usize = 1024;

/// The largest absolute bias of a score: far from overflow together with any score.
pub const MAX_BIAS: i32 = 1 << 28;

/// The most tokens of one attention call.
pub const MAX_TOKENS: usize = 16_384;

/// The largest absolute multiplier of a softmax code.
pub const MAX_MULTIPLIER: i16 = 16_384;

impl HeadShape {
    /// Half of the code range: subtracting it makes a code signed.
    pub const fn center(&self) -> u8 {
        self.act_max.div_ceil(2)
    }

    pub(crate) fn check(&self) {
        assert!(
            self.head_dim <= MAX_HEAD_DIM,
            "head_dim {} exceeds {MAX_HEAD_DIM}",
            self.head_dim
        );
        assert!(
            self.tokens <= MAX_TOKENS,
            "{} tokens exceed {MAX_TOKENS}",
            self.tokens
        );
    }
}

/// What a row's codes are relative to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SoftmaxKind {
    /// The row's maximum: `offset_i = 0`.
    RowMax,
    /// The softmax itself:
    /// `offset_i = round_half_even(64 * log2(Z_i) / alpha)`,
    /// `Z_i = sum over j of exp2(-alpha * d_ij)`.
    Static {
        /// Octaves per unit of score, above 0.
        alpha: f32,
        /// The value of multiplier 1; used where rows are not renormalised.
        scale: f32,
    },
}

/// A quantizer of softmax rows: codes by thresholds, values by integers.
#[derive(Clone, Copy, Debug)]
pub struct SoftmaxCodes<'a> {
    /// Width of a code.
    pub bits: BitWidth,
    /// Code `c` is reached above `thresholds[c - 1]`, in 64ths of a score unit;
    /// ascending; `i32::MAX` is never reached.
    pub thresholds: &'a [i32], // [2^bits - 1]
    /// The value of each code, within `-MAX_MULTIPLIER ..= MAX_MULTIPLIER`.
    pub multipliers: &'a [i16], // [2^bits]
    /// What the codes are relative to.
    pub kind: SoftmaxKind,
    /// `f_i = 1 / R_i`, or 0 where `R_i <= 0`. Otherwise `f_i` is the scale of
    /// [`SoftmaxKind::Static`].
    pub renormalise: bool,
}

impl SoftmaxCodes<'_> {
    pub(crate) fn check(&self, tokens: usize) {
        let levels = usize::from(self.bits.max_code()) + 1;
        assert_eq!(
            self.thresholds.len(),
            levels - 1,
            "one threshold between two codes"
        );
        assert_eq!(self.multipliers.len(), levels, "one multiplier per code");
        assert!(self.thresholds.is_sorted(), "thresholds ascend");
        let largest = self
            .multipliers
            .iter()
            .fold(0, |max, w| u16::max(max, w.unsigned_abs()));
        assert!(
            largest <= MAX_MULTIPLIER.unsigned_abs(),
            "multiplier {largest} exceeds {MAX_MULTIPLIER}"
        );
        let bound = tokens as u64 * u64::from(largest) * 255;
        assert!(
            bound < 1 << 31,
            "tokens * multiplier * 255 = {bound} overflows an i32"
        );
        match self.kind {
            SoftmaxKind::RowMax => assert!(
                self.renormalise,
                "row-maximum codes have no scale but their sum"
            ),
            SoftmaxKind::Static { alpha, scale: _ } => {
                assert!(
                    alpha > 0.0 && alpha.is_finite(),
                    "alpha {alpha} is not a positive number"
                );
            }
        }
    }
}

/// Rows of the qkv buffer, as queries.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// Whole rows of u8 codes.
    pub rows: &'a [u8], // [m, row_stride]
    /// Codes from one row to the next.
    pub row_stride: usize,
    /// Where the head's q begins in a row.
    pub col: usize,
    /// Zero point of q.
    pub zero: u8,
}

impl Queries<'_> {
    /// How many rows there are.
    pub const fn len(&self) -> usize {
        match self.rows.len().checked_div(self.row_stride) {
            Some(rows) => rows,
            None => 0,
        }
    }

    /// Whether there is no row.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn check(&self, head_dim: usize) {
        assert_eq!(
            self.len() * self.row_stride,
            self.rows.len(),
            "queries are whole rows"
        );
        assert!(
            self.col
                .checked_add(head_dim)
                .is_some_and(|end| end <= self.row_stride),
            "q reaches past its row"
        );
    }
}

/// Which rows the tokens of a rectangle of a grid are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lines {
    /// Tokens of a line of the rectangle, one after the other; at least 1.
    pub len: usize,
    /// Rows from one line to the next: the width of the grid.
    pub stride: usize,
}

impl Lines {
    /// One line of any length: token `i` is row `i`.
    pub const ONE: Self = Self {
        len: usize::MAX,
        stride: 0,
    };

    /// The row of a token, counted from the rectangle's first.
    #[inline(always)]
    pub const fn row(&self, token: usize) -> usize {
        if token < self.len {
            token
        } else {
            token / self.len * self.stride + token % self.len
        }
    }
}

/// Cells of a grid of tokens, equal rectangles each of which attends to itself.
///
/// Nothing is copied out of the grid: queries, keys and values are read where they
/// lie, results written where they belong.
#[derive(Clone, Debug)]
pub struct Cells<'a> {
    /// How the tokens of a cell lie in the grid.
    pub lines: Lines,
    /// The first token of each cell, counted in the grid.
    pub first: &'a [u32],
    /// The tokens of the grid that queries and results hold; other rows of a
    /// cell are keys and values alone.
    pub own: core::ops::Range<usize>,
    /// What is added to each score of a cell, or nothing; within
    /// `-MAX_BIAS ..= MAX_BIAS`. Columns beyond the tokens are anything.
    pub bias: &'a [i32], // [tokens, bias_row_len(tokens)]
}

impl Cells<'_> {
    /// Entries of a row of [`bias`](Self::bias).
    pub const fn bias_row_len(tokens: usize) -> usize {
        tokens.next_multiple_of(16)
    }

    /// The row of a cell's last token, counted from its first.
    pub(crate) const fn last_row(&self, tokens: usize) -> usize {
        self.lines.row(tokens.saturating_sub(1))
    }

    pub(crate) fn check(&self, shape: &HeadShape, queries: usize, rows: usize) {
        let tokens = shape.tokens;
        assert!(self.lines.len > 0, "a line has tokens");
        assert!(tokens > 0, "a cell has tokens");
        let last = self.last_row(tokens);
        assert!(
            self.first.iter().all(|&first| first as usize + last < rows),
            "a cell lies outside the grid"
        );
        assert_eq!(self.own.len(), queries, "one query for each own token");
        assert!(self.own.end <= rows, "own tokens lie outside the grid");
        let bias = tokens * Self::bias_row_len(tokens);
        assert!(
            self.bias.is_empty() || self.bias.len() == bias,
            "bias is [tokens, bias_row_len]"
        );
        debug_assert!(
            self.bias
                .iter()
                .all(|b| b.unsigned_abs() <= MAX_BIAS as u32),
            "a bias exceeds MAX_BIAS"
        );
    }

    /// The tokens of cell `cell` that are queries: those whose rows are own.
    #[inline(always)]
    pub(crate) fn own_tokens(&self, cell: usize, tokens: usize) -> core::ops::Range<usize> {
        let first = self.first[cell] as usize;
        // Rows ascend with tokens.
        let below = |row: usize| {
            if row <= first {
                return 0;
            }
            let rows = row - first;
            let (line, rest) = match self.lines.stride {
                0 => (0, rows),
                stride => (rows / stride, rows % stride),
            };
            let whole = line.saturating_mul(self.lines.len);
            usize::min(
                tokens,
                whole.saturating_add(usize::min(rest, self.lines.len)),
            )
        };
        below(self.own.start)..below(self.own.end)
    }
}

/// The keys and values of one head, inside the qkv buffer.
#[derive(Clone, Copy, Debug)]
pub struct KeysValues<'a> {
    /// Whole rows of u8 codes.
    pub rows: &'a [u8], // [tokens, row_stride]
    /// Codes from one row to the next.
    pub row_stride: usize,
    /// Which rows the tokens are; [`Lines::ONE`] for all, in order.
    pub lines: Lines,
    /// Where the head's k begins in a row.
    pub k_col: usize,
    /// Where the head's v begins in a row.
    pub v_col: usize,
}

impl KeysValues<'_> {
    pub(crate) fn check(&self, shape: &HeadShape) {
        if self.lines == Lines::ONE {
            assert_eq!(
                self.rows.len(),
                shape.tokens * self.row_stride,
                "keys and values are one row per token"
            );
        } else {
            assert!(self.lines.len > 0, "a line has tokens");
            let last = self.lines.row(shape.tokens.saturating_sub(1));
            assert!(
                shape.tokens == 0 || (last + 1) * self.row_stride <= self.rows.len(),
                "a token's row lies outside of keys and values"
            );
        }
        self.check_columns(shape.head_dim);
    }

    pub(crate) fn check_columns(&self, head_dim: usize) {
        for col in [self.k_col, self.v_col] {
            assert!(
                col.checked_add(head_dim)
                    .is_some_and(|end| end <= self.row_stride),
                "k or v reaches past its row"
            );
        }
    }
}

/// How the exact sums become the head's output codes, one entry per column.
#[derive(Clone, Copy, Debug)]
pub struct HeadRequant<'a> {
    /// Zero points of v.
    pub v_zero: &'a [u8], // [head_dim]
    /// Scales of v.
    pub v_scale: &'a [f32], // [head_dim]
    /// The quantizer of the output.
    pub quant: ActQuant<'a>, // [head_dim]
}

impl HeadRequant<'_> {
    pub(crate) fn check(&self, head_dim: usize) {
        assert_eq!(
            self.v_zero.len(),
            head_dim,
            "v_zero has one entry per column"
        );
        assert_eq!(
            self.v_scale.len(),
            head_dim,
            "v_scale has one entry per column"
        );
        self.quant.check(head_dim);
    }
}

/// Where the head's output goes: columns `col .. col + head_dim` of each row.
#[derive(Debug)]
pub struct HeadOutput<'a> {
    /// Whole rows of u8 codes, as many as there are queries.
    pub rows: &'a mut [u8], // [m, row_stride]
    /// Codes from one row to the next.
    pub row_stride: usize,
    /// Where the head's columns begin in a row.
    pub col: usize,
}

impl HeadOutput<'_> {
    pub(crate) fn check(&self, m: usize, head_dim: usize) {
        assert_eq!(
            self.rows.len(),
            m * self.row_stride,
            "out has one row per query"
        );
        assert!(
            self.col
                .checked_add(head_dim)
                .is_some_and(|end| end <= self.row_stride),
            "the head's columns reach past the row"
        );
    }
}

/// How the multipliers meet the values; both give the same integers.
#[derive(Clone, Copy, Debug)]
pub enum AttentionMethod<'a> {
    /// Look each code's multiplier up, then take an ordinary dot product.
    Decode,
    /// Shift the values left, add, and correct by the column sums.
    Shift(&'a ShiftForm),
}

/// A codebook whose every entry is a power of two minus one constant.
///
/// ```text
/// multipliers[c] = 2^exponent[c] - h          or  -h, where the exponent is NONE
/// P_id = sum over j of (v_jd << exponent_ij)  -  h * sum over j of v_jd
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShiftForm {
    exponents: [u8; 256],
    levels: usize,
    h: i32,
}

impl ShiftForm {
    /// The exponent of an entry that adds nothing.
    pub const NONE: u8 = 0xff;

    /// The shift form of a codebook, if it has one; tries `h` = 0, 1, and the
    /// constants that make the smallest entry 0 or 1.
    ///
    /// Returns `None` for more than 256 entries.
    pub fn from_multipliers(multipliers: &[i16]) -> Option<Self> {
        let smallest = i32::from(*multipliers.iter().min()?);
        [0, 1, -smallest, 1 - smallest]
            .into_iter()
            .find_map(|h| Self::with_constant(multipliers, h))
    }

    fn with_constant(multipliers: &[i16], h: i32) -> Option<Self> {
        if multipliers.len() > 256 {
            return None;
        }
        let mut exponents = [Self::NONE; 256];
        for (exponent, &multiplier) in exponents.iter_mut().zip(multipliers) {
            let shifted = i32::from(multiplier) + h;
            if shifted > 0 && shifted.count_ones() == 1 {
                *exponent = shifted.trailing_zeros() as u8;
            } else if shifted != 0 {
                return None;
            }
        }
        Some(Self {
            exponents,
            levels: multipliers.len(),
            h,
        })
    }

    /// The exponent of each code, or [`ShiftForm::NONE`].
    pub fn exponents(&self) -> &[u8] {
        &self.exponents[..self.levels]
    }

    /// The constant that was added to make every entry a power of two.
    pub const fn constant(&self) -> i32 {
        self.h
    }

    /// The multipliers this form stands for.
    pub fn multipliers(&self) -> impl Iterator<Item = i32> + '_ {
        self.exponents().iter().map(|&exponent| match exponent {
            Self::NONE => -self.h,
            shift => (1 << shift) - self.h,
        })
    }

    pub(crate) fn check(&self, multipliers: &[i16]) {
        let same = self
            .multipliers()
            .eq(multipliers.iter().map(|&w| i32::from(w)));
        assert!(same, "the shift form is not that of the multipliers");
    }
}

#[cfg(test)]
mod tests {
    use super::ShiftForm;

    #[test]
    fn powers_of_two_and_zero_need_no_constant() {
        let form = ShiftForm::from_multipliers(&[64, 32, 16, 0]).unwrap();
        assert_eq!(form.constant(), 0);
        assert_eq!(form.exponents(), [6, 5, 4, ShiftForm::NONE]);
    }

    #[test]
    fn the_zero_anchored_codebook_is_a_power_of_two_minus_one() {
        let codebook = [127, 63, 31, 15, 7, 3, 1, 0];
        let form = ShiftForm::from_multipliers(&codebook).unwrap();
        assert_eq!(form.constant(), 1);
        assert_eq!(form.exponents(), [7, 6, 5, 4, 3, 2, 1, 0]);
        assert!(form.multipliers().eq(codebook.map(i32::from)));
    }

    #[test]
    fn a_negative_shift_of_every_entry_is_found() {
        let form = ShiftForm::from_multipliers(&[59, 27, -4, -1]).unwrap();
        assert_eq!(form.constant(), 5);
    }

    #[test]
    fn half_octaves_have_no_shift_form() {
        assert_eq!(ShiftForm::from_multipliers(&[128, 91, 64, 45]), None);
        assert_eq!(ShiftForm::from_multipliers(&[]), None);
    }
}
