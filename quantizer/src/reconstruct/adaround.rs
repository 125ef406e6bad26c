//! AdaRound: whether a weight is rounded up or down is learnt (Nagel et al.
//! 2020, arXiv:2004.10568).
//!
//! ```text
//! w~ = scale * clamp(floor(w / scale) + h(a)),   h(a) = clamp(1.2 sigmoid(a) - 0.1, 0, 1)
//! r  = sum of 1 - |2 h(a) - 1|^beta,             beta from 20 to 2
//! ```
//!
//! `a` learns, w and scale stay. At the end h is 0 or 1: `a >= 0` rounds up.
//!
//! Two things differ from the paper. Losses are normalised here, so that a weight
//! of `r` beside them would mean something else for each unit; `a` moves down `r`
//! by itself instead, beside Adam's step, as weight decay does in AdamW
//! (Loshchilov and Hutter 2019, arXiv:1711.05101). And it moves by a part of a
//! grid step in each step of training that is smaller the more of these there
//! are, so that weights decide in time in 50 steps as in 20000.

use super::math::{MAGIC, RowGrid, clamp, sigmoid, vectorised};

/// How a weight finds its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// The nearest one; gradients pass straight through.
    StraightThrough,
    /// One of the two nearest; which, is learnt.
    AdaRound,
}

/// From `h = 0` to `h = 1` on the scale of `a`: twice `ln 11`.
pub(super) const STEP: f32 = 4.795_790_5;

/// Part of the steps before the regulariser begins.
const WARM_UP: f32 = 0.2;

/// `beta` at the regulariser's start and end.
const BETA: [f32; 2] = [20.0, 2.0];

/// How far the rounding of a training is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Anneal {
    pub(super) step: u32,
    pub(super) steps: u32,
}

impl Anneal {
    /// The regulariser's `beta`, and by what its gradient is multiplied, at this
    /// step; `None` while it is off.
    pub(super) fn push(self) -> Option<(f32, f32)> {
        let at = self.step as f32 / self.steps.max(1) as f32;
        let at = (at - WARM_UP) / (1.0 - WARM_UP);
        let beta = BETA[0] + (BETA[1] - BETA[0]) * at;
        (at >= 0.0).then(|| (beta.max(BETA[1]), 2.0 * STEP / self.steps.max(1) as f32))
    }
}

/// `a` for which `h(a)` is `part`, 0 to 1.
pub(super) fn start(part: f32) -> f32 {
    // The ends have no gradient: a little inside.
    let part = part.clamp(0.01, 0.99);
    -(1.2 / (part + 0.1) - 1.0).ln()
}

/// `h(a)` and its derivative.
#[inline(always)]
fn rectified(a: f32) -> (f32, f32) {
    let p = sigmoid(a);
    let h = 1.2 * p - 0.1;
    let slope = if h > 0.0 && h < 1.0 {
        1.2 * p * (1.0 - p)
    } else {
        0.0
    };
    (clamp(h, [0.0, 1.0]), slope)
}

/// `floor(v)` of a number within codes.
#[inline(always)]
fn floor(v: f32) -> f32 {
    let nearest = (v + MAGIC) - MAGIC;
    nearest - if nearest > v { 1.0 } else { 0.0 }
}

vectorised! {
    /// `out = scale * clamp(floor(w / scale) + h(a))`.
    pub(super) fn soft_row(grid: RowGrid, w: &[f32], a: &[f32], out: &mut [f32]) {
        let inverse = 1.0 / grid.scale;
        for ((out, &w), &a) in out.iter_mut().zip(w).zip(a) {
            let v = floor(w * inverse) + rectified(a).0;
            *out = clamp(v, [grid.low, grid.high]) * grid.scale;
        }
    }

    /// Backward of [`soft_row`]: `masked` is the gradient of `a`; none where the
    /// sum is outside the grid.
    pub(super) fn soft_backward(grid: RowGrid, w: &[f32], a: &[f32], grad: &[f32], masked: &mut [f32]) {
        let inverse = 1.0 / grid.scale;
        for (((masked, &w), &a), &g) in masked.iter_mut().zip(w).zip(a).zip(grad) {
            let (h, slope) = rectified(a);
            let v = floor(w * inverse) + h;
            let inside = v >= grid.low && v <= grid.high;
            *masked = if inside { g * grid.scale * slope } else { 0.0 };
        }
    }
}

