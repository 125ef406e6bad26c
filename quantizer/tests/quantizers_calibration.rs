//! Calibration on a small Vision Transformer with random weights.

use proptest::prelude::*;
use tpvit_models::{
    Activation, BitWidth, Buffer, BufferId, Codebook, Op, Program, SoftmaxMethod, TensorId,
    TensorInfo, TensorRole,
};
use tpvit_quantizer::calibration::{
    ActivationCode, Compensation, Decision, FakeQuant, Granularity, LayerGroup, Observations,
    ObserveSettings, QuantPlan, Settings, compensate, fake_weights, kl_divergence, observe, plan,
    reparameterise, report, steps,
};
use tpvit_quantizer::quantizers::truncated_uniform_log2::TruncatedUniformLog2;
use tpvit_quantizer::quantizers::{Affine, RangeFit, SoftmaxQuantizer, ZeroPoint};
use tpvit_quantizer::reference::{Executor, Hook};
use tpvit_quantizer::weights::Weights;

const IMAGE: usize = 12;
const PATCH: usize = 4;
const TOKENS: usize = (IMAGE / PATCH) * (IMAGE / PATCH) + 1;
const D: usize = 16;
const HEADS: usize = 2;
const CLASSES: usize = 5;
const BLOCKS: usize = 2;

/// Builds the program as it draws the weights.
struct Builder {
    program: Program,
    weights: Weights,
    state: u64,
}

