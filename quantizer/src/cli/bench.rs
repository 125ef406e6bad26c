//! `tpvit bench`.
//!
//! A latency says how long a picture takes; the share of the machine's peak says
//! how much of the wait is the machine's fault:
//!
//! ```text
//! share = (multiply-accumulates / seconds) / (threads * peak of one core)
//! ```
//!
//! The peak is measured in the same process, right before and right after the
//! runs, since no data sheet knows the clock of this minute.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use tpvit_models::{BitWidth, BufferId, ModelInfo, Op};
use tpvit_runtime::{Kernels, Observer, PeakRun, Session, View};

use super::measure::{Latencies, peak_rss_bytes};
use super::model_file::{Kind, TpvFile, kind};
use super::output::{Table, bytes, print, print_json};
use super::{RuntimeArgs, parse_threads};

/// Arguments of `tpvit bench`.
#[derive(Args)]
pub(crate) struct BenchArgs {
    /// The model: .tpv, or .onnx to time tract's f32 run of it (one thread)
    model: PathBuf,
    /// Threads of one run
    #[arg(long, default_value = "1", value_parser = parse_threads, value_name = "N")]
    threads: usize,
    /// Timed runs
    #[arg(long, default_value_t = 50, value_name = "N")]
    runs: usize,
    /// Runs before timing starts
    #[arg(long, default_value_t = 5, value_name = "N")]
    warmup: usize,
    /// Also time tract's f32 run of this ONNX model, in turn with ours
    #[arg(long, value_name = "MODEL.onnx")]
    against: Option<PathBuf>,
    #[command(flatten)]
    runtime: RuntimeArgs,
    /// Print JSON: median_ms, min_ms, p90_ms, threads, isa, arena_bytes, peak_rss_bytes, macs,
    /// peak_gmacs, fraction_of_peak, profile
    #[arg(long)]
    json: bool,
}

pub(crate) fn execute(args: &BenchArgs) -> Result<()> {
    anyhow::ensure!(args.runs > 0, "--runs must be at least 1");
    match kind(&args.model)? {
        Kind::Tpv => bench_tpv(args),
        Kind::Onnx => bench_peer(args),
        Kind::Safetensors => anyhow::bail!(
            "{} is safetensors; bench runs .tpv files, and .onnx files in tract",
            args.model.display()
        ),
    }
}

fn bench_tpv(args: &BenchArgs) -> Result<()> {
    let start = Instant::now();
    let (mut session, mut peak) = {
        let file = TpvFile::open(&args.model)?;
        let info = file.info()?;
        let session = file.session(&info, &args.runtime.options(args.threads))?;
        let peak = Peak::of(&session, &info)?;
        (session, peak)
    };
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let pixels = noise(&session);
    let peer = args.against.as_deref().map(Peer::load).transpose()?;
    for _ in 0..args.warmup {
        session.run(&pixels)?;
        peer.as_ref().map(Peer::run).transpose()?;
    }
    peak.measure();
    let (mut ours, mut theirs) = (Latencies::default(), Latencies::default());
    for _ in 0..args.runs {
        ours.time(|| session.run(&pixels).map(drop))?;
        if let Some(peer) = &peer {
            theirs.time(|| peer.run())?;
        }
    }
    peak.measure();
    let rss_bytes = peak_rss_bytes();
    let profile = Profile::of(args, &pixels)?;
    let report = Report {
        args,
        session: &session,
        load_ms,
        ours,
        theirs,
        peak,
        rss_bytes,
        profile,
    };
    match args.json {
        true => print_json(&report.json()),
        false => print(&report.text()),
    }
}

