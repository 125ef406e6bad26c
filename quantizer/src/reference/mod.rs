//! The f32 forward pass of a [`Program`](tpvit_models::Program): the oracle.
//!
//! Calibration observes it, fake quantization rewrites its buffers, and the
//! import's guard compares it with the original graph. It favours being
//! obviously right: sums that are long or delicate (LayerNorm, softmax) are
//! accumulated in f64, GELU is the exact erf form, and matrix products are
//! plain f32.
//!
//! - [`Executor`]: one picture at a time, on one thread.
//! - [`run_many`]: many pictures on all threads, results in picture order.

mod batch;
mod cells;
mod executor;
mod gelu;
mod matmul;
#[cfg(test)]
mod tests;

pub use batch::run_many;
pub(crate) use cells::{add_bias, gather, scatter};
pub use executor::{Executor, Hook};
pub(crate) use executor::{cut_patches, merge_patches};
pub use gelu::{erf, gelu};
pub use matmul::{MatMut, MatRef, matmul};
