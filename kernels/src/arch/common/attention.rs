//! The loop nest of one attention head.
//!
//! ```text
//! for block in m / MR query rows
//!     scores   = q block x key panels              a tile, as in the linear layers
//!     entries  = table[code of score]              softmax.rs; a row's scores stay in L1
//!     sums     = entries x value panels            the same tile
//!     codes    = requantized sums
//! ```
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
//!
//! **Packed head**: key panels, value panels, values row by row for the shift
//! method, then the sums of each key and of each value column (i32).

use super::{
    epilogue::{Quant16, copy, each, sixteen},
    gemm::Tile,
    panels::Layout,
    scratch::{cut, cut_len},
    softmax::{self, Cells, Table},
    widen::{wide_row_len, widen_codes},
};
use crate::{
    AttentionMethod, BitWidth, HeadRequant, HeadShape, KeysValues, ShiftForm, SoftmaxCodes,
    reference::attention::row_factor, table::AttentionCall,
};

/// How an ISA lays a head out and multiplies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadLayout {
    /// Query rows of a block.
    pub(crate) mr: usize,
    /// Keys: one output per token.
    pub(crate) keys: Layout,
    /// Whether keys and queries are widened to 16 bits for the tile.
    pub(crate) wide_keys: bool,
    /// Values: one output per column of the head.
    pub(crate) values: Layout,
    /// Bits of an unsigned operand of the value tile.
    pub(crate) plane_bits: u32,
    /// What the query tile subtracts from each query code.
    pub(crate) q_shift: i32,
}

/// Byte offsets of the parts of a packed head.
struct Parts {
    values: usize,
    rows: usize,
    key_sums: usize,
    column_sums: usize,
    end: usize,
    /// Columns of a value row, whole blocks.
    row_len: usize,
    /// Scores of a row, whole panels.
    score_len: usize,
}

impl HeadLayout {
    /// Bytes of a key code.
    const fn key_bytes(&self) -> usize {
        if self.wide_keys { 2 } else { 1 }
    }

    fn parts(&self, shape: &HeadShape) -> Parts {
        // Panels of s8 as for 8-bit weights.
        let panels = |layout: &Layout, n: usize, k: usize| {
            n.div_ceil(layout.nr) * layout.unpacked_len(k, BitWidth::B8)
        };
        let key_bytes = self.key_bytes();
        let row_len = shape.head_dim.next_multiple_of(16);
        let score_len = shape.tokens.next_multiple_of(self.keys.nr);
        let values = key_bytes * panels(&self.keys, shape.tokens, shape.head_dim);
        let rows = values + panels(&self.values, shape.head_dim, shape.tokens);
        let key_sums = rows + shape.tokens * row_len;
        let column_sums = key_sums + 4 * score_len;
        let end = column_sums + 4 * row_len;
        Parts {
            values,
            rows,
            key_sums,
            column_sums,
            end,
            row_len,
            score_len,
        }
    }

    /// Bytes of a packed head.
    pub(crate) fn packed_len(&self, shape: &HeadShape) -> usize {
        self.parts(shape).end
    }

    /// Bytes of scratch of an attention call.
    pub(crate) fn scratch_len(&self, shape: &HeadShape) -> usize {
        let parts = self.parts(shape);
        let wide = if self.wide_keys {
            self.mr * wide_row_len(shape.head_dim)
        } else {
            0
        };
        cut_len::<i32>(self.mr * parts.score_len)
            + cut_len::<u8>(MAX_PLANES * self.mr * entry_len(shape.tokens))
            + cut_len::<u8>(wide)
            + cut_len::<i32>(parts.row_len)
    }

