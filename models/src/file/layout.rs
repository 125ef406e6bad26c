//! The numbers that writer and reader share: sizes, marks, tags.
//!
//! `SPEC.md` explains each; its section is named beside it.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::unwrap_used
)]

use crate::quant::{BitWidth, SoftmaxMethod};
use tpvit_kernels::{GemmShape, MAX_K, PanelLayout};

/// The first eight bytes of every file. The high bit shows a 7-bit channel,
/// the line ends show a conversion of them, as in PNG.
pub const MAGIC: [u8; 8] = *b"\x89TPV\r\n\x1a\n";

/// Major and minor version that [`write()`](crate::write) writes and
/// [`Model::parse`](crate::Model::parse) reads.
pub const VERSION: (u16, u16) = (1, 0);

/// Feature bit 0: an activation has a codebook (SPEC.md, section 8).
pub const FEATURE_CODEBOOK: u32 = 1 << 0;

/// Feature bit 1: an attention has a codebook for each head, so QUANT says how
/// many there are (SPEC.md, section 8).
pub const FEATURE_SOFTMAX_PER_HEAD: u32 = 1 << 1;

/// Feature bit 2: PROGRAM has an operation with a tag above 5 (SPEC.md, section 5).
pub const FEATURE_OPERATIONS: u32 = 1 << 2;

/// Feature bit 3: the codes of a weight lie in panels (SPEC.md, section 7).
pub const FEATURE_PANELS: u32 = 1 << 3;

/// The feature bits this reader understands; a file that requires another one
/// is refused.
pub const SUPPORTED_FEATURES: u32 =
    FEATURE_CODEBOOK | FEATURE_SOFTMAX_PER_HEAD | FEATURE_OPERATIONS | FEATURE_PANELS;

/// Bytes to which sections, and tensors within DATA, are aligned: a cache line.
pub const ALIGN: usize = 64;

/// Bytes of the header (SPEC.md, section 2).
pub(super) const HEADER_LEN: usize = 32;

/// Where the header stores the number of sections.
#[cfg(feature = "std")]
pub(super) const SECTIONS_AT: usize = 24;

/// Where the header stores the checksum of itself and of the table.
pub(super) const HEADER_CRC_AT: usize = 28;

/// Bytes of an entry of the section table (SPEC.md, section 3).
pub(super) const ENTRY_LEN: usize = 32;

/// Section flag: a reader that does not know the kind must refuse the file.
pub(super) const REQUIRED: u32 = 1;

// Kinds of sections, in the order of the file (SPEC.md, section 3).
pub(super) const PROGRAM: u32 = 1;
pub(super) const TENSORS: u32 = 2;
pub(super) const QUANT: u32 = 3;
pub(super) const PREPROCESS: u32 = 4;
pub(super) const LABELS: u32 = 5;
pub(super) const PROVENANCE: u32 = 6;
pub(super) const DATA: u32 = 256;

/// Stands for "no tensor" or "no buffer" where one is optional.
pub(super) const NONE: u16 = u16::MAX;

// Tags of operations (SPEC.md, section 5).
pub(super) const PATCH_EMBED: u8 = 1;
pub(super) const LAYER_NORM: u8 = 2;
pub(super) const LINEAR: u8 = 3;
pub(super) const ATTENTION: u8 = 4;
pub(super) const SELECT_TOKEN: u8 = 5;
pub(super) const WINDOW_ATTENTION: u8 = 6;
pub(super) const HEAD_NORM: u8 = 7;
pub(super) const GATE: u8 = 8;
pub(super) const POOL: u8 = 9;
pub(super) const PATCH_MERGE: u8 = 10;

// Tags of poolings (SPEC.md, section 5).
pub(super) const MEAN: u8 = 0;
pub(super) const CONCAT: u8 = 1;

// Tags of activations (SPEC.md, section 5).
pub(super) const IDENTITY: u8 = 0;
pub(super) const GELU: u8 = 1;
pub(super) const RELU: u8 = 2;

// Roles of tensors (SPEC.md, section 6), and the width of an f32.
pub(super) const FLOAT: u8 = 0;
pub(super) const WEIGHT: u8 = 1;
pub(super) const WEIGHT_IN_PANELS: u8 = 2;
pub(super) const FLOAT_BITS: u8 = 32;

// Levels of an activation (SPEC.md, section 8).
pub(super) const UNIFORM: u8 = 0;
pub(super) const CODEBOOK: u8 = 1;

// What attention codes are relative to (SPEC.md, section 8).
pub(super) const ROW_MAX: u8 = 0;
pub(super) const STATIC: u8 = 1;

// Preprocessing (SPEC.md, section 9).
pub(super) const SQUASH: u8 = 0;
pub(super) const SHORTER_SIDE: u8 = 1;
pub(super) const BILINEAR: u8 = 0;
pub(super) const BICUBIC: u8 = 1;

