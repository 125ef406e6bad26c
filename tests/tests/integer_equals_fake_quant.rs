//! The integer runtime computes what fake quantization in f32 does, operation
//! by operation.
//!
//! Differences would grow from one operation to the next, so none is passed on:
//! after each operation of the f32 executor its result is compared, and then
//! replaced by what the runtime's integers stand for. Both sides of every
//! comparison start from the same numbers.
//!
//! What may differ is the rounding of f32. With `u = 2^-24`, `|fl(x) - x| <= u |x|`,
//! each operation has a bound `e` on how far its two results may be apart, given
//! where it is computed ([`Forced::bounds`]). In units of codes, with `t` the
//! executor's value over the scale,
//!
//! ```text
//! |code - zero_point - clamp(t)| <= 1/2 + e / scale
//! ```
//!
//! so a code may differ from the executor's only where `t` lies within `e` of
//! halfway between two, and only by 1 while `e < scale`. With a codebook that is so
//! of codes of its grid, and the levels must be those of such a code.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::path::Path;

use tpvit_models::{
    ActivationQuant, BitWidth, BufferId, Cell, Interpolation, Model, Op, Pooling, Preprocess,
    Program, Resize, SoftmaxCodebook, SoftmaxKind, SoftmaxMethod, TensorId, synthetic,
};
use tpvit_quantizer::calibration::{
    ActivationCode, FakeQuant, Granularity, ObserveSettings, QuantPlan, Settings, fake_weights,
};
use tpvit_quantizer::pipeline::{Job, quantize};
use tpvit_quantizer::preprocessing::read_json;
use tpvit_quantizer::reference::{Executor, Hook};
use tpvit_quantizer::weights::Weights;
use tpvit_quantizer::{import, pictures};
use tpvit_runtime::{Observer, Options, Session, View};
use tpvit_tests::{fixture, gradient, noise, zoo};

/// Half the distance from 1 to the next float.
const U: f64 = 1.0 / (1 << 24) as f64;
const LOG2_E: f64 = std::f64::consts::LOG2_E;

/// A quantized model, as a file and in f32.
struct Quantized {
    program: Program,
    bytes: Vec<u8>,
    plan: QuantPlan,
    /// What the codes of the weights stand for.
    fake: Weights,
}

impl Quantized {
    fn new(path: &Path, preprocess: Preprocess, settings: Settings, pixels: &[Vec<u8>]) -> Self {
        let mut imported = import::load(path, false).expect("the model is imported");
        imported.fold_preprocessing(preprocess.mean, preprocess.std);
        let network = (imported.program, imported.weights);
        Quantized::of_float(network, preprocess, settings, pixels)
    }

    /// Of weights that expect raw pixels.
    fn of_float(
        (program, weights): (Program, Weights),
        preprocess: Preprocess,
        settings: Settings,
        pixels: &[Vec<u8>],
    ) -> Self {
        let job = Job {
            settings,
            observe: ObserveSettings::default(),
            reconstruction: None,
            scratch: None,
            compensation: None,
            teacher: None,
            preprocess,
            labels: Vec::new(),
            source: serde_json::Value::Null,
        };
        let picture = |i: usize| pixels.get(i).map(|p| as_f32(p));
        let made = quantize(&program, weights, &picture, &job, None, &mut |_| {})
            .expect("the model is written");
        Quantized {
            fake: fake_weights(&program, &made.weights, &made.plan),
            program,
            bytes: made.bytes,
            plan: made.plan,
        }
    }

    /// Runs both on `pixels` and compares every operation.
    fn compare(&self, pixels: &[u8]) -> Tally {
        let model = Model::parse(&self.bytes).expect("a good file");
        let options = Options {
            all_rows: true,
            ..Options::default()
        };
        let mut session = Session::new(&model, &options).expect("a session");
        let mut runtime = Recorded::default();
        let run = session.run_observed(pixels, &mut runtime);
        let [rows, cols] = self.program.output_shape();
        assert_eq!(run.expect("the size fits").len(), rows * cols);
        let mut forced = Forced {
            quantized: self,
            runtime: &runtime.0,
            pixels,
            inner: FakeQuant::recording(&self.program, &self.plan.quantization),
            real: vec![Vec::new(); self.program.buffers.len()],
            heads: Vec::new(),
            tally: Tally::default(),
        };
        Executor::new(&self.program, &self.fake).run(&as_f32(pixels), &mut forced);
        forced.tally
    }

    fn tensor(&self, id: TensorId) -> &[f32] {
        &self.fake.tensors[id.index()]
    }
}

fn as_f32(pixels: &[u8]) -> Vec<f32> {
    pixels.iter().map(|&p| f32::from(p)).collect()
}

/// What the runtime wrote, by operation; nothing of a patch merge, which the
/// LayerNorm behind it does.
#[derive(Default)]
struct Recorded(Vec<Option<Output>>);

enum Output {
    Codes(Vec<u8>),
    Floats(Vec<f32>),
}

