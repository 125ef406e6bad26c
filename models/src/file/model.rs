//! A parsed file and the views of its tensors.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::unwrap_used
)]

use super::container::Section;
use super::error::ParseError;
use super::layout::PanelOrder;
use super::parse::{self, DataChecksum};
use super::write::{ModelData, TensorData};
use crate::dense;
use crate::preprocess::Preprocess;
use crate::program::{Program, TensorId};
use crate::quant::{BitWidth, Quantization, WeightQuant};
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::{Deref, Range};
use tpvit_kernels::{GemmShape, PanelLayout};

/// All that a `.tpv` file says but the values of its tensors, checked.
///
/// Holding one proves that the program can be run: each shape fits, each
/// number is in its range, no integer sum can overflow.
#[derive(Clone, Debug)]
pub struct ModelInfo<'a> {
    pub(super) version: (u16, u16),
    pub(super) file_len: usize,
    pub(super) sections: Vec<Section>,
    pub(super) program: Program,
    pub(super) quantization: Quantization,
    pub(super) places: Vec<TensorPlace>, // by TensorId
    pub(super) preprocess: Preprocess,
    pub(super) labels: Vec<&'a str>, // none or `classes`
    pub(super) provenance: &'a str,
}

/// Where in the file a tensor is, and how wide.
#[derive(Clone, Copy, Debug)]
pub(super) struct TensorPlace {
    /// Of a weight's codes.
    pub(super) bits: Option<BitWidth>,
    /// Where the zeros begin that fill the file up to it.
    pub(super) filling: usize,
    pub(super) start: usize,
    /// Where the codes of a weight begin.
    pub(super) codes: usize,
    pub(super) end: usize,
    /// The order of a weight's codes, if they do not lie in rows.
    pub(super) panels: Option<PanelOrder>,
}

impl<'a> ModelInfo<'a> {
    /// What is computed.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// How activations and attention are quantized.
    pub fn quantization(&self) -> &Quantization {
        &self.quantization
    }

    /// Width of the codes of the weight of a matrix product.
    ///
    /// # Panics
    /// If `id` is not of [`ModelInfo::program`], or holds floats there.
    pub fn weight_bits(&self, id: TensorId) -> BitWidth {
        let place = self.places.get(id.index());
        place
            .and_then(|place| place.bits)
            .expect("the tensor is a weight of this model's program")
    }

    /// The order in which the codes of a weight lie, if in panels; `None` if in dense
    /// rows.
    ///
    /// # Panics
    /// If `id` is not of [`ModelInfo::program`].
    pub fn panel_layout(&self, id: TensorId) -> Option<PanelLayout> {
        self.place_of(id).panels.map(PanelOrder::layout)
    }

    /// Where in the file the codes of a weight are.
    ///
    /// # Panics
    /// If `id` is not of [`ModelInfo::program`].
    pub fn codes_range(&self, id: TensorId) -> Range<usize> {
        let place = self.place_of(id);
        place.codes..place.end
    }

    fn place_of(&self, id: TensorId) -> &TensorPlace {
        let place = self.places.get(id.index());
        place.expect("the tensor is of this model's program")
    }

    /// What happens to a picture first.
    pub fn preprocess(&self) -> &Preprocess {
        &self.preprocess
    }

    /// The names of the classes in order: none, or
    /// [`Program::classes`] of them.
    pub fn labels(&self) -> &[&'a str] {
        &self.labels
    }

    /// The name of a class, where the file has one.
    pub fn label(&self, class: usize) -> Option<&'a str> {
        self.labels.get(class).copied()
    }

    /// Where the model came from: a JSON object as the quantizer wrote it.
    /// Only its UTF-8 is checked.
    pub fn provenance(&self) -> &'a str {
        self.provenance
    }

    /// Major and minor version of the file's format.
    pub fn version(&self) -> (u16, u16) {
        self.version
    }

    /// The section table, in the order of the file.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Length of the file in bytes.
    pub fn file_len(&self) -> usize {
        self.file_len
    }
}

