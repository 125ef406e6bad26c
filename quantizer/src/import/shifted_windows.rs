//! Reads Swin's shifted windows out of index maps and masks.
//!
//! Graphs roll the grid by the shift, cut it into windows, and add two things to
//! the scores of each window: a bias that depends on the offset of query and key
//! alone, and a mask, a large negative number where the roll alone made them
//! neighbours. [`Window`] says the same by cutting the grid elsewhere, so all of
//! it must be exactly so.

use tpvit_models::{Cell, Window};

/// What is added to a masked score, at most. `exp(-64)` is 2^-92: beside any
/// score that is not masked, the f32 that follow lose nothing.
const MASKED: f32 = -64.0;

/// The windows of `n` tokens whose tokens are `tokens`, window after window; or
/// what was expected.
pub(crate) fn recognise(grid: [usize; 2], n: usize, tokens: &[usize]) -> Result<Window, String> {
    let [rows, cols] = grid;
    let at = |token: usize| [token / cols, token % cols];
    let shift = at(tokens[0]); // the roll brings this token to the corner
    let width = tokens[..n]
        .iter()
        .take_while(|token| at(**token)[0] == shift[0])
        .count();
    let size = [n / width, width];
    let whole = size[0] * size[1] == n
        && grid[0].is_multiple_of(size[0])
        && grid[1].is_multiple_of(size[1]);
    if !whole {
        return Err(format!(
            "whole windows of a grid of {rows} by {cols} tokens, not {n} tokens in rows of {width},"
        ));
    }
    if shift[0] >= size[0] || shift[1] >= size[1] {
        let ([h, w], [y, x]) = (size, shift);
        return Err(format!(
            "windows of {h} by {w} shifted by less than a window, not by {y} and {x},"
        ));
    }
    let window = Window { grid, size, shift };
    let expected = rolled(&window);
    match expected.iter().zip(tokens).position(|(a, b)| a != b) {
        None if expected.len() == tokens.len() => Ok(window),
        None => Err(format!("the {} tokens of the grid", expected.len())),
        Some(i) => Err(format!(
            "windows of {} by {}, rolled by {} and {}, row by row: token {} of window {} is {}, not {},",
            size[0],
            size[1],
            shift[0],
            shift[1],
            i % n,
            i / n,
            tokens[i],
            expected[i],
        )),
    }
}

/// Tokens of a grid rolled and cut, window after window, each row-major.
fn rolled(window: &Window) -> Vec<usize> {
    let Window {
        grid: [rows, cols],
        size: [h, w],
        shift: [down, right],
    } = *window;
    let mut tokens = Vec::with_capacity(rows * cols);
    for top in (0..rows).step_by(h) {
        for left in (0..cols).step_by(w) {
            for i in 0..h * w {
                let (y, x) = (top + i / w + down, left + i % w + right);
                tokens.push(y % rows * cols + x % cols);
            }
        }
    }
    tokens
}

/// The table of position bias `[heads, entries]` of what is added to the scores
/// `[windows, heads, n, n]` of rolled windows; or what was expected.
pub(crate) fn bias_table(window: &Window, heads: usize, added: &[f32]) -> Result<Vec<f32>, String> {
    let Window { grid, size, .. } = *window;
    let (n, len) = (size[0] * size[1], window.bias_len());
    let whole = Cell {
        top: 0,
        left: 0,
        height: size[0],
        width: size[1],
    };
    let mut cell_of = vec![0; grid[0] * grid[1]];
    for (number, cell) in window.cells().enumerate() {
        cell.rows(grid[1]).for_each(|token| cell_of[token] = number);
    }
    let tokens = rolled(window);
    let mut table: Vec<Option<f32>> = vec![None; heads * len];
    for (i, value) in added.iter().enumerate() {
        let (key, query, head, index) = (i % n, i / n % n, i / n / n % heads, i / n / n / heads);
        let [a, b] = [query, key].map(|token| cell_of[tokens[index * n + token]]);
        let masked = *value <= MASKED;
        if masked != (a != b) {
            let is = if masked { "masked" } else { "not masked" };
            return Err(format!(
                "a mask of exactly what the roll by {:?} made neighbours: query {query} and key {key} of window {index} are {is},",
                window.shift
            ));
        }
        if masked {
            continue;
        }
        let entry = window.bias_index(&whole, query, key);
        let known = *table[head * len + entry].get_or_insert(*value);
        if known != *value {
            return Err(format!(
                "a position bias that depends on the offset of query and key alone: head {head} adds {value} to query {query} and key {key} of window {index}, and {known} elsewhere,"
            ));
        }
    }
    // Offsets that no pair of tokens has are never looked up.
    Ok(table.into_iter().map(|v| v.unwrap_or(0.0)).collect())
}
