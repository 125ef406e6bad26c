//! safetensors and `config.json` end in the Program and the weights, bit for bit,
//! of the ONNX export of the same model.
#![cfg(feature = "onnx")]

use std::fs;
use std::path::{Path, PathBuf};

use tpvit_quantizer::{checkpoint, import};

fn folders() -> Vec<PathBuf> {
    let root = std::env::var_os("TPVIT_CHECKPOINTS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints"),
        PathBuf::from,
    );
    let entries = fs::read_dir(&root).expect("a folder of checkpoints");
    let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    folders.retain(|path| path.join("model.onnx").is_file());
    folders.sort();
    assert!(folders.len() > 5, "{}", root.display());
    folders
}

#[test]
fn a_checkpoint_is_its_export() {
    let mut wrong = Vec::new();
    for folder in folders() {
        if let Err(problem) = compare(&folder) {
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            wrong.push(format!("{name}: {problem}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn compare(folder: &Path) -> Result<(), String> {
    let graph = import::load(folder.join("model.onnx"), false).map_err(|e| e.to_string())?;
    let file = folder.join("model.safetensors");
    let loaded = checkpoint::load(&file, &folder.join("config.json"));
    let loaded = loaded.map_err(|e| e.to_string())?;
    if loaded.program != graph.program {
        return Err(format!("{:#?}\nis not\n{:#?}", loaded.program, graph.program));
    }
    let tensors = loaded.weights.tensors.iter().zip(&graph.weights.tensors);
    for ((a, b), info) in tensors.zip(&graph.program.tensors) {
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        if bits(a) != bits(b) {
            return Err(format!("{} differs", info.name));
        }
    }
    Ok(())
}
