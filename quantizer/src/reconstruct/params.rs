//! What learns: weights, their scales, biases and LayerNorms, activation scales.
//!
//! Everything moves in units of its own, so that one learning rate fits every
//! layer and every width:
//!
//! | parameter | unit of one step of Adam |
//! |---|---|
//! | weight | the step of its row's grid |
//! | scale of a weight's row, of a buffer | relative: the logarithm learns |
//! | bias, LayerNorm, tokens, positions | the tensor's root mean square |
//!
//! # Transition weights
//! While the widths of a weight decline from `b[k-1]` to `b[k]` (TP-ViT's
//! progressive bit decline), what is multiplied is
//!
//! ```text
//! (1 - blend) * Q[b[k-1]](w) + blend * Q[b[k]](w)
//! ```
//!
//! and the gradient passes straight through to the latent `w`, weighted alike,
//! as long as it lies inside the grid or moves towards it.
//!
//! After [`Params::soften`] the codes are AdaRound's ([`super::adaround`]): what
//! learns is which way each weight is rounded, and scales of weights stay.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use rayon::prelude::*;
use tpvit_models::{BitWidth, BufferId, Op, Program, TensorRole, WeightQuant};

use super::ResumeError;
use super::adaround::{self, Anneal};
use super::math::{self, AdamStep, RowGrid};
use super::network::{Grads, Site, View, activations, coders};
use super::resume::{Reader, Writer};
use crate::calibration::{QuantPlan, folded_weight, unfold};
use crate::quantizers::weight;
use crate::weights::Weights;

/// How fast each kind of parameter learns, in its unit per step; 0 freezes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Of weights.
    pub weights: f32,
    /// Of the scales of a weight's rows.
    pub weight_scales: f32,
    /// Of biases, LayerNorms, prefix tokens and position embeddings.
    pub floats: f32,
    /// Of activation scales.
    pub activation_scales: f32,
}

/// A parameter vector with its moments.
#[derive(Clone, Debug, Default)]
struct Moments([Vec<f32>; 2]);

impl Moments {
    fn new(len: usize) -> Self {
        Moments([vec![0.0; len], vec![0.0; len]])
    }

    fn pair(&mut self) -> [&mut [f32]; 2] {
        let [m, v] = &mut self.0;
        [m, v]
    }
}

/// A grid for each row of a weight.
#[derive(Clone, Debug)]
struct RowGrids {
    bits: BitWidth,
    log_scale: Vec<f32>,
    zero_point: Vec<u8>,
}

impl RowGrids {
    fn of(quant: &WeightQuant) -> Self {
        RowGrids {
            bits: quant.bits,
            log_scale: quant.scale.iter().map(|s| s.ln()).collect(),
            zero_point: quant.zero_point.clone(),
        }
    }

    fn row(&self, n: usize) -> RowGrid {
        let zero = f32::from(self.zero_point[n]);
        RowGrid {
            scale: self.log_scale[n].exp(),
            low: -zero,
            high: f32::from(self.bits.max_code()) - zero,
        }
    }
}

/// A weight that is quantized.
#[derive(Clone, Debug)]
struct Weight {
    tensor: usize,
    cols: usize,
    /// What the codes are to stand for, `[n, k]`; times the input's scales
    /// where those are folded.
    latent: Vec<f32>,
    /// The grid the widths decline from; `None` for the latent itself.
    fine: Option<RowGrids>,
    coarse: RowGrids,
    /// AdaRound's variable of each weight, where those learn and not `latent`.
    soft: Option<Vec<f32>>,
    /// Of `soft`, or of `latent`.
    moments: Moments,
    scale_moments: Moments,
}

/// A bias, a LayerNorm's gain or shift, tokens.
#[derive(Clone, Debug)]
struct Float {
    tensor: usize,
    unit: f32,
    moments: Moments,
}

/// The scales of a buffer.
#[derive(Clone, Debug)]
struct Scales {
    buffer: usize,
    /// By column, which scale it has.
    group: Vec<usize>,
    log_scale: Vec<f32>,
    moments: Moments,
}

/// Everything that learns in a range of operations, and the [`View`] it makes.
pub(super) struct Params {
    weights: Vec<Weight>,
    floats: Vec<Float>,
    scales: Vec<Scales>,
    /// Adam's steps so far.
    steps: u32,
    blend: f32,
    anneal: Option<Anneal>,
}

