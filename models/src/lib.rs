//! What a quantized Vision Transformer is: its program, how each part is
//! quantized, its preprocessing, and the `.tpv` file that holds them.
//!
//! Written by the quantizer with [`write()`] (or [`write_for`], for one instruction
//! set), read back by the runtime with
//! [`Model::parse`], which checks everything once and borrows the bytes, or
//! with `TensorReader`, which has one tensor in memory at a time.
//!
//! # Features
//! - `std` (default): reads files, lets the checksum use the CPU's
//!   instructions, and is passed on to `tpvit-kernels`. Without it the crate
//!   needs only `alloc`.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

pub mod dense;
pub mod file;
pub mod preprocess;
pub mod program;
pub mod quant;
pub mod swin;
pub mod synthetic;
pub mod vit;

#[cfg(feature = "std")]
pub use file::{FileHead, ReadError, TensorReader};
pub use file::{
    FloatTensor, Model, ModelData, ModelInfo, ParseError, Tensor, TensorData, WeightTensor,
    WriteError, write, write_for, write_in_panels,
};
pub use preprocess::{Interpolation, Preprocess, Resize};
pub use program::{
    Activation, Buffer, BufferId, Cell, Mlp, NormAt, Op, Pooling, Program, ProgramError, Readout,
    TensorId, TensorInfo, TensorRole, Window,
};
pub use quant::{
    ActivationQuant, BitWidth, Codebook, Quantization, SoftmaxCodebook, SoftmaxKind, SoftmaxMethod,
    SoftmaxQuant, WeightQuant,
};
