//! Reads attention: which heads, which tokens, in what order.
//!
//! Walked from the softmax upwards, q, k and v are each some tokens by some
//! outputs of a linear layer. Those index maps say all there is to know: the
//! order of q, k and v and of the heads, and for windows the roll and the
//! partition, which [`shifted_windows`](super::shifted_windows) compares with
//! Swin's. The way down to the output projection must lead every token back to
//! where it came from.

use super::error::Misfit;
use super::parts::attention_scale;
use super::reduce::{Kind, Step};
use super::shifted_windows;
use super::trace::{Blocks, Trace};
use super::walk::{
    BlockShape, Half, Linear, Stream, Walk, is_linear, is_product, is_softmax, linear_parts, vector,
};
use crate::onnx::{ValueId, element_count};
use tpvit_models::{Mlp, Window};

/// One of q, k and v.
struct Projection<'r> {
    layer: &'r Step,
    /// Tokens `[batches, n]`, and outputs of `layer` `[batches, head_dim]`.
    from: Blocks,
    scale: f64,
    norm: Option<HeadNorm>,
}

/// LayerNorm over the channels of a head.
struct HeadNorm {
    gamma: Vec<f32>,
    beta: Vec<f32>,
    eps: f32,
}

/// Matrices in a product: how many, of how many tokens, by how many channels.
#[derive(Clone, Copy)]
struct Size {
    batches: usize,
    n: usize,
    d: usize,
}

impl Size {
    fn all(self) -> [usize; 3] {
        [self.batches, self.n, self.d]
    }
}

