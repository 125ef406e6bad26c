//! Elementwise forward and backward passes, in f32.
//!
//! Loops without branches over plain slices: `vectorised!` compiles each for the
//! instruction sets of the CPU, where the compiler vectorises it. Exponentials
//! are polynomials, good to about 1e-7: what is trained is compared with what
//! is deployed by [`crate::calibration::FakeQuant`], which has the runtime's
//! own roundings.

use std::f32::consts::{LOG2_E, SQRT_2};

use pulp::{Arch, NullaryFnOnce};

/// `1.5 * 2^23`: see [`crate::quantizers::uniform::round_even`].
pub(super) const MAGIC: f32 = 12_582_912.0;

/// Defines functions whose body is compiled for each instruction set; the best
/// one that the CPU has runs.
///
/// A closure would do, were it always inlined into the code that is compiled
/// for an instruction set; so each body is a method of a type of its own.
macro_rules! vectorised {
    ($($(#[$attribute:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?)
        $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$attribute])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            struct Body<A>(A);
            impl pulp::NullaryFnOnce for Body<($($ty,)*)> {
                #[allow(unused_parens, reason = "`()` where nothing is returned")]
                type Output = ($($ret)?);

                #[inline(always)]
                fn call(self) -> Self::Output {
                    let Body(($($arg,)*)) = self;
                    $body
                }
            }
            $crate::reconstruct::math::dispatch(Body(($($arg,)*)))
        }
    )*};
}
pub(super) use vectorised;

/// Runs `body` compiled for the best instruction set of the CPU.
pub(super) fn dispatch<F: NullaryFnOnce>(body: F) -> F::Output {
    Arch::new().dispatch(body)
}

/// `2^x` for `x <= 0`; below -126, `2^-126`.
///
/// ```text
/// 2^x = 2^i * 2^f,  i = round(x),  |f| <= 1/2;  2^f by its Taylor series, degree 7
/// ```
///
/// The first dropped term is `(ln 2 / 2)^8 / 8! < 6e-9`.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    const LN2: f32 = std::f32::consts::LN_2;
    let x = if x > -126.0 { x } else { -126.0 };
    let shifted = x + MAGIC;
    let f = (x - (shifted - MAGIC)) * LN2;
    let mut sum = 1.0 / 5040.0;
    for c in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        sum = sum * f + c;
    }
    let exponent = (shifted.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
    sum * f32::from_bits(((exponent + 127) << 23) as u32)
}

/// `(Phi(x), phi(x))`: the normal distribution and its density.
///
/// Abramowitz and Stegun 7.1.26, absolute error of `Phi` below 1.5e-7.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    let z = x.abs() * (1.0 / SQRT_2);
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let gauss = exp2(-z * z * LOG2_E);
    let mut sum = 1.061_405_4f32;
    for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        sum = sum * t + c;
    }
    let tail = 0.5 * sum * t * gauss; // 1 - Phi(|x|)
    let phi = if x < 0.0 { tail } else { 1.0 - tail };
    (phi, gauss * 0.398_942_3)
}

vectorised! {
    /// `y = x * Phi(x)`, Hendrycks and Gimpel 2016, arXiv:1606.08415.
    pub(super) fn gelu(x: &[f32], y: &mut [f32]) {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = x * normal(x).0;
            }
    }
}

vectorised! {
    /// `grad *= d gelu(x) / dx = Phi(x) + x * phi(x)`.
    pub(super) fn gelu_backward(x: &[f32], grad: &mut [f32]) {
            for (g, &x) in grad.iter_mut().zip(x) {
                let (phi, density) = normal(x);
                *g *= phi + x * density;
            }
    }
}

vectorised! {
    /// `y = max(x, 0)`.
    pub(super) fn relu(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = if x > 0.0 { x } else { 0.0 };
        }
    }

    /// `grad *= d relu(x) / dx`, 0 at 0.
    pub(super) fn relu_backward(x: &[f32], grad: &mut [f32]) {
        for (g, &x) in grad.iter_mut().zip(x) {
            *g = if x > 0.0 { *g } else { 0.0 };
        }
    }
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    // exp2 is good for arguments of at most 0; the other half follows by symmetry.
    let e = exp2(-x.abs() * LOG2_E);
    let p = 1.0 / (1.0 + e);
    if x < 0.0 { 1.0 - p } else { p }
}

vectorised! {
    /// `y = silu(gate) * value`.
    pub(super) fn gate(gate: &[f32], value: &[f32], y: &mut [f32]) {
        for ((y, &g), v) in y.iter_mut().zip(gate).zip(value) {
            *y = g * sigmoid(g) * v;
        }
    }
}

