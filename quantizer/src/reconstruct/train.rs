//! Batches, losses and steps: what block-wise and joint training share.

use std::ops::Range;

use rayon::prelude::*;
use tpvit_models::{BufferId, Program};

use super::ResumeError;
use super::math;
use super::network::{Grads, Network, Tape, View};
use super::params::{Params, Rates};
use super::resume::{Reader, Writer};
use crate::calibration::mix;

/// Sums of gradients that are kept apart and then added up in order, so that
/// the result does not depend on the number of threads.
const LANES: usize = 8;

/// `weight * sum over rows of row[r] * |y^ - y|^2`, of one buffer; with
/// `elements`, each square is multiplied by its own.
#[derive(Clone, Debug)]
pub(super) struct Term {
    pub(super) buffer: BufferId,
    pub(super) weight: f32,
    /// By row of the buffer.
    pub(super) rows: Vec<f32>,
    /// `[rows, cols]`; empty where elements count alike.
    pub(super) elements: Vec<f32>,
}

impl Term {
    /// Its value for one picture; adds its gradient to `tape.grad`.
    pub(super) fn add(&self, tape: &mut Tape, target: &[f32], share: f32) -> f64 {
        let id = self.buffer.index();
        let cols = target.len() / self.rows.len();
        let mut grad = std::mem::take(&mut tape.grad[id]);
        let mut sum = 0.0f64;
        let value = tape.raw[id]
            .chunks_exact(cols)
            .zip(target.chunks_exact(cols));
        for (r, ((row, (y, target)), grad)) in self
            .rows
            .iter()
            .zip(value)
            .zip(grad.chunks_exact_mut(cols))
            .enumerate()
        {
            if *row == 0.0 {
                continue;
            }
            let factor = self.weight * row;
            let scale = 2.0 * factor * share;
            let squares = match self.elements.get(r * cols..(r + 1) * cols) {
                None => math::pull(y, target, scale, grad),
                Some(elements) => math::pull_weighted(y, target, scale, elements, grad),
            };
            sum += f64::from(factor * squares);
        }
        tape.grad[id] = grad;
        sum
    }
}

/// `weight * KL(softmax(target) | softmax(logits))` in nats.
pub(super) fn divergence(
    tape: &mut Tape,
    logits: BufferId,
    target: &[f32],
    weight: f32,
    share: f32,
) -> f64 {
    let id = logits.index();
    let (mut p, mut q) = (target.to_vec(), tape.raw[id].clone());
    math::softmax(&mut p, target.len());
    math::softmax(&mut q, target.len());
    let mut sum = 0.0;
    for (i, g) in tape.grad[id].iter_mut().enumerate() {
        *g += weight * share * (q[i] - p[i]);
        let ratio = f64::from(p[i].max(1e-30)).ln() - f64::from(q[i].max(1e-30)).ln();
        sum += f64::from(p[i]) * ratio;
    }
    f64::from(weight) * sum
}

/// One picture's place in a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    /// Which picture.
    pub(super) picture: usize,
    /// What its loss counts: one over the batch.
    pub(super) share: f32,
    /// Differs from step to step and picture to picture.
    pub(super) seed: u64,
}

/// What one lane keeps from picture to picture.
pub(super) struct Lane {
    /// Of the network that learns.
    pub(super) tape: Tape,
    /// Of the float network.
    pub(super) teacher: Tape,
    /// Sums of this lane.
    pub(super) grads: Grads,
    /// Learns nothing: for the float suffix.
    pub(super) frozen: Grads,
    loss: f64,
}

/// A network that learns.
pub(super) struct Trainer<'a> {
    program: &'a Program,
    pub(super) params: Params,
    pub(super) view: View,
    lanes: Vec<Lane>,
    seed: u64,
    batch: usize,
    taken: usize,
    order: Vec<usize>,
}

impl<'a> Trainer<'a> {
    /// Learns in the operations of `range`, from `pictures` (their numbers).
    pub(super) fn new(
        program: &'a Program,
        params: Params,
        view: View,
        range: Range<usize>,
        pictures: Vec<usize>,
        batch: usize,
        seed: u64,
    ) -> Self {
        let batch = batch.min(pictures.len()).max(1);
        let lanes = (0..LANES.min(batch)).map(|_| Lane {
            tape: Tape::new(program),
            teacher: Tape::new(program),
            grads: Grads::new(program, &view, range.clone()),
            frozen: Grads::frozen(program),
            loss: 0.0,
        });
        Trainer {
            program,
            params,
            lanes: lanes.collect(),
            view,
            seed,
            batch,
            taken: 0,
            order: pictures,
        }
    }

    /// The pictures of the next batch: a fresh order each time round.
    fn slots(&mut self, step: u32) -> Vec<Slot> {
        let count = self.order.len();
        (0..self.batch)
            .map(|i| {
                let at = self.taken % count;
                if at == 0 {
                    self.reorder(self.taken / count);
                }
                self.taken += 1;
                Slot {
                    picture: self.order[at],
                    share: 1.0 / self.batch as f32,
                    seed: mix(self.seed ^ (u64::from(step) << 20) ^ i as u64),
                }
            })
            .collect()
    }