impl Builder {
    fn random(&mut self) -> f32 {
        // Knuth's linear congruential generator.
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn buffer(&mut self, name: &str, rows: usize, cols: usize) -> BufferId {
        let name = name.to_owned();
        self.program.buffers.push(Buffer { name, rows, cols });
        BufferId(self.program.buffers.len() as u16 - 1)
    }

    /// A tensor of values `centre + spread * u`, u even in -1..1.
    fn tensor(
        &mut self,
        role: TensorRole,
        [rows, cols]: [usize; 2],
        centre: f32,
        spread: f32,
    ) -> TensorId {
        let values = (0..rows * cols)
            .map(|_| centre + spread * self.random())
            .collect();
        self.weights.tensors.push(values);
        let name = format!("tensor {}", self.program.tensors.len());
        self.program.tensors.push(TensorInfo {
            name,
            role,
            rows,
            cols,
        });
        TensorId(self.program.tensors.len() as u16 - 1)
    }

    fn linear(
        &mut self,
        name: &str,
        input: BufferId,
        n: usize,
        activation: Activation,
        residual: Option<BufferId>,
    ) -> BufferId {
        let Buffer { rows, cols: k, .. } = self.program.buffers[input.index()];
        let spread = 1.5 / (k as f32).sqrt();
        let op = Op::Linear {
            input,
            weight: self.tensor(TensorRole::Weight, [n, k], 0.0, spread),
            bias: self.tensor(TensorRole::Float, [1, n], 0.0, 0.2),
            activation,
            residual,
            output: self.buffer(name, rows, n),
        };
        let output = op.output();
        self.program.ops.push(op);
        output
    }

    fn layer_norm(&mut self, name: &str, input: BufferId) -> BufferId {
        let Buffer { rows, cols, .. } = self.program.buffers[input.index()];
        let output = self.buffer(name, rows, cols);
        let gamma = self.tensor(TensorRole::Float, [1, cols], 1.5, 1.4);
        let beta = self.tensor(TensorRole::Float, [1, cols], 0.0, 2.0);
        self.program.ops.push(Op::LayerNorm {
            input,
            gamma,
            beta,
            eps: 1e-6,
            output,
        });
        output
    }

    fn attention(&mut self, qkv: BufferId) -> BufferId {
        let output = self.buffer("attention", TOKENS, D);
        self.program.ops.push(Op::Attention {
            qkv,
            heads: HEADS,
            head_dim: D / HEADS,
            scale: 0.35,
            window: None,
            bias: None,
            output,
        });
        output
    }
}

fn tiny(seed: u64) -> (Program, Weights) {
    let program = Program {
        image: [IMAGE; 2],
        buffers: vec![],
        tensors: vec![],
        ops: vec![],
    };
    let mut b = Builder {
        program,
        weights: Weights::default(),
        state: seed,
    };
    let mut x = b.buffer("embedding", TOKENS, D);
    let embed = Op::PatchEmbed {
        patch: [PATCH; 2],
        weight: b.tensor(TensorRole::Weight, [D, PATCH * PATCH * 3], 0.0, 0.002),
        bias: b.tensor(TensorRole::Float, [1, D], 0.0, 0.3),
        prefix: Some(b.tensor(TensorRole::Float, [1, D], 0.0, 1.0)),
        position: Some(b.tensor(TensorRole::Float, [TOKENS - 1, D], 0.0, 0.3)),
        output: x,
    };
    b.program.ops.push(embed);
    for _ in 0..BLOCKS {
        let normed = b.layer_norm("norm1", x);
        let qkv = b.linear("qkv", normed, 3 * D, Activation::Identity, None);
        let attention = b.attention(qkv);
        x = b.linear("proj", attention, D, Activation::Identity, Some(x));
        let normed = b.layer_norm("norm2", x);
        let hidden = b.linear("fc1", normed, 4 * D, Activation::Gelu, None);
        x = b.linear("fc2", hidden, D, Activation::Identity, Some(x));
    }
    let class = b.buffer("class", 1, D);
    b.program.ops.push(Op::SelectToken {
        input: x,
        token: 0,
        output: class,
    });
    let normed = b.layer_norm("norm", class);
    b.linear("head", normed, CLASSES, Activation::Identity, None);
    b.program.validate().expect("a valid program");
    (b.program, b.weights)
}

/// A picture of pixels 0 to 255, made from its index.
fn picture(index: usize) -> Vec<f32> {
    let wave = |i: usize| ((i * (index + 3)) as f32 * 0.37).sin() + (i as f32 * 0.05).cos();
    (0..IMAGE * IMAGE * 3)
        .map(|i| ((wave(i) + 2.0) * 63.0).round())
        .collect()
}

fn observed(program: &Program, weights: &Weights, pictures: usize) -> Observations {
    let settings = ObserveSettings {
        row_pictures: 6,
        attention_pictures: 3,
        ..ObserveSettings::default()
    };
    let source = |i| (i < pictures).then(|| picture(i));
    observe(program, weights, &source, &settings, &mut |_| {})
}

/// Keeps the values of one buffer.
struct Keep(BufferId, Vec<f32>);

impl Hook for Keep {
    fn buffer(&mut self, _op: usize, id: BufferId, values: &mut [f32]) {
        if id == self.0 {
            self.1 = values.to_vec();
        }
    }
}

fn run(
    program: &Program,
    weights: &Weights,
    image: &[f32],
    keep: BufferId,
) -> (Vec<f32>, Vec<f32>) {
    let mut hook = Keep(keep, Vec::new());
    let logits = Executor::new(program, weights)
        .run(image, &mut hook)
        .to_vec();
    (logits, hook.1)
}

fn normed_buffers(program: &Program) -> Vec<BufferId> {
    let normed = program
        .ops
        .iter()
        .filter(|op| matches!(op, Op::LayerNorm { .. }));
    normed.map(Op::output).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Per-channel codes before are the per-tensor codes after. In f32 a value
    /// within rounding of a tie may fall to the other side: by one, rarely.
    #[test]
    fn reparameterising_keeps_every_code(seed in any::<u64>(), which in 0..5usize, bits in 0..4usize) {
        let bits = [BitWidth::B3, BitWidth::B4, BitWidth::B6, BitWidth::B8][bits];
        let (program, weights) = tiny(seed);
        let stats = observed(&program, &weights, 4);
        let id = normed_buffers(&program)[which];
        let stats = stats.buffers[id.index()].as_ref().expect("coded");
        let fit = |col| Affine::fit(bits, ZeroPoint::Free, RangeFit::Mse, &stats.column(col));
        let channels: Vec<Affine> = (0..D).map(fit).collect();
        let image = picture(9);
        let (logits, before) = run(&program, &weights, &image, id);

        let mut folded = weights.clone();
        let joint = reparameterise(&program, &mut folded, id, bits, &channels);
        prop_assert!((0..=i32::from(bits.max_code())).contains(&joint.zero_point));
        let (same, after) = run(&program, &folded, &image, id);
        let mut ties = 0;
        for (i, (x, y)) in before.iter().zip(&after).enumerate() {
            let old = channels[i % D].encode(bits, *x);
            let new = joint.encode(bits, *y);
            prop_assert!(old.abs_diff(new) <= 1, "{x} {y}: {old} {new}");
            ties += usize::from(old != new);
        }
        prop_assert!(ties * 100 <= before.len(), "{ties} of {} codes differ", before.len());
        for (a, b) in logits.iter().zip(&same) {
            // Zero points reach 2^16 for a channel far from 0 and of no
            // spread, so a folded bias holds 2^16 steps: 16 of 24 bits gone.
            prop_assert!((a - b).abs() <= 2e-3 * (1.0 + a.abs()), "{a} {b}");
        }
    }
}

#[test]
fn observations_do_not_depend_on_the_number_of_threads() {
    let (program, weights) = tiny(1);
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("threads")
            .install(|| observed(&program, &weights, 21))
    };
    let one = with(1);
    assert_eq!(one.pictures, 21);
    assert_eq!(one, with(2));
    assert_eq!(one, with(5));
}

