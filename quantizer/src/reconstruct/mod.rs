//! Reconstruction: the quantized network learns from the float one.
//!
//! Calibration ([`crate::calibration`]) chooses scales and codes from
//! statistics. Here they are trained, on the calibration pictures alone and
//! without labels, with the float network as the teacher:
//!
//! ```text
//! blocks   unit after unit: patch embedding, transformer blocks, head
//! joint    all units at once
//! ```
//!
//! Forward and backward passes are our own ([`network`], [`math`]), in f32, on
//! the products of [`crate::reference::matmul`]. Rounding passes gradients
//! straight through (Bengio et al. 2013, arXiv:1308.3432); where exactly, is
//! stated at each fused operation and tested.
//!
//! Every fourth picture or so is held back and only ever judges: a unit, and
//! the whole at the end, keep what they had if that was better. The result
//! depends on the arguments alone, not on the number of threads or on whether
//! the work was interrupted and resumed.

mod activations;
mod adaround;
mod blocks;
mod effort;
mod importance;
mod joint;
mod math;
mod network;
mod params;
#[cfg(all(test, feature = "onnx"))]
mod pytorch;
mod relu;
mod resume;
#[cfg(test)]
mod tests;
mod train;
mod units;

pub use adaround::Rounding;
pub use blocks::{Input, Pass, Phase};
pub use effort::{Choices, Effort, Recipe};
pub use importance::Importance;
pub use joint::Joint;
pub use params::Rates;
pub use relu::{ReluLog, with_relu};
pub use resume::ResumeError;

use std::path::Path;

use tpvit_models::Program;

use network::View;
use resume::{Fingerprints, Position, Writer};
use units::Unit;

use crate::calibration::{QuantPlan, split};
use crate::weights::Weights;

/// How to train.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Passes over the units, in order.
    pub passes: Vec<Pass>,
    /// All units at once, after that.
    pub joint: Option<Joint>,
    /// How weights find their codes; of passes over the units, once their width
    /// is the last and nothing is blended.
    pub rounding: Rounding,
    /// What counts in the losses at the units.
    pub importance: Importance,
    /// Of the order of pictures, of what is dropped, of how pictures are cut.
    pub seed: u64,
}

/// What became of one reconstructed unit.
#[derive(Clone, Debug, PartialEq)]
pub struct UnitLog {
    /// `block 3`, or `all units`.
    pub name: String,
    /// Relative squared error of the unit's output on held-back pictures; of
    /// all units, [`crate::calibration::result_distance`].
    pub before: f64,
    /// The same afterwards.
    pub after: f64,
    /// Step, and training loss there.
    pub curve: Vec<(u32, f32)>,
    /// What went otherwise than planned; empty if nothing.
    pub note: String,
}

/// Where training stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Part of the work that is done, 0 to 1, by multiply-accumulates.
    pub done: f64,
    /// What is being done.
    pub doing: String,
}

/// Hears of a training while it runs.
pub trait Events {
    /// Called after every step.
    fn progress(&mut self, progress: &Progress);

    /// Called with what [`reconstruct`] resumes from: after every unit, and
    /// ten times in joint training.
    ///
    /// # Errors
    /// End the training.
    fn checkpoint(&mut self, bytes: &[u8]) -> std::io::Result<()>;
}

/// Why training ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Stop {
    /// There are too few pictures to learn from.
    #[error(
        "{count} calibration pictures are too few to train with, at least {FEWEST_PICTURES} are needed"
    )]
    TooFewPictures {
        /// How many there are.
        count: usize,
    },
    /// The checkpoint to resume from is of no use.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// [`Events::checkpoint`] failed.
    #[error("the checkpoint cannot be written")]
    Checkpoint(#[source] std::io::Error),
    /// [`Lesson::scratch`] failed.
    #[error("the activations of the pictures cannot be kept in the scratch folder")]
    Scratch(#[source] std::io::Error),
}

/// What learns from what.
pub struct Lesson<'a> {
    /// The network that learns.
    pub program: &'a Program,
    /// The teacher: the same, but perhaps for its activation functions.
    pub teacher: &'a Program,
    /// The teacher's weights.
    pub float: &'a Weights,
    /// Picture `i` of `count`, on the scale that the weights expect; called in
    /// parallel and often.
    pub picture: &'a (dyn Fn(usize) -> Vec<f32> + Sync),
    /// Pictures there are.
    pub count: usize,
    /// Folder for what passes over the units remember of each picture, in files
    /// that vanish with the process; `None` for memory. The result is the same.
    pub scratch: Option<&'a Path>,
}

/// A [`Lesson`] with its pictures divided.
struct Task<'a> {
    program: &'a Program,
    teacher: &'a Program,
    float: &'a Weights,
    image: &'a (dyn Fn(usize) -> Vec<f32> + Sync),
    /// Pictures that are held back.
    judges: Vec<usize>,
    /// Pictures that are learnt from.
    teachers: Vec<usize>,
    seed: u64,
    rounding: Rounding,
    importance: Importance,
    scratch: Option<&'a Path>,
}

