//! The two products of attention: 6 rows x up to 64 outputs by `vpdpbusd`.
//!
//! ```text
//!            1 to 4 panels [k / 4][16][4] s8, one after the other
//!
//!            | 0 1 2 3 | 4 5 6 7 | .. 16 outputs a register, a register a panel
//!   a row r  | a a a a | a a a a |    u8, broadcast from memory
//!              \_____/   vpdpbusd: four products, added into one 32-bit sum
//! ```
//!
//! 6 x 64 takes 24 sums + 4 weights + 1 activation of 32 registers and 10 loads for
//! 24 products. Heads are rarely wide and tokens rarely multiples of 48, so panels
//! stay 16 wide and a tile takes as many as there are: a head of 64 columns is one
//! tile, 197 keys are tiles of 4 + 3 + 3 + 3 panels. 6 rows divide 197 and 257 with
//! one row wasted.
//!
//! The tiles are not inlined: within the nest their sums would have to share the
//! registers with its constants, and be spilled.

use core::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_max_epi32,
    _mm512_set1_epi32, _mm512_setzero_si512, _mm512_storeu_si512,
};

use crate::arch::common::{attention::ScoreTile, gemm::Tile, rows::Rows};

/// Rows of a tile.
pub(super) const MR: usize = 6;

/// The most panels of a tile.
pub(super) const NV: usize = 4;

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: `bytes` is 64 readable bytes; `loadu` needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn load_sums(sums: &[i32; 16]) -> __m512i {
    // SAFETY: `sums` is 64 readable bytes; `loadu` needs no alignment.
    unsafe { _mm512_loadu_si512(sums.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn store(sums: &mut [i32; 16], value: __m512i) {
    // SAFETY: `sums` is 64 writable bytes; `storeu` needs no alignment.
    unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), value) }
}

/// The sums with the products of four k. By value: a call that is not inlined
/// would hold every sum in memory.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn step<const N: usize>(
    mut sums: [[__m512i; N]; MR],
    panels: &[&[[u8; 64]]; N],
    g: usize,
    rows: &[&[[u8; 4]]; MR],
    row_g: usize,
) -> [[__m512i; N]; MR] {
    let mut w = [_mm512_setzero_si512(); N];
    for (w, panel) in w.iter_mut().zip(panels) {
        *w = load(&panel[g]);
    }
    for (sums, row) in sums.iter_mut().zip(rows) {
        let a = _mm512_set1_epi32(i32::from_le_bytes(row[row_g]));
        for (sum, w) in sums.iter_mut().zip(w) {
            *sum = _mm512_dpbusd_epi32(*sum, a, w);
        }
    }
    sums
}

/// Cuts `N` panels of `groups` groups apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn split<const N: usize>(panels: &[u8], groups: usize) -> [&[[u8; 64]]; N] {
    let (all, _) = panels.as_chunks::<64>();
    let mut panels: [&[[u8; 64]]; N] = [&[]; N];
    for (v, panel) in panels.iter_mut().enumerate() {
        *panel = &all[v * groups..][..groups];
    }
    panels
}

/// The scores of a tile, over `k` columns of the head.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn scores(k: usize, tile: ScoreTile<'_, MR>) {
    match tile.start.len() {
        1 => scores_of::<1>(k, tile),
        2 => scores_of::<2>(k, tile),
        3 => scores_of::<3>(k, tile),
        _ => scores_of::<NV>(k, tile),
    }
}

#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn scores_of<const N: usize>(k: usize, tile: ScoreTile<'_, MR>) {
    let all = Rows::<MR, 4>::repeated(tile.q, tile.stride, tile.rows, k);
    let panels = split::<N>(tile.panels, k.div_ceil(4));
    let start = tile
        .start
        .first_chunk::<N>()
        .expect("a start for each panel");
    let mut first = [_mm512_setzero_si512(); N];
    for (sum, start) in first.iter_mut().zip(start) {
        *sum = load_sums(start);
    }
    let mut sums = [first; MR];
    for (r, sums) in sums.iter_mut().enumerate() {
        if let Some(bias) = tile.bias_row(r) {
            for (sum, bias) in sums.iter_mut().zip(bias) {
                *sum = _mm512_add_epi32(*sum, load_sums(bias));
            }
        }
    }
    let groups = k / 4;
    let rows = all.groups(0, groups);
    let mut whole = panels;
    for panel in &mut whole {
        *panel = &panel[..groups];
    }
    for g in 0..groups {
        sums = step(sums, &whole, g, &rows, g);
    }
    if !k.is_multiple_of(4) {
        sums = step(sums, &panels, groups, &all.rest(), 0);
    }
    for (r, (sums, maxima)) in sums.iter().zip(tile.maxima).enumerate() {
        let mut max = load_sums(maxima);
        let (blocks, _) = tile.scores[r * tile.score_stride..][..16 * N].as_chunks_mut::<16>();
        for (block, sum) in blocks.iter_mut().zip(sums) {
            max = _mm512_max_epi32(max, *sum);
            store(block, *sum);
        }
        store(maxima, max);
    }
}

/// Sums of entries, `stride` apart, times values over whole groups of four tokens.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn values(
    entries: &[u8],
    stride: usize,
    tokens: usize,
    panels: &[u8],
    acc: &mut Tile<MR, NV>,
) {
    let groups = tokens.div_ceil(4);
    match panels.len() / usize::max(1, 64 * groups) {
        0 => *acc = [[[0; 16]; NV]; MR], // no tokens
        1 => values_of::<1>(entries, stride, groups, panels, acc),
        2 => values_of::<2>(entries, stride, groups, panels, acc),
        3 => values_of::<3>(entries, stride, groups, panels, acc),
        _ => values_of::<NV>(entries, stride, groups, panels, acc),
    }
}

#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn values_of<const N: usize>(
    entries: &[u8],
    stride: usize,
    groups: usize,
    panels: &[u8],
    acc: &mut Tile<MR, NV>,
) {
    let rows = Rows::<MR, 4>::new(entries, stride, 4 * groups).groups(0, groups);
    let panels = split::<N>(panels, groups);
    let mut sums = [[_mm512_setzero_si512(); N]; MR];
    for g in 0..groups {
        sums = step(sums, &panels, g, &rows, g);
    }
    for (sums, acc) in sums.iter().zip(acc) {
        for (sum, acc) in sums.iter().zip(acc) {
            store(acc, *sum);
        }
    }
}
