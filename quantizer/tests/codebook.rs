//! Properties of the levels that are chosen out of an 8-bit grid.

use proptest::prelude::*;
use tpvit_models::{BitWidth, Codebook};
use tpvit_quantizer::quantizers::codebook::{Grid, nearest};
use tpvit_quantizer::quantizers::{Affine, ZeroPoint};

const WIDTHS: [BitWidth; 3] = [BitWidth::B2, BitWidth::B3, BitWidth::B4];

/// Values with weights.
fn values() -> impl Strategy<Value = Vec<(f32, f32)>> {
    prop::collection::vec((-3.0f32..9.0, 0.1f32..4.0), 1..300)
}

/// The grid over all of the values and 0.
fn grid(values: &[(f32, f32)]) -> Grid {
    let low = values.iter().map(|v| v.0).fold(f32::INFINITY, f32::min);
    let high = values.iter().map(|v| v.0).fold(f32::NEG_INFINITY, f32::max);
    let affine = Affine::from_range(BitWidth::B8, ZeroPoint::Code, low, high);
    Grid::new(affine, values.iter().copied())
}

/// A grid whose values are its codes, `counts[i]` times code `i`.
fn grid_of_codes(counts: &[u8]) -> Grid {
    let affine = Affine {
        scale: 1.0,
        zero_point: 0,
    };
    let values = counts.iter().enumerate();
    let values = values.filter(|&(_, &count)| count > 0);
    Grid::new(affine, values.map(|(i, &count)| (i as f32, count.into())))
}

/// The weighted sum of squared errors, value by value.
fn error(affine: Affine, codebook: &Codebook, values: &[(f32, f32)]) -> f64 {
    let errors = values.iter().map(|&(x, weight)| {
        let level = codebook.snap(affine.encode(BitWidth::B8, x));
        let steps = f64::from(level) - f64::from(affine.zero_point);
        f64::from(weight) * (f64::from(x) - f64::from(affine.scale) * steps).powi(2)
    });
    errors.sum()
}

/// What every codebook must be.
fn check_contract(bits: BitWidth, codebook: &Codebook) {
    let Codebook { thresholds, levels } = codebook;
    assert_eq!(
        levels.len(),
        usize::from(bits.max_code()) + 1,
        "2^bits levels"
    );
    assert_eq!(thresholds.len(), levels.len() - 1);
    assert!(thresholds.is_sorted() && levels.is_sorted(), "{codebook:?}");
    let mut last = 0;
    for fine in 0..=255u8 {
        let level = codebook.snap(fine);
        assert!(level >= last, "monotone: {codebook:?}");
        last = level;
        assert_eq!(codebook.snap(level), level, "idempotent: {codebook:?}");
        let distance = |l: &u8| fine.abs_diff(*l);
        let least = levels.iter().map(distance).min();
        assert_eq!(Some(fine.abs_diff(level)), least, "nearest: {codebook:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn levels_ascend_and_every_code_goes_to_the_nearest(values in values()) {
        let grid = grid(&values);
        for bits in WIDTHS {
            check_contract(bits, &grid.least_squares(bits));
            check_contract(bits, &grid.shifted_log(bits));
        }
    }

    /// The sums by which errors are found are those of the values.
    #[test]
    fn the_error_is_that_of_the_values(values in values(), clip in 0.2f32..1.0) {
        let high = values.iter().map(|v| v.0).fold(0.0, f32::max);
        let affine = Affine::from_range(BitWidth::B8, ZeroPoint::Code, -2.0, (clip * high).max(0.1));
        let grid = Grid::new(affine, values.iter().copied());
        let codebook = grid.least_squares(BitWidth::B3);
        let expected = error(affine, &codebook, &values);
        // The values' squares in units of the grid are up to (9 / 0.008)^2 = 1.3e6,
        // and sums of 300 in f64 lose 300 * 2^-53 of that.
        prop_assert!((grid.error(&codebook) - expected).abs() <= 1e-6 * (1.0 + expected));
    }

    /// No four levels are better than those found.
    #[test]
    fn least_squares_equals_brute_force(counts in prop::collection::vec(0u8..9, 2..12)) {
        prop_assume!(counts.iter().any(|&c| c > 0));
        let grid = grid_of_codes(&counts);
        let found = grid.error(&grid.least_squares(BitWidth::B2));
        let codes = 0..counts.len() as u8;
        let mut least = f64::INFINITY;
        for a in codes.clone() {
            for b in a..codes.end {
                for c in b..codes.end {
                    for d in c..codes.end {
                        least = least.min(grid.error(&nearest(vec![a, b, c, d])));
                    }
                }
            }
        }
        // Both are sums of small integers.
        prop_assert_eq!(found, least);
    }

    /// More levels are not worse, and none of the shifted logarithm's is better.
    #[test]
    fn least_squares_is_the_least(values in values()) {
        let grid = grid(&values);
        let errors = WIDTHS.map(|bits| grid.error(&grid.least_squares(bits)));
        prop_assert!(errors.is_sorted_by(|a, b| a >= b), "{errors:?}");
        for (bits, least) in WIDTHS.into_iter().zip(errors) {
            let log = grid.error(&grid.shifted_log(bits));
            prop_assert!(least <= log * (1.0 + 1e-9) + 1e-9, "{bits:?}: {least} {log}");
        }
    }

    /// As many values as levels need no error.
    #[test]
    fn few_values_are_exact(codes in prop::collection::btree_set(0usize..256, 1..16)) {
        let mut counts = vec![0; 256];
        for code in codes {
            counts[code] = 3;
        }
        let grid = grid_of_codes(&counts);
        prop_assert_eq!(grid.error(&grid.least_squares(BitWidth::B4)), 0.0);
    }
}

/// Values that are a shifted logarithm are found again, but for the rounding of
/// the levels to the grid, which at most half a step each is.
#[test]
fn a_logarithm_is_found_again() {
    for (minimum, height, delta) in [(0.0, 255.0, 0.5), (17.0, 200.0, 0.4), (30.0, 150.0, 0.8)] {
        let affine = Affine {
            scale: 1.0,
            zero_point: 40,
        };
        let level = |c: i32| minimum - 40.0 + height * (-delta * c as f32).exp2();
        let values: Vec<(f32, f32)> = (0..16).map(|c| (level(c), 1.0)).collect();
        let grid = Grid::new(affine, values.iter().copied());
        let codebook = grid.shifted_log(BitWidth::B4);
        let mean = grid.error(&codebook) / 16.0;
        assert!(
            mean <= 0.25,
            "{minimum} {height} {delta}: {mean} {codebook:?}"
        );
        assert!(codebook.levels.is_sorted());
    }
}

#[test]
#[should_panic(expected = "at most 4 bits")]
fn six_bits_are_too_many() {
    grid_of_codes(&[1, 2, 3]).least_squares(BitWidth::B6);
}
