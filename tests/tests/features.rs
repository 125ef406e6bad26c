//! Models without a classifier: their result is features, which can be looked at,
//! written, timed and quantized, but have no accuracy.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;
use tpvit_models::{BitWidth, Interpolation, Model, Preprocess, Resize, synthetic, write};
use tpvit_quantizer::calibration::{Compensation, ObserveSettings, Settings, distance_name};
use tpvit_quantizer::pictures;
use tpvit_quantizer::pipeline::{Job, quantize};
use tpvit_quantizer::reconstruct::{Choices, Effort, Recipe, Settings as Training};
use tpvit_quantizer::report::{ReportData, Run, page};
use tpvit_quantizer::weights::Weights;
use tpvit_runtime::{Options, Session};
use tpvit_tests::{tpvit, write_pictures};

/// 5 tokens before 6 patches, 20 channels.
const DINO: &str = "dinov2-giant";
const SHAPE: [usize; 2] = [11, 20];

/// A folder with pictures and synthetic models.
struct Folder(TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The .tpv file of an architecture.
    fn model(&self, name: &str) -> PathBuf {
        let path = self.path(&format!("{name}.tpv"));
        fs::write(&path, model(name)).expect("a file");
        path
    }

    fn pictures(&self, count: u64) -> Vec<PathBuf> {
        write_pictures(&self.path("pictures"), count)
    }
}

fn model(name: &str) -> Vec<u8> {
    let mut all = synthetic::architectures().into_iter();
    let (_, program) = all.find(|(n, _)| *n == name).expect("an architecture");
    let softmax = synthetic::row_max_softmax(BitWidth::B4);
    let data = synthetic::model(program, BitWidth::B8, BitWidth::B8, &softmax, 1);
    write(&data).expect("a valid model")
}

/// What the library gives for the pictures.
fn features(model: &[u8], paths: &[PathBuf]) -> Vec<Vec<f32>> {
    let model = Model::parse(model).expect("a valid file");
    let mut session = Session::new(&model, &Options::default()).expect("a session");
    let one = |path: &PathBuf| {
        let pixels = pictures::load(path, model.preprocess(), model.program().image);
        let pixels = pixels.expect("a picture").data;
        session.run(&pixels).expect("of the right size").to_vec()
    };
    paths.iter().map(one).collect()
}

fn run(model: &Path, pictures: &[PathBuf]) -> Command {
    let mut command = tpvit();
    command.arg("run").arg(model).args(pictures);
    command
}

fn output(command: &mut Command) -> Output {
    command.output().expect("tpvit starts")
}