/// How far a latent weight may start from its code, in steps.
const START: f32 = 0.49;

impl Params {
    /// The parameters of `range`, from where `plan` stands; `weights` are those
    /// that it left behind.
    ///
    /// Where codes are not the nearest ones (they may compensate for each
    /// other's errors), a latent weight starts as near to its float value as
    /// its code allows.
    pub(super) fn new(
        program: &Program,
        weights: &Weights,
        plan: &QuantPlan,
        range: Range<usize>,
    ) -> Self {
        let mut params = Params {
            weights: Vec::new(),
            floats: Vec::new(),
            scales: Vec::new(),
            steps: 0,
            blend: 1.0,
            anneal: None,
        };
        for op in &program.ops[range] {
            for id in op.tensors() {
                let tensor = id.index();
                match program.tensors[tensor].role {
                    TensorRole::Weight => {
                        params
                            .weights
                            .push(Weight::new(program, weights, plan, op, tensor));
                    }
                    TensorRole::Float => {
                        let values = &weights.tensors[tensor];
                        params.floats.push(Float {
                            tensor,
                            unit: root_mean_square(values).max(1e-4),
                            moments: Moments::new(values.len()),
                        });
                    }
                }
            }
            let buffer = op.output();
            if let Some(quant) = &plan.quantization.activations[buffer.index()] {
                params
                    .scales
                    .push(Scales::new(program, buffer, &quant.scale));
            }
        }
        params
    }

    /// The quantized network's view of these parameters' operations.
    pub(super) fn view(&self, program: &Program, weights: &Weights, plan: &QuantPlan) -> View {
        let quantization = &plan.quantization;
        let site = |(id, quant): (usize, &Option<_>)| {
            let buffer = BufferId(id as u16);
            // The next layer takes the scales, unless it is attention.
            let folded = program.heads(buffer).is_none();
            let quant = quant.as_ref();
            quant.map(|q| Site::new(q, program.buffers[id].cols, folded))
        };
        let coders = |(index, quant): (usize, &Option<_>)| {
            let quant = quant.as_ref();
            quant.map_or_else(Vec::new, |quant| coders(program, index, quant))
        };
        let mut tensors = vec![Vec::new(); program.tensors.len()];
        for f in &self.floats {
            tensors[f.tensor].clone_from(&weights.tensors[f.tensor]);
        }
        let mut view = View {
            tensors,
            transposed: vec![Vec::new(); program.tensors.len()],
            sites: quantization
                .activations
                .iter()
                .enumerate()
                .map(site)
                .collect(),
            coders: quantization
                .softmax
                .iter()
                .enumerate()
                .map(coders)
                .collect(),
            activations: activations(program),
        };
        self.update(program, &mut view);
        view
    }

    /// Writes weights and scales into `view`.
    pub(super) fn update(&self, program: &Program, view: &mut View) {
        let blend = self.blend;
        let made: Vec<(usize, Vec<f32>)> = self
            .weights
            .par_iter()
            .map(|w| (w.tensor, w.quantized(blend)))
            .collect();
        for (tensor, values) in made {
            view.tensors[tensor] = values;
            view.turn(program, tensor);
        }
        for s in &self.scales {
            let site = view.sites[s.buffer].as_mut().expect("a coded buffer");
            for (scale, &group) in site.scale.iter_mut().zip(&s.group) {
                *scale = s.log_scale[group].exp();
            }
            site.update();
        }
    }

    /// One step of Adam; the floats are kept in `view` itself.
    pub(super) fn step(&mut self, view: &mut View, grads: &Grads, rates: Rates, decay: f32) {
        self.steps += 1;
        let adam = |rate: f32| AdamStep::new(self.steps, rate * decay);
        let blend = self.blend;
        let push = self.anneal.and_then(Anneal::push);
        let rounding = self.anneal.map_or(0, |a| a.step) + 1;
        let rounding = AdamStep::new(rounding, rates.weights * decay);
        self.weights.par_iter_mut().for_each(|w| {
            let grad = &grads.tensors[w.tensor];
            match w.soft {
                None => w.learn(grad, blend, adam(rates.weights), adam(rates.weight_scales)),
                Some(_) => w.learn_rounding(grad, rounding, push),
            }
        });
        if let Some(anneal) = &mut self.anneal {
            anneal.step += 1;
        }
        for f in self.floats.iter_mut().filter(|_| rates.floats > 0.0) {
            let values = &mut view.tensors[f.tensor];
            adam(rates.floats).apply(f.unit, &grads.tensors[f.tensor], f.moments.pair(), values);
        }
        for s in self
            .scales
            .iter_mut()
            .filter(|_| rates.activation_scales > 0.0)
        {
            let mut grad = vec![0.0; s.log_scale.len()];
            for (&g, &group) in grads.log_scales[s.buffer].iter().zip(&s.group) {
                grad[group] += g;
            }
            adam(rates.activation_scales).apply(1.0, &grad, s.moments.pair(), &mut s.log_scale);
        }
    }

