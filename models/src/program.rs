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

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
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
    /// Multi-head self-attention without its projections: per head,
    /// `softmax(scale * q * k^T) * v`.
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
}

impl Op {
    /// The buffer the operation writes.
    pub fn output(&self) -> BufferId {
        match *self {
            Op::PatchEmbed { output, .. }
            | Op::LayerNorm { output, .. }
            | Op::Linear { output, .. }
            | Op::Attention { output, .. }
            | Op::SelectToken { output, .. } => output,
        }
    }

    /// The buffers the operation reads; the second is a residual.
    pub fn inputs(&self) -> [Option<BufferId>; 2] {
        match *self {
            Op::PatchEmbed { .. } => [None, None],
            Op::LayerNorm { input, .. } | Op::SelectToken { input, .. } => [Some(input), None],
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
            Op::LayerNorm { .. } | Op::Attention { .. } | Op::SelectToken { .. } => None,
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
            Op::LayerNorm { gamma, beta, .. } => [Some(gamma), Some(beta), None, None],
            Op::Linear { weight, bias, .. } => [Some(weight), Some(bias), None, None],
            Op::Attention { .. } | Op::SelectToken { .. } => [None; 4],
        };
        all.into_iter().flatten()
    }

    /// What the operation is called in reports.
    pub fn kind(&self) -> &'static str {
        match self {
            Op::PatchEmbed { .. } => "patch-embed",
            Op::LayerNorm { .. } => "layer-norm",
            Op::Linear { .. } => "linear",
            Op::Attention { .. } => "attention",
            Op::SelectToken { .. } => "select-token",
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
    /// In order of execution; the last one writes the logits, `[1, classes]`.
    pub ops: Vec<Op>,
}

/// Why a program cannot be run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProgramError {
    /// There is no operation.
    Empty,
    /// An operation names a buffer that does not exist.
    NoSuchBuffer {
        /// Index of the operation.
        op: usize,
        /// The buffer.
        buffer: u16,
    },
    /// An operation names a tensor that does not exist.
    NoSuchTensor {
        /// Index of the operation.
        op: usize,
        /// The tensor.
        tensor: u16,
    },
    /// A buffer is read before it is written, or written twice.
    Order {
        /// Index of the operation.
        op: usize,
        /// The buffer.
        buffer: u16,
    },
    /// No operation writes a buffer.
    NeverWritten {
        /// Index of the buffer.
        buffer: usize,
    },
    /// A shape disagrees with what the operation needs.
    Shape {
        /// Index of the operation.
        op: usize,
        /// What has the wrong shape.
        what: &'static str,
        /// What the operation needs.
        expected: [usize; 2],
        /// What it found.
        found: [usize; 2],
    },
    /// A number is outside its range.
    Value {
        /// Index of the operation.
        op: usize,
        /// Which number.
        what: &'static str,
    },
    /// A tensor that must be a weight is not one, or the reverse.
    Role {
        /// Index of the operation.
        op: usize,
        /// The tensor.
        tensor: u16,
    },
    /// A buffer is read both as codes and as f32.
    MixedUse {
        /// The buffer.
        buffer: u16,
    },
    /// A size is zero or beyond [`MAX_SIZE`].
    Size {
        /// What is too large or empty.
        what: &'static str,
        /// The size.
        found: usize,
    },
}

/// The largest count of rows, columns or pixels along a side that a program
/// may have. Small enough that products of three such numbers fit in 64 bits.
pub const MAX_SIZE: usize = 1 << 16;

