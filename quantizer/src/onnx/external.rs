//! Tensor data kept beside the model, in files that the model names.
//!
//! A model is untrusted, so the name is: an absolute path, `..`, a symbolic
//! or a hard link would let it read any file of the user (CVE-2022-25882,
//! CVE-2024-27318, CVE-2025-51480 in the ONNX library). Only a plain file
//! inside the model's own folder is read.

use super::OnnxError;
use super::proto::{File, data_type_name};
use super::tensor::type_bytes;
use std::fs::Metadata;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};
use tract_onnx::pb::TensorProto;
use tract_onnx::pb::tensor_proto::DataLocation;

/// The external data of a tensor of `len` values; `None` if its data are inside.
pub(super) fn bytes(
    file: &File<'_>,
    name: &str,
    proto: &TensorProto,
    len: usize,
) -> Result<Option<Vec<u8>>, OnnxError> {
    let external = proto.data_location == Some(DataLocation::External as i32);
    if !external && proto.external_data.is_empty() {
        return Ok(None);
    }
    let entry = |key: &str| {
        let mut entries = proto.external_data.iter();
        entries.find(|e| e.key == key).map(|e| e.value.as_str())
    };
    let location = entry("location").unwrap_or_default();
    let refused = |reason: &str| OnnxError::External {
        path: file.path.to_owned(),
        tensor: name.to_owned(),
        location: location.to_owned(),
        reason: reason.to_owned(),
    };
    let size = type_bytes(proto.data_type).ok_or_else(|| OnnxError::TensorType {
        path: file.path.to_owned(),
        tensor: name.to_owned(),
        found: data_type_name(proto.data_type),
    })?;
    let wanted = len
        .checked_mul(size)
        .ok_or_else(|| refused("the tensor's shape overflows"))? as u64;
    let number = |key: &str, default: u64| match entry(key) {
        None => Ok(default),
        Some(text) => text
            .parse::<u64>()
            .map_err(|_| refused(&format!("its {key} is no number"))),
    };
    let (offset, length) = (number("offset", 0)?, number("length", wanted)?);
    if length != wanted {
        return Err(OnnxError::TensorSize {
            path: file.path.to_owned(),
            tensor: name.to_owned(),
            expected: wanted,
            found: length,
        });
    }
    let path = inside(file.path, location).map_err(|reason| refused(&reason))?;
    read_range(&path, offset, length)
        .map(Some)
        .map_err(|reason| refused(&reason))
}

/// The path of `location` in the model's folder, if it may be read.
fn inside(model: &Path, location: &str) -> Result<PathBuf, String> {
    let plain = |c: Component<'_>| matches!(c, Component::Normal(_));
    if location.is_empty() || !Path::new(location).components().all(plain) {
        return Err("the location must be a relative path without `..`".into());
    }
    if location.contains(['\\', ':', '\0']) {
        return Err("the location holds a character that some system gives a meaning".into());
    }
    let folder = model
        .parent()
        .filter(|p| *p != Path::new(""))
        .unwrap_or(Path::new("."));
    let folder = folder.canonicalize().map_err(|e| e.to_string())?;
    let mut path = folder.clone();
    for component in Path::new(location).components() {
        path.push(component);
        let found = path.symlink_metadata().map_err(|e| e.to_string())?;
        if found.file_type().is_symlink() {
            return Err("it is reached through a symbolic link".into());
        }
    }
    let path = path.canonicalize().map_err(|e| e.to_string())?;
    if !path.starts_with(&folder) {
        return Err("it lies outside the model's folder".into());
    }
    Ok(path)
}

fn read_range(path: &Path, offset: u64, length: u64) -> Result<Vec<u8>, String> {
    let expected = path.symlink_metadata().map_err(|e| e.to_string())?;
    if !expected.is_file() {
        return Err("it is not a regular file".into());
    }
    let mut handle = std::fs::File::open(path).map_err(|e| e.to_string())?;
    let found = handle.metadata().map_err(|e| e.to_string())?;
    same_file(&expected, &found)?;
    let end = offset.checked_add(length).ok_or("its range overflows")?;
    if end > found.len() {
        return Err(format!("it has {} bytes, {end} are needed", found.len()));
    }
    let length = usize::try_from(length).map_err(|e| e.to_string())?;
    let mut bytes = vec![0; length];
    handle
        .seek(SeekFrom::Start(offset))
        .map_err(|e| e.to_string())?;
    handle.read_exact(&mut bytes).map_err(|e| e.to_string())?;
    Ok(bytes)
}

/// The opened file is the one looked at, not a link put there in between, and
/// it has no second name elsewhere.
#[cfg(unix)]
fn same_file(expected: &Metadata, found: &Metadata) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    if (expected.dev(), expected.ino()) != (found.dev(), found.ino()) || !found.is_file() {
        return Err("it changed while it was opened".into());
    }
    if found.nlink() != 1 {
        return Err("it has hard links".into());
    }
    Ok(())
}

#[cfg(not(unix))]
fn same_file(_expected: &Metadata, found: &Metadata) -> Result<(), String> {
    if found.is_file() {
        return Ok(());
    }
    Err("it is not a regular file".into())
}
