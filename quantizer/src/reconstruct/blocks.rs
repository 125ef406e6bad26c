//! Unit after unit: each learns to give what its float twin gives.
//!
//! ```text
//! loss = |y^ - y|^2 / |y - mean y|^2                          local
//!      + |f^ - f|^2 / |f - mean f|^2                          global, optional
//! ```
//!
//! y is the unit's output, f what the classifier reads (or the features of a
//! network without one), hats the quantized unit. For f^, the unit is followed by
//! the *float* rest of the network (GLF-Q): the gradient then knows which errors
//! matter later.
//!
//! A [`Pass`] over the units is a list of [`Phase`]s. What the papers do, in
//! these terms:
//!
//! | recipe | pass | input | phases |
//! |---|---|---|---|
//! | I&S-ViT's SOS, stage 1 | 1 | float | weights float |
//! | SOS, stage 3 | 2 | quantized prefix | target width |
//! | TP-ViT's bit decline | 2 | quantized prefix | 8, 6, 4, 3 with transition weights |
//!
//! SOS's stage 2, the re-parameterisation of LayerNorms, has been done before:
//! it is exact for float weights, so that the order of the first two stages
//! does not matter.

use std::io;

use rayon::prelude::*;
use tpvit_models::{BitWidth, BufferId, Program};

use super::activations::Activations;
use super::adaround::Rounding;
use super::joint::row_weights;
use super::network::{Drop, Network, Tape, View};
use super::params::{Params, Rates};
use super::resume::Position;
use super::train::{Lane, Slot, Term, Trainer, cosine};
use super::units::{Unit, units};
use super::{Run, Stop, Task, UnitLog};
use crate::calibration::{QuantPlan, energy, mix};
use crate::weights::Weights;

/// One way through all units.
#[derive(Clone, Debug, PartialEq)]
pub struct Pass {
    /// What a unit is fed while it learns.
    pub input: Input,
    /// Widths of the weights, one after the other.
    pub phases: Vec<Phase>,
    /// Whether a phase blends from the widths before it; otherwise it jumps.
    pub transition: bool,
    /// Pictures a step.
    pub batch: usize,
    /// Learning rates.
    pub rates: Rates,
    /// Chance of an activation to stay float in a step, and of an input to be
    /// the float one: QDrop.
    pub drop: f32,
    /// Weight of the loss at the classifier's input; 0 for none.
    pub global: f32,
    /// How often the class token counts in the local loss.
    pub class_weight: f32,
}

/// A part of a [`Pass`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    /// Of the weights, though never below what the plan says; `None` for float.
    pub bits: Option<BitWidth>,
    /// Steps.
    pub steps: u32,
}

/// What a unit is fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// What the float network has there.
    Float,
    /// What the quantized units before it give.
    Quantized,
}

impl Pass {
    /// Steps of one unit.
    pub fn steps(&self) -> u32 {
        self.phases.iter().map(|p| p.steps).sum()
    }

    /// Whether it leaves the weights float.
    fn is_float(&self) -> bool {
        self.phases.iter().all(|p| p.bits.is_none())
    }
}

/// One pass over all units, from unit `first` on.
///
/// `run` hears of every step, and gets the state to resume from after every unit.
pub(super) fn reconstruct(
    task: &Task<'_>,
    pass: &Pass,
    weights: &mut Weights,
    plan: &mut QuantPlan,
    first: usize,
    run: &mut Run<'_>,
) -> Result<(), Stop> {
    let program = task.program;
    let units = units(program);
    let float = View::float(task.teacher, task.float);
    let mut teacher_in = Activations::none();
    let mut student_in = Activations::none();
    let features = match pass.global > 0.0 {
        true => outputs(task, &float, &before_classifier(program), &teacher_in)?,
        false => Activations::none(),
    };
    for (index, unit) in units.iter().enumerate() {
        let target = outputs(task, &float, unit, &teacher_in)?;
        if index >= first {
            let learner = Learner {
                task,
                pass,
                unit,
                float: &float,
                features: &features,
                teacher_in: &teacher_in,
                student_in: match pass.input {
                    Input::Float => &teacher_in,
                    Input::Quantized => &student_in,
                },
                target: &target,
            };
            let log = learner.learn(index, weights, plan, run)?;
            run.logs.push(log);
            let position = Position {
                unit: index as u32 + 1,
                ..run.position.clone()
            };
            run.checkpoint(position, weights, plan, |_| ())?;
        }
        if pass.input == Input::Quantized {
            let params = Params::new(program, weights, plan, unit.ops.clone());
            let view = params.view(program, weights, plan);
            student_in = outputs(task, &view, unit, &student_in)?;
        }
        teacher_in = target;
    }
    Ok(())
}

