//! Rows of scores to rows of table entries; the search is
//! [`crate::arch::x86_64::search`]. AVX-VNNI uses it as it is.
//!
//! ```text
//! 16 scores           vpsubd x 2, vpackssdw          d - 32767, saturated to 16 bits
//! level 0             vpcmpgtw                       with one limit
//! level 1 .. 3        vpshufb, vpcmpgtw              the path picks 1 of 2 .. 8 limits
//! level k > 3         vpshufb x 2^(k-3)              1 of 8 each; then each earlier
//!                     vpblendvb x (2^(k-3) - 1)      comparison halves what is left
//! entries             the same lookup, then one byte of the pair
//! 32 entries          vpackuswb, vpermd              to bytes, and back in order
//! ```
//!
//! A path is kept as the two bytes `2p, 2p + 1` that `vpshufb` needs to move a word.
//! 4-bit codes take 18 instructions of search for 16 scores, 6-bit codes 37. 8-bit
//! codes would take 108, so they are looked up one by one: [`Coder`].

use core::arch::x86_64::{
    __m128i, __m256i, _mm_loadu_si128, _mm256_add_epi8, _mm256_add_epi32, _mm256_add_epi64,
    _mm256_and_si256, _mm256_blendv_epi8, _mm256_broadcastsi128_si256, _mm256_cmpgt_epi16,
    _mm256_cmpgt_epi32, _mm256_cvtepu16_epi32, _mm256_extract_epi64, _mm256_loadu_si256,
    _mm256_packs_epi32, _mm256_packus_epi16, _mm256_permutevar8x32_epi32, _mm256_sad_epu8,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_setr_epi32, _mm256_setzero_si256,
    _mm256_shuffle_epi8, _mm256_srli_epi16, _mm256_srli_epi32, _mm256_storeu_si256,
    _mm256_sub_epi32,
};

use crate::{
    BitWidth,
    arch::{
        common::softmax::{Codebook, Coder, Row},
        x86_64::search::{Dwords, Limits, Pairs, Search, Words, keep},
    },
};

