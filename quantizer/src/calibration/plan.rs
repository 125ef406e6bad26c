//! Decides how every buffer, attention and weight is quantized.
//!
//! | buffer | granularity | why it costs nothing at run time |
//! |---|---|---|
//! | output of a LayerNorm | per channel | re-parameterised into the LayerNorm and the next layer |
//! | q, k | per head | a head's scores have one scale |
//! | v | per channel | its scale multiplies the output's column |
//! | attention's output, GELU's output | per channel | its scale is folded into the next weight |

use std::collections::BTreeMap;

use tpvit_models::{
    ActivationQuant, BitWidth, BufferId, Codebook, Op, Program, Quantization, SoftmaxMethod,
    SoftmaxQuant, WeightQuant,
};

use rayon::prelude::*;

use super::observe::Observations;
use super::observers::BufferStats;
use super::reparameterise::reparameterise;
use crate::quantizers::adaptive_base_log::AdaptiveBaseLog;
use crate::quantizers::codebook::Grid;
use crate::quantizers::log_sqrt2::LogSqrt2;
use crate::quantizers::log2::Log2;
use crate::quantizers::row_maximum::RowMaximum;
use crate::quantizers::sulq::Sulq;
use crate::quantizers::truncated_uniform_log2::{LastCode, TruncatedUniformLog2};
use crate::quantizers::twin_uniform::TwinUniform;
use crate::quantizers::uniform::round_even;
use crate::quantizers::uniform_softmax::UniformSoftmax;
use crate::quantizers::{Affine, RangeFit, SoftmaxQuantizer, ZeroPoint, fit_per_head, weight};
use crate::weights::Weights;

/// No channel's scale is below this fraction of its buffer's largest: a
/// channel that was silent in calibration may speak later.
const SMALLEST_SCALE: f32 = 1.0 / 1024.0;

/// Grids that are tried for a codebook, each of 0.9 the range of the one before.
const GRIDS: i32 = 12;

/// What shares a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    /// All channels.
    PerTensor,
    /// The channels of a head; for a buffer without heads, all channels.
    PerHead,
    /// Nothing.
    PerChannel,
}

/// Which layers get `bias -= sum over k of (dequantized - w)[n, k] * E[x_k]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BiasCorrection {
    /// None.
    Never,
    /// The patch embedding: raw pixels are far from mean 0.
    PatchEmbedding,
    /// All.
    Always,
}

/// What the codes of a layer's input stand for, where they have at most 4 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationCode {
    /// Evenly spaced levels.
    Uniform,
    /// Levels of an 8-bit grid with the least squared error.
    Codebook,
    /// Levels of an 8-bit grid that approach their minimum logarithmically: for
    /// GELU's output.
    ShiftedLog,
}

/// How attention is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoftmaxSettings {
    /// Which quantizer.
    pub method: SoftmaxMethod,
    /// Width of its codes; `None` for [`SoftmaxSettings::default_bits`].
    pub bits: Option<BitWidth>,
    /// Whether steps are whole octaves, for methods that choose a step.
    pub integer_step: bool,
    /// Whether rows are divided by their sum; `None` for as published.
    pub renormalise: Option<bool>,
    /// Whether each head has a codebook of its own, for methods with anything
    /// to fit.
    pub per_head: bool,
}

/// Widths of single operations, by their index, where they differ from the rest:
/// mixed precision. Empty for none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Widths {
    /// Of its weight.
    pub weights: BTreeMap<usize, BitWidth>,
    /// Of the codes that it writes.
    pub outputs: BTreeMap<usize, BitWidth>,
    /// Of the codes for its post-softmax attention.
    pub attention: BTreeMap<usize, BitWidth>,
}

