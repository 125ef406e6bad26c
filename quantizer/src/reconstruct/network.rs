//! Forward and backward passes of a range of a program's operations, one
//! picture at a time, on one thread.
//!
//! The same code runs the quantized network and the float one: a [`View`]
//! says what the weights are and which buffers are quantized. Each picture has
//! its [`Tape`]; gradients are summed into [`Grads`].
//!
//! Every product here is one of three, `x` being `[rows, k]`, `w` `[n, k]`:
//!
//! ```text
//! y = x * w^T + bias        dx = dy * w        dw = dy^T * x
//! ```

use std::ops::Range;

use tpvit_models::program::merged_tokens;
use tpvit_models::{
    Activation, ActivationQuant, BufferId, Cell, Op, Pooling, Program, SoftmaxKind, SoftmaxQuant,
    TensorId, Window,
};

use super::math::{self, AttentionCoder, Grid};
use crate::calibration::{mix, round_to_scores};
use crate::reference::{
    MatMut, MatRef, add_bias, cut_patches, gather, matmul, merge_patches, scatter,
};
use crate::weights::Weights;

/// The quantizer of a buffer, by column.
#[derive(Clone, Debug)]
pub(super) struct Site {
    pub(super) scale: Vec<f32>,
    inverse: Vec<f32>,
    low: Vec<f32>,
    high: Vec<f32>,
    unit: Vec<f32>,
    /// By code of the grid, the code it is snapped to; `None` for itself.
    snapped: Option<Box<[f32; 256]>>,
    /// The next weight contains the scales: the buffer holds codes, less their
    /// zero point.
    folded: bool,
}

impl Site {
    /// `folded` only counts where there is one scale per column.
    pub(super) fn new(quant: &ActivationQuant, cols: usize, folded: bool) -> Self {
        let folded = folded && quant.scale.len() > 1;
        let zero = |c| f32::from(quant.zero_point_at(c));
        let last = f32::from(quant.grid_bits().max_code());
        let mut site = Site {
            scale: (0..cols).map(|c| quant.scale_at(c)).collect(),
            inverse: vec![0.0; cols],
            low: (0..cols).map(|c| -zero(c)).collect(),
            high: (0..cols).map(|c| last - zero(c)).collect(),
            unit: vec![1.0; cols],
            snapped: quant.codebook.as_ref().map(|book| {
                let code = |fine: usize| f32::from(book.snap(fine as u8));
                Box::new(std::array::from_fn(code))
            }),
            folded,
        };
        site.update();
        site
    }

    /// After `scale` changed.
    pub(super) fn update(&mut self) {
        for (c, s) in self.scale.iter().enumerate() {
            self.inverse[c] = 1.0 / s;
            self.unit[c] = if self.folded { 1.0 } else { *s };
        }
    }

    fn grid(&self) -> Grid<'_> {
        Grid {
            inverse: &self.inverse,
            low: &self.low,
            high: &self.high,
            unit: &self.unit,
        }
    }

    /// The buffer without rounding, in the unit that its readers expect; and
    /// what that makes of a gradient.
    fn pass(&self, x: &[f32], value: &mut Vec<f32>) {
        let cols = self.inverse.len();
        value.resize(x.len(), 0.0);
        for (x, value) in x.chunks_exact(cols).zip(value.chunks_exact_mut(cols)) {
            for c in 0..cols {
                value[c] = if self.folded {
                    x[c] * self.inverse[c]
                } else {
                    x[c]
                };
            }
        }
    }
}

/// What a pass reads: weights as they are multiplied, and quantizers.
pub(super) struct View {
    /// By tensor.
    pub(super) tensors: Vec<Vec<f32>>,
    /// By tensor, of matrices only: `[k, n]`.
    pub(super) transposed: Vec<Vec<f32>>,
    /// By buffer.
    pub(super) sites: Vec<Option<Site>>,
    /// By operation and head; none where attention is not quantized.
    pub(super) coders: Vec<Vec<AttentionCoder>>,
    /// By operation, what a linear layer does to its sum.
    pub(super) activations: Vec<Activation>,
}

/// By operation; the identity where it is no linear layer.
pub(super) fn activations(program: &Program) -> Vec<Activation> {
    let of = |op: &Op| match *op {
        Op::Linear { activation, .. } => activation,
        _ => Activation::Identity,
    };
    program.ops.iter().map(of).collect()
}

