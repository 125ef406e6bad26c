//! The loop nest of one attention head.
//!
//! ```text
//! for block in m / MR query rows
//!     scores   = q block x key panels              a tile, which keeps the rows' maxima
//!     entries  = table[code of score]              softmax.rs; a row's scores stay in L1
//!     sums     = entries x value panels            a tile, as in the linear layers
//!     codes    = requantized sums
//! ```
//!
//! **Scores start where the zero point leaves them.** `q_zero` is one number for
//! a whole call, so its term `-q_zero * sum of key_j` is computed once and the sums
//! of a tile begin with it. Keys that only fill a panel begin far below every
//! score, so a row's maximum needs no mask.
//!
//! **Packed head**: key panels, value panels, values row by row for the shift
//! method, then the sums of each key and of each value column (i32).

use super::{
    epilogue::{Quant, put_u8, sixteen},
    gemm::Tile,
    lanes::Lanes,
    panels::Layout,
    scratch::{cut, cut_len},
    softmax::{BLOCK, Codebook, MAX_PLANES, Row, offsets},
    widen::{wide_row_len, widen_codes},
};
use core::ops::Range;

use crate::{
    AttentionMethod, BitWidth, HeadRequant, HeadShape, KeysValues, Lines, Queries, ShiftForm,
    reference::attention::row_factor,
    table::{AttentionCall, Source},
};

/// How an ISA lays a head out and multiplies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadLayout {
    /// Query rows of a block.
    pub(crate) mr: usize,
    /// Keys: one output per token, panels of 16.
    pub(crate) keys: Layout,
    /// The most key panels of one tile.
    pub(crate) key_panels: usize,
    /// Whether keys and queries are widened to 16 bits for the tile.
    pub(crate) wide_keys: bool,
    /// Values: one output per column of the head, panels of 16.
    pub(crate) values: Layout,
    /// What the query tile subtracts from each query code.
    pub(crate) q_shift: i32,
}

/// Byte offsets of the parts of a packed head.
pub(crate) struct Parts {
    pub(crate) values: usize,
    pub(crate) rows: usize,
    pub(crate) key_sums: usize,
    pub(crate) column_sums: usize,
    end: usize,
    /// Columns of a value row, whole blocks.
    pub(crate) row_len: usize,
    /// Keys, whole panels.
    key_len: usize,
    /// Bytes of a key panel.
    pub(crate) key_panel: usize,
    /// Bytes of a value panel.
    pub(crate) value_panel: usize,
}

/// The parts of a packed head, to be written.
pub(crate) struct PartsMut<'a> {
    pub(crate) keys: &'a mut [u8],
    pub(crate) values: &'a mut [u8],
    /// `[tokens, row_len]`, s8.
    pub(crate) rows: &'a mut [u8],
    /// One i32 for each key.
    pub(crate) key_sums: &'a mut [u8],
    /// One i32 for each column.
    pub(crate) column_sums: &'a mut [u8],
}

impl HeadLayout {
    /// Bytes of a key code.
    const fn key_bytes(&self) -> usize {
        if self.wide_keys { 2 } else { 1 }
    }

    pub(crate) fn parts(&self, shape: &HeadShape) -> Parts {
        debug_assert_eq!((self.keys.nr, self.values.nr), (16, 16));
        // Panels of s8 as for 8-bit weights.
        let key_panel = self.key_bytes() * self.keys.unpacked_len(shape.head_dim, BitWidth::B8);
        let value_panel = self.values.unpacked_len(shape.tokens, BitWidth::B8);
        let row_len = shape.head_dim.next_multiple_of(16);
        let key_len = shape.tokens.next_multiple_of(16);
        let values = key_len / 16 * key_panel;
        let rows = values + row_len / 16 * value_panel;
        let key_sums = rows + shape.tokens * row_len;
        let column_sums = key_sums + 4 * key_len;
        let end = column_sums + 4 * row_len;
        Parts {
            values,
            rows,
            key_sums,
            column_sums,
            end,
            row_len,
            key_len,
            key_panel,
            value_panel,
        }
    }

