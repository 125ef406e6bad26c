//! Borrows the portable kernels for now.

use crate::{Isa, Kernels, arch::portable};

/// The kernels of this ISA.
pub(crate) static KERNELS: Kernels = Kernels {
    isa: Isa::AvxVnni,
    functions: portable::FUNCTIONS,
};
