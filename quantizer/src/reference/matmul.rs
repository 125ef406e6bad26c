//! Matrix products in f32, on one thread.
//!
//! The classic blocking (Goto and van de Geijn 2008, doi:10.1145/1356052.1356053):
//!
//! ```text
//! for each block of KC inputs          its rows of a are packed, [tile][KC][MR]
//!     for each panel of NR outputs     its part of b is packed, [KC][NR], into L1
//!         for each tile of MR rows     MR x NR sums stay in registers
//! ```
//!
//! `pulp` chooses AVX-512, AVX2, NEON or scalar code at run time behind a safe
//! interface, so there is no `unsafe` here. Sums are fused multiply-adds where
//! the CPU has them: the last bits differ between CPUs, not between runs.

use pulp::{Arch, Simd, WithSimd};
use std::cell::RefCell;

/// Inputs per block: a panel of `KC * NR` values fits the L1 cache.
const KC: usize = 256;

/// A matrix inside a slice: element `(r, c)` is `data[r * row_stride + c]`, or
/// if transposed `data[c * row_stride + r]`.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a> {
    /// The elements, from `(0, 0)` on.
    data: &'a [f32],
    rows: usize,
    cols: usize,
    /// Distance between stored rows.
    row_stride: usize,
    transposed: bool,
}

impl<'a> MatRef<'a> {
    /// A matrix that fills its slice: `[rows, cols]`, row-major.
    pub fn dense(data: &'a [f32], rows: usize, cols: usize) -> Self {
        MatRef::strided(data, rows, cols, cols)
    }

    /// `[rows, cols]`, row-major, rows `row_stride` apart, the first at the
    /// start of `data`.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        MatRef {
            data,
            rows,
            cols,
            row_stride,
            transposed: false,
        }
    }

    /// The same elements with rows and columns exchanged.
    pub fn transpose(self) -> Self {
        MatRef {
            rows: self.cols,
            cols: self.rows,
            transposed: !self.transposed,
            ..self
        }
    }

    /// Rows and columns as they lie in the slice.
    fn stored(&self) -> [usize; 2] {
        match self.transposed {
            true => [self.cols, self.rows],
            false => [self.rows, self.cols],
        }
    }
}

/// A matrix to write, inside a slice, as [`MatRef`].
#[derive(Debug)]
pub struct MatMut<'a> {
    /// The elements, from `(0, 0)` on.
    pub data: &'a mut [f32],
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Distance between rows, at least `cols`.
    pub row_stride: usize,
}

impl<'a> MatMut<'a> {
    /// A matrix that fills its slice: `[rows, cols]`, row-major.
    pub fn dense(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        MatMut {
            data,
            rows,
            cols,
            row_stride: cols,
        }
    }
}

/// `out = alpha * a * b + beta * out`.
///
/// `a` is `[m, k]`, `b` is `[k, n]`, `out` is `[m, n]`. With `beta = 0`, what
/// `out` held before does not matter.
///
/// # Panics
/// If the shapes disagree or a matrix reaches beyond its slice.
pub fn matmul(alpha: f32, a: MatRef<'_>, b: MatRef<'_>, beta: f32, out: MatMut<'_>) {
    assert_eq!(
        [out.rows, b.rows, b.cols],
        [a.rows, a.cols, out.cols],
        "shapes disagree"
    );
    check(a.data.len(), a.stored(), a.row_stride);
    check(b.data.len(), b.stored(), b.row_stride);
    check(out.data.len(), [out.rows, out.cols], out.row_stride);
    for row in 0..out.rows {
        let row = &mut out.data[row * out.row_stride..][..out.cols];
        match beta {
            0.0 => row.fill(0.0), // not `*= 0.0`, which would keep NaN
            1.0 => {}
            _ => row.iter_mut().for_each(|v| *v *= beta),
        }
    }
    SCRATCH.with_borrow_mut(|scratch| {
        let product = Product {
            alpha,
            a,
            b,
            out,
            scratch,
        };
        Arch::new().dispatch(product);
    });
}

fn check(len: usize, [rows, cols]: [usize; 2], row_stride: usize) {
    let reach = (rows.max(1) - 1) * row_stride + cols;
    assert!(
        cols <= row_stride && reach <= len,
        "matrix reaches beyond its slice"
    );
}

