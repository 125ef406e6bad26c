//! Rotations folded into the weights: the same function, fewer outliers.
//!
//! A few channels of a Vision Transformer's residual stream are many times as
//! large as the others, and one scale has to hold them all. An orthogonal
//! matrix `R` with entries of about `1 / sqrt(d)` spreads each of them over
//! every channel. QuaRot (Ashkboos et al. 2024, arXiv:2404.00456) multiplies it
//! into the weights on both sides of the stream `h`, where it cancels:
//!
//! ```text
//! writes   h <- h + W x + b        becomes     R h <- R h + (R W) x + R b
//! reads    y = W h                 becomes     y = (W R^T) (R h)
//! ```
//!
//! # Through a LayerNorm
//! What reads `h` is a LayerNorm, and QuaRot first makes it an RMSNorm, by
//! folding its centring into the weights that write `h`. That would need
//! another operation in the program. There is no need for it: if `R` leaves the
//! vector of ones where it is, `R 1 = 1`, then with `LN0` the LayerNorm without
//! gain and bias
//!
//! ```text
//! mean(R h) = 1^T R h / d = (R^T 1)^T h / d = 1^T h / d = mean(h)     R^T = R^-1 fixes ones too
//! |R h - mean 1| = |R (h - mean 1)| = |h - mean 1|                    so the variance stays
//! LN0(R h) = R LN0(h)                                                 epsilon and all
//! ```
//!
//! so a LayerNorm stays one, and gain and bias go into the layers that read it:
//!
//! ```text
//! W (gamma * LN0(h) + beta) + b  =  (W diag(gamma) R^T) LN0(R h)  +  b + W beta
//! ```
//!
//! [`Orthogonal::fixing_ones`] is such a matrix. Program, file and run time
//! stay the same.
//!
//! # Within a head
//! A head's output is a weighted sum of its values, and its scores are products
//! of queries and keys, so with orthogonal `Q` of the head's size
//!
//! ```text
//! sum over j of p_ij (Q v_j) = Q (sum over j of p_ij v_j)       undone in the next layer, W_head Q^T
//! (Q q_i) . (Q k_j) = q_i . k_j                                 nothing to undo
//! ```

use tpvit_models::{Activation, BufferId, Op, Pooling, Program, TensorId};

use super::hadamard::{Orthogonal, Signs};
use crate::weights::Weights;

/// What to rotate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    /// The residual stream.
    pub residual: bool,
    /// The values of each head.
    pub values: bool,
    /// Queries and keys of each head, together.
    pub query_key: bool,
    /// Chooses the signs of the matrices.
    pub seed: u64,
}

/// Why a program cannot be rotated as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RotateError {
    /// No LayerNorm reads f32.
    #[error("there is no residual stream to rotate: no LayerNorm reads one")]
    NoStream,
    /// There is no attention.
    #[error("there are no heads to rotate: the model has no attention")]
    NoHeads,
    /// An operation around what would be rotated does not commute with it.
    #[error("{buffer} cannot be rotated: {reason}")]
    Blocked {
        /// Name of the buffer.
        buffer: String,
        /// What is in the way.
        reason: &'static str,
    },
    /// Two operations use a tensor that would have to change for one of them.
    #[error("the rotation would change {tensor}, which two operations share")]
    Shared {
        /// Name of the tensor.
        tensor: String,
    },
}

/// Rotates the weights; in f32 the program computes what it did before.
///
/// To be run after import and before anything is observed. The result depends
/// on the arguments alone.
///
/// # Errors
/// If the graph does not allow it; then `weights` are as they were.
///
/// # Panics
/// If `weights` do not fit `program`.
pub fn rotate(
    program: &Program,
    weights: &mut Weights,
    settings: &Rotation,
) -> Result<(), RotateError> {
    assert!(weights.fit(program), "weights do not fit the program");
    let graph = Graph::new(program);
    let streams = match settings.residual {
        true => graph.streams()?,
        false => Vec::new(),
    };
    let heads = match settings.values || settings.query_key {
        true => graph.heads()?,
        false => Vec::new(),
    };
    let mut signs = Signs::new(settings.seed);
    for stream in &streams {
        rotate_stream(program, weights, stream, &mut signs);
    }
    for heads in &heads {
        if settings.query_key {
            rotate_scores(program, weights, heads, &mut signs);
        }
        if settings.values {
            rotate_values(program, weights, heads, &mut signs);
        }
    }
    Ok(())
}

