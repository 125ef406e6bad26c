//! What must hold between the parts of a model, beyond
//! [`Program::validate`](crate::Program::validate).
//!
//! SPEC.md, section 11, lists these rules.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::unwrap_used
)]

use super::error::ParseError;
use super::layout::{
    FEATURE_CODEBOOK, FEATURE_OPERATIONS, FEATURE_PANELS, FEATURE_SOFTMAX_PER_HEAD,
};
use super::model::TensorPlace;
use crate::preprocess::{Preprocess, Resize};
use crate::program::{Activation, BufferId, Op, Program, TensorId};
use crate::quant::{
    ActivationQuant, BitWidth, Codebook, Quantization, SoftmaxCodebook, SoftmaxKind, SoftmaxQuant,
};
use alloc::string::String;
use alloc::vec::Vec;
use core::f64::consts::LOG2_E;

/// Positive, finite and not subnormal, so that its reciprocal is finite and
/// not zero.
pub(super) fn is_scale(scale: f32) -> bool {
    scale.is_normal() && scale > 0.0
}

/// No two buffers have one name, nor two tensors.
pub(super) fn names(program: &Program) -> Result<(), ParseError> {
    unique(program.buffers.iter().map(|b| b.name.as_str()).collect())?;
    unique(program.tensors.iter().map(|t| t.name.as_str()).collect())
}

fn unique(mut names: Vec<&str>) -> Result<(), ParseError> {
    names.sort_unstable();
    match names.array_windows().find(|[a, b]| a == b) {
        None => Ok(()),
        Some([name, _]) => Err(ParseError::DuplicateName {
            name: String::from(*name),
        }),
    }
}

/// Exactly the coded buffers and the attention operations have quantizers,
/// and these fit. `program` is valid.
pub(super) fn quantization(program: &Program, quant: &Quantization) -> Result<(), ParseError> {
    let coded = program.coded();
    for ((buffer, coded), quant) in program.buffers.iter().zip(coded).zip(&quant.activations) {
        match quant {
            None if coded => {
                return Err(ParseError::NoActivationQuant {
                    buffer: buffer.name.clone(),
                });
            }
            Some(_) if !coded => {
                return Err(ParseError::NeedlessActivationQuant {
                    buffer: buffer.name.clone(),
                });
            }
            Some(quant) if quant.scale.len() != 1 && quant.scale.len() != buffer.cols => {
                return Err(ParseError::ScaleCount {
                    buffer: buffer.name.clone(),
                    expected: buffer.cols,
                    found: quant.scale.len(),
                });
            }
            Some(ActivationQuant {
                bits,
                codebook: Some(codebook),
                ..
            }) => check_codebook(*bits, codebook).map_err(|rule| ParseError::Codebook {
                buffer: buffer.name.clone(),
                rule,
            })?,
            Some(_) | None => {}
        }
    }
    for (index, (op, softmax)) in program.ops.iter().zip(&quant.softmax).enumerate() {
        check_op(program, quant, index, op, softmax.as_ref())?;
    }
    Ok(())
}

fn check_codebook(bits: BitWidth, codebook: &Codebook) -> Result<(), &'static str> {
    match bits {
        BitWidth::B2 | BitWidth::B3 | BitWidth::B4 => {}
        BitWidth::B6 | BitWidth::B8 => return Err("it must have at most 4 bits"),
    }
    if !codebook.thresholds.is_sorted() {
        return Err("thresholds must ascend");
    }
    if !codebook.levels.is_sorted() {
        return Err("levels must ascend");
    }
    Ok(())
}

/// The features that a reader of this program and its quantizers must know, and of
/// weights some of which lie `in_panels`.
pub(super) fn features(program: &Program, quant: &Quantization, in_panels: bool) -> u32 {
    let mut activations = quant.activations.iter().flatten();
    let codebook = match activations.any(|quant| quant.codebook.is_some()) {
        true => FEATURE_CODEBOOK,
        false => 0,
    };
    let mut softmax = quant.softmax.iter().flatten();
    let per_head = match softmax.any(|quant| quant.codebooks.len() != 1) {
        true => FEATURE_SOFTMAX_PER_HEAD,
        false => 0,
    };
    let operations = match program.ops.iter().any(is_addition) {
        true => FEATURE_OPERATIONS,
        false => 0,
    };
    let panels = match in_panels {
        true => FEATURE_PANELS,
        false => 0,
    };
    codebook | per_head | operations | panels
}

