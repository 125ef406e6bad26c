//! How a program's buffers, weights and attention are quantized.
//!
//! Everything here is plain data: the quantizer makes it, the `.tpv` file
//! stores it, the integer runtime executes it.

use alloc::vec::Vec;

pub use tpvit_kernels::BitWidth;

/// Uniform affine quantization of an activation buffer.
///
/// ```text
/// code = clamp(round(x * (1 / scale)) + zero_point, 0, 2^bits - 1)
/// x   ~= scale * (code - zero_point)
/// ```
///
/// Jacob et al. 2018, arXiv:1712.05877, Eq. 1. Ties round to even; the
/// reciprocal is taken once, in f32.
///
/// With one scale per column, the weight of the linear layer that reads the
/// buffer already contains them: its codes stand for `w[n, k] * scale[k]`, and
/// the runtime multiplies by the weight's scale alone.
///
/// With a [`Codebook`], scale and zero point are those of an 8-bit grid, and
/// the `2^bits` levels are points of that grid: the equations above hold with
/// 8 for `bits`, and the code is then moved to a level.
#[derive(Clone, Debug, PartialEq)]
pub struct ActivationQuant {
    /// Width of a code: there are `2^bits` different ones.
    pub bits: BitWidth,
    /// One per buffer or one per column; positive, finite, not subnormal.
    /// The same within each head of q and of k: an integer sum can be scaled
    /// only as a whole.
    pub scale: Vec<f32>,
    /// As many as `scale`, the same where it is said to be; each at most
    /// `2^bits - 1`, of [`grid_bits`](Self::grid_bits).
    pub zero_point: Vec<u8>,
    /// Set where the levels are not uniform.
    pub codebook: Option<Codebook>,
}

/// Levels of a `b`-bit code that are not uniform, out of the 256 of an 8-bit
/// grid; `b` is at most 4.
///
/// ```text
/// fine  = clamp(round(x * (1 / scale)) + zero_point, 0, 255)
/// code  = #{ i : fine > thresholds[i] }
/// level = levels[code]                       what a buffer holds
/// x    ~= scale * (level - zero_point)
/// ```
///
/// So whatever reads the buffer sees an ordinary 8-bit activation of which
/// only `2^b` values occur.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Codebook {
    /// `2^b - 1` of them, ascending; equal ones leave a code unused.
    pub thresholds: Vec<u8>,
    /// `2^b` of them, ascending; equal ones leave a code unused.
    pub levels: Vec<u8>,
}

impl Codebook {
    /// The level of a code of the 8-bit grid.
    pub fn snap(&self, fine: u8) -> u8 {
        self.levels[self.thresholds.iter().filter(|&&t| fine > t).count()]
    }
}

impl ActivationQuant {
    /// Width of the grid that scale, zero point and what the buffer holds
    /// belong to: 8 with a codebook, else [`bits`](Self::bits).
    pub fn grid_bits(&self) -> BitWidth {
        match self.codebook {
            Some(_) => BitWidth::B8,
            None => self.bits,
        }
    }

    /// The scale of column `col`.
    pub fn scale_at(&self, col: usize) -> f32 {
        if self.scale.len() == 1 {
            self.scale[0]
        } else {
            self.scale[col]
        }
    }

    /// The zero point of column `col`.
    pub fn zero_point_at(&self, col: usize) -> u8 {
        if self.zero_point.len() == 1 {
            self.zero_point[0]
        } else {
            self.zero_point[col]
        }
    }
}

/// What an attention code is relative to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoftmaxKind {
    /// To the largest probability of its row: nothing to calibrate, and no
    /// softmax denominator to compute.
    RowMax,
    /// To 1: `probability ~= scale * multiplier`.
    Static,
}

/// Which quantizer made the codes; told to people, not executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoftmaxMethod {
    /// FQ-ViT's log2.
    Log2,
    /// I&S-ViT's shift-uniform-log2.
    Sulq,
    /// TP-ViT's truncated uniform-log2, without a zero code.
    TulqA,
    /// Truncated uniform-log2 whose last code is an exact zero.
    TulqZa,
    /// Row-maximum codes.
    RowMax,
    /// Truncated uniform-log2 with a zero code beside the grid.
    TulqZ,
    /// Evenly spaced probabilities.
    Uniform,
    /// RepQ-ViT's log2 of half octaves.
    LogSqrt2,
    /// AdaLog's logarithm of a fitted base.
    AdaLog,
    /// PTQ4ViT's twin uniform.
    TwinUniform,
}

impl SoftmaxMethod {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Log2,
        Self::Sulq,
        Self::TulqA,
        Self::TulqZa,
        Self::RowMax,
        Self::TulqZ,
        Self::Uniform,
        Self::LogSqrt2,
        Self::AdaLog,
        Self::TwinUniform,
    ];
}

/// Codes for post-softmax attention, the same for all heads or fitted to each.
///
/// With `t = -log2(probability)` (relative to the row's largest for
/// [`SoftmaxKind::RowMax`]),
///
/// ```text
/// code         = #{ c : t > thresholds[c] }
/// probability ~= scale * multipliers[code]             (static)
/// probability ~= multipliers[code] / row sum of them   (renormalised)
/// ```
///
/// with the numbers of the head's [`SoftmaxCodebook`].
#[derive(Clone, Debug, PartialEq)]
pub struct SoftmaxQuant {
    /// Width of a code.
    pub bits: BitWidth,
    /// Where it comes from.
    pub method: SoftmaxMethod,
    /// What the codes are relative to.
    pub kind: SoftmaxKind,
    /// Whether each row is divided by its integer sum.
    pub renormalise: bool,
    /// One for all heads, or one for each.
    pub codebooks: Vec<SoftmaxCodebook>,
}

impl SoftmaxQuant {
    /// What the codes of `head` mean.
    pub fn codebook(&self, head: usize) -> &SoftmaxCodebook {
        if self.codebooks.len() == 1 {
            &self.codebooks[0]
        } else {
            &self.codebooks[head]
        }
    }
}

/// Where the codes of a head begin, and what they stand for.
///
/// An honest b-bit code: `2^bits - 1` thresholds, `2^bits` multipliers.
#[derive(Clone, Debug, PartialEq)]
pub struct SoftmaxCodebook {
    /// What multiplier 1 stands for: finite, positive. Row-maximum codes have
    /// no scale but their row's sum; theirs is 0.
    pub scale: f32,
    /// In octaves, ascending; `+inf` for a code that is never used.
    pub thresholds: Vec<f32>,
    /// The integer each code stands for, -16384 to 16384.
    pub multipliers: Vec<i16>,
}

/// Uniform affine quantization of a weight, per output channel.
///
/// ```text
/// w[n, k] ~= scale[n] * (code[n, k] - zero_point[n])
/// ```
///
/// Codes and zero points are stored unsigned; the runtime subtracts
/// `2^(bits - 1)` from both and multiplies signed numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightQuant {
    /// Width of a code.
    pub bits: BitWidth,
    /// `[n]`; finite, positive.
    pub scale: Vec<f32>,
    /// `[n]`; each at most `2^bits - 1`.
    pub zero_point: Vec<u8>,
    /// `[n, k]` codes, one per byte; packed densely in the file.
    pub codes: Vec<u8>,
}

/// How all of a program is quantized, but for the weights' codes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quantization {
    /// By buffer; `Some` exactly for the coded ones.
    pub activations: Vec<Option<ActivationQuant>>,
    /// By operation; `Some` exactly for [`crate::Op::Attention`].
    pub softmax: Vec<Option<SoftmaxQuant>>,
}
