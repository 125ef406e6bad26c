//! Codes to the levels of a codebook, 32 at a time: [`crate::arch::common::snap`].
//! AVX-VNNI and AVX-512 use it as it is.
//!
//! ```text
//! 32 codes      vpxor                       to signed: there is no unsigned comparison
//! step 8        vpcmpgtb, vpand             with one threshold
//! step 4, 2, 1  vpshufb, vpcmpgtb, vpand, vpor
//! level         vpshufb
//! ```

use core::arch::x86_64::{
    __m128i, __m256i, _mm_loadu_si128, _mm256_and_si256, _mm256_broadcastsi128_si256,
    _mm256_cmpgt_epi8, _mm256_loadu_si256, _mm256_or_si256, _mm256_set1_epi8, _mm256_shuffle_epi8,
    _mm256_storeu_si256, _mm256_xor_si256,
};

use crate::{
    ActCodebook,
    arch::common::snap::{STEPS, Tables},
};

#[inline]
#[target_feature(enable = "avx2")]
fn load_table(table: &[u8; 16]) -> __m128i {
    // SAFETY: `table` is 16 readable bytes; `loadu` needs no alignment.
    unsafe { _mm_loadu_si128(table.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(codes: &[u8; 32]) -> __m256i {
    // SAFETY: `codes` is 32 readable bytes; `loadu` needs no alignment.
    unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(codes: &mut [u8; 32], value: __m256i) {
    // SAFETY: `codes` is 32 writable bytes; `storeu` needs no alignment.
    unsafe { _mm256_storeu_si256(codes.as_mut_ptr().cast(), value) }
}

/// The tables in registers, thresholds signed.
#[derive(Clone, Copy)]
struct Search {
    thresholds: [__m256i; 4],
    levels: __m256i,
}

impl Search {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn new(tables: &Tables) -> Self {
        let sign = _mm256_set1_epi8(i8::MIN);
        let mut thresholds = [sign; 4];
        for (register, table) in thresholds.iter_mut().zip(&tables.thresholds) {
            let table = _mm256_broadcastsi128_si256(load_table(table));
            *register = _mm256_xor_si256(table, sign);
        }
        // At first every code is 0.
        thresholds[0] = _mm256_shuffle_epi8(thresholds[0], _mm256_set1_epi8(0));
        let levels = _mm256_broadcastsi128_si256(load_table(&tables.levels));
        Self { thresholds, levels }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn snap(self, codes: &mut [u8; 32]) {
        let [first, rest @ ..] = self.thresholds;
        let [first_step, rest_steps @ ..] = STEPS.map(u8::cast_signed);
        let fine = _mm256_xor_si256(load(codes), _mm256_set1_epi8(i8::MIN));
        let above = _mm256_cmpgt_epi8(fine, first);
        let mut code = _mm256_and_si256(above, _mm256_set1_epi8(first_step));
        for (table, step) in rest.into_iter().zip(rest_steps) {
            let above = _mm256_cmpgt_epi8(fine, _mm256_shuffle_epi8(table, code));
            let bit = _mm256_and_si256(above, _mm256_set1_epi8(step));
            code = _mm256_or_si256(code, bit);
        }
        store(codes, _mm256_shuffle_epi8(self.levels, code));
    }
}

/// [`crate::reference::snap`].
#[target_feature(enable = "avx2")]
pub(in crate::arch::x86_64) fn snap(book: &ActCodebook, codes: &mut [u8]) {
    let search = Search::new(&Tables::new(book));
    let (blocks, rest) = codes.as_chunks_mut::<32>();
    for block in blocks {
        search.snap(block);
    }
    if !rest.is_empty() {
        let mut block = [0; 32];
        block[..rest.len()].copy_from_slice(rest);
        search.snap(&mut block);
        rest.copy_from_slice(&block[..rest.len()]);
    }
}
