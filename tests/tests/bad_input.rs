//! Whatever the command is given, it answers: with an exit status, and where
//! that is not 0 with one message that names the file and the cause, and
//! without leaving half an output behind.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use prost::Message;
use tempfile::TempDir;
use tpvit_tests::{fixture, gradient, tpvit, write_pictures};
use tract_onnx::pb::tensor_proto::DataLocation;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto, tensor_proto,
    tensor_shape_proto, type_proto,
};

/// A folder of one test: calibration pictures in `pictures/`, and what it adds.
struct Folder(TempDir);

impl Folder {
    fn new() -> Folder {
        let folder = Folder(tempfile::tempdir().expect("a temporary folder"));
        write_pictures(&folder.path("pictures"), 4);
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("inside")).expect("a folder");
        fs::write(&path, bytes).expect("a file");
        path
    }

    /// A folder `data` with these `labels.csv` and some pictures.
    fn labelled(&self, csv: &str) -> PathBuf {
        write_pictures(&self.path("data"), 3);
        self.write("data/labels.csv", csv);
        self.path("data")
    }

    /// A good .tpv file of this folder.
    fn tpv(&self) -> PathBuf {
        self.write("good.tpv", tpv_bytes())
    }

    /// `tpvit quantize model`, to `out.tpv`, with this folder's pictures.
    fn quantize(&self, model: &Path) -> Command {
        self.quantize_with(model, &self.path("pictures"))
    }

    fn quantize_with(&self, model: &Path, calibration: &Path) -> Command {
        let mut command = quantize(model, calibration);
        command.args(["--preprocess", "deit", "-o"]);
        command.arg(self.path("out.tpv"));
        command
    }

    /// Runs `command`, which must fail with one message that has all of `words`.
    #[track_caller]
    fn refuses(&self, command: &mut Command, words: &[&str]) -> String {
        let output = command.output().expect("tpvit starts");
        let stderr = refusal(&output, words);
        assert_eq!(text(&output.stdout), "", "nothing on standard output");
        self.assert_no_output();
        stderr
    }

    /// No output, whole or partial, anywhere in the folder.
    #[track_caller]
    fn assert_no_output(&self) {
        for path in files(self.0.path()) {
            let name = path.file_name().expect("a name").to_string_lossy();
            assert!(name != "out.tpv" && !name.ends_with(".partial"), "{path:?}");
        }
    }
}

fn quantize(model: &Path, calibration: &Path) -> Command {
    let mut command = tpvit();
    command
        .arg("quantize")
        .arg(model)
        .arg("--calibration")
        .arg(calibration);
    command
}

/// `tpvit COMMAND model ...` with the arguments that each command needs.
fn each_reader(folder: &Folder, model: &Path) -> [(&'static str, Command); 4] {
    let data = folder.labelled("file,label\n0.png,0\n");
    ["run", "eval", "inspect", "bench"].map(|name| {
        let mut command = tpvit();
        command.arg(name).arg(model);
        match name {
            "run" => command.arg(data.join("0.png")),
            "eval" => command.arg("--data").arg(&data),
            "bench" => command.args(["--runs", "1"]),
            _ => &mut command,
        };
        (name, command)
    })
}

#[track_caller]
fn refusal(output: &Output, words: &[&str]) -> String {
    let stderr = text(&output.stderr);
    let code = output.status.code();
    assert!(
        matches!(code, Some(1 | 2)),
        "status {:?}\n{stderr}",
        output.status
    );
    assert!(!stderr.contains("panicked"), "{stderr}");
    let messages = stderr
        .lines()
        .filter(|line| line.starts_with("tpvit: ") || line.starts_with("error: "));
    assert_eq!(messages.count(), 1, "one message:\n{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is not in:\n{stderr}");
    }
    stderr
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("output is UTF-8")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("readable").flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .flat_map(|path| match path.is_dir() {
            true => files(&path),
            false => vec![path],
        })
        .collect()
}

fn vit() -> PathBuf {
    fixture("vit.opset17.onnx")
}

/// A small model in W8A8, made once.
fn tpv_bytes() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let folder = Folder::new();
        let output = folder.quantize(&vit()).output().expect("tpvit starts");
        assert!(output.status.success(), "{}", text(&output.stderr));
        fs::read(folder.path("out.tpv")).expect("the output")
    })
}

