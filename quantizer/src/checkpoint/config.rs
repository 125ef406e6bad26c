//! What a `config.json` claims.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::CheckpointError;

/// Architectures whose tensors have the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// ViT, DeiT, DINOv2.
    Vit,
    /// Swin, version 1.
    Swin,
}

/// Which library wrote it, where they differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Library {
    /// Sizes follow from the architecture's name.
    Timm,
    /// Sizes are keys.
    HuggingFace,
}

/// What the file says; `None` where it says nothing.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) path: PathBuf,
    pub(super) library: Library,
    pub(super) family: Family,
    /// What it calls itself.
    pub(super) name: String,
    pub(super) image: [usize; 2],
    pub(super) patch: Option<[usize; 2]>,
    pub(super) dim: Option<usize>,
    /// Blocks, of each stage.
    pub(super) depths: Option<Vec<usize>>,
    /// Attention heads, of each stage.
    pub(super) heads: Option<Vec<usize>>,
    pub(super) hidden: Option<usize>,
    pub(super) window: Option<[usize; 2]>,
    pub(super) eps: Option<f32>,
    pub(super) classes: Option<usize>,
    /// Whether tokens are averaged; timm's `global_pool`.
    pub(super) pool: Option<String>,
    pub(super) labels: Vec<String>,
}

impl Config {
    pub(super) fn read(path: &Path) -> Result<Self, CheckpointError> {
        let text = std::fs::read_to_string(path).map_err(|source| CheckpointError::Read {
            path: path.to_owned(),
            source,
        })?;
        let json: Value = serde_json::from_str(&text).map_err(|source| CheckpointError::Json {
            path: path.to_owned(),
            source,
        })?;
        let keys = Keys { path, json: &json };
        if let Some(kind) = json.get("model_type").and_then(Value::as_str) {
            return keys.hugging_face(kind);
        }
        if let Some(name) = json.get("architecture").and_then(Value::as_str) {
            return keys.timm(name);
        }
        Err(keys.wrong(
            "model_type",
            "is missing, and so is timm's \"architecture\"",
        ))
    }

    /// `what` must be the same here and in the tensors.
    pub(super) fn agrees<T: PartialEq + std::fmt::Debug>(
        &self,
        what: &'static str,
        config: Option<T>,
        tensors: T,
    ) -> Result<(), CheckpointError> {
        match config {
            Some(config) if config != tensors => Err(CheckpointError::Contradiction {
                path: self.path.clone(),
                what,
                config: format!("{config:?}"),
                tensors: format!("{tensors:?}"),
            }),
            Some(_) | None => Ok(()),
        }
    }

    pub(super) fn wrong(&self, key: &str, problem: impl Into<String>) -> CheckpointError {
        CheckpointError::Key {
            path: self.path.clone(),
            key: key.to_owned(),
            problem: problem.into(),
        }
    }

    /// Patches of the picture, down and across.
    pub(super) fn grid(&self, patch: [usize; 2]) -> Result<[usize; 2], CheckpointError> {
        let [height, width] = self.image;
        if height % patch[0] != 0 || width % patch[1] != 0 || height * width == 0 {
            let problem = format!("is {height} by {width}, no whole patches of {patch:?}");
            return Err(self.wrong("image_size", problem));
        }
        Ok([height / patch[0], width / patch[1]])
    }
}

struct Keys<'a> {
    path: &'a Path,
    json: &'a Value,
}

