//! Runs the original graph and the imported program on the same pictures.
//!
//! A wrong match (q and k swapped, a scale forgotten, a wrong head count)
//! becomes an error here instead of a bad quantized model. The original runs
//! in tract; beside the logits it is tapped at the embedding and after every
//! block, so that the error names the first part that differs.
//!
//! # Tolerance
//!
//! Both sides compute in f32, in different orders. A sum of `k` terms in any
//! order has a rounding error like a random walk, `u * sqrt(k)` of the size of
//! its partial sums, `u = 2^-24` (Higham and Mary 2019,
//! doi:10.1137/18M1226312); these are as large as the output row's rms, or as
//! `sqrt(k) * rms(input) * rms(weight)` where the sum cancels. How such errors grow on their way to the logits depends on
//! the weights, so it is measured: the program runs once more with noise of
//! just that size added to every buffer, and the tolerance of each tap is
//! [`HEADROOM`] times what the noise changed there. A program that is so
//! unstable that this exceeds [`LARGEST`] is compared against that instead.

use super::{ImportError, Imported};
use crate::onnx::read_proto;
use crate::reference::{Executor, Hook};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use tpvit_models::{Activation, BufferId, Op, TensorId};
use tract_onnx::prelude::*;

/// Pictures compared.
const PICTURES: u64 = 2;

/// The noise is one draw and the two sides differ by another, each the largest
/// of many; both sides round; and tract's exp and erf are polynomials good to
/// a few units in the last place. Together well below this factor.
const HEADROOM: f64 = 16.0;

/// Rounding noise that is larger than this explains nothing any more.
const LARGEST: f64 = 1e-2;

/// How closely import and original agree.
#[derive(Clone, Debug, PartialEq)]
pub struct GuardReport {
    /// For each tap and at last the logits: the part, the largest difference
    /// over the largest magnitude, and how much was tolerated.
    pub parts: Vec<(String, f64, f64)>,
}

impl GuardReport {
    /// Difference of the logits, relative to the largest.
    pub fn logits(&self) -> f64 {
        self.parts.last().map_or(f64::NAN, |p| p.1)
    }
}

/// Compares `imported` with a run of the graph in `path`, on random pictures.
///
/// # Errors
/// If the graph does not run, or some part of `imported` computes something
/// else; the error names the first such part.
pub fn verify(path: impl AsRef<Path>, imported: &Imported) -> Result<GuardReport, ImportError> {
    let path = path.as_ref();
    let mut parts: Vec<(String, f64, f64)> = Vec::new();
    let original = Original::load(path, imported)?;
    for seed in 0..PICTURES {
        let image = random_image(imported.program.image, seed);
        let expected = original.run(&image, imported.program.image);
        let expected = expected.map_err(|detail| failed(path, detail))?;
        let found = run(imported, &image, &mut ());
        let noisy = run(imported, &image, &mut Rounding::new(imported, &image, seed));
        for (i, name) in part_names(imported).enumerate() {
            if found[i].len() != expected[i].len() {
                let detail = format!("its {name} has {} values", expected[i].len());
                return Err(failed(path, detail));
            }
            let difference = distance(&found[i], &expected[i]);
            let tolerance = (HEADROOM * distance(&noisy[i], &found[i])).min(LARGEST);
            match parts.get_mut(i) {
                Some(part) => {
                    (part.1, part.2) = (worst(part.1, difference), part.2.max(tolerance));
                }
                None => parts.push((name, difference, tolerance)),
            }
        }
    }
    match parts.iter().position(|p| p.1.is_nan() || p.1 > p.2) {
        None => Ok(GuardReport { parts }),
        Some(i) => Err(ImportError::Mismatch {
            path: path.to_owned(),
            part: parts[i].0.clone(),
            value: imported
                .taps
                .get(i)
                .map_or(&imported.output_name, |t| &t.value)
                .clone(),
            difference: parts[i].1,
            tolerance: parts[i].2,
        }),
    }
}

pub(super) fn failed(path: &Path, detail: String) -> ImportError {
    ImportError::Reference {
        path: path.to_owned(),
        detail,
    }
}

fn part_names(imported: &Imported) -> impl Iterator<Item = String> + '_ {
    let taps = imported.taps.iter().map(|t| t.part.clone());
    taps.chain(["logits".to_owned()])
}

/// The larger, or NaN if either is.
fn worst(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

/// Largest difference over the largest magnitude of `of`.
fn distance(a: &[f32], of: &[f32]) -> f64 {
    let pairs = a.iter().zip(of);
    let difference = pairs
        .map(|(a, b)| f64::from((a - b).abs()))
        .fold(0.0, worst);
    let scale = of.iter().map(|v| f64::from(v.abs())).fold(0.0, worst);
    if difference == 0.0 {
        0.0
    } else {
        difference / scale
    }
}

/// Taps and logits of the imported program.
fn run(imported: &Imported, image: &[f32], hook: &mut dyn Hook) -> Vec<Vec<f32>> {
    let mut executor = Executor::new(&imported.program, &imported.weights);
    let logits = executor.run(image, hook).to_vec();
    let taps = imported
        .taps
        .iter()
        .map(|t| executor.buffer(t.buffer).to_vec());
    taps.chain([logits]).collect()
}

/// A generator for pictures and noise: splitmix64, Steele et al. 2014.
struct Random(u64);

impl Random {
    /// Uniform in -1..1.
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Bell-shaped, of variance 1: the sum of three uniforms of variance 1/3.
    fn unit(&mut self) -> f32 {
        self.next() + self.next() + self.next()
    }
}

/// Noise around slopes that differ by direction and channel, so that no two
/// rows, columns, channels or patches are alike; within -2..2, the range of
/// normalised pixels.
fn random_image([height, width]: [usize; 2], seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    let mut image = Vec::with_capacity(height * width * 3);
    for y in 0..height {
        for x in 0..width {
            for channel in 0..3 {
                let slope = match (channel + seed) % 3 {
                    0 => y as f32 / height as f32,
                    1 => 0.5 - x as f32 / width as f32,
                    _ => (y + x) as f32 / (height + width) as f32 - 0.7,
                };
                image.push(slope + random.next());
            }
        }
    }
    image
}

/// Adds to every buffer noise of the size of its operation's rounding error.
struct Rounding<'a> {
    imported: &'a Imported,
    rms: Vec<f32>, // of each buffer so far
    image_rms: f32,
    random: Random,
}