/// The outputs of a unit for all pictures.
fn outputs(
    task: &Task<'_>,
    view: &View,
    unit: &Unit,
    inputs: &Activations,
) -> Result<Activations, Stop> {
    let network = Network {
        program: task.program,
        view,
    };
    let one = |tape: &mut Tape, picture: usize| {
        feed(tape, unit, inputs, picture)?;
        let image = image(task, unit, picture);
        network.forward(tape, unit.ops.clone(), &image, None);
        Ok(tape.raw[unit.output.index()].clone())
    };
    let count = task.judges.len() + task.teachers.len();
    let tape = || Tape::new(task.program);
    Activations::collect(count, task.scratch, tape, one).map_err(Stop::Scratch)
}

/// Puts the unit's input on the tape.
fn feed(tape: &mut Tape, unit: &Unit, inputs: &Activations, picture: usize) -> io::Result<()> {
    if let Some(input) = unit.input {
        inputs
            .of(picture)?
            .as_ref()
            .clone_into(&mut tape.raw[input.index()]);
    }
    Ok(())
}

/// The picture, where the unit reads it.
fn image(task: &Task<'_>, unit: &Unit, picture: usize) -> Vec<f32> {
    match unit.input {
        None => (task.image)(picture),
        Some(_) => Vec::new(),
    }
}

/// The buffer that the classifier reads; the features of a network without one.
pub(super) fn feature(program: &Program) -> BufferId {
    let last = &program.ops[program.ops.len() - 1];
    match program.classifies() {
        true => last.inputs()[0].expect("a classifier has an input"),
        false => last.output(),
    }
}

/// Everything before the classifier, as one unit.
fn before_classifier(program: &Program) -> Unit {
    let classifiers = usize::from(program.classifies());
    let output = feature(program);
    Unit {
        name: String::new(),
        ops: 0..program.ops.len() - classifiers,
        input: None,
        output,
        rows: 0..program.buffers[output.index()].rows,
    }
}

/// One unit and all it needs.
struct Learner<'a> {
    task: &'a Task<'a>,
    pass: &'a Pass,
    unit: &'a Unit,
    float: &'a View,
    features: &'a Activations,
    teacher_in: &'a Activations,
    student_in: &'a Activations,
    target: &'a Activations,
}