impl Observer for Recorded {
    fn after(&mut self, op: usize, _: BufferId, _: Range<usize>, view: View<'_>) {
        assert!(
            op >= self.0.len(),
            "one output for each operation, in order"
        );
        self.0.resize_with(op, || None);
        self.0.push(Some(match view {
            View::Codes(codes) => Output::Codes(codes.to_vec()),
            View::Floats(floats) => Output::Floats(floats.to_vec()),
        }));
    }
}

/// What one head of one cell adds to the bound of attention's output.
struct Head {
    /// By query: the keys whose code may be another one, and by how much the
    /// multipliers of the codes that they may have differ.
    uncertain: Vec<Vec<(usize, f64)>>,
    /// By query: the least that the sum of the multipliers may be.
    least_sum: Vec<f64>,
    /// `sum over j of p_ij |v_jd|`, `[t, head_dim]`.
    magnitude: Vec<f64>,
}

/// What was compared.
#[derive(Clone, Copy, Default, Debug)]
struct Tally {
    codes: usize,
    different: usize,
    /// Sum over the codes of `min(1, e / scale)`.
    expected: f64,
    /// The same for attention's outputs, a part of the codes.
    attention_codes: usize,
    attention_expected: f64,
    floats: usize,
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        self.codes += other.codes;
        self.different += other.different;
        self.expected += other.expected;
        self.attention_codes += other.attention_codes;
        self.attention_expected += other.attention_expected;
        self.floats += other.floats;
    }

    /// The bounds must be small, or nothing was compared: a wrong scale, zero
    /// point, bias or head moves codes by tenths and more. What is largest is
    /// GELU at 8 bits: its polynomials are good to 5e-7, which is much for a
    /// channel that is nearly silent and has a small scale.
    #[track_caller]
    fn check(&self, name: &str) {
        println!("{name}: {self:?}");
        assert!(self.codes > 1000 && self.floats > 1000, "{name}: {self:?}");
        let plain = self.codes - self.attention_codes;
        let mean = (self.expected - self.attention_expected) / plain as f64;
        assert!(mean < 0.1, "{name}: mean bound {mean} of layers");
        let mean = self.attention_expected / self.attention_codes as f64;
        assert!(mean < 0.05, "{name}: mean bound {mean} of attention");
    }
}

/// Fake quantization whose every result becomes the runtime's, once compared.
struct Forced<'a> {
    quantized: &'a Quantized,
    runtime: &'a [Option<Output>],
    pixels: &'a [u8],
    inner: FakeQuant<'a>,
    /// By buffer: what the runtime's numbers stand for.
    real: Vec<Vec<f32>>,
    /// Of the attention under way.
    heads: Vec<Head>,
    tally: Tally,
}

impl Hook for Forced<'_> {
    fn scores(&mut self, op: usize, head: usize, scores: &mut [f32]) -> bool {
        let mut bound = self.uncertain_codes(op, head, scores);
        assert!(
            self.inner.scores(op, head, scores),
            "attention is quantized"
        );
        bound.magnitude = self.value_magnitude(op, head, scores);
        self.heads.push(bound);
        true
    }

    fn buffer(&mut self, op: usize, id: BufferId, values: &mut [f32]) {
        let bounds = self.bounds(op, values);
        let before = values.to_vec();
        self.inner.buffer(op, id, values);
        let quant = &self.quantized.plan.quantization.activations[id.index()];
        let cols = self.quantized.program.buffers[id.index()].cols;
        match (&self.runtime[op], quant) {
            (Some(Output::Codes(codes)), Some(quant)) => {
                self.compare_codes(op, codes, quant, &before, &bounds);
                for (i, (value, code)) in values.iter_mut().zip(codes).enumerate() {
                    let zero = quant.zero_point_at(i % cols);
                    let steps = f32::from(*code) - f32::from(zero);
                    *value = steps * quant.scale_at(i % cols);
                }
            }
            (Some(Output::Floats(floats)), None) => {
                self.compare_floats(op, floats, &before, &bounds);
                values.copy_from_slice(floats);
            }
            (None, _) => assert!(matches!(self.op(op), Op::PatchMerge { .. })),
            (Some(Output::Codes(_)), None) | (Some(Output::Floats(_)), Some(_)) => {
                panic!("operation {op}: codes on one side, floats on the other")
            }
        }
        self.real[id.index()] = values.to_vec();
        self.heads.clear();
    }
}