impl<'a> Rounding<'a> {
    fn new(imported: &'a Imported, image: &[f32], seed: u64) -> Self {
        Rounding {
            imported,
            rms: vec![0.0; imported.program.buffers.len()],
            image_rms: rms(image),
            random: Random(!seed),
        }
    }

    /// Terms of each sum of an operation, and the size of its partial sums if
    /// the terms had random signs: what cancels must not hide its rounding.
    fn sums(&self, op: &Op) -> (usize, f32) {
        let program = &self.imported.program;
        let of = |b: BufferId| self.rms[b.index()];
        let weighted = |input: f32, weight: TensorId| {
            let k = program.tensors[weight.index()].cols;
            let weight = rms(&self.imported.weights.tensors[weight.index()]);
            (k, (k as f32).sqrt() * input * weight)
        };
        match *op {
            Op::PatchEmbed { weight, .. } => weighted(self.image_rms, weight),
            Op::LayerNorm { input, .. } => (program.buffers[input.index()].cols, 0.0),
            Op::Linear {
                input,
                weight,
                activation,
                ..
            } => match (activation, weighted(of(input), weight)) {
                (Activation::Identity | Activation::Relu, sums) => sums,
                (Activation::Gelu, (k, size)) => (k + 64, size), // erf's own error, some 8 u
            },
            Op::Attention { qkv, head_dim, .. } => {
                (program.buffers[qkv.index()].rows + head_dim, of(qkv))
            }
            Op::HeadNorm { head_dim, .. } => (head_dim, 0.0),
            Op::Gate { .. } => (64, 0.0), // exp's own error, some 8 u
            Op::Pool { input, count, .. } => (count, of(input)),
            Op::SelectToken { .. } | Op::PatchMerge { .. } => (0, 0.0),
        }
    }
}

fn rms(values: &[f32]) -> f32 {
    let squares: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
    (squares / values.len() as f64).sqrt() as f32
}

impl Hook for Rounding<'_> {
    fn buffer(&mut self, op: usize, id: BufferId, values: &mut [f32]) {
        const UNIT: f32 = f32::EPSILON / 2.0;
        let program = &self.imported.program;
        let (terms, size) = self.sums(&program.ops[op]);
        let walk = UNIT * (terms as f32).sqrt();
        self.rms[id.index()] = rms(values);
        for row in values.chunks_exact_mut(program.buffers[id.index()].cols) {
            let noise = walk * size.max(rms(row));
            row.iter_mut()
                .for_each(|v| *v += noise * self.random.unit());
        }
    }
}

/// The original graph, ready to run at batch 1.
struct Original {
    model: std::sync::Arc<TypedRunnableModel>,
}

impl Original {
    fn load(path: &Path, imported: &Imported) -> Result<Self, ImportError> {
        let proto = read_proto(path)?;
        let [height, width] = imported.program.image;
        let taps = imported.taps.iter().map(|t| &t.value);
        let names: Vec<&String> = taps.chain([&imported.output_name]).collect();
        let build = || -> TractResult<_> {
            tract_onnx::onnx()
                .with_ignore_output_shapes(true)
                .with_ignore_value_info(true)
                .model_for_proto_model(&proto)?
                .with_input_names([&imported.input_name])?
                .with_input_fact(0, f32::fact([1, 3, height, width]).into())?
                .with_outputs_by_name(&names)?
                .into_optimized()?
                .into_runnable()
        };
        let model = guarded(build).map_err(|detail| failed(path, detail))?;
        Ok(Original { model })
    }

    /// Taps and logits of a picture `[height, width, 3]`.
    fn run(&self, image: &[f32], [height, width]: [usize; 2]) -> Result<Vec<Vec<f32>>, String> {
        let plane = height * width;
        let chw: Vec<f32> = (0..plane * 3)
            .map(|i| image[i % plane * 3 + i / plane])
            .collect();
        guarded(|| {
            let input = Tensor::from_shape(&[1, 3, height, width], &chw)?;
            let outputs = self.model.run(tvec!(input.into_tvalue()))?;
            let floats = |v: &TValue| Ok(v.to_plain_array_view::<f32>()?.iter().copied().collect());
            outputs.iter().map(floats).collect()
        })
    }
}

/// Runs tract; a panic in it is an error like any other.
pub(super) fn guarded<T>(work: impl FnOnce() -> TractResult<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(format!("{error:#}")),
        Err(_) => Err("the reference runner panicked".into()),
    }
}