    /// Bytes of a packed head.
    pub(crate) fn packed_len(&self, shape: &HeadShape) -> usize {
        self.parts(shape).end
    }

    /// Bytes of scratch of an attention call.
    pub(crate) fn scratch_len(&self, shape: &HeadShape) -> usize {
        let parts = self.parts(shape);
        let row = row_len(shape.tokens);
        let wide = if self.wide_keys {
            self.mr * wide_row_len(shape.head_dim)
        } else {
            0
        };
        cut_len::<i32>(self.mr * row)
            + cut_len::<u8>(MAX_PLANES * self.mr * row)
            + cut_len::<u8>(self.mr * shape.head_dim)
            + cut_len::<u8>(wide)
            + cut_len::<i32>(parts.row_len)
            + cut_len::<i32>(parts.key_len)
    }

    /// Cuts a packed head into its parts.
    pub(crate) fn parts_mut<'a>(&self, shape: &HeadShape, packed: &'a mut [u8]) -> PartsMut<'a> {
        let parts = self.parts(shape);
        let (panels, tail) = packed.split_at_mut(parts.rows);
        let (keys, values) = panels.split_at_mut(parts.values);
        let (rows, sums) = tail.split_at_mut(parts.key_sums - parts.rows);
        let (key_sums, column_sums) = sums.split_at_mut(parts.column_sums - parts.key_sums);
        PartsMut {
            keys,
            values,
            rows,
            key_sums,
            column_sums,
        }
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
        let PartsMut {
            keys,
            values,
            rows,
            key_sums,
            column_sums,
        } = self.parts_mut(shape, out);

        let key_groups = self.keys.groups(head_dim, BitWidth::B8);
        let value_groups = self.values.groups(tokens, BitWidth::B8);
        let (column_sums, _) = column_sums.as_chunks_mut::<4>();
        let key_bytes = self.key_bytes();
        for token in 0..tokens {
            let row = keys_values.lines.row(token) * keys_values.row_stride;
            let row = &keys_values.rows[row..][..keys_values.row_stride];
            let k = &row[keys_values.k_col..][..head_dim];
            let v = &row[keys_values.v_col..][..head_dim];

            let panel = &mut keys[token / 16 * parts.key_panel..];
            let mut sum = 0;
            // A group's codes lie side by side; the next group follows `sub * kr` later.
            let first = self.keys.position(token % 16, 0, key_groups);
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
                let panel = &mut values[d / 16 * parts.value_panel..];
                let at = self.values.position(d % 16, token, value_groups);
                for (slot, &value) in panel[at..].iter_mut().step_by(self.values.kr).zip(columns) {
                    *slot = value;
                }
            }
        }
    }
}

/// Length of a row of scores, and of table entries: whole blocks of the softmax.
const fn row_len(tokens: usize) -> usize {
    tokens.next_multiple_of(BLOCK)
}

/// What the score of a key that only fills a panel begins with: far below every
/// score (they are within `255 * 255 * MAX_HEAD_DIM < 2^27`), and so far above
/// `i32::MIN` that a difference from the maximum does not overflow.
const NO_KEY: i32 = -(1 << 30);

/// Where a tile of scores reads and writes: some rows of queries, some panels of keys.
pub(crate) struct ScoreTile<'a, const MR: usize> {
    /// Query codes, `stride` bytes from row to row.
    pub(crate) q: &'a [u8],
    pub(crate) stride: usize,
    /// How many query rows exist, `1 ..= MR`. A tile may compute all `MR`
    /// from whatever rows it likes; nobody looks at the others.
    pub(crate) rows: usize,
    /// The panels of keys, one after the other.
    pub(crate) panels: &'a [u8],
    /// What the sums begin with, sixteen for each panel.
    pub(crate) start: &'a [[i32; 16]],
    /// What is added to the scores, laid out as they are; nothing if `bias_stride` is 0.
    pub(crate) bias: &'a [i32],
    pub(crate) bias_stride: usize,
    /// The first row's scores, from the tile's first key on.
    pub(crate) scores: &'a mut [i32],
    /// Scores from row to row.
    pub(crate) score_stride: usize,
    /// The largest scores of each row, by lane.
    pub(crate) maxima: &'a mut [[i32; 16]; MR],
}

