//! The correctly rounded square root, which `core` does not offer.

/// `sqrt(x)`, rounded to nearest even as IEEE 754 asks.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn sqrt(x: f32) -> f32 {
    use core::arch::x86_64::{_mm_cvtss_f32, _mm_set_ss, _mm_sqrt_ss};

    // SAFETY: SSE2, which every x86-64 CPU has.
    let lane = unsafe { _mm_set_ss(x) };
    // SAFETY: as above.
    let root = unsafe { _mm_sqrt_ss(lane) };
    // SAFETY: as above.
    unsafe { _mm_cvtss_f32(root) }
}

/// `sqrt(x)`, rounded to nearest even as IEEE 754 asks.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
pub(crate) fn sqrt(x: f32) -> f32 {
    use core::arch::aarch64::{vdup_n_f32, vget_lane_f32, vsqrt_f32};

    // SAFETY: NEON, which every aarch64 CPU with floats has.
    let lanes = unsafe { vdup_n_f32(x) };
    // SAFETY: as above.
    let roots = unsafe { vsqrt_f32(lanes) };
    // SAFETY: as above.
    unsafe { vget_lane_f32::<0>(roots) }
}

/// `sqrt(x)`, rounded to nearest even as IEEE 754 asks.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) fn sqrt(x: f32) -> f32 {
    software_sqrt(x)
}

/// Square root by integers, for targets without an instruction for it.
///
/// ```text
/// x = m * 2^e, e even, m an integer of 24 or 25 bits
/// sqrt(x) = sqrt(m * 2^26) * 2^(e/2 - 13)
/// ```
///
/// `isqrt` gives 25 or 26 bits: one or two more than a float keeps, and any
/// remainder says that the root lies above it, so the rounding is exact. (A
/// root of 24 bits is never half way between two floats: its square would need
/// more bits than a float has.)
#[cfg_attr(any(target_arch = "x86_64", target_arch = "aarch64"), allow(dead_code))]
fn software_sqrt(x: f32) -> f32 {
    if x == 0.0 || x.is_nan() || x == f32::INFINITY {
        return x;
    }
    if x < 0.0 {
        return f32::NAN;
    }
    // A subnormal is scaled by 2^24 and its root by 2^-12, both exact.
    let (x, scale) = if x < f32::MIN_POSITIVE {
        (x * 16_777_216.0, 1.0 / 4096.0)
    } else {
        (x, 1.0)
    };
    let bits = x.to_bits();
    let exponent = (bits >> 23) as i32 - 127 - 23;
    let mantissa = u64::from(bits & 0x007f_ffff | 0x0080_0000);
    let odd = exponent & 1;
    let square = mantissa << (26 + odd);
    let root = square.isqrt(); // 2^24.5 <= root < 2^25.5
    let sticky = u64::from(root * root != square);
    // Below 2^32 with a sticky bit beneath: the conversion rounds to nearest even.
    let rounded = (root << 1 | sticky) as f32;
    let power = (exponent - odd) / 2 - 13 - 1;
    rounded * f32::from_bits(((power + 127) << 23) as u32) * scale
}

#[cfg(test)]
mod tests {
    use super::{software_sqrt, sqrt};

    #[test]
    fn software_and_hardware_agree() {
        for bits in (0..=f32::INFINITY.to_bits()).step_by(1021).chain(1..4096) {
            let x = f32::from_bits(bits);
            assert_eq!(software_sqrt(x).to_bits(), sqrt(x).to_bits(), "{x}");
        }
        assert!(software_sqrt(-1.0).is_nan() && sqrt(-1.0).is_nan());
        assert!(software_sqrt(f32::NAN).is_nan());
        assert_eq!(software_sqrt(f32::INFINITY), f32::INFINITY);
    }
}