    /// Packs the keys and values of a head. Inlined, for the layout is a constant there.
    #[inline(always)]
    pub(crate) fn pack(&self, shape: &HeadShape, keys_values: &KeysValues, out: &mut [u8]) {
        let parts = self.parts(shape);
        let HeadShape {
            tokens, head_dim, ..
        } = *shape;
        let center = shape.center();
        out.fill(0);
        let (panels, tail) = out.split_at_mut(parts.rows);
        let (keys, values) = panels.split_at_mut(parts.values);
        let (rows, sums) = tail.split_at_mut(parts.key_sums - parts.rows);
        let (key_sums, column_sums) = sums.split_at_mut(parts.column_sums - parts.key_sums);

        let key_groups = self.keys.groups(head_dim, BitWidth::B8);
        let value_groups = self.values.groups(tokens, BitWidth::B8);
        let key_panel = self.keys.unpacked_len(head_dim, BitWidth::B8);
        let value_panel = self.values.unpacked_len(tokens, BitWidth::B8);
        let (column_sums, _) = column_sums.as_chunks_mut::<4>();
        let key_bytes = self.key_bytes();
        for token in 0..tokens {
            let row = &keys_values.rows[token * keys_values.row_stride..][..keys_values.row_stride];
            let k = &row[keys_values.k_col..][..head_dim];
            let v = &row[keys_values.v_col..][..head_dim];

            let panel = &mut keys[key_bytes * (token / self.keys.nr * key_panel)..];
            let mut sum = 0;
            // A group's codes lie side by side; the next group follows `sub * kr` later.
            let first = self.keys.position(token % self.keys.nr, 0, key_groups);
            let step = self.keys.sub * self.keys.kr;
            for (g, group) in k.chunks(self.keys.kr).enumerate() {
                let at = key_bytes * (first + g * step);
                for (slot, &code) in panel[at..].chunks_exact_mut(key_bytes).zip(group) {
                    let key = i16::from(code) - i16::from(center);
                    sum += i32::from(key);
                    slot.copy_from_slice(&key.to_le_bytes()[..key_bytes]);
                }
            }
            key_sums[4 * token..][..4].copy_from_slice(&sum.to_le_bytes());

            let row = &mut rows[token * parts.row_len..][..head_dim];
            for ((value, &code), sum) in row.iter_mut().zip(v).zip(&mut *column_sums) {
                *value = code.wrapping_sub(center);
                *sum = (i32::from_le_bytes(*sum) + i32::from(*value as i8)).to_le_bytes();
            }
            // The columns of a strip are `kr` apart.
            for (strip, columns) in row.chunks(self.values.sub).enumerate() {
                let d = strip * self.values.sub;
                let panel = &mut values[d / self.values.nr * value_panel..];
                let at = self
                    .values
                    .position(d % self.values.nr, token, value_groups);
                for (slot, &value) in panel[at..].iter_mut().step_by(self.values.kr).zip(columns) {
                    *slot = value;
                }
            }
        }
    }
}

/// Bytes of a row of table entries: whole vectors.
const fn entry_len(tokens: usize) -> usize {
    tokens.next_multiple_of(64)
}

/// Digits of 7 bits that `2 * MAX_MULTIPLIER` may need.
const MAX_PLANES: usize = 3;

/// A codebook as digits.
struct Planes {
    digits: [Table; MAX_PLANES],
    count: usize,
    h: i32,
}

impl Planes {
    fn new(multipliers: &[i16], plane_bits: u32) -> Self {
        let smallest = multipliers
            .iter()
            .fold(0, |min, &w| i32::min(min, i32::from(w)));
        let h = -smallest;
        let mut digits = [[0; 256]; MAX_PLANES];
        let mut largest = 0;
        for (c, &w) in multipliers.iter().enumerate() {
            let shifted = (i32::from(w) + h) as u32;
            largest = u32::max(largest, shifted);
            for (p, digits) in digits.iter_mut().enumerate() {
                digits[c] = (shifted >> (p as u32 * plane_bits) & ((1 << plane_bits) - 1)) as u8;
            }
        }
        let bits = u32::BITS - largest.leading_zeros();
        Self {
            digits,
            count: usize::max(1, bits.div_ceil(plane_bits) as usize),
            h,
        }
    }
}

/// A row of scores: whole blocks of sixteen, its maximum and its offset.
struct Row<'a> {
    scores: &'a [i32],
    max: i32,
    offset: i32,
}

/// How the codes of a call are found.
enum Coder<'a> {
    /// Not at all: comparisons give table entries.
    Steps,
    Cells(&'a Cells),
    Search,
}

