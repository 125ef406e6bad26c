//! Mixed precision: how many bits each layer gets, under a budget.
//!
//! ```text
//! minimise  sum over sites i of Omega_i(b_i)      subject to  cost(b) <= budget
//!
//! Omega_i(b) = KL(float | quantized, site i at b bits) - KL(float | quantized)
//! ```
//!
//! ZeroQ (Cai et al. 2020, arXiv:2001.00281, section 3.2) takes the output's KL
//! as the sensitivity and adds up the layers as if they were independent. A *site*
//! is what has a width of its own: a layer's weight, a coded buffer, one
//! attention's codes. Everything else stays at the widest widths allowed while
//! one site is narrowed. From there the sum is a good model: errors are small and
//! independent, and the KL is quadratic in them. Starting from narrow and
//! widening one site measures each in the noise of all the others. Of a model
//! without a classifier, the relative squared error of its features takes the
//! place of the KL ([`result_distance`]).
//!
//! # Cost
//! [`Budget::Bytes`]: the codes of the weights, as the file stores them.
//! [`Budget::BitOperations`], as HAWQ-V3 (arXiv:2011.10680) counts them:
//!
//! ```text
//! linear layer       MACs * weight bits * input bits          pixels have 8
//! attention          MACs / 2 * (qkv bits^2  +  qkv bits * attention bits)
//! ```
//!
//! Costs of a layer and its input multiply, so the two are chosen together: a
//! multiple-choice knapsack over such units (`knapsack.rs`), solved exactly.
//!
//! # Judged, not trusted
//! Pictures that were held back measure the sensitivities. The same ones compare
//! the result with the widest uniform width that fits the budget, which is taken
//! where it is better.

use rayon::prelude::*;
use tpvit_models::{BitWidth, BufferId, Op, Program, Quantization, TensorId, TensorRole};

use super::fake_quant::{FakeQuant, fake_weight, fake_weights};
use super::judge::{Judge, split};
use super::knapsack::{self, Item};
use super::observe::{Observations, ObserveSettings, observe};
use super::plan::{QuantPlan, Settings, Widths, plan};
use super::report::result_distance;
use crate::reference::Executor;
use crate::weights::Weights;

/// Widths that a site may get, those above its present one left out.
const WIDTHS: [BitWidth; 4] = [BitWidth::B3, BitWidth::B4, BitWidth::B6, BitWidth::B8];

/// Pictures a thread has under way: each holds all buffers of the network.
const WAVE_PER_THREAD: usize = 2;

/// What must not be exceeded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Codes of all weights, in bytes. Only weights are narrowed.
    Bytes(u64),
    /// Bit operations of a picture, in percent of those with 8 bits everywhere.
    /// Weights, activations and attention codes are narrowed.
    BitOperations(f64),
}

/// What has a width of its own, with the index of its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// The operation's weight.
    Weight(usize),
    /// The codes it writes.
    Output(usize),
    /// Its codes of post-softmax attention.
    Attention(usize),
}

/// What was found out about one site, and decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Sensitivity {
    /// The site.
    pub site: Site,
    /// Each width it may get, ascending, with what that adds to the mean
    /// [`result_distance`] of the held-back pictures from float.
    pub added: Vec<(BitWidth, f64)>,
    /// The width it gets.
    pub chosen: BitWidth,
}

/// Widths within a budget.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// To be put into [`Settings::widths`].
    pub widths: Widths,
    /// Site by site.
    pub sites: Vec<Sensitivity>,
    /// What the chosen widths cost: bytes, or bit operations.
    pub cost: u64,
    /// What they may cost.
    pub limit: u64,
    /// Mean [`result_distance`] of the held-back pictures with the mixed widths.
    pub mixed: f64,
    /// The widest uniform width that fits, and its distance.
    pub uniform: Option<(BitWidth, f64)>,
}

impl Allocation {
    /// Whether the uniform width was better and has been taken.
    pub fn took_uniform(&self) -> bool {
        self.uniform
            .is_some_and(|(_, distance)| distance <= self.mixed)
    }
}

