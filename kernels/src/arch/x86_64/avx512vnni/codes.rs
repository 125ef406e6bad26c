//! Rows of scores to rows of table entries; the search is
//! [`crate::arch::x86_64::search`].
//!
//! ```text
//! 32 scores           vpsubd x 2, vpackssdw          d - 32767, saturated to 16 bits
//!
//! up to 4 bits: tables of 8 words, which vpshufb reads with the shortest delay
//! level 0             vpsubsw, vpsraw                limit - d, all ones where it is negative
//! level 1 .. 3        vpshufb, vpsubsw, vpsraw       the path picks 1 of 2 .. 8 limits;
//!                     vpternlogd                     between levels: path |= bit, where above
//! entries             vpshufb, vpand, vpsrlvw        the pair, then one of its bytes
//!
//! 6 and 8 bits:
//! level 0             vpcmpgtw                       with one limit
//! level 1 .. 5        vpermw, vpcmpgtw, vpaddw       1 of 2 .. 32 limits; a masked addition
//! level 6             vpermi2w, ..                   1 of 64
//! level 7             vpermi2w x 2, vpblendmw, ..    1 of 128
//! entries             the same lookup, vpsrlw        a masked shift picks the pair's byte
//!
//! 32 entries          vpmovwb, vpermd                to bytes, and back in order
//! ```
//!
//! 4-bit codes take 17 instructions of search for 32 scores, 8-bit codes 28.

use core::arch::x86_64::{
    __m256i, __m512i, __mmask16, __mmask32, _mm_loadu_si128, _mm256_and_si256, _mm256_loadu_si256,
    _mm256_permutevar8x32_epi32, _mm256_set_m128i, _mm256_setr_epi32, _mm256_storeu_si256,
    _mm512_and_si512, _mm512_broadcast_i32x4, _mm512_cmpgt_epi16_mask, _mm512_cmpgt_epi32_mask,
    _mm512_cvtepi16_epi8, _mm512_cvtepi32_epi8, _mm512_cvtepu16_epi32, _mm512_loadu_si512,
    _mm512_mask_add_epi16, _mm512_mask_add_epi32, _mm512_mask_blend_epi16, _mm512_mask_blend_epi32,
    _mm512_mask_srli_epi16, _mm512_mask_srli_epi32, _mm512_packs_epi32, _mm512_permutex2var_epi16,
    _mm512_permutex2var_epi32, _mm512_permutexvar_epi16, _mm512_permutexvar_epi32,
    _mm512_set1_epi16, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_shuffle_epi8,
    _mm512_srai_epi16, _mm512_srlv_epi16, _mm512_sub_epi32, _mm512_subs_epi16,
    _mm512_ternarylogic_epi32,
};

use crate::{
    BitWidth,
    arch::{
        common::softmax::Row,
        x86_64::{
            avx2::codes::byte_sum,
            search::{Dwords, Limits, Pairs, Search, Words, keep},
        },
    },
};

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn load_words(words: &[i16; 32]) -> __m512i {
    // SAFETY: `words` is 64 readable bytes; `loadu` needs no alignment.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn load_dwords(dwords: &[i32; 16]) -> __m512i {
    // SAFETY: `dwords` is 64 readable bytes; `loadu` needs no alignment.
    unsafe { _mm512_loadu_si512(dwords.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn load_half(words: &[i16; 16]) -> __m256i {
    // SAFETY: `words` is 32 readable bytes; `loadu` needs no alignment.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn load_bytes(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: `bytes` is 32 readable bytes; `loadu` needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn store_bytes(bytes: &mut [u8; 32], value: __m256i) {
    // SAFETY: `bytes` is 32 writable bytes; `storeu` needs no alignment.
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), value) }
}