impl fmt::Display for ProgramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProgramError::Empty => write!(f, "the program has no operation"),
            ProgramError::NoSuchBuffer { op, buffer } => {
                write!(
                    f,
                    "operation {op} names buffer {buffer}, which does not exist"
                )
            }
            ProgramError::NoSuchTensor { op, tensor } => {
                write!(
                    f,
                    "operation {op} names tensor {tensor}, which does not exist"
                )
            }
            ProgramError::Order { op, buffer } => write!(
                f,
                "operation {op} uses buffer {buffer} out of order (each is written once, before it is read)"
            ),
            ProgramError::NeverWritten { buffer } => {
                write!(f, "no operation writes buffer {buffer}")
            }
            ProgramError::Shape {
                op,
                what,
                expected,
                found,
            } => write!(
                f,
                "operation {op}: {what} is {}x{}, must be {}x{}",
                found[0], found[1], expected[0], expected[1]
            ),
            ProgramError::Value { op, what } => {
                write!(f, "operation {op}: {what} is out of range")
            }
            ProgramError::Role { op, tensor } => {
                write!(f, "operation {op}: tensor {tensor} has the wrong role")
            }
            ProgramError::MixedUse { buffer } => {
                write!(f, "buffer {buffer} is read both as codes and as floats")
            }
            ProgramError::Size { what, found } => {
                write!(f, "{what} is {found}, must be 1 to {MAX_SIZE}")
            }
        }
    }
}

impl core::error::Error for ProgramError {}

impl Program {
    /// The number of classes: columns of the last buffer written.
    pub fn classes(&self) -> usize {
        self.ops
            .last()
            .map_or(0, |op| self.buffers[op.output().index()].cols)
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
                Op::PatchEmbed { .. } | Op::LayerNorm { .. } | Op::SelectToken { .. } => {}
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
        let mut needed: Vec<Option<Range<usize>>> = vec![None; self.buffers.len()];
        let mut rows = vec![0..0; self.ops.len()];
        for (index, op) in self.ops.iter().enumerate().rev() {
            let output = op.output().index();
            // Nobody reads the logits but the caller; and a buffer without a reader is computed whole.
            let own = needed[output]
                .clone()
                .unwrap_or(0..self.buffers[output].rows);
            let mut widen = |id: BufferId, rows: Range<usize>| {
                let slot = &mut needed[id.index()];
                *slot = Some(match slot.take() {
                    Some(old) => old.start.min(rows.start)..old.end.max(rows.end),
                    None => rows,
                });
            };
            match *op {
                Op::SelectToken { input, token, .. } => widen(input, token..token + 1),
                Op::LayerNorm { input, .. } => widen(input, own.clone()),
                Op::Linear {
                    input, residual, ..
                } => {
                    widen(input, own.clone());
                    if let Some(residual) = residual {
                        widen(residual, own.clone());
                    }
                }
                Op::Attention { qkv, .. } => widen(qkv, 0..self.buffers[qkv.index()].rows),
                Op::PatchEmbed { .. } => {}
            }
            rows[index] = own;
        }
        rows
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
            | Op::SelectToken { .. } => None,
        })
    }

    /// The token that a classifier looks at, if it looks at one alone.
    pub fn class_token(&self) -> Option<usize> {
        self.ops.iter().find_map(|op| match *op {
            Op::SelectToken { token, .. } => Some(token),
            Op::PatchEmbed { .. }
            | Op::LayerNorm { .. }
            | Op::Linear { .. }
            | Op::Attention { .. } => None,
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
                ..
            } => 2 * rows(qkv) * rows(qkv) * heads as u64 * head_dim as u64,
            Op::LayerNorm { .. } | Op::SelectToken { .. } => 0,
        }
    }

    /// Checks that every operation finds what it needs, in shape and in order.
    ///
    /// # Errors
    /// The first operation that does not fit.
    pub fn validate(&self) -> Result<(), ProgramError> {
        if self.ops.is_empty() {
            return Err(ProgramError::Empty);
        }
        for side in self.image {
            check_size("image side", side)?;
        }
        for buffer in &self.buffers {
            check_size("buffer rows", buffer.rows)?;
            check_size("buffer columns", buffer.cols)?;
        }
        for tensor in &self.tensors {
            check_size("tensor rows", tensor.rows)?;
            check_size("tensor columns", tensor.cols)?;
        }
        let mut written = vec![false; self.buffers.len()];
        for (index, op) in self.ops.iter().enumerate() {
            Check {
                program: self,
                op: index,
            }
            .op(op, &mut written)?;
        }
        if let Some(buffer) = written.iter().position(|&written| !written) {
            return Err(ProgramError::NeverWritten { buffer });
        }
        self.check_uses()
    }

    /// Each buffer is read as codes or as f32, not both; the logits are f32.
    fn check_uses(&self) -> Result<(), ProgramError> {
        let coded = self.coded();
        let mixed = |b: BufferId| ProgramError::MixedUse { buffer: b.0 };
        for op in &self.ops {
            let float = match *op {
                Op::PatchEmbed { output, .. } => Some(output),
                Op::LayerNorm { input, .. } => Some(input),
                Op::SelectToken { input, output, .. } => {
                    if coded[output.index()] {
                        return Err(mixed(output));
                    }
                    Some(input)
                }
                Op::Linear {
                    residual, output, ..
                } => {
                    // A residual sum is f32; so is what it is added to.
                    if residual.is_some() && coded[output.index()] {
                        return Err(mixed(output));
                    }
                    residual
                }
                Op::Attention { output, .. } => {
                    if !coded[output.index()] {
                        return Err(mixed(output));
                    }
                    None
                }
            };
            if let Some(b) = float.filter(|b| coded[b.index()]) {
                return Err(mixed(b));
            }
        }
        match self.ops.last() {
            Some(op) if coded[op.output().index()] => Err(mixed(op.output())),
            _ => Ok(()),
        }
    }
}