/// Smallest size of an entry, which caps its count by the bytes that are left.
pub(super) mod least {
    /// A buffer: an empty name, rows, columns.
    pub(in crate::file) const BUFFER: usize = 2 + 4 + 4;
    /// `Gate`, the shortest operation.
    pub(in crate::file) const OP: usize = 1 + 2 + 2;
    /// A tensor with an empty name.
    pub(in crate::file) const TENSOR: usize = 2 + 1 + 1 + 4 + 4 + 8 + 8;
    /// An activation quantizer with one scale.
    pub(in crate::file) const ACTIVATION: usize = 2 + 1 + 1 + 4 + 4 + 1;
    /// A 2-bit softmax quantizer.
    pub(in crate::file) const SOFTMAX: usize = 4 + 4 + 4 + 3 * 4 + 4 * 2;
    /// An empty label.
    pub(in crate::file) const LABEL: usize = 2;
}

/// The stored tag of a method (SPEC.md, section 8).
pub(super) fn method_tag(method: SoftmaxMethod) -> u8 {
    match method {
        SoftmaxMethod::Log2 => 0,
        SoftmaxMethod::Sulq => 1,
        SoftmaxMethod::TulqA => 2,
        SoftmaxMethod::TulqZa => 3,
        SoftmaxMethod::RowMax => 4,
        SoftmaxMethod::TulqZ => 5,
        SoftmaxMethod::Uniform => 6,
        SoftmaxMethod::LogSqrt2 => 7,
        SoftmaxMethod::AdaLog => 8,
        SoftmaxMethod::TwinUniform => 9,
    }
}

/// The inverse of [`method_tag`].
pub(super) fn method(tag: u8) -> Option<SoftmaxMethod> {
    match tag {
        0 => Some(SoftmaxMethod::Log2),
        1 => Some(SoftmaxMethod::Sulq),
        2 => Some(SoftmaxMethod::TulqA),
        3 => Some(SoftmaxMethod::TulqZa),
        4 => Some(SoftmaxMethod::RowMax),
        5 => Some(SoftmaxMethod::TulqZ),
        6 => Some(SoftmaxMethod::Uniform),
        7 => Some(SoftmaxMethod::LogSqrt2),
        8 => Some(SoftmaxMethod::AdaLog),
        9 => Some(SoftmaxMethod::TwinUniform),
        _ => None,
    }
}

/// Number of codes of a width, 4 to 256.
pub(super) fn codes_of(bits: BitWidth) -> usize {
    usize::from(bits.max_code()).saturating_add(1)
}

/// Bytes of a softmax codebook: scale, thresholds, multipliers.
pub(super) fn softmax_codebook_len(bits: BitWidth) -> usize {
    codes_of(bits).saturating_mul(4 + 2)
}

/// `at` rounded up to a multiple of [`ALIGN`]; `None` beyond `usize`.
pub(super) fn align(at: usize) -> Option<usize> {
    at.checked_next_multiple_of(ALIGN)
}

/// Where the parts of a weight lie, from its start (SPEC.md, section 7).
/// The scales are at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WeightLayout {
    pub(super) zero_points_at: usize,
    pub(super) zero_points_end: usize,
    pub(super) codes_at: usize,
    /// Of a row of dense codes.
    pub(super) row_len: usize,
    pub(super) len: usize,
}

/// The order of a weight's codes as the file says it, in four bytes: most have none.
#[derive(Clone, Copy, Debug)]
pub(super) struct PanelOrder([u8; 4]);

impl PanelOrder {
    /// Reads it; `None` if there is no such order.
    pub(super) fn new(bytes: [u8; 4]) -> Option<Self> {
        let order = PanelOrder(bytes);
        let [_, _, _, sums] = bytes;
        (order.layout().is_valid() && sums <= 1).then_some(order)
    }

    pub(super) fn layout(self) -> PanelLayout {
        let [nr, sub, kr, sums] = self.0.map(usize::from);
        PanelLayout {
            nr,
            sub,
            kr,
            sums: sums != 0,
        }
    }
}

/// What panels need to know of a weight; `None` if it has more columns than any has.
pub(super) fn panel_shape(bits: BitWidth, rows: usize, cols: usize) -> Option<GemmShape> {
    (cols <= MAX_K).then_some(GemmShape {
        n: rows,
        k: cols,
        weight_bits: bits,
        act_max: 0, // of no importance here
    })
}

/// The layout of a `[rows, cols]` weight, whose codes lie in panels if there is an order
/// of them; `None` where a size wraps.
pub(super) fn weight_layout(
    bits: BitWidth,
    rows: usize,
    cols: usize,
    panels: Option<PanelLayout>,
) -> Option<WeightLayout> {
    let zero_points_at = rows.checked_mul(4)?;
    let zero_points_end = zero_points_at.checked_add(rows)?;
    let codes_at = align(zero_points_end)?;
    let width = usize::try_from(bits.bits()).ok()?;
    let row_len = cols.checked_mul(width)?.div_ceil(8);
    let codes_len = match panels {
        None => rows.checked_mul(row_len)?,
        Some(panels) => panels.checked_packed_len(&panel_shape(bits, rows, cols)?)?,
    };
    let len = codes_at.checked_add(codes_len)?;
    Some(WeightLayout {
        zero_points_at,
        zero_points_end,
        codes_at,
        row_len,
        len,
    })
}

/// Bytes of a `[rows, cols]` f32 tensor; `None` where they wrap.
pub(super) fn float_len(rows: usize, cols: usize) -> Option<usize> {
    rows.checked_mul(cols)?.checked_mul(4)
}