/// The entries of a row in each plane, and the sum of its multipliers:
/// [`crate::arch::common::softmax::Coder::encode`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn encode(search: &Search, row: &Row, out: &mut [u8]) -> i32 {
    search.with_limits(row, |limits| match (limits, search.bits()) {
        (Limits::Narrow(words), BitWidth::B2) => small::<2>(search, words, row, out),
        (Limits::Narrow(words), BitWidth::B3) => small::<3>(search, words, row, out),
        (Limits::Narrow(words), BitWidth::B4) => small::<4>(search, words, row, out),
        (Limits::Narrow(words), BitWidth::B6) => narrow::<6>(search, words, row, out),
        (Limits::Narrow(words), BitWidth::B8) => narrow::<8>(search, words, row, out),
        (Limits::Wide(dwords), BitWidth::B2) => wide::<2>(search, dwords, row, out),
        (Limits::Wide(dwords), BitWidth::B3) => wide::<3>(search, dwords, row, out),
        (Limits::Wide(dwords), BitWidth::B4) => wide::<4>(search, dwords, row, out),
        (Limits::Wide(dwords), BitWidth::B6) => wide::<6>(search, dwords, row, out),
        (Limits::Wide(dwords), BitWidth::B8) => wide::<8>(search, dwords, row, out),
    });
    let len = row.scores.len();
    search
        .book
        .multiplier_sum(row.tokens, |p| byte_sum(&out[p * row.plane..][..len]))
}

/// A table of eight words, for `vpshufb`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn load_eight(words: &[i16]) -> __m512i {
    let eight = words
        .first_chunk::<8>()
        .expect("a tree has 256 places, pairs have 128");
    // SAFETY: `eight` is 16 readable bytes; `loadu` needs no alignment.
    let eight = unsafe { _mm_loadu_si128(eight.as_ptr().cast()) };
    _mm512_broadcast_i32x4(eight)
}

/// Level `K` of `B`, at most 4: all ones where `d` is above its limit. `path` is
/// kept as the two bytes `2p, 2p + 1` that `vpshufb` needs to move a word.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn small_level<const K: usize, const B: usize>(
    limits: &[__m512i; 4],
    d: __m512i,
    path: __m512i,
    above: __m512i,
) -> (__m512i, __m512i) {
    if K >= B {
        return (path, above);
    }
    let limit = if K == 0 {
        limits[0]
    } else {
        _mm512_shuffle_epi8(limits[K], path)
    };
    let above = _mm512_srai_epi16::<15>(_mm512_subs_epi16(limit, d));
    if K + 1 == B {
        return (path, above);
    }
    // path | above & bit
    let bit = _mm512_set1_epi16(0x0202 << K);
    (_mm512_ternarylogic_epi32::<0xf8>(path, above, bit), above)
}

/// Rows of at most 4 bits whose limits are words.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn small<const B: usize>(search: &Search, words: &Words, row: &Row, out: &mut [u8]) {
    let limits = [
        _mm512_set1_epi16(words[0]),
        load_eight(&words[1..]),
        load_eight(&words[3..]),
        load_eight(&words[7..]),
    ];
    let origin = _mm512_set1_epi32(row.max.wrapping_sub(32_767));
    // `vpackssdw` takes four dwords of one operand, then four of the other.
    let order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    let (blocks, _) = row.scores.as_chunks::<32>();
    for (b, block) in blocks.iter().enumerate() {
        let (halves, _) = block.as_chunks::<16>();
        let d = _mm512_packs_epi32(
            _mm512_sub_epi32(origin, load_dwords(&halves[0])),
            _mm512_sub_epi32(origin, load_dwords(&halves[1])),
        );
        let (path, above) = (_mm512_set1_epi16(0x0100), _mm512_setzero_si512());
        let (path, above) = small_level::<0, B>(&limits, d, path, above);
        let (path, above) = small_level::<1, B>(&limits, d, path, above);
        let (path, above) = small_level::<2, B>(&limits, d, path, above);
        let (path, above) = small_level::<3, B>(&limits, d, path, above);
        let byte = _mm512_and_si512(above, _mm512_set1_epi16(8));
        let keep = load_bytes(keep(row.tokens, b));
        for (p, pairs) in search.pairs[..search.book.planes].iter().enumerate() {
            let pair = _mm512_shuffle_epi8(load_eight(pairs), path);
            let entry = _mm512_cvtepi16_epi8(_mm512_srlv_epi16(pair, byte));
            let entry = _mm256_permutevar8x32_epi32(entry, order);
            store_block(out, p * row.plane + 32 * b, _mm256_and_si256(entry, keep));
        }
    }
}

