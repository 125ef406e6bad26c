//! Integer and float kernels for quantized Vision Transformers.
//!
//! [`Kernels::best`] is the one door to a kernel: it holds the functions of the
//! fastest ISA this CPU has. [`mod@reference`] says, in scalar safe code, what each
//! must compute; every ISA gives the same bits, floats included.
//!
//! | what | reference | per ISA |
//! |---|---|---|
//! | linear layer, requantization, GELU | [`reference::gemm`] | `arch/*/*/gemm.rs` |
//! | one attention head | [`reference::attention`] | `arch/*/*/attention.rs` |
//! | LayerNorm, quantization, residual sum | [`reference::layer_norm`], [`reference::quantize`] | `arch/common/float.rs` |
//! | levels that are not uniform | [`reference::snap`] | `arch/*/*/snap.rs` |
//! | a low-bit byte | [`reference::unpack`] | `arch/common/panels.rs` |
//!
//! Weights lie in an order of each ISA's own, which [`PanelLayout`] describes for all.
//!
//! No allocation, no threads: the caller lends every buffer and may split rows
//! over threads as it likes, without changing a bit.
//!
//! # Features
//! - `std` (default): detects the CPU at run time through the standard library.
//!   Without it x86-64 asks CPUID and aarch64 trusts the compilation target.
#![cfg_attr(not(any(test, feature = "std")), no_std)]

mod arch;
mod attention;
mod bits;
mod gemm;
mod isa;
mod peak;
mod quant;
pub mod reference;
mod table;

pub use arch::common::panels::{Layout as PanelLayout, PanelFault};
pub use attention::{
    AttentionMethod, Cells, HeadOutput, HeadRequant, HeadShape, KeysValues, Lines, MAX_BIAS,
    MAX_HEAD_DIM, MAX_MULTIPLIER, MAX_TOKENS, Queries, ShiftForm, SoftmaxCodes, SoftmaxKind,
};
pub use bits::BitWidth;
pub use gemm::{GemmShape, MAX_K, Output, Requant};
pub use isa::Isa;
pub use peak::PeakRun;
pub use quant::{ActCodebook, ActQuant};
pub use table::Kernels;
