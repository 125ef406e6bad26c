//! The whole way from a float network to a `.tpv` file, as one function.
//!
//! ```text
//! import ─▶ observe ─▶ plan ─▶ compensate ─▶ reconstruct ─▶ pack ─▶ bytes
//! ```

use std::path::PathBuf;

use serde_json::json;
use tpvit_models::{ModelData, Preprocess, Program, TensorData, TensorRole, WriteError, write};

use crate::calibration::{
    Compensation, Decision, LayerError, Observations, ObserveSettings, QuantPlan, Settings,
    compensate, observe, plan, report, steps,
};
use crate::quantizers::OctaveHistogram;
use crate::reconstruct::{self, Events, Lesson, Progress, Stop, UnitLog, reconstruct};
use crate::weights::Weights;

/// Pictures compared layer by layer, evenly spread; more says little more.
const REPORT_PICTURES: usize = 8;

/// What to make, and what is known about where it comes from.
#[derive(Clone, Debug)]
pub struct Job {
    /// Widths and methods.
    pub settings: Settings,
    /// How much of the pictures is remembered.
    pub observe: ObserveSettings,
    /// How the weights' errors are made to cancel; `None` to round each by itself.
    pub compensation: Option<Compensation>,
    /// How the network is trained after that; `None` for not at all.
    pub reconstruction: Option<reconstruct::Settings>,
    /// Folder for what it remembers of the pictures; `None` for memory.
    pub scratch: Option<PathBuf>,
    /// What it learns from, where that is not the network itself.
    pub teacher: Option<(Program, Weights)>,
    /// Stored in the file; its mean and deviation must be folded into the weights already.
    pub preprocess: Preprocess,
    /// Class names, or none.
    pub labels: Vec<String>,
    /// Stored in the file: what the source was, as the caller knows it.
    pub source: serde_json::Value,
}

/// A quantized model and how it compares with the float one.
#[derive(Debug)]
pub struct Quantized {
    /// What the file holds.
    pub data: ModelData,
    /// The file.
    pub bytes: Vec<u8>,
    /// The weights that the plan is for, in float.
    pub weights: Weights,
    /// The plan itself.
    pub plan: QuantPlan,
    /// What compensation brought, group by group; empty without.
    pub decisions: Vec<Decision>,
    /// Error of each operation's output, worst first.
    pub layers: Vec<LayerError>,
    /// The same before the weights were optimised; empty where they were not.
    pub layers_before: Vec<LayerError>,
    /// What reconstruction brought, unit by unit; empty without.
    pub units: Vec<UnitLog>,
    /// By operation: post-softmax values of the calibration pictures, as the codes
    /// see them; `Some` exactly for attention.
    pub attention: Vec<Option<OctaveHistogram>>,
    /// Pictures seen.
    pub pictures: usize,
}

/// What [`quantize`] is doing.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// Running pictures through the float network; so many are done.
    Observing(usize),
    /// Choosing scales and codes.
    Planning,
    /// Choosing weights whose errors cancel: pictures run, of so many.
    Compensating(usize, usize),
    /// Training.
    Reconstructing(Progress),
    /// Comparing the quantized network with the float one.
    Comparing,
}

/// Hears of the work, and keeps what it can be resumed from.
pub trait Observer {
    /// Called often.
    fn stage(&mut self, stage: Stage);

    /// Reconstruction came so far: see [`Events::checkpoint`].
    ///
    /// # Errors
    /// End the work.
    fn checkpoint(&mut self, bytes: &[u8]) -> std::io::Result<()>;
}

/// Hears, and keeps nothing.
impl<F: FnMut(Stage)> Observer for F {
    fn stage(&mut self, stage: Stage) {
        self(stage);
    }

    fn checkpoint(&mut self, _bytes: &[u8]) -> std::io::Result<()> {
        Ok(())
    }
}

/// Why there is no quantized model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// The result does not fit the file format.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Reconstruction ended early.
    #[error(transparent)]
    Reconstruction(#[from] Stop),
}

/// Passes on what reconstruction tells.
struct Forward<'a>(&'a mut dyn Observer);

impl Events for Forward<'_> {
    fn progress(&mut self, progress: &Progress) {
        self.0.stage(Stage::Reconstructing(progress.clone()));
    }

    fn checkpoint(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.checkpoint(bytes)
    }
}

