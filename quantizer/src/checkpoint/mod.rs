//! Models as safetensors and a `config.json`, as timm and Hugging Face store
//! them, become the [`Program`] that the ONNX export of the same model becomes.
//!
//! ```text
//! config.json        -> Config       what the file claims to be
//! model.safetensors  -> Tensors      by canonical name, whatever library named them
//! both               -> vit::Config or swin::Config, and Parts
//! ```
//!
//! Names say what a tensor is, so there is no graph to recognise. There is none
//! to compare with either: instead every number that both sides know must be
//! the same, every tensor must have the shape that its place asks for, and none
//! may be left over.

mod config;
mod error;
mod file;
mod names;
mod swin;
mod vit;

pub use error::CheckpointError;

use std::path::{Path, PathBuf};

use tpvit_models::Program;

use self::config::{Config, Family};
use self::names::canonical;
use crate::import::{Imported, Parts};
use crate::weights::Weights;

/// A trained model in f32.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What is computed; its picture is normalised.
    pub program: Program,
    /// The constants.
    pub weights: Weights,
    /// Names of the classes, or nothing.
    pub labels: Vec<String>,
}

impl From<Imported> for Loaded {
    fn from(imported: Imported) -> Self {
        Loaded {
            program: imported.program,
            weights: imported.weights,
            labels: Vec::new(),
        }
    }
}

impl Loaded {
    /// Rewrites the patch embedding to read raw pixels: see
    /// [`Weights::fold_preprocessing`].
    pub fn fold_preprocessing(&mut self, mean: [f32; 3], std: [f32; 3]) {
        self.weights.fold_preprocessing(&self.program, mean, std);
    }
}

/// Reads the model in `path` as `config` describes it.
///
/// # Errors
/// If a file cannot be read or is damaged; the config describes another
/// architecture, or contradicts the tensors; or a tensor is missing, is not
/// finite, or belongs to nothing.
pub fn load(path: &Path, config: &Path) -> Result<Loaded, CheckpointError> {
    let file = file::File::read(path)?;
    let config = Config::read(config)?;
    let mut tensors = Tensors::new(file, &config);
    let mut parts = Parts::default();
    let program = match config.family {
        Family::Vit => vit::program(&config, &mut tensors, &mut parts)?,
        Family::Swin => swin::program(&config, &mut tensors, &mut parts)?,
    };
    tensors.finish()?;
    let (program, weights) = parts.assemble(program, path)?;
    let labels = match config.labels.len() == program.classes() && program.classifies() {
        true => config.labels,
        false => Vec::new(),
    };
    Ok(Loaded {
        program,
        weights,
        labels,
    })
}

/// Tensors by canonical name, to be taken one by one.
struct Tensors {
    file: file::File,
    /// Canonical name, name in the file.
    left: Vec<(String, String)>,
}

/// A linear layer: `[n, k]`, `[n]`.
struct Linear {
    weight: Vec<f32>,
    bias: Vec<f32>,
    shape: [usize; 2],
}

impl Tensors {
    fn new(file: file::File, config: &Config) -> Self {
        let names = file.names().map(str::to_owned);
        let left = names
            .map(|name| (canonical(&name, config.family), name))
            .collect();
        Tensors { file, left }
    }

    fn path(&self) -> PathBuf {
        self.file.path().to_owned()
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.left.iter().position(|(known, _)| known == name)
    }

    fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The shape of a tensor that is there.
    fn shape(&self, name: &str) -> Option<&[usize]> {
        let at = self.find(name)?;
        self.file.shape(&self.left[at].1)
    }

    /// How many blocks or stages there are: `name` with `{}` for a number.
    fn count(&self, name: &str) -> usize {
        let there = |number: &usize| self.has(&name.replace("{}", &number.to_string()));
        (0..).take_while(there).count()
    }

    /// Takes a tensor of any shape.
    fn take(&mut self, name: &str) -> Result<(Vec<usize>, Vec<f32>), CheckpointError> {
        let Some(at) = self.find(name) else {
            return Err(CheckpointError::Missing {
                path: self.path(),
                tensor: name.to_owned(),
            });
        };
        let (_, stored) = self.left.swap_remove(at);
        self.file.floats(&stored)
    }

