//! How fast an ISA can multiply and accumulate when nothing else is in the way.
//!
//! A matrix product is judged by its share of this rate, which
//! [`Kernels::peak`](crate::Kernels::peak) makes measurable in the process that
//! runs the model, at the clock that the CPU has just then:
//!
//! ```text
//! peak     = macs(rounds) / seconds(rounds)           registers only: no loads, no stores
//! fraction = (macs of the model / its seconds) / (threads * peak)
//! ```
//!
//! Each ISA repeats the instructions of its GEMM (`arch/*/*/peak.rs`) on so many
//! independent sums that their latency is hidden.

/// The activation in every lane: it fits every [`BitWidth`](crate::BitWidth).
pub(crate) const ACTIVATION: i8 = 3;
/// The weight in every lane: it fits every [`BitWidth`](crate::BitWidth).
pub(crate) const WEIGHT: i8 = -2;

/// What [`Kernels::peak`](crate::Kernels::peak) did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeakRun {
    /// Multiply-accumulates executed.
    pub macs: u64,
    /// The sum of all products, modulo 2^32: each is
    /// [`PRODUCT`](Self::PRODUCT), so it proves that none was left out.
    pub sum: i32,
    /// The instructions repeated, with their register.
    pub instructions: &'static str,
}

impl PeakRun {
    /// What each multiply-accumulate adds.
    pub const PRODUCT: i32 = ACTIVATION as i32 * WEIGHT as i32;

    /// The run of `macs` multiply-accumulates that left these sums.
    pub(crate) fn new(instructions: &'static str, macs: u64, sums: &[i32]) -> PeakRun {
        PeakRun {
            instructions,
            macs,
            sum: sums.iter().fold(0, |sum, &lane| sum.wrapping_add(lane)),
        }
    }
}
