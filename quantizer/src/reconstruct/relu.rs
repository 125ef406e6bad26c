//! MLPs with ReLU that do what those with GELU did: APHQ-ViT's MLP
//! reconstruction (Wu et al. 2025, arXiv:2504.02508).
//!
//! ReLU has no small negative values that uniform codes spend half of their
//! levels on, and costs nothing: it is the clamp of the codes. Each MLP learns
//! from its own old self, on the inputs that the float network gives it:
//!
//! ```text
//! loss = |y^ - y|^2 + 2 |clip(y^) - clip(y)|^2,   clip at the 99th percentile of |y|
//! ```
//!
//! so that a few large outputs do not decide alone. What is left of the error is
//! for [`super::reconstruct`], with the old network as the teacher.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use tpvit_models::{Activation, BufferId, Op, Program, TensorId};

use super::math::{self, AdamStep};
use super::train::cosine;
use crate::calibration::mix;
use crate::reference::{Executor, Hook, MatMut, MatRef, matmul};
use crate::weights::Weights;

/// Tokens looked at of one picture; all MLPs together see the same.
const TOKENS: usize = 48;

/// Tokens a step.
const BATCH: usize = 256;

/// One token in this many is held back and only ever judges.
const HELD_BACK: usize = 8;

/// Learning rate, in root mean squares of a tensor.
const RATE: f32 = 5e-3;

/// What became of one MLP.
#[derive(Clone, Debug, PartialEq)]
pub struct ReluLog {
    /// Name of its hidden buffer.
    pub name: String,
    /// `|y^ - y|^2 / |y - mean y|^2` with ReLU in place of GELU, on held-back tokens.
    pub before: f64,
    /// The same after training.
    pub after: f64,
}

/// Two linear layers with GELU between them.
struct Mlp {
    /// The first of the two operations.
    op: usize,
    input: BufferId,
    /// Weight and bias of both.
    tensors: [TensorId; 4],
    /// Inputs, hidden, outputs.
    shape: [usize; 3],
}

/// `program` with ReLU for every GELU between two linear layers, and weights that
/// make up for it, learnt in so many steps from `picture(i)` for `i < count`;
/// `done` hears how many MLPs of how many are ready. Without such MLPs, both as
/// they were. The result does not depend on the number of threads.
///
/// # Panics
/// If a picture has the wrong size, or there is none.
pub fn with_relu(
    program: &Program,
    weights: &Weights,
    picture: &(dyn Fn(usize) -> Vec<f32> + Sync),
    count: usize,
    steps: u32,
    seed: u64,
    done: &(dyn Fn(usize, usize) + Sync),
) -> (Program, Weights, Vec<ReluLog>) {
    let mlps = mlps(program);
    let inputs = inputs(program, weights, &mlps, picture, count, seed);
    let ready = AtomicUsize::new(0);
    let learn = |(mlp, x): (&Mlp, &Vec<f32>)| {
        let learnt = Learner::new(weights, mlp, x).learn(steps, seed);
        done(ready.fetch_add(1, Ordering::Relaxed) + 1, mlps.len());
        learnt
    };
    let learnt: Vec<_> = mlps.par_iter().zip(&inputs).map(learn).collect();
    let (mut program, mut weights) = (program.clone(), weights.clone());
    let mut logs = Vec::new();
    for (mlp, (tensors, [before, after])) in mlps.iter().zip(learnt) {
        for (id, values) in mlp.tensors.iter().zip(tensors) {
            weights.tensors[id.index()] = values;
        }
        if let Op::Linear {
            activation, output, ..
        } = &mut program.ops[mlp.op]
        {
            *activation = Activation::Relu;
            let name = program.buffers[output.index()].name.clone();
            logs.push(ReluLog {
                name,
                before,
                after,
            });
        }
    }
    (program, weights, logs)
}

