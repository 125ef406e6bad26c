//! The peak of AVX2's two ways to multiply and accumulate (`tile.rs`):
//!
//! | operands | instructions | products |
//! |---|---|---|
//! | a pair fits 16 bits four times | `vpmaddubsw`, `vpaddw` | 32 |
//! | others, widened beforehand | `vpmaddwd`, `vpaddd` | 16 |
//!
//! The first adds 16-bit lanes into 32 bits once a round, as the GEMM does when a
//! lane is full.

use core::{
    arch::{
        asm,
        x86_64::{
            __m256i, _mm256_add_epi16, _mm256_add_epi32, _mm256_madd_epi16, _mm256_set1_epi8,
            _mm256_set1_epi16, _mm256_setzero_si256, _mm256_storeu_si256,
        },
    },
    hint::black_box,
};

use super::tile::{Path, path};
use crate::{
    BitWidth,
    peak::{ACTIVATION, PeakRun, WEIGHT},
};

/// Sums, as in the 6 x 16 tile; with two operands and a product they fill 15 of
/// 16 registers.
const SUMS: usize = 12;

/// Steps of a round: what a 16-bit lane holds of 4-bit operands, and a power of 2.
const STEPS: u64 = 128;

#[inline]
#[target_feature(enable = "avx2")]
fn store(lanes: &mut [i32; 8], value: __m256i) {
    // SAFETY: `lanes` is 32 writable bytes; `storeu` needs no alignment.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), value) }
}

/// `vpmaddubsw`, written out: equal products of the intrinsic would be computed
/// once and not in every step.
#[inline]
#[target_feature(enable = "avx2")]
fn maddubs(a: __m256i, w: __m256i) -> __m256i {
    let product;
    // SAFETY: the function requires AVX2; registers only.
    unsafe {
        asm!(
            "vpmaddubsw {product}, {a}, {w}",
            product = lateout(ymm_reg) product,
            a = in(ymm_reg) a,
            w = in(ymm_reg) w,
            options(nomem, nostack, preserves_flags),
        );
    }
    product
}

/// `vpmaddwd`, written out for the same reason.
#[inline]
#[target_feature(enable = "avx2")]
fn madd(a: __m256i, w: __m256i) -> __m256i {
    let product;
    // SAFETY: the function requires AVX2; registers only.
    unsafe {
        asm!(
            "vpmaddwd {product}, {a}, {w}",
            product = lateout(ymm_reg) product,
            a = in(ymm_reg) a,
            w = in(ymm_reg) w,
            options(nomem, nostack, preserves_flags),
        );
    }
    product
}

#[target_feature(enable = "avx2")]
pub(super) fn peak(act_max: u8, weight_bits: BitWidth, rounds: u64) -> PeakRun {
    match path(act_max, weight_bits.center()) {
        Path::Bytes { spill: _ } => bytes(rounds),
        Path::Words => words(rounds),
    }
}

#[target_feature(enable = "avx2")]
fn bytes(rounds: u64) -> PeakRun {
    let a = black_box(_mm256_set1_epi8(ACTIVATION));
    let w = black_box(_mm256_set1_epi8(WEIGHT));
    let ones = _mm256_set1_epi16(1);
    let mut sums = [_mm256_setzero_si256(); SUMS];
    for _ in 0..rounds {
        let mut partial = [_mm256_setzero_si256(); SUMS];
        for _ in 0..STEPS {
            for partial in &mut partial {
                *partial = _mm256_add_epi16(*partial, maddubs(a, w));
            }
        }
        for (sum, partial) in sums.iter_mut().zip(partial) {
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(partial, ones));
        }
    }
    total("vpmaddubsw, vpaddw ymm", rounds, 32, &sums)
}

#[target_feature(enable = "avx2")]
fn words(rounds: u64) -> PeakRun {
    let a = black_box(_mm256_set1_epi16(i16::from(ACTIVATION)));
    let w = black_box(_mm256_set1_epi16(i16::from(WEIGHT)));
    let mut sums = [_mm256_setzero_si256(); SUMS];
    for _ in 0..rounds * STEPS {
        for sum in &mut sums {
            *sum = _mm256_add_epi32(*sum, madd(a, w));
        }
    }
    total("vpmaddwd, vpaddd ymm", rounds, 16, &sums)
}

#[target_feature(enable = "avx2")]
fn total(
    instructions: &'static str,
    rounds: u64,
    products: u64,
    sums: &[__m256i; SUMS],
) -> PeakRun {
    let mut lanes = [[0; 8]; SUMS];
    for (lanes, &sum) in lanes.iter_mut().zip(sums) {
        store(lanes, sum);
    }
    let macs = rounds * STEPS * SUMS as u64 * products;
    PeakRun::new(instructions, macs, lanes.as_flattened())
}