impl Coder<'_> {
    /// Finds the codes of a row, where codes are found.
    #[inline(always)]
    fn begin(&self, softmax: &SoftmaxCodes, row: &Row, codes: &mut [u8]) {
        match self {
            Coder::Steps => {}
            Coder::Cells(cells) => {
                softmax::codes_by_cells(cells, row.max, row.offset, row.scores, codes)
            }
            Coder::Search => {
                softmax::codes_by_search(softmax, row.max, row.offset, row.scores, codes)
            }
        }
    }

    /// `out[j] = table[code of scores[j]]`; the codes are `codes`, or `out` itself if `None`.
    #[inline(always)]
    fn finish(
        &self,
        softmax: &SoftmaxCodes,
        row: &Row,
        table: &Table,
        codes: Option<&[u8]>,
        out: &mut [u8],
    ) {
        match self {
            Coder::Steps => {
                let Row {
                    scores,
                    max,
                    offset,
                } = *row;
                let thresholds = softmax.thresholds;
                if let Ok(thresholds) = <&[i32; 3]>::try_from(thresholds) {
                    softmax::lookup_by_steps(thresholds, max, offset, scores, table, out);
                } else if let Ok(thresholds) = <&[i32; 7]>::try_from(thresholds) {
                    softmax::lookup_by_steps(thresholds, max, offset, scores, table, out);
                } else if let Ok(thresholds) = <&[i32; 15]>::try_from(thresholds) {
                    softmax::lookup_by_steps(thresholds, max, offset, scores, table, out);
                }
            }
            Coder::Cells(_) | Coder::Search => {
                if let Some(codes) = codes {
                    out.copy_from_slice(codes);
                }
                for code in out {
                    *code = table[usize::from(*code)];
                }
            }
        }
    }
}

/// The epilogue of sixteen columns of a head.
struct HeadColumns {
    zero: [i32; 16],
    scale: [f32; 16],
    quant: Quant16,
}

impl HeadColumns {
    #[inline(always)]
    fn new(requant: &HeadRequant, center: u8, start: usize) -> Self {
        let zero = each(&sixteen(requant.v_zero, start), |zero| {
            i32::from(zero) - i32::from(center)
        });
        Self {
            zero,
            scale: sixteen(requant.v_scale, start),
            quant: Quant16::new(&requant.quant, start),
        }
    }

    /// Codes of the sums `p` of a row with multiplier sum `r` and factor `f`.
    #[inline(always)]
    fn codes(&self, p: &[i32; 16], r: i32, f: f32) -> [u8; 16] {
        let mut y = [0.0; 16];
        for i in 0..16 {
            let exact = p[i].wrapping_sub(self.zero[i].wrapping_mul(r));
            y[i] = (exact as f32 * f) * self.scale[i];
        }
        self.quant.codes(&y)
    }
}

/// Reads sixteen i32 of `bytes`.
#[inline(always)]
fn words(bytes: &[u8], start: usize) -> [i32; 16] {
    let (words, _) = bytes[4 * start..][..64].as_chunks::<4>();
    let mut out = [0; 16];
    for (out, word) in out.iter_mut().zip(words) {
        *out = i32::from_le_bytes(*word);
    }
    out
}

