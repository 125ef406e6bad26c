//! All units at once: the whole quantized network learns from the float one.
//!
//! ```text
//! loss = KL(softmax(z) | softmax(z^))
//!      + local * mean over units of |y^ - y|^2 / |y - mean y|^2
//! ```
//!
//! z are the logits, y the outputs of the units, hats the quantized network. A
//! network without a classifier has no logits: its result is a unit's output like
//! the others, with the weight of the divergence.
//!
//! Blocks that were reconstructed one by one each mend their own error; here
//! later ones also mend what earlier ones left. The local terms, over every
//! token, keep a few hundred pictures from being learnt by heart, and each
//! picture is mirrored and cut anew each time.

use std::convert::Infallible;

use rayon::prelude::*;
use tpvit_models::Program;

use super::adaround::Rounding;
use super::network::{Network, Tape, View};
use super::params::{Params, Rates};
use super::resume::{Position, Reader};
use super::train::{Term, Trainer, augment, cosine, divergence};
use super::units::{Unit, units};
use super::{ResumeError, Run, Stop, Task, UnitLog};
use crate::calibration::{Judge, QuantPlan, energy};
use crate::weights::Weights;

/// How to train all units at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Joint {
    /// Steps.
    pub steps: u32,
    /// Pictures a step.
    pub batch: usize,
    /// Learning rates.
    pub rates: Rates,
    /// Weight of the local terms.
    pub local: f32,
    /// Weight of the divergence of the logits, or of the error of features.
    pub divergence: f32,
    /// Least part of a picture's area that is shown.
    pub least_area: f32,
    /// How often the class token counts in local terms.
    pub class_weight: f32,
}

/// Times the state is judged, and kept if it is the best so far.
const JUDGEMENTS: u32 = 10;

/// Trains; the best state is what is left in `weights` and `plan`. `state` is
/// from a checkpoint made in the middle.
pub(super) fn train(
    task: &Task<'_>,
    settings: &Joint,
    weights: &mut Weights,
    plan: &mut QuantPlan,
    state: Option<Reader<'_>>,
    run: &mut Run<'_>,
) -> Result<(), Stop> {
    let program = task.program;
    let whole = 0..program.ops.len();
    let mut params = Params::new(program, weights, plan, whole.clone());
    if task.rounding == Rounding::AdaRound {
        params.soften(settings.steps);
    }
    let view = params.view(program, weights, plan);
    let float_view = View::float(task.teacher, task.float);
    let teacher = Network {
        program,
        view: &float_view,
    };
    let terms = terms(task, settings, teacher, &units(program));
    let result = program.ops[program.ops.len() - 1].output();
    let mut trainer = Trainer::new(
        program,
        params,
        view,
        whole.clone(),
        task.teachers.clone(),
        settings.batch,
        task.seed,
    );
    let images = task.judges.par_iter().map(|&i| (task.image)(i)).collect();
    let judge = Judge::new(program, (task.teacher, task.float), images);
    let start = judge.distance(weights, plan);
    let mut log = UnitLog {
        name: "all units".into(),
        before: start,
        after: start,
        curve: Vec::new(),
        note: String::new(),
    };
    if let Some(mut state) = state {
        trainer.restore(&mut state)?;
        log = run.logs.pop().ok_or(ResumeError::Damaged)?;
    }
    let every = (settings.steps / JUDGEMENTS).max(1);
    for step in run.position.step..settings.steps {
        let decay = cosine(step, settings.steps);
        let Ok(loss) = trainer.step(step, settings.rates, decay, |lane, student, slot| {
            let image = (task.image)(slot.picture);
            let image = augment(&image, program.image, settings.least_area, slot.seed);
            teacher.forward(&mut lane.teacher, whole.clone(), &image, None);
            student.forward(&mut lane.tape, whole.clone(), &image, None);
            lane.tape.clear_grads(program, whole.clone());
            let mut loss = match program.classifies() {
                true => {
                    let target = &lane.teacher.raw[result.index()];
                    let weight = settings.divergence;
                    divergence(&mut lane.tape, result, target, weight, slot.share)
                }
                false => 0.0, // among the terms
            };
            for term in &terms {
                let target = &lane.teacher.raw[term.buffer.index()];
                loss += term.add(&mut lane.tape, target, slot.share);
            }
            student.backward(&mut lane.tape, whole.clone(), None, &mut lane.grads);
            Ok::<_, Infallible>(loss)
        });
        if step.is_multiple_of((settings.steps / 100).max(1)) {
            log.curve.push((step, loss as f32));
        }
        run.batch(0, "all units");
        if (step + 1).is_multiple_of(every) || step + 1 == settings.steps || !loss.is_finite() {
            let (mut new_weights, mut new_plan) = (weights.clone(), plan.clone());
            trainer
                .params
                .store(program, &trainer.view, &mut new_weights, &mut new_plan);
            let now = judge.distance(&new_weights, &new_plan);
            if now < log.after {
                log.after = now;
                (*weights, *plan) = (new_weights, new_plan);
            }
            if !loss.is_finite() {
                log.note =
                    format!("the loss became {loss} at step {step}: the best state before is kept");
                break;
            }
            let position = Position {
                step: step + 1,
                ..run.position.clone()
            };
            run.logs.push(log);
            run.checkpoint(position, weights, plan, |out| trainer.save(out))?;
            log = run.logs.pop().expect("just pushed");
        }
    }
    if log.after >= log.before && log.note.is_empty() {
        log.note = "no better on held-back pictures: left as it was".into();
    }
    run.logs.push(log);
    Ok(())
}

/// One term for each unit's output but the logits, normalised by its spread.
fn terms(task: &Task<'_>, settings: &Joint, teacher: Network<'_>, units: &[Unit]) -> Vec<Term> {
    let program = task.program;
    let last = units.len().saturating_sub(1);
    let units = match program.classifies() {
        true => &units[..last],
        false => units,
    };
    let sample: Vec<usize> = task.teachers.iter().copied().take(16).collect();
    let energies: Vec<Vec<f64>> = sample
        .par_iter()
        .map(|&i| {
            let mut tape = Tape::new(program);
            teacher.forward(&mut tape, 0..program.ops.len(), &(task.image)(i), None);
            units
                .iter()
                .map(|u| {
                    let rows = row_weights(program, u, settings.class_weight);
                    energy(&tape.raw[u.output.index()], &rows)
                })
                .collect()
        })
        .collect();
    let term = |(i, unit): (usize, &Unit)| {
        let mean = energies.iter().map(|e| e[i]).sum::<f64>() / energies.len() as f64;
        let (weight, share) = match i < last {
            true => (settings.local, last as f64),
            false => (settings.divergence, 1.0),
        };
        Term {
            buffer: unit.output,
            weight: weight / (share * mean.max(1e-30)) as f32,
            rows: row_weights(program, unit, settings.class_weight),
            elements: task.elements(teacher.view, unit),
        }
    };
    units.iter().enumerate().map(term).collect()
}

/// How often each row of a unit's output counts: not at all if nothing reads it.
pub(super) fn row_weights(program: &Program, unit: &Unit, class_weight: f32) -> Vec<f32> {
    let class = program.class_token();
    let weight = |r: usize| match class {
        _ if !unit.rows.contains(&r) => 0.0,
        Some(class) if class == r => class_weight,
        Some(_) | None => 1.0,
    };
    (0..program.buffers[unit.output.index()].rows)
        .map(weight)
        .collect()
}