vectorised! {
    /// Backward of [`gate`]: to `d_gate` and `d_value` is added what `dy` makes of them.
    pub(super) fn gate_backward(
        gate: &[f32],
        value: &[f32],
        dy: &[f32],
        d_gate: &mut [f32],
        d_value: &mut [f32],
    ) {
        for i in 0..dy.len() {
            let (x, p) = (gate[i], sigmoid(gate[i]));
            d_gate[i] += dy[i] * value[i] * (p + x * p * (1.0 - p));
            d_value[i] += dy[i] * x * p;
        }
    }
}

/// `f32::clamp` without its check of the bounds, which keeps loops scalar.
#[inline(always)]
pub(super) fn clamp(x: f32, [low, high]: [f32; 2]) -> f32 {
    let x = if x > low { x } else { low };
    if x < high { x } else { high }
}

/// Sum in 16 lanes: long sums keep their precision, and vectorise.
#[inline(always)]
fn lanes(len: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0.0f32; 16];
    let whole = len / 16 * 16;
    for start in (0..whole).step_by(16) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += f(start + lane);
        }
    }
    let rest: f32 = (whole..len).map(f).sum();
    sums.iter().sum::<f32>() + rest
}

vectorised! {
    /// `a . b`.
    pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
        let len = a.len().min(b.len());
        let (a, b) = (&a[..len], &b[..len]);
        lanes(len, |i| a[i] * b[i])
    }
}

vectorised! {
    /// `to += from`.
    pub(super) fn add(to: &mut [f32], from: &[f32]) {
            for (t, f) in to.iter_mut().zip(from) {
                *t += f;
            }
    }
}

vectorised! {
    /// `sums[c] += sum over rows of x[r, c]`.
    pub(super) fn add_rows(sums: &mut [f32], x: &[f32]) {
            for row in x.chunks_exact(sums.len()) {
                for (s, x) in sums.iter_mut().zip(row) {
                    *s += x;
                }
            }
    }
}

/// `out = x^T`: `x` is `[rows, cols]`.
pub(super) fn transpose(x: &[f32], cols: usize, out: &mut [f32]) {
    const TILE: usize = 16;
    let rows = x.len() / cols;
    for r0 in (0..rows).step_by(TILE) {
        for c0 in (0..cols).step_by(TILE) {
            for c in c0..cols.min(c0 + TILE) {
                for r in r0..rows.min(r0 + TILE) {
                    out[c * rows + r] = x[r * cols + c];
                }
            }
        }
    }
}

vectorised! {
    /// LayerNorm (Ba et al. 2016, arXiv:1607.06450), row by row:
    ///
    /// ```text
    /// normed = (x - mean) / sqrt(var + eps),   y = normed * gamma + beta
    /// ```
    ///
    /// `inverse[row]` gets `1 / sqrt(var + eps)`.
    pub(super) fn layer_norm(
        x: &[f32],
        affine: [&[f32]; 2],
        eps: f32,
        normed: &mut [f32],
        inverse: &mut [f32],
        y: &mut [f32],
    ) {
        let [gamma, beta] = affine;
        let d = gamma.len();
            let rows = x.chunks_exact(d).zip(normed.chunks_exact_mut(d));
            for (((x, normed), inverse), y) in rows.zip(inverse).zip(y.chunks_exact_mut(d)) {
                let mean = lanes(d, |i| x[i]) / d as f32;
                let var = lanes(d, |i| (x[i] - mean) * (x[i] - mean)) / d as f32;
                *inverse = 1.0 / (var + eps).sqrt();
                for i in 0..d {
                    normed[i] = (x[i] - mean) * *inverse;
                    y[i] = normed[i] * gamma[i] + beta[i];
                }
            }
    }
}

vectorised! {
    /// Backward of [`layer_norm`]: `grad`, of y, becomes that of x; those of gamma
    /// and beta are added to `d_gamma` and `d_beta`.
    ///
    /// ```text
    /// h = dy * gamma
    /// dx = inverse * (h - mean(h) - normed * mean(h * normed))
    /// ```
    pub(super) fn layer_norm_backward(
        normed: &[f32],
        inverse: &[f32],
        gamma: &[f32],
        grad: &mut [f32],
        sums: [&mut [f32]; 2],
    ) {
        let [d_gamma, d_beta] = sums;
        let d = gamma.len();
            let rows = normed.chunks_exact(d).zip(grad.chunks_exact_mut(d));
            for ((normed, grad), inverse) in rows.zip(inverse) {
                for i in 0..d {
                    d_gamma[i] += grad[i] * normed[i];
                    d_beta[i] += grad[i];
                    grad[i] *= gamma[i];
                }
                let mean = lanes(d, |i| grad[i]) / d as f32;
                let along = lanes(d, |i| grad[i] * normed[i]) / d as f32;
                for i in 0..d {
                    grad[i] = inverse * (grad[i] - mean - normed[i] * along);
                }
            }
    }
}

