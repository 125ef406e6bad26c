//! The peak of `SDOT`: 16 products an instruction.

use core::{
    arch::{
        aarch64::{int8x16_t, int32x4_t, vdupq_n_s8, vdupq_n_s32},
        asm,
    },
    hint::black_box,
};

use crate::{
    BitWidth,
    arch::aarch64::peak::{STEPS, SUMS, total},
    peak::{ACTIVATION, PeakRun, WEIGHT},
};

/// `sum[i] += w[4i ..] . a[0 .. 4]`, by element as in the GEMM. Not `pure`:
/// equal sums would be computed once.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut sum: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: the function requires the dot product; registers only.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {a:v}.4b[0]",
            sum = inout(vreg) sum,
            w = in(vreg) w,
            a = in(vreg) a,
            options(nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// One instruction serves all widths.
#[target_feature(enable = "neon,dotprod")]
pub(super) fn peak(_: u8, _: BitWidth, rounds: u64) -> PeakRun {
    let a = black_box(vdupq_n_s8(ACTIVATION));
    let w = black_box(vdupq_n_s8(WEIGHT));
    let mut sums = [vdupq_n_s32(0); SUMS];
    for _ in 0..rounds * STEPS {
        for sum in &mut sums {
            *sum = sdot(*sum, w, a);
        }
    }
    total("sdot", rounds, 16, &sums)
}
