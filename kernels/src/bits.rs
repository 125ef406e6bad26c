//! How many bits a code has.

/// Width of a quantized code.
///
/// A code of `b` bits is stored unsigned, `0 ..= 2^b - 1`. Where it is a weight
/// it is executed signed, as `code - 2^(b-1)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BitWidth {
    /// 2 bits, codes 0 to 3.
    B2,
    /// 3 bits, codes 0 to 7.
    B3,
    /// 4 bits, codes 0 to 15.
    B4,
    /// 6 bits, codes 0 to 63.
    B6,
    /// 8 bits, codes 0 to 255.
    B8,
}

impl BitWidth {
    /// Every width, ascending.
    pub const ALL: [Self; 5] = [Self::B2, Self::B3, Self::B4, Self::B6, Self::B8];

    /// The number of bits, `b`.
    pub const fn bits(self) -> u32 {
        match self {
            Self::B2 => 2,
            Self::B3 => 3,
            Self::B4 => 4,
            Self::B6 => 6,
            Self::B8 => 8,
        }
    }

    /// The width with `bits` bits, if there is one.
    pub const fn from_bits(bits: u32) -> Option<Self> {
        match bits {
            2 => Some(Self::B2),
            3 => Some(Self::B3),
            4 => Some(Self::B4),
            6 => Some(Self::B6),
            8 => Some(Self::B8),
            _ => None,
        }
    }

    /// The largest code, `2^b - 1`.
    pub const fn max_code(self) -> u8 {
        (0xff_u16 >> (8 - self.bits())) as u8
    }

    /// What is subtracted from a stored code to make it signed, `2^(b-1)`.
    ///
    /// Signed codes then lie in `-center() ..= center() - 1`.
    pub const fn center(self) -> u8 {
        1 << (self.bits() - 1)
    }

    /// Bytes of a dense row of `k` codes: `ceil(k * b / 8)`.
    ///
    /// # Panics
    /// If `k * b` overflows `usize`, in builds with overflow checks.
    pub const fn row_bytes(self, k: usize) -> usize {
        (k * self.bits() as usize).div_ceil(8)
    }
}

#[cfg(test)]
mod tests {
    use super::BitWidth;

    #[test]
    fn bits_round_trip_and_bound_the_codes() {
        for width in BitWidth::ALL {
            assert_eq!(BitWidth::from_bits(width.bits()), Some(width));
            assert_eq!(u32::from(width.max_code()) + 1, 1 << width.bits());
            assert_eq!(2 * u32::from(width.center()), 1 << width.bits());
        }
        assert_eq!(BitWidth::from_bits(5), None);
    }

    #[test]
    fn a_row_is_padded_to_a_whole_byte() {
        assert_eq!(BitWidth::B3.row_bytes(0), 0);
        assert_eq!(BitWidth::B3.row_bytes(3), 2);
        assert_eq!(BitWidth::B3.row_bytes(8), 3);
        assert_eq!(BitWidth::B8.row_bytes(7), 7);
    }
}