    /// How much of what is multiplied is the grid that the widths decline to.
    pub(super) fn set_blend(&mut self, blend: f32) {
        self.blend = blend;
    }

    /// From now on, for so many steps, it is learnt which way weights are rounded.
    pub(super) fn soften(&mut self, steps: u32) {
        self.anneal = Some(Anneal { step: 0, steps });
        self.weights.par_iter_mut().for_each(Weight::soften);
    }

    /// Whether that has begun.
    pub(super) fn is_soft(&self) -> bool {
        self.anneal.is_some()
    }

    /// Every weight becomes what it was decided to be.
    pub(super) fn harden(&mut self) {
        self.anneal = None;
        self.weights.par_iter_mut().for_each(|w| {
            w.latent = w.decided().into_owned();
            w.soft = None;
        });
    }

    /// Everything that learns, and what Adam remembers of it; `blend` and grids
    /// in decline are not among it: only joint training is saved midway.
    pub(super) fn save(&self, view: &View, out: &mut Writer) {
        out.number(u64::from(self.steps));
        for w in &self.weights {
            out.floats(&w.latent);
            w.soft.iter().for_each(|a| out.floats(a));
            out.floats(&w.coarse.log_scale);
            w.moments.0.iter().for_each(|m| out.floats(m));
            w.scale_moments.0.iter().for_each(|m| out.floats(m));
        }
        for f in &self.floats {
            out.floats(&view.tensors[f.tensor]);
            out.floats(&[f.unit]);
            f.moments.0.iter().for_each(|m| out.floats(m));
        }
        for s in &self.scales {
            out.floats(&s.log_scale);
            s.moments.0.iter().for_each(|m| out.floats(m));
        }
    }

    /// From what [`Params::save`] wrote.
    pub(super) fn restore(
        &mut self,
        view: &mut View,
        from: &mut Reader<'_>,
    ) -> Result<(), ResumeError> {
        self.steps = u32::try_from(from.number()?).map_err(|_| ResumeError::Damaged)?;
        if let Some(anneal) = &mut self.anneal {
            anneal.step = self.steps;
        }
        for w in &mut self.weights {
            from.floats(&mut w.latent)?;
            w.soft.iter_mut().try_for_each(|a| from.floats(a))?;
            from.floats(&mut w.coarse.log_scale)?;
            w.moments.0.iter_mut().try_for_each(|m| from.floats(m))?;
            w.scale_moments
                .0
                .iter_mut()
                .try_for_each(|m| from.floats(m))?;
        }
        for f in &mut self.floats {
            from.floats(&mut view.tensors[f.tensor])?;
            from.floats(std::slice::from_mut(&mut f.unit))?;
            f.moments.0.iter_mut().try_for_each(|m| from.floats(m))?;
        }
        for s in &mut self.scales {
            from.floats(&mut s.log_scale)?;
            s.moments.0.iter_mut().try_for_each(|m| from.floats(m))?;
        }
        Ok(())
    }

    /// By tensor, the width that a weight ends with.
    pub(super) fn widths(&self) -> BTreeMap<usize, BitWidth> {
        self.weights
            .iter()
            .map(|w| (w.tensor, w.coarse.bits))
            .collect()
    }

    /// Begins at `bits`, where that is more than a weight ends with, coming
    /// from float; `None` for float weights.
    pub(super) fn start(&mut self, bits: Option<BitWidth>) {
        self.weights.par_iter_mut().for_each(|w| {
            let first = bits.map_or(w.coarse.bits, |bits| bits.max(w.coarse.bits));
            w.search(first);
        });
    }

