//! Sixteen lanes in four NEON registers.

use core::arch::aarch64::*;

use crate::arch::common::lanes::Lanes;

/// The lanes of a CPU with NEON.
#[derive(Clone, Copy, Debug)]
pub(in crate::arch::aarch64) struct Neon(());

impl Neon {
    /// Safe to call where NEON is enabled: a value is the proof that it is there.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(in crate::arch::aarch64) fn new() -> Self {
        Self(())
    }
}

/// One instruction, where a `Neon` is in scope.
macro_rules! neon {
    ($instruction:ident $(::<$n:literal>)? ($($x:expr),*)) => {
        // SAFETY: a `Neon` exists only where the CPU has NEON; what loads or
        // stores is given a reference to as many bytes, of any alignment.
        unsafe { $instruction $(::<$n>)? ($($x),*) }
    };
}

/// An instruction on each of the four registers.
macro_rules! quarters {
    ($instruction:ident, $($x:ident),+) => {
        [
            neon!($instruction($($x[0]),+)),
            neon!($instruction($($x[1]),+)),
            neon!($instruction($($x[2]),+)),
            neon!($instruction($($x[3]),+)),
        ]
    };
}

/// Four at a time.
#[inline(always)]
fn split<T>(x: &[T; 16]) -> [&[T; 4]; 4] {
    let (quarters, _) = x.as_chunks::<4>();
    [&quarters[0], &quarters[1], &quarters[2], &quarters[3]]
}

