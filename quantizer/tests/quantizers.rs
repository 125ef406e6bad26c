//! Properties every quantizer keeps, whatever it is fitted to.

use proptest::prelude::*;
use tpvit_models::{BitWidth, SoftmaxCodebook, SoftmaxKind, SoftmaxMethod, SoftmaxQuant};
use tpvit_quantizer::quantizers::log2::Log2;
use tpvit_quantizer::quantizers::row_maximum::RowMaximum;
use tpvit_quantizer::quantizers::softmax::{self, AttentionSamples, SoftmaxQuantizer};
use tpvit_quantizer::quantizers::sulq::Sulq;
use tpvit_quantizer::quantizers::truncated_uniform_log2::{LastCode, TruncatedUniformLog2};
use tpvit_quantizer::quantizers::{Affine, Distribution, RangeFit, ZeroPoint, weight};

const WIDTHS: [BitWidth; 5] = [
    BitWidth::B2,
    BitWidth::B3,
    BitWidth::B4,
    BitWidth::B6,
    BitWidth::B8,
];

fn width() -> impl Strategy<Value = BitWidth> {
    prop::sample::select(WIDTHS.to_vec())
}

fn values() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(-50.0f32..50.0, 1..200)
}

fn distribution(values: &[f32]) -> Distribution {
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    Distribution::from_sample(values.to_vec(), low, high)
}

/// Every softmax quantizer, in each of its variants.
fn softmax_quantizers() -> Vec<Box<dyn SoftmaxQuantizer>> {
    let mut all: Vec<Box<dyn SoftmaxQuantizer>> = vec![Box::new(RowMaximum)];
    for renormalise in [false, true] {
        all.push(Box::new(Sulq { renormalise }));
        for flag in [false, true] {
            all.push(Box::new(Log2 {
                zero_code: flag,
                renormalise,
            }));
            for last_code in [LastCode::Bound, LastCode::Zero] {
                all.push(Box::new(TruncatedUniformLog2 {
                    last_code,
                    integer_step: flag,
                    renormalise,
                }));
            }
        }
    }
    all
}

/// Softmax of random scores, with random values.
fn samples(tokens: usize) -> impl Strategy<Value = AttentionSamples> {
    const ROWS: usize = 4;
    const HEAD_DIM: usize = 8;
    let scores = prop::collection::vec(-6.0f32..6.0, ROWS * tokens);
    let values = prop::collection::vec(-2.0f32..2.0, tokens * HEAD_DIM);
    (scores, values).prop_map(move |(scores, values)| {
        let mut samples = AttentionSamples::new(tokens, HEAD_DIM);
        let rows = scores.chunks(tokens).flat_map(|row| {
            let sum: f32 = row.iter().map(|x| x.exp()).sum();
            row.iter().map(move |x| x.exp() / sum)
        });
        samples.push(0, rows.collect(), values);
        samples
    })
}

/// What every `SoftmaxQuant` must be for the integer kernels to execute it.
fn check_contract(name: &str, bits: BitWidth, tokens: usize, quant: &SoftmaxQuant) {
    let q = codebook(quant);
    let levels = usize::from(bits.max_code()) + 1;
    let falling = q.multipliers.is_sorted_by(|a, b| a >= b);
    assert_eq!(q.multipliers.len(), levels, "{name}: 2^bits levels");
    assert_eq!(q.thresholds.len(), levels - 1, "{name}");
    assert!(q.thresholds.is_sorted(), "{name}: {:?}", q.thresholds);
    assert!(!q.thresholds.iter().any(|t| t.is_nan()), "{name}");
    assert!(falling, "{name}: {:?}", q.multipliers);
    let largest = q.multipliers.iter().map(|m| u64::from(m.unsigned_abs()));
    let largest = largest.max().expect("a level");
    assert!(largest <= 1 << 14, "{name}: multiplier {largest}");
    assert!((tokens as u64) * largest * 255 < 1 << 31, "{name}");
    match quant.kind {
        SoftmaxKind::Static => assert!(q.scale.is_finite() && q.scale > 0.0, "{name}"),
        SoftmaxKind::RowMax => assert_eq!(q.scale, 0.0, "{name}"),
    }
}

/// What a quantizer was fitted to all heads with.
fn codebook(quant: &SoftmaxQuant) -> &SoftmaxCodebook {
    assert_eq!(quant.codebooks.len(), 1, "one for all heads");
    quant.codebook(0)
}

