//! Where the accuracy goes: the error of each operation's output.

use rayon::prelude::*;
use tpvit_models::{BufferId, Program};

use super::fake_quant::{FakeQuant, fake_weights};
use super::plan::QuantPlan;
use crate::reference::{Executor, Hook};
use crate::weights::Weights;

/// How far one operation's output is from the float network's.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerError {
    /// Index of the operation.
    pub op: usize,
    /// Name of the buffer it writes.
    pub name: String,
    /// `|y^ - y| / |y - mean y|`, the mean per channel: everything that went
    /// wrong up to here. 0 is exact, 1 is no better than the mean.
    pub accumulated: f64,
    /// The same for the rounding of this output alone; 0 where it stays f32.
    pub rounding: f64,
}

impl LayerError {
    /// Signal to noise of the accumulated error, in decibels.
    pub fn snr_db(&self) -> f64 {
        -20.0 * self.accumulated.log10()
    }
}

/// Compares the float network with the quantized one on `pictures`, worst
/// accumulated error first.
///
/// `float` are the weights that planning left behind, `weights` those that
/// belong to `plan` now: the same, or trained further. One picture tells little about
/// the classifier, whose buffers have one row: give some.
///
/// # Panics
/// If there is no picture, or one of the wrong size.
pub fn report(
    program: &Program,
    float: &Weights,
    weights: &Weights,
    plan: &QuantPlan,
    pictures: &[Vec<f32>],
) -> Vec<LayerError> {
    assert!(!pictures.is_empty(), "a report needs a picture");
    let fake = fake_weights(program, weights, plan);
    let sums = pictures.par_iter().map(|image| {
        let mut outputs = Keep::default();
        Executor::new(program, float).run(image, &mut outputs);
        let mut compare = Compare {
            inner: FakeQuant::new(program, &plan.quantization),
            float: outputs.0,
            sums: Vec::new(),
        };
        Executor::new(program, &fake).run(image, &mut compare);
        compare.sums
    });
    let sums: Vec<Vec<Sums>> = sums.collect();
    let mut layers: Vec<LayerError> = (0..program.ops.len())
        .map(|op| summarise(program, op, sums.iter().map(|s| &s[op])))
        .collect();
    layers.sort_by(|a, b| b.accumulated.total_cmp(&a.accumulated));
    layers
}

/// `KL(softmax(reference) | softmax(other))` of two vectors of logits, in nats.
pub fn kl_divergence(reference: &[f32], other: &[f32]) -> f64 {
    let (p, q) = (log_softmax(reference), log_softmax(other));
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
}

/// How far the result of a network is from the `reference`, that of the float
/// one: 0 where they are equal.
///
/// Of a classifier the divergence of its logits, [`kl_divergence`]; of features
/// the relative squared error
///
/// ```text
/// |other - reference|^2 / |reference - mean of its rows|^2       a single row: / |reference|^2
/// ```
pub fn result_distance(program: &Program, reference: &[f32], other: &[f32]) -> f64 {
    if program.classifies() {
        return kl_divergence(reference, other);
    }
    let [rows, _] = program.output_shape();
    let energy = energy(reference, &vec![1.0; rows]);
    squared_distance(reference, other) / energy.max(f64::MIN_POSITIVE)
}

/// What [`result_distance`] is called in tables.
pub fn distance_name(program: &Program) -> &'static str {
    match program.classifies() {
        true => "KL",
        false => "error",
    }
}

/// `sum over rows of weight * |y - mean y|^2` of one picture, a weight for each row.
pub(crate) fn energy(y: &[f32], rows: &[f32]) -> f64 {
    let cols = y.len() / rows.len();
    let total: f64 = rows.iter().map(|&w| f64::from(w)).sum();
    let mut sums = vec![(0.0f64, 0.0f64); cols];
    for (row, &w) in y.chunks_exact(cols).zip(rows) {
        for (s, &y) in sums.iter_mut().zip(row) {
            s.0 += f64::from(w * y);
            s.1 += f64::from(w * y) * f64::from(y);
        }
    }
    // A single row has no spread: compare with its size instead.
    let alone = rows.iter().filter(|&&w| w > 0.0).count() == 1;
    let spread = |(s, q): &(f64, f64)| if alone { *q } else { q - s * s / total };
    sums.iter().map(spread).sum()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted = logits.iter().map(|&x| f64::from(x - max));
    let sum: f64 = shifted.clone().map(f64::exp).sum();
    shifted.map(|x| x - sum.ln()).collect()
}

/// Keeps every operation's output.
#[derive(Default)]
struct Keep(Vec<Vec<f32>>);

impl Hook for Keep {
    fn buffer(&mut self, _op: usize, _id: BufferId, values: &mut [f32]) {
        self.0.push(values.to_vec());
    }
}

/// Sums over one picture and operation.
struct Sums {
    accumulated: f64,
    rounding: f64,
    /// By column: sum and sum of squares of the float output.
    moments: Vec<(f64, f64)>,
    rows: f64,
}

/// Quantizes, and compares with what the float network wrote.
struct Compare<'a> {
    inner: FakeQuant<'a>,
    float: Vec<Vec<f32>>,
    sums: Vec<Sums>,
}

impl Hook for Compare<'_> {
    fn buffer(&mut self, op: usize, id: BufferId, values: &mut [f32]) {
        let before = values.to_vec();
        self.inner.buffer(op, id, values);
        let float = &self.float[op];
        let cols = self.inner.cols(id);
        let mut moments = vec![(0.0, 0.0); cols];
        for row in float.chunks_exact(cols) {
            for (m, &y) in moments.iter_mut().zip(row) {
                m.0 += f64::from(y);
                m.1 += f64::from(y) * f64::from(y);
            }
        }
        self.sums.push(Sums {
            accumulated: squared_distance(values, float),
            rounding: squared_distance(values, &before),
            moments,
            rows: (float.len() / cols) as f64,
        });
    }

    fn scores(&mut self, op: usize, head: usize, scores: &mut [f32]) -> bool {
        self.inner.scores(op, head, scores)
    }
}

fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    let pairs = a.iter().zip(b);
    pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

fn summarise<'a>(
    program: &Program,
    op: usize,
    pictures: impl Iterator<Item = &'a Sums> + Clone,
) -> LayerError {
    let total = |of: fn(&Sums) -> f64| pictures.clone().map(of).sum::<f64>();
    let rows = total(|s| s.rows);
    let id = program.ops[op].output();
    let energy: f64 = (0..program.buffers[id.index()].cols)
        .map(|col| {
            let sum: f64 = pictures.clone().map(|s| s.moments[col].0).sum();
            let square: f64 = pictures.clone().map(|s| s.moments[col].1).sum();
            // A single row has no spread: compare with its size instead.
            if rows > 1.0 {
                square - sum * sum / rows
            } else {
                square
            }
        })
        .sum();
    let relative = |error: f64| (error / energy.max(f64::MIN_POSITIVE)).sqrt();
    LayerError {
        op,
        name: program.buffers[id.index()].name.clone(),
        accumulated: relative(total(|s| s.accumulated)),
        rounding: relative(total(|s| s.rounding)),
    }
}
