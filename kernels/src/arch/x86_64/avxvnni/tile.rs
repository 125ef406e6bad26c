//! The innermost product: 6 rows x 16 outputs by `vpdpbusd`.
//!
//! ```text
//!            panel [k / 4][16][4] s8
//!
//!            | 0 1 2 3 | 4 5 6 7 | .. 8 outputs a register, 2 registers
//!   a row r  | a a a a | a a a a |    u8, broadcast
//!              \_____/   vpdpbusd: four products, added into one 32-bit sum
//! ```
//!
//! 12 sums + 2 weights + 1 activation = 15 of 16 registers.
//!
//! **Overflow.** `vpdpbusd` (unlike `vpdpbusds`) adds exactly and wraps at 32 bits;
//! `255 * 128 * MAX_K < 2^31`, so it never does.

use core::arch::x86_64::{
    __m256i, _mm256_dpbusd_avx_epi32, _mm256_loadu_si256, _mm256_set1_epi32, _mm256_setzero_si256,
    _mm256_storeu_si256,
};

use crate::arch::common::{gemm::Tile, panels::Layout, rows::Rows};

/// Rows of a tile.
pub(super) const MR: usize = 6;

/// Order of the panels.
pub(super) const PANELS: Layout = Layout {
    nr: 16,
    sub: 16,
    kr: 4,
    sums: false,
};

#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: `bytes` is 32 readable bytes; `loadu` needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn store(sums: &mut [i32; 8], value: __m256i) {
    // SAFETY: `sums` is 32 writable bytes; `storeu` needs no alignment.
    unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), value) }
}

/// Adds the products of four k to the sums of `R` rows.
#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn step<const R: usize>(
    sums: &mut [[__m256i; 2]; R],
    group: &[u8; 64],
    a: [&[[u8; 4]]; R],
    g: usize,
) {
    let (halves, _) = group.as_chunks::<32>();
    let w = [load(&halves[0]), load(&halves[1])];
    for (sums, a) in sums.iter_mut().zip(a) {
        let a = _mm256_set1_epi32(i32::from_le_bytes(a[g]));
        for (sum, w) in sums.iter_mut().zip(w) {
            *sum = _mm256_dpbusd_avx_epi32(*sum, a, w);
        }
    }
}

/// Sums of `rows` rows of `k` codes, `stride` apart, with a panel.
#[inline]
#[target_feature(enable = "avx2,avxvnni")]
pub(super) fn tile(
    a: &[u8],
    stride: usize,
    rows: usize,
    k: usize,
    panel: &[u8],
    acc: &mut Tile<MR, 1>,
) {
    match rows {
        1 => tile_rows::<1>(a, stride, k, panel, acc),
        2 => tile_rows::<2>(a, stride, k, panel, acc),
        3 => tile_rows::<3>(a, stride, k, panel, acc),
        4 => tile_rows::<4>(a, stride, k, panel, acc),
        5 => tile_rows::<5>(a, stride, k, panel, acc),
        _ => tile_rows::<MR>(a, stride, k, panel, acc),
    }
}

#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn tile_rows<const R: usize>(
    a: &[u8],
    stride: usize,
    k: usize,
    panel: &[u8],
    acc: &mut Tile<MR, 1>,
) {
    let groups = k / 4;
    let (panel, _) = panel.as_chunks::<64>();
    let rows = Rows::<R, 4>::new(a, stride, k);
    let whole = rows.groups(0, groups);
    let mut sums = [[_mm256_setzero_si256(); 2]; R];
    for (g, group) in panel[..groups].iter().enumerate() {
        step(&mut sums, group, whole, g);
    }
    if !k.is_multiple_of(4) {
        step(&mut sums, &panel[groups], rows.rest(), 0);
    }
    for (sums, [acc]) in sums.iter().zip(acc) {
        let (halves, _) = acc.as_chunks_mut::<8>();
        for (half, sum) in halves.iter_mut().zip(sums) {
            store(half, *sum);
        }
    }
}
