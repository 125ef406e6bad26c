//! Float kernels on blocks of sixteen, in [`crate::reference`]'s order of operations.
//!
//! One block is an AVX-512 register, two of AVX2 or four of NEON: each ISA
//! inlines these functions and gets its own instructions. None is fused, so
//! each gives the reference's bits.

use super::epilogue::{Quant16, copy, sixteen};
use crate::{ActQuant, arch::sqrt, reference::quantize::code, table::NormCall};

/// The sum of `term(x)` over a row: [`crate::reference::sum16`].
#[inline(always)]
pub(crate) fn sum16<T: Copy>(x: &[T], term: impl Fn(T) -> f32) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let (blocks, rest) = x.as_chunks::<16>();
    for block in blocks {
        for i in 0..16 {
            lanes[i] += term(block[i]);
        }
    }
    if let Some(&first) = rest.first() {
        // Fixed indices keep the lanes in registers; a lane beyond the end stays as it is.
        let mut last = [first; 16];
        last[..rest.len()].copy_from_slice(rest);
        for i in 0..16 {
            let sum = lanes[i] + term(last[i]);
            lanes[i] = if i < rest.len() { sum } else { lanes[i] };
        }
    }
    tree16(lanes)
}

/// Sixteen lanes to one: 8, 4, 2, 1 apart.
#[inline(always)]
pub(crate) fn tree16(mut lanes: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

/// Mean and reciprocal standard deviation of a row.
#[inline(always)]
fn statistics(x: &[f32], eps: f32) -> (f32, f32) {
    let d = x.len() as f32;
    let mean = sum16(x, |x| x) / d;
    let var = sum16(x, |x| (x - mean) * (x - mean)) / d;
    (mean, 1.0 / sqrt(var + eps))
}

/// Sixteen normalised values of a row.
#[inline(always)]
fn normalised(x: &[f32; 16], mean: f32, r: f32, gamma: &[f32; 16], beta: &[f32; 16]) -> [f32; 16] {
    let mut y = [0.0; 16];
    for i in 0..16 {
        y[i] = ((x[i] - mean) * r) * gamma[i] + beta[i];
    }
    y
}

/// What becomes of normalised values. A trait, because closures are not always
/// inlined and would then miss the ISA's instructions.
trait Store<T> {
    /// Stores the values of the columns from `start` on.
    fn store(&self, out: &mut [T], start: usize, y: &[f32; 16]);
}

/// Stores them as they are.
struct Plain;

impl Store<f32> for Plain {
    #[inline(always)]
    fn store(&self, out: &mut [f32], _start: usize, y: &[f32; 16]) {
        copy(out, y);
    }
}

impl Store<u8> for &ActQuant<'_> {
    #[inline(always)]
    fn store(&self, out: &mut [u8], start: usize, y: &[f32; 16]) {
        copy(out, &Quant16::new(self, start).codes(y));
    }
}

/// Normalises each row and stores it in blocks of sixteen.
#[inline(always)]
fn normalise_rows<T>(call: &NormCall, out: &mut [T], store: impl Store<T>) {
    if call.d == 0 {
        return;
    }
    let (gamma, _) = call.gamma.as_chunks::<16>();
    let (beta, _) = call.beta.as_chunks::<16>();
    let whole = gamma.len();
    let rest = 16 * whole;
    for (x, out) in call
        .x
        .chunks_exact(call.d)
        .zip(out.chunks_exact_mut(call.d))
    {
        let (mean, r) = statistics(x, call.eps);
        let (blocks, _) = x.as_chunks::<16>();
        for b in 0..whole {
            let y = normalised(&blocks[b], mean, r, &gamma[b], &beta[b]);
            store.store(&mut out[16 * b..16 * b + 16], 16 * b, &y);
        }
        if rest < call.d {
            let (gamma, beta) = (sixteen(call.gamma, rest), sixteen(call.beta, rest));
            let y = normalised(&sixteen(x, rest), mean, r, &gamma, &beta);
            store.store(&mut out[rest..], rest, &y);
        }
    }
}

/// `out[m, d] = layer_norm(x[m, d])`.
#[inline(always)]
pub(crate) fn layer_norm(call: &NormCall, out: &mut [f32]) {
    normalise_rows(call, out, Plain);
}

/// `out[m, d] = code(layer_norm(x[m, d]))`.
#[inline(always)]
pub(crate) fn layer_norm_codes(call: &NormCall, quant: &ActQuant, out: &mut [u8]) {
    normalise_rows(call, out, quant);
}

/// `out[m, d] = code(x[m, d])`.
#[inline(always)]
pub(crate) fn quantize(x: &[f32], d: usize, quant: &ActQuant, out: &mut [u8]) {
    if d == 0 {
        return;
    }
    for (x, out) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
        let (blocks, rest) = x.as_chunks::<16>();
        let (out_blocks, out_rest) = out.as_chunks_mut::<16>();
        for (b, (x, out)) in blocks.iter().zip(out_blocks).enumerate() {
            *out = Quant16::new(quant, 16 * b).codes(x);
        }
        for (c, (x, out)) in (16 * blocks.len()..).zip(rest.iter().zip(out_rest)) {
            *out = code(*x, quant.inv_scale[c], quant.zero_point[c], quant.max_code);
        }
    }
}

/// `out = x + y`.
#[inline(always)]
pub(crate) fn add(x: &[f32], y: &[f32], out: &mut [f32]) {
    for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
        *out = x + y;
    }
}

/// `out[i] = sum over k of a[i, k]`.
#[inline(always)]
pub(crate) fn row_sums(a: &[u8], k: usize, out: &mut [i32]) {
    for (i, sum) in out.iter_mut().enumerate() {
        *sum = a[i * k..][..k].iter().map(|&a| i32::from(a)).sum();
    }
}
