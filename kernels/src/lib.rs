//! Kernels.
#![no_std]
pub mod bits;
pub use bits::BitWidth;
