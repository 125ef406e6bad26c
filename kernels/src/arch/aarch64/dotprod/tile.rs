//! The innermost product: 8 rows x 8 outputs by `SDOT` by element, twice for 16
//! outputs.
//!
//! ```text
//!              strip [k / 4][8][4] s8
//!
//!              | 0 1 2 3 | 4 5 6 7 | ..  4 outputs a register, 2 registers
//!   a row r    | a a a a |               4 k: one of the four elements of a register
//!                \_____/   SDOT: four products, added into one 32-bit sum
//! ```
//!
//! A row gives 16 k at one load, the strip two registers every 4 k: 16 loads feed
//! 64 instructions. 16 sums + 8 activations + 2 weights = 26 of 32 registers.
//!
//! **Signs.** `SDOT` is signed x signed: activations above 127 become `a - 128`, and
//! `128 * (sum of weights)` is owed, which the packed panel knows. A matrix product
//! shifts its rows when it packs them; the rows of attention, which meet few panels,
//! are shifted by the tile (EOR).
//!
//! **Overflow.** `SDOT` wraps at 32 bits; `128 * 128 * MAX_K < 2^31`, so it never does.
//!
//! `core::arch` has no stable name for the instruction, so it is written out.

use core::{
    arch::{
        aarch64::{int8x16_t, int32x4_t, vdupq_n_s8, vdupq_n_s32, veorq_s8, vld1q_s8, vst1q_s32},
        asm,
    },
    iter::zip,
};

use crate::arch::common::{gemm::Tile, panels::Layout, rows::Rows};

/// Rows of a tile.
pub(super) const MR: usize = 8;

/// Order of the panels; `sums` pay for shifted activations.
pub(super) const PANELS: Layout = Layout {
    nr: 16,
    sub: 8,
    kr: 4,
    sums: true,
};

/// One group of a strip: 4 k of 8 outputs.
type Group = [[u8; 16]; 2];

