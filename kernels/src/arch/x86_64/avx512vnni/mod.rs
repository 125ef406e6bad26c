//! AVX-512 VNNI: the 8-bit dot product on 512-bit registers.

mod attention;
mod attention_tile;
mod codes;
mod gemm;
mod lanes;
mod peak;
mod tile;

use crate::{Isa, Kernels, arch::common::float_kernels::float_kernels, table::Functions};

/// The kernels of a CPU with AVX-512 F, BW, DQ, VL and VNNI.
pub(crate) static KERNELS: Kernels = Kernels {
    isa: Isa::Avx512Vnni,
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

float_kernels!(
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni",
    lanes::Zmm::new()
);