impl<'r> Walk<'r, '_> {
    /// The first half of a block. What is known of its shape is returned; the
    /// rest is for [`Walk::mlp`].
    pub(crate) fn attention(
        &mut self,
        block: &str,
        x: Stream,
        half: Half<'r>,
        grid: Option<[usize; 2]>,
    ) -> Result<(Stream, BlockShape), Misfit> {
        let name = |part: &str| format!("{block}.{part}");
        self.layer_norm(&name("norm1"), half.norm, x.dim, |i| i);
        let mut branch = self.branch(half, x, "attention's output projection")?;
        let proj = branch.step;

        let merged = Trace::new(self.r, proj.inputs[0]);
        let product = self.expect(&merged, "the product of attention and v", is_product)?;
        let (probabilities, v) = (product.inputs[0], product.inputs[1]);
        let probabilities = Trace::new(self.r, probabilities);
        let softmax = self.expect(&probabilities, "softmax over q times k", is_softmax)?;
        let scores = Trace::with_offsets(self.r, softmax.inputs[0]);
        let qk = self.expect(&scores, "the product of q and k", is_product)?;
        let unmoved = probabilities.in_order() && probabilities.scale == 1.0 && scores.in_order();
        let [.., n, d] = *self.r.shape(qk.inputs[0]) else {
            return Err(Misfit::at(qk, "q as [heads, tokens, channels]"));
        };
        let elements = element_count(self.r.shape(qk.inputs[0])).unwrap_or(0);
        let size = Size {
            batches: elements / (n * d).max(1),
            n,
            d,
        };
        if size.batches * d == 0
            || !unmoved
            || element_count(self.r.shape(softmax.output)) != Some(size.batches * n * n)
        {
            return Err(Misfit::at(qk, "scores of tokens by tokens"));
        }
        let q = self.projection("q", half.norm, qk.inputs[0], x, size, false)?;
        let k = self.projection("k", half.norm, qk.inputs[1], x, size, true)?;
        let v = self.projection("v", half.norm, v, x, size, false)?;
        let layers = [q.layer, k.layer, v.layer];
        self.only_readers(
            half.norm,
            &layers,
            "q, k and v as the only readers of this LayerNorm",
        )?;
        if v.scale != 1.0 || merged.scale != 1.0 || v.norm.is_some() {
            return Err(Misfit::at(product, "v without a scale or a norm"));
        }

        let tokens = &q.from.rows;
        if k.from.rows != *tokens || v.from.rows != *tokens {
            let expected = "q, k and v of the same tokens in the same order";
            return Err(Misfit::at(qk, expected));
        }
        let heads = heads(tokens, n);
        let whole = size.batches.is_multiple_of(heads) && size.batches / heads * n == x.tokens;
        if !whole || !regular([&q, &k, &v], heads, size) {
            return Err(Misfit::at(
                qk,
                format!(
                    "every window's heads side by side, {} tokens in all",
                    x.tokens
                ),
            ));
        }
        let window_tokens: Vec<usize> = tokens
            .chunks_exact(heads * n)
            .flat_map(|window| &window[..n])
            .copied()
            .collect();
        let window = match grid {
            Some(grid) => {
                let window = shifted_windows::recognise(grid, n, &window_tokens);
                Some(window.map_err(|expected| Misfit::at(qk, expected))?)
            }
            None if window_tokens.iter().copied().eq(0..x.tokens) => None,
            None => {
                let expected = format!("scores of {0} by {0} tokens", x.tokens);
                return Err(Misfit::at(qk, expected));
            }
        };
        self.position_bias(&name("attn.bias"), window, heads, &scores)?;

        let order = merged_order(&merged, &branch.rows, tokens, heads, size)
            .filter(|order| order.len() == branch.layer.k)
            .ok_or_else(|| {
                let expected =
                    "each token's heads side by side, a permutation of channels, at that token";
                Misfit::at(proj, expected)
            })?;
        branch.layer.permute(&order);
        let scale = scores.scale * q.scale * k.scale;
        let qk_norm = self.head_norms(&name("attn.qk_norm"), [&q, &k])?;
        self.qkv(&name("attn.qkv"), &[q, k, v], heads * d);
        self.linear(&name("attn.proj"), branch.layer);
        let stream = Stream {
            value: half.sum.output,
            ..x
        };
        let shape = BlockShape {
            heads,
            head_dim: d,
            scale: attention_scale(scale, d),
            qk_norm,
            window,
            mlp: Mlp::Gelu,
            hidden: 0,
        };
        Ok((stream, shape))
    }

    /// Where one of q, k and v comes from; `turned` if it is `[.., d, n]`.
    fn projection(
        &self,
        which: &str,
        norm: &Step,
        value: ValueId,
        x: Stream,
        size: Size,
        turned: bool,
    ) -> Result<Projection<'r>, Misfit> {
        let Size { batches, n, d } = size;
        let expected = format!("a linear layer that makes {which}");
        let mut trace = Trace::new(self.r, value);
        let step = self.expect(&trace, &expected, |k| {
            is_linear(k) || matches!(k, Kind::LayerNorm { .. })
        })?;
        let expected = format!("{which} of {batches} heads, {n} tokens, {d} channels, row by row");
        let misfit = |step: &Step| Misfit::at(step, expected.clone());
        let shape = self.r.shape(value);
        let sides = if turned { [d, n] } else { [n, d] };
        if !shape.ends_with(&sides) {
            return Err(misfit(step));
        }
        let at = |b, i, c| match turned {
            true => (b * d + c) * n + i,
            false => (b * n + i) * d + c,
        };
        let head_norm = match &step.kind {
            Kind::LayerNorm { gamma, beta, eps } => {
                let channels = trace.blocks(size.all(), d, at);
                let channels = channels.filter(|_| self.r.shape(step.output).last() == Some(&d));
                let columns = channels.ok_or_else(|| misfit(step))?.columns;
                let (order, others) = columns.split_at(d);
                if others.chunks_exact(d).any(|head| head != order) {
                    return Err(misfit(step));
                }
                let take = |tensor, default| {
                    let values = vector(tensor, d, default);
                    order.iter().map(|c| values[*c]).collect()
                };
                let inner = Trace::new(self.r, step.inputs[0]);
                if inner.scale != 1.0 {
                    return Err(Misfit::at(step, "QK-norm of an unscaled projection"));
                }
                trace.source = inner.source;
                trace
                    .index
                    .iter_mut()
                    .for_each(|i| *i = inner.index[*i as usize]);
                Some(HeadNorm {
                    gamma: take(gamma.as_ref(), 1.0),
                    beta: take(beta.as_ref(), 0.0),
                    eps: *eps,
                })
            }
            _ => None,
        };
        let layer = self.expect(
            &trace,
            &format!("a linear layer that makes {which}"),
            is_linear,
        )?;
        let input = Trace::new(self.r, layer.inputs[0]);
        let source = self.r.source(input.source);
        if input.source != self.r.base(norm.output) || input.scale != 1.0 {
            let expected = "the output of the block's first LayerNorm as its input";
            return Err(match source.filter(|step| self.r.node(step).op == "Pad") {
                Some(pad) => self.strange(pad, expected),
                None => Misfit::at(layer, expected),
            });
        }
        let outputs = self.r.shape(layer.output).last().copied().unwrap_or(0);
        let blocks = trace.blocks(size.all(), outputs, at);
        let (Some(tokens), Some(mut from)) = (input.rows(x.dim), blocks) else {
            return Err(misfit(layer));
        };
        for row in &mut from.rows {
            *row = *tokens.get(*row).ok_or_else(|| misfit(layer))?;
        }
        Ok(Projection {
            layer,
            from,
            scale: trace.scale,
            norm: head_norm,
        })
    }

    /// What is added to the scores.
    fn position_bias(
        &mut self,
        name: &str,
        window: Option<Window>,
        heads: usize,
        scores: &Trace<'r>,
    ) -> Result<(), Misfit> {
        let offset = scores.offset.as_ref();
        let offset = offset.filter(|offset| offset.values.iter().any(|v| *v != 0.0));
        let Some(window) = window else {
            return offset.map_or(Ok(()), |offset| {
                let expected = "the product of q and k, scaled, with nothing added";
                Err(Misfit::at(offset.step, expected))
            });
        };
        let none = vec![0.0; scores.index.len()];
        let values = offset.map_or(&none, |offset| &offset.values);
        let table = shifted_windows::bias_table(&window, heads, values);
        let table = table.map_err(|expected| {
            let step = offset
                .map(|offset| offset.step)
                .or_else(|| self.r.source(scores.source));
            step.map_or_else(
                || Misfit::nowhere(expected.clone()),
                |step| Misfit::at(step, expected.clone()),
            )
        })?;
        self.parts.tensor(name.to_owned(), table);
        Ok(())
    }

    /// Norms of q and k, if there are any.
    fn head_norms(&mut self, name: &str, [q, k]: [&Projection<'_>; 2]) -> Result<bool, Misfit> {
        let (q_norm, k_norm) = match (&q.norm, &k.norm) {
            (None, None) => return Ok(false),
            (Some(q), Some(k)) if q.eps == k.eps => (q, k),
            _ => {
                let expected = "a LayerNorm of both q and k, with the same epsilon";
                return Err(Misfit::at(q.layer, expected));
            }
        };
        let both = |of: fn(&HeadNorm) -> &[f32]| [of(q_norm), of(k_norm)].concat();
        self.parts
            .tensor(format!("{name}.gamma"), both(|norm| &norm.gamma));
        self.parts
            .tensor(format!("{name}.beta"), both(|norm| &norm.beta));
        self.parts.eps(name, q_norm.eps);
        Ok(true)
    }

    /// q, k and v as one layer, in the canonical order.
    fn qkv(&mut self, name: &str, parts: &[Projection<'_>], width: usize) {
        let mut qkv = Linear {
            weight: Vec::new(),
            bias: Vec::new(),
            k: 0,
        };
        for part in parts {
            let layer = linear_parts(part.layer).expect("a projection is a linear layer");
            qkv.k = layer.k;
            qkv.extend(&layer, &part.from.columns[..width]);
        }
        self.linear(name, qkv);
    }
}

/// Matrices of the first window: those of the same tokens as the first one.
fn heads(tokens: &[usize], n: usize) -> usize {
    let first = &tokens[..n];
    let same = tokens.chunks_exact(n).take_while(|batch| *batch == first);
    same.count()
}

/// Whether every window has the heads of the first, and each its own tokens.
fn regular(parts: [&Projection<'_>; 3], heads: usize, Size { n, d, .. }: Size) -> bool {
    parts.into_iter().all(|part| {
        let mut columns = part.from.columns.chunks_exact(heads * d);
        let mut windows = part.from.rows.chunks_exact(heads * n);
        let alike = |window: &[usize]| window.chunks_exact(n).all(|head| *head == window[..n]);
        columns.all(|window| *window == part.from.columns[..heads * d]) && windows.all(alike)
    })
}

/// For column `j` of the projection's input in the graph, the canonical column
/// (head after head) it is. `None` if tokens are mixed.
///
/// `rows[t]` is the row of the projection that token `t` gets, `tokens` those of
/// each matrix of the product.
fn merged_order(
    merged: &Trace<'_>,
    rows: &[usize],
    tokens: &[usize],
    heads: usize,
    Size { n, d, .. }: Size,
) -> Option<Vec<usize>> {
    let cols = heads * d;
    if merged.index.len() != rows.len() * cols {
        return None;
    }
    let canonical = |token: usize, j: usize| {
        let from = *merged.index.get(rows[token] * cols + j)? as usize;
        let (batch, i, channel) = (from / (n * d), from / d % n, from % d);
        (tokens[batch * n + i] == token).then_some(batch % heads * d + channel)
    };
    let order: Vec<usize> = (0..cols).map(|j| canonical(0, j)).collect::<Option<_>>()?;
    let same = |token| (0..cols).all(|j| canonical(token, j) == Some(order[j]));
    let mut seen = vec![false; cols];
    order.iter().for_each(|i| seen[*i] = true);
    ((0..rows.len()).all(same) && seen.iter().all(|s| *s)).then_some(order)
}
