//! Chooses the weights' codes so that their errors cancel in each layer's output.
//!
//! ```text
//! pictures ─▶ quantized network ─▶ H = sum of weight[t] x_t x_t^T of each layer's input
//!                                    │
//! plan's grids + float weights ──────┴─▶ gptq ─▶ codes     kept where they help (held-back pictures)
//! ```
//!
//! A smaller error of a layer does not always mean a better network: the class
//! token is one of two hundred tokens, and the only one the classifier looks at.
//! So its rows count [`Compensation::class_weight`] times, rows that nothing reads
//! count nothing, and each group of layers keeps its new codes only if the network's
//! output comes closer to the float network's on pictures that were held back.

use std::convert::Infallible;

use rayon::prelude::*;
use tpvit_models::{BufferId, Op, Program, TensorId, WeightQuant};

use super::fake_quant::{FakeQuant, fake_weights};
use super::judge::{Judge, split};
use super::plan::{QuantPlan, correct_bias, folded_weight};
use crate::quantizers::{gptq, weight};
use crate::reference::{Executor, Hook, MatMut, MatRef, matmul, run_many};
use crate::weights::Weights;

/// Dampings tried for each group of layers.
const DAMPINGS: usize = 3;

/// How to compensate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compensation {
    /// How often a row of the class token counts, against once for others.
    pub class_weight: f32,
    /// What may be added to the diagonal of the second moments, in parts of its
    /// mean; each is tried. The more, the closer to plain rounding.
    pub dampings: [f64; DAMPINGS],
}

impl Default for Compensation {
    fn default() -> Self {
        Compensation {
            class_weight: 20.0,
            dampings: [0.01, 0.1, 1.0],
        }
    }
}

/// Layers that are judged together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LayerGroup {
    /// The patch embedding.
    PatchEmbedding,
    /// Layers that read a LayerNorm: qkv and fc1.
    Normed,
    /// Layers that read attention's output: its projection.
    Projection,
    /// Layers that read another layer: fc2.
    Hidden,
    /// The last one.
    Classifier,
}

impl LayerGroup {
    /// What the layers are called in tables.
    pub fn name(self) -> &'static str {
        match self {
            LayerGroup::PatchEmbedding => "patch embedding",
            LayerGroup::Normed => "qkv and fc1",
            LayerGroup::Projection => "attention projection",
            LayerGroup::Hidden => "fc2",
            LayerGroup::Classifier => "classifier",
        }
    }
}

/// What became of one group of layers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// The layers.
    pub group: LayerGroup,
    /// Mean [`result_distance`](super::result_distance) of the held-back pictures
    /// from the float network, with plain rounding of this group.
    pub rounded: f64,
    /// The same with the best compensated codes.
    pub compensated: f64,
    /// Their damping.
    pub damping: f64,
}

impl Decision {
    /// Whether the compensated codes were taken.
    pub fn kept(&self) -> bool {
        self.compensated < self.rounded
    }
}

/// One layer with a weight.
struct Layer {
    op: usize,
    group: LayerGroup,
    weight: TensorId,
    bias: TensorId,
    /// `None` for pixels.
    input: Option<BufferId>,
}

/// Replaces the codes of `plan` where that brings the network closer to float.
///
/// `weights` are those that `plan` left behind; the patch embedding's bias
/// follows its codes. `picture(i)` is calibration picture `i` of `count`,
/// called in parallel. `progress` gets the number of pictures run, of
/// [`steps`]. The result does not depend on the number of threads.
///
/// # Panics
/// If a picture is missing or of the wrong size.
pub fn compensate(
    program: &Program,
    weights: &mut Weights,
    plan: &mut QuantPlan,
    picture: &(dyn Fn(usize) -> Option<Vec<f32>> + Sync),
    count: usize,
    settings: &Compensation,
    progress: &mut dyn FnMut(usize),
) -> Vec<Decision> {
    let (judges, teachers) = split(count);
    let mut done = 0;
    let mut advance = |pictures: usize| {
        done += pictures;
        progress(done);
    };
    let layers = layers(program);
    let moments = second_moments(
        program,
        weights,
        plan,
        &layers,
        picture,
        &teachers,
        settings,
        &mut advance,
    );

    let images: Vec<Vec<f32>> = judges
        .par_iter()
        .map(|&i| picture(i).expect("a picture that was there before"))
        .collect();
    let judge = Judge::new(program, (program, weights), images);
    advance(judges.len());
    let mut judge = |weights: &Weights, plan: &QuantPlan| {
        let distance = judge.distance(weights, plan);
        advance(judges.len());
        distance
    };

    let mut current = judge(weights, plan);
    let mut decisions = Vec::new();
    for group in groups(&layers) {
        let mut decision = Decision {
            group,
            rounded: current,
            compensated: f64::INFINITY,
            damping: f64::NAN,
        };
        let before = (weights.clone(), plan.clone());
        for damping in settings.dampings {
            let (mut new_weights, mut new_plan) = before.clone();
            for (layer, second) in layers
                .iter()
                .zip(&moments)
                .filter(|(l, _)| l.group == group)
            {
                round(
                    program,
                    layer,
                    second,
                    damping,
                    &mut new_weights,
                    &mut new_plan,
                );
            }
            let compensated = judge(&new_weights, &new_plan);
            if compensated < decision.compensated {
                decision.compensated = compensated;
                decision.damping = damping;
                if decision.kept() {
                    (*weights, *plan) = (new_weights, new_plan);
                }
            }
        }
        current = current.min(decision.compensated);
        decisions.push(decision);
    }
    decisions
}

