//! Properties every quantizer keeps, whatever it is fitted to.

use proptest::prelude::*;
use tpvit_models::{BitWidth, SoftmaxCodebook, SoftmaxKind, SoftmaxQuant};
use tpvit_quantizer::quantizers::adaptive_base_log::{AdaptiveBaseLog, DENOMINATOR, NUMERATORS};
use tpvit_quantizer::quantizers::log_sqrt2::LogSqrt2;
use tpvit_quantizer::quantizers::log2::Log2;
use tpvit_quantizer::quantizers::row_maximum::{self, RowMaximum};
use tpvit_quantizer::quantizers::softmax::{self, AttentionSamples, SoftmaxQuantizer};
use tpvit_quantizer::quantizers::sulq::Sulq;
use tpvit_quantizer::quantizers::truncated_uniform_log2::{LastCode, TruncatedUniformLog2};
use tpvit_quantizer::quantizers::twin_uniform::{MOST_OCTAVES, TwinUniform};
use tpvit_quantizer::quantizers::uniform_softmax::UniformSoftmax;
use tpvit_quantizer::quantizers::{
    Affine, Distribution, OctaveHistogram, RangeFit, ZeroPoint, fit_per_head, weight,
};

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

const LAST_CODES: [LastCode; 3] = [LastCode::Bound, LastCode::BesideZero, LastCode::Zero];

