//! x86-64: AVX2, then the two encodings of the 8-bit dot product.

#[cfg(any(test, not(feature = "std")))]
pub(crate) mod cpuid;

pub(crate) mod avx2;
pub(crate) mod avx512vnni;
pub(crate) mod avxvnni;

mod search;
