//! A graph in a small alphabet, whatever the exporter spelled out.
//!
//! Constants are gone into the steps that use them; LayerNorm and GELU are one
//! step each, fused or decomposed; a linear layer is one step with its bias.
//! What an architecture's recogniser then matches is short, and the same for
//! every exporter and operator set. A node that is none of these is
//! [`Kind::Other`]: no recogniser accepts it, so it is what an error names.

use super::fold::Folded;
use super::view::{View, axis};
use crate::onnx::{Node, NodeId, Tensor, ValueId, element_count};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

/// What a step computes from its inputs, constants aside.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// A convolution; its attributes are on the node.
    Conv {
        weight: Arc<Tensor>,
        bias: Option<Arc<Tensor>>,
    },
    /// `x * W (+ bias)`, `W` stored `[k, n]`, or `[n, k]` if `by_output`.
    Linear {
        weight: Arc<Tensor>,
        by_output: bool,
        bias: Option<Arc<Tensor>>,
    },
    /// Over the last axis. A missing gain is one, a missing shift zero.
    LayerNorm {
        gamma: Option<Arc<Tensor>>,
        beta: Option<Arc<Tensor>>,
        eps: f32,
    },
    /// The exact form.
    Gelu,
    /// `x * sigmoid(x)`.
    Silu,
    /// Over the last axis.
    Softmax,
    /// Matrix product of two computed values.
    Product,
    /// Sum of two computed values.
    Sum,
    /// Product of two computed values, element by element.
    Times,
    /// Mean over some axes.
    Mean { axes: Vec<usize> },
    /// Times (or divided by) a constant.
    Scale { by: Arc<Tensor>, divide: bool },
    /// Plus a constant.
    Offset { by: Arc<Tensor> },
    /// Data moved; never a mere change of shape, which [`Reduced::base`] hides.
    View(View),
    /// Parts of one value put together anew, such as a cyclic roll: element `i`
    /// is element `index[i]` of the input.
    Parts { index: Arc<[u32]> },
    /// Computed values and constants side by side.
    Concat,
    /// Anything else.
    Other,
}

impl Kind {
    /// Where each element comes from, if nothing but moves is done.
    pub(crate) fn moves(&self) -> Option<Cow<'_, [u32]>> {
        match self {
            Kind::View(view) => Some(Cow::Owned(view.indexes())),
            Kind::Parts { index } => Some(Cow::Borrowed(index)),
            Kind::Conv { .. }
            | Kind::Linear { .. }
            | Kind::LayerNorm { .. }
            | Kind::Gelu
            | Kind::Silu
            | Kind::Softmax
            | Kind::Product
            | Kind::Sum
            | Kind::Times
            | Kind::Mean { .. }
            | Kind::Scale { .. }
            | Kind::Offset { .. }
            | Kind::Concat
            | Kind::Other => None,
        }
    }
}

/// One letter of the alphabet.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) node: NodeId,
    pub(crate) kind: Kind,
    /// The computed inputs.
    pub(crate) inputs: Vec<ValueId>,
    pub(crate) output: ValueId,
}

/// The steps that the first output depends on.
pub(crate) struct Reduced<'g> {
    pub(crate) folded: Folded<'g>,
    steps: Vec<Step>,
    by_output: HashMap<ValueId, usize>,
    /// For each value that is another one under a new shape, that other one.
    bases: HashMap<ValueId, ValueId>,
    uses: HashMap<ValueId, Vec<usize>>,
    live: Vec<bool>,
}

impl<'g> Reduced<'g> {
    pub(crate) fn new(folded: Folded<'g>) -> Self {
        let mut reduced = Reduced {
            folded,
            steps: Vec::new(),
            by_output: HashMap::new(),
            bases: HashMap::new(),
            uses: HashMap::new(),
            live: Vec::new(),
        };
        let graph = reduced.folded.graph;
        for (index, node) in graph.nodes.iter().enumerate() {
            for (number, output) in node.outputs.iter().enumerate() {
                let Some(output) = *output else { continue };
                if reduced.folded.constant(output).is_none() {
                    let step = reduced.step(NodeId(index), node, number, output);
                    if reduced.keeps_order(&step) {
                        let base = reduced.base(step.inputs[0]);
                        reduced.bases.insert(output, base);
                    }
                    reduced.by_output.insert(output, reduced.steps.len());
                    reduced.steps.push(step);
                }
            }
        }
        reduced.keep_live();
        reduced
    }