/// A `.tpv` file in memory, checked: its [`ModelInfo`], to which it
/// dereferences, and its tensors. Borrows the bytes of these and its text.
///
/// ```
/// # use tpvit_models::{Model, synthetic, write};
/// # let data = synthetic::tiny();
/// # let bytes = write(&data).unwrap();
/// let model = Model::parse(&bytes)?;
/// assert_eq!(model.program().classes(), 10);
/// # Ok::<(), tpvit_models::ParseError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Model<'a> {
    pub(super) info: ModelInfo<'a>,
    pub(super) bytes: &'a [u8],
    pub(super) tensors: Vec<Tensor<'a>>, // by TensorId, of the role in the program
}

impl<'a> Deref for Model<'a> {
    type Target = ModelInfo<'a>;

    fn deref(&self) -> &ModelInfo<'a> {
        &self.info
    }
}

impl<'a> Model<'a> {
    /// Reads and checks a `.tpv` file.
    ///
    /// Never panics, whatever the bytes; allocates at most
    /// 24 times their length and 4 KiB.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        parse::model(bytes, DataChecksum::Verify)
    }

    /// As [`Model::parse`], without comparing the checksum of DATA, which is
    /// nearly all of the time that `parse` takes. Everything else is checked,
    /// so this is as safe; only a damaged weight can go unnoticed.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse_unverified(bytes: &'a [u8]) -> Result<Self, ParseError> {
        parse::model(bytes, DataChecksum::Skip)
    }

    /// The file.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// A constant of the program.
    ///
    /// # Panics
    /// If `id` is not of [`ModelInfo::program`].
    pub fn tensor(&self, id: TensorId) -> Tensor<'a> {
        *self
            .tensors
            .get(id.index())
            .expect("the tensor is of this model's program")
    }

    /// The weight of a matrix product.
    ///
    /// # Panics
    /// If `id` is not of [`ModelInfo::program`], or holds floats there.
    pub fn weight(&self, id: TensorId) -> WeightTensor<'a> {
        self.tensor(id).weight()
    }

    /// A bias, a gain, an embedding.
    ///
    /// # Panics
    /// If `id` is not of [`ModelInfo::program`], or is a weight there.
    pub fn float(&self, id: TensorId) -> FloatTensor<'a> {
        self.tensor(id).float()
    }

    /// An owned copy, which [`write()`](crate::write) turns into the same bytes, and
    /// [`write_in_panels`](crate::write_in_panels) where weights lie in panels (but for
    /// sections that this reader does not know).
    pub fn to_data(&self) -> ModelData {
        ModelData {
            program: self.program.clone(),
            quantization: self.quantization.clone(),
            tensors: self.tensors.iter().copied().map(Tensor::to_data).collect(),
            preprocess: self.preprocess,
            labels: self.labels.iter().copied().map(String::from).collect(),
            provenance: String::from(self.provenance),
        }
    }
}

/// A view of a constant in the file.
#[derive(Clone, Copy, Debug)]
pub enum Tensor<'a> {
    /// Biases, LayerNorm gains, embeddings.
    Float(FloatTensor<'a>),
    /// The weight of a matrix product.
    Weight(WeightTensor<'a>),
}

impl<'a> Tensor<'a> {
    /// The weight that it is.
    ///
    /// # Panics
    /// If it holds floats.
    pub fn weight(self) -> WeightTensor<'a> {
        match self {
            Tensor::Weight(weight) => weight,
            Tensor::Float(_) => panic!("the tensor holds floats"),
        }
    }

    /// The floats that it holds.
    ///
    /// # Panics
    /// If it is a weight.
    pub fn float(self) -> FloatTensor<'a> {
        match self {
            Tensor::Float(float) => float,
            Tensor::Weight(_) => panic!("the tensor is a weight"),
        }
    }

    fn to_data(self) -> TensorData {
        match self {
            Tensor::Float(float) => TensorData::Float(float.iter().collect()),
            Tensor::Weight(weight) => TensorData::Weight(weight.to_quant()),
        }
    }
}

