//! Walks a graph along its residual stream: what every recogniser shares.
//!
//! ```text
//! x = x + ls1 * attention(norm1(x))
//! x = x + ls2 * mlp(norm2(x))
//! ```
//!
//! The stream `x` is followed forwards: it is read by exactly a LayerNorm and a
//! sum, twice per block. Between them the walk goes backwards from the sum,
//! where each operand has one origin. LayerScale (`ls1`, `ls2`) is folded into
//! the linear layer that it scales.

use super::error::Misfit;
use super::parts::{Draft, Parts};
use super::reduce::{Kind, Reduced, Step};
use super::trace::Trace;
use crate::onnx::{Tensor, ValueId};
use std::sync::Arc;
use tpvit_models::{Mlp, Program, Window};

pub(crate) struct Walk<'r, 'g> {
    pub(crate) r: &'r Reduced<'g>,
    pub(crate) parts: Parts,
    taps: Vec<[String; 3]>,
}

/// Tokens on their way from block to block.
#[derive(Clone, Copy)]
pub(crate) struct Stream {
    pub(crate) value: ValueId,
    pub(crate) tokens: usize,
    pub(crate) dim: usize,
}

/// The two readers of the residual stream inside a block.
#[derive(Clone, Copy)]
pub(crate) struct Half<'r> {
    pub(crate) norm: &'r Step,
    pub(crate) sum: &'r Step,
}

/// A linear layer's parts, weight `[n, k]`.
pub(crate) struct Linear {
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    pub(crate) k: usize,
}

/// The linear layer that ends a residual branch.
pub(crate) struct Branch<'r> {
    pub(crate) step: &'r Step,
    /// With LayerScale folded in.
    pub(crate) layer: Linear,
    /// For each token of the stream, the row of the layer's output added to it.
    pub(crate) rows: Vec<usize>,
}

/// What a block is made of, beside its weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct BlockShape {
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) scale: f32,
    pub(crate) qk_norm: bool,
    pub(crate) window: Option<Window>,
    pub(crate) mlp: Mlp,
    pub(crate) hidden: usize,
}

impl<'r, 'g> Walk<'r, 'g> {
    pub(crate) fn new(r: &'r Reduced<'g>) -> Self {
        Walk {
            r,
            parts: Parts::default(),
            taps: Vec::new(),
        }
    }

    /// The graph's only input and the size of its picture.
    pub(crate) fn picture(&self) -> Result<(ValueId, [usize; 2]), Misfit> {
        let graph = self.r.folded.graph;
        let [picture] = graph.inputs[..] else {
            let count = graph.inputs.len();
            return Err(Misfit::nowhere(format!("it has {count} inputs, not 1")));
        };
        match *self.r.shape(picture) {
            [1, 3, height, width] => Ok((picture, [height, width])),
            _ => Err(Misfit::nowhere(format!(
                "its input {:?} is not [1 or dynamic, 3, height, width], but {:?}",
                graph.value(picture).name,
                graph.value(picture).declared
            ))),
        }
    }

    /// What was read, as a model of this program.
    pub(crate) fn finish(self, program: Program) -> Draft {
        let graph = self.r.folded.graph;
        let name = |id: ValueId| graph.value(id).name.clone();
        Draft {
            program,
            input_name: name(graph.inputs[0]),
            output_name: name(graph.outputs[0]),
            parts: self.parts,
            taps: self.taps,
        }
    }

    /// Records that `buffer` must equal the graph's `value`.
    pub(crate) fn tap(&mut self, part: &str, value: ValueId, buffer: &str) {
        let value = self.r.folded.graph.value(value).name.clone();
        self.taps.push([part.to_owned(), value, buffer.to_owned()]);
    }

    /// One block; windows only on a grid.
    pub(crate) fn block(
        &mut self,
        name: &str,
        x: Stream,
        half: Half<'r>,
        grid: Option<[usize; 2]>,
    ) -> Result<(Stream, BlockShape), Misfit> {
        let (middle, mut shape) = self.attention(name, x, half, grid)?;
        let half = self.residual(middle.value)?;
        let x = self.mlp(name, middle, half, &mut shape)?;
        self.tap(name, x.value, &format!("{name}.res2"));
        Ok((x, shape))
    }