impl Forced<'_> {
    fn op(&self, op: usize) -> &Op {
        &self.quantized.program.ops[op]
    }

    fn name(&self, op: usize) -> &str {
        let id = self.op(op).output();
        &self.quantized.program.buffers[id.index()].name
    }

    /// Where `t` lies between two codes is as good as random, so two values
    /// `e` apart have a tie between them with probability `e`: `expected` differ
    /// on average if every error is as large as its bound. But errors are random
    /// walks of roundings, of which the bounds are three deviations and more, and
    /// whose mean size is 0.8 deviations (and with a codebook most ties are within
    /// one level): less than a third of `expected` differs,
    /// and three for small numbers; in attention three times a head's channels,
    /// since the code of one key moves all of them.
    fn compare_codes(
        &mut self,
        op: usize,
        codes: &[u8],
        quant: &ActivationQuant,
        before: &[f32],
        bounds: &[f64],
    ) {
        let id = self.op(op).output();
        let cols = self.quantized.program.buffers[id.index()].cols;
        let fake = self.inner.codes(id);
        assert_eq!(codes.len(), fake.len());
        let (attention, together) = match *self.op(op) {
            Op::Attention { head_dim, .. } => (true, head_dim as f64),
            Op::PatchEmbed { .. }
            | Op::LayerNorm { .. }
            | Op::Linear { .. }
            | Op::HeadNorm { .. }
            | Op::Gate { .. }
            | Op::SelectToken { .. }
            | Op::Pool { .. }
            | Op::PatchMerge { .. } => (false, 1.0),
        };
        let before_op = self.tally;
        for (i, (&code, &fake)) in codes.iter().zip(fake).enumerate() {
            let zero = f64::from(quant.zero_point_at(i % cols));
            let last = f64::from(quant.grid_bits().max_code());
            // Both sides multiply by the same reciprocal, rounded once.
            let inverse = f64::from(1.0 / quant.scale_at(i % cols));
            let t = f64::from(before[i]) * inverse;
            let e = bounds[i] * inverse + 2.0 * U * t.abs();
            let exact = t.clamp(-zero, last - zero) + zero;
            let near = |fine: u8| (f64::from(fine) - exact).abs() <= 0.5 + e;
            let is_right = match &quant.codebook {
                None => near(code),
                Some(codebook) => {
                    let mut fine = (0..=u8::MAX).filter(|&fine| near(fine));
                    fine.any(|fine| codebook.snap(fine) == code)
                }
            };
            assert!(
                is_right,
                "{}, element {i}: code {code} in integers, {fake} in f32 of {t}; bound {e:.2e}",
                self.name(op)
            );
            self.tally.codes += 1;
            self.tally.different += usize::from(code != fake);
            self.tally.expected += e.min(1.0);
            if attention {
                self.tally.attention_codes += 1;
                self.tally.attention_expected += e.min(1.0);
            }
        }
        let different = self.tally.different - before_op.different;
        let allowed = 3.0 * together + (self.tally.expected - before_op.expected) / 3.0;
        assert!(
            (different as f64) < allowed,
            "{}: {different} codes of {} are others",
            self.name(op),
            codes.len()
        );
    }

    fn compare_floats(&mut self, op: usize, floats: &[f32], before: &[f32], bounds: &[f64]) {
        assert_eq!(floats.len(), before.len());
        for (i, (&found, &expected)) in floats.iter().zip(before).enumerate() {
            let off = f64::from(found - expected).abs();
            assert!(
                off <= bounds[i],
                "{}, element {i}: {found} in integers, {expected} in f32; bound {:.2e}",
                self.name(op),
                bounds[i]
            );
        }
        self.tally.floats += floats.len();
    }

    /// How far the two results of an operation may be apart, by element;
    /// `out` is the executor's.
    fn bounds(&self, op: usize, out: &[f32]) -> Vec<f64> {
        let quantized = self.quantized;
        let buffer = |id: BufferId| &self.real[id.index()][..];
        match *self.op(op) {
            Op::PatchEmbed {
                patch,
                weight,
                bias,
                prefix,
                ..
            } => {
                let prefix = prefix.map_or(0, |id| quantized.tensor(id).len());
                let patches = patches(self.pixels, quantized.program.image, patch);
                let mut bounds = vec![0.0; prefix]; // copied
                let sums = self.sums(&patches, weight, bias);
                // The position is added to the sum.
                bounds.extend(sums.iter().map(|s| s.bound + U * s.size));
                for (bound, out) in bounds[prefix..].iter_mut().zip(&out[prefix..]) {
                    *bound += 2.0 * U * f64::from(out.abs());
                }
                bounds
            }
            Op::LayerNorm {
                input,
                gamma,
                beta,
                eps,
                ..
            } => {
                let (gamma, beta) = (quantized.tensor(gamma), quantized.tensor(beta));
                let rows = buffer(input).chunks_exact(gamma.len());
                rows.flat_map(|x| layer_norm_bounds(x, gamma, beta, eps))
                    .collect()
            }
            Op::Linear {
                input,
                weight,
                bias,
                activation,
                ..
            } => {
                let sums = self.sums(buffer(input), weight, bias);
                let bound = |(sum, out): (&Sum, &f32)| {
                    // A residual, where there is one, is added to the sum.
                    let added = 2.0 * U * f64::from(out.abs());
                    added
                        + match activation {
                            tpvit_models::Activation::Identity | tpvit_models::Activation::Relu => {
                                sum.bound + U * sum.size
                            }
                            // GELU's slope is below 1.13; the runtime's polynomials
                            // are good to 5e-7 * max(1, |x|), the executor's erf better.
                            tpvit_models::Activation::Gelu => {
                                1.13 * sum.bound + 5e-7 * sum.size.max(1.0)
                            }
                        }
                };
                sums.iter().zip(out).map(bound).collect()
            }
            Op::Attention {
                qkv,
                heads,
                head_dim,
                ..
            } => self.attention_bounds(op, buffer(qkv), [heads, head_dim], out),
            Op::HeadNorm {
                input,
                head_dim,
                gamma,
                beta,
                eps,
                ..
            } => {
                let affine = [gamma, beta].map(|id| quantized.tensor(id));
                let cols = quantized.program.buffers[input.index()].cols;
                let rows = buffer(input).chunks_exact(cols);
                rows.flat_map(|x| head_norm_bounds(x, head_dim, affine, eps))
                    .collect()
            }
            Op::Gate { input, output } => {
                let h = quantized.program.buffers[output.index()].cols;
                let rows = buffer(input).chunks_exact(2 * h);
                rows.flat_map(|x| gate_bounds(&x[..h], &x[h..])).collect()
            }
            // Sums of f32 here and of f64 there, divided.
            Op::Pool {
                input,
                first,
                count,
                pool: Pooling::Mean,
                ..
            } => {
                let d = out.len();
                let rows = &buffer(input)[first * d..][..count * d];
                let size = |c: usize| rows.iter().skip(c).step_by(d).map(|v| f64::from(v.abs()));
                let roundings = (count + 2) as f64 * U;
                (0..d)
                    .map(|c| roundings * size(c).sum::<f64>() / count as f64)
                    .collect()
            }
            Op::SelectToken { .. } | Op::Pool { .. } | Op::PatchMerge { .. } => {
                vec![0.0; out.len()] // copied
            }
        }
    }

    /// The sums of a linear layer. The executor rounds each product at most
    /// four times (input, weight twice, product) and each of `k` additions; the
    /// runtime's sum is exact, and then rounded when it becomes a float, by the
    /// scale, its multiplication and the bias:
    ///
    /// ```text
    /// e = (k + 8) u (sum over k of |x w| + |bias|)              always
    /// e = 8 sqrt(k + 8) u (sum over k of |x w| + |bias|)        all but surely
    /// ```
    ///
    /// The second holds with probability `1 - 2 (k + 8) exp(-8^2 / 2)` for
    /// independent roundings (Higham and Mary 2019, doi:10.1137/18M1226312,
    /// theorem 2.4): of the millions of sums here, one in 10^4 runs breaks it.
    fn sums(&self, input: &[f32], weight: TensorId, bias: TensorId) -> Vec<Sum> {
        let cols = self.quantized.program.tensors[weight.index()].cols;
        let (weight, bias) = (self.quantized.tensor(weight), self.quantized.tensor(bias));
        let roundings = (cols + 8) as f64;
        let roundings = roundings.min(8.0 * roundings.sqrt());
        let sum = |x: &[f32], w: &[f32], bias: f32| {
            // Good to a few parts in a thousand, which is enough for a bound.
            let products = x.iter().zip(w).map(|(x, w)| x * w);
            let (mut value, mut size) = ([0_f32; 8], [0_f32; 8]);
            for (i, p) in products.enumerate() {
                value[i % 8] += p;
                size[i % 8] += p.abs();
            }
            let size = 1.001 * f64::from(size.iter().sum::<f32>() + bias.abs());
            let bound = roundings * U * size;
            Sum {
                size: f64::from(value.iter().sum::<f32>() + bias).abs() + bound,
                bound,
            }
        };
        input
            .chunks_exact(cols)
            .flat_map(|x| {
                let rows = weight.chunks_exact(cols).zip(bias);
                rows.map(move |(w, &b)| sum(x, w, b))
            })
            .collect()
    }

    /// One head of q, k or v (`part` 0, 1, 2): each token's channels, how many,
    /// and what scores are multiplied by.
    fn part<'s>(
        &'s self,
        op: usize,
        part: usize,
        head: usize,
    ) -> (impl Fn(usize) -> &'s [f32], usize, f64) {
        let Op::Attention {
            qkv,
            heads,
            head_dim,
            scale,
            ..
        } = *self.op(op)
        else {
            panic!("operation {op} is no attention");
        };
        let qkv = &self.real[qkv.index()];
        let d = heads * head_dim;
        let start = part * d + head * head_dim;
        // Cells come one after the other, each with all its heads.
        let rows = self.cells(op).swap_remove(self.heads.len() / heads);
        let row = move |i: usize| &qkv[rows[i] * 3 * d + start..][..head_dim];
        (row, head_dim, f64::from(scale))
    }

    /// The tokens of each cell of an attention.
    fn cells(&self, op: usize) -> Vec<Vec<usize>> {
        let Op::Attention { qkv, window, .. } = *self.op(op) else {
            panic!("operation {op} is no attention");
        };
        match window {
            None => vec![(0..self.quantized.program.buffers[qkv.index()].rows).collect()],
            Some(window) => {
                let rows = |cell: Cell| cell.rows(window.grid[1]).collect();
                window.cells().map(rows).collect()
            }
        }
    }

    /// The largest position bias of a head.
    fn largest_bias(&self, op: usize, head: usize) -> f64 {
        let Op::Attention { heads, bias, .. } = *self.op(op) else {
            panic!("operation {op} is no attention");
        };
        let bias = bias.map_or(&[][..], |id| self.quantized.tensor(id));
        let entries = bias.len() / heads;
        let own = bias[head * entries..][..entries].iter();
        own.map(|b| f64::from(b.abs())).fold(0.0, f64::max)
    }

    /// Which codes of a head may be others in integers, where `t`, in octaves,
    /// lies near a threshold.
    ///
    /// The executor's score is a sum as in [`Forced::sums`], so `t`, from two of
    /// them, is off by `2 log2(e) (head_dim + 8) u (sum |q k| scale + |bias|)`, and by
    /// four roundings of its own; the bias is a whole number of the runtime's units. The runtime compares row-maximum codes exactly.
    /// Static codes add log2 of the softmax denominator Z on both sides:
    ///
    /// - the executor's: n terms as exact as their `t` (the error of a mean of
    ///   `t` again), `n + 6` roundings of the sum, over ln 2;
    /// - the runtime's: terms good to 2e-7 plus two roundings of `t`, where
    ///   `t 2^-t < 1`; the logarithm to 1e-6; the result is a multiple of 1/64
    ///   score step.
    fn uncertain_codes(&self, op: usize, head: usize, scores: &[f32]) -> Head {
        let quant = self.quantized.plan.quantization.softmax[op]
            .as_ref()
            .expect("attention is quantized");
        let (q, head_dim, scale) = self.part(op, 0, head);
        let (k, ..) = self.part(op, 1, head);
        let tokens = (scores.len() as f64).sqrt() as usize;
        let n = tokens as f64;
        let step = self.score_step(op, head);
        let bias = self.largest_bias(op, head);
        let mut found = Head {
            uncertain: Vec::new(),
            least_sum: Vec::new(),
            magnitude: Vec::new(),
        };
        for (i, row) in scores.chunks_exact(tokens).enumerate() {
            let size = |j: usize| {
                let products = q(i).iter().zip(k(j)).map(|(q, k)| f64::from(q * k).abs());
                products.sum::<f64>() * scale
            };
            let largest = (0..tokens).map(size).fold(0.0, f64::max) + bias;
            let score_error = (head_dim + 8) as f64 * U * largest;
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let below = |x: f32| f64::from(max - x) * LOG2_E;
            let (offset, offset_error) = match quant.kind {
                SoftmaxKind::RowMax => (0.0, 0.0),
                SoftmaxKind::Static => {
                    let z: f64 = row.iter().map(|&x| (-below(x)).exp2()).sum();
                    let executor = 2.0 * LOG2_E * score_error + (n + 6.0) * U * LOG2_E;
                    let runtime = n * (2e-7 + 2.0 * U) * LOG2_E / z + 1e-6 + step / 128.0;
                    (z.log2(), executor + runtime)
                }
            };
            let mut uncertain = Vec::new();
            let mut least_sum = 0.0;
            for (j, &x) in row.iter().enumerate() {
                let t = below(x) + offset;
                let e = 2.0 * LOG2_E * score_error + 4.0 * U * (t + 1.0) + offset_error;
                let [least, most] = multipliers_near(quant.codebook(head), t, e);
                least_sum += least;
                if most > least {
                    uncertain.push((j, most - least));
                }
            }
            found.uncertain.push(uncertain);
            found.least_sum.push(least_sum);
        }
        found
    }

    /// Octaves per unit of the integer score.
    fn score_step(&self, op: usize, head: usize) -> f64 {
        let Op::Attention {
            qkv,
            heads,
            head_dim,
            scale,
            ..
        } = *self.op(op)
        else {
            panic!("operation {op} is no attention");
        };
        let quant = self.quantized.plan.quantization.activations[qkv.index()]
            .as_ref()
            .expect("qkv is coded");
        let scale_of = |part: usize| f64::from(quant.scale_at((part * heads + head) * head_dim));
        scale_of(0) * scale_of(1) * f64::from(scale) * LOG2_E
    }

    /// `sum over j of p_ij |v_jd|`, `[t, head_dim]`.
    fn value_magnitude(&self, op: usize, head: usize, probabilities: &[f32]) -> Vec<f64> {
        let (v, head_dim, _) = self.part(op, 2, head);
        let tokens = (probabilities.len() as f64).sqrt() as usize;
        let mut magnitude = vec![0.0; tokens * head_dim];
        for (p, out) in probabilities
            .chunks_exact(tokens)
            .zip(magnitude.chunks_exact_mut(head_dim))
        {
            for (j, &p) in p.iter().enumerate() {
                for (out, &v) in out.iter_mut().zip(v(j)) {
                    *out += f64::from(p.abs()) * f64::from(v.abs());
                }
            }
        }
        magnitude
    }

    /// Attention's output: `n + 8` roundings of a sum over n tokens, as in
    /// [`Forced::sums`], and codes that may be others. With multipliers `m`
    /// that differ by `delta`,
    ///
    /// ```text
    /// static         scale * sum of delta_j v_j
    /// renormalised   sum of delta_j (v_j - out) / sum of the other m
    /// ```
    fn attention_bounds(
        &self,
        op: usize,
        qkv: &[f32],
        [heads, head_dim]: [usize; 2],
        out: &[f32],
    ) -> Vec<f64> {
        let cells = self.cells(op);
        let found = self.heads.len();
        assert_eq!(
            found,
            cells.len() * heads,
            "one bound for each cell and head"
        );
        let quant = self.quantized.plan.quantization.softmax[op]
            .as_ref()
            .expect("attention is quantized");
        let d = heads * head_dim;
        let bound = |cell: usize, i: usize, col: usize| {
            let (rows, head) = (&cells[cell], &self.heads[cell * heads + col / head_dim]);
            let tokens = rows.len();
            let magnitude = head.magnitude[i * head_dim + col % head_dim];
            let value = |j: usize| f64::from(qkv[rows[j] * 3 * d + 2 * d + col]);
            let out = f64::from(out[rows[i] * d + col]);
            let uncertain = head.uncertain[i].iter();
            let moved: f64 = match quant.kind {
                _ if quant.renormalise => {
                    let sum: f64 = uncertain.map(|&(j, m)| m * (value(j) - out).abs()).sum();
                    match (sum > 0.0, head.least_sum[i] > 0.0) {
                        (false, _) => 0.0,
                        (true, true) => sum / head.least_sum[i],
                        (true, false) => f64::INFINITY,
                    }
                }
                SoftmaxKind::Static => {
                    let sum: f64 = uncertain.map(|&(j, m)| m * value(j).abs()).sum();
                    f64::from(quant.codebook(col / head_dim).scale) * sum
                }
                SoftmaxKind::RowMax => panic!("row-maximum codes are renormalised"),
            };
            (tokens + 8) as f64 * U * magnitude + moved
        };
        let mut bounds = vec![0.0; out.len()];
        for (cell, rows) in cells.iter().enumerate() {
            for (i, row) in rows.iter().enumerate() {
                for col in 0..d {
                    bounds[row * d + col] = bound(cell, i, col);
                }
            }
        }
        bounds
    }
}