#[test]
fn the_plan_covers_exactly_what_is_coded() {
    let (program, mut weights) = tiny(2);
    let observations = observed(&program, &weights, 8);
    let settings = Settings::new(BitWidth::B4, BitWidth::B3);
    let plan = plan(&program, &mut weights, &observations, &settings);
    for (coded, quant) in program.coded().iter().zip(&plan.quantization.activations) {
        assert_eq!(*coded, quant.is_some());
    }
    for (op, softmax) in program.ops.iter().zip(&plan.quantization.softmax) {
        assert_eq!(matches!(op, Op::Attention { .. }), softmax.is_some());
    }
    for (info, weight) in program.tensors.iter().zip(&plan.weights) {
        assert_eq!(info.role == TensorRole::Weight, weight.is_some());
        let Some(weight) = weight else { continue };
        assert_eq!(weight.scale.len(), info.rows);
        assert_eq!(weight.codes.len(), info.rows * info.cols);
    }
    for quant in plan.quantization.activations.iter().flatten() {
        assert_eq!(quant.bits, BitWidth::B3);
        assert_eq!(quant.scale.len(), quant.zero_point.len());
        assert!(quant.scale.iter().all(|s| s.is_finite() && *s > 0.0));
        assert!(quant.zero_point.iter().all(|&z| z <= quant.bits.max_code()));
    }
}

#[test]
fn codebooks_per_head_are_fitted_to_each_head() {
    let (program, weights) = tiny(2);
    let observations = observed(&program, &weights, 8);
    let planned = |method, per_head| {
        let mut settings = Settings::new(BitWidth::B4, BitWidth::B3);
        settings.softmax.method = method;
        settings.softmax.per_head = per_head;
        plan(&program, &mut weights.clone(), &observations, &settings).quantization
    };
    let quantizer = TruncatedUniformLog2::default();
    let shared = planned(SoftmaxMethod::TulqA, false);
    let per_head = planned(SoftmaxMethod::TulqA, true);
    let attention = observations.attention.iter().zip(&per_head.softmax);
    for ((samples, quant), shared) in attention.zip(&shared.softmax) {
        let (Some(samples), Some(quant), Some(shared)) = (samples, quant, shared) else {
            assert!(quant.is_none() && shared.is_none());
            continue;
        };
        assert_eq!(samples.heads(), HEADS);
        assert_eq!(*shared, quantizer.fit(BitWidth::B3, samples));
        assert_eq!(quant.codebooks.len(), HEADS);
        let mut sum = 0.0;
        for head in 0..HEADS {
            let alone = quantizer.fit(BitWidth::B3, &samples.of_head(head));
            assert_eq!(alone.codebooks, [quant.codebook(head).clone()]);
            sum += samples.of_head(head).squared_error(&alone);
        }
        let together = samples.squared_error(quant);
        assert!((together - sum).abs() <= 1e-9 * sum, "{together} {sum}");
    }
    // Nothing to fit: the same file as without.
    for method in [SoftmaxMethod::RowMax, SoftmaxMethod::Log2] {
        assert_eq!(planned(method, true), planned(method, false));
    }
}

#[test]
fn q_and_k_have_one_scale_a_head() {
    let (program, mut weights) = tiny(3);
    let observations = observed(&program, &weights, 8);
    let plan = plan(
        &program,
        &mut weights,
        &observations,
        &Settings::new(BitWidth::B8, BitWidth::B8),
    );
    for op in &program.ops {
        let Op::Attention { qkv, head_dim, .. } = *op else {
            continue;
        };
        let quant = plan.quantization.activations[qkv.index()]
            .as_ref()
            .expect("coded");
        for head in 0..2 * HEADS {
            let scales = &quant.scale[head * head_dim..(head + 1) * head_dim];
            assert!(scales.iter().all(|s| *s == scales[0]));
            let zeros = &quant.zero_point[head * head_dim..(head + 1) * head_dim];
            assert!(zeros.iter().all(|z| *z == zeros[0]));
        }
    }
}