/// Why there is no allocation.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AllocateError {
    /// The budget is below the narrowest model.
    #[error("a budget of {limit} bytes is too small: the weights take at least {least}")]
    Bytes {
        /// The budget.
        limit: u64,
        /// What the narrowest model takes.
        least: u64,
    },
    /// The budget is below the narrowest model, or no percentage.
    #[error(
        "a budget of {percent} % of the bit operations is too small: at least {least:.2} % are needed"
    )]
    BitOperations {
        /// The budget.
        percent: f64,
        /// What the narrowest model takes.
        least: f64,
    },
}

/// What [`allocate`] is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocateStage {
    /// Running pictures through the float network; so many are done.
    Observing(usize),
    /// Quantizing at each width.
    Planning,
    /// Running narrowed networks: as much as so many pictures, of so many.
    Measuring(usize, usize),
}

impl Budget {
    /// What the budget is about, for a model quantized as `settings` say: bytes
    /// or bit operations.
    pub fn cost(self, program: &Program, settings: &Settings) -> u64 {
        let ops = 0..program.ops.len();
        ops.map(|op| self.op_cost(program, settings, op)).sum()
    }

    /// The most that may be spent, in the unit of [`Budget::cost`].
    pub fn limit(self, program: &Program) -> u64 {
        match self {
            Budget::Bytes(bytes) => bytes,
            Budget::BitOperations(percent) => {
                (all_eight(program) as f64 * percent / 100.0).floor() as u64
            }
        }
    }

    fn op_cost(self, program: &Program, settings: &Settings, op: usize) -> u64 {
        let operation = &program.ops[op];
        let weight_bits = || u64::from(settings.weight_width(program, op).bits());
        let input_bits = |id| {
            let writer = writer(program, id);
            u64::from(settings.output_width(program, writer).bits())
        };
        match self {
            Budget::Bytes(_) => operation.weight().map_or(0, |id| {
                let info = &program.tensors[id.index()];
                let row = settings.weight_width(program, op).row_bytes(info.cols);
                (info.rows * row) as u64
            }),
            Budget::BitOperations(_) => {
                let macs = program.op_macs(operation);
                match *operation {
                    Op::PatchEmbed { .. } => macs * weight_bits() * 8,
                    Op::Linear { input, .. } => macs * weight_bits() * input_bits(input),
                    Op::Attention { qkv, .. } => {
                        let codes = u64::from(settings.attention_width(op).bits());
                        let qkv = input_bits(qkv);
                        macs / 2 * qkv * (qkv + codes)
                    }
                    Op::LayerNorm { .. }
                    | Op::HeadNorm { .. }
                    | Op::Gate { .. }
                    | Op::SelectToken { .. }
                    | Op::Pool { .. }
                    | Op::PatchMerge { .. } => 0,
                }
            }
        }
    }

    /// The sites that the cost of an operation depends on.
    fn sites(self, program: &Program, op: usize) -> Vec<Site> {
        match (self, &program.ops[op]) {
            (Budget::Bytes(_), operation) => match operation.weight() {
                Some(_) => vec![Site::Weight(op)],
                None => Vec::new(),
            },
            (Budget::BitOperations(_), Op::PatchEmbed { .. }) => vec![Site::Weight(op)],
            (Budget::BitOperations(_), Op::Linear { input, .. }) => {
                vec![Site::Output(writer(program, *input)), Site::Weight(op)]
            }
            (Budget::BitOperations(_), Op::Attention { qkv, .. }) => {
                vec![Site::Output(writer(program, *qkv)), Site::Attention(op)]
            }
            (
                Budget::BitOperations(_),
                Op::LayerNorm { .. }
                | Op::HeadNorm { .. }
                | Op::Gate { .. }
                | Op::SelectToken { .. }
                | Op::Pool { .. }
                | Op::PatchMerge { .. },
            ) => Vec::new(),
        }
    }

    fn too_small(self, program: &Program, least: u64) -> AllocateError {
        match self {
            Budget::Bytes(limit) => AllocateError::Bytes { limit, least },
            Budget::BitOperations(percent) => AllocateError::BitOperations {
                percent,
                least: 100.0 * least as f64 / all_eight(program) as f64,
            },
        }
    }
}

