//! The innermost product: 8 rows x 48 outputs by `vpdpbusd`.
//!
//! ```text
//!            panel [k / 4][16 * NV][4] s8
//!
//!            | 0 1 2 3 | 4 5 6 7 | .. 16 outputs a register, NV registers
//!   a row r  | a a a a | a a a a |    u8, broadcast from memory
//!              \_____/   vpdpbusd: four products, added into one 32-bit sum
//! ```
//!
//! 8 x 48 takes 24 sums + 3 weights + 1 activation of 32 registers and 11 loads
//! for 24 products: below one load a product, so `vpdpbusd` stays fed, and eight
//! row pointers fit the general registers. Attention, whose widths are rarely
//! multiples of 48, has a tile of its own.
//!
//! **Overflow.** `vpdpbusd` (unlike `vpdpbusds`) adds exactly and wraps at 32 bits;
//! `255 * 128 * MAX_K < 2^31`, so it never does.

use core::arch::x86_64::{
    __m512i, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_si512,
    _mm512_storeu_si512,
};

use crate::arch::common::{gemm::Tile, panels::Layout, rows::Rows};

/// Rows of a tile.
pub(super) const MR: usize = 8;

/// Order of panels of `16 * nv` outputs.
pub(super) const fn panels(nv: usize) -> Layout {
    Layout {
        nr: 16 * nv,
        sub: 16 * nv,
        kr: 4,
        sums: false,
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: `bytes` is 64 readable bytes; `loadu` needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn store(sums: &mut [i32; 16], value: __m512i) {
    // SAFETY: `sums` is 64 writable bytes; `storeu` needs no alignment.
    unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), value) }
}

/// Adds the products of four k to the sums of `R` rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn step<const R: usize, const NV: usize>(
    sums: &mut [[__m512i; NV]; R],
    group: &[[u8; 64]],
    a: [&[[u8; 4]]; R],
    g: usize,
) {
    let mut w = [_mm512_setzero_si512(); NV];
    for (w, bytes) in w.iter_mut().zip(group) {
        *w = load(bytes);
    }
    for (sums, a) in sums.iter_mut().zip(a) {
        let a = _mm512_set1_epi32(i32::from_le_bytes(a[g]));
        for (sum, w) in sums.iter_mut().zip(w) {
            *sum = _mm512_dpbusd_epi32(*sum, a, w);
        }
    }
}

/// Sums of `rows` rows of `k` codes, `stride` apart, with a panel.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn tile<const NV: usize>(
    a: &[u8],
    stride: usize,
    rows: usize,
    k: usize,
    panel: &[u8],
    acc: &mut Tile<MR, NV>,
) {
    match rows {
        1 => tile_rows::<1, NV>(a, stride, k, panel, acc),
        2 => tile_rows::<2, NV>(a, stride, k, panel, acc),
        3 => tile_rows::<3, NV>(a, stride, k, panel, acc),
        4 => tile_rows::<4, NV>(a, stride, k, panel, acc),
        5 => tile_rows::<5, NV>(a, stride, k, panel, acc),
        6 => tile_rows::<6, NV>(a, stride, k, panel, acc),
        7 => tile_rows::<7, NV>(a, stride, k, panel, acc),
        _ => tile_rows::<MR, NV>(a, stride, k, panel, acc),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn tile_rows<const R: usize, const NV: usize>(
    a: &[u8],
    stride: usize,
    k: usize,
    panel: &[u8],
    acc: &mut Tile<MR, NV>,
) {
    let groups = k / 4;
    let (panel, _) = panel.as_chunks::<64>();
    let rows = Rows::<R, 4>::new(a, stride, k);
    let whole = rows.groups(0, groups);
    let mut sums = [[_mm512_setzero_si512(); NV]; R];
    for (g, group) in panel[..groups * NV].chunks_exact(NV).enumerate() {
        step(&mut sums, group, whole, g);
    }
    if !k.is_multiple_of(4) {
        step(&mut sums, &panel[groups * NV..], rows.rest(), 0);
    }
    for (sums, acc) in sums.iter().zip(acc) {
        for (sum, acc) in sums.iter().zip(acc) {
            store(acc, *sum);
        }
    }
}
