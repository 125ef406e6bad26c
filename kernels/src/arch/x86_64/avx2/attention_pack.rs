//! Re-orders the keys and values of a head by vector shuffles, for every x86 ISA.
//!
//! ```text
//! keys      8 tokens x 8 dwords of a row      a transposition of dwords, in three rounds:
//!           t0: a0 a1 a2 ..                   vpunpckldq, vpunpcklqdq, vperm2i128
//!           t1: b0 b1 b2 ..            ->     a0 b0 c0 d0 ..  = group 0 of 8 tokens
//!
//! values    4 tokens x 16 columns of bytes    vpunpcklbw, vpunpcklwd:
//!           t0: a0 a1 a2 ..                   a0 b0 c0 d0  a1 b1 c1 d1 ..
//! ```
//!
//! A dword of keys is four codes, or two that are widened first. The sums of keys
//! and columns are dot products of what is stored with ones. Rows and columns that
//! do not fill a vector are copied into one of centers, whose keys and values are 0.

use core::arch::x86_64::{
    __m128i, __m256i, _mm_add_epi32, _mm_loadu_si128, _mm_madd_epi16, _mm_maddubs_epi16,
    _mm_set1_epi8, _mm_set1_epi16, _mm_setzero_si128, _mm_storeu_si128, _mm_sub_epi8,
    _mm_unpackhi_epi8, _mm_unpackhi_epi16, _mm_unpacklo_epi8, _mm_unpacklo_epi16, _mm256_add_epi32,
    _mm256_cvtepu8_epi16, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16,
    _mm256_permute2x128_si256, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_setzero_si256,
    _mm256_storeu_si256, _mm256_sub_epi8, _mm256_sub_epi16, _mm256_unpackhi_epi32,
    _mm256_unpackhi_epi64, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64,
};

use crate::{HeadShape, KeysValues, Lines, arch::common::attention::HeadLayout};

#[inline]
#[target_feature(enable = "avx2")]
fn load16(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: `bytes` is 16 readable bytes; `loadu` needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load32(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: `bytes` is 32 readable bytes; `loadu` needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store16(bytes: &mut [u8; 16], value: __m128i) {
    // SAFETY: `bytes` is 16 writable bytes; `storeu` needs no alignment.
    unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), value) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store32(bytes: &mut [u8; 32], value: __m256i) {
    // SAFETY: `bytes` is 32 writable bytes; `storeu` needs no alignment.
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), value) }
}

/// Some columns of the qkv buffer.
struct Columns<'a> {
    rows: &'a [u8],
    stride: usize,
    lines: Lines,
    col: usize,
    tokens: usize,
    len: usize,
    center: u8,
}

impl Columns<'_> {
    /// `N` codes of a token from column `start` on; the center beyond the edges.
    #[inline(always)]
    fn codes<const N: usize>(&self, token: usize, start: usize) -> [u8; N] {
        if token >= self.tokens {
            return [self.center; N];
        }
        let row = &self.rows[self.lines.row(token) * self.stride + self.col..][..self.len];
        if let Some(whole) = row[start..].first_chunk() {
            return *whole;
        }
        let mut part = [self.center; N];
        part[..self.len - start].copy_from_slice(&row[start..]);
        part
    }
}

/// Keys and values as bytes, in groups of 4.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::arch::x86_64) fn pack_bytes(
    layout: &HeadLayout,
    shape: &HeadShape,
    keys_values: &KeysValues,
    out: &mut [u8],
) {
    let key_panel = layout.parts(shape).key_panel;
    let parts = layout.parts_mut(shape, out);
    let keys = columns(shape, keys_values, keys_values.k_col);
    let center = _mm256_set1_epi8(shape.center() as i8);
    let ones = (_mm256_set1_epi8(1), _mm256_set1_epi16(1));
    pack_keys::<4>(
        &keys,
        key_panel,
        parts.keys,
        parts.key_sums,
        |token, group| _mm256_sub_epi8(load32(&keys.codes(token, 4 * group)), center),
        |keys| _mm256_madd_epi16(_mm256_maddubs_epi16(ones.0, keys), ones.1),
    );
    pack_values(
        layout,
        shape,
        keys_values,
        parts.values,
        parts.rows,
        parts.column_sums,
    );
}

/// Keys as words, in groups of 2; values as bytes, in groups of 4.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn pack_wide(
    layout: &HeadLayout,
    shape: &HeadShape,
    keys_values: &KeysValues,
    out: &mut [u8],
) {
    let key_panel = layout.parts(shape).key_panel;
    let parts = layout.parts_mut(shape, out);
    let keys = columns(shape, keys_values, keys_values.k_col);
    let center = _mm256_set1_epi16(i16::from(shape.center()));
    let ones = _mm256_set1_epi16(1);
    pack_keys::<2>(
        &keys,
        key_panel,
        parts.keys,
        parts.key_sums,
        |token, group| {
            let codes = _mm256_cvtepu8_epi16(load16(&keys.codes(token, 2 * group)));
            _mm256_sub_epi16(codes, center)
        },
        |keys| _mm256_madd_epi16(keys, ones),
    );
    pack_values(
        layout,
        shape,
        keys_values,
        parts.values,
        parts.rows,
        parts.column_sums,
    );
}

#[inline]
fn columns<'a>(shape: &HeadShape, keys_values: &'a KeysValues, col: usize) -> Columns<'a> {
    Columns {
        rows: keys_values.rows,
        stride: keys_values.row_stride,
        lines: keys_values.lines,
        col,
        tokens: shape.tokens,
        len: shape.head_dim,
        center: shape.center(),
    }
}