fn png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    gradient(1, width, height)
        .write_to(&mut bytes, image::ImageFormat::Png)
        .expect("a picture is encoded");
    bytes.into_inner()
}

fn proto() -> ModelProto {
    let bytes = fs::read(vit()).expect("the fixture");
    ModelProto::decode(&bytes[..]).expect("an ONNX file")
}

fn head_weight(model: &mut ModelProto) -> &mut TensorProto {
    let graph = model.graph.as_mut().expect("a graph");
    let mut tensors = graph.initializer.iter_mut();
    tensors
        .find(|t| t.name == "head.weight")
        .expect("the fixture names its weights")
}

/// Input, a 3x3 convolution, ReLU, global mean, flatten: a classifier, but no ViT.
fn cnn() -> ModelProto {
    let value = |name: &str, dims: &[i64]| ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: tensor_proto::DataType::Float as i32,
                shape: Some(TensorShapeProto {
                    dim: dims
                        .iter()
                        .map(|&d| tensor_shape_proto::Dimension {
                            value: Some(tensor_shape_proto::dimension::Value::DimValue(d)),
                            ..Default::default()
                        })
                        .collect(),
                }),
            })),
            ..Default::default()
        }),
        ..Default::default()
    };
    let node = |op: &str, inputs: &[&str], output: &str| NodeProto {
        name: format!("the {op}"),
        op_type: op.into(),
        input: inputs.iter().map(|&i| i.into()).collect(),
        output: vec![output.into()],
        ..Default::default()
    };
    let mut conv = node("Conv", &["input", "kernel"], "features");
    conv.attribute.push(AttributeProto {
        name: "pads".into(),
        r#type: attribute_proto::AttributeType::Ints as i32,
        ints: vec![1; 4],
        ..Default::default()
    });
    ModelProto {
        ir_version: 8,
        opset_import: vec![OperatorSetIdProto {
            version: 17,
            ..Default::default()
        }],
        graph: Some(GraphProto {
            name: "cnn".into(),
            node: vec![
                conv,
                node("Relu", &["features"], "positive"),
                node("GlobalAveragePool", &["positive"], "pooled"),
                node("Flatten", &["pooled"], "logits"),
            ],
            initializer: vec![TensorProto {
                name: "kernel".into(),
                dims: vec![7, 3, 3, 3],
                data_type: tensor_proto::DataType::Float as i32,
                float_data: (0..189).map(|i| (i % 5) as f32 * 0.1 - 0.2).collect(),
                ..Default::default()
            }],
            input: vec![value("input", &[1, 3, 32, 32])],
            output: vec![value("logits", &[1, 7])],
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[test]
fn what_is_not_onnx() {
    let folder = Folder::new();
    for (name, bytes) in [
        ("text.onnx", b"hello, this is no model".to_vec()),
        ("empty.onnx", Vec::new()),
        ("picture.onnx", png(8, 8)),
        ("quantized.onnx", tpv_bytes().to_vec()),
    ] {
        let model = folder.write(name, bytes);
        folder.refuses(&mut folder.quantize(&model), &[name, "ONNX"]);
    }
    let none = folder.path("none.onnx");
    folder.refuses(&mut folder.quantize(&none), &["none.onnx", "No such file"]);
    let dir = folder.path("pictures");
    folder.refuses(
        &mut folder.quantize(&dir),
        &["pictures", "is a folder, not a model file"],
    );
}

#[test]
fn onnx_that_is_no_vit() {
    let folder = Folder::new();
    let model = folder.write("cnn.onnx", cnn().encode_to_vec());
    let words = ["cnn.onnx", "not a model that this version knows", "Conv"];
    folder.refuses(&mut folder.quantize(&model), &words);
}

#[test]
fn truncated_onnx() {
    let folder = Folder::new();
    let bytes = fs::read(vit()).expect("the fixture");
    for len in [1, 100, bytes.len() / 2, bytes.len() - 1] {
        let model = folder.write("cut.onnx", &bytes[..len]);
        folder.refuses(&mut folder.quantize(&model), &["cut.onnx"]);
    }
}

#[test]
fn external_data_outside_the_folder() {
    let folder = Folder::new();
    let secret = folder.write("secret.bin", vec![0; 7 * 64 * 4]);
    for location in ["../secret.bin", secret.to_str().expect("UTF-8")] {
        let mut model = proto();
        let tensor = head_weight(&mut model);
        tensor.raw_data.clear();
        tensor.float_data.clear();
        tensor.data_location = Some(DataLocation::External as i32);
        tensor.external_data = vec![StringStringEntryProto {
            key: "location".into(),
            value: location.into(),
        }];
        let model = folder.write("inner/external.onnx", model.encode_to_vec());
        let words = ["external.onnx", "head.weight", location];
        folder.refuses(&mut folder.quantize(&model), &words);
    }
}

#[test]
fn weights_that_are_not_finite() {
    let folder = Folder::new();
    for value in [f32::NAN, f32::INFINITY] {
        let mut model = proto();
        let tensor = head_weight(&mut model);
        tensor.raw_data[40..44].copy_from_slice(&value.to_le_bytes());
        let model = folder.write("broken.onnx", model.encode_to_vec());
        let words = ["broken.onnx", "head.weight", "finite"];
        folder.refuses(&mut folder.quantize(&model), &words);
    }
}

#[test]
fn calibration_folders() {
    let folder = Folder::new();
    let empty = folder.path("empty");
    fs::create_dir(&empty).expect("a folder");
    folder.refuses(
        &mut folder.quantize_with(&vit(), &empty),
        &["empty", "no pictures"],
    );
    folder.refuses(
        &mut folder.quantize_with(&vit(), &folder.path("none")),
        &["none", "No such file"],
    );
    let file = folder.path("pictures/0.png");
    folder.refuses(&mut folder.quantize_with(&vit(), &file), &["0.png"]);
}

#[test]
fn a_broken_picture_is_named_and_skipped() {
    let folder = Folder::new();
    let whole = png(40, 36);
    folder.write("pictures/broken.png", &whole[..whole.len() / 2]);
    let mut command = folder.quantize(&vit());
    let output = command.arg("--json").output().expect("tpvit starts");
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("broken.png"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "nothing else: {stderr}");
    let summary: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("standard output is JSON alone");
    assert_eq!(summary["skipped_pictures"], 1);
    assert_eq!(summary["pictures"], 4);
}

#[test]
fn too_few_pictures_are_left() {
    let folder = Folder::new();
    for i in 0..5 {
        folder.write(&format!("pictures/broken{i}.png"), "no picture");
    }
    let mut command = folder.quantize(&vit());
    let output = command.output().expect("tpvit starts");
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let last = stderr.lines().last().expect("a message");
    assert!(
        last.contains("4 of 9") && last.contains("pictures"),
        "{last}"
    );
    for i in 0..5 {
        assert!(stderr.contains(&format!("broken{i}.png")), "{stderr}");
    }
    folder.assert_no_output();
}

#[test]
fn labels_csv() {
    let folder = Folder::new();
    let model = folder.tpv();
    for (csv, words) in [
        (
            "file,label\n0.png,0\nnone.png,1\n",
            &["labels.csv", "line 3", "none.png"][..],
        ),
        (
            "file,label\n0.png,0\n1.png,7\n",
            &["1.png", "label 7", "7 classes"],
        ),
        ("file,label\n0.png,cat\n", &["labels.csv", "line 2", "cat"]),
        ("file,label\n0.png,-1\n", &["labels.csv", "line 2", "-1"]),
        ("file,label\n0.png\n", &["labels.csv"]),
        ("name,class\n0.png,1\n", &["labels.csv", "\"file\""]),
        ("file,label\n", &["data", "no pictures"]),
        ("", &["labels.csv"]),
    ] {
        let data = folder.labelled(csv);
        for model in [&model, &vit()] {
            let mut command = tpvit();
            command.arg("eval").arg(model).arg("--data").arg(&data);
            if *model == vit() {
                command.args(["--preprocess", "deit"]);
            }
            folder.refuses(&mut command, words);
        }
    }
}

#[test]
fn evaluation_stops_at_a_broken_picture() {
    let folder = Folder::new();
    let data = folder.labelled("file,label\n0.png,0\nbroken.png,1\n");
    folder.write("data/broken.png", "no picture");
    folder.write("data/labels.csv", "file,label\n0.png,0\nbroken.png,1\n");
    let mut command = tpvit();
    command
        .arg("eval")
        .arg(folder.tpv())
        .arg("--data")
        .arg(&data);
    folder.refuses(&mut command, &["broken.png"]);
}

#[test]
fn data_folders_without_labels() {
    let folder = Folder::new();
    for (data, word) in [("pictures", "labels.csv"), ("none", "No such file")] {
        let mut command = tpvit();
        command.arg("eval").arg(folder.tpv()).arg("--data");
        command.arg(folder.path(data));
        folder.refuses(&mut command, &[data, word]);
    }
}

#[test]
fn class_names() {
    let folder = Folder::new();
    for (names, words) in [
        ("one\ntwo\n", &["names.txt", "2 classes", "has 7"][..]),
        ("1\n2\n3\n\n5\n6\n7\n", &["names.txt", "line 4", "empty"]),
    ] {
        let path = folder.write("names.txt", names);
        let mut command = folder.quantize(&vit());
        folder.refuses(command.arg("--labels").arg(path), words);
    }
    let mut command = folder.quantize(&vit());
    command.arg("--labels").arg(folder.path("none.txt"));
    folder.refuses(&mut command, &["none.txt", "No such file"]);
}

/// Offsets as in `models/SPEC.md`, sections 2 and 3.
#[test]
fn a_file_from_a_newer_version() {
    let folder = Folder::new();
    let mut bytes = tpv_bytes().to_vec();
    let sections = u32::from_le_bytes(bytes[24..28].try_into().expect("4 bytes")) as usize;
    bytes[8] = 2; // major version
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bytes[..28]);
    crc.update(&bytes[32..32 + 32 * sections]);
    bytes[28..32].copy_from_slice(&crc.finalize().to_le_bytes());
    let model = folder.write("newer.tpv", bytes);
    for (_, mut command) in each_reader(&folder, &model) {
        folder.refuses(&mut command, &["newer.tpv", "version 2.0", "update"]);
    }
}

#[test]
fn damaged_tpv_files() {
    let folder = Folder::new();
    let whole = tpv_bytes();
    for len in [9, 31, 200, whole.len() / 2, whole.len() - 1] {
        let model = folder.write("cut.tpv", &whole[..len]);
        for (_, mut command) in each_reader(&folder, &model) {
            folder.refuses(&mut command, &["cut.tpv"]);
        }
    }
    let mut flipped = whole.to_vec();
    *flipped.last_mut().expect("not empty") ^= 1;
    let model = folder.write("flipped.tpv", flipped);
    for (_, mut command) in each_reader(&folder, &model) {
        folder.refuses(&mut command, &["flipped.tpv", "DATA"]);
    }
}

#[test]
fn what_is_no_tpv_file() {
    let folder = Folder::new();
    let text = folder.write("text.tpv", "hello, this is no model");
    let empty = folder.write("empty.tpv", "");
    for model in [
        &text,
        &empty,
        &folder.path("none.tpv"),
        &folder.path("pictures"),
    ] {
        let name = model.file_name().expect("a name").to_str().expect("UTF-8");
        for (_, mut command) in each_reader(&folder, model) {
            folder.refuses(&mut command, &[name]);
        }
    }
}

#[test]
fn one_pixel_is_a_picture() {
    let folder = Folder::new();
    let picture = folder.write("dot.png", png(1, 1));
    let mut command = tpvit();
    let output = command.arg("run").arg(folder.tpv()).arg(picture).output();
    let output = output.expect("tpvit starts");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("dot.png"));
}

#[test]
fn good_pictures_are_answered_beside_a_broken_one() {
    let folder = Folder::new();
    let broken = folder.write("broken.png", &png(8, 8)[..40]);
    for json in [false, true] {
        let mut command = tpvit();
        command.arg("run").arg(folder.tpv()).arg(&broken);
        command.arg(folder.path("pictures/0.png"));
        if json {
            command.arg("--json");
        }
        let output = command.output().expect("tpvit starts");
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("broken.png"), "{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        assert!(stdout.contains("0.png"), "{stdout}");
        assert!(!stdout.contains("broken.png"), "{stdout}");
        if json {
            let answers: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
            assert_eq!(answers.as_array().map(Vec::len), Some(1));
        }
    }
}

/// Messages that nobody reads any more do not end the work.
#[test]
fn a_reader_of_errors_that_leaves_is_no_panic() {
    let folder = Folder::new();
    let broken = folder.write("broken.png", "no picture");
    let mut command = tpvit();
    command.arg("run").arg(folder.tpv()).arg(broken);
    command.arg(folder.path("pictures/0.png"));
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = command.stderr(writer).output().expect("tpvit starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("0.png"));
}

#[test]
fn preprocessing_that_nobody_says_or_understands() {
    let folder = Folder::new();
    let quantize = || {
        let mut command = quantize(&vit(), &folder.path("pictures"));
        command.arg("-o").arg(folder.path("out.tpv"));
        command
    };
    folder.refuses(&mut quantize(), &["--preprocess", "deit"]);
    let mut command = tpvit();
    command.arg("eval").arg(vit()).arg("--data");
    command.arg(folder.labelled("file,label\n0.png,0\n"));
    folder.refuses(&mut command, &["--preprocess"]);

    let given = |value: &str, words: &[&str]| {
        folder.refuses(quantize().arg("--preprocess").arg(value), words);
    };
    given("no-such-preset", &["no-such-preset", "deit"]);
    let broken = folder.write("broken.json", "{\"mean\": [0.5, ");
    given(broken.to_str().expect("UTF-8"), &["broken.json", "JSON"]);
    let other = folder.write("other.json", "{\"answer\": 42}");
    given(other.to_str().expect("UTF-8"), &["other.json", "timm"]);
}

#[test]
fn outputs_that_cannot_be_written_are_found_before_any_work() {
    let folder = Folder::new();
    folder.write("file", "");
    let existing = folder.path("folder");
    fs::create_dir(&existing).expect("a folder");
    // The model is no model: who reads it first complains about that instead.
    let model = folder.write("text.onnx", "no model");
    let mut outputs = vec![
        (folder.path("none/out.tpv"), "none"),
        (folder.path("file/out.tpv"), "file"),
        (existing, "folder"),
        (folder.path("new.tpv/"), "new.tpv"),
        (PathBuf::new(), "--output"),
    ];
    if cfg!(target_os = "linux") {
        // Not even root makes files here, where read-only permissions do not stop it.
        outputs.push((PathBuf::from("/proc/out.tpv"), "/proc"));
    }
    for (output, word) in outputs {
        let mut command = quantize(&model, &folder.path("pictures"));
        command.args(["--preprocess", "deit", "-o"]).arg(&output);
        let message = folder.refuses(&mut command, &[word]);
        assert!(!message.contains("text.onnx"), "{output:?}: {message}");
    }
}

#[test]
fn reports_that_cannot_be_written_are_found_before_any_work() {
    let folder = Folder::new();
    folder.write("file", "");
    folder.write("page/report.json/in the way", "");
    // The model is no model: who reads it first complains about that instead.
    let model = folder.write("text.onnx", "no model");
    let mut reports = vec![
        (folder.path("file"), "file is not a folder"),
        (folder.path("file/report"), "file is not a folder"),
        (folder.path("page"), "report.json"),
        (PathBuf::new(), "--report"),
    ];
    if cfg!(target_os = "linux") {
        reports.push((PathBuf::from("/proc/report"), "/proc"));
    }
    for (report, word) in reports {
        let mut command = folder.quantize(&model);
        let message = folder.refuses(command.arg("--report").arg(&report), &[word]);
        assert!(!message.contains("text.onnx"), "{report:?}: {message}");
    }
    // A good one, but the run fails: no empty folder is left.
    let report = folder.path("new/report");
    let mut command = folder.quantize(&model);
    folder.refuses(command.arg("--report").arg(&report), &["text.onnx"]);
    assert!(!folder.path("new").exists());
}

#[test]
fn a_report_never_replaces_the_model_or_the_output() {
    let folder = Folder::new();
    let bytes = fs::read(vit()).expect("the fixture");
    let model = folder.write("report.html", &bytes);
    let mut command = folder.quantize(&model);
    command.arg("--report").arg(folder.path("pictures/.."));
    folder.refuses(&mut command, &["report.html", "something else"]);
    assert_eq!(fs::read(&model).expect("still there"), bytes);

    let mut command = quantize(&vit(), &folder.path("pictures"));
    command.args(["--preprocess", "deit", "-o"]);
    command.arg(folder.path("report.json"));
    command.arg("--report").arg(folder.path(""));
    folder.refuses(&mut command, &["report.json", "something else"]);
    assert!(!folder.path("report.json").exists());
}

#[test]
fn a_reports_labelled_pictures() {
    let folder = Folder::new();
    let data = folder.labelled("file,label\n0.png,7\n");
    let mut command = folder.quantize(&vit());
    command.arg("--report").arg(folder.path("report"));
    let words = ["0.png", "label 7", "7 classes"];
    folder.refuses(command.arg("--eval").arg(&data), &words);
    assert!(!folder.path("report").exists());
    let mut command = folder.quantize(&vit());
    folder.refuses(command.arg("--eval").arg(&data), &["--report"]);

    // A picture that breaks only when it is read: all else is there, and says so.
    folder.labelled("file,label\n0.png,0\n1.png,1\n");
    folder.write("data/1.png", "no picture");
    let mut command = folder.quantize(&vit());
    command.arg("--report").arg(folder.path("report"));
    let output = command.arg("--eval").arg(&data).output();
    let output = output.expect("tpvit starts");
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(
        stderr.contains("1.png") && stderr.lines().count() == 1,
        "{stderr}"
    );
    assert!(folder.path("out.tpv").is_file());
    let json = fs::read(folder.path("report/report.json")).expect("the report");
    let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    assert!(json["accuracy"].is_null());
    assert!(
        json["warnings"][0]
            .as_str()
            .is_some_and(|w| w.contains("1.png"))
    );
}

#[cfg(unix)]
#[test]
fn a_read_only_folder_gets_no_output() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let closed = folder.path("closed");
    fs::create_dir(&closed).expect("a folder");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).expect("permissions");
    if fs::write(closed.join("probe"), "").is_ok() {
        println!("skipped: this user writes to read-only folders");
        return;
    }
    let mut command = quantize(&vit(), &folder.path("pictures"));
    command.args(["--preprocess", "deit", "-o"]);
    command.arg(closed.join("out.tpv"));
    folder.refuses(&mut command, &["closed", "ermission"]);
}

