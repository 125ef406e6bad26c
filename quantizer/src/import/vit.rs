//! Recognises ViT and DeiT: patch embedding, class token, pre-norm blocks,
//! LayerNorm, class-token head. Dosovitskiy et al. 2020, arXiv:2010.11929.
//!
//! ```text
//! x = [class token; patches] + position
//! per block:  x = x + ls1 * proj(attention(norm1(x)))
//!             x = x + ls2 * fc2(gelu(fc1(norm2(x))))
//! logits = head(norm(x)[class token])
//! ```
//!
//! The residual stream `x` is followed forwards: it is read by exactly a
//! LayerNorm and a sum, twice per block. Between them the walk goes backwards
//! from the sum, where each operand has one origin. LayerScale (`ls1`, `ls2`)
//! is folded into proj and fc2.

use super::build::{Builder, Draft};
use super::error::Misfit;
use super::reduce::{Kind, Reduced, Step};
use super::trace::{Trace, only_use};
use super::view::View;
use crate::onnx::{Tensor, ValueId, element_count};
use std::sync::Arc;
use tpvit_models::{Activation, BufferId, Op, TensorId};

/// Reads the graph as a ViT.
pub(crate) fn recognise(reduced: &Reduced<'_>) -> Result<Draft, Misfit> {
    let graph = reduced.folded.graph;
    let picture = match graph.inputs[..] {
        [id] => id,
        _ => {
            return Err(Misfit::nowhere(format!(
                "it has {} inputs, not 1",
                graph.inputs.len()
            )));
        }
    };
    let [1, 3, height, width] = *reduced.shape(picture) else {
        return Err(Misfit::nowhere(format!(
            "its input {:?} is not [1 or dynamic, 3, height, width], but {:?}",
            graph.value(picture).name,
            graph.value(picture).declared
        )));
    };
    let mut vit = Vit {
        r: reduced,
        b: Builder::new([height, width]),
        t: 0,
        d: 0,
    };
    let mut x = vit.embed(picture)?;
    let mut block = 0;
    while let Some(half) = vit.residual(x.value, block == 0)? {
        let middle = vit.attention(block, x, half)?;
        let Some(half) = vit.residual(middle.value, true)? else {
            unreachable!("a required residual is there or an error");
        };
        x = vit.mlp(block, middle, half)?;
        block += 1;
    }
    vit.head(x)?;
    Ok(Draft {
        builder: vit.b,
        input_name: graph.value(picture).name.clone(),
        output_name: graph.value(graph.outputs[0]).name.clone(),
    })
}

struct Vit<'r, 'g> {
    r: &'r Reduced<'g>,
    b: Builder,
    t: usize, // tokens
    d: usize, // channels
}

/// The residual stream: in the graph and in the program.
#[derive(Clone, Copy)]
struct Stream {
    value: ValueId,
    buffer: BufferId,
}

/// The two readers of the residual stream inside a block.
#[derive(Clone, Copy)]
struct Half<'r> {
    norm: &'r Step,
    sum: &'r Step,
}

/// A linear layer's parts, weight `[n, k]`.
struct Linear {
    weight: Vec<f32>,
    bias: Vec<f32>,
    k: usize,
}

/// One of q, k and v: its layer, and the output of that layer which each
/// `(head, channel)` is.
struct Projection<'r> {
    layer: &'r Step,
    columns: Vec<usize>,
    scale: f64,
}

/// Marks an element that comes from a constant, not from a patch.
const CONSTANT: u32 = u32::MAX;

/// Tokens on their way to the first block:
/// `value[i] = offset[i] + patches[index[i]]`.
struct Tokens {
    index: Vec<u32>,
    offset: Vec<f32>,
}

