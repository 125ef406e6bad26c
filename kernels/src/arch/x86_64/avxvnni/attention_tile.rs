//! The two products of attention: 6 rows x 16 outputs by `vpdpbusd`, as in
//! [`super::tile`], with sums that begin anywhere and go straight to the scores.
//!
//! The tiles are not inlined: within the nest their sums would have to share the
//! registers with its constants, and be spilled.

use core::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_dpbusd_avx_epi32, _mm256_loadu_si256, _mm256_max_epi32,
    _mm256_set1_epi32, _mm256_setzero_si256, _mm256_storeu_si256,
};

use super::tile::MR;
use crate::arch::common::{attention::ScoreTile, gemm::Tile, rows::Rows};

#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: `bytes` is 32 readable bytes; `loadu` needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn load_sums(sums: &[i32; 8]) -> __m256i {
    // SAFETY: `sums` is 32 readable bytes; `loadu` needs no alignment.
    unsafe { _mm256_loadu_si256(sums.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn store(sums: &mut [i32; 8], value: __m256i) {
    // SAFETY: `sums` is 32 writable bytes; `storeu` needs no alignment.
    unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), value) }
}

/// The sums with the products of four k. By value: a call that is not inlined
/// would hold every sum in memory.
#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn step(
    mut sums: [[__m256i; 2]; MR],
    group: &[u8; 64],
    rows: &[&[[u8; 4]]; MR],
    g: usize,
) -> [[__m256i; 2]; MR] {
    let (halves, _) = group.as_chunks::<32>();
    let w = [load(&halves[0]), load(&halves[1])];
    for (sums, row) in sums.iter_mut().zip(rows) {
        let a = _mm256_set1_epi32(i32::from_le_bytes(row[g]));
        for (sum, w) in sums.iter_mut().zip(w) {
            *sum = _mm256_dpbusd_avx_epi32(*sum, a, w);
        }
    }
    sums
}

/// The scores of a tile of one panel, over `k` columns of the head.
#[inline(never)]
#[target_feature(enable = "avx2,avxvnni")]
pub(super) fn scores(k: usize, tile: ScoreTile<'_, MR>) {
    let all = Rows::<MR, 4>::repeated(tile.q, tile.stride, tile.rows, k);
    let (panel, _) = tile.panels.as_chunks::<64>();
    let (start, _) = tile.start[0].as_chunks::<8>();
    let mut sums = [[load_sums(&start[0]), load_sums(&start[1])]; MR];
    for (r, sums) in sums.iter_mut().enumerate() {
        if let Some(bias) = tile.bias_row(r) {
            let (bias, _) = bias[0].as_chunks::<8>();
            for (sum, bias) in sums.iter_mut().zip(bias) {
                *sum = _mm256_add_epi32(*sum, load_sums(bias));
            }
        }
    }
    let groups = k / 4;
    let rows = all.groups(0, groups);
    for (g, group) in panel[..groups].iter().enumerate() {
        sums = step(sums, group, &rows, g);
    }
    if !k.is_multiple_of(4) {
        sums = step(sums, &panel[groups], &all.rest(), 0);
    }
    for (r, (sums, maxima)) in sums.iter().zip(tile.maxima).enumerate() {
        let (scores, _) = tile.scores[r * tile.score_stride..][..16].as_chunks_mut::<8>();
        let (maxima, _) = maxima.as_chunks_mut::<8>();
        for ((score, max), sum) in scores.iter_mut().zip(maxima).zip(sums) {
            store(score, *sum);
            let larger = _mm256_max_epi32(load_sums(max), *sum);
            store(max, larger);
        }
    }
}

/// Sums of entries, `stride` apart, times values over whole groups of four tokens.
#[inline(never)]
#[target_feature(enable = "avx2,avxvnni")]
pub(super) fn values(
    entries: &[u8],
    stride: usize,
    tokens: usize,
    panel: &[u8],
    acc: &mut Tile<MR, 1>,
) {
    let (panel, _) = panel.as_chunks::<64>();
    let groups = tokens.div_ceil(4);
    let rows = Rows::<MR, 4>::new(entries, stride, 4 * groups).groups(0, groups);
    let mut sums = [[_mm256_setzero_si256(); 2]; MR];
    for (g, group) in panel[..groups].iter().enumerate() {
        sums = step(sums, group, &rows, g);
    }
    for (sums, [acc]) in sums.iter().zip(acc) {
        let (halves, _) = acc.as_chunks_mut::<8>();
        for (half, sum) in halves.iter_mut().zip(sums) {
            store(half, *sum);
        }
    }
}
