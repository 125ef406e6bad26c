//! Real exports are imported with the original's numbers, or refused.
#![cfg(feature = "onnx")]

use std::path::{Path, PathBuf};
use tpvit_models::{Op, Program};
use tpvit_quantizer::import::{ImportError, Imported, load, verify};
use tpvit_quantizer::reference::Executor;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn import(name: &str) -> Imported {
    load(fixture(name), false).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The same model by different exporters.
const VIT: [&str; 6] = [
    "vit.opset14.onnx",
    "vit.opset17.onnx",
    "vit.opset18.dynamo.onnx",
    "vit.opset20.onnx",
    "vit_layerscale.opset17.onnx",
    "vit_layerscale.opset18.dynamo.onnx",
];

const OTHERS: [&str; 9] = [
    "vit_gap.opset17.onnx",
    "vit_qknorm.opset17.onnx",
    "vit_norm_pre.opset18.dynamo.onnx",
    "deit_distilled.opset17.onnx",
    "dinov2_giant.opset20.onnx",
    "hf_vit.opset18.dynamo.onnx",
    "hf_swin.opset17.onnx",
    "swin.opset17.onnx",
    "swin_wide.opset18.dynamo.onnx",
];

/// Two pictures as `[height, width, 3]` with PyTorch's results.
fn expected(name: &str, [height, width]: [usize; 2]) -> Vec<(Vec<f32>, Vec<f32>)> {
    let stem = name.split('.').next().unwrap();
    let bytes = std::fs::read(fixture(&format!("{stem}.f32"))).unwrap();
    let (chunks, _) = bytes.as_chunks::<4>();
    let values: Vec<f32> = chunks.iter().map(|c| f32::from_le_bytes(*c)).collect();
    let plane = height * width;
    let (pictures, results) = values.split_at(6 * plane);
    let picture = |chw: &[f32]| (0..3 * plane).map(|i| chw[i % 3 * plane + i / 3]).collect();
    pictures
        .chunks(3 * plane)
        .map(picture)
        .zip(results.chunks(results.len() / 2).map(<[f32]>::to_vec))
        .collect()
}

/// Largest difference over the largest logit.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let scale = b.iter().fold(0f32, |m, v| m.max(v.abs()));
    a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / scale
}

#[test]
fn logits_are_pytorchs() {
    // A path from pixel to logit passes at most 5 blocks of 6 sums, patch
    // embedding, two merges and a head: 36 sums of at most 336 terms. Each is good
    // to u * sqrt(336) of its rows' size, u = 2^-24; if all erred the same way on
    // both sides:
    let tolerance = 2.0 * 36.0 * 18.3 * 6e-8; // 7.9e-5
    for name in VIT.into_iter().chain(OTHERS) {
        let imported = import(name);
        let mut executor = Executor::new(&imported.program, &imported.weights);
        for (image, logits) in expected(name, imported.program.image) {
            let found = distance(executor.run(&image, &mut ()), &logits);
            println!("{name}: {found:.2e} of the largest logit");
            assert!(found < tolerance, "{name}: {found}");
        }
    }
}

#[test]
fn every_part_agrees_with_a_run_of_the_original() {
    for name in VIT.into_iter().chain(OTHERS) {
        let report = verify(fixture(name), &import(name)).unwrap_or_else(|e| panic!("{e}"));
        for (part, found, tolerated) in &report.parts {
            println!("{name} {part}: {found:.2e}, tolerated {tolerated:.2e}");
        }
        let names: Vec<&str> = report.parts.iter().map(|p| &p.0[..]).collect();
        let expected: Vec<&str> = match name.split('.').next().unwrap() {
            "swin" | "hf_swin" => vec![
                "embed",
                "stages.0.blocks.0",
                "stages.0.blocks.1",
                "stages.1.reduction",
                "stages.1.blocks.0",
                "stages.1.blocks.1",
                "logits",
            ],
            "swin_wide" => vec![
                "embed",
                "stages.0.blocks.0",
                "stages.0.blocks.1",
                "stages.1.reduction",
                "stages.1.blocks.0",
                "stages.1.blocks.1",
                "stages.2.reduction",
                "stages.2.blocks.0",
                "logits",
            ],
            "vit_norm_pre" | "dinov2_giant" | "hf_vit" => {
                vec!["embed", "blocks.0", "blocks.1", "logits"]
            }
            _ => vec!["embed", "blocks.0", "blocks.1", "blocks.2", "logits"],
        };
        assert_eq!(names, expected, "{name}");
    }
}

