//! A model as data: a short list of coarse operations over numbered buffers.
//!
//! A [`Program`] says what is computed, never how precisely: the f32 executor
//! and the integer runtime run the same one. How each buffer and weight is
//! quantized stands beside it, in [`crate::quant`].
//!
//! Buffers are written once (static single assignment), in the order of
//! [`Program::ops`]. Each is a row-major matrix `[rows, cols]`, one row per
//! token. A buffer that only integer operations read (the input of a
//! [`Op::Linear`], the `qkv` of an [`Op::Attention`]) is *coded*: in a
//! quantized model it holds integer codes. Every other buffer holds f32.

pub(crate) mod builder;
mod check;
mod window;

pub use builder::{Mlp, NormAt, Readout};
pub use check::{MAX_SIZE, ProgramError};
pub use window::{Cell, Window};

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

/// Number of a buffer: an index into [`Program::buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BufferId(pub u16);

/// Number of a tensor: an index into [`Program::tensors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorId(pub u16);

impl BufferId {
    /// The index this number stands for.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl TensorId {
    /// The index this number stands for.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A matrix of values that an operation writes and later ones read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Canonical name, such as `blocks.3.norm1`.
    pub name: String,
    /// Tokens.
    pub rows: usize,
    /// Channels.
    pub cols: usize,
}

/// What a tensor is for, which decides how it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorRole {
    /// The weight of a matrix product, `[outputs, inputs]`; quantized.
    Weight,
    /// Biases, LayerNorm gains, embeddings; always f32.
    Float,
}

/// Name and shape of a constant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Canonical name, such as `blocks.3.mlp.fc1.weight`.
    pub name: String,
    /// What it is for.
    pub role: TensorRole,
    /// Rows; 1 for a vector.
    pub rows: usize,
    /// Columns; the length of a vector.
    pub cols: usize,
}

/// What a linear layer does to its sum before storing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// `x * Phi(x)`, the exact (erf) form.
    Gelu,
    /// `max(x, 0)`. Its output is coded, with zero points 0: to clamp the codes is
    /// then all there is to do.
    Relu,
}