/// What to quantize to, and how to choose.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Of weights.
    pub weight_bits: BitWidth,
    /// Of activations.
    pub act_bits: BitWidth,
    /// Of the weights of patch embedding and classifier, and of the
    /// classifier's input; `None` for the same as the rest.
    pub first_last_bits: Option<BitWidth>,
    /// Of single operations, whatever the three above say.
    pub widths: Widths,
    /// How activation ranges are chosen.
    pub range: RangeFit,
    /// Attention.
    pub softmax: SoftmaxSettings,
    /// Of v.
    pub values: Granularity,
    /// Of attention's output.
    pub attention_output: Granularity,
    /// Of the other inputs of linear layers that no LayerNorm writes: GELU's
    /// output.
    pub hidden: Granularity,
    /// Exponent on the per-channel scales of the two above, relative to their
    /// mean: 1 for the fitted scales, 0 for one scale. Less than 1 clips the
    /// widest channels and evens out the weight that takes the scales.
    pub shrink: f32,
    /// Of the outputs of LayerNorms. Buffers of more than 4 bits are uniform
    /// whatever is said here and in `hidden_code`.
    pub normed_code: ActivationCode,
    /// Of the inputs of linear layers that `hidden` is about.
    pub hidden_code: ActivationCode,
    /// Exponent on the per-channel scales of buffers that have a codebook,
    /// instead of `shrink` or of RepQ-ViT's 1: the levels serve channels of
    /// different widths, and the weight that takes the scales is the evener.
    pub codebook_shrink: f32,
    /// Whether the weights' ranges count a column by the variance of its input.
    pub weight_importance: bool,
    /// Which biases make up for the mean error of their weights.
    pub bias_correction: BiasCorrection,
}

impl SoftmaxSettings {
    /// The width used where none is given: that of the activations, but for
    /// row-maximum codes 4 bits at most.
    ///
    /// Finer row-maximum codes need i16 multipliers, which the u8 x s8 dot
    /// product cannot take, and gained little on held-back calibration pictures.
    pub fn default_bits(method: SoftmaxMethod, act_bits: BitWidth) -> BitWidth {
        match method {
            SoftmaxMethod::Log2
            | SoftmaxMethod::Sulq
            | SoftmaxMethod::TulqA
            | SoftmaxMethod::TulqZa
            | SoftmaxMethod::TulqZ
            | SoftmaxMethod::Uniform
            | SoftmaxMethod::LogSqrt2
            | SoftmaxMethod::AdaLog
            | SoftmaxMethod::TwinUniform => act_bits,
            SoftmaxMethod::RowMax => act_bits.min(BitWidth::B4),
        }
    }

    /// The quantizer these settings describe.
    pub fn quantizer(&self) -> Box<dyn SoftmaxQuantizer> {
        let renormalise = self.renormalise.unwrap_or(false);
        let tulq = |last_code| TruncatedUniformLog2 {
            last_code,
            integer_step: self.integer_step,
            renormalise,
        };
        match self.method {
            SoftmaxMethod::Log2 => Box::new(Log2 {
                zero_code: true,
                renormalise,
            }),
            SoftmaxMethod::Sulq => Box::new(Sulq { renormalise }),
            SoftmaxMethod::TulqA => Box::new(tulq(LastCode::Bound)),
            SoftmaxMethod::TulqZa => Box::new(tulq(LastCode::Zero)),
            SoftmaxMethod::RowMax => Box::new(RowMaximum),
            SoftmaxMethod::TulqZ => Box::new(tulq(LastCode::BesideZero)),
            SoftmaxMethod::Uniform => Box::new(UniformSoftmax { renormalise }),
            SoftmaxMethod::LogSqrt2 => Box::new(LogSqrt2 { renormalise }),
            SoftmaxMethod::AdaLog => Box::new(AdaptiveBaseLog { renormalise }),
            SoftmaxMethod::TwinUniform => Box::new(TwinUniform { renormalise }),
        }
    }
}

impl Settings {
    /// The defaults at these widths.
    pub fn new(weight_bits: BitWidth, act_bits: BitWidth) -> Self {
        Settings {
            weight_bits,
            act_bits,
            first_last_bits: None,
            widths: Widths::default(),
            range: RangeFit::Mse,
            softmax: SoftmaxSettings {
                method: SoftmaxMethod::RowMax,
                bits: None,
                integer_step: false,
                renormalise: None,
                per_head: false,
            },
            values: Granularity::PerChannel,
            attention_output: Granularity::PerChannel,
            hidden: Granularity::PerChannel,
            shrink: 0.8,
            normed_code: ActivationCode::Uniform,
            hidden_code: ActivationCode::Uniform,
            codebook_shrink: 0.5,
            weight_importance: true,
            bias_correction: BiasCorrection::PatchEmbedding,
        }
    }

