//! The innermost product: 4 rows x 4 outputs x 16 k, four times for 16 outputs.
//!
//! ```text
//!                 strip [k / 16][4][16] s8
//!
//!                 w0[16]   w1[16]   w2[16]   w3[16]
//!   a row 0 [16]  sum 00   sum 01   sum 02   sum 03     each sum is a vector along k,
//!   a row 1 [16]  sum 10     ..       ..       ..       added up at the end (ADDP)
//!   a row 2 [16]
//!   a row 3 [16]
//! ```
//!
//! [`super::operands`] tells how many products fit 8 or 16 bits, and so which form a
//! tile has. The denser forms keep operands of two groups, or sums of two widths, in
//! registers, which leaves room for three rows:
//!
//! ```text
//! Two      4 x 4, group      16 sums of 32 bits               4 w, 4 a, 8 products    32 registers
//! Words    4 x 4, group      16 sums of 16 bits               4 w, 4 a                24
//! Fours    3 x 4, 2 groups   12 sums of 32 bits               8 w, 6 a, 6 products    32
//! Pairs    3 x 4, 2 groups   12 sums of 16 bits               8 w, 6 a, 6 products    32
//! Eights   3 x 4, 8 groups   12 sums of 16 bits, 12 of 8      4 w, 4 a                32
//! ```
//!
//! [`super::loops`] has the loops of whole tiles. Fewer rows, and the groups that are
//! left over, are multiplied as [`Form::Two`] (or [`Form::One`]) by the compiler's
//! code: two products fit wherever more do.

use core::{
    arch::aarch64::{
        int8x16_t, int16x8_t, int32x4_t, vaddq_s32, vget_low_s8, vld1q_s8, vld1q_s32,
        vmlal_high_s8, vmull_high_s8, vmull_s8, vpadalq_s16, vpaddq_s32, vst1q_s32,
    },
    iter::zip,
};

use super::{
    loops,
    operands::{BYTE_ROUNDS, DenseForm, Form, Operands},
};
use crate::arch::{
    aarch64::rows::{pack_block, row_len},
    common::{gemm::Tile, panels::Layout},
};

/// Rows of a tile.
pub(super) const MR: usize = 4;

/// Rows of a tile of a [`DenseForm`].
pub(super) const MR_DENSE: usize = 3;

/// Order of the panels; `sums` pay for shifted activations.
pub(super) const PANELS: Layout = Layout {
    nr: 16,
    sub: 4,
    kr: 16,
    sums: true,
};

/// 16 k of each row.
pub(super) type Activations<const R: usize> = [[u8; 16]; R];

/// 16 k of each output of a strip.
pub(super) type Weights = [[u8; 16]; 4];

/// Sums of `R` rows and 4 outputs in registers.
pub(super) type Sums<T, const R: usize> = [[T; 4]; R];

/// The same, four lanes each, as they wait in memory.
type Waiting<const R: usize> = [[[i32; 4]; 4]; R];