/// The result of a sum.
struct Sum {
    /// At most this large.
    size: f64,
    /// Known this well.
    bound: f64,
}

/// The least and the greatest multiplier of the codes of `t - e` to `t + e`.
fn multipliers_near(codebook: &SoftmaxCodebook, t: f64, e: f64) -> [f64; 2] {
    let code = |t: f64| {
        codebook
            .thresholds
            .partition_point(|&limit| t > f64::from(limit))
    };
    let near = &codebook.multipliers[code(t - e)..=code(t + e)];
    let near = near.iter().map(|&m| f64::from(m));
    near.fold([f64::INFINITY, f64::NEG_INFINITY], |[least, most], m| {
        [least.min(m), most.max(m)]
    })
}

/// One row of q, k and v; v is copied.
fn head_norm_bounds(x: &[f32], head_dim: usize, [gamma, beta]: [&[f32]; 2], eps: f32) -> Vec<f64> {
    let d = x.len() / 3;
    let part = |part: usize| {
        let [gamma, beta] = [gamma, beta].map(|a| &a[part * head_dim..][..head_dim]);
        let heads = x[part * d..][..d].chunks_exact(head_dim);
        heads.flat_map(move |x| layer_norm_bounds(x, gamma, beta, eps))
    };
    let mut bounds: Vec<f64> = part(0).chain(part(1)).collect();
    bounds.resize(x.len(), 0.0);
    bounds
}

