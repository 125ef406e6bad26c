//! One folder per architecture, one per ISA within it, the same names in each.
//!
//! `common` holds what does not depend on instructions: loop nests, epilogues
//! and float kernels, inlined into each ISA's `#[target_feature]` functions and
//! compiled there with its instructions. What does depend on them is a *tile*:
//! the innermost product.

pub(crate) mod common;
pub(crate) mod portable;

#[cfg(target_arch = "aarch64")]
pub(crate) mod aarch64;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;

mod sqrt;
pub(crate) use sqrt::sqrt;
