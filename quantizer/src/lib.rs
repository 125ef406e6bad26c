#![forbid(unsafe_code)]
#![doc = "Quantizer."]

pub mod calibration;
pub mod dataset;
pub mod pictures;
pub mod preprocessing;
pub mod quantizers;
pub mod reference;
pub mod weights;