/// Pictures that [`compensate`] runs for `count` calibration pictures.
pub fn steps(program: &Program, count: usize) -> usize {
    let (judges, teachers) = split(count);
    let groups = groups(&layers(program)).len();
    teachers.len() + judges.len() * (2 + DAMPINGS * groups)
}

/// The groups there are, each once, in order.
fn groups(layers: &[Layer]) -> Vec<LayerGroup> {
    let mut groups: Vec<LayerGroup> = layers.iter().map(|l| l.group).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

fn layers(program: &Program) -> Vec<Layer> {
    let group = |op: usize, input: BufferId| {
        if op + 1 == program.ops.len() {
            return LayerGroup::Classifier;
        }
        let writer = program.ops.iter().find(|op| op.output() == input);
        match writer.expect("a valid program writes what it reads") {
            Op::LayerNorm { .. } => LayerGroup::Normed,
            Op::Attention { .. } => LayerGroup::Projection,
            Op::PatchEmbed { .. }
            | Op::Linear { .. }
            | Op::HeadNorm { .. }
            | Op::Gate { .. }
            | Op::SelectToken { .. }
            | Op::Pool { .. }
            | Op::PatchMerge { .. } => LayerGroup::Hidden,
        }
    };
    let layer = |(index, op): (usize, &Op)| match *op {
        Op::PatchEmbed { weight, bias, .. } => Some(Layer {
            op: index,
            group: LayerGroup::PatchEmbedding,
            weight,
            bias,
            input: None,
        }),
        Op::Linear {
            input,
            weight,
            bias,
            ..
        } => Some(Layer {
            op: index,
            group: group(index, input),
            weight,
            bias,
            input: Some(input),
        }),
        Op::LayerNorm { .. }
        | Op::Attention { .. }
        | Op::HeadNorm { .. }
        | Op::Gate { .. }
        | Op::SelectToken { .. }
        | Op::Pool { .. }
        | Op::PatchMerge { .. } => None,
    };
    program.ops.iter().enumerate().filter_map(layer).collect()
}

/// Sums over the tokens of a layer's input.
struct Second {
    /// `[k, k]`
    products: Vec<f32>,
    /// `[k]`
    sums: Vec<f64>,
    weight: f64,
}

/// Second moments of each layer's input, as the quantized network sees it.
#[expect(clippy::too_many_arguments, reason = "one pass over everything")]
fn second_moments(
    program: &Program,
    weights: &Weights,
    plan: &QuantPlan,
    layers: &[Layer],
    picture: &(dyn Fn(usize) -> Option<Vec<f32>> + Sync),
    teachers: &[usize],
    settings: &Compensation,
    advance: &mut dyn FnMut(usize),
) -> Vec<Second> {
    let fake = fake_weights(program, weights, plan);
    let rows = row_weights(program, layers, settings.class_weight);
    let mut sums: Vec<Second> = layers
        .iter()
        .map(|layer| {
            let k = program.tensors[layer.weight.index()].cols;
            Second {
                products: vec![0.0; k * k],
                sums: vec![0.0; k],
                weight: 0.0,
            }
        })
        .collect();
    let run = |_, executor: &mut Executor<'_>, image: &[f32]| {
        let mut keep = Keep {
            inner: FakeQuant::new(program, &plan.quantization),
            buffers: vec![Vec::new(); program.buffers.len()],
            wanted: layers.iter().filter_map(|l| l.input).collect(),
        };
        executor.run(image, &mut keep);
        let mut inputs = Vec::with_capacity(layers.len());
        for layer in layers {
            inputs.push(match layer.input {
                Some(id) => std::mem::take(&mut keep.buffers[id.index()]),
                None => executor.patches().to_vec(),
            });
        }
        Ok::<_, Infallible>(inputs)
    };
    // Picture after picture, every sum has one order, whatever the threads.
    let add = |_, inputs: Vec<Vec<f32>>| {
        sums.par_iter_mut()
            .zip(&inputs)
            .zip(&rows)
            .for_each(|((sum, inputs), rows)| sum.add(inputs, rows));
        advance(1);
        Ok(())
    };
    let load = |i: usize| Ok(picture(teachers[i]).expect("a picture that was there before"));
    let Ok(()) = run_many(program, &fake, teachers.len(), load, run, add);
    sums
}