impl<'r> Vit<'r, '_> {
    // ---- patch embedding ----

    fn embed(&mut self, picture: ValueId) -> Result<Stream, Misfit> {
        let conv = only_use(self.r, picture, "a patch embedding")?;
        let patch = self.patch_size(conv)?;
        let [_, d, rows, cols] = *self.r.shape(conv.output) else {
            return Err(Misfit::at(conv, "a two-dimensional convolution"));
        };
        let len = d * rows * cols;
        let mut tokens = Tokens {
            index: (0..len as u32).collect(),
            offset: vec![0.0; len],
        };
        let mut last = conv;
        loop {
            let uses = self.r.uses(last.output);
            let [next] = uses[..] else { break };
            let shape = self.r.shape(next.inputs[0]);
            let advanced = match &next.kind {
                Kind::View(view) => tokens.moved(view),
                Kind::Offset { by } => tokens.plus(by, shape),
                Kind::Concat => tokens.beside(self.r, next),
                _ => break,
            };
            tokens = advanced.ok_or_else(|| {
                Misfit::at(
                    next,
                    "class token, patches and positions as [1, tokens, channels]",
                )
            })?;
            last = next;
        }
        self.d = d;
        self.t = tokens.index.len() / d;
        self.build_embed(conv, patch, &tokens, rows * cols)
            .ok_or_else(|| {
                Misfit::at(
                    last,
                    "prefix tokens followed by the patches in row-major order",
                )
            })
            .map(|buffer| {
                self.b.tap("embed", self.name(last.output), buffer);
                Stream {
                    value: last.output,
                    buffer,
                }
            })
    }

    /// Patch height and width, if `step` cuts the picture into patches.
    fn patch_size(&self, step: &Step) -> Result<[usize; 2], Misfit> {
        let expected = "a patch embedding (a convolution whose stride is its kernel, unpadded, of a picture that it tiles)";
        let misfit = || Misfit::at(step, expected);
        let Kind::Conv { weight, bias } = &step.kind else {
            return Err(misfit());
        };
        let node = self.r.node(step);
        let [d, 3, h, w] = weight.shape[..] else {
            return Err(misfit());
        };
        let [1, 3, height, width] = *self.r.shape(step.inputs[0]) else {
            return Err(misfit());
        };
        let all = |name: &str, value: i64| {
            node.ints(name)
                .is_none_or(|v| v.iter().all(|v| *v == value))
        };
        if d * h * w == 0 {
            return Err(misfit());
        }
        let strides = node.ints("strides").unwrap_or(&[1, 1]);
        let tiles = strides == [h as i64, w as i64] && height % h == 0 && width % w == 0;
        let plain = all("pads", 0) && all("dilations", 1) && node.int("group").unwrap_or(1) == 1;
        let biased = bias
            .as_ref()
            .is_none_or(|b| b.floats().is_some_and(|v| v.len() == d));
        (tiles && plain && biased)
            .then_some([h, w])
            .ok_or_else(misfit)
    }

    /// `None` if the tokens are not a constant prefix and then the patches.
    fn build_embed(
        &mut self,
        conv: &Step,
        patch: [usize; 2],
        tokens: &Tokens,
        patches: usize,
    ) -> Option<BufferId> {
        let Kind::Conv { weight, bias } = &conv.kind else {
            return None;
        };
        let d = self.d;
        let prefix = self.t.checked_sub(patches)?;
        let (head, tail) = tokens.index.split_at(prefix * d);
        let from_patch = |(i, from): (usize, &u32)| *from as usize == i % d * patches + i / d;
        let ordered = tail.len() == patches * d && tail.iter().enumerate().all(from_patch);
        if !ordered || head.iter().any(|i| *i != CONSTANT) {
            return None;
        }
        let cols = patch[0] * patch[1] * 3;
        let rows = weight
            .floats()?
            .chunks(cols)
            .flat_map(|row| by_pixel(row, patch));
        let weight = self
            .b
            .weight("patch_embed.weight".into(), cols, rows.collect());
        let bias = vector(bias.as_ref(), d, 0.0);
        let bias = self.b.vector("patch_embed.bias".into(), bias);
        let (head, tail) = tokens.offset.split_at(prefix * d);
        let optional = |b: &mut Builder, name: &str, values: &[f32]| {
            let there = values.iter().any(|v| *v != 0.0);
            there.then(|| b.float(name.into(), d, values.to_vec()))
        };
        let position = optional(&mut self.b, "position", tail);
        let prefix = match prefix {
            0 => None,
            _ => Some(self.b.float("prefix".into(), d, head.to_vec())),
        };
        let output = self.b.buffer("embed", self.t, d);
        self.b.op(Op::PatchEmbed {
            patch,
            weight,
            bias,
            prefix,
            position,
            output,
        });
        Some(output)
    }

    // ---- blocks ----

    /// The LayerNorm and the sum that read the stream. `None` if it ends here,
    /// which `required` forbids.
    fn residual(&self, x: ValueId, required: bool) -> Result<Option<Half<'r>>, Misfit> {
        let uses = self.r.uses(x);
        let mut half = (None, None);
        for step in &uses {
            match step.kind {
                Kind::LayerNorm { .. } if half.0.is_none() => half.0 = Some(*step),
                Kind::Sum if half.1.is_none() => half.1 = Some(*step),
                _ if required || uses.len() > 1 => {
                    let expected =
                        "a LayerNorm and a residual sum as the readers of the residual stream";
                    return Err(Misfit::at(step, expected));
                }
                _ => return Ok(None),
            }
        }
        match half {
            (Some(norm), Some(sum)) => Ok(Some(Half { norm, sum })),
            (Some(_), None) if !required => Ok(None),
            _ => {
                let step = uses.first().copied().or_else(|| self.r.source(x));
                let expected = "a residual block: a LayerNorm and a sum reading the same value";
                Err(step.map_or_else(|| Misfit::nowhere(expected), |s| Misfit::at(s, expected)))
            }
        }
    }

    fn attention(&mut self, block: usize, x: Stream, half: Half<'r>) -> Result<Stream, Misfit> {
        let name = |part: &str| format!("blocks.{block}.{part}");
        let normed = self.layer_norm(&name("norm1"), half.norm, x, self.t);
        let (proj, mut layer) = self.branch(half, x, "attention's output projection")?;

        let merged = Trace::new(self.r, proj.inputs[0]);
        let product = self.expect(&merged, "the product of attention and v", is_product)?;
        let (probabilities, v) = (product.inputs[0], product.inputs[1]);
        let probabilities = Trace::new(self.r, probabilities);
        let softmax = self.expect(&probabilities, "softmax over q times k", is_softmax)?;
        let scores = Trace::new(self.r, softmax.inputs[0]);
        let qk = self.expect(
            &scores,
            "the product of q and k, scaled, with nothing added",
            is_product,
        )?;
        let unmoved = probabilities.in_order() && probabilities.scale == 1.0 && scores.in_order();
        let [.., t, head_dim] = *self.r.shape(qk.inputs[0]) else {
            return Err(Misfit::at(qk, "q as [heads, tokens, channels]"));
        };
        let heads = element_count(self.r.shape(qk.inputs[0])).unwrap_or(0) / (t * head_dim).max(1);
        if t != self.t
            || heads * head_dim == 0
            || !unmoved
            || element_count(self.r.shape(softmax.output)) != Some(heads * t * t)
        {
            return Err(Misfit::at(
                qk,
                format!("scores of {0} by {0} tokens", self.t),
            ));
        }
        let size = [heads, t, head_dim];
        let q = self.projection("q", half.norm, qk.inputs[0], size, false)?;
        let k = self.projection("k", half.norm, qk.inputs[1], size, true)?;
        let v = self.projection("v", half.norm, v, size, false)?;
        self.only_projections(half.norm, &[&q, &k, &v])?;
        let scale = scores.scale * q.scale * k.scale;
        if v.scale != 1.0 || merged.scale != 1.0 {
            return Err(Misfit::at(product, "v without a scale"));
        }

        let order = merged_order(&merged, size)
            .filter(|order| order.len() == layer.k)
            .ok_or_else(|| Misfit::at(proj, "the heads side by side, a permutation of channels"))?;
        layer.weight = layer
            .weight
            .chunks(layer.k)
            .flat_map(|row| permuted(row, &order))
            .collect();

        let qkv = self.qkv(&name("attn.qkv"), normed, &[q, k, v]);
        let output = self.b.buffer(name("attn"), t, heads * head_dim);
        self.b.op(Op::Attention {
            qkv,
            heads,
            head_dim,
            scale: scale as f32,
            window: None,
            bias: None,
            output,
        });
        let sum = self.linear(
            &name("attn.proj"),
            output,
            layer,
            Activation::Identity,
            Some((x.buffer, name("res1"))),
        );
        Ok(Stream {
            value: half.sum.output,
            buffer: sum,
        })
    }

    fn mlp(&mut self, block: usize, x: Stream, half: Half<'r>) -> Result<Stream, Misfit> {
        let name = |part: &str| format!("blocks.{block}.{part}");
        let normed = self.layer_norm(&name("norm2"), half.norm, x, self.t);
        let (fc2, second) = self.branch(half, x, "the second linear layer of an MLP")?;
        let gelu = self.made_by(fc2.inputs[0], fc2, "GELU (the exact form)", |k| {
            matches!(k, Kind::Gelu)
        })?;
        let fc1 = self.made_by(
            gelu.inputs[0],
            gelu,
            "the first linear layer of an MLP",
            is_linear,
        )?;
        if self.r.base(fc1.inputs[0]) != self.r.base(half.norm.output) {
            return Err(Misfit::at(
                fc1,
                "the output of the block's second LayerNorm as its input",
            ));
        }
        only_use(self.r, half.norm.output, "the first linear layer of an MLP")?;
        let first = linear_parts(fc1).expect("`made_by` found a linear layer");
        let hidden = self.linear(&name("mlp.fc1"), normed, first, Activation::Gelu, None);
        let sum = self.linear(
            &name("mlp.fc2"),
            hidden,
            second,
            Activation::Identity,
            Some((x.buffer, name("res2"))),
        );
        self.b
            .tap(format!("blocks.{block}"), self.name(half.sum.output), sum);
        Ok(Stream {
            value: half.sum.output,
            buffer: sum,
        })
    }

    /// The linear layer that ends a residual branch, with LayerScale folded in.
    fn branch(&self, half: Half<'r>, x: Stream, what: &str) -> Result<(&'r Step, Linear), Misfit> {
        let stream = self.r.base(x.value);
        let mut operands = half
            .sum
            .inputs
            .iter()
            .filter(|v| self.r.base(**v) != stream);
        let (Some(branch), None) = (operands.next(), operands.next()) else {
            return Err(Misfit::at(half.sum, "the residual stream plus a branch"));
        };
        let mut step = self.made_by(*branch, half.sum, what, |k| {
            is_linear(k) || matches!(k, Kind::Scale { .. })
        })?;
        let mut gain = None;
        if let Kind::Scale { by, divide: false } = &step.kind {
            gain = channel_gain(by, self.d);
            let scaled = step;
            step = self.made_by(step.inputs[0], scaled, what, is_linear)?;
            if gain.is_none() {
                return Err(Misfit::at(scaled, "LayerScale, one factor per channel"));
            }
        }
        let mut layer = linear_parts(step).ok_or_else(|| Misfit::at(step, what))?;
        if layer.bias.len() != self.d {
            return Err(Misfit::at(step, format!("{what} with {} outputs", self.d)));
        }
        for (i, gain) in gain.into_iter().flatten().enumerate() {
            layer.bias[i] *= gain;
            layer.weight[i * layer.k..][..layer.k]
                .iter_mut()
                .for_each(|w| *w *= gain);
        }
        Ok((step, layer))
    }

    /// Where one of q, k and v comes from; `turned` if it is `[heads, d, t]`.
    fn projection(
        &self,
        which: &str,
        norm: &Step,
        value: ValueId,
        size: [usize; 3],
        turned: bool,
    ) -> Result<Projection<'r>, Misfit> {
        let [heads, t, d] = size;
        let trace = Trace::new(self.r, value);
        let layer = self.expect(
            &trace,
            &format!("a linear layer that makes {which}"),
            is_linear,
        )?;
        if self.r.base(layer.inputs[0]) != self.r.base(norm.output) {
            return Err(Misfit::at(
                layer,
                "the output of the block's first LayerNorm as its input",
            ));
        }
        let side = |i| {
            if turned {
                i == [heads, d, t]
            } else {
                i == [heads, t, d]
            }
        };
        let shape = self.r.shape(value);
        let shaped = match *shape {
            [.., a, b] => side([element_count(shape).unwrap_or(0) / (a * b).max(1), a, b]),
            _ => false,
        };
        let at = |h, n, c| match turned {
            true => (h * d + c) * t + n,
            false => (h * t + n) * d + c,
        };
        let outputs = self.r.shape(layer.output).last().copied().unwrap_or(0);
        let columns = trace.columns(size, outputs, at).filter(|_| shaped);
        let columns = columns.ok_or_else(|| {
            Misfit::at(
                layer,
                format!("{which} of {heads} heads, {t} tokens, {d} channels, row by row"),
            )
        })?;
        Ok(Projection {
            layer,
            columns,
            scale: trace.scale,
        })
    }

    /// Nothing but q, k and v reads the LayerNorm.
    fn only_projections(&self, norm: &Step, parts: &[&Projection<'_>]) -> Result<(), Misfit> {
        let known = |step: &&Step| parts.iter().any(|p| p.layer.output == step.output);
        match self
            .r
            .uses(norm.output)
            .into_iter()
            .find(|step| !known(step))
        {
            Some(step) => Err(Misfit::at(
                step,
                "q, k and v as the only readers of this LayerNorm",
            )),
            None => Ok(()),
        }
    }

    /// q, k and v as one layer, in the canonical order.
    fn qkv(&mut self, name: &str, input: BufferId, parts: &[Projection<'_>]) -> BufferId {
        let mut qkv = Linear {
            weight: Vec::new(),
            bias: Vec::new(),
            k: self.d,
        };
        for part in parts {
            let layer = linear_parts(part.layer).expect("a projection is a linear layer");
            for column in &part.columns {
                qkv.weight
                    .extend_from_slice(&layer.weight[column * layer.k..][..layer.k]);
                qkv.bias.push(layer.bias[*column]);
            }
        }
        self.linear(name, input, qkv, Activation::Identity, None)
    }

    // ---- head ----

    /// Final LayerNorm and choice of the class token, in either order, and the
    /// classifier. LayerNorm works row by row, so both orders are equal.
    fn head(&mut self, x: Stream) -> Result<(), Misfit> {
        let expected = "a final LayerNorm, the choice of one token, and a linear classifier";
        let mut index: Vec<u32> = (0..(self.t * self.d) as u32).collect();
        let (mut norm, mut value) = (None, x.value);
        let classifier = loop {
            let step = only_use(self.r, value, expected)?;
            match &step.kind {
                Kind::View(view) => {
                    index = view.indexes().iter().map(|i| index[*i as usize]).collect();
                }
                Kind::LayerNorm { .. } if norm.is_none() => norm = Some(step),
                Kind::Linear { .. } => break step,
                _ => return Err(Misfit::at(step, expected)),
            }
            value = step.output;
        };
        let (Some(norm), Some(token)) = (norm, self.one_row(&index)) else {
            return Err(Misfit::at(classifier, expected));
        };
        let logits = self.r.folded.graph.outputs[0];
        if let Some(step) = self.r.uses(classifier.output).first() {
            return Err(Misfit::at(
                step,
                "the end of the graph after the classifier",
            ));
        }
        if self.r.base(logits) != self.r.base(classifier.output) {
            return Err(Misfit::at(
                classifier,
                "the classifier's output as the graph's first output",
            ));
        }
        let output = self.b.buffer("class_token", 1, self.d);
        self.b.op(Op::SelectToken {
            input: x.buffer,
            token,
            output,
        });
        let selected = Stream {
            value: x.value,
            buffer: output,
        };
        let normed = self.layer_norm("norm", norm, selected, 1);
        let layer = linear_parts(classifier).expect("the loop ended on a linear layer");
        self.named_linear("head", "logits", normed, layer, Activation::Identity, None);
        Ok(())
    }

    /// Which token's channels these are, in order.
    fn one_row(&self, index: &[u32]) -> Option<usize> {
        let first = *index.first()? as usize;
        let run = index
            .iter()
            .enumerate()
            .all(|(i, j)| *j as usize == first + i);
        (run && index.len() == self.d && first.is_multiple_of(self.d)).then_some(first / self.d)
    }

    // ---- shared ----

    fn name(&self, value: ValueId) -> &'r str {
        &self.r.folded.graph.value(value).name
    }

    /// The step a trace ends at, if it is of the kind asked for.
    fn expect(
        &self,
        trace: &Trace,
        expected: &str,
        kind: impl Fn(&Kind) -> bool,
    ) -> Result<&'r Step, Misfit> {
        match self.r.source(trace.source) {
            Some(step) if kind(&step.kind) => Ok(step),
            Some(step) => Err(Misfit::at(step, expected)),
            None => Err(Misfit::nowhere(format!(
                "the picture is read where {expected} was expected"
            ))),
        }
    }

    /// The step that makes `value`, unmoved, if it is of the kind asked for.
    fn made_by(
        &self,
        value: ValueId,
        reader: &Step,
        expected: &str,
        kind: impl Fn(&Kind) -> bool,
    ) -> Result<&'r Step, Misfit> {
        match self.r.source(value) {
            Some(step) if kind(&step.kind) => Ok(step),
            Some(step) => Err(Misfit::at(step, expected)),
            None => Err(Misfit::at(reader, expected)),
        }
    }

    fn layer_norm(&mut self, name: &str, step: &Step, input: Stream, rows: usize) -> BufferId {
        let Kind::LayerNorm { gamma, beta, eps } = &step.kind else {
            unreachable!("callers pass a LayerNorm");
        };
        let gamma = vector(gamma.as_ref(), self.d, 1.0);
        let beta = vector(beta.as_ref(), self.d, 0.0);
        let gamma = self.b.vector(format!("{name}.gamma"), gamma);
        let beta = self.b.vector(format!("{name}.beta"), beta);
        let output = self.b.buffer(name, rows, self.d);
        self.b.op(Op::LayerNorm {
            input: input.buffer,
            gamma,
            beta,
            eps: *eps,
            output,
        });
        output
    }

    /// Adds a layer whose output is named after it, or after the residual sum.
    fn linear(
        &mut self,
        name: &str,
        input: BufferId,
        layer: Linear,
        activation: Activation,
        residual: Option<(BufferId, String)>,
    ) -> BufferId {
        let (residual, buffer) = match residual {
            Some((residual, buffer)) => (Some(residual), buffer),
            None => (None, name.to_owned()),
        };
        self.named_linear(name, &buffer, input, layer, activation, residual)
    }

    fn named_linear(
        &mut self,
        name: &str,
        buffer: &str,
        input: BufferId,
        layer: Linear,
        activation: Activation,
        residual: Option<BufferId>,
    ) -> BufferId {
        let rows = if name == "head" { 1 } else { self.t };
        let output = self.b.buffer(buffer, rows, layer.bias.len());
        let weight = self
            .b
            .weight(format!("{name}.weight"), layer.k, layer.weight);
        let bias: TensorId = self.b.vector(format!("{name}.bias"), layer.bias);
        self.b.op(Op::Linear {
            input,
            weight,
            bias,
            activation,
            residual,
            output,
        });
        output
    }
}