/// f32 buffers that are sums of, or rows of, each other; and who touches them.
struct Stream {
    channels: usize,
    /// Patch embeddings and linear layers that write one of them.
    writers: Vec<usize>,
    /// LayerNorms that read one, each with the linear layers behind it.
    norms: Vec<(usize, Vec<usize>)>,
}

/// One attention and the layers around it.
struct Heads {
    heads: usize,
    head_dim: usize,
    /// The linear layer that writes q, k and v.
    qkv: usize,
    /// The linear layers that read the output.
    readers: Vec<usize>,
}

/// A program with its edges in both directions.
struct Graph<'a> {
    program: &'a Program,
    /// By buffer: the operation that writes it.
    writer: Vec<usize>,
    /// By buffer: the operations that read it.
    readers: Vec<Vec<usize>>,
}

impl<'a> Graph<'a> {
    fn new(program: &'a Program) -> Self {
        let mut writer = vec![0; program.buffers.len()];
        let mut readers = vec![Vec::new(); program.buffers.len()];
        for (index, op) in program.ops.iter().enumerate() {
            writer[op.output().index()] = index;
            for input in op.inputs().into_iter().flatten() {
                readers[input.index()].push(index);
            }
        }
        Graph {
            program,
            writer,
            readers,
        }
    }

    fn blocked(&self, buffer: BufferId, reason: &'static str) -> RotateError {
        let buffer = self.program.buffers[buffer.index()].name.clone();
        RotateError::Blocked { buffer, reason }
    }

    /// By buffer: the lowest number of those that must be rotated with it. A
    /// residual sum is rotated as both its terms are, a row as its matrix.
    fn joined(&self) -> Vec<usize> {
        let mut group: Vec<usize> = (0..self.program.buffers.len()).collect();
        for op in &self.program.ops {
            let joined = match *op {
                Op::Linear {
                    residual, output, ..
                } => residual.map(|residual| (residual, output)),
                Op::SelectToken { input, output, .. }
                | Op::Pool {
                    input,
                    output,
                    pool: Pooling::Mean,
                    ..
                } => Some((input, output)),
                Op::PatchEmbed { .. }
                | Op::LayerNorm { .. }
                | Op::HeadNorm { .. }
                | Op::Gate { .. }
                | Op::Attention { .. }
                | Op::Pool { .. }
                | Op::PatchMerge { .. } => None,
            };
            if let Some((a, b)) = joined {
                let (a, b) = (group[a.index()], group[b.index()]);
                let (to, from) = (a.min(b), a.max(b));
                group
                    .iter_mut()
                    .for_each(|g| *g = if *g == from { to } else { *g });
            }
        }
        group
    }

    /// What LayerNorms read, and what it is a sum of.
    fn streams(&self) -> Result<Vec<Stream>, RotateError> {
        let group = self.joined();
        let mut normed: Vec<usize> = self.program.ops.iter().filter_map(norm_input).collect();
        normed
            .iter_mut()
            .for_each(|buffer| *buffer = group[*buffer]);
        normed.sort_unstable();
        normed.dedup();
        if normed.is_empty() {
            return Err(RotateError::NoStream);
        }
        let streams = normed
            .iter()
            .map(|&id| self.stream(|b| group[b.index()] == id));
        streams.collect()
    }

