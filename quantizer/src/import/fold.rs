//! Shapes and constants of a whole graph, at batch 1.
//!
//! An export with a dynamic batch computes its shapes with hundreds of Shape,
//! Gather and Concat nodes. With the batch fixed to 1 every shape is known, so
//! one forward pass turns all of them into constants.

use super::view::{self, View, axis, broadcast_shape};
use crate::onnx::{Attribute, Data, Graph, Node, Tensor, ValueId, element_count};
use half::{bf16, f16};
use std::sync::Arc;

/// What is known about a value without running the model.
#[derive(Clone, Debug)]
enum Known {
    Constant(Arc<Tensor>),
    Shape(Vec<usize>),
    Nothing,
}

/// A graph with what is known about each value.
pub(crate) struct Folded<'g> {
    pub(crate) graph: &'g Graph,
    known: Vec<Known>,
    /// Elements that folding may still create: a small file must not make
    /// large constants.
    budget: usize,
}

/// Larger values count as unknown. Indexes into one value are `u32`; a Vision
/// Transformer of 2048 tokens and 16 heads stays below.
const MAX_ELEMENTS: usize = 1 << 27;

impl<'g> Folded<'g> {
    pub(crate) fn new(graph: &'g Graph) -> Self {
        let known = |value: &crate::onnx::Value| match (&value.constant, &value.declared) {
            (Some(tensor), _) => Known::Constant(tensor.clone()),
            (None, Some(declared)) => input_shape(declared),
            (None, None) => Known::Nothing,
        };
        let stored: usize = graph
            .values
            .iter()
            .filter_map(|v| Some(v.constant.as_ref()?.data.len()))
            .sum();
        let mut folded = Folded {
            graph,
            known: graph.values.iter().map(known).collect(),
            budget: stored.saturating_mul(4).saturating_add(1 << 20),
        };
        for node in &graph.nodes {
            folded.visit(node);
        }
        folded
    }

    /// The tensor, if the value does not depend on the picture.
    pub(crate) fn constant(&self, id: ValueId) -> Option<&Arc<Tensor>> {
        match &self.known[id.0] {
            Known::Constant(tensor) => Some(tensor),
            Known::Shape(_) | Known::Nothing => None,
        }
    }

    /// The shape, where it could be found.
    pub(crate) fn shape(&self, id: ValueId) -> Option<&[usize]> {
        match &self.known[id.0] {
            Known::Constant(tensor) => Some(&tensor.shape),
            Known::Shape(shape) => Some(shape),
            Known::Nothing => None,
        }
    }

    /// The rearrangement that makes output number `output` of `node`.
    pub(crate) fn view(&self, node: &Node, output: usize) -> Option<View> {
        let shape = self.shape(node.input(0)?)?;
        let tensor = |i| self.constant(node.input(i)?);
        let ints = |i| Some(tensor(i)?.ints()?.to_vec());
        let dims = |i| Some(tensor(i)?.shape.clone());
        let view = view::of_node(node, output, shape, &ints, &dims)?;
        Some(view).filter(|v| fits(&v.shape, MAX_ELEMENTS))
    }

    fn visit(&mut self, node: &Node) {
        for (index, id) in node.outputs.iter().enumerate() {
            let Some(id) = id else { continue };
            if let Known::Constant(_) = self.known[id.0] {
                continue;
            }
            let found = match self.evaluate(node, index) {
                Some(tensor) => Known::Constant(Arc::new(tensor)),
                None => match self.infer(node, index) {
                    Some(shape) if fits(&shape, MAX_ELEMENTS) => Known::Shape(shape),
                    Some(_) | None => Known::Nothing,
                },
            };
            if let Known::Constant(tensor) = &found {
                self.budget = self.budget.saturating_sub(tensor.data.len());
            }
            self.known[id.0] = found;
        }
    }

