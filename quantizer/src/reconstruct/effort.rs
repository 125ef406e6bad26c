//! Settings that were measured, by how much time there is.

use std::ops::Range;

use tpvit_models::{BitWidth, BufferId, Program};

use super::blocks::feature;
use super::units::{Unit, units};
use super::{Importance, Input, Joint, Pass, Phase, Rates, Rounding, Settings};

/// How much time there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Minutes.
    Balanced,
    /// Up to an hour.
    Best,
}

/// What is trained, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// What measured best (docs/accuracy.md): all units at once.
    Best,
    /// TP-ViT as its abstract has it: block-wise, the weights' widths declining
    /// by transition weights. doi:10.1631/ENG.ITEE.2025.0081
    TpVit,
    /// I&S-ViT's smooth optimisation strategy, with as many steps. Zhong et al.
    /// 2023, arXiv:2311.10126
    Sos,
    /// GLF-Q's losses, block-wise: at the unit, and half as much at the
    /// classifier's input through the float rest of the network. Sun et al. 2026
    Glf,
    /// QDrop, block-wise: half of the activations stay float, at random. Wei et
    /// al. 2022, arXiv:2203.05740
    QDrop,
}

/// What there is to choose of a training.
#[derive(Clone, Debug, PartialEq)]
pub struct Choices {
    /// What is trained, and how.
    pub recipe: Recipe,
    /// How much time there is.
    pub effort: Effort,
    /// Steps in place of the effort's; a recipe of two passes has half as many in
    /// each.
    pub steps: Option<u32>,
    /// How weights find their codes.
    pub rounding: Rounding,
    /// What counts in the losses at the units.
    pub importance: Importance,
    /// Of [`Recipe::TpVit`]: the widths before the last; `None` for those of
    /// the paper's reading, nothing for straight to the last.
    pub decline: Option<Vec<BitWidth>>,
    /// Of [`Recipe::TpVit`]: whether a width blends into the next (transition
    /// weights are a mixture), or its weights are just where the next begins.
    pub blend: bool,
    /// Of the order of pictures, of what is dropped, of how pictures are cut.
    pub seed: u64,
}

impl Choices {
    /// Of `recipe`, what it has by itself.
    pub fn new(recipe: Recipe, effort: Effort, seed: u64) -> Self {
        Choices {
            recipe,
            effort,
            steps: None,
            rounding: Rounding::StraightThrough,
            importance: match recipe {
                Recipe::Best => Importance::Perturbation,
                Recipe::TpVit | Recipe::Sos | Recipe::Glf | Recipe::QDrop => Importance::Alike,
            },
            decline: None,
            blend: true,
            seed,
        }
    }
}

/// Everything learns, the weights most. Codes that compensate for each other's errors
/// are lost where weights move fast: of ViT-Ti/16 at W3A8, 200 steps of joint training at
/// six times this rate end where they began.
const RATES: Rates = Rates {
    weights: 5e-4,
    weight_scales: 7e-4,
    floats: 1.5e-3,
    activation_scales: 7e-4,
};

/// I&S-ViT and TP-ViT learn weights and biases; scales stay.
const PUBLISHED_RATES: Rates = Rates {
    weights: 1e-3,
    weight_scales: 0.0,
    floats: 2e-4,
    activation_scales: 0.0,
};

const BATCH: usize = 16;

impl Effort {
    /// Steps of joint training. A pass over the units has as many of each unit:
    /// about the same work.
    fn steps(self) -> u32 {
        match self {
            Effort::Balanced => 200,
            Effort::Best => 1000,
        }
    }
}

impl Settings {
    /// The settings of `choices` for weights that end at `bits`.
    pub fn new(choices: &Choices, bits: BitWidth) -> Self {
        let recipe = choices.recipe;
        let steps = choices.steps.unwrap_or_else(|| choices.effort.steps());
        let steps = match recipe {
            Recipe::Best | Recipe::Glf | Recipe::QDrop => steps,
            Recipe::TpVit | Recipe::Sos => steps.div_ceil(2), // there are two passes
        };
        let published = |input, phases| Pass {
            input,
            phases,
            transition: true,
            batch: BATCH,
            rates: PUBLISHED_RATES,
            drop: 0.0,
            global: 0.0,
            class_weight: 1.0,
        };
        let float = Phase { bits: None, steps };
        let direct = Phase {
            bits: Some(bits),
            steps,
        };
        let learned = Pass {
            transition: false,
            rates: RATES,
            ..published(Input::Quantized, vec![direct])
        };
        let passes = match recipe {
            Recipe::Glf => vec![Pass {
                global: 0.5,
                ..learned
            }],
            Recipe::QDrop => vec![Pass {
                drop: 0.5,
                ..learned
            }],
            Recipe::Sos => vec![
                published(Input::Float, vec![float]),
                Pass {
                    transition: false,
                    ..published(Input::Quantized, vec![direct])
                },
            ],
            Recipe::TpVit => vec![
                published(Input::Float, vec![float]),
                Pass {
                    transition: choices.blend,
                    ..published(Input::Quantized, decline(choices, bits, steps))
                },
            ],
            Recipe::Best => Vec::new(),
        };
        let joint = Joint {
            steps,
            batch: BATCH,
            rates: RATES,
            local: 4.0,
            divergence: 1.0,
            least_area: 0.5,
            class_weight: 1.0,
        };
        Settings {
            passes,
            joint: (recipe == Recipe::Best).then_some(joint),
            rounding: choices.rounding,
            importance: choices.importance,
            seed: choices.seed,
        }
    }

