//! Turns the sections of a file into a [`Model`].
//!
//! No room is reserved for more than the file can hold: each count is capped
//! by the bytes that are left in its section ([`Cursor::count`]).
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::unwrap_used
)]

use super::check;
use super::container::{Container, SectionKind, check_zero};
use super::cursor::Cursor;
use super::error::ParseError;
use super::layout::{self, NONE, PanelOrder, least};
use super::model::{FloatTensor, Model, ModelInfo, Tensor, TensorPlace, WeightTensor};
use crate::preprocess::{Interpolation, Preprocess, Resize};
use crate::program::{
    Activation, Buffer, BufferId, MAX_SIZE, Op, Pooling, Program, TensorId, TensorInfo, TensorRole,
    Window,
};
use crate::quant::{
    ActivationQuant, BitWidth, Codebook, Quantization, SoftmaxCodebook, SoftmaxKind, SoftmaxQuant,
};
use alloc::string::String;
use alloc::vec::Vec;

/// Whether the checksum of DATA is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DataChecksum {
    Verify,
    Skip,
}

/// A whole file.
pub(super) fn model(bytes: &[u8], checksum: DataChecksum) -> Result<Model<'_>, ParseError> {
    let file = Container::parse(bytes, bytes.len())?;
    if checksum == DataChecksum::Verify {
        let (_, data) = file.section(SectionKind::Data)?;
        let place = file.place(SectionKind::Data)?;
        place.check_crc(crc32fast::hash(data))?;
    }
    let info = info(file)?;
    let tensors = info.program.tensors.iter().zip(&info.places);
    let tensors = tensors
        .map(|(info, place)| {
            let bytes = bytes.get(place.filling..place.end);
            tensor(info, place, bytes.unwrap_or_default())
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Model {
        info,
        bytes,
        tensors,
    })
}

/// All but the tensors: what the sections before DATA say.
pub(super) fn info(file: Container<'_>) -> Result<ModelInfo<'_>, ParseError> {
    let entries = tensor_entries(&file)?;
    let program = program(&file, &entries)?;
    check::names(&program)?;
    program.validate()?;
    let places = places(&file, &entries)?;
    let quantization = quantization(&file, &program)?;
    check::quantization(&program, &quantization)?;
    let in_panels = places.iter().any(|place| place.panels.is_some());
    let used = check::features(&program, &quantization, in_panels);
    check::required(file.features, used)?;
    check::sums(&program, &quantization, &places)?;
    let preprocess = preprocess(&file)?;
    check::crop(&program, &preprocess)?;
    let labels = labels(&file)?;
    check::labels(&program, &labels)?;
    Ok(ModelInfo {
        version: file.version,
        file_len: file.file_len,
        provenance: cursor(&file, SectionKind::Provenance)?.rest_as_text()?,
        sections: file.sections,
        program,
        quantization,
        places,
        preprocess,
        labels,
    })
}

fn cursor<'a>(file: &Container<'a>, kind: SectionKind) -> Result<Cursor<'a>, ParseError> {
    let (offset, bytes) = file.section(kind)?;
    Ok(Cursor::new(kind, offset, bytes))
}

/// A line of the directory of tensors; where it points is not yet checked.
struct TensorEntry<'a> {
    name: &'a str,
    role: TensorRole,
    bits: u8,
    panels: Option<PanelOrder>,
    rows: usize,
    cols: usize,
    offset: u64, // in DATA
    len: u64,
}