    /// New grids at the same widths, for float weights that have moved.
    pub(super) fn refit(&mut self) {
        self.weights.par_iter_mut().for_each(|w| {
            let quant = weight::quantize(w.coarse.bits, w.cols, &w.latent, None);
            w.coarse = RowGrids::of(&quant);
        });
    }

    /// Goes on to `bits`, though no weight below its entry in `ends`.
    pub(super) fn decline(&mut self, bits: BitWidth, ends: &BTreeMap<usize, BitWidth>) {
        self.weights.par_iter_mut().for_each(|w| {
            let next = ends.get(&w.tensor).map_or(bits, |&end| bits.max(end));
            w.fine = Some(w.coarse.clone());
            w.search(next);
        });
    }

    /// Writes codes, scales and floats into `plan` and `weights`; the latent
    /// weights as well, for whoever trains on.
    pub(super) fn store(
        &self,
        program: &Program,
        view: &View,
        weights: &mut Weights,
        plan: &mut QuantPlan,
    ) {
        for w in &self.weights {
            plan.weights[w.tensor] = Some(w.codes());
            weights.tensors[w.tensor].clone_from(&w.latent);
        }
        for f in &self.floats {
            weights.tensors[f.tensor].clone_from(&view.tensors[f.tensor]);
        }
        for s in &self.scales {
            let quant = plan.quantization.activations[s.buffer].as_mut();
            let quant = quant.expect("a coded buffer");
            let scales = quant.scale.iter_mut().zip(&s.group);
            for (scale, &group) in scales {
                *scale = s.log_scale[group].exp();
            }
        }
        for op in &program.ops {
            let ours = op
                .weight()
                .filter(|id| self.weights.iter().any(|w| w.tensor == id.index()));
            if let Some(id) = ours {
                unfold(&mut weights.tensors[id.index()], op, plan);
            }
        }
    }
}

impl Weight {
    fn new(program: &Program, weights: &Weights, plan: &QuantPlan, op: &Op, tensor: usize) -> Self {
        let quant = plan.weights[tensor]
            .as_ref()
            .expect("a plan has every weight");
        let cols = program.tensors[tensor].cols;
        let mut latent = folded_weight(&weights.tensors[tensor], op, plan);
        let coarse = RowGrids::of(quant);
        let rows = latent
            .chunks_exact_mut(cols)
            .zip(quant.codes.chunks_exact(cols));
        for (n, (row, codes)) in rows.enumerate() {
            let (scale, zero) = (quant.scale[n], f32::from(quant.zero_point[n]));
            for (w, &code) in row.iter_mut().zip(codes) {
                let code = f32::from(code) - zero;
                *w = (*w / scale).clamp(code - START, code + START) * scale;
            }
        }
        Weight {
            tensor,
            cols,
            moments: Moments::new(latent.len()),
            scale_moments: Moments::new(coarse.log_scale.len()),
            latent,
            fine: None,
            coarse,
            soft: None,
        }
    }

    fn soften(&mut self) {
        let start = |(i, w): (usize, &f32)| {
            let v = w / self.coarse.row(i / self.cols).scale;
            adaround::start(v - v.floor())
        };
        self.soft = Some(self.latent.iter().enumerate().map(start).collect());
        self.moments = Moments::new(self.latent.len());
    }