    /// The value of an output, if it is constant and small enough.
    fn evaluate(&self, node: &Node, output: usize) -> Option<Tensor> {
        if !node.domain.is_empty() {
            return None;
        }
        if node.op == "Shape" {
            return shape_of(node, self.shape(node.input(0)?)?);
        }
        let inputs: Vec<_> = node.inputs.iter().flatten().collect();
        if inputs.is_empty() || !inputs.iter().all(|id| self.constant(**id).is_some()) {
            return None;
        }
        let tensor = |i| self.constant(node.input(i)?).map(|t| &**t);
        let sizes = inputs
            .iter()
            .filter_map(|id| Some(self.constant(**id)?.data.len()));
        if sizes.sum::<usize>() > self.budget {
            return None;
        }
        if let Some(view) = self.view(node, output) {
            element_count(&view.shape).filter(|n| *n <= self.budget)?;
            let source = tensor(0)?;
            let moved = Tensor {
                data: pick(&source.data, &view.indexes()),
                shape: view.shape,
            };
            return cast(node, moved);
        }
        match node.op.as_str() {
            "Cast" => cast(node, tensor(0)?.clone()),
            "ConstantOfShape" => constant_of_shape(node, tensor(0)?, self.budget),
            "Gather" => gather(node, tensor(0)?, tensor(1)?, self.budget),
            "Concat" => {
                let parts = node
                    .inputs
                    .iter()
                    .map(|id| self.constant((*id)?).map(|t| &**t));
                concat(node, &parts.collect::<Option<Vec<_>>>()?, self.budget)
            }
            "Where" => choose(tensor(0)?, tensor(1)?, tensor(2)?, self.budget),
            "Range" => range(tensor(0)?, tensor(1)?, tensor(2)?, self.budget),
            "Resize" => {
                let [sizes, scales] = [3, 2].map(|i| self.constant(node.input(i)?).map(|t| &**t));
                resize(node, tensor(0)?, sizes, scales, self.budget)
            }
            "ScatterND" => scatter(node, tensor(0)?, tensor(1)?, tensor(2)?),
            "Sqrt" | "Neg" | "Reciprocal" | "Floor" | "Ceil" | "Abs" | "Not" => {
                unary(&node.op, tensor(0)?)
            }
            op => binary(op, tensor(0)?, tensor(1)?, self.budget),
        }
    }

    /// The shape of an output that depends on the picture.
    fn infer(&self, node: &Node, output: usize) -> Option<Vec<usize>> {
        if let Some(view) = self.view(node, output) {
            return Some(view.shape);
        }
        let shape = |i: usize| self.shape(node.input(i)?);
        match node.op.as_str() {
            "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Min" | "Max" => {
                broadcast_shape(shape(0)?, shape(1)?)
            }
            "Where" => broadcast_shape(&broadcast_shape(shape(0)?, shape(1)?)?, shape(2)?),
            "IsNaN" | "Erf" | "Sqrt" | "Neg" | "Reciprocal" | "Exp" | "Tanh" | "Sigmoid"
            | "Relu" | "Gelu" | "FastGelu" | "QuickGelu" | "Softmax" | "LayerNormalization"
            | "Cast" | "BatchNormalization" | "Clip" | "HardSwish" | "HardSigmoid"
            | "LeakyRelu"
                if output == 0 =>
            {
                Some(shape(0)?.to_vec())
            }
            "MatMul" => matmul(shape(0)?, shape(1)?),
            "Gemm" => gemm(node, shape(0)?, shape(1)?),
            "Conv" => conv(node, shape(0)?, shape(1)?),
            "Concat" => {
                let shapes = node.inputs.iter().map(|id| self.shape((*id)?));
                concat_shape(node, &shapes.collect::<Option<Vec<_>>>()?)
            }
            "ReduceMean" | "ReduceSum" | "ReduceMax" => {
                let axes = match node.ints("axes") {
                    Some(axes) => axes.to_vec(),
                    None => self.constant(node.input(1)?)?.ints()?.to_vec(),
                };
                reduced(node, shape(0)?, &axes)
            }
            "GlobalAveragePool" => {
                let mut shape = shape(0)?.to_vec();
                shape.iter_mut().skip(2).for_each(|side| *side = 1);
                Some(shape)
            }
            "Pad" => padded(shape(0)?, self.constant(node.input(1)?)?.ints()?),
            _ => None,
        }
    }
}

