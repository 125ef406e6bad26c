//! Graphs that are almost a known architecture: read as what they compute, or
//! refused at the node that differs.
#![cfg(feature = "onnx")]

use prost::Message;
use std::path::Path;
use tpvit_models::{Op, Pooling};
use tpvit_quantizer::import::{ImportError, Imported, load, verify};
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};

const SWIN: &str = "swin_wide.opset18.dynamo.onnx";

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// Imports a changed fixture and compares it with a run of the changed graph.
fn changed(name: &str, change: impl FnOnce(&mut GraphProto)) -> Result<Imported, ImportError> {
    let mut model = ModelProto::decode(&std::fs::read(fixture(name)).unwrap()[..]).unwrap();
    change(model.graph.as_mut().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    load(&path, true)
}

/// Node and expectation of the refusal of a changed fixture.
fn refusal(name: &str, change: impl FnOnce(&mut GraphProto)) -> (String, String) {
    let error = changed(name, change).expect_err("must be refused");
    println!("{error}");
    match error {
        ImportError::Unrecognised { node, expected, .. } => (node, expected.into()),
        other => panic!("{other}"),
    }
}

/// The node that computes `output`.
fn node<'g>(graph: &'g mut GraphProto, output: &str) -> &'g mut NodeProto {
    let mut nodes = graph.node.iter_mut();
    let node = nodes.find(|node| node.output[0] == output);
    node.unwrap_or_else(|| panic!("no {output}"))
}

fn floats(graph: &mut GraphProto, name: &str, change: impl FnOnce(&mut [f32])) {
    let mut tensors = graph.initializer.iter_mut();
    let tensor = tensors.find(|tensor| tensor.name == name).unwrap();
    let (chunks, _) = tensor.raw_data.as_chunks::<4>();
    let mut values: Vec<f32> = chunks.iter().map(|c| f32::from_le_bytes(*c)).collect();
    change(&mut values);
    tensor.raw_data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
}

fn permutation(node: &mut NodeProto, perm: &[i64]) {
    let mut attributes = node.attribute.iter_mut();
    attributes.find(|a| a.name == "perm").unwrap().ints = perm.to_vec();
}

#[test]
fn a_mask_of_other_windows_is_refused() {
    // [windows, 9, 9]: the second to last window, at the lower edge, and the first.
    let (name, expected) = refusal(SWIN, |graph| {
        floats(graph, "unsqueeze_3", |mask| {
            let (first, last) = mask.split_at_mut(30 * 81);
            first[..81].swap_with_slice(&mut last[..81]);
        });
    });
    assert_eq!(name, "node_add_4");
    assert!(expected.contains("mask") && expected.contains("window 0"));

    // One pair that must not see each other, not masked.
    let (name, expected) = refusal(SWIN, |graph| {
        floats(graph, "unsqueeze_3", |mask| {
            let hidden = mask.iter_mut().find(|v| **v != 0.0).unwrap();
            *hidden = 0.0;
        });
    });
    assert_eq!(name, "node_add_4");
    assert!(expected.contains("not masked"), "{expected}");

    // A block of shifted windows without its mask.
    let (_, expected) = refusal(SWIN, |graph| {
        node(graph, "view_19").input[0] = "add_3".into();
    });
    assert!(expected.contains("not masked"), "{expected}");
}

#[test]
fn a_mask_of_infinity_is_a_mask() {
    let infinite = changed(SWIN, |graph| {
        floats(graph, "unsqueeze_3", |mask| {
            let hidden = mask.iter_mut().filter(|v| **v != 0.0);
            hidden.for_each(|v| *v = f32::MIN);
        });
    });
    let original = load(fixture(SWIN), false).unwrap();
    assert_eq!(infinite.unwrap().program, original.program);
}

#[test]
fn a_bias_that_is_not_relative_is_refused() {
    let (name, expected) = refusal(SWIN, |graph| {
        floats(graph, "unsqueeze_1", |bias| bias[40] += 0.01);
    });
    assert_eq!(name, "node_add_4", "the last of the additions");
    assert!(expected.contains("position bias"), "{expected}");
    assert!(expected.contains("query 4 and key 4"), "{expected}");
}

