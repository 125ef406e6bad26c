//! Gradients against finite differences and closed forms; training on a small
//! network: it helps, it is the same on any number of threads and when resumed,
//! and it keeps what it had when it goes wrong.

use std::path::PathBuf;

use super::math::{self, Grid, RowGrid};
use super::network::{Grads, Network, Tape, View, coders};
use super::params::Params;
use super::*;
use crate::calibration::{
    ActivationCode, FakeQuant, ObserveSettings, Settings as PlanSettings, fake_weights, observe,
    plan,
};
use crate::reference::{Executor, Hook};
use tpvit_models::synthetic::{self, VitConfig};
use tpvit_models::{BitWidth, BufferId, Op, SoftmaxQuant, TensorRole};

/// Uniform in `-size..size`.
fn random(len: usize, seed: u64, size: f32) -> Vec<f32> {
    (0..len as u64)
        .map(|i| {
            let bits = crate::calibration::mix(seed ^ (i << 20)) >> 40;
            (bits as f32 / (1u64 << 23) as f32 - 1.0) * size
        })
        .collect()
}

/// A small network whose values are of order 1.
fn small() -> (Program, Weights, Vec<f32>) {
    let program = synthetic::tiny().program;
    let tensors = program.tensors.iter().enumerate();
    let tensors = tensors.map(|(i, t)| {
        let size = if t.rows > 1 {
            2.0 / (t.cols as f32).sqrt()
        } else {
            0.5
        };
        random(t.rows * t.cols, i as u64, size)
    });
    let mut weights = Weights {
        tensors: tensors.collect(),
    };
    for op in &program.ops {
        if let Op::LayerNorm { gamma, .. } = *op {
            weights.tensors[gamma.index()]
                .iter_mut()
                .for_each(|g| *g += 1.0);
        }
    }
    let [h, w] = program.image;
    (program, weights, random(h * w * 3, 99, 1.0))
}

/// The sum of each buffer of `seeds`, weighted by random numbers, in f64.
fn loss(
    program: &Program,
    view: &View,
    image: &[f32],
    tape: &mut Tape,
    seeds: &[(usize, u64)],
) -> f64 {
    let network = Network { program, view };
    network.forward(tape, 0..program.ops.len(), image, None);
    let value = |(id, seed): &(usize, u64)| {
        let values = &tape.raw[*id];
        let c = random(values.len(), *seed, 1.0);
        values
            .iter()
            .zip(&c)
            .map(|(v, c)| f64::from(*v) * f64::from(*c))
            .sum::<f64>()
    };
    seeds.iter().map(value).sum()
}

/// Float weights of an architecture, for pictures of order 1.
fn of_architecture(program: Program) -> (Program, Weights, Vec<f32>) {
    let softmax = synthetic::row_max_softmax(BitWidth::B4);
    let data = synthetic::model(program, BitWidth::B8, BitWidth::B8, &softmax, 5);
    let mut weights = Weights::dequantize(&data.tensors);
    let program = data.program;
    for op in &program.ops {
        // Made for pixels up to 255.
        if let Op::PatchEmbed { weight, .. } = *op {
            let values = &mut weights.tensors[weight.index()];
            values.iter_mut().for_each(|w| *w *= 64.0);
        }
    }
    let [h, w] = program.image;
    (program, weights, random(h * w * 3, 99, 1.0))
}

#[test]
fn gradients_of_every_tensor_agree_with_finite_differences() {
    gradients_agree("a small network", small());
    for (name, program) in synthetic::architectures() {
        gradients_agree(name, of_architecture(program));
    }
}

