//! How much each element of a unit's output matters to the network's answer:
//! average perturbation Hessians, as APHQ-ViT has them (Wu et al. 2025,
//! arXiv:2504.02508).
//!
//! ```text
//! y' = y + d,  d = +-e at random          g = gradient of KL(softmax(z) | softmax(z')) at y'
//! h = mean of d * g / e^2                  the diagonal of the Hessian at y
//! ```
//!
//! At y itself the gradient is zero, so that one pass at y' is enough. The mean
//! is over pictures, and over the tokens that the classifier does not look at by
//! name: these are alike, and one number for each channel is estimated better
//! than one for each channel of each token.

use rayon::prelude::*;
use tpvit_models::Program;

use super::Task;
use super::network::{Grads, Network, Tape, View};
use super::train::{Term, divergence};
use super::units::Unit;
use crate::calibration::mix;

/// Whether elements of a unit's output count alike in its loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Importance {
    /// They do.
    Alike,
    /// By the average perturbation Hessian.
    Perturbation,
}

/// Pictures looked at.
const PICTURES: usize = 32;

/// Size of a perturbation, in root mean squares of the unit's output.
const SIZE: f32 = 0.05;

/// Least importance, of the mean. What is estimated as nothing, or less, still
/// has to stay where later layers expect it.
const LEAST: f64 = 0.05;

/// Importances of `unit`'s output `[rows, cols]`, scaled so that the spread
/// of the output weighs as much with them as without.
pub(super) fn importance(task: &Task<'_>, teacher: &View, unit: &Unit) -> Vec<f32> {
    let program = task.program;
    let buffer = &program.buffers[unit.output.index()];
    let (rows, cols) = (buffer.rows, buffer.cols);
    let named = program.class_token().filter(|_| rows > 1);
    let pictures: Vec<usize> = task.teachers.iter().copied().take(PICTURES).collect();
    let sums = pictures.par_iter().map(|&picture| {
        let (d, g, y) = perturb(task, teacher, unit, picture);
        // By channel: of the named token, of the others; then mean and spread.
        let mut sums = vec![0.0f64; 4 * cols];
        for (r, ((d, g), y)) in d
            .chunks_exact(cols)
            .zip(g.chunks_exact(cols))
            .zip(y.chunks_exact(cols))
            .enumerate()
        {
            let group = usize::from(named != Some(r));
            for c in 0..cols {
                sums[group * cols + c] += f64::from(g[c]) / f64::from(d[c]);
                sums[2 * cols + c] += f64::from(y[c]);
                sums[3 * cols + c] += f64::from(y[c]).powi(2);
            }
        }
        sums
    });
    let sums: Vec<Vec<f64>> = sums.collect();
    let total = sums.iter().fold(vec![0.0; 4 * cols], |mut total, sums| {
        total.iter_mut().zip(sums).for_each(|(t, s)| *t += s);
        total
    });
    let count = pictures.len() as f64;
    let others = (rows - usize::from(named.is_some())).max(1) as f64;
    let of = |group: usize, c: usize| {
        total[group * cols + c] / if group == 0 { count } else { count * others }
    };
    let groups = usize::from(named.is_none())..2;
    let mean = groups
        .clone()
        .flat_map(|g| (0..cols).map(move |c| (g, c)))
        .map(|(g, c)| of(g, c).max(0.0));
    let mean = mean.sum::<f64>() / (groups.len() * cols) as f64;
    let least = LEAST * mean.max(f64::MIN_POSITIVE);
    let spread = |c: usize| {
        let n = count * rows as f64;
        let average = total[2 * cols + c] / n;
        (total[3 * cols + c] / n - average * average).max(0.0)
    };
    let row = |r: usize| usize::from(named != Some(r));
    let (mut with, mut without) = (0.0, 0.0);
    for r in 0..rows {
        for c in 0..cols {
            with += of(row(r), c).max(least) * spread(c);
            without += spread(c);
        }
    }
    let scale = if with > 0.0 { without / with } else { 1.0 };
    let at = |i: usize| (of(row(i / cols), i % cols).max(least) * scale) as f32;
    (0..rows * cols).map(at).collect()
}

/// A perturbation of the output of `unit`, the gradient there, and the output.
fn perturb(
    task: &Task<'_>,
    teacher: &View,
    unit: &Unit,
    picture: usize,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let program: &Program = task.program;
    let network = Network {
        program,
        view: teacher,
    };
    let whole = 0..program.ops.len();
    let rest = unit.ops.end..whole.end;
    let result = program.ops[whole.end - 1].output();
    let id = unit.output.index();
    let mut tape = Tape::new(program);
    network.forward(&mut tape, whole, &(task.image)(picture), None);
    let target = tape.raw[result.index()].clone();
    let y = tape.raw[id].clone();
    let squares: f64 = y.iter().map(|&y| f64::from(y).powi(2)).sum();
    let size = SIZE * ((squares / y.len() as f64).sqrt() as f32).max(1e-6);
    let sign = |i: usize| match mix(task.seed ^ ((picture as u64) << 32) ^ i as u64) >> 63 {
        0 => size,
        _ => -size,
    };
    let d: Vec<f32> = (0..y.len()).map(sign).collect();
    tape.raw[id].iter_mut().zip(&d).for_each(|(y, d)| *y += d);
    network.forward(&mut tape, rest.clone(), &[], None);
    tape.clear_grads(program, rest.clone());
    match program.classifies() {
        true => {
            divergence(&mut tape, result, &target, 1.0, 1.0);
        }
        false => {
            let rows = vec![1.0; program.buffers[result.index()].rows];
            let term = Term {
                buffer: result,
                weight: 1.0,
                rows,
                elements: Vec::new(),
            };
            term.add(&mut tape, &target, 1.0);
        }
    }
    network.backward(&mut tape, rest, None, &mut Grads::frozen(program));
    (d, std::mem::take(&mut tape.grad[id]), y)
}