#[inline]
#[target_feature(enable = "avx2")]
fn load_words(words: &[i16; 8]) -> __m128i {
    // SAFETY: `words` is 16 readable bytes; `loadu` needs no alignment.
    unsafe { _mm_loadu_si128(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_dwords(dwords: &[i32; 8]) -> __m256i {
    // SAFETY: `dwords` is 32 readable bytes; `loadu` needs no alignment.
    unsafe { _mm256_loadu_si256(dwords.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_bytes(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: `bytes` is 32 readable bytes; `loadu` needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_bytes(bytes: &mut [u8; 32], value: __m256i) {
    // SAFETY: `bytes` is 32 writable bytes; `storeu` needs no alignment.
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), value) }
}

/// The sum of whole blocks of bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::arch::x86_64) fn byte_sum(bytes: &[u8]) -> u32 {
    let zero = _mm256_setzero_si256();
    let mut sums = zero;
    let (blocks, _) = bytes.as_chunks::<32>();
    for block in blocks {
        sums = _mm256_add_epi64(sums, _mm256_sad_epu8(load_bytes(block), zero));
    }
    let sum = _mm256_extract_epi64::<0>(sums)
        + _mm256_extract_epi64::<1>(sums)
        + _mm256_extract_epi64::<2>(sums)
        + _mm256_extract_epi64::<3>(sums);
    sum as u32
}

/// How the codes of a call are found.
#[expect(
    clippy::large_enum_variant,
    reason = "one for a call, on the stack: nothing is allocated"
)]
pub(in crate::arch::x86_64) enum Codes<'a> {
    Tree(Search<'a>),
    OneByOne(Coder<'a>),
}

impl<'a> Codes<'a> {
    pub(in crate::arch::x86_64) fn new(book: &'a Codebook) -> Self {
        match book.softmax.bits {
            BitWidth::B2 | BitWidth::B3 | BitWidth::B4 | BitWidth::B6 => {
                Self::Tree(Search::new(book))
            }
            BitWidth::B8 => Self::OneByOne(Coder::new(book)),
        }
    }
}

/// The entries of a row in each plane, and the sum of its multipliers:
/// [`Coder::encode`].
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::arch::x86_64) fn encode(codes: &Codes, row: &Row, out: &mut [u8]) -> i32 {
    let search = match codes {
        Codes::Tree(search) => search,
        Codes::OneByOne(coder) => return coder.encode(row, out),
    };
    search.with_limits(row, |limits| match (limits, search.bits()) {
        (Limits::Narrow(words), BitWidth::B2) => narrow::<2>(search, words, row, out),
        (Limits::Narrow(words), BitWidth::B3) => narrow::<3>(search, words, row, out),
        (Limits::Narrow(words), BitWidth::B4) => narrow::<4>(search, words, row, out),
        (Limits::Narrow(words), BitWidth::B6 | BitWidth::B8) => {
            narrow::<6>(search, words, row, out)
        }
        (Limits::Wide(dwords), BitWidth::B2) => wide::<2>(search, dwords, row, out),
        (Limits::Wide(dwords), BitWidth::B3) => wide::<3>(search, dwords, row, out),
        (Limits::Wide(dwords), BitWidth::B4) => wide::<4>(search, dwords, row, out),
        (Limits::Wide(dwords), BitWidth::B6 | BitWidth::B8) => wide::<6>(search, dwords, row, out),
    });
    let len = row.scores.len();
    search
        .book
        .multiplier_sum(row.tokens, |p| byte_sum(&out[p * row.plane..][..len]))
}

/// Lanes on their way down the tree: words or dwords.
struct Path {
    /// The first three bits of the path, as indices for a table lookup.
    path: __m256i,
    /// By level: the lanes above their limit, all ones.
    above: [__m256i; 6],
}

/// Halves `tables[.. N]` by each comparison from level 3 on, until one is left.
#[inline]
#[target_feature(enable = "avx2")]
fn halve<const N: usize>(mut tables: [__m256i; N], at: &Path) -> __m256i {
    let (mut left, mut level) = (N, 3);
    while left > 1 {
        left /= 2;
        for i in 0..left {
            tables[i] = _mm256_blendv_epi8(tables[2 * i], tables[2 * i + 1], at.above[level]);
        }
        level += 1;
    }
    tables[0]
}

/// Entry `path` of a table of `8 * N` words or fewer, by lane.
#[inline]
#[target_feature(enable = "avx2")]
fn lookup<const N: usize>(table: &[i16], at: &Path) -> __m256i {
    let (table, _) = table.as_chunks::<8>();
    let mut found = [_mm256_setzero_si256(); N];
    for (found, eight) in found.iter_mut().zip(&table[..N]) {
        let eight = _mm256_broadcastsi128_si256(load_words(eight));
        *found = _mm256_shuffle_epi8(eight, at.path);
    }
    halve(found, at)
}

/// [`lookup`] of a table of `2^K` words.
#[inline]
#[target_feature(enable = "avx2")]
fn lookup_level<const K: usize>(table: &[i16], at: &Path) -> __m256i {
    match K {
        0..=3 => lookup::<1>(table, at),
        4 => lookup::<2>(table, at),
        _ => lookup::<4>(table, at),
    }
}

/// Level `K` of `B`.
#[inline]
#[target_feature(enable = "avx2")]
fn level<const K: usize, const B: usize>(words: &Words, d: __m256i, at: &mut Path) {
    if K < B {
        let limits = if K == 0 {
            _mm256_set1_epi16(words[0])
        } else {
            lookup_level::<K>(&words[(1 << K) - 1..], at)
        };
        at.above[K] = _mm256_cmpgt_epi16(d, limits);
        if K < 3 && K + 1 < B {
            let bit = _mm256_set1_epi16(0x0202 << K);
            at.path = _mm256_add_epi8(at.path, _mm256_and_si256(at.above[K], bit));
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn path<const B: usize>(words: &Words, d: __m256i) -> Path {
    let mut at = Path {
        path: _mm256_set1_epi16(0x0100),
        above: [_mm256_setzero_si256(); 6],
    };
    level::<0, B>(words, d, &mut at);
    level::<1, B>(words, d, &mut at);
    level::<2, B>(words, d, &mut at);
    level::<3, B>(words, d, &mut at);
    level::<4, B>(words, d, &mut at);
    level::<5, B>(words, d, &mut at);
    at
}

/// The entries at the end of a path, one in each word.
#[inline]
#[target_feature(enable = "avx2")]
fn entries<const B: usize>(pairs: &Pairs, at: &Path) -> __m256i {
    let pair = match B {
        2 => lookup_level::<1>(pairs, at),
        3 => lookup_level::<2>(pairs, at),
        4 => lookup_level::<3>(pairs, at),
        _ => lookup_level::<5>(pairs, at),
    };
    let lower = _mm256_and_si256(pair, _mm256_set1_epi16(0xff));
    _mm256_blendv_epi8(lower, _mm256_srli_epi16::<8>(pair), at.above[B - 1])
}

/// Rows whose limits are words.
#[inline]
#[target_feature(enable = "avx2")]
fn narrow<const B: usize>(search: &Search, words: &Words, row: &Row, out: &mut [u8]) {
    let origin = _mm256_set1_epi32(row.max.wrapping_sub(32_767));
    let (blocks, _) = row.scores.as_chunks::<32>();
    for (b, block) in blocks.iter().enumerate() {
        let (eights, _) = block.as_chunks::<8>();
        let d = |i: usize| _mm256_sub_epi32(origin, load_dwords(&eights[i]));
        let low = path::<B>(words, _mm256_packs_epi32(d(0), d(1)));
        let high = path::<B>(words, _mm256_packs_epi32(d(2), d(3)));
        for (p, pairs) in search.pairs[..search.book.planes].iter().enumerate() {
            let packed = _mm256_packus_epi16(entries::<B>(pairs, &low), entries::<B>(pairs, &high));
            store_block(packed, row, p, b, out);
        }
    }
}

/// Stores a block of entries that two packs have taken out of order.
#[inline]
#[target_feature(enable = "avx2")]
fn store_block(packed: __m256i, row: &Row, plane: usize, b: usize, out: &mut [u8]) {
    // A pack works in each half alone: the first halves of all operands come first.
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let entries = _mm256_permutevar8x32_epi32(packed, order);
    let keep = load_bytes(keep(row.tokens, b));
    let block = out[plane * row.plane + 32 * b..]
        .first_chunk_mut()
        .expect("rows of entries are whole blocks");
    store_bytes(block, _mm256_and_si256(entries, keep));
}

/// Entry `path` of a table of `8 * N` dwords or fewer; `table` gives eight at a time.
#[inline]
#[target_feature(enable = "avx2")]
fn wide_lookup<const N: usize>(table: impl Fn(usize) -> __m256i, at: &Path) -> __m256i {
    let mut found = [_mm256_setzero_si256(); N];
    for (i, found) in found.iter_mut().enumerate() {
        *found = _mm256_permutevar8x32_epi32(table(i), at.path);
    }
    halve(found, at)
}

/// [`wide_lookup`] of a table of `2^K` dwords.
#[inline]
#[target_feature(enable = "avx2")]
fn wide_lookup_level<const K: usize>(table: impl Fn(usize) -> __m256i, at: &Path) -> __m256i {
    match K {
        0..=3 => wide_lookup::<1>(table, at),
        4 => wide_lookup::<2>(table, at),
        _ => wide_lookup::<4>(table, at),
    }
}

/// Level `K` of `B`.
#[inline]
#[target_feature(enable = "avx2")]
fn wide_level<const K: usize, const B: usize>(dwords: &Dwords, d: __m256i, at: &mut Path) {
    if K < B {
        let limits = if K == 0 {
            _mm256_set1_epi32(dwords[0])
        } else {
            let (table, _) = dwords[(1 << K) - 1..].as_chunks::<8>();
            wide_lookup_level::<K>(|i| load_dwords(&table[i]), at)
        };
        at.above[K] = _mm256_cmpgt_epi32(d, limits);
        if K < 3 && K + 1 < B {
            let bit = _mm256_set1_epi32(1 << K);
            at.path = _mm256_add_epi32(at.path, _mm256_and_si256(at.above[K], bit));
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn wide_path<const B: usize>(dwords: &Dwords, d: __m256i) -> Path {
    let mut at = Path {
        path: _mm256_setzero_si256(),
        above: [_mm256_setzero_si256(); 6],
    };
    wide_level::<0, B>(dwords, d, &mut at);
    wide_level::<1, B>(dwords, d, &mut at);
    wide_level::<2, B>(dwords, d, &mut at);
    wide_level::<3, B>(dwords, d, &mut at);
    wide_level::<4, B>(dwords, d, &mut at);
    wide_level::<5, B>(dwords, d, &mut at);
    at
}

/// The entries at the end of a path, one in each dword.
#[inline]
#[target_feature(enable = "avx2")]
fn wide_entries<const B: usize>(pairs: &Pairs, at: &Path) -> __m256i {
    let (pairs, _) = pairs.as_chunks::<8>();
    let table = |i: usize| _mm256_cvtepu16_epi32(load_words(&pairs[i]));
    let pair = match B {
        2 => wide_lookup_level::<1>(table, at),
        3 => wide_lookup_level::<2>(table, at),
        4 => wide_lookup_level::<3>(table, at),
        _ => wide_lookup_level::<5>(table, at),
    };
    let lower = _mm256_and_si256(pair, _mm256_set1_epi32(0xff));
    _mm256_blendv_epi8(lower, _mm256_srli_epi32::<8>(pair), at.above[B - 1])
}

/// Rows whose limits are dwords.
#[inline]
#[target_feature(enable = "avx2")]
fn wide<const B: usize>(search: &Search, dwords: &Dwords, row: &Row, out: &mut [u8]) {
    let max = _mm256_set1_epi32(row.max);
    let (blocks, _) = row.scores.as_chunks::<32>();
    for (b, block) in blocks.iter().enumerate() {
        let (eights, _) = block.as_chunks::<8>();
        let at = |i: usize| wide_path::<B>(dwords, _mm256_sub_epi32(max, load_dwords(&eights[i])));
        let paths = [at(0), at(1), at(2), at(3)];
        for (p, pairs) in search.pairs[..search.book.planes].iter().enumerate() {
            let entry = |i: usize| wide_entries::<B>(pairs, &paths[i]);
            let low = _mm256_packs_epi32(entry(0), entry(1));
            let high = _mm256_packs_epi32(entry(2), entry(3));
            store_block(_mm256_packus_epi16(low, high), row, p, b, out);
        }
    }
}