/// Bit operations of a picture with 8 bits everywhere.
fn all_eight(program: &Program) -> u64 {
    64 * program.macs()
}

fn writer(program: &Program, buffer: BufferId) -> usize {
    let writes = |op: &Op| op.output() == buffer;
    let found = program.ops.iter().position(writes);
    found.expect("a valid program writes what it reads")
}

impl Site {
    /// The width it has by `settings`.
    fn width(self, program: &Program, settings: &Settings) -> BitWidth {
        match self {
            Site::Weight(op) => settings.weight_width(program, op),
            Site::Output(op) => settings.output_width(program, op),
            Site::Attention(op) => settings.attention_width(op),
        }
    }

    fn set(self, widths: &mut Widths, width: BitWidth) {
        match self {
            Site::Weight(op) => widths.weights.insert(op, width),
            Site::Output(op) => widths.outputs.insert(op, width),
            Site::Attention(op) => widths.attention.insert(op, width),
        };
    }

    /// The same settings with all sites of this kind at `width`, but for those
    /// that have widths of their own.
    fn with_all(self, settings: &Settings, width: BitWidth) -> Settings {
        let mut settings = settings.clone();
        match self {
            Site::Weight(_) => settings.weight_bits = width,
            Site::Output(_) => settings.act_bits = width,
            Site::Attention(_) => settings.softmax.bits = Some(width),
        }
        settings
    }

    /// The index of its operation.
    pub fn op(self) -> usize {
        match self {
            Site::Weight(op) | Site::Output(op) | Site::Attention(op) => op,
        }
    }

    /// The place of its kind among planned networks.
    fn kind(self) -> usize {
        match self {
            Site::Weight(_) => 0,
            Site::Output(_) => 1,
            Site::Attention(_) => 2,
        }
    }
}

/// Operations whose costs depend on common sites.
struct Unit {
    ops: Vec<usize>,
    /// Indices of sites.
    sites: Vec<usize>,
}

/// What is to be decided.
struct Problem<'a> {
    program: &'a Program,
    settings: &'a Settings,
    budget: Budget,
    sites: Vec<Site>,
    /// By site, ascending; the last is the present width.
    widths: Vec<Vec<BitWidth>>,
    units: Vec<Unit>,
}

impl<'a> Problem<'a> {
    fn new(program: &'a Program, settings: &'a Settings, budget: Budget) -> Self {
        let mut problem = Problem {
            program,
            settings,
            budget,
            sites: Vec::new(),
            widths: Vec::new(),
            units: Vec::new(),
        };
        for op in 0..program.ops.len() {
            let sites = budget.sites(program, op);
            if sites.is_empty() {
                continue;
            }
            let sites: Vec<usize> = sites.into_iter().map(|s| problem.number(s)).collect();
            let meets = |unit: &&mut Unit| unit.sites.iter().any(|s| sites.contains(s));
            match problem.units.iter_mut().find(meets) {
                Some(unit) => {
                    unit.ops.push(op);
                    unit.sites.extend(sites);
                    unit.sites.sort_unstable();
                    unit.sites.dedup();
                }
                None => problem.units.push(Unit {
                    ops: vec![op],
                    sites,
                }),
            }
        }
        problem
    }

    /// The index of a site, which is entered if it is new.
    fn number(&mut self, site: Site) -> usize {
        let known = self.sites.iter().position(|s| *s == site);
        known.unwrap_or_else(|| {
            let present = site.width(self.program, self.settings);
            // What was given for this site or for both ends of the network stays.
            let given = |width: BitWidth| {
                let settings = site.with_all(self.settings, width.min(present));
                site.width(self.program, &settings)
            };
            let mut widths: Vec<BitWidth> = WIDTHS.into_iter().map(given).collect();
            widths.dedup();
            self.sites.push(site);
            self.widths.push(widths);
            self.sites.len() - 1
        })
    }

    /// The settings with the given width at each site.
    fn with_widths(&self, chosen: &[BitWidth]) -> Settings {
        let mut settings = self.settings.clone();
        for (site, width) in self.sites.iter().zip(chosen) {
            site.set(&mut settings.widths, *width);
        }
        settings
    }

