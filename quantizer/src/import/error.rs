//! Why a graph is not imported.

use super::reduce::{Reduced, Step};
use crate::onnx::{NodeId, OnnxError};
use std::path::PathBuf;
use tpvit_models::ProgramError;

/// Why a model is not imported. Each message names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The file cannot be read.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// The graph is no known architecture.
    #[error(
        "{path} is not a model that this version knows; read as a {nearest}, its node {node:?} ({op}) reads {inputs}, where {expected} was expected"
    )]
    Unrecognised {
        /// The file.
        path: PathBuf,
        /// The architecture that it is most like.
        nearest: &'static str,
        /// The first node that does not fit; by its output where it has no name.
        node: String,
        /// Its operator.
        op: String,
        /// Names and shapes of its inputs.
        inputs: Box<str>,
        /// What was expected there.
        expected: Box<str>,
    },
    /// The graph has no node to name.
    #[error("{path} is not a model that this version knows: {expected}")]
    Unsuitable {
        /// The file.
        path: PathBuf,
        /// What was expected.
        expected: String,
    },
    /// A constant that becomes a weight is NaN or infinite.
    #[error("{path}: {tensor} holds a value that is not finite; every weight must be")]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Canonical name of the tensor.
        tensor: String,
    },
    /// A tensor has another size than the program says.
    #[error("{path}: {tensor} has {found} values where [{}, {}] were expected", expected[0], expected[1])]
    TensorSize {
        /// The file.
        path: PathBuf,
        /// Canonical name of the tensor.
        tensor: String,
        /// Rows and columns by the program.
        expected: [usize; 2],
        /// How many values there are; none of a tensor that is missing.
        found: usize,
    },
    /// The recognised program breaks a limit.
    #[error("{path} is a model beyond this version's limits")]
    Program {
        /// The file.
        path: PathBuf,
        /// Which limit.
        source: ProgramError,
    },
    /// The original graph cannot be run to check the import.
    #[error(
        "{path} cannot be checked, because the original graph does not run: {detail}; import it unverified only if you trust its logits"
    )]
    Reference {
        /// The file.
        path: PathBuf,
        /// What the runner says.
        detail: String,
    },
    /// The imported model does not compute what the original does.
    #[error(
        "{path} was misread and is refused: {part} first differs from the original graph's value {value:?}, by {difference:.2e} of its scale where rounding explains {tolerance:.2e}; please report this model"
    )]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// The first part that differs: `embed`, `blocks.3` or `logits`.
        part: String,
        /// The value of the original graph.
        value: String,
        /// Largest difference over largest magnitude.
        difference: f64,
        /// The largest that rounding explains.
        tolerance: f64,
    },
}

/// Fused attention comes with operator set 23.
const UNKNOWN: &str =
    "a standard operator up to operator set 22 (attention as products and a softmax)";

/// The first step that does not fit an architecture.
pub(crate) struct Misfit {
    node: Option<NodeId>,
    expected: String,
}

impl Misfit {
    pub(crate) fn at(step: &Step, expected: impl Into<String>) -> Self {
        Misfit {
            node: Some(step.node),
            expected: expected.into(),
        }
    }

    pub(crate) fn nowhere(expected: impl Into<String>) -> Self {
        Misfit {
            node: None,
            expected: expected.into(),
        }
    }

    /// How far into the graph it is.
    pub(crate) fn place(&self) -> Option<usize> {
        self.node.map(|node| node.0)
    }

    pub(crate) fn explain(self, reduced: &Reduced<'_>, nearest: &'static str) -> ImportError {
        let graph = reduced.folded.graph;
        let path = graph.path.clone();
        let expected = self.expected;
        let Some(id) = self.node else {
            return ImportError::Unsuitable { path, expected };
        };
        // What follows a node that nothing is known of fits nowhere either.
        let (id, expected) = match reduced.unknown(id) {
            Some(step) if step.node != id => (step.node, UNKNOWN.to_owned()),
            Some(_) | None => (id, expected),
        };
        let node = graph.node(id);
        let describe = |id: &crate::onnx::ValueId| {
            let name = &graph.value(*id).name;
            match reduced.folded.shape(*id) {
                Some(shape) => format!("{name:?} {shape:?}"),
                None => format!("{name:?}"),
            }
        };
        let inputs: Vec<_> = node.inputs.iter().flatten().map(describe).collect();
        let output = node.outputs.iter().flatten().next();
        let name = match node.name.is_empty() {
            false => node.name.clone(),
            true => output.map_or(String::new(), |id| graph.value(*id).name.clone()),
        };
        ImportError::Unrecognised {
            path,
            nearest,
            node: name,
            op: node.op.clone(),
            inputs: inputs.join(", ").into(),
            expected: expected.into(),
        }
    }
}
