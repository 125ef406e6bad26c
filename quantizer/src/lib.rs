#![forbid(unsafe_code)]
#![doc = "Quantizer."]

pub mod calibration;
pub mod quantizers;
pub mod reference;
pub mod weights;
