//! From a row of scores to a row of table entries, without an exponential.
//!
//! A code counts the thresholds below `v = 64 * d + offset`. The thresholds become
//! limits on the integer `d = max - score` itself:
//!
//! ```text
//! v > threshold  <=>  d > floor((threshold - offset) / 64)
//! ```
//!
//! [`Coder`] finds codes in safe Rust. Up to 4 bits each score is compared with
//! all limits:
//!
//! ```text
//! table[code]  =  table[0]  +  sum over c of (d > limit[c] ? table[c + 1] - table[c] : 0)
//! ```
//!
//! That needs no code and no lookup: the comparisons select the steps of the
//! table, modulo 256. It takes 2 or 3 vector operations per threshold, in 16-bit
//! lanes where the limits fit. At 6 and 8 bits that
//! would be 63 and 255 comparisons. There, `v` is cut into at most 1024 equal cells,
//! narrow enough that each holds thresholds of one value only; a cell knows the
//! code below and above it, and one comparison decides. Thresholds too close for
//! that are counted by binary search. An ISA that can look tables up in registers
//! has its own way.
//!
//! **Planes.** A tile multiplies unsigned bytes by signed bytes. Multipliers in
//! `0 ..= 2^plane_bits - 1` are such bytes. Any others are made non-negative by a
//! constant and cut into digits of `plane_bits` bits, each a product of its own:
//!
//! ```text
//! w + h = sum over p of digit_p << (p * plane_bits)
//! sum of w * v = sum over p of (sum of digit_p * v) << (p * plane_bits)  -  h * sum of v
//! ```
//!
//! Sums wrap modulo 2^32 on the way; the result fits an i32 and is exact.

use crate::{
    AttentionMethod, BitWidth, SoftmaxCodes, SoftmaxKind,
    reference::exp_log::{exp2_nonpositive, log2, round_nonnegative},
};

/// A lookup table of one byte per code.
pub(crate) type Table = [u8; 256];

/// Rows of scores and of entries are whole blocks of this many.
pub(crate) const BLOCK: usize = 32;

/// Digits of 7 bits that `2 * MAX_MULTIPLIER` may need.
pub(crate) const MAX_PLANES: usize = 3;

/// What the codes of a call stand for, in bytes.
pub(crate) struct Codebook<'a> {
    pub(crate) softmax: &'a SoftmaxCodes<'a>,
    /// The digits of each code's multiplier, or its exponent.
    pub(crate) tables: [Table; MAX_PLANES],
    /// How many tables there are.
    pub(crate) planes: usize,
    /// Bits of a digit.
    pub(crate) plane_bits: u32,
    /// What was added to each multiplier.
    pub(crate) h: i32,
}

impl<'a> Codebook<'a> {
    pub(crate) fn new(
        softmax: &'a SoftmaxCodes<'a>,
        method: &AttentionMethod,
        plane_bits: u32,
    ) -> Self {
        let mut tables = [[0; 256]; MAX_PLANES];
        match method {
            AttentionMethod::Decode => {
                let smallest = softmax
                    .multipliers
                    .iter()
                    .fold(0, |min, &w| i16::min(min, w));
                let h = -i32::from(smallest);
                let mut largest = 0;
                for (c, &w) in softmax.multipliers.iter().enumerate() {
                    let shifted = (i32::from(w) + h) as u32;
                    largest = u32::max(largest, shifted);
                    for (p, digits) in tables.iter_mut().enumerate() {
                        let digit = shifted >> (p as u32 * plane_bits);
                        digits[c] = (digit & ((1 << plane_bits) - 1)) as u8;
                    }
                }
                let bits = u32::BITS - largest.leading_zeros();
                Self {
                    softmax,
                    tables,
                    planes: usize::max(1, bits.div_ceil(plane_bits) as usize),
                    plane_bits,
                    h,
                }
            }
            AttentionMethod::Shift(form) => {
                let exponents = form.exponents();
                tables[0][..exponents.len()].copy_from_slice(exponents);
                Self {
                    softmax,
                    tables,
                    planes: 1,
                    plane_bits,
                    h: form.constant(),
                }
            }
        }
    }