#[test]
fn a_roll_must_be_undone() {
    // The concatenation that rolls the rows back, its parts in order again.
    let (name, expected) = refusal(SWIN, |graph| node(graph, "val_235").input.reverse());
    assert_eq!(name, "node_linear_5");
    assert!(expected.contains("at that token"), "{expected}");
    // The one that rolls them, and the mask still as if it were done.
    let (_, expected) = refusal(SWIN, |graph| node(graph, "val_123").input.reverse());
    assert!(expected.contains("mask"), "{expected}");
}

#[test]
fn any_order_of_merging_is_read_and_a_jumble_is_refused() {
    let original = load(fixture(SWIN), false).unwrap();
    let across = changed(SWIN, |graph| {
        permutation(node(graph, "permute_9"), &[0, 1, 3, 2, 4, 5]);
    });
    let across = across.unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(across.program, original.program);
    let weight = |m: &Imported| {
        let name = "stages.1.reduction.weight";
        let at = m.program.tensors.iter().position(|t| t.name == name);
        m.weights.tensors[at.unwrap()].clone()
    };
    let (there, here) = (weight(&across), weight(&original));
    for (there, here) in there.chunks(64).zip(here.chunks(64)) {
        // The graph's second and third token have changed places.
        assert_eq!(there[..16], here[..16]);
        assert_eq!(there[16..32], here[32..48]);
        assert_eq!(there[32..48], here[16..32]);
        assert_eq!(there[48..], here[48..]);
    }
    let (_, expected) = refusal(SWIN, |graph| {
        permutation(node(graph, "permute_9"), &[0, 3, 1, 4, 2, 5]);
    });
    assert!(
        expected.contains("2 by 2 square of a grid of 12 by 24"),
        "{expected}"
    );
}

#[test]
fn windows_must_be_rectangles_of_the_grid() {
    // Rows and columns of the windows exchanged on the way in.
    let (_, expected) = refusal(SWIN, |graph| {
        permutation(node(graph, "permute_5"), &[0, 1, 3, 4, 2, 5]);
    });
    assert!(expected.contains("windows"), "{expected}");
}

#[test]
fn both_heads_of_a_distilled_model_count_half() {
    const DEIT: &str = "deit_distilled.opset17.onnx";
    let half = |graph: &mut GraphProto, input: &str| {
        graph.initializer.push(TensorProto {
            name: "half".into(),
            data_type: DataType::Float as i32,
            float_data: vec![0.5],
            ..TensorProto::default()
        });
        let at = graph
            .node
            .iter()
            .position(|n| n.output[0] == "/Add_1_output_0");
        let sum = &mut graph.node[at.unwrap()];
        let changed = sum.input.iter_mut().find(|name| *name == input).unwrap();
        *changed = "halved".into();
        let scaled = NodeProto {
            op_type: "Mul".into(),
            input: vec![input.into(), "half".into()],
            output: vec!["halved".into()],
            ..NodeProto::default()
        };
        graph.node.insert(at.unwrap(), scaled);
    };
    let (name, expected) = refusal(DEIT, |graph| half(graph, "/head_dist/Gemm_output_0"));
    assert_eq!(name, "/Add_1");
    assert!(expected.contains("mean of the classifiers"), "{expected}");

    // Both outputs of the same token.
    let (name, _) = refusal(DEIT, |graph| {
        node(graph, "/head_dist/Gemm_output_0").input[0] = "/Gather_1_output_0".into();
    });
    assert_eq!(name, "/Add_1");
}

#[test]
fn a_distilled_model_with_two_outputs_is_refused() {
    let (_, expected) = refusal("deit_distilled.opset17.onnx", |graph| {
        let mut second = graph.output[0].clone();
        graph.output[0].name = "/head/Gemm_output_0".into();
        second.name = "/head_dist/Gemm_output_0".into();
        graph.output.push(second);
    });
    assert!(expected.contains("/head_dist/Gemm_output_0"), "{expected}");
    assert!(expected.contains("evaluation mode"), "{expected}");
}

#[test]
fn q_and_k_are_both_normalised_or_neither() {
    let norm = "/blocks/blocks.0/attn/k_norm/LayerNormalization_output_0";
    let (_, expected) = refusal("vit_qknorm.opset17.onnx", |graph| {
        let before = node(graph, norm).input[0].clone();
        for node in &mut graph.node {
            let inputs = node.input.iter_mut().filter(|name| *name == norm);
            inputs.for_each(|name| *name = before.clone());
        }
    });
    assert!(expected.contains("both q and k"), "{expected}");
}

