//! What quantizing did to a model, for people and for machines.
//!
//! ```text
//! Job, Quantized, Run ─▶ ReportData ─┬─▶ json   the numbers, under the names of docs/report.md
//!                                    └─▶ html   the same as one page that needs no other file
//! ```
//!
//! [`ReportData`] is plain data: whoever has the numbers can make one, without the
//! command. Numbers that are missing or not finite stay so: `null` in JSON, a dash
//! in a table, a gap in a plot.

mod html;
mod svg;
#[cfg(test)]
mod tests;
mod text;

use serde_json::{Value, json};
use tpvit_models::{Model, Program, SoftmaxCodebook, SoftmaxKind, SoftmaxQuant, Tensor};

use crate::calibration::{Decision, LayerError};
use crate::pipeline::{Job, Quantized};
use crate::quantizers::{OctaveHistogram, softmax};
use crate::reconstruct::UnitLog;

pub use html::page;
pub use text::{bytes, duration};

/// Raised whenever a field of the JSON changes its name or its meaning.
const FORMAT: u32 = 1;

/// Everything a report tells.
#[derive(Clone, Debug, PartialEq)]
pub struct ReportData {
    /// Name and version of what made the model.
    pub tool: String,
    /// The float model.
    pub model: ModelSummary,
    /// How it was quantized.
    pub method: MethodSummary,
    /// The calibration pictures.
    pub calibration: CalibrationSummary,
    /// Wall-clock time of quantizing, without measuring accuracy.
    pub seconds: f64,
    /// Sizes before and after.
    pub size: Sizes,
    /// Of labelled pictures, if there were some.
    pub accuracy: Option<Accuracy>,
    /// By operation, in order of execution.
    pub layers: Vec<Layer>,
    /// The attention operations, in order of execution.
    pub attention: Vec<AttentionLayer>,
    /// What compensation brought; empty without.
    pub compensation: Vec<Decision>,
    /// What reconstruction brought; empty without.
    pub units: Vec<UnitLog>,
    /// What a reader should know before believing the rest.
    pub warnings: Vec<String>,
}

/// The float model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSummary {
    /// Name of its file, without folders.
    pub file: String,
    /// Height and width of the picture it takes, pixels.
    pub image: [usize; 2],
    /// Number of classes; 0 of a model without a classifier.
    pub classes: usize,
    /// Rows and columns of the result: logits, or features.
    pub result: [usize; 2],
    /// Multiplications of one picture.
    pub macs: u64,
    /// Number of parameters.
    pub parameters: usize,
}

/// Widths and methods.
#[derive(Clone, Debug, PartialEq)]
pub struct MethodSummary {
    /// How weights are chosen, as the command calls it.
    pub name: String,
    /// Bits of a weight.
    pub weight_bits: u32,
    /// Bits of an activation.
    pub activation_bits: u32,
    /// Bits of patch embedding and classifier where they differ.
    pub first_last_bits: Option<u32>,
    /// The quantizer of post-softmax attention.
    pub softmax: String,
    /// Bits of its codes; `None` for a model without attention.
    pub softmax_bits: Option<u32>,
    /// How an activation's range is found.
    pub range: String,
}

/// The calibration pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CalibrationSummary {
    /// Pictures seen.
    pub pictures: usize,
    /// Pictures that could not be read.
    pub skipped: usize,
    /// Chooses what is remembered of them.
    pub seed: u64,
}

/// Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// The source file.
    pub source: u64,
    /// All parameters in f32.
    pub float: u64,
    /// The quantized file.
    pub file: u64,
}

/// Accuracy of the float and of the integer model on the same pictures.
#[derive(Clone, Debug, PartialEq)]
pub struct Accuracy {
    /// Name of the folder of labelled pictures.
    pub data: String,
    /// Whether these are the calibration pictures, to which the quantizer was
    /// fitted: then the integer model looks better than it is.
    pub calibration: bool,
    /// Number of pictures.
    pub images: usize,
    /// In f32.
    pub float: TopK,
    /// In integers.
    pub integer: TopK,
}

