//! What the benchmarks share. The benchmarks themselves are in `benches/`:
//!
//! ```text
//! cargo bench -p tpvit-bench                          all
//! cargo bench -p tpvit-bench -- gemm/a8w8             one kernel, every instruction set here
//! cargo bench -p tpvit-bench --bench models -- W4A4   whole models
//! ```
//!
//! Every benchmark compares its result with the reference before it times
//! anything, so a wrong kernel has no speed.
#![forbid(unsafe_code)]

use tpvit_kernels::{Isa, Kernels};

/// The kernels of every instruction set this machine has.
pub fn kernels_here() -> Vec<&'static Kernels> {
    Isa::ALL
        .iter()
        .filter_map(|&isa| Kernels::for_isa(isa))
        .collect()
}

/// A small, seeded stream of bytes (an LCG's upper bits); not for statistics.
pub struct Bytes(u64);

impl Bytes {
    /// A stream that depends on `seed` alone.
    pub fn new(seed: u64) -> Bytes {
        Bytes(seed)
    }

    /// A byte of at most `max`.
    pub fn up_to(&mut self, max: u8) -> u8 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % (u64::from(max) + 1)) as u8
    }

    /// `len` bytes, each at most `max`.
    pub fn vec(&mut self, len: usize, max: u8) -> Vec<u8> {
        (0..len).map(|_| self.up_to(max)).collect()
    }
}
