#![forbid(unsafe_code)]
#![doc = "Quantizer."]

pub mod reference;
pub mod weights;