/// `g sigmoid(g) v`: the runtime's exponential is good to 4e-7, the executor's
/// sigmoid to the last place; two products each.
fn gate_bounds(gates: &[f32], values: &[f32]) -> Vec<f64> {
    let bound = |(g, v): (&f32, &f32)| (4e-7 + 8.0 * U) * f64::from((g * v).abs());
    gates.iter().zip(values).map(bound).collect()
}

/// The executor's mean and variance are f64. The runtime adds d values in 16
/// lanes, so with `em` the error of its mean,
///
/// ```text
/// em = (d/16 + 5) u mean|x|           lanes, tree, division
/// er = (d/32 + 7) u + (em r)^2        of r = 1 / sqrt(var + eps), relative:
///                                     half of the variance's, square root, reciprocal
/// e  = |gamma| (em r + |n| (er + 6 u)) + 4 u (|gamma n| + |beta|),   n = (x - mean) r
/// ```
fn layer_norm_bounds(x: &[f32], gamma: &[f32], beta: &[f32], eps: f32) -> Vec<f64> {
    let d = x.len() as f64;
    let mean_of = |f: &dyn Fn(f64) -> f64| x.iter().map(|&x| f(x.into())).sum::<f64>() / d;
    let mean = mean_of(&|x| x);
    let r = 1.0 / (mean_of(&|x| (x - mean) * (x - mean)) + f64::from(eps)).sqrt();
    let em = (d / 16.0 + 5.0) * U * mean_of(&f64::abs);
    let er = (d / 32.0 + 7.0) * U + (em * r) * (em * r);
    let bound = |((&x, &gamma), &beta): ((&f32, &f32), &f32)| {
        let n = ((f64::from(x) - mean) * r).abs();
        let gamma = f64::from(gamma.abs());
        gamma * (em * r + n * (er + 6.0 * U)) + 4.0 * U * (gamma * n + f64::from(beta.abs()))
    };
    x.iter().zip(gamma).zip(beta).map(bound).collect()
}

