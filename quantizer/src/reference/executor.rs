//! Runs a [`Program`] on one picture, in f32.

use super::cells::{add_bias, gather, scatter};
use super::gelu::gelu;
use super::matmul::{MatMut, MatRef, matmul};
use crate::weights::Weights;
use tpvit_models::program::merged_tokens;
use tpvit_models::{Activation, BufferId, Cell, Op, Pooling, Program, TensorId, Window};

/// Looks at, or changes, values while an [`Executor`] runs.
///
/// Each method does nothing unless overridden; `()` is the hook that never acts.
pub trait Hook {
    /// After operation `op` wrote `values`, `[rows, cols]`, to buffer `id`;
    /// may replace them in place (fake quantization).
    fn buffer(&mut self, op: usize, id: BufferId, values: &mut [f32]) {
        let _ = (op, id, values);
    }

    /// Scores of one head before softmax, already times the attention scale and
    /// with their bias, `[t, t]`; of one cell after the other, `t` its tokens,
    /// where attention has a window. Returns true if it replaced them by probabilities itself;
    /// then softmax is skipped, and [`Hook::probabilities`] with it.
    fn scores(&mut self, op: usize, head: usize, scores: &mut [f32]) -> bool {
        let _ = (op, head, scores);
        false
    }

    /// Probabilities of one head (and cell) after softmax, `[t, t]`; may be replaced.
    /// `values` is v of that head, `[t, head_dim]`.
    fn probabilities(&mut self, op: usize, head: usize, probabilities: &mut [f32], values: &[f32]) {
        let _ = (op, head, probabilities, values);
    }
}

impl Hook for () {}

/// The f32 forward pass of one program on one thread, with its own buffers.
pub struct Executor<'a> {
    program: &'a Program,
    weights: &'a Weights,
    buffers: Vec<Vec<f32>>,
    patches: Vec<f32>,     // [patches, patch_h * patch_w * 3]
    scores: Vec<f32>,      // [t, t], of one head
    head_values: Vec<f32>, // [t, head_dim], v of one head
    cell_qkv: Vec<f32>,    // [n, 3 * d], of one cell
    cell_out: Vec<f32>,    // [n, d]
}

impl<'a> Executor<'a> {
    /// Prepares the buffers.
    ///
    /// # Panics
    /// If `program` is not valid or `weights` do not fit it.
    pub fn new(program: &'a Program, weights: &'a Weights) -> Self {
        let buffers = &program.buffers;
        let buffers = buffers.iter().map(|b| vec![0.0; b.rows * b.cols]).collect();
        Executor::with_buffers(program, weights, buffers)
    }

    /// Takes the buffers of an earlier run, of the same program with other
    /// weights perhaps, for [`Executor::resume`].
    ///
    /// # Panics
    /// If `program` is not valid, or `weights` or `buffers` do not fit it.
    pub fn with_buffers(
        program: &'a Program,
        weights: &'a Weights,
        buffers: Vec<Vec<f32>>,
    ) -> Self {
        program.validate().expect("the program must be valid");
        assert!(weights.fit(program), "weights do not fit the program");
        let sizes = program.buffers.iter().map(|b| b.rows * b.cols);
        assert!(
            sizes.eq(buffers.iter().map(Vec::len)),
            "buffers do not fit the program"
        );
        Executor {
            program,
            weights,
            buffers,
            patches: Vec::new(),
            scores: Vec::new(),
            head_values: Vec::new(),
            cell_qkv: Vec::new(),
            cell_out: Vec::new(),
        }
    }

    /// Values of a buffer, `[rows, cols]`, as the last run left them.
    pub fn buffer(&self, id: BufferId) -> &[f32] {
        &self.buffers[id.index()]
    }

    /// All buffers, by number.
    pub fn into_buffers(self) -> Vec<Vec<f32>> {
        self.buffers
    }

    /// Patches of the picture that ran last, `[patches, patch_h * patch_w * 3]`.
    pub fn patches(&self) -> &[f32] {
        &self.patches
    }

