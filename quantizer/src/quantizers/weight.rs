//! Weights: uniform affine, one scale and zero point per output channel.
//!
//! ```text
//! w[n, k] ~= scale[n] * (code[n, k] - zero_point[n])
//! ```
//!
//! Below 8 bits the zero point is free among the codes (at 3 bits symmetric
//! codes would have 7 levels, asymmetric ones have 8); at 8 bits it is
//! `2^(bits - 1)`, so the runtime's signed codes need no correction. The
//! clipping range of each row minimises
//!
//! ```text
//! sum over k of importance[k] * (w[n, k] - decoded[n, k])^2
//! ```
//!
//! With `importance[k] = E[x_k^2]` this is the expected squared error of the
//! output under independent inputs: the diagonal of the Hessian that OBQ and
//! GPTQ (arXiv:2210.17323) use in full.

use rayon::prelude::*;
use tpvit_models::{BitWidth, WeightQuant};

use super::uniform::{Affine, ZeroPoint, round_even};

/// Quantizes `weight`, `[rows, cols]` row-major, per row.
///
/// `importance` is `[cols]`, not negative; `None` counts every column alike.
///
/// # Panics
/// If a length disagrees with `cols`, or there is nothing to quantize.
pub fn quantize(
    bits: BitWidth,
    cols: usize,
    weight: &[f32],
    importance: Option<&[f32]>,
) -> WeightQuant {
    assert!(
        cols > 0 && !weight.is_empty() && weight.len().is_multiple_of(cols),
        "{} weights are no rows of {cols}",
        weight.len()
    );
    let even = vec![1.0; cols];
    let importance = importance.unwrap_or(&even);
    assert_eq!(importance.len(), cols, "one importance for each column");
    let fits: Vec<Affine> = weight
        .par_chunks(cols)
        .map(|row| fit_row(bits, row, importance))
        .collect();
    encode(bits, cols, weight, &fits)
}

/// The codes of `weight`, `[rows, cols]`, under one quantizer per row.
///
/// # Panics
/// If there are not as many quantizers as rows.
pub fn encode(bits: BitWidth, cols: usize, weight: &[f32], fits: &[Affine]) -> WeightQuant {
    assert_eq!(
        weight.len(),
        fits.len() * cols,
        "one quantizer for each row"
    );
    let rows = weight.chunks(cols).zip(fits);
    WeightQuant {
        bits,
        scale: fits.iter().map(|f| f.scale).collect(),
        zero_point: fits.iter().map(|f| f.zero_point as u8).collect(),
        codes: rows
            .flat_map(|(row, fit)| row.iter().map(|&w| fit.encode(bits, w)))
            .collect(),
    }
}

/// The weights the codes stand for, `[rows, cols]`.
pub fn dequantize(quant: &WeightQuant) -> Vec<f32> {
    let rows = quant.scale.len();
    let cols = quant.codes.len() / rows;
    let channels = quant.scale.iter().zip(&quant.zero_point);
    quant
        .codes
        .chunks(cols)
        .zip(channels)
        .flat_map(|(codes, (&scale, &zero))| {
            codes
                .iter()
                .map(move |&c| scale * (i32::from(c) - i32::from(zero)) as f32)
        })
        .collect()
}

/// The range of one row with the least weighted squared error.
fn fit_row(bits: BitWidth, row: &[f32], importance: &[f32]) -> Affine {
    let low = row.iter().copied().fold(0.0, f32::min);
    let high = row.iter().copied().fold(0.0, f32::max);
    let ranged = |a: f32, b: f32| row_affine(bits, a * low, b * high);
    let error = |affine| weighted_error(bits, affine, row, importance);
    let mut best = (error(ranged(1.0, 1.0)), (1.0, 1.0));
    let mut offer = |factors: (f32, f32)| {
        let e = error(ranged(factors.0, factors.1));
        if e < best.0 {
            best = (e, factors);
        }
        best.1
    };
    let mut at = (1.0, 1.0);
    for step in 1..24 {
        let shrink = 1.0 - 0.03 * step as f32;
        at = offer((shrink, shrink));
    }
    for width in [0.09f32, 0.03, 0.01] {
        for step in [-2.0f32, -1.0, 1.0, 2.0] {
            at = offer((at.0 * (1.0 + width * step), at.1));
        }
        for step in [-2.0f32, -1.0, 1.0, 2.0] {
            at = offer((at.0, at.1 * (1.0 + width * step)));
        }
    }
    ranged(at.0, at.1)
}

/// Asymmetric below 8 bits, symmetric at 8.
fn row_affine(bits: BitWidth, low: f32, high: f32) -> Affine {
    match bits {
        BitWidth::B2 | BitWidth::B3 | BitWidth::B4 | BitWidth::B6 => {
            Affine::from_range(bits, ZeroPoint::Code, low, high)
        }
        BitWidth::B8 => {
            let centre = f32::from(bits.center());
            // The negative side has one level more.
            let scale = (high / (centre - 1.0)).max(-low / centre).max(1e-12);
            Affine {
                scale,
                zero_point: i32::from(bits.center()),
            }
        }
    }
}

fn weighted_error(bits: BitWidth, affine: Affine, row: &[f32], importance: &[f32]) -> f64 {
    let inverse = 1.0 / affine.scale;
    let low = -affine.zero_point as f32;
    let high = (i32::from(bits.max_code()) - affine.zero_point) as f32;
    let mut sum = [0.0f32; 8];
    for (row, importance) in row.chunks(8).zip(importance.chunks(8)) {
        for ((s, &w), &i) in sum.iter_mut().zip(row).zip(importance) {
            let e = w - affine.scale * round_even((w * inverse).clamp(low, high));
            *s += i * e * e;
        }
    }
    sum.iter().map(|&s| f64::from(s)).sum()
}