fn fits(shape: &[usize], most: usize) -> bool {
    element_count(shape).is_some_and(|n| n <= most)
}

/// A picture's shape with the batch, if dynamic, fixed to 1.
fn input_shape(declared: &[Option<usize>]) -> Known {
    let fixed = |(i, side): (usize, &Option<usize>)| side.or((i == 0).then_some(1));
    match declared
        .iter()
        .enumerate()
        .map(fixed)
        .collect::<Option<Vec<_>>>()
    {
        Some(shape) if fits(&shape, MAX_ELEMENTS) => Known::Shape(shape),
        Some(_) | None => Known::Nothing,
    }
}

fn shape_of(node: &Node, shape: &[usize]) -> Option<Tensor> {
    let rank = shape.len() as i64;
    let end = |v: i64| (if v < 0 { v.saturating_add(rank) } else { v }).clamp(0, rank) as usize;
    let (from, to) = (
        node.int("start").unwrap_or(0),
        node.int("end").unwrap_or(rank),
    );
    let sides = shape.get(end(from)..end(to))?;
    let ints: Vec<i64> = sides.iter().map(|s| *s as i64).collect();
    Some(Tensor {
        shape: vec![ints.len()],
        data: Data::Int(ints),
    })
}

fn pick(data: &Data, indexes: &[u32]) -> Data {
    match data {
        Data::Float(v) => Data::Float(indexes.iter().map(|i| v[*i as usize]).collect()),
        Data::Int(v) => Data::Int(indexes.iter().map(|i| v[*i as usize]).collect()),
    }
}

fn cast(node: &Node, tensor: Tensor) -> Option<Tensor> {
    if node.op != "Cast" {
        return Some(tensor);
    }
    let to = node.int("to")?;
    let float = |v: f32| match to {
        10 => f16::from_f32(v).to_f32(),
        16 => bf16::from_f32(v).to_f32(),
        _ => v,
    };
    let data = match (to, tensor.data) {
        (1 | 10 | 11 | 16, Data::Float(v)) => Data::Float(v.into_iter().map(float).collect()),
        (1 | 10 | 11 | 16, Data::Int(v)) => {
            Data::Float(v.into_iter().map(|v| float(v as f32)).collect())
        }
        (6 | 7, Data::Float(v)) => Data::Int(v.into_iter().map(|v| v as i64).collect()),
        (6 | 7, Data::Int(v)) => Data::Int(v),
        (9, Data::Int(v)) => Data::Int(v.into_iter().map(|v| i64::from(v != 0)).collect()),
        _ => return None,
    };
    Some(Tensor {
        shape: tensor.shape,
        data,
    })
}

fn constant_of_shape(node: &Node, shape: &Tensor, budget: usize) -> Option<Tensor> {
    let sides = shape.ints()?.iter().map(|s| usize::try_from(*s).ok());
    let shape = sides.collect::<Option<Vec<_>>>()?;
    let len = element_count(&shape).filter(|n| *n <= budget)?;
    let data = match node.attributes.get("value") {
        None => Data::Float(vec![0.0; len]),
        Some(Attribute::Tensor(value)) => match &value.data {
            Data::Float(v) => Data::Float(vec![*v.first()?; len]),
            Data::Int(v) => Data::Int(vec![*v.first()?; len]),
        },
        Some(_) => return None,
    };
    Some(Tensor { shape, data })
}

/// Rows in any order: what shape arithmetic and tables of position bias do.
fn gather(node: &Node, from: &Tensor, rows: &Tensor, budget: usize) -> Option<Tensor> {
    let at = axis(node.int("axis").unwrap_or(0), from.shape.len())?;
    let (outer, inner) = (&from.shape[..at], &from.shape[at + 1..]);
    let shape = [outer, &rows.shape, inner].concat();
    element_count(&shape).filter(|n| *n <= budget)?;
    let side = from.shape[at];
    let rows = rows.ints()?.iter().map(|r| axis(*r, side));
    let rows = rows.collect::<Option<Vec<_>>>()?;
    let run: usize = inner.iter().product();
    let index = (0..outer.iter().product()).flat_map(|o: usize| {
        let row = move |r: &usize| (o * side + r) * run;
        rows.iter().map(row).flat_map(|start| start..start + run)
    });
    let index: Vec<u32> = index.map(|i| i as u32).collect();
    Some(Tensor {
        shape,
        data: pick(&from.data, &index),
    })
}