/// Percent of pictures whose label is among the best answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TopK {
    /// It is the best.
    pub top1: f64,
    /// It is one of five.
    pub top5: f64,
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Name of the buffer it writes.
    pub name: String,
    /// What it does.
    pub kind: String,
    /// Name of the weight it multiplies with.
    pub weight: Option<String>,
    /// Multiplications of one picture.
    pub macs: u64,
    /// Values of its weight; 0 without.
    pub weights: usize,
    /// Bits of each; `None` without.
    pub weight_bits: Option<u32>,
    /// Bits of its output; `None` where that stays f32.
    pub output_bits: Option<u32>,
    /// Bytes of the weight's codes in the file.
    pub code_bytes: usize,
    /// Bytes of the weight's scales and zero points in the file.
    pub scale_bytes: usize,
    /// Bytes of its f32 constants in the file.
    pub float_bytes: usize,
    /// Error of its output, see [`LayerError`].
    pub error: ErrorPair,
    /// The same before the weights were optimised, where they were.
    pub error_before: Option<ErrorPair>,
    /// What was decided, and why.
    pub notes: Vec<String>,
}

/// The two errors of a [`LayerError`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ErrorPair {
    /// All that went wrong up to here.
    pub accumulated: f64,
    /// The rounding of this output alone.
    pub rounding: f64,
}

/// One attention operation: its post-softmax values, and the codes for them.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionLayer {
    /// Name of the buffer it writes.
    pub name: String,
    /// Bits of a code.
    pub bits: u32,
    /// Whether values are relative to the largest of their row, or else to 1.
    pub relative_to_row_maximum: bool,
    /// Whether each row is divided by the sum of its integers.
    pub renormalised: bool,
    /// One for all heads, or one for each.
    pub codebooks: Vec<AttentionCodebook>,
    /// Where the values of the calibration pictures lie, all heads together.
    pub histogram: OctaveHistogram,
}

/// What attention codes mean.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionCodebook {
    /// What each code stands for before renormalisation.
    pub levels: Vec<f32>,
    /// Between the codes, in octaves below what is 1; infinite for a code never used.
    pub thresholds: Vec<f32>,
}

/// What the caller of [`ReportData::new`] knows of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Name of the model's file, without folders.
    pub model: String,
    /// Its bytes.
    pub source_bytes: u64,
    /// How weights are chosen, as the command calls it.
    pub method: String,
    /// Calibration pictures that could not be read.
    pub skipped: usize,
    /// Wall-clock time of quantizing.
    pub seconds: f64,
    /// Of labelled pictures, if there were some.
    pub accuracy: Option<Accuracy>,
    /// What a reader should know; those that follow from the numbers are added.
    pub warnings: Vec<String>,
}

impl ReportData {
    /// Brings together what `job` asked for, what was `made`, and how it went.
    ///
    /// # Panics
    /// If `made` is not of this `program`.
    pub fn new(program: &Program, job: &Job, made: &Quantized, run: Run) -> Self {
        let model = Model::parse(&made.bytes).expect("a file that was just written");
        let settings = &job.settings;
        let mut softmax = made.plan.quantization.softmax.iter().flatten();
        let mut data = ReportData {
            tool: concat!("tpvit ", env!("CARGO_PKG_VERSION")).into(),
            model: ModelSummary {
                file: run.model,
                image: program.image,
                classes: program.classes(),
                result: program.output_shape(),
                macs: program.macs(),
                parameters: program.tensors.iter().map(|t| t.rows * t.cols).sum(),
            },
            method: MethodSummary {
                name: run.method,
                weight_bits: settings.weight_bits.bits(),
                activation_bits: settings.act_bits.bits(),
                first_last_bits: settings.first_last_bits.map(|b| b.bits()),
                softmax: settings.softmax.quantizer().name().into(),
                softmax_bits: softmax.next().map(|q| q.bits.bits()),
                range: format!("{:?}", settings.range).to_lowercase(),
            },
            calibration: CalibrationSummary {
                pictures: made.pictures,
                skipped: run.skipped,
                seed: job.observe.seed,
            },
            seconds: run.seconds,
            size: Sizes {
                source: run.source_bytes,
                float: 0,
                file: made.bytes.len() as u64,
            },
            accuracy: run.accuracy,
            layers: (0..program.ops.len())
                .map(|op| layer(program, &model, made, op))
                .collect(),
            attention: (0..program.ops.len())
                .filter_map(|op| attention(program, made, op))
                .collect(),
            compensation: made.decisions.clone(),
            units: made.units.clone(),
            warnings: run.warnings,
        };
        data.size.float = 4 * data.model.parameters as u64;
        data.warn();
        data
    }