impl Task<'_> {
    /// What the elements of `unit`'s output count in its loss; nothing if alike.
    fn elements(&self, teacher: &View, unit: &Unit) -> Vec<f32> {
        // Nothing follows the last unit that could care.
        let last = unit.ops.end == self.program.ops.len();
        match self.importance {
            Importance::Perturbation if !last => importance::importance(self, teacher, unit),
            Importance::Perturbation | Importance::Alike => Vec::new(),
        }
    }
}

/// Fewest pictures that training makes sense with.
pub const FEWEST_PICTURES: usize = 16;

/// Trains what `plan` chose for `weights`, which it left behind; both become
/// better, or stay.
///
/// `resume` is what [`Events::checkpoint`] got last in an earlier run with the
/// same arguments.
///
/// # Errors
/// [`Stop`]; `weights` and `plan` are then as far as training came.
///
/// # Panics
/// If a picture has the wrong size.
pub fn reconstruct(
    lesson: &Lesson<'_>,
    settings: &Settings,
    weights: &mut Weights,
    plan: &mut QuantPlan,
    resume: Option<&[u8]>,
    events: &mut dyn Events,
) -> Result<Vec<UnitLog>, Stop> {
    if lesson.count < FEWEST_PICTURES {
        return Err(Stop::TooFewPictures {
            count: lesson.count,
        });
    }
    let (judges, teachers) = split(lesson.count);
    let task = Task {
        program: lesson.program,
        teacher: lesson.teacher,
        float: lesson.float,
        image: lesson.picture,
        judges,
        teachers,
        seed: settings.seed,
        rounding: settings.rounding,
        importance: settings.importance,
        scratch: lesson.scratch,
    };
    let fingerprints = Fingerprints::new(lesson, settings, weights, plan);
    let mut run = Run {
        work: Work::new(&task, settings),
        fingerprints,
        position: Position::default(),
        logs: Vec::new(),
        events,
    };
    let mut reader = None;
    if let Some(bytes) = resume {
        let (position, logs, mut state) = resume::read(bytes, &run.fingerprints)?;
        state.weights(weights)?;
        state.plan(plan)?;
        (run.position, run.logs) = (position, logs);
        run.work.skip(&run.position);
        reader = Some(state);
    }
    for (index, pass) in settings
        .passes
        .iter()
        .enumerate()
        .skip(run.position.pass as usize)
    {
        run.work.doing = match settings.passes.len() {
            1 => String::new(),
            n => format!("pass {} of {n}, ", index + 1),
        };
        let first = run.position.unit as usize;
        blocks::reconstruct(&task, pass, weights, plan, first, &mut run)?;
        run.position = Position {
            pass: index as u32 + 1,
            ..Position::default()
        };
    }
    if let Some(joint) = &settings.joint {
        let state = reader.filter(|_| run.position.step > 0);
        joint::train(&task, joint, weights, plan, state, &mut run)?;
    }
    Ok(run.logs)
}

/// A training under way.
struct Run<'a> {
    work: Work,
    fingerprints: Fingerprints,
    position: Position,
    logs: Vec<UnitLog>,
    events: &'a mut dyn Events,
}

impl Run<'_> {
    /// A batch of unit `unit` was learnt.
    fn batch(&mut self, unit: usize, name: &str) {
        self.work.add(self.position.pass as usize, unit);
        let progress = Progress {
            done: self.work.done / self.work.total,
            doing: format!("{}{name}", self.work.doing),
        };
        self.events.progress(&progress);
    }

    /// Everything up to `position` is done.
    fn checkpoint(
        &mut self,
        position: Position,
        weights: &Weights,
        plan: &QuantPlan,
        more: impl FnOnce(&mut Writer),
    ) -> Result<(), Stop> {
        self.position = position;
        let bytes = resume::write(&self.fingerprints, &self.position, &self.logs, |out| {
            out.weights(weights);
            out.plan(plan);
            more(out);
        });
        self.events.checkpoint(&bytes).map_err(Stop::Checkpoint)
    }
}

/// How much there is to do, in multiply-accumulates.
struct Work {
    /// By pass, and joint training last: by unit, of one step and of all.
    costs: Vec<Vec<(f64, u32)>>,
    done: f64,
    total: f64,
    doing: String,
}

impl Work {
    fn new(task: &Task<'_>, settings: &Settings) -> Self {
        Work {
            costs: settings.costs(task.program),
            total: settings.macs(task.program),
            done: 0.0,
            doing: String::new(),
        }
    }

    fn add(&mut self, pass: usize, unit: usize) {
        self.done += self.costs[pass][unit].0;
    }

    /// After resuming at `position`.
    fn skip(&mut self, position: &Position) {
        let (pass, unit) = (position.pass as usize, position.unit as usize);
        for (i, costs) in self.costs.iter().enumerate().take(pass + 1) {
            let units = if i < pass {
                costs.len()
            } else {
                unit.min(costs.len())
            };
            let units = costs[..units].iter();
            self.done += units
                .map(|(one, steps)| one * f64::from(*steps))
                .sum::<f64>();
        }
        if let (Some(joint), true) = (self.costs.get(pass), position.step > 0) {
            self.done += joint.iter().map(|c| c.0).sum::<f64>() * f64::from(position.step);
        }
    }
}
