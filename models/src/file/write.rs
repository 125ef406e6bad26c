//! Writes a file: encodes each section, lays them out, adds the checksums.
//!
//! The result is read back before it is returned, so whatever
//! [`Model::parse`] refuses, [`write()`] refuses too.

use super::check;
use super::container::SectionKind;
use super::error::ParseError;
use super::layout::{
    self, ALIGN, ENTRY_LEN, HEADER_CRC_AT, HEADER_LEN, MAGIC, NONE, VERSION, codes_of,
};
use super::model::Model;
use crate::dense;
use crate::preprocess::{Interpolation, Preprocess, Resize};
use crate::program::{Activation, Op, Pooling, Program, TensorId, TensorInfo, TensorRole, Window};
use crate::quant::{
    ActivationQuant, BitWidth, Codebook, Quantization, SoftmaxCodebook, SoftmaxKind, SoftmaxQuant,
    WeightQuant,
};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use tpvit_kernels::{GemmShape, Isa, PanelLayout};

/// All that a file holds, owned: what the quantizer makes.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelData {
    /// What is computed.
    pub program: Program,
    /// How activations and attention are quantized.
    pub quantization: Quantization,
    /// By [`TensorId`](crate::TensorId); as many as `program.tensors`.
    pub tensors: Vec<TensorData>,
    /// What happens to a picture first.
    pub preprocess: Preprocess,
    /// Names of the classes: none, or one for each.
    pub labels: Vec<String>,
    /// Where the model came from: a JSON object, or nothing.
    pub provenance: String,
}

/// The values of a constant.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorData {
    /// `rows * cols` floats.
    Float(Vec<f32>),
    /// A quantized weight.
    Weight(WeightQuant),
}

/// Why a model cannot be written.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum WriteError {
    /// A list is not as long as what it belongs to.
    Length {
        /// The list.
        what: &'static str,
        /// The tensor, buffer or operation it belongs to; empty for the model.
        of: String,
        /// The length it must have.
        expected: usize,
        /// Its length.
        found: usize,
    },
    /// A tensor is a weight where its role says floats, or the reverse.
    Role {
        /// Name of the tensor.
        tensor: String,
    },
    /// A code of a weight exceeds the largest of its width.
    Code {
        /// Name of the tensor.
        tensor: String,
        /// Index of the code.
        index: usize,
        /// The code.
        found: u8,
        /// The largest one.
        most: u8,
    },
    /// Weights cannot lie in such an order.
    Order {
        /// Name of the tensor.
        tensor: String,
        /// The order.
        panels: PanelLayout,
    },
    /// A size or count exceeds what its field can hold.
    TooLarge {
        /// Which one.
        what: &'static str,
        /// The size.
        found: usize,
    },
    /// The file would be one that [`Model::parse`] refuses.
    Invalid(ParseError),
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WriteError::Length {
                what,
                of,
                expected,
                found,
            } => {
                write!(f, "there are {found} {what}")?;
                if !of.is_empty() {
                    write!(f, " of {of}")?;
                }
                write!(f, ", must be {expected}")
            }
            WriteError::Role { tensor } => {
                write!(f, "tensor {tensor} does not hold what its role says")
            }
            WriteError::Code {
                tensor,
                index,
                found,
                most,
            } => write!(
                f,
                "tensor {tensor}: code {index} is {found}, must be at most {most}"
            ),
            WriteError::Order { tensor, panels } => {
                write!(f, "tensor {tensor} cannot lie in panels of {panels:?}")
            }
            WriteError::TooLarge { what, found } => {
                write!(f, "{what} is {found}, too large for the file")
            }
            WriteError::Invalid(error) => write!(f, "the model is not valid: {error}"),
        }
    }
}

impl core::error::Error for WriteError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            WriteError::Invalid(error) => Some(error),
            WriteError::Length { .. }
            | WriteError::Role { .. }
            | WriteError::Code { .. }
            | WriteError::Order { .. }
            | WriteError::TooLarge { .. } => None,
        }
    }
}