/// Whether shifts execute a level: it is `2^i`, `2^i - 2^j` or 0.
fn is_shift(multiplier: i16) -> bool {
    let power = |m: i32| m & (m - 1) == 0;
    let m = i32::from(multiplier);
    m >= 0 && (power(m) || (0..15).any(|j| power(m + (1 << j))))
}

proptest! {
    #[test]
    fn uniform_is_within_half_a_step_inside_its_range(
        bits in width(), values in values(), free in any::<bool>(),
    ) {
        let zero = if free { ZeroPoint::Free } else { ZeroPoint::Code };
        let affine = Affine::fit(bits, zero, RangeFit::MinMax, &distribution(&values));
        let range = affine.decode(0)..=affine.decode(bits.max_code());
        for x in values {
            let error = (affine.decode(affine.encode(bits, x)) - x).abs();
            // Rounding the zero point moves the range by up to half a step,
            // which what it leaves out pays on top.
            let steps = if range.contains(&x) { 0.5 } else { 1.0 };
            // x / scale <= 2^16 in f32 is off by 2^-7 of a step at most.
            prop_assert!(error <= (steps + 0.01) * affine.scale, "{x}: {error}");
        }
    }

    #[test]
    fn uniform_codes_are_monotone_and_stable(
        bits in width(), values in values(), fit in 0..3usize,
    ) {
        let fit = [RangeFit::MinMax, RangeFit::Percentile(0.99), RangeFit::Mse][fit];
        let affine = Affine::fit(bits, ZeroPoint::Code, fit, &distribution(&values));
        prop_assert!(affine.scale.is_finite() && affine.scale > 0.0);
        prop_assert!((0..=i32::from(bits.max_code())).contains(&affine.zero_point));
        let mut sorted = values;
        sorted.sort_by(f32::total_cmp);
        let codes: Vec<u8> = sorted.iter().map(|&x| affine.encode(bits, x)).collect();
        prop_assert!(codes.is_sorted());
        for code in 0..=bits.max_code() {
            prop_assert_eq!(affine.encode(bits, affine.decode(code)), code);
        }
    }

    #[test]
    fn searching_never_loses_to_min_max(bits in width(), values in values()) {
        let distribution = distribution(&values);
        let error = |fit| {
            let affine = Affine::fit(bits, ZeroPoint::Code, fit, &distribution);
            distribution.squared_error(bits, affine)
        };
        prop_assert!(error(RangeFit::Mse) <= error(RangeFit::MinMax));
    }

    #[test]
    fn weights_are_stable_and_in_range(
        bits in width(), rows in 1..4usize, row in prop::collection::vec(-1.0f32..1.0, 1..60),
    ) {
        let cols = row.len();
        let scaled = |r: usize| row.iter().map(move |w| w * (r + 1) as f32);
        let weights: Vec<f32> = (0..rows).flat_map(scaled).collect();
        let quant = weight::quantize(bits, cols, &weights, None);
        prop_assert_eq!(quant.codes.len(), rows * cols);
        prop_assert!(quant.codes.iter().all(|&c| c <= bits.max_code()));
        prop_assert!(quant.zero_point.iter().all(|&z| z <= bits.max_code()));
        if bits == BitWidth::B8 {
            prop_assert!(quant.zero_point.iter().all(|&z| z == 128));
        }
        let fits = quant.scale.iter().zip(&quant.zero_point);
        let fits: Vec<Affine> = fits
            .map(|(&scale, &z)| Affine { scale, zero_point: i32::from(z) })
            .collect();
        let again = weight::encode(bits, cols, &weight::dequantize(&quant), &fits);
        prop_assert_eq!(again, quant);
    }

    #[test]
    fn renormalised_rows_sum_to_one(
        bits in width(), scores in prop::collection::vec(0.0f32..20.0, 1..100),
    ) {
        let least = scores.iter().copied().fold(f32::INFINITY, f32::min);
        let t: Vec<f32> = scores.iter().map(|x| x - least).collect();
        let quant = RowMaximum.fit(bits, &AttentionSamples::new(t.len(), 1));
        let mut row = vec![0.0; t.len()];
        softmax::quantize_row(&quant, 0, &t, &mut row, None);
        prop_assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }
}

