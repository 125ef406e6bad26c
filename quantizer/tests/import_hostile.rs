//! Damaged and malicious files give errors that name them, never a panic.
#![cfg(feature = "onnx")]

use prost::Message;
use std::path::{Path, PathBuf};
use tpvit_quantizer::import::load;
use tpvit_quantizer::onnx::{OnnxError, read};
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, StringStringEntryProto, TensorProto};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn vit() -> Vec<u8> {
    std::fs::read(fixture("vit.opset20.onnx")).unwrap()
}

fn model() -> ModelProto {
    ModelProto::decode(&vit()[..]).unwrap()
}

fn write(folder: &Path, model: &ModelProto) -> PathBuf {
    let path = folder.join("model.onnx");
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    path
}

fn refusal(model: &ModelProto) -> String {
    let folder = tempfile::tempdir().unwrap();
    let error = load(write(folder.path(), model), false).expect_err("must be refused");
    let message = error.to_string();
    assert!(message.contains("model.onnx"), "names the file: {message}");
    message
}

fn initializer(model: &mut ModelProto) -> &mut TensorProto {
    let graph = model.graph.as_mut().unwrap();
    let mut tensors = graph.initializer.iter_mut();
    tensors.find(|t| t.name == "head.weight").unwrap()
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = vit();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.onnx");
    // Each length near both ends, and a sample in between.
    let ends = (0..200).chain(bytes.len() - 200..bytes.len());
    for len in ends.chain((200..bytes.len()).step_by(4799)) {
        std::fs::write(&path, &bytes[..len]).unwrap();
        let error = read(&path).expect_err(&format!("{len} of {} bytes", bytes.len()));
        assert!(error.to_string().contains("cut.onnx"), "{error}");
    }
}

#[test]
fn flipped_bytes_never_panic() {
    let bytes = vit();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flipped.onnx");
    for at in (0..bytes.len()).step_by(3571).chain(0..300) {
        for mask in [0x01, 0x80, 0xff] {
            let mut flipped = bytes.clone();
            flipped[at] ^= mask;
            std::fs::write(&path, flipped).unwrap();
            let _ = load(&path, false); // a flipped weight bit is still a model
        }
    }
}

#[test]
fn what_is_not_onnx_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in [
        ("empty", &b""[..]),
        ("text", b"hello, this is no model"),
        ("zip", b"PK\x03\x04\x14\x00\x00\x00"),
        ("nested", &[0x3a; 4096]),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = read(&path).expect_err(name);
        assert!(matches!(error, OnnxError::NotOnnx { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
    assert!(matches!(
        read(folder.path()),
        Err(OnnxError::NotAFile { .. })
    ));
    assert!(matches!(
        read(folder.path().join("none")),
        Err(OnnxError::Io { .. })
    ));
}

#[test]
fn tensor_data_must_fill_the_shape() {
    for change in [
        |t: &mut TensorProto| t.raw_data.truncate(t.raw_data.len() - 1),
        |t: &mut TensorProto| t.raw_data.push(0),
        |t: &mut TensorProto| t.raw_data.clear(),
        |t: &mut TensorProto| t.dims[0] += 1,
        |t: &mut TensorProto| t.dims = vec![i64::MAX, i64::MAX],
        |t: &mut TensorProto| t.dims[0] = -7,
        |t: &mut TensorProto| t.data_type = DataType::Double as i32,
        |t: &mut TensorProto| t.data_type = DataType::String as i32,
        |t: &mut TensorProto| t.data_type = 99,
    ] {
        let mut model = model();
        change(initializer(&mut model));
        let message = refusal(&model);
        assert!(message.contains("head.weight"), "{message}");
    }
}

#[test]
fn weights_must_be_finite() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut model = model();
        initializer(&mut model).raw_data[8..12].copy_from_slice(&value.to_le_bytes());
        let message = refusal(&model);
        assert!(
            message.contains("head.weight") && message.contains("index 2"),
            "{message}"
        );
    }
}

#[test]
fn graphs_must_be_sound() {
    let mut cycle = model();
    let graph = cycle.graph.as_mut().unwrap();
    let last = graph.node.len() - 1;
    graph.node.swap(0, last);
    assert!(refusal(&cycle).contains("before it is computed"));

    let mut twice = model();
    let graph = twice.graph.as_mut().unwrap();
    graph.node.push(graph.node[0].clone());
    assert!(refusal(&twice).contains("defined twice"));

    let mut headless = model();
    headless.graph.as_mut().unwrap().output.clear();
    assert!(refusal(&headless).contains("no output"));
}

/// Moves `head.weight` to a file; returns its bytes.
fn externalize(model: &mut ModelProto, location: &str) -> Vec<u8> {
    let tensor = initializer(model);
    let entry = |key: &str, value: &str| StringStringEntryProto {
        key: key.into(),
        value: value.into(),
    };
    tensor.data_location = Some(DataLocation::External as i32);
    tensor.external_data = vec![entry("location", location), entry("offset", "16")];
    let mut bytes = vec![0; 16];
    bytes.append(&mut tensor.raw_data);
    bytes
}

#[test]
fn external_data_inside_the_folder_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = model();
    let bytes = externalize(&mut model, "weights/head.bin");
    std::fs::create_dir(folder.path().join("weights")).unwrap();
    std::fs::write(folder.path().join("weights/head.bin"), &bytes).unwrap();
    let path = write(folder.path(), &model);
    let imported = load(&path, true).unwrap();
    let inside = load(fixture("vit.opset20.onnx"), false).unwrap();
    assert_eq!(imported.weights, inside.weights);

    std::fs::write(folder.path().join("weights/head.bin"), &bytes[1..]).unwrap();
    let error = load(&path, false).unwrap_err().to_string();
    assert!(
        error.contains("head.weight") && error.contains("are needed"),
        "{error}"
    );
}

