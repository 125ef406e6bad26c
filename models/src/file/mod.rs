#![doc = include_str!("../../SPEC.md")]

mod check;
mod container;
mod cursor;
mod error;
mod layout;
mod model;
mod parse;
mod write;

pub use container::{Section, SectionKind};
pub use error::ParseError;
pub use layout::{ALIGN, MAGIC, SUPPORTED_FEATURES, VERSION};
pub use model::{FloatTensor, Model, Tensor, WeightTensor};
pub use write::{ModelData, TensorData, WriteError, write};
