//! Which instructions a kernel may use, and which of them this CPU has.
//!
//! With the feature `std` the standard library detects the CPU. Without it,
//! x86-64 asks CPUID and XGETBV, and aarch64 trusts the features that the
//! target was compiled with (a board that knows more uses
//! [`Kernels::assume`](crate::Kernels::assume)).

/// An instruction set that has kernels of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Safe Rust without intrinsics; runs everywhere.
    Portable,
    /// x86-64 with AVX2.
    Avx2,
    /// x86-64 with AVX2 and the VEX-encoded `vpdpbusd` (AVX-VNNI).
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI.
    Avx512Vnni,
    /// aarch64 with NEON, which every 64-bit Arm core has.
    Neon,
    /// aarch64 with the 8-bit dot product, `SDOT` (Armv8.2 and later).
    Dotprod,
    /// aarch64 with the 8-bit matrix product, `USMMLA` (Armv8.6 and later).
    I8mm,
}

impl Isa {
    /// Every ISA, slowest first within an architecture.
    pub const ALL: [Self; 7] = [
        Self::Portable,
        Self::Avx2,
        Self::AvxVnni,
        Self::Avx512Vnni,
        Self::Neon,
        Self::Dotprod,
        Self::I8mm,
    ];

    /// The name that `--isa`, `TPVIT_ISA` and `REQUIRE_ISA` use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avxvnni",
            Self::Avx512Vnni => "avx512vnni",
            Self::Neon => "neon",
            Self::Dotprod => "dotprod",
            Self::I8mm => "i8mm",
        }
    }

    /// The ISA called `name`, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|isa| isa.name() == name)
    }

    /// Whether this CPU, as far as the build can tell, executes the ISA.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Avx2 => detect::avx2(),
            Self::AvxVnni => detect::avx2() && detect::avxvnni(),
            Self::Avx512Vnni => detect::avx2() && detect::avx512vnni(),
            Self::Neon => cfg!(target_arch = "aarch64"),
            Self::Dotprod => detect::dotprod(),
            Self::I8mm => detect::dotprod() && detect::i8mm(),
        }
    }

    /// The fastest available ISA.
    pub fn best() -> Self {
        let mut best = Self::Portable;
        for isa in Self::ALL {
            if isa.is_available() {
                best = isa;
            }
        }
        best
    }
}

#[cfg(all(target_arch = "x86_64", feature = "std"))]
mod detect {
    use std::arch::is_x86_feature_detected;

    pub(super) fn avx2() -> bool {
        is_x86_feature_detected!("avx2")
    }
    pub(super) fn avxvnni() -> bool {
        is_x86_feature_detected!("avxvnni")
    }
    pub(super) fn avx512vnni() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
    }
    pub(super) fn dotprod() -> bool {
        false
    }
    pub(super) fn i8mm() -> bool {
        false
    }
}

#[cfg(all(target_arch = "x86_64", not(feature = "std")))]
mod detect {
    pub(super) use crate::arch::x86_64::cpuid::{avx2, avx512vnni, avxvnni};

    pub(super) fn dotprod() -> bool {
        false
    }
    pub(super) fn i8mm() -> bool {
        false
    }
}

#[cfg(target_arch = "aarch64")]
mod detect {
    pub(super) fn avx2() -> bool {
        false
    }
    pub(super) fn avxvnni() -> bool {
        false
    }
    pub(super) fn avx512vnni() -> bool {
        false
    }
    #[cfg(feature = "std")]
    pub(super) fn dotprod() -> bool {
        std::arch::is_aarch64_feature_detected!("dotprod")
    }
    #[cfg(feature = "std")]
    pub(super) fn i8mm() -> bool {
        std::arch::is_aarch64_feature_detected!("i8mm")
    }
    #[cfg(not(feature = "std"))]
    pub(super) fn dotprod() -> bool {
        cfg!(target_feature = "dotprod")
    }
    #[cfg(not(feature = "std"))]
    pub(super) fn i8mm() -> bool {
        cfg!(target_feature = "i8mm")
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod detect {
    pub(super) fn avx2() -> bool {
        false
    }
    pub(super) fn avxvnni() -> bool {
        false
    }
    pub(super) fn avx512vnni() -> bool {
        false
    }
    pub(super) fn dotprod() -> bool {
        false
    }
    pub(super) fn i8mm() -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::Isa;

    #[test]
    fn names_are_distinct_and_found() {
        for isa in Isa::ALL {
            assert_eq!(Isa::from_name(isa.name()), Some(isa));
        }
        assert_eq!(Isa::from_name("sse2"), None);
    }

    #[test]
    fn the_best_isa_is_available() {
        assert!(Isa::best().is_available());
        assert!(Isa::Portable.is_available());
    }
}