fn check_size(what: &'static str, found: usize) -> Result<(), ProgramError> {
    if found == 0 || found > MAX_SIZE {
        return Err(ProgramError::Size { what, found });
    }
    Ok(())
}

/// Checks of one operation.
struct Check<'a> {
    program: &'a Program,
    op: usize,
}

impl Check<'_> {
    fn op(&self, op: &Op, written: &mut [bool]) -> Result<(), ProgramError> {
        for buffer in op.inputs().into_iter().flatten() {
            if !*written
                .get(buffer.index())
                .ok_or_else(|| self.no_buffer(buffer))?
            {
                return Err(self.order(buffer));
            }
        }
        self.shapes(op)?;
        let output = op.output();
        let slot = written
            .get_mut(output.index())
            .ok_or_else(|| self.no_buffer(output))?;
        if *slot {
            return Err(self.order(output));
        }
        *slot = true;
        Ok(())
    }

    fn shapes(&self, op: &Op) -> Result<(), ProgramError> {
        match *op {
            Op::PatchEmbed {
                patch,
                weight,
                bias,
                prefix,
                position,
                output,
            } => {
                let [height, width] = self.program.image;
                let [patch_h, patch_w] = patch;
                if patch_h == 0 || patch_w == 0 || height % patch_h != 0 || width % patch_w != 0 {
                    return Err(self.value("patch size"));
                }
                let patches = self.product("patch count", &[height / patch_h, width / patch_w])?;
                let inputs = self.product("patch size", &[patch_h, patch_w, 3])?;
                let [rows, d] = self.buffer(output)?;
                self.weight(weight, [d, inputs])?;
                self.float("patch-embedding bias", bias, [1, d])?;
                let mut tokens = patches;
                if let Some(prefix) = prefix {
                    let found = self.tensor(prefix)?;
                    self.float("prefix tokens", prefix, [found[0], d])?;
                    tokens += found[0];
                }
                if let Some(position) = position {
                    self.float("position embedding", position, [patches, d])?;
                }
                self.same("patch-embedding output", [tokens, d], [rows, d])
            }
            Op::LayerNorm {
                input,
                gamma,
                beta,
                eps,
                output,
            } => {
                let shape = self.buffer(input)?;
                self.float("gamma", gamma, [1, shape[1]])?;
                self.float("beta", beta, [1, shape[1]])?;
                if !(eps > 0.0 && eps < 1.0) {
                    return Err(self.value("epsilon"));
                }
                self.same("LayerNorm output", shape, self.buffer(output)?)
            }
            Op::Linear {
                input,
                weight,
                bias,
                residual,
                output,
                activation: _,
            } => {
                let [t, k] = self.buffer(input)?;
                let [_, n] = self.buffer(output)?;
                self.weight(weight, [n, k])?;
                self.float("bias", bias, [1, n])?;
                if let Some(residual) = residual {
                    self.same("residual", [t, n], self.buffer(residual)?)?;
                }
                self.same("linear output", [t, n], self.buffer(output)?)
            }
            Op::Attention {
                qkv,
                heads,
                head_dim,
                scale,
                output,
            } => {
                if heads == 0 || heads > MAX_SIZE || head_dim == 0 || head_dim > MAX_SIZE {
                    return Err(self.value("head count or size"));
                }
                if !(scale > 0.0 && scale <= 1024.0) {
                    return Err(self.value("attention scale"));
                }
                let [t, cols] = self.buffer(qkv)?;
                let d = self.product("head count or size", &[heads, head_dim])?;
                let qkv_cols = self.product("head count or size", &[3, d])?;
                self.same("q, k and v", [t, qkv_cols], [t, cols])?;
                self.same("attention output", [t, d], self.buffer(output)?)
            }
            Op::SelectToken {
                input,
                token,
                output,
            } => {
                let [t, d] = self.buffer(input)?;
                if token >= t {
                    return Err(self.value("token"));
                }
                self.same("selected token", [1, d], self.buffer(output)?)
            }
        }
    }

    fn buffer(&self, id: BufferId) -> Result<[usize; 2], ProgramError> {
        let buffer = self
            .program
            .buffers
            .get(id.index())
            .ok_or_else(|| self.no_buffer(id))?;
        Ok([buffer.rows, buffer.cols])
    }

    fn tensor(&self, id: TensorId) -> Result<[usize; 2], ProgramError> {
        let missing = ProgramError::NoSuchTensor {
            op: self.op,
            tensor: id.0,
        };
        let tensor = self.program.tensors.get(id.index()).ok_or(missing)?;
        Ok([tensor.rows, tensor.cols])
    }

    fn weight(&self, id: TensorId, expected: [usize; 2]) -> Result<(), ProgramError> {
        self.role(id, TensorRole::Weight)?;
        self.same("weight", expected, self.tensor(id)?)
    }

    fn float(
        &self,
        what: &'static str,
        id: TensorId,
        expected: [usize; 2],
    ) -> Result<(), ProgramError> {
        self.role(id, TensorRole::Float)?;
        self.same(what, expected, self.tensor(id)?)
    }

    fn role(&self, id: TensorId, expected: TensorRole) -> Result<(), ProgramError> {
        self.tensor(id)?;
        if self.program.tensors[id.index()].role != expected {
            return Err(ProgramError::Role {
                op: self.op,
                tensor: id.0,
            });
        }
        Ok(())
    }

    fn same(
        &self,
        what: &'static str,
        expected: [usize; 2],
        found: [usize; 2],
    ) -> Result<(), ProgramError> {
        if expected != found {
            return Err(ProgramError::Shape {
                op: self.op,
                what,
                expected,
                found,
            });
        }
        Ok(())
    }

    /// The product of sizes, none of which may make it exceed [`MAX_SIZE`]:
    /// a product that wraps would make every later check agree with a lie.
    fn product(&self, what: &'static str, sizes: &[usize]) -> Result<usize, ProgramError> {
        sizes
            .iter()
            .try_fold(1usize, |product, &size| product.checked_mul(size))
            .filter(|&product| product <= MAX_SIZE)
            .ok_or_else(|| self.value(what))
    }

    fn value(&self, what: &'static str) -> ProgramError {
        ProgramError::Value { op: self.op, what }
    }

    fn no_buffer(&self, id: BufferId) -> ProgramError {
        ProgramError::NoSuchBuffer {
            op: self.op,
            buffer: id.0,
        }
    }

    fn order(&self, id: BufferId) -> ProgramError {
        ProgramError::Order {
            op: self.op,
            buffer: id.0,
        }
    }
}
