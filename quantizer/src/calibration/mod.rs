//! Calibration: from a float network and some pictures to how it is quantized.
//!
//! ```text
//! rotate    Weights              -> Weights         the same function with fewer outliers, if asked for
//! observe   pictures             -> Observations    what flows through each buffer
//! allocate  Observations, budget -> Widths          bits of each layer, if there is a budget
//! plan      Observations         -> QuantPlan       scales, zero points, softmax codes, weights
//! compensate  QuantPlan           -> QuantPlan       weights rounded so that their errors cancel
//! FakeQuant QuantPlan            -> f32 executor    the plan, exactly, in f32
//! report    float and FakeQuant  -> error by layer  where the accuracy goes
//! ```
//!
//! Nothing here is trained; reconstruction starts from what `plan` returns.
//!
//! # What a weight's codes mean
//! `dequantized = scale[n] * (code - zero_point[n])`. Where the layer's input
//! has one scale, this is the weight itself, and the input contributes
//! `s * (code - zero_point)`. Where the input has one scale per column,
//! `s[k]`, it is `w[n, k] * s[k]`, and the input contributes
//! `code - zero_point[k]` alone.

mod allocate;
mod compensate;
mod fake_quant;
mod hadamard;
mod judge;
mod knapsack;
mod observe;
mod observers;
mod plan;
mod reparameterise;
mod report;
mod rotate;

pub use allocate::{AllocateError, AllocateStage, Allocation, Budget, Sensitivity, Site, allocate};
pub use compensate::{Compensation, Decision, LayerGroup, compensate, steps};
pub use fake_quant::{FakeQuant, fake_weights};
pub(crate) use fake_quant::{round_to_scores, unfold};
pub use hadamard::{Orthogonal, Signs};
pub(crate) use judge::{Judge, split};
pub use observe::{Observations, ObserveSettings, observe};
pub(crate) use observers::mix;
pub use observers::{BufferStats, Columns, Histogram};
pub(crate) use plan::folded_weight;
pub use plan::{
    ActivationCode, BiasCorrection, Granularity, QuantPlan, Settings, SoftmaxSettings, Widths, plan,
};
pub use reparameterise::reparameterise;
pub(crate) use report::energy;
pub use report::{LayerError, distance_name, kl_divergence, report, result_distance};
pub use rotate::{RotateError, Rotation, rotate};