    /// Takes a tensor of `shape`.
    fn exactly(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        let (found, values) = self.take(name)?;
        match found == shape {
            true => Ok(values),
            false => Err(CheckpointError::Shape {
                path: self.path(),
                tensor: name.to_owned(),
                expected: shape.to_vec(),
                found,
            }),
        }
    }

    /// Takes a vector, or makes one of `default` if it is not there.
    fn vector(
        &mut self,
        name: &str,
        len: usize,
        default: f32,
    ) -> Result<Vec<f32>, CheckpointError> {
        match self.has(name) {
            true => self.exactly(name, &[len]),
            false => Ok(vec![default; len]),
        }
    }

    /// Takes `name.weight` with `k` columns, and `name.bias` or zeros.
    fn linear(&mut self, name: &str, k: usize) -> Result<Linear, CheckpointError> {
        let weight_name = format!("{name}.weight");
        let (found, weight) = self.take(&weight_name)?;
        let [n, cols] = found[..] else {
            return Err(CheckpointError::Shape {
                path: self.path(),
                tensor: weight_name,
                expected: vec![0, k],
                found,
            });
        };
        if cols != k {
            return Err(CheckpointError::Shape {
                path: self.path(),
                tensor: weight_name,
                expected: vec![n, k],
                found,
            });
        }
        let bias = self.vector(&format!("{name}.bias"), n, 0.0)?;
        Ok(Linear {
            weight,
            bias,
            shape: [n, k],
        })
    }

    /// q, k and v: one layer, or three.
    fn qkv(&mut self, name: &str, dim: usize) -> Result<Linear, CheckpointError> {
        if self.has(&format!("{name}.qkv.weight")) {
            return self.linear(&format!("{name}.qkv"), dim);
        }
        let mut all = Linear {
            weight: Vec::new(),
            bias: Vec::new(),
            shape: [0, dim],
        };
        for part in ["query", "key", "value"] {
            let layer = self.linear(&format!("{name}.{part}"), dim)?;
            all.shape[0] += layer.shape[0];
            all.weight.extend(layer.weight);
            all.bias.extend(layer.bias);
        }
        Ok(all)
    }

    /// Every tensor must have been of use, but for those that inference ignores.
    fn finish(self) -> Result<(), CheckpointError> {
        const IGNORED: [&str; 4] = [
            "mask_token",
            "position_ids",
            "relative_position_index",
            "attn_mask",
        ];
        let ignored = |name: &str| IGNORED.iter().any(|end| name.ends_with(end));
        match self.left.iter().find(|(name, _)| !ignored(name)) {
            None => Ok(()),
            Some((_, stored)) => Err(CheckpointError::Unknown {
                tensor: stored.clone(),
                path: self.path(),
            }),
        }
    }
}

impl Linear {
    /// Multiplies each output by its factor: LayerScale.
    fn scale(&mut self, gains: &[f32]) {
        let rows = self.weight.chunks_exact_mut(self.shape[1]);
        for ((row, bias), gain) in rows.zip(&mut self.bias).zip(gains) {
            row.iter_mut().for_each(|w| *w *= gain);
            *bias *= gain;
        }
    }

    fn put(self, name: &str, parts: &mut Parts) {
        parts.tensor(format!("{name}.weight"), self.weight);
        parts.tensor(format!("{name}.bias"), self.bias);
    }
}

/// Takes a LayerNorm of `dim` channels, and gives it another name.
fn norm(
    tensors: &mut Tensors,
    parts: &mut Parts,
    [from, to]: [&str; 2],
    dim: usize,
) -> Result<(), CheckpointError> {
    let gamma = tensors.exactly(&format!("{from}.weight"), &[dim])?;
    let beta = tensors.vector(&format!("{from}.bias"), dim, 0.0)?;
    parts.tensor(format!("{to}.gamma"), gamma);
    parts.tensor(format!("{to}.beta"), beta);
    Ok(())
}