    fn stream(&self, has: impl Fn(BufferId) -> bool) -> Result<Stream, RotateError> {
        let mut stream = Stream {
            channels: 0,
            writers: Vec::new(),
            norms: Vec::new(),
        };
        let mut changed = Vec::new();
        for (index, op) in self.program.ops.iter().enumerate() {
            let output = op.output();
            if has(output) && index + 1 == self.program.ops.len() {
                return Err(self.blocked(output, "it holds the result"));
            }
            if let Op::Linear { input, .. } = *op
                && has(input)
            {
                return Err(self.blocked(input, "a linear layer reads it without a LayerNorm"));
            }
            match *op {
                Op::PatchEmbed { .. } if has(output) => {
                    stream.writers.push(index);
                    changed.extend(op.tensors());
                }
                Op::Linear {
                    weight,
                    bias,
                    activation,
                    ..
                } if has(output) => {
                    match activation {
                        Activation::Identity => {}
                        Activation::Gelu => {
                            return Err(self.blocked(output, "a GELU is added to it"));
                        }
                        Activation::Relu => {
                            return Err(self.blocked(output, "a ReLU is added to it"));
                        }
                    }
                    stream.writers.push(index);
                    changed.extend([weight, bias]);
                }
                Op::LayerNorm {
                    input, gamma, beta, ..
                } => {
                    if has(output) {
                        return Err(self.blocked(output, "a LayerNorm with a gain writes it"));
                    }
                    if has(input) {
                        stream.channels = self.program.buffers[input.index()].cols;
                        stream.norms.push((index, self.linear_readers(output)?));
                        changed.extend([gamma, beta]);
                    }
                }
                Op::Pool {
                    input,
                    pool: Pooling::Concat,
                    ..
                }
                | Op::PatchMerge { input, .. }
                | Op::Gate { input, .. }
                | Op::HeadNorm { input, .. }
                    if has(input) =>
                {
                    return Err(self.blocked(input, "its channels do not stay together"));
                }
                Op::PatchEmbed { .. }
                | Op::Linear { .. }
                | Op::Attention { .. }
                | Op::HeadNorm { .. }
                | Op::Gate { .. }
                | Op::SelectToken { .. }
                | Op::Pool { .. }
                | Op::PatchMerge { .. } => {}
            }
        }
        let behind = stream.norms.iter().flat_map(|(_, readers)| readers);
        for op in behind.filter(|op| !stream.writers.contains(op)) {
            changed.extend(self.program.ops[*op].tensors());
        }
        self.used_once(&changed)?;
        Ok(stream)
    }

    fn heads(&self) -> Result<Vec<Heads>, RotateError> {
        let mut all = Vec::new();
        for op in &self.program.ops {
            let Op::Attention {
                qkv,
                heads,
                head_dim,
                output,
                ..
            } = *op
            else {
                continue;
            };
            let writer = self.writer[qkv.index()];
            let linear = match self.program.ops[writer] {
                Op::Linear {
                    activation: Activation::Identity,
                    residual: None,
                    ..
                } => true,
                Op::Linear { .. }
                | Op::PatchEmbed { .. }
                | Op::LayerNorm { .. }
                | Op::Attention { .. }
                | Op::HeadNorm { .. }
                | Op::Gate { .. }
                | Op::SelectToken { .. }
                | Op::Pool { .. }
                | Op::PatchMerge { .. } => false,
            };
            if !linear {
                return Err(self.blocked(qkv, "no plain linear layer writes it"));
            }
            if self.readers[qkv.index()].len() != 1 {
                return Err(self.blocked(qkv, "attention is not all that reads it"));
            }
            let readers = self.linear_readers(output)?;
            let around = readers.iter().chain([&writer]);
            let changed: Vec<TensorId> = around
                .flat_map(|&op| self.program.ops[op].tensors())
                .collect();
            self.used_once(&changed)?;
            all.push(Heads {
                heads,
                head_dim,
                qkv: writer,
                readers,
            });
        }
        match all.is_empty() {
            true => Err(RotateError::NoHeads),
            false => Ok(all),
        }
    }

    /// The linear layers that multiply `buffer`, if nothing else reads it.
    fn linear_readers(&self, buffer: BufferId) -> Result<Vec<usize>, RotateError> {
        let readers = &self.readers[buffer.index()];
        let multiplies = |&op: &usize| match self.program.ops[op] {
            Op::Linear { input, .. } => input == buffer,
            Op::PatchEmbed { .. }
            | Op::LayerNorm { .. }
            | Op::Attention { .. }
            | Op::HeadNorm { .. }
            | Op::Gate { .. }
            | Op::SelectToken { .. }
            | Op::Pool { .. }
            | Op::PatchMerge { .. } => false,
        };
        match !readers.is_empty() && readers.iter().all(multiplies) {
            true => Ok(readers.clone()),
            false => Err(self.blocked(buffer, "more than linear layers read it")),
        }
    }

    /// No tensor of `changed` belongs to more than one operation.
    fn used_once(&self, changed: &[TensorId]) -> Result<(), RotateError> {
        let mut uses = vec![0; self.program.tensors.len()];
        for id in self.program.ops.iter().flat_map(Op::tensors) {
            uses[id.index()] += 1;
        }
        match changed.iter().find(|id| uses[id.index()] > 1) {
            Some(id) => Err(RotateError::Shared {
                tensor: self.program.tensors[id.index()].name.clone(),
            }),
            None => Ok(()),
        }
    }
}

