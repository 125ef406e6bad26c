//! The matrix product of every linear layer.
//!
//! ```text
//! acc[m, n] = sum over k of a[m, k] * w[n, k]              w = stored code - 2^(b-1)
//! y[m, n]   = (acc[m, n] + correction[n] - weight_zero[n] * a_row_sum[m]) as f32 * scale[n] + bias[n]
//! ```
//!
//! The sum is exact in `i32` ([`MAX_K`](crate::MAX_K)); the conversion rounds to
//! nearest even; the multiplication and the addition are not fused.

use super::{gelu::gelu, quantize::code, unpack::code_at};
use crate::{GemmShape, Output, Requant};

/// `out[i] = sum over k of a[i, k]`.
pub fn row_sums(a: &[u8], k: usize, out: &mut [i32]) {
    for (i, sum) in out.iter_mut().enumerate() {
        *sum = a[i * k..][..k].iter().map(|&a| i32::from(a)).sum();
    }
}

/// The exact sum `acc[i, j]`.
pub fn accumulate(shape: &GemmShape, a_row: &[u8], dense_row: &[u8]) -> i32 {
    let center = i32::from(shape.weight_bits.center());
    (0..shape.k)
        .map(|k| {
            i32::from(a_row[k]) * (i32::from(code_at(shape.weight_bits, dense_row, k)) - center)
        })
        .sum()
}

/// The whole product: `a` is `[m, k]`, `dense` as in [`GemmShape::dense_len`].
pub fn gemm(
    shape: &GemmShape,
    m: usize,
    a: &[u8],
    dense: &[u8],
    requant: &Requant,
    a_row_sums: Option<&[i32]>,
    out: &mut Output,
) {
    let GemmShape { n, k, .. } = *shape;
    let row_bytes = shape.weight_bits.row_bytes(k);
    for i in 0..m {
        for j in 0..n {
            let acc = accumulate(
                shape,
                &a[i * k..][..k],
                &dense[j * row_bytes..][..row_bytes],
            );
            let row_term = match (requant.weight_zero, a_row_sums) {
                (Some(zero), Some(sums)) => zero[j].wrapping_mul(sums[i]),
                (Some(_), None) => panic!("weight zero points need the row sums"),
                (None, _) => 0,
            };
            let exact = acc
                .wrapping_add(requant.correction[j])
                .wrapping_sub(row_term);
            let y = exact as f32 * requant.scale[j] + requant.bias[j];
            store(out, y, i * n + j, j);
        }
    }
}

/// Sends `y[m, n]`, element `index` of the buffer, where it belongs.
fn store(output: &mut Output, y: f32, index: usize, channel: usize) {
    match output {
        Output::F32 { out } => out[index] = y,
        Output::Residual { residual, out } => out[index] = residual[index] + y,
        Output::Accumulate { inout } => inout[index] += y,
        Output::Codes { out, quant } => {
            out[index] = code(
                y,
                quant.inv_scale[channel],
                quant.zero_point[channel],
                quant.max_code,
            );
        }
        Output::GeluCodes { out, quant } => {
            out[index] = code(
                gelu(y),
                quant.inv_scale[channel],
                quant.zero_point[channel],
                quant.max_code,
            );
        }
        Output::Gelu { out } => out[index] = gelu(y),
    }
}