/// The parts that blocks of every architecture have in common: norms, qkv, the
/// output projection and the MLP, with LayerScale folded in.
///
/// Returns the channels of q, and the layers `fc1` and `fc2` of the MLP, which
/// are put in place by the caller.
fn block(
    tensors: &mut Tensors,
    parts: &mut Parts,
    [from, to]: [&str; 2],
    dim: usize,
) -> Result<BlockShape, CheckpointError> {
    let (old, new) = (
        |part: &str| format!("{from}.{part}"),
        |part: &str| format!("{to}.{part}"),
    );
    norm(tensors, parts, [&old("norm1"), &new("norm1")], dim)?;
    norm(tensors, parts, [&old("norm2"), &new("norm2")], dim)?;
    let qkv = tensors.qkv(&old("attn"), dim)?;
    let width = qkv.shape[0] / 3;
    qkv.put(&new("attn.qkv"), parts);
    let mut proj = tensors.linear(&old("attn.proj"), width)?;
    let gains = tensors.vector(&old("ls1.gamma"), dim, 1.0)?;
    proj.scale(&gains);
    proj.put(&new("attn.proj"), parts);

    let mut gated = tensors.has(&old("mlp.w1.weight"));
    let fc1 = if gated {
        // Gate and value, each a layer of its own.
        let (mut gate, value) = (
            tensors.linear(&old("mlp.w1"), dim)?,
            tensors.linear(&old("mlp.w2"), dim)?,
        );
        gate.shape[0] += value.shape[0];
        gate.weight.extend(value.weight);
        gate.bias.extend(value.bias);
        gate
    } else {
        tensors.linear(&old("mlp.fc1"), dim)?
    };
    let outputs = fc1.shape[0];
    let fc2_name = old("mlp.fc2.weight");
    let hidden = tensors
        .shape(&fc2_name)
        .and_then(|shape| shape.get(1).copied())
        .unwrap_or(outputs);
    gated |= outputs == 2 * hidden;
    fc1.put(&new("mlp.fc1"), parts);
    let mut fc2 = tensors.linear(&old("mlp.fc2"), if gated { outputs / 2 } else { outputs })?;
    let gains = tensors.vector(&old("ls2.gamma"), dim, 1.0)?;
    fc2.scale(&gains);
    fc2.put(&new("mlp.fc2"), parts);
    Ok(BlockShape {
        width,
        hidden,
        gated,
    })
}

/// What a block's tensors say about it.
#[derive(Clone, Copy, PartialEq)]
struct BlockShape {
    /// Channels of q.
    width: usize,
    /// Channels between the layers of the MLP.
    hidden: usize,
    /// SwiGLU instead of GELU.
    gated: bool,
}

/// Takes the patch embedding. Returns its channels and the size of a patch.
fn patch_embed(
    tensors: &mut Tensors,
    parts: &mut Parts,
) -> Result<(usize, [usize; 2]), CheckpointError> {
    let name = "patch_embed.proj.weight";
    let (shape, weight) = tensors.take(name)?;
    let [dim, 3, h, w] = shape[..] else {
        return Err(CheckpointError::Shape {
            path: tensors.path(),
            tensor: name.to_owned(),
            expected: vec![0, 3, 0, 0],
            found: shape,
        });
    };
    if dim * h * w == 0 {
        return Err(CheckpointError::Shape {
            path: tensors.path(),
            tensor: name.to_owned(),
            expected: vec![1, 3, 1, 1],
            found: shape,
        });
    }
    // From (channel, y, x) to (y, x, channel).
    let rows = weight.chunks_exact(3 * h * w);
    let by_pixel =
        |row: &[f32]| -> Vec<f32> { (0..row.len()).map(|i| row[i % 3 * h * w + i / 3]).collect() };
    parts.tensor(
        "patch_embed.weight".into(),
        rows.flat_map(by_pixel).collect(),
    );
    let bias = tensors.vector("patch_embed.proj.bias", dim, 0.0)?;
    parts.tensor("patch_embed.bias".into(), bias);
    Ok((dim, [h, w]))
}
