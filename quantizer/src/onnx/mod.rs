//! Reads an ONNX file into a plain [`Graph`], trusting nothing in it.
//!
//! The protobuf is decoded by `tract_onnx::pb` (prost); what comes out is
//! checked here once: tensor data against shape and type, every value defined
//! before it is used, external data only from inside the model's folder. From
//! then on a [`Graph`] is sound: indexes are in range and nodes are in
//! topological order. What the graph *means* is `crate::import`'s business.

mod error;
mod external;
mod graph;
mod limits;
mod proto;
mod tensor;

pub use error::OnnxError;
pub use graph::{Attribute, Graph, Node, NodeId, Value, ValueId};
pub use tensor::{Data, Tensor};

pub(crate) use proto::read_proto;
pub(crate) use tensor::element_count;

use std::path::Path;

/// Reads an ONNX file.
///
/// # Errors
/// If the file cannot be read, is not ONNX, is damaged, or points to data
/// outside its folder.
pub fn read(path: impl AsRef<Path>) -> Result<Graph, OnnxError> {
    let path = path.as_ref();
    Graph::from_proto(path, &read_proto(path)?)
}