impl View {
    /// The float network.
    pub(super) fn float(program: &Program, weights: &Weights) -> Self {
        let mut view = View {
            tensors: weights.tensors.clone(),
            transposed: vec![Vec::new(); program.tensors.len()],
            sites: vec![None; program.buffers.len()],
            coders: program.ops.iter().map(|_| Vec::new()).collect(),
            activations: activations(program),
        };
        for id in program.ops.iter().filter_map(Op::weight) {
            view.turn(program, id.index());
        }
        view
    }

    /// After the matrix `tensor` changed.
    pub(super) fn turn(&mut self, program: &Program, tensor: usize) {
        let out = &mut self.transposed[tensor];
        out.resize(self.tensors[tensor].len(), 0.0);
        math::transpose(&self.tensors[tensor], program.tensors[tensor].cols, out);
    }
}

/// How each head of the attention operation `index` is quantized, prepared.
pub(super) fn coders(program: &Program, index: usize, quant: &SoftmaxQuant) -> Vec<AttentionCoder> {
    let heads = 0..Heads::new(program, index).count;
    heads.map(|head| coder(quant, head)).collect()
}

fn coder(quant: &SoftmaxQuant, head: usize) -> AttentionCoder {
    let codebook = quant.codebook(head);
    let multiplier = |c: usize| f32::from(codebook.multipliers[c]);
    let step = |(c, &threshold): (usize, &f32)| (threshold, multiplier(c + 1) - multiplier(c));
    AttentionCoder {
        first: multiplier(0),
        steps: codebook.thresholds.iter().enumerate().map(step).collect(),
        static_scale: match quant.kind {
            SoftmaxKind::RowMax => None,
            SoftmaxKind::Static => Some(codebook.scale),
        },
        renormalise: quant.renormalise,
    }
}

/// Sums of gradients.
#[derive(Clone, Default)]
pub(super) struct Grads {
    /// By tensor, of what a [`View`] holds; empty where nothing learns.
    pub(super) tensors: Vec<Vec<f32>>,
    /// By buffer and column, of the logarithm of the scale.
    pub(super) log_scales: Vec<Vec<f32>>,
}

impl Grads {
    /// Nothing learns.
    pub(super) fn frozen(program: &Program) -> Self {
        Grads {
            tensors: vec![Vec::new(); program.tensors.len()],
            log_scales: vec![Vec::new(); program.buffers.len()],
        }
    }

    /// Zeros for the operations of `range`.
    pub(super) fn new(program: &Program, view: &View, range: Range<usize>) -> Self {
        let mut grads = Grads::frozen(program);
        for op in &program.ops[range] {
            for id in op.tensors() {
                grads.tensors[id.index()] = vec![0.0; view.tensors[id.index()].len()];
            }
            let id = op.output().index();
            if view.sites[id].is_some() {
                grads.log_scales[id] = vec![0.0; program.buffers[id].cols];
            }
        }
        grads
    }

    /// All vectors, in a fixed order.
    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Vec<f32>> {
        self.tensors.iter_mut().chain(&mut self.log_scales)
    }
}

/// Lets quantized values through unrounded, here and there: QDrop (Wei et al.
/// 2022, arXiv:2203.05740).
#[derive(Clone, Copy, Debug)]
pub(super) struct Drop {
    /// Changes with step and picture.
    pub(super) seed: u64,
    /// Of 256 values, how many stay float.
    pub(super) of_256: u32,
}

impl Drop {
    /// Replaces some of `values` by those of `float`.
    pub(super) fn mix_in(self, values: &mut [f32], float: &[f32]) {
        math::copy_some(values, float, self.salt(usize::from(u16::MAX)), self.of_256);
    }

    fn salt(self, buffer: usize) -> u32 {
        mix(self.seed ^ ((buffer as u64) << 48)) as u32
    }
}

/// Everything one picture leaves behind on its way forward.
#[derive(Default)]
pub(super) struct Tape {
    /// By buffer: as computed.
    pub(super) raw: Vec<Vec<f32>>,
    /// By buffer: as read; empty where it is as computed.
    coded: Vec<Vec<f32>>,
    /// By buffer: gradients of what is read.
    pub(super) grad: Vec<Vec<f32>>,
    ops: Vec<Saved>,
    patches: Vec<f32>,
    scratch: Vec<f32>,
}

/// What an operation remembers for its backward pass.
#[derive(Default)]
struct Saved {
    /// LayerNorm: the normalised input. Linear: before its activation.
    /// HeadNorm: that of q, then of k. Attention: float probabilities of all
    /// cells, `[heads, n, n]` each.
    main: Vec<f32>,
    /// LayerNorm: by row, the inverse deviation. Attention: the probabilities
    /// multiplied with v; empty where they are the float ones.
    other: Vec<f32>,
}

