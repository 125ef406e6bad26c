//! Channel-wise to layer-wise scales without changing a code.
//!
//! RepQ-ViT (Li et al. 2023, arXiv:2212.08254), as used by I&S-ViT, with an
//! integer zero point. The output of a LayerNorm is quantized per channel with
//! `(s, z)`. With the scalars `s~ = mean(s)`, `z~ = round(mean(z))`,
//! `r1 = s / s~` and `r2 = z - z~`:
//!
//! ```text
//! LayerNorm    gamma <- gamma / r1      beta <- (beta + s * r2) / r1
//! next linear  W <- W * diag(r1)        b <- b - W * (s * r2)     (W before)
//! ```
//!
//! Then `round(x' / s~) + z~ = round(x / s) + z`: the codes are the same ones,
//! because `r2` is an integer. (Both references leave `z~` fractional, which
//! no integer runtime can execute.) `z` may be any integer; only `z~` has to be
//! a code.

use tpvit_models::{BitWidth, BufferId, Op, Program, TensorId};

use crate::quantizers::Affine;
use crate::weights::Weights;

/// Folds per-channel quantizers of a LayerNorm's output into the LayerNorm
/// and every linear layer that reads it; returns the one quantizer that is left.
///
/// `channels` has one entry for each column of `buffer`. The function that the
/// program computes in f32 stays the same.
///
/// # Panics
/// If `buffer` is not written by a LayerNorm and read by linear layers only,
/// or `channels` has the wrong length.
pub fn reparameterise(
    program: &Program,
    weights: &mut Weights,
    buffer: BufferId,
    bits: BitWidth,
    channels: &[Affine],
) -> Affine {
    let cols = program.buffers[buffer.index()].cols;
    assert_eq!(channels.len(), cols, "one quantizer for each channel");
    let joint = mean(bits, channels);
    let ratio: Vec<f64> = channels
        .iter()
        .map(|c| f64::from(c.scale) / f64::from(joint.scale))
        .collect();
    let shift: Vec<f64> = channels
        .iter()
        .map(|c| f64::from(c.scale) * f64::from(c.zero_point - joint.zero_point))
        .collect();
    for op in &program.ops {
        let reads = op.inputs().contains(&Some(buffer));
        match *op {
            Op::LayerNorm {
                gamma,
                beta,
                output,
                ..
            } if output == buffer => {
                fold_before(weights, gamma, beta, &ratio, &shift);
            }
            Op::Linear { weight, bias, .. } if reads => {
                fold_after(weights, weight, bias, &ratio, &shift);
            }
            Op::PatchEmbed { .. }
            | Op::LayerNorm { .. }
            | Op::Linear { .. }
            | Op::Attention { .. }
            | Op::HeadNorm { .. }
            | Op::Gate { .. }
            | Op::SelectToken { .. }
            | Op::Pool { .. }
            | Op::PatchMerge { .. } => {
                let involved = reads || op.output() == buffer;
                assert!(!involved, "{} cannot be re-parameterised", op.kind());
            }
        }
    }
    joint
}

/// The mean scale, and the mean zero point as a code.
fn mean(bits: BitWidth, channels: &[Affine]) -> Affine {
    let count = channels.len() as f64;
    let scale = channels.iter().map(|c| f64::from(c.scale)).sum::<f64>() / count;
    let zero = channels
        .iter()
        .map(|c| f64::from(c.zero_point))
        .sum::<f64>()
        / count;
    Affine {
        scale: scale as f32,
        zero_point: (zero.round_ties_even() as i32).clamp(0, i32::from(bits.max_code())),
    }
}

fn fold_before(
    weights: &mut Weights,
    gamma: TensorId,
    beta: TensorId,
    ratio: &[f64],
    shift: &[f64],
) {
    for (g, r) in weights.tensors[gamma.index()].iter_mut().zip(ratio) {
        *g = (f64::from(*g) / r) as f32;
    }
    let betas = weights.tensors[beta.index()].iter_mut();
    for ((b, r), s) in betas.zip(ratio).zip(shift) {
        *b = ((f64::from(*b) + s) / r) as f32;
    }
}

fn fold_after(
    weights: &mut Weights,
    weight: TensorId,
    bias: TensorId,
    ratio: &[f64],
    shift: &[f64],
) {
    let mut biases = std::mem::take(&mut weights.tensors[bias.index()]);
    let rows = weights.tensors[weight.index()].chunks_exact_mut(ratio.len());
    for (row, bias) in rows.zip(&mut biases) {
        let moved = row.iter().zip(shift).map(|(w, s)| f64::from(*w) * s);
        *bias = (f64::from(*bias) - moved.sum::<f64>()) as f32;
        for (w, r) in row.iter_mut().zip(ratio) {
            *w = (f64::from(*w) * r) as f32;
        }
    }
    weights.tensors[bias.index()] = biases;
}
