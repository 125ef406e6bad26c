//! What every ISA shares; inlined into its `#[target_feature]` functions.

pub(crate) mod attention;
pub(crate) mod epilogue;
pub(crate) mod float;
pub(crate) mod gemm;
pub(crate) mod lanes;
pub(crate) mod panels;
pub(crate) mod scratch;
pub(crate) mod softmax;
pub(crate) mod widen;

// What only vectors need.
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
pub(crate) mod float_kernels;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
pub(crate) mod rows;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
pub(crate) mod snap;