/// One operation. Shapes use `t` tokens, `d` channels.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Cuts the picture into patches and projects each.
    ///
    /// `output[p + g, :] = weight * patch_g + bias + position[g]` for the
    /// `g`-th patch in row-major order, after the `p` rows of `prefix`, which
    /// are copied as they are (the class token with its position already added,
    /// registers). A patch is flattened as `(y, x, channel)`.
    PatchEmbed {
        /// Patch height and width in pixels; also the stride.
        patch: [usize; 2],
        /// `[d, patch_h * patch_w * 3]`.
        weight: TensorId,
        /// `[d]`.
        bias: TensorId,
        /// `[p, d]`, rows put before the patches.
        prefix: Option<TensorId>,
        /// `[patches, d]`.
        position: Option<TensorId>,
        /// `[p + patches, d]`.
        output: BufferId,
    },
    /// `output = (input - mean) / sqrt(var + eps) * gamma + beta`, per row.
    LayerNorm {
        /// `[t, d]`.
        input: BufferId,
        /// `[d]`.
        gamma: TensorId,
        /// `[d]`.
        beta: TensorId,
        /// Added to the variance; positive.
        eps: f32,
        /// `[t, d]`.
        output: BufferId,
    },
    /// `output = activation(input * weight^T + bias) + residual`.
    Linear {
        /// `[t, k]`, coded.
        input: BufferId,
        /// `[n, k]`.
        weight: TensorId,
        /// `[n]`.
        bias: TensorId,
        /// Applied before the residual is added.
        activation: Activation,
        /// `[t, n]`, not coded.
        residual: Option<BufferId>,
        /// `[t, n]`.
        output: BufferId,
    },
    /// LayerNorm of q and of k within each head; v stays as it is (QK-norm,
    /// Dehghani et al. 2023, arXiv:2302.05442, section 2.1.2).
    HeadNorm {
        /// `[t, 3 * heads * head_dim]`, as [`Op::Attention::qkv`]; not coded.
        input: BufferId,
        /// Number of heads.
        heads: usize,
        /// Channels of a head.
        head_dim: usize,
        /// `[2, head_dim]`: gains of q, then of k.
        gamma: TensorId,
        /// `[2, head_dim]`.
        beta: TensorId,
        /// Added to the variance; positive.
        eps: f32,
        /// `[t, 3 * heads * head_dim]`, coded.
        output: BufferId,
    },
    /// `output = silu(input[:, ..h]) * input[:, h..]`, `silu(x) = x * sigmoid(x)`:
    /// the gate of SwiGLU (Shazeer 2020, arXiv:2002.05202, Eq. 5).
    Gate {
        /// `[t, 2 * h]`, not coded.
        input: BufferId,
        /// `[t, h]`.
        output: BufferId,
    },
    /// Multi-head self-attention without its projections: per head,
    /// `softmax(scale * q * k^T + bias) * v`.
    ///
    /// With a window, the tokens are a grid, and those of each
    /// [cell](Window::cells) attend to each other alone (Swin, Liu et al. 2021,
    /// arXiv:2103.14030): nothing is rolled, cut out or masked.
    Attention {
        /// `[t, 3 * heads * head_dim]`, coded: all of q, then k, then v;
        /// within each, head after head.
        qkv: BufferId,
        /// Number of heads.
        heads: usize,
        /// Channels of a head.
        head_dim: usize,
        /// Multiplies the scores, usually `1 / sqrt(head_dim)`.
        scale: f32,
        /// Cuts the tokens into cells; `None` for one of all.
        window: Option<Window>,
        /// `[heads, (2 * h - 1) * (2 * w - 1)]` for windows of `h` by `w`: what is
        /// added to the score of a query and a key `(dy, dx)` before it, at
        /// `(dy + h - 1) * (2 * w - 1) + dx + w - 1`. Only with a window.
        bias: Option<TensorId>,
        /// `[t, heads * head_dim]`.
        output: BufferId,
    },
    /// Copies one row: the class token that a classifier looks at.
    SelectToken {
        /// `[t, d]`, not coded.
        input: BufferId,
        /// The row.
        token: usize,
        /// `[1, d]`.
        output: BufferId,
    },
    /// Makes one row of several: what a classifier that looks at more than one
    /// token reads.
    Pool {
        /// `[t, d]`, not coded.
        input: BufferId,
        /// The first token.
        first: usize,
        /// How many, one after the other.
        count: usize,
        /// How they become one row.
        pool: Pooling,
        /// `[1, d]`, or `[1, count * d]` of [`Pooling::Concat`].
        output: BufferId,
    },
    /// Puts the four tokens of each 2 by 2 square of a grid side by side (Swin), as
    /// [`merged_tokens`] has them.
    PatchMerge {
        /// `[h * w, d]`, not coded.
        input: BufferId,
        /// `[h, w]`, both even.
        grid: [usize; 2],
        /// `[h * w / 4, 4 * d]`, not coded.
        output: BufferId,
    },
}

/// The tokens that [`Op::PatchMerge`] puts side by side as row `square` of its output,
/// the grid being `width` wide: `(0, 0), (1, 0), (0, 1), (1, 1)` of the square, down
/// before across (Liu et al. 2021, arXiv:2103.14030, as timm has it).
///
/// ```
/// use tpvit_models::program::merged_tokens;
///
/// // 0 1 2 3
/// // 4 5 6 7
/// assert_eq!(merged_tokens(4, 1), [2, 6, 3, 7]);
/// ```
pub const fn merged_tokens(width: usize, square: usize) -> [usize; 4] {
    let (y, x) = (square / (width / 2), square % (width / 2));
    let first = 2 * y * width + 2 * x;
    [first, first + width, first + 1, first + width + 1]
}

/// How several tokens become one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// Side by side.
    Concat,
}

impl Op {
    /// The buffer the operation writes.
    pub fn output(&self) -> BufferId {
        match *self {
            Op::PatchEmbed { output, .. }
            | Op::LayerNorm { output, .. }
            | Op::Linear { output, .. }
            | Op::HeadNorm { output, .. }
            | Op::Gate { output, .. }
            | Op::Attention { output, .. }
            | Op::SelectToken { output, .. }
            | Op::Pool { output, .. }
            | Op::PatchMerge { output, .. } => output,
        }
    }

    /// The buffers the operation reads; the second is a residual.
    pub fn inputs(&self) -> [Option<BufferId>; 2] {
        match *self {
            Op::PatchEmbed { .. } => [None, None],
            Op::LayerNorm { input, .. }
            | Op::HeadNorm { input, .. }
            | Op::Gate { input, .. }
            | Op::SelectToken { input, .. }
            | Op::Pool { input, .. }
            | Op::PatchMerge { input, .. } => [Some(input), None],
            Op::Linear {
                input, residual, ..
            } => [Some(input), residual],
            Op::Attention { qkv, .. } => [Some(qkv), None],
        }
    }