    /// The sum of multipliers whose digits of plane `p` add up to `digit_sum(p)`.
    #[inline(always)]
    pub(crate) fn multiplier_sum(&self, tokens: usize, digit_sum: impl Fn(usize) -> u32) -> i32 {
        let mut sum = 0_u32;
        for p in 0..self.planes {
            sum = sum.wrapping_add(digit_sum(p) << (p as u32 * self.plane_bits));
        }
        (sum as i32).wrapping_sub(self.h.wrapping_mul(tokens as i32))
    }
}

/// A row of scores: its maximum, its offset, and where its entries go.
pub(crate) struct Row<'a> {
    /// Whole blocks; what lies beyond the tokens is anything.
    pub(crate) scores: &'a [i32],
    pub(crate) tokens: usize,
    pub(crate) max: i32,
    pub(crate) offset: i32,
    /// Bytes from the entries of one plane to those of the next.
    pub(crate) plane: usize,
}

/// Sixteen lanes to one: 8, 4, 2, 1 apart. Each line is one vector operation.
#[inline(always)]
fn tree16(lanes: &[f32; 16]) -> f32 {
    let [a, b, c, d, e, f, g, h, ..] = *lanes;
    let [.., i, j, k, l, m, n, o, p] = *lanes;
    let [a, b, c, d, e, f, g, h] = [a + i, b + j, c + k, d + l, e + m, f + n, g + o, h + p];
    let [a, b, c, d] = [a + e, b + f, c + g, d + h];
    let [a, b] = [a + c, b + d];
    a + b
}

/// What is added to every `64 * d` of each row:
/// [`crate::reference::softmax_codes::offset`]. A row has `tokens` scores in whole
/// blocks, `stride` after those of the row before; `largest` is its maximum.
/// Only the first `rows` exist.
///
/// One row's logarithm and divisions would wait for each other; those of a block
/// of rows are done side by side.
#[inline(always)]
pub(crate) fn offsets<const MR: usize>(
    kind: SoftmaxKind,
    scores: &[i32],
    stride: usize,
    tokens: usize,
    rows: usize,
    largest: &[i32; MR],
) -> [i32; MR] {
    let mut offsets = [0; MR];
    if tokens == 0 {
        return offsets; // no maximum, so no denominator of at least 1
    }
    match kind {
        SoftmaxKind::RowMax => {}
        SoftmaxKind::Static { alpha, scale: _ } => {
            let mut z = [1.0; MR];
            for (r, (z, &max)) in z[..rows].iter_mut().zip(largest).enumerate() {
                let scores = &scores[r * stride..][..stride];
                *z = denominator(scores, tokens, alpha, max);
            }
            for (offset, z) in offsets.iter_mut().zip(z) {
                *offset = round_nonnegative(64.0 * log2(z) / alpha);
            }
        }
    }
    offsets
}

/// The sum of `exp2(-alpha * d)` over a row: [`crate::reference::sum16`].
#[inline(always)]
fn denominator(scores: &[i32], tokens: usize, alpha: f32, max: i32) -> f32 {
    let (blocks, _) = scores.as_chunks::<16>();
    let (whole, rest) = blocks.split_at(tokens / 16);
    let term = |score: i32| exp2_nonpositive(-alpha * max.wrapping_sub(score) as f32);
    let mut lanes = [0.0_f32; 16];
    for block in whole {
        for i in 0..16 {
            lanes[i] += term(block[i]);
        }
    }
    if let Some(block) = rest.first() {
        let len = (tokens % 16) as i32;
        for i in 0..16 {
            // No lane is -0, so that 0 leaves it as it is.
            lanes[i] += if (i as i32) < len {
                term(block[i])
            } else {
                0.0
            };
        }
    }
    tree16(&lanes)
}

/// Finds codes in safe Rust; see the module.
pub(crate) struct Coder<'a> {
    book: &'a Codebook<'a>,
    method: Method,
}

/// How codes are found.
#[expect(
    clippy::large_enum_variant,
    reason = "one for a call, on the stack: nothing is allocated"
)]
enum Method {
    /// Not at all: comparisons give table entries.
    Steps,
    Cells(Cells),
    Search,
}

impl<'a> Coder<'a> {
    pub(crate) fn new(book: &'a Codebook) -> Self {
        let method = match book.softmax.bits {
            BitWidth::B2 | BitWidth::B3 | BitWidth::B4 => Method::Steps,
            BitWidth::B6 | BitWidth::B8 => {
                Cells::new(book.softmax.thresholds).map_or(Method::Search, Method::Cells)
            }
        };
        Self { book, method }
    }