thread_local! {
    /// Packed parts of `a` and `b`, kept from call to call.
    static SCRATCH: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// `len` values of `buffer` that start at a cache line.
#[inline(always)]
fn aligned(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    const LINE: usize = 64;
    buffer.resize(buffer.len().max(len + LINE / 4), 0.0);
    let skip = buffer.as_ptr().align_offset(LINE).min(LINE / 4);
    &mut buffer[skip..][..len]
}

struct Product<'a> {
    alpha: f32,
    a: MatRef<'a>,
    b: MatRef<'a>,
    out: MatMut<'a>,
    scratch: &'a mut [Vec<f32>; 2],
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Of the registers, 2 hold b, 1 a, and two for each row the sums.
        match S::REGISTER_COUNT {
            32.. => self.blocked::<S, 12>(simd),
            _ => self.blocked::<S, 6>(simd),
        }
    }
}

impl Product<'_> {
    #[inline(always)]
    fn blocked<S: Simd, const MR: usize>(mut self, simd: S) {
        let nr = 2 * S::F32_LANES;
        let tiles = self.a.rows.div_ceil(MR);
        let [a_pack, b_pack] = self.scratch;
        for k0 in (0..self.a.cols).step_by(KC) {
            let kc = KC.min(self.a.cols - k0);
            let a_pack = aligned(a_pack, tiles * kc * MR);
            pack_a::<MR>(self.a, k0, kc, a_pack);
            let panel = aligned(b_pack, kc * nr);
            for n0 in (0..self.out.cols).step_by(nr) {
                pack_b(self.b, [k0, kc], [n0, nr], panel);
                let (panel, _) = S::as_simd_f32s(panel);
                for (tile, a_tile) in a_pack.chunks_exact(kc * MR).enumerate() {
                    let sums = micro::<S, MR>(simd, a_tile, panel);
                    add_tile::<S, MR>(&sums, self.alpha, [tile * MR, n0], &mut self.out);
                }
            }
        }
    }
}

/// `pack[tile][k][i] = a[tile * MR + i][k0 + k]`, zero beyond the last row.
#[inline(always)]
fn pack_a<const MR: usize>(a: MatRef<'_>, k0: usize, kc: usize, pack: &mut [f32]) {
    for (tile, pack) in pack.chunks_exact_mut(kc * MR).enumerate() {
        let (slots, _) = pack.as_chunks_mut::<MR>();
        if a.transposed {
            let rows = MR.min(a.rows - tile * MR);
            for (k, slot) in slots.iter_mut().enumerate() {
                slot[rows..].fill(0.0);
                let row = &a.data[(k0 + k) * a.row_stride + tile * MR..][..rows];
                slot[..rows].copy_from_slice(row);
            }
            continue;
        }
        for i in 0..MR {
            let row = tile * MR + i;
            if row < a.rows {
                let row = &a.data[row * a.row_stride + k0..][..kc];
                slots.iter_mut().zip(row).for_each(|(slot, v)| slot[i] = *v);
            } else {
                slots.iter_mut().for_each(|slot| slot[i] = 0.0);
            }
        }
    }
}

/// `pack[k][j] = b[k0 + k][n0 + j]`, zero beyond the last column.
#[inline(always)]
fn pack_b(b: MatRef<'_>, [k0, kc]: [usize; 2], [n0, nr]: [usize; 2], pack: &mut [f32]) {
    let cols = nr.min(b.cols - n0);
    if cols < nr {
        pack.fill(0.0);
    }
    if b.transposed {
        for j in 0..cols {
            let row = &b.data[(n0 + j) * b.row_stride + k0..][..kc];
            pack.chunks_exact_mut(nr)
                .zip(row)
                .for_each(|(slot, v)| slot[j] = *v);
        }
    } else {
        for (k, slot) in pack.chunks_exact_mut(nr).enumerate() {
            let row = &b.data[(k0 + k) * b.row_stride + n0..][..cols];
            slot[..cols].copy_from_slice(row);
        }
    }
}

/// `MR` rows times two vectors of columns, over the whole block of inputs.
#[inline(always)]
fn micro<S: Simd, const MR: usize>(simd: S, a: &[f32], b: &[S::f32s]) -> [[S::f32s; 2]; MR] {
    let mut sums = [[simd.splat_f32s(0.0); 2]; MR];
    let ((a, _), (b, _)) = (a.as_chunks::<MR>(), b.as_chunks::<2>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..MR {
            let x = simd.splat_f32s(a[i]);
            sums[i][0] = simd.mul_add_e_f32s(x, b[0], sums[i][0]);
            sums[i][1] = simd.mul_add_e_f32s(x, b[1], sums[i][1]);
        }
    }
    sums
}