    /// Width of the weight of operation `op`.
    pub fn weight_width(&self, program: &Program, op: usize) -> BitWidth {
        let last = op + 1 == program.ops.len();
        let outer = last || matches!(program.ops[op], Op::PatchEmbed { .. });
        let general = self.first_last_bits.filter(|_| outer);
        let own = self.widths.weights.get(&op).copied();
        own.or(general).unwrap_or(self.weight_bits)
    }

    /// Width of the codes that operation `op` writes, if it writes codes. The
    /// classifier's input may be wider than the rest.
    pub fn output_width(&self, program: &Program, op: usize) -> BitWidth {
        let read_last = program.ops.last().and_then(|last| last.inputs()[0]);
        let outer = read_last == Some(program.ops[op].output());
        let general = self.first_last_bits.filter(|_| outer);
        let own = self.widths.outputs.get(&op).copied();
        own.or(general).unwrap_or(self.act_bits)
    }

    /// Width of the codes for post-softmax attention in operation `op`.
    pub fn attention_width(&self, op: usize) -> BitWidth {
        let default = SoftmaxSettings::default_bits(self.softmax.method, self.act_bits);
        let own = self.widths.attention.get(&op).copied();
        own.or(self.softmax.bits).unwrap_or(default)
    }
}

/// How all of a program is quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantPlan {
    /// Activations and attention.
    pub quantization: Quantization,
    /// By tensor; `Some` exactly for weights of matrix products. Where the
    /// layer's input has one scale per column, `s[k]`, the codes hold
    /// `w[n, k] * s[k]`, otherwise `w[n, k]`.
    pub weights: Vec<Option<WeightQuant>>,
    /// By operation: what was decided and why, one sentence each.
    pub notes: Vec<Vec<String>>,
}

/// Quantizes `program` by what was observed.
///
/// `weights` become what the plan is for: LayerNorms and the layers after them
/// re-parameterised (the same function in f32), biases corrected.
///
/// # Panics
/// If the observations are of another program.
pub fn plan(
    program: &Program,
    weights: &mut Weights,
    observations: &Observations,
    settings: &Settings,
) -> QuantPlan {
    let mut planner = Planner {
        program,
        observations,
        settings,
        moments: vec![None; program.buffers.len()],
        plan: QuantPlan {
            quantization: Quantization {
                activations: vec![None; program.buffers.len()],
                softmax: vec![None; program.ops.len()],
            },
            weights: vec![None; program.tensors.len()],
            notes: vec![Vec::new(); program.ops.len()],
        },
    };
    for index in 0..program.ops.len() {
        planner.activation(index, weights);
    }
    for index in 0..program.ops.len() {
        planner.attention(index);
        planner.weight(index, weights);
    }
    planner.plan
}

/// Mean and variance of each input of a layer, as the layer will see it: in
/// units of codes where the scale is folded into the weight.
#[derive(Clone)]
struct Moments {
    mean: Vec<f64>,
    variance: Vec<f64>,
}

struct Planner<'a> {
    program: &'a Program,
    observations: &'a Observations,
    settings: &'a Settings,
    /// By buffer.
    moments: Vec<Option<Moments>>,
    plan: QuantPlan,
}