    /// The entries of a row, in each plane: `out[p * row.plane + j] = tables[p][code of
    /// scores[j]]`, and 0 from `row.tokens` to the end of the block. Returns the sum of
    /// the multipliers.
    #[inline(always)]
    pub(crate) fn encode(&self, row: &Row, out: &mut [u8]) -> i32 {
        let len = row.scores.len();
        let planes = self.book.planes;
        match &self.method {
            Method::Steps => {}
            Method::Cells(cells) => codes_by_cells(cells, row, out),
            Method::Search => codes_by_search(self.book.softmax, row, out),
        }
        // The first plane's place holds the codes until its own turn, the last.
        for p in (0..planes).rev() {
            let table = &self.book.tables[p];
            match &self.method {
                Method::Steps => self.steps(row, table, &mut out[p * row.plane..][..len]),
                Method::Cells(_) | Method::Search => {
                    if p > 0 {
                        out.copy_within(..len, p * row.plane);
                    }
                    for code in &mut out[p * row.plane..][..row.tokens] {
                        *code = table[usize::from(*code)];
                    }
                }
            }
            out[p * row.plane..][row.tokens..len].fill(0);
        }
        self.book.multiplier_sum(row.tokens, |p| {
            out[p * row.plane..][..row.tokens]
                .iter()
                .map(|&digit| u32::from(digit))
                .sum()
        })
    }

    #[inline(always)]
    fn steps(&self, row: &Row, table: &Table, out: &mut [u8]) {
        let thresholds = self.book.softmax.thresholds;
        if let Ok(thresholds) = <&[i32; 3]>::try_from(thresholds) {
            lookup_by_steps(thresholds, row, table, out);
        } else if let Ok(thresholds) = <&[i32; 7]>::try_from(thresholds) {
            lookup_by_steps(thresholds, row, table, out);
        } else if let Ok(thresholds) = <&[i32; 15]>::try_from(thresholds) {
            lookup_by_steps(thresholds, row, table, out);
        }
    }
}

/// `out[j] = table[code of scores[j]]` by comparing with each of `N` thresholds.
#[inline(always)]
fn lookup_by_steps<const N: usize>(
    thresholds: &[i32; N],
    row: &Row,
    table: &Table,
    out: &mut [u8],
) {
    let mut steps = [0; N];
    for (c, step) in steps.iter_mut().enumerate() {
        *step = table[c + 1].wrapping_sub(table[c]);
    }
    if narrow_lookup(thresholds, row, table[0], &steps, out) {
        return;
    }
    let limits = limits(thresholds, row.max, row.offset);
    // The compiler turns this into vectors of scores; blocks of sixteen written out are 3 times slower.
    for (out, &score) in out.iter_mut().zip(row.scores) {
        let mut entry = i32::from(table[0]);
        for c in 0..N {
            entry += if score < limits[c] {
                i32::from(steps[c])
            } else {
                0
            };
        }
        *out = entry as u8;
    }
}

/// The same in 16-bit lanes, twice as many to a register, with
/// `d = min(max - score, 2^16 - 1)`; false, and nothing done, where a limit on d
/// does not fit.
#[inline(always)]
fn narrow_lookup<const N: usize>(
    thresholds: &[i32; N],
    row: &Row,
    first: u8,
    steps: &[u8; N],
    out: &mut [u8],
) -> bool {
    let mut first = u16::from(first);
    let mut limits = [u16::MAX; N];
    for (c, (narrow, &threshold)) in limits.iter_mut().zip(thresholds).enumerate() {
        match limit(threshold, row.offset) {
            // No d exceeds the limit it has.
            None => {}
            // Below every d: part of the first entry.
            Some(..0) => first = first.wrapping_add(u16::from(steps[c])),
            Some(fits @ 0..0xffff) => *narrow = fits as u16,
            Some(0xffff..) => return false,
        }
    }
    for (out, &score) in out.iter_mut().zip(row.scores) {
        let d = u32::min(row.max.wrapping_sub(score) as u32, 0xffff) as u16;
        let mut entry = first;
        for c in 0..N {
            let step = u16::from(steps[c]);
            entry = entry.wrapping_add(if d > limits[c] { step } else { 0 });
        }
        *out = entry as u8;
    }
    true
}

