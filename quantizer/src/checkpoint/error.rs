//! Why a checkpoint is not loaded.

use std::path::PathBuf;

use crate::import::ImportError;

/// Why a model is not read from safetensors. Each message names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is no safetensors, or a damaged one.
    #[error("{path} is no sound safetensors file: {problem}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The config is no JSON.
    #[error("{path} is not JSON")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it ends to be.
        source: serde_json::Error,
    },
    /// A key of the config is missing, or has a value that cannot be followed.
    #[error("{path}: {key:?} {problem}")]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The architecture is none that is known.
    #[error(
        "{path} describes {found:?}, which this version does not know: it reads ViT, DeiT, DINOv2 and Swin of timm (\"architecture\") and of Hugging Face (\"model_type\"); export other models to ONNX"
    )]
    Architecture {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// Config and tensors disagree.
    #[error("{path} says {what} is {config}, its tensors say {tensors}")]
    Contradiction {
        /// The config.
        path: PathBuf,
        /// Of what.
        what: &'static str,
        /// The config's number.
        config: String,
        /// That of the tensors.
        tensors: String,
    },
    /// A tensor is not there.
    #[error("{path} has no tensor {tensor:?} (or what timm and Hugging Face call it)")]
    Missing {
        /// The file.
        path: PathBuf,
        /// Canonical name.
        tensor: String,
    },
    /// A tensor has another shape than its place asks for.
    #[error("{path}: {tensor} is {found:?} where {expected:?} is needed (0 stands for any)")]
    Shape {
        /// The file.
        path: PathBuf,
        /// Canonical name.
        tensor: String,
        /// The shape it must have.
        expected: Vec<usize>,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A tensor has no place.
    #[error(
        "{path}: tensor {tensor:?} belongs to no part of the architecture its config describes"
    )]
    Unknown {
        /// The file.
        path: PathBuf,
        /// Its name in the file.
        tensor: String,
    },
    /// The model breaks a rule that holds for ONNX too.
    #[error(transparent)]
    Import(#[from] ImportError),
}
