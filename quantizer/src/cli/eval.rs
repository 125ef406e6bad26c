//! `tpvit eval`.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use tpvit_models::{Model, Preprocess};
#[cfg(feature = "onnx")]
use tpvit_quantizer::checkpoint::Loaded;
use tpvit_quantizer::dataset::Dataset;
use tpvit_quantizer::pictures;
use tpvit_quantizer::preprocessing::{Overrides, PreprocessArgs};
#[cfg(feature = "onnx")]
use tpvit_quantizer::reference::Executor;
use tpvit_runtime::{Options, Session};

use super::model_file::{Kind, WholeTpvFile, kind, need_classifier};
#[cfg(feature = "onnx")]
use super::model_file::{load_float, preprocess_of};
#[cfg(feature = "progress")]
use super::output::progress;
use super::output::{print, print_json};
use super::{RuntimeArgs, parse_threads};

/// Arguments of `tpvit eval`.
#[derive(Args)]
pub(crate) struct EvalArgs {
    /// The model: .tpv (run in integers), .onnx or .safetensors (run in f32)
    model: PathBuf,
    /// The config of a .safetensors model [default: config.json beside it]
    #[arg(long, value_name = "FILE.json")]
    config: Option<PathBuf>,
    /// Labelled pictures: a folder with labels.csv (columns file, label), or with a folder per
    /// class in class order
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Stop after this many pictures
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Pictures evaluated at a time, one thread each [default: the number of CPUs]
    #[arg(long, value_parser = parse_threads, value_name = "N")]
    threads: Option<usize>,
    #[command(flatten)]
    runtime: RuntimeArgs,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    /// Print JSON: images, top1, top5 (percent), images_per_second
    #[arg(long)]
    json: bool,
}

/// What an evaluation found.
pub(crate) struct Score {
    pub(crate) images: usize,
    pub(crate) top1: f64,
    pub(crate) top5: f64,
    pub(crate) images_per_second: f64,
}

pub(crate) fn execute(args: &EvalArgs) -> Result<()> {
    let mut dataset = Dataset::open(&args.data)?;
    if let Some(limit) = args.limit {
        dataset.paths.truncate(limit);
        dataset.labels.truncate(limit);
    }
    let threads = args.threads.unwrap_or_else(default_threads);
    let score = match kind(&args.model)? {
        Kind::Tpv => {
            anyhow::ensure!(
                args.preprocess.preprocess.is_none()
                    && args.preprocess.overrides == Overrides::default(),
                "{} says its own preprocessing; drop the flags",
                args.model.display()
            );
            let file = WholeTpvFile::open(&args.model)?;
            let model = file.model()?;
            need_classifier(model.program(), &args.model)?;
            eval_tpv(&model, &dataset, threads, &args.runtime.options(1))?
        }
        Kind::Onnx | Kind::Safetensors => eval_trained(args, &dataset, threads)?,
    };
    report(&score, args.json)
}

pub(crate) fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn report(score: &Score, as_json: bool) -> Result<()> {
    let round = |x: f64| (x * 1000.0).round() / 1000.0;
    if as_json {
        return print_json(&json!({
            "images": score.images,
            "top1": round(score.top1),
            "top5": round(score.top5),
            "images_per_second": round(score.images_per_second),
        }));
    }
    print(&format!(
        "{} pictures: top-1 {:.1} %, top-5 {:.1} %, {:.1} pictures/s\n",
        score.images, score.top1, score.top5, score.images_per_second
    ))
}

/// In integers; each worker has a session of its own, with `options`.
pub(crate) fn eval_tpv(
    model: &Model<'_>,
    dataset: &Dataset,
    threads: usize,
    options: &Options,
) -> Result<Score> {
    dataset.check_classes(model.program().classes())?;
    score(
        dataset,
        model.preprocess(),
        model.program().image,
        threads,
        || {
            let mut session = Session::new(model, options)?;
            Ok(move |pixels: &[u8]| Ok(session.run(pixels)?.to_vec()))
        },
    )
}