/// Every softmax quantizer, in each of its variants.
fn softmax_quantizers() -> Vec<Box<dyn SoftmaxQuantizer>> {
    let mut all: Vec<Box<dyn SoftmaxQuantizer>> = vec![Box::new(RowMaximum)];
    for renormalise in [false, true] {
        all.push(Box::new(Sulq { renormalise }));
        all.push(Box::new(LogSqrt2 { renormalise }));
        all.push(Box::new(AdaptiveBaseLog { renormalise }));
        all.push(Box::new(UniformSoftmax { renormalise }));
        all.push(Box::new(TwinUniform { renormalise }));
        for flag in [false, true] {
            all.push(Box::new(Log2 {
                zero_code: flag,
                renormalise,
            }));
            for last_code in LAST_CODES {
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
    if quant.renormalise {
        // The file says so: rows are divided by the sum.
        assert!(q.multipliers[0] > 0, "{name}: {:?}", q.multipliers);
        assert!(
            q.multipliers.iter().all(|&m| m >= 0),
            "{name}: {:?}",
            q.multipliers
        );
    }
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

/// The codes whose levels no rounding makes another's: a level is rounded to the
/// codebook's unit, one that is a difference twice, so where neighbours are
/// closer than 8 units, the rounded level may lie beyond a threshold. A level
/// of 0 or less has no logarithm.
fn distinct(multipliers: &[i16]) -> impl Iterator<Item = u8> {
    let exact = multipliers[0] <= 255; // uniform: units, not rounded
    let apart = if exact && multipliers.array_windows().all(|[a, b]| a - b <= 1) {
        1
    } else {
        8
    };
    let far = move |other: Option<&i16>, level: i16| {
        other.is_none_or(|other| other.abs_diff(level) >= apart)
    };
    (0..multipliers.len()).filter_map(move |code| {
        let level = multipliers[code];
        let before = code.checked_sub(1).and_then(|c| multipliers.get(c));
        let alone = far(before, level) && far(multipliers.get(code + 1), level);
        (alone && level > 0).then_some(code as u8)
    })
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
    // Each case fits 25 quantizers.
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
    fn encoding_what_a_code_means_gives_the_code(bits in width(), samples in samples(20)) {
        for quantizer in softmax_quantizers() {
            let quant = quantizer.fit(bits, &samples);
            let codebook = codebook(&quant);
            for code in distinct(&codebook.multipliers) {
                let p = softmax::decode(quant.kind, codebook, code);
                let again = softmax::encode(codebook, softmax::octaves(p));
                prop_assert_eq!(again, code, "{} {:?}", quantizer.name(), codebook);
            }
        }
    }

    #[test]
    fn whole_octaves_are_shifts(bits in width(), samples in samples(20)) {
        for last_code in LAST_CODES {
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

/// What `2^-t` becomes.
fn quantized(quant: &SoftmaxQuant, t: f32) -> f64 {
    let codebook = codebook(quant);
    softmax::decode(quant.kind, codebook, softmax::encode(codebook, t)).into()
}

/// Half a unit of the codebook, for what a level is rounded to, and the
/// rounding of `t`, which moves a threshold by `2^-24` of it.
fn rounding(quant: &SoftmaxQuant, p: f64) -> f64 {
    f64::from(codebook(quant).scale) / 2.0 + 1e-5 * p
}

// The bound on the error that each module states.
proptest! {
    #[test]
    fn uniform_probabilities_are_off_by_half_a_step(
        bits in width(), range in 0.01f64..1.0, fraction in 0.0f64..1.0,
    ) {
        let quant = UniformSoftmax::default().with_range(bits, range);
        let p = fraction * range;
        let step = range / f64::from(bits.max_code());
        let error = (quantized(&quant, softmax::octaves(p as f32)) - p).abs();
        prop_assert!(error <= step / 2.0 + 1e-5 * p, "{p}: {error} of {step}");
    }

    #[test]
    fn twin_uniform_is_off_by_half_a_step_of_its_half(
        bits in width(), split in 0..=7u32, p in 0.0f64..1.0, small in any::<bool>(),
    ) {
        prop_assert!(split <= MOST_OCTAVES);
        let quant = TwinUniform::default().with_split(bits, split);
        let sigma = (-f64::from(split)).exp2();
        let p = if small { p * sigma } else { p };
        let steps = f64::from(bits.center()) - 1.0;
        let step = if p < sigma { sigma / steps } else { 1.0 / steps };
        let error = (quantized(&quant, softmax::octaves(p as f32)) - p).abs();
        prop_assert!(error <= step / 2.0 + 1e-5 * p, "{p}: {error} of {step}");
    }

    #[test]
    fn log_grids_are_off_by_half_a_step_in_octaves(
        bits in width(), low in 0.0f64..4.0, step in 0.1f64..2.0, fraction in 0.0f64..1.0,
        numerator in NUMERATORS, beside_zero in any::<bool>(),
    ) {
        let height = 1 << 14;
        let last_code = if beside_zero { LastCode::BesideZero } else { LastCode::Bound };
        let tulq = TruncatedUniformLog2 { last_code, ..TruncatedUniformLog2::default() };
        let scale = (-low).exp2() as f32;
        let base = f64::from(numerator) / f64::from(DENOMINATOR);
        let last = f64::from(bits.max_code());
        let grids = [
            (tulq.with_range(bits, low, step, height), low, step, last - f64::from(beside_zero)),
            (LogSqrt2::default().with_scale(bits, scale, height), low, 0.5, last - 1.0),
            (AdaptiveBaseLog::default().with_base(bits, numerator, height), 0.0, base, last - 1.0),
            (Log2::default().fit(bits, &AttentionSamples::new(197, 64)), 0.0, 1.0, last - 1.0),
        ];
        for (quant, low, step, steps) in grids {
            let t = low + step * (fraction * (steps + 1.0) - 0.5);
            let p = (-t).exp2();
            let found = quantized(&quant, t as f32);
            let bounds = [-0.5, 0.5].map(|half| p * (half * step).exp2());
            let slack = rounding(&quant, p);
            prop_assert!(
                bounds[0] - slack <= found && found <= bounds[1] + slack,
                "{:?}: {p} became {found}", quant.method
            );
        }
    }

    #[test]
    fn shifted_grids_are_off_by_half_a_step_in_shifted_octaves(
        bits in width(), low in 0.0f64..4.0, step in 0.1f64..2.0, fraction in 0.0f64..1.0,
    ) {
        // p + eta lies on a grid of octaves: |log2((p + eta) / (p^ + eta))| <= step / 2.
        let zero_anchored = TruncatedUniformLog2 {
            last_code: LastCode::Zero, ..TruncatedUniformLog2::default()
        };
        let last = f64::from(bits.max_code());
        let anchor = (-step * last).exp2();
        let quant = zero_anchored.with_range(bits, low, step, 1 << 14);
        let eta = (-low).exp2() * anchor;
        let p = fraction * (-low).exp2() * (1.0 - anchor);
        let error = (quantized(&quant, softmax::octaves(p as f32)) - p).abs();
        let bound = (p + eta) * ((step / 2.0).exp2() - 1.0) + 2.0 * rounding(&quant, p);
        prop_assert!(error <= bound, "{p}: {error} of {bound}");

        // The same, relative to the row's largest, whose level is rounded too.
        let quant = row_maximum::with_constants(bits, step, 1 << 14);
        let p = fraction;
        let error = (quantized(&quant, softmax::octaves(p as f32)) - p).abs();
        let largest = 1.0 / (1.0 - anchor); // the level of code 0 is 1, not 1 - anchor
        let bound = (p + anchor) * ((step / 2.0).exp2() * largest - 1.0) + 2e-4;
        prop_assert!(error <= bound, "{p}: {error} of {bound}");
    }

    #[test]
    fn sulq_is_off_by_half_a_step_and_half_an_octave(
        bits in width(), eta in 0.001f64..1.0, high in 0.1f64..1.0, fraction in 0.0f64..1.0,
    ) {
        let quant = Sulq::default().with_shift(bits, eta, [0.0, high], 1 << 14);
        let step = ((high + eta).log2() - eta.log2()) / f64::from(bits.max_code());
        let p = fraction * high;
        let error = (quantized(&quant, softmax::octaves(p as f32)) - p).abs();
        // The zero point is rounded as well: another half step at the ends.
        let bound = (p + eta) * ((step + 0.5).exp2() - 1.0) + 4.0 * rounding(&quant, p);
        prop_assert!(error <= bound, "{p}: {error} of {bound}");
    }
}

/// One row of these probabilities and then zeros, the values one-hot, so that
/// the A·V error is the error of the probabilities.
fn one_row(probabilities: &[f32]) -> AttentionSamples {
    const TOKENS: usize = 64;
    let mut row = probabilities.to_vec();
    row.resize(TOKENS, 0.0);
    let identity = (0..TOKENS * TOKENS).map(|i| if i % (TOKENS + 1) == 0 { 1.0 } else { 0.0 });
    let mut samples = AttentionSamples::new(TOKENS, TOKENS);
    samples.push(0, row, identity.collect());
    samples
}

fn relative_error(quantizer: &dyn SoftmaxQuantizer, samples: &AttentionSamples) -> f64 {
    samples.relative_error(&quantizer.fit(BitWidth::B3, samples))
}

/// A row on the levels of one quantizer is exact there, and not on the grids
/// that lack those levels. What is not on a level's place costs something, so
/// the order holds whatever the search does.
#[test]
fn each_quantizer_is_best_at_what_it_is_made_for() {
    let log2 = Log2::default();
    let (sqrt2, adalog) = (LogSqrt2::default(), AdaptiveBaseLog::default());
    let (uniform, twin) = (UniformSoftmax::default(), TwinUniform::default());
    let tulq = |last_code| TruncatedUniformLog2 {
        last_code,
        ..TruncatedUniformLog2::default()
    };
    let powers = |step: f64, count: i32| {
        let power = |i| (-step * f64::from(i)).exp2() as f32;
        (1..=count).map(power).collect::<Vec<f32>>()
    };
    let exact = |quantizer: &dyn SoftmaxQuantizer, samples: &AttentionSamples| {
        let error = relative_error(quantizer, samples);
        assert!(error < 1e-7, "{}: {error}", quantizer.name());
    };
    let loses = |quantizer: &dyn SoftmaxQuantizer, samples: &AttentionSamples| {
        let error = relative_error(quantizer, samples);
        assert!(error > 1e-4, "{}: {error}", quantizer.name());
    };

    let octaves = one_row(&powers(1.0, 6)); // 1/2 to 1/64
    exact(&log2, &octaves);
    exact(&adalog, &octaves); // q = 37
    exact(&tulq(LastCode::BesideZero), &octaves);
    loses(&uniform, &octaves);
    loses(&twin, &octaves);
    // The published percentiles of 64 probabilities end at the second largest.
    loses(&sqrt2, &octaves);

    let others = one_row(&powers(20.0 / 37.0, 6));
    exact(&adalog, &others);
    for quantizer in [&log2 as &dyn SoftmaxQuantizer, &sqrt2, &uniform, &twin] {
        loses(quantizer, &others);
    }

    let even = one_row(&[0.28, 0.24, 0.20, 0.16, 0.08, 0.04]); // multiples of 1/25
    exact(&uniform, &even);
    for quantizer in [&log2 as &dyn SoftmaxQuantizer, &sqrt2, &adalog, &twin] {
        loses(quantizer, &even);
    }

    // Thirds, and thirds of 2^-5.
    let mixed = one_row(&[2.0 / 3.0, 1.0 / 32.0, 2.0 / 96.0, 1.0 / 96.0]);
    exact(&twin, &mixed);
    for quantizer in [&log2 as &dyn SoftmaxQuantizer, &sqrt2, &adalog, &uniform] {
        loses(quantizer, &mixed);
    }
}

/// Without a zero code, each of many tiny probabilities becomes the last level.
#[test]
fn a_zero_code_keeps_a_long_tail_from_adding_up() {
    let mut row = vec![0.5];
    row.resize(64, 1e-7);
    let samples = one_row(&row);
    let clamp = Log2 {
        zero_code: false,
        renormalise: false,
    };
    let [clamped, zero] = [clamp, Log2::default()].map(|q| relative_error(&q, &samples));
    // 63 times 2^-7, of a row that is 1/2.
    let expected = 63.0 * (1.0f64 / 128.0).powi(2) / 0.25;
    assert!((clamped - expected).abs() < 1e-3 * expected, "{clamped}");
    assert!(zero < 1e-9, "{zero}");
}

/// Rows that are the same up to a factor have the same row-maximum codes, so the
/// relative error is that of one row; a static range cannot fit all of them.
#[test]
fn a_range_per_row_follows_rows_of_every_scale() {
    // Four probabilities with values 0 to 3, each divided among so many tokens.
    let rows = |divisions: &[usize]| {
        let mut samples = AttentionSamples::new(64, 1);
        for &tokens in divisions {
            let each = |of: [f32; 4]| of.into_iter().flat_map(move |x| vec![x; tokens]);
            let row = each([8.0, 4.0, 2.0, 1.0].map(|p| p / 15.0 / tokens as f32));
            let [mut row, mut values]: [Vec<f32>; 2] =
                [row.collect(), each([0.0, 1.0, 2.0, 3.0]).collect()];
            row.resize(64, 0.0);
            values.resize(64, 0.0);
            samples.push(0, row, values);
        }
        samples
    };
    let (one, all) = (rows(&[1]), rows(&[1, 4, 16]));
    let [alone, together] = [&one, &all].map(|s| relative_error(&RowMaximum, s));
    assert!((together - alone).abs() < 1e-6, "{together}, alone {alone}");
    let uniform = relative_error(&UniformSoftmax::default(), &all);
    assert!(
        uniform > 2.0 * together,
        "{uniform}, row-maximum {together}"
    );
}

/// A search over fixed candidates cannot lose by judging each head alone, and
/// wins where heads differ.
#[test]
fn fitting_each_head_never_loses() {
    let rows: [&[f32]; 2] = [
        &[0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625],
        &[0.04, 0.04, 0.04, 0.02, 0.02, 0.01],
    ];
    let mut samples = AttentionSamples::new(8, 8);
    for (head, row) in rows.into_iter().enumerate() {
        let mut row = row.to_vec();
        row.resize(8, 0.0);
        let identity = (0..64).map(|i| if i % 9 == 0 { 1.0 } else { 0.0 });
        samples.push(head, row, identity.collect());
    }
    for quantizer in [
        &AdaptiveBaseLog::default() as &dyn SoftmaxQuantizer,
        &TwinUniform::default(),
    ] {
        let shared = samples.relative_error(&quantizer.fit(BitWidth::B3, &samples));
        let per_head = fit_per_head(quantizer, BitWidth::B3, &samples);
        assert_eq!(per_head.codebooks.len(), 2, "{}", quantizer.name());
        let per_head = samples.relative_error(&per_head);
        assert!(
            per_head < shared,
            "{}: {per_head} {shared}",
            quantizer.name()
        );
    }
    // Nothing to fit.
    let log2 = fit_per_head(&Log2::default(), BitWidth::B3, &samples);
    assert_eq!(log2, Log2::default().fit(BitWidth::B3, &samples));
}

#[test]
fn twin_uniform_at_3_bits_has_seven_levels() {
    let quant = TwinUniform::default().with_split(BitWidth::B3, 2);
    assert_eq!(codebook(&quant).multipliers, [12, 8, 4, 3, 2, 1, 0, 0]);
    assert_eq!(quantized(&quant, 0.0), 1.0);
    let quant = TwinUniform::default().with_split(BitWidth::B3, 1);
    assert_eq!(codebook(&quant).multipliers, [6, 4, 3, 2, 1, 0, 0, 0]);
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

#[test]
fn the_histogram_counts_octaves_below_1_or_below_the_rows_largest() {
    let mut samples = AttentionSamples::new(5, 1);
    samples.push(0, vec![0.5, 0.25, 0.125, 0.125, 0.0], vec![0.0; 5]);
    let bins = |kind| {
        let histogram = samples.histogram(kind);
        assert_eq!(histogram.counts.len(), histogram.mass.len());
        let filled = histogram.counts.iter().zip(&histogram.mass).enumerate();
        let filled = filled.filter(|(_, (count, _))| **count > 0);
        filled.map(|(i, (&n, &m))| (i, n, m)).collect::<Vec<_>>()
    };
    // Whole octaves are the first of their bins; 0 is in the very last.
    let octave = OctaveHistogram::BINS_PER_OCTAVE;
    let last = OctaveHistogram::OCTAVES * octave - 1;
    assert_eq!(
        bins(SoftmaxKind::Static),
        [
            (octave, 1, 0.5),
            (2 * octave, 1, 0.25),
            (3 * octave, 2, 0.25),
            (last, 1, 0.0)
        ]
    );
    assert_eq!(
        bins(SoftmaxKind::RowMax),
        [
            (0, 1, 0.5),
            (octave, 1, 0.25),
            (2 * octave, 2, 0.25),
            (last, 1, 0.0)
        ]
    );
}