impl Planner<'_> {
    /// Quantizes what operation `index` writes, if integers read it.
    fn activation(&mut self, index: usize, weights: &mut Weights) {
        let op = &self.program.ops[index];
        let id = op.output();
        let Some(stats) = &self.observations.buffers[id.index()] else {
            return;
        };
        let bits = self.settings.output_width(self.program, index);
        let quant = match *op {
            Op::LayerNorm { .. } => self.normed(id, bits, stats, weights),
            Op::Attention { head_dim, .. } => {
                let granularity = self.settings.attention_output;
                let channels = self.fit_channels(bits, stats, granularity, head_dim);
                self.per_column(id, bits, stats, channels, None)
            }
            Op::PatchEmbed { .. }
            | Op::Linear { .. }
            | Op::HeadNorm { .. }
            | Op::Gate { .. }
            | Op::SelectToken { .. }
            | Op::Pool { .. }
            | Op::PatchMerge { .. } => match self.program.heads(id) {
                Some((heads, head_dim)) => self.qkv(bits, stats, heads, head_dim),
                None => {
                    let cols = stats.columns.cols();
                    let channels = self.fit_channels(bits, stats, self.settings.hidden, cols);
                    let levels = Levels::new(self.settings.hidden_code, bits);
                    self.per_column(id, bits, stats, channels, levels)
                }
            },
        };
        self.plan.notes[index].push(describe(&quant));
        self.plan.quantization.activations[id.index()] = Some(quant);
    }

    /// Per channel, then re-parameterised to one scale.
    fn normed(
        &mut self,
        id: BufferId,
        bits: BitWidth,
        stats: &BufferStats,
        weights: &mut Weights,
    ) -> ActivationQuant {
        let fit = self.settings.range;
        let cols = stats.columns.cols();
        let mut channels: Vec<Affine> = (0..cols)
            .into_par_iter()
            .map(|col| Affine::fit(bits, ZeroPoint::Free, fit, &stats.column(col)))
            .collect();
        let largest = channels.iter().map(|c| c.scale).fold(0.0, f32::max);
        for (col, channel) in channels.iter_mut().enumerate() {
            if channel.scale < SMALLEST_SCALE * largest {
                let middle = 0.5 * (stats.columns.low[col] + stats.columns.high[col]);
                let half = 0.5 * f32::from(bits.max_code()) * SMALLEST_SCALE * largest;
                *channel = Affine::from_range(bits, ZeroPoint::Free, middle - half, middle + half);
            }
        }
        let codebook = Levels::new(self.settings.normed_code, bits).map(|levels| {
            shrink_around_middle(bits, &mut channels, self.settings.codebook_shrink);
            levels.fit(ZeroPoint::Free, stats, &mut channels)
        });
        let grid_bits = codebook.as_ref().map_or(bits, |_| BitWidth::B8);
        let joint = reparameterise(self.program, weights, id, grid_bits, &channels);
        // x' = s~ * (x / s + z - z~)
        self.moments[id.index()] = Some(moments(stats, |col, mean, variance| {
            let ratio = f64::from(joint.scale) / f64::from(channels[col].scale);
            let shift = f64::from(channels[col].zero_point - joint.zero_point);
            let mean = mean * ratio + shift * f64::from(joint.scale);
            (mean, variance * ratio * ratio)
        }));
        ActivationQuant {
            bits,
            scale: vec![joint.scale],
            zero_point: vec![joint.zero_point as u8],
            codebook,
        }
    }

    /// q and k per head, v as set.
    fn qkv(
        &self,
        bits: BitWidth,
        stats: &BufferStats,
        heads: usize,
        head_dim: usize,
    ) -> ActivationQuant {
        let d = heads * head_dim;
        let head = |h: usize| {
            let pooled = stats.pooled(h * head_dim..(h + 1) * head_dim);
            Affine::fit(bits, ZeroPoint::Code, self.settings.range, &pooled)
        };
        let values: Vec<Affine> = match self.settings.values {
            Granularity::PerTensor => {
                let all = stats.pooled(2 * d..3 * d);
                vec![Affine::fit(bits, ZeroPoint::Code, self.settings.range, &all); d]
            }
            Granularity::PerHead => per_group(2 * heads..3 * heads, head_dim, head),
            Granularity::PerChannel => (2 * d..3 * d)
                .into_par_iter()
                .map(|col| {
                    let column = stats.column(col);
                    Affine::fit(bits, ZeroPoint::Code, self.settings.range, &column)
                })
                .collect(),
        };
        let mut channels = per_group(0..2 * heads, head_dim, head);
        channels.extend(values);
        activation(bits, &channels)
    }

    /// One quantizer, or one for each channel.
    fn fit_channels(
        &self,
        bits: BitWidth,
        stats: &BufferStats,
        granularity: Granularity,
        head_dim: usize,
    ) -> Vec<Affine> {
        let fit = self.settings.range;
        let cols = stats.columns.cols();
        let pooled = |from: usize, to: usize| {
            Affine::fit(bits, ZeroPoint::Code, fit, &stats.pooled(from..to))
        };
        match granularity {
            Granularity::PerTensor => vec![pooled(0, cols)],
            Granularity::PerHead => per_group(0..cols / head_dim, head_dim, |h| {
                pooled(h * head_dim, (h + 1) * head_dim)
            }),
            Granularity::PerChannel => {
                let column = |col| Affine::fit(bits, ZeroPoint::Code, fit, &stats.column(col));
                (0..cols).into_par_iter().map(column).collect()
            }
        }
    }

    /// A buffer whose scales the next weight takes, if it has more than one.
    fn per_column(
        &mut self,
        id: BufferId,
        bits: BitWidth,
        stats: &BufferStats,
        mut channels: Vec<Affine>,
        levels: Option<Levels>,
    ) -> ActivationQuant {
        let folded = channels.len() > 1;
        if folded {
            let exponent = match levels {
                None => self.settings.shrink,
                Some(_) => self.settings.codebook_shrink,
            };
            shrink(&mut channels, exponent);
        }
        let codebook = levels.map(|levels| levels.fit(ZeroPoint::Code, stats, &mut channels));
        self.moments[id.index()] = Some(moments(stats, |col, mean, variance| {
            if !folded {
                return (mean, variance);
            }
            let scale = f64::from(channels[col].scale);
            (mean / scale, variance / (scale * scale))
        }));
        ActivationQuant {
            codebook,
            ..activation(bits, &channels)
        }
    }

    fn attention(&mut self, index: usize) {
        let Some(samples) = &self.observations.attention[index] else {
            return;
        };
        let bits = self.settings.attention_width(index);
        let settings = &self.settings.softmax;
        let quantizer = settings.quantizer();
        let quant = match settings.per_head {
            true => fit_per_head(quantizer.as_ref(), bits, samples),
            false => quantizer.fit(bits, samples),
        };
        let error = samples.relative_error(&quant);
        self.plan.notes[index].push(describe_softmax(quantizer.name(), &quant, error));
        self.plan.quantization.softmax[index] = Some(quant);
    }

    /// Quantizes the weight of operation `index`, if it has one.
    fn weight(&mut self, index: usize, weights: &mut Weights) {
        let op = &self.program.ops[index];
        let (id, bias, input) = match *op {
            Op::PatchEmbed { weight, bias, .. } => (weight, bias, None),
            Op::Linear {
                weight,
                bias,
                input,
                ..
            } => (weight, bias, Some(input)),
            Op::LayerNorm { .. }
            | Op::Attention { .. }
            | Op::HeadNorm { .. }
            | Op::Gate { .. }
            | Op::SelectToken { .. }
            | Op::Pool { .. }
            | Op::PatchMerge { .. } => return,
        };
        let moments = self.input_moments(index, input);
        let bits = self.settings.weight_width(self.program, index);
        let correct = match self.settings.bias_correction {
            BiasCorrection::Never => false,
            BiasCorrection::PatchEmbedding => input.is_none(),
            BiasCorrection::Always => true,
        };
        let target = folded_weight(&weights.tensors[id.index()], op, &self.plan);
        let importance = self.settings.weight_importance.then(|| {
            let pairs = moments.mean.iter().zip(&moments.variance);
            // A corrected mean costs nothing, so only the rest counts.
            let seen = |(m, v): (&f64, &f64)| if correct { *v } else { v + m * m };
            pairs.map(|p| seen(p) as f32).collect::<Vec<f32>>()
        });
        let cols = self.program.tensors[id.index()].cols;
        let quant = weight::quantize(bits, cols, &target, importance.as_deref());
        if correct {
            correct_bias(
                &mut weights.tensors[bias.index()],
                &target,
                &quant,
                &moments.mean,
            );
        }
        let note = format!("weights {} bits per output channel", bits.bits());
        self.plan.notes[index].push(note);
        self.plan.weights[id.index()] = Some(quant);
    }

    fn input_moments(&self, index: usize, input: Option<BufferId>) -> Moments {
        match (input, &self.observations.patches[index]) {
            (Some(input), _) => self.moments[input.index()].clone().expect("a coded input"),
            (None, Some(columns)) => Moments {
                mean: (0..columns.cols()).map(|c| columns.mean(c)).collect(),
                variance: (0..columns.cols()).map(|c| columns.variance(c)).collect(),
            },
            (None, None) => unreachable!("only a patch embedding has no input"),
        }
    }
}

