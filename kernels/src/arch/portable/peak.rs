//! The peak of plain Rust: the tile's dot products, which the compiler turns into
//! vectors, on operands that stay in the nearest cache.

use core::hint::black_box;

use crate::{
    BitWidth,
    peak::{ACTIVATION, PeakRun, WEIGHT},
};

/// Outputs of a panel: one sum each.
const SUMS: usize = 16;

/// Products of each sum in a step.
const K: usize = 64;

/// Steps of a round.
const STEPS: u64 = 128;

pub(super) fn peak(_: u8, _: BitWidth, rounds: u64) -> PeakRun {
    let a = [ACTIVATION as u8; K];
    let w = [[WEIGHT; K]; SUMS];
    let mut sums = [0_i32; SUMS];
    for _ in 0..rounds * STEPS {
        // Opaque, or the products would be computed once.
        let (a, w) = (black_box(&a), black_box(&w));
        for (sum, w) in sums.iter_mut().zip(w) {
            *sum = sum.wrapping_add(dot(a, w));
        }
    }
    let macs = rounds * STEPS * SUMS as u64 * K as u64;
    PeakRun::new("portable code", macs, &sums)
}

#[inline(always)]
fn dot(a: &[u8; K], w: &[i8; K]) -> i32 {
    a.iter()
        .zip(w)
        .map(|(&a, &w)| i32::from(a) * i32::from(w))
        .sum()
}
