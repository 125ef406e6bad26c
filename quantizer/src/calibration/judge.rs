//! Held-back pictures: what a choice is judged by.
//!
//! Compensation, the allocation of bits and training each try something and
//! keep it where the network as a whole comes closer to the float one, on
//! pictures that taught nothing.

use std::convert::Infallible;

use tpvit_models::Program;

use super::fake_quant::{FakeQuant, fake_weights};
use super::plan::QuantPlan;
use super::report::result_distance;
use crate::reference::{Executor, run_many};
use crate::weights::Weights;

/// One picture in this many is held back to judge by.
const HELD_BACK: usize = 4;

/// At most so many pictures judge; each is run some ten times.
const MOST_JUDGES: usize = 128;

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
    pub(super) results: Vec<Vec<f32>>,
}

impl<'a> Judge<'a> {
    /// Of `program`'s quantized networks, by the float network `float`.
    pub(crate) fn new(
        program: &'a Program,
        float: (&Program, &Weights),
        images: Vec<Vec<f32>>,
    ) -> Self {
        Judge {
            results: results(float.0, float.1, None, &images),
            program,
            images,
        }
    }

    /// Mean [`result_distance`] of the quantized network from the float one.
    pub(crate) fn distance(&self, weights: &Weights, plan: &QuantPlan) -> f64 {
        let quantized = results(self.program, weights, Some(plan), &self.images);
        let pairs = self.results.iter().zip(&quantized);
        let distance = |(f, q): (&Vec<f32>, &Vec<f32>)| result_distance(self.program, f, q);
        pairs.map(distance).sum::<f64>() / self.images.len() as f64
    }
}

/// The result for each image: of the float network, or as `plan` quantizes it.
fn results(
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
    let collect = |_, result| {
        all.push(result);
        Ok(())
    };
    let load = |i: usize| Ok(images[i].clone());
    let Ok(()) = run_many(program, weights, images.len(), load, run, collect);
    all
}
