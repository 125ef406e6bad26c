//! What the peaks of all Arm ISAs share: so many sums, and how they are added up.

use core::arch::aarch64::{int32x4_t, vaddvq_s32};

use crate::peak::PeakRun;

/// Independent sums, as in the largest tiles: more than latency times throughput,
/// 3 to 4 cycles by 2 (or 4) instructions.
pub(super) const SUMS: usize = 16;

/// Steps of a round: a power of 2 that 16 bits hold in every form of NEON's.
pub(super) const STEPS: u64 = 128;

/// The run of `rounds`, in each step of which each sum took `products` products.
#[target_feature(enable = "neon")]
pub(super) fn total(
    instructions: &'static str,
    rounds: u64,
    products: u64,
    sums: &[int32x4_t; SUMS],
) -> PeakRun {
    let mut lanes = [0; SUMS];
    for (lane, &sum) in lanes.iter_mut().zip(sums) {
        *lane = vaddvq_s32(sum);
    }
    let macs = rounds * STEPS * SUMS as u64 * products;
    PeakRun::new(instructions, macs, &lanes)
}
