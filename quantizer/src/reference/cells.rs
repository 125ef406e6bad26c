//! Cells of a window: rows of a grid side by side, and back.

use tpvit_models::{Cell, Window};

/// The rows of `cell` of a grid `[grid_h * grid_w, cols]`, one after the other.
pub(crate) fn gather(window: &Window, cell: &Cell, grid: &[f32], cols: usize, out: &mut Vec<f32>) {
    out.clear();
    for row in cell.rows(window.grid[1]) {
        out.extend_from_slice(&grid[row * cols..][..cols]);
    }
}

/// Puts `rows`, `[cell.tokens(), cols]`, where [`gather`] takes them from, by
/// `put(to, from)`.
pub(crate) fn scatter(
    window: &Window,
    cell: &Cell,
    rows: &[f32],
    cols: usize,
    grid: &mut [f32],
    put: impl Fn(&mut [f32], &[f32]),
) {
    for (row, from) in cell.rows(window.grid[1]).zip(rows.chunks_exact(cols)) {
        put(&mut grid[row * cols..][..cols], from);
    }
}

/// The position bias of one head for the tokens of a cell, added to their
/// scores `[n, n]`.
pub(crate) fn add_bias(window: &Window, cell: &Cell, bias: &[f32], scores: &mut [f32]) {
    let n = cell.tokens();
    for (i, score) in scores.iter_mut().enumerate() {
        *score += bias[window.bias_index(cell, i / n, i % n)];
    }
}
