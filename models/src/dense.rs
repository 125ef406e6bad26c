//! Dense codes: how 2, 3, 4, 6 and 8-bit codes lie in bytes.
//!
//! Code `i` of a row occupies bits `i * bits .. (i + 1) * bits` of that row;
//! bit `j` of a row is bit `j % 8` (from the least significant) of byte
//! `j / 8`. A row is filled up with zero bits to a whole byte. Eight 3-bit
//! codes, each letter one bit of the code `a` to `h`:
//!
//! ```text
//!            bit 7 6 5 4 3 2 1 0
//! byte 0         c c b b b a a a
//! byte 1         f e e e d d d c
//! byte 2         h h h g g g f f
//! ```
//!
//! This is the order of the file, the same for every CPU; the runtime
//! re-orders it once at load.

use tpvit_kernels::BitWidth;

/// Packs one row.
///
/// `codes` is one code per byte; `out` is
/// [`BitWidth::row_bytes`] long.
///
/// # Panics
/// If `out` has another length or a code exceeds `bits.max_code()`.
pub fn pack_row(bits: BitWidth, codes: &[u8], out: &mut [u8]) {
    assert_eq!(
        out.len(),
        bits.row_bytes(codes.len()),
        "length of the packed row"
    );
    let mut out = out.iter_mut();
    let mut pending = 0u32; // bits not yet stored, the oldest lowest
    let mut count = 0; // how many, fewer than 8 between codes
    for &code in codes {
        assert!(code <= bits.max_code(), "code {code} needs more bits");
        pending |= u32::from(code) << count;
        count += bits.bits();
        while count >= 8 {
            store(&mut out, pending);
            pending >>= 8;
            count -= 8;
        }
    }
    if count > 0 {
        store(&mut out, pending);
    }
}

fn store(out: &mut core::slice::IterMut<'_, u8>, pending: u32) {
    let byte = out.next().expect("the length of the row is checked");
    *byte = (pending & 0xff) as u8;
}

/// Unpacks one row to one code per byte.
///
/// # Panics
/// If `bytes` is not [`BitWidth::row_bytes`] long for `codes.len()` columns.
pub fn unpack_row(bits: BitWidth, bytes: &[u8], codes: &mut [u8]) {
    assert_eq!(
        bytes.len(),
        bits.row_bytes(codes.len()),
        "length of the packed row"
    );
    match bits {
        BitWidth::B8 => codes.copy_from_slice(bytes),
        BitWidth::B4 => {
            // Two codes a byte: pairs, which the compiler makes vector code of.
            let (pairs, last) = codes.as_chunks_mut::<2>();
            for (pair, byte) in pairs.iter_mut().zip(bytes) {
                *pair = [byte & 0x0f, byte >> 4];
            }
            for (code, byte) in last.iter_mut().zip(&bytes[pairs.len()..]) {
                *code = byte & 0x0f;
            }
        }
        BitWidth::B2 | BitWidth::B3 | BitWidth::B6 => {
            // Eight codes are as many bytes as a code has bits.
            let width = bits.bits() as usize;
            for (eight, bytes) in codes.chunks_mut(8).zip(bytes.chunks(width)) {
                let mut word = [0; 8];
                word[..bytes.len()].copy_from_slice(bytes);
                let word = u64::from_le_bytes(word);
                for (i, code) in eight.iter_mut().enumerate() {
                    *code = (word >> (i * width)) as u8 & bits.max_code();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn pack(bits: BitWidth, codes: &[u8]) -> Vec<u8> {
        let mut out = vec![0xaa; bits.row_bytes(codes.len())];
        pack_row(bits, codes, &mut out);
        out
    }

    /// The definition of the module header, one bit at a time.
    fn bit_by_bit(bits: BitWidth, codes: &[u8]) -> Vec<u8> {
        let width = bits.bits() as usize;
        let mut out = vec![0; (codes.len() * width).div_ceil(8)];
        for j in 0..codes.len() * width {
            out[j / 8] |= (codes[j / width] >> (j % width) & 1) << (j % 8);
        }
        out
    }

    #[test]
    #[should_panic(expected = "code 8 needs more bits")]
    fn a_code_that_is_too_large_panics() {
        pack(BitWidth::B3, &[8]);
    }

    proptest! {
        #[test]
        fn packing_follows_the_definition_and_returns(
            raw in prop::collection::vec(any::<u8>(), 0..70),
        ) {
            for bits in BitWidth::ALL {
                let codes: Vec<u8> = raw.iter().map(|c| c & bits.max_code()).collect();
                let packed = pack(bits, &codes);
                prop_assert_eq!(&packed, &bit_by_bit(bits, &codes));
                let mut back = vec![0xff; codes.len()];
                unpack_row(bits, &packed, &mut back);
                prop_assert_eq!(back, codes);
            }
        }
    }
}