    /// Adds the warnings that follow from the numbers.
    fn warn(&mut self) {
        let mut warnings = Vec::new();
        if self.accuracy.as_ref().is_some_and(|a| a.calibration) {
            warnings.push(
                "The accuracy is that of the calibration pictures, to which the quantizer was \
                 fitted: expect less of the integer model on others. Give pictures that were \
                 held back to --eval."
                    .into(),
            );
        }
        // Not `error >= 1.0`: what is not finite is no better, either.
        let useless = |l: &&Layer| !matches!(l.error.accumulated, 0.0..1.0);
        let useless: Vec<&str> = self
            .layers
            .iter()
            .filter(useless)
            .map(|l| l.name.as_str())
            .collect();
        if !useless.is_empty() {
            warnings.push(format!(
                "Always answering the mean would be no worse than the output of {}.",
                useless.join(", ")
            ));
        }
        for unit in &self.units {
            // NaN is not closer, either.
            let closer = unit.after <= unit.before;
            if !closer {
                warnings.push(format!(
                    "Reconstruction did not bring {} closer to float: {} before, {} after.",
                    unit.name,
                    text::number(unit.before),
                    text::number(unit.after)
                ));
            }
        }
        self.warnings.append(&mut warnings);
    }

    /// Bytes of the file that belong to no operation.
    fn other_bytes(&self) -> u64 {
        let of = |l: &Layer| l.code_bytes + l.scale_bytes + l.float_bytes;
        let layers: usize = self.layers.iter().map(of).sum();
        self.size.file.saturating_sub(layers as u64)
    }

    /// How many times smaller the file is than the parameters in f32.
    fn compression(&self) -> f64 {
        self.size.float as f64 / self.size.file as f64
    }

    /// The report for machines; `docs/report.md` describes every field.
    pub fn json(&self) -> Value {
        json!({
            "format": FORMAT,
            "tool": self.tool,
            "model": {
                "file": self.model.file,
                "image": self.model.image,
                "classes": self.model.classes,
                "result": self.model.result,
                "macs": self.model.macs,
                "parameters": self.model.parameters,
            },
            "method": {
                "name": self.method.name,
                "weight_bits": self.method.weight_bits,
                "activation_bits": self.method.activation_bits,
                "first_last_bits": self.method.first_last_bits,
                "softmax": self.method.softmax,
                "softmax_bits": self.method.softmax_bits,
                "range": self.method.range,
            },
            "calibration": {
                "pictures": self.calibration.pictures,
                "skipped": self.calibration.skipped,
                "seed": self.calibration.seed,
            },
            "seconds": self.seconds,
            "size": {
                "source_bytes": self.size.source,
                "float_bytes": self.size.float,
                "file_bytes": self.size.file,
                "other_bytes": self.other_bytes(),
                "compression": self.compression(),
            },
            "accuracy": self.accuracy.as_ref().map(Accuracy::json),
            "layers": list(&self.layers, Layer::json),
            "attention": list(&self.attention, AttentionLayer::json),
            "compensation": list(&self.compensation, decision_json),
            "units": list(&self.units, unit_json),
            "warnings": self.warnings,
        })
    }
}

fn list<T>(items: &[T], json: impl Fn(&T) -> Value) -> Value {
    items.iter().map(json).collect()
}

/// One group of layers that compensation looked at.
pub fn decision_json(decision: &Decision) -> Value {
    json!({
        "layers": decision.group.name(),
        "kl_rounded": decision.rounded,
        "kl_compensated": decision.compensated,
        "damping": decision.damping,
        "kept": decision.kept(),
    })
}

/// What became of one reconstructed unit.
pub fn unit_json(unit: &UnitLog) -> Value {
    json!({
        "name": unit.name,
        "before": unit.before,
        "after": unit.after,
        "curve": unit.curve,
        "note": unit.note,
    })
}