/// What the codes of the weight of `op` stand for: `weight`, times the scales
/// of its input where it takes them.
pub(crate) fn folded_weight(weight: &[f32], op: &Op, plan: &QuantPlan) -> Vec<f32> {
    let input = match *op {
        Op::Linear { input, .. } => Some(input),
        Op::PatchEmbed { .. }
        | Op::LayerNorm { .. }
        | Op::Attention { .. }
        | Op::HeadNorm { .. }
        | Op::Gate { .. }
        | Op::SelectToken { .. }
        | Op::Pool { .. }
        | Op::PatchMerge { .. } => None,
    };
    let quant = input.and_then(|i| plan.quantization.activations[i.index()].as_ref());
    match quant.filter(|q| q.scale.len() > 1) {
        Some(quant) => fold(weight, &quant.scale),
        None => weight.to_vec(),
    }
}

/// `weight * diag(scale)`.
pub(super) fn fold(weight: &[f32], scale: &[f32]) -> Vec<f32> {
    let scales = scale.iter().cycle();
    weight.iter().zip(scales).map(|(w, s)| w * s).collect()
}

/// The quantizer of each group, repeated for each of its channels.
fn per_group(
    groups: std::ops::Range<usize>,
    width: usize,
    fit: impl Fn(usize) -> Affine,
) -> Vec<Affine> {
    groups.flat_map(|g| vec![fit(g); width]).collect()
}