/// Pixels that depend on nothing but the model's size.
fn noise(session: &Session) -> Vec<u8> {
    let [height, width] = session.program().image;
    let mut state = 1_u32;
    (0..height * width * 3)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

/// The rate at which one core multiplies and accumulates when it does nothing else.
struct Peak {
    kernels: &'static Kernels,
    /// The largest activation code of the layer below.
    act_max: u8,
    /// The weights' width in the layer with the most multiply-accumulates.
    weight_bits: BitWidth,
    /// The best rate so far, in 10^9 a second.
    gmacs: f64,
    /// What reached it.
    instructions: &'static str,
}

impl Peak {
    /// Of the operands that most multiply-accumulates of the model have.
    fn of(session: &Session, model: &ModelInfo<'_>) -> Result<Peak> {
        let program = session.program();
        let layers = program.ops.iter().enumerate();
        let linear = layers.filter_map(|(index, op)| match op {
            Op::Linear { input, weight, .. } => Some((session.op_macs(index), *input, *weight)),
            Op::PatchEmbed { .. }
            | Op::LayerNorm { .. }
            | Op::Attention { .. }
            | Op::HeadNorm { .. }
            | Op::Gate { .. }
            | Op::SelectToken { .. }
            | Op::Pool { .. }
            | Op::PatchMerge { .. } => None,
        });
        let (_, input, weight) = linear
            .max_by_key(|&(macs, _, _)| macs)
            .context("the model has no linear layer")?;
        let codes = model.quantization().activations[input.index()]
            .as_ref()
            .context("the input of a linear layer is not coded")?;
        Ok(Peak {
            kernels: Kernels::for_isa(session.isa()).context("the session's ISA is gone")?,
            act_max: codes.grid_bits().max_code(),
            weight_bits: model.weight_bits(weight),
            gmacs: 0.0,
            instructions: "",
        })
    }

    /// Measures for some 20 ms; the best of all measurements stands.
    fn measure(&mut self) {
        let start = Instant::now();
        let mut rounds = 1;
        while start.elapsed() < Duration::from_millis(20) {
            let begin = Instant::now();
            let run = self.kernels.peak(self.act_max, self.weight_bits, rounds);
            let seconds = begin.elapsed().as_secs_f64();
            debug_assert_eq!(run.sum, PeakRun::PRODUCT.wrapping_mul(run.macs as i32));
            self.instructions = run.instructions;
            // Until the clock's own steps no longer matter.
            match seconds < 0.5e-3 {
                true => rounds *= 2,
                false => self.gmacs = self.gmacs.max(run.macs as f64 / (seconds * 1e9)),
            }
        }
    }
}

/// Where the time goes on one thread: the median of each operation.
struct Profile {
    /// Kind, number of operations, milliseconds, multiply-accumulates.
    kinds: Vec<(&'static str, usize, f64, u64)>,
}

struct Clock {
    last: Instant,
    ops: Vec<Latencies>,
}

impl Observer for Clock {
    fn after(&mut self, op: usize, _: BufferId, _: Range<usize>, _: View<'_>) {
        let now = Instant::now();
        self.ops[op].push(now - self.last);
        self.last = now;
    }
}

impl Profile {
    /// Of a session of its own on one thread: there an operation ends before the
    /// next begins, and its rate compares with the peak of one core.
    fn of(args: &BenchArgs, pixels: &[u8]) -> Result<Profile> {
        let mut session = {
            let file = TpvFile::open(&args.model)?;
            file.session(&file.info()?, &args.runtime.options(1))?
        };
        session.run(pixels)?;
        let program = session.program().clone();
        let ops = program.ops.iter().map(|_| Latencies::default()).collect();
        let mut clock = Clock {
            last: Instant::now(),
            ops,
        };
        for _ in 0..args.runs.min(20) {
            clock.last = Instant::now();
            session.run_observed(pixels, &mut clock)?;
        }
        let mut kinds: Vec<(&'static str, usize, f64, u64)> = Vec::new();
        for (index, (op, latencies)) in program.ops.iter().zip(&clock.ops).enumerate() {
            if let Op::PatchMerge { .. } = op {
                continue; // part of the LayerNorm behind it, and not seen
            }
            let at = kinds
                .iter()
                .position(|k| k.0 == op.kind())
                .unwrap_or_else(|| {
                    kinds.push((op.kind(), 0, 0.0, 0));
                    kinds.len() - 1
                });
            kinds[at].1 += 1;
            kinds[at].2 += latencies.median();
            kinds[at].3 += session.op_macs(index);
        }
        kinds.sort_by(|a, b| b.2.total_cmp(&a.2));
        Ok(Profile { kinds })
    }
}

struct Report<'a> {
    args: &'a BenchArgs,
    session: &'a Session<'static>,
    load_ms: f64,
    ours: Latencies,
    theirs: Latencies,
    peak: Peak,
    rss_bytes: usize,
    profile: Profile,
}

impl Report<'_> {
    fn gmacs_per_second(&self) -> f64 {
        self.session.macs() as f64 / (self.ours.median() * 1e6)
    }

    fn fraction_of_peak(&self) -> f64 {
        self.gmacs_per_second() / (self.session.threads() as f64 * self.peak.gmacs)
    }

    fn json(&self) -> serde_json::Value {
        let plan = self.session.memory_plan();
        let mut value = json!({
            "model": self.args.model.display().to_string(),
            "median_ms": self.ours.median(),
            "min_ms": self.ours.min(),
            "p90_ms": self.ours.quantile(0.9),
            "runs": self.ours.len(),
            "threads": self.session.threads(),
            "isa": self.session.isa().name(),
            "load_ms": self.load_ms,
            "arena_bytes": plan.arena_bytes(),
            "weight_bytes": plan.weight_bytes,
            "constant_bytes": plan.constant_bytes,
            "peak_rss_bytes": self.rss_bytes,
            "macs": self.session.program().macs(),
            "executed_macs": self.session.macs(),
            "gmacs_per_second": self.gmacs_per_second(),
            "peak_gmacs": self.peak.gmacs,
            "peak_instructions": self.peak.instructions,
            "fraction_of_peak": self.fraction_of_peak(),
            "profile": self.profile.kinds.iter().map(|&(kind, count, ms, macs)| json!({
                "kind": kind, "count": count, "ms": ms, "macs": macs,
                "fraction_of_peak": macs as f64 / (ms * 1e6) / self.peak.gmacs,
            })).collect::<Vec<_>>(),
        });
        if self.theirs.len() > 0 {
            value["peer"] = json!({
                "name": "tract f32",
                "median_ms": self.theirs.median(),
                "min_ms": self.theirs.min(),
                "p90_ms": self.theirs.quantile(0.9),
                "ratio_of_medians": self.theirs.median() / self.ours.median(),
            });
        }
        value
    }

    fn text(&self) -> String {
        let plan = self.session.memory_plan();
        let mut text = format!(
            "{}: {} thread(s), {}\n\
             latency     median {:.2} ms, min {:.2}, p90 {:.2} ({} runs)\n\
             rate        {:.1} GMAC/s; {:.0} MMAC done of {:.0} (rows nothing reads are left out)\n\
             peak        {:.1} GMAC/s a core measured ({}); this run {:.0} %\n\
             load        {:.1} ms\n\
             memory      arena {}, weights {}, constants {}; process peak {}\n",
            self.args.model.display(),
            self.session.threads(),
            self.session.isa().name(),
            self.ours.median(),
            self.ours.min(),
            self.ours.quantile(0.9),
            self.ours.len(),
            self.gmacs_per_second(),
            self.session.macs() as f64 / 1e6,
            self.session.program().macs() as f64 / 1e6,
            self.peak.gmacs,
            self.peak.instructions,
            100.0 * self.fraction_of_peak(),
            self.load_ms,
            bytes(plan.arena_bytes()),
            bytes(plan.weight_bytes),
            bytes(plan.constant_bytes),
            bytes(self.rss_bytes),
        );
        if self.theirs.len() > 0 {
            text.push_str(&format!(
                "tract f32   median {:.2} ms, min {:.2}, p90 {:.2}: {:.2} times ours\n",
                self.theirs.median(),
                self.theirs.min(),
                self.theirs.quantile(0.9),
                self.theirs.median() / self.ours.median(),
            ));
        }
        text.push_str("\nThe operations of a run on one thread:\n");
        let total: f64 = self.profile.kinds.iter().map(|k| k.2).sum();
        let mut table = Table::new(["operation", "count", "ms", "share", "GMAC/s", "of peak"]);
        for &(kind, count, ms, macs) in &self.profile.kinds {
            let rate = macs as f64 / (ms * 1e6);
            let [rate, of_peak] = match macs {
                0 => ["-", "-"].map(String::from),
                _ => [
                    format!("{rate:.1}"),
                    format!("{:.0} %", 100.0 * rate / self.peak.gmacs),
                ],
            };
            table.row([
                kind.into(),
                count.to_string(),
                format!("{ms:.3}"),
                format!("{:.0} %", 100.0 * ms / total),
                rate,
                of_peak,
            ]);
        }
        text + &table.render()
    }
}

/// tract's f32 run of an ONNX model, on one thread.
#[cfg(feature = "onnx")]
struct Peer(tpvit_quantizer::import::TractModel);

#[cfg(feature = "onnx")]
impl Peer {
    fn load(path: &Path) -> Result<Peer> {
        Ok(Peer(tpvit_quantizer::import::TractModel::load(path)?))
    }

    fn run(&self) -> Result<()> {
        Ok(self.0.run()?)
    }
}

#[cfg(not(feature = "onnx"))]
struct Peer;

#[cfg(not(feature = "onnx"))]
impl Peer {
    fn load(path: &Path) -> Result<Peer> {
        anyhow::bail!("cannot time {}: this build reads no ONNX", path.display())
    }

    fn run(&self) -> Result<()> {
        Ok(())
    }
}

/// Times the peer alone, so that its memory is its own.
fn bench_peer(args: &BenchArgs) -> Result<()> {
    anyhow::ensure!(args.threads == 1, "an ONNX model is timed on one thread");
    let peer = Peer::load(&args.model)?;
    for _ in 0..args.warmup {
        peer.run()?;
    }
    let mut latencies = Latencies::default();
    for _ in 0..args.runs {
        latencies.time(|| peer.run())?;
    }
    if args.json {
        return print_json(&json!({
            "model": args.model.display().to_string(),
            "runtime": "tract f32",
            "median_ms": latencies.median(),
            "min_ms": latencies.min(),
            "p90_ms": latencies.quantile(0.9),
            "threads": 1,
            "peak_rss_bytes": peak_rss_bytes(),
        }));
    }
    print(&format!(
        "{}: tract f32, 1 thread\nlatency     median {:.2} ms, min {:.2}, p90 {:.2} ({} runs)\n\
         memory      process peak {}\n",
        args.model.display(),
        latencies.median(),
        latencies.min(),
        latencies.quantile(0.9),
        latencies.len(),
        bytes(peak_rss_bytes()),
    ))
}