fn concat(node: &Node, parts: &[&Tensor], budget: usize) -> Option<Tensor> {
    let shapes: Vec<&[usize]> = parts.iter().map(|p| &p.shape[..]).collect();
    let shape = concat_shape(node, &shapes)?;
    element_count(&shape).filter(|n| *n <= budget)?;
    let at = axis(node.int("axis")?, shape.len())?;
    let outer: usize = shape[..at].iter().product();
    let runs: Vec<usize> = shapes.iter().map(|s| s[at..].iter().product()).collect();
    let floats: Option<Vec<&[f32]>> = parts.iter().map(|p| p.floats()).collect();
    let data = match floats {
        Some(parts) => Data::Float(interleaved(&parts, &runs, outer)),
        None => {
            let parts: Option<Vec<&[i64]>> = parts.iter().map(|p| p.ints()).collect();
            Data::Int(interleaved(&parts?, &runs, outer))
        }
    };
    Some(Tensor { shape, data })
}

/// A run of each part, `outer` times.
fn interleaved<T: Copy>(parts: &[&[T]], runs: &[usize], outer: usize) -> Vec<T> {
    let pieces = (0..outer).flat_map(|o| {
        let pairs = parts.iter().zip(runs);
        pairs.flat_map(move |(part, run)| &part[o * run..][..*run])
    });
    pieces.copied().collect()
}

fn range(start: &Tensor, limit: &Tensor, delta: &Tensor, budget: usize) -> Option<Tensor> {
    let [start, limit, delta] = [start.ints()?, limit.ints()?, delta.ints()?];
    let ([start], [limit], [delta]) = (start, limit, delta) else {
        return None;
    };
    let span = limit.checked_sub(*start)?;
    let (span, step) = match *delta {
        1.. => (span.max(0).unsigned_abs(), delta.unsigned_abs()),
        _ => (span.min(0).unsigned_abs(), delta.unsigned_abs()),
    };
    let len = usize::try_from(span.div_ceil(step.max(1))).ok()?;
    let values = (0..len as i64).map(|i| start + i * delta);
    (step > 0 && len <= budget).then(|| Tensor {
        shape: vec![len],
        data: Data::Int(values.collect()),
    })
}

/// Slices of `data` replaced: what assigning to a slice becomes.
fn scatter(node: &Node, data: &Tensor, indices: &Tensor, updates: &Tensor) -> Option<Tensor> {
    if !matches!(node.text("reduction"), None | Some("none")) {
        return None;
    }
    let depth = *indices.shape.last()?;
    let (leading, run) = data.shape.split_at_checked(depth)?;
    let run: usize = run.iter().product();
    let row = |index: &[i64]| {
        let mut row = 0;
        for (i, side) in index.iter().zip(leading) {
            row = row * side + axis(*i, *side)?;
        }
        Some(row)
    };
    let rows = indices.ints()?.chunks_exact(depth.max(1)).map(row);
    let rows = rows.collect::<Option<Vec<usize>>>()?;
    if depth == 0 || rows.len() * run != updates.data.len() {
        return None;
    }
    let data_of = match (&data.data, &updates.data) {
        (Data::Float(old), Data::Float(new)) => Data::Float(replaced(old, new, &rows, run)),
        (Data::Int(old), Data::Int(new)) => Data::Int(replaced(old, new, &rows, run)),
        (Data::Float(_), Data::Int(_)) | (Data::Int(_), Data::Float(_)) => return None,
    };
    Some(Tensor {
        shape: data.shape.clone(),
        data: data_of,
    })
}

