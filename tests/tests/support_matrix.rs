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

/// An architecture, and models of it: where they come from, and files.
struct Row {
    name: &'static str,
    sources: &'static [(&'static str, &'static [&'static str])],
}

const TORCHSCRIPT: &str = "TorchScript";
const DYNAMO: &str = "dynamo";
const HUGGING_FACE: &str = "Hugging Face";
const SAFETENSORS: &str = "safetensors";

const ROWS: &[Row] = &[
    Row {
        name: "ViT, DeiT",
        sources: &[
            (
                TORCHSCRIPT,
                &["vit.opset14.onnx", "vit.opset17.onnx", "vit.opset20.onnx"],
            ),
            (DYNAMO, &["vit.opset18.dynamo.onnx"]),
            (HUGGING_FACE, &["hf_vit.opset18.dynamo.onnx"]),
            (SAFETENSORS, &["timm_vit", "hf_vit"]),
        ],
    },
    Row {
        name: "DeiT, distilled",
        sources: &[
            (TORCHSCRIPT, &["deit_distilled.opset17.onnx"]),
            (HUGGING_FACE, &["checkpoints/hf_deit/model.onnx"]),
            (SAFETENSORS, &["timm_deit_distilled", "hf_deit"]),
        ],
    },
    Row {
        name: "mean pooling, no class token",
        sources: &[
            (TORCHSCRIPT, &["vit_gap.opset17.onnx"]),
            (SAFETENSORS, &["timm_vit_gap"]),
        ],
    },
    Row {
        name: "QK-norm",
        sources: &[(TORCHSCRIPT, &["vit_qknorm.opset17.onnx"])],
    },
    Row {
        name: "CLIP-style norm before the blocks",
        sources: &[
            (DYNAMO, &["vit_norm_pre.opset18.dynamo.onnx"]),
            (SAFETENSORS, &["timm_clip"]),
        ],
    },
    Row {
        name: "DINOv2: LayerScale, registers, SwiGLU, features",
        sources: &[
            (
                TORCHSCRIPT,
                &["vit_layerscale.opset17.onnx", "dinov2_giant.opset20.onnx"],
            ),
            (DYNAMO, &["vit_layerscale.opset18.dynamo.onnx"]),
            (
                SAFETENSORS,
                &["timm_dinov2_registers", "timm_dinov2_features"],
            ),
        ],
    },
    Row {
        name: "Swin",
        sources: &[
            (TORCHSCRIPT, &["swin.opset17.onnx"]),
            (DYNAMO, &["swin_wide.opset18.dynamo.onnx"]),
            (HUGGING_FACE, &["hf_swin.opset17.onnx"]),
            (
                SAFETENSORS,
                &["timm_swin", "timm_swin_rectangle", "hf_swin"],
            ),
        ],
    },
];

const WIDTHS: [BitWidth; 4] = [BitWidth::B8, BitWidth::B6, BitWidth::B4, BitWidth::B3];

const SOURCES: [&str; 4] = [TORCHSCRIPT, DYNAMO, HUGGING_FACE, SAFETENSORS];

/// Instruction sets of the table, and whether this test can run them.
const X86: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::AvxVnni, Isa::Avx512Vnni];

#[test]
fn every_cell_of_the_readme() {
    let mut table = vec![
        format!(
            "| architecture | {} | W8A8, W6A6, W4A4, W3A3 on {} | on neon, dotprod, i8mm |",
            SOURCES.join(" | "),
            X86.map(Isa::name).join(", ")
        ),
        format!("|---|{}", "---|".repeat(SOURCES.len() + 2)),
    ];
    for row in ROWS {
        for (source, files) in row.sources {
            for file in *files {
                run(*source == SAFETENSORS, file);
            }
        }
        let cell = |source: &&str| match row.sources.iter().find(|(name, _)| name == source) {
            Some((_, files)) => versions(files),
            None => "–".to_owned(),
        };
        let cells: Vec<String> = SOURCES.iter().map(cell).collect();
        table.push(format!("| {} | {} | ✓ | ✓ |", row.name, cells.join(" | ")));
    }
    for isa in X86.into_iter().filter(|isa| !isa.is_available()) {
        println!("not run: this machine has no {}", isa.name());
    }
    compare(&(table.join("\n") + "\n"));
}

/// Operator sets, where the names of files have them.
fn versions(files: &[&str]) -> String {
    let mut found: Vec<&str> = files
        .iter()
        .filter_map(|file| file.split_once("opset")?.1.split('.').next())
        .collect();
    found.dedup();
    match found.is_empty() {
        true => "✓".to_owned(),
        false => format!("✓ opset {}", found.join(", ")),
    }
}

/// Imports, quantizes at every width, and runs on every instruction set here.
fn run(safetensors: bool, file: &str) {
    let (program, mut weights) = match safetensors {
        true => {
            let folder = fixture("checkpoints").join(file);
            let loaded = checkpoint::load(
                &folder.join("model.safetensors"),
                &folder.join("config.json"),
            );
            let loaded = loaded.unwrap_or_else(|error| panic!("{file}: {error}"));
            (loaded.program, loaded.weights)
        }
        false => {
            let imported = import::load(fixture(file), false);
            let imported = imported.unwrap_or_else(|error| panic!("{file}: {error}"));
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
            assert_eq!(*result, results[0], "{file} W{bits:?} on {isa:?}");
        }
    }
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
        compensation: None,
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
