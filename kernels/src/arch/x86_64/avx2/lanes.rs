//! Sixteen lanes in two ymm registers.

use core::arch::x86_64::*;

use crate::arch::common::lanes::Lanes;

/// The lanes of a CPU with AVX2.
#[derive(Clone, Copy, Debug)]
pub(in crate::arch::x86_64) struct Ymm(());

impl Ymm {
    /// Safe to call where AVX2 is enabled: a value is the proof that it is there.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in crate::arch::x86_64) fn new() -> Self {
        Self(())
    }
}

/// An instruction on either half.
macro_rules! halves {
    ($instruction:ident, $($x:ident),+) => {
        [
            // SAFETY: a `Ymm` exists only where the CPU has AVX2.
            unsafe { $instruction($($x[0]),+) },
            // SAFETY: as above.
            unsafe { $instruction($($x[1]),+) },
        ]
    };
}

/// One instruction, where a `Ymm` is in scope.
macro_rules! avx2 {
    ($instruction:ident $(::<$n:literal>)? ($($x:expr),*)) => {
        // SAFETY: a `Ymm` exists only where the CPU has AVX2; what loads or
        // stores is given a reference to as many bytes, of any alignment.
        unsafe { $instruction $(::<$n>)? ($($x),*) }
    };
}

impl Lanes for Ymm {
    const CHAINS: usize = 2;
    type F = [__m256; 2];
    type I = [__m256i; 2];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [avx2!(_mm256_set1_ps(x)); 2]
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Self::F {
        let [lo, hi] = split(x);
        [
            avx2!(_mm256_loadu_ps(lo.as_ptr())),
            avx2!(_mm256_loadu_ps(hi.as_ptr())),
        ]
    }
    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; 16]) {
        let (halves, _) = out.as_chunks_mut::<8>();
        for (half, x) in halves.iter_mut().zip(x) {
            avx2!(_mm256_storeu_ps(half.as_mut_ptr(), x));
        }
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    fn abs(self, x: Self::F) -> Self::F {
        let signs = [avx2!(_mm256_set1_ps(-0.0)); 2];
        halves!(_mm256_andnot_ps, signs, x)
    }
    #[inline(always)]
    fn greater(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    fn less(self, a: Self::F, b: Self::F) -> Self::F {
        halves!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    fn sum(self, [lo, hi]: Self::F) -> f32 {
        let eight = avx2!(_mm256_add_ps(lo, hi));
        let low = avx2!(_mm256_castps256_ps128(eight));
        let high = avx2!(_mm256_extractf128_ps::<1>(eight));
        let four = avx2!(_mm_add_ps(low, high));
        let high = avx2!(_mm_movehl_ps(four, four));
        let two = avx2!(_mm_add_ps(four, high));
        let high = avx2!(_mm_movehdup_ps(two));
        let one = avx2!(_mm_add_ss(two, high));
        avx2!(_mm_cvtss_f32(one))
    }
    #[inline(always)]
    fn look_up(self, table: &[f32; 8], i: Self::I) -> Self::F {
        let table = [avx2!(_mm256_loadu_ps(table.as_ptr())); 2];
        halves!(_mm256_permutevar8x32_ps, table, i)
    }
    #[inline(always)]
    fn bits(self, x: Self::F) -> Self::I {
        halves!(_mm256_castps_si256, x)
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::I {
        [avx2!(_mm256_set1_epi32(x)); 2]
    }
    #[inline(always)]
    fn load_i32(self, x: &[i32; 16]) -> Self::I {
        let [lo, hi] = split(x);
        [
            avx2!(_mm256_loadu_si256(lo.as_ptr().cast())),
            avx2!(_mm256_loadu_si256(hi.as_ptr().cast())),
        ]
    }
    #[inline(always)]
    fn load_u8(self, x: &[u8; 16]) -> Self::I {
        let [lo, hi] = split(x);
        let lo = avx2!(_mm_loadu_si64(lo.as_ptr()));
        let hi = avx2!(_mm_loadu_si64(hi.as_ptr()));
        [
            avx2!(_mm256_cvtepu8_epi32(lo)),
            avx2!(_mm256_cvtepu8_epi32(hi)),
        ]
    }
    #[inline(always)]
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I {
        halves!(_mm256_add_epi32, a, b)
    }
    #[inline(always)]
    fn sub_i32(self, a: Self::I, b: Self::I) -> Self::I {
        halves!(_mm256_sub_epi32, a, b)
    }
    #[inline(always)]
    fn mul_i32(self, a: Self::I, b: Self::I) -> Self::I {
        halves!(_mm256_mullo_epi32, a, b)
    }
    #[inline(always)]
    fn greater_i32(self, a: Self::I, b: Self::I) -> Self::I {
        halves!(_mm256_max_epi32, a, b)
    }
    #[inline(always)]
    fn largest(self, [lo, hi]: Self::I) -> i32 {
        let eight = avx2!(_mm256_max_epi32(lo, hi));
        let low = avx2!(_mm256_castsi256_si128(eight));
        let high = avx2!(_mm256_extracti128_si256::<1>(eight));
        let four = avx2!(_mm_max_epi32(low, high));
        let high = avx2!(_mm_shuffle_epi32::<0b11_10_11_10>(four));
        let two = avx2!(_mm_max_epi32(four, high));
        let high = avx2!(_mm_shuffle_epi32::<0b01_01_01_01>(two));
        let one = avx2!(_mm_max_epi32(two, high));
        avx2!(_mm_cvtsi128_si32(one))
    }
    #[inline(always)]
    fn store_i32(self, x: Self::I, out: &mut [i32; 16]) {
        let (halves, _) = out.as_chunks_mut::<8>();
        for (half, x) in halves.iter_mut().zip(x) {
            avx2!(_mm256_storeu_si256(half.as_mut_ptr().cast(), x));
        }
    }
    #[inline(always)]
    fn to_f32(self, x: Self::I) -> Self::F {
        halves!(_mm256_cvtepi32_ps, x)
    }
    #[inline(always)]
    fn store_u8(self, [lo, hi]: Self::I, out: &mut [u8; 16]) {
        // In each half of a register: 4 words of `lo`, 4 words of `hi`.
        let words = avx2!(_mm256_packus_epi32(lo, hi));
        let low = avx2!(_mm256_castsi256_si128(words));
        let high = avx2!(_mm256_extracti128_si256::<1>(words));
        // Bytes 0-3 of lo, 0-3 of hi, 4-7 of lo, 4-7 of hi: words 1 and 2 change places.
        let bytes = avx2!(_mm_packus_epi16(low, high));
        let bytes = avx2!(_mm_shuffle_epi32::<0b11_01_10_00>(bytes));
        avx2!(_mm_storeu_si128(out.as_mut_ptr().cast(), bytes));
    }
    #[inline(always)]
    fn prefetch(self, bytes: &[u8]) {
        avx2!(_mm_prefetch::<3>(bytes.as_ptr().cast())); // _MM_HINT_T0
    }
}

#[inline(always)]
fn split<T>(x: &[T; 16]) -> [&[T; 8]; 2] {
    let (halves, _) = x.as_chunks::<8>();
    [&halves[0], &halves[1]]
}
