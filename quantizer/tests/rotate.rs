//! Rotations leave what a network computes and change how it quantizes.

use tpvit_models::synthetic::{self, VitConfig};
use tpvit_models::{Activation, BitWidth, Buffer, BufferId, Op, Program, TensorRole};
use tpvit_quantizer::calibration::{RotateError, Rotation, rotate};
use tpvit_quantizer::reference::{Executor, Hook};
use tpvit_quantizer::weights::Weights;

const ALL: Rotation = Rotation {
    residual: true,
    values: true,
    query_key: true,
    seed: 1,
};

/// 17 tokens; heads of 16 channels, a power of two.
const EVEN: VitConfig = VitConfig {
    image: 16,
    dim: 48,
    heads: 3,
    ..VitConfig::SMALLEST
};

/// 30 channels and heads of 15: no Hadamard matrix of either order.
const ODD: VitConfig = VitConfig {
    dim: 30,
    ..VitConfig::SMALLEST
};

fn model(config: VitConfig) -> (Program, Weights) {
    let softmax = synthetic::row_max_softmax(BitWidth::B4);
    let bits = BitWidth::B8;
    floats(synthetic::vit(config, bits, bits, &softmax, 3).program)
}

/// A picture of pixels 0 to 255, made from its index.
fn picture(program: &Program, index: usize) -> Vec<f32> {
    let [height, width] = program.image;
    let wave = |i: usize| ((i * (index + 3)) as f32 * 0.37).sin() + (i as f32 * 0.05).cos();
    let pixels = (0..height * width * 3).map(|i| ((wave(i) + 2.0) * 63.0).round());
    pixels.collect()
}

fn logits(program: &Program, weights: &Weights, image: &[f32]) -> Vec<f32> {
    Executor::new(program, weights).run(image, &mut ()).to_vec()
}

/// A path from pixel to logit passes 3 blocks of 6 sums, patch embedding and
/// head: 20 sums of at most 256 terms. Each is good to `u * sqrt(256)` of its
/// rows' size, `u = 2^-24`; so is each with every weight rounded once more. If
/// all erred the same way on both sides:
const TOLERANCE: f32 = 4.0 * 20.0 * 16.0 * 6e-8; // 7.7e-5 of the largest logit

#[track_caller]
fn computes_the_same(program: &Program, before: &Weights, after: &Weights) {
    for index in 0..3 {
        let image = picture(program, index);
        let old = logits(program, before, &image);
        let new = logits(program, after, &image);
        let largest = old.iter().fold(0f32, |m, x| m.max(x.abs()));
        for (a, b) in old.iter().zip(&new) {
            assert!((a - b).abs() < TOLERANCE * largest, "{a} {b} of {largest}");
        }
    }
}

#[test]
fn a_rotated_network_computes_the_same() {
    for config in [VitConfig::SMALLEST, EVEN, ODD] {
        let (program, weights) = model(config);
        for (residual, values, query_key) in [
            (true, false, false),
            (false, true, false),
            (false, false, true),
            (true, true, true),
        ] {
            let settings = Rotation {
                residual,
                values,
                query_key,
                seed: 5,
            };
            let mut rotated = weights.clone();
            rotate(&program, &mut rotated, &settings).expect("a plain transformer");
            computes_the_same(&program, &weights, &rotated);
            let changed = (0..program.tensors.len()).filter(|&id| {
                let name = &program.tensors[id].name;
                let weight = [".weight", ".gamma"].iter().any(|end| name.ends_with(end));
                weight && rotated.tensors[id] != weights.tensors[id]
            });
            // Patch embedding, head and LayerNorms' gains; of a block four layers,
            // qkv and projection, or qkv alone.
            let expected = match (residual, values, query_key) {
                (true, _, _) => 3 + config.depth * 6,
                (false, true, _) => config.depth * 2,
                (false, false, _) => config.depth,
            };
            assert_eq!(changed.count(), expected);
        }
    }
}