fn mlps(program: &Program) -> Vec<Mlp> {
    let mlp = |(index, op): (usize, &Op)| {
        let Op::Linear {
            input,
            weight,
            bias,
            activation: Activation::Gelu,
            residual: None,
            output,
        } = *op
        else {
            return None;
        };
        let mut readers = program.ops.iter().filter(|op| {
            let inputs = op.inputs();
            inputs.into_iter().flatten().any(|id| id == output)
        });
        let (
            Some(&Op::Linear {
                weight: second,
                bias: last,
                ..
            }),
            None,
        ) = (readers.next(), readers.next())
        else {
            return None;
        };
        let shape = |id: TensorId| &program.tensors[id.index()];
        Some(Mlp {
            op: index,
            input,
            tensors: [weight, bias, second, last],
            shape: [shape(weight).cols, shape(weight).rows, shape(second).rows],
        })
    };
    program.ops.iter().enumerate().filter_map(mlp).collect()
}

/// By MLP, some rows of its input, `[tokens, inputs]`.
fn inputs(
    program: &Program,
    weights: &Weights,
    mlps: &[Mlp],
    picture: &(dyn Fn(usize) -> Vec<f32> + Sync),
    count: usize,
    seed: u64,
) -> Vec<Vec<f32>> {
    /// Some rows of the buffers that MLPs read.
    struct Rows<'a> {
        program: &'a Program,
        readers: &'a BTreeMap<usize, usize>,
        seed: u64,
        rows: Vec<Vec<f32>>,
    }
    impl Hook for Rows<'_> {
        fn buffer(&mut self, _op: usize, id: BufferId, values: &mut [f32]) {
            let Some(&mlp) = self.readers.get(&id.index()) else {
                return;
            };
            let buffer = &self.program.buffers[id.index()];
            for i in 0..TOKENS.min(buffer.rows) as u64 {
                // The first row, often a class token, always.
                let row = if i == 0 {
                    0
                } else {
                    mix(self.seed ^ (i << 48)) % buffer.rows as u64
                };
                let first = row as usize * buffer.cols;
                self.rows[mlp].extend(&values[first..first + buffer.cols]);
            }
        }
    }
    let readers: BTreeMap<usize, usize> = mlps
        .iter()
        .enumerate()
        .map(|(i, mlp)| (mlp.input.index(), i))
        .collect();
    let new = || Executor::new(program, weights);
    let one = |executor: &mut Executor<'_>, i: usize| {
        let mut rows = Rows {
            program,
            readers: &readers,
            seed: mix(seed ^ i as u64),
            rows: vec![Vec::new(); mlps.len()],
        };
        executor.run(&picture(i), &mut rows);
        rows.rows
    };
    let all: Vec<Vec<Vec<f32>>> = (0..count).into_par_iter().map_init(new, one).collect();
    let of = |mlp: usize| all.iter().flat_map(|rows| &rows[mlp]).copied().collect();
    (0..mlps.len()).map(of).collect()
}

/// An MLP that learns.
struct Learner<'a> {
    shape: [usize; 3],
    /// Of the one with GELU.
    float: [&'a [f32]; 4],
    /// Held-back rows, and those that teach.
    rows: [Vec<f32>; 2],
    clip: f32,
}

impl<'a> Learner<'a> {
    fn new(weights: &'a Weights, mlp: &Mlp, x: &[f32]) -> Self {
        let inputs = mlp.shape[0];
        let mut rows = [Vec::new(), Vec::new()];
        for (i, row) in x.chunks_exact(inputs).enumerate() {
            rows[usize::from(!i.is_multiple_of(HELD_BACK))].extend(row);
        }
        let mut learner = Learner {
            shape: mlp.shape,
            float: mlp.tensors.map(|id| &weights.tensors[id.index()][..]),
            rows,
            clip: 0.0,
        };
        let mut sizes: Vec<f32> = learner
            .teach(&learner.rows[0])
            .iter()
            .map(|y| y.abs())
            .collect();
        let at = sizes.len() * 99 / 100;
        learner.clip = match at < sizes.len() {
            true => *sizes.select_nth_unstable_by(at, f32::total_cmp).1,
            false => f32::MAX,
        };
        learner
    }

