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
//!
//!   SMULL  / SMLAL    lanes 0..8    8 products into 8 sums of 16 bits
//!   SMULL2 / SMLAL2   lanes 8..16
//!   SADALP            8 sums of 16 bits into 4 sums of 32 bits
//! ```
//!
//! **Signs.** The products are signed x signed. Activations up to 127 are s8 as
//! they are; others become `a - 128` by one EOR, and `128 * (sum of weights)` is
//! owed, which the packed panel knows.
//!
//! **Why 16 bits do not overflow.** A lane holds `floor(32767 / (|a| * |w|))`
//! products; a step adds two.
//!
//! | operands | largest product | products | way |
//! |---|---|---|---|
//! | s8 x s8, both -128 | 16384 | 1 | [`Budget::One`]: SADALP after each, 4 instructions for 16 products |
//! | s8 x s8, one above -128 | 16256 | 2 | [`Budget::Two`]: SMULL, SMLAL2, SADALP: 3 instructions |
//! | u6 x s6 | 2016 | 16 | [`Budget::Steps`] of 8: SMLAL, SMLAL2: 2 instructions |
//! | s8 x s4 | 1024 | 31 | [`Budget::Steps`] of 15 |
//! | u4 x s4 | 120 | 273 | [`Budget::Steps`] of 136 |

use core::arch::aarch64::{
    int8x16_t, int16x8_t, int32x4_t, vdupq_n_s8, vdupq_n_s16, vdupq_n_s32, veorq_s8, vget_low_s8,
    vld1q_s8, vld1q_s32, vmlal_high_s8, vmlal_s8, vmull_high_s8, vmull_s8, vpadalq_s16, vpaddq_s32,
    vst1q_s32,
};

use crate::arch::common::{gemm::Tile, panels::Layout, rows::Rows};

/// Rows of a tile.
pub(super) const MR: usize = 4;

/// Order of the panels; `sums` pay for shifted activations.
pub(super) const PANELS: Layout = Layout {
    nr: 16,
    sub: 4,
    kr: 16,
    sums: true,
};

/// Bytes of one group of a strip: 4 outputs, 16 k.
const GROUP: usize = 64;

/// How many products a 16-bit lane holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Budget {
    /// One.
    One,
    /// Two: one step.
    Two,
    /// Twice as many as these steps, at least 2.
    Steps(usize),
}

/// How the activations of a tile are read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operands {
    /// Subtracted from each activation: 0 or 128.
    pub(super) shift: u8,
    /// What the products allow.
    pub(super) budget: Budget,
}

impl Operands {
    /// For activations up to `act_max` and weights of magnitude up to `weight_max`.
    pub(super) const fn new(act_max: u8, weight_max: u8) -> Self {
        let (shift, act) = if act_max > 127 {
            (128, 128)
        } else {
            (0, act_max as usize)
        };
        let product = act * weight_max as usize;
        let products = i16::MAX as usize / if product == 0 { 1 } else { product };
        let budget = match products {
            0 | 1 => Budget::One,
            2 | 3 => Budget::Two,
            products => Budget::Steps(products / 2),
        };
        Self { shift, budget }
    }
}

const _: () = {
    assert!(matches!(Operands::new(255, 128).budget, Budget::One));
    assert!(matches!(Operands::new(255, 127).budget, Budget::Two));
    assert!(matches!(Operands::new(127, 128).budget, Budget::Two));
    assert!(matches!(Operands::new(63, 32).budget, Budget::Steps(8)));
    assert!(matches!(Operands::new(255, 8).budget, Budget::Steps(15)));
    assert!(matches!(Operands::new(15, 8).budget, Budget::Steps(136)));
};

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

/// Sixteen activations, minus 128 where `flip` has the sign bits.
#[inline]
#[target_feature(enable = "neon")]
fn load_a(bytes: &[u8; 16], flip: int8x16_t) -> int8x16_t {
    veorq_s8(load(bytes), flip)
}

/// The four weight vectors of a group.
#[inline]
#[target_feature(enable = "neon")]
fn load_group(group: &[u8; GROUP]) -> [int8x16_t; 4] {
    let (w, _) = group.as_chunks::<16>();
    [load(&w[0]), load(&w[1]), load(&w[2]), load(&w[3])]
}

