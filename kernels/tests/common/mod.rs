//! What the kernel tests share: every ISA of this machine, and seeded numbers.
#![allow(dead_code, reason = "each test binary uses its part")]

use tpvit_kernels::{Isa, Kernels};

/// Runs `test` on the kernels of every ISA, printing those this machine lacks.
///
/// `REQUIRE_ISA=avx2,neon` makes a missing ISA of that list a failure.
pub(crate) fn for_each_isa(mut test: impl FnMut(&'static Kernels)) {
    let required = std::env::var("REQUIRE_ISA").unwrap_or_default();
    let required: Vec<&str> = required
        .split(',')
        .filter(|name| !name.is_empty())
        .collect();
    for name in &required {
        assert!(
            Isa::from_name(name).is_some(),
            "REQUIRE_ISA names an unknown ISA, {name}"
        );
    }
    for isa in Isa::ALL {
        match Kernels::for_isa(isa) {
            Some(kernels) => test(kernels),
            None if required.contains(&isa.name()) => {
                panic!("{} is required and missing", isa.name())
            }
            None => println!("skipped {}: this machine lacks it", isa.name()),
        }
    }
}

/// SplitMix64 (Steele et al. 2014): enough for tests.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0 ..= max`.
    pub(crate) fn up_to(&mut self, max: u64) -> u64 {
        self.next() % (max + 1)
    }

    pub(crate) fn codes(&mut self, len: usize, max: u8) -> Vec<u8> {
        (0..len).map(|_| self.up_to(u64::from(max)) as u8).collect()
    }

    /// Uniform in `lo .. hi`.
    pub(crate) fn float(&mut self, lo: f32, hi: f32) -> f32 {
        lo + (hi - lo) * (self.next() >> 40) as f32 / 16_777_216.0
    }

    pub(crate) fn floats(&mut self, len: usize, lo: f32, hi: f32) -> Vec<f32> {
        (0..len).map(|_| self.float(lo, hi)).collect()
    }
}

/// The bits of each float; all NaNs are one, for their payload is not specified.
pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter()
        .map(|x| {
            if x.is_nan() {
                f32::NAN.to_bits()
            } else {
                x.to_bits()
            }
        })
        .collect()
}