impl Learner<'_> {
    fn learn(
        &self,
        index: usize,
        weights: &mut Weights,
        plan: &mut QuantPlan,
        run: &mut Run<'_>,
    ) -> Result<UnitLog, Stop> {
        let (program, pass, unit) = (self.task.program, self.pass, self.unit);
        let mut params = Params::new(program, weights, plan, unit.ops.clone());
        let ends = params.widths();
        if pass.is_float() {
            params.set_blend(0.0);
        }
        let mut view = params.view(program, weights, plan);
        let before = self.error(&view).map_err(Stop::Scratch)?;
        params.start(pass.phases.first().and_then(|p| p.bits));
        params.update(program, &mut view);
        let mut trainer = Trainer::new(
            program,
            params,
            view,
            unit.ops.clone(),
            self.task.teachers.clone(),
            pass.batch,
            mix(self.task.seed ^ index as u64),
        );
        let local = self.local().map_err(Stop::Scratch)?;
        let global = self.global().map_err(Stop::Scratch)?;
        let mut curve = Vec::new();
        let (mut step, steps) = (0, pass.steps());
        let mut note = String::new();
        'phases: for (i, phase) in pass.phases.iter().enumerate() {
            match phase.bits {
                Some(bits) if i > 0 => trainer.params.decline(bits, &ends),
                Some(_) | None => {}
            }
            for at in 0..phase.steps {
                trainer.params.set_blend(match phase.bits {
                    None => 0.0,
                    Some(_) if pass.transition => transition(at, phase.steps),
                    Some(_) => 1.0,
                });
                let last = i + 1 == pass.phases.len() && !pass.is_float();
                let settled = !pass.transition || 2 * at >= phase.steps;
                let softens = last && settled && self.task.rounding == Rounding::AdaRound;
                if softens && !trainer.params.is_soft() {
                    trainer.params.soften(phase.steps - at);
                }
                let decay = cosine(step, steps);
                let loss = trainer.step(step, pass.rates, decay, |lane, network, slot| {
                    self.one(lane, network, slot, &local, global.as_ref())
                });
                let loss = loss.map_err(Stop::Scratch)?;
                if !loss.is_finite() {
                    note = format!("the loss became {loss} at step {step}: stopped there");
                    break 'phases;
                }
                if step.is_multiple_of((steps / 50).max(1)) {
                    curve.push((step, loss as f32));
                }
                step += 1;
                run.batch(index, &unit.name);
            }
        }
        if !pass.is_float() {
            trainer.params.set_blend(1.0);
        }
        if trainer.params.is_soft() {
            trainer.params.harden();
        }
        trainer.params.update(program, &mut trainer.view);
        let after = self.error(&trainer.view).map_err(Stop::Scratch)?;
        if pass.is_float() {
            trainer.params.refit();
        }
        if after < before {
            trainer.params.store(program, &trainer.view, weights, plan);
        } else if note.is_empty() {
            note = "no better on held-back pictures: left as it was".into();
        }
        Ok(UnitLog {
            name: unit.name.clone(),
            before,
            after: after.min(before),
            curve,
            note,
        })
    }

    /// One picture forward and backward.
    fn one(
        &self,
        lane: &mut Lane,
        network: Network<'_>,
        slot: Slot,
        local: &Term,
        global: Option<&Term>,
    ) -> io::Result<f64> {
        let (program, unit, picture) = (self.task.program, self.unit, slot.picture);
        let of_256 = (self.pass.drop * 256.0) as u32;
        let drop = (of_256 > 0).then_some(Drop {
            seed: slot.seed,
            of_256,
        });
        feed(&mut lane.tape, unit, self.student_in, picture)?;
        if let (Some(drop), Some(input)) = (drop, unit.input) {
            let float = self.teacher_in.of(picture)?;
            drop.mix_in(&mut lane.tape.raw[input.index()], &float);
        }
        let image = image(self.task, unit, picture);
        network.forward(&mut lane.tape, unit.ops.clone(), &image, drop);
        lane.tape.clear_grads(program, unit.ops.clone());
        let mut loss = 0.0;
        if let Some(global) = global {
            let rest = unit.ops.end..program.ops.len();
            let suffix = Network {
                program,
                view: self.float,
            };
            suffix.forward(&mut lane.tape, rest.clone(), &[], None);
            lane.tape.clear_grads(program, rest.clone());
            loss += global.add(&mut lane.tape, &self.features.of(picture)?, slot.share);
            suffix.backward(&mut lane.tape, rest, None, &mut lane.frozen);
        }
        loss += local.add(&mut lane.tape, &self.target.of(picture)?, slot.share);
        network.backward(&mut lane.tape, unit.ops.clone(), drop, &mut lane.grads);
        Ok(loss)
    }

    /// The loss at the unit's output.
    fn local(&self) -> io::Result<Term> {
        let rows = row_weights(self.task.program, self.unit, self.pass.class_weight);
        let mean = self.mean_energy(self.target, &rows)?;
        Ok(Term {
            buffer: self.unit.output,
            weight: (1.0 / mean) as f32,
            rows,
            elements: self.task.elements(self.float, self.unit),
        })
    }

    /// The loss at the classifier's input, for units before it.
    fn global(&self) -> io::Result<Option<Term>> {
        let program = self.task.program;
        let id = feature(program);
        let writer = program.ops.iter().position(|op| op.output() == id);
        let before = writer.is_some_and(|writer| self.unit.ops.end <= writer);
        if self.pass.global == 0.0 || !before {
            return Ok(None);
        }
        let rows = vec![1.0; program.buffers[id.index()].rows];
        let mean = self.mean_energy(self.features, &rows)?;
        Ok(Some(Term {
            buffer: id,
            weight: (f64::from(self.pass.global) / mean) as f32,
            rows,
            elements: Vec::new(),
        }))
    }

    fn mean_energy(&self, values: &Activations, rows: &[f32]) -> io::Result<f64> {
        let teachers = &self.task.teachers;
        let mut sum = 0.0;
        for &picture in teachers {
            sum += energy(&values.of(picture)?, rows);
        }
        Ok((sum / teachers.len() as f64).max(1e-30))
    }

    /// Relative squared error of the unit's output on held-back pictures.
    fn error(&self, view: &View) -> io::Result<f64> {
        let (program, unit) = (self.task.program, self.unit);
        let rows = row_weights(program, unit, self.pass.class_weight);
        let cols = program.buffers[unit.output.index()].cols;
        let network = Network { program, view };
        let one = |tape: &mut Tape, &picture: &usize| {
            feed(tape, unit, self.student_in, picture)?;
            network.forward(
                tape,
                unit.ops.clone(),
                &image(self.task, unit, picture),
                None,
            );
            let target = &self.target.of(picture)?;
            let pairs = tape.raw[unit.output.index()]
                .chunks_exact(cols)
                .zip(target.chunks_exact(cols));
            let error = |(a, b): (&[f32], &[f32])| -> f64 {
                a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
            };
            let error: f64 = pairs
                .zip(&rows)
                .map(|(p, &w)| f64::from(w) * error(p))
                .sum();
            Ok((error, energy(target, &rows)))
        };
        let tape = || Tape::new(program);
        let sums = self.task.judges.par_iter().map_init(tape, one);
        let sums = sums.collect::<io::Result<Vec<(f64, f64)>>>()?;
        let (error, energy) = sums.iter().fold((0.0, 0.0), |s, p| (s.0 + p.0, s.1 + p.1));
        Ok(error / energy.max(1e-30))
    }
}

/// How much of what is multiplied has the new width: half a cosine over the
/// first half of a phase, then all.
fn transition(step: u32, steps: u32) -> f32 {
    let at = 2.0 * f64::from(step) / f64::from(steps.max(1));
    (0.5 - 0.5 * (std::f64::consts::PI * at.min(1.0)).cos()) as f32
}