vectorised! {
    /// Softmax of each row of `x`, `[rows, cols]`, in place.
    pub(super) fn softmax(x: &mut [f32], cols: usize) {
            for row in x.chunks_exact_mut(cols) {
                exponentials(row);
                let inverse = 1.0 / lanes(row.len(), |i| row[i]);
                row.iter_mut().for_each(|p| *p *= inverse);
            }
    }
}

/// `row = exp(row - max row)`.
#[inline(always)]
fn exponentials(row: &mut [f32]) {
    let max = row
        .iter()
        .fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m });
    for x in row.iter_mut() {
        *x = exp2((*x - max) * LOG2_E);
    }
}

vectorised! {
    /// Backward of [`softmax`] with the quantizer after it passed straight through:
    /// `grad`, of the quantized probabilities, becomes that of the scores.
    ///
    /// ```text
    /// ds = p * (dp - sum over the row of p * dp)
    /// ```
    pub(super) fn softmax_backward(p: &[f32], cols: usize, grad: &mut [f32]) {
            for (p, grad) in p.chunks_exact(cols).zip(grad.chunks_exact_mut(cols)) {
                let along = lanes(cols, |i| p[i] * grad[i]);
                for (g, p) in grad.iter_mut().zip(p) {
                    *g = p * (*g - along);
                }
            }
    }
}

vectorised! {
    /// Codes of post-softmax attention, decoded: `out` from `scores`, both
    /// `[rows, cols]`, as [`crate::quantizers::softmax::quantize_row`] has it.
    ///
    /// Multipliers are summed up threshold by threshold, which vectorises:
    ///
    /// ```text
    /// a(t) = a[0] + sum over c of (t > thresholds[c]) * (a[c + 1] - a[c])
    /// ```
    pub(super) fn attention_codes(coder: &AttentionCoder, scores: &[f32], cols: usize, out: &mut [f32]) {
            for (scores, out) in scores.chunks_exact(cols).zip(out.chunks_exact_mut(cols)) {
                let max = scores.iter().fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m });
                let offset = match coder.static_scale {
                    None => 0.0,
                    Some(_) => lanes(cols, |i| exp2((scores[i] - max) * LOG2_E)).log2(),
                };
                // Sixteen at a time, so that the thresholds are the inner loop.
                for (scores, out) in scores.chunks(16).zip(out.chunks_mut(16)) {
                    let mut octaves = [0.0f32; 16];
                    for (t, &x) in octaves.iter_mut().zip(scores) {
                        *t = (max - x) * LOG2_E + offset;
                    }
                    let mut multipliers = [coder.first; 16];
                    for &(threshold, step) in &coder.steps {
                        for (m, &t) in multipliers.iter_mut().zip(&octaves) {
                            *m += if t > threshold { step } else { 0.0 };
                        }
                    }
                    out.copy_from_slice(&multipliers[..out.len()]);
                }
                let factor = match (coder.renormalise, coder.static_scale) {
                    (true, _) => {
                        let sum = lanes(cols, |i| out[i]);
                        if sum > 0.0 { 1.0 / sum } else { 0.0 }
                    }
                    (false, Some(scale)) => scale,
                    (false, None) => 1.0 / coder.first,
                };
                out.iter_mut().for_each(|p| *p *= factor);
            }
    }
}

/// One head of a [`tpvit_models::SoftmaxQuant`], prepared for [`attention_codes`].
pub(super) struct AttentionCoder {
    pub(super) first: f32,
    /// Threshold, and what the multiplier grows by beyond it.
    pub(super) steps: Vec<(f32, f32)>,
    pub(super) static_scale: Option<f32>,
    pub(super) renormalise: bool,
}

/// What one column of a buffer is quantized by.
#[derive(Clone, Copy)]
pub(super) struct Grid<'a> {
    /// `1 / scale`, `[cols]`.
    pub(super) inverse: &'a [f32],
    /// Lowest and highest code minus zero point, `[cols]`.
    pub(super) low: &'a [f32],
    pub(super) high: &'a [f32],
    /// What a code minus zero point counts: the scale, or 1 where the next
    /// weight contains it; `[cols]`.
    pub(super) unit: &'a [f32],
}