    /// Logits of one picture, `[classes]`.
    ///
    /// `image` is `[height, width, 3]`, on the scale that the weights expect.
    ///
    /// # Panics
    /// If `image` has another size than `program.image`.
    pub fn run(&mut self, image: &[f32], hook: &mut dyn Hook) -> &[f32] {
        self.resume(0, image, hook)
    }

    /// The same from operation `first` on: what comes before it is taken from
    /// the buffers, as the last run left them.
    ///
    /// # Panics
    /// If `image` has another size than `program.image`.
    pub fn resume(&mut self, first: usize, image: &[f32], hook: &mut dyn Hook) -> &[f32] {
        let [height, width] = self.program.image;
        assert_eq!(image.len(), height * width * 3, "size of the picture");
        let program = self.program;
        for (index, op) in program.ops.iter().enumerate().skip(first) {
            let id = op.output();
            let mut out = std::mem::take(&mut self.buffers[id.index()]);
            self.step(index, op, image, &mut out, hook);
            hook.buffer(index, id, &mut out);
            self.buffers[id.index()] = out;
        }
        let last = program.ops.last().expect("a valid program is not empty");
        self.buffer(last.output())
    }

    fn step(&mut self, index: usize, op: &Op, image: &[f32], out: &mut [f32], hook: &mut dyn Hook) {
        match *op {
            Op::PatchEmbed { patch, weight, .. } => {
                let len = self.program.tensors[weight.index()].cols;
                cut_patches(image, self.program.image, patch, len, &mut self.patches);
                self.patch_embed(op, out);
            }
            Op::LayerNorm {
                input,
                gamma,
                beta,
                eps,
                ..
            } => {
                let (gamma, beta) = (self.tensor(gamma), self.tensor(beta));
                layer_norm(self.buffer(input), gamma, beta, eps, out);
            }
            Op::Linear {
                input,
                weight,
                bias,
                activation,
                residual,
                ..
            } => {
                self.product(self.buffer(input), weight, bias, out);
                match activation {
                    Activation::Identity => {}
                    Activation::Gelu => gelu(out),
                    Activation::Relu => out.iter_mut().for_each(|y| *y = y.max(0.0)),
                }
                if let Some(residual) = residual {
                    add(out, self.buffer(residual));
                }
            }
            Op::Attention { .. } => self.attention(index, op, out, hook),
            Op::HeadNorm {
                input,
                heads,
                head_dim,
                gamma,
                beta,
                eps,
                ..
            } => {
                let affine = [self.tensor(gamma), self.tensor(beta)];
                head_norm(self.buffer(input), [heads, head_dim], affine, eps, out);
            }
            Op::Gate { input, output } => {
                let h = self.program.buffers[output.index()].cols;
                gate(self.buffer(input), h, out);
            }
            Op::SelectToken { input, token, .. } => {
                let d = out.len();
                out.copy_from_slice(&self.buffer(input)[token * d..][..d]);
            }
            Op::Pool {
                input,
                first,
                count,
                pool,
                ..
            } => {
                let d = self.program.buffers[input.index()].cols;
                let rows = &self.buffer(input)[first * d..][..count * d];
                match pool {
                    Pooling::Mean => mean(rows, out),
                    Pooling::Concat => out.copy_from_slice(rows),
                }
            }
            Op::PatchMerge { input, grid, .. } => merge_patches(self.buffer(input), grid, out),
        }
    }