    /// One step; returns the mean loss. `one` runs a picture forward and
    /// backward, adds to `lane.grads`, and returns its loss.
    ///
    /// # Errors
    /// Of `one`; nothing has moved then.
    pub(super) fn step<E: Send>(
        &mut self,
        step: u32,
        rates: Rates,
        decay: f32,
        one: impl Fn(&mut Lane, Network<'_>, Slot) -> Result<f64, E> + Sync,
    ) -> Result<f64, E> {
        self.params.update(self.program, &mut self.view);
        let slots = self.slots(step);
        let network = Network {
            program: self.program,
            view: &self.view,
        };
        let count = self.lanes.len();
        let lanes = self.lanes.par_iter_mut().enumerate();
        lanes.try_for_each(|(i, lane)| {
            lane.grads.all_mut().for_each(|v| v.fill(0.0));
            lane.loss = 0.0;
            for slot in slots.iter().skip(i).step_by(count) {
                lane.loss += one(lane, network, *slot)?;
            }
            Ok(())
        })?;
        let loss = self.lanes.iter().map(|l| l.loss).sum::<f64>() / slots.len() as f64;
        if loss.is_finite() {
            self.add_up();
            self.params
                .step(&mut self.view, &self.lanes[0].grads, rates, decay);
        }
        Ok(loss)
    }

    /// Everything that the next step depends on.
    pub(super) fn save(&self, out: &mut Writer) {
        out.number(self.taken as u64);
        self.params.save(&self.view, out);
    }

    /// From what [`Trainer::save`] wrote.
    pub(super) fn restore(&mut self, from: &mut Reader<'_>) -> Result<(), ResumeError> {
        let taken = usize::try_from(from.number()?).map_err(|_| ResumeError::Damaged)?;
        // The order of the round that it was in the middle of.
        if !taken.is_multiple_of(self.order.len()) {
            self.reorder(taken / self.order.len());
        }
        self.taken = taken;
        self.params.restore(&mut self.view, from)
    }

    /// The order of the pictures in round `round`.
    fn reorder(&mut self, round: usize) {
        shuffle(&mut self.order, mix(self.seed ^ round as u64));
    }

    /// The gradients of all lanes, into the first.
    fn add_up(&mut self) {
        let (first, rest) = self.lanes.split_at_mut(1);
        let rest: Vec<Vec<_>> = rest
            .iter_mut()
            .map(|l| l.grads.all_mut().collect())
            .collect();
        let sums: Vec<&mut Vec<f32>> = first[0].grads.all_mut().collect();
        sums.into_par_iter().enumerate().for_each(|(i, sum)| {
            for lane in &rest {
                math::add(sum, lane[i]);
            }
        });
    }
}

/// Fisher and Yates' shuffle.
fn shuffle(order: &mut [usize], seed: u64) {
    order.sort_unstable();
    for i in (1..order.len()).rev() {
        let other = mix(seed ^ ((i as u64) << 32)) % (i as u64 + 1);
        order.swap(i, other as usize);
    }
}

/// Up to 1 in the first twentieth, then to 0 along half a cosine.
pub(super) fn cosine(step: u32, steps: u32) -> f32 {
    let at = f64::from(step + 1) / f64::from(steps.max(1));
    let decay = 0.5 + 0.5 * (std::f64::consts::PI * at.min(1.0)).cos();
    (decay * (20.0 * at).min(1.0)) as f32
}

/// A picture for training: mirrored or not, and a part of it enlarged.
///
/// The part has `least` to 1 of the area and sides stretched by at most 4/3,
/// as in Szegedy et al. 2015, arXiv:1409.4842; bilinear, because the float
/// network that it is shown to as well need not see Pillow's pixels.
pub(super) fn augment(
    image: &[f32],
    [height, width]: [usize; 2],
    least: f32,
    seed: u64,
) -> Vec<f32> {
    let draw = |i: u64| (mix(seed ^ (i << 56)) >> 40) as f32 / (1u64 << 24) as f32;
    let mirrored = draw(1) < 0.5;
    let area = least + (1.0 - least) * draw(2);
    let stretch = ((draw(3) * 2.0 - 1.0) * (4.0f32 / 3.0).ln() * 0.5).exp();
    let side = area.sqrt();
    let part = [(side * stretch).min(1.0), (side / stretch).min(1.0)];
    let taps = |n: usize, part: f32, at: f32, mirrored: bool| -> Vec<(usize, usize, f32)> {
        let (length, n_f) = (part * n as f32, n as f32);
        let start = at * (n_f - length);
        (0..n)
            .map(|i| {
                let i = if mirrored { n - 1 - i } else { i };
                let x = start + (i as f32 + 0.5) * length / n_f - 0.5;
                let x = x.clamp(0.0, n_f - 1.0);
                let low = x as usize;
                (low, (low + 1).min(n - 1), x - low as f32)
            })
            .collect()
    };
    let rows = taps(height, part[0], draw(4), false);
    let cols = taps(width, part[1], draw(5), mirrored);
    let mut out = Vec::with_capacity(image.len());
    for &(top, bottom, down) in &rows {
        let (top, bottom) = (&image[top * width * 3..], &image[bottom * width * 3..]);
        for &(left, right, across) in &cols {
            for c in 0..3 {
                let mix = |row: &[f32]| {
                    let (a, b) = (row[left * 3 + c], row[right * 3 + c]);
                    a + across * (b - a)
                };
                let (a, b) = (mix(top), mix(bottom));
                out.push((a + down * (b - a)).round());
            }
        }
    }
    out
}