/// The patches one after the other, `(y, x, channel)` each.
fn patches(pixels: &[u8], [height, width]: [usize; 2], patch: [usize; 2]) -> Vec<f32> {
    let mut patches = Vec::with_capacity(pixels.len());
    for top in (0..height).step_by(patch[0]) {
        for left in (0..width).step_by(patch[1]) {
            for y in top..top + patch[0] {
                let row = &pixels[(y * width + left) * 3..][..patch[1] * 3];
                patches.extend(row.iter().map(|&p| f32::from(p)));
            }
        }
    }
    patches
}

/// Mean and deviation 0.5; pictures come in the model's size.
const HALF: Preprocess = Preprocess {
    resize: Resize::Squash,
    interpolation: Interpolation::Bilinear,
    mean: [0.5; 3],
    std: [0.5; 3],
};

/// Quantizes a fixture and compares on two of the calibration pictures and on
/// one that calibration has not seen, which clips more.
fn compare_fixture(name: &str, settings: Settings) {
    let [w, a] = [settings.weight_bits, settings.act_bits].map(BitWidth::bits);
    let run = format!("{name} W{w}A{a} {:?}", settings.softmax.method);
    let mut pixels: Vec<Vec<u8>> = (0..8)
        .map(|seed| match seed % 2 {
            0 => gradient(seed, 32, 32).into_raw(),
            _ => noise(seed, 32, 32).into_raw(),
        })
        .collect();
    let quantized = Quantized::new(&fixture(name), HALF, settings, &pixels);
    pixels.truncate(2);
    pixels.push(vec![255; 32 * 32 * 3]);
    let mut tally = Tally::default();
    for pixels in &pixels {
        tally.add(&quantized.compare(pixels));
    }
    tally.check(&run);
}