    /// Multiply-accumulates of the whole training, to tell how long it takes.
    pub fn macs(&self, program: &Program) -> f64 {
        let costs = self.costs(program);
        costs
            .iter()
            .flatten()
            .map(|(one, steps)| one * f64::from(*steps))
            .sum()
    }

    /// Most bytes of activations that passes over the units keep of `pictures`
    /// pictures, in memory or in files; joint training keeps none.
    pub fn activation_bytes(&self, program: &Program, pictures: usize) -> u64 {
        let values = |buffer: BufferId| {
            let buffer = &program.buffers[buffer.index()];
            (buffer.rows * buffer.cols) as u64
        };
        let units = units(program);
        let of_pass = |pass: &Pass| {
            let networks = match pass.input {
                Input::Float => 1,
                Input::Quantized => 2,
            };
            let most = units
                .iter()
                .map(|unit| unit.input.map_or(0, values) + values(unit.output));
            let features = match pass.global > 0.0 {
                true => values(feature(program)),
                false => 0,
            };
            networks * most.max().unwrap_or(0) + features
        };
        let most = self.passes.iter().map(of_pass).max().unwrap_or(0);
        most * pictures as u64 * size_of::<f32>() as u64
    }

    /// By pass, and joint training last: by unit, the cost of one step, and
    /// how many there are.
    pub(super) fn costs(&self, program: &Program) -> Vec<Vec<(f64, u32)>> {
        let macs = |ops: Range<usize>| -> f64 {
            program.ops[ops]
                .iter()
                .map(|op| program.op_macs(op) as f64)
                .sum()
        };
        let end = program.ops.len();
        let units = units(program);
        let of_pass = |pass: &Pass| {
            let cost = |unit: &Unit| {
                let rest = if pass.global > 0.0 { 2.0 } else { 0.0 };
                let one = 3.0 * macs(unit.ops.clone()) + rest * macs(unit.ops.end..end);
                (one * pass.batch as f64, pass.steps())
            };
            units.iter().map(cost).collect()
        };
        let mut costs: Vec<Vec<(f64, u32)>> = self.passes.iter().map(of_pass).collect();
        // The teacher forward, the student forward and backward.
        let joint = |j: &Joint| (4.0 * macs(0..end) * j.batch as f64, j.steps);
        costs.push(self.joint.iter().map(joint).collect());
        costs
    }
}

/// From wider weights down to `bits` in as many steps as without a decline, half
/// of them at the end or a little more (algorithm: 3 bits 150, 150, 200, 500 of
/// 1000; the 5-bit phase is left out, for there are no 5-bit codes).
fn decline(choices: &Choices, bits: BitWidth, steps: u32) -> Vec<Phase> {
    let published: &[(BitWidth, u32)] = match bits {
        BitWidth::B2 | BitWidth::B3 => &[(BitWidth::B6, 25), (BitWidth::B4, 25)],
        BitWidth::B4 => &[(BitWidth::B8, 20), (BitWidth::B6, 25)],
        BitWidth::B6 => &[(BitWidth::B8, 40)],
        BitWidth::B8 => &[],
    };
    let shares: Vec<(BitWidth, u32)> = match &choices.decline {
        None => published.to_vec(),
        Some(widths) => {
            let share = 50 / widths.len().max(1) as u32;
            widths.iter().map(|&width| (width, share)).collect()
        }
    };
    let phase = |&(bits, percent): &(BitWidth, u32)| Phase {
        bits: Some(bits),
        steps: steps * percent / 100,
    };
    let mut phases: Vec<Phase> = shares.iter().map(phase).collect();
    let spent: u32 = phases.iter().map(|p| p.steps).sum();
    phases.push(Phase {
        bits: Some(bits),
        steps: steps - spent,
    });
    phases
}