/// Runs the nest.
///
/// `keys(q, stride, rows, panel, acc)` sums over the columns of the head,
/// `values(entries, stride, rows, panel, acc)` over the tokens.
#[inline(always)]
pub(crate) fn drive<const MR: usize, const NK: usize, const NV: usize>(
    layout: &HeadLayout,
    call: AttentionCall,
    keys: impl Fn(&[u8], usize, usize, &[u8], &mut Tile<MR, NK>),
    values: impl Fn(&[u8], usize, usize, &[u8], &mut Tile<MR, NV>),
) {
    debug_assert_eq!(
        (layout.mr, layout.keys.nr, layout.values.nr),
        (MR, 16 * NK, 16 * NV)
    );
    let AttentionCall {
        shape,
        queries,
        packed,
        softmax,
        method,
        requant,
        scratch,
        out,
    } = call;
    let HeadShape {
        tokens, head_dim, ..
    } = *shape;
    let parts = layout.parts(shape);
    let mut scratch = scratch;
    let scores = cut::<i32>(&mut scratch, MR * parts.score_len);
    let entries = cut::<u8>(&mut scratch, MAX_PLANES * MR * entry_len(tokens));
    let wide_len = if layout.wide_keys {
        MR * wide_row_len(head_dim)
    } else {
        0
    };
    let wide = cut::<u8>(&mut scratch, wide_len);
    let shifted = cut::<i32>(&mut scratch, parts.row_len);

    let cells = match softmax.bits {
        BitWidth::B2 | BitWidth::B3 | BitWidth::B4 => None,
        BitWidth::B6 | BitWidth::B8 => Some(Cells::new(softmax.thresholds)),
    };
    let coder = match &cells {
        None => Coder::Steps,
        Some(Some(cells)) => Coder::Cells(cells),
        Some(None) => Coder::Search,
    };
    let planes = Planes::new(softmax.multipliers, layout.plane_bits);
    let center = shape.center();

    for i in (0..queries.len()).step_by(MR) {
        let rows = usize::min(MR, queries.len() - i);
        let q = &queries.rows[i * queries.row_stride..];
        let (q, q_stride) = if layout.wide_keys {
            widen_codes(q, queries.row_stride, queries.col, head_dim, rows, wide);
            (&*wide, wide_row_len(head_dim))
        } else {
            (&q[queries.col..], queries.row_stride)
        };
        let q_zero = i32::from(queries.zero) - layout.q_shift;
        score_block::<MR, NK>(&parts, packed, q, q_stride, rows, q_zero, scores, &keys);

        match method {
            AttentionMethod::Decode => {
                let mut sums = [0_i32; MR];
                for (r, sum) in sums[..rows].iter_mut().enumerate() {
                    let scores = &scores[r * parts.score_len..][..parts.score_len];
                    let scores = &scores[..tokens.next_multiple_of(16)];
                    let max = softmax::row_max(&scores[..tokens]);
                    let offset = softmax::offset(softmax.kind, &scores[..tokens], max);
                    let len = scores.len();
                    let plane = MR * entry_len(tokens);
                    let (first, others) = entries[r * entry_len(tokens)..].split_at_mut(len);
                    let row = Row {
                        scores,
                        max,
                        offset,
                    };
                    coder.begin(softmax, &row, first);
                    for p in (0..planes.count).rev() {
                        let digits = &planes.digits[p];
                        if p > 0 {
                            coder.finish(
                                softmax,
                                &row,
                                digits,
                                Some(first),
                                &mut others[p * plane - len..][..len],
                            );
                        } else {
                            coder.finish(softmax, &row, digits, None, first);
                        }
                        let done = if p > 0 {
                            &others[p * plane - len..][..tokens]
                        } else {
                            &first[..tokens]
                        };
                        let digit_sum: u32 = done.iter().map(|&digit| u32::from(digit)).sum();
                        *sum =
                            sum.wrapping_add((digit_sum << (p as u32 * layout.plane_bits)) as i32);
                    }
                    *sum = sum.wrapping_sub(planes.h.wrapping_mul(tokens as i32));
                }
                for panel in 0..head_dim.div_ceil(16 * NV) {
                    let mut total = [[[0; 16]; NV]; MR];
                    let mut acc = [[[0; 16]; NV]; MR];
                    let len = layout.values.unpacked_len(tokens, BitWidth::B8);
                    let bytes = &packed[parts.values + panel * len..][..len];
                    for p in 0..planes.count {
                        let entries =
                            &entries[p * MR * entry_len(tokens)..][..MR * entry_len(tokens)];
                        let out = if p == 0 { &mut total } else { &mut acc };
                        values(entries, entry_len(tokens), rows, bytes, out);
                        if p > 0 {
                            add_shifted(&mut total, &acc, p as u32 * layout.plane_bits);
                        }
                    }
                    for v in 0..NV {
                        let start = (panel * NV + v) * 16;
                        if start >= head_dim {
                            break;
                        }
                        let columns = HeadColumns::new(requant, center, start);
                        let sums_of_values = words(&packed[parts.column_sums..], start);
                        let owed = each(&sums_of_values, |sum| sum.wrapping_mul(planes.h));
                        let len = usize::min(16, head_dim - start);
                        for (r, row) in total[..rows].iter().enumerate() {
                            let mut exact = row[v];
                            for (exact, owed) in exact.iter_mut().zip(owed) {
                                *exact = exact.wrapping_sub(owed);
                            }
                            let f = row_factor(softmax, sums[r]);
                            let at = (i + r) * out.row_stride + out.col + start;
                            copy(
                                &mut out.rows[at..at + len],
                                &columns.codes(&exact, sums[r], f),
                            );
                        }
                    }
                }
            }
            AttentionMethod::Shift(form) => {
                let mut exponents = [ShiftForm::NONE; 256];
                exponents[..form.exponents().len()].copy_from_slice(form.exponents());
                for r in 0..rows {
                    let scores = &scores[r * parts.score_len..][..parts.score_len];
                    let scores = &scores[..tokens.next_multiple_of(16)];
                    let max = softmax::row_max(&scores[..tokens]);
                    let offset = softmax::offset(softmax.kind, &scores[..tokens], max);
                    let row = &mut entries[..scores.len()];
                    let coded = Row {
                        scores,
                        max,
                        offset,
                    };
                    coder.begin(softmax, &coded, row);
                    coder.finish(softmax, &coded, &exponents, None, row);
                    let sum = shift_row(
                        &row[..tokens],
                        &packed[parts.rows..parts.key_sums],
                        parts.row_len,
                        shifted,
                    );
                    let sum = sum.wrapping_sub(form.constant().wrapping_mul(tokens as i32));
                    let f = row_factor(softmax, sum);
                    for start in (0..head_dim).step_by(16) {
                        let columns = HeadColumns::new(requant, center, start);
                        let column_sums = words(&packed[parts.column_sums..], start);
                        let mut exact = sixteen(shifted, start);
                        for (exact, column_sum) in exact.iter_mut().zip(column_sums) {
                            *exact = exact.wrapping_sub(form.constant().wrapping_mul(column_sum));
                        }
                        let at = (i + r) * out.row_stride + out.col + start;
                        let len = usize::min(16, head_dim - start);
                        copy(&mut out.rows[at..at + len], &columns.codes(&exact, sum, f));
                    }
                }
            }
        }
    }
}

