//! Sixteen lanes in one zmm register.

use core::arch::x86_64::*;

use crate::arch::common::lanes::Lanes;

/// The lanes of a CPU with AVX-512 F, DQ and VL.
#[derive(Clone, Copy, Debug)]
pub(super) struct Zmm(());

impl Zmm {
    /// Safe to call where AVX-512 is enabled: a value is the proof that it is there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    pub(super) fn new() -> Self {
        Self(())
    }
}

/// One instruction, where a `Zmm` is in scope.
macro_rules! avx512 {
    ($instruction:ident $(::<$n:literal>)? ($($x:expr),*)) => {
        // SAFETY: a `Zmm` exists only where the CPU has AVX-512; what loads or
        // stores is given a reference to as many bytes, of any alignment.
        unsafe { $instruction $(::<$n>)? ($($x),*) }
    };
}

impl Lanes for Zmm {
    const CHAINS: usize = 4;
    type F = __m512;
    type I = __m512i;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        avx512!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Self::F {
        avx512!(_mm512_loadu_ps(x.as_ptr()))
    }
    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; 16]) {
        avx512!(_mm512_storeu_ps(out.as_mut_ptr(), x));
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        avx512!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        avx512!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        avx512!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn abs(self, x: Self::F) -> Self::F {
        avx512!(_mm512_abs_ps(x))
    }
    #[inline(always)]
    fn greater(self, a: Self::F, b: Self::F) -> Self::F {
        avx512!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn less(self, a: Self::F, b: Self::F) -> Self::F {
        avx512!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        let low = avx512!(_mm512_castps512_ps256(x));
        let high = avx512!(_mm512_extractf32x8_ps::<1>(x));
        let eight = avx512!(_mm256_add_ps(low, high));
        let low = avx512!(_mm256_castps256_ps128(eight));
        let high = avx512!(_mm256_extractf128_ps::<1>(eight));
        let four = avx512!(_mm_add_ps(low, high));
        let high = avx512!(_mm_movehl_ps(four, four));
        let two = avx512!(_mm_add_ps(four, high));
        let high = avx512!(_mm_movehdup_ps(two));
        let one = avx512!(_mm_add_ss(two, high));
        avx512!(_mm_cvtss_f32(one))
    }
    #[inline(always)]
    fn look_up(self, table: &[f32; 8], i: Self::I) -> Self::F {
        // Twice the table, since the index of a permutation has four bits.
        let table = avx512!(_mm256_loadu_ps(table.as_ptr()));
        let table = avx512!(_mm512_broadcast_f32x8(table));
        avx512!(_mm512_permutexvar_ps(i, table))
    }
    #[inline(always)]
    fn bits(self, x: Self::F) -> Self::I {
        avx512!(_mm512_castps_si512(x))
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::I {
        avx512!(_mm512_set1_epi32(x))
    }
    #[inline(always)]
    fn load_i32(self, x: &[i32; 16]) -> Self::I {
        avx512!(_mm512_loadu_si512(x.as_ptr().cast()))
    }
    #[inline(always)]
    fn load_u8(self, x: &[u8; 16]) -> Self::I {
        let bytes = avx512!(_mm_loadu_si128(x.as_ptr().cast()));
        avx512!(_mm512_cvtepu8_epi32(bytes))
    }
    #[inline(always)]
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I {
        avx512!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn sub_i32(self, a: Self::I, b: Self::I) -> Self::I {
        avx512!(_mm512_sub_epi32(a, b))
    }
    #[inline(always)]
    fn mul_i32(self, a: Self::I, b: Self::I) -> Self::I {
        avx512!(_mm512_mullo_epi32(a, b))
    }
    #[inline(always)]
    fn greater_i32(self, a: Self::I, b: Self::I) -> Self::I {
        avx512!(_mm512_max_epi32(a, b))
    }
    #[inline(always)]
    fn largest(self, x: Self::I) -> i32 {
        avx512!(_mm512_reduce_max_epi32(x))
    }
    #[inline(always)]
    fn store_i32(self, x: Self::I, out: &mut [i32; 16]) {
        avx512!(_mm512_storeu_si512(out.as_mut_ptr().cast(), x));
    }
    #[inline(always)]
    fn to_f32(self, x: Self::I) -> Self::F {
        avx512!(_mm512_cvtepi32_ps(x))
    }
    #[inline(always)]
    fn store_u8(self, x: Self::I, out: &mut [u8; 16]) {
        let bytes = avx512!(_mm512_cvtepi32_epi8(x));
        avx512!(_mm_storeu_si128(out.as_mut_ptr().cast(), bytes));
    }
    #[inline(always)]
    fn prefetch(self, bytes: &[u8]) {
        avx512!(_mm_prefetch::<3>(bytes.as_ptr().cast())); // _MM_HINT_T0
    }
}
