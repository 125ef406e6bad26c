#![forbid(unsafe_code)]
#![doc = "Quantizer."]

pub mod calibration;
pub mod dataset;
#[cfg(feature = "onnx")]
pub mod import;
#[cfg(feature = "onnx")]
pub mod onnx;
pub mod pictures;
pub mod preprocessing;
pub mod quantizers;
pub mod reference;
pub mod weights;
