//! Widths of a code.

/// Bits of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BitWidth {
    /// 2 bits.
    B2,
    /// 3 bits.
    B3,
    /// 4 bits.
    B4,
    /// 6 bits.
    B6,
    /// 8 bits.
    B8,
}

impl BitWidth {
    /// Number of bits.
    pub const fn bits(self) -> u32 {
        match self {
            BitWidth::B2 => 2,
            BitWidth::B3 => 3,
            BitWidth::B4 => 4,
            BitWidth::B6 => 6,
            BitWidth::B8 => 8,
        }
    }

    /// Largest code.
    pub const fn max_code(self) -> u8 {
        u8::MAX >> (8 - self.bits())
    }

    /// Half the number of codes.
    pub const fn center(self) -> u8 {
        1 << (self.bits() - 1)
    }
}