proptest! {
    // Each case fits ten quantizers.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn softmax_quantizers_keep_the_contract(
        bits in width(), samples in samples(20), t in prop::collection::vec(0.0f32..40.0, 2..50),
    ) {
        let mut t = t;
        t.sort_by(f32::total_cmp);
        for quantizer in softmax_quantizers() {
            let name = quantizer.name();
            let quant = quantizer.fit(bits, &samples);
            prop_assert_eq!(quant.method, quantizer.method());
            check_contract(name, bits, samples.tokens(), &quant);
            let codes: Vec<u8> = t.iter().map(|&t| softmax::encode(codebook(&quant), t)).collect();
            prop_assert!(codes.is_sorted(), "{}", name);
            prop_assert!(codes.iter().all(|&c| c <= bits.max_code()));
        }
    }

    #[test]
    fn encoding_what_a_static_code_means_gives_its_level(
        bits in width(), samples in samples(20),
    ) {
        for quantizer in softmax_quantizers() {
            // Row-maximum levels share units, SULQ rounds the exponent
            // after choosing the code: neither promises the round trip.
            if matches!(quantizer.method(), SoftmaxMethod::RowMax | SoftmaxMethod::Sulq) {
                continue;
            }
            let quant = quantizer.fit(bits, &samples);
            let level = |code: u8| codebook(&quant).multipliers[usize::from(code)];
            for code in 0..=bits.max_code() {
                let p = softmax::decode(quant.kind, codebook(&quant), code);
                let again = softmax::encode(codebook(&quant), softmax::octaves(p));
                // Both terms of a level are rounded to the unit of the codebook.
                prop_assert!(level(code).abs_diff(level(again)) <= 1, "{}: {} became {}",
                    quantizer.name(), code, again);
            }
        }
    }

    #[test]
    fn whole_octaves_are_shifts(bits in width(), samples in samples(20)) {
        for last_code in [LastCode::Bound, LastCode::Zero] {
            let quantizer = TruncatedUniformLog2 {
                last_code,
                integer_step: true,
                renormalise: false,
            };
            let quant = quantizer.fit(bits, &samples);
            let multipliers = &codebook(&quant).multipliers;
            prop_assert!(multipliers.iter().all(|&m| is_shift(m)), "{:?}", multipliers);
        }
        let quant = Log2::default().fit(bits, &samples);
        let mut multipliers = codebook(&quant).multipliers.iter();
        prop_assert!(multipliers.all(|&m| m == 0 || m.count_ones() == 1));
    }
}

#[test]
fn row_maximum_at_3_bits_is_the_published_table() {
    let quant = RowMaximum.fit(BitWidth::B3, &AttentionSamples::new(197, 64));
    let multipliers = &codebook(&quant).multipliers;
    assert_eq!(*multipliers, [127, 63, 31, 15, 7, 3, 1, 0]);
    assert!(multipliers.iter().all(|&m| is_shift(m)));
}

#[test]
fn row_maximum_at_4_bits_loses_two_levels_to_the_codebook() {
    let quant = RowMaximum.fit(BitWidth::B4, &AttentionSamples::new(197, 64));
    let mut levels = codebook(&quant).multipliers.clone();
    assert_eq!([levels[0], levels[15]], [127, 0]);
    levels.dedup();
    assert_eq!(levels.len(), 14, "{levels:?}");
}

#[test]
fn static_height_keeps_sums_in_i32() {
    assert_eq!(softmax::height(197), 1 << 14);
    assert_eq!(softmax::height(514), 1 << 14);
    assert_eq!(softmax::height(515), 1 << 13);
    assert_eq!(softmax::height(1025), 1 << 13);
}

#[test]
fn two_bounds_describe_a_truncated_grid() {
    let quantizer = TruncatedUniformLog2::default();
    let quant = quantizer.with_range(BitWidth::B3, 1.0, 0.5, 1 << 14);
    let t = (0..7).map(|c| 1.25 + 0.5 * c as f32);
    for (found, expected) in codebook(&quant).thresholds.iter().zip(t) {
        assert!((found - expected).abs() < 1e-5, "{found} {expected}");
    }
    assert_eq!(softmax::decode(quant.kind, codebook(&quant), 0), 0.5);
    assert_eq!(softmax::decode(quant.kind, codebook(&quant), 2), 0.25);
}
