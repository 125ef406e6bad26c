//! Products at the ends of what 8 and 16 bits hold: the longest inner dimension that a
//! kernel adds without widening, and the next ones, with every operand at an end of its
//! range. The budgets are those of NEON (`docs/kernels.md`); every ISA is tested.

mod common;

use common::{bits, for_each_isa};
use tpvit_kernels::{BitWidth, GemmShape, Output, Requant, reference};

const M: usize = 7;
const N: usize = 17;

/// Compares the product of constant activations and weights.
fn check(weight_bits: BitWidth, act_max: u8, k: usize, activation: u8, weight: u8) {
    let shape = GemmShape {
        n: N,
        k,
        weight_bits,
        act_max,
    };
    let a = vec![activation; M * k];
    let row_bytes = weight_bits.row_bytes(k);
    let mut dense = vec![0; shape.dense_len()];
    for row in dense.chunks_exact_mut(row_bytes) {
        reference::unpack::pack_codes(weight_bits, &vec![weight; k], row);
    }
    let requant = Requant {
        scale: &[1.0; N],
        bias: &[0.0; N],
        correction: &[0; N],
        weight_zero: None,
    };
    let mut expected = vec![0.0; M * N];
    let mut out = Output::F32 { out: &mut expected };
    reference::gemm::gemm(&shape, M, &a, &dense, &requant, None, &mut out);
    for_each_isa(|kernels| {
        let mut packed = vec![0xaa; kernels.packed_len(&shape)];
        kernels.pack_weights(&shape, &dense, &mut packed);
        let mut scratch = vec![0xaa; kernels.gemm_scratch_len(&shape, M)];
        let mut sums = vec![0.0; M * N];
        let out = Output::F32 { out: &mut sums };
        kernels.gemm(&shape, &a, &packed, &requant, None, &mut scratch, out);
        assert_eq!(
            bits(&sums),
            bits(&expected),
            "{:?} {shape:?}, {activation} times code {weight}",
            kernels.isa()
        );
    });
}

/// Every pair of ends at `budget` and around it.
fn check_around(weight_bits: BitWidth, act_max: u8, budget: usize) {
    let top = weight_bits.max_code();
    for k in [
        budget,
        budget + 1,
        budget + 16,
        budget + 33,
        2 * budget + 129,
    ] {
        for activation in [0, act_max] {
            for weight in [0, 1, top] {
                check(weight_bits, act_max, k, activation, weight);
            }
        }
    }
}

/// One group, two groups, eight groups: what a step of each form takes.
#[test]
fn steps_end_where_k_does() {
    for weight_bits in BitWidth::ALL {
        for act_max in [255, 127, 63, 15, 7, 3] {
            for k in [15, 16, 17, 31, 32, 33, 127, 128, 129, 159, 160, 161, 300] {
                let top = weight_bits.max_code();
                check(weight_bits, act_max, k, act_max, 0);
                check(weight_bits, act_max, k, act_max, top);
                check(weight_bits, act_max, k, 0, top);
            }
        }
    }
}

/// `Form::Words`: two products of 16 bits a group.
#[test]
fn sixteen_bits_hold_their_groups() {
    for (weight_bits, act_max, groups) in [
        (BitWidth::B6, 63, 16),
        (BitWidth::B4, 255, 15),
        (BitWidth::B4, 63, 64),
        (BitWidth::B3, 255, 31),
        (BitWidth::B3, 63, 128),
        (BitWidth::B2, 255, 63),
    ] {
        check_around(weight_bits, act_max, 16 * groups);
    }
}

/// `DenseForm::Pairs`: 128 rounds of two sums of two products, 32 k each.
#[test]
fn pairs_of_8_bits_end_after_4096() {
    check_around(BitWidth::B4, 15, 4096);
    check_around(BitWidth::B4, 7, 4096);
}

/// `DenseForm::Eights`: 128 rounds of two sums of eight products, 128 k each.
#[test]
fn eights_of_8_bits_end_after_16384() {
    check_around(BitWidth::B3, 7, 16_384);
    check_around(BitWidth::B2, 3, 16_384);
}