fn gradients_agree(name: &str, (program, weights, image): (Program, Weights, Vec<f32>)) {
    let whole = 0..program.ops.len();
    let mut view = View::float(&program, &weights);
    let mut tape = Tape::new(&program);
    // What the last block writes; the last operation may be a sum itself.
    let inner = &program.ops[..whole.end - 1];
    let middle = inner.iter().rev().find(|op| op.inputs()[1].is_some());
    let outputs = [
        program.ops[whole.end - 1].output(),
        middle.unwrap().output(),
    ];
    let seeds: Vec<(usize, u64)> = outputs
        .iter()
        .map(|b| (b.index(), 7 + b.index() as u64))
        .collect();
    loss(&program, &view, &image, &mut tape, &seeds);
    let mut grads = Grads::new(&program, &view, whole.clone());
    tape.clear_grads(&program, whole.clone());
    for (id, seed) in &seeds {
        let len = tape.grad[*id].len();
        tape.grad[*id] = random(len, *seed, 1.0);
    }
    let network = Network {
        program: &program,
        view: &view,
    };
    network.backward(&mut tape, whole, None, &mut grads);
    for tensor in 0..program.tensors.len() {
        let info = &program.tensors[tensor];
        // Along a random direction, every entry takes part.
        let direction = random(info.rows * info.cols, 1000 + tensor as u64, 1.0);
        let exact: f64 = grads.tensors[tensor]
            .iter()
            .zip(&direction)
            .map(|(g, d)| f64::from(g * d))
            .sum();
        let norm: f64 = grads.tensors[tensor]
            .iter()
            .map(|g| f64::from(g * g))
            .sum::<f64>()
            .sqrt();
        let length = direction
            .iter()
            .map(|d| f64::from(d * d))
            .sum::<f64>()
            .sqrt();
        let original = view.tensors[tensor].clone();
        let mut at = |by: f32| {
            for ((x, o), d) in view.tensors[tensor]
                .iter_mut()
                .zip(&original)
                .zip(&direction)
            {
                *x = o + by * d;
            }
            if program.tensors[tensor].role == TensorRole::Weight {
                view.turn(&program, tensor);
            }
            loss(&program, &view, &image, &mut tape, &seeds)
        };
        let by = 2e-3 / length as f32;
        let measured = (at(by) - at(-by)) / (2.0 * f64::from(by));
        at(0.0);
        let scale = norm * length;
        assert!(norm > 0.0, "{name}: {} has no gradient", info.name);
        println!(
            "{name}: tensor {tensor} {}: {exact:.6} {measured:.6} of {scale:.3}",
            info.name
        );
        assert!(
            (exact - measured).abs() < 2e-3 * scale.max(1e-3),
            "{name}: {}: {exact} but {measured}",
            info.name
        );
    }
}

/// Forward, of the float network, operation by operation.
#[test]
fn the_float_network_is_that_of_the_executor() {
    /// Every output.
    struct Keep(Vec<Vec<f32>>);
    impl Hook for Keep {
        fn buffer(&mut self, _op: usize, _id: BufferId, values: &mut [f32]) {
            self.0.push(values.to_vec());
        }
    }
    for (name, program) in synthetic::architectures() {
        let (program, weights, image) = of_architecture(program);
        let view = View::float(&program, &weights);
        let mut tape = Tape::new(&program);
        let network = Network {
            program: &program,
            view: &view,
        };
        network.forward(&mut tape, 0..program.ops.len(), &image, None);
        let mut keep = Keep(Vec::new());
        Executor::new(&program, &weights).run(&image, &mut keep);
        for (op, expected) in program.ops.iter().zip(&keep.0) {
            let id = op.output().index();
            let found = &tape.raw[id];
            assert_eq!(found.len(), expected.len());
            let largest = expected.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
            for (a, b) in found.iter().zip(expected) {
                // Some twenty operations, each good to a few units of 2^-24 of
                // its largest value, a LayerNorm's quotient several times that.
                let buffer = &program.buffers[id].name;
                assert!((a - b).abs() < 1e-4 * largest, "{name}: {buffer}: {a} {b}");
            }
        }
    }
}

/// The LSQ mask: on the unrounded value, bounds inside.
#[test]
fn gradients_at_the_clip_bounds_are_those_of_lsq() {
    let (scale, zero, last) = (0.25f32, 5.0f32, 15.0f32);
    let bound = |v: f32| v * scale;
    let (low, high) = (-zero, last - zero);
    let values = [
        bound(low),
        bound(low).next_up(),
        bound(low).next_down(),
        bound(low - 0.5),
        bound(high),
        bound(high).next_down(),
        bound(high).next_up(),
        bound(high + 0.5),
        bound(0.3),
        0.0,
    ];
    for folded in [false, true] {
        for x in values {
            let unit = if folded { 1.0 } else { scale };
            let grid = Grid {
                inverse: &[1.0 / scale],
                low: &[low],
                high: &[high],
                unit: &[unit],
            };
            let (mut value, mut grad, mut log_scale) = ([0.0], [3.0], [0.0]);
            math::quantize(grid, &[x], &mut value);
            math::quantize_backward(grid, folded, &[x], &value, &mut grad, &mut log_scale);
            let v = x / scale;
            let code = v.clamp(low, high).round_ties_even();
            let inside = v >= low && v <= high;
            let passed = if inside { 3.0 } else { 0.0 };
            let expected = match folded {
                false => (passed, 3.0 * scale * (code - if inside { v } else { 0.0 })),
                true => (passed / scale, -passed * v),
            };
            assert_eq!(value[0], unit * code, "{x}");
            assert_eq!((grad[0], log_scale[0]), expected, "{x}, folded {folded}");
        }
    }
}

