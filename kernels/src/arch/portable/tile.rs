//! The innermost product, in words that a compiler turns into vectors.
//!
//! ```text
//!                panel [k][16] s8
//!              w w w w w w w w w w w w w w w w      one k
//!   a row r  | acc[r][0 .. 16] += a * w             16-bit products, exact: 255 * 128 < 2^15
//! ```
//!
//! Products are summed in i16 for as many k as cannot overflow (`spill`), then
//! widened: 255 * 128 allows one, 15 * 8 allows 273.

use crate::arch::common::gemm::Tile;

/// Rows of a tile.
pub(crate) const MR: usize = 4;

/// How many products of activations up to `act_max` and weights of magnitude up
/// to `weight_max` an i16 holds; at least one.
pub(crate) const fn spill(act_max: u8, weight_max: u8) -> usize {
    let product = act_max as usize * weight_max as usize;
    match i16::MAX as usize / if product == 0 { 1 } else { product } {
        0 => 1,
        steps => steps,
    }
}

/// Sums of `rows` rows of `k` codes, `stride` apart, with a panel.
#[inline(always)]
pub(crate) fn tile(
    spill: usize,
    a: &[u8],
    stride: usize,
    rows: usize,
    k: usize,
    panel: &[u8],
    acc: &mut Tile<MR, 1>,
) {
    let (panel, _) = panel.as_chunks::<16>();
    for (r, [acc]) in acc[..rows].iter_mut().enumerate() {
        let a = &a[r * stride..][..k];
        *acc = [0; 16];
        for (a, panel) in a.chunks(spill).zip(panel.chunks(spill)) {
            let mut partial = [0_i16; 16];
            for (&a, weights) in a.iter().zip(panel) {
                for (partial, &weight) in partial.iter_mut().zip(weights) {
                    *partial =
                        partial.wrapping_add(i16::from(a).wrapping_mul(i16::from(weight as i8)));
                }
            }
            for (acc, partial) in acc.iter_mut().zip(partial) {
                *acc += i32::from(partial);
            }
        }
    }
}

// 255 * 128 is the largest product and fits; so `spill` is never 0 by overflow.
const _: () = assert!(spill(255, 128) == 1 && spill(15, 8) == 273);
