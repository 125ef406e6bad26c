//! Windows of a grid of tokens.

/// How attention cuts a grid of tokens.
///
/// Swin (Liu et al. 2021, arXiv:2103.14030, section 3.2) rolls the grid by the
/// shift, cuts it into windows, and masks the pairs of a window that the roll
/// alone made neighbours. What is left is the grid itself cut at `shift, shift +
/// size, ...`: windows at its edges are smaller, and nobody is masked.
///
/// ```text
/// 6 tokens, windows of 3, shift 1      rolled   1 2 3 | 4 5 . 0      0 sees 0; 4 and 5 see each other
///                                      cut      0 | 1 2 3 | 4 5
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Rows and columns of the grid; token `y * grid[1] + x` is at `(y, x)`.
    pub grid: [usize; 2],
    /// Rows and columns of a window; the grid is whole windows.
    pub size: [usize; 2],
    /// How far the cut is moved down and to the right, less than `size`.
    pub shift: [usize; 2],
}

/// A rectangle of the grid whose tokens attend to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Cell {
    /// Tokens in it.
    pub fn tokens(&self) -> usize {
        self.height * self.width
    }

    /// Its tokens in row-major order, in a grid of `grid_width` columns.
    pub fn rows(&self, grid_width: usize) -> impl Iterator<Item = usize> + use<> {
        let Cell {
            top,
            left,
            height,
            width,
        } = *self;
        (top..top + height).flat_map(move |y| (left..left + width).map(move |x| y * grid_width + x))
    }
}

impl Window {
    /// One window of the whole grid.
    pub fn whole(grid: [usize; 2]) -> Self {
        Window {
            grid,
            size: grid,
            shift: [0; 2],
        }
    }

    /// The cells, row-major; together they are the grid.
    pub fn cells(&self) -> impl Iterator<Item = Cell> + use<> {
        let window = *self;
        window.cuts(0).flat_map(move |(top, height)| {
            window.cuts(1).map(move |(left, width)| Cell {
                top,
                left,
                height,
                width,
            })
        })
    }

    /// Start and length of the pieces of one side.
    fn cuts(self, axis: usize) -> impl Iterator<Item = (usize, usize)> {
        let (side, size, shift) = (self.grid[axis], self.size[axis], self.shift[axis]);
        let first = if shift == 0 { size } else { shift };
        let mut next = (0, first.min(side));
        core::iter::from_fn(move || {
            let (start, len) = next;
            next = (start + len, size.min(side - start - len));
            (len > 0).then_some((start, len))
        })
    }

    /// Tokens of the largest cell; the largest is a whole window where the grid is
    /// more than one.
    pub fn largest(&self) -> usize {
        self.cells().map(|cell| cell.tokens()).max().unwrap_or(0)
    }

    /// Entries of a head's position bias.
    pub fn bias_len(&self) -> usize {
        (2 * self.size[0] - 1) * (2 * self.size[1] - 1)
    }

    /// The entry of the position bias for token `query` and token `key` of a cell,
    /// both counted in it row-major.
    pub fn bias_index(&self, cell: &Cell, query: usize, key: usize) -> usize {
        let [h, w] = self.size;
        let at = |token: usize| (token / cell.width, token % cell.width);
        let ((qy, qx), (ky, kx)) = (at(query), at(key));
        (qy + h - 1 - ky) * (2 * w - 1) + qx + w - 1 - kx
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    /// Which tokens see which, by the definition of Swin: roll, cut, mask.
    fn rolled(window: &Window) -> Vec<Vec<bool>> {
        let Window { grid, size, shift } = *window;
        let tokens = grid[0] * grid[1];
        // Window and region of a token along one side.
        let place = |i: usize, at: usize| {
            let rolled = (at + grid[i] - shift[i]) % grid[i];
            let region = match rolled {
                r if shift[i] == 0 || r < grid[i] - size[i] => 0,
                r if r < grid[i] - shift[i] => 1,
                _ => 2,
            };
            (rolled / size[i], region)
        };
        let of = |t: usize| (place(0, t / grid[1]), place(1, t % grid[1]));
        (0..tokens)
            .map(|q| (0..tokens).map(|k| of(q) == of(k)).collect())
            .collect()
    }

    #[test]
    fn cells_are_the_rolled_and_masked_windows() {
        for (grid, size) in [
            ([8, 12], [4, 4]),
            ([6, 3], [3, 3]),
            ([4, 6], [2, 3]),
            ([5, 5], [5, 5]),
        ] {
            for shift in [[0, 0], [1, 0], [1, 2], [size[0] - 1, size[1] - 1]] {
                let window = Window { grid, size, shift };
                let tokens = grid[0] * grid[1];
                let mut sees = vec![vec![false; tokens]; tokens];
                let mut seen = vec![0; tokens];
                for cell in window.cells() {
                    assert_eq!(cell.rows(grid[1]).count(), cell.tokens());
                    for q in cell.rows(grid[1]) {
                        seen[q] += 1;
                        cell.rows(grid[1]).for_each(|k| sees[q][k] = true);
                    }
                }
                assert!(seen.iter().all(|&n| n == 1), "{window:?}");
                assert_eq!(sees, rolled(&window), "{window:?}");
            }
        }
    }

    #[test]
    fn the_bias_depends_on_the_offset_alone() {
        let window = Window {
            grid: [6, 6],
            size: [3, 3],
            shift: [1, 1],
        };
        for cell in window.cells() {
            for q in 0..cell.tokens() {
                for k in 0..cell.tokens() {
                    let offset = |t: usize| [t / cell.width, t % cell.width].map(|v| v as isize);
                    let [dy, dx] = [0, 1].map(|i| offset(q)[i] - offset(k)[i]);
                    let index = ((dy + 2) * 5 + dx + 2) as usize;
                    assert_eq!(window.bias_index(&cell, q, k), index);
                    assert!(index < window.bias_len());
                }
            }
        }
    }
}
