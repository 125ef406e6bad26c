//! The two products of attention: 6 rows x 16 outputs, as in [`super::tile`], with
//! sums that begin anywhere and go straight to the scores.
//!
//! ```text
//!   [`Path::Bytes`]   vpmaddubsw, vpaddw; every `spill` steps vpmaddwd by ones, vpaddd
//!   few steps         vpmaddubsw, vpmaddwd by ones, vpaddd: the sums stay in registers
//!   [`Path::Words`]   vpmaddwd, vpaddd on operands widened beforehand
//! ```
//!
//! Leaving the 16-bit sums costs a step four instructions for each register of sums
//! (load, `vpmaddwd`, `vpaddd`, store), so up to 4 steps the second way is faster.
//!
//! The tiles are not inlined: within the nest their sums would have to share the
//! registers with its constants, and be spilled.

use core::arch::x86_64::{
    __m256i, _mm256_add_epi16, _mm256_add_epi32, _mm256_loadu_si256, _mm256_madd_epi16,
    _mm256_maddubs_epi16, _mm256_max_epi32, _mm256_set1_epi16, _mm256_set1_epi32,
    _mm256_setzero_si256, _mm256_storeu_si256,
};

use super::tile::{MR, Path};
use crate::arch::common::{attention::ScoreTile, gemm::Tile, rows::Rows};

/// Up to this many steps in 16 bits, each step is added in 32 bits.
const FEW_STEPS: usize = 4;

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
fn store(sums: &mut [i32; 8], value: __m256i) {
    // SAFETY: `sums` is 32 writable bytes; `storeu` needs no alignment.
    unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), value) }
}

/// The two registers of a group.
#[inline]
#[target_feature(enable = "avx2")]
fn load_group(group: &[u8; 64]) -> [__m256i; 2] {
    let (halves, _) = group.as_chunks::<32>();
    [load(&halves[0]), load(&halves[1])]
}

/// Sums of 32 bits.
type Sums = [[__m256i; 2]; MR];

/// Adds products of bytes, exact for pairs that fit 16 bits `spill` times.
#[inline]
#[target_feature(enable = "avx2")]
fn add_bytes(sums: &mut Sums, spill: usize, panel: &[[u8; 64]], rows: &[&[[u8; 4]]; MR]) {
    let ones = _mm256_set1_epi16(1);
    if spill <= FEW_STEPS {
        let mut own = *sums; // in registers
        for (g, group) in panel.iter().enumerate() {
            let w = load_group(group);
            for (sums, row) in own.iter_mut().zip(rows) {
                let a = _mm256_set1_epi32(i32::from_le_bytes(row[g]));
                for (sum, w) in sums.iter_mut().zip(w) {
                    let pairs = _mm256_maddubs_epi16(a, w);
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
                }
            }
        }
        *sums = own;
        return;
    }
    let mut start = 0;
    while start < panel.len() {
        let end = usize::min(start + spill, panel.len());
        let mut partial = [[_mm256_setzero_si256(); 2]; MR];
        let mut now: [&[[u8; 4]]; MR] = [&[]; MR];
        for (now, row) in now.iter_mut().zip(rows) {
            *now = &row[start..end];
        }
        for (g, group) in panel[start..end].iter().enumerate() {
            let w = load_group(group);
            for (partial, row) in partial.iter_mut().zip(&now) {
                let a = _mm256_set1_epi32(i32::from_le_bytes(row[g]));
                for (partial, w) in partial.iter_mut().zip(w) {
                    *partial = _mm256_add_epi16(*partial, _mm256_maddubs_epi16(a, w));
                }
            }
        }
        for (sums, partial) in sums.iter_mut().zip(&partial) {
            for (sum, partial) in sums.iter_mut().zip(partial) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(*partial, ones));
            }
        }
        start = end;
    }
}

/// Adds products of words.
#[inline]
#[target_feature(enable = "avx2")]
fn add_words(sums: &mut Sums, panel: &[[u8; 64]], rows: &[&[[u8; 4]]; MR]) {
    let mut own = *sums; // in registers
    for (g, group) in panel.iter().enumerate() {
        let w = load_group(group);
        for (sums, row) in own.iter_mut().zip(rows) {
            let a = _mm256_set1_epi32(i32::from_le_bytes(row[g]));
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(a, w));
            }
        }
    }
    *sums = own;
}

/// The scores of a tile of one panel, over `k` columns of the head.
#[inline(never)]
#[target_feature(enable = "avx2")]
pub(super) fn scores(path: Path, k: usize, tile: ScoreTile<'_, MR>) {
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
    match path {
        Path::Bytes { spill } => {
            let all = Rows::<MR, 4>::repeated(tile.q, tile.stride, tile.rows, k);
            let groups = k / 4;
            add_bytes(&mut sums, spill, &panel[..groups], &all.groups(0, groups));
            if !k.is_multiple_of(4) {
                add_bytes(&mut sums, 1, &panel[groups..=groups], &all.rest());
            }
        }
        Path::Words => {
            let groups = k.div_ceil(2);
            let all = Rows::<MR, 4>::repeated(tile.q, tile.stride, tile.rows, 4 * groups);
            add_words(&mut sums, &panel[..groups], &all.groups(0, groups));
        }
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
#[target_feature(enable = "avx2")]
pub(super) fn values(
    spill: usize,
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
    add_bytes(&mut sums, spill, &panel[..groups], &rows);
    for (sums, [acc]) in sums.iter().zip(acc) {
        let (halves, _) = acc.as_chunks_mut::<8>();
        for (half, sum) in halves.iter_mut().zip(sums) {
            store(half, *sum);
        }
    }
}
