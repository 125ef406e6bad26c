//! What every ISA shares; inlined into its `#[target_feature]` functions.

pub(crate) mod attention;
pub(crate) mod epilogue;
pub(crate) mod float;
pub(crate) mod float_kernels;
pub(crate) mod gemm;
pub(crate) mod lanes;
pub(crate) mod panels;
pub(crate) mod rows;
pub(crate) mod scratch;
pub(crate) mod snap;
pub(crate) mod softmax;
pub(crate) mod widen;