/// The bytes of a `.tpv` file. Equal models give equal bytes.
///
/// # Errors
/// If lengths disagree, a number does not fit its field, or
/// [`Model::parse`] would refuse the file.
pub fn write(model: &ModelData) -> Result<Vec<u8>, WriteError> {
    write_in_panels(model, |_| None)
}

/// As [`write()`], with weights in the order in which the kernels of `isa` take them, so
/// that these need no copy of them. Any other ones can still run it.
///
/// # Errors
/// As [`write()`].
pub fn write_for(model: &ModelData, isa: Isa) -> Result<Vec<u8>, WriteError> {
    write_in_panels(model, |id| {
        // The first product that a weight belongs to decides, if there are several.
        let op = model
            .program
            .ops
            .iter()
            .find(|op| op.weight() == Some(id))?;
        let act_max = match op {
            Op::Linear { input, .. } => {
                let quant = model.quantization.activations.get(input.index());
                quant?.as_ref()?.grid_bits().max_code()
            }
            // Only an embedding has a weight beside it, for pixels.
            Op::PatchEmbed { .. }
            | Op::LayerNorm { .. }
            | Op::HeadNorm { .. }
            | Op::Gate { .. }
            | Op::Attention { .. }
            | Op::SelectToken { .. }
            | Op::Pool { .. }
            | Op::PatchMerge { .. } => u8::MAX,
        };
        let (info, data) = (
            model.program.tensors.get(id.index())?,
            model.tensors.get(id.index())?,
        );
        let TensorData::Weight(weight) = data else {
            return None;
        };
        let shape = GemmShape {
            n: info.rows,
            k: info.cols,
            weight_bits: weight.bits,
            act_max,
        };
        Some(PanelLayout::of(isa, &shape))
    })
}

/// As [`write()`], with the codes of a weight in panels where `panels` says so.
///
/// # Errors
/// As [`write()`], or if an order is not [valid](PanelLayout::is_valid).
pub fn write_in_panels(
    model: &ModelData,
    panels: impl Fn(TensorId) -> Option<PanelLayout>,
) -> Result<Vec<u8>, WriteError> {
    // First of all, as an id that does not exist could be read as "none".
    let invalid = |error| WriteError::Invalid(ParseError::Program(error));
    model.program.validate().map_err(invalid)?;
    let weights = (0..).zip(&model.program.tensors);
    let mut weights = weights.filter(|(_, tensor)| tensor.role == TensorRole::Weight);
    let in_panels = weights.any(|(index, _)| panels(TensorId(index)).is_some());
    let (tensors, data) = tensor_sections(model, panels)?;
    let sections = [
        (SectionKind::Program, program_section(&model.program)?),
        (SectionKind::Tensors, tensors),
        (SectionKind::Quant, quant_section(model)?),
        (
            SectionKind::Preprocess,
            preprocess_section(&model.preprocess),
        ),
        (SectionKind::Labels, labels_section(&model.labels)?),
        (
            SectionKind::Provenance,
            model.provenance.clone().into_bytes(),
        ),
        (SectionKind::Data, data),
    ];
    let file = assemble(
        check::features(&model.program, &model.quantization, in_panels),
        sections,
    );
    Model::parse(&file).map_err(WriteError::Invalid)?;
    Ok(file)
}

