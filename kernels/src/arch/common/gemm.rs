//! The loop nest of a matrix product.
//!
//! ```text
//! for panel in n / nr                 unpack it once; it stays in L1 or L2
//!     for tile in m / MR              its rows of a stream past the panel,
//!                                     while part of the next panel is fetched
//!         tile: MR x nr exact sums, all k
//!         requantize and store them
//! ```

use super::{epilogue::Epilogue, lanes::Lanes, panels::Panels};

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
pub(crate) fn drive<L: Lanes, const MR: usize, const NV: usize>(
    l: L,
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
    // All weights of a model come from memory anew for each picture. A panel that one
    // tile alone reads is not worth the trouble.
    let lines_each = match m.div_ceil(MR) {
        0 | 1 => 0,
        tiles => panels.lines(0).len().div_ceil(tiles),
    };
    for p in 0..n.div_ceil(16 * NV) {
        let bytes = panel(p, scratch, panels);
        let mut next = panels.lines(p + 1);
        let mut columns = [epilogue.columns(l, p * NV * 16, &owed(panels, p, 0, shift)); NV];
        for (v, columns) in columns.iter_mut().enumerate().skip(1) {
            *columns = epilogue.columns(l, (p * NV + v) * 16, &owed(panels, p, v, shift));
        }
        // The last panel may be wider than what is left of n.
        let blocks = usize::min(NV, n.div_ceil(16) - p * NV);
        for i in (0..m).step_by(MR) {
            let rows = usize::min(MR, m - i);
            for line in next.by_ref().take(lines_each) {
                l.prefetch(line);
            }
            tile(i, rows, bytes, &mut acc);
            for (v, columns) in columns[..blocks].iter().enumerate() {
                epilogue.store(l, i, columns, v, &acc[..rows]);
            }
        }
    }
}

/// What a tile owes for shifted activations: `shift` times the weight sums.
#[inline(always)]
fn owed(panels: &Panels, p: usize, v: usize, shift: i32) -> [i32; 16] {
    let mut owed = panels.sums(p, v);
    for sum in &mut owed {
        *sum = sum.wrapping_mul(shift);
    }
    owed
}
