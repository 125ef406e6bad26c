//! `tpvit demo`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use tpvit_models::{BitWidth, Model, Preprocess};
use tpvit_quantizer::calibration::{ObserveSettings, Settings};
use tpvit_quantizer::checkpoint::Loaded;
use tpvit_quantizer::dataset::{Pictures, read_class_names};
use tpvit_quantizer::pictures::{self, Pixels};
use tpvit_quantizer::pipeline::Job;
use tpvit_quantizer::preprocessing::{PreprocessArgs, describe};
use tpvit_quantizer::reference::Executor;
use tpvit_runtime::{MemoryPlan, Session};

use super::RuntimeArgs;
use super::measure::{Latencies, peak_rss_bytes};
use super::model_file::{load_float, need_classifier, preprocess_of};
use super::output::{Table, bytes, print, progress};
use super::quantize::{quantize_watched, source};
use super::reconstruct::Watch;
use super::run::{Answer, best};

/// Runs of one picture behind each latency.
const RUNS: usize = 30;

/// Arguments of `tpvit demo`.
#[derive(Args)]
pub(crate) struct DemoArgs {
    /// Folder with the model and photographs [default: models/zoo of the source tree]
    #[arg(long, value_name = "DIR")]
    zoo: Option<PathBuf>,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

pub(crate) fn execute(args: &DemoArgs) -> Result<()> {
    let zoo = match &args.zoo {
        Some(zoo) => zoo.clone(),
        None => find_zoo()?,
    };
    let path = zoo.join("vit_ti14_cifar10.onnx");
    print(&format!("reading      {}\n", path.display()))?;
    let mut imported = load_float(&path, None, true)?;
    need_classifier(&imported.program, &path)?;
    let image = imported.program.image;
    let preprocess = preprocess_of(&path, &PreprocessArgs::default(), image)?;
    imported
        .weights
        .fold_preprocessing(&imported.program, preprocess.mean, preprocess.std);
    let labels = read_class_names(
        &zoo.join("vit_ti14_cifar10.labels.txt"),
        Some(imported.program.classes()),
    )?;
    let photos = Pictures::calibration(&zoo.join("photos"))?;
    let crops = crops(&photos.paths, &preprocess, image)?;
    print(&format!(
        "model        {:.1} MMAC, {} x {} pixels, {} classes; import equals a run of the original graph\n\
         pictures     {}\n\
         calibration  {} crops of {} photographs\n\n",
        imported.program.macs() as f64 / 1e6,
        image[0],
        image[1],
        labels.len(),
        describe(&preprocess, image),
        crops.len(),
        photos.paths.len(),
    ))?;
    let demo = Demo {
        imported,
        preprocess,
        labels,
        crops,
        source: source(&path)?,
    };
    let columns = [
        demo.float(&photos.paths)?,
        demo.integer(BitWidth::B8, &photos.paths, &args.runtime)?,
        demo.integer(BitWidth::B4, &photos.paths, &args.runtime)?,
    ];
    print(&tables(&photos.paths, &columns))
}

/// The folder that ships, seen from where one usually is.
fn find_zoo() -> Result<PathBuf> {
    let beside = PathBuf::from("models/zoo");
    let built_from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/zoo");
    [beside, built_from]
        .into_iter()
        .find(|zoo| zoo.is_dir())
        .context(
            "there is no folder models/zoo here: run from the source tree, or name it with --zoo",
        )
}

/// Overlapping squares of every photograph, large and small, as calibration
/// pictures.
fn crops(paths: &[PathBuf], preprocess: &Preprocess, image: [usize; 2]) -> Result<Vec<Pixels>> {
    let mut crops = Vec::new();
    for path in paths {
        let photo = pictures::decode(path)?;
        let short = photo.height.min(photo.width);
        for parts in [1, 2, 3] {
            // Squares of a side of 1, 2/3, 1/2 of the shorter one; `parts` along each axis.
            let side = 2 * short / (parts + 1);
            for y in 0..parts {
                for x in 0..parts {
                    let at = |extent: usize, i: usize| (extent - side) * i / (parts - 1).max(1);
                    let crop = cut(&photo, at(photo.height, y), at(photo.width, x), side);
                    crops.push(
                        pictures::prepare(&crop, preprocess, image).map_err(|problem| {
                            anyhow::anyhow!("a crop of {}: {problem}", path.display())
                        })?,
                    );
                }
            }
        }
    }
    Ok(crops)
}

/// A square of `side` pixels.
fn cut(photo: &Pixels, top: usize, left: usize, side: usize) -> Pixels {
    let row = |y: usize| {
        let start = ((top + y) * photo.width + left) * 3;
        &photo.data[start..start + side * 3]
    };
    Pixels {
        height: side,
        width: side,
        data: (0..side).flat_map(row).copied().collect(),
    }
}

/// What one executor says of the photographs, and what it costs.
struct Column {
    name: String,
    answers: Vec<Answer>,
    file: String,
    latency: String,
    memory: String,
}

struct Demo {
    imported: Loaded,
    preprocess: Preprocess,
    labels: Vec<String>,
    crops: Vec<Pixels>,
    source: serde_json::Value,
}

impl Demo {
    fn load(&self, path: &Path) -> Result<Pixels> {
        Ok(pictures::load(
            path,
            &self.preprocess,
            self.imported.program.image,
        )?)
    }

