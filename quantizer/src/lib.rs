//! From a trained Vision Transformer to a `.tpv` file.
//!
//! ```text
//! model.onnx ─ import ─▶ Program + Weights ─ observe ─▶ plan ─ reconstruct ─▶ pack ─▶ .tpv
//! ```
//!
//! [`pipeline`] shows the whole way; the `tpvit` command wraps it.
//!
//! # Features
//! - `onnx` (default): reading ONNX files, and checking the import against a
//!   run of the original graph by tract.
#![forbid(unsafe_code)]

pub mod calibration;
#[cfg(feature = "onnx")]
pub mod checkpoint;
pub mod dataset;
#[cfg(feature = "onnx")]
pub mod import;
#[cfg(feature = "onnx")]
pub mod onnx;
pub mod pictures;
pub mod pipeline;
pub mod preprocessing;
pub mod quantizers;
pub mod reconstruct;
pub mod reference;
pub mod report;
pub mod weights;