/// Whether the tag of an operation is above 5.
fn is_addition(op: &Op) -> bool {
    match op {
        Op::Attention { window, .. } => window.is_some(),
        Op::HeadNorm { .. } | Op::Gate { .. } | Op::Pool { .. } | Op::PatchMerge { .. } => true,
        Op::PatchEmbed { .. }
        | Op::LayerNorm { .. }
        | Op::Linear { .. }
        | Op::SelectToken { .. } => false,
    }
}

/// A file requires the features that it uses, and no others.
pub(super) fn required(features: u32, used: u32) -> Result<(), ParseError> {
    match features == used {
        true => Ok(()),
        false => Err(ParseError::Features {
            required: features,
            used,
        }),
    }
}

fn check_op(
    program: &Program,
    quant: &Quantization,
    index: usize,
    op: &Op,
    softmax: Option<&SoftmaxQuant>,
) -> Result<(), ParseError> {
    match *op {
        // A scale per column of the input is inside the weight: any will do.
        Op::Linear {
            activation: function,
            output,
            ..
        } => {
            let zero = |quant: &ActivationQuant| quant.zero_point.iter().all(|&zero| zero == 0);
            if function == Activation::Relu && !activation(quant, output).is_some_and(zero) {
                return Err(ParseError::NegativeRelu {
                    buffer: buffer_name(program, output),
                });
            }
            needless(index, softmax)
        }
        Op::Attention {
            qkv,
            heads,
            head_dim,
            scale,
            ..
        } => {
            let softmax = softmax.ok_or(ParseError::NoSoftmaxQuant { op: index })?;
            check_softmax(softmax, heads)
                .map_err(|rule| ParseError::Softmax { op: index, rule })?;
            no_codebook(program, quant, qkv)?;
            let q_and_k = heads.saturating_mul(head_dim).saturating_mul(2);
            uniform(program, quant, qkv, head_dim, q_and_k)?;
            score_units(quant, qkv, [heads, head_dim], scale)
                .map_err(|rule| ParseError::Softmax { op: index, rule })
        }
        Op::PatchEmbed { .. }
        | Op::LayerNorm { .. }
        | Op::HeadNorm { .. }
        | Op::Gate { .. }
        | Op::SelectToken { .. }
        | Op::Pool { .. }
        | Op::PatchMerge { .. } => needless(index, softmax),
    }
}

fn needless(op: usize, softmax: Option<&SoftmaxQuant>) -> Result<(), ParseError> {
    match softmax {
        None => Ok(()),
        Some(_) => Err(ParseError::NeedlessSoftmaxQuant { op }),
    }
}

/// Attention multiplies codes of `bits` bits by each other.
fn no_codebook(
    program: &Program,
    quant: &Quantization,
    buffer: BufferId,
) -> Result<(), ParseError> {
    match activation(quant, buffer).and_then(|quant| quant.codebook.as_ref()) {
        None => Ok(()),
        Some(_) => Err(ParseError::Codebook {
            buffer: buffer_name(program, buffer),
            rule: "the input of attention cannot have one",
        }),
    }
}

fn buffer_name(program: &Program, buffer: BufferId) -> String {
    let buffer = program.buffers.get(buffer.index());
    buffer.map_or_else(String::new, |b| b.name.clone())
}

/// Within each `group` of the first `cols` columns of a buffer, scale and
/// zero point are the same.
fn uniform(
    program: &Program,
    quant: &Quantization,
    buffer: BufferId,
    group: usize,
    cols: usize,
) -> Result<(), ParseError> {
    let Some(quant) = activation(quant, buffer) else {
        return Ok(()); // reported as NoActivationQuant before
    };
    if quant.scale.len() == 1 {
        return Ok(());
    }
    let mut first = None;
    let pairs = quant.scale.iter().zip(&quant.zero_point).take(cols);
    for (col, pair) in pairs.enumerate() {
        if col.checked_rem(group).unwrap_or(0) == 0 {
            first = Some(pair);
        }
        if first != Some(pair) {
            return Err(ParseError::MixedScale {
                buffer: buffer_name(program, buffer),
                col,
            });
        }
    }
    Ok(())
}