impl Tape {
    /// Empty buffers for `program`.
    pub(super) fn new(program: &Program) -> Self {
        let buffers = program.buffers.len();
        Tape {
            raw: vec![Vec::new(); buffers],
            coded: vec![Vec::new(); buffers],
            grad: vec![Vec::new(); buffers],
            ops: program.ops.iter().map(|_| Saved::default()).collect(),
            ..Tape::default()
        }
    }

    /// A buffer as its readers see it.
    pub(super) fn value(&self, id: BufferId) -> &[f32] {
        match &self.coded[id.index()] {
            coded if coded.is_empty() => &self.raw[id.index()],
            coded => coded,
        }
    }

    /// Zeros the gradients of every buffer that `range` touches.
    pub(super) fn clear_grads(&mut self, program: &Program, range: Range<usize>) {
        for op in &program.ops[range] {
            let touched = op.inputs().into_iter().flatten().chain([op.output()]);
            for id in touched {
                let buffer = &program.buffers[id.index()];
                let grad = &mut self.grad[id.index()];
                grad.clear();
                grad.resize(buffer.rows * buffer.cols, 0.0);
            }
        }
    }
}

/// A range of operations of one network.
#[derive(Clone, Copy)]
pub(super) struct Network<'a> {
    pub(super) program: &'a Program,
    pub(super) view: &'a View,
}