vectorised! {
    /// `value = unit * clamp(round(x / scale))`, `[rows, cols]`.
    pub(super) fn quantize(grid: Grid<'_>, x: &[f32], value: &mut [f32]) {
        let cols = grid.inverse.len();
            for (x, value) in x.chunks_exact(cols).zip(value.chunks_exact_mut(cols)) {
                for c in 0..cols {
                    let v = clamp(x[c] * grid.inverse[c], [grid.low[c], grid.high[c]]);
                    value[c] = ((v + MAGIC) - MAGIC) * grid.unit[c];
                }
            }
    }
}

vectorised! {
    /// [`quantize`] to a codebook: `snapped[code]` is the code that `code` of
    /// the grid is snapped to.
    pub(super) fn quantize_snapped(grid: Grid<'_>, snapped: &[f32; 256], x: &[f32], value: &mut [f32]) {
        let cols = grid.inverse.len();
        for (x, value) in x.chunks_exact(cols).zip(value.chunks_exact_mut(cols)) {
            for c in 0..cols {
                let v = clamp(x[c] * grid.inverse[c], [grid.low[c], grid.high[c]]);
                let code = ((v + MAGIC) - MAGIC) - grid.low[c];
                // The grid has 256 codes: the cast keeps them all.
                value[c] = (snapped[usize::from(code as u8)] + grid.low[c]) * grid.unit[c];
            }
        }
    }
}

vectorised! {
    /// Straight-through backward of [`quantize`]: `grad`, of the value, becomes
    /// that of x; `d_log_scale[c]` gains the gradient of `log(scale[c])`.
    ///
    /// With `v = x / scale`, `u` its code minus zero point, LSQ (Esser et al. 2020,
    /// arXiv:1902.08153) and its mask on the *unrounded* v, bounds inside:
    ///
    /// ```text
    /// value = scale * u:   dx = g [inside],           d log scale = g * scale * (u - v [inside])
    /// value = u:           dx = g / scale [inside],   d log scale = -g * v [inside]
    /// ```
    ///
    /// `folded` says which of the two it is.
    pub(super) fn quantize_backward(
        grid: Grid<'_>,
        folded: bool,
        x: &[f32],
        value: &[f32],
        grad: &mut [f32],
        d_log_scale: &mut [f32],
    ) {
        let cols = grid.inverse.len();
            let rows = x.chunks_exact(cols).zip(value.chunks_exact(cols));
            for ((x, value), grad) in rows.zip(grad.chunks_exact_mut(cols)) {
                for c in 0..cols {
                    let v = x[c] * grid.inverse[c];
                    let inside = if v >= grid.low[c] && v <= grid.high[c] { 1.0 } else { 0.0 };
                    let g = grad[c];
                    let along = if folded {
                        -v * inside
                    } else {
                        value[c] - x[c] * inside
                    };
                    d_log_scale[c] += g * along;
                    grad[c] = g * inside * if folded { grid.inverse[c] } else { 1.0 };
                }
            }
    }
}

/// What a row of a weight is rounded to: `scale * code`, code from `low` to
/// `high`, which are integers less the zero point.
#[derive(Clone, Copy)]
pub(super) struct RowGrid {
    pub(super) scale: f32,
    pub(super) low: f32,
    pub(super) high: f32,
}

vectorised! {
    /// `out = scale * clamp(round(w / scale))`.
    pub(super) fn round_row(grid: RowGrid, w: &[f32], out: &mut [f32]) {
        let inverse = 1.0 / grid.scale;
            for (out, &w) in out.iter_mut().zip(w) {
                let v = clamp(w * inverse, [grid.low, grid.high]);
                *out = ((v + MAGIC) - MAGIC) * grid.scale;
            }
    }
}

vectorised! {
    /// Straight-through backward of [`round_row`] when it is a part `blend` of what
    /// is multiplied, the rest passing everything: `masked` is the gradient of w.
    /// Returns that of `log(scale)`, as LSQ has it, of a whole part:
    ///
    /// ```text
    /// sum of grad * scale * (code - w / scale [inside])
    /// ```
    ///
    /// Outside the grid, a gradient that leads back into it passes as well:
    /// otherwise a weight that left could never return.
    pub(super) fn row_backward(
        grid: RowGrid,
        blend: f32,
        w: &[f32],
        grad: &[f32],
        masked: &mut [f32],
    ) -> f32 {
        let inverse = 1.0 / grid.scale;
            for ((masked, &w), &g) in masked.iter_mut().zip(w).zip(grad) {
                let v = w * inverse;
                let stuck = (v < grid.low && g > 0.0) || (v > grid.high && g < 0.0);
                *masked = if stuck { (1.0 - blend) * g } else { g };
            }
            let len = w.len().min(grad.len());
            let (w, grad) = (&w[..len], &grad[..len]);
            lanes(len, |i| {
                let v = w[i] * inverse;
                let inside = if v >= grid.low && v <= grid.high { v } else { 0.0 };
                let code = (clamp(v, [grid.low, grid.high]) + MAGIC) - MAGIC;
                grad[i] * grid.scale * (code - inside)
            })
    }
}

