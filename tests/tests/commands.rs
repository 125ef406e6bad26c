//! What each command promises on good input, from an ONNX file to answers.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use tpvit_runtime::Isa;
use tpvit_tests::{fixture, tpvit, write_pictures, zoo};

/// A folder with calibration pictures and models made from them.
struct Folder {
    temp: TempDir,
}

impl Folder {
    fn new() -> Folder {
        let temp = tempfile::tempdir().expect("a temporary folder");
        let folder = Folder { temp };
        write_pictures(&folder.path("pictures"), 8);
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// `tpvit quantize` of a fixture to `output`, without what never changes the bytes.
    fn quantize(&self, name: &str, output: &str, flags: &[&str]) -> Command {
        let mut command = tpvit();
        command.arg("quantize").arg(fixture(name));
        command.arg("--calibration").arg(self.path("pictures"));
        command.args(["--preprocess", "vit-augreg", "--no-verify", "-o"]);
        command.arg(self.path(output)).args(flags);
        command
    }

    /// A W8A8 file of the small ViT.
    fn w8a8(&self) -> PathBuf {
        succeeds(&mut self.quantize(VIT, "vit.tpv", &[]));
        self.path("vit.tpv")
    }

    /// Pictures in `data`, with the top-1 class that `model` gives each.
    fn labelled_by(&self, model: &Path, count: u64) -> (PathBuf, Vec<(PathBuf, u64)>) {
        let data = self.path("data");
        let pictures = write_pictures(&data, count);
        let mut command = tpvit();
        command.arg("run").arg(model).args(&pictures).arg("--json");
        let answers = json(&mut command);
        let class = |answer: &Value| answer["answers"][0]["class"].as_u64().expect("a class");
        let classes = answers
            .as_array()
            .expect("one per picture")
            .iter()
            .map(class);
        let labelled: Vec<(PathBuf, u64)> = pictures.into_iter().zip(classes).collect();
        assert_eq!(labelled.len() as u64, count);
        (data, labelled)
    }
}

const VIT: &str = "vit.opset17.onnx";

/// Standard output of a command that must succeed and say nothing else.
#[track_caller]
fn succeeds(command: &mut Command) -> String {
    let output = command.output().expect("tpvit starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    assert_eq!(stderr, "", "{command:?}");
    String::from_utf8(output.stdout).expect("output is UTF-8")
}

#[track_caller]
fn json(command: &mut Command) -> Value {
    let text = succeeds(command);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn eval(model: &Path, data: &Path) -> Command {
    let mut command = tpvit();
    command.arg("eval").arg(model).arg("--data").arg(data);
    if model.extension().is_some_and(|e| e == "onnx") {
        command.args(["--preprocess", "vit-augreg"]);
    }
    command
}

fn write_csv(data: &Path, labelled: &[(PathBuf, u64)]) {
    let mut csv = String::from("file,label\n");
    for (path, label) in labelled {
        let name = path.file_name().expect("a name").to_string_lossy();
        csv.push_str(&format!("{name},{label}\n"));
    }
    fs::write(data.join("labels.csv"), csv).expect("a file");
}

#[track_caller]
fn assert_keys(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(!value[key].is_null(), "no {key} in {value:#}");
    }
}

#[test]
fn quantize_tells_what_it_made() {
    let folder = Folder::new();
    let names = folder.path("names.txt");
    fs::write(&names, "a\nb\nc\nd\ne\nf\ng\n").expect("a file");
    let names = names.to_str().expect("UTF-8");
    let mut command = folder.quantize(VIT, "vit.tpv", &["--labels", names, "--json"]);
    let summary = json(&mut command);
    assert_keys(
        &summary,
        &[
            "output",
            "source_bytes",
            "float_bytes",
            "bytes",
            "seconds",
            "layers",
        ],
    );
    assert_eq!(summary["pictures"], 8);
    assert_eq!(summary["skipped_pictures"], 0);
    let len = fs::metadata(folder.path("vit.tpv"))
        .expect("the output")
        .len();
    assert_eq!(summary["bytes"], len);
    // One file, and nothing partial beside it.
    let left = fs::read_dir(folder.temp.path()).expect("readable");
    let left: BTreeSet<_> = left.flatten().map(|e| e.file_name()).collect();
    let expected = ["names.txt", "pictures", "vit.tpv"].map(Into::into);
    assert_eq!(left, BTreeSet::from(expected));

    let mut run = tpvit();
    run.arg("run").arg(folder.path("vit.tpv"));
    let answers = json(run.arg(folder.path("pictures/0.png")).arg("--json"));
    let label = answers[0]["answers"][0]["label"].as_str().expect("a label");
    assert!("abcdefg".contains(label), "{label}");
}

/// Runs `command`, which writes a report into `report`; returns it.
#[track_caller]
fn report(folder: &Folder, command: &mut Command) -> (String, Value) {
    let report = folder.path("new/report");
    let text = succeeds(command.arg("--report").arg(&report));
    let read = |name| fs::read_to_string(report.join(name)).expect("the report");
    let (html, json) = (read("report.html"), read("report.json"));
    assert!(text.contains("report.html"), "{text}");
    let left = fs::read_dir(&report).expect("readable").count();
    assert_eq!(left, 2, "the page and the numbers, nothing partial");
    (html, serde_json::from_str(&json).expect("JSON"))
}

#[test]
fn a_report_has_the_numbers_of_the_file() {
    let folder = Folder::new();
    let flags = [
        "-w",
        "4",
        "-a",
        "4",
        "--first-last-bits",
        "8",
        "--seed",
        "7",
    ];
    let mut command = folder.quantize(VIT, "vit.tpv", &flags);
    let (html, json) = report(&folder, &mut command);
    assert!(html.contains(VIT) && html.contains("W4A4"));
    assert_eq!(json["method"]["name"], "compensate");
    assert_eq!(json["method"]["first_last_bits"], 8);
    assert_eq!(json["calibration"]["pictures"], 8);
    assert_eq!(json["calibration"]["seed"], 7);
    assert!(json["accuracy"].is_null(), "no labels");
    let len = fs::metadata(folder.path("vit.tpv")).expect("it").len();
    assert_eq!(json["size"]["file_bytes"], len);

    let mut command = tpvit();
    command.arg("inspect").arg(folder.path("vit.tpv"));
    let inspected = self::json(command.arg("--json"));
    let layers = json["layers"].as_array().expect("a list");
    let inspected = inspected["layers"].as_array().expect("a list");
    assert_eq!(layers.len(), inspected.len());
    let mut bytes = json["size"]["other_bytes"].as_u64().expect("a number");
    for (layer, inspected) in layers.iter().zip(inspected) {
        assert_eq!(layer["name"], inspected["name"]);
        let number = |key: &str| layer[key].as_u64().expect("a number");
        let weight = number("code_bytes") + number("scale_bytes");
        let known = inspected["weight_bytes"].as_u64().unwrap_or(0);
        assert_eq!(weight, known, "{layer}");
        bytes += weight + number("float_bytes");
        for key in ["error", "error_before", "rounding", "rounding_before"] {
            assert!(layer[key].is_f64(), "{key} of {layer}");
        }
    }
    assert_eq!(bytes, len, "each byte of the file has one place");

    let blocks = 3;
    let attention = json["attention"].as_array().expect("a list");
    assert_eq!(attention.len(), blocks);
    for layer in attention {
        let codebooks = layer["codebooks"].as_array().expect("codebooks");
        assert_eq!(codebooks.len(), 1, "for all heads");
        assert_eq!(codebooks[0]["levels"].as_array().expect("levels").len(), 16);
        let list = |key: &str| layer["histogram"][key].as_array().expect("bins").iter();
        let counts: u64 = list("counts").filter_map(Value::as_u64).sum();
        let mass: f64 = list("mass").filter_map(Value::as_f64).sum();
        // Rows of 17 tokens; each sums to 1, to a rounding of 2^-24 for each value.
        let rows = counts as f64 / 17.0;
        assert!(counts > 0 && (mass / rows - 1.0).abs() < 17.0 / f64::from(1 << 24));
    }
    let compensation = json["compensation"].as_array().expect("a list");
    assert!(!compensation.is_empty());

    // Again, without compensation and per head: the report is replaced.
    let flags = [
        "--method",
        "calibrate",
        "--softmax",
        "tulq",
        "--softmax-per-head",
    ];
    let mut command = folder.quantize(VIT, "vit.tpv", &flags);
    let (html, json) = report(&folder, &mut command);
    assert!(html.contains("W8A8") && !html.contains("W4A4"));
    assert_eq!(json["compensation"], serde_json::json!([]));
    assert!(json["layers"][0]["error_before"].is_null());
    let codebooks = json["attention"][0]["codebooks"].as_array().expect("it");
    assert!(codebooks.len() > 1 && html.contains("levels of each head"));
}

#[test]
fn a_report_tells_the_accuracy_of_labelled_pictures() {
    let folder = Folder::new();
    let model = folder.w8a8();
    let (data, mut labelled) = folder.labelled_by(&model, 10);
    labelled[3].1 = (labelled[3].1 + 1) % 7;
    write_csv(&data, &labelled);
    let data = data.to_str().expect("UTF-8");
    let (html, json) = report(
        &folder,
        &mut folder.quantize(VIT, "vit.tpv", &["--eval", data]),
    );
    let accuracy = &json["accuracy"];
    assert_eq!(accuracy["images"], 10);
    assert_eq!(accuracy["calibration"], false);
    assert_eq!(accuracy["integer"]["top1"], 90.0);
    let evaluated = self::json(eval(&fixture(VIT), Path::new(data)).arg("--json"));
    assert_eq!(accuracy["float"]["top1"], evaluated["top1"]);
    assert!(html.contains("<h2>Accuracy") && !html.contains("optimistic"));

    // Without --eval, the calibration pictures if each has a label.
    let (_, pictures) = folder.labelled_by(&model, 8);
    let calibration = folder.path("pictures");
    write_csv(&calibration, &pictures);
    let (html, json) = report(&folder, &mut folder.quantize(VIT, "vit.tpv", &[]));
    assert_eq!(json["accuracy"]["calibration"], true);
    assert_eq!(json["accuracy"]["images"], 8);
    assert!(html.contains("optimistic"));
    for labels in [&pictures[..7], &[(pictures[0].0.clone(), 7)]] {
        write_csv(&calibration, labels);
        let (_, json) = report(&folder, &mut folder.quantize(VIT, "vit.tpv", &[]));
        assert!(json["accuracy"].is_null());
        let warnings = json["warnings"].to_string();
        assert!(warnings.contains("not measured"), "{warnings}");
    }
}

#[test]
fn quantize_verifies_the_import_unless_told_not_to() {
    let folder = Folder::new();
    for name in [
        VIT,
        "vit.opset14.onnx",
        "vit_layerscale.opset18.dynamo.onnx",
    ] {
        let mut command = tpvit();
        command
            .arg("quantize")
            .arg(fixture(name))
            .arg("--calibration");
        command.arg(folder.path("pictures"));
        command
            .args(["--preprocess", "vit-augreg", "-o"])
            .arg(folder.path("verified.tpv"));
        let table = succeeds(&mut command);
        assert!(
            table.contains("W8A8") && table.contains("8 pictures"),
            "{table}"
        );
        succeeds(&mut folder.quantize(name, "unverified.tpv", &[]));
        let read = |name| fs::read(folder.path(name)).expect("the output");
        assert!(read("verified.tpv") == read("unverified.tpv"), "{name}");
    }
}

/// As the help says, and a few levels deep.
#[test]
fn calibration_pictures_may_lie_in_folders() {
    let folder = Folder::new();
    write_pictures(&folder.path("pictures/cats/small"), 3);
    write_pictures(&folder.path("pictures/dogs"), 2);
    let summary = json(&mut folder.quantize(VIT, "vit.tpv", &["--json"]));
    assert_eq!(summary["pictures"], 8 + 3 + 2);
    let five = ["--json", "--pictures", "5"];
    let summary = json(&mut folder.quantize(VIT, "vit.tpv", &five));
    assert_eq!(summary["pictures"], 5);
}

/// Packed for an instruction set a model answers the same, and comes back byte for byte.
#[test]
fn packing_changes_the_order_and_nothing_else() {
    let folder = Folder::new();
    let (model, picture) = (folder.w8a8(), folder.path("pictures/0.png"));
    let run = |model: &Path| {
        let answers = json(tpvit().arg("run").arg(model).arg(&picture).arg("--json"));
        answers[0]["answers"].clone()
    };
    let memory =
        |model: &Path| json(tpvit().arg("inspect").arg(model).arg("--json"))["memory"].clone();
    let pack = |from: &Path, isa: &str, name: &str| {
        let to = folder.path(name);
        succeeds(
            tpvit()
                .arg("pack")
                .arg(from)
                .args(["--isa", isa, "-o"])
                .arg(&to),
        );
        to
    };
    let plain = memory(&model);
    assert_eq!(plain["borrowed_bytes"], 0);
    for isa in Isa::ALL {
        let packed = pack(&model, isa.name(), "packed.tpv");
        let memory = memory(&packed);
        if isa == Isa::best() {
            assert_eq!(memory["weight_bytes"], 0);
            // What lies beside a copy of the weights is a constant where there is none.
            let sum = |memory: &Value, weights: &str| {
                let bytes = [weights, "constant_bytes"].map(|name| memory[name].as_u64());
                bytes[0].expect("a number") + bytes[1].expect("a number")
            };
            let (read, copied) = (sum(&memory, "borrowed_bytes"), sum(&plain, "weight_bytes"));
            assert_eq!(read, copied);
        }
        let back = pack(&packed, "none", "back.tpv");
        assert_eq!(fs::read(&back).expect("it"), fs::read(&model).expect("it"));
    }
    let packed = pack(&model, Isa::best().name(), "packed.tpv");
    assert_ne!(run(&model), Value::Null);
    assert_eq!(run(&packed), run(&model));
    let mut command = tpvit();
    command
        .arg("pack")
        .arg(&model)
        .args(["--isa", "sse9", "-o"]);
    let output = command.arg(folder.path("no.tpv")).output();
    let output = output.expect("tpvit starts");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("sse9") && said.contains("neon"), "{said}");
}

#[test]
fn inspect_shows_what_is_in_the_file() {
    let folder = Folder::new();
    let model = folder.w8a8();
    let mut command = tpvit();
    let described = json(command.arg("inspect").arg(&model).arg("--json"));
    assert_keys(
        &described,
        &[
            "file_bytes",
            "version",
            "image",
            "classes",
            "macs",
            "preprocess",
            "memory",
            "sections",
            "layers",
            "provenance",
        ],
    );
    assert_eq!(described["classes"], 7);
    assert_eq!(described["image"], serde_json::json!([32, 32]));
    assert_eq!(described["provenance"]["quantizer"]["weight_bits"], 8);
    assert_eq!(
        described["file_bytes"],
        fs::metadata(&model).expect("it").len()
    );

    let mut command = tpvit();
    let text = succeeds(command.arg("inspect").arg(&model).arg("--verify"));
    let sections = [
        "PROGRAM",
        "TENSORS",
        "QUANT",
        "PREPROCESS",
        "LABELS",
        "PROVENANCE",
        "DATA",
    ];
    for section in sections {
        let line = text.lines().find(|line| line.starts_with(section));
        assert!(
            line.is_some_and(|l| l.ends_with("holds")),
            "{section}: {text}"
        );
    }
    assert!(text.contains("32 x 32 pixels"), "{text}");
}

#[test]
fn run_gives_probabilities_best_first() {
    let folder = Folder::new();
    let model = folder.w8a8();
    let pictures = write_pictures(&folder.path("new"), 3);
    let run = |flags: &[&str]| {
        let mut command = tpvit();
        command.arg("run").arg(&model).args(&pictures).args(flags);
        command
    };
    let strip_time = |mut answers: Value| {
        for answer in answers.as_array_mut().expect("a list") {
            answer
                .as_object_mut()
                .expect("an object")
                .remove("milliseconds");
        }
        answers
    };
    let all = strip_time(json(&mut run(&["--json", "--top", "7"])));
    for (answer, path) in all.as_array().expect("a list").iter().zip(&pictures) {
        assert_eq!(answer["file"], path.to_str().expect("UTF-8"));
        let answers = answer["answers"].as_array().expect("a list").iter();
        let p: Vec<f64> = answers
            .map(|a| a["probability"].as_f64().expect("a number"))
            .collect();
        assert_eq!(p.len(), 7);
        assert!(p.is_sorted_by(|a, b| a >= b), "{p:?}");
        // Each is rounded to f32, 2^-24 of at most 1; the sum passes 7 roundings.
        assert!(
            (p.iter().sum::<f64>() - 1.0).abs() < 14.0 / f64::from(1 << 24),
            "{p:?}"
        );
    }
    // Neither threads nor instruction set nor method change a bit.
    for flags in [
        ["--threads", "2"],
        ["--isa", "portable"],
        ["--attention", "decode"],
    ] {
        let other = [&["--json", "--top", "7"][..], &flags].concat();
        assert_eq!(strip_time(json(&mut run(&other))), all, "{flags:?}");
    }
    let text = succeeds(&mut run(&[]));
    assert_eq!(text.lines().count(), 3 * (1 + 5), "{text}");
}

#[test]
fn shifting_gives_the_answers_of_multiplying() {
    let folder = Folder::new();
    let flags = ["-a", "4", "--softmax", "tulq", "--integer-steps"];
    succeeds(&mut folder.quantize(VIT, "shift.tpv", &flags));
    let answers = ["decode", "shift"].map(|method| {
        let mut command = tpvit();
        command.arg("run").arg(folder.path("shift.tpv"));
        command.arg(folder.path("pictures/1.png"));
        command.args(["--json", "--attention", method]);
        json(&mut command)[0]["answers"].clone()
    });
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn eval_counts_the_same_with_a_csv_and_with_class_folders() {
    let folder = Folder::new();
    let model = folder.w8a8();
    let (data, mut labelled) = folder.labelled_by(&model, 14);
    // Every class gets a picture, so that every class has a folder; others go wrong.
    for (i, (_, label)) in labelled.iter_mut().take(7).enumerate() {
        *label = i as u64;
    }
    let by_class = folder.path("by-class");
    for class in 0..7 {
        fs::create_dir_all(by_class.join(class.to_string())).expect("a folder");
    }
    for (path, label) in &labelled {
        let name = path.file_name().expect("a name");
        fs::copy(path, by_class.join(label.to_string()).join(name)).expect("a copy");
    }
    write_csv(&data, &labelled);
    let mut scores = [data, by_class].map(|data| json(eval(&model, &data).arg("--json")));
    for score in &mut scores {
        assert_keys(score, &["images", "top1", "top5", "images_per_second"]);
        assert!(score["images_per_second"].as_f64().expect("a number") > 0.0);
        score
            .as_object_mut()
            .expect("an object")
            .remove("images_per_second");
    }
    assert_eq!(scores[0], scores[1]);
    assert_eq!(scores[0]["images"], 14);
    // At least the seven that keep the model's own answer.
    let top1 = scores[0]["top1"].as_f64().expect("a number");
    let top5 = scores[0]["top5"].as_f64().expect("a number");
    assert!((50.0..=100.0).contains(&top1) && (top1..=100.0).contains(&top5));
}

#[test]
fn eval_with_a_models_own_answers_is_perfect_and_obeys_its_limit() {
    let folder = Folder::new();
    let model = folder.w8a8();
    let (data, labelled) = folder.labelled_by(&model, 12);
    write_csv(&data, &labelled);
    for flags in [
        &[][..],
        &["--threads", "1"],
        &["--threads", "2", "--isa", "portable"],
    ] {
        let score = json(eval(&model, &data).arg("--json").args(flags));
        assert_eq!(
            (&score["images"], &score["top1"]),
            (&12.into(), &100.0.into())
        );
    }
    let score = json(eval(&model, &data).args(["--json", "--limit", "5"]));
    assert_eq!(score["images"], 5);
    let text = succeeds(&mut eval(&model, &data));
    assert!(text.starts_with("12 pictures: top-1 100.0 %"), "{text}");
}

/// Of the trained model that ships, since random weights give every picture the
/// same class. Noise and gradients are nothing that it knows, so that its answers
/// are close calls; an 8-bit error decides some of them otherwise, not most.
#[test]
fn onnx_and_w8a8_mostly_agree() {
    let folder = Folder::new();
    write_pictures(&folder.path("pictures"), 24);
    let (onnx, tpv) = (zoo("vit_ti14_cifar10.onnx"), folder.path("zoo.tpv"));
    let mut command = tpvit();
    command.arg("quantize").arg(&onnx).arg("-o").arg(&tpv);
    command.arg("--calibration").arg(folder.path("pictures"));
    succeeds(&mut command); // its preprocessing lies beside it
    let (data, labelled) = folder.labelled_by(&tpv, 40);
    let classes: BTreeSet<u64> = labelled.iter().map(|(_, class)| *class).collect();
    assert!(classes.len() > 2, "{classes:?}");
    write_csv(&data, &labelled);
    let mut command = tpvit();
    command.arg("eval").arg(&onnx).arg("--data").arg(&data);
    let score = json(command.arg("--json"));
    let top1 = score["top1"].as_f64().expect("a number");
    println!("agreement {top1} %, classes {classes:?}");
    assert!(top1 >= 75.0, "{score}");
}

#[test]
fn bench_reports_every_promised_number() {
    let folder = Folder::new();
    let model = folder.w8a8();
    let mut command = tpvit();
    command
        .arg("bench")
        .arg(&model)
        .args(["--json", "--runs", "7", "--threads", "2"]);
    let report = json(&mut command);
    let keys = [
        "median_ms",
        "min_ms",
        "p90_ms",
        "threads",
        "isa",
        "arena_bytes",
        "peak_rss_bytes",
        "macs",
        "peak_gmacs",
        "fraction_of_peak",
        "profile",
    ];
    assert_keys(&report, &keys);
    let number = |key: &str| report[key].as_f64().expect("a number");
    assert!(0.0 < number("min_ms"));
    assert!(number("min_ms") <= number("median_ms"));
    assert!(number("median_ms") <= number("p90_ms"));
    assert_eq!(report["threads"], 2);
    assert!(number("arena_bytes") > 0.0);
    assert!(number("peak_gmacs") > 0.0);
    // The share of both cores' peak, from the other numbers of the report.
    let share = number("gmacs_per_second") / (2.0 * number("peak_gmacs"));
    assert!((number("fraction_of_peak") / share - 1.0).abs() < 1e-9);
    let profile = report["profile"].as_array().expect("a list");
    for operation in profile {
        assert_keys(
            operation,
            &["kind", "count", "ms", "macs", "fraction_of_peak"],
        );
    }
    if cfg!(target_os = "linux") {
        assert!(number("peak_rss_bytes") > number("arena_bytes"));
    }
    // Of the whole program: 16 patches of 192 values; in each of 3 blocks, for
    // each of 17 tokens, 12 products of 64 x 64 and attention over 17 tokens; the head.
    let macs = 16 * 192 * 64 + 3 * 17 * (12 * 64 * 64 + 2 * 17 * 64) + 64 * 7;
    assert_eq!(report["macs"], macs);

    let mut command = tpvit();
    command
        .arg("bench")
        .arg(&model)
        .args(["--runs", "2", "--isa", "portable", "--against"]);
    let text = succeeds(command.arg(fixture(VIT)));
    assert!(
        text.contains("portable") && text.contains("tract f32"),
        "{text}"
    );
    let mut command = tpvit();
    command
        .arg("bench")
        .arg(fixture(VIT))
        .args(["--runs", "2", "--json"]);
    assert_keys(
        &json(&mut command),
        &["median_ms", "min_ms", "p90_ms", "threads", "peak_rss_bytes"],
    );
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let folder = Folder::new();
    let made = ["1", "2", "2"].map(|threads| {
        let mut command = folder.quantize(VIT, "again.tpv", &["-w", "4", "-a", "4"]);
        succeeds(command.env("RAYON_NUM_THREADS", threads));
        fs::read(folder.path("again.tpv")).expect("the output")
    });
    assert!(made[0] == made[1], "one thread and two");
    assert!(made[1] == made[2], "two threads, twice");
}

/// Quantizes with `flags`, classifies a picture, and returns the size of the file.
fn makes_a_model_that_runs(folder: &Folder, name: &str, flags: &[&str]) -> u64 {
    succeeds(&mut folder.quantize(name, "some.tpv", flags));
    let mut command = tpvit();
    command
        .arg("run")
        .arg(folder.path("some.tpv"))
        .arg("--json");
    let answers = json(command.arg(folder.path("pictures/0.png")));
    let p = &answers[0]["answers"][0]["probability"];
    let p = p.as_f64().expect("a number");
    assert!((1.0 / 7.0..=1.0).contains(&p), "{flags:?}: {p}");
    fs::metadata(folder.path("some.tpv")).expect("it").len()
}

#[test]
fn every_width_runs() {
    let folder = Folder::new();
    let widths = ["8", "6", "4", "3"];
    for act in widths {
        let sizes =
            widths.map(|weight| makes_a_model_that_runs(&folder, VIT, &["-w", weight, "-a", act]));
        assert!(
            sizes.is_sorted_by(|a, b| a > b),
            "fewer bits, fewer bytes: {sizes:?}"
        );
    }
    makes_a_model_that_runs(
        &folder,
        VIT,
        &["-w", "3", "-a", "3", "--first-last-bits", "8"],
    );
}

#[test]
fn every_softmax_quantizer_runs() {
    let folder = Folder::new();
    for softmax in [
        "tulq",
        "tulq-z",
        "tulq-za",
        "row-max",
        "uniform",
        "twin",
        "log2",
        "log-sqrt2",
        "adalog",
        "sulq",
    ] {
        for flags in [
            &["-a", "8"][..],
            &["-a", "3"],
            &["-a", "4", "--softmax-bits", "6"],
        ] {
            let flags = [&["--softmax", softmax][..], flags].concat();
            makes_a_model_that_runs(&folder, "vit_layerscale.opset17.onnx", &flags);
        }
        let flags = [
            "--softmax",
            softmax,
            "--renormalise",
            "--integer-steps",
            "--softmax-per-head",
            "-a",
            "4",
        ];
        makes_a_model_that_runs(&folder, VIT, &flags);
    }
    for observer in ["minmax", "mse", "percentile"] {
        makes_a_model_that_runs(&folder, VIT, &["--observer", observer]);
    }
}

#[test]
fn every_code_of_activations_runs() {
    let folder = Folder::new();
    for hidden in ["uniform", "codebook", "shifted-log"] {
        for [normed, bits] in [["uniform", "4"], ["codebook", "3"]] {
            let flags = ["-a", bits, "--normed-code", normed, "--hidden-code", hidden];
            makes_a_model_that_runs(&folder, VIT, &flags);
        }
    }
}

#[test]
fn every_effort_and_recipe_runs() {
    let folder = Folder::new();
    write_pictures(&folder.path("pictures"), 16);
    let narrow = ["-w", "4", "-a", "4", "--softmax", "tulq", "--effort"];
    for flags in [
        &["fast"][..],
        &["balanced"],
        &["balanced", "--recipe", "tp-vit"],
        &["balanced", "--recipe", "sos"],
        &["balanced", "--recipe", "glf", "--scratch", "."],
        &["balanced", "--recipe", "qdrop"],
    ] {
        let flags = [&narrow[..], flags].concat();
        makes_a_model_that_runs(&folder, VIT, &flags);
        assert!(!folder.path("some.tpv.checkpoint").exists(), "{flags:?}");
    }
}

/// Killed in the middle, as by a power cut: what is resumed ends like a run that
/// was left alone, to the byte.
#[test]
fn a_killed_training_is_resumed() {
    let folder = Folder::new();
    write_pictures(&folder.path("pictures"), 16);
    let flags = ["-w", "3", "-a", "3", "--effort", "best"];
    succeeds(&mut folder.quantize(VIT, "whole.tpv", &flags));
    let checkpoint = folder.path("killed.tpv.checkpoint");
    let mut killed = folder.quantize(VIT, "killed.tpv", &flags);
    let mut running = killed.spawn().expect("tpvit starts");
    while !checkpoint.exists() && running.try_wait().expect("a status").is_none() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    running.kill().expect("it is killed");
    running.wait().expect("it ends");
    assert!(checkpoint.exists() && !folder.path("killed.tpv").exists());

    let other = ["-w", "4", "-a", "3", "--effort", "best", "--resume"];
    let output = folder
        .quantize(VIT, "killed.tpv", &other)
        .output()
        .expect("tpvit starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && stderr.contains("widths"),
        "{stderr}"
    );
    assert!(checkpoint.exists(), "a refused checkpoint stays");

    let again = [&flags[..], &["--resume"]].concat();
    succeeds(&mut folder.quantize(VIT, "killed.tpv", &again));
    let read = |name| fs::read(folder.path(name)).expect("a file");
    assert!(read("killed.tpv") == read("whole.tpv"));
    assert!(!checkpoint.exists());
}

#[test]
fn every_rotation_runs() {
    let folder = Folder::new();
    for rotate in ["none", "residual", "values", "query-key", "heads", "all"] {
        makes_a_model_that_runs(&folder, VIT, &["-w", "4", "-a", "4", "--rotate", rotate]);
        let mut inspect = tpvit();
        inspect.arg("inspect").arg(folder.path("some.tpv"));
        let source = &json(inspect.arg("--json"))["provenance"]["source"];
        let rotated = &source["rotated"]["query_key"];
        assert_eq!(rotated.is_null(), rotate == "none", "{source}");
    }
}

#[test]
fn a_budget_mixes_widths() {
    let folder = Folder::new();
    let size = |flags: &[&str]| makes_a_model_that_runs(&folder, VIT, flags);
    let (wide, narrow) = (size(&["-w", "6"]), size(&["-w", "4"]));
    let between = size(&[
        "--size-budget",
        "100K",
        "--pictures",
        "4",
        "--rotate",
        "none",
        "--softmax",
        "tulq",
    ]);
    assert!(
        narrow < between && between < wide,
        "{narrow} {between} {wide}"
    );

    let flags = ["--mac-budget", "40", "--pictures", "4", "--json"];
    let summary = json(&mut folder.quantize(VIT, "mixed.tpv", &flags));
    let made = &summary["allocation"];
    assert!(made["cost"].as_u64() <= made["limit"].as_u64());
    let sites = made["sites"].as_array().expect("sites");
    let bits: BTreeSet<u64> = sites.iter().filter_map(|s| s["bits"].as_u64()).collect();
    assert!(bits.iter().all(|b| [3, 4, 6, 8].contains(b)), "{bits:?}");
}

#[test]
fn help_names_every_flag() {
    let flags: [(&str, &[&str]); 7] = [
        (
            "quantize",
            &[
                "--calibration",
                "--output",
                "--weight-bits",
                "--act-bits",
                "--softmax",
                "--rotate",
                "--size-budget",
                "--mac-budget",
                "--pictures",
                "--labels",
                "--preprocess",
                "--no-verify",
                "--report",
                "--eval",
                "--json",
                "vit-augreg",
            ],
        ),
        (
            "eval",
            &[
                "--data",
                "--limit",
                "--threads",
                "--isa",
                "--attention",
                "--preprocess",
                "--json",
            ],
        ),
        (
            "run",
            &[
                "--top",
                "--features",
                "--threads",
                "--isa",
                "--attention",
                "--json",
            ],
        ),
        ("inspect", &["--verify", "--json"]),
        ("pack", &["--isa", "--output"]),
        (
            "bench",
            &[
                "--threads",
                "--runs",
                "--warmup",
                "--against",
                "--isa",
                "--json",
            ],
        ),
        ("demo", &["--zoo", "--isa"]),
    ];
    let general = succeeds(tpvit().arg("--help"));
    for (name, flags) in flags {
        assert!(general.contains(&format!("  {name} ")), "{name}: {general}");
        let help = succeeds(tpvit().args([name, "--help"]));
        for flag in flags {
            assert!(help.contains(flag), "{name} {flag}: {help}");
        }
    }
    let version = succeeds(tpvit().arg("--version"));
    assert!(version.starts_with("tpvit "), "{version}");
}

/// `tpvit ... | head -0`: the reader is gone before anything is written.
#[test]
fn a_reader_that_leaves_is_no_panic() {
    let folder = Folder::new();
    let model = folder.w8a8();
    let picture = folder.path("pictures/0.png");
    let picture = picture.to_str().expect("UTF-8");
    for (name, arguments) in [
        ("inspect", &["--verify"][..]),
        ("inspect", &["--json"]),
        ("run", &[picture; 200]),
        ("bench", &["--runs", "1"]),
    ] {
        let mut command = tpvit();
        command.arg(name).arg(&model).args(arguments);
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        command.stdout(writer).stderr(Stdio::piped());
        let mut child = command.spawn().expect("tpvit starts");
        drop(command);
        let mut stderr = String::new();
        let pipe = child.stderr.as_mut().expect("piped");
        pipe.read_to_string(&mut stderr).expect("UTF-8");
        let status = child.wait().expect("it ends");
        assert!(
            status.success() && stderr.is_empty(),
            "{name}: {status} {stderr}"
        );
    }
}
