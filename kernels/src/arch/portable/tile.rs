//! The innermost product, as plain dot products that a compiler turns into vectors.
//!
//! ```text
//!                strip of one output: [k] s8
//!                w w w w w w w w ...
//!   a row r      a a a a a a a a ...      acc[r][output] = sum of a * w
//! ```
//!
//! Both operands lie along k, so the loop is the one every vectoriser knows
//! (`pmaddwd` on SSE2). Sixteen k-contiguous outputs are a panel.

use crate::arch::common::{gemm::Tile, panels::Layout};

/// Rows of a tile.
pub(super) const MR: usize = 4;

/// Order of the panels: one output after the other.
pub(super) const PANELS: Layout = Layout {
    nr: 16,
    sub: 1,
    kr: 16,
    sums: false,
};

/// Sums of `rows` rows of `k` codes, `stride` apart, with a panel.
#[inline(always)]
pub(super) fn tile(
    a: &[u8],
    stride: usize,
    rows: usize,
    k: usize,
    panel: &[u8],
    acc: &mut Tile<MR, 1>,
) {
    let strip_len = panel.len() / 16;
    for j in 0..16 {
        let weights = &panel[j * strip_len..][..k];
        for (r, [acc]) in acc[..rows].iter_mut().enumerate() {
            acc[j] = dot(&a[r * stride..][..k], weights);
        }
    }
}

#[inline(always)]
fn dot(a: &[u8], weights: &[u8]) -> i32 {
    a.iter()
        .zip(weights)
        .map(|(&a, &weight)| i32::from(a) * i32::from(weight as i8))
        .sum()
}