impl Lanes for Neon {
    // Four registers are four chains already.
    const CHAINS: usize = 1;
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [neon!(vdupq_n_f32(x)); 4]
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Self::F {
        let x = split(x);
        [
            neon!(vld1q_f32(x[0].as_ptr())),
            neon!(vld1q_f32(x[1].as_ptr())),
            neon!(vld1q_f32(x[2].as_ptr())),
            neon!(vld1q_f32(x[3].as_ptr())),
        ]
    }
    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; 16]) {
        let (quarters, _) = out.as_chunks_mut::<4>();
        for (quarter, x) in quarters.iter_mut().zip(x) {
            neon!(vst1q_f32(quarter.as_mut_ptr(), x));
        }
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        quarters!(vaddq_f32, a, b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        quarters!(vsubq_f32, a, b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        quarters!(vmulq_f32, a, b)
    }
    #[inline(always)]
    fn abs(self, x: Self::F) -> Self::F {
        quarters!(vabsq_f32, x)
    }
    #[inline(always)]
    fn greater(self, a: Self::F, b: Self::F) -> Self::F {
        // FMAX would give the NaN.
        let greater = quarters!(vcgtq_f32, a, b);
        quarters!(vbslq_f32, greater, a, b)
    }
    #[inline(always)]
    fn less(self, a: Self::F, b: Self::F) -> Self::F {
        let less = quarters!(vcltq_f32, a, b);
        quarters!(vbslq_f32, less, a, b)
    }
    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        let lo = neon!(vaddq_f32(x[0], x[2]));
        let hi = neon!(vaddq_f32(x[1], x[3]));
        let four = neon!(vaddq_f32(lo, hi));
        let lo = neon!(vget_low_f32(four));
        let hi = neon!(vget_high_f32(four));
        let two = neon!(vadd_f32(lo, hi));
        neon!(vpadds_f32(two))
    }
    #[inline(always)]
    fn look_up(self, table: &[f32; 8], i: Self::I) -> Self::F {
        let (halves, _) = table.as_chunks::<4>();
        let lo = neon!(vld1q_f32(halves[0].as_ptr()));
        let hi = neon!(vld1q_f32(halves[1].as_ptr()));
        let bytes = uint8x16x2_t(
            neon!(vreinterpretq_u8_f32(lo)),
            neon!(vreinterpretq_u8_f32(hi)),
        );
        let low_bits = neon!(vdupq_n_s32(7));
        let first_bytes = neon!(vdupq_n_s32(0x0302_0100));
        let mut out = self.splat(0.0);
        for (out, i) in out.iter_mut().zip(i) {
            // Entry i is bytes 4 i to 4 i + 3.
            let entry = neon!(vandq_s32(i, low_bits));
            let index = neon!(vmlaq_n_s32(first_bytes, entry, 0x0404_0404));
            let index = neon!(vreinterpretq_u8_s32(index));
            let entry = neon!(vqtbl2q_u8(bytes, index));
            *out = neon!(vreinterpretq_f32_u8(entry));
        }
        out
    }
    #[inline(always)]
    fn bits(self, x: Self::F) -> Self::I {
        quarters!(vreinterpretq_s32_f32, x)
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::I {
        [neon!(vdupq_n_s32(x)); 4]
    }
    #[inline(always)]
    fn load_i32(self, x: &[i32; 16]) -> Self::I {
        let x = split(x);
        [
            neon!(vld1q_s32(x[0].as_ptr())),
            neon!(vld1q_s32(x[1].as_ptr())),
            neon!(vld1q_s32(x[2].as_ptr())),
            neon!(vld1q_s32(x[3].as_ptr())),
        ]
    }
    #[inline(always)]
    fn load_u8(self, x: &[u8; 16]) -> Self::I {
        let bytes = neon!(vld1q_u8(x.as_ptr()));
        let low = neon!(vget_low_u8(bytes));
        let (lo, hi) = (neon!(vmovl_u8(low)), neon!(vmovl_high_u8(bytes)));
        let lows = [neon!(vget_low_u16(lo)), neon!(vget_low_u16(hi))];
        let words = [
            neon!(vmovl_u16(lows[0])),
            neon!(vmovl_high_u16(lo)),
            neon!(vmovl_u16(lows[1])),
            neon!(vmovl_high_u16(hi)),
        ];
        quarters!(vreinterpretq_s32_u32, words)
    }
    #[inline(always)]
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I {
        quarters!(vaddq_s32, a, b)
    }
    #[inline(always)]
    fn sub_i32(self, a: Self::I, b: Self::I) -> Self::I {
        quarters!(vsubq_s32, a, b)
    }
    #[inline(always)]
    fn mul_i32(self, a: Self::I, b: Self::I) -> Self::I {
        quarters!(vmulq_s32, a, b)
    }
    #[inline(always)]
    fn greater_i32(self, a: Self::I, b: Self::I) -> Self::I {
        quarters!(vmaxq_s32, a, b)
    }
    #[inline(always)]
    fn largest(self, x: Self::I) -> i32 {
        let lo = neon!(vmaxq_s32(x[0], x[1]));
        let hi = neon!(vmaxq_s32(x[2], x[3]));
        let four = neon!(vmaxq_s32(lo, hi));
        neon!(vmaxvq_s32(four))
    }
    #[inline(always)]
    fn store_i32(self, x: Self::I, out: &mut [i32; 16]) {
        let (quarters, _) = out.as_chunks_mut::<4>();
        for (quarter, x) in quarters.iter_mut().zip(x) {
            neon!(vst1q_s32(quarter.as_mut_ptr(), x));
        }
    }
    #[inline(always)]
    fn to_f32(self, x: Self::I) -> Self::F {
        quarters!(vcvtq_f32_s32, x)
    }
    #[inline(always)]
    fn store_u8(self, x: Self::I, out: &mut [u8; 16]) {
        let words = quarters!(vreinterpretq_u32_s32, x);
        let lo = neon!(vmovn_u32(words[0]));
        let lo = neon!(vmovn_high_u32(lo, words[1]));
        let hi = neon!(vmovn_u32(words[2]));
        let hi = neon!(vmovn_high_u32(hi, words[3]));
        let bytes = neon!(vmovn_u16(lo));
        let bytes = neon!(vmovn_high_u16(bytes, hi));
        neon!(vst1q_u8(out.as_mut_ptr(), bytes));
    }
}
