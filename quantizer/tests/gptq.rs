//! Rounding with compensation, on small random problems.

use proptest::prelude::*;
use tpvit_models::{BitWidth, WeightQuant};
use tpvit_quantizer::quantizers::gptq::Moments;
use tpvit_quantizer::quantizers::weight;

/// Inputs that mostly move together, `[rows, k]`.
fn correlated(rows: usize, k: usize, noise: f32, random: &mut impl FnMut() -> f32) -> Vec<f32> {
    let mut inputs = Vec::with_capacity(rows * k);
    for _ in 0..rows {
        let common = random();
        inputs.extend((0..k).map(|_| common + noise * random()));
    }
    inputs
}

/// `sum of x x^T`, in f64.
fn second_moments(inputs: &[f32], k: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; k * k];
    for x in inputs.chunks_exact(k) {
        for i in 0..k {
            for j in 0..k {
                sums[i * k + j] += f64::from(x[i]) * f64::from(x[j]);
            }
        }
    }
    sums.into_iter().map(|s| s as f32).collect()
}

/// Numbers in -1..1 from a seed: Knuth's linear congruential generator.
fn random(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// `sum over rows of (w - q)^T H (w - q)`: what [`Moments::round`] makes small.
fn output_error(second: &[f32], k: usize, target: &[f32], quant: &WeightQuant) -> f64 {
    let decoded = weight::dequantize(quant);
    let rows = target.chunks_exact(k).zip(decoded.chunks_exact(k));
    let mut sum = 0.0;
    for (target, decoded) in rows {
        let error = |i: usize| f64::from(target[i] - decoded[i]);
        for i in 0..k {
            for j in 0..k {
                sum += error(i) * f64::from(second[i * k + j]) * error(j);
            }
        }
    }
    sum
}

fn bits() -> impl Strategy<Value = BitWidth> {
    prop::sample::select(vec![
        BitWidth::B2,
        BitWidth::B3,
        BitWidth::B4,
        BitWidth::B6,
        BitWidth::B8,
    ])
}

proptest! {
    /// Inputs that have nothing to do with each other leave nothing to compensate.
    #[test]
    fn a_diagonal_changes_nothing(bits in bits(), k in 1usize..40, seed in any::<u64>()) {
        let mut random = random(seed);
        let target: Vec<f32> = (0..3 * k).map(|_| random()).collect();
        let rounded = weight::quantize(bits, k, &target, None);
        let mut second = vec![0.0; k * k];
        for i in 0..k {
            second[i * k + i] = 1.0 + random().abs();
        }
        let moments = Moments::factor(&second, k, 0.01).expect("positive definite");
        prop_assert_eq!(moments.round(&target, &rounded), rounded);
    }

    /// Weights that lie on the grid stay where they are.
    #[test]
    fn exact_weights_stay(bits in bits(), k in 1usize..40, seed in any::<u64>()) {
        let mut random = random(seed);
        let inputs = correlated(2 * k + 1, k, 0.5, &mut random);
        let target: Vec<f32> = (0..2 * k).map(|_| random()).collect();
        let quant = weight::quantize(bits, k, &target, None);
        let exact = weight::dequantize(&quant);
        let second = second_moments(&inputs, k);
        let moments = Moments::factor(&second, k, 0.01).expect("positive definite");
        prop_assert_eq!(moments.round(&exact, &quant), quant);
    }

    /// Codes stay in range, scales and zero points as they are.
    #[test]
    fn codes_are_codes(bits in bits(), k in 1usize..40, seed in any::<u64>()) {
        let mut random = random(seed);
        let inputs = correlated(k, k, 0.1, &mut random);
        let target: Vec<f32> = (0..2 * k).map(|_| random()).collect();
        // A grid that is too small: most weights are clipped.
        let mut quant = weight::quantize(bits, k, &target, None);
        quant.scale.iter_mut().for_each(|s| *s *= 0.3);
        let second = second_moments(&inputs, k);
        let moments = Moments::factor(&second, k, 0.01).expect("positive definite");
        let WeightQuant { bits: same, scale, zero_point, codes } = moments.round(&target, &quant);
        prop_assert_eq!((same, scale, zero_point), (quant.bits, quant.scale, quant.zero_point));
        prop_assert!(codes.iter().all(|&c| c <= bits.max_code()));
    }
}

/// With strongly correlated inputs the output's error falls to a fraction.
///
/// 64 columns of one common part and a tenth of noise: rounding errors are
/// independent, so plain rounding leaves `sqrt(64)` of them in the common part,
/// which compensation can bring near 0. What stays is the noise part, a
/// hundredth: a quarter is far from both.
#[test]
fn correlated_errors_cancel() {
    let k = 64;
    let mut random = random(5);
    let inputs = correlated(400, k, 0.1, &mut random);
    let second = second_moments(&inputs, k);
    let target: Vec<f32> = (0..32 * k).map(|_| random()).collect();
    for bits in [BitWidth::B3, BitWidth::B4] {
        let rounded = weight::quantize(bits, k, &target, None);
        let moments = Moments::factor(&second, k, 0.01).expect("positive definite");
        let compensated = moments.round(&target, &rounded);
        let before = output_error(&second, k, &target, &rounded);
        let after = output_error(&second, k, &target, &compensated);
        assert!(after < 0.25 * before, "{bits:?}: {before} to {after}");
    }
}

/// The nearest plane is no farther than half a step along each row of R.
///
/// On two columns, the one with the larger diagonal rounded first,
/// `R11^2 = small` and `R22^2 = large - cross^2 / small`. Targets are kept inside
/// the grid, so that nothing is clipped. All 16 pairs of codes are tried too.
#[test]
fn two_columns_keep_the_bound_of_the_nearest_plane() {
    let (k, bits) = (2, BitWidth::B4);
    let mut random = random(9);
    let (mut rounding, mut compensated) = (0.0, 0.0);
    for _ in 0..200 {
        let inputs = correlated(8, k, 0.3, &mut random);
        let second = second_moments(&inputs, k);
        let quant = WeightQuant {
            bits,
            scale: vec![0.25],
            zero_point: vec![8],
            codes: vec![0; 2],
        };
        // Grid -2 to 1.75; compensation moves a target by less than 0.125 * cross / small.
        let target = [0.5 * random(), 0.5 * random()];
        let moments = Moments::factor(&second, k, 0.0).expect("positive definite");
        let found = moments.round(&target, &quant);
        let inside = found.codes.iter().all(|&c| c > 0 && c < bits.max_code());
        assert!(inside, "clipped: {:?}", found.codes);
        let found = output_error(&second, k, &target, &found);

        let at = |i: usize| f64::from(second[i]);
        let (small, large) = (at(0).min(at(3)), at(0).max(at(3)));
        let bound = 0.125f64.powi(2) * (small + large - at(1) * at(1) / small);
        assert!(found <= bound * (1.0 + 1e-4), "{found} above {bound}");

        let error = |codes: [u8; 2]| {
            let codes = codes.to_vec();
            output_error(
                &second,
                k,
                &target,
                &WeightQuant {
                    codes,
                    ..quant.clone()
                },
            )
        };
        let all = (0..16).flat_map(|a| (0..16).map(move |b| [a, b]));
        let least = all.map(error).fold(f64::INFINITY, f64::min);
        assert!(found >= least * (1.0 - 1e-4), "{found} below {least}");
        compensated += found;
        let nearest = |t: f32| (t / 0.25).round_ties_even() as i32 + 8;
        rounding += error(target.map(|t| nearest(t) as u8));
    }
    assert!(compensated < rounding, "{compensated} {rounding}");
}

#[test]
fn infinite_inputs_are_refused() {
    assert!(Moments::factor(&[f32::INFINITY], 1, 0.01).is_none());
    assert!(Moments::factor(&[f32::NAN, 0.0, 0.0, 1.0], 2, 0.01).is_none());
}

/// A column that was always 0 may still get a code.
#[test]
fn silent_inputs_are_rounded_plainly() {
    let second = [1.0, 0.0, 0.0, 0.0];
    let target = [0.7, -0.4];
    let quant = weight::quantize(BitWidth::B4, 2, &target, None);
    let moments = Moments::factor(&second, 2, 0.01).expect("damped");
    assert_eq!(moments.round(&target, &quant), quant);
}
