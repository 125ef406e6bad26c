#![forbid(unsafe_code)]
#![doc = "Quantizer."]

pub mod dataset;
pub mod pictures;
pub mod preprocessing;
