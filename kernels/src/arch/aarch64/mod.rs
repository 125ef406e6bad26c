//! aarch64: NEON, then the dot product, then the matrix product.

pub(crate) mod dotprod;
pub(crate) mod i8mm;
mod lanes;
pub(crate) mod neon;
mod peak;
mod rows;
mod snap;
