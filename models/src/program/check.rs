//! What a program must satisfy to be run.

use core::fmt;

use alloc::vec;

use super::{Activation, BufferId, Op, Pooling, Program, TensorId, TensorRole, Window};

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
                Op::LayerNorm { input, .. } | Op::Gate { input, .. } | Op::Pool { input, .. } => {
                    Some(input)
                }
                Op::SelectToken { input, output, .. } | Op::PatchMerge { input, output, .. } => {
                    if coded[output.index()] {
                        return Err(mixed(output));
                    }
                    Some(input)
                }
                Op::HeadNorm { input, output, .. } => {
                    if !coded[output.index()] {
                        return Err(mixed(output));
                    }
                    Some(input)
                }
                Op::Linear {
                    residual,
                    output,
                    activation,
                    ..
                } => {
                    // A residual sum is f32; so is what it is added to.
                    if residual.is_some() && coded[output.index()] {
                        return Err(mixed(output));
                    }
                    // ReLU is the clamp of the codes.
                    if activation == Activation::Relu && !coded[output.index()] {
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
            Op::HeadNorm {
                input,
                heads,
                head_dim,
                gamma,
                beta,
                eps,
                output,
            } => {
                let [t, d] = self.heads(input, heads, head_dim)?;
                self.float("gamma", gamma, [2, head_dim])?;
                self.float("beta", beta, [2, head_dim])?;
                if !(eps > 0.0 && eps < 1.0) {
                    return Err(self.value("epsilon"));
                }
                self.same("normalised q, k and v", [t, 3 * d], self.buffer(output)?)
            }
            Op::Gate { input, output } => {
                let [t, h] = self.buffer(output)?;
                let both = self.product("gate size", &[2, h])?;
                self.same("gate and values", [t, both], self.buffer(input)?)
            }
            Op::Attention {
                qkv,
                heads,
                head_dim,
                scale,
                window,
                bias,
                output,
            } => {
                if !(scale > 0.0 && scale <= 1024.0) {
                    return Err(self.value("attention scale"));
                }
                let [t, d] = self.heads(qkv, heads, head_dim)?;
                match (window, bias) {
                    (None, None) => {}
                    (None, Some(_)) => return Err(self.value("position bias without a window")),
                    (Some(window), bias) => self.window(&window, t, heads, bias)?,
                }
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
            Op::Pool {
                input,
                first,
                count,
                pool,
                output,
            } => {
                let [t, d] = self.buffer(input)?;
                if count == 0 || first.checked_add(count).is_none_or(|end| end > t) {
                    return Err(self.value("pooled tokens"));
                }
                let cols = match pool {
                    Pooling::Mean => d,
                    Pooling::Concat => self.product("pooled tokens", &[count, d])?,
                };
                self.same("pooled tokens", [1, cols], self.buffer(output)?)
            }
            Op::PatchMerge {
                input,
                grid: [h, w],
                output,
            } => {
                let [t, d] = self.buffer(input)?;
                if h % 2 != 0 || w % 2 != 0 || self.product("grid", &[h, w])? != t {
                    return Err(self.value("grid"));
                }
                let cols = self.product("merged channels", &[4, d])?;
                self.same("merged patches", [t / 4, cols], self.buffer(output)?)
            }
        }
    }

    /// Rows of q, k and v, and columns of each, if they are so many heads.
    fn heads(
        &self,
        qkv: BufferId,
        heads: usize,
        head_dim: usize,
    ) -> Result<[usize; 2], ProgramError> {
        let what = "head count or size";
        if heads == 0 || heads > MAX_SIZE || head_dim == 0 || head_dim > MAX_SIZE {
            return Err(self.value(what));
        }
        let [t, cols] = self.buffer(qkv)?;
        let d = self.product(what, &[heads, head_dim])?;
        let qkv_cols = self.product(what, &[3, d])?;
        self.same("q, k and v", [t, qkv_cols], [t, cols])?;
        Ok([t, d])
    }

    fn window(
        &self,
        window: &Window,
        tokens: usize,
        heads: usize,
        bias: Option<TensorId>,
    ) -> Result<(), ProgramError> {
        let Window { grid, size, shift } = *window;
        let fits = |i: usize| size[i] > 0 && grid[i] % size[i] == 0 && shift[i] < size[i];
        if self.product("grid", &grid)? != tokens || !fits(0) || !fits(1) {
            return Err(self.value("window"));
        }
        let Some(bias) = bias else { return Ok(()) };
        let sides = size.map(|s| s.saturating_mul(2).saturating_sub(1));
        let entries = self.product("window", &sides)?;
        self.float("position bias", bias, [heads, entries])
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