/// `a -= by * dr / da`.
pub(super) fn regularise(a: &mut [f32], (beta, by): (f32, f32)) {
    for a in a {
        let (h, slope) = rectified(*a);
        let from_half = 2.0 * h - 1.0;
        let push = 2.0 * beta * from_half.abs().powf(beta - 1.0) * slope;
        *a += by * push.copysign(from_half);
    }
}

/// What [`soft_row`] ends with, `a` having decided.
pub(super) fn hard_row(grid: RowGrid, w: &mut [f32], a: &[f32]) {
    for (w, &a) in w.iter_mut().zip(a) {
        let up = if a >= 0.0 { 1.0 } else { 0.0 };
        *w = (floor(*w / grid.scale) + up).clamp(grid.low, grid.high) * grid.scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: RowGrid = RowGrid {
        scale: 0.5,
        low: -2.0,
        high: 1.0,
    };

    #[test]
    fn a_weight_starts_where_it_was() {
        let w: Vec<f32> = (-100..=50).map(|i| i as f32 * 0.01).collect();
        let part = |w: &f32| w / GRID.scale - (w / GRID.scale).floor();
        let a: Vec<f32> = w.iter().map(|w| start(part(w))).collect();
        let mut out = vec![0.0; w.len()];
        soft_row(GRID, &w, &a, &mut out);
        for (w, out) in w.iter().zip(&out) {
            // A hundredth of a step: `start` keeps away from the ends.
            assert!((w - out).abs() < 0.0101 * GRID.scale, "{w} {out}");
        }
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let w = [-1.2, -0.9, -0.3, 0.1, 0.4, 0.7];
        let a = [0.3, -1.1, 0.9, 2.0, -2.0, 0.2];
        let (by, mut masked) = (1e-2, [0.0; 6]);
        soft_backward(GRID, &w, &a, &[1.0; 6], &mut masked);
        for i in 0..6 {
            let value = |a: f32| {
                let mut out = [0.0];
                soft_row(GRID, &w[i..=i], &[a], &mut out);
                out[0]
            };
            let measured = (value(a[i] + by) - value(a[i] - by)) / (2.0 * by);
            // Differences of second order: by^2 / 6 of a third derivative below 0.1.
            assert!(
                (measured - masked[i]).abs() < 1e-4,
                "{i}: {measured} {}",
                masked[i]
            );
        }
        // The first is below the grid, the last above it.
        assert_eq!([masked[0], masked[5]], [0.0, 0.0]);
    }

    /// The regulariser alone sends every weight to the end it is nearer to, in
    /// the steps there are.
    #[test]
    fn every_weight_decides_in_time() {
        for steps in [50, 200, 1000] {
            let mut a: Vec<f32> = (-20..=20).map(|i| i as f32 * 0.1 + 0.05).collect();
            let first = a.clone();
            for step in 0..steps {
                if let Some(push) = (Anneal { step, steps }).push() {
                    regularise(&mut a, push);
                }
            }
            for (first, last) in first.iter().zip(&a) {
                assert_eq!(*first >= 0.0, *last >= 0.0);
                let h = rectified(*last).0;
                let undecided = h > 0.1 && h < 0.9;
                assert!(
                    !undecided || first.abs() < 0.9,
                    "{steps} steps: {first} ends as {h}"
                );
            }
        }
    }

    #[test]
    fn hard_codes_are_the_ends_of_soft_ones() {
        let w = [-1.2, -0.9, -0.3, 0.1, 0.4, 0.7];
        let a = [10.0, -10.0, 10.0, -10.0, 10.0, 10.0];
        let (mut soft, mut hard) = ([0.0; 6], w);
        soft_row(GRID, &w, &a, &mut soft);
        hard_row(GRID, &mut hard, &a);
        assert_eq!(soft, hard);
    }
}