#[track_caller]
fn succeeds(command: &mut Command) -> String {
    let output = output(command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    assert_eq!(stderr, "", "{command:?}");
    String::from_utf8(output.stdout).expect("output is UTF-8")
}

/// The message of a command that must fail.
#[track_caller]
fn fails(command: &mut Command) -> String {
    let output = output(command);
    assert_eq!(output.status.code(), Some(1), "{command:?}");
    String::from_utf8(output.stderr).expect("messages are UTF-8")
}

#[track_caller]
fn parsed(command: &mut Command) -> Value {
    let text = succeeds(command);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn run_tells_what_the_features_are_like() {
    let folder = Folder::new();
    let (file, paths) = (folder.model(DINO), folder.pictures(3));
    let expected = features(&model(DINO), &paths);
    let found = parsed(run(&file, &paths).arg("--json"));
    for ((found, path), values) in found
        .as_array()
        .expect("a list")
        .iter()
        .zip(&paths)
        .zip(&expected)
    {
        assert_eq!(found["file"], path.to_str().expect("UTF-8"));
        assert!(found["answers"].is_null(), "{found}");
        assert_eq!(found["features"]["shape"], json!(SHAPE));
        let values = values.iter().map(|&x| f64::from(x));
        let mean = values.clone().sum::<f64>() / (SHAPE[0] * SHAPE[1]) as f64;
        let norm = values.map(|x| x * x).sum::<f64>().sqrt();
        let near = |name: &str, expected: f64| {
            let found = found["features"][name].as_f64().expect("a number");
            assert!(
                (found - expected).abs() < 1e-12 * norm,
                "{name}: {found} {expected}"
            );
        };
        near("mean", mean);
        near("norm", norm);
    }
    let text = succeeds(&mut run(&file, &paths));
    assert_eq!(text.lines().count(), 2 * 3, "{text}");
    assert_eq!(
        text.matches("  features 11 x 20, mean ").count(),
        3,
        "{text}"
    );
}

/// Header and values of a NumPy file of f32.
fn numpy(path: &Path) -> (String, Vec<f32>) {
    let bytes = fs::read(path).expect("the file");
    assert_eq!(bytes[..8], *b"\x93NUMPY\x01\0");
    let begin = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert_eq!(begin % 64, 0);
    let header = String::from_utf8(bytes[10..begin].to_vec()).expect("text");
    let values = bytes[begin..].as_chunks::<4>().0.iter();
    let values = values.map(|x| f32::from_le_bytes(*x)).collect();
    assert_eq!((bytes.len() - begin) % 4, 0);
    (header.trim_end().into(), values)
}

#[test]
fn run_writes_features_for_numpy() {
    let folder = Folder::new();
    let file = folder.path("features.npy");
    for name in [DINO, "swin-one-window"] {
        let (model_file, paths) = (folder.model(name), folder.pictures(3));
        let expected = features(&model(name), &paths);
        let [tokens, channels] = match name {
            DINO => SHAPE,
            _ => [15, 16],
        };
        for (count, shape) in [
            (1, format!("({tokens}, {channels})")),
            (3, format!("(3, {tokens}, {channels})")),
        ] {
            for threads in ["1", "2"] {
                let mut command = run(&model_file, &paths[..count]);
                command.arg("--features").arg(&file);
                succeeds(command.args(["--threads", threads]));
                let (header, values) = numpy(&file);
                let dict =
                    format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
                assert_eq!(header, dict);
                assert_eq!(values, expected[..count].concat(), "{name}, {threads}");
            }
        }
        fs::remove_file(&file).expect("it is there");
        fs::remove_file(&model_file).expect("it is there");
    }
    let left: Vec<_> = fs::read_dir(folder.0.path()).expect("readable").collect();
    assert_eq!(left.len(), 1, "only the pictures: {left:?}");
}

#[test]
fn features_are_written_whole_or_not_at_all() {
    let folder = Folder::new();
    let (model, mut paths) = (folder.model(DINO), folder.pictures(2));
    let file = folder.path("features.npy");
    // A picture that cannot be read.
    fs::write(folder.path("broken.png"), b"no picture").expect("a file");
    paths.insert(1, folder.path("broken.png"));
    let text = fails(run(&model, &paths).arg("--features").arg(&file));
    assert!(text.contains("broken.png"), "{text}");
    assert!(text.contains("1 of 3 pictures could not be read"), "{text}");
    assert!(!file.exists());
    // The place of an input, a folder that is not there.
    let before = fs::read(&paths[0]).expect("a picture");
    for input in [&paths[0], &model] {
        let text = fails(run(&model, &paths[..1]).arg("--features").arg(input));
        assert!(text.contains("it is an input"), "{text}");
    }
    assert_eq!(fs::read(&paths[0]).expect("a picture"), before);
    let nowhere = folder.path("nowhere/features.npy");
    let text = fails(run(&model, &paths[..1]).arg("--features").arg(&nowhere));
    assert!(text.contains("cannot write in folder"), "{text}");
    // A model that has labels to give.
    let classifier = folder.model("vit");
    let text = fails(run(&classifier, &paths[..1]).arg("--features").arg(&file));
    assert!(text.contains("vit.tpv is a classifier"), "{text}");
    let left: Vec<_> = fs::read_dir(folder.0.path()).expect("readable").collect();
    assert_eq!(
        left.len(),
        4,
        "two models, pictures, the broken one: {left:?}"
    );
}

#[test]
fn features_have_no_accuracy() {
    let folder = Folder::new();
    let model = folder.model(DINO);
    folder.pictures(2);
    let data = folder.path("pictures");
    fs::write(data.join("labels.csv"), "file,label\n0.png,0\n1.png,1\n").expect("a file");
    let text = fails(tpvit().arg("eval").arg(&model).arg("--data").arg(&data));
    let expected = "dinov2-giant.tpv has no classifier: its result is 11 x 20 features";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn every_architecture_can_be_inspected_and_timed() {
    let folder = Folder::new();
    for (name, program) in synthetic::architectures() {
        let model = folder.model(name);
        let described = parsed(tpvit().arg("inspect").arg(&model).arg("--json"));
        assert_eq!(described["classes"], program.classes(), "{name}");
        assert_eq!(described["result"], json!(program.output_shape()), "{name}");
        let layers = described["layers"].as_array().expect("a list");
        assert_eq!(layers.len(), program.ops.len(), "{name}");
        let text = succeeds(tpvit().arg("inspect").arg(&model));
        let [rows, cols] = program.output_shape();
        let line = match program.classifies() {
            true => format!("classes      {cols} ({cols} labels)\n"),
            false => format!("features     {rows} x {cols}, no classifier\n"),
        };
        assert!(text.contains(&line), "{name}: {text}");

        let bench = |flags: &[&str]| {
            let mut command = tpvit();
            command.arg("bench").arg(&model);
            command.args(["--runs", "2", "--warmup", "0", "--threads", "2"]);
            command.args(flags);
            command
        };
        let told = parsed(&mut bench(&["--json"]));
        assert_eq!(told["macs"], program.macs(), "{name}");
        assert!(
            told["median_ms"].as_f64().is_some_and(|ms| ms > 0.0),
            "{name}"
        );
        let profile = told["profile"].as_array().expect("a list");
        assert!(
            profile.iter().all(|kind| kind["ms"].is_f64()),
            "{name}: {told}"
        );
        assert!(succeeds(&mut bench(&[])).contains("median"), "{name}");
    }
}

/// Calibrated, compensated, trained and reported: all by the distance of features.
#[test]
fn features_are_quantized_by_their_own_distance() {
    let mut all = synthetic::architectures().into_iter();
    let (_, program) = all.find(|(n, _)| *n == DINO).expect("an architecture");
    let softmax = synthetic::row_max_softmax(BitWidth::B4);
    let data = synthetic::model(program, BitWidth::B8, BitWidth::B8, &softmax, 1);
    let (program, weights) = (&data.program, Weights::dequantize(&data.tensors));
    let [height, width] = program.image;
    let picture = |i: usize| {
        let wave = |p: usize| ((p * (i + 3)) as f32 * 0.37).sin() * 90.0 + 120.0;
        (i < 16).then(|| (0..height * width * 3).map(|p| wave(p).round()).collect())
    };
    let bits = BitWidth::B4;
    let choices = Choices::new(Recipe::Best, Effort::Balanced, 1);
    let mut training = Training::new(&choices, bits);
    training.joint.as_mut().expect("joint training").steps = 30;
    let job = Job {
        settings: Settings::new(bits, bits),
        observe: ObserveSettings::default(),
        compensation: Some(Compensation::default()),
        reconstruction: Some(training),
        scratch: None,
        teacher: None,
        preprocess: Preprocess {
            resize: Resize::Squash,
            interpolation: Interpolation::Bicubic,
            mean: [0.0; 3],
            std: [1.0 / 255.0; 3],
        },
        labels: Vec::new(),
        source: Value::Null,
    };
    let made = quantize(program, weights, &picture, &job, None, &mut |_| {}).expect("a file");
    let model = Model::parse(&made.bytes).expect("a valid file");
    assert_eq!(model.program().output_shape(), SHAPE);
    assert_eq!(distance_name(program), "error");
    // As wrong as a constant is 1.
    for decision in &made.decisions {
        assert!((0.0..1.0).contains(&decision.rounded), "{decision:?}");
        assert!(decision.compensated.is_finite(), "{decision:?}");
    }
    let all = made.units.last().expect("joint training");
    assert!(
        all.after < 0.95 * all.before,
        "{} {}",
        all.before,
        all.after
    );

    let run = Run {
        model: "dino.onnx".into(),
        source_bytes: 1,
        method: "joint".into(),
        skipped: 0,
        seconds: 1.0,
        accuracy: None,
        warnings: Vec::new(),
    };
    let report = ReportData::new(program, &job, &made, run);
    let json = report.json();
    assert_eq!(json["model"]["classes"], 0);
    assert_eq!(json["model"]["result"], json!(SHAPE));
    let page = page(&report);
    assert!(page.contains("features 11 × 20"), "the result in the page");
    assert!(page.contains("relative squared error of the features"));
    assert!(!page.contains("Kullback"), "features have no distribution");
}
