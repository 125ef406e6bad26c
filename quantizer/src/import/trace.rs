//! Where the elements of a value come from, through moves and constants.

use super::error::Misfit;
use super::reduce::{Kind, Reduced, Step};
use super::view::View;
use crate::onnx::{ValueId, element_count};

/// `value[i] = scale * source[index[i]] (+ offset[i])`, all counted row-major.
pub(crate) struct Trace<'r> {
    pub(crate) source: ValueId,
    pub(crate) index: Vec<u32>,
    pub(crate) scale: f64,
    pub(crate) offset: Option<Offset<'r>>,
}

/// What constants add on the way.
pub(crate) struct Offset<'r> {
    pub(crate) values: Vec<f32>,
    /// The last step that adds one.
    pub(crate) step: &'r Step,
}

impl<'r> Trace<'r> {
    /// Follows `id` upwards through moves and scalar factors.
    pub(crate) fn new(reduced: &'r Reduced<'_>, id: ValueId) -> Self {
        let len = element_count(reduced.shape(id)).unwrap_or(0);
        let mut trace = Trace {
            source: reduced.base(id),
            index: (0..len as u32).collect(),
            scale: 1.0,
            offset: None,
        };
        trace.follow(reduced, false);
        trace
    }

    /// The same, through constants added too.
    pub(crate) fn with_offsets(reduced: &'r Reduced<'_>, id: ValueId) -> Self {
        let mut trace = Trace::new(reduced, id);
        trace.follow(reduced, true);
        trace
    }

    fn follow(&mut self, reduced: &'r Reduced<'_>, offsets: bool) {
        while let Some(step) = reduced.source(self.source) {
            let input = step.inputs.first().copied();
            if let Some(moved) = step.kind.moves() {
                self.index.iter_mut().for_each(|i| *i = moved[*i as usize]);
            } else if let Kind::Scale { by, divide } = &step.kind
                && let Some(by) = by.scalar()
            {
                match divide {
                    true => self.scale /= f64::from(by),
                    false => self.scale *= f64::from(by),
                }
            } else if let (true, Kind::Offset { by }) = (offsets, &step.kind)
                && let Some(from) = View::broadcast(&by.shape, reduced.shape(step.output))
                && let Some(by) = by.floats()
            {
                self.add(step, by, &from.indexes());
            } else {
                break;
            }
            let Some(input) = input else { break };
            self.source = reduced.base(input);
        }
    }

    /// Element `i` of the present source is `by[from[i]]` more than before.
    fn add(&mut self, step: &'r Step, by: &[f32], from: &[u32]) {
        let len = self.index.len();
        let offset = self.offset.get_or_insert_with(|| Offset {
            values: vec![0.0; len],
            step,
        });
        for (value, i) in offset.values.iter_mut().zip(&self.index) {
            *value += self.scale as f32 * by[from[*i as usize] as usize];
        }
    }

    /// Whether nothing moved.
    pub(crate) fn in_order(&self) -> bool {
        self.index.iter().enumerate().all(|(i, j)| i == *j as usize)
    }

    /// For a value `[rows, cols]` whose rows are whole rows of a source of as
    /// many columns: which ones.
    pub(crate) fn rows(&self, cols: usize) -> Option<Vec<usize>> {
        let row = |row: &[u32]| {
            let first = row[0] as usize;
            let run = row
                .iter()
                .enumerate()
                .all(|(c, i)| *i as usize == first + c);
            (run && first.is_multiple_of(cols)).then_some(first / cols)
        };
        let rows = self.index.chunks_exact(cols.max(1));
        rows.remainder()
            .is_empty()
            .then(|| rows.map(row).collect())?
    }

    /// For a value of `batches` matrices `[n, d]`, whose source is `[rows,
    /// cols]`, so that each matrix is some rows by some columns: which.
    ///
    /// `at(batch, i, channel)` is where that element lies in the value.
    pub(crate) fn blocks(
        &self,
        [batches, n, d]: [usize; 3],
        cols: usize,
        at: impl Fn(usize, usize, usize) -> usize,
    ) -> Option<Blocks> {
        if self.index.len() != batches * n * d || cols == 0 {
            return None;
        }
        let from = |b, i, c| {
            let from = self.index[at(b, i, c)] as usize;
            (from / cols, from % cols)
        };
        let mut blocks = Blocks {
            rows: Vec::with_capacity(batches * n),
            columns: Vec::with_capacity(batches * d),
        };
        for b in 0..batches {
            blocks.rows.extend((0..n).map(|i| from(b, i, 0).0));
            blocks.columns.extend((0..d).map(|c| from(b, 0, c).1));
            let (rows, columns) = (&blocks.rows[b * n..], &blocks.columns[b * d..]);
            let fits = |i: usize| (0..d).all(|c| from(b, i, c) == (rows[i], columns[c]));
            if !(0..n).all(fits) {
                return None;
            }
        }
        Some(blocks)
    }
}

/// Rows `[batches, n]` and columns `[batches, d]` of the source.
pub(crate) struct Blocks {
    pub(crate) rows: Vec<usize>,
    pub(crate) columns: Vec<usize>,
}

/// The only step that reads `id`.
pub(crate) fn only_use<'r>(
    reduced: &'r Reduced<'_>,
    id: ValueId,
    expected: &str,
) -> Result<&'r Step, Misfit> {
    match reduced.uses(id)[..] {
        [step] => Ok(step),
        [_, second, ..] => Err(Misfit::at(
            second,
            format!("no further use beside {expected}"),
        )),
        [] => Err(match reduced.source(id) {
            Some(step) => Misfit::at(step, format!("no end of the graph before {expected}")),
            None => Misfit::nowhere(format!("nothing reads the picture, no {expected}")),
        }),
    }
}
