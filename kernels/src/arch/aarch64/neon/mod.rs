//! NEON: 128-bit integers, no 8-bit dot product (Cortex-A53, A57, A72, A73).

mod attention;
mod gemm;
mod loops;
mod operands;
mod peak;
mod tile;

use crate::{Isa, Kernels, arch::common::float_kernels::float_kernels, table::Functions};

/// The kernels of a CPU with NEON.
pub(crate) static KERNELS: Kernels = Kernels {
    isa: Isa::Neon,
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

float_kernels!("neon", super::lanes::Neon::new());