    /// Tensors, and the held-back error before and after.
    fn learn(&self, steps: u32, seed: u64) -> ([Vec<f32>; 4], [f64; 2]) {
        let [inputs, ..] = self.shape;
        let start = self.float.map(<[f32]>::to_vec);
        let mut tensors = start.clone();
        let mut moments = self.float.map(|t| [vec![0.0; t.len()], vec![0.0; t.len()]]);
        let units = self
            .float
            .map(|t| (math::dot(t, t) / t.len().max(1) as f32).sqrt().max(1e-4));
        let count = self.rows[1].len() / inputs;
        let mut x = Vec::new();
        for step in 0..steps {
            x.clear();
            for i in 0..BATCH as u64 {
                let row = mix(seed ^ (u64::from(step) << 20) ^ i) % count.max(1) as u64;
                x.extend(&self.rows[1][row as usize * inputs..][..inputs]);
            }
            let grads = self.gradients(&tensors, &x);
            let adam = AdamStep::new(step + 1, RATE * cosine(step, steps));
            for i in 0..4 {
                let [m, v] = &mut moments[i];
                adam.apply(units[i], &grads[i], [m, v], &mut tensors[i]);
            }
        }
        let errors = [self.error(&start), self.error(&tensors)];
        match errors[1] < errors[0] {
            true => (tensors, errors),
            false => (start, [errors[0]; 2]),
        }
    }

    fn gradients(&self, tensors: &[Vec<f32>; 4], x: &[f32]) -> [Vec<f32>; 4] {
        let [inputs, hidden, outputs] = self.shape;
        let rows = x.len() / inputs;
        let target = self.teach(x);
        let main = self.product(x, &tensors[0], &tensors[1]);
        let mut h = vec![0.0; main.len()];
        math::relu(&main, &mut h);
        let mut dy = self.product(&h, &tensors[2], &tensors[3]);
        let clip = |y: f32| y.clamp(-self.clip, self.clip);
        for (y, t) in dy.iter_mut().zip(&target) {
            let inside = if y.abs() <= self.clip { 2.0 } else { 0.0 };
            *y = *y - t + inside * (clip(*y) - clip(*t));
        }
        let mut grads = tensors.each_ref().map(|t| vec![0.0; t.len()]);
        let [first, first_bias, second, second_bias] = &mut grads;
        math::add_rows(second_bias, &dy);
        let up = MatRef::dense(&dy, rows, outputs);
        let to = MatMut::dense(second, outputs, hidden);
        matmul(
            1.0,
            up.transpose(),
            MatRef::dense(&h, rows, hidden),
            0.0,
            to,
        );
        let back = MatRef::dense(&tensors[2], outputs, hidden);
        matmul(1.0, up, back, 0.0, MatMut::dense(&mut h, rows, hidden));
        math::relu_backward(&main, &mut h);
        math::add_rows(first_bias, &h);
        let up = MatRef::dense(&h, rows, hidden).transpose();
        let to = MatMut::dense(first, hidden, inputs);
        matmul(1.0, up, MatRef::dense(x, rows, inputs), 0.0, to);
        grads
    }

    /// What the MLP with GELU gives.
    fn teach(&self, x: &[f32]) -> Vec<f32> {
        let main = self.product(x, self.float[0], self.float[1]);
        let mut h = vec![0.0; main.len()];
        math::gelu(&main, &mut h);
        self.product(&h, self.float[2], self.float[3])
    }

    /// `x * w^T + b`.
    fn product(&self, x: &[f32], w: &[f32], b: &[f32]) -> Vec<f32> {
        let (n, k) = (b.len(), w.len() / b.len());
        let rows = x.len() / k;
        let mut y = vec![0.0; rows * n];
        let w = MatRef::dense(w, n, k).transpose();
        matmul(
            1.0,
            MatRef::dense(x, rows, k),
            w,
            0.0,
            MatMut::dense(&mut y, rows, n),
        );
        y.chunks_exact_mut(n).for_each(|row| math::add(row, b));
        y
    }

