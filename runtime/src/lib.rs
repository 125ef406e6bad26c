#![no_std]
#![forbid(unsafe_code)]
#![doc = "Runtime."]
extern crate alloc;
