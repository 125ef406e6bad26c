//! What a matrix product takes and gives: shapes, requantization, outputs.

use crate::{ActQuant, BitWidth};

/// The longest inner dimension of a product.
///
/// `255 * 128 * MAX_K < 2^31`: an `i32` holds every sum of u8 times s8 products.
pub const MAX_K: usize = 65_536;

const _: () = assert!(255 * 128 * (MAX_K as u64) < 1 << 31);

/// A weight matrix and the activations that meet it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GemmShape {
    /// Outputs: rows of the weight matrix.
    pub n: usize,
    /// Inputs: columns of the weight matrix, at most [`MAX_K`].
    pub k: usize,
    /// Width of a weight code.
    pub weight_bits: BitWidth,
    /// The largest activation code. A kernel may choose its path by it, so a
    /// larger code gives a wrong sum (never undefined behaviour).
    pub act_max: u8,
}

impl GemmShape {
    /// Bytes of the dense weights: `n` rows of [`BitWidth::row_bytes`]`(k)`.
    ///
    /// Code `i` of a row occupies bits `i * b .. (i + 1) * b` of the row, bit 0
    /// being the lowest bit of the first byte; the last byte is filled with zeros.
    pub const fn dense_len(&self) -> usize {
        self.n * self.weight_bits.row_bytes(self.k)
    }
}

/// Turns an exact sum into a float, one scale and bias per output channel.
///
/// ```text
/// y[m, n] = (acc[m, n] + correction[n] - weight_zero[n] * a_row_sum[m]) as f32 * scale[n] + bias[n]
/// ```
///
/// The integer part wraps on overflow; the float part is one multiplication
/// and one addition, not fused.
#[derive(Clone, Copy, Debug)]
pub struct Requant<'a> {
    /// Activation scale times weight scale.
    pub scale: &'a [f32], // [n]
    /// Added last.
    pub bias: &'a [f32], // [n]
    /// The activation's zero point times the weight sums, and the like.
    pub correction: &'a [i32], // [n]
    /// Zero points of the weights, in the signed domain; `None` if all are 0.
    pub weight_zero: Option<&'a [i32]>, // [n]
}

impl Requant<'_> {
    /// # Panics
    /// If a slice does not have `n` entries.
    pub(crate) fn check(&self, n: usize) {
        assert_eq!(self.scale.len(), n, "scale has one entry per output");
        assert_eq!(self.bias.len(), n, "bias has one entry per output");
        assert_eq!(
            self.correction.len(),
            n,
            "correction has one entry per output"
        );
        if let Some(zero) = self.weight_zero {
            assert_eq!(zero.len(), n, "weight_zero has one entry per output");
        }
    }
}

/// Where the result `y[m, n]` of a product goes; every buffer is row-major.
#[derive(Debug)]
pub enum Output<'a> {
    /// `out = y`.
    F32 {
        /// The result.
        out: &'a mut [f32], // [m, n]
    },
    /// `out = residual + y`.
    Residual {
        /// Added to the result.
        residual: &'a [f32], // [m, n]
        /// The sum.
        out: &'a mut [f32], // [m, n]
    },
    /// `inout = inout + y`, the residual sum in place.
    Accumulate {
        /// The sum.
        inout: &'a mut [f32], // [m, n]
    },
    /// `out = code(y)`.
    Codes {
        /// The codes.
        out: &'a mut [u8], // [m, n]
        /// One scale and zero point per output.
        quant: ActQuant<'a>,
    },
    /// `out = code(gelu(y))`.
    GeluCodes {
        /// The codes.
        out: &'a mut [u8], // [m, n]
        /// One scale and zero point per output.
        quant: ActQuant<'a>,
    },
    /// `out = gelu(y)`.
    Gelu {
        /// The result.
        out: &'a mut [f32], // [m, n]
    },
}

impl Output<'_> {
    /// How many rows of `n` results the buffer has.
    pub(crate) fn rows(&self, n: usize) -> usize {
        let len = match self {
            Self::F32 { out } | Self::Gelu { out } | Self::Residual { residual: _, out } => {
                out.len()
            }
            Self::Accumulate { inout } => inout.len(),
            Self::Codes { out, quant: _ } | Self::GeluCodes { out, quant: _ } => out.len(),
        };
        len.checked_div(n).unwrap_or(0)
    }

    /// # Panics
    /// If a buffer does not have `m * n` entries, or a quantizer not `n`.
    pub(crate) fn check(&self, m: usize, n: usize) {
        match self {
            Self::F32 { out } | Self::Gelu { out } => {
                assert_eq!(out.len(), m * n, "out is [m, n]");
            }
            Self::Residual { residual, out } => {
                assert_eq!(out.len(), m * n, "out is [m, n]");
                assert_eq!(residual.len(), m * n, "residual is [m, n]");
            }
            Self::Accumulate { inout } => assert_eq!(inout.len(), m * n, "inout is [m, n]"),
            Self::Codes { out, quant } | Self::GeluCodes { out, quant } => {
                assert_eq!(out.len(), m * n, "out is [m, n]");
                quant.check(n);
            }
        }
    }
}
