#![forbid(unsafe_code)]
#![doc = "Quantizer."]