fn norm_input(op: &Op) -> Option<usize> {
    match *op {
        Op::LayerNorm { input, .. } => Some(input.index()),
        Op::PatchEmbed { .. }
        | Op::Linear { .. }
        | Op::Attention { .. }
        | Op::HeadNorm { .. }
        | Op::Gate { .. }
        | Op::SelectToken { .. }
        | Op::Pool { .. }
        | Op::PatchMerge { .. } => None,
    }
}

/// Weight and bias of a linear layer.
fn parameters(program: &Program, op: usize) -> (TensorId, TensorId) {
    match program.ops[op] {
        Op::Linear { weight, bias, .. } => (weight, bias),
        Op::PatchEmbed { .. }
        | Op::LayerNorm { .. }
        | Op::Attention { .. }
        | Op::HeadNorm { .. }
        | Op::Gate { .. }
        | Op::SelectToken { .. }
        | Op::Pool { .. }
        | Op::PatchMerge { .. } => unreachable!("the graph was checked"),
    }
}

fn rotate_stream(program: &Program, weights: &mut Weights, stream: &Stream, signs: &mut Signs) {
    let matrix = Orthogonal::fixing_ones(stream.channels, signs);
    for (norm, readers) in &stream.norms {
        let Op::LayerNorm { gamma, beta, .. } = program.ops[*norm] else {
            unreachable!("a stream's norms are LayerNorms");
        };
        let gains = std::mem::replace(
            &mut weights.tensors[gamma.index()],
            vec![1.0; stream.channels],
        );
        let shifts = std::mem::replace(
            &mut weights.tensors[beta.index()],
            vec![0.0; stream.channels],
        );
        for &op in readers {
            let (weight, bias) = parameters(program, op);
            let mut biases = std::mem::take(&mut weights.tensors[bias.index()]);
            let rows = weights.tensors[weight.index()].chunks_exact_mut(stream.channels);
            for (row, bias) in rows.zip(&mut biases) {
                let moved = row.iter().zip(&shifts).map(|(w, s)| f64::from(w * s));
                *bias = (f64::from(*bias) + moved.sum::<f64>()) as f32;
                row.iter_mut().zip(&gains).for_each(|(w, g)| *w *= g);
                matrix.rotate(row);
            }
            weights.tensors[bias.index()] = biases;
        }
    }
    for &op in &stream.writers {
        let mut tensors = program.ops[op].tensors();
        let weight = tensors.next().expect("what writes a stream has a weight");
        let cols = program.tensors[weight.index()].cols;
        matrix.mix_rows(&mut weights.tensors[weight.index()], cols);
        // Bias, class token and positions: vectors of the stream.
        for id in tensors {
            let rows = weights.tensors[id.index()].chunks_exact_mut(stream.channels);
            rows.for_each(|row| matrix.rotate(row));
        }
    }
}

/// One matrix for each head, for its queries and its keys.
fn rotate_scores(program: &Program, weights: &mut Weights, heads: &Heads, signs: &mut Signs) {
    for head in 0..heads.heads {
        let matrix = Orthogonal::randomised(heads.head_dim, signs);
        for part in 0..2 {
            rotate_outputs(program, weights, heads, part * heads.heads + head, &matrix);
        }
    }
}

/// One matrix for each head, undone by the layers that read attention.
fn rotate_values(program: &Program, weights: &mut Weights, heads: &Heads, signs: &mut Signs) {
    for head in 0..heads.heads {
        let matrix = Orthogonal::randomised(heads.head_dim, signs);
        rotate_outputs(program, weights, heads, 2 * heads.heads + head, &matrix);
        for &op in &heads.readers {
            let (weight, _) = parameters(program, op);
            let cols = program.tensors[weight.index()].cols;
            for row in weights.tensors[weight.index()].chunks_exact_mut(cols) {
                matrix.rotate(&mut row[head * heads.head_dim..][..heads.head_dim]);
            }
        }
    }
}

/// Rotates the `part`-th run of `head_dim` outputs of the layer before attention.
fn rotate_outputs(
    program: &Program,
    weights: &mut Weights,
    heads: &Heads,
    part: usize,
    matrix: &Orthogonal,
) {
    let (weight, bias) = parameters(program, heads.qkv);
    let (at, len) = (part * heads.head_dim, heads.head_dim);
    let cols = program.tensors[weight.index()].cols;
    let rows = &mut weights.tensors[weight.index()][at * cols..][..len * cols];
    matrix.mix_rows(rows, cols);
    matrix.rotate(&mut weights.tensors[bias.index()][at..][..len]);
}