impl Accuracy {
    fn json(&self) -> Value {
        let top = |t: TopK| json!({ "top1": t.top1, "top5": t.top5 });
        json!({
            "data": self.data,
            "calibration": self.calibration,
            "images": self.images,
            "float": top(self.float),
            "integer": top(self.integer),
        })
    }
}

impl Layer {
    fn json(&self) -> Value {
        let before = self.error_before;
        json!({
            "name": self.name,
            "kind": self.kind,
            "weight": self.weight,
            "macs": self.macs,
            "weights": self.weights,
            "weight_bits": self.weight_bits,
            "output_bits": self.output_bits,
            "code_bytes": self.code_bytes,
            "scale_bytes": self.scale_bytes,
            "float_bytes": self.float_bytes,
            "error": self.error.accumulated,
            "rounding": self.error.rounding,
            "error_before": before.map(|e| e.accumulated),
            "rounding_before": before.map(|e| e.rounding),
            "notes": self.notes,
        })
    }
}

impl AttentionLayer {
    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "bits": self.bits,
            "relative_to_row_maximum": self.relative_to_row_maximum,
            "renormalised": self.renormalised,
            "codebooks": self.codebooks.iter().map(AttentionCodebook::json).collect::<Vec<_>>(),
            "histogram": {
                "bins_per_octave": OctaveHistogram::BINS_PER_OCTAVE,
                "counts": self.histogram.counts,
                "mass": self.histogram.mass,
            },
        })
    }
}

impl AttentionCodebook {
    fn json(&self) -> Value {
        json!({
            "levels": self.levels,
            "thresholds": self.thresholds,
        })
    }
}

fn layer(program: &Program, model: &Model<'_>, made: &Quantized, op: usize) -> Layer {
    let operation = &program.ops[op];
    let output = operation.output().index();
    let activation = &made.plan.quantization.activations[output];
    let find = |layers: &[LayerError]| {
        let found = layers.iter().find(|l| l.op == op)?;
        Some(ErrorPair {
            accumulated: found.accumulated,
            rounding: found.rounding,
        })
    };
    let mut layer = Layer {
        name: program.buffers[output].name.clone(),
        kind: operation.kind().into(),
        weight: operation
            .weight()
            .map(|id| program.tensors[id.index()].name.clone()),
        macs: program.op_macs(operation),
        weights: 0,
        weight_bits: None,
        output_bits: activation.as_ref().map(|a| a.bits.bits()),
        code_bytes: 0,
        scale_bytes: 0,
        float_bytes: 0,
        error: find(&made.layers).expect("an error of every operation"),
        error_before: find(&made.layers_before),
        notes: made.plan.notes[op].clone(),
    };
    for id in operation.tensors() {
        match model.tensor(id) {
            Tensor::Weight(w) => {
                layer.weights += w.rows() * w.cols();
                layer.weight_bits = Some(w.bits().bits());
                layer.code_bytes += w.codes().len();
                layer.scale_bytes += 4 * w.scales().len() + w.zero_points().len();
            }
            Tensor::Float(f) => layer.float_bytes += 4 * f.len(),
        }
    }
    layer
}

fn attention(program: &Program, made: &Quantized, op: usize) -> Option<AttentionLayer> {
    let histogram = made.attention[op].clone()?;
    let quant: &SoftmaxQuant = made.plan.quantization.softmax[op].as_ref()?;
    let codebook = |codebook: &SoftmaxCodebook| AttentionCodebook {
        levels: (0..=quant.bits.max_code())
            .map(|code| softmax::decode(quant.kind, codebook, code))
            .collect(),
        thresholds: codebook.thresholds.clone(),
    };
    Some(AttentionLayer {
        name: program.buffers[program.ops[op].output().index()]
            .name
            .clone(),
        bits: quant.bits.bits(),
        relative_to_row_maximum: match quant.kind {
            SoftmaxKind::RowMax => true,
            SoftmaxKind::Static => false,
        },
        renormalised: quant.renormalise,
        codebooks: quant.codebooks.iter().map(codebook).collect(),
        histogram,
    })
}