#[test]
fn external_data_elsewhere_are_refused() {
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    let folder = outside.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    let absolute = secret.to_str().unwrap();
    for location in [
        absolute,
        "../secret",
        "./../secret",
        "sub/../../secret",
        "link",
        "linked/secret",
        "hard",
        "",
        ".",
        "/dev/zero",
        "c:secret",
        "..\\secret",
    ] {
        let mut model = model();
        std::fs::write(&secret, externalize(&mut model, location)).unwrap();
        let path = write(&folder, &model);
        #[cfg(unix)]
        if !folder.join("link").exists() {
            std::os::unix::fs::symlink(&secret, folder.join("link")).unwrap();
            std::os::unix::fs::symlink(outside.path(), folder.join("linked")).unwrap();
            std::fs::hard_link(&secret, folder.join("hard")).unwrap();
        }
        let error = load(&path, true).expect_err(location).to_string();
        assert!(
            error.contains("is refused") && error.contains("head.weight"),
            "{error}"
        );
    }
}

#[test]
fn huge_shapes_in_a_small_file_do_not_fill_the_memory() {
    // A class token expanded to 2^60 values, and to what just fits an index.
    for side in [1i64 << 60, 1 << 30] {
        let mut model = model();
        let graph = model.graph.as_mut().unwrap();
        let expand = graph
            .node
            .iter_mut()
            .find(|n| n.op_type == "Expand")
            .unwrap();
        expand.input[1] = "huge".into();
        graph.initializer.push(TensorProto {
            name: "huge".into(),
            dims: vec![3],
            data_type: DataType::Int64 as i32,
            int64_data: vec![side, 1, 1],
            ..TensorProto::default()
        });
        refusal(&model);
    }
}

/// Numbers that break careless arithmetic.
const STRANGE: [i64; 10] = [0, 1, -1, 2, 3, 64, 1 << 31, 1 << 62, i64::MAX, i64::MIN];

#[test]
fn mutated_graphs_never_panic() {
    let mut state = 1u64;
    let mut random = |n: usize| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "vit.opset14.onnx",
        "vit.opset18.dynamo.onnx",
        "swin_wide.opset18.dynamo.onnx",
        "hf_swin.opset17.onnx",
        "dinov2_giant.opset20.onnx",
    ] {
        let original = ModelProto::decode(&std::fs::read(fixture(name)).unwrap()[..]).unwrap();
        for _ in 0..400 {
            let mut model = original.clone();
            for _ in 0..=random(2) {
                let strange = STRANGE[random(STRANGE.len())];
                mutate(model.graph.as_mut().unwrap(), &mut random, strange);
            }
            let _ = load(write(folder.path(), &model), false);
        }
    }
}

fn mutate(graph: &mut GraphProto, random: &mut impl FnMut(usize) -> usize, strange: i64) {
    let at = random(graph.node.len());
    let other = graph.node[random(at + 1)].output[0].clone();
    let node = &mut graph.node[at];
    match random(6) {
        0 if !node.input.is_empty() => {
            let input = random(node.input.len());
            node.input[input] = other;
        }
        1 if !node.input.is_empty() => drop(node.input.pop()),
        2 => node.input.reverse(),
        3 if !node.attribute.is_empty() => {
            let attribute = random(node.attribute.len());
            strange_attribute(&mut node.attribute[attribute], random, strange);
        }
        4 => node.output.push(format!("more of {at}")),
        _ => {
            // A side of a tensor, with data that agree where that is possible.
            let tensor = random(graph.initializer.len());
            let tensor = &mut graph.initializer[tensor];
            if tensor.data_type == DataType::Int64 as i32 && !tensor.raw_data.is_empty() {
                let i = random(tensor.raw_data.len() / 8) * 8;
                tensor.raw_data[i..i + 8].copy_from_slice(&strange.to_le_bytes());
            } else if !tensor.dims.is_empty() {
                let side = random(tensor.dims.len());
                let old = std::mem::replace(&mut tensor.dims[side], strange).max(1) as usize;
                let new = strange.clamp(0, 64) as usize;
                tensor.raw_data.resize(tensor.raw_data.len() / old * new, 0);
            }
        }
    }
}

fn strange_attribute(
    attribute: &mut AttributeProto,
    random: &mut impl FnMut(usize) -> usize,
    strange: i64,
) {
    attribute.i = strange;
    if !attribute.ints.is_empty() {
        let i = random(attribute.ints.len());
        attribute.ints[i] = strange;
    }
    if let Some(tensor) = &mut attribute.t
        && tensor.data_type == DataType::Int64 as i32
    {
        tensor
            .raw_data
            .chunks_exact_mut(8)
            .for_each(|c| c.copy_from_slice(&strange.to_le_bytes()));
    }
}