    /// The weight of a matrix product, where the operation has one.
    pub fn weight(&self) -> Option<TensorId> {
        match *self {
            Op::PatchEmbed { weight, .. } | Op::Linear { weight, .. } => Some(weight),
            Op::LayerNorm { .. }
            | Op::HeadNorm { .. }
            | Op::Gate { .. }
            | Op::Attention { .. }
            | Op::SelectToken { .. }
            | Op::Pool { .. }
            | Op::PatchMerge { .. } => None,
        }
    }

    /// The tensors the operation reads, in the order of its fields.
    pub fn tensors(&self) -> impl Iterator<Item = TensorId> + use<> {
        let all = match *self {
            Op::PatchEmbed {
                weight,
                bias,
                prefix,
                position,
                ..
            } => [Some(weight), Some(bias), prefix, position],
            Op::LayerNorm { gamma, beta, .. } | Op::HeadNorm { gamma, beta, .. } => {
                [Some(gamma), Some(beta), None, None]
            }
            Op::Linear { weight, bias, .. } => [Some(weight), Some(bias), None, None],
            Op::Attention { bias, .. } => [bias, None, None, None],
            Op::Gate { .. } | Op::SelectToken { .. } | Op::Pool { .. } | Op::PatchMerge { .. } => {
                [None; 4]
            }
        };
        all.into_iter().flatten()
    }

    /// What the operation is called in reports.
    pub fn kind(&self) -> &'static str {
        match self {
            Op::PatchEmbed { .. } => "patch-embed",
            Op::LayerNorm { .. } => "layer-norm",
            Op::Linear { .. } => "linear",
            Op::HeadNorm { .. } => "head-norm",
            Op::Gate { .. } => "gate",
            Op::Attention { .. } => "attention",
            Op::SelectToken { .. } => "select-token",
            Op::Pool { .. } => "pool",
            Op::PatchMerge { .. } => "patch-merge",
        }
    }
}

/// What is computed: operations over buffers and tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// Height and width of the picture in pixels; it has 3 channels.
    pub image: [usize; 2],
    /// The buffers, by [`BufferId`].
    pub buffers: Vec<Buffer>,
    /// The constants, by [`TensorId`].
    pub tensors: Vec<TensorInfo>,
    /// In order of execution; the last one writes the result: logits
    /// `[1, classes]`, or features of a model without a classifier.
    pub ops: Vec<Op>,
}

impl Program {
    /// Rows and columns of the result.
    pub fn output_shape(&self) -> [usize; 2] {
        let output = self.ops.last().map(|op| op.output().index());
        output.map_or([0; 2], |id| [self.buffers[id].rows, self.buffers[id].cols])
    }

    /// Whether the result is logits, one for each class: a linear layer of one
    /// row. Anything else is features.
    pub fn classifies(&self) -> bool {
        matches!(self.ops.last(), Some(Op::Linear { .. })) && self.output_shape()[0] == 1
    }

    /// The number of classes; 0 of a model without a classifier.
    pub fn classes(&self) -> usize {
        match self.classifies() {
            true => self.output_shape()[1],
            false => 0,
        }
    }

    /// For each buffer, whether it holds integer codes in a quantized model:
    /// true when an integer operation reads it.
    ///
    /// The program must be valid.
    pub fn coded(&self) -> Vec<bool> {
        let mut coded = vec![false; self.buffers.len()];
        for op in &self.ops {
            match *op {
                Op::Linear { input, .. } => coded[input.index()] = true,
                Op::Attention { qkv, .. } => coded[qkv.index()] = true,
                Op::PatchEmbed { .. }
                | Op::LayerNorm { .. }
                | Op::HeadNorm { .. }
                | Op::Gate { .. }
                | Op::SelectToken { .. }
                | Op::Pool { .. }
                | Op::PatchMerge { .. } => {}
            }
        }
        coded
    }

    /// By operation: the rows of its output that anything later looks at.
    ///
    /// All rows, or those between the first and last one that is read: in the
    /// last block of a classifier, the class token alone. Keys and values of
    /// every token matter to every row of attention.
    pub fn needed_rows(&self) -> Vec<Range<usize>> {
        let mut rows = vec![[0; 2]; self.ops.len()];
        self.needed_rows_in(&mut rows, &mut vec![[0; 2]; self.buffers.len()]);
        rows.into_iter().map(|[start, end]| start..end).collect()
    }

