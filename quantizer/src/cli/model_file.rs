//! Opening a model, whatever its file is called.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use tpvit_models::file::MAGIC;
use tpvit_models::{FileHead, Model, ModelInfo, Preprocess, Program, TensorReader};
#[cfg(feature = "onnx")]
use tpvit_quantizer::checkpoint::{self, Loaded};
#[cfg(feature = "onnx")]
use tpvit_quantizer::import;
use tpvit_quantizer::preprocessing::{PreprocessArgs, read_json};
use tpvit_runtime::{LoadError, Options, Session};

/// What a model file is, by its content.
pub(crate) enum Kind {
    Tpv,
    Safetensors,
    /// Anything else; the ONNX reader says if it is not that either.
    Onnx,
}

/// Looks at the first bytes of `path`.
pub(crate) fn kind(path: &Path) -> Result<Kind> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    if file.metadata().is_ok_and(|m| m.is_dir()) {
        bail!("{} is a folder, not a model file", path.display());
    }
    let mut start = Vec::new();
    Read::by_ref(&mut file)
        .take(MAGIC.len() as u64 + 1)
        .read_to_end(&mut start)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(match start.starts_with(&MAGIC) {
        true => Kind::Tpv,
        false if is_safetensors(&start) => Kind::Safetensors,
        false => Kind::Onnx,
    })
}

/// Whether a file begins with the length of a JSON object, and the object.
fn is_safetensors(start: &[u8]) -> bool {
    let Some((length, rest)) = start.split_first_chunk::<8>() else {
        return false;
    };
    // A hundred megabytes are the format's own limit.
    (2..=100_000_000).contains(&u64::from_le_bytes(*length)) && rest.first() == Some(&b'{')
}

/// Reads a trained model in f32: ONNX, compared with a run of its graph if
/// `verify`, or safetensors with their config, `config.json` beside them if none
/// is named.
#[cfg(feature = "onnx")]
pub(crate) fn load_float(path: &Path, config: Option<&Path>, verify: bool) -> Result<Loaded> {
    match kind(path)? {
        Kind::Safetensors => {
            let beside = path.with_file_name("config.json");
            let config = config.unwrap_or(&beside);
            Ok(checkpoint::load(path, config)?)
        }
        Kind::Onnx if config.is_some() => {
            bail!(
                "--config is for safetensors, which {} is not",
                path.display()
            )
        }
        // A .tpv file too: the reader of ONNX says that it is none.
        Kind::Onnx | Kind::Tpv => Ok(import::load(path, verify)?.into()),
    }
}

/// An error if the model of `path` has no classes, for what needs labels.
pub(crate) fn need_classifier(program: &Program, path: &Path) -> Result<()> {
    let [rows, cols] = program.output_shape();
    anyhow::ensure!(
        program.classifies(),
        "{} has no classifier: its result is {rows} x {cols} features",
        path.display()
    );
    Ok(())
}

/// A .tpv file of which one tensor at a time is read: what a run needs.
pub(crate) struct TpvFile {
    head: FileHead,
    file: File,
    name: String,
}

impl TpvFile {
    pub(crate) fn open(path: &Path) -> Result<TpvFile> {
        let name = path.display().to_string();
        let mut file = File::open(path).with_context(|| format!("cannot open {name}"))?;
        let head = FileHead::read(&mut file).with_context(|| format!("cannot read {name}"))?;
        Ok(TpvFile { head, file, name })
    }

    /// Checks and reads all that comes before the tensors.
    pub(crate) fn info(&self) -> Result<ModelInfo<'_>> {
        let info = self.head.parse();
        info.with_context(|| format!("cannot use {}", self.name))
    }

    /// Makes the model ready to run; checks and reads the tensors.
    pub(crate) fn session(
        &self,
        info: &ModelInfo<'_>,
        options: &Options,
    ) -> Result<Session<'static>> {
        let session = TensorReader::open(info, &self.file)
            .map_err(LoadError::from)
            .and_then(|tensors| Session::load(tensors, options));
        session.with_context(|| format!("cannot use {}", self.name))
    }
}

/// A .tpv file in memory, for those who look at all of it.
pub(crate) struct WholeTpvFile {
    bytes: Vec<u8>,
    name: String,
}

impl WholeTpvFile {
    pub(crate) fn open(path: &Path) -> Result<WholeTpvFile> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {name}"))?;
        Ok(WholeTpvFile { bytes, name })
    }

    /// Checks and reads the file.
    pub(crate) fn model(&self) -> Result<Model<'_>> {
        Model::parse(&self.bytes).with_context(|| format!("cannot use {}", self.name))
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// JSON files that say how a model's pictures are prepared, by their usual names.
const SIDECARS: [&str; 2] = ["preprocessor_config.json", "config.json"];

/// Whether a JSON describes a model of Hugging Face and no preprocessing.
fn is_hugging_face_config(path: &Path) -> bool {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    json.get("model_type").is_some() && json.get("image_mean").is_none()
}

/// The preprocessing of a trained model: what the flags say, or else a JSON beside
/// the model (its own name with `.json`, or a usual name).
pub(crate) fn preprocess_of(
    model: &Path,
    flags: &PreprocessArgs,
    image: [usize; 2],
) -> Result<Preprocess> {
    let beside = std::iter::once(model.with_extension("json"))
        .chain(SIDECARS.iter().map(|name| model.with_file_name(name)))
        .find(|path| path.is_file() && !is_hugging_face_config(path));
    let stored = match (&flags.preprocess, beside) {
        (None, Some(path)) => Some(read_json(&path, image)?),
        (None, None) | (Some(_), _) => None,
    };
    Ok(flags.resolve(stored, image)?)
}