/// Header, table, sections; SPEC.md, sections 2 and 3.
fn assemble<const N: usize>(features: u32, sections: [(SectionKind, Vec<u8>); N]) -> Vec<u8> {
    let table_end = HEADER_LEN + sections.len() * ENTRY_LEN;
    let mut table = Vec::with_capacity(table_end - HEADER_LEN);
    let mut end = table_end;
    for (kind, bytes) in &sections {
        let offset = end.next_multiple_of(ALIGN);
        end = offset + bytes.len();
        u32(&mut table, kind.number());
        u32(&mut table, kind.flags());
        u64(&mut table, offset);
        u64(&mut table, bytes.len());
        u32(&mut table, crc32fast::hash(bytes));
        u32(&mut table, 0);
    }
    let mut file = Vec::with_capacity(end);
    file.extend_from_slice(&MAGIC);
    u16(&mut file, VERSION.0);
    u16(&mut file, VERSION.1);
    u32(&mut file, features);
    u64(&mut file, end);
    u32(&mut file, N as u32); // seven
    debug_assert_eq!(file.len(), HEADER_CRC_AT);
    let mut crc = crc32fast::Hasher::new();
    crc.update(&file);
    crc.update(&table);
    u32(&mut file, crc.finalize());
    file.extend_from_slice(&table);
    for (_, bytes) in sections {
        pad(&mut file);
        file.extend_from_slice(&bytes);
    }
    file
}

/// PROGRAM; SPEC.md, section 5.
fn program_section(program: &Program) -> Result<Vec<u8>, WriteError> {
    let mut out = Vec::new();
    for side in program.image {
        size(&mut out, "image side", side)?;
    }
    size(&mut out, "buffer count", program.buffers.len())?;
    for buffer in &program.buffers {
        name(&mut out, &buffer.name)?;
        size(&mut out, "buffer rows", buffer.rows)?;
        size(&mut out, "buffer columns", buffer.cols)?;
    }
    size(&mut out, "operation count", program.ops.len())?;
    for op in &program.ops {
        operation(&mut out, op)?;
    }
    Ok(out)
}

fn operation(out: &mut Vec<u8>, op: &Op) -> Result<(), WriteError> {
    match *op {
        Op::PatchEmbed {
            patch,
            weight,
            bias,
            prefix,
            position,
            output,
        } => {
            out.push(layout::PATCH_EMBED);
            size(out, "patch height", patch[0])?;
            size(out, "patch width", patch[1])?;
            u16(out, weight.0);
            u16(out, bias.0);
            u16(out, prefix.map_or(NONE, |id| id.0));
            u16(out, position.map_or(NONE, |id| id.0));
            u16(out, output.0);
        }
        Op::LayerNorm {
            input,
            gamma,
            beta,
            eps,
            output,
        } => {
            out.push(layout::LAYER_NORM);
            u16(out, input.0);
            u16(out, gamma.0);
            u16(out, beta.0);
            f32(out, eps);
            u16(out, output.0);
        }
        Op::Linear {
            input,
            weight,
            bias,
            activation,
            residual,
            output,
        } => {
            out.push(layout::LINEAR);
            u16(out, input.0);
            u16(out, weight.0);
            u16(out, bias.0);
            out.push(match activation {
                Activation::Identity => layout::IDENTITY,
                Activation::Gelu => layout::GELU,
                Activation::Relu => layout::RELU,
            });
            u16(out, residual.map_or(NONE, |id| id.0));
            u16(out, output.0);
        }
        Op::HeadNorm {
            input,
            heads,
            head_dim,
            gamma,
            beta,
            eps,
            output,
        } => {
            out.push(layout::HEAD_NORM);
            u16(out, input.0);
            size(out, "heads", heads)?;
            size(out, "channels of a head", head_dim)?;
            u16(out, gamma.0);
            u16(out, beta.0);
            f32(out, eps);
            u16(out, output.0);
        }
        Op::Gate { input, output } => {
            out.push(layout::GATE);
            u16(out, input.0);
            u16(out, output.0);
        }
        Op::Attention {
            qkv,
            heads,
            head_dim,
            scale,
            window,
            bias,
            output,
        } => {
            out.push(match window {
                None => layout::ATTENTION,
                Some(_) => layout::WINDOW_ATTENTION,
            });
            u16(out, qkv.0);
            size(out, "heads", heads)?;
            size(out, "channels of a head", head_dim)?;
            f32(out, scale);
            if let Some(Window {
                grid,
                size: sides,
                shift,
            }) = window
            {
                for side in [grid, sides, shift].into_iter().flatten() {
                    size(out, "side of a window", side)?;
                }
                u16(out, bias.map_or(NONE, |id| id.0));
            }
            u16(out, output.0);
        }
        Op::SelectToken {
            input,
            token,
            output,
        } => {
            out.push(layout::SELECT_TOKEN);
            u16(out, input.0);
            size(out, "token", token)?;
            u16(out, output.0);
        }
        Op::Pool {
            input,
            first,
            count,
            pool,
            output,
        } => {
            out.push(layout::POOL);
            u16(out, input.0);
            size(out, "first token", first)?;
            size(out, "count of tokens", count)?;
            out.push(match pool {
                Pooling::Mean => layout::MEAN,
                Pooling::Concat => layout::CONCAT,
            });
            u16(out, output.0);
        }
        Op::PatchMerge {
            input,
            grid: [height, width],
            output,
        } => {
            out.push(layout::PATCH_MERGE);
            u16(out, input.0);
            size(out, "rows of a grid", height)?;
            size(out, "columns of a grid", width)?;
            u16(out, output.0);
        }
    }
    Ok(())
}