/// Float weights of a synthetic model.
fn floats(program: Program) -> (Program, Weights) {
    let softmax = synthetic::row_max_softmax(BitWidth::B4);
    let data = synthetic::model(program, BitWidth::B8, BitWidth::B8, &softmax, 3);
    let weights = Weights::dequantize(&data.tensors);
    (data.program, weights)
}

/// Whatever is asked of whatever network: it is done, or nothing is.
#[test]
fn every_architecture_is_rotated_or_refused() {
    let mut refused = Vec::new();
    for (name, program) in synthetic::architectures() {
        let (program, weights) = floats(program);
        for (what, residual, values, query_key) in [
            ("residual", true, false, false),
            ("values", false, true, false),
            ("query_key", false, false, true),
        ] {
            let settings = Rotation {
                residual,
                values,
                query_key,
                seed: 5,
            };
            let mut rotated = weights.clone();
            match rotate(&program, &mut rotated, &settings) {
                Ok(()) => {
                    assert_ne!(rotated, weights, "{name}, {what}");
                    computes_the_same(&program, &weights, &rotated);
                }
                Err(error) => {
                    assert_eq!(rotated, weights, "{name}, {what}");
                    let reason = match error {
                        RotateError::Blocked { buffer, reason } => format!("{buffer}: {reason}"),
                        other => panic!("{name}, {what}: {other}"),
                    };
                    refused.push((name, what, reason));
                }
            }
        }
    }
    let read = |buffer: &str| format!("{buffer}: more than linear layers read it");
    let normed = String::from("blocks.0.attn.qk_norm: no plain linear layer writes it");
    let expected = [
        ("deit-distilled", "residual", read("norm")),
        ("clip-mean-of-patches", "residual", read("norm_pre")),
        ("vit-qk-norm", "values", normed.clone()),
        ("vit-qk-norm", "query_key", normed),
        ("dinov2-giant", "residual", read("norm")),
        ("dinov2-classifier", "residual", read("norm")),
        ("swin", "residual", read("patch_embed.norm")),
        ("swin-one-window", "residual", read("norm")),
    ];
    assert_eq!(refused, expected);
}

/// Means of the stream itself go through a rotation, but a linear layer that
/// reads them would have to undo it.
#[test]
fn a_mean_that_no_norm_follows_is_refused() {
    let mut all = synthetic::architectures().into_iter();
    let (_, mut program) = all
        .find(|(n, _)| *n == "vit-mean")
        .expect("an architecture");
    // The head reads the mean instead of its LayerNorm, which goes.
    let norm = program.ops.len() - 2;
    let (Op::LayerNorm { input, output, .. }, Op::Linear { .. }) =
        (program.ops[norm].clone(), program.ops[norm + 1].clone())
    else {
        panic!("a norm and the head")
    };
    program.ops.remove(norm);
    if let Some(Op::Linear { input: read, .. }) = program.ops.last_mut() {
        *read = input;
    }
    let last = program.ops.last_mut().expect("the head");
    if let Op::Linear { output: logits, .. } = last {
        *logits = output;
    }
    let classes = program.buffers.pop().expect("the logits").cols;
    program.buffers[output.index()].cols = classes;
    let (program, mut weights) = floats(program);
    let error = rotate(&program, &mut weights, &ALL).expect_err("it cannot be rotated");
    let text = error.to_string();
    assert!(text.contains("without a LayerNorm"), "{text}");
}