/// One step of a score, in octaves of the probability, is a scale in each head: a
/// product of three that each are one may be none.
fn score_units(
    quant: &Quantization,
    qkv: BufferId,
    [heads, head_dim]: [usize; 2],
    scale: f32,
) -> Result<(), &'static str> {
    let Some(quant) = activation(quant, qkv) else {
        return Ok(()); // reported as NoActivationQuant before
    };
    let scales = f64::from(f32::MIN_POSITIVE)..=f64::from(f32::MAX);
    let head = |head: usize| {
        let q = head.saturating_mul(head_dim);
        let k = heads.saturating_mul(head_dim).saturating_add(q);
        let [q, k] = [q, k].map(|col| f64::from(quant.scale_at(col)));
        scales.contains(&(q * k * f64::from(scale) * LOG2_E))
    };
    match (0..heads).all(head) {
        true => Ok(()),
        false => Err("the unit of its scores must be positive, finite and not subnormal"),
    }
}

fn activation(quant: &Quantization, buffer: BufferId) -> Option<&ActivationQuant> {
    quant.activations.get(buffer.index())?.as_ref()
}

fn check_softmax(softmax: &SoftmaxQuant, heads: usize) -> Result<(), &'static str> {
    let count = softmax.codebooks.len();
    if count != 1 && count != heads {
        return Err("there must be one codebook, or one for each head");
    }
    let mut codebooks = softmax.codebooks.iter();
    codebooks.try_for_each(|codebook| check_softmax_codebook(softmax, codebook))
}

fn check_softmax_codebook(
    softmax: &SoftmaxQuant,
    codebook: &SoftmaxCodebook,
) -> Result<(), &'static str> {
    let SoftmaxCodebook {
        scale: _, // read as one
        thresholds,
        multipliers,
    } = codebook;
    if thresholds
        .iter()
        .any(|t| t.is_nan() || *t == f32::NEG_INFINITY)
    {
        return Err("thresholds must be finite or +inf");
    }
    if thresholds.array_windows().any(|[a, b]| a > b) {
        return Err("thresholds must ascend");
    }
    let limit = 16384;
    if multipliers.iter().any(|m| m.unsigned_abs() > limit) {
        return Err("multipliers must be -16384 to 16384");
    }
    if softmax.renormalise {
        // The row is divided by the sum of its multipliers.
        if multipliers.iter().any(|&m| m < 0) {
            return Err("multipliers of a renormalised row must not be negative");
        }
        if multipliers.iter().all(|&m| m == 0) {
            return Err("one multiplier must be positive");
        }
    }
    match softmax.kind {
        SoftmaxKind::Static => Ok(()),
        SoftmaxKind::RowMax => check_row_max(softmax.renormalise, codebook),
    }
}

/// The row's largest probability has t = 0, code 0 and a positive multiplier,
/// so that no row sums to zero.
fn check_row_max(renormalise: bool, codebook: &SoftmaxCodebook) -> Result<(), &'static str> {
    if !renormalise {
        return Err("row-maximum codes must be renormalised");
    }
    if codebook.thresholds.first().is_some_and(|&t| t < 0.0) {
        return Err("the first threshold of row-maximum codes must not be negative");
    }
    if codebook.multipliers.first().is_some_and(|&m| m <= 0) {
        return Err("the first multiplier of row-maximum codes must be positive");
    }
    Ok(())
}

/// Largest sum of magnitudes that i32 holds.
const MOST: u64 = i32::MAX as u64;

/// The code of the brightest pixel, for the patch embedding.
const MAX_PIXEL: u8 = 255;