/// Adds the part of a tile that lies inside `out`.
#[inline(always)]
fn add_tile<S: Simd, const MR: usize>(
    sums: &[[S::f32s; 2]; MR],
    alpha: f32,
    [row, col]: [usize; 2],
    out: &mut MatMut<'_>,
) {
    let cols = (2 * S::F32_LANES).min(out.cols - col);
    for (sums, row) in sums.iter().zip(row..out.rows) {
        let sums: &[f32] = pulp::bytemuck::cast_slice(sums);
        let to = &mut out.data[row * out.row_stride + col..][..cols];
        to.iter_mut()
            .zip(sums)
            .for_each(|(to, sum)| *to += alpha * sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small integers, so that every order of summation is exact.
    fn integers(len: usize, seed: usize) -> Vec<f32> {
        (0..len)
            .map(|i| ((i * 31 + seed) * 17 % 23) as f32 - 11.0)
            .collect()
    }

    fn turn(m: MatRef<'_>, t: bool) -> MatRef<'_> {
        if t { m.transpose() } else { m }
    }

    /// `transposed` says which of a and b are.
    fn compare([m, n, k]: [usize; 3], transposed: [bool; 2], alpha: f32, beta: f32) {
        let stored = |rows, cols, t| if t { [cols, rows] } else { [rows, cols] };
        let ([ar, ac], [br, bc]) = (stored(m, k, transposed[0]), stored(k, n, transposed[1]));
        let (a, b) = (integers(ar * (ac + 3), 1), integers(br * (bc + 1), 2));
        let a = MatRef::strided(&a, ar, ac, ac + 3);
        let b = MatRef::strided(&b, br, bc, bc + 1);
        let mut out = integers(m * (n + 2), 3);
        let mut expected = out.clone();
        let at = |m: MatRef<'_>, t: bool, r: usize, c: usize| match t {
            true => m.data[c * m.row_stride + r],
            false => m.data[r * m.row_stride + c],
        };
        for r in 0..m {
            for c in 0..n {
                let products =
                    (0..k).map(|i| at(a, transposed[0], r, i) * at(b, transposed[1], i, c));
                let old = expected[r * (n + 2) + c];
                expected[r * (n + 2) + c] = alpha * products.sum::<f32>() + beta * old;
            }
        }
        let to = MatMut {
            data: &mut out,
            rows: m,
            cols: n,
            row_stride: n + 2,
        };
        matmul(
            alpha,
            turn(a, transposed[0]),
            turn(b, transposed[1]),
            beta,
            to,
        );
        assert_eq!(out, expected, "{m} x {n} x {k}, transposed {transposed:?}");
    }

    #[test]
    fn matches_the_triple_loop_around_every_tile_edge() {
        for m in [1, 5, 6, 7, 11, 12, 13, 25] {
            for n in [1, 7, 8, 15, 16, 17, 31, 32, 33, 65] {
                for k in [1, 2, KC - 1, KC, KC + 1] {
                    compare([m, n, k], [false, true], 0.5, 2.0);
                    compare([m, n, k], [false, false], 1.0, 1.0);
                    compare([m, n, k], [true, false], 2.0, 1.0);
                }
            }
        }
    }

    #[test]
    fn beta_zero_forgets_what_was_there() {
        let mut out = [f32::NAN; 2];
        let (a, b) = (
            MatRef::dense(&[2.0], 1, 1),
            MatRef::dense(&[3.0, 4.0], 2, 1),
        );
        matmul(1.0, a, b.transpose(), 0.0, MatMut::dense(&mut out, 1, 2));
        assert_eq!(out, [6.0, 8.0]);
    }

    #[test]
    #[should_panic(expected = "beyond its slice")]
    fn a_matrix_must_lie_in_its_slice() {
        let (a, mut out) = ([1.0; 5], [0.0; 4]);
        let (a, b) = (MatRef::dense(&a, 2, 3), MatRef::dense(&[1.0; 6], 2, 3));
        matmul(1.0, a, b.transpose(), 0.0, MatMut::dense(&mut out, 2, 2));
    }
}
