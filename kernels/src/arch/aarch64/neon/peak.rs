//! The peak of NEON's two ways to multiply and accumulate (`tile.rs`):
//!
//! | operands | instructions | products |
//! |---|---|---|
//! | low bits: a 16-bit lane holds many products | `SMLAL`, `SMLAL2` | 16 |
//! | 8 bits: it holds two | `SMULL`, `SMLAL2`, `SADALP` | 16 |
//!
//! The first adds 16-bit lanes into 32 bits once a round, as the GEMM does when a
//! lane is full.

use core::{
    arch::{
        aarch64::{
            int8x16_t, int16x8_t, int32x4_t, vaddvq_s32, vdupq_n_s8, vdupq_n_s16, vdupq_n_s32,
            vmlal_high_s8, vpadalq_s16,
        },
        asm,
    },
    hint::black_box,
};

use super::tile::{Budget, Operands};
use crate::{
    BitWidth,
    peak::{ACTIVATION, PeakRun, WEIGHT},
};

/// Sums, as in the 4 x 4 tile.
const SUMS: usize = 16;

/// Steps of a round: what a 16-bit lane holds of 4-bit operands, and a power of 2.
const STEPS: u64 = 128;

/// Products of the lower eight lanes, written out: equal products of the
/// intrinsic would be computed once and not in every step.
#[inline]
#[target_feature(enable = "neon")]
fn smull(a: int8x16_t, w: int8x16_t) -> int16x8_t {
    let product;
    // SAFETY: the function requires NEON; registers only.
    unsafe {
        asm!(
            "smull {product:v}.8h, {a:v}.8b, {w:v}.8b",
            product = lateout(vreg) product,
            a = in(vreg) a,
            w = in(vreg) w,
            options(nomem, nostack, preserves_flags),
        );
    }
    product
}

/// `sum += a * w` in the lower eight lanes, written out for the same reason.
#[inline]
#[target_feature(enable = "neon")]
fn smlal(mut sum: int16x8_t, a: int8x16_t, w: int8x16_t) -> int16x8_t {
    // SAFETY: the function requires NEON; registers only.
    unsafe {
        asm!(
            "smlal {sum:v}.8h, {a:v}.8b, {w:v}.8b",
            sum = inout(vreg) sum,
            a = in(vreg) a,
            w = in(vreg) w,
            options(nomem, nostack, preserves_flags),
        );
    }
    sum
}

#[target_feature(enable = "neon")]
pub(super) fn peak(act_max: u8, weight_bits: BitWidth, rounds: u64) -> PeakRun {
    match Operands::new(act_max, weight_bits.center()).budget {
        Budget::One | Budget::Two => widened_each_step(rounds),
        Budget::Steps(_) => widened_each_round(rounds),
    }
}

#[target_feature(enable = "neon")]
fn widened_each_step(rounds: u64) -> PeakRun {
    let a = black_box(vdupq_n_s8(ACTIVATION));
    let w = black_box(vdupq_n_s8(WEIGHT));
    let mut sums = [vdupq_n_s32(0); SUMS];
    for _ in 0..rounds * STEPS {
        for sum in &mut sums {
            *sum = vpadalq_s16(*sum, vmlal_high_s8(smull(a, w), a, w));
        }
    }
    total("smull, smlal2, sadalp", rounds, &sums)
}

#[target_feature(enable = "neon")]
fn widened_each_round(rounds: u64) -> PeakRun {
    let a = black_box(vdupq_n_s8(ACTIVATION));
    let w = black_box(vdupq_n_s8(WEIGHT));
    // The sums wait in memory, as in the GEMM: 16 partial sums and 16 more
    // would take all registers.
    let mut sums = [vdupq_n_s32(0); SUMS];
    for _ in 0..rounds {
        let mut partial = [vdupq_n_s16(0); SUMS];
        for _ in 0..STEPS {
            for partial in &mut partial {
                *partial = vmlal_high_s8(smlal(*partial, a, w), a, w);
            }
        }
        for (sum, partial) in sums.iter_mut().zip(partial) {
            *sum = vpadalq_s16(*sum, partial);
        }
    }
    total("smlal, smlal2", rounds, &sums)
}

#[target_feature(enable = "neon")]
fn total(instructions: &'static str, rounds: u64, sums: &[int32x4_t; SUMS]) -> PeakRun {
    let mut lanes = [0; SUMS];
    for (lane, &sum) in lanes.iter_mut().zip(sums) {
        *lane = vaddvq_s32(sum);
    }
    let macs = rounds * STEPS * SUMS as u64 * 16;
    PeakRun::new(instructions, macs, &lanes)
}