/// A network before and after compensation at 4 bits, on 20 pictures.
#[derive(Debug, PartialEq)]
struct Compensated {
    float: Weights,
    weights: Weights,
    plan: QuantPlan,
    decisions: Vec<Decision>,
    ran: Vec<usize>,
}

fn compensated(program: &Program, mut weights: Weights) -> Compensated {
    let observations = observed(program, &weights, 20);
    let settings = Settings::new(BitWidth::B4, BitWidth::B4);
    let mut plan = plan(program, &mut weights, &observations, &settings);
    let float = weights.clone();
    let mut ran = Vec::new();
    let decisions = compensate(
        program,
        &mut weights,
        &mut plan,
        &|i| (i < 20).then(|| picture(i)),
        20,
        &Compensation::default(),
        &mut |done| ran.push(done),
    );
    Compensated {
        float,
        weights,
        plan,
        decisions,
        ran,
    }
}

#[test]
fn compensation_judges_every_group_once_and_keeps_the_better() {
    let mut kept = 0;
    for seed in 0..4 {
        let (program, weights) = tiny(seed);
        let made = compensated(&program, weights);
        let groups: Vec<LayerGroup> = made.decisions.iter().map(|d| d.group).collect();
        assert_eq!(
            groups,
            [
                LayerGroup::PatchEmbedding,
                LayerGroup::Normed,
                LayerGroup::Projection,
                LayerGroup::Hidden,
                LayerGroup::Classifier,
            ]
        );
        for pair in made.decisions.windows(2) {
            let reached = pair[0].rounded.min(pair[0].compensated);
            assert_eq!(pair[1].rounded, reached, "each starts where the last ended");
        }
        assert!(made.ran.is_sorted());
        assert_eq!(made.ran.last(), Some(&steps(&program, 20)));

        // Every fourth picture judges: what was promised is what is there.
        let fake = fake_weights(&program, &made.weights, &made.plan);
        let judges: Vec<usize> = (3..20).step_by(4).collect();
        let kl = |&i: &usize| {
            let mut float = Executor::new(&program, &made.float);
            let mut quantized = Executor::new(&program, &fake);
            let mut hook = FakeQuant::new(&program, &made.plan.quantization);
            let image = picture(i);
            kl_divergence(float.run(&image, &mut ()), quantized.run(&image, &mut hook))
        };
        let mean = judges.iter().map(kl).sum::<f64>() / judges.len() as f64;
        let last = made.decisions[4];
        assert_eq!(mean, last.rounded.min(last.compensated));
        kept += made.decisions.iter().filter(|d| d.kept()).count();
    }
    assert!(kept > 0, "of 20 groups none was better compensated");
}

#[test]
fn compensation_does_not_depend_on_the_number_of_threads() {
    let (program, weights) = tiny(7);
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let run = || compensated(&program, weights.clone());
        pool.expect("threads").install(run)
    };
    let one = with(1);
    assert_eq!(one, with(2));
    assert_eq!(one, with(5));
}

#[test]
fn eight_bits_are_close_to_float_in_every_granularity() {
    let (program, weights) = tiny(4);
    let observations = observed(&program, &weights, 12);
    let float = run(&program, &weights, &picture(30), BufferId(0)).0;
    for granularity in [
        Granularity::PerTensor,
        Granularity::PerHead,
        Granularity::PerChannel,
    ] {
        for method in [
            SoftmaxMethod::RowMax,
            SoftmaxMethod::TulqA,
            SoftmaxMethod::TulqZa,
        ] {
            let mut settings = Settings::new(BitWidth::B8, BitWidth::B8);
            settings.values = granularity;
            settings.attention_output = granularity;
            settings.hidden = granularity;
            settings.softmax.method = method;
            let mut adjusted = weights.clone();
            let plan = plan(&program, &mut adjusted, &observations, &settings);
            let fake = fake_weights(&program, &adjusted, &plan);
            let mut hook = FakeQuant::new(&program, &plan.quantization);
            let logits = Executor::new(&program, &fake)
                .run(&picture(30), &mut hook)
                .to_vec();
            let kl = kl_divergence(&float, &logits);
            assert!(
                (0.0..0.02).contains(&kl),
                "{granularity:?} {method:?}: {kl}"
            );
        }
    }
}

