//! Nodes that only move data, as strided views of their input.
//!
//! Element `(i0, i1, ..)` of a view is element `offset + i0*strides[0] +
//! i1*strides[1] + ..` of the input, counted row-major. Exporters write the
//! same rearrangement in many ways (Split, Slice, Gather, Squeeze, Transpose,
//! Reshape); as index maps they are all alike, and head count, head size and
//! the order of q, k and v can be read off instead of guessed.

use crate::onnx::Node;

/// A rearrangement of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) shape: Vec<usize>,
    offset: isize,
    strides: Vec<isize>,
}

impl View {
    /// The row-major elements, unmoved, under another shape.
    pub(crate) fn reshaped(shape: Vec<usize>) -> Self {
        View {
            strides: row_major(&shape),
            offset: 0,
            shape,
        }
    }

    /// `from` broadcast to `to`, which must be possible.
    pub(crate) fn broadcast(from: &[usize], to: &[usize]) -> Option<Self> {
        let lead = to.len().checked_sub(from.len())?;
        let mut strides = vec![0; lead];
        for ((side, target), stride) in from.iter().zip(&to[lead..]).zip(row_major(from)) {
            strides.push(match *side {
                1 => 0,
                s if s == *target => stride,
                _ => return None,
            });
        }
        Some(View {
            shape: to.to_vec(),
            offset: 0,
            strides,
        })
    }

    /// The axes of `last` moved behind the others.
    pub(crate) fn grouped(shape: &[usize], last: &[usize]) -> Self {
        let first = (0..shape.len()).filter(|i| !last.contains(i));
        let perm: Vec<usize> = first.chain(last.iter().copied()).collect();
        let natural = row_major(shape);
        View {
            shape: perm.iter().map(|i| shape[*i]).collect(),
            offset: 0,
            strides: perm.iter().map(|i| natural[*i]).collect(),
        }
    }

    /// Whether the elements stay in row-major order, all of them.
    pub(crate) fn is_identity(&self, input_len: usize) -> bool {
        let natural = row_major(&self.shape);
        let sides = self.shape.iter().zip(self.strides.iter().zip(&natural));
        self.offset == 0
            && self.shape.iter().product::<usize>() == input_len
            && sides.into_iter().all(|(side, (a, b))| *side == 1 || a == b)
    }

    /// For each element, in row-major order, the index of the input's element.
    pub(crate) fn indexes(&self) -> Vec<u32> {
        let mut at = vec![self.offset];
        for (side, stride) in self.shape.iter().zip(&self.strides) {
            let steps = |base: isize| (0..*side).map(move |i| base + i as isize * stride);
            at = at.into_iter().flat_map(steps).collect();
        }
        at.into_iter().map(|i| i as u32).collect()
    }

    fn take(mut self, axis: usize, start: usize, step: isize, len: usize) -> Self {
        self.offset += start as isize * self.strides[axis];
        self.strides[axis] *= step;
        self.shape[axis] = len;
        self
    }

    /// An axis as several of these sides, or as none.
    fn split_axis(mut self, axis: usize, sides: &[usize]) -> Self {
        let stride = self.strides[axis];
        let strides = row_major(sides).into_iter().map(|s| s * stride);
        self.strides.splice(axis..=axis, strides);
        self.shape.splice(axis..=axis, sides.iter().copied());
        self
    }
}

fn row_major(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i] as isize;
    }
    strides
}

/// An axis counted from either end.
pub(crate) fn axis(value: i64, rank: usize) -> Option<usize> {
    let value = if value < 0 {
        value + rank as i64
    } else {
        value
    };
    usize::try_from(value).ok().filter(|a| *a < rank)
}

/// What `node` does to its first input to make output number `output`, if all
/// it does is move data. `ints(i)` is input `i`, if it is constant integers, and
/// `dims(i)` their shape.
pub(crate) fn of_node(
    node: &Node,
    output: usize,
    shape: &[usize],
    ints: &dyn Fn(usize) -> Option<Vec<i64>>,
    dims: &dyn Fn(usize) -> Option<Vec<usize>>,
) -> Option<View> {
    if !node.domain.is_empty() {
        return None;
    }
    let whole = || View::reshaped(shape.to_vec());
    let list = |attribute: &str, input: usize| match node.ints(attribute) {
        Some(list) => Some(list.to_vec()),
        None => ints(input),
    };
    match node.op.as_str() {
        "Identity" => Some(whole()),
        "Dropout" => Some(whole()).filter(|_| output == 0),
        "Cast" => matches!(node.int("to")?, 1 | 10 | 11 | 16).then(whole),
        "Reshape" => reshape(shape, &ints(1)?, node.int("allowzero") == Some(1)),
        "Flatten" => flatten(shape, node.int("axis").unwrap_or(1)),
        "Squeeze" => squeeze(shape, list("axes", 1)),
        "Unsqueeze" => unsqueeze(shape, &list("axes", 1)?),
        "Transpose" => transpose(shape, node.ints("perm")),
        "Slice" => slice(
            shape,
            &list("starts", 1)?,
            &list("ends", 2)?,
            list("axes", 3).as_deref(),
            ints(4).as_deref(),
        ),
        "Split" => split(shape, node, output, list("split", 1)),
        "Gather" => gather(shape, node, &ints(1)?, &dims(1)?),
        "Expand" => expand(shape, &ints(1)?),
        "Pad" => {
            let pads = list("pads", 1)?;
            pads.iter().all(|p| *p == 0).then(whole)
        }
        _ => None,
    }
}

