//! Why bytes are not a model that can be run.

use super::container::SectionKind;
use super::layout::VERSION;
use crate::program::ProgramError;
use alloc::string::String;
use core::fmt;
use tpvit_kernels::PanelFault;

/// Why bytes are not a model that can be run.
///
/// Offsets are in bytes from the start of the file unless said otherwise.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ParseError {
    /// The file does not begin with [`MAGIC`](super::MAGIC).
    NotTpv,
    /// It begins with a [`MAGIC`](super::MAGIC) whose line ends or high bit
    /// were converted.
    TextMode,
    /// The file ends early, or carries extra bytes.
    FileLength {
        /// What the header promises, or the least that a header needs.
        expected: u64,
        /// Length of the bytes given.
        found: u64,
    },
    /// Written by a newer `tpvit`, in a layout unknown to this one.
    NewerVersion {
        /// Major and minor version of the file.
        found: (u16, u16),
        /// The newest that this reader understands.
        supported: (u16, u16),
    },
    /// A version that never existed.
    UnknownVersion {
        /// Major and minor version of the file.
        found: (u16, u16),
    },
    /// The file needs features that this reader lacks.
    RequiredFeatures {
        /// The bits that are unknown.
        unknown: u32,
    },
    /// More sections than the file has room for.
    SectionCount {
        /// Number claimed.
        found: u32,
    },
    /// The header or the section table is damaged.
    HeaderChecksum {
        /// In the file.
        stored: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// A section is damaged.
    SectionChecksum {
        /// The section.
        section: SectionKind,
        /// In the file.
        stored: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// Sections do not ascend by kind, or one is there twice.
    SectionOrder {
        /// The section that is out of order.
        section: SectionKind,
    },
    /// A section that every model has is not there.
    MissingSection {
        /// The section.
        section: SectionKind,
    },
    /// A section this reader does not know, which it must not skip.
    UnknownSection {
        /// Its number.
        kind: u32,
    },
    /// A field of the section table has a value that it must not have.
    SectionEntry {
        /// The section.
        section: SectionKind,
        /// The field: `flags`, `offset`, `length` or `reserved`.
        what: &'static str,
        /// The one value allowed, or the largest one for a length.
        expected: u64,
        /// The value found.
        found: u64,
    },
    /// A byte that fills a gap is not zero.
    Padding {
        /// Where.
        offset: u64,
    },
    /// A section is too short for what it says it holds.
    SectionEnd {
        /// The section.
        section: SectionKind,
        /// Where in the file something did not fit.
        offset: u64,
    },
    /// A section goes on after its last entry.
    SectionRest {
        /// The section.
        section: SectionKind,
        /// Where in the file its last entry ends.
        offset: u64,
    },
    /// A count exceeds what the rest of its section can hold, or what its
    /// numbering allows.
    Count {
        /// The section.
        section: SectionKind,
        /// What is counted.
        what: &'static str,
        /// The count.
        found: u64,
        /// The largest one possible.
        most: u64,
    },
    /// A number has no meaning where it stands.
    Value {
        /// The section.
        section: SectionKind,
        /// What the number is.
        what: &'static str,
        /// Where in the file it stands.
        offset: u64,
    },
    /// Text is not UTF-8, is empty where it must not be, or contains control
    /// characters, which could forge what a terminal shows.
    Text {
        /// The section.
        section: SectionKind,
        /// Where in the file it begins.
        offset: u64,
    },
    /// Two buffers or two tensors have one name.
    DuplicateName {
        /// The name.
        name: String,
    },
    /// The program cannot be run.
    Program(ProgramError),
    /// A tensor does not lie where its size and its neighbours put it.
    TensorPlace {
        /// Name of the tensor.
        tensor: String,
        /// `offset` or `length`, within DATA.
        what: &'static str,
        /// The one value allowed.
        expected: u64,
        /// The value found.
        found: u64,
    },
    /// A width of codes that does not exist, or not for this role.
    TensorBits {
        /// Name of the tensor.
        tensor: String,
        /// The width found.
        found: u8,
    },
    /// A number in a tensor is not finite, or a scale is not positive and normal.
    TensorValue {
        /// Name of the tensor.
        tensor: String,
        /// `value` or `scale`.
        what: &'static str,
        /// Its index.
        index: usize,
        /// The number.
        found: f32,
    },
    /// A zero point of a weight exceeds its largest code.
    TensorZeroPoint {
        /// Name of the tensor.
        tensor: String,
        /// The output channel.
        index: usize,
        /// The zero point.
        found: u8,
        /// The largest code.
        most: u8,
    },
    /// The unused bits at the end of a row of codes are not zero.
    RowPadding {
        /// Name of the tensor.
        tensor: String,
        /// The row.
        row: usize,
    },
    /// The panels of a weight hold something else.
    Panels {
        /// Name of the tensor.
        tensor: String,
        /// What is wrong.
        fault: PanelFault,
    },
    /// A buffer of codes has no quantizer.
    NoActivationQuant {
        /// Name of the buffer.
        buffer: String,
    },
    /// A buffer of floats has a quantizer.
    NeedlessActivationQuant {
        /// Name of the buffer.
        buffer: String,
    },
    /// A quantizer has neither one scale nor one for each column.
    ScaleCount {
        /// Name of the buffer.
        buffer: String,
        /// The columns of the buffer.
        expected: usize,
        /// Scales found.
        found: usize,
    },
    /// A codebook contradicts itself or is where none can be.
    Codebook {
        /// Name of the buffer.
        buffer: String,
        /// What must hold.
        rule: &'static str,
    },
    /// The header requires other features than the file uses.
    Features {
        /// The bits in the header.
        required: u32,
        /// The bits it should have.
        used: u32,
    },
    /// The scale or zero point changes where one integer sum needs one value:
    /// within the input of a linear layer, or within a head of q or k.
    MixedScale {
        /// Name of the buffer.
        buffer: String,
        /// The first column that differs.
        col: usize,
    },
    /// A ReLU's output has codes below zero.
    NegativeRelu {
        /// Name of the buffer.
        buffer: String,
    },
    /// An attention operation has no softmax quantizer.
    NoSoftmaxQuant {
        /// Index of the operation.
        op: usize,
    },
    /// Another operation has a softmax quantizer.
    NeedlessSoftmaxQuant {
        /// Index of the operation.
        op: usize,
    },
    /// A softmax quantizer contradicts itself.
    Softmax {
        /// Index of the operation.
        op: usize,
        /// What must hold.
        rule: &'static str,
    },
    /// An integer sum could leave the range of i32.
    Overflow {
        /// Index of the operation.
        op: usize,
        /// Which sum.
        what: &'static str,
        /// Its largest magnitude; at most `2^31 - 1` is allowed.
        bound: u64,
    },
    /// The crop is larger than the resized picture.
    Crop {
        /// The shorter side after the resize, in pixels.
        shorter_side: u32,
        /// The longest side of the model's input.
        image: usize,
    },
    /// Neither no labels nor one for each class.
    LabelCount {
        /// Number of labels.
        found: usize,
        /// Number of classes.
        classes: usize,
    },
}

impl From<ProgramError> for ParseError {
    fn from(error: ProgramError) -> Self {
        ParseError::Program(error)
    }
}

impl fmt::Display for ParseError {
    #[allow(clippy::too_many_lines)] // one arm per variant
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ParseError::NotTpv => write!(f, "not a .tpv file: it does not begin with the magic"),
            ParseError::TextMode => write!(
                f,
                "the .tpv file was changed by a transfer in text mode; copy it again in binary mode"
            ),
            ParseError::FileLength { expected, found } => write!(
                f,
                "the file has {found} bytes, must have {expected}; it was cut short or added to, copy it again"
            ),
            ParseError::NewerVersion { found, supported } => write!(
                f,
                "the file has format version {}.{}, this tpvit reads up to {}.{}; update tpvit, or quantize again with this one",
                found.0, found.1, supported.0, supported.1
            ),
            ParseError::UnknownVersion { found } => write!(
                f,
                "the file has format version {}.{}, which does not exist (the first is {}.0)",
                found.0, found.1, VERSION.0
            ),
            ParseError::RequiredFeatures { unknown } => write!(
                f,
                "the file requires features {unknown:#x}, unknown to this tpvit; update it"
            ),
            ParseError::SectionCount { found } => write!(
                f,
                "the header claims {found} sections, more than the file has room for"
            ),
            ParseError::HeaderChecksum { stored, computed } => write!(
                f,
                "the header is damaged (crc32 is {computed:08x}, must be {stored:08x}); copy the file again"
            ),
            ParseError::SectionChecksum {
                section,
                stored,
                computed,
            } => write!(
                f,
                "section {section} is damaged (crc32 is {computed:08x}, must be {stored:08x}); copy the file again"
            ),
            ParseError::SectionOrder { section } => write!(
                f,
                "section {section} is out of order (kinds ascend, each at most once)"
            ),
            ParseError::MissingSection { section } => write!(f, "section {section} is missing"),
            ParseError::UnknownSection { kind } => write!(
                f,
                "the file requires a section of kind {kind}, unknown to this tpvit; update it"
            ),
            ParseError::SectionEntry {
                section,
                what: "length",
                expected,
                found,
            } => write!(
                f,
                "section {section}: length is {found}, at most {expected} bytes are left"
            ),
            ParseError::SectionEntry {
                section,
                what,
                expected,
                found,
            } => write!(
                f,
                "section {section}: {what} is {found}, must be {expected}"
            ),
            ParseError::Padding { offset } => {
                write!(f, "the filling byte at offset {offset} is not zero")
            }
            ParseError::SectionEnd { section, offset } => write!(
                f,
                "section {section} ends before what stands at offset {offset} does"
            ),
            ParseError::SectionRest { section, offset } => write!(
                f,
                "section {section} goes on after its last entry, at offset {offset}"
            ),
            ParseError::Count {
                section,
                what,
                found,
                most,
            } => write!(
                f,
                "section {section}: {found} {what}, there can be at most {most}"
            ),
            ParseError::Value {
                section,
                what,
                offset,
            } => write!(
                f,
                "section {section}: {what} at offset {offset} is out of range"
            ),
            ParseError::Text { section, offset } => write!(
                f,
                "section {section}: the text at offset {offset} is empty, not UTF-8 or has control characters"
            ),
            ParseError::DuplicateName { name } => write!(f, "the name {name} is used twice"),
            ParseError::Program(error) => write!(f, "the program is invalid: {error}"),
            ParseError::TensorPlace {
                tensor,
                what,
                expected,
                found,
            } => write!(f, "tensor {tensor}: {what} is {found}, must be {expected}"),
            ParseError::TensorBits { tensor, found } => write!(
                f,
                "tensor {tensor}: {found} bits, must be 2, 3, 4, 6 or 8 for a weight, 32 for floats"
            ),
            ParseError::TensorValue {
                tensor,
                what: "scale",
                index,
                found,
            } => write!(
                f,
                "tensor {tensor}: scale {index} is {found:e}, must be positive, finite and not subnormal"
            ),
            ParseError::TensorValue {
                tensor,
                what,
                index,
                found,
            } => write!(
                f,
                "tensor {tensor}: {what} {index} is {found:e}, must be finite"
            ),
            ParseError::TensorZeroPoint {
                tensor,
                index,
                found,
                most,
            } => write!(
                f,
                "tensor {tensor}: zero point {index} is {found}, must be at most {most}"
            ),
            ParseError::RowPadding { tensor, row } => write!(
                f,
                "tensor {tensor}: the unused bits of row {row} are not zero"
            ),
            ParseError::Panels { tensor, fault } => write!(f, "tensor {tensor}: {fault}"),
            ParseError::NoActivationQuant { buffer } => {
                write!(f, "buffer {buffer} holds codes but has no quantizer")
            }
            ParseError::NeedlessActivationQuant { buffer } => {
                write!(f, "buffer {buffer} holds floats but has a quantizer")
            }
            ParseError::ScaleCount {
                buffer,
                expected,
                found,
            } => write!(
                f,
                "buffer {buffer} has {found} scales, must have 1 or {expected}"
            ),
            ParseError::Codebook { buffer, rule } => {
                write!(f, "codebook of buffer {buffer}: {rule}")
            }
            ParseError::NegativeRelu { buffer } => write!(
                f,
                "buffer {buffer} is the output of a ReLU, its zero point must be 0"
            ),
            ParseError::Features { required, used } => write!(
                f,
                "the header requires features {required:#x}, the file uses {used:#x}"
            ),
            ParseError::MixedScale { buffer, col } => write!(
                f,
                "buffer {buffer}: column {col} changes scale or zero point within one integer sum"
            ),
            ParseError::NoSoftmaxQuant { op } => {
                write!(
                    f,
                    "operation {op} is attention but has no softmax quantizer"
                )
            }
            ParseError::NeedlessSoftmaxQuant { op } => {
                write!(
                    f,
                    "operation {op} is no attention but has a softmax quantizer"
                )
            }
            ParseError::Softmax { op, rule } => {
                write!(f, "softmax quantizer of operation {op}: {rule}")
            }
            ParseError::Overflow { op, what, bound } => write!(
                f,
                "operation {op}: {what} can reach {bound}, beyond i32; use fewer bits"
            ),
            ParseError::Crop {
                shorter_side,
                image,
            } => write!(
                f,
                "the picture is resized to {shorter_side} pixels but cropped to {image}; the resize must not be smaller"
            ),
            ParseError::LabelCount { found, classes } => write!(
                f,
                "there are {found} labels for {classes} classes, must be none or as many"
            ),
        }
    }
}

impl core::error::Error for ParseError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            ParseError::Program(error) => Some(error),
            _ => None, // every other variant carries its own facts
        }
    }
}
