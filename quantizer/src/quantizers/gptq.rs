//! Weight rounding that makes up for its own errors.
//!
//! Rounding each weight alone minimises `|w - q|`. What matters is the layer's
//! output, so with the inputs' second moments `H = sum of x x^T`,
//!
//! ```text
//! minimise  (w - q)^T H (w - q)      over the codes of one row
//! ```
//!
//! GPTQ (Frantar et al. 2023, arXiv:2210.17323) rounds the columns one after the
//! other and spreads each error over those still free. Taken back to front this is
//! Babai's nearest plane (arXiv:2507.18553), which needs no inverse: with
//! `H = R^T R`, R upper triangular,
//!
//! ```text
//! q[i] = round( w[i] + sum over j > i of R[i, j] / R[i, i] * (w[j] - q[j]) )      i = k - 1, ..., 0
//! ```
//!
//! Columns are ordered by `H[i, i]`, the largest first to be rounded, as GPTQ's
//! `act-order` does: the fewer are free, the less an error can be spread.

use rayon::prelude::*;
use tpvit_models::WeightQuant;

use super::uniform::Affine;

/// Second moments of a layer's inputs, factored.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Input column at each position.
    order: Vec<usize>, // [k]
    /// `R[i, j] / R[i, i]`, zero for `j <= i`.
    unit: Vec<f32>, // [k, k]
}

impl Moments {
    /// Factors `second`, the symmetric `[k, k]` sum of `x x^T`, with
    /// `damping * mean(diagonal)` added to its diagonal.
    ///
    /// `None` if it is not positive definite even so: some input was infinite.
    ///
    /// # Panics
    /// If `second` is not `k` by `k`.
    pub fn factor(second: &[f32], k: usize, damping: f64) -> Option<Moments> {
        assert_eq!(second.len(), k * k, "second moments are [k, k]");
        let diagonal = |i: usize| f64::from(second[i * k + i]);
        let mean = (0..k).map(diagonal).sum::<f64>() / k as f64;
        // A column that never varies still needs a positive entry.
        let added = (damping * mean).max(f64::MIN_POSITIVE.sqrt());
        let mut order: Vec<usize> = (0..k).collect();
        order.sort_by(|&a, &b| diagonal(a).total_cmp(&diagonal(b)));

        // Cholesky, row by row: each finished row is taken out of those below.
        let mut upper = vec![0.0f64; k * k];
        for i in 0..k {
            for j in i..k {
                upper[i * k + j] = f64::from(second[order[i] * k + order[j]]);
            }
            upper[i * k + i] += added;
        }
        for i in 0..k {
            let (done, rest) = upper.split_at_mut((i + 1) * k);
            let row = &mut done[i * k..];
            let pivot = row[i];
            if !(pivot.is_finite() && pivot > 0.0) {
                return None;
            }
            let inverse = 1.0 / pivot.sqrt();
            row[i..].iter_mut().for_each(|r| *r *= inverse);
            let row = &*row;
            rest.par_chunks_mut(k).enumerate().for_each(|(below, to)| {
                let j = i + 1 + below;
                let factor = row[j];
                for (to, r) in to[j..].iter_mut().zip(&row[j..]) {
                    *to -= factor * r;
                }
            });
        }
        let mut unit = vec![0.0f32; k * k];
        for i in 0..k {
            let inverse = 1.0 / upper[i * k + i];
            for j in i + 1..k {
                unit[i * k + j] = (upper[i * k + j] * inverse) as f32;
            }
        }
        Some(Moments { order, unit })
    }

    /// Rounds `target`, `[rows, k]`, onto the grids of `quant`: its scales and
    /// zero points stay, its codes are chosen anew.
    ///
    /// # Panics
    /// If a length disagrees.
    pub fn round(&self, target: &[f32], quant: &WeightQuant) -> WeightQuant {
        let k = self.order.len();
        let rows = quant.scale.len();
        assert_eq!(target.len(), rows * k, "target is [rows, k]");
        let mut codes = vec![0; rows * k];
        let grids = quant.scale.par_iter().zip(&quant.zero_point);
        codes
            .par_chunks_mut(k)
            .zip(target.par_chunks(k))
            .zip(grids)
            .for_each(|((codes, target), (&scale, &zero))| {
                let grid = Affine {
                    scale,
                    zero_point: i32::from(zero),
                };
                self.round_row(target, grid, quant, codes);
            });
        WeightQuant {
            codes,
            ..quant.clone()
        }
    }

    fn round_row(&self, target: &[f32], grid: Affine, quant: &WeightQuant, codes: &mut [u8]) {
        let k = self.order.len();
        let mut errors = vec![0.0f32; k];
        for i in (0..k).rev() {
            let column = self.order[i];
            let owed = dot(&self.unit[i * k + i + 1..(i + 1) * k], &errors[i + 1..]);
            let code = grid.encode(quant.bits, target[column] + owed);
            codes[column] = code;
            errors[i] = target[column] - grid.decode(code);
        }
    }
}

/// A dot product in eight lanes, so that it becomes vector code.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    for (a, b) in a8.iter().zip(b8) {
        for i in 0..8 {
            lanes[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
}
