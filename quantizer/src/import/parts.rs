//! What a recogniser reads, by name, and how it becomes a model.

use super::{ImportError, Imported, Tap};
use crate::weights::Weights;
use std::collections::HashMap;
use std::path::Path;
use tpvit_models::{Op, Program};

/// The constants of a model under the names that its program gives them.
#[derive(Default)]
pub(crate) struct Parts {
    tensors: HashMap<String, Vec<f32>>,
    eps: HashMap<String, f32>,
}

/// What a recogniser makes of a whole graph.
pub(crate) struct Draft {
    pub(crate) program: Program,
    pub(crate) parts: Parts,
    /// Part, value of the graph, and name of the buffer that must equal it.
    pub(crate) taps: Vec<[String; 3]>,
    pub(crate) input_name: String,
    pub(crate) output_name: String,
}

impl Parts {
    /// Values of a tensor, row-major.
    pub(crate) fn tensor(&mut self, name: String, values: Vec<f32>) {
        self.tensors.insert(name, values);
    }

    /// What a norm adds to the variance; otherwise it is what the config says.
    pub(crate) fn eps(&mut self, norm: &str, eps: f32) {
        self.eps.insert(norm.to_owned(), eps);
    }

    /// Completes `program` and checks it.
    ///
    /// # Errors
    /// If a tensor is missing or has another size than the program says, or is
    /// not finite; or if the program breaks a limit.
    pub(crate) fn assemble(
        mut self,
        mut program: Program,
        path: &Path,
    ) -> Result<(Program, Weights), ImportError> {
        let names = program.buffers.iter().map(|buffer| &buffer.name);
        let names: Vec<String> = names.cloned().collect();
        for op in &mut program.ops {
            let output = op.output();
            if let Op::LayerNorm { eps, .. } | Op::HeadNorm { eps, .. } = op
                && let Some(found) = self.eps.get(&names[output.index()])
            {
                *eps = *found;
            }
        }
        let path = || path.to_owned();
        program.validate().map_err(|source| ImportError::Program {
            path: path(),
            source,
        })?;
        let mut weights = Weights::default();
        for info in &program.tensors {
            let values = self.tensors.remove(&info.name).unwrap_or_default();
            let tensor = info.name.clone();
            if values.len() != info.rows * info.cols {
                return Err(ImportError::TensorSize {
                    path: path(),
                    tensor,
                    expected: [info.rows, info.cols],
                    found: values.len(),
                });
            }
            if values.iter().any(|v| !v.is_finite()) {
                return Err(ImportError::NotFinite {
                    path: path(),
                    tensor,
                });
            }
            weights.tensors.push(values);
        }
        Ok((program, weights))
    }
}

impl Draft {
    /// Checks the program and its weights.
    pub(crate) fn finish(self, path: &Path) -> Result<Imported, ImportError> {
        let (program, weights) = self.parts.assemble(self.program, path)?;
        let id = |op: &Op| op.output();
        let tap = |[part, value, buffer]: [String; 3]| Tap {
            buffer: program
                .ops
                .iter()
                .map(id)
                .find(|id| program.buffers[id.index()].name == buffer)
                .expect("a tap is a buffer of the program"),
            part,
            value,
        };
        Ok(Imported {
            taps: self.taps.into_iter().map(tap).collect(),
            program,
            weights,
            input_name: self.input_name,
            output_name: self.output_name,
        })
    }
}

/// `1 / sqrt(head_dim)`, and whatever differs from it by no more than the
/// rounding of two factors of an f32.
pub(crate) fn attention_scale(found: f64, head_dim: usize) -> f32 {
    let exact = 1.0 / (head_dim as f64).sqrt();
    let close = (found / exact - 1.0).abs() <= 2.0 * f64::from(f32::EPSILON);
    (if close { exact } else { found }) as f32
}