/// Quantizes `program`.
///
/// `weights` take raw pixels, 0 to 255 (see `fold_preprocessing`). `picture(i)`
/// is calibration picture `i`, `[height, width, 3]`, or `None` from the end on;
/// it is called in parallel and more than once. `resume` is what
/// [`Observer::checkpoint`] got last in an earlier run. The result depends on
/// the arguments alone, not on threads, time, or having been resumed.
///
/// # Errors
/// [`QuantizeError`].
///
/// # Panics
/// If there is no picture, or one of the wrong size.
pub fn quantize(
    program: &Program,
    mut weights: Weights,
    picture: &(dyn Fn(usize) -> Option<Vec<f32>> + Sync),
    job: &Job,
    resume: Option<&[u8]>,
    observer: &mut dyn Observer,
) -> Result<Quantized, QuantizeError> {
    let float = weights.clone();
    let (teacher, float) = match &job.teacher {
        Some((program, weights)) => (program, weights),
        None => (program, &float),
    };
    let mut observed = |done| observer.stage(Stage::Observing(done));
    let observations = observe(program, &weights, picture, &job.observe, &mut observed);

    observer.stage(Stage::Planning);
    let mut plan = plan(program, &mut weights, &observations, &job.settings);
    let attention = histograms(&observations, &plan);
    let compared = REPORT_PICTURES.min(observations.pictures);
    let sample: Vec<Vec<f32>> = (0..compared)
        .map(|i| picture(i * observations.pictures / compared))
        .map(|image| image.expect("a picture that was there before"))
        .collect();
    let mut layers_before = Vec::new();
    let mut decisions = Vec::new();
    if job.compensation.is_some() || job.reconstruction.is_some() {
        layers_before = report(program, &weights, &weights, &plan, &sample);
    }
    if let Some(settings) = &job.compensation {
        let count = observations.pictures;
        let total = steps(program, count);
        let mut ran = |done| observer.stage(Stage::Compensating(done, total));
        decisions = compensate(
            program,
            &mut weights,
            &mut plan,
            picture,
            count,
            settings,
            &mut ran,
        );
    }

    // The same function as `float`, in the layout that the plan is for.
    let planned = weights.clone();
    let mut units = Vec::new();
    if let Some(settings) = &job.reconstruction {
        let again = |i: usize| picture(i).expect("a picture that was there before");
        let lesson = Lesson {
            program,
            teacher,
            float,
            picture: &again,
            count: observations.pictures,
            scratch: job.scratch.as_deref(),
        };
        let mut events = Forward(observer);
        units = reconstruct(
            &lesson,
            settings,
            &mut weights,
            &mut plan,
            resume,
            &mut events,
        )?;
    }

    observer.stage(Stage::Comparing);
    let layers = report(program, &planned, &weights, &plan, &sample);

    let data = pack(program, &weights, &plan, job, observations.pictures);
    let bytes = write(&data)?;
    Ok(Quantized {
        data,
        bytes,
        weights,
        plan,
        decisions,
        units,
        layers,
        layers_before,
        attention,
        pictures: observations.pictures,
    })
}

fn histograms(observations: &Observations, plan: &QuantPlan) -> Vec<Option<OctaveHistogram>> {
    let samples = observations.attention.iter();
    let pairs = samples.zip(&plan.quantization.softmax);
    pairs
        .map(|(samples, quant)| Some(samples.as_ref()?.histogram(quant.as_ref()?.kind)))
        .collect()
}

/// Puts program, codes and floats side by side, as the file has them.
fn pack(
    program: &Program,
    weights: &Weights,
    plan: &QuantPlan,
    job: &Job,
    pictures: usize,
) -> ModelData {
    let tensor = |(index, values): (usize, &Vec<f32>)| match program.tensors[index].role {
        TensorRole::Float => TensorData::Float(values.clone()),
        TensorRole::Weight => {
            let quant = plan.weights[index].clone();
            TensorData::Weight(quant.expect("a plan has codes for every weight"))
        }
    };
    ModelData {
        program: program.clone(),
        quantization: plan.quantization.clone(),
        tensors: weights.tensors.iter().enumerate().map(tensor).collect(),
        preprocess: job.preprocess,
        labels: job.labels.clone(),
        provenance: provenance(job, plan, pictures).to_string(),
    }
}

/// Where the file comes from: no time, no path, so that the same input gives
/// the same bytes.
fn provenance(job: &Job, plan: &QuantPlan, pictures: usize) -> serde_json::Value {
    let s = &job.settings;
    let softmax_bits: Option<u32> = plan
        .quantization
        .softmax
        .iter()
        .flatten()
        .next()
        .map(|q| q.bits.bits());
    json!({
        "tool": concat!("tpvit ", env!("CARGO_PKG_VERSION")),
        "source": job.source,
        "calibration": {
            "pictures": pictures,
            "seed": job.observe.seed,
            "range": format!("{:?}", s.range),
        },
        "training": job.reconstruction.as_ref().map(|settings| format!("{settings:?}")),
        "quantizer": {
            "weight_bits": s.weight_bits.bits(),
            "activation_bits": s.act_bits.bits(),
            "first_last_bits": s.first_last_bits.map(|b| b.bits()),
            "normed_code": format!("{:?}", s.normed_code),
            "hidden_code": format!("{:?}", s.hidden_code),
            "softmax": format!("{:?}", s.softmax.method),
            "softmax_bits": softmax_bits,
        },
    })
}