    fn float(&self, photos: &[PathBuf]) -> Result<Column> {
        let Loaded {
            program, weights, ..
        } = &self.imported;
        let mut executor = Executor::new(program, weights);
        let mut latencies = Latencies::default();
        let mut answers = Vec::new();
        for path in photos {
            let pixels = self.load(path)?;
            let image = pixels.to_f32();
            let logits = executor.run(&image, &mut ()).to_vec();
            answers.extend(best(&logits, &self.labels, 1));
            for _ in 0..RUNS.div_ceil(photos.len()) {
                latencies.time(|| executor.run(&image, &mut ()).len());
            }
        }
        let parameters: usize = weights.tensors.iter().map(Vec::len).sum();
        Ok(Column {
            name: "float".into(),
            answers,
            file: bytes(4 * parameters),
            latency: format!("{:.2} ms", latencies.median()),
            memory: "-".into(),
        })
    }

    fn integer(&self, bits: BitWidth, photos: &[PathBuf], runtime: &RuntimeArgs) -> Result<Column> {
        let job = Job {
            settings: Settings::new(bits, bits),
            observe: ObserveSettings::default(),
            compensation: None,
            reconstruction: None,
            scratch: None,
            teacher: None,
            preprocess: self.preprocess,
            labels: self.labels.clone(),
            source: self.source.clone(),
        };
        let picture = |i: usize| self.crops.get(i).map(Pixels::to_f32);
        let watch = Watch::new(progress(self.crops.len(), "calibrating"), None);
        let made = quantize_watched(&self.imported, &picture, &job, None, watch)?;
        let model = Model::parse(&made.bytes)?;
        let options = runtime.options(1);
        let plan = MemoryPlan::new(&model, &options)?;
        let mut session = Session::new(&model, &options)?;
        let mut latencies = Latencies::default();
        let mut answers = Vec::new();
        for path in photos {
            let pixels = self.load(path)?;
            answers.extend(best(session.run(&pixels.data)?, &self.labels, 1));
            for _ in 0..RUNS.div_ceil(photos.len()) {
                latencies.time(|| session.run(&pixels.data).map(<[f32]>::len))?;
            }
        }
        Ok(Column {
            name: format!("W{0}A{0} ({1})", bits.bits(), session.isa().name()),
            answers,
            file: bytes(made.bytes.len()),
            latency: format!("{:.2} ms", latencies.median()),
            memory: bytes(plan.total_bytes()),
        })
    }
}

fn tables(photos: &[PathBuf], columns: &[Column; 3]) -> String {
    let [float, eight, four] = columns;
    let mut answers = Table::new(["photograph", &float.name, &eight.name, &four.name]);
    for (i, path) in photos.iter().enumerate() {
        let answer = |c: &Column| {
            let a = &c.answers[i];
            format!("{} {:.0} %", a.label, a.probability * 100.0)
        };
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        answers.row([name, answer(float), answer(eight), answer(four)]);
    }
    let mut costs = Table::new(["", &float.name, &eight.name, &four.name]);
    let mut row = |name: &str, of: fn(&Column) -> &String| {
        costs.row([
            name.into(),
            of(float).clone(),
            of(eight).clone(),
            of(four).clone(),
        ]);
    };
    row("parameters / file", |c| &c.file);
    row("one picture, one thread (median)", |c| &c.latency);
    row("weights, constants and arena", |c| &c.memory);
    format!(
        "{}\n{}\n\
         The model knows ten classes (CIFAR-10); a cup or a temple is none of them, and every answer to\n\
         those is a guess. Six photographs prove no accuracy: `tpvit eval` does.\n\
         Peak memory of this process, quantizer included: {}.\n",
        answers.render(),
        costs.render(),
        bytes(peak_rss_bytes()),
    )
}