    /// The value whose elements `id` has, in the same order: changes of shape
    /// and copies undone.
    pub(crate) fn base(&self, id: ValueId) -> ValueId {
        self.bases.get(&id).copied().unwrap_or(id)
    }

    /// The step that computes `id` itself.
    fn maker(&self, id: ValueId) -> Option<&Step> {
        self.by_output.get(&id).map(|i| &self.steps[*i])
    }

    /// The step that computes the elements of `id`; `None` for the graph's input.
    pub(crate) fn source(&self, id: ValueId) -> Option<&Step> {
        self.maker(self.base(id))
    }

    /// The steps that read `id`, through changes of shape, in order.
    pub(crate) fn uses(&self, id: ValueId) -> Vec<&Step> {
        let uses = self.uses.get(&self.base(id));
        uses.into_iter()
            .flatten()
            .map(|i| &self.steps[*i])
            .collect()
    }

    /// The shape of a value; empty where it is not known.
    pub(crate) fn shape(&self, id: ValueId) -> &[usize] {
        self.folded.shape(id).unwrap_or(&[])
    }

    pub(crate) fn node(&self, step: &Step) -> &'g Node {
        self.folded.graph.node(step.node)
    }

    /// The first step up to `last` of which not even the shape is known.
    pub(crate) fn unknown(&self, last: NodeId) -> Option<&Step> {
        let mut steps = self.steps.iter().zip(&self.live);
        let unknown = |(step, live): &(&Step, &bool)| {
            **live && step.node.0 <= last.0 && self.folded.shape(step.output).is_none()
        };
        steps.find(unknown).map(|(step, _)| step)
    }

    /// Forgets the steps that the first output does not depend on, and indexes
    /// the uses of the others.
    fn keep_live(&mut self) {
        let mut live = vec![false; self.steps.len()];
        let mut waiting = vec![self.folded.graph.outputs[0]];
        while let Some(id) = waiting.pop() {
            if let Some(index) = self.by_output.get(&id).copied()
                && !std::mem::replace(&mut live[index], true)
            {
                waiting.extend(&self.steps[index].inputs);
            }
        }
        for index in (0..live.len()).filter(|i| live[*i]) {
            let step = &self.steps[index];
            if self.base(step.output) != step.output {
                continue; // a change of shape is nobody's use
            }
            for input in step.inputs.clone() {
                let uses = self.uses.entry(self.base(input)).or_default();
                if uses.last() != Some(&index) {
                    uses.push(index);
                }
            }
        }
        self.live = live;
    }

    /// Whether a step changes the shape and nothing else.
    fn keeps_order(&self, step: &Step) -> bool {
        let Kind::View(view) = &step.kind else {
            return false;
        };
        let len = element_count(self.shape(step.inputs[0]));
        len.is_some_and(|len| view.is_identity(len))
    }

    fn step(&self, id: NodeId, node: &Node, number: usize, output: ValueId) -> Step {
        let inputs = node.inputs.iter().flatten().copied();
        let computed = inputs.filter(|v| self.folded.constant(*v).is_none());
        let mut step = Step {
            node: id,
            kind: Kind::Other,
            inputs: computed.collect(),
            output,
        };
        if let Some(view) = self.folded.view(node, number) {
            step.kind = Kind::View(view);
            step.inputs.truncate(1);
        } else if let Some(softmax) = self.nan_guard(node) {
            step.kind = Kind::View(View::reshaped(self.shape(softmax).to_vec()));
            step.inputs = vec![softmax];
        } else if let Some((kind, inputs)) = self.classify(node) {
            step.kind = kind;
            step.inputs = inputs;
        }
        step
    }

    /// `x`, if the node is `x` with another value where it is not a number. It
    /// is one in a row of scores that is masked out whole; finite constants mask
    /// none.
    fn nan_guard(&self, node: &Node) -> Option<ValueId> {
        if node.op != "Where" || !node.domain.is_empty() {
            return None;
        }
        let x = node.input(2)?;
        let condition = self.op(node.input(0)?, "IsNaN")?;
        let softmax = self.op(x, "Softmax").is_some();
        let constant = self.folded.constant(node.input(1)?).is_some();
        (softmax && constant && self.base(condition.input(0)?) == self.base(x)).then_some(x)
    }

    /// Kind and computed inputs of a node that does more than move data.
    fn classify(&self, node: &Node) -> Option<(Kind, Vec<ValueId>)> {
        let microsoft = node.domain == "com.microsoft";
        if !(node.domain.is_empty() || microsoft && node.op == "Gelu") {
            return None;
        }
        match node.op.as_str() {
            "Conv" => self.conv(node),
            "MatMul" => self.matmul(node),
            "Gemm" => self.gemm(node),
            "LayerNormalization" => self.layer_normalization(node),
            "Gelu" => {
                let exact = matches!(node.text("approximate"), None | Some("none"));
                exact.then(|| Some((Kind::Gelu, vec![node.input(0)?])))?
            }
            "Softmax" => self.softmax(node),
            "Concat" => self.concat(node),
            "Add" => self.add(node),
            "Mul" => self
                .normalised(node)
                .or_else(|| self.gelu(node))
                .or_else(|| self.silu(node))
                .or_else(|| self.mul(node))
                .or_else(|| self.times(node)),
            "ReduceMean" | "GlobalAveragePool" => self.mean(node),
            "Div" => self.normalised(node).or_else(|| self.div(node)),
            _ => None,
        }
    }

    /// The computed and the constant operand, in either order.
    fn with_constant(&self, node: &Node) -> Option<(ValueId, &Arc<Tensor>)> {
        let (a, b) = (node.input(0)?, node.input(1)?);
        match (self.folded.constant(a), self.folded.constant(b)) {
            (None, Some(c)) => Some((a, c)),
            (Some(c), None) => Some((b, c)),
            (Some(_), Some(_)) | (None, None) => None,
        }
    }

    fn last_side(&self, id: ValueId) -> Option<usize> {
        self.folded.shape(id)?.last().copied()
    }

    /// Whether `tensor` is one float per channel of `id`.
    fn per_channel(&self, tensor: &Tensor, id: ValueId) -> bool {
        tensor
            .floats()
            .is_some_and(|v| !v.is_empty() && Some(v.len()) == self.last_side(id))
            && tensor.shape.last().is_some_and(|s| *s == tensor.data.len())
    }

    fn conv(&self, node: &Node) -> Option<(Kind, Vec<ValueId>)> {
        let weight = self.folded.constant(node.input(1)?)?.clone();
        weight.floats()?;
        let bias = match node.input(2) {
            Some(id) => Some(self.folded.constant(id)?.clone()),
            None => None,
        };
        Some((Kind::Conv { weight, bias }, vec![node.input(0)?]))
    }

    fn matmul(&self, node: &Node) -> Option<(Kind, Vec<ValueId>)> {
        let (a, b) = (node.input(0)?, node.input(1)?);
        if self.folded.constant(a).is_some() {
            return None;
        }
        let Some(weight) = self.folded.constant(b) else {
            return Some((Kind::Product, vec![a, b]));
        };
        let kind = self.linear(a, weight, false, None)?;
        Some((kind, vec![a]))
    }

    fn gemm(&self, node: &Node) -> Option<(Kind, Vec<ValueId>)> {
        let one = |name| node.float(name).unwrap_or(1.0) == 1.0;
        if node.int("transA").unwrap_or(0) != 0 || !one("alpha") || !one("beta") {
            return None;
        }
        let x = node.input(0)?;
        let weight = self.folded.constant(node.input(1)?)?;
        let bias = match node.input(2) {
            Some(id) => Some(self.folded.constant(id)?),
            None => None,
        };
        let by_output = node.int("transB").unwrap_or(0) != 0;
        Some((self.linear(x, weight, by_output, bias)?, vec![x]))
    }

    /// A linear layer, if the shapes say that it is one.
    fn linear(
        &self,
        x: ValueId,
        weight: &Arc<Tensor>,
        by_output: bool,
        bias: Option<&Arc<Tensor>>,
    ) -> Option<Kind> {
        let [.., rows, cols] = weight.shape[..] else {
            return None;
        };
        let (k, n) = if by_output {
            (cols, rows)
        } else {
            (rows, cols)
        };
        let one_matrix = rows * cols == weight.floats()?.len();
        let fits = one_matrix && k > 0 && n > 0 && self.last_side(x) == Some(k);
        let biased = bias.is_none_or(|b| b.floats().is_some_and(|v| v.len() == n));
        (fits && biased).then(|| Kind::Linear {
            weight: weight.clone(),
            by_output,
            bias: bias.cloned(),
        })
    }

    fn layer_normalization(&self, node: &Node) -> Option<(Kind, Vec<ValueId>)> {
        let x = node.input(0)?;
        let rank = self.folded.shape(x)?.len();
        let gamma = self.folded.constant(node.input(1)?)?;
        let beta = match node.input(2) {
            Some(id) => Some(self.folded.constant(id)?),
            None => None,
        };
        let last = axis(node.int("axis").unwrap_or(-1), rank)? + 1 == rank;
        let fits = |t: &Arc<Tensor>| self.per_channel(t, x);
        (last && fits(gamma) && beta.is_none_or(fits)).then(|| {
            let kind = Kind::LayerNorm {
                gamma: Some(gamma.clone()),
                beta: beta.cloned(),
                eps: node.float("epsilon").unwrap_or(1e-5),
            };
            (kind, vec![x])
        })
    }

    fn softmax(&self, node: &Node) -> Option<(Kind, Vec<ValueId>)> {
        let x = node.input(0)?;
        let rank = self.folded.shape(x)?.len();
        let default = if self.folded.graph.opset < 13 { 1 } else { -1 };
        let at = axis(node.int("axis").unwrap_or(default), rank)?;
        (at + 1 == rank).then(|| (Kind::Softmax, vec![x]))
    }

    /// Several values side by side: parts of one value, or not.
    fn concat(&self, node: &Node) -> Option<(Kind, Vec<ValueId>)> {
        if let Some((source, index)) = self.parts(node) {
            let index = index.into();
            return Some((Kind::Parts { index }, vec![source]));
        }
        let inputs = node.inputs.iter().flatten().copied();
        let computed: Vec<_> = inputs
            .filter(|v| self.folded.constant(*v).is_none())
            .collect();
        (!computed.is_empty()).then_some((Kind::Concat, computed))
    }

    /// The value that all inputs of a Concat are views of, and for each element
    /// of the output the element of that value which it is.
    fn parts(&self, node: &Node) -> Option<(ValueId, Vec<u32>)> {
        let output = self
            .folded
            .shape(node.outputs.first().copied().flatten()?)?;
        let at = axis(node.int("axis")?, output.len())?;
        let mut source = None;
        let mut parts = Vec::new(); // the elements of each, and how many make a run
        for id in &node.inputs {
            let id = (*id)?;
            let (origin, index) = self.origin(id)?;
            if *source.get_or_insert(origin) != origin {
                return None;
            }
            let run: usize = self.folded.shape(id)?[at..].iter().product();
            parts.push((index, run));
        }
        let outer: usize = output[..at].iter().product();
        let pieces = (0..outer).flat_map(|o| {
            let piece =
                move |(index, run): &'_ (Vec<u32>, usize)| index[o * run..][..*run].to_vec();
            parts.iter().flat_map(piece)
        });
        let index = pieces.collect();
        Some((source?, index))
    }

    /// The value that `id` is made of by moves alone, with the moves.
    fn origin(&self, id: ValueId) -> Option<(ValueId, Vec<u32>)> {
        if self.folded.constant(id).is_some() {
            return None;
        }
        let mut index: Vec<u32> = (0..element_count(self.folded.shape(id)?)? as u32).collect();
        let mut origin = self.base(id);
        while let Some(step) = self.maker(origin)
            && let Some(moved) = step.kind.moves()
        {
            index.iter_mut().for_each(|i| *i = moved[*i as usize]);
            origin = self.base(step.inputs[0]);
        }
        Some((origin, index))
    }

    fn mean(&self, node: &Node) -> Option<(Kind, Vec<ValueId>)> {
        let x = node.input(0)?;
        let rank = self.folded.shape(x)?.len();
        let axes = match node.op.as_str() {
            "ReduceMean" => {
                let axes = match node.ints("axes") {
                    Some(axes) => axes.to_vec(),
                    None => self.folded.constant(node.input(1)?)?.ints()?.to_vec(),
                };
                let axes = axes.iter().map(|a| axis(*a, rank));
                axes.collect::<Option<Vec<_>>>()?
            }
            _ => (2..rank).collect(),
        };
        Some((Kind::Mean { axes }, vec![x]))
    }

    fn times(&self, node: &Node) -> Option<(Kind, Vec<ValueId>)> {
        let (a, b) = (node.input(0)?, node.input(1)?);
        let computed = |id| self.folded.constant(id).is_none();
        let same = self.folded.shape(a)? == self.folded.shape(b)?;
        (same && computed(a) && computed(b)).then(|| (Kind::Times, vec![a, b]))
    }

    fn silu(&self, node: &Node) -> Option<(Kind, Vec<ValueId>)> {
        let (a, b) = (node.input(0)?, node.input(1)?);
        let gates = |x, gate| {
            let gate = self.op(gate, "Sigmoid").and_then(|node| node.input(0));
            gate.is_some_and(|of| self.base(of) == self.base(x))
        };
        let x = match (gates(a, b), gates(b, a)) {
            (true, _) => a,
            (_, true) => b,
            (false, false) => return None,
        };
        Some((Kind::Silu, vec![x]))
    }

    /// A bias, a LayerNorm's shift, a constant, or a residual sum.
    fn add(&self, node: &Node) -> Option<(Kind, Vec<ValueId>)> {
        let (a, b) = (node.input(0)?, node.input(1)?);
        let Some((x, by)) = self.with_constant(node) else {
            let same = self.folded.shape(a)? == self.folded.shape(b)?;
            return same.then(|| (Kind::Sum, vec![a, b]));
        };
        by.floats()?;
        let channels = self.per_channel(by, x);
        if let (true, Some(step)) = (channels, self.maker(x)) {
            let inputs = step.inputs.clone();
            match step.kind.clone() {
                Kind::Linear {
                    weight,
                    by_output,
                    bias: None,
                } => {
                    let bias = Some(by.clone());
                    let kind = Kind::Linear {
                        weight,
                        by_output,
                        bias,
                    };
                    return Some((kind, inputs));
                }
                Kind::LayerNorm {
                    gamma,
                    beta: None,
                    eps,
                } => {
                    let beta = Some(by.clone());
                    return Some((Kind::LayerNorm { gamma, beta, eps }, inputs));
                }
                _ => {}
            }
        }
        Some((Kind::Offset { by: by.clone() }, vec![x]))
    }

    /// A LayerNorm's gain, or a constant factor.
    fn mul(&self, node: &Node) -> Option<(Kind, Vec<ValueId>)> {
        let (x, by) = self.with_constant(node)?;
        by.floats()?;
        if self.per_channel(by, x)
            && let Some(step) = self.maker(x)
            && let Kind::LayerNorm {
                gamma: None,
                beta: None,
                eps,
            } = step.kind
        {
            let gamma = Some(by.clone());
            let kind = Kind::LayerNorm {
                gamma,
                beta: None,
                eps,
            };
            return Some((kind, step.inputs.clone()));
        }
        let kind = Kind::Scale {
            by: by.clone(),
            divide: false,
        };
        Some((kind, vec![x]))
    }

    fn div(&self, node: &Node) -> Option<(Kind, Vec<ValueId>)> {
        let x = node.input(0)?;
        let by = self.folded.constant(node.input(1)?)?.clone();
        if self.folded.constant(x).is_some() || by.floats().is_none() {
            return None;
        }
        Some((Kind::Scale { by, divide: true }, vec![x]))
    }

    /// The node that computes `id`, if it is a standard `op`.
    fn op(&self, id: ValueId, op: &str) -> Option<&'g Node> {
        let (node, _) = self.folded.graph.value(self.base(id)).producer?;
        let node = self.folded.graph.node(node);
        (node.op == op && node.domain.is_empty()).then_some(node)
    }

    fn scalar(&self, id: ValueId) -> Option<f32> {
        self.folded.constant(id)?.scalar()
    }

    /// `(x - mean) / sqrt(mean((x - mean)^2) + eps)`, the LayerNorm that
    /// exporters write out before operator set 17.
    fn normalised(&self, node: &Node) -> Option<(Kind, Vec<ValueId>)> {
        let (a, b) = (node.input(0)?, node.input(1)?);
        let (centred, root) = match node.op.as_str() {
            "Div" => (a, b),
            _ => match (self.op(a, "Reciprocal"), self.op(b, "Reciprocal")) {
                (None, Some(inverse)) => (a, inverse.input(0)?),
                (Some(inverse), None) => (b, inverse.input(0)?),
                _ => return None,
            },
        };
        let x = self.centred(centred)?;
        let (var, eps) = self.with_eps(self.square_root(root)?)?;
        let squared = self.row_mean(var)?;
        let squared = self.square(squared)?;
        (self.centred(squared)? == x).then(|| {
            let kind = Kind::LayerNorm {
                gamma: None,
                beta: None,
                eps,
            };
            (kind, vec![x])
        })
    }

    /// `x`, if `id` is `x - mean(x)`.
    fn centred(&self, id: ValueId) -> Option<ValueId> {
        let sub = self.op(id, "Sub")?;
        let x = self.base(sub.input(0)?);
        let mean = self.row_mean(sub.input(1)?)?;
        (self.base(mean) == x).then_some(x)
    }

    /// `x`, if `id` is its mean over the last axis, the axis kept.
    fn row_mean(&self, id: ValueId) -> Option<ValueId> {
        let mean = self.op(id, "ReduceMean")?;
        let x = mean.input(0)?;
        let shape = self.folded.shape(x)?;
        let mut expected = shape.to_vec();
        *expected.last_mut()? = 1;
        let axes = match mean.ints("axes") {
            Some(axes) => axes.to_vec(),
            None => self.folded.constant(mean.input(1)?)?.ints()?.to_vec(),
        };
        let last = matches!(axes[..], [a] if axis(a, shape.len()) == Some(shape.len() - 1));
        let kept = self
            .folded
            .shape(mean.outputs.first().copied().flatten()?)?
            == expected;
        (last && kept).then_some(x)
    }

    fn square(&self, id: ValueId) -> Option<ValueId> {
        if let Some(pow) = self.op(id, "Pow") {
            return (self.scalar(pow.input(1)?)? == 2.0).then_some(pow.input(0)?);
        }
        let mul = self.op(id, "Mul")?;
        let (a, b) = (mul.input(0)?, mul.input(1)?);
        (self.base(a) == self.base(b)).then_some(a)
    }

    fn square_root(&self, id: ValueId) -> Option<ValueId> {
        if let Some(pow) = self.op(id, "Pow") {
            return (self.scalar(pow.input(1)?)? == 0.5).then_some(pow.input(0)?);
        }
        self.op(id, "Sqrt")?.input(0)
    }

    fn with_eps(&self, id: ValueId) -> Option<(ValueId, f32)> {
        let (x, eps) = self.with_constant(self.op(id, "Add")?)?;
        Some((x, eps.scalar()?))
    }

    /// `x / 2 * (1 + erf(x / sqrt(2)))` in any grouping and operand order: the
    /// factors of the product are collected and their constants multiplied.
    fn gelu(&self, node: &Node) -> Option<(Kind, Vec<ValueId>)> {
        let output = node.outputs.first().copied().flatten()?;
        let (scale, factors) = self.factors(output, 0)?;
        let [a, b] = factors[..] else { return None };
        let (x, half, erf) = match (self.one_plus_erf(a), self.one_plus_erf(b)) {
            (Some((half, erf)), None) => (b, half, erf),
            (None, Some((half, erf))) => (a, half, erf),
            _ => return None,
        };
        let (inner, inner_factors) = self.factors(erf, 0)?;
        let close = |found: f64, exact: f64| (found / exact - 1.0).abs() < 1e-6;
        let exact = close(scale * half, 0.5)
            && close(inner, std::f64::consts::FRAC_1_SQRT_2)
            && inner_factors == [x];
        exact.then_some((Kind::Gelu, vec![x]))
    }

    /// `c` and `z`, if `id` is `c + c * erf(z)`.
    fn one_plus_erf(&self, id: ValueId) -> Option<(f64, ValueId)> {
        let (x, one) = self.with_constant(self.op(id, "Add")?)?;
        let one = f64::from(one.scalar()?);
        let (scale, factors) = self.factors(x, 0)?;
        let [factor] = factors[..] else { return None };
        let erf = self.op(factor, "Erf")?;
        (scale == one).then_some((one, erf.input(0)?))
    }

    /// `id` as a constant times computed factors that are no products.
    fn factors(&self, id: ValueId, depth: usize) -> Option<(f64, Vec<ValueId>)> {
        if depth > 4 {
            return None; // no spelling of GELU nests deeper
        }
        if let Some(constant) = self.folded.constant(id) {
            return Some((f64::from(constant.scalar()?), vec![]));
        }
        let id = self.base(id);
        if let Some(mul) = self.op(id, "Mul") {
            let (a, mut factors) = self.factors(mul.input(0)?, depth + 1)?;
            let (b, more) = self.factors(mul.input(1)?, depth + 1)?;
            factors.extend(more);
            return Some((a * b, factors));
        }
        if let Some(div) = self.op(id, "Div")
            && let Some(by) = self.scalar(div.input(1)?)
        {
            let (a, factors) = self.factors(div.input(0)?, depth + 1)?;
            return Some((a / f64::from(by), factors));
        }
        Some((1.0, vec![id]))
    }
}
