//! Every architecture, classifier or not, is quantized by the same code: planned,
//! compensated, given mixed widths.
#![forbid(unsafe_code)]

use tpvit_models::synthetic;
use tpvit_models::{BitWidth, Program};
use tpvit_quantizer::calibration::{
    Budget, Compensation, FakeQuant, ObserveSettings, QuantPlan, Settings, allocate, compensate,
    distance_name, fake_weights, kl_divergence, observe, plan, result_distance,
};
use tpvit_quantizer::reference::Executor;
use tpvit_quantizer::weights::Weights;

/// Every fourth one judges.
const PICTURES: usize = 12;

fn architectures() -> impl Iterator<Item = (&'static str, Program, Weights)> {
    let softmax = synthetic::row_max_softmax(BitWidth::B4);
    let all = synthetic::architectures().into_iter();
    all.map(move |(name, program)| {
        let data = synthetic::model(program, BitWidth::B8, BitWidth::B8, &softmax, 3);
        let weights = Weights::dequantize(&data.tensors);
        (name, data.program, weights)
    })
}

fn picture(program: &Program, index: usize) -> Option<Vec<f32>> {
    let [height, width] = program.image;
    let wave = |i: usize| ((i * (index + 3)) as f32 * 0.37).sin() + (i as f32 * 0.05).cos();
    let pixels = (0..height * width * 3).map(|i| ((wave(i) + 2.0) * 63.0).round());
    (index < PICTURES).then(|| pixels.collect())
}

/// Mean distance from the float network of the pictures that judge.
fn distance(program: &Program, float: &Weights, quantized: &Weights, plan: &QuantPlan) -> f64 {
    let fake = fake_weights(program, quantized, plan);
    let judges = (0..PICTURES).filter(|i| i % 4 == 3);
    let one = |i| {
        let image = picture(program, i).expect("a picture");
        let mut float = Executor::new(program, float);
        let mut quantized = Executor::new(program, &fake);
        let mut hook = FakeQuant::new(program, &plan.quantization);
        let reference = float.run(&image, &mut ());
        result_distance(program, reference, quantized.run(&image, &mut hook))
    };
    let all: Vec<f64> = judges.map(one).collect();
    all.iter().sum::<f64>() / all.len() as f64
}

#[test]
fn results_are_compared_as_what_they_are() {
    let mut features = 0;
    for (name, program, _) in architectures() {
        let [rows, cols] = program.output_shape();
        let reference: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 1.7).sin()).collect();
        let other: Vec<f32> = reference.iter().map(|x| x + 0.5).collect();
        assert_eq!(
            result_distance(&program, &reference, &reference),
            0.0,
            "{name}"
        );
        let found = result_distance(&program, &reference, &other);
        if program.classifies() {
            assert_eq!(distance_name(&program), "KL");
            assert_eq!(found, kl_divergence(&reference, &other));
            // The same logits but for a constant are the same answer.
            assert!(found.abs() < 1e-12, "{name}: {found}");
            continue;
        }
        assert_eq!(distance_name(&program), "error");
        let column = |c: usize| {
            reference
                .iter()
                .skip(c)
                .step_by(cols)
                .copied()
                .map(f64::from)
        };
        let spread = |c: usize| {
            let mean = column(c).sum::<f64>() / rows as f64;
            column(c).map(|x| (x - mean).powi(2)).sum::<f64>()
        };
        let expected = 0.25 * (rows * cols) as f64 / (0..cols).map(spread).sum::<f64>();
        assert!(
            (found / expected - 1.0).abs() < 1e-5,
            "{name}: {found} {expected}"
        );
        features += 1;
    }
    assert_eq!(features, 2, "two of them have no classifier");
}

#[test]
fn eight_bits_are_close_and_four_are_not_so_close() {
    for (name, program, weights) in architectures() {
        let settings = ObserveSettings::default();
        let source = |i: usize| picture(&program, i);
        let seen = observe(&program, &weights, &source, &settings, &mut |_| {});
        let [four, eight] = [BitWidth::B4, BitWidth::B8].map(|bits| {
            let mut planned = weights.clone();
            let settings = Settings::new(bits, bits);
            let plan = plan(&program, &mut planned, &seen, &settings);
            distance(&program, &weights, &planned, &plan)
        });
        // 1 is as wrong as the mean of all tokens; a nat is a factor of e.
        assert!(eight < 0.05, "{name}: {eight}");
        assert!(eight < four && four < 1.0, "{name}: {eight} {four}");
    }
}

#[test]
fn compensation_keeps_what_comes_closer() {
    let mut kept = 0;
    for (name, program, mut weights) in architectures() {
        let source = |i: usize| picture(&program, i);
        let settings = ObserveSettings::default();
        let seen = observe(&program, &weights, &source, &settings, &mut |_| {});
        let settings = Settings::new(BitWidth::B4, BitWidth::B8);
        let mut plan = plan(&program, &mut weights, &seen, &settings);
        // What is planned is the same function of a float network.
        let float = weights.clone();
        let before = distance(&program, &float, &weights, &plan);
        let decisions = compensate(
            &program,
            &mut weights,
            &mut plan,
            &source,
            PICTURES,
            &Compensation::default(),
            &mut |_| {},
        );
        let after = distance(&program, &float, &weights, &plan);
        assert_eq!(decisions[0].rounded, before, "{name}");
        let last = decisions[decisions.len() - 1];
        assert_eq!(after, last.rounded.min(last.compensated), "{name}");
        assert!(after <= before, "{name}: {before} {after}");
        kept += decisions.iter().filter(|d| d.kept()).count();
    }
    assert!(kept > 0, "something can be compensated");
}

#[test]
fn mixed_widths_keep_within_their_budget() {
    for (name, program, weights) in architectures() {
        let source = |i: usize| picture(&program, i);
        let mut settings = Settings::new(BitWidth::B8, BitWidth::B8);
        let budget = Budget::BitOperations(45.0);
        let observe_settings = ObserveSettings::default();
        let made = allocate(
            &program,
            &weights,
            &source,
            PICTURES,
            &observe_settings,
            &settings,
            budget,
            &mut |_| {},
        )
        .unwrap_or_else(|e| panic!("{name}: {e}"));
        settings.widths = made.widths.clone();
        assert!(made.cost <= made.limit, "{name}");
        assert_eq!(made.cost, budget.cost(&program, &settings), "{name}");
        let widths = made.sites.iter().map(|site| site.chosen);
        assert!(widths.clone().any(|w| w < BitWidth::B8), "{name}");
        // What was told is what the widths give, quantized afresh.
        let teachers: Vec<usize> = (0..PICTURES).filter(|i| i % 4 != 3).collect();
        let source = |i: usize| picture(&program, *teachers.get(i)?);
        let seen = observe(&program, &weights, &source, &observe_settings, &mut |_| {});
        let mut planned = weights.clone();
        let plan = plan(&program, &mut planned, &seen, &settings);
        let found = distance(&program, &weights, &planned, &plan);
        let told = match made.uniform {
            Some((_, distance)) if made.took_uniform() => distance,
            Some(_) | None => made.mixed,
        };
        assert_eq!(told, found, "{name}");
    }
}