/// Interpolation of a position embedding for another size of picture: cubic or
/// linear, axis after axis, pixels beyond the edge being those of the edge.
fn resize(
    node: &Node,
    x: &Tensor,
    sizes: Option<&Tensor>,
    scales: Option<&Tensor>,
    budget: usize,
) -> Option<Tensor> {
    let plain = |name: &str| node.int(name).unwrap_or(0) == 0;
    if !plain("antialias") || !plain("exclude_outside") || node.ints("axes").is_some() {
        return None;
    }
    let cubic = match node.text("mode") {
        Some("cubic") => true,
        Some("linear") => false,
        _ => return None,
    };
    let mut values = x.floats()?.to_vec();
    let mut shape = x.shape.clone();
    for at in 0..shape.len() {
        let from = shape[at];
        let (to, scale) = match (sizes, scales) {
            (Some(sizes), _) => {
                let to = usize::try_from(*sizes.ints()?.get(at)?).ok()?;
                (to, to as f64 / from as f64)
            }
            (None, Some(scales)) => {
                let scale = f64::from(*scales.floats()?.get(at)?);
                ((from as f64 * scale).floor() as usize, scale)
            }
            (None, None) => return None,
        };
        if to == from {
            continue; // pixel on pixel
        }
        shape[at] = to;
        element_count(&shape).filter(|n| *n <= budget && *n > 0)?;
        let centre = |i: usize| match node.text("coordinate_transformation_mode") {
            None | Some("half_pixel") => Some((i as f64 + 0.5) / scale - 0.5),
            Some("pytorch_half_pixel") if to > 1 => Some((i as f64 + 0.5) / scale - 0.5),
            Some("pytorch_half_pixel") => Some(0.0),
            Some("align_corners") if to > 1 => Some((i * (from - 1)) as f64 / (to - 1) as f64),
            Some("asymmetric") => Some(i as f64 / scale),
            Some(_) => None,
        };
        let a = f64::from(node.float("cubic_coeff_a").unwrap_or(-0.75));
        let taps = (0..to).map(|i| Some(taps(centre(i)?, from, cubic.then_some(a))));
        let taps = taps.collect::<Option<Vec<_>>>()?;
        let run: usize = shape[at + 1..].iter().product();
        values = values
            .chunks_exact(from * run)
            .flat_map(|plane| {
                let row = |taps: &[(usize, f64); 4], c: usize| {
                    let term =
                        |&(row, weight): &(usize, f64)| weight * f64::from(plane[row * run + c]);
                    taps.iter().map(term).sum::<f64>() as f32
                };
                let taps = taps.iter();
                taps.flat_map(|taps| (0..run).map(|c| row(taps, c)).collect::<Vec<_>>())
                    .collect::<Vec<_>>()
            })
            .collect();
    }
    Some(Tensor {
        shape,
        data: Data::Float(values),
    })
}

/// Rows and weights that make the value at `centre`: Keys 1981 (doi:10.1109/
/// TASSP.1981.1163711) with the coefficient `a`, or linear without one.
fn taps(centre: f64, rows: usize, a: Option<f64>) -> [(usize, f64); 4] {
    let floor = centre.floor();
    [-1.0, 0.0, 1.0, 2.0].map(|step: f64| {
        let row = (floor + step).clamp(0.0, rows as f64 - 1.0) as usize;
        let x = (centre - floor - step).abs();
        let weight = match a {
            None => (1.0 - x).max(0.0),
            Some(a) if x <= 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
            Some(a) => ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a,
        };
        (row, weight)
    })
}

fn replaced<T: Copy>(old: &[T], new: &[T], rows: &[usize], run: usize) -> Vec<T> {
    let mut values = old.to_vec();
    for (i, row) in rows.iter().enumerate() {
        values[row * run..][..run].copy_from_slice(&new[i * run..][..run]);
    }
    values
}