/// What is subtracted from each activation so that it is signed: 0 or 128.
pub(super) const fn shift(act_max: u8) -> u8 {
    if act_max > 127 { 128 } else { 0 }
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn load(bytes: &[u8; 16]) -> int8x16_t {
    // SAFETY: `bytes` is 16 readable bytes; `ld1` of bytes needs no alignment.
    unsafe { vld1q_s8(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn store(sums: &mut [i32; 4], value: int32x4_t) {
    // SAFETY: `sums` is 16 writable, aligned bytes.
    unsafe { vst1q_s32(sums.as_mut_ptr(), value) }
}

/// `sum[i] += w[4i ..] . a[4 * ELEMENT ..]`, four products each.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot<const ELEMENT: i32>(mut sum: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: the function requires the dot product; registers only.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {a:v}.4b[{element}]",
            sum = inout(vreg) sum,
            w = in(vreg) w,
            a = in(vreg) a,
            element = const ELEMENT,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// Adds one group: element `ELEMENT` of each row's sixteen activations.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn step<const R: usize, const ELEMENT: i32>(
    sums: &mut [[int32x4_t; 2]; R],
    group: &Group,
    a: &[int8x16_t; R],
) {
    let w = [load(&group[0]), load(&group[1])];
    for (sums, &a) in zip(sums, a) {
        for (sum, w) in zip(sums, w) {
            *sum = sdot::<ELEMENT>(*sum, w, a);
        }
    }
}

/// Sums of a block of `rows` rows, made by `pack_block` of groups of 16, with a panel.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) fn tile(a: &[u8], rows: usize, panel: &[u8], acc: &mut Tile<MR, 1>) {
    match rows {
        1 => packed::<1>(a, panel, acc),
        2 => packed::<2>(a, panel, acc),
        3 => packed::<3>(a, panel, acc),
        4 => packed::<4>(a, panel, acc),
        5 => packed::<5>(a, panel, acc),
        6 => packed::<6>(a, panel, acc),
        7 => packed::<7>(a, panel, acc),
        _ => packed::<MR>(a, panel, acc),
    }
}

/// Sums of `rows` rows of `k` codes, `stride` apart, with a panel: for rows that
/// meet few panels, so that nobody packed them.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) fn tile_of_rows(
    shift: u8,
    a: &[u8],
    stride: usize,
    rows: usize,
    k: usize,
    panel: &[u8],
    acc: &mut Tile<MR, 1>,
) {
    match rows {
        1 => loose::<1>(shift, a, stride, k, panel, acc),
        2 => loose::<2>(shift, a, stride, k, panel, acc),
        3 => loose::<3>(shift, a, stride, k, panel, acc),
        4 => loose::<4>(shift, a, stride, k, panel, acc),
        5 => loose::<5>(shift, a, stride, k, panel, acc),
        6 => loose::<6>(shift, a, stride, k, panel, acc),
        7 => loose::<7>(shift, a, stride, k, panel, acc),
        _ => loose::<MR>(shift, a, stride, k, panel, acc),
    }
}

/// Not inlined, so that its loop has a name in the binary (`bench/mca.sh`).
#[inline(never)]
#[target_feature(enable = "neon,dotprod")]
fn packed<const R: usize>(a: &[u8], panel: &[u8], acc: &mut Tile<MR, 1>) {
    let (vectors, _) = a.as_chunks::<16>();
    let (blocks, _) = vectors.as_chunks::<R>();
    strips(panel, acc, |i| {
        let mut a = [load(&blocks[i][0]); R];
        for (a, bytes) in zip(&mut a, &blocks[i]) {
            *a = load(bytes);
        }
        a
    });
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn loose<const R: usize>(
    shift: u8,
    a: &[u8],
    stride: usize,
    k: usize,
    panel: &[u8],
    acc: &mut Tile<MR, 1>,
) {
    let sixteens = k / 16;
    let all = Rows::<R, 16>::new(a, stride, k);
    let (rows, rest) = (all.groups(0, sixteens), all.rest());
    let flip = vdupq_n_s8(shift as i8);
    strips(panel, acc, |i| {
        let mut a = [flip; R];
        for r in 0..R {
            let bytes = rows[r].get(i).unwrap_or(&rest[r][0]);
            a[r] = veorq_s8(load(bytes), flip);
        }
        a
    });
}

/// `activations(i)` are codes `16 i .. 16 i + 16` of each row.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn strips<const R: usize>(
    panel: &[u8],
    acc: &mut Tile<MR, 1>,
    activations: impl Fn(usize) -> [int8x16_t; R],
) {
    let (vectors, _) = panel.as_chunks::<16>();
    let (panel, _) = vectors.as_chunks::<2>();
    let strip_len = panel.len() / 2;
    for strip in 0..2 {
        let (fours, last) = panel[strip * strip_len..][..strip_len].as_chunks::<4>();
        let mut sums = [[vdupq_n_s32(0); 2]; R];
        for (i, [g0, g1, g2, g3]) in fours.iter().enumerate() {
            let a = activations(i);
            step::<R, 0>(&mut sums, g0, &a);
            step::<R, 1>(&mut sums, g1, &a);
            step::<R, 2>(&mut sums, g2, &a);
            step::<R, 3>(&mut sums, g3, &a);
        }
        if !last.is_empty() {
            let a = activations(fours.len());
            for (element, group) in last.iter().enumerate() {
                match element {
                    0 => step::<R, 0>(&mut sums, group, &a),
                    1 => step::<R, 1>(&mut sums, group, &a),
                    _ => step::<R, 2>(&mut sums, group, &a),
                }
            }
        }
        for (sums, [acc]) in zip(&sums, acc.iter_mut()) {
            let (quarters, _) = acc.as_chunks_mut::<4>();
            for (quarter, sum) in zip(&mut quarters[2 * strip..], sums) {
                store(quarter, *sum);
            }
        }
    }
}
