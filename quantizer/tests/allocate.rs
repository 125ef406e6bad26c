//! Mixed precision: what is measured, what is chosen, what it costs.

use tpvit_models::synthetic::{self, VitConfig};
use tpvit_models::{BitWidth, Op, Program};
use tpvit_quantizer::calibration::{
    AllocateError, AllocateStage, Allocation, Budget, FakeQuant, ObserveSettings, Settings, Site,
    allocate, fake_weights, kl_divergence, observe, plan,
};
use tpvit_quantizer::reference::Executor;
use tpvit_quantizer::weights::Weights;

/// 12 pictures: every fourth is held back.
const PICTURES: usize = 12;
const HELD_BACK: [usize; 3] = [3, 7, 11];

fn model() -> (Program, Weights) {
    let softmax = synthetic::row_max_softmax(BitWidth::B4);
    let config = VitConfig {
        image: 16,
        dim: 24,
        ..VitConfig::SMALLEST
    };
    let data = synthetic::vit(config, BitWidth::B8, BitWidth::B8, &softmax, 3);
    let weights = Weights::dequantize(&data.tensors);
    (data.program, weights)
}

fn picture(index: usize) -> Option<Vec<f32>> {
    let wave = |i: usize| ((i * (index + 3)) as f32 * 0.37).sin() + (i as f32 * 0.05).cos();
    let pixels = (0..16 * 16 * 3).map(|i| ((wave(i) + 2.0) * 63.0).round());
    (index < PICTURES).then(|| pixels.collect())
}

fn settings() -> Settings {
    Settings::new(BitWidth::B8, BitWidth::B8)
}

fn made(settings: &Settings, budget: Budget) -> Result<Allocation, AllocateError> {
    let (program, weights) = model();
    allocate(
        &program,
        &weights,
        &picture,
        PICTURES,
        &ObserveSettings::default(),
        settings,
        budget,
        &mut |_| {},
    )
}

/// Mean KL of the held-back pictures from float, by quantizing afresh.
fn mean_kl(settings: &Settings) -> f64 {
    let (program, weights) = model();
    let teachers: Vec<usize> = (0..PICTURES).filter(|i| !HELD_BACK.contains(i)).collect();
    let source = |i: usize| picture(*teachers.get(i)?);
    let seen = observe(
        &program,
        &weights,
        &source,
        &ObserveSettings::default(),
        &mut |_| {},
    );
    let mut planned = weights.clone();
    let plan = plan(&program, &mut planned, &seen, settings);
    let fake = fake_weights(&program, &planned, &plan);
    let kl = |i: &usize| {
        let image = picture(*i).expect("a picture");
        let mut float = Executor::new(&program, &weights);
        let mut quantized = Executor::new(&program, &fake);
        let mut hook = FakeQuant::new(&program, &plan.quantization);
        let reference = float.run(&image, &mut ());
        kl_divergence(reference, quantized.run(&image, &mut hook))
    };
    HELD_BACK.iter().map(kl).sum::<f64>() / HELD_BACK.len() as f64
}

#[test]
fn sensitivities_are_those_of_networks_quantized_afresh() {
    let base = mean_kl(&settings());
    let made = made(&settings(), Budget::BitOperations(50.0)).expect("enough");
    assert_eq!(made.sites.len(), 1 + 2 * (5 + 4 + 1) + 2); // embedding, blocks, head
    for sensitivity in &made.sites {
        let (_, last) = *sensitivity.added.last().expect("a width");
        assert_eq!(last, 0.0, "the present width adds nothing");
        let mut most = 0.0f64;
        for &(width, added) in sensitivity.added.iter().rev() {
            let mut narrowed = settings();
            match sensitivity.site {
                Site::Weight(op) => narrowed.widths.weights.insert(op, width),
                Site::Output(op) => narrowed.widths.outputs.insert(op, width),
                Site::Attention(op) => narrowed.widths.attention.insert(op, width),
            };
            most = most.max(mean_kl(&narrowed) - base);
            // The same numbers in the same order, but for sums of differences
            // against differences of sums.
            let off = (added - most).abs();
            assert!(
                off < 1e-12,
                "{:?} {width:?}: {added} {most}",
                sensitivity.site
            );
        }
    }
}

#[test]
fn budgets_hold_and_more_is_no_worse() {
    let (program, _) = model();
    for (budgets, name) in [
        (
            [4500.0, 5304.0, 8000.0].map(|b| Budget::Bytes(b as u64)),
            "bytes",
        ),
        (
            [20.0, 40.0, 70.0].map(Budget::BitOperations),
            "bit operations",
        ),
    ] {
        for budget in budgets {
            let made = made(&settings(), budget).expect("enough");
            let mut mixed = settings();
            mixed.widths = made.widths.clone();
            assert_eq!(made.cost, budget.cost(&program, &mixed), "{name}");
            assert_eq!(made.limit, budget.limit(&program), "{name}");
            assert!(made.cost <= made.limit, "{name}: {made:?}");
            let kl = if made.took_uniform() {
                made.uniform.expect("taken").1
            } else {
                made.mixed
            };
            assert_eq!(kl, mean_kl(&mixed), "{name}");
            assert!(made.uniform.is_none_or(|(_, uniform)| kl <= uniform));
        }
    }
}

