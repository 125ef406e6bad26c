//! The peak of `USMMLA`: 2 x 8 by 8 x 2, 32 products an instruction.

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

/// `sum[2i + j] += a[8i ..] . w[8j ..]`, eight products each. Not `pure`: equal
/// sums would be computed once.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn usmmla(mut sum: int32x4_t, a: int8x16_t, w: int8x16_t) -> int32x4_t {
    // SAFETY: the function requires the matrix product; registers only.
    unsafe {
        asm!(
            "usmmla {sum:v}.4s, {a:v}.16b, {w:v}.16b",
            sum = inout(vreg) sum,
            a = in(vreg) a,
            w = in(vreg) w,
            options(nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// One instruction serves all widths.
#[target_feature(enable = "neon,i8mm")]
pub(super) fn peak(_: u8, _: BitWidth, rounds: u64) -> PeakRun {
    let a = black_box(vdupq_n_s8(ACTIVATION));
    let w = black_box(vdupq_n_s8(WEIGHT));
    let mut sums = [vdupq_n_s32(0); SUMS];
    for _ in 0..rounds * STEPS {
        for sum in &mut sums {
            *sum = usmmla(*sum, a, w);
        }
    }
    total("usmmla", rounds, 32, &sums)
}
