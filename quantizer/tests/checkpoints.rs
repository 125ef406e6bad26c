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
    folders.retain(|path| path.join("model.safetensors").is_file());
    folders.sort();
    assert!(folders.len() > 5, "{}", root.display());
    folders
}

#[test]
fn a_checkpoint_is_its_export() {
    let mut wrong = Vec::new();
    for folder in folders() {
        let files = fs::read_dir(&folder).expect("a folder").flatten();
        let mut exports: Vec<PathBuf> = files.map(|file| file.path()).collect();
        exports.retain(|path| path.extension().is_some_and(|ext| ext == "onnx"));
        assert!(!exports.is_empty(), "{}", folder.display());
        for export in exports {
            if let Err(problem) = compare(&folder, &export) {
                wrong.push(format!("{}: {problem}", export.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn compare(folder: &Path, export: &Path) -> Result<(), String> {
    let graph = import::load(export, false).map_err(|e| e.to_string())?;
    let file = folder.join("model.safetensors");
    let loaded = checkpoint::load(&file, &folder.join("config.json"));
    let loaded = loaded.map_err(|e| e.to_string())?;
    if loaded.program != graph.program {
        return Err(format!(
            "{:#?}\nis not\n{:#?}",
            loaded.program, graph.program
        ));
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

/// One checkpoint in a folder of its own, to be damaged.
struct Damaged {
    folder: tempfile::TempDir,
}

impl Damaged {
    fn copy(name: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints");
        for file in ["model.safetensors", "config.json"] {
            fs::copy(from.join(name).join(file), folder.path().join(file)).expect("a copy");
        }
        Damaged { folder }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    fn config(&self, change: impl FnOnce(&mut serde_json::Value)) {
        let path = self.path("config.json");
        let text = fs::read_to_string(&path).expect("a config");
        let mut json = serde_json::from_str(&text).expect("JSON");
        change(&mut json);
        fs::write(path, json.to_string()).expect("written");
    }

    /// Header and data of the model.
    fn model(&self, change: impl FnOnce(&mut serde_json::Value, &mut Vec<u8>)) {
        let path = self.path("model.safetensors");
        let bytes = fs::read(&path).expect("a model");
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
        let mut header = serde_json::from_slice(&bytes[8..8 + length]).expect("JSON");
        let mut data = bytes[8 + length..].to_vec();
        change(&mut header, &mut data);
        let header = header.to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        fs::write(path, bytes).expect("written");
    }

    /// The refusal, whose chain of reasons must have each of `words`.
    #[track_caller]
    fn refused(&self, words: &[&str]) {
        let loaded = checkpoint::load(&self.path("model.safetensors"), &self.path("config.json"));
        let error = loaded.expect_err("it is refused");
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            text += &format!(": {error}");
            source = error.source();
        }
        for word in words {
            assert!(text.contains(word), "{word:?} in {text:?}");
        }
    }
}

#[test]
fn a_config_that_contradicts_the_tensors_is_refused_with_both_numbers() {
    for (key, value, words) in [
        ("hidden_size", 24.into(), ["channels", "24", "16"]),
        ("num_hidden_layers", 3.into(), ["blocks", "[3]", "[2]"]),
        ("intermediate_size", 64.into(), ["MLP", "64", "32"]),
        ("patch_size", 4.into(), ["patch", "[4, 4]", "[8, 8]"]),
        ("image_size", 48.into(), ["positions", "37", "17"]),
        ("image_size", 33.into(), ["image_size", "33", "8"]),
        (
            "num_attention_heads",
            5.into(),
            ["num_attention_heads", "5", "16"],
        ),
        (
            "num_attention_heads",
            0.into(),
            ["num_attention_heads", "0", "16"],
        ),
        (
            "num_attention_heads",
            (-2).into(),
            ["num_attention_heads", "whole", "number"],
        ),
        (
            "hidden_act",
            "gelu_new".into(),
            ["hidden_act", "gelu_new", "gelu"],
        ),
        ("model_type", "beit".into(), ["beit", "Swin", "ONNX"]),
    ] {
        let vit = Damaged::copy("hf_vit");
        vit.config(|json| json[key] = value);
        vit.refused(&words);
    }
    let vit = Damaged::copy("hf_vit");
    vit.config(|json| {
        drop(
            json.as_object_mut()
                .expect("an object")
                .remove("layer_norm_eps"),
        )
    });
    vit.refused(&["config.json", "layer_norm_eps", "missing"]);
    for (key, value, words) in [
        (
            "depths",
            serde_json::json!([2, 3]),
            ["blocks", "[2, 3]", "[2, 2]"],
        ),
        ("num_heads", serde_json::json!([1]), ["num_heads", "1", "2"]),
        ("num_heads", serde_json::json!([1, 4]), ["heads", "4", "2"]),
    ] {
        let swin = Damaged::copy("timm_swin");
        swin.config(|json| json["model_args"][key] = value);
        swin.refused(&words);
    }
    let swin = Damaged::copy("timm_swin");
    swin.config(|json| json["model_args"]["img_size"] = serde_json::json!([36, 32]));
    swin.refused(&["image_size", "[9, 8]", "whole windows"]);
    let timm = Damaged::copy("timm_vit");
    timm.config(|json| json["num_classes"] = 9.into());
    timm.refused(&["classes", "9", "7"]);
    let timm = Damaged::copy("timm_vit");
    timm.config(|json| json["architecture"] = "resnet50".into());
    timm.refused(&["resnet50"]);
}

#[test]
fn damaged_files_are_refused() {
    for (end, word) in [(0, "0 bytes"), (7, "7 bytes"), (20, "header"), (5000, "of")] {
        let vit = Damaged::copy("hf_vit");
        let path = vit.path("model.safetensors");
        let bytes = fs::read(&path).expect("a model");
        fs::write(&path, &bytes[..end]).expect("written");
        vit.refused(&["model.safetensors", word]);
    }
    type Change = fn(&mut serde_json::Value, &mut Vec<u8>);
    let changes: [(Change, &[&str]); 9] = [
        (
            |h, _| drop(h.as_object_mut().unwrap().remove("vit.layernorm.weight")),
            &["norm.weight"],
        ),
        (
            |h, data| {
                let place = [data.len(), data.len() + 4];
                h["extra.weight"] =
                    serde_json::json!({"dtype": "F32", "shape": [1], "data_offsets": place});
                data.extend([0; 4]);
            },
            &["extra.weight", "belongs to no part"],
        ),
        (
            |h, _| h["vit.layernorm.weight"]["dtype"] = "I8".into(),
            &["BF16", "vit.layernorm.weight"],
        ),
        (
            |h, _| h["vit.layernorm.weight"]["dtype"] = "F16".into(),
            &["F16", "64 bytes"],
        ),
        (
            |h, _| h["vit.layernorm.weight"]["shape"] = serde_json::json!([4, 4]),
            &["norm.weight", "[4, 4]", "[16]"],
        ),
        (
            |h, _| {
                h["vit.layernorm.weight"]["shape"] = serde_json::json!([1_u64 << 62, 1_u64 << 62])
            },
            &["vit.layernorm.weight"],
        ),
        (
            |h, _| h["vit.layernorm.weight"]["data_offsets"] = serde_json::json!([0, 1_u64 << 40]),
            &["vit.layernorm.weight", "lies at"],
        ),
        (
            |h, _| {
                let place = h["vit.layernorm.weight"]["data_offsets"].clone();
                h["vit.layernorm.bias"]["data_offsets"] = place;
            },
            &["vit.layernorm.bias", "vit.layernorm.weight", "share bytes"],
        ),
        (
            |h, data| {
                let at = h["vit.layernorm.weight"]["data_offsets"][0]
                    .as_u64()
                    .unwrap() as usize;
                data[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
            },
            &["norm.gamma", "not finite"],
        ),
    ];
    for (change, words) in changes {
        let vit = Damaged::copy("hf_vit");
        vit.model(change);
        vit.refused(words);
    }
    let vit = Damaged::copy("hf_vit");
    fs::remove_file(vit.path("config.json")).expect("removed");
    vit.refused(&["cannot read", "config.json"]);
    fs::write(vit.path("config.json"), "{").expect("written");
    vit.refused(&["config.json", "not JSON"]);
}

/// Half floats mean what they say.
#[test]
fn other_number_formats_are_read() {
    let vit = Damaged::copy("hf_vit");
    let before = checkpoint::load(&vit.path("model.safetensors"), &vit.path("config.json"));
    vit.model(|header, data| {
        let entry = &mut header["vit.layernorm.bias"];
        let at = entry["data_offsets"][0].as_u64().expect("an offset") as usize;
        let halves: Vec<u8> = (0..16)
            .flat_map(|i| half::bf16::from_f32(i as f32 / 8.0).to_le_bytes())
            .collect();
        data[at..at + 32].copy_from_slice(&halves);
        entry["data_offsets"] = serde_json::json!([at, at + 32]);
        entry["dtype"] = "BF16".into();
    });
    let after = checkpoint::load(&vit.path("model.safetensors"), &vit.path("config.json"));
    let (before, after) = (before.expect("sound"), after.expect("sound"));
    assert_eq!(before.program, after.program);
    let beta = after
        .program
        .tensors
        .iter()
        .position(|t| t.name == "norm.beta");
    let beta = &after.weights.tensors[beta.expect("a last norm")];
    let expected: Vec<f32> = (0..16).map(|i| i as f32 / 8.0).collect();
    assert_eq!(*beta, expected);
}