impl Tokens {
    fn moved(&self, view: &View) -> Option<Tokens> {
        let indexes = view.indexes();
        Some(Tokens {
            index: indexes.iter().map(|i| self.index[*i as usize]).collect(),
            offset: indexes.iter().map(|i| self.offset[*i as usize]).collect(),
        })
    }

    /// `by` added to a value of this shape.
    fn plus(&self, by: &Tensor, shape: &[usize]) -> Option<Tokens> {
        let from = View::broadcast(&by.shape, shape)?.indexes();
        let by = by.floats()?;
        let sums = self
            .offset
            .iter()
            .zip(from)
            .map(|(o, i)| o + by[i as usize]);
        Some(Tokens {
            index: self.index.clone(),
            offset: sums.collect(),
        })
    }

    /// Constants put before or after, as whole tokens.
    fn beside(&self, reduced: &Reduced<'_>, concat: &Step) -> Option<Tokens> {
        let node = reduced.node(concat);
        let [1, _, _] = *reduced.shape(concat.output) else {
            return None;
        };
        if !matches!(node.int("axis"), Some(1 | -2)) {
            return None;
        }
        let mut all = Tokens {
            index: Vec::new(),
            offset: Vec::new(),
        };
        for id in node.inputs.iter().flatten() {
            match reduced.folded.constant(*id) {
                Some(constant) => {
                    let values = constant.floats()?;
                    all.index
                        .extend(std::iter::repeat_n(CONSTANT, values.len()));
                    all.offset.extend_from_slice(values);
                }
                None => {
                    all.index.extend(&self.index);
                    all.offset.extend(&self.offset);
                }
            }
        }
        Some(all)
    }
}