/// Panels of 16 tokens, in groups of `KR` keys that fill a dword.
///
/// `load(token, group)` gives the dwords of eight groups of a token, `sum` adds
/// the keys of each dword.
#[inline]
#[target_feature(enable = "avx2")]
fn pack_keys<const KR: usize>(
    keys: &Columns,
    panel_len: usize,
    out: &mut [u8],
    sums_out: &mut [u8],
    load: impl Fn(usize, usize) -> __m256i,
    sum: impl Fn(__m256i) -> __m256i,
) {
    let (sums_out, _) = sums_out.as_chunks_mut::<64>();
    for (p, sums_out) in sums_out.iter_mut().enumerate() {
        let panel = &mut out[p * panel_len..][..panel_len];
        let (groups, _) = panel.as_chunks_mut::<64>();
        for half in 0..2 {
            let token = 16 * p + 8 * half;
            let mut sums = _mm256_setzero_si256();
            for (eight, groups) in groups.chunks_mut(8).enumerate() {
                let mut rows = [_mm256_setzero_si256(); 8];
                for (i, row) in rows.iter_mut().enumerate() {
                    *row = load(token + i, 8 * eight);
                }
                for (group, keys) in groups.iter_mut().zip(transpose(rows)) {
                    sums = _mm256_add_epi32(sums, sum(keys));
                    let (halves, _) = group.as_chunks_mut::<32>();
                    store32(&mut halves[half], keys);
                }
            }
            let (halves, _) = sums_out.as_chunks_mut::<32>();
            store32(&mut halves[half], sums);
        }
    }
    debug_assert_eq!(panel_len, 64 * keys.len.div_ceil(KR));
}

/// Transposes 8 x 8 dwords.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(rows: [__m256i; 8]) -> [__m256i; 8] {
    let [a, b, c, d, e, f, g, h] = rows;
    // Dwords 0 and 1 (or 2 and 3) of each half, two rows side by side.
    let ab = [_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b)];
    let cd = [_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d)];
    let ef = [_mm256_unpacklo_epi32(e, f), _mm256_unpackhi_epi32(e, f)];
    let gh = [_mm256_unpacklo_epi32(g, h), _mm256_unpackhi_epi32(g, h)];
    let mut out = [_mm256_setzero_si256(); 8];
    for i in 0..2 {
        let abcd = [
            _mm256_unpacklo_epi64(ab[i], cd[i]),
            _mm256_unpackhi_epi64(ab[i], cd[i]),
        ];
        let efgh = [
            _mm256_unpacklo_epi64(ef[i], gh[i]),
            _mm256_unpackhi_epi64(ef[i], gh[i]),
        ];
        for j in 0..2 {
            out[2 * i + j] = _mm256_permute2x128_si256::<0x20>(abcd[j], efgh[j]);
            out[2 * i + j + 4] = _mm256_permute2x128_si256::<0x31>(abcd[j], efgh[j]);
        }
    }
    out
}

/// Panels of 16 columns in groups of 4 tokens, the rows, and the column sums.
#[inline]
#[target_feature(enable = "avx2")]
fn pack_values(
    layout: &HeadLayout,
    shape: &HeadShape,
    keys_values: &KeysValues,
    panels: &mut [u8],
    rows: &mut [u8],
    sums_out: &mut [u8],
) {
    let parts = layout.parts(shape);
    let values = columns(shape, keys_values, keys_values.v_col);
    let center = _mm_set1_epi8(shape.center() as i8);
    let ones = (_mm_set1_epi8(1), _mm_set1_epi16(1));
    let (sums_out, _) = sums_out.as_chunks_mut::<64>();
    for (p, sums_out) in sums_out.iter_mut().enumerate() {
        let (groups, _) =
            panels[p * parts.value_panel..][..parts.value_panel].as_chunks_mut::<64>();
        let mut sums = [_mm_setzero_si128(); 4];
        for (g, group) in groups.iter_mut().enumerate() {
            let mut v = [_mm_setzero_si128(); 4];
            for (i, v) in v.iter_mut().enumerate() {
                let token = 4 * g + i;
                *v = _mm_sub_epi8(load16(&values.codes(token, 16 * p)), center);
                if token < shape.tokens {
                    let row = rows[token * parts.row_len + 16 * p..]
                        .first_chunk_mut()
                        .expect("rows are whole blocks of sixteen");
                    store16(row, *v);
                }
            }
            let low = [_mm_unpacklo_epi8(v[0], v[1]), _mm_unpacklo_epi8(v[2], v[3])];
            let high = [_mm_unpackhi_epi8(v[0], v[1]), _mm_unpackhi_epi8(v[2], v[3])];
            let fours = [
                _mm_unpacklo_epi16(low[0], low[1]),
                _mm_unpackhi_epi16(low[0], low[1]),
                _mm_unpacklo_epi16(high[0], high[1]),
                _mm_unpackhi_epi16(high[0], high[1]),
            ];
            let (quarters, _) = group.as_chunks_mut::<16>();
            for ((quarter, sum), four) in quarters.iter_mut().zip(&mut sums).zip(fours) {
                store16(quarter, four);
                let of_four = _mm_madd_epi16(_mm_maddubs_epi16(ones.0, four), ones.1);
                *sum = _mm_add_epi32(*sum, of_four);
            }
        }
        let (quarters, _) = sums_out.as_chunks_mut::<16>();
        for (quarter, sum) in quarters.iter_mut().zip(sums) {
            store16(quarter, sum);
        }
    }
}
