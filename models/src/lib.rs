//! What a quantized Vision Transformer is: its program, how each part is
//! quantized, its preprocessing, and the `.tpv` file that holds them.
//!
//! # Features
//! - `std` (default): passed on to `tpvit-kernels`; this crate itself needs
//!   only `alloc`.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod preprocess;
pub mod program;
pub mod quant;

pub use preprocess::{Interpolation, Preprocess, Resize};
pub use program::{
    Activation, Buffer, BufferId, Op, Program, ProgramError, TensorId, TensorInfo, TensorRole,
};
pub use quant::{
    ActivationQuant, BitWidth, Quantization, SoftmaxKind, SoftmaxMethod, SoftmaxQuant, WeightQuant,
};
