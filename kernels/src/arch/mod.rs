//! One folder per architecture, one per ISA within it, the same names in each.
//!
//! `common` holds what does not depend on instructions: loop nests, epilogues
//! and float kernels, inlined into each ISA's `#[target_feature]` functions and
//! compiled there with its instructions. What does depend on them is a *tile*:
//! the innermost product.

// Where there are only the portable kernels, not all of it is used.
#[cfg_attr(
    not(any(target_arch = "aarch64", target_arch = "x86_64")),
    allow(dead_code, unused_imports, unused_macros)
)]
pub(crate) mod common;
pub(crate) mod portable;

#[cfg(target_arch = "aarch64")]
pub(crate) mod aarch64;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_64;

mod sqrt;
pub(crate) use sqrt::sqrt;