/// 32 lanes on their way down the tree.
struct Path {
    path: __m512i,
    /// By level: the lanes above their limit.
    above: [__mmask32; 8],
}

/// Entry `path` of a table of `2^K` words, by lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn lookup<const K: usize>(table: &[i16], at: &Path) -> __m512i {
    let (table, _) = table.as_chunks::<32>();
    if K <= 5 {
        _mm512_permutexvar_epi16(at.path, load_words(&table[0]))
    } else if K == 6 {
        _mm512_permutex2var_epi16(load_words(&table[0]), at.path, load_words(&table[1]))
    } else {
        let low = _mm512_permutex2var_epi16(load_words(&table[0]), at.path, load_words(&table[1]));
        let high = _mm512_permutex2var_epi16(load_words(&table[2]), at.path, load_words(&table[3]));
        _mm512_mask_blend_epi16(at.above[6], low, high)
    }
}

/// Level `K` of `B`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn level<const K: usize, const B: usize>(words: &Words, d: __m512i, at: &mut Path) {
    if K < B {
        let limits = if K == 0 {
            _mm512_set1_epi16(words[0])
        } else {
            lookup::<K>(&words[(1 << K) - 1..], at)
        };
        at.above[K] = _mm512_cmpgt_epi16_mask(d, limits);
        if K + 1 < B {
            let bit = _mm512_set1_epi16(1 << K);
            at.path = _mm512_mask_add_epi16(at.path, at.above[K], at.path, bit);
        }
    }
}

/// Rows of more bits whose limits are words.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn narrow<const B: usize>(search: &Search, words: &Words, row: &Row, out: &mut [u8]) {
    let origin = _mm512_set1_epi32(row.max.wrapping_sub(32_767));
    // `vpackssdw` takes four dwords of one operand, then four of the other.
    let order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    let (blocks, _) = row.scores.as_chunks::<32>();
    for (b, block) in blocks.iter().enumerate() {
        let (halves, _) = block.as_chunks::<16>();
        let d = _mm512_packs_epi32(
            _mm512_sub_epi32(origin, load_dwords(&halves[0])),
            _mm512_sub_epi32(origin, load_dwords(&halves[1])),
        );
        let mut at = Path {
            path: _mm512_setzero_si512(),
            above: [0; 8],
        };
        level::<0, B>(words, d, &mut at);
        level::<1, B>(words, d, &mut at);
        level::<2, B>(words, d, &mut at);
        level::<3, B>(words, d, &mut at);
        level::<4, B>(words, d, &mut at);
        level::<5, B>(words, d, &mut at);
        level::<6, B>(words, d, &mut at);
        level::<7, B>(words, d, &mut at);
        let keep = load_bytes(keep(row.tokens, b));
        for (p, pairs) in search.pairs[..search.book.planes].iter().enumerate() {
            let pair = entries::<B>(pairs, &at);
            let entry = _mm512_mask_srli_epi16::<8>(pair, at.above[B - 1], pair);
            let entry = _mm256_permutevar8x32_epi32(_mm512_cvtepi16_epi8(entry), order);
            store_block(out, p * row.plane + 32 * b, _mm256_and_si256(entry, keep));
        }
    }
}

