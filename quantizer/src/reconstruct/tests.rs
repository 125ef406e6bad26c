//! Gradients against finite differences; the codes of each head.

use super::network::{Grads, Network, Tape, View, coders};
use crate::weights::Weights;
use tpvit_models::synthetic::{self, VitConfig};
use tpvit_models::{BitWidth, Op, Program, SoftmaxQuant};

fn random(len: usize, seed: u64, size: f32) -> Vec<f32> {
    (0..len as u64)
        .map(|i| {
            let bits = crate::calibration::mix(seed ^ (i << 20)) >> 40;
            (bits as f32 / (1u64 << 23) as f32 - 1.0) * size
        })
        .collect()
}

/// A small network whose values are of order 1.
fn small() -> (Program, Weights, Vec<f32>) {
    let program = synthetic::tiny().program;
    let tensors = program.tensors.iter().enumerate();
    let tensors = tensors.map(|(i, t)| {
        let size = if t.rows > 1 {
            2.0 / (t.cols as f32).sqrt()
        } else {
            0.5
        };
        random(t.rows * t.cols, i as u64, size)
    });
    let mut weights = Weights {
        tensors: tensors.collect(),
    };
    for op in &program.ops {
        if let Op::LayerNorm { gamma, .. } = *op {
            weights.tensors[gamma.index()]
                .iter_mut()
                .for_each(|g| *g += 1.0);
        }
    }
    let [h, w] = program.image;
    (program, weights, random(h * w * 3, 99, 1.0))
}

/// `sum of c * logits + sum of d * (middle buffer)`, in f64.
fn loss(
    program: &Program,
    view: &View,
    image: &[f32],
    tape: &mut Tape,
    seeds: &[(usize, u64)],
) -> f64 {
    let network = Network { program, view };
    network.forward(tape, 0..program.ops.len(), image, None);
    let value = |(id, seed): &(usize, u64)| {
        let values = &tape.raw[*id];
        let c = random(values.len(), *seed, 1.0);
        values
            .iter()
            .zip(&c)
            .map(|(v, c)| f64::from(*v) * f64::from(*c))
            .sum::<f64>()
    };
    seeds.iter().map(value).sum()
}

#[test]
fn gradients_of_every_tensor_agree_with_finite_differences() {
    let (program, weights, image) = small();
    let whole = 0..program.ops.len();
    let mut view = View::float(&program, &weights);
    let mut tape = Tape::new(&program);
    let middle = program.ops.iter().rev().find(|op| op.inputs()[1].is_some());
    let outputs = [
        program.ops[whole.end - 1].output(),
        middle.unwrap().output(),
    ];
    let seeds: Vec<(usize, u64)> = outputs
        .iter()
        .map(|b| (b.index(), 7 + b.index() as u64))
        .collect();
    loss(&program, &view, &image, &mut tape, &seeds);
    let mut grads = Grads::new(&program, &view, whole.clone());
    tape.clear_grads(&program, whole.clone());
    for (id, seed) in &seeds {
        let len = tape.grad[*id].len();
        tape.grad[*id] = random(len, *seed, 1.0);
    }
    let network = Network {
        program: &program,
        view: &view,
    };
    network.backward(&mut tape, whole, None, &mut grads);
    let mut checked = 0;
    for tensor in 0..program.tensors.len() {
        let info = &program.tensors[tensor];
        // Along a random direction, every entry takes part.
        let direction = random(info.rows * info.cols, 1000 + tensor as u64, 1.0);
        let exact: f64 = grads.tensors[tensor]
            .iter()
            .zip(&direction)
            .map(|(g, d)| f64::from(g * d))
            .sum();
        let norm: f64 = grads.tensors[tensor]
            .iter()
            .map(|g| f64::from(g * g))
            .sum::<f64>()
            .sqrt();
        let length = direction
            .iter()
            .map(|d| f64::from(d * d))
            .sum::<f64>()
            .sqrt();
        let original = view.tensors[tensor].clone();
        let mut at = |by: f32| {
            for ((x, o), d) in view.tensors[tensor]
                .iter_mut()
                .zip(&original)
                .zip(&direction)
            {
                *x = o + by * d;
            }
            if program.tensors[tensor].rows > 1 {
                view.turn(&program, tensor);
            }
            loss(&program, &view, &image, &mut tape, &seeds)
        };
        let by = 2e-3 / length as f32;
        let measured = (at(by) - at(-by)) / (2.0 * f64::from(by));
        at(0.0);
        let scale = norm * length;
        println!(
            "tensor {tensor} {}: {exact:.6} {measured:.6} of {scale:.3}",
            info.name
        );
        assert!(
            (exact - measured).abs() < 2e-3 * scale.max(1e-3),
            "{}: {exact} but {measured}",
            info.name
        );
        checked += 1;
    }
    assert_eq!(checked, program.tensors.len());
}

/// What the first attention writes, `[tokens, heads * head_dim]`.
fn first_attention(softmax: &SoftmaxQuant) -> Vec<f32> {
    let (program, weights, image) = small();
    let mut ops = program.ops.iter();
    let index = ops.position(|op| matches!(op, Op::Attention { .. }));
    let index = index.expect("a transformer");
    let mut view = View::float(&program, &weights);
    view.coders[index] = coders(&program, index, softmax);
    let mut tape = Tape::new(&program);
    let network = Network {
        program: &program,
        view: &view,
    };
    network.forward(&mut tape, 0..index + 1, &image, None);
    tape.raw[program.ops[index].output().index()].clone()
}

/// A head's columns are those of a network in which all heads have its codebook.
#[test]
fn every_head_has_its_own_codebook() {
    let VitConfig { dim, heads, .. } = VitConfig::SMALLEST;
    let per_head = synthetic::log2_softmax_per_head(BitWidth::B2, heads);
    let found = first_attention(&per_head);
    let mut alike = Vec::new();
    for (head, codebook) in per_head.codebooks.iter().enumerate() {
        let shared = SoftmaxQuant {
            codebooks: vec![codebook.clone()],
            ..per_head.clone()
        };
        let expected = first_attention(&shared);
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            if i % dim / (dim / heads) == head {
                assert_eq!(found, expected, "value {i} of head {head}");
            }
        }
        alike.push(expected);
    }
    alike.dedup();
    assert_eq!(alike.len(), heads, "the codebook matters");
}