#[test]
fn a_weight_outside_its_grid_can_only_come_back() {
    let grid = RowGrid {
        scale: 0.5,
        low: -2.0,
        high: 1.0,
    };
    let weights = [-1.0, -1.1, -1.1, 0.5, 0.6, 0.6, 0.2];
    let grads = [1.0, 1.0, -1.0, -1.0, -1.0, 1.0, 1.0];
    let mut masked = [0.0; 7];
    let log_scale = math::row_backward(grid, 1.0, &weights, &grads, &mut masked);
    // A step goes against the gradient: positive leads down.
    assert_eq!(masked, [1.0, 0.0, -1.0, -1.0, 0.0, 1.0, 1.0]);
    // scale * grad * (code - v where inside): on the bounds 0, outside the code.
    let expected = 0.5 * (-2.0 + 2.0 + 0.0 - 1.0 + 1.0 + (0.0 - 0.4));
    assert!(
        (log_scale - expected).abs() < 1e-6,
        "{log_scale} {expected}"
    );
    // Half of it is another grid's.
    math::row_backward(grid, 0.5, &weights, &grads, &mut masked);
    assert_eq!(masked, [1.0, 0.5, -1.0, -1.0, -0.5, 1.0, 1.0]);
}

/// Pictures of a few frequencies: neighbours resemble each other.
fn picture(program: &Program, i: usize) -> Vec<f32> {
    let [h, w] = program.image;
    let wave = random(6, 1 << 40 | i as u64, 1.0);
    let noise = random(h * w * 3, 2 << 40 | i as u64, 0.3);
    let value = |p: usize| {
        let (y, x, c) = (p / 3 / w, p / 3 % w, p % 3);
        let phase = wave[c] * y as f32 + wave[c + 3] * x as f32;
        phase.sin() + noise[p]
    };
    (0..h * w * 3).map(value).collect()
}

/// A small network with its plan, at `bits` for everything.
struct Setup {
    program: Program,
    float: Weights,
    weights: Weights,
    plan: QuantPlan,
    scratch: Option<PathBuf>,
}

const PICTURES: usize = 32;

impl Setup {
    fn new(bits: BitWidth, code: ActivationCode) -> Self {
        Setup::of(small(), bits, code)
    }

    /// Of the architecture `name`.
    fn architecture(name: &str, bits: BitWidth, code: ActivationCode) -> Self {
        let mut all = synthetic::architectures().into_iter();
        let (_, program) = all.find(|(n, _)| *n == name).expect("an architecture");
        Setup::of(of_architecture(program), bits, code)
    }

    fn of(
        (program, float, _): (Program, Weights, Vec<f32>),
        bits: BitWidth,
        code: ActivationCode,
    ) -> Self {
        let source = |i: usize| (i < PICTURES).then(|| picture(&program, i));
        let settings = PlanSettings {
            normed_code: code,
            hidden_code: code,
            ..PlanSettings::new(bits, bits)
        };
        let observe_settings = ObserveSettings::default();
        let observations = observe(&program, &float, &source, &observe_settings, &mut |_| ());
        let mut weights = float.clone();
        let plan = plan(&program, &mut weights, &observations, &settings);
        Setup {
            program,
            float,
            weights,
            plan,
            scratch: None,
        }
    }

    fn train(&mut self, settings: &Settings, resume: Option<&[u8]>) -> Trained {
        let picture = |i: usize| picture(&self.program, i);
        let lesson = Lesson {
            program: &self.program,
            teacher: &self.program,
            float: &self.float,
            picture: &picture,
            count: PICTURES,
            scratch: self.scratch.as_deref(),
        };
        let mut events = Recorder::default();
        let (weights, plan) = (&mut self.weights, &mut self.plan);
        let logs = reconstruct(&lesson, settings, weights, plan, resume, &mut events);
        Trained { logs, events }
    }
}

