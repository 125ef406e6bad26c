//! Accuracy of the integer runtime on real pictures, against float.
//!
//! Needs `TPVIT_DATA`. Both sides see the same `N` pictures, so only those whose
//! answer changes count: if a share `c` changes from right to wrong or back, each
//! equally likely, the difference of the accuracies is 0 with a deviation of
//! `sqrt(c / N)`. At 8 bits about 2 % of the answers change, which gives 0.8
//! points: 2 points are two and a half deviations. At 6 bits the codes
//! themselves cost up to 5 points; the slack is the same.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tpvit_tests::{data, tpvit, zoo};

/// Pictures measured.
const N: &str = "300";
/// Calibration pictures.
const CALIBRATION: &str = "96";
/// Percent: what chance alone may cost, see above.
const SLACK: f64 = 2.0;

fn json(command: &mut Command) -> Value {
    let output = command.output().expect("tpvit starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn top1(model: &Path, data: &Path) -> f64 {
    let mut command = tpvit();
    command.arg("eval").arg(model);
    command.arg("--data").arg(data.join("cifar10/validation"));
    let score = json(command.args(["--limit", N, "--json"]));
    assert_eq!(score["images"].to_string(), N);
    score["top1"].as_f64().expect("a number")
}

#[test]
fn integers_are_as_accurate_as_float() {
    let Some(data) = data() else {
        return;
    };
    let model = zoo("vit_ti14_cifar10.onnx");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let float = top1(&model, &data);
    // 91.2 % on all 1000 (models/zoo/README.md); three deviations of 300.
    assert!((float - 91.2).abs() < 5.0, "float {float} %");
    for (bits, softmax, cost) in [
        ("8", "row-max", 0.0),
        ("8", "tulq", 0.0),
        ("6", "row-max", 5.0),
    ] {
        let output = folder.path().join(format!("{bits}-{softmax}.tpv"));
        let mut command = tpvit();
        command.arg("quantize").arg(&model).arg("-o").arg(&output);
        command
            .arg("--calibration")
            .arg(data.join("cifar10/calibration"));
        command.args(["-w", bits, "-a", bits, "--softmax", softmax]);
        json(command.args(["--pictures", CALIBRATION, "--no-verify", "--json"]));
        let found = top1(&output, &data);
        println!("W{bits}A{bits} {softmax}: {found} %, float {float} %");
        assert!(
            float - found <= cost + SLACK,
            "W{bits}A{bits} {softmax}: {found} %, float {float} %"
        );
    }
}
