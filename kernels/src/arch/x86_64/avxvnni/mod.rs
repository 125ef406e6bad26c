//! AVX-VNNI: the 8-bit dot product on 256-bit registers; what has no dot product is
//! AVX2's.

mod attention;
mod attention_tile;
mod gemm;
mod peak;
mod tile;

use super::avx2;
use crate::{Isa, Kernels, table::Functions};

/// The kernels of a CPU with AVX2 and AVX-VNNI.
pub(crate) static KERNELS: Kernels = Kernels {
    isa: Isa::AvxVnni,
    functions: Functions {
        panels: gemm::layout,
        gemm_scratch_len: gemm::gemm_scratch_len,
        gemm: gemm::gemm,
        attention_pack_len: attention::attention_pack_len,
        attention_pack: attention::attention_pack,
        attention_scratch_len: attention::attention_scratch_len,
        attention: attention::attention,
        peak: peak::peak,
        ..avx2::FUNCTIONS
    },
};
