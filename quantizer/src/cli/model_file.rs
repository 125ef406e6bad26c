//! Opening a model, whatever its file is called.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use tpvit_models::file::MAGIC;
use tpvit_models::{Model, Preprocess};
use tpvit_quantizer::preprocessing::{PreprocessArgs, read_json};

/// What a model file is, by its content.
pub(crate) enum Kind {
    Tpv,
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
        .take(MAGIC.len() as u64)
        .read_to_end(&mut start)
        .with_context(|| format!("cannot read {}", path.display()))?;
    match start == MAGIC {
        true => Ok(Kind::Tpv),
        false => Ok(Kind::Onnx),
    }
}

/// A .tpv file, mapped into memory.
///
/// Drop it once the [`tpvit_runtime::Session`] is made: that holds its own
/// copy of what it needs, and the pages of the mapping go back to the system.
pub(crate) struct TpvFile {
    map: vmap::Map,
    name: String,
}

impl TpvFile {
    pub(crate) fn open(path: &Path) -> Result<TpvFile> {
        let name = path.display().to_string();
        let len = std::fs::metadata(path)
            .with_context(|| format!("cannot open {name}"))?
            .len();
        if len == 0 {
            bail!("{name} is empty");
        }
        let (map, _) = vmap::Map::with_options()
            .open(path)
            .with_context(|| format!("cannot map {name}"))?;
        Ok(TpvFile { map, name })
    }

    /// Checks and reads the file.
    pub(crate) fn model(&self) -> Result<Model<'_>> {
        Model::parse(&self.map).with_context(|| format!("cannot use {}", self.name))
    }

    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }
}

/// JSON files that say how a model's pictures are prepared, by their usual names.
const SIDECARS: [&str; 2] = ["preprocessor_config.json", "config.json"];

/// The preprocessing of an ONNX model: what the flags say, or else a JSON beside
/// the model (its own name with `.json`, or a usual name).
pub(crate) fn preprocess_of(
    model: &Path,
    flags: &PreprocessArgs,
    image: [usize; 2],
) -> Result<Preprocess> {
    let beside = std::iter::once(model.with_extension("json"))
        .chain(SIDECARS.iter().map(|name| model.with_file_name(name)))
        .find(|path| path.is_file());
    let stored = match (&flags.preprocess, beside) {
        (None, Some(path)) => Some(read_json(&path, image)?),
        (None, None) | (Some(_), _) => None,
    };
    Ok(flags.resolve(stored, image)?)
}