impl TensorEntry<'_> {
    fn name(&self) -> String {
        String::from(self.name)
    }

    /// The width of a weight's codes, where they begin in it, and the bytes that it must
    /// claim.
    fn width_and_len(&self) -> Result<(Option<BitWidth>, usize, usize), ParseError> {
        let bits = BitWidth::from_bits(self.bits.into());
        let panels = self.panels.map(PanelOrder::layout);
        let (bits, codes_at, len) = match (self.role, self.bits, bits) {
            (TensorRole::Float, layout::FLOAT_BITS, _) => {
                (None, 0, layout::float_len(self.rows, self.cols))
            }
            (TensorRole::Weight, _, Some(bits)) => {
                let place = layout::weight_layout(bits, self.rows, self.cols, panels);
                let codes_at = place.map_or(0, |place| place.codes_at);
                (Some(bits), codes_at, place.map(|place| place.len))
            }
            (TensorRole::Float | TensorRole::Weight, _, _) => {
                return Err(ParseError::TensorBits {
                    tensor: self.name(),
                    found: self.bits,
                });
            }
        };
        let len = len.unwrap_or(usize::MAX);
        match self.len == len as u64 {
            true => Ok((bits, codes_at, len)),
            false => Err(self.bad_len(len)),
        }
    }

    fn bad_len(&self, expected: usize) -> ParseError {
        ParseError::TensorPlace {
            tensor: self.name(),
            what: "length",
            expected: expected as u64,
            found: self.len,
        }
    }
}

fn tensor_entries<'a>(file: &Container<'a>) -> Result<Vec<TensorEntry<'a>>, ParseError> {
    let mut at = cursor(file, SectionKind::Tensors)?;
    let count = at.count("tensors", least::TENSOR)?;
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let name = at.name()?;
        let offset = at.offset();
        let (role, in_panels) = match at.u8()? {
            layout::FLOAT => (TensorRole::Float, false),
            layout::WEIGHT => (TensorRole::Weight, false),
            layout::WEIGHT_IN_PANELS => (TensorRole::Weight, true),
            _ => return Err(at.value_at("role of a tensor", offset)),
        };
        entries.push(TensorEntry {
            name,
            role,
            bits: at.u8()?,
            panels: match in_panels {
                true => Some(panel_order(&mut at)?),
                false => None,
            },
            rows: at.size("rows of a tensor")?,
            cols: at.size("columns of a tensor")?,
            offset: at.u64()?,
            len: at.u64()?,
        });
    }
    at.finish()?;
    Ok(entries)
}

fn panel_order(at: &mut Cursor<'_>) -> Result<PanelOrder, ParseError> {
    let offset = at.offset();
    let bytes = [at.u8()?, at.u8()?, at.u8()?, at.u8()?];
    PanelOrder::new(bytes).ok_or_else(|| at.value_at("order of panels", offset))
}

fn program(file: &Container<'_>, entries: &[TensorEntry<'_>]) -> Result<Program, ParseError> {
    let mut at = cursor(file, SectionKind::Program)?;
    let image = [
        at.size("height of the image")?,
        at.size("width of the image")?,
    ];
    let count = at.count("buffers", least::BUFFER)?;
    let mut buffers = Vec::with_capacity(count);
    for _ in 0..count {
        buffers.push(Buffer {
            name: String::from(at.name()?),
            rows: at.size("rows of a buffer")?,
            cols: at.size("columns of a buffer")?,
        });
    }
    let count = at.count("operations", least::OP)?;
    let mut ops = Vec::with_capacity(count);
    for _ in 0..count {
        ops.push(op(&mut at)?);
    }
    at.finish()?;
    let tensor = |entry: &TensorEntry<'_>| TensorInfo {
        name: entry.name(),
        role: entry.role,
        rows: entry.rows,
        cols: entry.cols,
    };
    Ok(Program {
        image,
        buffers,
        tensors: entries.iter().map(tensor).collect(),
        ops,
    })
}