fn settings(weight_bits: BitWidth, act_bits: BitWidth, method: SoftmaxMethod) -> Settings {
    let mut settings = Settings::new(weight_bits, act_bits);
    settings.softmax.method = method;
    settings
}

#[test]
fn every_codebook() {
    for [normed, hidden] in [
        [ActivationCode::Codebook, ActivationCode::Uniform],
        [ActivationCode::Uniform, ActivationCode::Codebook],
        [ActivationCode::Codebook, ActivationCode::ShiftedLog],
    ] {
        for (bits, per_channel) in [(BitWidth::B4, true), (BitWidth::B3, false)] {
            let mut settings = settings(bits, bits, SoftmaxMethod::RowMax);
            settings.normed_code = normed;
            settings.hidden_code = hidden;
            if !per_channel {
                settings.codebook_shrink = 1.0;
                settings.hidden = Granularity::PerTensor;
            }
            compare_fixture(VIT, settings.clone());
            compare_fixture(LAYERSCALE, settings);
        }
    }
}

const VIT: &str = "vit.opset17.onnx";
const LAYERSCALE: &str = "vit_layerscale.opset17.onnx";

#[test]
fn every_pair_of_widths() {
    let widths = [BitWidth::B8, BitWidth::B6, BitWidth::B4, BitWidth::B3];
    for w in widths {
        for a in widths {
            compare_fixture(VIT, settings(w, a, SoftmaxMethod::RowMax));
        }
    }
}

