//! The peak run of every ISA here does all that it claims.

mod common;

use common::for_each_isa;
use tpvit_kernels::{BitWidth, PeakRun};

#[test]
fn every_product_is_there() {
    for_each_isa(|kernels| {
        for bits in BitWidth::ALL {
            for act_max in [bits.max_code(), 255] {
                let none = kernels.peak(act_max, bits, 0);
                assert_eq!((none.macs, none.sum), (0, 0));
                let one = kernels.peak(act_max, bits, 1);
                assert!(one.macs > 0);
                // More than a 16-bit lane holds.
                let many = kernels.peak(act_max, bits, 50);
                assert_eq!(many.macs, 50 * one.macs, "{:?}", kernels.isa());
                for run in [one, many] {
                    let sum = PeakRun::PRODUCT.wrapping_mul(run.macs as i32);
                    assert_eq!(run.sum, sum, "{:?} {act_max} {bits:?}", kernels.isa());
                }
            }
        }
    });
}