fn reshape(shape: &[usize], target: &[i64], allow_zero: bool) -> Option<View> {
    let len: usize = shape.iter().product();
    let mut sides = Vec::with_capacity(target.len());
    let mut free = None;
    for (i, t) in target.iter().enumerate() {
        sides.push(match *t {
            0 if !allow_zero => *shape.get(i)?,
            -1 if free.is_none() => {
                free = Some(i);
                1
            }
            t => usize::try_from(t).ok()?,
        });
    }
    let known = crate::onnx::element_count(&sides)?;
    if let Some(free) = free {
        sides[free] = len.checked_div(known)?;
    }
    (crate::onnx::element_count(&sides)? == len).then(|| View::reshaped(sides))
}

fn flatten(shape: &[usize], at: i64) -> Option<View> {
    let at = match usize::try_from(at) {
        Ok(at) if at == shape.len() => at,
        Ok(_) | Err(_) => axis(at, shape.len())?,
    };
    let (outer, inner) = shape.split_at(at);
    Some(View::reshaped(vec![
        outer.iter().product(),
        inner.iter().product(),
    ]))
}

fn squeeze(shape: &[usize], axes: Option<Vec<i64>>) -> Option<View> {
    let dropped: Vec<usize> = match axes {
        Some(axes) => axes
            .iter()
            .map(|a| axis(*a, shape.len()))
            .collect::<Option<_>>()?,
        None => (0..shape.len()).filter(|i| shape[*i] == 1).collect(),
    };
    if dropped.iter().any(|i| shape[*i] != 1) {
        return None;
    }
    let kept = (0..shape.len()).filter(|i| !dropped.contains(i));
    Some(View::reshaped(kept.map(|i| shape[i]).collect()))
}

fn unsqueeze(shape: &[usize], axes: &[i64]) -> Option<View> {
    let rank = shape.len().checked_add(axes.len())?;
    let added = axes
        .iter()
        .map(|a| axis(*a, rank))
        .collect::<Option<Vec<_>>>()?;
    let mut sides = shape.iter();
    let side = |i| {
        if added.contains(&i) {
            Some(1)
        } else {
            sides.next().copied()
        }
    };
    let shape = (0..rank).map(side).collect::<Option<Vec<_>>>()?;
    Some(View::reshaped(shape)).filter(|_| sides.next().is_none())
}

fn transpose(shape: &[usize], perm: Option<&[i64]>) -> Option<View> {
    let rank = shape.len();
    let reversed: Vec<i64> = (0..rank as i64).rev().collect();
    let perm = perm.unwrap_or(&reversed);
    let perm = perm
        .iter()
        .map(|a| axis(*a, rank))
        .collect::<Option<Vec<_>>>()?;
    if perm.len() != rank || (0..rank).any(|i| !perm.contains(&i)) {
        return None;
    }
    let natural = row_major(shape);
    Some(View {
        shape: perm.iter().map(|i| shape[*i]).collect(),
        offset: 0,
        strides: perm.iter().map(|i| natural[*i]).collect(),
    })
}

fn slice(
    shape: &[usize],
    starts: &[i64],
    ends: &[i64],
    axes: Option<&[i64]>,
    steps: Option<&[i64]>,
) -> Option<View> {
    let mut view = View::reshaped(shape.to_vec());
    if starts.len() != ends.len() {
        return None;
    }
    for (i, (start, end)) in starts.iter().zip(ends).enumerate() {
        let at = axis(
            axes.map_or(Some(i as i64), |a| a.get(i).copied())?,
            shape.len(),
        )?;
        let step = steps.map_or(Some(1), |s| s.get(i).copied())?;
        let side = view.shape[at] as i64;
        if side == 0 {
            return None;
        }
        let from_end = |v: i64| if v < 0 { v.saturating_add(side) } else { v };
        let (start, end) = (from_end(*start), from_end(*end));
        let (start, end) = match step {
            1.. => (start.clamp(0, side), end.clamp(0, side)),
            _ => (start.clamp(0, side - 1), end.clamp(-1, side - 1)),
        };
        let span = if step > 0 { end - start } else { start - end };
        let len = (span.max(0) as u64).div_ceil(step.unsigned_abs().max(1)) as usize;
        if step == 0 {
            return None;
        }
        // A roll by nothing has an empty part; where it starts means nothing.
        let start = if len == 0 { 0 } else { start };
        let step = if len <= 1 {
            1
        } else {
            isize::try_from(step).ok()?
        };
        view = view.take(at, start as usize, step, len);
    }
    Some(view)
}