impl Network<'_> {
    /// Runs the operations of `range`. What they read from before it must lie
    /// in `tape.raw`; `image` is needed by a patch embedding only.
    pub(super) fn forward(
        &self,
        tape: &mut Tape,
        range: Range<usize>,
        image: &[f32],
        drop: Option<Drop>,
    ) {
        for index in range {
            let op = &self.program.ops[index];
            let id = op.output().index();
            let buffer = &self.program.buffers[id];
            let mut out = std::mem::take(&mut tape.raw[id]);
            out.resize(buffer.rows * buffer.cols, 0.0);
            let mut saved = std::mem::take(&mut tape.ops[index]);
            self.step(tape, index, image, &mut saved, &mut out);
            if let Some(site) = &self.view.sites[id] {
                let coded = &mut tape.coded[id];
                coded.resize(out.len(), 0.0);
                match &site.snapped {
                    None => math::quantize(site.grid(), &out, coded),
                    Some(table) => math::quantize_snapped(site.grid(), table, &out, coded),
                }
                if let Some(drop) = drop {
                    site.pass(&out, &mut tape.scratch);
                    math::copy_some(coded, &tape.scratch, drop.salt(id), drop.of_256);
                }
            } else {
                tape.coded[id].clear();
            }
            tape.ops[index] = saved;
            tape.raw[id] = out;
        }
    }

    fn step(
        &self,
        tape: &mut Tape,
        index: usize,
        image: &[f32],
        saved: &mut Saved,
        out: &mut [f32],
    ) {
        let program = self.program;
        match program.ops[index] {
            Op::PatchEmbed {
                patch,
                weight,
                bias,
                prefix,
                position,
                ..
            } => {
                let len = program.tensors[weight.index()].cols;
                cut_patches(image, program.image, patch, len, &mut tape.patches);
                let prefix = prefix.map_or(&[][..], |id| self.tensor(id.index()));
                let (head, tokens) = out.split_at_mut(prefix.len());
                head.copy_from_slice(prefix);
                self.product(&tape.patches, weight.index(), bias.index(), tokens);
                if let Some(position) = position {
                    math::add(tokens, self.tensor(position.index()));
                }
            }
            Op::LayerNorm {
                input,
                gamma,
                beta,
                eps,
                ..
            } => {
                let x = tape.value(input);
                saved.main.resize(x.len(), 0.0);
                saved.other.resize(program.buffers[input.index()].rows, 0.0);
                let affine = [self.tensor(gamma.index()), self.tensor(beta.index())];
                math::layer_norm(x, affine, eps, &mut saved.main, &mut saved.other, out);
            }
            Op::Linear {
                input,
                weight,
                bias,
                residual,
                ..
            } => {
                match self.view.activations[index] {
                    Activation::Identity => {
                        self.product(tape.value(input), weight.index(), bias.index(), out);
                    }
                    function @ (Activation::Gelu | Activation::Relu) => {
                        saved.main.resize(out.len(), 0.0);
                        let x = tape.value(input);
                        self.product(x, weight.index(), bias.index(), &mut saved.main);
                        match function == Activation::Gelu {
                            true => math::gelu(&saved.main, out),
                            false => math::relu(&saved.main, out),
                        }
                    }
                }
                if let Some(residual) = residual {
                    math::add(out, tape.value(residual));
                }
            }
            Op::HeadNorm {
                input,
                heads,
                head_dim,
                gamma,
                beta,
                eps,
                ..
            } => {
                let d = heads * head_dim;
                let x = tape.value(input);
                saved.main.resize(x.len() / 3 * 2, 0.0);
                saved.other.resize(x.len() / head_dim / 3 * 2, 0.0);
                let parts = [gamma, beta].map(|id| self.tensor(id.index()).chunks_exact(head_dim));
                let [mut gammas, mut betas] = parts;
                let normed = saved.main.chunks_exact_mut(x.len() / 3);
                let inverse = saved.other.chunks_exact_mut(x.len() / head_dim / 3);
                for (part, (normed, inverse)) in normed.zip(inverse).enumerate() {
                    let affine = [&mut gammas, &mut betas].map(|a| a.next().expect("q and k"));
                    let columns = part * d..(part + 1) * d;
                    let rows = x.chunks_exact(3 * d).zip(out.chunks_exact_mut(3 * d));
                    let saved = normed
                        .chunks_exact_mut(d)
                        .zip(inverse.chunks_exact_mut(heads));
                    for ((x, y), (normed, inverse)) in rows.zip(saved) {
                        let (x, y) = (&x[columns.clone()], &mut y[columns.clone()]);
                        math::layer_norm(x, affine, eps, normed, inverse, y);
                    }
                }
                for (x, y) in x.chunks_exact(3 * d).zip(out.chunks_exact_mut(3 * d)) {
                    y[2 * d..].copy_from_slice(&x[2 * d..]);
                }
            }
            Op::Gate { input, output } => {
                let h = program.buffers[output.index()].cols;
                let x = tape.value(input);
                for (x, y) in x.chunks_exact(2 * h).zip(out.chunks_exact_mut(h)) {
                    math::gate(&x[..h], &x[h..], y);
                }
            }
            Op::Attention { .. } => self.attention(tape, index, saved, out),
            Op::SelectToken { input, token, .. } => {
                let d = out.len();
                out.copy_from_slice(&tape.value(input)[token * d..][..d]);
            }
            Op::Pool {
                input,
                first,
                count,
                pool,
                ..
            } => {
                let d = program.buffers[input.index()].cols;
                let rows = &tape.value(input)[first * d..][..count * d];
                match pool {
                    Pooling::Concat => out.copy_from_slice(rows),
                    Pooling::Mean => {
                        out.fill(0.0);
                        math::add_rows(out, rows);
                        out.iter_mut().for_each(|y| *y /= count as f32);
                    }
                }
            }
            Op::PatchMerge { input, grid, .. } => merge_patches(tape.value(input), grid, out),
        }
    }

    fn tensor(&self, id: usize) -> &[f32] {
        &self.view.tensors[id]
    }

    /// `[rows, k]` to `[rows, n]`.
    fn product(&self, x: &[f32], weight: usize, bias: usize, out: &mut [f32]) {
        let info = &self.program.tensors[weight];
        let (n, k) = (info.rows, info.cols);
        let rows = x.len() / k;
        for row in out.chunks_exact_mut(n) {
            row.copy_from_slice(self.tensor(bias));
        }
        let weight = MatRef::dense(&self.view.transposed[weight], k, n);
        let out = MatMut::dense(out, rows, n);
        matmul(1.0, MatRef::dense(x, rows, k), weight, 1.0, out);
    }

    fn attention(&self, tape: &Tape, index: usize, saved: &mut Saved, out: &mut [f32]) {
        let heads = Heads::new(self.program, index);
        let qkv = tape.value(heads.qkv);
        let bias = self.position_bias(&heads);
        let quantized = !self.view.coders[index].is_empty();
        saved.main.resize(heads.probabilities(), 0.0);
        saved
            .other
            .resize(if quantized { heads.probabilities() } else { 0 }, 0.0);
        let (mut main, mut other) = (&mut saved.main[..], &mut saved.other[..]);
        let (mut rows, mut cell_out) = (Vec::new(), Vec::new());
        for part in &heads.parts {
            let (own, rest) = main.split_at_mut(heads.count * part.tokens().pow(2));
            let (own_codes, rest_codes) = other.split_at_mut(if quantized { own.len() } else { 0 });
            (main, other) = (rest, rest_codes);
            match part {
                Part::All { .. } => {
                    self.heads(&heads, (part, &bias), index, qkv, [own, own_codes], out);
                }
                Part::Cell(window, cell) => {
                    let d = heads.width();
                    gather(window, cell, qkv, 3 * d, &mut rows);
                    cell_out.resize(cell.tokens() * d, 0.0);
                    let to = &mut cell_out;
                    self.heads(&heads, (part, &bias), index, &rows, [own, own_codes], to);
                    let put = |to: &mut [f32], from: &[f32]| to.copy_from_slice(from);
                    scatter(window, cell, &cell_out, d, out, put);
                }
            }
        }
    }

    /// The position bias of all heads, in whole units of the scores where these are
    /// integers; nothing without one. Gradients pass the rounding straight through.
    fn position_bias(&self, heads: &Heads) -> Vec<f32> {
        let Some(id) = heads.bias else {
            return Vec::new();
        };
        let mut bias = self.tensor(id.index()).to_vec();
        if let Some(site) = &self.view.sites[heads.qkv.index()] {
            let entries = bias.len() / heads.count;
            for (head, bias) in bias.chunks_exact_mut(entries).enumerate() {
                let [q, k] = [head, heads.count + head].map(|h| site.scale[h * heads.dim]);
                round_to_scores(bias, [q, k, heads.scale]);
            }
        }
        bias
    }

    /// Attention of tokens that all see each other; `bias` is that of all heads.
    fn heads(
        &self,
        heads: &Heads,
        (part, bias): (&Part, &[f32]),
        index: usize,
        qkv: &[f32],
        [main, other]: [&mut [f32]; 2],
        out: &mut [f32],
    ) {
        let t = part.tokens();
        let square = t * t;
        let coders = &self.view.coders[index]; // as many as heads, or none
        for head in 0..heads.count {
            let scores = &mut main[head * square..][..square];
            let [q, k, v] = [0, 1, 2].map(|which| heads.part(qkv, t, which, head));
            matmul(
                heads.scale,
                q,
                k.transpose(),
                0.0,
                MatMut::dense(scores, t, t),
            );
            if let (Part::Cell(window, cell), false) = (part, bias.is_empty()) {
                let len = window.bias_len();
                add_bias(window, cell, &bias[head * len..][..len], scores);
            }
            if let Some(coder) = coders.get(head) {
                let coded = &mut other[head * square..][..square];
                math::attention_codes(coder, scores, t, coded);
            }
            math::softmax(scores, t);
            let used = if coders.is_empty() { &*main } else { &*other };
            let p = MatRef::dense(&used[head * square..][..square], t, t);
            matmul(1.0, p, v, 0.0, heads.output(out, t, head));
        }
    }

    /// Backward through `range`: from the gradients in `tape.grad` of what was
    /// computed, to those of what was read.
    ///
    /// `drop` must be that of the forward pass. Sums go to those tensors of
    /// `grads` that are not empty; a frozen network has none.
    pub(super) fn backward(
        &self,
        tape: &mut Tape,
        range: Range<usize>,
        drop: Option<Drop>,
        grads: &mut Grads,
    ) {
        for index in range.rev() {
            let id = self.program.ops[index].output().index();
            let mut grad = std::mem::take(&mut tape.grad[id]);
            if let Some(site) = &self.view.sites[id] {
                self.site_backward(site, tape, id, drop, &mut grad, grads);
            }
            self.step_backward(tape, index, &mut grad, grads);
            tape.grad[id] = grad;
        }
    }

    fn site_backward(
        &self,
        site: &Site,
        tape: &mut Tape,
        id: usize,
        drop: Option<Drop>,
        grad: &mut [f32],
        grads: &mut Grads,
    ) {
        let (raw, coded) = (&tape.raw[id], &tape.coded[id]);
        let mut unused = Vec::new();
        let log_scales = match &mut grads.log_scales[id] {
            sums if sums.is_empty() => {
                unused.resize(site.scale.len(), 0.0);
                &mut unused
            }
            sums => sums,
        };
        let Some(drop) = drop else {
            math::quantize_backward(site.grid(), site.folded, raw, coded, grad, log_scales);
            return;
        };
        // Where the value stayed float, its gradient does not see the quantizer.
        let salt = drop.salt(id);
        site.pass(grad, &mut tape.scratch);
        let zeros = vec![0.0; grad.len()];
        math::copy_some(grad, &zeros, salt, drop.of_256);
        math::quantize_backward(site.grid(), site.folded, raw, coded, grad, log_scales);
        math::copy_some(grad, &tape.scratch, salt, drop.of_256);
    }

    fn step_backward(&self, tape: &mut Tape, index: usize, grad: &mut [f32], grads: &mut Grads) {
        match self.program.ops[index] {
            Op::PatchEmbed {
                weight,
                bias,
                prefix,
                position,
                ..
            } => {
                let cut = prefix.map_or(0, |id| self.tensor(id.index()).len());
                let (head, tokens) = grad.split_at(cut);
                if let Some(prefix) = prefix {
                    math::add(&mut grads.tensors[prefix.index()], head);
                }
                if let Some(position) = position {
                    math::add(&mut grads.tensors[position.index()], tokens);
                }
                self.weight_grads(tokens, &tape.patches, [weight, bias], grads);
            }
            Op::LayerNorm {
                input, gamma, beta, ..
            } => {
                let saved = &tape.ops[index];
                let affine = self.tensor(gamma.index());
                let mut learning = [gamma, beta].map(|id| {
                    let mut sums = std::mem::take(&mut grads.tensors[id.index()]);
                    let frozen = sums.is_empty();
                    sums.resize(affine.len(), 0.0);
                    (id.index(), frozen, sums)
                });
                let [g, b] = &mut learning;
                let sums = [&mut g.2[..], &mut b.2[..]];
                math::layer_norm_backward(&saved.main, &saved.other, affine, grad, sums);
                for (id, frozen, sums) in learning {
                    if !frozen {
                        grads.tensors[id] = sums;
                    }
                }
                math::add(&mut tape.grad[input.index()], grad);
            }
            Op::Linear {
                input,
                weight,
                bias,
                residual,
                ..
            } => {
                if let Some(residual) = residual {
                    math::add(&mut tape.grad[residual.index()], grad);
                }
                match self.view.activations[index] {
                    Activation::Identity => {}
                    Activation::Gelu => math::gelu_backward(&tape.ops[index].main, grad),
                    Activation::Relu => math::relu_backward(&tape.ops[index].main, grad),
                }
                self.weight_grads(grad, tape.value(input), [weight, bias], grads);
                let info = &self.program.tensors[weight.index()];
                let (n, k) = (info.rows, info.cols);
                let rows = grad.len() / n;
                let dy = MatRef::dense(grad, rows, n);
                let weight = MatRef::dense(self.tensor(weight.index()), n, k);
                let dx = MatMut::dense(&mut tape.grad[input.index()], rows, k);
                matmul(1.0, dy, weight, 1.0, dx);
            }
            Op::HeadNorm {
                input,
                heads,
                head_dim,
                gamma,
                beta,
                ..
            } => {
                let shape = [heads, head_dim];
                self.head_norm_backward(tape, index, (input, shape, [gamma, beta]), grad, grads);
            }
            Op::Gate { input, output } => {
                let h = self.program.buffers[output.index()].cols;
                let mut to = std::mem::take(&mut tape.grad[input.index()]);
                let rows = tape.value(input).chunks_exact(2 * h);
                let rows = rows.zip(to.chunks_exact_mut(2 * h));
                for ((x, dx), dy) in rows.zip(grad.chunks_exact(h)) {
                    let (d_gate, d_value) = dx.split_at_mut(h);
                    math::gate_backward(&x[..h], &x[h..], dy, d_gate, d_value);
                }
                tape.grad[input.index()] = to;
            }
            Op::Attention { .. } => self.attention_backward(tape, index, grad, grads),
            Op::SelectToken { input, token, .. } => {
                let d = grad.len();
                math::add(&mut tape.grad[input.index()][token * d..][..d], grad);
            }
            Op::Pool {
                input,
                first,
                count,
                pool,
                ..
            } => {
                let d = self.program.buffers[input.index()].cols;
                let to = &mut tape.grad[input.index()][first * d..][..count * d];
                match pool {
                    Pooling::Concat => math::add(to, grad),
                    Pooling::Mean => {
                        grad.iter_mut().for_each(|g| *g /= count as f32);
                        to.chunks_exact_mut(d).for_each(|row| math::add(row, grad));
                    }
                }
            }
            Op::PatchMerge { input, grid, .. } => {
                let [height, width] = grid;
                let d = grad.len() / (height * width);
                let to = &mut tape.grad[input.index()];
                for (square, grad) in grad.chunks_exact(4 * d).enumerate() {
                    let tokens = merged_tokens(width, square);
                    for (token, grad) in tokens.into_iter().zip(grad.chunks_exact(d)) {
                        math::add(&mut to[token * d..][..d], grad);
                    }
                }
            }
        }
    }

    /// `dw += dy^T * x`, `db += sum over rows of dy`, unless they are frozen.
    fn weight_grads(
        &self,
        dy: &[f32],
        x: &[f32],
        [weight, bias]: [TensorId; 2],
        grads: &mut Grads,
    ) {
        if !grads.tensors[bias.index()].is_empty() {
            math::add_rows(&mut grads.tensors[bias.index()], dy);
        }
        let sums = &mut grads.tensors[weight.index()];
        if sums.is_empty() {
            return;
        }
        let info = &self.program.tensors[weight.index()];
        let (n, k) = (info.rows, info.cols);
        let rows = dy.len() / n;
        let dy = MatRef::dense(dy, rows, n).transpose();
        let x = MatRef::dense(x, rows, k);
        matmul(1.0, dy, x, 1.0, MatMut::dense(sums, n, k));
    }

    fn head_norm_backward(
        &self,
        tape: &mut Tape,
        index: usize,
        (input, [heads, head_dim], affine): (BufferId, [usize; 2], [TensorId; 2]),
        grad: &mut [f32],
        grads: &mut Grads,
    ) {
        let d = heads * head_dim;
        let saved = &tape.ops[index];
        let gamma = self.tensor(affine[0].index());
        let mut sums = affine.map(|id| {
            let mut sums = std::mem::take(&mut grads.tensors[id.index()]);
            let frozen = sums.is_empty();
            sums.resize(gamma.len(), 0.0);
            (id.index(), frozen, sums)
        });
        let normed = saved.main.chunks_exact(saved.main.len() / 2);
        let inverse = saved.other.chunks_exact(saved.other.len() / 2);
        for (part, (normed, inverse)) in normed.zip(inverse).enumerate() {
            let own = part * head_dim..(part + 1) * head_dim;
            let rows = grad.chunks_exact_mut(3 * d);
            let saved = normed.chunks_exact(d).zip(inverse.chunks_exact(heads));
            for (grad, (normed, inverse)) in rows.zip(saved) {
                let [g, b] = &mut sums;
                let sums = [&mut g.2[own.clone()], &mut b.2[own.clone()]];
                let grad = &mut grad[part * d..(part + 1) * d];
                math::layer_norm_backward(normed, inverse, &gamma[own.clone()], grad, sums);
            }
        }
        for (id, frozen, sums) in sums {
            if !frozen {
                grads.tensors[id] = sums;
            }
        }
        math::add(&mut tape.grad[input.index()], grad);
    }

    fn attention_backward(
        &self,
        tape: &mut Tape,
        index: usize,
        grad: &mut [f32],
        grads: &mut Grads,
    ) {
        let heads = Heads::new(self.program, index);
        let mut to = std::mem::take(&mut tape.grad[heads.qkv.index()]);
        let mut scratch = std::mem::take(&mut tape.scratch);
        let qkv = tape.value(heads.qkv);
        let saved = &tape.ops[index];
        let used = match self.view.coders[index].is_empty() {
            true => &saved.main,
            false => &saved.other,
        };
        let mut first = 0;
        let (mut rows, mut cell_grad, mut cell_to) = (Vec::new(), Vec::new(), Vec::new());
        for part in &heads.parts {
            let len = heads.count * part.tokens().pow(2);
            let own = [&saved.main[first..][..len], &used[first..][..len]];
            first += len;
            match part {
                Part::All { .. } => {
                    self.heads_backward(
                        &heads,
                        part,
                        [qkv, grad],
                        own,
                        &mut scratch,
                        &mut to,
                        grads,
                    );
                }
                Part::Cell(window, cell) => {
                    let d = heads.width();
                    gather(window, cell, qkv, 3 * d, &mut rows);
                    gather(window, cell, grad, d, &mut cell_grad);
                    cell_to.clear();
                    cell_to.resize(rows.len(), 0.0);
                    let inputs = [&rows[..], &cell_grad];
                    self.heads_backward(
                        &heads,
                        part,
                        inputs,
                        own,
                        &mut scratch,
                        &mut cell_to,
                        grads,
                    );
                    scatter(window, cell, &cell_to, 3 * d, &mut to, math::add);
                }
            }
        }
        tape.scratch = scratch;
        tape.grad[heads.qkv.index()] = to;
    }

    /// Backward of [`heads`](Self::heads); `main` are the float probabilities,
    /// `used` those multiplied with v.
    #[expect(clippy::too_many_arguments, reason = "what one cell has of each")]
    fn heads_backward(
        &self,
        heads: &Heads,
        part: &Part,
        [qkv, grad]: [&[f32]; 2],
        [main, used]: [&[f32]; 2],
        scratch: &mut Vec<f32>,
        to: &mut [f32],
        grads: &mut Grads,
    ) {
        let t = part.tokens();
        let square = t * t;
        scratch.resize(square, 0.0);
        let scratch = &mut scratch[..square];
        for head in 0..heads.count {
            let dy = MatRef::strided(&grad[head * heads.dim..], t, heads.dim, heads.width());
            let p = MatRef::dense(&used[head * square..][..square], t, t);
            matmul(1.0, p.transpose(), dy, 1.0, heads.part_mut(to, t, 2, head));
            let v = heads.part(qkv, t, 2, head);
            matmul(1.0, dy, v.transpose(), 0.0, MatMut::dense(scratch, t, t));
            math::softmax_backward(&main[head * square..][..square], t, scratch);
            if let (Part::Cell(window, cell), Some(bias)) = (part, heads.bias) {
                let sums = &mut grads.tensors[bias.index()];
                if !sums.is_empty() {
                    let len = window.bias_len();
                    let sums = &mut sums[head * len..][..len];
                    for (i, ds) in scratch.iter().enumerate() {
                        sums[window.bias_index(cell, i / t, i % t)] += ds;
                    }
                }
            }
            let ds = MatRef::dense(scratch, t, t);
            let [q, k] = [0, 1].map(|which| heads.part(qkv, t, which, head));
            matmul(heads.scale, ds, k, 1.0, heads.part_mut(to, t, 0, head));
            let ds = ds.transpose();
            matmul(heads.scale, ds, q, 1.0, heads.part_mut(to, t, 1, head));
        }
    }
}