fn op(at: &mut Cursor<'_>) -> Result<Op, ParseError> {
    let offset = at.offset();
    Ok(match at.u8()? {
        layout::PATCH_EMBED => Op::PatchEmbed {
            patch: [at.size("patch height")?, at.size("patch width")?],
            weight: TensorId(at.u16()?),
            bias: TensorId(at.u16()?),
            prefix: optional(at.u16()?).map(TensorId),
            position: optional(at.u16()?).map(TensorId),
            output: BufferId(at.u16()?),
        },
        layout::LAYER_NORM => Op::LayerNorm {
            input: BufferId(at.u16()?),
            gamma: TensorId(at.u16()?),
            beta: TensorId(at.u16()?),
            eps: at.f32()?,
            output: BufferId(at.u16()?),
        },
        layout::LINEAR => Op::Linear {
            input: BufferId(at.u16()?),
            weight: TensorId(at.u16()?),
            bias: TensorId(at.u16()?),
            activation: activation(at)?,
            residual: optional(at.u16()?).map(BufferId),
            output: BufferId(at.u16()?),
        },
        layout::ATTENTION => Op::Attention {
            qkv: BufferId(at.u16()?),
            heads: at.size("heads")?,
            head_dim: at.size("channels of a head")?,
            scale: at.f32()?,
            window: None,
            bias: None,
            output: BufferId(at.u16()?),
        },
        layout::WINDOW_ATTENTION => Op::Attention {
            qkv: BufferId(at.u16()?),
            heads: at.size("heads")?,
            head_dim: at.size("channels of a head")?,
            scale: at.f32()?,
            window: Some(Window {
                grid: [at.size("rows of a grid")?, at.size("columns of a grid")?],
                size: [
                    at.size("rows of a window")?,
                    at.size("columns of a window")?,
                ],
                shift: [at.size("shift down")?, at.size("shift across")?],
            }),
            bias: optional(at.u16()?).map(TensorId),
            output: BufferId(at.u16()?),
        },
        layout::HEAD_NORM => Op::HeadNorm {
            input: BufferId(at.u16()?),
            heads: at.size("heads")?,
            head_dim: at.size("channels of a head")?,
            gamma: TensorId(at.u16()?),
            beta: TensorId(at.u16()?),
            eps: at.f32()?,
            output: BufferId(at.u16()?),
        },
        layout::GATE => Op::Gate {
            input: BufferId(at.u16()?),
            output: BufferId(at.u16()?),
        },
        layout::SELECT_TOKEN => Op::SelectToken {
            input: BufferId(at.u16()?),
            token: at.size("token")?,
            output: BufferId(at.u16()?),
        },
        layout::POOL => Op::Pool {
            input: BufferId(at.u16()?),
            first: at.size("first token")?,
            count: at.size("count of tokens")?,
            pool: pooling(at)?,
            output: BufferId(at.u16()?),
        },
        layout::PATCH_MERGE => Op::PatchMerge {
            input: BufferId(at.u16()?),
            grid: [at.size("rows of a grid")?, at.size("columns of a grid")?],
            output: BufferId(at.u16()?),
        },
        _ => return Err(at.value_at("tag of an operation", offset)),
    })
}

fn activation(at: &mut Cursor<'_>) -> Result<Activation, ParseError> {
    let offset = at.offset();
    match at.u8()? {
        layout::IDENTITY => Ok(Activation::Identity),
        layout::GELU => Ok(Activation::Gelu),
        layout::RELU => Ok(Activation::Relu),
        _ => Err(at.value_at("tag of an activation", offset)),
    }
}

fn pooling(at: &mut Cursor<'_>) -> Result<Pooling, ParseError> {
    let offset = at.offset();
    match at.u8()? {
        layout::MEAN => Ok(Pooling::Mean),
        layout::CONCAT => Ok(Pooling::Concat),
        _ => Err(at.value_at("tag of a pooling", offset)),
    }
}

fn optional(id: u16) -> Option<u16> {
    (id != NONE).then_some(id)
}