fn split(shape: &[usize], node: &Node, output: usize, sizes: Option<Vec<i64>>) -> Option<View> {
    let at = axis(node.int("axis").unwrap_or(0), shape.len())?;
    let sizes = match sizes {
        Some(sizes) => sizes,
        None => {
            let each = shape[at].div_ceil(node.outputs.len().max(1));
            let left = |i| shape[at].saturating_sub(i * each).min(each);
            (0..node.outputs.len()).map(|i| left(i) as i64).collect()
        }
    };
    let sizes = sizes
        .iter()
        .map(|s| usize::try_from(*s).ok())
        .collect::<Option<Vec<_>>>()?;
    let end = sizes
        .iter()
        .try_fold(0usize, |sum, s| sum.checked_add(*s))?;
    let (start, len) = (sizes.get(..output)?.iter().sum(), *sizes.get(output)?);
    let view = View::reshaped(shape.to_vec());
    (end == shape[at] && len > 0).then(|| view.take(at, start, 1, len))
}

/// Evenly spaced rows only: one row, a run of them, every second one.
fn gather(shape: &[usize], node: &Node, rows: &[i64], dims: &[usize]) -> Option<View> {
    let at = axis(node.int("axis").unwrap_or(0), shape.len())?;
    let rows = rows
        .iter()
        .map(|r| axis(*r, shape[at]))
        .collect::<Option<Vec<_>>>()?;
    let first = *rows.first()?;
    let step = rows
        .get(1)
        .map_or(1, |second| *second as isize - first as isize);
    let at_step = |(i, r): (usize, &usize)| *r as isize == first as isize + i as isize * step;
    if !rows.iter().enumerate().all(at_step) {
        return None;
    }
    let view = View::reshaped(shape.to_vec()).take(at, first, step, rows.len());
    Some(view.split_axis(at, dims))
}

fn expand(shape: &[usize], target: &[i64]) -> Option<View> {
    let target = target
        .iter()
        .map(|t| usize::try_from(*t).ok())
        .collect::<Option<Vec<_>>>()?;
    View::broadcast(shape, &broadcast_shape(shape, &target)?)
}

/// The shape two operands are broadcast to.
pub(crate) fn broadcast_shape(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let side = |s: &[usize], i: usize| match (i + s.len()).checked_sub(rank) {
        Some(j) => s[j],
        None => 1,
    };
    let both = |i| match (side(a, i), side(b, i)) {
        (x, y) if x == y || y == 1 => Some(x),
        (1, y) => Some(y),
        _ => None,
    };
    let shape = (0..rank).map(both).collect::<Option<Vec<_>>>()?;
    crate::onnx::element_count(&shape).map(|_| shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transpose_of_a_side_of_one_moves_nothing() {
        let view = transpose(&[1, 5, 6], Some(&[1, 0, 2])).unwrap();
        assert!(view.is_identity(30));
        assert!(
            !transpose(&[2, 5, 6], Some(&[1, 0, 2]))
                .unwrap()
                .is_identity(60)
        );
    }

    #[test]
    fn slices_follow_the_operator_definition() {
        let row = |s: i64, e: i64, step: i64| {
            slice(&[6], &[s], &[e], Some(&[0]), Some(&[step])).map(|v| v.indexes())
        };
        assert_eq!(row(1, 4, 1), Some(vec![1, 2, 3]));
        assert_eq!(row(-2, i64::MAX, 1), Some(vec![4, 5]));
        assert_eq!(row(5, i64::MIN, -2), Some(vec![5, 3, 1]));
        assert_eq!(row(4, 2, 1), Some(vec![]));
        assert_eq!(row(0, 6, 0), None);
    }

    #[test]
    fn an_axis_becomes_as_many_as_the_indexes_have() {
        let view = View::reshaped(vec![2, 6]).take(1, 1, 2, 3);
        let split = view.clone().split_axis(1, &[3, 1]);
        assert_eq!(split.shape, [2, 3, 1]);
        assert_eq!(split.indexes(), view.indexes());
        let one = View::reshaped(vec![2, 6]).take(1, 4, 1, 1);
        assert_eq!(one.clone().split_axis(1, &[]).shape, [2]);
        assert_eq!(one.split_axis(1, &[]).indexes(), [4, 10]);
    }

    #[test]
    fn reshape_fills_in_zero_and_minus_one() {
        let shape = |t: &[i64]| reshape(&[2, 3, 4], t, false).map(|v| v.shape);
        assert_eq!(shape(&[0, -1]), Some(vec![2, 12]));
        assert_eq!(shape(&[-1, -1]), None);
        assert_eq!(shape(&[5, -1]), None);
        assert_eq!(shape(&[0, 0, 0, 0, 1]), None);
    }

    #[test]
    fn expand_repeats() {
        let view = expand(&[1, 2], &[3, 1]).unwrap();
        assert_eq!(view.shape, [3, 2]);
        assert_eq!(view.indexes(), [0, 1, 0, 1, 0, 1]);
    }
}