/// The pairs of entries at the end of a path.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn entries<const B: usize>(pairs: &Pairs, at: &Path) -> __m512i {
    match B {
        6 => lookup::<5>(pairs, at),
        _ => lookup::<7>(pairs, at),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn store_block(out: &mut [u8], start: usize, entries: __m256i) {
    let block = out[start..]
        .first_chunk_mut()
        .expect("rows of entries are whole blocks");
    store_bytes(block, entries);
}

/// 16 lanes on their way down the tree.
struct WidePath {
    path: __m512i,
    above: [__mmask16; 8],
}

/// Entry `path` of a table of `2^K` dwords, by lane; `table` gives sixteen at a time.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn wide_lookup<const K: usize>(table: impl Fn(usize) -> __m512i, at: &WidePath) -> __m512i {
    let two = |i: usize| _mm512_permutex2var_epi32(table(2 * i), at.path, table(2 * i + 1));
    let four = |i: usize| _mm512_mask_blend_epi32(at.above[5], two(2 * i), two(2 * i + 1));
    if K <= 4 {
        _mm512_permutexvar_epi32(at.path, table(0))
    } else if K == 5 {
        two(0)
    } else if K == 6 {
        four(0)
    } else {
        _mm512_mask_blend_epi32(at.above[6], four(0), four(1))
    }
}

/// Level `K` of `B`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn wide_level<const K: usize, const B: usize>(dwords: &Dwords, d: __m512i, at: &mut WidePath) {
    if K < B {
        let limits = if K == 0 {
            _mm512_set1_epi32(dwords[0])
        } else {
            let (table, _) = dwords[(1 << K) - 1..].as_chunks::<16>();
            wide_lookup::<K>(|i| load_dwords(&table[i]), at)
        };
        at.above[K] = _mm512_cmpgt_epi32_mask(d, limits);
        if K + 1 < B {
            let bit = _mm512_set1_epi32(1 << K);
            at.path = _mm512_mask_add_epi32(at.path, at.above[K], at.path, bit);
        }
    }
}

/// Rows whose limits are dwords.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn wide<const B: usize>(search: &Search, dwords: &Dwords, row: &Row, out: &mut [u8]) {
    let max = _mm512_set1_epi32(row.max);
    let (blocks, _) = row.scores.as_chunks::<32>();
    for (b, block) in blocks.iter().enumerate() {
        let (halves, _) = block.as_chunks::<16>();
        let low = wide_path::<B>(dwords, _mm512_sub_epi32(max, load_dwords(&halves[0])));
        let high = wide_path::<B>(dwords, _mm512_sub_epi32(max, load_dwords(&halves[1])));
        let keep = load_bytes(keep(row.tokens, b));
        for (p, pairs) in search.pairs[..search.book.planes].iter().enumerate() {
            let entry = |at: &WidePath| {
                let pair = wide_entries::<B>(pairs, at);
                let entry = _mm512_mask_srli_epi32::<8>(pair, at.above[B - 1], pair);
                _mm512_cvtepi32_epi8(entry)
            };
            let entry = _mm256_set_m128i(entry(&high), entry(&low));
            store_block(out, p * row.plane + 32 * b, _mm256_and_si256(entry, keep));
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn wide_path<const B: usize>(dwords: &Dwords, d: __m512i) -> WidePath {
    let mut at = WidePath {
        path: _mm512_setzero_si512(),
        above: [0; 8],
    };
    wide_level::<0, B>(dwords, d, &mut at);
    wide_level::<1, B>(dwords, d, &mut at);
    wide_level::<2, B>(dwords, d, &mut at);
    wide_level::<3, B>(dwords, d, &mut at);
    wide_level::<4, B>(dwords, d, &mut at);
    wide_level::<5, B>(dwords, d, &mut at);
    wide_level::<6, B>(dwords, d, &mut at);
    wide_level::<7, B>(dwords, d, &mut at);
    at
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn wide_entries<const B: usize>(pairs: &Pairs, at: &WidePath) -> __m512i {
    let (pairs, _) = pairs.as_chunks::<16>();
    let table = |i: usize| _mm512_cvtepu16_epi32(load_half(&pairs[i]));
    match B {
        2 => wide_lookup::<1>(table, at),
        3 => wide_lookup::<2>(table, at),
        4 => wide_lookup::<3>(table, at),
        6 => wide_lookup::<5>(table, at),
        _ => wide_lookup::<7>(table, at),
    }
}