/// Cuts DATA into tensors. Each has one place, right after the one before it
/// (aligned), so none can overlap and no byte is outside of all of them.
fn places(
    file: &Container<'_>,
    entries: &[TensorEntry<'_>],
) -> Result<Vec<TensorPlace>, ParseError> {
    let data = file.place(SectionKind::Data)?;
    let in_file = |at: usize| data.offset.saturating_add(at);
    let mut places = Vec::with_capacity(entries.len());
    let mut end = 0;
    for entry in entries {
        let start = layout::align(end).unwrap_or(usize::MAX);
        if entry.offset != start as u64 {
            return Err(ParseError::TensorPlace {
                tensor: entry.name(),
                what: "offset",
                expected: start as u64,
                found: entry.offset,
            });
        }
        let (bits, codes_at, len) = entry.width_and_len()?;
        let rest = data.len.saturating_sub(start);
        if len > rest {
            return Err(entry.bad_len(rest));
        }
        let filling = in_file(end);
        end = start.saturating_add(len);
        places.push(TensorPlace {
            bits,
            filling,
            start: in_file(start),
            codes: in_file(start).saturating_add(codes_at),
            end: in_file(end),
            panels: entry.panels,
        });
    }
    if end != data.len {
        return Err(ParseError::SectionRest {
            section: SectionKind::Data,
            offset: in_file(end) as u64,
        });
    }
    Ok(places)
}

/// Checks the values of one tensor; `bytes` are those of `place`, from the
/// filling on.
pub(super) fn tensor<'a>(
    info: &TensorInfo,
    place: &TensorPlace,
    bytes: &'a [u8],
) -> Result<Tensor<'a>, ParseError> {
    let filled = place.start.saturating_sub(place.filling);
    let (filling, bytes) = bytes.split_at_checked(filled).unwrap_or_default();
    check_zero(filling, place.filling)?;
    match place.bits {
        None => Ok(Tensor::Float(floats(info, "value", bytes)?)),
        Some(bits) => weight(info, bits, place, bytes).map(Tensor::Weight),
    }
}

/// Reads one weight, which is at `in_file`.
fn weight<'a>(
    info: &TensorInfo,
    bits: BitWidth,
    in_file: &TensorPlace,
    bytes: &'a [u8],
) -> Result<WeightTensor<'a>, ParseError> {
    let part = |from: usize, to: usize| bytes.get(from..to).unwrap_or_default();
    let panels = in_file.panels;
    let place = layout::weight_layout(bits, info.rows, info.cols, panels.map(PanelOrder::layout));
    let place = place.ok_or_else(|| ParseError::TensorPlace {
        tensor: info.name.clone(),
        what: "length",
        expected: u64::MAX,
        found: bytes.len() as u64,
    })?;
    let weight = WeightTensor {
        bits,
        rows: info.rows,
        cols: info.cols,
        row_len: place.row_len,
        scales: scales(info, part(0, place.zero_points_at))?,
        zero_points: part(place.zero_points_at, place.zero_points_end),
        codes: part(place.codes_at, place.len),
        panels,
    };
    check_zero(
        part(place.zero_points_end, place.codes_at),
        in_file.start.saturating_add(place.zero_points_end),
    )?;
    check_zero_points(info, &weight)?;
    match panels {
        None => check_row_padding(info, &weight)?,
        Some(panels) => {
            let fault = panels.layout().check(&weight.shape(), weight.codes);
            fault.map_err(|fault| ParseError::Panels {
                tensor: info.name.clone(),
                fault,
            })?;
        }
    }
    Ok(weight)
}

/// Whole floats, all finite.
fn floats<'d>(
    info: &TensorInfo,
    what: &'static str,
    bytes: &'d [u8],
) -> Result<FloatTensor<'d>, ParseError> {
    let (values, _) = bytes.as_chunks::<4>();
    let floats = FloatTensor::new(values);
    match floats.iter().position(|value| !value.is_finite()) {
        None => Ok(floats),
        Some(index) => Err(bad_value(info, what, index, floats.get(index))),
    }
}

/// Whole floats, all of them scales.
fn scales<'d>(info: &TensorInfo, bytes: &'d [u8]) -> Result<FloatTensor<'d>, ParseError> {
    let scales = floats(info, "scale", bytes)?;
    match scales.iter().position(|scale| !check::is_scale(scale)) {
        None => Ok(scales),
        Some(index) => Err(bad_value(info, "scale", index, scales.get(index))),
    }
}

fn bad_value(
    info: &TensorInfo,
    what: &'static str,
    index: usize,
    found: Option<f32>,
) -> ParseError {
    ParseError::TensorValue {
        tensor: info.name.clone(),
        what,
        index,
        found: found.unwrap_or(f32::NAN),
    }
}

