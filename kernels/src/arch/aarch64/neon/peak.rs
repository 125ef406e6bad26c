//! The peak of NEON's ways to multiply and accumulate ([`super::operands`]):
//!
//! | form | instructions of a step | products |
//! |---|---|---|
//! | one or two products in 16 bits | `SMULL`, `SMLAL2`, `SADALP` | 16 |
//! | four | `SMULL`, `SMLAL2`, `SMLAL`, `SMLAL2`, `SADALP` | 32 |
//! | many | `SMLAL`, `SMLAL2` | 16 |
//! | `P` products in 8 bits | `MUL`, `P - 1` times `MLA`, `SADALP` | `16 P` |
//!
//! Where a step ends in 16 bits, they are added into 32 bits once a round, as the
//! GEMM does when they are full.

use core::{
    arch::{
        aarch64::{
            int8x16_t, int16x8_t, vdupq_n_s8, vdupq_n_s16, vdupq_n_s32, vmlal_high_s8, vpadalq_s8,
            vpadalq_s16,
        },
        asm,
    },
    hint::black_box,
};

use super::operands::{DenseForm, Form, Operands};
use crate::{
    BitWidth,
    arch::aarch64::peak::{STEPS, SUMS, total},
    peak::{ACTIVATION, PeakRun, WEIGHT},
};

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

/// Sixteen products of bytes in bytes, written out for the same reason.
#[inline]
#[target_feature(enable = "neon")]
fn mul(a: int8x16_t, w: int8x16_t) -> int8x16_t {
    let product;
    // SAFETY: the function requires NEON; registers only.
    unsafe {
        asm!(
            "mul {product:v}.16b, {a:v}.16b, {w:v}.16b",
            product = lateout(vreg) product,
            a = in(vreg) a,
            w = in(vreg) w,
            options(nomem, nostack, preserves_flags),
        );
    }
    product
}

/// `sum += a * w` in bytes, written out for the same reason.
#[inline]
#[target_feature(enable = "neon")]
fn mla(mut sum: int8x16_t, a: int8x16_t, w: int8x16_t) -> int8x16_t {
    // SAFETY: the function requires NEON; registers only.
    unsafe {
        asm!(
            "mla {sum:v}.16b, {a:v}.16b, {w:v}.16b",
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
    let center = weight_bits.center();
    let operands = Operands::new(act_max, center.wrapping_neg() as i8, (center - 1) as i8);
    match (operands.dense, operands.form) {
        (Some(DenseForm::Eights), _) => in_bytes::<8>("mul, 7 mla, sadalp", rounds),
        (Some(DenseForm::Pairs), _) => in_bytes::<2>("mul, mla, sadalp", rounds),
        (Some(DenseForm::Fours), _) => fours(rounds),
        (None, Form::Words { .. }) => widened_each_round(rounds),
        // One product alone needs a widening for each half; rare, and slower than two.
        (None, Form::One | Form::Two) => twos(rounds),
    }
}

#[target_feature(enable = "neon")]
fn twos(rounds: u64) -> PeakRun {
    let a = black_box(vdupq_n_s8(ACTIVATION));
    let w = black_box(vdupq_n_s8(WEIGHT));
    let mut sums = [vdupq_n_s32(0); SUMS];
    for _ in 0..rounds * STEPS {
        for sum in &mut sums {
            *sum = vpadalq_s16(*sum, vmlal_high_s8(smull(a, w), a, w));
        }
    }
    total("smull, smlal2, sadalp", rounds, 16, &sums)
}

#[target_feature(enable = "neon")]
fn fours(rounds: u64) -> PeakRun {
    let a = black_box(vdupq_n_s8(ACTIVATION));
    let w = black_box(vdupq_n_s8(WEIGHT));
    let mut sums = [vdupq_n_s32(0); SUMS];
    for _ in 0..rounds * STEPS {
        for sum in &mut sums {
            let two = vmlal_high_s8(smull(a, w), a, w);
            let four = vmlal_high_s8(smlal(two, a, w), a, w);
            *sum = vpadalq_s16(*sum, four);
        }
    }
    total("smull, smlal2, smlal, smlal2, sadalp", rounds, 32, &sums)
}

/// `P` products in each byte, then 16 bits, then once a round 32.
#[target_feature(enable = "neon")]
fn in_bytes<const P: usize>(instructions: &'static str, rounds: u64) -> PeakRun {
    // Bytes and 16 bits hold a step and a round.
    const {
        let product = PeakRun::PRODUCT.unsigned_abs() as u64;
        assert!(P as u64 * product <= 128 && STEPS * 2 * P as u64 * product <= 1 << 15);
    }
    let a = black_box(vdupq_n_s8(ACTIVATION));
    let w = black_box(vdupq_n_s8(WEIGHT));
    let mut sums = [vdupq_n_s32(0); SUMS];
    for _ in 0..rounds {
        let mut partial = [vdupq_n_s16(0); SUMS];
        for _ in 0..STEPS {
            for partial in &mut partial {
                let mut bytes = mul(a, w);
                for _ in 1..P {
                    bytes = mla(bytes, a, w);
                }
                *partial = vpadalq_s8(*partial, bytes);
            }
        }
        for (sum, partial) in sums.iter_mut().zip(partial) {
            *sum = vpadalq_s16(*sum, partial);
        }
    }
    total(instructions, rounds, 16 * P as u64, &sums)
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
    total("smlal, smlal2", rounds, 16, &sums)
}
