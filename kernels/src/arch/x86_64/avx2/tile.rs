//! The innermost product: 6 rows x 16 outputs, by one of two instructions.
//!
//! `vpmaddubsw` multiplies u8 by s8, adds two neighbours and **saturates** at 16
//! bits; `vpmaddwd` multiplies s16 by s16 and adds two neighbours in 32 bits.
//!
//! ```text
//!            bytes: panel [k / 4][16][4] s8            words: panel [k / 2][16][2] s16
//!
//!            | 0 1 2 3 | 4 5 6 7 | .. 8 outputs        | 0 1 | 2 3 | .. 8 outputs
//!   a row r  | a a a a | a a a a |    broadcast        | a a | a a |    broadcast
//!              \_/ \_/   vpmaddubsw                      \_/    vpmaddwd
//!               +   +    vpaddw, 16 bits                  +     vpaddd, 32 bits
//!
//!   2 instructions for 32 products                     2 instructions for 16 products
//! ```
//!
//! **Why bytes do not overflow.** A pair is at most `2 * act_max * weight_max`; a
//! 16-bit lane takes [`spill`] of them, then `vpmaddwd` by ones widens the lane
//! into the 32-bit sums. With 4-bit operands that is once in 136 steps (544 k),
//! with 6-bit ones every 8 steps. **Where it does not pay** (fewer than 4 steps,
//! so also where a single pair saturates) the operands are widened beforehand:
//! exact at every width, with half the products per instruction.

use core::arch::x86_64::{
    __m256i, _mm256_add_epi16, _mm256_add_epi32, _mm256_loadu_si256, _mm256_madd_epi16,
    _mm256_maddubs_epi16, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setzero_si256,
    _mm256_storeu_si256,
};

use crate::arch::common::{gemm::Tile, panels::Layout, rows::Rows};

/// Rows of a tile: with 16 outputs, 12 sums leave 4 registers for operands.
pub(super) const MR: usize = 6;

/// Order of s8 panels.
pub(super) const BYTES: Layout = Layout {
    nr: 16,
    sub: 16,
    kr: 4,
    sums: false,
};

/// Order of s16 panels, and of the s8 panels they are widened from.
pub(super) const WORDS: Layout = Layout {
    nr: 16,
    sub: 16,
    kr: 2,
    sums: false,
};

/// How a product is computed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Path {
    /// `vpmaddubsw`, summed in 16 bits for `spill` steps.
    Bytes { spill: usize },
    /// `vpmaddwd` on widened operands.
    Words,
}

/// Steps whose pairs a 16-bit lane holds; 0 if one pair may saturate.
pub(super) const fn spill(act_max: u8, weight_max: u8) -> usize {
    let pair = 2 * act_max as usize * weight_max as usize;
    i16::MAX as usize / if pair == 0 { 1 } else { pair }
}

const _: () = assert!(spill(15, 8) == 136 && spill(63, 32) == 8 && spill(255, 8) == 8);
const _: () = assert!(spill(127, 128) == 1 && spill(255, 128) == 0);

