//! The quantizers: how one tensor becomes integer codes.
//!
//! | file | for | levels at `b` bits |
//! |---|---|---|
//! | [`uniform`] | activations | `2^b`, evenly spaced |
//! | [`codebook`] | activations of at most 4 bits | `2^b` of an 8-bit grid |
//! | [`weight`] | weights, per output channel | `2^b`, evenly spaced |
//! | [`gptq`] | the same, rounded so that errors cancel in the output | `2^b`, evenly spaced |
//! | [`log2`], [`log_sqrt2`], [`adaptive_base_log`], [`sulq`], [`truncated_uniform_log2`] | post-softmax attention, behind [`SoftmaxQuantizer`] | `2^b`, denser near zero |
//! | [`row_maximum`] | the same, relative to each row's largest | `2^b`, denser near zero |
//! | [`uniform_softmax`] | the same | `2^b`, evenly spaced |
//! | [`twin_uniform`] | the same | `2^b - 1`, in two spacings |
//!
//! Each ends in plain data of `tpvit-models`; which one to use, and on what
//! statistics, is decided in [`crate::calibration`].

pub mod adaptive_base_log;
pub mod codebook;
pub mod gptq;
pub mod log2;
pub mod log_grid;
pub mod log_sqrt2;
mod octave_histogram;
pub mod row_maximum;
pub mod softmax;
pub mod sulq;
pub mod truncated_uniform_log2;
pub mod twin_uniform;
pub mod uniform;
pub mod uniform_softmax;
pub mod weight;

pub use octave_histogram::OctaveHistogram;
pub use softmax::{AttentionSamples, SoftmaxQuantizer, fit_per_head};
pub use uniform::{Affine, Distribution, RangeFit, ZeroPoint};