/// Floats in the file; all are finite.
#[derive(Clone, Copy, Debug)]
pub struct FloatTensor<'a> {
    values: &'a [[u8; 4]], // little-endian; unaligned, so not an &[f32]
}

impl<'a> FloatTensor<'a> {
    /// A view of whole little-endian floats.
    pub(super) fn new(values: &'a [[u8; 4]]) -> Self {
        FloatTensor { values }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The value at `index`, if there is one.
    pub fn get(&self, index: usize) -> Option<f32> {
        self.values
            .get(index)
            .map(|&bytes| f32::from_le_bytes(bytes))
    }

    /// All values in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = f32> + Clone + use<'a> {
        self.values.iter().map(|&bytes| f32::from_le_bytes(bytes))
    }

    /// Copies all values.
    ///
    /// # Panics
    /// If `out` is not [`FloatTensor::len`] long.
    pub fn copy_to(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.len(), "length of the copy");
        for (out, value) in out.iter_mut().zip(self.iter()) {
            *out = value;
        }
    }

    /// All values in a new vector.
    pub fn to_vec(&self) -> Vec<f32> {
        self.iter().collect()
    }
}

/// A quantized weight in the file, `[rows, cols]` = `[outputs, inputs]`.
///
/// ```text
/// w[n, k] ~= scales[n] * (code[n, k] - zero_points[n])
/// ```
#[derive(Clone, Copy, Debug)]
pub struct WeightTensor<'a> {
    pub(super) bits: BitWidth,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_len: usize,
    pub(super) scales: FloatTensor<'a>,
    pub(super) zero_points: &'a [u8],
    pub(super) codes: &'a [u8],
    pub(super) panels: Option<PanelOrder>,
}

impl<'a> WeightTensor<'a> {
    /// Width of a code.
    pub fn bits(&self) -> BitWidth {
        self.bits
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// `[rows]`; each positive, finite, not subnormal.
    pub fn scales(&self) -> FloatTensor<'a> {
        self.scales
    }

    /// `[rows]`; each at most `bits.max_code()`.
    pub fn zero_points(&self) -> &'a [u8] {
        self.zero_points
    }

    /// The codes as the file has them: `[rows][row_len_bytes]` dense ones, see
    /// [`crate::dense`], unless they lie in [`panels`](WeightTensor::panels).
    pub fn codes(&self) -> &'a [u8] {
        self.codes
    }

    /// The order of the codes, if they lie in panels.
    pub fn panels(&self) -> Option<PanelLayout> {
        self.panels.map(PanelOrder::layout)
    }

    /// Bytes of a row of dense codes.
    pub fn row_len_bytes(&self) -> usize {
        self.row_len
    }

    /// Unpacks a row to one code per byte.
    ///
    /// # Panics
    /// If there is no such row or `out` is not [`WeightTensor::cols`] long.
    pub fn unpack_row(&self, row: usize, out: &mut [u8]) {
        match self.panels() {
            None => {
                let codes = self.codes.chunks_exact(self.row_len).nth(row);
                let codes = codes.expect("the row is of this weight");
                dense::unpack_row(self.bits, codes, out);
            }
            Some(panels) => panels.unpack_row(&self.shape(), self.codes, row, out),
        }
    }

    /// As panels need to know it.
    pub(super) fn shape(&self) -> GemmShape {
        GemmShape {
            n: self.rows,
            k: self.cols,
            weight_bits: self.bits,
            act_max: 0, // of no importance here
        }
    }

    /// An owned copy with one code per byte.
    pub fn to_quant(&self) -> WeightQuant {
        let mut codes = vec![0; self.rows.saturating_mul(self.cols)];
        for (row, out) in codes.chunks_exact_mut(self.cols).enumerate() {
            self.unpack_row(row, out);
        }
        WeightQuant {
            bits: self.bits,
            scale: self.scales.to_vec(),
            zero_point: self.zero_points.to_vec(),
            codes,
        }
    }
}