/// No integer sum of any operation can leave the range of i32.
/// `program` and `quant` fit each other.
pub(super) fn sums(
    program: &Program,
    quant: &Quantization,
    places: &[TensorPlace],
) -> Result<(), ParseError> {
    let linear_sum = |index, max_act, weight: TensorId| {
        let cols = program.tensors.get(weight.index()).map_or(0, |t| t.cols);
        let bits = places.get(weight.index()).and_then(|place| place.bits);
        linear_sum(index, max_act, cols, bits)
    };
    for (index, op) in program.ops.iter().enumerate() {
        match *op {
            Op::PatchEmbed { weight, .. } => linear_sum(index, MAX_PIXEL, weight)?,
            Op::Linear { input, weight, .. } => {
                linear_sum(index, max_code(quant, input), weight)?;
            }
            Op::Attention {
                qkv,
                head_dim,
                window,
                ..
            } => {
                let most = max_code(quant, qkv);
                score_sum(index, most, head_dim)?;
                let tokens = match window {
                    None => program.buffers.get(qkv.index()).map_or(0, |b| b.rows),
                    Some(window) => window.largest(),
                };
                let softmax = quant.softmax.get(index).and_then(Option::as_ref);
                let multiplier = softmax.map_or(0, largest_multiplier);
                value_sum(index, most, tokens, multiplier)?;
            }
            Op::LayerNorm { .. }
            | Op::HeadNorm { .. }
            | Op::Gate { .. }
            | Op::SelectToken { .. }
            | Op::Pool { .. }
            | Op::PatchMerge { .. } => {}
        }
    }
    Ok(())
}

fn max_code(quant: &Quantization, buffer: BufferId) -> u8 {
    activation(quant, buffer).map_or(u8::MAX, |quant| quant.grid_bits().max_code())
}

fn largest_multiplier(softmax: &SoftmaxQuant) -> u16 {
    let multipliers = softmax.codebooks.iter().flat_map(|c| &c.multipliers);
    multipliers.map(|m| m.unsigned_abs()).max().unwrap_or(0)
}

/// With activations `a <= A`, weights centred to `-C <= w < C`, and zero
/// points `z` and `y` in the same ranges,
///
/// ```text
/// sum (a - z)(w - y) = sum a w  -  y sum a  -  z sum w  +  K z y
/// ```
///
/// Each of the four terms is at most `K * A * C`, so whatever the order they
/// are added in, nothing exceeds `4 * K * A * C`.
fn linear_sum(
    op: usize,
    max_act: u8,
    cols: usize,
    bits: Option<BitWidth>,
) -> Result<(), ParseError> {
    // The program is valid: it is a weight, which has a width.
    let half = bits.map_or(0, center);
    let bound = product([4, cols as u64, max_act.into(), half]);
    at_most(op, "the sum of products and zero-point terms", bound)
}

/// As [`linear_sum`], for `q k^T`, both with codes up to `A`: four terms, each
/// at most `head_dim * A * A`.
fn score_sum(op: usize, max_act: u8, head_dim: usize) -> Result<(), ParseError> {
    let bound = product([4, head_dim as u64, max_act.into(), max_act.into()]);
    at_most(op, "the sum of an attention score", bound)
}

/// `sum m v` and `z sum m` each are at most `tokens * M * A`, and so is their
/// difference `sum m (v - z)`, as `0 <= v, z <= A`.
fn value_sum(op: usize, max_act: u8, tokens: usize, multiplier: u16) -> Result<(), ParseError> {
    let bound = product([tokens as u64, multiplier.into(), max_act.into(), 1]);
    at_most(op, "the sum of attention times values", bound)
}

fn center(bits: BitWidth) -> u64 {
    bits.center().into()
}

fn product(factors: [u64; 4]) -> u64 {
    factors.into_iter().fold(1, u64::saturating_mul)
}

fn at_most(op: usize, what: &'static str, bound: u64) -> Result<(), ParseError> {
    if bound > MOST {
        return Err(ParseError::Overflow { op, what, bound });
    }
    Ok(())
}

/// The crop lies within the resized picture.
pub(super) fn crop(program: &Program, preprocess: &Preprocess) -> Result<(), ParseError> {
    let [height, width] = program.image;
    let image = height.max(width);
    match preprocess.resize {
        Resize::ShorterSide(side) if (side as usize) < image => Err(ParseError::Crop {
            shorter_side: side,
            image,
        }),
        Resize::ShorterSide(_) | Resize::Squash => Ok(()),
    }
}

/// No labels, or one for each class. Features have none.
pub(super) fn labels(program: &Program, labels: &[&str]) -> Result<(), ParseError> {
    let classes = program.classes();
    if !labels.is_empty() && labels.len() != classes {
        return Err(ParseError::LabelCount {
            found: labels.len(),
            classes,
        });
    }
    Ok(())
}
