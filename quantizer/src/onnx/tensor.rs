//! A constant of the graph.

use super::proto::{File, data_type_name};
use super::{OnnxError, external};
use half::{bf16, f16};
use tract_onnx::pb::TensorProto;
use tract_onnx::pb::tensor_proto::DataType;

/// A constant: an initializer or the value of a `Constant` node.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Empty for a scalar.
    pub shape: Vec<usize>,
    /// Row-major; as many values as the product of `shape`.
    pub data: Data,
}

/// Values of a tensor. Types are widened to the two that matter.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// From f32, f16, bf16 (both exact) and f64 (rounded).
    Float(Vec<f32>),
    /// From every integer type and bool.
    Int(Vec<i64>),
}

impl Data {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Data::Float(v) => v.len(),
            Data::Int(v) => v.len(),
        }
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Tensor {
    /// The values, if they are floats.
    pub fn floats(&self) -> Option<&[f32]> {
        match &self.data {
            Data::Float(v) => Some(v),
            Data::Int(_) => None,
        }
    }

    /// The values, if they are integers.
    pub fn ints(&self) -> Option<&[i64]> {
        match &self.data {
            Data::Float(_) => None,
            Data::Int(v) => Some(v),
        }
    }

    /// The value, if this is a single float.
    pub fn scalar(&self) -> Option<f32> {
        match self.floats() {
            Some([value]) => Some(*value),
            Some(_) | None => None,
        }
    }

    /// The first value that is NaN or infinite.
    pub(super) fn not_finite(&self) -> Option<(usize, f32)> {
        let values = self.floats()?.iter().copied();
        values.enumerate().find(|(_, v)| !v.is_finite())
    }

    /// Decodes a tensor, checking its data against its shape and type.
    pub(super) fn decode(
        file: &File<'_>,
        name: &str,
        proto: &TensorProto,
    ) -> Result<Self, OnnxError> {
        let shape = shape(file, name, &proto.dims)?;
        let len = element_count(&shape).ok_or_else(|| file.damaged(name, "its shape overflows"))?;
        let bytes = match external::bytes(file, name, proto, len)? {
            Some(bytes) => Some(bytes),
            None if proto.raw_data.is_empty() => None,
            None => Some(proto.raw_data.clone()),
        };
        let data = match bytes {
            Some(bytes) => from_bytes(file, name, proto.data_type, &bytes, len)?,
            None => from_fields(file, name, proto, len)?,
        };
        Ok(Tensor { shape, data })
    }
}

fn shape(file: &File<'_>, name: &str, dims: &[i64]) -> Result<Vec<usize>, OnnxError> {
    let side = |d: &i64| usize::try_from(*d).map_err(|_| file.damaged(name, "a side is negative"));
    dims.iter().map(side).collect()
}

/// Product of the sides. `None` if that of all but the zeros is beyond any
/// memory, so that strides computed from a counted shape never overflow.
pub(crate) fn element_count(shape: &[usize]) -> Option<usize> {
    const MOST: usize = isize::MAX as usize >> 8;
    let times = |n: usize, side: &usize| n.checked_mul((*side).max(1)).filter(|n| *n <= MOST);
    let count = shape.iter().try_fold(1, times)?;
    Some(if shape.contains(&0) { 0 } else { count })
}

/// Bytes of one value, for the types that are supported.
pub(super) fn type_bytes(data_type: i32) -> Option<usize> {
    match DataType::try_from(data_type).ok()? {
        DataType::Double | DataType::Int64 | DataType::Uint64 => Some(8),
        DataType::Float | DataType::Int32 | DataType::Uint32 => Some(4),
        DataType::Float16 | DataType::Bfloat16 | DataType::Int16 | DataType::Uint16 => Some(2),
        DataType::Int8 | DataType::Uint8 | DataType::Bool => Some(1),
        DataType::Undefined
        | DataType::String
        | DataType::Complex64
        | DataType::Complex128
        | DataType::Float8e4m3fn
        | DataType::Float8e4m3fnuz
        | DataType::Float8e5m2
        | DataType::Float8e5m2fnuz
        | DataType::Uint4
        | DataType::Int4
        | DataType::Float4e2m1 => None,
    }
}

fn unsupported(file: &File<'_>, tensor: &str, data_type: i32) -> OnnxError {
    OnnxError::TensorType {
        path: file.path.to_owned(),
        tensor: tensor.to_owned(),
        found: data_type_name(data_type),
    }
}