/// Scores of a block: `scores[r, j] = sum of q * key_j - q_zero * sum of key_j`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a step of one loop nest")]
fn score_block<const MR: usize, const NK: usize>(
    parts: &Parts,
    packed: &[u8],
    q: &[u8],
    q_stride: usize,
    rows: usize,
    q_zero: i32,
    scores: &mut [i32],
    keys: &impl Fn(&[u8], usize, usize, &[u8], &mut Tile<MR, NK>),
) {
    let panels = parts.score_len / (16 * NK);
    let mut acc = [[[0; 16]; NK]; MR];
    for panel in 0..panels {
        let len = parts.values / panels;
        keys(q, q_stride, rows, &packed[panel * len..][..len], &mut acc);
        for v in 0..NK {
            let start = (panel * NK + v) * 16;
            let sums = words(&packed[parts.key_sums..], start);
            for (r, row) in acc[..rows].iter().enumerate() {
                let mut block = row[v];
                for (score, sum) in block.iter_mut().zip(sums) {
                    *score = score.wrapping_sub(q_zero.wrapping_mul(sum));
                }
                copy(&mut scores[r * parts.score_len + start..][..16], &block);
            }
        }
    }
}

#[inline(always)]
fn add_shifted<const MR: usize, const NV: usize>(
    total: &mut Tile<MR, NV>,
    acc: &Tile<MR, NV>,
    shift: u32,
) {
    for (total, acc) in total.as_flattened_mut().iter_mut().zip(acc.as_flattened()) {
        for (total, acc) in total.iter_mut().zip(acc) {
            *total = total.wrapping_add(acc << shift);
        }
    }
}

/// `out[d] = sum over j of (values[j, d] << exponents[j])`, skipping NONE.
/// Returns the sum of `1 << exponents[j]`.
///
/// A row of values is sign-extended to 32 bits and shifted by one count in all
/// lanes: `vpmovsxbd, vpslld, vpaddd` on x86, `SSHLL, SSHL, ADD` on NEON. Four
/// blocks of sixteen columns at once keep the sums in registers.
#[inline(always)]
fn shift_row(exponents: &[u8], values: &[u8], row_len: usize, out: &mut [i32]) -> i32 {
    let mut column = 0;
    while row_len - column >= 64 {
        shift_columns::<4>(exponents, values, row_len, column, out);
        column += 64;
    }
    while column < row_len {
        shift_columns::<1>(exponents, values, row_len, column, out);
        column += 16;
    }
    exponents
        .iter()
        .fold(0, |sum: i32, &exponent| match exponent {
            ShiftForm::NONE => sum,
            exponent => sum.wrapping_add(1 << exponent),
        })
}

#[inline(always)]
fn shift_columns<const BLOCKS: usize>(
    exponents: &[u8],
    values: &[u8],
    row_len: usize,
    column: usize,
    out: &mut [i32],
) {
    let mut acc = [[0_i32; 16]; BLOCKS];
    for (&exponent, row) in exponents.iter().zip(values.chunks_exact(row_len)) {
        if exponent == ShiftForm::NONE {
            continue;
        }
        let (blocks, _) = row[column..][..16 * BLOCKS].as_chunks::<16>();
        for (acc, block) in acc.iter_mut().zip(blocks) {
            for (acc, &value) in acc.iter_mut().zip(block) {
                *acc = acc.wrapping_add(i32::from(value as i8) << (exponent & 31));
            }
        }
    }
    out[column..][..16 * BLOCKS].copy_from_slice(acc.as_flattened());
}
