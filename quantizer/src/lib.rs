#![forbid(unsafe_code)]
#![doc = "Quantizer."]

#[cfg(feature = "onnx")]
pub mod import;
#[cfg(feature = "onnx")]
pub mod onnx;
pub mod reference;
pub mod weights;