/// An output takes the place of what has its name. What is no file, such as
/// /dev/null, must not be replaced by one.
#[cfg(unix)]
#[test]
fn an_output_never_replaces_a_device() {
    let folder = Folder::new();
    let link = folder.path("null.tpv");
    std::os::unix::fs::symlink("/dev/null", &link).expect("a link");
    let mut command = quantize(&vit(), &folder.path("pictures"));
    command.args(["--preprocess", "deit", "-o"]).arg(&link);
    folder.refuses(&mut command, &["null.tpv", "not a regular file"]);
    let kept = fs::symlink_metadata(&link).expect("the link is there");
    assert!(kept.is_symlink());
}

#[test]
fn the_output_never_replaces_the_model() {
    let folder = Folder::new();
    let bytes = fs::read(vit()).expect("the fixture");
    let model = folder.write("model.onnx", &bytes);
    let same = folder.path("pictures/../model.onnx");
    let mut command = quantize(&model, &folder.path("pictures"));
    command.args(["--preprocess", "deit", "-o"]).arg(same);
    folder.refuses(&mut command, &["model.onnx", "is the model itself"]);
    assert_eq!(fs::read(&model).expect("still there"), bytes);
}

#[test]
fn a_failed_run_keeps_the_old_output() {
    let folder = Folder::new();
    let old = folder.write("old.tpv", "what was here");
    let model = folder.write("text.onnx", "no model");
    let mut command = quantize(&model, &folder.path("pictures"));
    command.args(["--preprocess", "deit", "-o"]).arg(&old);
    folder.refuses(&mut command, &["text.onnx"]);
    assert_eq!(fs::read(old).expect("still there"), b"what was here");
}