fn activation(bits: BitWidth, channels: &[Affine]) -> ActivationQuant {
    ActivationQuant {
        bits,
        scale: channels.iter().map(|c| c.scale).collect(),
        zero_point: channels.iter().map(|c| c.zero_point as u8).collect(),
        codebook: None,
    }
}

/// Moves scales towards their mean, and none too near 0.
fn shrink(channels: &mut [Affine], exponent: f32) {
    let mean = channels.iter().map(|c| c.scale).sum::<f32>() / channels.len() as f32;
    let largest = channels.iter().map(|c| c.scale).fold(0.0, f32::max);
    for channel in channels {
        let scale = mean * (channel.scale / mean).powf(exponent);
        channel.scale = scale.max(SMALLEST_SCALE * largest);
    }
}

/// As [`shrink`], for quantizers of `bits` bits that need not hold 0: the middle
/// of each range stays where it is.
fn shrink_around_middle(bits: BitWidth, channels: &mut [Affine], exponent: f32) {
    let middles: Vec<f32> = channels.iter().map(|c| middle(bits, c)).collect();
    shrink(channels, exponent);
    for (channel, middle) in channels.iter_mut().zip(middles) {
        let centre = 0.5 * f32::from(bits.max_code());
        channel.zero_point = round_even(centre - middle / channel.scale) as i32;
    }
}

/// How the levels of a codebook are chosen.
struct Levels {
    choose: fn(&Grid, BitWidth) -> Codebook,
    bits: BitWidth,
}

impl Levels {
    /// `None` for uniform ones.
    fn new(code: ActivationCode, bits: BitWidth) -> Option<Self> {
        let choose = match code {
            ActivationCode::Uniform => return None,
            ActivationCode::Codebook => Grid::least_squares,
            ActivationCode::ShiftedLog => Grid::shifted_log,
        };
        (bits <= BitWidth::B4).then_some(Levels { choose, bits })
    }