/// TENSORS and DATA; SPEC.md, sections 6 and 7.
fn tensor_sections(
    model: &ModelData,
    panels: impl Fn(TensorId) -> Option<PanelLayout>,
) -> Result<(Vec<u8>, Vec<u8>), WriteError> {
    let infos = &model.program.tensors;
    length("tensors", "", infos.len(), model.tensors.len())?;
    let (mut out, mut data) = (Vec::new(), Vec::new());
    size(&mut out, "tensor count", infos.len())?;
    for (index, (info, tensor)) in infos.iter().zip(&model.tensors).enumerate() {
        pad(&mut data);
        let offset = data.len();
        name(&mut out, &info.name)?;
        match (info.role, tensor) {
            (TensorRole::Float, TensorData::Float(values)) => {
                out.extend([layout::FLOAT, layout::FLOAT_BITS]);
                float_data(&mut data, info, values)?;
            }
            (TensorRole::Weight, TensorData::Weight(weight)) => {
                let index = u16::try_from(index).map_err(|_| too_large("tensor index", index))?;
                let panels = panels(TensorId(index));
                let bits = weight.bits.bits() as u8;
                match panels {
                    None => out.extend([layout::WEIGHT, bits]),
                    Some(PanelLayout { nr, sub, kr, sums }) => {
                        out.extend([layout::WEIGHT_IN_PANELS, bits]);
                        // A valid order's are below 256.
                        out.extend([nr as u8, sub as u8, kr as u8, sums.into()]);
                    }
                }
                weight_data(&mut data, info, weight, panels)?;
            }
            (TensorRole::Float, TensorData::Weight(_))
            | (TensorRole::Weight, TensorData::Float(_)) => {
                return Err(WriteError::Role {
                    tensor: info.name.clone(),
                });
            }
        }
        size(&mut out, "tensor rows", info.rows)?;
        size(&mut out, "tensor columns", info.cols)?;
        u64(&mut out, offset);
        u64(&mut out, data.len() - offset);
    }
    Ok((out, data))
}

fn float_data(data: &mut Vec<u8>, info: &TensorInfo, values: &[f32]) -> Result<(), WriteError> {
    let expected = elements(info)?;
    length("values", &info.name, expected, values.len())?;
    data.reserve(4 * expected);
    for &value in values {
        f32(data, value);
    }
    Ok(())
}