    /// The latent weights; after AdaRound, what it rounds them to.
    fn decided(&self) -> Cow<'_, [f32]> {
        let Some(soft) = &self.soft else {
            return Cow::Borrowed(&self.latent);
        };
        let mut out = self.latent.clone();
        let rows = out
            .chunks_exact_mut(self.cols)
            .zip(soft.chunks_exact(self.cols));
        for (n, (w, a)) in rows.enumerate() {
            adaround::hard_row(self.coarse.row(n), w, a);
        }
        Cow::Owned(out)
    }

    /// New grids of width `bits`, fitted to the latent weight as it is now.
    fn search(&mut self, bits: BitWidth) {
        if bits != self.coarse.bits {
            let quant = weight::quantize(bits, self.cols, &self.latent, None);
            self.coarse = RowGrids::of(&quant);
            self.scale_moments = Moments::new(self.coarse.log_scale.len());
        }
    }

    /// What is multiplied.
    fn quantized(&self, blend: f32) -> Vec<f32> {
        let mut out = vec![0.0; self.latent.len()];
        let mut other = vec![0.0; self.cols];
        let rows = self
            .latent
            .chunks_exact(self.cols)
            .zip(out.chunks_exact_mut(self.cols));
        for (n, (w, out)) in rows.enumerate() {
            if let Some(soft) = &self.soft {
                let a = &soft[n * self.cols..][..self.cols];
                adaround::soft_row(self.coarse.row(n), w, a, out);
                continue;
            }
            math::round_row(self.coarse.row(n), w, out);
            if blend < 1.0 {
                match &self.fine {
                    Some(fine) => math::round_row(fine.row(n), w, &mut other),
                    None => other.copy_from_slice(w),
                }
                math::blend(out, &other, 1.0 - blend);
            }
        }
        out
    }

    fn learn(&mut self, grad: &[f32], blend: f32, adam: AdamStep, scale_adam: AdamStep) {
        let cols = self.cols;
        let mut masked = vec![0.0; cols];
        let mut scale_grads = vec![0.0; self.coarse.log_scale.len()];
        let [m, v] = &mut self.moments.0;
        let moments = m.chunks_exact_mut(cols).zip(v.chunks_exact_mut(cols));
        let rows = self
            .latent
            .chunks_exact_mut(cols)
            .zip(grad.chunks_exact(cols));
        for (n, ((w, grad), (m, v))) in rows.zip(moments).enumerate() {
            let grid = self.coarse.row(n);
            scale_grads[n] = blend * math::row_backward(grid, blend, w, grad, &mut masked);
            adam.apply(grid.scale, &masked, [m, v], w);
        }
        let moments = self.scale_moments.pair();
        scale_adam.apply(1.0, &scale_grads, moments, &mut self.coarse.log_scale);
    }

    /// [`learn`](Self::learn) of AdaRound's variables.
    fn learn_rounding(&mut self, grad: &[f32], adam: AdamStep, push: Option<(f32, f32)>) {
        let cols = self.cols;
        let mut masked = vec![0.0; cols];
        let [m, v] = &mut self.moments.0;
        let moments = m.chunks_exact_mut(cols).zip(v.chunks_exact_mut(cols));
        let soft = self.soft.as_mut().expect("softened");
        let rows = soft.chunks_exact_mut(cols).zip(grad.chunks_exact(cols));
        for (n, ((a, grad), (m, v))) in rows.zip(moments).enumerate() {
            let (grid, w) = (self.coarse.row(n), &self.latent[n * cols..][..cols]);
            adaround::soft_backward(grid, w, a, grad, &mut masked);
            adam.apply(adaround::STEP, &masked, [m, v], a);
            if let Some(push) = push {
                adaround::regularise(a, push);
            }
        }
    }

    fn codes(&self) -> WeightQuant {
        let grids = &self.coarse;
        let affine = |n: usize| crate::quantizers::Affine {
            scale: grids.log_scale[n].exp(),
            zero_point: i32::from(grids.zero_point[n]),
        };
        let fits: Vec<_> = (0..grids.log_scale.len()).map(affine).collect();
        weight::encode(grids.bits, self.cols, &self.decided(), &fits)
    }
}

impl Scales {
    /// q and k keep one scale for each head.
    fn new(program: &Program, buffer: BufferId, scale: &[f32]) -> Self {
        let cols = program.buffers[buffer.index()].cols;
        let group: Vec<usize> = match program.heads(buffer) {
            _ if scale.len() == 1 => vec![0; cols],
            Some((heads, dim)) => {
                let shared = 2 * heads * dim;
                (0..cols)
                    .map(|c| {
                        if c < shared {
                            c / dim
                        } else {
                            2 * heads + c - shared
                        }
                    })
                    .collect()
            }
            None => (0..cols).collect(),
        };
        let mut log_scale = vec![0.0; group.iter().max().map_or(0, |last| last + 1)];
        for (c, &group) in group.iter().enumerate() {
            log_scale[group] = scale[c.min(scale.len() - 1)].ln();
        }
        Scales {
            buffer: buffer.index(),
            moments: Moments::new(log_scale.len()),
            group,
            log_scale,
        }
    }
}

fn root_mean_square(values: &[f32]) -> f32 {
    (math::dot(values, values) / values.len().max(1) as f32).sqrt()
}
