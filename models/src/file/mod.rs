#![doc = include_str!("../../SPEC.md")]

mod check;
mod container;
mod cursor;
mod error;
mod layout;
mod model;
mod parse;
#[cfg(feature = "std")]
mod reader;
mod write;

pub use container::{Section, SectionKind};
pub use error::ParseError;
pub use layout::{
    ALIGN, FEATURE_CODEBOOK, FEATURE_OPERATIONS, FEATURE_PANELS, FEATURE_SOFTMAX_PER_HEAD, MAGIC,
    SUPPORTED_FEATURES, VERSION,
};
pub use model::{FloatTensor, Model, ModelInfo, Tensor, WeightTensor};
#[cfg(feature = "std")]
pub use reader::{FileHead, ReadError, TensorReader};
pub use write::{ModelData, TensorData, WriteError, write, write_for, write_in_panels};