#[test]
#[cfg(feature = "onnx")]
fn a_rotated_export_computes_the_same() {
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for name in ["vit.opset17.onnx", "vit_layerscale.opset18.dynamo.onnx"] {
        let mut imported = tpvit_quantizer::import::load(fixtures.join(name), false)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        imported.fold_preprocessing([0.5; 3], [0.5; 3]);
        let mut rotated = imported.weights.clone();
        rotate(&imported.program, &mut rotated, &ALL).expect(name);
        computes_the_same(&imported.program, &imported.weights, &rotated);
    }
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

/// Largest magnitude over the root of the mean square, and kurtosis.
fn peak_and_kurtosis(program: &Program, weights: &Weights, name: &str) -> (f64, f64) {
    let named = program.buffers.iter().position(|b| b.name == name);
    let mut keep = Keep(BufferId(named.expect("a buffer") as u16), Vec::new());
    Executor::new(program, weights).run(&picture(program, 0), &mut keep);
    let mean = |power: i32| {
        let sum: f64 = keep.1.iter().map(|x| f64::from(*x).powi(power)).sum();
        sum / keep.1.len() as f64
    };
    let largest = keep.1.iter().fold(0f32, |m, x| m.max(x.abs()));
    let square = mean(2);
    (
        f64::from(largest) / square.sqrt(),
        mean(4) / (square * square),
    )
}

/// Makes row `channel` of every `[rows, cols]` tensor named so much larger.
fn enlarge(program: &Program, weights: &mut Weights, names: &[&str], rows: &[usize], by: f32) {
    for (info, values) in program.tensors.iter().zip(&mut weights.tensors) {
        if !names.contains(&&info.name[..]) {
            continue;
        }
        // A vector's elements are rows of their own; embeddings have channels in columns.
        let channel = |at: usize| match info.role {
            TensorRole::Weight => at / info.cols,
            TensorRole::Float => at % info.cols,
        };
        for (at, value) in values.iter_mut().enumerate() {
            if rows.contains(&channel(at)) {
                *value *= by;
            }
        }
    }
}

#[test]
fn outliers_of_the_stream_are_spread() {
    let (program, mut weights) = model(EVEN);
    let embedding = [
        "patch_embed.weight",
        "patch_embed.bias",
        "prefix",
        "position",
    ];
    enlarge(&program, &mut weights, &embedding, &[7, 30], 30.0);
    let (peak, kurtosis) = peak_and_kurtosis(&program, &weights, "blocks.0.norm1");
    // Two channels of 48 hold nearly everything: mean square 2/48 of theirs.
    assert!(peak > 4.0 && kurtosis > 15.0, "{peak} {kurtosis}");
    for seed in 0..4 {
        let mut rotated = weights.clone();
        let settings = Rotation {
            seed,
            values: false,
            query_key: false,
            ..ALL
        };
        rotate(&program, &mut rotated, &settings).expect("a plain transformer");
        let (new_peak, new_kurtosis) = peak_and_kurtosis(&program, &rotated, "blocks.0.norm1");
        assert!(new_peak < 0.8 * peak, "{peak} -> {new_peak}");
        // Of two channels times even entries; 3 is a normal distribution's.
        assert!(new_kurtosis < 8.0, "{kurtosis} -> {new_kurtosis}");
    }
}

#[test]
fn outliers_within_a_head_are_spread() {
    let (program, mut weights) = model(EVEN);
    let qkv = ["blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias"];
    // A channel of the second head, of q, of k and of v.
    enlarge(&program, &mut weights, &qkv, &[20, 68, 116], 30.0);
    let (peak, kurtosis) = peak_and_kurtosis(&program, &weights, "blocks.0.attn.qkv");
    let settings = Rotation {
        residual: false,
        ..ALL
    };
    let mut rotated = weights.clone();
    rotate(&program, &mut rotated, &settings).expect("a plain transformer");
    let (new_peak, new_kurtosis) = peak_and_kurtosis(&program, &rotated, "blocks.0.attn.qkv");
    // One channel becomes 16 of a quarter its size; other heads stay small.
    assert!(new_peak < 0.4 * peak, "{peak} -> {new_peak}");
    assert!(
        new_kurtosis < 0.2 * kurtosis,
        "{kurtosis} -> {new_kurtosis}"
    );
}

#[test]
fn a_seed_decides_every_weight() {
    let (program, weights) = model(EVEN);
    let make = |seed| {
        let mut rotated = weights.clone();
        rotate(&program, &mut rotated, &Rotation { seed, ..ALL }).expect("a plain transformer");
        rotated
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(5).build();
    assert_eq!(make(3), pool.expect("threads").install(|| make(3)));
    assert!(make(3) != make(4));
}

/// What `rotate` says about a changed program; the weights must stay.
fn refused(change: impl FnOnce(&mut Program, &mut Weights), settings: Rotation) -> RotateError {
    let (mut program, mut weights) = model(VitConfig::SMALLEST);
    change(&mut program, &mut weights);
    program.validate().expect("a program that could be run");
    let before = weights.clone();
    let error = rotate(&program, &mut weights, &settings).expect_err("must be refused");
    assert!(weights == before, "a refusal changes nothing");
    error
}

#[test]
fn what_does_not_commute_is_refused() {
    let blocked = |error, expected: &str| match error {
        RotateError::Blocked { reason, .. } => assert!(reason.contains(expected), "{reason}"),
        other => panic!("{other}"),
    };
    let op = |p: &Program, name: &str| {
        let is = |op: &Op| p.buffers[op.output().index()].name == name;
        p.ops.iter().position(is).expect("an operation")
    };
    let set_activation = |name: &'static str| {
        move |p: &mut Program, _: &mut Weights| {
            let at = op(p, name);
            let Op::Linear { activation, .. } = &mut p.ops[at] else {
                panic!("{name} is no linear layer");
            };
            *activation = Activation::Gelu;
        }
    };
    let residual = Rotation {
        values: false,
        query_key: false,
        ..ALL
    };
    let heads = Rotation {
        residual: false,
        ..ALL
    };
    blocked(refused(set_activation("blocks.1.res2"), residual), "GELU");
    blocked(
        refused(set_activation("blocks.0.attn.qkv"), heads),
        "plain linear",
    );

    let shared = |p: &mut Program, _: &mut Weights| {
        let (first, second) = (op(p, "blocks.0.norm1"), op(p, "blocks.0.norm2"));
        let Op::LayerNorm { gamma: theirs, .. } = p.ops[first] else {
            panic!("norm1 is a LayerNorm");
        };
        let Op::LayerNorm { gamma, .. } = &mut p.ops[second] else {
            panic!("norm2 is a LayerNorm");
        };
        *gamma = theirs;
    };
    let error = refused(shared, residual);
    assert!(
        matches!(&error, RotateError::Shared { tensor } if tensor.contains("norm1")),
        "{error}"
    );

    // A residual is taken from behind the LayerNorm: its gain cannot be moved.
    let post_norm = |p: &mut Program, _: &mut Weights| {
        let Op::LayerNorm {
            input,
            gamma,
            beta,
            eps,
            ..
        } = p.ops[op(p, "blocks.0.norm2")]
        else {
            panic!("norm2 is a LayerNorm");
        };
        let Buffer { rows, cols, .. } = p.buffers[input.index()];
        let output = BufferId(p.buffers.len() as u16);
        p.buffers.push(Buffer {
            name: "behind".into(),
            rows,
            cols,
        });
        let fc2 = op(p, "blocks.0.res2");
        let Op::Linear { residual, .. } = &mut p.ops[fc2] else {
            panic!("fc2 is a linear layer");
        };
        *residual = Some(output);
        p.ops.insert(
            fc2,
            Op::LayerNorm {
                input,
                gamma,
                beta,
                eps,
                output,
            },
        );
    };
    blocked(refused(post_norm, residual), "more than linear layers");
}

#[test]
fn without_attention_or_norms_there_is_nothing_to_rotate() {
    let only = |keep: usize| {
        move |p: &mut Program, w: &mut Weights| {
            p.ops.truncate(keep);
            let used: Vec<usize> = p.ops.iter().map(|op| op.output().index()).collect();
            assert!(used.iter().copied().eq(0..used.len()), "buffers in order");
            p.buffers.truncate(used.len());
            let _ = w;
        }
    };
    let heads = Rotation {
        residual: false,
        ..ALL
    };
    assert_eq!(refused(only(1), ALL), RotateError::NoStream);
    assert_eq!(refused(only(1), heads), RotateError::NoHeads);
}