/// A trained model in f32.
#[cfg(feature = "onnx")]
fn eval_trained(args: &EvalArgs, dataset: &Dataset, threads: usize) -> Result<Score> {
    let mut imported = load_float(&args.model, args.config.as_deref(), true)?;
    need_classifier(&imported.program, &args.model)?;
    let preprocess = preprocess_of(&args.model, &args.preprocess, imported.program.image)?;
    imported.fold_preprocessing(preprocess.mean, preprocess.std);
    eval_float(&imported, &preprocess, dataset, threads)
}

/// In f32, by our executor; `imported` has the preprocessing folded in.
#[cfg(feature = "onnx")]
pub(crate) fn eval_float(
    imported: &Loaded,
    preprocess: &Preprocess,
    dataset: &Dataset,
    threads: usize,
) -> Result<Score> {
    let (program, weights) = (&imported.program, &imported.weights);
    dataset.check_classes(program.classes())?;
    score(dataset, preprocess, program.image, threads, || {
        let mut executor = Executor::new(program, weights);
        Ok(move |pixels: &[u8]| {
            let image: Vec<f32> = pixels.iter().map(|&p| f32::from(p)).collect();
            Ok(executor.run(&image, &mut ()).to_vec())
        })
    })
}

#[cfg(not(feature = "onnx"))]
fn eval_trained(args: &EvalArgs, _: &Dataset, _: usize) -> Result<Score> {
    anyhow::bail!(
        "{} is not a .tpv file, and this build reads no ONNX",
        args.model.display()
    )
}

/// Classifies every picture on `threads` workers, each with what `make` gives.
fn score<F: FnMut(&[u8]) -> Result<Vec<f32>>>(
    dataset: &Dataset,
    preprocess: &Preprocess,
    image: [usize; 2],
    threads: usize,
    make: impl Fn() -> Result<F> + Sync,
) -> Result<Score> {
    let images = dataset.paths.len();
    anyhow::ensure!(images > 0, "no pictures to evaluate");
    #[cfg(feature = "progress")]
    let bar = progress(images, "evaluating");
    let start = Instant::now();
    let next = AtomicUsize::new(0);
    let hits = Mutex::new((0_usize, 0_usize));
    let work = || -> Result<()> {
        let mut classify = make()?;
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(path) = dataset.paths.get(at) else {
                return Ok(());
            };
            let pixels = pictures::load(path, preprocess, image)?;
            let rank = rank(&classify(&pixels.data)?, dataset.labels[at]);
            let mut hits = hits.lock().expect("no worker panics while counting");
            hits.0 += usize::from(rank < 1);
            hits.1 += usize::from(rank < 5);
            #[cfg(feature = "progress")]
            bar.inc(1);
        }
    };
    let outcome = run_workers(threads.min(images), &work);
    #[cfg(feature = "progress")]
    bar.finish_and_clear();
    outcome.context("evaluation stopped")?;
    let (top1, top5) = *hits.lock().expect("all workers are done");
    Ok(Score {
        images,
        top1: 100.0 * top1 as f64 / images as f64,
        top5: 100.0 * top5 as f64 / images as f64,
        images_per_second: images as f64 / start.elapsed().as_secs_f64(),
    })
}

fn run_workers(threads: usize, work: &(impl Fn() -> Result<()> + Sync)) -> Result<()> {
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let join = |w: std::thread::ScopedJoinHandle<'_, Result<()>>| {
            w.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        workers.into_iter().try_for_each(join)
    })
}

/// How many classes come before `label`; the lower class wins a tie.
fn rank(logits: &[f32], label: usize) -> usize {
    let own = logits[label];
    logits
        .iter()
        .enumerate()
        .filter(|&(c, &x)| x > own || (x == own && c < label))
        .count()
}

#[cfg(test)]
mod tests {
    use super::rank;

    #[test]
    fn ties_go_to_the_lower_class() {
        let logits = [1.0, 3.0, 3.0, 2.0];
        assert_eq!([0, 1, 2, 3].map(|l| rank(&logits, l)), [3, 0, 1, 2]);
    }
}