    /// The LayerNorm and the sum that read the stream.
    pub(crate) fn residual(&self, x: ValueId) -> Result<Half<'r>, Misfit> {
        if let Some(half) = self.block_ahead(x) {
            return Ok(half);
        }
        let uses = self.r.uses(x);
        let mut half = (None, None);
        for step in &uses {
            match step.kind {
                Kind::LayerNorm { .. } if half.0.is_none() => half.0 = Some(*step),
                Kind::Sum if half.1.is_none() => half.1 = Some(*step),
                _ => {
                    let expected =
                        "a LayerNorm and a residual sum as the readers of the residual stream";
                    return Err(Misfit::at(step, expected));
                }
            }
        }
        let expected = "a residual block: a LayerNorm and a sum reading the same value";
        let step = uses.first().copied().or_else(|| self.r.source(x));
        Err(step.map_or_else(|| Misfit::nowhere(expected), |s| Misfit::at(s, expected)))
    }

    /// The same, if the stream does not end here.
    pub(crate) fn block_ahead(&self, x: ValueId) -> Option<Half<'r>> {
        let [a, b] = self.r.uses(x)[..] else {
            return None;
        };
        match (&a.kind, &b.kind) {
            (Kind::LayerNorm { .. }, Kind::Sum) => Some(Half { norm: a, sum: b }),
            (Kind::Sum, Kind::LayerNorm { .. }) => Some(Half { norm: b, sum: a }),
            _ => None,
        }
    }

    /// The linear layer that ends a residual branch, with LayerScale folded in.
    pub(crate) fn branch(
        &self,
        half: Half<'r>,
        x: Stream,
        what: &str,
    ) -> Result<Branch<'r>, Misfit> {
        let stream = self.r.base(x.value);
        let inputs = half.sum.inputs.iter();
        let mut operands = inputs.filter(|v| self.r.base(**v) != stream);
        let (Some(branch), None) = (operands.next(), operands.next()) else {
            return Err(Misfit::at(half.sum, "the residual stream plus a branch"));
        };
        let mut trace = Trace::new(self.r, *branch);
        let rows = trace.rows(x.dim);
        let mut factor = trace.scale as f32;
        let mut step = self.expect(&trace, what, |k| {
            is_linear(k) || matches!(k, Kind::Scale { divide: false, .. })
        })?;
        let mut gain = None;
        if let Kind::Scale { by, .. } = &step.kind {
            let scaled = step;
            gain = channel_gain(by, x.dim);
            trace = Trace::new(self.r, scaled.inputs[0]);
            factor *= trace.scale as f32;
            step = self.expect(&trace, what, is_linear)?;
            if gain.is_none() || !trace.in_order() {
                return Err(Misfit::at(scaled, "LayerScale, one factor per channel"));
            }
        }
        let mut layer = linear_parts(step).ok_or_else(|| Misfit::at(step, what))?;
        let (Some(rows), true) = (rows, layer.bias.len() == x.dim) else {
            return Err(Misfit::at(
                step,
                format!("{what} with {} outputs, token by token", x.dim),
            ));
        };
        if gain.is_some() || factor != 1.0 {
            let gain = gain.unwrap_or_else(|| vec![1.0; x.dim]);
            for (i, gain) in gain.into_iter().map(|g| factor * g).enumerate() {
                layer.bias[i] *= gain;
                let row = &mut layer.weight[i * layer.k..][..layer.k];
                row.iter_mut().for_each(|w| *w *= gain);
            }
        }
        Ok(Branch { step, layer, rows })
    }

    /// The step a trace ends at, if it is of the kind asked for.
    pub(crate) fn expect(
        &self,
        trace: &Trace<'_>,
        expected: &str,
        kind: impl Fn(&Kind) -> bool,
    ) -> Result<&'r Step, Misfit> {
        match self.r.source(trace.source) {
            Some(step) if kind(&step.kind) => Ok(step),
            Some(step) => Err(self.strange(step, expected)),
            None => Err(Misfit::nowhere(format!(
                "the picture is read where {expected} was expected"
            ))),
        }
    }

    /// The step that makes `value`, unmoved, if it is of the kind asked for.
    pub(crate) fn made_by(
        &self,
        value: ValueId,
        reader: &Step,
        expected: &str,
        kind: impl Fn(&Kind) -> bool,
    ) -> Result<&'r Step, Misfit> {
        match self.r.source(value) {
            Some(step) if kind(&step.kind) => Ok(step),
            Some(step) => Err(self.strange(step, expected)),
            None => Err(Misfit::at(reader, expected)),
        }
    }

    /// A step that does not fit; what pads a grid is told with its numbers.
    pub(crate) fn strange(&self, step: &Step, expected: &str) -> Misfit {
        if self.r.node(step).op != "Pad" {
            return Misfit::at(step, expected);
        }
        let sides = |id: ValueId| self.r.shape(id).to_vec();
        let (from, to) = (step.inputs.first().map(|id| sides(*id)), sides(step.output));
        let from = from.unwrap_or_default();
        Misfit::at(
            step,
            format!(
                "a grid of whole windows that halves evenly, not one padded from {from:?} to {to:?},"
            ),
        )
    }

    /// The steps that read `value`, through moves.
    pub(crate) fn readers(&self, value: ValueId) -> Vec<&'r Step> {
        let mut readers = Vec::new();
        let mut waiting = vec![value];
        while let Some(value) = waiting.pop() {
            for step in self.r.uses(value) {
                match step.kind {
                    Kind::View(_) | Kind::Parts { .. } => waiting.push(step.output),
                    _ => readers.push(step),
                }
            }
        }
        readers.sort_by_key(|step| step.node.0);
        readers
    }

    /// Nothing but these linear layers reads the LayerNorm.
    pub(crate) fn only_readers(
        &self,
        norm: &Step,
        layers: &[&Step],
        expected: &str,
    ) -> Result<(), Misfit> {
        let known = |step: &&Step| layers.iter().any(|layer| layer.output == step.output);
        let readers = self.readers(norm.output);
        match readers.into_iter().find(|step| !known(step)) {
            Some(step) => Err(self.strange(step, expected)),
            None => Ok(()),
        }
    }

    /// Takes the gain and the shift of a norm over `dim` channels, entry `i` being
    /// that of channel `order(i)`.
    pub(crate) fn layer_norm(
        &mut self,
        name: &str,
        step: &Step,
        dim: usize,
        order: impl Fn(usize) -> usize,
    ) {
        let Kind::LayerNorm { gamma, beta, eps } = &step.kind else {
            unreachable!("callers pass a LayerNorm");
        };
        let take = |tensor: Option<&Arc<Tensor>>, default| {
            let values = vector(tensor, dim, default);
            (0..dim).map(|i| values[order(i)]).collect()
        };
        let (gamma, beta) = (take(gamma.as_ref(), 1.0), take(beta.as_ref(), 0.0));
        self.parts.tensor(format!("{name}.gamma"), gamma);
        self.parts.tensor(format!("{name}.beta"), beta);
        self.parts.eps(name, *eps);
    }

    pub(crate) fn linear(&mut self, name: &str, layer: Linear) {
        self.parts.tensor(format!("{name}.weight"), layer.weight);
        self.parts.tensor(format!("{name}.bias"), layer.bias);
    }
}

