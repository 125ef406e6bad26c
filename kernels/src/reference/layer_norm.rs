//! Layer normalisation.
//!
//! ```text
//! mean = sum16(x) / d          var = sum16((x - mean)^2) / d
//! r    = 1 / sqrt(var + eps)   y   = ((x - mean) * r) * gamma + beta
//! ```
//!
//! Ba et al. 2016, arXiv:1607.06450. Two passes: a sum of squares minus a
//! squared mean would cancel where a channel's mean is large.

use super::{quantize::code, sum16};
use crate::{ActQuant, arch};

/// Mean and reciprocal standard deviation of one row.
fn statistics(x: &[f32], eps: f32) -> (f32, f32) {
    let d = x.len() as f32;
    let mean = sum16(x.iter().copied()) / d;
    let var = sum16(x.iter().map(|&x| (x - mean) * (x - mean))) / d;
    (mean, 1.0 / arch::sqrt(var + eps))
}

/// `out[m, d] = y`.
pub fn layer_norm(
    x: &[f32],
    m: usize,
    d: usize,
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    out: &mut [f32],
) {
    for row in 0..m {
        let x = &x[row * d..][..d];
        let (mean, r) = statistics(x, eps);
        for c in 0..d {
            out[row * d + c] = ((x[c] - mean) * r) * gamma[c] + beta[c];
        }
    }
}

/// `out[m, d] = code(y)`, one scale and zero point per column.
#[expect(clippy::too_many_arguments, reason = "they are the formula's")]
pub fn layer_norm_codes(
    x: &[f32],
    m: usize,
    d: usize,
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    quant: &ActQuant,
    out: &mut [u8],
) {
    for row in 0..m {
        let x = &x[row * d..][..d];
        let (mean, r) = statistics(x, eps);
        for c in 0..d {
            let y = ((x[c] - mean) * r) * gamma[c] + beta[c];
            out[row * d + c] = code(y, quant.inv_scale[c], quant.zero_point[c], quant.max_code);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::layer_norm;

    /// Against the formula in f64. The inputs are of size 4 around 3: the mean's
    /// rounding (d/16 + 4 additions of relative 2^-24) and the four roundings of
    /// y stay below 64 * 2^-24 times |x|/sigma + |y|, here below 1e-5 * 4.
    #[test]
    fn close_to_the_formula() {
        let d = 100;
        let x: [f32; 100] = core::array::from_fn(|i| 3.0 + ((i * 7919) % 97) as f32 * 0.08 - 4.0);
        let gamma: [f32; 100] = core::array::from_fn(|i| 0.5 + i as f32 * 0.01);
        let beta: [f32; 100] = core::array::from_fn(|i| i as f32 * 0.02 - 1.0);
        let mut out = [0.0; 100];
        layer_norm(&x, 1, d, &gamma, &beta, 1e-6, &mut out);
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / d as f64;
        let var = x
            .iter()
            .map(|&x| (f64::from(x) - mean).powi(2))
            .sum::<f64>()
            / d as f64;
        for c in 0..d {
            let y = (f64::from(x[c]) - mean) / (var + 1e-6).sqrt() * f64::from(gamma[c])
                + f64::from(beta[c]);
            assert!((y - f64::from(out[c])).abs() < 4e-5, "{c}: {y} {}", out[c]);
        }
    }

    #[test]
    fn a_constant_row_gives_beta() {
        let mut out = [0.0; 3];
        layer_norm(
            &[2.0; 3],
            1,
            3,
            &[1.0; 3],
            &[0.5, -1.0, 3.0],
            1e-6,
            &mut out,
        );
        assert_eq!(out, [0.5, -1.0, 3.0]);
    }
}
