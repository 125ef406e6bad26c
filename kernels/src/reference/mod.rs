//! What every kernel must compute: scalar, untiled, safe.
//!
//! Each ISA equals these functions bit for bit (a NaN stays a NaN, but its
//! payload is not specified). Floats therefore have a fixed order of
//! operations: no fused multiply-add, and sums run in [16 lanes](fn@sum16).

pub mod attention;
pub mod exp_log;
pub mod gate;
pub mod gelu;
pub mod gemm;
pub mod layer_norm;
pub mod quantize;
pub mod snap;
pub mod softmax_codes;
mod sum16;
pub mod unpack;

pub use sum16::sum16;
