//! Dense weight codes: `b` bits each, little-endian, no gaps within a row.
//!
//! Code `i` occupies bits `i * b .. (i + 1) * b` of its row; bit `t` of a row is
//! bit `t % 8` of byte `t / 8`. Eight 3-bit codes c0 to c7 in three bytes:
//!
//! ```text
//! byte 0: c2 c2 c1 c1 c1 c0 c0 c0        highest bit first
//! byte 1: c5 c4 c4 c4 c3 c3 c3 c2
//! byte 2: c7 c7 c7 c6 c6 c6 c5 c5
//! ```
//!
//! A row is filled with zero bits to a whole byte.

use crate::BitWidth;

/// Code `index` of a dense row.
///
/// # Panics
/// If the row ends before the code.
pub fn code_at(bits: BitWidth, row: &[u8], index: usize) -> u8 {
    let width = bits.bits() as usize;
    let mut code = 0;
    for t in 0..width {
        let position = index * width + t;
        code |= (row[position / 8] >> (position % 8) & 1) << t;
    }
    code
}

/// Unpacks the first `out.len()` codes of a dense row.
///
/// # Panics
/// If the row ends before the last code.
pub fn unpack_row(bits: BitWidth, row: &[u8], out: &mut [u8]) {
    for (index, code) in out.iter_mut().enumerate() {
        *code = code_at(bits, row, index);
    }
}

/// Packs `codes` as one dense row.
///
/// # Panics
/// If `out` does not have [`BitWidth::row_bytes`]`(codes.len())` bytes, or a
/// code exceeds [`BitWidth::max_code`].
pub fn pack_codes(bits: BitWidth, codes: &[u8], out: &mut [u8]) {
    assert_eq!(
        out.len(),
        bits.row_bytes(codes.len()),
        "out is one dense row"
    );
    out.fill(0);
    let width = bits.bits() as usize;
    for (index, &code) in codes.iter().enumerate() {
        assert!(
            code <= bits.max_code(),
            "code {code} needs more than {width} bits"
        );
        for t in 0..width {
            let position = index * width + t;
            out[position / 8] |= (code >> t & 1) << (position % 8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{pack_codes, unpack_row};
    use crate::BitWidth;

    #[test]
    fn three_bit_codes_as_drawn() {
        let mut row = [0; 3];
        pack_codes(BitWidth::B3, &[1, 2, 3, 4, 5, 6, 7, 0], &mut row);
        assert_eq!(row, [0b1101_0001, 0b0101_1000, 0b0001_1111]);
    }

    #[test]
    fn packing_and_unpacking_are_inverse() {
        for bits in BitWidth::ALL {
            for k in 0..40 {
                let codes: [u8; 40] =
                    core::array::from_fn(|i| (i * 37 + 11) as u8 & bits.max_code());
                let mut row = [0xff; 40];
                let row = &mut row[..bits.row_bytes(k)];
                pack_codes(bits, &codes[..k], row);
                let mut back = [0; 40];
                unpack_row(bits, row, &mut back[..k]);
                assert_eq!(back[..k], codes[..k]);
            }
        }
    }

    #[test]
    #[should_panic(expected = "needs more than 3 bits")]
    fn a_code_out_of_range_is_refused() {
        pack_codes(BitWidth::B3, &[8], &mut [0]);
    }
}
