//! The 8-bit dot product, `SDOT` (Cortex-A55, A75, A76, A78 and later).

mod attention;
mod gemm;
mod peak;
mod tile;

use crate::{Isa, Kernels, arch::common::float_kernels::float_kernels, table::Functions};

/// The kernels of a CPU with NEON and the dot product.
pub(crate) static KERNELS: Kernels = Kernels {
    isa: Isa::Dotprod,
    functions: Functions {
        panels: gemm::layout,
        gemm_scratch_len: gemm::gemm_scratch_len,
        gemm: gemm::gemm,
        row_sums,
        layer_norm,
        layer_norm_codes,
        quantize,
        snap: super::snap::snap,
        gate,
        add,
        attention_pack_len: attention::attention_pack_len,
        attention_pack: attention::attention_pack,
        attention_scratch_len: attention::attention_scratch_len,
        attention: attention::attention,
        peak: peak::peak,
    },
};

float_kernels!("neon,dotprod", super::lanes::Neon::new());
