//! The peak of `vpdpbusd` on 512-bit registers: 64 products an instruction.

use core::{
    arch::x86_64::{
        _mm512_dpbusd_epi32, _mm512_reduce_add_epi32, _mm512_set1_epi8, _mm512_setzero_si512,
    },
    hint::black_box,
};

use crate::{
    BitWidth,
    peak::{ACTIVATION, PeakRun, WEIGHT},
};

/// Sums, as in the 8 x 48 tile: more than latency times throughput, 4 to 5 cycles
/// by 2 instructions.
const SUMS: usize = 24;

/// Steps of a round.
const STEPS: u64 = 128;

/// One instruction serves all widths.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn peak(_: u8, _: BitWidth, rounds: u64) -> PeakRun {
    let a = black_box(_mm512_set1_epi8(ACTIVATION));
    let w = black_box(_mm512_set1_epi8(WEIGHT));
    let mut sums = [_mm512_setzero_si512(); SUMS];
    for sum in &mut sums {
        // Opaque, or equal sums would be computed once.
        *sum = black_box(*sum);
    }
    for _ in 0..rounds * STEPS {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, w);
        }
    }
    let mut lanes = [0; SUMS];
    for (lane, sum) in lanes.iter_mut().zip(sums) {
        *lane = _mm512_reduce_add_epi32(sum);
    }
    let macs = rounds * STEPS * SUMS as u64 * 64;
    PeakRun::new("vpdpbusd zmm", macs, &lanes)
}
