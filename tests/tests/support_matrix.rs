//! The README's support matrix: every cell is run here.
//!
//! Each model of each source is imported, quantized at each width, and executed
//! on each instruction set of this machine; all must give the portable kernels'
//! bits. The table that this makes must be the one between the markers of the
//! README; `TPVIT_BLESS=1` writes it there.
//!
//! Instruction sets that this machine lacks keep the README's word, and are
//! named in the output; those of Arm are run by `runtime/tests/session.rs` on
//! emulated processors, with a model of every architecture.
#![forbid(unsafe_code)]

use std::fs;
use std::path::PathBuf;

use tpvit_models::{BitWidth, Interpolation, Model, Preprocess, Program, Resize};
use tpvit_quantizer::calibration::{ObserveSettings, Settings};
use tpvit_quantizer::pipeline::{Job, quantize};
use tpvit_quantizer::weights::Weights;
use tpvit_quantizer::{checkpoint, import};
use tpvit_runtime::{Isa, Options, Session};
use tpvit_tests::{fixture, gradient, noise, root};

/// An architecture, and models of it in `quantizer/tests/fixtures/checkpoints`: each a
/// folder with `model.safetensors` and the exports of the same weights.
struct Row {
    name: &'static str,
    timm: &'static [&'static str],
    hugging_face: &'static [&'static str],
}

const ROWS: &[Row] = &[
    Row {
        name: "ViT, DeiT",
        timm: &["timm_vit"],
        hugging_face: &["hf_vit"],
    },
    Row {
        name: "DeiT, distilled",
        timm: &["timm_deit_distilled"],
        hugging_face: &["hf_deit"],
    },
    Row {
        name: "ViT, mean pooling, no class token",
        timm: &["timm_vit_gap"],
        hugging_face: &[],
    },
    Row {
        name: "ViT, QK-norm",
        timm: &["timm_vit_qk_norm"],
        hugging_face: &[],
    },
    Row {
        name: "CLIP's tower: norm before the blocks",
        timm: &["timm_clip"],
        hugging_face: &[],
    },
    Row {
        name: "DINOv2: LayerScale, features or classifier",
        timm: &["timm_dinov2_features"],
        hugging_face: &["hf_dinov2", "hf_dinov2_classifier"],
    },
    Row {
        name: "DINOv2 with registers",
        timm: &["timm_dinov2_registers"],
        hugging_face: &["hf_dinov2_registers"],
    },
    Row {
        name: "DINOv2, SwiGLU",
        timm: &[],
        hugging_face: &["hf_dinov2_swiglu"],
    },
    Row {
        name: "Swin",
        timm: &["timm_swin", "timm_swin_rectangle"],
        hugging_face: &["hf_swin"],
    },
];

/// Exports by their names.
const EXPORTS: [&str; 5] = [
    "opset14",
    "opset17",
    "opset20",
    "opset18.dynamo",
    "opset20.dynamo",
];

const WIDTHS: [BitWidth; 4] = [BitWidth::B8, BitWidth::B6, BitWidth::B4, BitWidth::B3];

/// Instruction sets of the table, and whether this test can run them.
const X86: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::AvxVnni, Isa::Avx512Vnni];

#[test]
fn every_cell_of_the_readme() {
    let mut table = vec![
        format!(
            "| architecture | timm's ONNX | Hugging Face's ONNX | safetensors | W8A8, W6A6, W4A4, W3A3 on {} | on neon, dotprod, i8mm |",
            X86.map(Isa::name).join(", ")
        ),
        "|---|---|---|---|---|---|".to_owned(),
    ];
    for row in ROWS {
        let [timm, hugging_face] = [row.timm, row.hugging_face].map(|folders| {
            for folder in folders {
                run(folder, None);
            }
            let of = |export: &&str| folders.iter().any(|folder| run(folder, Some(export)));
            EXPORTS.into_iter().filter(of).collect::<Vec<_>>()
        });
        table.push(format!(
            "| {} | {} | {} | ✓ | ✓ | ✓ |",
            row.name,
            exports(&timm),
            exports(&hugging_face)
        ));
    }
    for isa in X86.into_iter().filter(|isa| !isa.is_available()) {
        println!("not run: this machine has no {}", isa.name());
    }
    compare(&(table.join("\n") + "\n"));
}