impl BlockShape {
    /// What is not as in another block, windows aside.
    pub(crate) fn difference(&self, first: &BlockShape) -> Option<String> {
        let of = |b: &BlockShape| {
            let BlockShape {
                heads,
                head_dim,
                scale,
                qk_norm,
                mlp,
                hidden,
                window: _,
            } = *b;
            let norm = if qk_norm { ", QK-norm" } else { "" };
            format!(
                "{heads} heads of {head_dim} channels, scale {scale}{norm}, and an MLP ({mlp:?}) of {hidden} channels"
            )
        };
        let (here, there) = (of(self), of(first));
        (here != there).then(|| format!("a block like the first: {there}, not {here},"))
    }
}

pub(crate) fn is_product(kind: &Kind) -> bool {
    matches!(kind, Kind::Product)
}

pub(crate) fn is_softmax(kind: &Kind) -> bool {
    matches!(kind, Kind::Softmax)
}

pub(crate) fn is_linear(kind: &Kind) -> bool {
    matches!(kind, Kind::Linear { .. })
}

/// A vector, or `default` `len` times if it is missing.
pub(crate) fn vector(tensor: Option<&Arc<Tensor>>, len: usize, default: f32) -> Vec<f32> {
    let values = tensor.and_then(|t| t.floats());
    values.map_or_else(|| vec![default; len], <[f32]>::to_vec)
}

/// One factor per channel; a scalar counts for all.
fn channel_gain(by: &Tensor, channels: usize) -> Option<Vec<f32>> {
    match (by.floats()?, by.shape.last()) {
        ([one], _) => Some(vec![*one; channels]),
        (many, Some(last)) if many.len() == channels && *last == channels => Some(many.to_vec()),
        _ => None,
    }
}

/// Weight as `[n, k]` and bias of a linear step.
pub(crate) fn linear_parts(step: &Step) -> Option<Linear> {
    let Kind::Linear {
        weight,
        by_output,
        bias,
    } = &step.kind
    else {
        return None;
    };
    let ([.., rows, cols], values) = (&weight.shape[..], weight.floats()?) else {
        return None;
    };
    let (n, k) = if *by_output {
        (*rows, *cols)
    } else {
        (*cols, *rows)
    };
    let weight = match by_output {
        true => values.to_vec(),
        false => (0..n * k).map(|i| values[i % k * n + i / k]).collect(),
    };
    let bias = vector(bias.as_ref(), n, 0.0);
    Some(Linear { weight, bias, k })
}

impl Linear {
    /// Appends some rows of `layer`.
    pub(crate) fn extend(&mut self, layer: &Linear, rows: &[usize]) {
        for row in rows {
            self.weight
                .extend_from_slice(&layer.weight[row * layer.k..][..layer.k]);
            self.bias.push(layer.bias[*row]);
        }
    }

    /// Moves column `j` of the weight to `order[j]`.
    pub(crate) fn permute(&mut self, order: &[usize]) {
        for row in self.weight.chunks_exact_mut(self.k) {
            let old = row.to_vec();
            for (value, to) in old.into_iter().zip(order) {
                row[*to] = value;
            }
        }
    }
}