/// Sums of `rows` rows of `k` codes, `stride` apart, with a panel.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn tile(
    operands: Operands,
    a: &[u8],
    stride: usize,
    rows: usize,
    k: usize,
    panel: &[u8],
    acc: &mut Tile<MR, 1>,
) {
    match rows {
        1 => strips::<1>(operands, a, stride, k, panel, acc),
        2 => strips::<2>(operands, a, stride, k, panel, acc),
        3 => strips::<3>(operands, a, stride, k, panel, acc),
        _ => strips::<MR>(operands, a, stride, k, panel, acc),
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn strips<const R: usize>(
    operands: Operands,
    a: &[u8],
    stride: usize,
    k: usize,
    panel: &[u8],
    acc: &mut Tile<MR, 1>,
) {
    let groups = k / 16;
    let all = Rows::<R, 16>::new(a, stride, k);
    let rows = all.groups(0, groups);
    let flip = vdupq_n_s8(operands.shift as i8);
    let (panel, _) = panel.as_chunks::<GROUP>();
    let strip_len = panel.len() / 4;
    for strip in 0..4 {
        let panel = &panel[strip * strip_len..][..strip_len];
        let (whole, last) = panel.split_at(groups);
        let mut sums = [[vdupq_n_s32(0); 4]; R];
        match operands.budget {
            Budget::One => add::<R, false>(&mut sums, &rows, whole, flip),
            Budget::Two => add::<R, true>(&mut sums, &rows, whole, flip),
            Budget::Steps(steps) => add_steps(&mut sums, &rows, whole, flip, steps),
        }
        if !k.is_multiple_of(16) {
            let rest_rows = all.rest();
            match operands.budget {
                Budget::One => add::<R, false>(&mut sums, &rest_rows, &last[..1], flip),
                Budget::Two | Budget::Steps(_) => {
                    add::<R, true>(&mut sums, &rest_rows, &last[..1], flip)
                }
            }
        }
        for (sums, [acc]) in sums.iter().zip(acc.iter_mut()) {
            let (quarters, _) = acc.as_chunks_mut::<4>();
            let low = vpaddq_s32(sums[0], sums[1]);
            let high = vpaddq_s32(sums[2], sums[3]);
            store_sums(&mut quarters[strip], vpaddq_s32(low, high));
        }
    }
}

/// Adds groups whose 16-bit lanes hold one product, or two if `TWO`.
#[inline]
#[target_feature(enable = "neon")]
fn add<const R: usize, const TWO: bool>(
    sums: &mut [[int32x4_t; 4]; R],
    rows: &[&[[u8; 16]]; R],
    panel: &[[u8; GROUP]],
    flip: int8x16_t,
) {
    for (g, group) in panel.iter().enumerate() {
        let w = load_group(group);
        for r in 0..R {
            let a = load_a(&rows[r][g], flip);
            for (sum, w) in sums[r].iter_mut().zip(w) {
                let low = vmull_s8(vget_low_s8(a), vget_low_s8(w));
                if TWO {
                    *sum = vpadalq_s16(*sum, vmlal_high_s8(low, a, w));
                } else {
                    *sum = vpadalq_s16(vpadalq_s16(*sum, low), vmull_high_s8(a, w));
                }
            }
        }
    }
}

/// Adds groups, widening the 16-bit lanes every `steps` groups.
#[inline]
#[target_feature(enable = "neon")]
fn add_steps<const R: usize>(
    sums: &mut [[int32x4_t; 4]; R],
    rows: &[&[[u8; 16]]; R],
    panel: &[[u8; GROUP]],
    flip: int8x16_t,
    steps: usize,
) {
    // 16 partial sums fill half of the registers; the 32-bit sums wait in memory.
    let mut waiting = [[[0_i32; 4]; 4]; R];
    let mut start = 0;
    while start < panel.len() {
        let end = usize::min(start + steps, panel.len());
        let mut partial: [[int16x8_t; 4]; R] = [[vdupq_n_s16(0); 4]; R];
        for (g, group) in panel[start..end].iter().enumerate() {
            let w = load_group(group);
            for r in 0..R {
                let a = load_a(&rows[r][start + g], flip);
                for (partial, w) in partial[r].iter_mut().zip(w) {
                    *partial = vmlal_s8(*partial, vget_low_s8(a), vget_low_s8(w));
                    *partial = vmlal_high_s8(*partial, a, w);
                }
            }
        }
        for (waiting, partial) in waiting
            .as_flattened_mut()
            .iter_mut()
            .zip(partial.as_flattened())
        {
            store_sums(waiting, vpadalq_s16(load_sums(waiting), *partial));
        }
        start = end;
    }
    for (sum, waiting) in sums
        .as_flattened_mut()
        .iter_mut()
        .zip(waiting.as_flattened())
    {
        *sum = load_sums(waiting);
    }
}