    /// The widths nearest to `width` everywhere, not above it where there is one.
    fn uniform(&self, width: BitWidth) -> Vec<BitWidth> {
        let nearest = |widths: &Vec<BitWidth>| {
            let fits = widths.iter().rev().find(|w| **w <= width);
            *fits.unwrap_or(&widths[0])
        };
        self.widths.iter().map(nearest).collect()
    }

    fn cost(&self, chosen: &[BitWidth]) -> u64 {
        let settings = self.with_widths(chosen);
        self.budget.cost(self.program, &settings)
    }

    /// Every combination of widths of a unit's sites.
    fn combinations(&self, unit: &Unit) -> Vec<Vec<BitWidth>> {
        let mut all = vec![Vec::new()];
        for &site in &unit.sites {
            let longer = |begun: &Vec<BitWidth>| {
                let begun = begun.clone();
                let widths = self.widths[site].iter();
                widths.map(move |w| begun.iter().copied().chain([*w]).collect::<Vec<_>>())
            };
            all = all.iter().flat_map(longer).collect();
        }
        all
    }

    /// The best widths by `added`, which has a distance for each width of each site.
    fn solve(&self, added: &[Vec<f64>]) -> Vec<BitWidth> {
        let combinations: Vec<_> = self.units.iter().map(|u| self.combinations(u)).collect();
        let item = |unit: &Unit, widths: &Vec<BitWidth>| {
            let mut settings = self.settings.clone();
            let mut loss = 0.0;
            for (&site, width) in unit.sites.iter().zip(widths) {
                self.sites[site].set(&mut settings.widths, *width);
                let place = self.widths[site].iter().position(|w| w == width);
                loss += added[site][place.expect("a width of the site")];
            }
            let cost = |op: &usize| self.budget.op_cost(self.program, &settings, *op);
            Item {
                cost: unit.ops.iter().map(cost).sum(),
                loss,
            }
        };
        let items: Vec<Vec<Item>> = self
            .units
            .iter()
            .zip(&combinations)
            .map(|(unit, all)| all.iter().map(|widths| item(unit, widths)).collect())
            .collect();
        let limit = self.budget.limit(self.program);
        let best = knapsack::solve(&items, limit).expect("the narrowest fits");
        let mut chosen = self.uniform(BitWidth::B8);
        for ((unit, all), best) in self.units.iter().zip(&combinations).zip(best) {
            for (&site, width) in unit.sites.iter().zip(&all[best]) {
                chosen[site] = *width;
            }
        }
        chosen
    }
}

/// Chooses the widths of all sites that `settings` leave open: none wider than
/// they say, and together within `budget`.
///
/// `weights` and `picture(i)`, one of `count`, are those that `quantize` takes.
/// `progress` is told what comes; the first [`AllocateStage::Measuring`] says how
/// much there is to measure. The result does not depend on the number of threads.
///
/// # Errors
/// If the budget is below what the narrowest widths take; nothing is run then.
///
/// # Panics
/// If there is no picture, or one is missing or of the wrong size.
#[expect(clippy::too_many_arguments, reason = "those of the whole pipeline")]
pub fn allocate(
    program: &Program,
    weights: &Weights,
    picture: &(dyn Fn(usize) -> Option<Vec<f32>> + Sync),
    count: usize,
    observed: &ObserveSettings,
    settings: &Settings,
    budget: Budget,
    progress: &mut dyn FnMut(AllocateStage),
) -> Result<Allocation, AllocateError> {
    let problem = Problem::new(program, settings, budget);
    let limit = budget.limit(program);
    let least = problem.cost(&problem.uniform(BitWidth::B3));
    if limit < least {
        return Err(budget.too_small(program, least));
    }
    let (judges, teachers) = split(count);
    let source = |i: usize| picture(*teachers.get(i)?);
    let observations = observe(program, weights, &source, observed, &mut |done| {
        progress(AllocateStage::Observing(done));
    });
    let load = |&i: &usize| picture(i).expect("a picture that was there before");
    let images: Vec<Vec<f32>> = judges.par_iter().map(load).collect();

    progress(AllocateStage::Planning);
    let networks = Networks {
        problem: &problem,
        weights,
        observations: &observations,
    };
    let narrowed = networks.narrowed();

    let mut meter = Meter::new(&problem, images.len(), progress);
    let judge = Judge::new(program, (program, weights), images);
    meter.advance(judge.images.len() * PARTS);
    let judges = Judges { networks, judge };
    let added = judges.sensitivities(&narrowed, &mut meter);
    let mut chosen = problem.solve(&added);
    let mixed = judges.mean_distance(&chosen, &mut meter);
    let fits = |width: &BitWidth| problem.cost(&problem.uniform(*width)) <= limit;
    let uniform = WIDTHS.into_iter().rev().find(fits).map(|width| {
        let distance = judges.mean_distance(&problem.uniform(width), &mut meter);
        (width, distance)
    });
    if let Some((width, _)) = uniform.filter(|(_, distance)| *distance <= mixed) {
        chosen = problem.uniform(width);
    }
    let describe = |(index, added): (usize, Vec<f64>)| Sensitivity {
        site: problem.sites[index],
        added: problem.widths[index].iter().copied().zip(added).collect(),
        chosen: chosen[index],
    };
    Ok(Allocation {
        widths: problem.with_widths(&chosen).widths,
        sites: added.into_iter().enumerate().map(describe).collect(),
        cost: problem.cost(&chosen),
        limit,
        mixed,
        uniform,
    })
}