#[test]
fn names_and_shapes_are_canonical_whatever_the_exporter() {
    let reference = import(VIT[0]).program;
    for name in VIT {
        assert_eq!(import(name).program, reference, "{name}");
    }
    let shape = |name: &str| {
        let tensor = reference.tensors.iter().find(|t| t.name == name);
        tensor.map(|t| [t.rows, t.cols])
    };
    assert_eq!(shape("patch_embed.weight"), Some([64, 192]));
    assert_eq!(shape("prefix"), Some([1, 64]));
    assert_eq!(shape("position"), Some([16, 64]));
    assert_eq!(shape("blocks.2.attn.qkv.weight"), Some([192, 64]));
    assert_eq!(shape("blocks.2.mlp.fc1.bias"), Some([1, 256]));
    assert_eq!(shape("norm.gamma"), Some([1, 64]));
    assert_eq!(shape("head.weight"), Some([7, 64]));
    let buffers: Vec<&str> = reference.buffers.iter().map(|b| &b.name[..]).collect();
    assert_eq!(
        buffers[..8],
        [
            "embed",
            "blocks.0.norm1",
            "blocks.0.attn.qkv",
            "blocks.0.attn",
            "blocks.0.res1",
            "blocks.0.norm2",
            "blocks.0.mlp.fc1",
            "blocks.0.res2",
        ]
    );
    assert_eq!(buffers[22..], ["class_token", "norm", "logits"]);
    let Some(Op::Attention {
        heads,
        head_dim,
        scale,
        ..
    }) = reference.ops.iter().find(|op| op.kind() == "attention")
    else {
        panic!("no attention");
    };
    assert_eq!((*heads, *head_dim), (2, 32));
    assert!((scale * 32f32.sqrt() - 1.0).abs() < 1e-6, "{scale}");
}

/// Kind and output of each operation that is not in a plain block.
fn special(program: &Program) -> Vec<String> {
    let plain = |op: &&Op| {
        matches!(op, Op::HeadNorm { .. } | Op::Gate { .. } | Op::Pool { .. })
            || matches!(op, Op::SelectToken { .. } | Op::PatchMerge { .. })
    };
    let describe = |op: &Op| {
        let output = &program.buffers[op.output().index()];
        format!(
            "{} {} {}x{}",
            op.kind(),
            output.name,
            output.rows,
            output.cols
        )
    };
    program.ops.iter().filter(plain).map(describe).collect()
}

#[test]
fn each_architecture_is_its_own_program() {
    let ops = |name: &str| special(&import(name).program);
    assert_eq!(ops("vit_gap.opset17.onnx"), ["pool pooled 1x64"]);
    assert_eq!(
        ops("vit_qknorm.opset17.onnx"),
        [
            "head-norm blocks.0.attn.qk_norm 17x192",
            "head-norm blocks.1.attn.qk_norm 17x192",
            "head-norm blocks.2.attn.qk_norm 17x192",
            "select-token class_token 1x64",
        ]
    );
    assert_eq!(ops("deit_distilled.opset17.onnx"), ["pool pooled 1x128"]);
    assert_eq!(
        ops("swin.opset17.onnx"),
        ["patch-merge stages.1.merge 64x128", "pool pooled 1x64"]
    );
    assert_eq!(
        ops("dinov2_giant.opset20.onnx"),
        [
            "gate blocks.0.mlp.gate 21x84",
            "gate blocks.1.mlp.gate 21x84"
        ]
    );
    let giant = import("dinov2_giant.opset20.onnx").program;
    assert!(!giant.classifies());
    assert_eq!(giant.output_shape(), [21, 32]);
    let norm_pre = import("vit_norm_pre.opset18.dynamo.onnx").program;
    assert_eq!(norm_pre.buffers[1].name, "norm_pre");
    let hf = import("hf_vit.opset18.dynamo.onnx").program;
    assert_eq!(
        ops("hf_vit.opset18.dynamo.onnx"),
        ["select-token class_token 1x48"]
    );
    assert_eq!(hf.buffers[2].name, "blocks.0.attn.qkv");
}

