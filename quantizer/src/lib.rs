#![forbid(unsafe_code)]
#![doc = "Quantizer."]

pub mod pictures;
pub mod preprocessing;
