//! Bytes to 16-bit words, for tiles without an exact byte product.

/// Bytes of a row of `k` codes widened to 16 bits: whole pairs of words.
pub(crate) const fn wide_row_len(k: usize) -> usize {
    2 * k.next_multiple_of(2)
}

/// Widens columns `col .. col + k` of `rows` rows; rows of `wide` are packed
/// tightly and an odd last column is followed by 0.
#[inline(always)]
pub(crate) fn widen_codes(
    a: &[u8],
    stride: usize,
    col: usize,
    k: usize,
    rows: usize,
    wide: &mut [u8],
) {
    if k == 0 {
        return;
    }
    for (r, wide) in wide
        .chunks_exact_mut(wide_row_len(k))
        .take(rows)
        .enumerate()
    {
        let (words, _) = wide.as_chunks_mut::<2>();
        if let Some(last) = words.last_mut() {
            *last = [0; 2];
        }
        for (word, &code) in words.iter_mut().zip(&a[r * stride + col..][..k]) {
            *word = u16::from(code).to_le_bytes();
        }
    }
}

/// Widens s8 weights; `wide` has twice their bytes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn widen_weights(weights: &[u8], wide: &mut [u8]) {
    let (words, _) = wide.as_chunks_mut::<2>();
    for (word, &weight) in words.iter_mut().zip(weights) {
        *word = i16::from(weight as i8).to_le_bytes();
    }
}
