//! Activations in the order a tile reads them, and signed.
//!
//! ```text
//! block    MR rows, all k (the last may have fewer rows)     [m / MR]
//!   group  G consecutive k of each row                       [k / G]
//!            [rows][G] bytes: one or more vector loads
//! ```
//!
//! Where G is 8, a vector holds two rows, and an odd row is followed by one of zeros.
//!
//! A tile then walks along one pointer. Codes `a` become `a - shift`, for products
//! that are signed x signed; a tile would do it again for every panel. What is
//! missing at the edge of k is 0 (it meets weights of 0).

/// Bytes of a row of `k` codes: whole vectors.
pub(crate) const fn row_len(k: usize) -> usize {
    k.next_multiple_of(16)
}

/// Bytes of `rows` rows of `k` codes.
pub(crate) const fn block_len<const G: usize>(rows: usize, k: usize) -> usize {
    rows.next_multiple_of(16 / G) * row_len(k)
}

/// Re-orders one block: `rows` rows of `k` codes, `stride` apart, into the first
/// [`block_len`] bytes of `out`.
#[inline(always)]
pub(crate) fn pack_block<const G: usize>(
    a: &[u8],
    stride: usize,
    rows: usize,
    k: usize,
    shift: u8,
    out: &mut [u8],
) {
    let height = rows.next_multiple_of(16 / G);
    let (groups, _) = out[..block_len::<G>(rows, k)].as_chunks_mut::<G>();
    for r in 0..height {
        let mut slots = groups.iter_mut().skip(r).step_by(height);
        let row = if r < rows { &a[r * stride..][..k] } else { &[] };
        let (whole, rest) = row.as_chunks::<G>();
        for (codes, slot) in whole.iter().zip(&mut slots) {
            for (byte, code) in slot.iter_mut().zip(codes) {
                *byte = code.wrapping_sub(shift);
            }
        }
        for slot in slots {
            *slot = [0; G];
        }
        if !rest.is_empty() {
            for (byte, code) in groups[k / G * height + r].iter_mut().zip(rest) {
                *byte = code.wrapping_sub(shift);
            }
        }
    }
}

/// Re-orders `m` rows of `k` codes in blocks of `mr`; `out` has [`block_len`] bytes.
/// `mr` is even, or `G` is 16.
#[inline(always)]
pub(crate) fn pack_rows<const G: usize>(
    a: &[u8],
    k: usize,
    m: usize,
    mr: usize,
    shift: u8,
    out: &mut [u8],
) {
    for i in (0..m).step_by(mr) {
        let rows = usize::min(mr, m - i);
        pack_block::<G>(&a[i * k..], k, rows, k, shift, &mut out[i * row_len(k)..]);
    }
}

#[cfg(test)]
mod tests {
    use super::{block_len, pack_rows, row_len};

    /// Compares each byte of the packed rows with the drawing.
    fn check<const G: usize>(m: usize, mr: usize, k: usize) {
        let a: Vec<u8> = (0..m * k).map(|i| (i * 37 % 251) as u8).collect();
        let mut out = vec![0xaa; block_len::<G>(m, k)];
        pack_rows::<G>(&a, k, m, mr, 5, &mut out);
        for i in 0..m.next_multiple_of(16 / G) {
            let first = i / mr * mr;
            let height = usize::min(mr, m - first).next_multiple_of(16 / G);
            let block = &out[first * row_len(k)..];
            for t in 0..row_len(k) {
                let byte = block[(t / G * height + i - first) * G + t % G];
                let expected = if i < m && t < k {
                    a[i * k + t].wrapping_sub(5)
                } else {
                    0
                };
                assert_eq!(byte, expected, "{m} rows by {mr}: row {i}, k {t} of {k}");
            }
        }
    }

    #[test]
    fn every_code_lies_where_the_drawing_says() {
        for k in [1, 3, 7, 8, 9, 15, 16, 17, 24, 40] {
            for m in 1..10 {
                check::<16>(m, 3, k);
                check::<16>(m, 4, k);
                check::<8>(m, 4, k);
            }
        }
    }
}
