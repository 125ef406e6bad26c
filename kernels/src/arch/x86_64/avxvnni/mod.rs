//! AVX-VNNI: the 8-bit dot product on 256-bit registers.

mod attention;
mod attention_tile;
mod gemm;
mod peak;
mod tile;

use crate::{Isa, Kernels, arch::common::float_kernels::float_kernels, table::Functions};

/// The kernels of a CPU with AVX2 and AVX-VNNI.
pub(crate) static KERNELS: Kernels = Kernels {
    isa: Isa::AvxVnni,
    functions: Functions {
        panels: gemm::layout,
        gemm_scratch_len: gemm::gemm_scratch_len,
        gemm: gemm::gemm,
        row_sums,
        layer_norm,
        layer_norm_codes,
        quantize,
        snap: super::avx2::snap::snap,
        gate,
        add,
        attention_pack_len: attention::attention_pack_len,
        attention_pack: attention::attention_pack,
        attention_scratch_len: attention::attention_scratch_len,
        attention: attention::attention,
        peak: peak::peak,
    },
};

float_kernels!("avx2,avxvnni", super::avx2::lanes::Ymm::new());