vectorised! {
    /// `to = (1 - by) * to + by * from`.
    pub(super) fn blend(to: &mut [f32], from: &[f32], by: f32) {
            for (t, f) in to.iter_mut().zip(from) {
                *t += by * (f - *t);
            }
    }
}

/// One step of Adam (Kingma and Ba 2015, arXiv:1412.6980) without weight decay.
#[derive(Clone, Copy, Debug)]
pub(super) struct AdamStep {
    /// Learning rate over `1 - beta1^t`.
    pub(super) rate: f32,
    /// `1 / sqrt(1 - beta2^t)`.
    pub(super) second: f32,
}

/// Decay of the first moment.
const BETA1: f32 = 0.9;
/// Decay of the second moment.
const BETA2: f32 = 0.999;

impl AdamStep {
    /// Step `t`, counted from 1, at learning rate `rate`.
    pub(super) fn new(t: u32, rate: f32) -> Self {
        let power = |beta: f32| 1.0 - f64::from(beta).powi(t.min(1 << 20) as i32);
        AdamStep {
            rate: (f64::from(rate) / power(BETA1)) as f32,
            second: (1.0 / power(BETA2).sqrt()) as f32,
        }
    }

    /// Moves `x` by at most about `rate * unit` against `grad`.
    pub(super) fn apply(self, unit: f32, grad: &[f32], moments: [&mut [f32]; 2], x: &mut [f32]) {
        let rates = [self.rate * unit, self.second];
        adam(rates, grad, moments, x);
    }
}

vectorised! {
    fn adam(rates: [f32; 2], grad: &[f32], moments: [&mut [f32]; 2], x: &mut [f32]) {
        let [rate, second] = rates;
        let [m, v] = moments;
        for ((x, &g), (m, v)) in x.iter_mut().zip(grad).zip(m.iter_mut().zip(v)) {
            *m += (1.0 - BETA1) * (g - *m);
            *v += (1.0 - BETA2) * (g * g - *v);
            *x -= rate * *m / (v.sqrt() * second + 1e-12);
        }
    }
}

vectorised! {
    /// `grad += scale * (y - target)`; returns `|y - target|^2`.
    pub(super) fn pull(y: &[f32], target: &[f32], scale: f32, grad: &mut [f32]) -> f32 {
        let len = y.len().min(target.len()).min(grad.len());
        let (y, target) = (&y[..len], &target[..len]);
        for i in 0..len {
            grad[i] += scale * (y[i] - target[i]);
        }
        lanes(len, |i| (y[i] - target[i]) * (y[i] - target[i]))
    }

    /// [`pull`] with a weight for each element, in gradient and sum.
    pub(super) fn pull_weighted(
        y: &[f32],
        target: &[f32],
        scale: f32,
        weights: &[f32],
        grad: &mut [f32],
    ) -> f32 {
        let len = y.len().min(target.len()).min(grad.len()).min(weights.len());
        let (y, target, weights) = (&y[..len], &target[..len], &weights[..len]);
        for i in 0..len {
            grad[i] += scale * weights[i] * (y[i] - target[i]);
        }
        lanes(len, |i| weights[i] * (y[i] - target[i]) * (y[i] - target[i]))
    }

    /// `to[i] = from[i]` where a hash of `i` says so, in `of_256` of 256 places.
    pub(super) fn copy_some(to: &mut [f32], from: &[f32], salt: u32, of_256: u32) {
        for (i, (to, &from)) in to.iter_mut().zip(from).enumerate() {
            *to = if chosen(salt, of_256, i as u32) { from } else { *to };
        }
    }
}

/// Whether place `i` is one of the `of_256` in 256 that `salt` chooses.
#[inline(always)]
fn chosen(salt: u32, of_256: u32, i: u32) -> bool {
    // A hash of 32 bits (lowbias32, by Chris Wellons): it vectorises.
    let mut x = i ^ salt;
    x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    (x ^ (x >> 16)) & 255 < of_256
}
