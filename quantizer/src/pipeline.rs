//! The whole way from a float network to a `.tpv` file, as one function.
//!
//! ```text
//! import ─▶ observe ─▶ plan ─▶ pack ─▶ bytes
//! ```

use serde_json::json;
use tpvit_models::{ModelData, Preprocess, Program, TensorData, TensorRole, WriteError, write};

use crate::calibration::{
    Compensation, Decision, LayerError, ObserveSettings, QuantPlan, Settings, compensate, observe,
    plan, report, steps,
};
use crate::weights::Weights;

/// Pictures compared layer by layer at the end; more says little more.
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
/// it is called in parallel, and more than once for the first few. The result
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
    let mut decisions = Vec::new();
    if let Some(settings) = &job.compensation {
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
    let sample: Vec<Vec<f32>> = (0..REPORT_PICTURES).map_while(picture).collect();
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
        pictures: observations.pictures,
    })
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
            "normed_code": format!("{:?}", s.normed_code),
            "hidden_code": format!("{:?}", s.hidden_code),
            "softmax": format!("{:?}", s.softmax.method),
            "softmax_bits": softmax_bits,
        },
    })
}
