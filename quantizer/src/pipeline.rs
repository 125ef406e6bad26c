//! The whole way from a float network to a `.tpv` file, as one function.
//!
//! ```text
//! import ─▶ observe ─▶ plan ─▶ pack ─▶ bytes
//! ```

use serde_json::json;
use tpvit_models::{ModelData, Preprocess, Program, TensorData, TensorRole, WriteError, write};

use crate::calibration::{
    Compensation, Decision, LayerError, Observations, ObserveSettings, QuantPlan, Settings,
    compensate, observe, plan, report, steps,
};
use crate::quantizers::OctaveHistogram;
use crate::report::UnitLog;
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Running pictures through the float network; so many are done.
    Observing(usize),
    /// Choosing scales and codes.
    Planning,
    /// Choosing weights whose errors cancel: pictures run, of so many.
    Compensating(usize, usize),
    /// Comparing the quantized network with the float one.
    Comparing,
}

/// Quantizes `program`.
///
/// `weights` take raw pixels, 0 to 255 (see `fold_preprocessing`). `picture(i)`
/// is calibration picture `i`, `[height, width, 3]`, or `None` from the end on;
/// it is called in parallel, and more than once for some. The result
/// depends on the arguments alone, not on threads or time.
///
/// # Errors
/// If the result does not fit the file format.
///
/// # Panics
/// If there is no picture, or one of the wrong size.
pub fn quantize(
    program: &Program,
    mut weights: Weights,
    picture: &(dyn Fn(usize) -> Option<Vec<f32>> + Sync),
    job: &Job,
    progress: &mut dyn FnMut(Stage),
) -> Result<Quantized, WriteError> {
    let mut observed = |done| progress(Stage::Observing(done));
    let observations = observe(program, &weights, picture, &job.observe, &mut observed);

    progress(Stage::Planning);
    let mut plan = plan(program, &mut weights, &observations, &job.settings);
    let attention = histograms(&observations, &plan);
    let compared = REPORT_PICTURES.min(observations.pictures);
    let sample: Vec<Vec<f32>> = (0..compared)
        .map(|i| picture(i * observations.pictures / compared))
        .map(|image| image.expect("a picture that was there before"))
        .collect();
    let mut layers_before = Vec::new();
    let mut decisions = Vec::new();
    if let Some(settings) = &job.compensation {
        layers_before = report(program, &weights, &plan, &sample);
        let count = observations.pictures;
        let total = steps(program, count);
        let mut ran = |done| progress(Stage::Compensating(done, total));
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

    progress(Stage::Comparing);
    let layers = report(program, &weights, &plan, &sample);

    let data = pack(program, &weights, &plan, job, observations.pictures);
    let bytes = write(&data)?;
    Ok(Quantized {
        data,
        bytes,
        weights,
        plan,
        decisions,
        layers,
        layers_before,
        units: Vec::new(),
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
        "quantizer": {
            "weight_bits": s.weight_bits.bits(),
            "activation_bits": s.act_bits.bits(),
            "first_last_bits": s.first_last_bits.map(|b| b.bits()),
            "softmax": format!("{:?}", s.softmax.method),
            "softmax_bits": softmax_bits,
        },
    })
}
