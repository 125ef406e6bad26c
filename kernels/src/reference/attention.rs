//! One attention head on integers; the equations are in [`crate::AttentionMethod`]'s module.
//!
//! [`attention`] multiplies by the codebook's integers. [`attention_shift`] says
//! the same with shifts and additions only:
//!
//! ```text
//! w_j = 2^e_j - h     =>     sum of w_j * v_j  =  sum of (v_j << e_j)  -  h * sum of v_j
//! ```

use super::{quantize, softmax_codes};
use crate::{
    HeadOutput, HeadRequant, HeadShape, KeysValues, Queries, ShiftForm, SoftmaxCodes, SoftmaxKind,
};

impl KeysValues<'_> {
    fn k(&self, token: usize, d: usize) -> i32 {
        i32::from(self.rows[self.lines.row(token) * self.row_stride + self.k_col + d])
    }

    fn v(&self, token: usize, d: usize) -> i32 {
        i32::from(self.rows[self.lines.row(token) * self.row_stride + self.v_col + d])
    }
}

/// The scores of one query against every key.
fn scores(shape: &HeadShape, q: &[u8], q_zero: u8, keys: &KeysValues, out: &mut [i32]) {
    let center = i32::from(shape.center());
    for (j, score) in out.iter_mut().enumerate() {
        *score = (0..shape.head_dim)
            .map(|d| (i32::from(q[d]) - i32::from(q_zero)) * (keys.k(j, d) - center))
            .sum();
    }
}

/// Attention by multiplication.
///
/// `bias` is added to the scores: `[m, tokens]`, or nothing. `scores` and `codes` have room for one row, `[tokens]` each.
#[expect(
    clippy::too_many_arguments,
    reason = "no allocation: the caller lends the row buffers"
)]
pub fn attention(
    shape: &HeadShape,
    queries: &Queries,
    keys_values: &KeysValues,
    bias: &[i32],
    softmax: &SoftmaxCodes,
    requant: &HeadRequant,
    score_row: &mut [i32],
    code_row: &mut [u8],
    out: &mut HeadOutput,
) {
    let center = i32::from(shape.center());
    run(
        shape,
        queries,
        keys_values,
        bias,
        softmax,
        requant,
        score_row,
        code_row,
        out,
        |codes, d| {
            codes
                .iter()
                .enumerate()
                .map(|(j, &c)| {
                    i32::from(softmax.multipliers[usize::from(c)]) * (keys_values.v(j, d) - center)
                })
                .sum()
        },
    );
}

/// Attention by shifts and additions; the same bits as [`attention`].
#[expect(
    clippy::too_many_arguments,
    reason = "no allocation: the caller lends the row buffers"
)]
pub fn attention_shift(
    shape: &HeadShape,
    queries: &Queries,
    keys_values: &KeysValues,
    bias: &[i32],
    softmax: &SoftmaxCodes,
    form: &ShiftForm,
    requant: &HeadRequant,
    score_row: &mut [i32],
    code_row: &mut [u8],
    out: &mut HeadOutput,
) {
    let center = i32::from(shape.center());
    run(
        shape,
        queries,
        keys_values,
        bias,
        softmax,
        requant,
        score_row,
        code_row,
        out,
        |codes, d| {
            let (mut shifted, mut column) = (0_i32, 0_i32);
            for (j, &c) in codes.iter().enumerate() {
                let v = keys_values.v(j, d) - center;
                column += v;
                match form.exponents()[usize::from(c)] {
                    ShiftForm::NONE => {}
                    // Each side alone may pass 2^31 where their difference does not.
                    exponent => shifted = shifted.wrapping_add(v << exponent),
                }
            }
            shifted.wrapping_sub(form.constant().wrapping_mul(column))
        },
    );
}

/// Everything but the product of multipliers and values, which `product(codes, d)` gives.
#[expect(
    clippy::too_many_arguments,
    reason = "no allocation: the caller lends the row buffers"
)]
fn run(
    shape: &HeadShape,
    queries: &Queries,
    keys_values: &KeysValues,
    bias: &[i32],
    softmax: &SoftmaxCodes,
    requant: &HeadRequant,
    score_row: &mut [i32],
    code_row: &mut [u8],
    out: &mut HeadOutput,
    product: impl Fn(&[u8], usize) -> i32,
) {
    let center = i32::from(shape.center());
    for i in 0..queries.len() {
        let q = &queries.rows[i * queries.row_stride + queries.col..][..shape.head_dim];
        scores(shape, q, queries.zero, keys_values, score_row);
        let bias = bias.iter().skip(i * shape.tokens);
        score_row.iter_mut().zip(bias).for_each(|(s, b)| *s += b);
        softmax_codes::codes(softmax, score_row, code_row);
        let r: i32 = code_row
            .iter()
            .map(|&c| i32::from(softmax.multipliers[usize::from(c)]))
            .sum();
        let f = row_factor(softmax, r);
        for d in 0..shape.head_dim {
            let p = product(code_row, d);
            let exact = p.wrapping_sub((i32::from(requant.v_zero[d]) - center).wrapping_mul(r));
            let y = (exact as f32 * f) * requant.v_scale[d];
            let quant = &requant.quant;
            out.rows[i * out.row_stride + out.col + d] =
                quantize::code(y, quant.inv_scale[d], quant.zero_point[d], quant.max_code);
        }
    }
}

/// `f_i`: what an exact sum of a row with multiplier sum `r` is multiplied by.
#[inline(always)]
pub fn row_factor(softmax: &SoftmaxCodes, r: i32) -> f32 {
    if softmax.renormalise {
        if r > 0 { 1.0 / r as f32 } else { 0.0 }
    } else {
        match softmax.kind {
            SoftmaxKind::RowMax => 0.0, // refused by `SoftmaxCodes::check`
            SoftmaxKind::Static { alpha: _, scale } => scale,
        }
    }
}
