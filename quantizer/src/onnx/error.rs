//! Why an ONNX file cannot be read.

use std::path::PathBuf;

/// Why an ONNX file cannot be read. Each message names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OnnxError {
    /// The file, or one it points to, cannot be read.
    #[error("cannot read {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A folder, a device, a pipe.
    #[error("{path} is not a regular file")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The bytes are no protobuf of a model.
    #[error("{path} is not an ONNX file, or it is truncated or damaged: {detail}")]
    NotOnnx {
        /// The file.
        path: PathBuf,
        /// What the decoder says.
        detail: String,
    },
    /// The bytes decode, but contradict each other.
    #[error("{path} is damaged: {detail}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which part, and how.
        detail: String,
    },
    /// A tensor's data do not fit its shape.
    #[error("{path}: tensor {tensor} has {found} bytes or values, its shape needs {expected}")]
    TensorSize {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What the shape needs.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// A tensor has a type that no supported model uses.
    #[error("{path}: tensor {tensor} has type {found}, which is not supported")]
    TensorType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The type's name or number.
        found: String,
    },
    /// A weight is NaN or infinite.
    #[error("{path}: tensor {tensor} holds {value} at index {index}; every weight must be finite")]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where.
        index: usize,
        /// What.
        value: f32,
    },
    /// External data are not allowed to be where they are said to be.
    #[error(
        "{path}: tensor {tensor} keeps its data in {location:?}, which is refused: {reason}; keep external data in the model's own folder, or save the model with its data inside"
    )]
    External {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where the file says the data are.
        location: String,
        /// Why that is refused.
        reason: String,
    },
}