    fn tensor(&self, id: TensorId) -> &'a [f32] {
        &self.weights.tensors[id.index()]
    }

    /// `out = input * weight^T + bias`.
    fn product(&self, input: &[f32], weight: TensorId, bias: TensorId, out: &mut [f32]) {
        let info = &self.program.tensors[weight.index()];
        let (n, k) = (info.rows, info.cols);
        let rows = input.len() / k;
        for row in out.chunks_exact_mut(n) {
            row.copy_from_slice(self.tensor(bias));
        }
        let weight = MatRef::dense(self.tensor(weight), n, k);
        let input = MatRef::dense(input, rows, k);
        let out = MatMut::dense(out, rows, n);
        matmul(1.0, input, weight.transpose(), 1.0, out);
    }

    fn patch_embed(&self, op: &Op, out: &mut [f32]) {
        let Op::PatchEmbed {
            weight,
            bias,
            prefix,
            position,
            ..
        } = *op
        else {
            unreachable!("only called for a patch embedding");
        };
        let prefix = prefix.map_or(&[][..], |id| self.tensor(id));
        let (head, tokens) = out.split_at_mut(prefix.len());
        head.copy_from_slice(prefix);
        self.product(&self.patches, weight, bias, tokens);
        if let Some(position) = position {
            add(tokens, self.tensor(position));
        }
    }

    fn attention(&mut self, index: usize, op: &Op, out: &mut [f32], hook: &mut dyn Hook) {
        let Op::Attention {
            qkv,
            heads,
            head_dim,
            window,
            bias,
            ..
        } = *op
        else {
            unreachable!("only called for attention");
        };
        let d = heads * head_dim;
        let qkv = std::mem::take(&mut self.buffers[qkv.index()]);
        match window {
            None => self.heads(index, op, &qkv, None, out, hook),
            Some(window) => {
                let mut cell_qkv = std::mem::take(&mut self.cell_qkv);
                let mut cell_out = std::mem::take(&mut self.cell_out);
                for cell in window.cells() {
                    gather(&window, &cell, &qkv, 3 * d, &mut cell_qkv);
                    cell_out.resize(cell.tokens() * d, 0.0);
                    let bias = bias.map(|id| (window, cell, self.tensor(id)));
                    self.heads(index, op, &cell_qkv, bias, &mut cell_out, hook);
                    let put = |to: &mut [f32], from: &[f32]| to.copy_from_slice(from);
                    scatter(&window, &cell, &cell_out, d, out, put);
                }
                (self.cell_qkv, self.cell_out) = (cell_qkv, cell_out);
            }
        }
        let Op::Attention { qkv: id, .. } = *op else {
            unreachable!("only called for attention");
        };
        self.buffers[id.index()] = qkv;
    }

    /// Attention of tokens that all see each other: `qkv` is `[t, 3 * d]`, `out`
    /// `[t, d]`. The bias is that of all heads.
    fn heads(
        &mut self,
        index: usize,
        op: &Op,
        qkv: &[f32],
        bias: Option<(Window, Cell, &[f32])>,
        out: &mut [f32],
        hook: &mut dyn Hook,
    ) {
        let Op::Attention {
            heads,
            head_dim,
            scale,
            ..
        } = *op
        else {
            unreachable!("only called for attention");
        };
        let d = heads * head_dim;
        let t = qkv.len() / (3 * d);
        self.scores.resize(t * t, 0.0);
        self.head_values.resize(t * head_dim, 0.0);
        let (scores, values) = (&mut self.scores[..], &mut self.head_values[..]);
        for head in 0..heads {
            let part = |p: usize| {
                let first = p * d + head * head_dim;
                MatRef::strided(&qkv[first..], t, head_dim, 3 * d)
            };
            let square = MatMut::dense(scores, t, t);
            matmul(scale, part(0), part(1).transpose(), 0.0, square); // scale * q * k^T
            if let Some((window, cell, bias)) = &bias {
                let len = window.bias_len();
                add_bias(window, cell, &bias[head * len..][..len], scores);
            }
            for (to, from) in values
                .chunks_exact_mut(head_dim)
                .zip(qkv[2 * d + head * head_dim..].chunks(3 * d))
            {
                to.copy_from_slice(&from[..head_dim]);
            }
            if !hook.scores(index, head, scores) {
                scores.chunks_exact_mut(t).for_each(softmax);
                hook.probabilities(index, head, scores, values);
            }
            let to = MatMut {
                data: &mut out[head * head_dim..],
                rows: t,
                cols: head_dim,
                row_stride: d,
            };
            let (p, v) = (
                MatRef::dense(scores, t, t),
                MatRef::dense(values, t, head_dim),
            );
            matmul(1.0, p, v, 0.0, to);
        }
    }
}