struct Trained {
    logs: Result<Vec<UnitLog>, Stop>,
    events: Recorder,
}

/// Keeps every checkpoint.
#[derive(Default)]
struct Recorder {
    done: Vec<f64>,
    checkpoints: Vec<Vec<u8>>,
}

impl Events for Recorder {
    fn progress(&mut self, progress: &Progress) {
        self.done.push(progress.done);
    }

    fn checkpoint(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.checkpoints.push(bytes.to_vec());
        Ok(())
    }
}

/// Both passes, every kind of loss and phase, and joint training, in little.
fn everything() -> Settings {
    let rates = Rates {
        weights: 1e-2,
        weight_scales: 1e-3,
        floats: 2e-3,
        activation_scales: 1e-3,
    };
    let phase = |bits, steps| Phase { bits, steps };
    let pass = Pass {
        input: Input::Float,
        phases: vec![phase(None, 4)],
        transition: true,
        batch: 8,
        rates,
        drop: 0.0,
        global: 0.0,
        class_weight: 1.0,
    };
    let declining = Pass {
        input: Input::Quantized,
        phases: vec![phase(Some(BitWidth::B6), 4), phase(Some(BitWidth::B4), 8)],
        drop: 0.25,
        global: 0.5,
        class_weight: 4.0,
        ..pass.clone()
    };
    Settings {
        passes: vec![pass, declining],
        joint: Some(Joint {
            steps: 40,
            batch: 8,
            rates,
            local: 1.0,
            divergence: 1.0,
            least_area: 0.5,
            class_weight: 2.0,
        }),
        rounding: Rounding::StraightThrough,
        importance: Importance::Alike,
        seed: 3,
    }
}

#[test]
fn the_network_that_learns_is_the_one_that_is_deployed() {
    for (bits, code) in [
        (BitWidth::B6, ActivationCode::Uniform),
        (BitWidth::B4, ActivationCode::Codebook),
    ] {
        is_the_deployed_one("a small network", &Setup::new(bits, code));
    }
    // Deeper ones have more codes that sit on a boundary; of 8 bits, smaller ones.
    for (name, _) in synthetic::architectures() {
        let setup = Setup::architecture(name, BitWidth::B8, ActivationCode::Uniform);
        is_the_deployed_one(name, &setup);
        let setup = Setup::architecture(name, BitWidth::B6, ActivationCode::Uniform);
        is_the_deployed_one(name, &setup);
    }
}

fn is_the_deployed_one(name: &str, setup: &Setup) {
    let program = &setup.program;
    let whole = 0..program.ops.len();
    let params = Params::new(program, &setup.weights, &setup.plan, whole.clone());
    let view = params.view(program, &setup.weights, &setup.plan);
    let fake = fake_weights(program, &setup.weights, &setup.plan);
    let mut tape = Tape::new(program);
    let (mut apart, mut spread) = (0.0f64, 0.0f64);
    for i in 0..8 {
        let image = picture(program, i);
        Network {
            program,
            view: &view,
        }
        .forward(&mut tape, whole.clone(), &image, None);
        let mut hook = FakeQuant::new(program, &setup.plan.quantization);
        let mut executor = Executor::new(program, &fake);
        let expected = executor.run(&image, &mut hook);
        let logits = &tape.raw[program.ops[whole.end - 1].output().index()];
        for (a, b) in logits.iter().zip(expected) {
            apart += f64::from(a - b).powi(2);
            spread += f64::from(*b).powi(2);
        }
    }
    // The same but for a code here and there that sits on a rounding
    // boundary: far less than one step of one activation in eight pictures.
    let relative = (apart / spread).sqrt();
    println!("{name}: {relative}");
    assert!(relative < 0.004, "{name}: {relative}");
}

#[test]
fn training_helps_and_threads_do_not_matter() {
    let with_threads = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("a thread pool").install(|| {
            let mut setup = Setup::new(BitWidth::B4, ActivationCode::Codebook);
            let trained = setup.train(&everything(), None);
            (trained.logs.expect("trained"), trained.events, setup)
        })
    };
    let (logs, events, setup) = with_threads(1);
    let units = units::units(&setup.program).len();
    assert_eq!(logs.len(), 2 * units + 1);
    let last = &logs[2 * units];
    assert!(
        last.after < 0.9 * last.before,
        "{} to {}",
        last.before,
        last.after
    );
    assert!(
        logs.iter()
            .all(|l| l.after <= l.before && l.after.is_finite())
    );
    assert!(events.done.is_sorted(), "progress goes forward");
    assert!((events.done.last().unwrap() - 1.0).abs() < 1e-9);

    let (other_logs, _, other) = with_threads(3);
    assert_eq!(logs, other_logs);
    assert_eq!(setup.weights, other.weights);
    assert_eq!(setup.plan, other.plan);
}