/// A network planned with all sites of a kind at one width. Only codes and
/// small tensors are kept.
struct Planned {
    plan: QuantPlan,
    /// Biases, gains and the like; weights are empty.
    floats: Weights,
}

/// The present network, and those with one kind of site narrowed.
struct Narrowed {
    present: Planned,
    /// By kind of site, then by width.
    others: [Vec<(BitWidth, Planned)>; 3],
}

/// What changes from the present network when one site is narrowed.
struct Change {
    tensors: Vec<(TensorId, Vec<f32>)>,
    quantization: Quantization,
}

/// Progress is counted in so many parts of a picture's work.
const PARTS: usize = 1 << 10;

/// How far the measuring is.
struct Meter<'a> {
    report: &'a mut dyn FnMut(AllocateStage),
    done: usize,
    total: usize,
}

impl<'a> Meter<'a> {
    /// For the float, the present, the mixed and the uniform network, and for
    /// those narrowed at one site.
    fn new(
        problem: &Problem<'_>,
        pictures: usize,
        report: &'a mut dyn FnMut(AllocateStage),
    ) -> Self {
        let networks = problem.sites.iter().zip(&problem.widths);
        let narrowed: usize = networks
            .map(|(site, widths)| (widths.len() - 1) * parts_from(problem.program, site.op()))
            .sum();
        let mut meter = Meter {
            report,
            done: 0,
            total: pictures * (4 * PARTS + narrowed),
        };
        meter.advance(0);
        meter
    }

    fn advance(&mut self, parts: usize) {
        self.done += parts;
        let (done, total) = (self.done / PARTS, self.total.div_ceil(PARTS));
        (self.report)(AllocateStage::Measuring(done, total));
    }
}

/// The share of a picture's work in the operations from `first` on.
fn parts_from(program: &Program, first: usize) -> usize {
    let macs = |ops: &[Op]| ops.iter().map(|op| program.op_macs(op)).sum::<u64>();
    let share = macs(&program.ops[first..]) as f64 / macs(&program.ops) as f64;
    (share * PARTS as f64) as usize
}

/// Makes networks of other widths.
struct Networks<'a> {
    problem: &'a Problem<'a>,
    weights: &'a Weights,
    observations: &'a Observations,
}