    /// As [`needed_rows`](Program::needed_rows), start and end of each in `rows`, without
    /// allocating. `read` has an entry for each buffer, whose contents do not matter.
    ///
    /// # Panics
    /// If `rows` is shorter than the operations or `read` than the buffers.
    pub fn needed_rows_in(&self, rows: &mut [[usize; 2]], read: &mut [[usize; 2]]) {
        const NONE: [usize; 2] = [usize::MAX, 0];
        read.fill(NONE);
        for (index, op) in self.ops.iter().enumerate().rev() {
            let output = op.output().index();
            // Nobody reads the logits but the caller; and a buffer without a reader is computed whole.
            let own = match read[output] {
                NONE => [0, self.buffers[output].rows],
                rows => rows,
            };
            let mut widen = |id: BufferId, [start, end]: [usize; 2]| {
                let slot = &mut read[id.index()];
                *slot = [slot[0].min(start), slot[1].max(end)];
            };
            match *op {
                Op::SelectToken { input, token, .. } => widen(input, [token, token + 1]),
                Op::Pool {
                    input,
                    first,
                    count,
                    ..
                } => widen(input, [first, first + count]),
                Op::LayerNorm { input, .. }
                | Op::HeadNorm { input, .. }
                | Op::Gate { input, .. } => widen(input, own),
                Op::PatchMerge { input, .. } => widen(input, [0, self.buffers[input.index()].rows]),
                Op::Linear {
                    input, residual, ..
                } => {
                    widen(input, own);
                    if let Some(residual) = residual {
                        widen(residual, own);
                    }
                }
                Op::Attention { qkv, .. } => widen(qkv, [0, self.buffers[qkv.index()].rows]),
                Op::PatchEmbed { .. } => {}
            }
            rows[index] = own;
        }
    }

    /// Heads, and channels of a head, of the attention that reads `buffer` as
    /// its q, k and v.
    pub fn heads(&self, buffer: BufferId) -> Option<(usize, usize)> {
        self.ops.iter().find_map(|op| match *op {
            Op::Attention {
                qkv,
                heads,
                head_dim,
                ..
            } => (qkv == buffer).then_some((heads, head_dim)),
            Op::PatchEmbed { .. }
            | Op::LayerNorm { .. }
            | Op::Linear { .. }
            | Op::HeadNorm { .. }
            | Op::Gate { .. }
            | Op::SelectToken { .. }
            | Op::Pool { .. }
            | Op::PatchMerge { .. } => None,
        })
    }

    /// The token that a classifier looks at, if it looks at one alone.
    pub fn class_token(&self) -> Option<usize> {
        self.ops.iter().find_map(|op| match *op {
            Op::SelectToken { token, .. } => Some(token),
            Op::PatchEmbed { .. }
            | Op::LayerNorm { .. }
            | Op::Linear { .. }
            | Op::HeadNorm { .. }
            | Op::Gate { .. }
            | Op::Attention { .. }
            | Op::Pool { .. }
            | Op::PatchMerge { .. } => None,
        })
    }

    /// Multiply-accumulate operations of one picture, all matrix products counted.
    pub fn macs(&self) -> u64 {
        self.ops.iter().map(|op| self.op_macs(op)).sum()
    }

    /// Multiply-accumulate operations of one operation.
    pub fn op_macs(&self, op: &Op) -> u64 {
        let rows = |b: BufferId| self.buffers[b.index()].rows as u64;
        let weight =
            |t: TensorId| self.tensors[t.index()].rows as u64 * self.tensors[t.index()].cols as u64;
        match *op {
            Op::PatchEmbed {
                patch, weight: w, ..
            } => {
                let patches = (self.image[0] / patch[0]) as u64 * (self.image[1] / patch[1]) as u64;
                patches * weight(w)
            }
            Op::Linear {
                input, weight: w, ..
            } => rows(input) * weight(w),
            Op::Attention {
                qkv,
                heads,
                head_dim,
                window,
                ..
            } => {
                let pairs = match window {
                    None => rows(qkv) * rows(qkv),
                    Some(window) => window.cells().map(|c| (c.tokens() as u64).pow(2)).sum(),
                };
                2 * pairs * heads as u64 * head_dim as u64
            }
            Op::LayerNorm { .. }
            | Op::HeadNorm { .. }
            | Op::Gate { .. }
            | Op::SelectToken { .. }
            | Op::Pool { .. }
            | Op::PatchMerge { .. } => 0,
        }
    }
}
