//! Which product is exact: what 8 and 16 bits hold.
//!
//! NEON has no 8-bit dot product. Products of bytes are added in 8 or 16 bits
//! for as long as that is exact, and then widened by pairs:
//!
//! ```text
//! SMULL, SMLAL    8 products of bytes into 8 sums of 16 bits
//! MUL,   MLA     16 products of bytes into 16 sums of 8 bits
//! SADALP          pairs of sums into sums twice as wide
//! ```
//!
//! **Signs.** All products are signed. Activations `0 ..= A` become `a - s`, and
//! `s * (sum of weights)` is owed, which the packed panel knows. The middle,
//! `s = A / 2`, makes products smallest; 8 bits need `s = 128`. Weights of b bits
//! lie in `-2^(b-1) ..= 2^(b-1) - 1`, activations of c bits now in
//! `-(2^(c-1) - 1) ..= 2^(c-1)`: the magnitudes `2^(b-1)` and `2^(c-1)` meet only
//! with opposite signs, at the end of the range that is one longer. So full-range
//! codes have the whole budget and no weight is forbidden:
//!
//! ```text
//! 8 bits hold  2^7  / 2^(b-1+c-1) = 2^(9-b-c)   products      W4A4 2,  W3A3 8,  W2A2 32
//! 16 bits hold 2^15 / 2^(b-1+c-1) = 2^(17-b-c)  products      W6A6 32, W4A6 128
//! ```
//!
//! Of 8-bit activations, whose ends are -128 and 127, a little less: 31 with W4.
//!
//! | form | for | instructions for | MAC | rows of a tile |
//! |---|---|---|---|---|
//! | [`Form::One`] | W8A8 with a weight of -128 | SMULL, SADALP, SMULL2, SADALP | 16 | 4 |
//! | [`Form::Two`] | W8A8 | SMULL, SMLAL2, SADALP | 16 | 4 |
//! | [`Form::Words`] | W6A6, W4A8, W4A6 | SMLAL, SMLAL2 | 16 | 4 |
//! | [`DenseForm::Fours`] | W6A8, W8A6 | SMULL, SMLAL2, SMLAL, SMLAL2, SADALP | 32 | 3 |
//! | [`DenseForm::Pairs`] | W4A4 | MUL, MLA, SADALP | 32 | 3 |
//! | [`DenseForm::Eights`] | W3A3, W2A2 | MUL, 7 MLA, SADALP | 128 | 3 |
//!
//! The forms serve every core without a dot product. Each has fewer instructions
//! for a product than those above it, which is what an in-order core with one
//! multiplication a cycle counts (Cortex-A53). A Cortex-A72 takes two cycles for
//! `MUL` and `MLA` of 16 bytes and one for `SMULL`, so all forms have 8 MAC a
//! cycle there and none is worse than another: nothing is gained by asking which
//! core it is (`bench/mca.sh`).

use super::tile::{MR, MR_DENSE};

/// How products are added, in tiles of [`MR`] rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// 16 bits hold one product.
    One,
    /// 16 bits hold two: a group of 16 k.
    Two,
    /// 16 bits hold two for each of so many groups, at least 12.
    Words {
        /// Groups between widenings.
        groups: usize,
    },
}

/// How products are added with more operands in registers, in tiles of [`MR_DENSE`]
/// rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DenseForm {
    /// 16 bits hold four products: two groups.
    Fours,
    /// 8 bits hold two: one of each of two groups.
    Pairs,
    /// 8 bits hold eight: one of each of eight groups.
    Eights,
}

/// Rounds of `SADALP` from 8 bits that 16 bits hold: each adds two sums, and
/// `128 * 2 * -128 = -2^15`.
pub(super) const BYTE_ROUNDS: usize = 128;

/// How the operands of a tile are read and multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operands {
    /// Subtracted from each activation.
    pub(super) shift: u8,
    /// What the products allow.
    pub(super) form: Form,
    /// The better form, if they allow one.
    pub(super) dense: Option<DenseForm>,
}

impl Operands {
    /// For activations `0 ..= act_max`, shifted to the middle, and weights
    /// `weight_min ..= weight_max`.
    pub(super) const fn new(act_max: u8, weight_min: i8, weight_max: i8) -> Self {
        // What is above the middle must not exceed 127.
        let shift = if act_max == 255 { 128 } else { act_max / 2 };
        Self::shifted(act_max, shift, weight_min, weight_max)
    }

