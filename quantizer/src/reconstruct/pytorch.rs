//! Gradients against PyTorch's, of models whose weights both sides read.
//!
//! `tools/make_gradients.py` wrote `gradients.safetensors` beside each model: the
//! gradients of its tensors, under their names. Read as if they were weights, they
//! come in the order of the Program, for whatever is moved about on the way is moved
//! alike.

use std::path::Path;

use super::network::{Grads, Network, Tape, View};
use crate::checkpoint;
use tpvit_models::{Op, Program};

/// Both sides compute in f32, in another order. A gradient is a sum of up to some 500
/// products, behind and before some 30 operations of which each rounds its result and
/// passes errors on; were all those errors independent and of one size, the sum would
/// be off by `sqrt(500 * 30) 2^-24 = 7e-6` of the largest. Softmax and LayerNorm
/// amplify: eight times that.
const TOLERANCE: f32 = 6e-5;

#[test]
fn gradients_are_those_of_pytorch() {
    for name in [
        "timm_vit",
        "timm_vit_qk_norm",
        "timm_vit_gap",
        "timm_swin_rectangle",
    ] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints");
        let folder = folder.join(name);
        let load = |file: &str| {
            let loaded = checkpoint::load(&folder.join(file), &folder.join("config.json"));
            loaded.unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        let (model, expected) = (load("model.safetensors"), load("gradients.safetensors"));
        let program = &model.program;
        let view = View::float(program, &model.weights);
        let grads = gradients(program, &view);
        let prefix = program.ops.iter().find_map(|op| match *op {
            Op::PatchEmbed { prefix, .. } => prefix,
            _ => None,
        });
        let mut compared = 0;
        for (id, info) in program.tensors.iter().enumerate() {
            if info.name.ends_with("reduction.bias") {
                continue; // PyTorch's has none
            }
            // Class token and its position are one tensor here, whose gradient both
            // have; reading has added them up.
            let times = match prefix.is_some_and(|prefix| prefix.index() == id) {
                true => 2.0,
                false => 1.0,
            };
            let (found, expected) = (&grads.tensors[id], &expected.weights.tensors[id]);
            assert_eq!(found.len(), expected.len());
            let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
            for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                let off = (times * found - expected).abs();
                assert!(
                    off <= TOLERANCE * largest,
                    "{name}, {}[{i}]: {found} times {times}, PyTorch has {expected}; the largest is {largest}",
                    info.name
                );
            }
            compared += found.len();
        }
        assert!(compared > 9000, "{name}: {compared} gradients");
    }
}

/// Of `sum over i of cos(i) * logits[i]`.
fn gradients(program: &Program, view: &View) -> Grads {
    let network = Network { program, view };
    let whole = 0..program.ops.len();
    let mut tape = Tape::new(program);
    network.forward(&mut tape, whole.clone(), &picture(program.image), None);
    let mut grads = Grads::new(program, view, whole.clone());
    tape.clear_grads(program, whole.clone());
    let logits = program.ops[whole.end - 1].output().index();
    for (i, grad) in tape.grad[logits].iter_mut().enumerate() {
        *grad = (i as f64).cos() as f32;
    }
    network.backward(&mut tape, whole, None, &mut grads);
    grads
}

/// `image[y, x, c] = sin(0.7 y + 1.3 x + 2.1 c)`.
fn picture([height, width]: [usize; 2]) -> Vec<f32> {
    let mut image = Vec::with_capacity(height * width * 3);
    for y in 0..height {
        for x in 0..width {
            for c in 0..3 {
                let angle = 0.7 * y as f64 + 1.3 * x as f64 + 2.1 * c as f64;
                image.push(angle.sin() as f32);
            }
        }
    }
    image
}
