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

/// A matrix inside a slice: element `(r, c)` is `data[r * row_stride + c]`.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a> {
    /// The elements, from `(0, 0)` on.
    pub data: &'a [f32],
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Distance between rows, at least `cols`.
    pub row_stride: usize,
}

impl<'a> MatRef<'a> {
    /// A matrix that fills its slice: `[rows, cols]`, row-major.
    pub fn dense(data: &'a [f32], rows: usize, cols: usize) -> Self {
        MatRef {
            data,
            rows,
            cols,
            row_stride: cols,
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

/// `out = alpha * a * b + beta * out`, or with `b` transposed.
///
/// `a` is `[m, k]`, `out` is `[m, n]`, `b` is `[k, n]`, or `[n, k]` when
/// `transpose_b`. With `beta = 0`, what `out` held before does not matter.
///
/// # Panics
/// If the shapes disagree or a matrix reaches beyond its slice.
pub fn matmul(
    alpha: f32,
    a: MatRef<'_>,
    b: MatRef<'_>,
    transpose_b: bool,
    beta: f32,
    out: MatMut<'_>,
) {
    let [b_rows, b_cols] = if transpose_b {
        [out.cols, a.cols]
    } else {
        [a.cols, out.cols]
    };
    assert_eq!(
        [out.rows, b.rows, b.cols],
        [a.rows, b_rows, b_cols],
        "shapes disagree"
    );
    check(a.data.len(), a.rows, a.cols, a.row_stride);
    check(b.data.len(), b.rows, b.cols, b.row_stride);
    check(out.data.len(), out.rows, out.cols, out.row_stride);
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
            transpose_b,
            out,
            scratch,
        };
        Arch::new().dispatch(product);
    });
}

fn check(len: usize, rows: usize, cols: usize, row_stride: usize) {
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
    transpose_b: bool,
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
                pack_b(self.b, self.transpose_b, [k0, kc], [n0, nr], panel);
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

/// `pack[k][j] = b[k0 + k][n0 + j]` (of `b` transposed), zero beyond the last column.
#[inline(always)]
fn pack_b(
    b: MatRef<'_>,
    transposed: bool,
    [k0, kc]: [usize; 2],
    [n0, nr]: [usize; 2],
    pack: &mut [f32],
) {
    let cols = nr.min(if transposed { b.rows } else { b.cols } - n0);
    if cols < nr {
        pack.fill(0.0);
    }
    if transposed {
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

    fn compare([m, n, k]: [usize; 3], transpose_b: bool, alpha: f32, beta: f32) {
        let (rows, cols) = if transpose_b { (n, k) } else { (k, n) };
        let (a, b) = (integers(m * (k + 3), 1), integers(rows * (cols + 1), 2));
        let mut out = integers(m * (n + 2), 3);
        let mut expected = out.clone();
        for r in 0..m {
            for c in 0..n {
                let at = |i| {
                    if transpose_b {
                        c * (cols + 1) + i
                    } else {
                        i * (cols + 1) + c
                    }
                };
                let sum: f32 = (0..k).map(|i| a[r * (k + 3) + i] * b[at(i)]).sum();
                expected[r * (n + 2) + c] = alpha * sum + beta * expected[r * (n + 2) + c];
            }
        }
        let mat = |data, rows, cols, row_stride| MatRef {
            data,
            rows,
            cols,
            row_stride,
        };
        let to = MatMut {
            data: &mut out,
            rows: m,
            cols: n,
            row_stride: n + 2,
        };
        let (a, b) = (mat(&a, m, k, k + 3), mat(&b, rows, cols, cols + 1));
        matmul(alpha, a, b, transpose_b, beta, to);
        assert_eq!(out, expected, "{m} x {n} x {k}, transposed {transpose_b}");
    }

    #[test]
    fn matches_the_triple_loop_around_every_tile_edge() {
        for m in [1, 5, 6, 7, 11, 12, 13, 25] {
            for n in [1, 7, 8, 15, 16, 17, 31, 32, 33, 65] {
                for k in [1, 2, KC - 1, KC, KC + 1] {
                    compare([m, n, k], true, 0.5, 2.0);
                    compare([m, n, k], false, 1.0, 1.0);
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
        matmul(1.0, a, b, true, 0.0, MatMut::dense(&mut out, 1, 2));
        assert_eq!(out, [6.0, 8.0]);
    }

    #[test]
    #[should_panic(expected = "beyond its slice")]
    fn a_matrix_must_lie_in_its_slice() {
        let (a, mut out) = ([1.0; 5], [0.0; 4]);
        let (a, b) = (MatRef::dense(&a, 2, 3), MatRef::dense(&[1.0; 6], 2, 3));
        matmul(1.0, a, b, true, 0.0, MatMut::dense(&mut out, 2, 2));
    }
}