fn check_zero_points(info: &TensorInfo, weight: &WeightTensor<'_>) -> Result<(), ParseError> {
    let most = weight.bits.max_code();
    let mut zero_points = weight.zero_points.iter().copied().enumerate();
    match zero_points.find(|&(_, found)| found > most) {
        None => Ok(()),
        Some((index, found)) => Err(ParseError::TensorZeroPoint {
            tensor: info.name.clone(),
            index,
            found,
            most,
        }),
    }
}

/// Bits after the last code of a row must be zero: there is one way to store
/// a row. No code itself can be wrong, as each uses all values of its bits.
fn check_row_padding(info: &TensorInfo, weight: &WeightTensor<'_>) -> Result<(), ParseError> {
    let width = usize::try_from(weight.bits.bits()).unwrap_or(8);
    let used = weight.cols.saturating_mul(width) % 8; // bits of the last byte; 0 for all
    if used == 0 {
        return Ok(());
    }
    let padded = |row: &[u8]| row.last().is_some_and(|last| last >> used != 0);
    match weight.codes.chunks_exact(weight.row_len).position(padded) {
        None => Ok(()),
        Some(row) => Err(ParseError::RowPadding {
            tensor: info.name.clone(),
            row,
        }),
    }
}

fn quantization(file: &Container<'_>, program: &Program) -> Result<Quantization, ParseError> {
    let mut at = cursor(file, SectionKind::Quant)?;
    let mut activations = Vec::with_capacity(program.buffers.len());
    activations.resize_with(program.buffers.len(), || None);
    let mut next = 0; // the least index that may come
    for _ in 0..at.count("activation quantizers", least::ACTIVATION)? {
        let offset = at.offset();
        let index = usize::from(at.u16()?);
        let slot = activations.get_mut(index).filter(|_| index >= next);
        let slot = slot.ok_or_else(|| at.value_at("buffer of a quantizer", offset))?;
        *slot = Some(activation_quant(&mut at)?);
        next = index.saturating_add(1);
    }
    let per_head = file.features & layout::FEATURE_SOFTMAX_PER_HEAD != 0;
    let mut softmax = Vec::with_capacity(program.ops.len());
    softmax.resize_with(program.ops.len(), || None);
    let mut next = 0;
    for _ in 0..at.count("softmax quantizers", least::SOFTMAX)? {
        let offset = at.offset();
        let index = at.size("operation of a quantizer")?;
        let slot = softmax.get_mut(index).filter(|_| index >= next);
        let slot = slot.ok_or_else(|| at.value_at("operation of a quantizer", offset))?;
        *slot = Some(softmax_quant(&mut at, per_head)?);
        next = index.saturating_add(1);
    }
    at.finish()?;
    Ok(Quantization {
        activations,
        softmax,
    })
}

fn activation_quant(at: &mut Cursor<'_>) -> Result<ActivationQuant, ParseError> {
    let bits = at.bits()?;
    let offset = at.offset();
    let has_codebook = match at.u8()? {
        layout::UNIFORM => false,
        layout::CODEBOOK => true,
        _ => return Err(at.value_at("kind of levels", offset)),
    };
    let count = at.count("scales", 4 + 1)?;
    let mut scale = Vec::with_capacity(count);
    for _ in 0..count {
        scale.push(read_scale(at)?);
    }
    let offset = at.offset();
    let zero_point = at.bytes(count)?.to_vec();
    let codebook = match has_codebook {
        false => None,
        true => Some(codebook(at, bits)?),
    };
    let quant = ActivationQuant {
        bits,
        scale,
        zero_point,
        codebook,
    };
    let most = quant.grid_bits().max_code();
    if quant.zero_point.iter().any(|&zero| zero > most) {
        return Err(at.value_at("zero point", offset));
    }
    Ok(quant)
}

fn codebook(at: &mut Cursor<'_>, bits: BitWidth) -> Result<Codebook, ParseError> {
    let levels = layout::codes_of(bits);
    Ok(Codebook {
        thresholds: at.bytes(levels.saturating_sub(1))?.to_vec(),
        levels: at.bytes(levels)?.to_vec(),
    })
}

