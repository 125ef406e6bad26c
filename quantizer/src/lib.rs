#![forbid(unsafe_code)]
#![doc = "Quantizer."]
pub mod quantizers;