/// The difference that a row's scores must exceed to pass `threshold`; `None` if
/// none does.
#[inline(always)]
fn limit(threshold: i32, offset: i32) -> Option<i64> {
    (threshold < i32::MAX).then(|| (i64::from(threshold) - i64::from(offset)) >> 6)
}

/// The scores below which each code is reached.
#[inline(always)]
fn limits<const N: usize>(thresholds: &[i32; N], max: i32, offset: i32) -> [i32; N] {
    thresholds.map(|threshold| {
        let steps = limit(threshold, offset).map_or(i32::MAX, |steps| steps as i32);
        max.saturating_sub(steps)
    })
}

/// How many cells the range of `v` is cut into.
const CELLS: usize = 1024;

/// The range of `v`, cut so that one comparison within a cell decides.
struct Cells {
    /// A cell is `2^shift` wide.
    shift: u32,
    cells: [Cell; CELLS],
}

/// A piece of the range. Its three facts are one load.
#[derive(Clone, Copy)]
struct Cell {
    threshold: i32,
    /// The code up to the threshold, and beyond.
    codes: [u8; 2],
}

impl Cells {
    /// Cuts the range; `None` if two thresholds that differ are too close.
    fn new(thresholds: &[i32]) -> Option<Self> {
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
            cells: [Cell {
                threshold: i32::MAX,
                codes: [0; 2],
            }; CELLS],
        };
        let mut code = always;
        for (cell, record) in cells.cells.iter_mut().enumerate() {
            record.codes[0] = code as u8;
            let inside = |&threshold: &i32| (threshold >> shift) as usize == cell;
            let len = reached[code..]
                .iter()
                .take_while(|threshold| inside(threshold))
                .count();
            if let Some(&first) = reached[code..code + len].first() {
                if reached[code + len - 1] != first {
                    return None;
                }
                record.threshold = first;
            }
            code += len;
            record.codes[1] = code as u8;
        }
        Some(cells)
    }

    /// The codes of a block of `v >= 0`. First vectors of indices, then lookups.
    #[inline(always)]
    fn codes(&self, v: &[i32; BLOCK]) -> [u8; BLOCK] {
        let mut indices = [0; BLOCK];
        for (index, &v) in indices.iter_mut().zip(v) {
            *index = i32::min(v >> self.shift, CELLS as i32 - 1);
        }
        let mut codes = [0; BLOCK];
        for ((code, &v), &index) in codes.iter_mut().zip(v).zip(&indices) {
            let cell = &self.cells[index as usize % CELLS];
            *code = cell.codes[usize::from(v > cell.threshold)];
        }
        codes
    }
}

/// `v = 64 * (max - score) + offset`, saturating, for `offset >= 0`.
#[inline(always)]
fn scaled(max: i32, score: i32, offset: i32) -> i32 {
    let d = max.wrapping_sub(score);
    let largest = (i32::MAX - offset) / 64;
    if d > largest {
        i32::MAX
    } else {
        // What lies beyond the tokens may be above the maximum: anything will do.
        d.wrapping_mul(64).wrapping_add(offset)
    }
}

/// `out[j] = code of scores[j]`, by cells. What lies beyond the tokens has the code
/// of the maximum.
#[inline(always)]
fn codes_by_cells(cells: &Cells, row: &Row, out: &mut [u8]) {
    let (blocks, _) = row.scores.as_chunks::<BLOCK>();
    let (out, _) = out.as_chunks_mut::<BLOCK>();
    for (b, (block, out)) in blocks.iter().zip(out).enumerate() {
        let mut v = [0; BLOCK];
        for (v, &score) in v.iter_mut().zip(block) {
            *v = scaled(row.max, score, row.offset);
        }
        for unused in &mut v[usize::min(BLOCK, row.tokens - BLOCK * b)..] {
            *unused = 0;
        }
        *out = cells.codes(&v);
    }
}

/// `out[j] = code of scores[j]`, by binary search.
fn codes_by_search(softmax: &SoftmaxCodes, row: &Row, out: &mut [u8]) {
    for (out, &score) in out.iter_mut().zip(&row.scores[..row.tokens]) {
        let v = scaled(row.max, score, row.offset);
        *out = softmax
            .thresholds
            .partition_point(|&threshold| threshold < v) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, Cells, scaled};
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
                assert_eq!(usize::from(cells.codes(&[v; BLOCK])[0]), expected, "{v}");
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