/// Where an attention operation finds its heads.
struct Heads {
    qkv: BufferId,
    count: usize,
    dim: usize,
    scale: f32,
    bias: Option<TensorId>,
    /// Tokens that see each other.
    parts: Vec<Part>,
}

/// Tokens that see each other.
enum Part {
    All { tokens: usize },
    Cell(Window, Cell),
}

impl Part {
    fn tokens(&self) -> usize {
        match self {
            Part::All { tokens } => *tokens,
            Part::Cell(_, cell) => cell.tokens(),
        }
    }
}

impl Heads {
    fn new(program: &Program, index: usize) -> Self {
        let Op::Attention {
            qkv,
            heads,
            head_dim,
            scale,
            window,
            bias,
            ..
        } = program.ops[index]
        else {
            unreachable!("only called for attention");
        };
        let tokens = program.buffers[qkv.index()].rows;
        let parts = match window {
            None => vec![Part::All { tokens }],
            Some(window) => window
                .cells()
                .map(|cell| Part::Cell(window, cell))
                .collect(),
        };
        Heads {
            qkv,
            count: heads,
            dim: head_dim,
            scale,
            bias,
            parts,
        }
    }

    /// Probabilities of all parts and heads.
    fn probabilities(&self) -> usize {
        let squares = self.parts.iter().map(|part| part.tokens().pow(2));
        self.count * squares.sum::<usize>()
    }

    /// Columns of q, of k, and of v.
    fn width(&self) -> usize {
        self.count * self.dim
    }

    /// q (`which = 0`), k or v of a head, `[t, dim]`.
    fn part<'a>(&self, qkv: &'a [f32], t: usize, which: usize, head: usize) -> MatRef<'a> {
        let first = which * self.width() + head * self.dim;
        MatRef::strided(&qkv[first..], t, self.dim, 3 * self.width())
    }

    fn part_mut<'a>(&self, qkv: &'a mut [f32], t: usize, which: usize, head: usize) -> MatMut<'a> {
        MatMut {
            data: &mut qkv[which * self.width() + head * self.dim..],
            rows: t,
            cols: self.dim,
            row_stride: 3 * self.width(),
        }
    }

    fn output<'a>(&self, out: &'a mut [f32], t: usize, head: usize) -> MatMut<'a> {
        MatMut {
            data: &mut out[head * self.dim..],
            rows: t,
            cols: self.dim,
            row_stride: self.width(),
        }
    }
}