/// Mixed precision: neighbours of different widths, and attention's codes of
/// each width beside q, k and v of each.
#[test]
fn every_mixture_of_widths() {
    let widths = [BitWidth::B8, BitWidth::B6, BitWidth::B4, BitWidth::B3];
    let program = import::load(fixture(VIT), false).expect("a model").program;
    for shift in 0..16 {
        let method = SoftmaxMethod::ALL[shift % SoftmaxMethod::ALL.len()];
        let mut settings = settings(BitWidth::B8, BitWidth::B8, method);
        for (index, op) in program.ops.iter().enumerate() {
            let mixed = &mut settings.widths;
            mixed.outputs.insert(index, widths[(index + shift) % 4]);
            mixed
                .weights
                .insert(index, widths[(2 * index + shift / 4) % 4]);
            if let Op::Attention { qkv, .. } = *op {
                let writer = program.ops.iter().position(|op| op.output() == qkv);
                mixed
                    .outputs
                    .insert(writer.expect("a writer"), widths[shift % 4]);
                mixed.attention.insert(index, widths[shift / 4]);
            }
        }
        compare_fixture(VIT, settings);
    }
}

#[test]
fn every_softmax_quantizer() {
    for method in SoftmaxMethod::ALL {
        for bits in [BitWidth::B8, BitWidth::B4, BitWidth::B3] {
            compare_fixture(LAYERSCALE, settings(bits, bits, method));
        }
        let mut renormalised = settings(BitWidth::B4, BitWidth::B6, method);
        renormalised.softmax.renormalise = Some(true);
        renormalised.softmax.integer_step = true;
        compare_fixture(VIT, renormalised);
    }
}

/// Codebooks that differ from head to head; methods with nothing to fit have one.
#[test]
fn every_softmax_quantizer_per_head() {
    for method in SoftmaxMethod::ALL {
        for renormalise in [None, Some(true)] {
            let mut settings = settings(BitWidth::B8, BitWidth::B8, method);
            settings.softmax.bits = Some(BitWidth::B4);
            settings.softmax.per_head = true;
            settings.softmax.renormalise = renormalise;
            compare_fixture(LAYERSCALE, settings);
        }
    }
}

#[test]
fn one_scale_for_all_and_wider_ends() {
    use tpvit_quantizer::calibration::BiasCorrection;
    let mut coarse = settings(BitWidth::B4, BitWidth::B4, SoftmaxMethod::TulqA);
    coarse.values = Granularity::PerTensor;
    coarse.attention_output = Granularity::PerTensor;
    coarse.hidden = Granularity::PerTensor;
    coarse.first_last_bits = Some(BitWidth::B8);
    coarse.bias_correction = BiasCorrection::Always;
    compare_fixture(VIT, coarse.clone());
    coarse.values = Granularity::PerHead;
    coarse.attention_output = Granularity::PerHead;
    compare_fixture(LAYERSCALE, coarse);
}

/// Each small program of each kind, with weights that are what a synthetic model's
/// codes stand for, on pictures of its size.
#[test]
fn every_architecture() {
    for (name, program) in synthetic::architectures() {
        let [height, width] = program.image.map(|side| side as u32);
        let pixels: Vec<Vec<u8>> = (0..8)
            .map(|seed| match seed % 2 {
                0 => gradient(seed, width, height).into_raw(),
                _ => noise(seed, width, height).into_raw(),
            })
            .collect();
        let mut tally = Tally::default();
        for (bits, method) in [
            (BitWidth::B8, SoftmaxMethod::RowMax),
            (BitWidth::B8, SoftmaxMethod::TulqA),
            (BitWidth::B4, SoftmaxMethod::RowMax),
            (BitWidth::B4, SoftmaxMethod::Log2),
            (BitWidth::B3, SoftmaxMethod::TulqZa),
        ] {
            let softmax = synthetic::row_max_softmax(BitWidth::B4);
            let data = synthetic::model(program.clone(), BitWidth::B8, BitWidth::B8, &softmax, 7);
            let network = (program.clone(), Weights::dequantize(&data.tensors));
            let settings = settings(bits, bits, method);
            let quantized = Quantized::of_float(network, RAW, settings, &pixels);
            for pixels in &pixels[..3] {
                tally.add(&quantized.compare(pixels));
            }
        }
        tally.check(name);
    }
}

/// Pixels as they are.
const RAW: Preprocess = Preprocess {
    mean: [0.0; 3],
    std: [1.0; 3],
    ..HALF
};

#[test]
fn the_model_that_ships() {
    let model = zoo("vit_ti14_cifar10.onnx");
    let size = [112, 112];
    let preprocess = read_json(&zoo("vit_ti14_cifar10.json"), size).expect("its preprocessing");
    let pixels: Vec<Vec<u8>> = ["astronaut", "cat", "coffee", "flower", "rocket", "temple"]
        .iter()
        .map(|name| {
            let path = zoo("photos").join(format!("{name}.jpg"));
            let photo = pictures::load(&path, &preprocess, size);
            photo.expect("a photograph that ships").data
        })
        .collect();
    for (bits, method) in [
        (BitWidth::B8, SoftmaxMethod::RowMax),
        (BitWidth::B4, SoftmaxMethod::TulqA),
    ] {
        let quantized = Quantized::new(&model, preprocess, settings(bits, bits, method), &pixels);
        let tally = quantized.compare(&pixels[1]);
        tally.check(&format!("vit_ti14_cifar10 {bits:?} {method:?}"));
    }
}
