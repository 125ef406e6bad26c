//! Calibration of a real network, on the pictures in the folder that
//! `TPVIT_DATA` names; without it the test says that it was skipped.
#![cfg(feature = "onnx")]

use std::path::PathBuf;

use rayon::prelude::*;
use tpvit_models::{BitWidth, Program, Quantization, SoftmaxMethod};
use tpvit_quantizer::calibration::{
    FakeQuant, ObserveSettings, Settings, fake_weights, kl_divergence, observe, plan,
};
use tpvit_quantizer::dataset::Pictures;
use tpvit_quantizer::import;
use tpvit_quantizer::preprocessing::Preset;
use tpvit_quantizer::reference::Executor;
use tpvit_quantizer::weights::Weights;

fn logits(
    program: &Program,
    weights: &Weights,
    quantization: Option<&Quantization>,
    pictures: &[Vec<f32>],
) -> Vec<Vec<f32>> {
    let run = |executor: &mut Executor<'_>, image: &Vec<f32>| match quantization {
        Some(q) => executor
            .run(image, &mut FakeQuant::new(program, q))
            .to_vec(),
        None => executor.run(image, &mut ()).to_vec(),
    };
    let pictures = pictures.par_iter();
    pictures
        .map_init(|| Executor::new(program, weights), run)
        .collect()
}

/// KL of held-back calibration pictures: two to three times what was measured
/// (.0007 at 8 bits, .0026 at 6), so
/// that only a real loss fails.
#[test]
fn vit_ti14_stays_close_to_float() {
    let Some(data) = std::env::var_os("TPVIT_DATA").map(PathBuf::from) else {
        println!("skipped: TPVIT_DATA is not set");
        return;
    };
    let path = data.join("models/vit_ti14_cifar10.onnx");
    let mut model = import::load(path, false).expect("a model");
    let preprocess = Preset::SquashImagenet.preprocess(model.program.image);
    model.fold_preprocessing(preprocess.mean, preprocess.std);
    let pictures = Pictures::calibration(&data.join("cifar10/calibration"));
    let loaded = pictures
        .and_then(|p| p.load(&preprocess, model.program.image, 200))
        .expect("pictures");
    let floats = |p: &tpvit_quantizer::pictures::Pixels| p.data.iter().map(|&b| b.into()).collect();
    let images: Vec<Vec<f32>> = loaded.pixels.iter().map(floats).collect();
    // Sorted by class: every second picture calibrates.
    let seen: Vec<&Vec<f32>> = images.iter().step_by(2).collect();
    let held: Vec<Vec<f32>> = images.iter().skip(1).step_by(4).cloned().collect();

    let (program, weights) = (&model.program, &model.weights);
    let source = |i: usize| seen.get(i).map(|p| p.to_vec());
    let settings = ObserveSettings::default();
    let observations = observe(program, weights, &source, &settings, &mut |_| {});
    let float = logits(program, weights, None, &held);
    for (bits, bound) in [(BitWidth::B8, 0.002), (BitWidth::B6, 0.006)] {
        for method in [SoftmaxMethod::RowMax, SoftmaxMethod::TulqA] {
            let mut settings = Settings::new(bits, bits);
            settings.softmax.method = method;
            let mut adjusted = weights.clone();
            let plan = plan(program, &mut adjusted, &observations, &settings);
            let fake = fake_weights(program, &adjusted, &plan);
            let quantized = logits(program, &fake, Some(&plan.quantization), &held);
            let pairs = float.iter().zip(&quantized);
            let kl = pairs.map(|(a, b)| kl_divergence(a, b)).sum::<f64>() / held.len() as f64;
            println!("{bits:?} {method:?}: KL {kl:.4}");
            assert!(kl < bound, "{bits:?} {method:?}: KL {kl}");
        }
    }
}