#[test]
fn codebooks_are_where_they_are_asked_for() {
    let (program, weights) = tiny(2);
    let observations = observed(&program, &weights, 8);
    for (normed, hidden, bits) in [
        (
            ActivationCode::Codebook,
            ActivationCode::Uniform,
            BitWidth::B4,
        ),
        (
            ActivationCode::Uniform,
            ActivationCode::ShiftedLog,
            BitWidth::B3,
        ),
        (
            ActivationCode::Codebook,
            ActivationCode::Codebook,
            BitWidth::B2,
        ),
        (
            ActivationCode::Codebook,
            ActivationCode::ShiftedLog,
            BitWidth::B6,
        ),
    ] {
        let mut settings = Settings::new(BitWidth::B4, bits);
        settings.normed_code = normed;
        settings.hidden_code = hidden;
        settings.first_last_bits = Some(BitWidth::B8);
        let plan = plan(&program, &mut weights.clone(), &observations, &settings);
        for op in &program.ops {
            let output = op.output().index();
            let Some(quant) = &plan.quantization.activations[output] else {
                continue;
            };
            let code = match *op {
                Op::LayerNorm { .. } => normed,
                Op::Linear { .. } if program.buffers[output].name == "fc1" => hidden,
                Op::PatchEmbed { .. }
                | Op::Linear { .. }
                | Op::Attention { .. }
                | Op::HeadNorm { .. }
                | Op::Gate { .. }
                | Op::SelectToken { .. }
                | Op::Pool { .. }
                | Op::PatchMerge { .. } => ActivationCode::Uniform,
            };
            let expected = code != ActivationCode::Uniform && quant.bits <= BitWidth::B4;
            let name = &program.buffers[output].name;
            assert_eq!(quant.codebook.is_some(), expected, "{name} at {bits:?}");
            if let Some(codebook) = &quant.codebook {
                let mut levels = codebook.levels.clone();
                levels.dedup();
                let most = usize::from(bits.max_code()) + 1;
                assert!(levels.len() > most / 2 && codebook.levels.len() == most);
            }
        }
    }
}

#[test]
fn recorded_codes_mean_the_values_of_their_buffer() {
    let (program, weights) = tiny(5);
    let observations = observed(&program, &weights, 8);
    let uniform = Settings::new(BitWidth::B4, BitWidth::B4);
    let codebooks = Settings {
        normed_code: ActivationCode::Codebook,
        hidden_code: ActivationCode::ShiftedLog,
        ..uniform.clone()
    };
    for settings in [uniform, codebooks] {
        let mut weights = weights.clone();
        let plan = plan(&program, &mut weights, &observations, &settings);
        let fake = fake_weights(&program, &weights, &plan);
        let mut hook = FakeQuant::recording(&program, &plan.quantization);
        let mut executor = Executor::new(&program, &fake);
        executor.run(&picture(0), &mut hook);
        for (id, quant) in plan.quantization.activations.iter().enumerate() {
            let id = BufferId(id as u16);
            let Some(quant) = quant else {
                assert!(hook.codes(id).is_empty());
                continue;
            };
            let cols = program.buffers[id.index()].cols;
            let values = executor.buffer(id);
            assert_eq!(hook.codes(id).len(), values.len());
            for (i, (&code, &x)) in hook.codes(id).iter().zip(values).enumerate() {
                let (scale, zero) = (quant.scale_at(i % cols), quant.zero_point_at(i % cols));
                assert_eq!(x, scale * (f32::from(code) - f32::from(zero)));
                let level = |book: &Codebook| book.levels.contains(&code);
                assert!(quant.codebook.as_ref().is_none_or(level));
            }
        }
    }
}

#[test]
fn a_report_is_sorted_and_finds_the_rounded_layers() {
    let (program, mut weights) = tiny(6);
    let observations = observed(&program, &weights, 8);
    let coded = program.coded();
    let plan = plan(
        &program,
        &mut weights,
        &observations,
        &Settings::new(BitWidth::B4, BitWidth::B4),
    );
    let pictures: Vec<Vec<f32>> = (0..4).map(picture).collect();
    let layers = report(&program, &weights, &weights, &plan, &pictures);
    assert_eq!(layers.len(), program.ops.len());
    assert!(layers.is_sorted_by(|a, b| a.accumulated >= b.accumulated));
    for layer in layers {
        let output = program.ops[layer.op].output();
        assert_eq!(
            layer.rounding > 0.0,
            coded[output.index()],
            "{}",
            layer.name
        );
    }
}