impl Networks<'_> {
    fn plan(&self, settings: &Settings) -> Planned {
        let program = self.problem.program;
        let mut floats = self.weights.clone();
        let plan = plan(program, &mut floats, self.observations, settings);
        for (values, info) in floats.tensors.iter_mut().zip(&program.tensors) {
            match info.role {
                TensorRole::Weight => *values = Vec::new(),
                TensorRole::Float => {}
            }
        }
        Planned { plan, floats }
    }

    /// Plans with each kind of site at each width that one of them may get.
    fn narrowed(&self) -> Narrowed {
        let problem = self.problem;
        let mut others: [Vec<(BitWidth, Planned)>; 3] = [const { Vec::new() }; 3];
        for (site, widths) in problem.sites.iter().zip(&problem.widths) {
            for &width in &widths[..widths.len() - 1] {
                let known = &mut others[site.kind()];
                if !known.iter().any(|(w, _)| *w == width) {
                    let settings = site.with_all(problem.settings, width);
                    known.push((width, self.plan(&settings)));
                }
            }
        }
        Narrowed {
            present: self.plan(problem.settings),
            others,
        }
    }
}

impl Narrowed {
    /// What another width of one site changes.
    fn change(&self, program: &Program, site: Site, width: BitWidth) -> Change {
        let mut others = self.others[site.kind()].iter();
        let planned = others.find(|(w, _)| *w == width);
        let (_, planned) = planned.expect("every width was planned");
        let mut quantization = self.present.plan.quantization.clone();
        match site {
            Site::Weight(_) => {}
            Site::Output(op) => {
                let id = program.ops[op].output().index();
                let theirs = &planned.plan.quantization.activations[id];
                quantization.activations[id].clone_from(theirs);
            }
            Site::Attention(op) => {
                let theirs = &planned.plan.quantization.softmax[op];
                quantization.softmax[op].clone_from(theirs);
            }
        }
        let value = |id: TensorId| {
            let reads = |op: &&Op| op.weight() == Some(id);
            match program.ops.iter().find(reads) {
                Some(op) => (id, fake_weight(op, &planned.plan)),
                None => (id, planned.floats.tensors[id.index()].clone()),
            }
        };
        Change {
            tensors: touched(program, site).into_iter().map(value).collect(),
            quantization,
        }
    }
}

/// The held-back pictures, and what the float network makes of them.
struct Judges<'a> {
    networks: Networks<'a>,
    judge: Judge<'a>,
}

impl Judges<'_> {
    /// Mean distance from float with these widths.
    fn mean_distance(&self, chosen: &[BitWidth], meter: &mut Meter<'_>) -> f64 {
        let problem = self.networks.problem;
        let program = problem.program;
        let mut weights = self.networks.weights.clone();
        let settings = problem.with_widths(chosen);
        let plan = plan(program, &mut weights, self.networks.observations, &settings);
        let distance = self.judge.distance(&weights, &plan);
        meter.advance(PARTS * self.judge.images.len());
        distance
    }

    /// By site and width, what it adds to the mean distance: the wider the less, and
    /// the present width nothing.
    fn sensitivities(&self, narrowed: &Narrowed, meter: &mut Meter<'_>) -> Vec<Vec<f64>> {
        let problem = self.networks.problem;
        let program = problem.program;
        let Planned { plan, floats } = &narrowed.present;
        let weights = fake_weights(program, floats, plan); // replaces every weight
        let mut order: Vec<usize> = (0..problem.sites.len()).collect();
        order.sort_by_key(|&site| std::cmp::Reverse(problem.sites[site].op()));
        let mut sums: Vec<Vec<f64>> = problem.widths.iter().map(|w| vec![0.0; w.len()]).collect();
        let wave = WAVE_PER_THREAD * rayon::current_num_threads();
        let Judge {
            images, results, ..
        } = &self.judge;
        for (images, float) in images.chunks(wave).zip(results.chunks(wave)) {
            let mut wave = Wave::start(program, images, float, &weights, &plan.quantization);
            meter.advance(PARTS * images.len());
            for &index in &order {
                let site = problem.sites[index];
                let (_present, narrower) = problem.widths[index].split_last().expect("a width");
                for (&width, sum) in narrower.iter().zip(&mut sums[index]) {
                    let change = narrowed.change(program, site, width);
                    for added in wave.added(site.op(), change) {
                        *sum += added;
                    }
                    meter.advance(parts_from(program, site.op()) * images.len());
                }
            }
        }
        for sums in &mut sums {
            // What chance put out of order: no width adds more than a narrower one.
            let mut least = 0.0f64;
            for sum in sums.iter_mut().rev() {
                least = least.max(*sum / self.judge.images.len() as f64);
                *sum = least;
            }
        }
        sums
    }
}