fn is_product(kind: &Kind) -> bool {
    matches!(kind, Kind::Product)
}

fn is_softmax(kind: &Kind) -> bool {
    matches!(kind, Kind::Softmax)
}

fn is_linear(kind: &Kind) -> bool {
    matches!(kind, Kind::Linear { .. })
}

/// A vector, or `default` `len` times if it is missing.
fn vector(tensor: Option<&Arc<Tensor>>, len: usize, default: f32) -> Vec<f32> {
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
fn linear_parts(step: &Step) -> Option<Linear> {
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

/// A convolution's `(channel, y, x)` row as `(y, x, channel)`.
fn by_pixel(row: &[f32], [h, w]: [usize; 2]) -> Vec<f32> {
    let from = |i: usize| row[i % 3 * h * w + i / 3];
    (0..row.len()).map(from).collect()
}

/// For column `j` of attention's output in the graph, the canonical column
/// (head after head) it is. `None` if tokens are mixed.
fn merged_order(merged: &Trace, [heads, t, d]: [usize; 3]) -> Option<Vec<usize>> {
    let cols = heads * d;
    if merged.index.len() != t * cols {
        return None;
    }
    let mut order = Vec::with_capacity(cols);
    for j in 0..cols {
        let from = merged.index[j] as usize; // (head * t + 0) * d + channel
        let (head, channel) = (from / (t * d), from % d);
        let same = |n: usize| merged.index[n * cols + j] as usize == (head * t + n) * d + channel;
        if !(0..t).all(same) {
            return None;
        }
        order.push(head * d + channel);
    }
    let mut seen = vec![false; cols];
    order.iter().for_each(|i| seen[*i] = true);
    seen.iter().all(|s| *s).then_some(order)
}

/// `row` with entry `j` moved to `order[j]`.
fn permuted(row: &[f32], order: &[usize]) -> Vec<f32> {
    let mut moved = vec![0.0; row.len()];
    for (value, to) in row.iter().zip(order) {
        moved[*to] = *value;
    }
    moved
}
