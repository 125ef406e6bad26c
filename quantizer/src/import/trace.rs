//! Where the elements of a value come from, through moves and constant factors.

use super::error::Misfit;
use super::reduce::{Kind, Reduced, Step};
use crate::onnx::{ValueId, element_count};

/// `value[i] = scale * source[index[i]]`, all counted row-major.
pub(crate) struct Trace {
    pub(crate) source: ValueId,
    pub(crate) index: Vec<u32>,
    pub(crate) scale: f64,
}

impl Trace {
    /// Follows `id` upwards through views and scalar factors.
    pub(crate) fn new(reduced: &Reduced<'_>, id: ValueId) -> Self {
        let len = element_count(reduced.shape(id)).unwrap_or(0);
        let mut trace = Trace {
            source: reduced.base(id),
            index: (0..len as u32).collect(),
            scale: 1.0,
        };
        while let Some(step) = reduced.source(trace.source) {
            match &step.kind {
                Kind::View(view) => {
                    let moved = view.indexes();
                    trace.index.iter_mut().for_each(|i| *i = moved[*i as usize]);
                }
                Kind::Scale { by, divide } => {
                    let Some(by) = by.scalar() else { break };
                    match divide {
                        true => trace.scale /= f64::from(by),
                        false => trace.scale *= f64::from(by),
                    }
                }
                _ => break,
            }
            trace.source = reduced.base(step.inputs[0]);
        }
        trace
    }

    /// Whether nothing moved.
    pub(crate) fn in_order(&self) -> bool {
        self.index.iter().enumerate().all(|(i, j)| i == *j as usize)
    }

    /// For a value `[heads, t, d]` whose row `n` is taken from row `n` of a
    /// source `[t, cols]`, the column each `(head, channel)` is taken from.
    ///
    /// `at(head, n, channel)` is where that element lies in the value.
    pub(crate) fn columns(
        &self,
        [heads, t, d]: [usize; 3],
        cols: usize,
        at: impl Fn(usize, usize, usize) -> usize,
    ) -> Option<Vec<usize>> {
        let from = |h, n, c| Some(*self.index.get(at(h, n, c))? as usize);
        let mut columns = Vec::with_capacity(heads * d);
        for (h, c) in (0..heads * d).map(|i| (i / d, i % d)) {
            let column = from(h, 0, c).filter(|c| *c < cols)?;
            if (0..t).any(|n| from(h, n, c) != Some(n * cols + column)) {
                return None;
            }
            columns.push(column);
        }
        Some(columns)
    }
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
