//! The f32 constants of a program, as the model's author trained them.

use tpvit_models::{Op, Program, TensorData};

use crate::quantizers::weight;

/// Values of a program's tensors, row-major, by `TensorId`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights {
    /// `tensors[id]` has as many values as `program.tensors[id]` has elements.
    pub tensors: Vec<Vec<f32>>,
}

impl Weights {
    /// What the tensors of a quantized model stand for.
    pub fn dequantize(tensors: &[TensorData]) -> Self {
        let float = |tensor: &TensorData| match tensor {
            TensorData::Float(values) => values.clone(),
            TensorData::Weight(quant) => weight::dequantize(quant),
        };
        Weights {
            tensors: tensors.iter().map(float).collect(),
        }
    }

    /// Whether there is one vector for each tensor of `program`, of its size.
    pub fn fit(&self, program: &Program) -> bool {
        self.tensors.len() == program.tensors.len()
            && self
                .tensors
                .iter()
                .zip(&program.tensors)
                .all(|(values, info)| values.len() == info.rows * info.cols)
    }

    /// Rewrites the patch embedding so that it reads raw pixels, 0 to 255.
    ///
    /// The model was trained on `(pixel / 255 - mean) / std`, per channel `c`:
    ///
    /// ```text
    /// weight' = weight / (255 * std[c])
    /// bias'   = bias - sum over (y, x, c) of weight * mean[c] / std[c]
    /// ```
    ///
    /// Exact because the patches tile the picture: there is no padding whose
    /// zeros would need another bias.
    ///
    /// # Panics
    /// If `self` does not fit `program`, or some `std` is not positive.
    pub fn fold_preprocessing(&mut self, program: &Program, mean: [f32; 3], std: [f32; 3]) {
        assert!(self.fit(program), "weights do not fit the program");
        assert!(std.iter().all(|s| *s > 0.0), "std {std:?} is not positive");
        for op in &program.ops {
            let Op::PatchEmbed { weight, bias, .. } = *op else {
                continue;
            };
            let cols = program.tensors[weight.index()].cols;
            let mut biases = std::mem::take(&mut self.tensors[bias.index()]);
            let rows = self.tensors[weight.index()].chunks_exact_mut(cols);
            for (row, bias) in rows.zip(&mut biases) {
                *bias = fold_row(row, *bias, mean, std);
            }
            self.tensors[bias.index()] = biases;
        }
    }
}

/// Scales one row of the patch embedding; returns its new bias.
fn fold_row(row: &mut [f32], bias: f32, mean: [f32; 3], std: [f32; 3]) -> f32 {
    let mut shift = 0.0;
    for (i, w) in row.iter_mut().enumerate() {
        let (mean, std) = (f64::from(mean[i % 3]), f64::from(std[i % 3]));
        shift += f64::from(*w) * mean / std;
        *w = (f64::from(*w) / (255.0 * std)) as f32;
    }
    (f64::from(bias) - shift) as f32
}