#[test]
fn what_was_given_stays() {
    let (program, _) = model();
    let mut given = settings();
    given.act_bits = BitWidth::B6;
    given.first_last_bits = Some(BitWidth::B8);
    let layer = |name: &str| {
        let named = |op: &Op| program.buffers[op.output().index()].name == name;
        program.ops.iter().position(named).expect("a layer")
    };
    let fc1 = layer("blocks.0.mlp.fc1");
    given.widths.weights.insert(fc1, BitWidth::B6);
    let weights = Budget::Bytes(6000);
    let chosen = made(&given, weights).expect("enough");
    assert!(chosen.widths.outputs.is_empty() && chosen.widths.attention.is_empty());
    let all = Budget::BitOperations(30.0);
    let both = made(&given, all).expect("enough");
    for widths in [&chosen.widths, &both.widths] {
        assert_eq!(widths.weights[&fc1], BitWidth::B6);
        assert_eq!(widths.weights[&0], BitWidth::B8, "patch embedding");
        let last = program.ops.len() - 1;
        assert_eq!(widths.weights[&last], BitWidth::B8, "classifier");
    }
    assert_eq!(both.widths.outputs[&layer("norm")], BitWidth::B8);
    assert!(
        both.widths
            .outputs
            .iter()
            .all(|(&op, &width)| { width <= BitWidth::B6 || op == layer("norm") })
    );
}

#[test]
fn too_small_a_budget_says_what_is_needed() {
    let (program, _) = model();
    let narrowest = Settings::new(BitWidth::B3, BitWidth::B3);
    let least = Budget::Bytes(0).cost(&program, &narrowest);
    let error = AllocateError::Bytes {
        limit: least - 1,
        least,
    };
    assert_eq!(made(&settings(), Budget::Bytes(least - 1)), Err(error));
    let made_it = made(&settings(), Budget::Bytes(least)).expect("just enough");
    assert_eq!(made_it.cost, least);

    let needed = match made(&settings(), Budget::BitOperations(1.0)) {
        Err(AllocateError::BitOperations { percent, least }) => {
            assert_eq!(percent, 1.0);
            least
        }
        other => panic!("{other:?}"),
    };
    // 3 bits times 3 bits of 64, and a little more for the pixels' 8.
    assert!((14.0..20.0).contains(&needed), "{needed}");
    assert!(made(&settings(), Budget::BitOperations(needed + 1e-9)).is_ok());
}

#[test]
fn bit_operations_are_counted_by_hand() {
    let (program, _) = model();
    let settings = Settings::new(BitWidth::B4, BitWidth::B6);
    // 17 tokens of 24 channels, 16 patches of 48 values, 2 blocks, 10 classes.
    let patches = 16 * 48 * 24 * (4 * 8);
    let block = 17 * 24 * (72 + 24 + 48 + 48) * (4 * 6) + 17 * 17 * 24 * (6 * 6 + 6 * 4);
    let head = 24 * 10 * (4 * 6);
    let budget = Budget::BitOperations(100.0);
    assert_eq!(budget.cost(&program, &settings), patches + 2 * block + head);
    let all = 16 * 48 * 24 + 2 * (17 * 24 * 192 + 2 * 17 * 17 * 24) + 240;
    assert_eq!(budget.limit(&program), 64 * all);
}

#[test]
fn threads_change_nothing_and_progress_only_grows() {
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("threads")
            .install(|| made(&settings(), Budget::BitOperations(40.0)))
    };
    assert_eq!(with(1), with(5));

    let (program, weights) = model();
    let mut stages = Vec::new();
    allocate(
        &program,
        &weights,
        &picture,
        PICTURES,
        &ObserveSettings::default(),
        &settings(),
        Budget::Bytes(5000),
        &mut |stage| stages.push(stage),
    )
    .expect("enough");
    let measuring = stages.iter().filter_map(|stage| match *stage {
        AllocateStage::Measuring(done, total) => Some((done, total)),
        AllocateStage::Observing(_) | AllocateStage::Planning => None,
    });
    let measuring: Vec<(usize, usize)> = measuring.collect();
    assert_eq!(measuring[0].0, 0);
    assert!(measuring.is_sorted());
    assert!(
        measuring
            .iter()
            .all(|(done, total)| done <= total && *total == measuring[0].1)
    );
    let (done, total) = measuring[measuring.len() - 1];
    assert!(total - done <= 1, "{done} of {total}");
}