fn choose(condition: &Tensor, yes: &Tensor, no: &Tensor, budget: usize) -> Option<Tensor> {
    let shape = broadcast_shape(&broadcast_shape(&yes.shape, &no.shape)?, &condition.shape)?;
    element_count(&shape).filter(|n| *n <= budget)?;
    let at = |t: &Tensor| View::broadcast(&t.shape, &shape).map(|v| v.indexes());
    let (c, y, n) = (at(condition)?, at(yes)?, at(no)?);
    let condition = condition.ints()?;
    let chosen = |i: usize| condition[c[i] as usize] != 0;
    let data = match (&yes.data, &no.data) {
        (Data::Float(yes), Data::Float(no)) => Data::Float(either(chosen, yes, &y, no, &n)),
        (Data::Int(yes), Data::Int(no)) => Data::Int(either(chosen, yes, &y, no, &n)),
        (Data::Float(_), Data::Int(_)) | (Data::Int(_), Data::Float(_)) => return None,
    };
    Some(Tensor { shape, data })
}

fn either<T: Copy>(
    chosen: impl Fn(usize) -> bool,
    yes: &[T],
    yes_at: &[u32],
    no: &[T],
    no_at: &[u32],
) -> Vec<T> {
    let one = |i: usize| match chosen(i) {
        true => yes[yes_at[i] as usize],
        false => no[no_at[i] as usize],
    };
    (0..yes_at.len()).map(one).collect()
}

fn unary(op: &str, x: &Tensor) -> Option<Tensor> {
    let data = match &x.data {
        Data::Float(v) => {
            let f: fn(f32) -> f32 = match op {
                "Sqrt" => f32::sqrt,
                "Neg" => |v| -v,
                "Reciprocal" => |v| 1.0 / v,
                "Floor" => f32::floor,
                "Ceil" => f32::ceil,
                "Abs" => f32::abs,
                _ => return None,
            };
            Data::Float(v.iter().map(|v| f(*v)).collect())
        }
        Data::Int(v) => match op {
            "Neg" => Data::Int(v.iter().map(|v| v.checked_neg()).collect::<Option<_>>()?),
            "Abs" => Data::Int(v.iter().map(|v| v.checked_abs()).collect::<Option<_>>()?),
            "Not" => Data::Int(v.iter().map(|v| i64::from(*v == 0)).collect()),
            _ => return None,
        },
    };
    Some(Tensor {
        shape: x.shape.clone(),
        data,
    })
}

fn binary(op: &str, a: &Tensor, b: &Tensor, budget: usize) -> Option<Tensor> {
    let shape = broadcast_shape(&a.shape, &b.shape)?;
    element_count(&shape).filter(|n| *n <= budget)?;
    let at = |t: &Tensor| View::broadcast(&t.shape, &shape).map(|v| v.indexes());
    let pairs = at(a)?.into_iter().zip(at(b)?);
    let pairs = pairs.map(|(i, j)| (i as usize, j as usize));
    let data = match (&a.data, &b.data) {
        (Data::Float(a), Data::Float(b)) => {
            if let Some(holds) = comparison::<f32>(op) {
                let holds = pairs.map(|(i, j)| i64::from(holds(&a[i], &b[j])));
                let data = Data::Int(holds.collect());
                return Some(Tensor { shape, data });
            }
            let f: fn(f32, f32) -> f32 = match op {
                "Add" => |a, b| a + b,
                "Sub" => |a, b| a - b,
                "Mul" => |a, b| a * b,
                "Div" => |a, b| a / b,
                "Pow" => f32::powf,
                _ => return None,
            };
            Data::Float(pairs.map(|(i, j)| f(a[i], b[j])).collect())
        }
        (Data::Int(a), Data::Int(b)) => {
            if let Some(holds) = comparison::<i64>(op) {
                let holds = pairs.map(|(i, j)| i64::from(holds(&a[i], &b[j])));
                let data = Data::Int(holds.collect());
                return Some(Tensor { shape, data });
            }
            let f: fn(i64, i64) -> Option<i64> = match op {
                "Add" => i64::checked_add,
                "Sub" => i64::checked_sub,
                "Mul" => i64::checked_mul,
                "Div" => i64::checked_div,
                "Mod" => i64::checked_rem_euclid,
                "And" => |a, b| Some(i64::from(a != 0 && b != 0)),
                "Or" => |a, b| Some(i64::from(a != 0 || b != 0)),
                _ => return None,
            };
            Data::Int(pairs.map(|(i, j)| f(a[i], b[j])).collect::<Option<_>>()?)
        }
        (Data::Float(_), Data::Int(_)) | (Data::Int(_), Data::Float(_)) => return None,
    };
    Some(Tensor { shape, data })
}