fn check_len(file: &File<'_>, name: &str, expected: usize, found: usize) -> Result<(), OnnxError> {
    if expected == found {
        return Ok(());
    }
    Err(OnnxError::TensorSize {
        path: file.path.to_owned(),
        tensor: name.to_owned(),
        expected: expected as u64,
        found: found as u64,
    })
}

/// Little-endian values of `N` bytes each.
fn each<const N: usize, T>(bytes: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|c| value(*c)).collect()
}

fn from_bytes(
    file: &File<'_>,
    name: &str,
    data_type: i32,
    bytes: &[u8],
    len: usize,
) -> Result<Data, OnnxError> {
    let size = type_bytes(data_type).ok_or_else(|| unsupported(file, name, data_type))?;
    let expected = len
        .checked_mul(size)
        .ok_or_else(|| file.damaged(name, "its shape overflows"))?;
    check_len(file, name, expected, bytes.len())?;
    let b = bytes;
    Ok(match DataType::try_from(data_type) {
        Ok(DataType::Float) => Data::Float(each(b, f32::from_le_bytes)),
        Ok(DataType::Double) => Data::Float(each(b, |c| f64::from_le_bytes(c) as f32)),
        Ok(DataType::Float16) => Data::Float(each(b, |c| f16::from_le_bytes(c).to_f32())),
        Ok(DataType::Bfloat16) => Data::Float(each(b, |c| bf16::from_le_bytes(c).to_f32())),
        Ok(DataType::Int64) => Data::Int(each(b, i64::from_le_bytes)),
        Ok(DataType::Uint64) => Data::Int(
            each(b, u64::from_le_bytes)
                .into_iter()
                .map(|v| narrow(file, name, v))
                .collect::<Result<_, _>>()?,
        ),
        Ok(DataType::Int32) => Data::Int(each(b, |c| i32::from_le_bytes(c).into())),
        Ok(DataType::Uint32) => Data::Int(each(b, |c| u32::from_le_bytes(c).into())),
        Ok(DataType::Int16) => Data::Int(each(b, |c| i16::from_le_bytes(c).into())),
        Ok(DataType::Uint16) => Data::Int(each(b, |c| u16::from_le_bytes(c).into())),
        Ok(DataType::Int8) => Data::Int(each(b, |c| i8::from_le_bytes(c).into())),
        Ok(DataType::Uint8 | DataType::Bool) => Data::Int(each(b, |[c]| c.into())),
        Ok(_) | Err(_) => return Err(unsupported(file, name, data_type)),
    })
}

fn narrow(file: &File<'_>, name: &str, value: u64) -> Result<i64, OnnxError> {
    i64::try_from(value).map_err(|_| file.damaged(name, "an unsigned value exceeds 2^63"))
}

/// The older way: one protobuf field per value.
fn from_fields(
    file: &File<'_>,
    name: &str,
    proto: &TensorProto,
    len: usize,
) -> Result<Data, OnnxError> {
    let small = &proto.int32_data;
    let bits = |v: &i32| *v as u16; // f16 and bf16 are stored as their bits
    let data = match DataType::try_from(proto.data_type) {
        Ok(DataType::Float) => Data::Float(proto.float_data.clone()),
        Ok(DataType::Double) => Data::Float(proto.double_data.iter().map(|v| *v as f32).collect()),
        Ok(DataType::Float16) => Data::Float(
            small
                .iter()
                .map(|v| f16::from_bits(bits(v)).to_f32())
                .collect(),
        ),
        Ok(DataType::Bfloat16) => Data::Float(
            small
                .iter()
                .map(|v| bf16::from_bits(bits(v)).to_f32())
                .collect(),
        ),
        Ok(DataType::Int64) => Data::Int(proto.int64_data.clone()),
        Ok(DataType::Uint64 | DataType::Uint32) => {
            let values = proto.uint64_data.iter();
            Data::Int(
                values
                    .map(|v| narrow(file, name, *v))
                    .collect::<Result<_, _>>()?,
            )
        }
        Ok(
            DataType::Int32
            | DataType::Int16
            | DataType::Uint16
            | DataType::Int8
            | DataType::Uint8
            | DataType::Bool,
        ) => Data::Int(small.iter().map(|v| i64::from(*v)).collect()),
        Ok(_) | Err(_) => return Err(unsupported(file, name, proto.data_type)),
    };
    check_len(file, name, len, data.len())?;
    Ok(data)
}