/// All buffers of an executor.
type Buffers = Vec<Vec<f32>>;

/// A few pictures, each with all the buffers of a run of the present network.
///
/// A narrowed network is the present one up to its site, so only the rest is run.
/// Going from the last site to the first, each finds the buffers before it as the
/// present network left them.
struct Wave<'a> {
    program: &'a Program,
    images: &'a [Vec<f32>],
    float: &'a [Vec<f32>],
    /// Of the present network.
    weights: &'a Weights,
    /// The same but for one site.
    changed: Weights,
    buffers: Vec<Buffers>,
    /// [`result_distance`] of each picture.
    present: Vec<f64>,
}

impl<'a> Wave<'a> {
    fn start(
        program: &'a Program,
        images: &'a [Vec<f32>],
        float: &'a [Vec<f32>],
        weights: &'a Weights,
        quantization: &Quantization,
    ) -> Self {
        let run = |(image, float): (&Vec<f32>, &Vec<f32>)| {
            let mut executor = Executor::new(program, weights);
            let result = executor.run(image, &mut FakeQuant::new(program, quantization));
            let distance = result_distance(program, float, result);
            (distance, executor.into_buffers())
        };
        let (present, buffers) = images.par_iter().zip(float).map(run).unzip();
        Wave {
            program,
            images,
            float,
            weights,
            changed: weights.clone(),
            buffers,
            present,
        }
    }

    /// What a change from operation `first` on adds to the distance of each picture.
    fn added(&mut self, first: usize, change: Change) -> Vec<f64> {
        let changed: Vec<TensorId> = change.tensors.iter().map(|(id, _)| *id).collect();
        for (id, values) in change.tensors {
            self.changed.tensors[id.index()] = values;
        }
        let (program, weights) = (self.program, &self.changed);
        let run = |((image, float), buffers): ((&Vec<f32>, &Vec<f32>), &mut Buffers)| {
            let before = std::mem::take(buffers);
            let mut executor = Executor::with_buffers(program, weights, before);
            let mut hook = FakeQuant::new(program, &change.quantization);
            let result = executor.resume(first, image, &mut hook);
            let distance = result_distance(program, float, result);
            *buffers = executor.into_buffers();
            distance
        };
        let pictures = self.images.par_iter().zip(self.float);
        let found: Vec<f64> = pictures.zip(&mut self.buffers).map(run).collect();
        for id in changed {
            let present = &self.weights.tensors[id.index()];
            self.changed.tensors[id.index()].clone_from(present);
        }
        let pairs = found.iter().zip(&self.present);
        pairs.map(|(found, present)| found - present).collect()
    }
}

/// The tensors that depend on the width of a site: a layer's weight, with a bias
/// that may correct it; with an output, what its scales are folded into.
fn touched(program: &Program, site: Site) -> Vec<TensorId> {
    let layer = |op: &Op| match *op {
        Op::PatchEmbed { weight, bias, .. } | Op::Linear { weight, bias, .. } => vec![weight, bias],
        Op::LayerNorm { .. }
        | Op::Attention { .. }
        | Op::HeadNorm { .. }
        | Op::Gate { .. }
        | Op::SelectToken { .. }
        | Op::Pool { .. }
        | Op::PatchMerge { .. } => Vec::new(),
    };
    match site {
        Site::Weight(op) => layer(&program.ops[op]),
        Site::Output(op) => {
            let output = program.ops[op].output();
            let mut ids = match program.ops[op] {
                Op::LayerNorm { gamma, beta, .. } => vec![gamma, beta],
                Op::PatchEmbed { .. }
                | Op::Linear { .. }
                | Op::Attention { .. }
                | Op::HeadNorm { .. }
                | Op::Gate { .. }
                | Op::SelectToken { .. }
                | Op::Pool { .. }
                | Op::PatchMerge { .. } => Vec::new(),
            };
            let readers = program.ops.iter();
            let readers = readers.filter(|op| op.inputs()[0] == Some(output));
            ids.extend(readers.flat_map(layer));
            ids
        }
        Site::Attention(_) => Vec::new(),
    }
}
