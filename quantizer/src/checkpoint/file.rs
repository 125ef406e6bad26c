//! The safetensors container.
//!
//! ```text
//! u64        length of the header, little-endian
//! header     JSON: name -> { dtype, shape, data_offsets: [start, end] }
//! data       offsets count from here
//! ```
//!
//! The crate of that name would bring a second allocator interface and new
//! features of crates that the ONNX reader shares; what is needed of it is below.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde_json::Value;

use super::CheckpointError;

/// A header larger than this is no model's; the format's own limit.
const MOST_HEADER: usize = 100_000_000;

/// A file in memory, its header checked.
pub(super) struct File {
    path: PathBuf,
    bytes: Vec<u8>,
    tensors: BTreeMap<String, Entry>,
}

struct Entry {
    kind: Kind,
    shape: Vec<usize>,
    place: Range<usize>,
}

/// The number formats that weights come in.
#[derive(Clone, Copy)]
enum Kind {
    F64,
    F32,
    F16,
    Bf16,
    /// Not a weight: indexes and masks, which nobody asks for.
    Other,
}

impl File {
    pub(super) fn read(path: &Path) -> Result<Self, CheckpointError> {
        let bytes = std::fs::read(path).map_err(|source| CheckpointError::Read {
            path: path.to_owned(),
            source,
        })?;
        let tensors = header(&bytes).map_err(|problem| CheckpointError::Format {
            path: path.to_owned(),
            problem,
        })?;
        Ok(File {
            path: path.to_owned(),
            bytes,
            tensors,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| &entry.shape[..])
    }

    /// Shape and values of a tensor that is there.
    pub(super) fn floats(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>), CheckpointError> {
        let entry = &self.tensors[name];
        let bytes = &self.bytes[entry.place.clone()];
        let values = match entry.kind {
            Kind::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
            Kind::F32 => each(bytes, f32::from_le_bytes),
            Kind::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()),
            Kind::Bf16 => each(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            Kind::Other => {
                return Err(CheckpointError::Format {
                    path: self.path.clone(),
                    problem: format!("tensor {name:?} holds no F64, F32, F16 or BF16"),
                });
            }
        };
        Ok((entry.shape.clone(), values))
    }
}

fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let (numbers, _) = bytes.as_chunks::<N>();
    numbers.iter().map(|bytes| value(*bytes)).collect()
}

fn header(bytes: &[u8]) -> Result<BTreeMap<String, Entry>, String> {
    let (length, rest) = bytes
        .split_first_chunk::<8>()
        .ok_or_else(|| format!("it has {} bytes, less than a header", bytes.len()))?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let (header, data) = rest
        .split_at_checked(length)
        .filter(|_| length <= MOST_HEADER)
        .ok_or_else(|| format!("its header claims {length} bytes of {}", rest.len()))?;
    let json: Value =
        serde_json::from_slice(header).map_err(|e| format!("its header is no JSON: {e}"))?;
    let entries = json.as_object().ok_or("its header is no object")?;
    let start = bytes.len() - data.len();
    let tensors = entries.iter().filter(|(name, _)| *name != "__metadata__");
    let tensors = tensors.map(|(name, entry)| {
        let found = tensor(entry, data.len(), start);
        let found = found.map_err(|problem| format!("tensor {name:?} {problem}"))?;
        Ok((name.clone(), found))
    });
    let tensors = tensors.collect::<Result<_, String>>()?;
    check_overlap(&tensors)?;
    Ok(tensors)
}

/// Each byte is one tensor's, as the format demands: a file of many names for the same
/// bytes would be as many times as large in memory.
fn check_overlap(tensors: &BTreeMap<String, Entry>) -> Result<(), String> {
    let filled = tensors.iter().filter(|(_, entry)| !entry.place.is_empty());
    let mut places: Vec<_> = filled.map(|(name, entry)| (&entry.place, name)).collect();
    places.sort_by_key(|(place, _)| place.start);
    for pair in places.windows(2) {
        if let [(before, first), (after, second)] = pair
            && before.end > after.start
        {
            return Err(format!("tensors {first:?} and {second:?} share bytes"));
        }
    }
    Ok(())
}

fn tensor(entry: &Value, data_len: usize, start: usize) -> Result<Entry, String> {
    let numbers = |key: &str| -> Option<Vec<usize>> {
        let list = entry.get(key)?.as_array()?;
        let number = |value: &Value| usize::try_from(value.as_u64()?).ok();
        list.iter().map(number).collect()
    };
    let shape = numbers("shape").ok_or("has no shape")?;
    let dtype = entry.get("dtype").and_then(Value::as_str).unwrap_or("");
    let (kind, size) = match dtype {
        "F64" => (Kind::F64, 8),
        "F32" => (Kind::F32, 4),
        "F16" => (Kind::F16, 2),
        "BF16" => (Kind::Bf16, 2),
        _ => (Kind::Other, 0),
    };
    let offsets = numbers("data_offsets").unwrap_or_default();
    let [from, to] = offsets[..] else {
        return Err("has no data_offsets".into());
    };
    if from > to || to > data_len {
        return Err(format!("lies at {from} to {to} of {data_len} bytes"));
    }
    let count = shape
        .iter()
        .try_fold(1usize, |count, side| count.checked_mul(*side));
    let needed = count.and_then(|count| count.checked_mul(size));
    if size > 0 && needed != Some(to - from) {
        return Err(format!("is {shape:?} of {dtype} in {} bytes", to - from));
    }
    Ok(Entry {
        kind,
        shape,
        place: start + from..start + to,
    })
}
