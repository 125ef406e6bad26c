//! The executor against a naive f64 forward pass of a tiny program.

use super::{Executor, Hook, erf, run_many};
use crate::weights::Weights;
use tpvit_models::{Activation, Buffer, BufferId, Op, Program, TensorId, TensorInfo, TensorRole};

const D: usize = 6;
const T: usize = 5; // a class token and 2x2 patches
const HEADS: usize = 2;

/// Attention and an MLP side by side over 4x6 pictures with 2x3 patches, 3 classes.
fn tiny() -> (Program, Weights) {
    use TensorRole::{Float, Weight};
    let mut program = Program {
        image: [4, 6],
        buffers: Vec::new(),
        tensors: Vec::new(),
        ops: Vec::new(),
    };
    let mut weights = Weights::default();
    let mut state = 7;
    let mut tensor = |role, rows, cols| {
        let id = TensorId(program.tensors.len() as u16);
        let name = format!("t{}", id.0);
        program.tensors.push(TensorInfo {
            name,
            role,
            rows,
            cols,
        });
        weights.tensors.push(noise(rows * cols, &mut state));
        id
    };
    let embed = [
        tensor(Weight, D, 18),
        tensor(Float, 1, D),
        tensor(Float, 1, D),
        tensor(Float, T - 1, D),
    ];
    let norm = [tensor(Float, 1, D), tensor(Float, 1, D)];
    let shapes = [(3 * D, D), (D, D), (8, D), (D, 8), (3, D)];
    let linear = shapes.map(|(n, k)| [tensor(Weight, n, k), tensor(Float, 1, n)]);
    let sizes = [D, D, 3 * D, D, D, 8, D];
    for (i, cols) in sizes.into_iter().enumerate() {
        program.buffers.push(Buffer {
            name: format!("b{i}"),
            rows: T,
            cols,
        });
    }
    for cols in [D, D, 3] {
        let name = format!("b{}", program.buffers.len());
        program.buffers.push(Buffer {
            name,
            rows: 1,
            cols,
        });
    }
    let b = BufferId;
    let apply = |[weight, bias]: [TensorId; 2], input, activation, residual, output| Op::Linear {
        input: b(input),
        weight,
        bias,
        activation,
        residual,
        output: b(output),
    };
    program.ops = vec![
        Op::PatchEmbed {
            patch: [2, 3],
            weight: embed[0],
            bias: embed[1],
            prefix: Some(embed[2]),
            position: Some(embed[3]),
            output: b(0),
        },
        Op::LayerNorm {
            input: b(0),
            gamma: norm[0],
            beta: norm[1],
            eps: 1e-6,
            output: b(1),
        },
        apply(linear[0], 1, Activation::Identity, None, 2),
        Op::Attention {
            qkv: b(2),
            heads: HEADS,
            head_dim: D / HEADS,
            scale: 0.6,
            window: None,
            bias: None,
            output: b(3),
        },
        apply(linear[1], 3, Activation::Identity, Some(b(0)), 4),
        apply(linear[2], 1, Activation::Gelu, None, 5),
        apply(linear[3], 5, Activation::Identity, None, 6),
        Op::SelectToken {
            input: b(6),
            token: 0,
            output: b(7),
        },
        Op::LayerNorm {
            input: b(7),
            gamma: norm[0],
            beta: norm[1],
            eps: 1e-6,
            output: b(8),
        },
        apply(linear[4], 8, Activation::Identity, None, 9),
    ];
    program.validate().unwrap();
    (program, weights)
}