#[inline]
#[target_feature(enable = "neon")]
fn load(bytes: &[u8; 16]) -> int8x16_t {
    // SAFETY: `bytes` is 16 readable bytes; `ld1` of bytes needs no alignment.
    unsafe { vld1q_s8(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn load_sums(sums: &[i32; 4]) -> int32x4_t {
    // SAFETY: `sums` is 16 readable, aligned bytes.
    unsafe { vld1q_s32(sums.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn store_sums(sums: &mut [i32; 4], value: int32x4_t) {
    // SAFETY: `sums` is 16 writable, aligned bytes.
    unsafe { vst1q_s32(sums.as_mut_ptr(), value) }
}

/// Sums of a block of `rows` rows, made by [`pack_block`] of groups of 16, with a panel.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn tile(form: Form, a: &[u8], rows: usize, panel: &[u8], acc: &mut Tile<MR, 1>) {
    *acc = [[[0; 16]]; MR];
    add_rows(form, a, rows, 0, panel, acc);
}

/// Codes of a row that [`tile_of_rows`] packs at a time.
const CHUNK: usize = 128;

/// Sums of `rows` rows of `k` codes, `stride` apart, with a panel: for rows that
/// meet few panels, so that nobody packed them.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn tile_of_rows(
    operands: Operands,
    a: &[u8],
    stride: usize,
    rows: usize,
    k: usize,
    panel: &[u8],
    acc: &mut Tile<MR, 1>,
) {
    *acc = [[[0; 16]]; MR];
    let mut packed = [0; MR * CHUNK];
    for start in (0..k).step_by(CHUNK) {
        let len = usize::min(CHUNK, k - start);
        pack_block::<16>(&a[start..], stride, rows, len, operands.shift, &mut packed);
        let packed = &packed[..rows * row_len(len)];
        add_rows(operands.form, packed, rows, start / 16, panel, acc);
    }
}

/// Adds the products of the groups of `a` with those of the panel from `first` on.
#[inline]
#[target_feature(enable = "neon")]
fn add_rows(form: Form, a: &[u8], rows: usize, first: usize, panel: &[u8], acc: &mut Tile<MR, 1>) {
    let panel = groups(groups(panel));
    let a: &[[u8; 16]] = groups(a);
    match (rows, form) {
        (1, Form::One) => tile_edge::<1, MR, false>(groups(a), first, panel, acc),
        (2, Form::One) => tile_edge::<2, MR, false>(groups(a), first, panel, acc),
        (3, Form::One) => tile_edge::<3, MR, false>(groups(a), first, panel, acc),
        (_, Form::One) => tile_edge::<MR, MR, false>(groups(a), first, panel, acc),
        (1, Form::Two | Form::Words { groups: _ }) => {
            tile_edge::<1, MR, true>(groups(a), first, panel, acc)
        }
        (2, Form::Two | Form::Words { groups: _ }) => {
            tile_edge::<2, MR, true>(groups(a), first, panel, acc)
        }
        (3, Form::Two | Form::Words { groups: _ }) => {
            tile_edge::<3, MR, true>(groups(a), first, panel, acc)
        }
        (_, Form::Two) => tile_two(groups(a), first, panel, acc),
        (_, Form::Words { groups: budget }) => tile_words(groups(a), first, panel, budget, acc),
    }
}

/// [`tile`] of a dense form.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn tile_dense(
    form: DenseForm,
    a: &[u8],
    rows: usize,
    panel: &[u8],
    acc: &mut Tile<MR_DENSE, 1>,
) {
    *acc = [[[0; 16]]; MR_DENSE];
    let panel = groups(groups(panel));
    let a: &[[u8; 16]] = groups(a);
    match (rows, form) {
        (1, _) => tile_edge::<1, MR_DENSE, true>(groups(a), 0, panel, acc),
        (2, _) => tile_edge::<2, MR_DENSE, true>(groups(a), 0, panel, acc),
        (_, DenseForm::Fours) => tile_fours(groups(a), panel, acc),
        (_, DenseForm::Pairs) => tile_pairs(groups(a), panel, acc),
        (_, DenseForm::Eights) => tile_eights(groups(a), panel, acc),
    }
}

/// `items` in whole groups.
#[inline(always)]
fn groups<T, const N: usize>(items: &[T]) -> &[[T; N]] {
    let (groups, _) = items.as_chunks();
    groups
}

/// Adds `product` of all groups, strip by strip.
#[inline]
#[target_feature(enable = "neon")]
fn strips<const R: usize, const MR: usize>(
    a: &[Activations<R>],
    first: usize,
    panel: &[Weights],
    acc: &mut Tile<MR, 1>,
    product: impl Fn(&mut Waiting<R>, &[Weights]),
) {
    let strip_len = panel.len() / 4;
    for strip in 0..4 {
        let mut sums = [[[0; 4]; 4]; R];
        product(&mut sums, &panel[strip * strip_len + first..][..a.len()]);
        for (sums, [acc]) in zip(&sums, acc.iter_mut()) {
            let (quarters, _) = acc.as_chunks_mut::<4>();
            let low = vpaddq_s32(load_sums(&sums[0]), load_sums(&sums[1]));
            let high = vpaddq_s32(load_sums(&sums[2]), load_sums(&sums[3]));
            let sum = vaddq_s32(load_sums(&quarters[strip]), vpaddq_s32(low, high));
            store_sums(&mut quarters[strip], sum);
        }
    }
}

/// Adds sums of 32 bits to those that wait.
#[inline]
#[target_feature(enable = "neon")]
fn add<const R: usize>(waiting: &mut Waiting<R>, sums: &Sums<int32x4_t, R>) {
    for (waiting, sum) in zip(waiting.as_flattened_mut(), sums.as_flattened()) {
        store_sums(waiting, vaddq_s32(load_sums(waiting), *sum));
    }
}

/// Widens sums of 16 bits and adds them to those that wait.
#[inline]
#[target_feature(enable = "neon")]
fn widen<const R: usize>(waiting: &mut Waiting<R>, sums: &Sums<int16x8_t, R>) {
    for (waiting, sum) in zip(waiting.as_flattened_mut(), sums.as_flattened()) {
        store_sums(waiting, vpadalq_s16(load_sums(waiting), *sum));
    }
}

/// Adds groups whose 16-bit lanes hold one product, or two if `TWO`.
#[inline]
#[target_feature(enable = "neon")]
fn add_groups<const R: usize, const TWO: bool>(
    waiting: &mut Waiting<R>,
    a: &[Activations<R>],
    w: &[Weights],
) {
    let mut sums = [[load_sums(&[0; 4]); 4]; R];
    for (a, w) in zip(a, w) {
        let w = [load(&w[0]), load(&w[1]), load(&w[2]), load(&w[3])];
        for (sums, a) in zip(&mut sums, a) {
            let a = load(a);
            for (sum, w) in zip(sums, w) {
                let low = vmull_s8(vget_low_s8(a), vget_low_s8(w));
                if TWO {
                    *sum = vpadalq_s16(*sum, vmlal_high_s8(low, a, w));
                } else {
                    *sum = vpadalq_s16(vpadalq_s16(*sum, low), vmull_high_s8(a, w));
                }
            }
        }
    }
    add(waiting, &sums);
}

#[inline(never)]
#[target_feature(enable = "neon")]
fn tile_edge<const R: usize, const MR: usize, const TWO: bool>(
    a: &[Activations<R>],
    first: usize,
    panel: &[Weights],
    acc: &mut Tile<MR, 1>,
) {
    strips(a, first, panel, acc, |waiting, panel| {
        add_groups::<R, TWO>(waiting, a, panel);
    });
}

#[inline(never)]
#[target_feature(enable = "neon")]
fn tile_two(a: &[Activations<MR>], first: usize, panel: &[Weights], acc: &mut Tile<MR, 1>) {
    strips(a, first, panel, acc, |waiting, panel| {
        if !panel.is_empty() {
            add(waiting, &loops::two(a, panel));
        }
    });
}

#[inline(never)]
#[target_feature(enable = "neon")]
fn tile_words(
    a: &[Activations<MR>],
    first: usize,
    panel: &[Weights],
    budget: usize,
    acc: &mut Tile<MR, 1>,
) {
    strips(a, first, panel, acc, |waiting, panel| {
        for (a, panel) in zip(a.chunks(budget), panel.chunks(budget)) {
            widen(waiting, &loops::words(a, panel));
        }
    });
}

#[inline(never)]
#[target_feature(enable = "neon")]
fn tile_fours(a: &[Activations<MR_DENSE>], panel: &[Weights], acc: &mut Tile<MR_DENSE, 1>) {
    strips(a, 0, panel, acc, |waiting, panel| {
        let (pairs, a_rest) = a.as_chunks();
        let (w_pairs, w_rest) = panel.as_chunks();
        if !pairs.is_empty() {
            add(waiting, &loops::fours(pairs, w_pairs));
        }
        add_groups::<MR_DENSE, true>(waiting, a_rest, w_rest);
    });
}

#[inline(never)]
#[target_feature(enable = "neon")]
fn tile_pairs(a: &[Activations<MR_DENSE>], panel: &[Weights], acc: &mut Tile<MR_DENSE, 1>) {
    strips(a, 0, panel, acc, |waiting, panel| {
        add_pairs(waiting, a, panel);
    });
}

/// Adds products of 8 bits, two by two.
#[inline(never)]
#[target_feature(enable = "neon")]
fn add_pairs(waiting: &mut Waiting<MR_DENSE>, a: &[Activations<MR_DENSE>], w: &[Weights]) {
    let (a_pairs, a_rest) = a.as_chunks();
    let (w_pairs, w_rest) = w.as_chunks();
    for (a, w) in zip(a_pairs.chunks(BYTE_ROUNDS), w_pairs.chunks(BYTE_ROUNDS)) {
        widen(waiting, &loops::pairs(a, w));
    }
    if !a_rest.is_empty() {
        add_groups::<MR_DENSE, true>(waiting, a_rest, w_rest);
    }
}

#[inline(never)]
#[target_feature(enable = "neon")]
fn tile_eights(a: &[Activations<MR_DENSE>], panel: &[Weights], acc: &mut Tile<MR_DENSE, 1>) {
    strips(a, 0, panel, acc, |waiting, panel| {
        let (eights, a_rest) = a.as_chunks();
        let (w_eights, w_rest) = panel.as_chunks();
        for (a, w) in zip(eights.chunks(BYTE_ROUNDS), w_eights.chunks(BYTE_ROUNDS)) {
            widen(waiting, &loops::eights(a, w));
        }
        add_pairs(waiting, a_rest, w_rest);
    });
}