impl<const MR: usize> ScoreTile<'_, MR> {
    /// The biases of row `r`, if there are any. Rows that do not exist have the last one's.
    #[inline(always)]
    pub(crate) fn bias_row(&self, r: usize) -> Option<&[[i32; 16]]> {
        if self.bias_stride == 0 {
            return None;
        }
        let at = usize::min(r, self.rows - 1) * self.bias_stride;
        let (blocks, _) = self.bias[at..].as_chunks::<16>();
        Some(&blocks[..self.start.len()])
    }

    /// Runs the tile of a matrix product on each panel: `tile(q, stride, rows, panel, acc)`.
    #[inline(always)]
    pub(crate) fn by_panel<L: Lanes>(
        self,
        l: L,
        tile: impl Fn(&[u8], usize, usize, &[u8], &mut Tile<MR, 1>),
    ) {
        let mut acc = [[[0; 16]; 1]; MR];
        let panel_len = self.panels.len() / self.start.len();
        for (v, start) in self.start.iter().enumerate() {
            let panel = &self.panels[v * panel_len..][..panel_len];
            tile(self.q, self.stride, self.rows, panel, &mut acc);
            for (r, [sums]) in acc[..self.rows].iter().enumerate() {
                let mut score = l.add_i32(l.load_i32(sums), l.load_i32(start));
                if let Some(bias) = self.bias_row(r) {
                    score = l.add_i32(score, l.load_i32(&bias[v]));
                }
                let max = l.greater_i32(l.load_i32(&self.maxima[r]), score);
                l.store_i32(max, &mut self.maxima[r]);
                let (blocks, _) = self.scores[r * self.score_stride..].as_chunks_mut::<16>();
                l.store_i32(score, &mut blocks[v]);
            }
        }
    }
}

/// The epilogue of sixteen columns of a head.
struct HeadColumns<L: Lanes> {
    zero: L::I,
    scale: L::F,
    /// What a constant added to every multiplier owes.
    owed: L::I,
    quant: Quant<L>,
}

impl<L: Lanes> HeadColumns<L> {
    #[inline(always)]
    fn new(
        l: L,
        requant: &HeadRequant,
        center: u8,
        start: usize,
        column_sums: &[i32; 16],
        h: i32,
    ) -> Self {
        let zero = l.load_u8(&sixteen(requant.v_zero, start));
        Self {
            zero: l.sub_i32(zero, l.splat_i32(i32::from(center))),
            scale: l.load(&sixteen(requant.v_scale, start)),
            owed: l.mul_i32(l.load_i32(column_sums), l.splat_i32(h)),
            quant: Quant::new::<false>(l, &requant.quant, start),
        }
    }

    /// Stores codes of the sums `p` of a row with multiplier sum `r` and factor `f`.
    #[inline(always)]
    fn store(&self, l: L, p: &[i32; 16], r: i32, f: f32, out: &mut [u8]) {
        let exact = l.sub_i32(l.load_i32(p), self.owed);
        let exact = l.sub_i32(exact, l.mul_i32(self.zero, l.splat_i32(r)));
        let y = l.mul(l.mul(l.to_f32(exact), l.splat(f)), self.scale);
        let [codes] = self.quant.codes(l, [y]);
        put_u8(l, out, codes);
    }
}

/// Copies `len` bytes: the usual widths of a head by a few moves instead of a call.
#[inline(always)]
fn copy_row(to: &mut [u8], from: &[u8], len: usize) {
    match len {
        32 => to[..32].copy_from_slice(&from[..32]),
        64 => to[..64].copy_from_slice(&from[..64]),
        _ => to[..len].copy_from_slice(&from[..len]),
    }
}