/// Rows of `patches` are the patches of `image`, flattened `(y, x, channel)`.
pub(crate) fn cut_patches(
    image: &[f32],
    [height, width]: [usize; 2],
    [patch_h, patch_w]: [usize; 2],
    len: usize,
    patches: &mut Vec<f32>,
) {
    patches.clear();
    patches.reserve((height / patch_h) * (width / patch_w) * len);
    for top in (0..height).step_by(patch_h) {
        for left in (0..width).step_by(patch_w) {
            for y in top..top + patch_h {
                patches.extend_from_slice(&image[(y * width + left) * 3..][..patch_w * 3]);
            }
        }
    }
}

/// `out = (x - mean) / sqrt(var + eps) * gamma + beta`, row by row; the mean
/// and the (biased) variance are f64, in two passes.
fn layer_norm(input: &[f32], gamma: &[f32], beta: &[f32], eps: f32, out: &mut [f32]) {
    let d = gamma.len();
    for (x, y) in input.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
        let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / d as f64;
        let var = x
            .iter()
            .map(|v| (f64::from(*v) - mean).powi(2))
            .sum::<f64>()
            / d as f64;
        let inverse = 1.0 / (var + f64::from(eps)).sqrt();
        for (i, y) in y.iter_mut().enumerate() {
            let normed = ((f64::from(x[i]) - mean) * inverse) as f32;
            *y = normed * gamma[i] + beta[i];
        }
    }
}

/// LayerNorm of q and of k within each head; v is copied. Gains and shifts are
/// `[2, head_dim]`.
fn head_norm(
    input: &[f32],
    [heads, head_dim]: [usize; 2],
    [gamma, beta]: [&[f32]; 2],
    eps: f32,
    out: &mut [f32],
) {
    let d = heads * head_dim;
    for (x, y) in input.chunks_exact(3 * d).zip(out.chunks_exact_mut(3 * d)) {
        for part in 0..2 {
            let columns = part * d..(part + 1) * d;
            let affine = part * head_dim..(part + 1) * head_dim;
            let (gamma, beta) = (&gamma[affine.clone()], &beta[affine]);
            layer_norm(&x[columns.clone()], gamma, beta, eps, &mut y[columns]);
        }
        y[2 * d..].copy_from_slice(&x[2 * d..]);
    }
}

/// `out = silu(input[:, ..h]) * input[:, h..]`.
fn gate(input: &[f32], h: usize, out: &mut [f32]) {
    for (x, y) in input.chunks_exact(2 * h).zip(out.chunks_exact_mut(h)) {
        let (gates, values) = x.split_at(h);
        for ((y, g), v) in y.iter_mut().zip(gates).zip(values) {
            *y = silu(*g) * v;
        }
    }
}

/// `x * sigmoid(x)`.
pub(crate) fn silu(x: f32) -> f32 {
    let x = f64::from(x);
    (x / (1.0 + (-x).exp())) as f32
}

/// The mean of the rows, summed in f64.
fn mean(rows: &[f32], out: &mut [f32]) {
    let d = out.len();
    let count = (rows.len() / d) as f64;
    for (c, y) in out.iter_mut().enumerate() {
        let sum: f64 = rows.chunks_exact(d).map(|row| f64::from(row[c])).sum();
        *y = (sum / count) as f32;
    }
}

/// The four tokens of each square side by side, as [`Op::PatchMerge`] has them.
pub(crate) fn merge_patches(input: &[f32], [height, width]: [usize; 2], out: &mut [f32]) {
    let d = input.len() / (height * width);
    for (square, out) in out.chunks_exact_mut(4 * d).enumerate() {
        let tokens = merged_tokens(width, square);
        for (token, out) in tokens.into_iter().zip(out.chunks_exact_mut(d)) {
            out.copy_from_slice(&input[token * d..][..d]);
        }
    }
}

/// Softmax of one row. The maximum is subtracted first, so nothing overflows.
fn softmax(row: &mut [f32]) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for v in row.iter_mut() {
        *v = (*v - max).exp();
    }
    let sum: f64 = row.iter().map(|v| f64::from(*v)).sum();
    let inverse = (1.0 / sum) as f32;
    for v in row.iter_mut() {
        *v *= inverse;
    }
}

fn add(to: &mut [f32], from: &[f32]) {
    for (t, f) in to.iter_mut().zip(from) {
        *t += f;
    }
}