/// The faster exact way for these operands.
pub(super) const fn path(act_max: u8, weight_max: u8) -> Path {
    match spill(act_max, weight_max) {
        0..4 => Path::Words,
        spill => Path::Bytes { spill },
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: `bytes` is 32 readable bytes; `loadu` needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_sums(sums: &[i32; 8]) -> __m256i {
    // SAFETY: `sums` is 32 readable bytes; `loadu` needs no alignment.
    unsafe { _mm256_loadu_si256(sums.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_sums(sums: &mut [i32; 8], value: __m256i) {
    // SAFETY: `sums` is 32 writable bytes; `storeu` needs no alignment.
    unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), value) }
}

/// Four bytes of a row in every lane.
#[inline]
#[target_feature(enable = "avx2")]
fn broadcast(bytes: [u8; 4]) -> __m256i {
    _mm256_set1_epi32(i32::from_le_bytes(bytes))
}

/// Splits 64 bytes of a panel into its two vectors.
#[inline]
#[target_feature(enable = "avx2")]
fn load_pair(group: &[u8; 64]) -> [__m256i; 2] {
    let (halves, _) = group.as_chunks::<32>();
    [load(&halves[0]), load(&halves[1])]
}

/// Sums of `rows` rows of `k` codes, `stride` apart, with an s8 panel.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn tile_bytes(
    spill: usize,
    a: &[u8],
    stride: usize,
    rows: usize,
    k: usize,
    panel: &[u8],
    acc: &mut Tile<MR, 1>,
) {
    match rows {
        1 => bytes::<1>(spill, a, stride, k, panel, acc),
        2 => bytes::<2>(spill, a, stride, k, panel, acc),
        3 => bytes::<3>(spill, a, stride, k, panel, acc),
        4 => bytes::<4>(spill, a, stride, k, panel, acc),
        5 => bytes::<5>(spill, a, stride, k, panel, acc),
        _ => bytes::<MR>(spill, a, stride, k, panel, acc),
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn bytes<const R: usize>(
    spill: usize,
    a: &[u8],
    stride: usize,
    k: usize,
    panel: &[u8],
    acc: &mut Tile<MR, 1>,
) {
    let groups = k / 4;
    let (panel, _) = panel.as_chunks::<64>();
    let rows = Rows::<R, 4>::new(a, stride, k);
    for [sums] in &mut acc[..R] {
        *sums = [0; 16];
    }
    let mut start = 0;
    while start < groups {
        let end = usize::min(start + spill, groups);
        let mut partial = [[_mm256_setzero_si256(); 2]; R];
        let whole = rows.groups(start, end);
        for (g, group) in panel[start..end].iter().enumerate() {
            let w = load_pair(group);
            for r in 0..R {
                let a = broadcast(whole[r][g]);
                for (partial, w) in partial[r].iter_mut().zip(w) {
                    *partial = _mm256_add_epi16(*partial, _mm256_maddubs_epi16(a, w));
                }
            }
        }
        widen_into(&partial, acc);
        start = end;
    }
    if !k.is_multiple_of(4) {
        let w = load_pair(&panel[groups]);
        let mut partial = [[_mm256_setzero_si256(); 2]; R];
        for (partial, rest) in partial.iter_mut().zip(rows.rest()) {
            let a = broadcast(rest[0]);
            *partial = [_mm256_maddubs_epi16(a, w[0]), _mm256_maddubs_epi16(a, w[1])];
        }
        widen_into(&partial, acc);
    }
}

/// Adds 16-bit lanes, in pairs, to the 32-bit sums.
#[inline]
#[target_feature(enable = "avx2")]
fn widen_into<const R: usize>(partial: &[[__m256i; 2]; R], acc: &mut Tile<MR, 1>) {
    let ones = _mm256_set1_epi16(1);
    for (partial, [acc]) in partial.iter().zip(acc) {
        let (halves, _) = acc.as_chunks_mut::<8>();
        for (half, partial) in halves.iter_mut().zip(partial) {
            let sum = _mm256_add_epi32(load_sums(half), _mm256_madd_epi16(*partial, ones));
            store_sums(half, sum);
        }
    }
}

/// Sums of `rows` rows of `groups` pairs of s16, `stride` bytes apart, with an s16 panel.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn tile_words(
    a: &[u8],
    stride: usize,
    rows: usize,
    groups: usize,
    panel: &[u8],
    acc: &mut Tile<MR, 1>,
) {
    match rows {
        1 => words::<1>(a, stride, groups, panel, acc),
        2 => words::<2>(a, stride, groups, panel, acc),
        3 => words::<3>(a, stride, groups, panel, acc),
        4 => words::<4>(a, stride, groups, panel, acc),
        5 => words::<5>(a, stride, groups, panel, acc),
        _ => words::<MR>(a, stride, groups, panel, acc),
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn words<const R: usize>(
    a: &[u8],
    stride: usize,
    groups: usize,
    panel: &[u8],
    acc: &mut Tile<MR, 1>,
) {
    let panel = &panel.as_chunks::<64>().0[..groups];
    let rows = Rows::<R, 4>::new(a, stride, 4 * groups).groups(0, groups);
    let mut sums = [[_mm256_setzero_si256(); 2]; R];
    for (g, group) in panel.iter().enumerate() {
        let w = load_pair(group);
        for r in 0..R {
            let a = broadcast(rows[r][g]);
            for (sum, w) in sums[r].iter_mut().zip(w) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(a, w));
            }
        }
    }
    for (sums, [acc]) in sums.iter().zip(acc) {
        let (halves, _) = acc.as_chunks_mut::<8>();
        for (half, sum) in halves.iter_mut().zip(sums) {
            store_sums(half, *sum);
        }
    }
}