/// With windows, biases, and patches that are merged; and with a gate, into
/// features instead of classes.
#[test]
fn training_helps_every_kind_of_network() {
    for name in ["swin", "vit-qk-norm", "dinov2-giant", "swin-one-window"] {
        let mut setup = Setup::architecture(name, BitWidth::B4, ActivationCode::Uniform);
        let trained = setup.train(&everything(), None);
        let logs = trained.logs.expect("trained");
        let last = logs.last().expect("joint training");
        assert_eq!(last.name, "all units");
        println!("{name}: {} to {}", last.before, last.after);
        assert!(
            last.after < 0.95 * last.before,
            "{name}: {} to {}",
            last.before,
            last.after
        );
        let better = logs.iter().filter(|log| log.after < log.before).count();
        assert!(2 * better > logs.len(), "{name}: {logs:?}");
    }
}

#[test]
fn a_resumed_training_ends_like_an_uninterrupted_one() {
    let mut whole = Setup::new(BitWidth::B4, ActivationCode::Uniform);
    let trained = whole.train(&everything(), None);
    let logs = trained.logs.expect("trained");
    let checkpoints = trained.events.checkpoints;
    let units = units::units(&whole.program).len();
    assert_eq!(checkpoints.len(), 2 * units + 10);
    // In the first pass, between passes, in the second, before and in joint training.
    for at in [
        0,
        units - 1,
        units + 1,
        2 * units - 1,
        2 * units,
        2 * units + 6,
    ] {
        let mut resumed = Setup::new(BitWidth::B4, ActivationCode::Uniform);
        let again = resumed.train(&everything(), Some(&checkpoints[at]));
        assert_eq!(again.logs.expect("trained"), logs, "from checkpoint {at}");
        assert_eq!(resumed.weights, whole.weights, "from checkpoint {at}");
        assert_eq!(resumed.plan, whole.plan, "from checkpoint {at}");
        assert!((again.events.done.last().unwrap_or(&1.0) - 1.0).abs() < 1e-9);
    }
}

#[test]
fn activations_in_files_are_those_in_memory() {
    let mut settings = everything();
    settings.joint = None;
    let mut memory = Setup::new(BitWidth::B4, ActivationCode::Uniform);
    let logs = memory.train(&settings, None).logs.expect("trained");

    let folder = tempfile::tempdir().expect("a folder");
    let mut files = Setup::new(BitWidth::B4, ActivationCode::Uniform);
    files.scratch = Some(folder.path().into());
    assert_eq!(files.train(&settings, None).logs.expect("trained"), logs);
    assert_eq!(files.weights, memory.weights);
    assert_eq!(files.plan, memory.plan);
    let left = std::fs::read_dir(folder.path())
        .expect("the folder")
        .count();
    assert_eq!(left, 0, "files without names");

    files.scratch = Some(folder.path().join("nowhere"));
    let error = files.train(&settings, None).logs.expect_err("no folder");
    assert!(matches!(error, Stop::Scratch(_)), "{error}");
}

/// AdaRound and importances, in both passes and in joint training: it helps, and
/// goes on where it was interrupted.
#[test]
fn learned_rounding_and_importance_train_as_well() {
    let settings = Settings {
        rounding: Rounding::AdaRound,
        importance: Importance::Perturbation,
        ..everything()
    };
    let setup = || Setup::architecture("swin", BitWidth::B4, ActivationCode::Uniform);
    let mut whole = setup();
    let trained = whole.train(&settings, None);
    let logs = trained.logs.expect("trained");
    let last = logs.last().expect("joint training");
    println!("{} to {}", last.before, last.after);
    assert!(
        last.after < 0.95 * last.before,
        "{} to {}",
        last.before,
        last.after
    );
    let checkpoints = trained.events.checkpoints;
    for at in [checkpoints.len() - 12, checkpoints.len() - 4] {
        let mut resumed = setup();
        let again = resumed.train(&settings, Some(&checkpoints[at]));
        assert_eq!(again.logs.expect("trained"), logs, "from checkpoint {at}");
        assert_eq!(resumed.weights, whole.weights, "from checkpoint {at}");
        assert_eq!(resumed.plan, whole.plan, "from checkpoint {at}");
    }
}

