//! From an ONNX graph to a [`Program`] and its [`Weights`].
//!
//! 1. [`fold`]: with the batch fixed to 1, every shape and every shape
//!    computation becomes a constant.
//! 2. [`reduce`]: what is left is rewritten in a small alphabet of steps
//!    (linear, LayerNorm, GELU, softmax, product, sum, view), whatever the
//!    exporter spelled out.
//! 3. A recogniser per architecture ([`vit`], [`swin`]) follows the residual
//!    stream block by block, with the parts that they share: [`embed`],
//!    [`attention`], [`mlp`], [`readout`]. It reads edges and shapes, never
//!    names: exporters rename weights and merge equal ones. What it finds is a
//!    config of [`tpvit_models::vit`] or [`tpvit_models::swin`], and tensors
//!    under the names of that program ([`parts`]).
//! 4. [`verify`] runs the original graph with tract and compares.
//!
//! A graph that does not fit is refused with the first node that does not, and
//! what was expected there; nothing is ever imported in part. A new
//! architecture is a new recogniser in [`RECOGNISERS`]: see `docs/adding.md`.

mod attention;
mod embed;
mod error;
mod fold;
mod guard;
mod mlp;
mod parts;
mod peer;
mod readout;
mod reduce;
mod shifted_windows;
mod swin;
mod trace;
mod view;
mod vit;
mod walk;

pub use error::ImportError;
pub use guard::{GuardReport, verify};
pub use peer::TractModel;

pub(crate) use parts::{Parts, attention_scale};

use crate::onnx::Graph;
use crate::weights::Weights;
use std::path::Path;
use tpvit_models::{BufferId, Program};

/// A model as its architecture, without the exporter's spelling.
#[derive(Clone, Debug)]
pub struct Imported {
    /// What is computed; its picture has the scale the exporter's input had.
    pub program: Program,
    /// The constants.
    pub weights: Weights,
    /// The graph's input, `[1, 3, height, width]`.
    pub input_name: String,
    /// The graph's logits, `[1, classes]`.
    pub output_name: String,
    /// Where the original graph and the program must agree, in order.
    pub taps: Vec<Tap>,
}

/// A value of the original graph and the buffer that must equal it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// Which part of the model ends here: `embed`, `blocks.3`.
    pub part: String,
    /// Name of the value in the graph.
    pub value: String,
    /// The buffer.
    pub buffer: BufferId,
}

impl Imported {
    /// Rewrites the patch embedding to read raw pixels: see
    /// [`Weights::fold_preprocessing`]. Once done, [`verify`] no longer
    /// applies: it feeds both sides the same picture.
    pub fn fold_preprocessing(&mut self, mean: [f32; 3], std: [f32; 3]) {
        self.weights.fold_preprocessing(&self.program, mean, std);
    }
}

/// Reads and recognises a model; with `verify`, also compares it with a run of
/// the original graph.
///
/// # Errors
/// If the file cannot be read, is not a known architecture, or does not give
/// the original's numbers.
pub fn load(path: impl AsRef<Path>, verify: bool) -> Result<Imported, ImportError> {
    let path = path.as_ref();
    let imported = import(&crate::onnx::read(path)?)?;
    if verify {
        self::verify(path, &imported)?;
    }
    Ok(imported)
}

type Recogniser = fn(&reduce::Reduced<'_>) -> Result<parts::Draft, error::Misfit>;

/// The architectures, as they are called in errors.
const RECOGNISERS: [(&str, Recogniser); 2] = [
    ("Vision Transformer", vit::recognise),
    ("Swin", swin::recognise),
];

/// Recognises a graph: as the first architecture that fits. If none does, the
/// error is that of the one that got furthest.
///
/// # Errors
/// If it is not a known architecture.
pub fn import(graph: &Graph) -> Result<Imported, ImportError> {
    let reduced = reduce::Reduced::new(fold::Folded::new(graph));
    let mut furthest: Option<(&str, error::Misfit)> = None;
    for (name, recognise) in RECOGNISERS {
        match recognise(&reduced) {
            Ok(draft) => return draft.finish(&graph.path),
            Err(misfit) => {
                let further = |(_, other): &(&str, error::Misfit)| misfit.place() > other.place();
                if furthest.as_ref().is_none_or(further) {
                    furthest = Some((name, misfit));
                }
            }
        }
    }
    let (nearest, misfit) = furthest.expect("there are recognisers");
    Err(misfit.explain(&reduced, nearest))
}