/// Values in -1..1 by a linear congruential generator.
fn noise(len: usize, state: &mut u64) -> Vec<f32> {
    let mut next = || {
        *state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (*state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

type Rows = Vec<Vec<f64>>;

fn rows(values: &[f32], cols: usize) -> Rows {
    values
        .chunks(cols)
        .map(|r| r.iter().map(|v| f64::from(*v)).collect())
        .collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn affine(x: &Rows, weight: &[f32], bias: &[f32]) -> Rows {
    let w = rows(weight, x[0].len());
    let one = |x: &Vec<f64>| {
        w.iter()
            .zip(bias)
            .map(|(w, b)| dot(x, w) + f64::from(*b))
            .collect()
    };
    x.iter().map(one).collect()
}

fn layer_norm(weights: &Weights, x: &Rows) -> Rows {
    let mut y = x.clone();
    for row in &mut y {
        let mean = row.iter().sum::<f64>() / D as f64;
        let var = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / D as f64;
        for (i, v) in row.iter_mut().enumerate() {
            let normed = (*v - mean) / (var + f64::from(1e-6f32)).sqrt();
            *v = normed * f64::from(weights.tensors[4][i]) + f64::from(weights.tensors[5][i]);
        }
    }
    y
}

/// The same forward pass, written out once more in f64.
fn naive(weights: &Weights, image: &[f32]) -> Vec<f64> {
    let w = |i: usize| &weights.tensors[i][..];
    let mut patches = Rows::new();
    for (top, left) in [(0, 0), (0, 3), (2, 0), (2, 3)] {
        let mut patch = Vec::new();
        for (y, x, c) in (0..18).map(|i| (top + i / 9, left + i / 3 % 3, i % 3)) {
            patch.push(f64::from(image[(y * 6 + x) * 3 + c]));
        }
        patches.push(patch);
    }
    let mut x = rows(w(2), D);
    for (row, p) in affine(&patches, w(0), w(1)).iter().zip(rows(w(3), D)) {
        x.push(row.iter().zip(p).map(|(a, b)| a + b).collect());
    }
    let y = layer_norm(weights, &x);
    let mut hidden = affine(&y, w(10), w(11));
    for v in hidden.iter_mut().flatten() {
        *v *= 0.5 * (1.0 + erf(*v / 2f64.sqrt()));
    }
    let out = affine(&hidden, w(12), w(13));
    affine(&layer_norm(weights, &out), w(14), w(15)).remove(0)
}

/// Attention and its projection, from the qkv the executor computed.
fn naive_attention(weights: &Weights, qkv: &Rows, residual: &Rows) -> Rows {
    let hd = D / HEADS;
    let mut out = vec![vec![0.0; D]; T];
    for head in 0..HEADS {
        let part = |p: usize, row: usize| &qkv[row][p * D + head * hd..][..hd];
        for (i, out) in out.iter_mut().enumerate() {
            let score = |j| (0.6f32 as f64 * dot(part(0, i), part(1, j))).exp();
            let scores: Vec<f64> = (0..T).map(score).collect();
            let sum: f64 = scores.iter().sum();
            for (j, s) in scores.iter().enumerate() {
                for c in 0..hd {
                    out[head * hd + c] += s / sum * part(2, j)[c];
                }
            }
        }
    }
    let mut out = affine(&out, &weights.tensors[8], &weights.tensors[9]);
    for (o, r) in out.iter_mut().flatten().zip(residual.iter().flatten()) {
        *o += r;
    }
    out
}

/// Sums have at most 18 terms of size 1, so each is good to 18 * 2^-24 * 18 at
/// worst; five of them follow each other, none enlarging by more than 18.
const TOLERANCE: f64 = 5.0 * 18.0 * 18.0 * 6e-8;

#[test]
fn matches_a_naive_forward_pass() {
    let (program, weights) = tiny();
    let image = noise(4 * 6 * 3, &mut 3);
    let mut executor = Executor::new(&program, &weights);
    let logits = executor.run(&image, &mut ()).to_vec();
    for (found, expected) in logits.iter().zip(naive(&weights, &image)) {
        assert!(
            (f64::from(*found) - expected).abs() < TOLERANCE,
            "{found} {expected}"
        );
    }
    let buffer = |i, cols| rows(executor.buffer(BufferId(i)), cols);
    let expected = naive_attention(&weights, &buffer(2, 3 * D), &buffer(0, D));
    for (found, expected) in buffer(4, D).iter().flatten().zip(expected.iter().flatten()) {
        assert!((found - expected).abs() < TOLERANCE, "{found} {expected}");
    }
}

#[test]
fn raw_pixels_with_folded_preprocessing_give_the_same_logits() {
    let (program, weights) = tiny();
    let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    let raw: Vec<f32> = (0..72).map(|i| (i * 37 % 256) as f32).collect();
    let normal = |(i, v): (usize, &f32)| (v / 255.0 - mean[i % 3]) / std[i % 3];
    let image: Vec<f32> = raw.iter().enumerate().map(normal).collect();
    let mut folded = weights.clone();
    folded.fold_preprocessing(&program, mean, std);
    let mut plain = Executor::new(&program, &weights);
    let plain = plain.run(&image, &mut ());
    let mut executor = Executor::new(&program, &folded);
    for (a, b) in plain.iter().zip(executor.run(&raw, &mut ())) {
        // Pictures reach 2.6 instead of 1, and cancel against the folded mean.
        assert!(f64::from((a - b).abs()) < 6.0 * TOLERANCE, "{a} {b}");
    }
}

#[derive(Default)]
struct Log {
    order: Vec<(usize, u16)>,
    heads: Vec<usize>,
    uniform: bool,
}

impl Hook for Log {
    fn buffer(&mut self, op: usize, id: BufferId, values: &mut [f32]) {
        self.order.push((op, id.0));
        if id.0 == 9 {
            values[0] = 42.0;
        }
    }
    fn scores(&mut self, _op: usize, _head: usize, scores: &mut [f32]) -> bool {
        if self.uniform {
            scores.fill(1.0 / T as f32);
        }
        self.uniform
    }
    fn probabilities(&mut self, op: usize, head: usize, p: &mut [f32], v: &[f32]) {
        assert_eq!((op, p.len(), v.len()), (3, T * T, T * D / HEADS));
        assert!(
            p.chunks(T)
                .all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-6)
        );
        self.heads.push(head);
    }
}

#[test]
fn hooks_see_each_buffer_once_and_may_replace_it() {
    let (program, weights) = tiny();
    let image = noise(72, &mut 3);
    let mut executor = Executor::new(&program, &weights);
    let mut log = Log::default();
    assert_eq!(executor.run(&image, &mut log)[0], 42.0);
    assert_eq!(
        log.order,
        (0..10).map(|i| (i, i as u16)).collect::<Vec<_>>()
    );
    assert_eq!(log.heads, [0, 1]);
    log.uniform = true;
    executor.run(&image, &mut log);
    assert_eq!(
        log.heads.len(),
        2,
        "replaced scores skip softmax and its hook"
    );
    let v = rows(executor.buffer(BufferId(2)), 3 * D);
    let mean = (0..T).map(|i| v[i][2 * D]).sum::<f64>() / T as f64;
    assert!((f64::from(executor.buffer(BufferId(3))[0]) - mean).abs() < 1e-6);
}

#[test]
fn resuming_is_running_with_what_came_before() {
    let (program, weights) = tiny();
    let image = noise(72, &mut 3);
    let mut other = weights.clone();
    other.tensors[10] = noise(8 * D, &mut 11); // the weight of operation 5
    let whole = Executor::new(&program, &other)
        .run(&image, &mut ())
        .to_vec();
    let mut first = Executor::new(&program, &weights);
    first.run(&image, &mut ());
    let mut second = Executor::with_buffers(&program, &other, first.into_buffers());
    let mut log = Log::default();
    assert_ne!(second.buffer(BufferId(9)), whole);
    second.resume(5, &image, &mut ());
    assert_eq!(second.buffer(BufferId(9)), whole);
    second.resume(7, &image, &mut log);
    assert_eq!(log.order, [(7, 7), (8, 8), (9, 9)]);
}

#[test]
fn many_pictures_come_back_in_order_whatever_the_threads() {
    let (program, weights) = tiny();
    let image = |i: usize| noise(72, &mut (i as u64));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let mut seen = Vec::new();
        pool.install(|| {
            run_many(
                &program,
                &weights,
                37,
                |i| Ok::<_, String>(image(i)),
                |_, executor, image| Ok(executor.run(image, &mut ()).to_vec()),
                |i, logits| {
                    seen.push((i, logits));
                    Ok(())
                },
            )
        })
        .unwrap();
        seen
    };
    let one = run(1);
    assert!(one.iter().map(|s| s.0).eq(0..37));
    assert_eq!(one, run(3));
}

#[test]
fn the_first_error_in_picture_order_is_returned() {
    let (program, weights) = tiny();
    let load = |i: usize| match i {
        5 | 6 => Err(i),
        _ => Ok(vec![0.0; 72]),
    };
    let mut seen = 0;
    let run = |_, e: &mut Executor<'_>, image: &[f32]| Ok(e.run(image, &mut ())[0]);
    let result = run_many(&program, &weights, 40, load, run, |_, _| {
        seen += 1;
        Ok(())
    });
    assert_eq!((result, seen), (Err(5), 5));
}