#[test]
fn flags_out_of_range() {
    let folder = Folder::new();
    for (flags, words) in [
        (&["-w", "5"][..], &["--weight-bits", "8, 6, 4 or 3"][..]),
        (&["-w", "0"], &["--weight-bits", "8, 6, 4 or 3"]),
        (&["-a", "16"], &["--act-bits", "8, 6, 4 or 3"]),
        (&["-a", "many"], &["--act-bits", "8, 6, 4 or 3"]),
        (
            &["--softmax-bits", "7"],
            &["--softmax-bits", "8, 6, 4 or 3"],
        ),
        (&["--first-last-bits", "32"], &["--first-last-bits"]),
        (&["--softmax", "exp"], &["--softmax", "row-max"]),
        (&["--pictures", "0"], &["--pictures", "at least 1"]),
        (
            &["--observer", "percentile", "--percentile", "101"],
            &["--percentile", "101"],
        ),
        (
            &["--observer", "percentile", "--percentile", "NaN"],
            &["--percentile", "NaN"],
        ),
        (
            &["--resize", "100", "--crop-pct", "0.9"],
            &["--resize", "--crop-pct"],
        ),
        (&["--mean", "127"], &["mean", "127"]),
        (
            &["-a", "8", "--normed-code", "codebook"],
            &["--normed-code", "at most 4 bits", "8"],
        ),
        (
            &["-a", "6", "--hidden-code", "shifted-log"],
            &["--hidden-code", "at most 4 bits", "6"],
        ),
        (&["--normed-code", "shifted-log"], &["--normed-code"]),
        (&["--resume", "--effort", "fast"], &["--resume", "balanced"]),
        (
            &["--resume", "--effort", "best"],
            &["cannot resume", "out.tpv.checkpoint"],
        ),
        (&["--effort", "more"], &["--effort", "balanced"]),
        (
            &["-w", "4", "--effort", "balanced", "--pictures", "4"],
            &["4 calibration pictures", "16"],
        ),
        (
            &["--recipe", "sos", "--scratch", "no/such/folder"],
            &["--scratch", "no/such/folder"],
        ),
        (&["--scratch", "."], &["--scratch", "block-wise"]),
        (&["--rotate", "some"], &["--rotate", "residual"]),
        (&["--size-budget", "12G"], &["--size-budget", "2.5M"]),
        (&["--size-budget", "10K"], &["10000 bytes", "at least"]),
        (&["--mac-budget", "NaN"], &["--mac-budget", "above 0"]),
        (
            &["--mac-budget", "5"],
            &["5 % of the bit operations", "at least"],
        ),
        (
            &["--mac-budget", "50", "--size-budget", "100K"],
            &["--mac-budget", "--size-budget"],
        ),
    ] {
        folder.refuses(folder.quantize(&vit()).args(flags), words);
    }
    let model = folder.tpv();
    for (flags, words) in [
        (&["--runs", "0"][..], &["--runs"][..]),
        (&["--threads", "0"], &["--threads", "1 to 1024"]),
        (&["--threads", "100000"], &["--threads", "1 to 1024"]),
    ] {
        let mut command = tpvit();
        folder.refuses(command.arg("bench").arg(&model).args(flags), words);
    }
}

#[test]
fn instruction_sets_that_are_not_there() {
    let folder = Folder::new();
    let foreign = if cfg!(target_arch = "x86_64") {
        "neon"
    } else {
        "avx2"
    };
    for (isa, word) in [("sse9", "portable"), (foreign, foreign)] {
        for (name, mut command) in each_reader(&folder, &folder.tpv()) {
            if name != "inspect" {
                folder.refuses(command.args(["--isa", isa]), &["--isa", isa, word]);
            }
        }
    }
    let mut command = tpvit();
    command
        .arg("bench")
        .arg(folder.tpv())
        .env("TPVIT_ISA", foreign);
    folder.refuses(&mut command, &[foreign]);
}

#[test]
fn a_tpv_file_says_its_own_preprocessing() {
    let folder = Folder::new();
    let data = folder.labelled("file,label\n0.png,0\n");
    for flags in [
        ["--preprocess", "deit"],
        ["--mean", "0.5"],
        ["--resize", "squash"],
    ] {
        let mut command = tpvit();
        command
            .arg("eval")
            .arg(folder.tpv())
            .arg("--data")
            .arg(&data);
        folder.refuses(command.args(flags), &["good.tpv", "preprocessing"]);
    }
}