/// Grid, size and shift of each block's windows.
fn windows(name: &str) -> Vec<[[usize; 2]; 3]> {
    let ops = import(name).program.ops;
    let window = |op: &Op| match op {
        Op::Attention { window, .. } => *window,
        _ => None,
    };
    let all = ops.iter().filter_map(window);
    all.map(|w| [w.grid, w.size, w.shift]).collect()
}

#[test]
fn windows_and_shifts_are_read_off_the_index_maps() {
    let window = |grid, shift| [[grid; 2], [4; 2], [shift; 2]];
    let square = [window(16, 0), window(16, 2), window(8, 0), window(8, 2)];
    assert_eq!(windows("swin.opset17.onnx"), square);
    assert_eq!(windows("hf_swin.opset17.onnx"), square);
    assert_eq!(
        windows("swin_wide.opset18.dynamo.onnx"),
        [
            [[12, 24], [3, 3], [0, 0]],
            [[12, 24], [3, 3], [1, 1]],
            [[6, 12], [3, 3], [0, 0]],
            [[6, 12], [3, 3], [1, 1]],
            [[3, 6], [3, 3], [0, 0]],
        ]
    );
}

/// What a wrong match would do to one block.
type Corruption = (&'static str, fn(&mut Imported));

#[test]
fn a_misread_block_is_named() {
    let corruptions: [Corruption; 4] = [
        ("q and k swapped", |m| {
            let id = m
                .program
                .tensors
                .iter()
                .position(|t| t.name == "blocks.1.attn.qkv.weight");
            let bias = m
                .program
                .tensors
                .iter()
                .position(|t| t.name == "blocks.1.attn.qkv.bias");
            let (q, k) = m.weights.tensors[id.unwrap()].split_at_mut(64 * 64);
            q.swap_with_slice(&mut k[..64 * 64]);
            let (q, k) = m.weights.tensors[bias.unwrap()].split_at_mut(64);
            q.swap_with_slice(&mut k[..64]);
        }),
        ("scale forgotten on one side", |m| {
            let Some(Op::Attention { scale, .. }) = attention(m) else {
                panic!("no attention");
            };
            *scale = scale.sqrt();
        }),
        ("half the heads", |m| {
            let Some(Op::Attention {
                heads, head_dim, ..
            }) = attention(m)
            else {
                panic!("no attention");
            };
            (*heads, *head_dim) = (*heads / 2, *head_dim * 2);
        }),
        ("another epsilon", |m| {
            let mut norms = m
                .program
                .ops
                .iter_mut()
                .filter(|op| op.kind() == "layer-norm");
            let Some(Op::LayerNorm { eps, .. }) = norms.nth(2) else {
                panic!("no norm");
            };
            *eps = 1e-3;
        }),
    ];
    let name = "vit.opset17.onnx";
    for (what, corrupt) in corruptions {
        let mut imported = import(name);
        corrupt(&mut imported);
        imported.program.validate().unwrap();
        let error = verify(fixture(name), &imported).expect_err(what);
        println!("{what}: {error}");
        match error {
            ImportError::Mismatch { part, .. } => assert_eq!(part, "blocks.1", "{what}"),
            other => panic!("{what}: {other}"),
        }
    }
}

fn attention(m: &mut Imported) -> Option<&mut Op> {
    m.program
        .ops
        .iter_mut()
        .filter(|op| op.kind() == "attention")
        .nth(1)
}

#[test]
fn real_models_import_and_agree() {
    let Some(data) = std::env::var_os("TPVIT_DATA") else {
        eprintln!("skipped: TPVIT_DATA is not set");
        return;
    };
    for name in ["vit_ti16_imagenet", "vit_ti14_cifar10", "vit_s14_cifar10"] {
        let path = Path::new(&data).join("models").join(format!("{name}.onnx"));
        let imported = load(&path, false).unwrap_or_else(|e| panic!("{e}"));
        let report = verify(&path, &imported).unwrap_or_else(|e| panic!("{e}"));
        for (part, found, tolerated) in &report.parts {
            println!("{name} {part}: {found:.2e}, tolerated {tolerated:.2e}");
        }
        let [height, width] = imported.program.image;
        let image = vec![0.1; height * width * 3];
        let mut executor = Executor::new(&imported.program, &imported.weights);
        executor.run(&image, &mut ());
        let start = std::time::Instant::now();
        (0..5).for_each(|_| drop(executor.run(&image, &mut ()).to_vec()));
        println!("{name}: {:?} a picture", start.elapsed() / 5);
    }
}
