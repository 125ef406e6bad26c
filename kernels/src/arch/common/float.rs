//! Float kernels on blocks of sixteen, in [`crate::reference`]'s order of operations.
//!
//! **Layer normalisation.** The reference's order allows one chain of additions a
//! row and pass, so a single row would wait for each of them. [`ROWS`] rows at
//! once hide the latency; what belongs to a column (gamma, beta, its quantizer) is
//! loaded once for all of them.
//!
//! ```text
//! for ROWS rows
//!     mean[r], then variance[r]           ROWS chains of additions side by side
//!     for block in d / 16                 gamma, beta, quantizer
//!         for r in ROWS                   normalise, encode, store
//! ```

use super::{
    epilogue::{Quant, load, put, put_u8},
    lanes::Lanes,
};
use crate::{ActQuant, arch::sqrt, reference, table::NormCall};

/// Rows that are normalised side by side.
const ROWS: usize = 8;

/// Adds what follows the whole blocks, term by term, and returns the tree's sum.
#[inline(always)]
fn finish<L: Lanes>(l: L, sum: L::F, rest: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    if rest.is_empty() {
        return l.sum(sum);
    }
    let mut lanes = [0.0; 16];
    l.store(sum, &mut lanes);
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += term(x);
    }
    l.sum(l.load(&lanes))
}

/// Mean and reciprocal standard deviation of a row.
#[derive(Clone, Copy)]
struct Statistics<L: Lanes> {
    mean: L::F,
    r: L::F,
}

impl<L: Lanes> Statistics<L> {
    /// Of each of `R` rows of equal length.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "block b of every row")]
    fn new<const R: usize>(l: L, rows: &[&[f32]; R], eps: f32) -> [Self; R] {
        let d = rows[0].len();
        let blocks = d / 16;
        let mut whole: [&[[f32; 16]]; R] = [&[]; R];
        let mut rests: [&[f32]; R] = [&[]; R];
        for r in 0..R {
            let (chunks, rest) = rows[r].as_chunks::<16>();
            (whole[r], rests[r]) = (&chunks[..blocks], rest);
        }

        let mut sums = [l.splat(0.0); R];
        for b in 0..blocks {
            for r in 0..R {
                sums[r] = l.add(sums[r], l.load(&whole[r][b]));
            }
        }
        let mut means = [0.0; R];
        for r in 0..R {
            means[r] = finish(l, sums[r], rests[r], |x| x) / d as f32;
        }

        let mut statistics = [Self {
            mean: l.splat(0.0),
            r: l.splat(0.0),
        }; R];
        let mut squares = [l.splat(0.0); R];
        for r in 0..R {
            statistics[r].mean = l.splat(means[r]);
        }
        for b in 0..blocks {
            for r in 0..R {
                let distance = l.sub(l.load(&whole[r][b]), statistics[r].mean);
                squares[r] = l.add(squares[r], l.mul(distance, distance));
            }
        }
        for r in 0..R {
            let mean = means[r];
            let square = |x| (x - mean) * (x - mean);
            let var = finish(l, squares[r], rests[r], square) / d as f32;
            statistics[r].r = l.splat(1.0 / sqrt(var + eps));
        }
        statistics
    }
}

/// What becomes of sixteen columns. Traits, because closures are not always
/// inlined and would then miss the ISA's instructions.
trait Sink<L: Lanes> {
    type Out;
    type Columns: Columns<L, Self::Out>;

    /// Loads columns `start .. start + 16`, all there if `WHOLE`.
    fn columns<const WHOLE: bool>(&self, l: L, start: usize) -> Self::Columns;
}

trait Columns<L: Lanes, T> {
    /// Stores the columns of one row.
    fn store(&self, l: L, y: L::F, out: &mut [T]);
}

/// Stores values as they are.
struct Plain;

impl<L: Lanes> Sink<L> for Plain {
    type Out = f32;
    type Columns = Self;

    #[inline(always)]
    fn columns<const WHOLE: bool>(&self, _l: L, _start: usize) -> Self {
        Self
    }
}

impl<L: Lanes> Columns<L, f32> for Plain {
    #[inline(always)]
    fn store(&self, l: L, y: L::F, out: &mut [f32]) {
        put(l, out, y);
    }
}

impl<L: Lanes> Sink<L> for &ActQuant<'_> {
    type Out = u8;
    type Columns = Quant<L>;

    #[inline(always)]
    fn columns<const WHOLE: bool>(&self, l: L, start: usize) -> Quant<L> {
        Quant::new::<WHOLE>(l, self, start)
    }
}

impl<L: Lanes> Columns<L, u8> for Quant<L> {
    #[inline(always)]
    fn store(&self, l: L, y: L::F, out: &mut [u8]) {
        let [codes] = self.codes(l, [y]);
        put_u8(l, out, codes);
    }
}

