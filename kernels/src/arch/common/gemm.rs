//! The loop nest of a matrix product.
//!
//! ```text
//! for panel in n / nr                 unpack it once; it stays in L1 or L2
//!     for tile in m / MR              its rows of a stream past the panel
//!         tile: MR x nr exact sums, all k
//!         requantize and store them
//! ```

use super::{
    epilogue::{Columns, Epilogue},
    panels::Panels,
};

/// Exact sums of a tile: `MR` rows of `NV` blocks of sixteen outputs.
pub(crate) type Tile<const MR: usize, const NV: usize> = [[[i32; 16]; NV]; MR];

/// Runs the nest over `m` rows.
///
/// `panel(p, scratch)` gives the bytes of panel `p`; `tile(i, rows, bytes, acc)`
/// computes the sums of rows `i .. i + rows`, `1 <= rows <= MR`. A tile that
/// shifts its activations by `-shift` owes `shift` times the weight sums, which
/// are added here.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "one loop nest")]
pub(crate) fn drive<const MR: usize, const NV: usize>(
    m: usize,
    n: usize,
    panels: &Panels,
    shift: i32,
    epilogue: &mut Epilogue,
    scratch: &mut [u8],
    panel: impl for<'s> Fn(usize, &'s mut [u8], &'s Panels) -> &'s [u8],
    tile: impl Fn(usize, usize, &[u8], &mut Tile<MR, NV>),
) {
    let mut acc = [[[0; 16]; NV]; MR];
    let mut columns = [Columns::EMPTY; NV];
    for p in 0..n.div_ceil(16 * NV) {
        let bytes = panel(p, scratch, panels);
        for (v, columns) in columns.iter_mut().enumerate() {
            let mut owed = panels.sums(p, v);
            for sum in &mut owed {
                *sum = sum.wrapping_mul(shift);
            }
            *columns = epilogue.columns((p * NV + v) * 16, &owed);
        }
        for i in (0..m).step_by(MR) {
            let rows = usize::min(MR, m - i);
            tile(i, rows, bytes, &mut acc);
            for (r, row) in acc[..rows].iter().enumerate() {
                for (v, block) in row.iter().enumerate() {
                    if (p * NV + v) * 16 < n {
                        epilogue.store(i + r, &columns[v], block);
                    }
                }
            }
        }
    }
}