/// Rows of exact sums, and what makes codes of them.
pub(crate) struct HeadSums<'a, const MR: usize, const NV: usize> {
    pub(crate) sums: &'a Tile<MR, NV>,
    /// How many rows and how many blocks of sixteen columns there are.
    pub(crate) rows: usize,
    pub(crate) blocks: usize,
    /// The head's column with which the first block begins.
    pub(crate) column: usize,
    /// Of each row, the sum of its multipliers and the factor of its values.
    pub(crate) multipliers: &'a [i32; MR],
    pub(crate) factors: &'a [f32; MR],
    /// What was added to each multiplier, and the sums of the values' columns.
    pub(crate) h: i32,
    pub(crate) column_sums: &'a [u8],
    pub(crate) requant: &'a HeadRequant<'a>,
    pub(crate) center: u8,
    pub(crate) out: &'a mut [u8],
    /// Where the first column of each row belongs.
    pub(crate) places: [usize; MR],
}

impl<const MR: usize, const NV: usize> HeadSums<'_, MR, NV> {
    /// Stores the codes.
    #[inline(always)]
    pub(crate) fn store<L: Lanes>(self, l: L) {
        let head_dim = self.requant.v_zero.len();
        for v in 0..self.blocks {
            let start = self.column + 16 * v;
            let column_sums = words(self.column_sums, start);
            let columns =
                HeadColumns::new(l, self.requant, self.center, start, &column_sums, self.h);
            let len = usize::min(16, head_dim - start);
            for (r, row) in self.sums[..self.rows].iter().enumerate() {
                let out = &mut self.out[self.places[r] + 16 * v..][..len];
                columns.store(l, &row[v], self.multipliers[r], self.factors[r], out);
            }
        }
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

/// Runs the nest, for a packed head or for cells that are packed one by one.
///
/// `pack` packs the keys and values of a cell. `keys` computes a tile of scores.
/// `values(entries, stride, rows, panels, acc)` sums over the tokens, for `1 ..= NV` panels; what lies beyond the tokens in a row of
/// entries is 0. `encode(row, entries)` looks the entries of a row up, as
/// [`super::softmax::Coder::encode`] does, and returns the sum of its multipliers.
/// `finish` is [`HeadSums::store`].
///
/// The hooks are functions of their own: inlined, their constants would be kept in
/// registers here, and fetched again after each call.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "one loop nest")]
pub(crate) fn drive<L: Lanes, const MR: usize, const NV: usize>(
    l: L,
    layout: &HeadLayout,
    book: &Codebook,
    call: AttentionCall,
    pack: impl Fn(&HeadShape, &KeysValues, &mut [u8]),
    keys: impl Fn(ScoreTile<'_, MR>),
    values: impl Fn(&[u8], usize, usize, &[u8], &mut Tile<MR, NV>),
    encode: impl Fn(&Row, &mut [u8]) -> i32,
    finish: impl Fn(HeadSums<'_, MR, NV>),
) {
    debug_assert_eq!(layout.mr, MR);
    let AttentionCall {
        shape,
        queries,
        mut source,
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
    let row_len = row_len(tokens);
    let mut scratch = scratch;
    let scores = cut::<i32>(&mut scratch, MR * row_len);
    let entries = cut::<u8>(&mut scratch, MAX_PLANES * MR * row_len);
    let wide_len = if layout.wide_keys {
        MR * wide_row_len(head_dim)
    } else {
        0
    };
    let gathered = cut::<u8>(&mut scratch, MR * head_dim);
    let wide = cut::<u8>(&mut scratch, wide_len);
    let shifted = cut::<i32>(&mut scratch, parts.row_len);
    let start = cut::<i32>(&mut scratch, parts.key_len);
    let (start, _) = start.as_chunks_mut::<16>();
    let q_zero = i32::from(queries.zero) - layout.q_shift;
    let center = shape.center();
    let key_tiles = EvenTiles::new(start.len(), layout.key_panels);
    let value_tiles = EvenTiles::new(parts.row_len / 16, NV);
    let mut total = [[[0; 16]; NV]; MR];
    let mut acc = [[[0; 16]; NV]; MR];

    for cell in 0..source.count() {
        let Block {
            packed,
            tokens: own,
            lines,
            first,
            bias,
        } = source.block(cell, shape, queries, &pack);
        for (block, start) in start.iter_mut().enumerate() {
            let sums = l.load_i32(&words(&packed[parts.key_sums..], 16 * block));
            l.store_i32(l.mul_i32(sums, l.splat_i32(-q_zero)), start);
            for no_key in &mut start[usize::min(16, tokens - 16 * block)..] {
                *no_key = NO_KEY;
            }
        }
        for i in own.clone().step_by(MR) {
            let rows = usize::min(MR, own.end - i);
            // The rows of the queries among those given, and of their results.
            let mut places = [0; MR];
            for (r, place) in places[..rows].iter_mut().enumerate() {
                *place = first.wrapping_add(lines.row(i + r));
            }
            let (q, q_stride, q_col) = if lines == Lines::ONE {
                (
                    &queries.rows[i * queries.row_stride..],
                    queries.row_stride,
                    queries.col,
                )
            } else {
                for (r, &place) in places[..rows].iter().enumerate() {
                    let from = &queries.rows[place * queries.row_stride + queries.col..];
                    copy_row(&mut gathered[r * head_dim..], from, head_dim);
                }
                (&*gathered, head_dim, 0)
            };
            let (q, stride) = if layout.wide_keys {
                widen_codes(q, q_stride, q_col, head_dim, rows, wide);
                (&*wide, wide_row_len(head_dim))
            } else {
                (&q[q_col..], q_stride)
            };
            let mut maxima = [[i32::MIN; 16]; MR];
            for (first, count) in key_tiles.iter() {
                keys(ScoreTile {
                    q,
                    stride,
                    rows,
                    panels: &packed[first * parts.key_panel..][..count * parts.key_panel],
                    start: &start[first..first + count],
                    bias: bias
                        .get(i * parts.key_len + 16 * first..)
                        .unwrap_or_default(),
                    bias_stride: if bias.is_empty() { 0 } else { parts.key_len },
                    scores: &mut scores[16 * first..],
                    score_stride: row_len,
                    maxima: &mut maxima,
                });
            }
            let mut largest = [0; MR];
            for (largest, maxima) in largest.iter_mut().zip(&maxima) {
                *largest = l.largest(l.load_i32(maxima));
            }
            let offsets = offsets(softmax.kind, scores, row_len, tokens, rows, &largest);
            let score_row = |r: usize| Row {
                scores: &scores[r * row_len..][..row_len],
                tokens,
                max: largest[r],
                offset: offsets[r],
                plane: MR * row_len,
            };

            match method {
                AttentionMethod::Decode => {
                    let mut sums = [0_i32; MR];
                    for (r, sum) in sums[..rows].iter_mut().enumerate() {
                        *sum = encode(&score_row(r), &mut entries[r * row_len..]);
                    }
                    let mut factors = [0.0; MR];
                    for (factor, &sum) in factors.iter_mut().zip(&sums) {
                        *factor = row_factor(softmax, sum);
                    }
                    for (first, count) in value_tiles.iter() {
                        let bytes = &packed[parts.values + first * parts.value_panel..]
                            [..count * parts.value_panel];
                        values(&entries[..MR * row_len], row_len, rows, bytes, &mut total);
                        for p in 1..book.planes {
                            let entries = &entries[p * MR * row_len..][..MR * row_len];
                            values(entries, row_len, rows, bytes, &mut acc);
                            add_shifted(&mut total, &acc, p as u32 * book.plane_bits);
                        }
                        let column = 16 * first;
                        finish(HeadSums {
                            sums: &total,
                            rows,
                            blocks: count,
                            column,
                            multipliers: &sums,
                            factors: &factors,
                            h: book.h,
                            column_sums: &packed[parts.column_sums..],
                            requant,
                            center,
                            out: out.rows,
                            places: places.map(|row| row * out.row_stride + out.col + column),
                        });
                    }
                }
                AttentionMethod::Shift(form) => {
                    for (r, &place) in places[..rows].iter().enumerate() {
                        encode(&score_row(r), entries);
                        let values = &packed[parts.rows..parts.key_sums];
                        let sum = shift_row(&entries[..tokens], values, parts.row_len, shifted);
                        let sum = sum.wrapping_sub(form.constant().wrapping_mul(tokens as i32));
                        let f = row_factor(softmax, sum);
                        for column in (0..head_dim).step_by(16) {
                            total[0][0] = sixteen(shifted, column);
                            finish(HeadSums {
                                sums: &total,
                                rows: 1,
                                blocks: 1,
                                column,
                                multipliers: &[sum; MR],
                                factors: &[f; MR],
                                h: form.constant(),
                                column_sums: &packed[parts.column_sums..],
                                requant,
                                center,
                                out: out.rows,
                                places: [place * out.row_stride + out.col + column; MR],
                            });
                        }
                    }
                }
            }
        }
    }
}

/// Queries that see the same keys.
struct Block<'a> {
    /// The keys and values.
    packed: &'a [u8],
    /// The queries' numbers among these tokens.
    tokens: Range<usize>,
    /// Token `i` is row `first + lines.row(i)` of the queries, modulo 2^64: a cell
    /// may begin before them.
    lines: Lines,
    first: usize,
    /// Of all tokens, `[tokens, whole panels]`, or nothing.
    bias: &'a [i32],
}

impl Source<'_> {
    #[inline(always)]
    fn count(&self) -> usize {
        match self {
            Source::Packed(_) => 1,
            Source::Cells { cells, .. } => cells.first.len(),
        }
    }

    #[inline(always)]
    fn block(
        &mut self,
        cell: usize,
        shape: &HeadShape,
        queries: &Queries,
        pack: impl Fn(&HeadShape, &KeysValues, &mut [u8]),
    ) -> Block<'_> {
        match self {
            Source::Packed(packed) => Block {
                packed,
                tokens: 0..queries.len(),
                lines: Lines::ONE,
                first: 0,
                bias: &[],
            },
            Source::Cells {
                cells,
                keys_values,
                packed,
            } => {
                let first = cells.first[cell] as usize;
                let tokens = cells.own_tokens(cell, shape.tokens);
                if !tokens.is_empty() {
                    let rows = &keys_values.rows[first * keys_values.row_stride..];
                    let lines = cells.lines;
                    pack(
                        shape,
                        &KeysValues {
                            rows,
                            lines,
                            ..**keys_values
                        },
                        packed,
                    );
                }
                Block {
                    packed,
                    tokens,
                    lines: cells.lines,
                    first: first.wrapping_sub(cells.own.start),
                    bias: cells.bias,
                }
            }
        }
    }
}

/// Panels cut into tiles of at most so many, as even as can be: 13 by 4 are
/// 4 + 3 + 3 + 3, for a last tile of one would be short of independent sums.
struct EvenTiles {
    tiles: usize,
    each: usize,
    /// The first tiles have one panel more.
    longer: usize,
}

impl EvenTiles {
    fn new(panels: usize, most: usize) -> Self {
        let tiles = panels.div_ceil(most);
        Self {
            tiles,
            each: panels.checked_div(tiles).unwrap_or(0),
            longer: panels.checked_rem(tiles).unwrap_or(0),
        }
    }

    /// The first panel and the number of panels of each tile.
    #[inline(always)]
    fn iter(&self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.tiles).map(|t| {
            (
                t * self.each + usize::min(t, self.longer),
                self.each + usize::from(t < self.longer),
            )
        })
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

#[cfg(test)]
mod tests {
    use super::EvenTiles;

    #[test]
    fn tiles_cover_every_panel_once_and_differ_by_one() {
        for n in 0..60 {
            for most in 1..5 {
                let (mut next, mut shortest, mut longest) = (0, usize::MAX, 0);
                for (first, count) in EvenTiles::new(n, most).iter() {
                    assert_eq!(first, next);
                    assert!((1..=most).contains(&count));
                    next += count;
                    shortest = shortest.min(count);
                    longest = longest.max(count);
                }
                assert_eq!(next, n);
                assert!(n == 0 || longest - shortest <= 1);
            }
        }
    }
}
