//! tract's f32 run of an ONNX model: the peer that latency and memory are
//! compared with.

use super::ImportError;
use super::guard::{failed, guarded};
use crate::onnx::read_proto;
use std::path::Path;
use std::sync::Arc;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::DimLike;
use tract_onnx::tract_hir::infer::Factoid;

/// An ONNX picture classifier as tract optimises it, batch 1, with an input.
pub struct TractModel {
    model: Arc<TypedRunnableModel>,
    input: TValue,
    name: std::path::PathBuf,
}

impl TractModel {
    /// Loads and optimises the model in `path`, which takes one picture,
    /// `[1, 3, height, width]`, height and width being fixed in the file.
    ///
    /// # Errors
    /// If it cannot be read, takes something else, or tract refuses it.
    pub fn load(path: &Path) -> Result<TractModel, ImportError> {
        let proto = read_proto(path)?;
        let build = || -> TractResult<_> {
            let model = tract_onnx::onnx()
                .with_ignore_output_shapes(true)
                .with_ignore_value_info(true)
                .model_for_proto_model(&proto)?;
            let shape = model.input_fact(0)?.shape.clone();
            let dims: Vec<Option<usize>> = shape
                .dims()
                .map(|dim| dim.concretize().and_then(|d| d.to_usize().ok()))
                .collect();
            let [_, Some(3), Some(height), Some(width)] = dims[..] else {
                let detail = format!("its input is {shape:?}, not one picture of a fixed size");
                return Err(TractError::msg(detail));
            };
            let dims = [1, 3, height, width];
            let model = model
                .with_input_fact(0, f32::fact(dims).into())?
                .into_optimized()?
                .into_runnable()?;
            let values: Vec<f32> = (0..3 * height * width)
                .map(|i| (i * 7919 % 509) as f32 / 254.5 - 1.0)
                .collect();
            Ok((model, Tensor::from_shape(&dims, &values)?.into_tvalue()))
        };
        let (model, input) = guarded(build).map_err(|detail| failed(path, detail))?;
        Ok(TractModel {
            model,
            input,
            name: path.to_owned(),
        })
    }

    /// Runs it once on its fixed input, on this thread.
    ///
    /// # Errors
    /// If tract fails.
    pub fn run(&self) -> Result<(), ImportError> {
        let outputs = guarded(|| self.model.run(tvec!(self.input.clone())));
        outputs
            .map(drop)
            .map_err(|detail| failed(&self.name, detail))
    }
}
