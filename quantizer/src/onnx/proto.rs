//! From bytes to protobuf structs, with external data brought inside.

use super::{OnnxError, external, limits, tensor};
use std::io::Read;
use std::path::Path;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{ModelProto, TensorProto};
use tract_onnx::prelude::Framework;

/// Protobuf cannot express messages beyond 2 GiB, so no ONNX file is larger.
const MAX_FILE_BYTES: u64 = 1 << 31;

/// The file being read, for errors and for external data.
pub(super) struct File<'a> {
    pub(super) path: &'a Path,
}

impl File<'_> {
    pub(super) fn damaged(&self, what: &str, how: &str) -> OnnxError {
        OnnxError::Damaged {
            path: self.path.to_owned(),
            detail: format!("{what}: {how}"),
        }
    }

    pub(super) fn io(&self, path: &Path, source: std::io::Error) -> OnnxError {
        OnnxError::Io {
            path: path.to_owned(),
            source,
        }
    }
}

/// Name of an ONNX element type, or its number.
pub(super) fn data_type_name(data_type: i32) -> String {
    match DataType::try_from(data_type) {
        Ok(known) => known.as_str_name().to_lowercase(),
        Err(_) => format!("number {data_type}"),
    }
}

/// Reads and decodes the model; initializers kept in other files are brought
/// inside, so that whoever uses the result needs no file system.
///
/// # Errors
/// As [`super::read`].
pub(crate) fn read_proto(path: &Path) -> Result<ModelProto, OnnxError> {
    let file = File { path };
    let bytes = read_file(&file)?;
    if !limits::affordable(&bytes) {
        return Err(not_onnx(
            path,
            "it has too many or too deeply nested parts".into(),
        ));
    }
    let mut model = tract_onnx::onnx()
        .proto_model_for_read(&mut &bytes[..])
        .map_err(|e| not_onnx(path, e.to_string()))?;
    drop(bytes);
    let Some(graph) = &mut model.graph else {
        return Err(not_onnx(path, "there is no graph in it".into()));
    };
    for proto in &mut graph.initializer {
        bring_inside(&file, proto)?;
    }
    for attribute in graph.node.iter_mut().flat_map(|n| &mut n.attribute) {
        if let Some(proto) = &mut attribute.t {
            bring_inside(&file, proto)?;
        }
    }
    Ok(model)
}

fn read_file(file: &File<'_>) -> Result<Vec<u8>, OnnxError> {
    let path = file.path;
    // Asked before opening: opening a pipe would wait for its writer.
    let before = std::fs::metadata(path).map_err(|e| file.io(path, e))?;
    if !before.is_file() {
        return Err(OnnxError::NotAFile { path: path.into() });
    }
    let handle = std::fs::File::open(path).map_err(|e| file.io(path, e))?;
    let mut bytes = Vec::new();
    let mut limited = handle.take(MAX_FILE_BYTES + 1);
    limited
        .read_to_end(&mut bytes)
        .map_err(|e| file.io(path, e))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(not_onnx(path, "it is larger than 2 GiB".into()));
    }
    Ok(bytes)
}

fn bring_inside(file: &File<'_>, proto: &mut TensorProto) -> Result<(), OnnxError> {
    if proto.external_data.is_empty() && proto.data_location.unwrap_or(0) == 0 {
        return Ok(());
    }
    let name = proto.name.clone();
    let sides = proto.dims.iter().map(|d| usize::try_from(*d).ok());
    let len = sides
        .collect::<Option<Vec<_>>>()
        .and_then(|shape| tensor::element_count(&shape))
        .ok_or_else(|| file.damaged(&name, "its shape overflows or is negative"))?;
    if let Some(bytes) = external::bytes(file, &name, proto, len)? {
        proto.raw_data = bytes;
        proto.external_data.clear();
        proto.data_location = None;
    }
    Ok(())
}

fn not_onnx(path: &Path, detail: String) -> OnnxError {
    OnnxError::NotOnnx {
        path: path.to_owned(),
        detail,
    }
}
