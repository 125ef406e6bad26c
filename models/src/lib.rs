#![no_std]
#![forbid(unsafe_code)]
#![doc = "Models."]
extern crate alloc;