impl Second {
    /// Adds rows of inputs, `[rows, k]`, row r counting `weights[r]` times.
    fn add(&mut self, inputs: &[f32], weights: &[f32]) {
        let k = self.sums.len();
        let used: Vec<usize> = (0..weights.len()).filter(|&r| weights[r] > 0.0).collect();
        // Transposed: both operands of the product then run along the tokens.
        let mut columns = vec![0.0; k * used.len()];
        for (t, &r) in used.iter().enumerate() {
            let root = weights[r].sqrt();
            for (c, &x) in inputs[r * k..][..k].iter().enumerate() {
                columns[c * used.len() + t] = root * x;
                self.sums[c] += f64::from(weights[r] * x);
            }
            self.weight += f64::from(weights[r]);
        }
        let columns = MatRef::dense(&columns, k, used.len());
        let out = MatMut::dense(&mut self.products, k, k);
        matmul(1.0, columns, columns.transpose(), 1.0, out);
    }

    /// About the mean: for a layer whose bias takes the mean error out.
    fn centred(&self) -> Vec<f32> {
        let k = self.sums.len();
        let mean: Vec<f64> = self.sums.iter().map(|s| s / self.weight).collect();
        let mut out = self.products.clone();
        for (i, row) in out.chunks_exact_mut(k).enumerate() {
            for (x, m) in row.iter_mut().zip(&mean) {
                *x = (f64::from(*x) - self.sums[i] * m) as f32;
            }
        }
        out
    }
}

/// Quantizes buffers and keeps those that linear layers read.
struct Keep<'a> {
    inner: FakeQuant<'a>,
    buffers: Vec<Vec<f32>>,
    wanted: Vec<BufferId>,
}

impl Hook for Keep<'_> {
    fn buffer(&mut self, op: usize, id: BufferId, values: &mut [f32]) {
        self.inner.buffer(op, id, values);
        if self.wanted.contains(&id) {
            self.buffers[id.index()] = values.to_vec();
        }
    }

    fn scores(&mut self, op: usize, head: usize, scores: &mut [f32]) -> bool {
        self.inner.scores(op, head, scores)
    }
}

/// How often each row of each layer's input counts.
fn row_weights(program: &Program, layers: &[Layer], class_weight: f32) -> Vec<Vec<f32>> {
    let class = program.class_token();
    let needed = program.needed_rows();
    let weights = |layer: &Layer| {
        let Some(input) = layer.input else {
            let op = &program.ops[layer.op];
            let Op::PatchEmbed { prefix, output, .. } = *op else {
                unreachable!("only a patch embedding has no input");
            };
            let prefix = prefix.map_or(0, |p| program.tensors[p.index()].rows);
            return vec![1.0; program.buffers[output.index()].rows - prefix];
        };
        let rows = program.buffers[input.index()].rows;
        let needed = &needed[layer.op];
        let weight = |r: usize| match class {
            _ if !needed.contains(&r) => 0.0,
            Some(class) if class == r => class_weight,
            Some(_) | None => 1.0,
        };
        (0..rows).map(weight).collect()
    };
    layers.iter().map(weights).collect()
}

/// New codes for one layer.
fn round(
    program: &Program,
    layer: &Layer,
    second: &Second,
    damping: f64,
    weights: &mut Weights,
    plan: &mut QuantPlan,
) {
    let id = layer.weight.index();
    let k = program.tensors[id].cols;
    let old: &WeightQuant = plan.weights[id].as_ref().expect("a plan has every weight");
    let target = folded_weight(&weights.tensors[id], &program.ops[layer.op], plan);
    let mut moments = match layer.input {
        Some(_) => second.products.clone(),
        None => second.centred(),
    };
    let scales = layer
        .input
        .and_then(|input| plan.quantization.activations[input.index()].as_ref())
        .map_or(&[][..], |quant| &quant.scale);
    if scales.len() > 1 {
        // The codes hold w * diag(s), and meet x / s.
        for (row, s) in moments.chunks_exact_mut(k).zip(scales) {
            row.iter_mut().zip(scales).for_each(|(x, t)| *x /= s * t);
        }
    }
    let Some(factored) = gptq::Moments::factor(&moments, k, damping) else {
        return;
    };
    let new = factored.round(&target, old);
    if layer.input.is_none() {
        let mean: Vec<f64> = second.sums.iter().map(|s| s / second.weight).collect();
        let bias = &mut weights.tensors[layer.bias.index()];
        correct_bias(bias, &weight::dequantize(old), &new, &mean);
    }
    plan.notes[layer.op].push("weights compensate each other's errors".into());
    plan.weights[id] = Some(new);
}
