//! AVX2: 256-bit integers, no 8-bit dot product.

mod attention;
pub(super) mod attention_pack;
mod attention_tile;
pub(super) mod codes;
mod gemm;
pub(super) mod lanes;
mod peak;
pub(super) mod snap;
mod tile;

use crate::{Isa, Kernels, arch::common::float_kernels::float_kernels, table::Functions};

/// The kernels of a CPU with AVX2.
pub(crate) static KERNELS: Kernels = Kernels {
    isa: Isa::Avx2,
    functions: FUNCTIONS,
};

pub(super) const FUNCTIONS: Functions = Functions {
    panels: gemm::layout,
    gemm_scratch_len: gemm::gemm_scratch_len,
    gemm: gemm::gemm,
    row_sums,
    layer_norm,
    layer_norm_codes,
    quantize,
    snap: snap::snap,
    gate,
    add,
    attention_pack_len: attention::attention_pack_len,
    attention_pack: attention::attention_pack,
    attention_scratch_len: attention::attention_scratch_len,
    attention: attention::attention,
    peak: peak::peak,
};

float_kernels!("avx2", lanes::Ymm::new());