#[test]
fn the_mean_is_of_tokens() {
    let mean = |graph: &mut GraphProto, axes: &[i64]| {
        let node = node(graph, "/ReduceMean_output_0");
        let is_axes = |a: &&mut AttributeProto| a.name == "axes";
        node.attribute.iter_mut().find(is_axes).unwrap().ints = axes.to_vec();
    };
    // Over the channels: the fixture has 16 tokens of 64.
    let (name, _) = refusal("vit_gap.opset17.onnx", |graph| mean(graph, &[2]));
    assert!(
        name.contains("ReduceMean") || name.contains("fc_norm"),
        "{name}"
    );
}

/// What reading a part wrongly would do; the run of the original finds it.
type Corruption = (&'static str, &'static str, &'static str, fn(&mut Imported));

fn tensor<'m>(m: &'m mut Imported, name: &str) -> &'m mut Vec<f32> {
    let at = m.program.tensors.iter().position(|t| t.name == name);
    &mut m.weights.tensors[at.unwrap_or_else(|| panic!("no {name}"))]
}

fn swap_q_and_k(tensor: &mut [f32], len: usize) {
    let (q, k) = tensor.split_at_mut(len);
    q.swap_with_slice(&mut k[..len]);
}

#[test]
fn a_misread_part_is_named() {
    let corruptions: [Corruption; 7] = [
        (
            "norms of q and k swapped",
            "vit_qknorm.opset17.onnx",
            "blocks.1",
            |m| {
                swap_q_and_k(tensor(m, "blocks.1.attn.qk_norm.gamma"), 32);
                swap_q_and_k(tensor(m, "blocks.1.attn.qk_norm.beta"), 32);
            },
        ),
        (
            "the first token left out of the mean",
            "vit_gap.opset17.onnx",
            "logits",
            |m| {
                for op in &mut m.program.ops {
                    if let Op::Pool { first, count, .. } = op {
                        (*first, *count) = (1, *count - 1);
                    }
                }
            },
        ),
        (
            "class and distillation head swapped",
            "deit_distilled.opset17.onnx",
            "logits",
            |m| {
                let rows = tensor(m, "head.weight").chunks_exact_mut(128);
                rows.for_each(|row| swap_q_and_k(row, 64));
            },
        ),
        (
            "gate and value swapped",
            "dinov2_giant.opset20.onnx",
            "blocks.1",
            |m| {
                swap_q_and_k(tensor(m, "blocks.1.mlp.fc1.weight"), 84 * 32);
                swap_q_and_k(tensor(m, "blocks.1.mlp.fc1.bias"), 84);
            },
        ),
        ("windows not shifted", SWIN, "stages.0.blocks.1", |m| {
            for op in &mut m.program.ops {
                if let Op::Attention {
                    window: Some(window),
                    ..
                } = op
                {
                    window.shift = [0; 2];
                }
            }
        }),
        (
            "position bias turned round",
            SWIN,
            "stages.0.blocks.0",
            |m| tensor(m, "stages.0.blocks.0.attn.bias").reverse(),
        ),
        (
            "squares merged across before down",
            SWIN,
            "stages.1.reduction",
            |m| {
                let rows = tensor(m, "stages.1.reduction.weight").chunks_exact_mut(64);
                rows.for_each(|row| swap_q_and_k(&mut row[16..48], 16));
            },
        ),
    ];
    for (what, name, expected, corrupt) in corruptions {
        let mut imported = load(fixture(name), false).unwrap();
        corrupt(&mut imported);
        imported.program.validate().unwrap();
        match verify(fixture(name), &imported).expect_err(what) {
            ImportError::Mismatch { part, .. } => assert_eq!(part, expected, "{what}"),
            other => panic!("{what}: {other}"),
        }
    }
}

#[test]
fn a_distilled_model_pools_both_tokens() {
    let imported = load(fixture("deit_distilled.opset17.onnx"), false).unwrap();
    let pool = imported.program.ops.iter().find_map(|op| match *op {
        Op::Pool {
            first, count, pool, ..
        } => Some((first, count, pool)),
        _ => None,
    });
    assert_eq!(pool, Some((0, 2, Pooling::Concat)));
}
