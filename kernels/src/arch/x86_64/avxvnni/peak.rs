//! The peak of `vpdpbusd` on 256-bit registers: 32 products an instruction.

use core::{
    arch::x86_64::{
        __m256i, _mm256_dpbusd_avx_epi32, _mm256_set1_epi8, _mm256_setzero_si256,
        _mm256_storeu_si256,
    },
    hint::black_box,
};

use crate::{
    BitWidth,
    peak::{ACTIVATION, PeakRun, WEIGHT},
};

/// Sums, as in the 6 x 16 tile: more than latency times throughput, 4 to 5 cycles
/// by 2 instructions.
const SUMS: usize = 12;

/// Steps of a round.
const STEPS: u64 = 128;

#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn store(lanes: &mut [i32; 8], value: __m256i) {
    // SAFETY: `lanes` is 32 writable bytes; `storeu` needs no alignment.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), value) }
}

/// One instruction serves all widths.
#[target_feature(enable = "avx2,avxvnni")]
pub(super) fn peak(_: u8, _: BitWidth, rounds: u64) -> PeakRun {
    let a = black_box(_mm256_set1_epi8(ACTIVATION));
    let w = black_box(_mm256_set1_epi8(WEIGHT));
    let mut sums = [_mm256_setzero_si256(); SUMS];
    for sum in &mut sums {
        // Opaque, or equal sums would be computed once.
        *sum = black_box(*sum);
    }
    for _ in 0..rounds * STEPS {
        for sum in &mut sums {
            *sum = _mm256_dpbusd_avx_epi32(*sum, a, w);
        }
    }
    let mut lanes = [[0; 8]; SUMS];
    for (lanes, sum) in lanes.iter_mut().zip(sums) {
        store(lanes, sum);
    }
    let macs = rounds * STEPS * SUMS as u64 * 32;
    PeakRun::new("vpdpbusd ymm", macs, lanes.as_flattened())
}
