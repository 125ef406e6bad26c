//! The integer runtime's rounding, in f32.
//!
//! [`FakeQuant`] rewrites the buffers and attention of an f32 executor that
//! runs on [`fake_weights`]: codes are chosen by the same operations as in the
//! runtime, and everything downstream sees what they stand for. What stays
//! different is the rounding of long f32 sums that the runtime does exactly,
//! in integers; it moves a value across a rounding boundary now and then.

use tpvit_models::{BufferId, Codebook, Op, Program, Quantization, SoftmaxKind};

use super::plan::QuantPlan;
use crate::quantizers::softmax::quantize_row;
use crate::quantizers::uniform::round_even;
use crate::quantizers::weight;
use crate::reference::Hook;
use crate::weights::Weights;

/// Quantizes and dequantizes activations and attention while an executor runs.
pub struct FakeQuant<'a> {
    program: &'a Program,
    quantization: &'a Quantization,
    /// By buffer; empty unless recording.
    codes: Vec<Vec<u8>>,
    recording: bool,
    octaves: Vec<f32>,
}

impl<'a> FakeQuant<'a> {
    /// A hook that applies `quantization`.
    pub fn new(program: &'a Program, quantization: &'a Quantization) -> Self {
        FakeQuant {
            program,
            quantization,
            codes: vec![Vec::new(); program.buffers.len()],
            recording: false,
            octaves: Vec::new(),
        }
    }

    /// The same, which also remembers the codes of every coded buffer.
    pub fn recording(program: &'a Program, quantization: &'a Quantization) -> Self {
        FakeQuant {
            recording: true,
            ..FakeQuant::new(program, quantization)
        }
    }

    /// Codes of a buffer in the last run, `[rows, cols]`; empty if it is not
    /// coded or nothing was recorded.
    pub fn codes(&self, id: BufferId) -> &[u8] {
        &self.codes[id.index()]
    }

    /// Channels of a buffer.
    pub(super) fn cols(&self, id: BufferId) -> usize {
        self.program.buffers[id.index()].cols
    }
}

impl Hook for FakeQuant<'_> {
    fn buffer(&mut self, _op: usize, id: BufferId, values: &mut [f32]) {
        let Some(quant) = &self.quantization.activations[id.index()] else {
            return;
        };
        let cols = self.cols(id);
        let last = f32::from(quant.grid_bits().max_code());
        let levels = quant.codebook.as_ref().map(levels);
        let scales: Vec<f32> = (0..cols).map(|c| quant.scale_at(c)).collect();
        let zeros: Vec<f32> = (0..cols).map(|c| quant.zero_point_at(c).into()).collect();
        let inverses: Vec<f32> = scales.iter().map(|s| 1.0 / s).collect();
        let codes = &mut self.codes[id.index()];
        codes.clear();
        for row in values.chunks_exact_mut(cols) {
            for (col, x) in row.iter_mut().enumerate() {
                let zero = zeros[col];
                *x = round_even((*x * inverses[col]).clamp(-zero, last - zero));
                if let Some(levels) = &levels {
                    *x = levels[(*x + zero) as usize] - zero;
                }
            }
            if self.recording {
                codes.extend(row.iter().zip(&zeros).map(|(q, z)| (q + z) as u8));
            }
            for (x, scale) in row.iter_mut().zip(&scales) {
                *x *= scale;
            }
        }
    }

    fn scores(&mut self, op: usize, head: usize, scores: &mut [f32]) -> bool {
        let Some(quant) = &self.quantization.softmax[op] else {
            return false;
        };
        let tokens = scores.len().isqrt();
        self.octaves.resize(tokens, 0.0);
        for row in scores.chunks_exact_mut(tokens) {
            score_octaves(quant.kind, row, &mut self.octaves);
            quantize_row(quant, head, &self.octaves, row, None);
        }
        true
    }
}

/// The level of each code of the grid.
fn levels(codebook: &Codebook) -> [f32; 256] {
    std::array::from_fn(|fine| codebook.snap(fine as u8).into())
}

/// `t = (max - x) * log2(e)`, and for static codes `+ log2(sum of 2^-t)`.
fn score_octaves(kind: SoftmaxKind, scores: &[f32], octaves: &mut [f32]) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for (t, &x) in octaves.iter_mut().zip(scores) {
        *t = (max - x) * std::f32::consts::LOG2_E;
    }
    match kind {
        SoftmaxKind::RowMax => {}
        SoftmaxKind::Static => {
            let sum: f32 = octaves.iter().map(|t| (-t).exp2()).sum();
            let offset = sum.log2();
            for t in octaves {
                *t += offset;
            }
        }
    }
}

/// The weights that the codes of `plan` stand for, and position biases in whole
/// units of the integer scores they are added to; everything else as it is.
///
/// `weights` are those that `plan` left behind. Where a layer's input has one
/// scale per column, the codes hold `w * diag(s)`; it is divided out again, so
/// the result always multiplies real values.
///
/// # Panics
/// If the plan is for another program.
pub fn fake_weights(program: &Program, weights: &Weights, plan: &QuantPlan) -> Weights {
    let mut fake = weights.clone();
    for op in &program.ops {
        if let Some(id) = op.weight() {
            fake.tensors[id.index()] = fake_weight(op, plan);
        }
        round_bias(op, &plan.quantization, &mut fake);
    }
    fake
}

/// Rounds the position bias of an attention to multiples of `s_q s_k scale`, as the
/// runtime does.
fn round_bias(op: &Op, quantization: &Quantization, weights: &mut Weights) {
    let Op::Attention {
        qkv,
        heads,
        head_dim,
        scale,
        bias: Some(bias),
        ..
    } = *op
    else {
        return;
    };
    let quant = quantization.activations[qkv.index()].as_ref();
    let quant = quant.expect("a plan has every coded buffer");
    let bias = &mut weights.tensors[bias.index()];
    let entries = bias.len() / heads;
    for (head, bias) in bias.chunks_exact_mut(entries).enumerate() {
        let [q, k] = [head, heads + head].map(|h| quant.scale_at(h * head_dim));
        round_to_scores(bias, [q, k, scale]);
    }
}

/// Rounds the position bias of a head to multiples of what an integer score counts,
/// the product of `scales`: of q, of k, and of the scores.
pub(crate) fn round_to_scores(bias: &mut [f32], scales: [f32; 3]) {
    let unit: f64 = scales.into_iter().map(f64::from).product();
    for b in bias {
        *b = ((f64::from(*b) / unit).round_ties_even() * unit) as f32;
    }
}

/// The same for the weight of one operation.
///
/// # Panics
/// If it has none.
pub(super) fn fake_weight(op: &Op, plan: &QuantPlan) -> Vec<f32> {
    let id = op.weight().expect("an operation with a weight");
    let quant = plan.weights[id.index()].as_ref();
    let mut fake = weight::dequantize(quant.expect("a plan has every weight"));
    unfold(&mut fake, op, plan);
    fake
}

/// Divides the scales of its input out of the weight of `op`, where its codes
/// contain them: the inverse of [`folded_weight`](super::folded_weight).
pub(crate) fn unfold(weight: &mut [f32], op: &Op, plan: &QuantPlan) {
    let Op::Linear { input, .. } = *op else {
        return;
    };
    let input = plan.quantization.activations[input.index()].as_ref();
    if let Some(input) = input.filter(|q| q.scale.len() > 1) {
        for (w, s) in weight.iter_mut().zip(input.scale.iter().cycle()) {
            *w /= s;
        }
    }
}