/// What a cell says of these exports.
fn exports(found: &[&str]) -> String {
    let sets = |dynamo: bool| {
        let own = found
            .iter()
            .filter(|name| name.ends_with("dynamo") == dynamo);
        let set = own.map(|name| &name["opset".len()..][..2]);
        set.collect::<Vec<_>>().join(", ")
    };
    let list = [("TorchScript", sets(false)), ("dynamo", sets(true))];
    let known = list.into_iter().filter(|(_, sets)| !sets.is_empty());
    let known: Vec<String> = known.map(|(name, sets)| format!("{name} {sets}")).collect();
    match known.is_empty() {
        true => "–".to_owned(),
        false => known.join("; "),
    }
}

/// Imports an export of a model, or its safetensors, quantizes at every width, and
/// runs on every instruction set here. False if there is no such export.
fn run(folder: &str, export: Option<&str>) -> bool {
    let path = fixture("checkpoints").join(folder);
    let (program, mut weights) = match export {
        None => {
            let model = path.join("model.safetensors");
            let loaded = checkpoint::load(&model, &path.join("config.json"));
            let loaded = loaded.unwrap_or_else(|error| panic!("{folder}: {error}"));
            (loaded.program, loaded.weights)
        }
        Some(export) => {
            let path = path.join(format!("{export}.onnx"));
            if !path.is_file() {
                return false; // the exporter cannot write it
            }
            let imported = import::load(&path, false);
            let imported = imported.unwrap_or_else(|error| panic!("{folder} {export}: {error}"));
            (imported.program, imported.weights)
        }
    };
    weights.fold_preprocessing(&program, PREPROCESS.mean, PREPROCESS.std);
    let [height, width] = program.image.map(|side| side as u32);
    let pictures: Vec<Vec<u8>> = (0..4)
        .map(|seed| match seed % 2 {
            0 => gradient(seed, width, height).into_raw(),
            _ => noise(seed, width, height).into_raw(),
        })
        .collect();
    for bits in WIDTHS {
        let bytes = quantized(&program, &weights, bits, &pictures);
        let model = Model::parse(&bytes).expect("a sound file");
        let results: Vec<Vec<u32>> = X86
            .into_iter()
            .filter(|isa| isa.is_available())
            .map(|isa| result(&model, isa, &pictures[1]))
            .collect();
        for (result, isa) in results.iter().zip(X86) {
            assert_eq!(
                *result, results[0],
                "{folder} {export:?} W{bits:?} on {isa:?}"
            );
        }
    }
    true
}

fn quantized(
    program: &Program,
    weights: &Weights,
    bits: BitWidth,
    pictures: &[Vec<u8>],
) -> Vec<u8> {
    let job = Job {
        settings: Settings::new(bits, bits),
        observe: ObserveSettings::default(),
        reconstruction: None,
        scratch: None,
        compensation: None,
        teacher: None,
        preprocess: PREPROCESS,
        labels: Vec::new(),
        source: serde_json::Value::Null,
    };
    let picture = |i: usize| {
        let pixels: &Vec<u8> = pictures.get(i)?;
        Some(pixels.iter().map(|&p| f32::from(p)).collect())
    };
    let made = quantize(program, weights.clone(), &picture, &job, None, &mut |_| {});
    made.expect("the model is written").bytes
}

fn result(model: &Model<'_>, isa: Isa, pixels: &[u8]) -> Vec<u32> {
    let options = Options {
        isa: Some(isa),
        ..Options::default()
    };
    let mut session = Session::new(model, &options).expect("it runs here");
    let result = session.run(pixels).expect("the size fits");
    assert!(result.iter().all(|value| value.is_finite()));
    result.iter().map(|value| value.to_bits()).collect()
}

const PREPROCESS: Preprocess = Preprocess {
    resize: Resize::Squash,
    interpolation: Interpolation::Bilinear,
    mean: [0.5; 3],
    std: [0.5; 3],
};

/// Holds the README to `table`, or writes it there.
fn compare(table: &str) {
    let path: PathBuf = root().join("README.md");
    let readme = fs::read_to_string(&path).expect("a README");
    let (before, rest) = readme
        .split_once("<!-- support matrix: tests/tests/support_matrix.rs -->\n")
        .expect("the first marker");
    let (found, after) = rest
        .split_once("<!-- end of support matrix -->")
        .expect("the second marker");
    if std::env::var_os("TPVIT_BLESS").is_some() {
        let start = &readme[..readme.len() - rest.len()];
        fs::write(
            &path,
            format!("{start}{table}<!-- end of support matrix -->{after}"),
        )
        .expect("the README is written");
        return;
    }
    assert!(!before.is_empty());
    assert_eq!(found, table, "TPVIT_BLESS=1 writes the table that was run");
}