/// AdaRound only ever chooses between a weight's two neighbours.
#[test]
fn learned_rounding_moves_no_weight_by_more_than_a_step() {
    let mut settings = Settings {
        rounding: Rounding::AdaRound,
        ..everything()
    };
    settings.passes.clear();
    let mut setup = Setup::new(BitWidth::B4, ActivationCode::Uniform);
    let before = setup.plan.clone();
    setup.train(&settings, None).logs.expect("trained");
    let mut moved = 0;
    for (before, after) in before.weights.iter().zip(&setup.plan.weights) {
        let (Some(before), Some(after)) = (before, after) else {
            continue;
        };
        for (before, after) in before.scale.iter().zip(&after.scale) {
            // They went through a logarithm and back: of numbers near -3.5, good
            // to 2^-23, and then to 2^-24.
            assert!((before / after - 1.0).abs() < 5e-7, "{before} {after}");
        }
        for (before, after) in before.codes.iter().zip(&after.codes) {
            assert!(before.abs_diff(*after) <= 1);
            moved += usize::from(before != after);
        }
    }
    assert!(moved > 0, "something was learnt");
}

/// The mean of the Hessian's diagonal against second differences of the loss.
#[test]
fn importances_are_second_derivatives() {
    let (program, float, _) = small();
    let image = |i: usize| picture(&program, i);
    let task = Task {
        program: &program,
        teacher: &program,
        float: &float,
        image: &image,
        judges: Vec::new(),
        teachers: (0..PICTURES).collect(),
        seed: 1,
        rounding: Rounding::StraightThrough,
        importance: Importance::Perturbation,
        scratch: None,
    };
    let view = View::float(&program, &float);
    let units = units::units(&program);
    let unit = &units[units.len() - 2];
    let found = importance::importance(&task, &view, unit);
    let cols = program.buffers[unit.output.index()].cols;
    let class = program.class_token().expect("a class token");
    let network = Network {
        program: &program,
        view: &view,
    };
    let end = program.ops.len();
    let result = program.ops[end - 1].output().index();
    let divergence = |target: &[f32], logits: &[f32]| -> f64 {
        let (mut p, mut q) = (target.to_vec(), logits.to_vec());
        math::softmax(&mut p, target.len());
        math::softmax(&mut q, target.len());
        let terms = p.iter().zip(&q);
        terms
            .map(|(p, q)| f64::from(*p) * f64::from(p / q).ln())
            .sum()
    };
    let mut measured = vec![0.0; cols];
    for i in 0..PICTURES {
        let mut tape = Tape::new(&program);
        network.forward(&mut tape, 0..end, &image(i), None);
        let target = tape.raw[result].clone();
        let y = tape.raw[unit.output.index()].clone();
        for (c, sum) in measured.iter_mut().enumerate() {
            let mut at = |by: f32| {
                tape.raw[unit.output.index()].clone_from(&y);
                tape.raw[unit.output.index()][class * cols + c] += by;
                network.forward(&mut tape, unit.ops.end..end, &[], None);
                divergence(&target, &tape.raw[result])
            };
            *sum += (at(0.05) + at(-0.05)) / f64::from(0.05f32 * 0.05);
        }
    }
    // Both up to a factor; each channel's estimate has the noise of the others'
    // perturbations, so that only the whole is compared.
    let found: Vec<f64> = found[class * cols..][..cols]
        .iter()
        .map(|&x| f64::from(x))
        .collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let centred = |x: &[f64]| {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        x.iter().map(|x| x - mean).collect::<Vec<f64>>()
    };
    let (a, b) = (centred(&found), centred(&measured));
    let correlation = dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt();
    println!("correlation {correlation}");
    assert!(correlation > 0.7, "{correlation}: {found:?} {measured:?}");
}

