//! Matrix products in f32, on one thread.
//!
//! A thin face over `matrixmultiply`, which detects AVX2 and FMA at run time;
//! `ndarray` checks the shapes and strides, so there is no `unsafe` here.

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, ShapeBuilder};

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

    fn view(self) -> ArrayView2<'a, f32> {
        let shape = (self.rows, self.cols).strides((self.row_stride, 1));
        ArrayView2::from_shape(shape, self.data).expect("matrix reaches beyond its slice")
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

    fn view(self) -> ArrayViewMut2<'a, f32> {
        let shape = (self.rows, self.cols).strides((self.row_stride, 1));
        ArrayViewMut2::from_shape(shape, self.data).expect("matrix reaches beyond its slice")
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
    let b = b.view();
    let b = if transpose_b { b.reversed_axes() } else { b };
    general_mat_mul(alpha, &a.view(), &b, beta, &mut out.view());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_triple_loop_on_strided_matrices() {
        let (m, n, k) = (5, 7, 19);
        let a: Vec<f32> = (0..m * (k + 3)).map(|i| (i % 11) as f32 - 5.0).collect();
        let b: Vec<f32> = (0..n * (k + 1)).map(|i| (i % 7) as f32 - 3.0).collect();
        let mut out = vec![1.0; m * n];
        let strided = |data, rows, row_stride| MatRef {
            data,
            rows,
            cols: k,
            row_stride,
        };
        let to = MatMut::dense(&mut out, m, n);
        matmul(
            0.5,
            strided(&a, m, k + 3),
            strided(&b, n, k + 1),
            true,
            2.0,
            to,
        );
        for r in 0..m {
            for c in 0..n {
                let sum: f32 = (0..k)
                    .map(|i| a[r * (k + 3) + i] * b[c * (k + 1) + i])
                    .sum();
                assert_eq!(out[r * n + c], 0.5 * sum + 2.0, "({r}, {c})"); // small integers: exact
            }
        }
    }
}