fn comparison<T: PartialOrd>(op: &str) -> Option<fn(&T, &T) -> bool> {
    Some(match op {
        "Equal" => T::eq,
        "Less" => T::lt,
        "LessOrEqual" => T::le,
        "Greater" => T::gt,
        "GreaterOrEqual" => T::ge,
        _ => return None,
    })
}

fn matmul(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let ([batch_a @ .., m, k], [batch_b @ .., k2, n]) = (a, b) else {
        return None;
    };
    let mut shape = broadcast_shape(batch_a, batch_b)?;
    shape.extend([*m, *n]);
    Some(shape).filter(|_| k == k2)
}

fn gemm(node: &Node, a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let side = |shape: &[usize], flag: &str, i: usize| {
        let turned = node.int(flag).unwrap_or(0) != 0;
        shape.get(if turned { 1 - i } else { i }).copied()
    };
    Some(vec![side(a, "transA", 0)?, side(b, "transB", 1)?])
}

/// Shape of a two-dimensional convolution with explicit pads.
fn conv(node: &Node, x: &[usize], weight: &[usize]) -> Option<Vec<usize>> {
    let ([n, _, sides @ ..], [out, _, kernel @ ..]) = (x, weight) else {
        return None;
    };
    if !matches!(node.text("auto_pad"), None | Some("NOTSET" | "VALID")) {
        return None;
    }
    let get = |name: &str, i: usize, default: usize| match node.ints(name) {
        Some(list) => usize::try_from(*list.get(i)?).ok(),
        None => Some(default),
    };
    let mut shape = vec![*n, *out];
    for (i, (side, kernel)) in sides.iter().zip(kernel).enumerate() {
        let pads = get("pads", i, 0)?.checked_add(get("pads", i + sides.len(), 0)?)?;
        let reach = kernel
            .checked_sub(1)?
            .checked_mul(get("dilations", i, 1)?)?
            .checked_add(1)?;
        let room = side.checked_add(pads)?.checked_sub(reach)?;
        shape.push(room.checked_div(get("strides", i, 1)?)? + 1);
    }
    Some(shape)
}

fn concat_shape(node: &Node, shapes: &[&[usize]]) -> Option<Vec<usize>> {
    let mut shape = shapes.first()?.to_vec();
    let at = axis(node.int("axis")?, shape.len())?;
    for other in &shapes[1..] {
        let same = |i: usize| i == at || other[i] == shape[i];
        if other.len() != shape.len() || !(0..shape.len()).all(same) {
            return None;
        }
        shape[at] = shape[at].checked_add(other[at])?;
    }
    Some(shape)
}

/// The shape after pads of `[begin.., end..]`, all axes.
fn padded(shape: &[usize], pads: &[i64]) -> Option<Vec<usize>> {
    let (begin, end) = pads.split_at_checked(shape.len())?;
    let side = |((side, begin), end): ((&usize, &i64), &i64)| {
        side.checked_add_signed(isize::try_from(begin.checked_add(*end)?).ok()?)
    };
    (end.len() == shape.len()).then(|| shape.iter().zip(begin).zip(end).map(side).collect())?
}

fn reduced(node: &Node, shape: &[usize], axes: &[i64]) -> Option<Vec<usize>> {
    let axes = axes
        .iter()
        .map(|a| axis(*a, shape.len()))
        .collect::<Option<Vec<_>>>()?;
    let keep = node.int("keepdims").unwrap_or(1) != 0;
    let side = |(i, s): (usize, &usize)| match (axes.contains(&i), keep) {
        (false, _) => Some(*s),
        (true, true) => Some(1),
        (true, false) => None,
    };
    Some(shape.iter().enumerate().filter_map(side).collect())
}