fn weight_data(
    data: &mut Vec<u8>,
    info: &TensorInfo,
    weight: &WeightQuant,
    panels: Option<PanelLayout>,
) -> Result<(), WriteError> {
    length("codes", &info.name, elements(info)?, weight.codes.len())?;
    length("scales", &info.name, info.rows, weight.scale.len())?;
    length(
        "zero points",
        &info.name,
        info.rows,
        weight.zero_point.len(),
    )?;
    let most = weight.bits.max_code();
    if let Some(index) = weight.codes.iter().position(|&code| code > most) {
        return Err(WriteError::Code {
            tensor: info.name.clone(),
            index,
            found: weight.codes[index],
            most,
        });
    }
    for &scale in &weight.scale {
        f32(data, scale);
    }
    data.extend_from_slice(&weight.zero_point);
    pad(data);
    let Some(panels) = panels else {
        pack_rows(data, weight.bits, info.cols, &weight.codes);
        return Ok(());
    };
    let shape = layout::panel_shape(weight.bits, info.rows, info.cols);
    let (Some(shape), true) = (shape, panels.is_valid()) else {
        return Err(WriteError::Order {
            tensor: info.name.clone(),
            panels,
        });
    };
    let mut rows = Vec::new();
    pack_rows(&mut rows, weight.bits, info.cols, &weight.codes);
    let len = panels.checked_packed_len(&shape);
    let len = len.ok_or_else(|| too_large("tensor rows", info.rows))?;
    let start = data.len();
    data.resize(start + len, 0);
    panels.pack(&shape, &rows, &mut data[start..]);
    Ok(())
}

fn pack_rows(data: &mut Vec<u8>, bits: BitWidth, cols: usize, codes: &[u8]) {
    let row_len = bits.row_bytes(cols);
    data.reserve(codes.len() / cols * row_len);
    for row in codes.chunks_exact(cols) {
        let start = data.len();
        data.resize(start + row_len, 0);
        dense::pack_row(bits, row, &mut data[start..]);
    }
}

fn elements(info: &TensorInfo) -> Result<usize, WriteError> {
    let too_large = WriteError::TooLarge {
        what: "tensor rows",
        found: info.rows,
    };
    info.rows
        .checked_mul(info.cols)
        .filter(|&count| count < usize::MAX / 8)
        .ok_or(too_large)
}

/// QUANT; SPEC.md, section 8.
fn quant_section(model: &ModelData) -> Result<Vec<u8>, WriteError> {
    let program = &model.program;
    let Quantization {
        activations,
        softmax,
    } = &model.quantization;
    length(
        "activation quantizers",
        "",
        program.buffers.len(),
        activations.len(),
    )?;
    length("softmax quantizers", "", program.ops.len(), softmax.len())?;
    let mut out = Vec::new();
    size(
        &mut out,
        "activation count",
        activations.iter().flatten().count(),
    )?;
    for (index, activation) in activations.iter().enumerate() {
        if let Some(activation) = activation {
            let index = u16::try_from(index).map_err(|_| too_large("buffer index", index))?;
            u16(&mut out, index);
            activation_quant(
                &mut out,
                &program.buffers[usize::from(index)].name,
                activation,
            )?;
        }
    }
    size(&mut out, "softmax count", softmax.iter().flatten().count())?;
    let features = check::features(program, &model.quantization, false);
    let per_head = features & layout::FEATURE_SOFTMAX_PER_HEAD != 0;
    for (index, softmax) in softmax.iter().enumerate() {
        if let Some(softmax) = softmax {
            size(&mut out, "operation index", index)?;
            softmax_quant(&mut out, softmax, per_head)?;
        }
    }
    Ok(out)
}

fn activation_quant(
    out: &mut Vec<u8>,
    buffer: &str,
    quant: &ActivationQuant,
) -> Result<(), WriteError> {
    let scales = quant.scale.len();
    length("zero points", buffer, scales, quant.zero_point.len())?;
    let levels = match quant.codebook {
        None => layout::UNIFORM,
        Some(_) => layout::CODEBOOK,
    };
    out.extend([quant.bits.bits() as u8, levels]);
    size(out, "scale count", scales)?;
    for &scale in &quant.scale {
        f32(out, scale);
    }
    out.extend_from_slice(&quant.zero_point);
    if let Some(Codebook { thresholds, levels }) = &quant.codebook {
        let codes = codes_of(quant.bits);
        length("thresholds", buffer, codes - 1, thresholds.len())?;
        length("levels", buffer, codes, levels.len())?;
        out.extend_from_slice(thresholds);
        out.extend_from_slice(levels);
    }
    Ok(())
}