fn softmax_quant(at: &mut Cursor<'_>, per_head: bool) -> Result<SoftmaxQuant, ParseError> {
    let start = at.offset();
    let bits = at.bits()?;
    let method = layout::method(at.u8()?).ok_or_else(|| at.value_at("softmax method", start))?;
    let kind = at.u8()?;
    let renormalise = match at.u8()? {
        0 => false,
        1 => true,
        _ => return Err(at.value_at("renormalise", start)),
    };
    let kind = match kind {
        layout::ROW_MAX => SoftmaxKind::RowMax,
        layout::STATIC => SoftmaxKind::Static,
        _ => return Err(at.value_at("softmax kind", start)),
    };
    let count = match per_head {
        true => at.count("softmax codebooks", layout::softmax_codebook_len(bits))?,
        false => 1,
    };
    let mut codebooks = Vec::with_capacity(count);
    for _ in 0..count {
        codebooks.push(softmax_codebook(at, bits, kind)?);
    }
    Ok(SoftmaxQuant {
        bits,
        method,
        kind,
        renormalise,
        codebooks,
    })
}

fn softmax_codebook(
    at: &mut Cursor<'_>,
    bits: BitWidth,
    kind: SoftmaxKind,
) -> Result<SoftmaxCodebook, ParseError> {
    let scale = match kind {
        SoftmaxKind::RowMax => {
            at.reserved::<4>()?;
            0.0
        }
        SoftmaxKind::Static => read_scale(at)?,
    };
    let codes = layout::codes_of(bits);
    let mut thresholds = Vec::with_capacity(codes.saturating_sub(1));
    for _ in 1..codes {
        thresholds.push(at.f32()?);
    }
    let mut multipliers = Vec::with_capacity(codes);
    for _ in 0..codes {
        multipliers.push(at.i16()?);
    }
    Ok(SoftmaxCodebook {
        scale,
        thresholds,
        multipliers,
    })
}

fn read_scale(at: &mut Cursor<'_>) -> Result<f32, ParseError> {
    let offset = at.offset();
    let scale = at.f32()?;
    if !check::is_scale(scale) {
        return Err(at.value_at("scale", offset));
    }
    Ok(scale)
}

fn preprocess(file: &Container<'_>) -> Result<Preprocess, ParseError> {
    let mut at = cursor(file, SectionKind::Preprocess)?;
    let start = at.offset();
    let resize = at.u8()?;
    let interpolation = match at.u8()? {
        layout::BILINEAR => Interpolation::Bilinear,
        layout::BICUBIC => Interpolation::Bicubic,
        _ => return Err(at.value_at("interpolation", start)),
    };
    at.reserved::<2>()?;
    let resize = match resize {
        layout::SQUASH => {
            at.reserved::<4>()?;
            Resize::Squash
        }
        layout::SHORTER_SIDE => Resize::ShorterSide(shorter_side(&mut at)?),
        _ => return Err(at.value_at("resize", start)),
    };
    let mean = [at.f32()?, at.f32()?, at.f32()?];
    if mean.iter().any(|mean| !mean.is_finite()) {
        return Err(at.value_at("mean", start));
    }
    let std = [
        read_scale(&mut at)?,
        read_scale(&mut at)?,
        read_scale(&mut at)?,
    ];
    at.finish()?;
    Ok(Preprocess {
        resize,
        interpolation,
        mean,
        std,
    })
}

fn shorter_side(at: &mut Cursor<'_>) -> Result<u32, ParseError> {
    let offset = at.offset();
    let side = at.u32()?;
    let in_range = usize::try_from(side).is_ok_and(|side| (1..=MAX_SIZE).contains(&side));
    if !in_range {
        return Err(at.value_at("shorter side", offset));
    }
    Ok(side)
}

fn labels<'a>(file: &Container<'a>) -> Result<Vec<&'a str>, ParseError> {
    let mut at = cursor(file, SectionKind::Labels)?;
    let count = at.count("labels", least::LABEL)?;
    let mut labels = Vec::with_capacity(count);
    for _ in 0..count {
        labels.push(at.name()?);
    }
    at.finish()?;
    Ok(labels)
}
