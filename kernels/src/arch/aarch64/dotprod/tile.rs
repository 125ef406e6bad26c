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
//! **Signs.** `SDOT` is signed x signed: activations above 127 become `a - 128` by
//! one EOR, and `128 * (sum of weights)` is owed, which the packed panel knows.
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

/// Bytes of one group of a strip: 8 outputs, 4 k.
const GROUP: usize = 32;

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
    group: &[u8; GROUP],
    a: &[int8x16_t; R],
) {
    let (halves, _) = group.as_chunks::<16>();
    let w = [load(&halves[0]), load(&halves[1])];
    for (sums, &a) in zip(sums, a) {
        for (sum, w) in zip(sums, w) {
            *sum = sdot::<ELEMENT>(*sum, w, a);
        }
    }
}

/// Sums of `rows` rows of `k` codes, `stride` apart, with a panel.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) fn tile(
    shift: u8,
    a: &[u8],
    stride: usize,
    rows: usize,
    k: usize,
    panel: &[u8],
    acc: &mut Tile<MR, 1>,
) {
    match rows {
        1 => strips::<1>(shift, a, stride, k, panel, acc),
        2 => strips::<2>(shift, a, stride, k, panel, acc),
        3 => strips::<3>(shift, a, stride, k, panel, acc),
        4 => strips::<4>(shift, a, stride, k, panel, acc),
        5 => strips::<5>(shift, a, stride, k, panel, acc),
        6 => strips::<6>(shift, a, stride, k, panel, acc),
        7 => strips::<7>(shift, a, stride, k, panel, acc),
        _ => strips::<MR>(shift, a, stride, k, panel, acc),
    }
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn strips<const R: usize>(
    shift: u8,
    a: &[u8],
    stride: usize,
    k: usize,
    panel: &[u8],
    acc: &mut Tile<MR, 1>,
) {
    let sixteens = k / 16;
    let all = Rows::<R, 16>::new(a, stride, k);
    let rows = all.groups(0, sixteens);
    let flip = vdupq_n_s8(shift as i8);
    let (panel, _) = panel.as_chunks::<GROUP>();
    let strip_len = panel.len() / 2;
    for strip in 0..2 {
        let panel = &panel[strip * strip_len..][..strip_len];
        let (whole, last) = panel.split_at(4 * sixteens);
        let (fours, _) = whole.as_chunks::<4>();
        let mut sums = [[vdupq_n_s32(0); 2]; R];
        let mut a = [vdupq_n_s8(0); R];
        for (i, [g0, g1, g2, g3]) in fours.iter().enumerate() {
            for (a, row) in zip(&mut a, &rows) {
                *a = veorq_s8(load(&row[i]), flip);
            }
            step::<R, 0>(&mut sums, g0, &a);
            step::<R, 1>(&mut sums, g1, &a);
            step::<R, 2>(&mut sums, g2, &a);
            step::<R, 3>(&mut sums, g3, &a);
        }
        for (a, rest) in zip(&mut a, all.rest()) {
            *a = veorq_s8(load(&rest[0]), flip);
        }
        for (element, group) in last.iter().enumerate() {
            match element {
                0 => step::<R, 0>(&mut sums, group, &a),
                1 => step::<R, 1>(&mut sums, group, &a),
                2 => step::<R, 2>(&mut sums, group, &a),
                _ => step::<R, 3>(&mut sums, group, &a),
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