    /// Levels that serve all channels, each divided by its scale; the channels
    /// become those of the 8-bit grid that holds the levels.
    ///
    /// With [`ZeroPoint::Free`] what is divided is the distance from the middle
    /// of a channel's range. Every channel counts the same, as its scale is folded
    /// into the next weight: counting it by that weight, or by its scale, was
    /// worse on held-back calibration pictures of ViT-Ti/16.
    fn fit(self, zero: ZeroPoint, stats: &BufferStats, channels: &mut [Affine]) -> Codebook {
        let middle = |channel: &Affine| match zero {
            ZeroPoint::Code => 0.0,
            ZeroPoint::Free => middle(self.bits, channel),
        };
        let columns: Vec<(f32, f32)> = channels.iter().map(|c| (middle(c), c.scale)).collect();
        let values: Vec<f32> = stats
            .rows()
            .flat_map(|row| row.iter().zip(columns.iter().cycle()))
            .map(|(&x, &(middle, scale))| (x - middle) / scale)
            .collect();
        let (grid, codebook) = self.search(zero, &values);
        for channel in channels {
            let middle = middle(channel);
            channel.scale *= grid.scale;
            channel.zero_point = grid.zero_point - round_even(middle / channel.scale) as i32;
        }
        codebook
    }

    /// The grid and its levels with the least error: a grid for all that was
    /// seen, or one that clips some of it.
    fn search(&self, zero: ZeroPoint, values: &[f32]) -> (Affine, Codebook) {
        let low = values.iter().copied().fold(0.0, f32::min);
        let high = values.iter().copied().fold(0.0, f32::max);
        let candidates = (0..GRIDS).into_par_iter().map(|step| {
            let factor = 0.9f32.powi(step);
            let low = match zero {
                ZeroPoint::Code => low, // GELU's minimum is never rare
                ZeroPoint::Free => low * factor,
            };
            let affine = Affine::from_range(BitWidth::B8, ZeroPoint::Code, low, high * factor);
            let grid = Grid::new(affine, values.iter().map(|&x| (x, 1.0)));
            let codebook = (self.choose)(&grid, self.bits);
            (grid.error(&codebook), affine, codebook)
        });
        let best = candidates.min_by(|a, b| a.0.total_cmp(&b.0));
        let (_, affine, codebook) = best.expect("there are grids");
        (affine, codebook)
    }
}

/// The middle of the range of a quantizer of `bits` bits.
fn middle(bits: BitWidth, channel: &Affine) -> f32 {
    channel.scale * (0.5 * f32::from(bits.max_code()) - channel.zero_point as f32)
}

/// Moments of a buffer's columns, changed by `map(column, mean, variance)`.
fn moments(stats: &BufferStats, map: impl Fn(usize, f64, f64) -> (f64, f64)) -> Moments {
    let columns = &stats.columns;
    let (mean, variance) = (0..columns.cols())
        .map(|col| map(col, columns.mean(col), columns.variance(col)))
        .unzip();
    Moments { mean, variance }
}

/// Takes the mean error out of the output: the codes of `quant` instead of `target`.
pub(super) fn correct_bias(bias: &mut [f32], target: &[f32], quant: &WeightQuant, mean: &[f64]) {
    let decoded = weight::dequantize(quant);
    let rows = target.chunks_exact(mean.len());
    for ((bias, target), decoded) in bias
        .iter_mut()
        .zip(rows)
        .zip(decoded.chunks_exact(mean.len()))
    {
        let errors = decoded.iter().zip(target).zip(mean);
        let sum: f64 = errors.map(|((d, t), m)| f64::from(d - t) * m).sum();
        *bias = (f64::from(*bias) - sum) as f32;
    }
}

fn describe(quant: &ActivationQuant) -> String {
    let bits = match quant.codebook {
        None => format!("{} bits", quant.bits.bits()),
        Some(_) => format!("{} bits, a codebook", quant.bits.bits()),
    };
    match quant.scale.len() {
        1 => format!("output {bits}, scale {:.3e}", quant.scale[0]),
        n => {
            let low = quant.scale.iter().copied().fold(f32::INFINITY, f32::min);
            let high = quant.scale.iter().copied().fold(0.0, f32::max);
            format!("output {bits}, {n} scales, {low:.3e} to {high:.3e}")
        }
    }
}

fn describe_softmax(name: &str, quant: &SoftmaxQuant, error: f64) -> String {
    let bits = quant.bits.bits();
    let heads = match quant.codebooks.len() {
        1 => "",
        _ => " per head",
    };
    let error = error.sqrt();
    format!("softmax {name} {bits} bits{heads}, relative error of the product with v {error:.4}")
}
