//! Collects a program while a recogniser walks the graph.

use super::{ImportError, Imported, Tap};
use crate::onnx::Graph;
use crate::weights::Weights;
use tpvit_models::{Buffer, BufferId, Op, Program, TensorId, TensorInfo, TensorRole};

/// A program under construction.
pub(crate) struct Builder {
    program: Program,
    weights: Weights,
    taps: Vec<Tap>,
}

/// A recognised program that has not been checked yet.
pub(crate) struct Draft {
    pub(crate) builder: Builder,
    pub(crate) input_name: String,
    pub(crate) output_name: String,
}

impl Builder {
    pub(crate) fn new(image: [usize; 2]) -> Self {
        Builder {
            program: Program {
                image,
                buffers: Vec::new(),
                tensors: Vec::new(),
                ops: Vec::new(),
            },
            weights: Weights::default(),
            taps: Vec::new(),
        }
    }

    /// A weight, `[values.len() / cols, cols]`.
    pub(crate) fn weight(&mut self, name: String, cols: usize, values: Vec<f32>) -> TensorId {
        self.tensor(name, TensorRole::Weight, cols, values)
    }

    /// A float tensor, `[values.len() / cols, cols]`.
    pub(crate) fn float(&mut self, name: String, cols: usize, values: Vec<f32>) -> TensorId {
        self.tensor(name, TensorRole::Float, cols, values)
    }

    /// A float vector.
    pub(crate) fn vector(&mut self, name: String, values: Vec<f32>) -> TensorId {
        self.float(name, values.len(), values)
    }

    fn tensor(
        &mut self,
        name: String,
        role: TensorRole,
        cols: usize,
        values: Vec<f32>,
    ) -> TensorId {
        // Beyond u16 the number repeats; `finish` refuses so many tensors.
        let id = TensorId(self.program.tensors.len() as u16);
        self.program.tensors.push(TensorInfo {
            name,
            role,
            rows: values.len() / cols,
            cols,
        });
        self.weights.tensors.push(values);
        id
    }

    pub(crate) fn buffer(&mut self, name: impl Into<String>, rows: usize, cols: usize) -> BufferId {
        let id = BufferId(self.program.buffers.len() as u16); // as in `tensor`
        self.program.buffers.push(Buffer {
            name: name.into(),
            rows,
            cols,
        });
        id
    }

    pub(crate) fn op(&mut self, op: Op) {
        self.program.ops.push(op);
    }

    /// Records that `buffer` must equal the graph's `value`.
    pub(crate) fn tap(&mut self, part: impl Into<String>, value: &str, buffer: BufferId) {
        self.taps.push(Tap {
            part: part.into(),
            value: value.to_owned(),
            buffer,
        });
    }
}

impl Draft {
    /// Checks the program and its weights.
    pub(crate) fn finish(self, graph: &Graph) -> Result<Imported, ImportError> {
        let path = || graph.path.clone();
        let Builder {
            program,
            weights,
            taps,
        } = self.builder;
        if program.tensors.len().max(program.buffers.len()) > usize::from(u16::MAX) {
            let expected = "it has more than 65535 tensors".into();
            return Err(ImportError::Unsuitable {
                path: path(),
                expected,
            });
        }
        program.validate().map_err(|source| ImportError::Program {
            path: path(),
            source,
        })?;
        for (values, info) in weights.tensors.iter().zip(&program.tensors) {
            if values.iter().any(|v| !v.is_finite()) {
                return Err(ImportError::NotFinite {
                    path: path(),
                    tensor: info.name.clone(),
                });
            }
        }
        Ok(Imported {
            program,
            weights,
            input_name: self.input_name,
            output_name: self.output_name,
            taps,
        })
    }
}
