//! Executes a `.tpv` model in integers.
//!
//! Linear layers, `QK^T` and attention x V run on integer codes with exact
//! sums; the residual stream, LayerNorm, GELU, biases and scales are f32, in
//! one fixed order of operations, so that every instruction set and every
//! number of threads gives the same bits.
//!
//! ```text
//! bytes ─ Model::parse       ▶ Model        ─ Session::new  ▶ Session ─ run ▶ logits
//! file  ─ TensorReader::open ▶ TensorReader ─ Session::load ▶ Session
//! ```
//!
//! [`Session::new`] re-orders the weights for this CPU and allocates all that
//! a run needs; [`Session::run`] allocates nothing. `Session::load` does the
//! same without having the file in memory, [`Session::new_in`] in memory of the
//! caller's, with nothing on the heap. Weights that the file has in this CPU's order
//! stay there ([`MemoryPlan::borrowed_bytes`]).
//!
//! # Features
//! - `std` (default): detects the CPU at run time and runs on several threads.
//!   Without it the crate needs only `alloc`, sessions in a block not even that, and
//!   runs on one thread.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

#[cfg(feature = "std")]
mod barrier;
mod block;
mod compile;
mod exec;
mod image;
mod lanes;
mod plan;
mod session;
mod step;
#[cfg(feature = "std")]
mod team;

#[cfg(feature = "std")]
pub use session::LoadError;
pub use session::{
    AttentionMethod, MemoryPlan, Observer, Options, RunError, Session, SessionError, View, softmax,
};
pub use tpvit_kernels::{Isa, Kernels, PeakRun};