fn softmax_quant(
    out: &mut Vec<u8>,
    quant: &SoftmaxQuant,
    per_head: bool,
) -> Result<(), WriteError> {
    let kind = match quant.kind {
        SoftmaxKind::RowMax => layout::ROW_MAX,
        SoftmaxKind::Static => layout::STATIC,
    };
    out.extend([
        quant.bits.bits() as u8,
        layout::method_tag(quant.method),
        kind,
        quant.renormalise.into(),
    ]);
    if per_head {
        size(out, "codebook count", quant.codebooks.len())?;
    }
    for codebook in &quant.codebooks {
        softmax_codebook(out, quant.bits, codebook)?;
    }
    Ok(())
}

fn softmax_codebook(
    out: &mut Vec<u8>,
    bits: BitWidth,
    codebook: &SoftmaxCodebook,
) -> Result<(), WriteError> {
    let codes = codes_of(bits);
    let SoftmaxCodebook {
        scale,
        thresholds,
        multipliers,
    } = codebook;
    length("thresholds", "softmax", codes - 1, thresholds.len())?;
    length("multipliers", "softmax", codes, multipliers.len())?;
    f32(out, *scale);
    for &threshold in thresholds {
        f32(out, threshold);
    }
    for &multiplier in multipliers {
        out.extend(multiplier.to_le_bytes());
    }
    Ok(())
}

/// PREPROCESS; SPEC.md, section 9.
fn preprocess_section(preprocess: &Preprocess) -> Vec<u8> {
    let (resize, side) = match preprocess.resize {
        Resize::Squash => (layout::SQUASH, 0),
        Resize::ShorterSide(side) => (layout::SHORTER_SIDE, side),
    };
    let interpolation = match preprocess.interpolation {
        Interpolation::Bilinear => layout::BILINEAR,
        Interpolation::Bicubic => layout::BICUBIC,
    };
    let mut out = Vec::from([resize, interpolation, 0, 0]);
    u32(&mut out, side);
    for value in preprocess.mean.into_iter().chain(preprocess.std) {
        f32(&mut out, value);
    }
    out
}

/// LABELS; SPEC.md, section 10.
fn labels_section(labels: &[String]) -> Result<Vec<u8>, WriteError> {
    let mut out = Vec::new();
    size(&mut out, "label count", labels.len())?;
    for label in labels {
        name(&mut out, label)?;
    }
    Ok(out)
}

fn u16(out: &mut Vec<u8>, value: u16) {
    out.extend(value.to_le_bytes());
}

fn u32(out: &mut Vec<u8>, value: u32) {
    out.extend(value.to_le_bytes());
}

fn u64(out: &mut Vec<u8>, value: usize) {
    out.extend((value as u64).to_le_bytes());
}

fn f32(out: &mut Vec<u8>, value: f32) {
    out.extend(value.to_le_bytes());
}

/// A size or count, as `u32`.
fn size(out: &mut Vec<u8>, what: &'static str, found: usize) -> Result<(), WriteError> {
    u32(
        out,
        u32::try_from(found).map_err(|_| too_large(what, found))?,
    );
    Ok(())
}

/// A name: its length as `u16`, then its bytes.
fn name(out: &mut Vec<u8>, name: &str) -> Result<(), WriteError> {
    let len = u16::try_from(name.len()).map_err(|_| too_large("length of a name", name.len()))?;
    u16(out, len);
    out.extend_from_slice(name.as_bytes());
    Ok(())
}

/// Zeros up to the next multiple of [`ALIGN`].
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(ALIGN), 0);
}

fn length(what: &'static str, of: &str, expected: usize, found: usize) -> Result<(), WriteError> {
    if expected != found {
        return Err(WriteError::Length {
            what,
            of: String::from(of),
            expected,
            found,
        });
    }
    Ok(())
}

fn too_large(what: &'static str, found: usize) -> WriteError {
    WriteError::TooLarge { what, found }
}
