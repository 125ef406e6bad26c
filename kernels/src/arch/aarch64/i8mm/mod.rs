//! The 8-bit matrix product. It has no tile of its own yet and borrows the dot
//! product's.

mod peak;

use crate::{Isa, Kernels, arch::aarch64::dotprod, table::Functions};

/// The kernels of a CPU with the dot product and the matrix product.
pub(crate) static KERNELS: Kernels = Kernels {
    isa: Isa::I8mm,
    functions: Functions {
        peak: peak::peak,
        ..dotprod::KERNELS.functions
    },
};
