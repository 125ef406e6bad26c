//! Held-back pictures: what a choice is judged by.
//!
//! Compensation, the allocation of bits and training each try something and
//! keep it where the network as a whole comes closer to the float one, on
//! pictures that taught nothing.

use std::convert::Infallible;

use tpvit_models::Program;

use super::fake_quant::{FakeQuant, fake_weights};
use super::plan::QuantPlan;
use super::report::kl_divergence;
use crate::reference::{Executor, run_many};
use crate::weights::Weights;

/// One picture in this many is held back to judge by.
const HELD_BACK: usize = 4;

/// At most so many pictures judge; each is run some ten times.
const MOST_JUDGES: usize = 48;

/// Pictures that judge and pictures that teach; one alone does both.
pub(crate) fn split(count: usize) -> (Vec<usize>, Vec<usize>) {
    if count < 2 {
        return ((0..count).collect(), (0..count).collect());
    }
    let every = HELD_BACK.max(count / MOST_JUDGES).min(count);
    (0..count).partition(|i| i % every == every - 1)
}

/// Pictures that judge, and what the float network makes of them.
pub(crate) struct Judge<'a> {
    program: &'a Program,
    pub(super) images: Vec<Vec<f32>>,
    /// Of the float network, by picture.
    pub(super) logits: Vec<Vec<f32>>,
}

impl<'a> Judge<'a> {
    /// `float` are weights that compute what the float network does.
    pub(crate) fn new(program: &'a Program, float: &Weights, images: Vec<Vec<f32>>) -> Self {
        Judge {
            logits: logits(program, float, None, &images),
            program,
            images,
        }
    }

    /// Mean KL of the quantized network from the float one, nats.
    pub(crate) fn divergence(&self, weights: &Weights, plan: &QuantPlan) -> f64 {
        let quantized = logits(self.program, weights, Some(plan), &self.images);
        let pairs = self.logits.iter().zip(&quantized);
        pairs.map(|(f, q)| kl_divergence(f, q)).sum::<f64>() / self.images.len() as f64
    }
}

/// Logits of each image: of the float network, or as `plan` quantizes it.
fn logits(
    program: &Program,
    weights: &Weights,
    plan: Option<&QuantPlan>,
    images: &[Vec<f32>],
) -> Vec<Vec<f32>> {
    let fake = plan.map(|plan| fake_weights(program, weights, plan));
    let weights = fake.as_ref().unwrap_or(weights);
    let run = |_, executor: &mut Executor<'_>, image: &[f32]| {
        Ok::<_, Infallible>(match plan {
            Some(plan) => executor
                .run(image, &mut FakeQuant::new(program, &plan.quantization))
                .to_vec(),
            None => executor.run(image, &mut ()).to_vec(),
        })
    };
    let mut all = Vec::with_capacity(images.len());
    let collect = |_, logits| {
        all.push(logits);
        Ok(())
    };
    let load = |i: usize| Ok(images[i].clone());
    let Ok(()) = run_many(program, weights, images.len(), load, run, collect);
    all
}