/// Normalises sixteen columns of `R` rows; `WHOLE` if there are sixteen. The test
/// for it is outside, since what follows the last block would keep registers busy.
#[inline(always)]
fn normalise_block<L: Lanes, S: Sink<L>, const R: usize, const WHOLE: bool>(
    l: L,
    call: &NormCall,
    sink: &S,
    start: usize,
    rows: &[&[f32]; R],
    statistics: &[Statistics<L>; R],
    out: &mut [S::Out],
) {
    let end = if WHOLE { start + 16 } else { call.d };
    let gamma = load::<L, WHOLE>(l, call.gamma, start);
    let beta = load::<L, WHOLE>(l, call.beta, start);
    let columns = sink.columns::<WHOLE>(l, start);
    for r in 0..R {
        let Statistics { mean, r: factor } = statistics[r];
        let y = l.mul(l.sub(load::<L, WHOLE>(l, rows[r], start), mean), factor);
        let y = l.add(l.mul(y, gamma), beta);
        columns.store(l, y, &mut out[r * call.d + start..r * call.d + end]);
    }
}

/// Normalises `R` rows.
#[inline(always)]
fn normalise<L: Lanes, S: Sink<L>, const R: usize>(
    l: L,
    call: &NormCall,
    sink: &S,
    x: &[f32],
    out: &mut [S::Out],
) {
    let d = call.d;
    let mut rows: [&[f32]; R] = [&[]; R];
    for (row, x) in rows.iter_mut().zip(x.chunks_exact(d)) {
        *row = x;
    }
    let statistics = Statistics::new(l, &rows, call.eps);
    let whole = d / 16 * 16;
    for start in (0..whole).step_by(16) {
        normalise_block::<L, S, R, true>(l, call, sink, start, &rows, &statistics, out);
    }
    if whole < d {
        normalise_block::<L, S, R, false>(l, call, sink, whole, &rows, &statistics, out);
    }
}

/// Normalises all rows.
#[inline(always)]
fn normalise_rows<L: Lanes, S: Sink<L>>(l: L, call: &NormCall, sink: S, out: &mut [S::Out]) {
    let d = call.d;
    if d == 0 {
        return;
    }
    let blocks = call.x.chunks_exact(ROWS * d);
    let rest = blocks.remainder();
    let mut out_blocks = out.chunks_exact_mut(ROWS * d);
    for (x, out) in blocks.zip(&mut out_blocks) {
        normalise::<L, S, ROWS>(l, call, &sink, x, out);
    }
    let out_rest = out_blocks.into_remainder();
    for (x, out) in rest.chunks_exact(d).zip(out_rest.chunks_exact_mut(d)) {
        normalise::<L, S, 1>(l, call, &sink, x, out);
    }
}

/// `out[m, d] = layer_norm(x[m, d])`.
#[inline(always)]
pub(crate) fn layer_norm<L: Lanes>(l: L, call: &NormCall, out: &mut [f32]) {
    normalise_rows(l, call, Plain, out);
}

/// `out[m, d] = code(layer_norm(x[m, d]))`.
#[inline(always)]
pub(crate) fn layer_norm_codes<L: Lanes>(l: L, call: &NormCall, quant: &ActQuant, out: &mut [u8]) {
    normalise_rows(l, call, quant, out);
}

/// `out[m, d] = code(x[m, d])`.
#[inline(always)]
pub(crate) fn quantize<L: Lanes>(l: L, x: &[f32], d: usize, quant: &ActQuant, out: &mut [u8]) {
    if d == 0 {
        return;
    }
    // Columns outside, so that a quantizer is loaded once for some rows.
    let whole = d / 16 * 16;
    for (x, out) in x.chunks(ROWS * d).zip(out.chunks_mut(ROWS * d)) {
        for start in (0..whole).step_by(16) {
            quantize_block::<L, true>(l, x, d, start, quant, out);
        }
        if whole < d {
            quantize_block::<L, false>(l, x, d, whole, quant, out);
        }
    }
}

/// Encodes sixteen columns of some rows; `WHOLE` if there are sixteen.
#[inline(always)]
fn quantize_block<L: Lanes, const WHOLE: bool>(
    l: L,
    x: &[f32],
    d: usize,
    start: usize,
    quant: &ActQuant,
    out: &mut [u8],
) {
    let end = if WHOLE { start + 16 } else { d };
    let columns = Quant::new::<WHOLE>(l, quant, start);
    for (x, out) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
        columns.store(l, load::<L, WHOLE>(l, x, start), &mut out[start..end]);
    }
}

/// `out = silu(gates) * values`.
#[inline(always)]
pub(crate) fn gate(gates: &[f32], values: &[f32], out: &mut [f32]) {
    for ((out, &g), &v) in out.iter_mut().zip(gates).zip(values) {
        *out = reference::gate::gate(g, v);
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