impl Keys<'_> {
    fn wrong(&self, key: &str, problem: impl Into<String>) -> CheckpointError {
        CheckpointError::Key {
            path: self.path.to_owned(),
            key: key.to_owned(),
            problem: problem.into(),
        }
    }

    fn unknown(&self, name: &str) -> CheckpointError {
        CheckpointError::Architecture {
            path: self.path.to_owned(),
            found: name.to_owned(),
        }
    }

    fn number(&self, key: &str) -> Result<Option<usize>, CheckpointError> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64().map(usize::try_from) {
                Some(Ok(number)) => Ok(Some(number)),
                _ => Err(self.wrong(key, "must be a whole number")),
            },
        }
    }

    /// A number for both sides, or one for each.
    fn sides(&self, key: &str) -> Result<Option<[usize; 2]>, CheckpointError> {
        match self.json.get(key) {
            Some(Value::Array(list)) => {
                let sides: Option<Vec<u64>> = list.iter().map(Value::as_u64).collect();
                match sides.as_deref() {
                    Some([height, width]) => Ok(Some([*height as usize, *width as usize])),
                    _ => Err(self.wrong(key, "must be a number, or two")),
                }
            }
            _ => Ok(self.number(key)?.map(|side| [side; 2])),
        }
    }

    fn list(&self, key: &str) -> Result<Option<Vec<usize>>, CheckpointError> {
        let Some(list) = self.json.get(key) else {
            return Ok(None);
        };
        let numbers = list.as_array().map(|list| {
            let number = |value: &Value| value.as_u64().map(|n| n as usize);
            list.iter().map(number).collect::<Option<Vec<_>>>()
        });
        match numbers.flatten() {
            Some(numbers) => Ok(Some(numbers)),
            None => Err(self.wrong(key, "must be a list of whole numbers")),
        }
    }

    fn hugging_face(&self, kind: &str) -> Result<Config, CheckpointError> {
        let family = match kind {
            "vit" | "deit" | "dinov2" | "dinov2_with_registers" => Family::Vit,
            "swin" => Family::Swin,
            _ => return Err(self.unknown(kind)),
        };
        match self.json.get("hidden_act").and_then(Value::as_str) {
            None | Some("gelu") => {}
            Some(other) => {
                let problem = format!("is {other:?}; only \"gelu\" (the exact form) is supported");
                return Err(self.wrong("hidden_act", problem));
            }
        }
        let swin = family == Family::Swin;
        let required = |key: &'static str| move || self.wrong(key, "is missing");
        let image = self.sides("image_size")?;
        let eps = self.json.get("layer_norm_eps").and_then(Value::as_f64);
        let depth = self.number("num_hidden_layers")?.map(|n| vec![n]);
        let heads = self.number("num_attention_heads")?.map(|n| vec![n]);
        Ok(Config {
            path: self.path.to_owned(),
            library: Library::HuggingFace,
            family,
            name: kind.to_owned(),
            image: image.ok_or_else(required("image_size"))?,
            patch: self.sides("patch_size")?,
            dim: self.number(if swin { "embed_dim" } else { "hidden_size" })?,
            depths: if swin { self.list("depths")? } else { depth },
            heads: if swin { self.list("num_heads")? } else { heads },
            hidden: self.number("intermediate_size")?.filter(|_| !swin),
            window: self.sides("window_size")?,
            eps: Some(eps.ok_or_else(required("layer_norm_eps"))? as f32),
            classes: self.classes(),
            pool: None,
            labels: self.labels(),
        })
    }

    /// How many names there are, where there are names.
    fn classes(&self) -> Option<usize> {
        self.json
            .get("id2label")?
            .as_object()
            .map(|names| names.len())
    }

    /// `id2label`, unless it only says `LABEL_0`.
    fn labels(&self) -> Vec<String> {
        let names = self.json.get("id2label").and_then(Value::as_object);
        let name = |id: usize| names?.get(&id.to_string())?.as_str().map(str::to_owned);
        let labels: Vec<String> = (0..).map_while(name).collect();
        match labels.first().is_some_and(|first| first == "LABEL_0") {
            true => Vec::new(),
            false => labels,
        }
    }

    /// timm: what is not in the name or in `model_args` follows from the tensors.
    fn timm(&self, name: &str) -> Result<Config, CheckpointError> {
        let family = match name {
            n if n.contains("quickgelu") || n.contains("siglip") || n.contains("rope") => {
                return Err(self.unknown(name));
            }
            n if n.starts_with("vit_") || n.starts_with("deit_") => Family::Vit,
            n if n.starts_with("swin_") => Family::Swin,
            _ => return Err(self.unknown(name)),
        };
        let nothing = Value::Null;
        let part = |key: &str| Keys {
            path: self.path,
            json: self.json.get(key).unwrap_or(&nothing),
        };
        let (args, trained) = (part("model_args"), part("pretrained_cfg"));
        let input = match trained.json.get("input_size") {
            None => None,
            Some(_) => trained.list("input_size")?,
        };
        let input = input.and_then(|input| match input[..] {
            [3, height, width] => Some([height, width]),
            _ => None,
        });
        let image = args.sides("img_size")?.or(input);
        let image = image.ok_or_else(|| {
            self.wrong(
                "pretrained_cfg",
                "has no \"input_size\" of [3, height, width]",
            )
        })?;
        let heads = match args.list("num_heads") {
            Ok(list) => list,
            Err(_) => args.number("num_heads")?.map(|n| vec![n]),
        };
        Ok(Config {
            path: self.path.to_owned(),
            library: Library::Timm,
            family,
            name: name.to_owned(),
            image,
            patch: args.sides("patch_size")?,
            dim: args.number("embed_dim")?,
            depths: match family {
                Family::Vit => args.number("depth")?.map(|n| vec![n]),
                Family::Swin => args.list("depths")?,
            },
            heads,
            hidden: None,
            window: args.sides("window_size")?,
            eps: None,
            classes: self.number("num_classes")?,
            pool: args
                .json
                .get("global_pool")
                .or_else(|| self.json.get("global_pool"))
                .and_then(Value::as_str)
                .map(str::to_owned),
            labels: Vec::new(),
        })
    }
}