    /// Relative squared error on held-back rows.
    fn error(&self, tensors: &[Vec<f32>; 4]) -> f64 {
        let outputs = self.shape[2];
        let (mut error, mut spread) = (0.0f64, 0.0f64);
        let target = self.teach(&self.rows[0]);
        let main = self.product(&self.rows[0], &tensors[0], &tensors[1]);
        let mut h = vec![0.0; main.len()];
        math::relu(&main, &mut h);
        let y = self.product(&h, &tensors[2], &tensors[3]);
        let rows = target.len() / outputs;
        for c in 0..outputs {
            let column = |y: &'_ [f32]| {
                (0..rows)
                    .map(|r| f64::from(y[r * outputs + c]))
                    .collect::<Vec<_>>()
            };
            let (y, t) = (column(&y), column(&target));
            let mean = t.iter().sum::<f64>() / rows.max(1) as f64;
            error += y.iter().zip(&t).map(|(y, t)| (y - t).powi(2)).sum::<f64>();
            spread += t.iter().map(|t| (t - mean).powi(2)).sum::<f64>();
        }
        error / spread.max(f64::MIN_POSITIVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tpvit_models::synthetic;

    /// Hidden layers of random numbers, inputs 6, hidden 16, outputs 5.
    fn learner<'a>(tensors: &'a [Vec<f32>; 4], x: &[f32]) -> Learner<'a> {
        Learner {
            shape: [6, 16, 5],
            float: tensors.each_ref().map(|t| &t[..]),
            rows: [x.to_vec(), x.to_vec()],
            clip: 0.7,
        }
    }

    fn random(len: usize, seed: u64, size: f32) -> Vec<f32> {
        let at = |i: u64| (mix(seed ^ (i << 20)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        (0..len as u64).map(|i| at(i) * size).collect()
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let sizes = [6 * 16, 16, 16 * 5, 5];
        let float: [Vec<f32>; 4] = std::array::from_fn(|i| random(sizes[i], i as u64, 0.6));
        let x = random(6 * 40, 9, 2.0);
        let learner = learner(&float, &x);
        let target = learner.teach(&x);
        // Half of what the gradients are of.
        let loss = |tensors: &[Vec<f32>; 4]| -> f64 {
            let main = learner.product(&x, &tensors[0], &tensors[1]);
            let mut h = vec![0.0; main.len()];
            math::relu(&main, &mut h);
            let y = learner.product(&h, &tensors[2], &tensors[3]);
            let clip = |y: f32| f64::from(y.clamp(-learner.clip, learner.clip));
            let one = |(y, t): (&f32, &f32)| {
                0.5 * f64::from(y - t).powi(2) + (clip(*y) - clip(*t)).powi(2)
            };
            y.iter().zip(&target).map(one).sum()
        };
        let start: [Vec<f32>; 4] = std::array::from_fn(|i| random(sizes[i], 50 + i as u64, 0.6));
        let grads = learner.gradients(&start, &x);
        for i in 0..4 {
            let direction = random(sizes[i], 100 + i as u64, 1.0);
            let at = |by: f32| {
                let mut moved = start.clone();
                let pairs = moved[i].iter_mut().zip(&direction);
                pairs.for_each(|(t, d)| *t += by * d);
                loss(&moved)
            };
            let by = 1e-3;
            let measured = (at(by) - at(-by)) / (2.0 * f64::from(by));
            let exact = f64::from(math::dot(&grads[i], &direction));
            let size =
                math::dot(&grads[i], &grads[i]).sqrt() * math::dot(&direction, &direction).sqrt();
            // A kink or two lies between the two points.
            assert!(
                (exact - measured).abs() < 1e-2 * f64::from(size),
                "{i}: {exact} {measured}"
            );
        }
    }

    #[test]
    fn mlps_learn_and_threads_do_not_matter() {
        let mut all = synthetic::architectures().into_iter();
        let (_, program) = all
            .find(|(name, _)| *name == "vit")
            .expect("an architecture");
        let softmax = synthetic::row_max_softmax(tpvit_models::BitWidth::B4);
        let bits = tpvit_models::BitWidth::B8;
        let data = synthetic::model(program, bits, bits, &softmax, 5);
        let weights = Weights::dequantize(&data.tensors);
        let [h, w] = data.program.image;
        let picture = |i: usize| random(h * w * 3, i as u64, 255.0);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("a thread pool")
                .install(|| with_relu(&data.program, &weights, &picture, 64, 300, 1, &|_, _| ()))
        };
        let (program, learnt, logs) = run(1);
        program.validate().expect("a valid program");
        let relu = |op: &&Op| {
            matches!(
                op,
                Op::Linear {
                    activation: Activation::Relu,
                    ..
                }
            )
        };
        assert_eq!(program.ops.iter().filter(relu).count(), 2);
        assert_eq!(logs.len(), 2);
        for log in &logs {
            println!("{log:?}");
            assert!(log.after < 0.3 * log.before, "{log:?}");
        }
        assert_eq!((program, learnt, logs), run(3));
    }
}