    /// As [`new`](Self::new), with activations `-shift ..= act_max - shift`.
    pub(super) const fn shifted(act_max: u8, shift: u8, weight_min: i8, weight_max: i8) -> Self {
        let low = -(shift as i32);
        let high = act_max as i32 - shift as i32;
        let (weight_min, weight_max) = (weight_min as i32, weight_max as i32);
        // The magnitudes of the most negative and the most positive product.
        let negative = max(1, max(-low * weight_max, high * -weight_min));
        let positive = max(1, max(low * weight_min, high * weight_max));
        let bytes = min(128 / negative, 127 / positive);
        let words = min(32768 / negative, 32767 / positive);
        let form = if words >= 24 {
            Form::Words {
                groups: words as usize / 2,
            }
        } else if words >= 2 {
            Form::Two
        } else {
            Form::One
        };
        let dense = if bytes >= 8 {
            Some(DenseForm::Eights)
        } else if bytes >= 2 {
            Some(DenseForm::Pairs)
        } else if words >= 4 && words < 24 {
            Some(DenseForm::Fours)
        } else {
            None
        };
        Self { shift, form, dense }
    }

    /// Rows of the tile of the best form.
    pub(super) const fn rows(self) -> usize {
        match self.dense {
            Some(_) => MR_DENSE,
            None => MR,
        }
    }
}

const fn max(a: i32, b: i32) -> i32 {
    if a > b { a } else { b }
}

const fn min(a: i32, b: i32) -> i32 {
    if a < b { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::{BYTE_ROUNDS, DenseForm, Form, Operands};

    /// Full-range codes of so many bits.
    fn full_range(act_bits: u32, weight_bits: u32) -> Operands {
        let half = 1_i32 << (weight_bits - 1);
        let act_max = (255_u32 >> (8 - act_bits)) as u8;
        Operands::new(act_max, -half as i8, (half - 1) as i8)
    }

    #[test]
    fn each_scheme_has_its_form() {
        let form = |act_bits, weight_bits| full_range(act_bits, weight_bits).form;
        let dense = |act_bits, weight_bits| full_range(act_bits, weight_bits).dense;
        assert_eq!((form(8, 8), dense(8, 8)), (Form::One, None));
        assert_eq!(Operands::new(255, -127, 127).form, Form::Two);
        assert_eq!(
            (form(6, 6), dense(6, 6)),
            (Form::Words { groups: 16 }, None)
        );
        assert_eq!(
            (form(8, 4), dense(8, 4)),
            (Form::Words { groups: 15 }, None)
        );
        assert_eq!(
            (form(6, 4), dense(6, 4)),
            (Form::Words { groups: 64 }, None)
        );
        assert_eq!(
            (form(8, 3), dense(8, 3)),
            (Form::Words { groups: 31 }, None)
        );
        assert_eq!(
            (form(8, 2), dense(8, 2)),
            (Form::Words { groups: 63 }, None)
        );
        assert_eq!(dense(6, 8), Some(DenseForm::Fours));
        assert_eq!(dense(8, 6), Some(DenseForm::Fours));
        assert_eq!(dense(4, 4), Some(DenseForm::Pairs));
        assert_eq!(dense(4, 3), Some(DenseForm::Pairs));
        assert_eq!(dense(3, 3), Some(DenseForm::Eights));
        assert_eq!(dense(2, 2), Some(DenseForm::Eights));
    }

    /// The extreme products of every scheme, as often as its forms add them, fit.
    #[test]
    fn no_form_overflows() {
        for act_max in 0..=255_u8 {
            for weight_bits in [2, 3, 4, 6, 8] {
                let half = 1_i32 << (weight_bits - 1);
                for weight_min in [-half, 1 - half] {
                    let operands = Operands::new(act_max, weight_min as i8, (half - 1) as i8);
                    let shift = i32::from(operands.shift);
                    let mut products = Vec::new();
                    for a in [-shift, i32::from(act_max) - shift] {
                        assert!(i8::try_from(a).is_ok(), "{act_max}");
                        products.extend([weight_min, half - 1].map(|w| a * w));
                    }
                    for product in products {
                        let words = |count: i32| i16::try_from(count * product).is_ok();
                        let bytes = |count: i32| {
                            let sum = i8::try_from(count * product);
                            let rounds = 2 * BYTE_ROUNDS as i32;
                            sum.is_ok_and(|sum| i16::try_from(rounds * i32::from(sum)).is_ok())
                        };
                        let fits = match operands.form {
                            Form::One => words(1),
                            Form::Two => words(2),
                            Form::Words { groups } => words(2 * groups as i32),
                        };
                        assert!(fits, "a {act_max}, w {weight_bits}: {operands:?}");
                        let fits = match operands.dense {
                            None => true,
                            Some(DenseForm::Fours) => words(4),
                            Some(DenseForm::Pairs) => bytes(2),
                            Some(DenseForm::Eights) => bytes(8),
                        };
                        assert!(fits, "a {act_max}, w {weight_bits}: {operands:?}");
                    }
                }
            }
        }
    }
}
