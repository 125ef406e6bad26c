//! Asks the CPU itself, for builds without `std`.
//!
//! A vector ISA counts only if the CPU has the instructions (CPUID) *and* the
//! operating system saves the registers (XCR0, read by XGETBV).

use core::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

/// XCR0: the system saves xmm and ymm.
const XCR0_YMM: u64 = 0b110;
/// XCR0: the system also saves the mask registers and zmm.
const XCR0_ZMM: u64 = 0b1110_0110;

const fn bit(word: u32, index: u32) -> bool {
    word >> index & 1 == 1
}

#[target_feature(enable = "xsave")]
fn read_xcr0() -> u64 {
    // SAFETY: index 0 is XCR0, which exists wherever XGETBV does.
    unsafe { _xgetbv(0) }
}

/// What the operating system saves, or 0.
fn xcr0() -> u64 {
    let osxsave = bit(__cpuid(1).ecx, 27);
    if osxsave {
        // SAFETY: OSXSAVE says that XGETBV is there and enabled.
        unsafe { read_xcr0() }
    } else {
        0
    }
}

fn has_leaf_7() -> bool {
    __cpuid(0).eax >= 7
}

/// AVX2, with ymm saved.
pub(crate) fn avx2() -> bool {
    has_leaf_7()
        && xcr0() & XCR0_YMM == XCR0_YMM
        && bit(__cpuid(1).ecx, 28)
        && bit(__cpuid_count(7, 0).ebx, 5)
}

/// AVX-VNNI, with ymm saved.
pub(crate) fn avxvnni() -> bool {
    avx2() && __cpuid_count(7, 0).eax >= 1 && bit(__cpuid_count(7, 1).eax, 4)
}

/// AVX-512 F, DQ, BW, VL and VNNI, with zmm saved.
pub(crate) fn avx512vnni() -> bool {
    if !has_leaf_7() || xcr0() & XCR0_ZMM != XCR0_ZMM {
        return false;
    }
    let leaf = __cpuid_count(7, 0);
    let foundation = bit(leaf.ebx, 16) && bit(leaf.ebx, 17);
    let bytes_and_lengths = bit(leaf.ebx, 30) && bit(leaf.ebx, 31);
    foundation && bytes_and_lengths && bit(leaf.ecx, 11)
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use std::arch::is_x86_feature_detected;

    #[test]
    fn agrees_with_the_standard_library() {
        assert_eq!(super::avx2(), is_x86_feature_detected!("avx2"));
        assert_eq!(super::avxvnni(), is_x86_feature_detected!("avxvnni"));
        assert_eq!(super::avx512vnni(), is_x86_feature_detected!("avx512vnni"));
    }
}