#[test]
fn a_checkpoint_of_something_else_is_refused() {
    let mut settings = everything();
    settings.passes.truncate(1);
    settings.joint = None;
    let mut setup = Setup::new(BitWidth::B4, ActivationCode::Uniform);
    let checkpoint = setup.train(&settings, None).events.checkpoints.remove(1);
    let refuse = |setup: &mut Setup, settings: &Settings, bytes: &[u8], word: &str| {
        let error = setup
            .train(settings, Some(bytes))
            .logs
            .expect_err("refused");
        assert!(error.to_string().contains(word), "{error}");
    };
    let fresh = || Setup::new(BitWidth::B4, ActivationCode::Uniform);
    let other = Settings {
        seed: 4,
        ..settings.clone()
    };
    refuse(&mut fresh(), &other, &checkpoint, "settings of training");
    let mut wider = Setup::new(BitWidth::B6, ActivationCode::Uniform);
    refuse(&mut wider, &settings, &checkpoint, "widths");
    let mut moved = fresh();
    moved.float.tensors[0][0] += 1.0;
    refuse(&mut moved, &settings, &checkpoint, "model");
    let mut changed = checkpoint.clone();
    changed[200] ^= 1;
    refuse(&mut fresh(), &settings, &changed, "damaged");
    let cut = &checkpoint[..checkpoint.len() - 1];
    refuse(&mut fresh(), &settings, cut, "damaged");
    refuse(&mut fresh(), &settings, &[], "damaged");
}

#[test]
fn a_training_that_diverges_keeps_what_it_had() {
    let mut settings = everything();
    for pass in &mut settings.passes {
        pass.rates.floats = 1e30;
    }
    let joint = settings.joint.as_mut().expect("joint training");
    joint.rates.floats = 1e30;
    let mut setup = Setup::new(BitWidth::B4, ActivationCode::Uniform);
    let (weights, plan) = (setup.weights.clone(), setup.plan.clone());
    let logs = setup.train(&settings, None).logs.expect("an end");
    assert!(logs.iter().all(|l| l.after <= l.before), "{logs:?}");
    assert!(
        logs.iter().any(|l| l.note.contains("the loss became")),
        "{logs:?}"
    );
    assert!(
        setup
            .weights
            .tensors
            .iter()
            .flatten()
            .all(|w| w.is_finite())
    );
    // Every unit of the first pass diverged, and so on: nothing was taken.
    assert_eq!(setup.weights, weights);
    assert_eq!(setup.plan, plan);
}

#[test]
fn too_few_pictures_are_refused() {
    let setup = Setup::new(BitWidth::B4, ActivationCode::Uniform);
    let picture = |i: usize| picture(&setup.program, i);
    let lesson = Lesson {
        program: &setup.program,
        teacher: &setup.program,
        float: &setup.float,
        picture: &picture,
        count: FEWEST_PICTURES - 1,
        scratch: None,
    };
    let (mut weights, mut plan) = (setup.weights.clone(), setup.plan.clone());
    let mut events = Recorder::default();
    let result = reconstruct(
        &lesson,
        &everything(),
        &mut weights,
        &mut plan,
        None,
        &mut events,
    );
    let error = result.expect_err("too few").to_string();
    assert!(error.contains("15") && error.contains("16"), "{error}");
}

/// What the first attention writes, `[tokens, heads * head_dim]`.
fn first_attention(softmax: &SoftmaxQuant) -> Vec<f32> {
    let (program, weights, image) = small();
    let mut ops = program.ops.iter();
    let index = ops.position(|op| matches!(op, Op::Attention { .. }));
    let index = index.expect("a transformer");
    let mut view = View::float(&program, &weights);
    view.coders[index] = coders(&program, index, softmax);
    let mut tape = Tape::new(&program);
    let network = Network {
        program: &program,
        view: &view,
    };
    network.forward(&mut tape, 0..index + 1, &image, None);
    tape.raw[program.ops[index].output().index()].clone()
}

/// A head's columns are those of a network in which all heads have its codebook.
#[test]
fn every_head_has_its_own_codebook() {
    let VitConfig { dim, heads, .. } = VitConfig::SMALLEST;
    let per_head = synthetic::log2_softmax_per_head(BitWidth::B2, heads);
    let found = first_attention(&per_head);
    let mut alike = Vec::new();
    for (head, codebook) in per_head.codebooks.iter().enumerate() {
        let shared = SoftmaxQuant {
            codebooks: vec![codebook.clone()],
            ..per_head.clone()
        };
        let expected = first_attention(&shared);
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            if i % dim / (dim / heads) == head {
                assert_eq!(found, expected, "value {i} of head {head}");
            }
        }
        alike.push(expected);
    }
    alike.dedup();
    assert_eq!(alike.len(), heads, "the codebook matters");
}
