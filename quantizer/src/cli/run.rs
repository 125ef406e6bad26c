//! `tpvit run`: of a classifier the best labels of each picture, of any other model
//! a summary of its features, which it can write to a file.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use tpvit_models::Program;
use tpvit_quantizer::pictures;
use tpvit_runtime::softmax;

use super::model_file::TpvFile;
use super::output::{WholeFile, print, print_json, tell};
use super::{RuntimeArgs, npy, parse_threads};

/// Arguments of `tpvit run`.
#[derive(Args)]
pub(crate) struct RunArgs {
    /// The model, a .tpv file
    model: PathBuf,
    /// Pictures: JPEG, PNG or WebP
    #[arg(required = true, value_name = "PICTURE")]
    pictures: Vec<PathBuf>,
    /// Labels to show for each picture
    #[arg(long, default_value_t = 5, value_name = "N")]
    top: usize,
    /// Write the features of a model without a classifier to this NumPy file: float32,
    /// [tokens, channels], of several pictures [pictures, tokens, channels]
    #[arg(long, value_name = "FILE.npy")]
    features: Option<PathBuf>,
    /// Threads
    #[arg(long, default_value = "1", value_parser = parse_threads, value_name = "N")]
    threads: usize,
    #[command(flatten)]
    runtime: RuntimeArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One label of one picture.
pub(crate) struct Answer {
    pub(crate) class: usize,
    pub(crate) label: String,
    pub(crate) probability: f32,
}

pub(crate) fn execute(args: &RunArgs) -> Result<()> {
    let file = TpvFile::open(&args.model)?;
    let model = file.info()?;
    let mut features = feature_file(args, model.program())?;
    let mut session = file.session(&model, &args.runtime.options(args.threads))?;
    let mut results = Vec::new();
    let mut failed = 0;
    for path in &args.pictures {
        let pixels = match pictures::load(path, model.preprocess(), model.program().image) {
            Ok(pixels) => pixels,
            Err(error) => {
                tell(error);
                failed += 1;
                continue;
            }
        };
        let start = Instant::now();
        let result = session.run(&pixels.data)?;
        let ms = start.elapsed().as_secs_f64() * 1e3;
        if let Some(features) = &mut features {
            features.write(&npy::values(result))?;
        }
        let told = match model.program().classifies() {
            true => Told::Answers(best(result, model.labels(), args.top)),
            false => Told::Features(Features::of(result, model.program().output_shape())),
        };
        let name = path.display().to_string();
        match args.json {
            true => results.push(told.json(&name, ms)),
            false => print(&told.text(&name, ms))?,
        }
    }
    if args.json {
        print_json(&json!(results))?;
    }
    let all = args.pictures.len();
    anyhow::ensure!(failed == 0, "{failed} of {all} pictures could not be read");
    features.map_or(Ok(()), WholeFile::finish)
}

/// The file of `--features`, without its values. It is put in its place only if all
/// pictures could be read.
fn feature_file<'a>(args: &'a RunArgs, program: &Program) -> Result<Option<WholeFile<'a>>> {
    let Some(path) = &args.features else {
        return Ok(None);
    };
    anyhow::ensure!(
        !program.classifies(),
        "--features: {} is a classifier, its result is labels",
        args.model.display()
    );
    let place = path.canonicalize().ok();
    let same = |other: &PathBuf| place.is_some() && place == other.canonicalize().ok();
    anyhow::ensure!(
        !args.pictures.iter().chain([&args.model]).any(same),
        "cannot write {}: it is an input",
        path.display()
    );
    let [tokens, channels] = program.output_shape();
    let mut file = WholeFile::create(path)?;
    file.write(&match args.pictures.len() {
        1 => npy::header(&[tokens, channels]),
        count => npy::header(&[count, tokens, channels]),
    })?;
    Ok(Some(file))
}

/// What is told of one picture.
enum Told {
    Answers(Vec<Answer>),
    Features(Features),
}

impl Told {
    fn json(&self, name: &str, ms: f64) -> Value {
        match self {
            Told::Answers(answers) => json!({
                "file": name,
                "milliseconds": ms,
                "answers": answers.iter().map(|a| json!({
                    "class": a.class, "label": a.label, "probability": a.probability,
                })).collect::<Vec<_>>(),
            }),
            Told::Features(features) => json!({
                "file": name,
                "milliseconds": ms,
                "features": {
                    "shape": features.shape, "mean": features.mean, "norm": features.norm,
                },
            }),
        }
    }

    fn text(&self, name: &str, ms: f64) -> String {
        let mut text = format!("{name}  ({ms:.1} ms)\n");
        match self {
            Told::Answers(answers) => {
                for a in answers {
                    text.push_str(&format!("  {:5.1} %  {}\n", a.probability * 100.0, a.label));
                }
            }
            Told::Features(features) => {
                let [tokens, channels] = features.shape;
                let (mean, norm) = (features.mean, features.norm);
                text.push_str(&format!(
                    "  features {tokens} x {channels}, mean {mean:.4}, norm {norm:.4}\n"
                ));
            }
        }
        text
    }
}

/// A short description of features.
struct Features {
    /// Tokens and channels.
    shape: [usize; 2],
    /// Of all values.
    mean: f64,
    /// The square root of the sum of squares of all values.
    norm: f64,
}

impl Features {
    fn of(values: &[f32], shape: [usize; 2]) -> Self {
        let values = values.iter().map(|&x| f64::from(x));
        Features {
            shape,
            mean: values.clone().sum::<f64>() / values.len() as f64,
            norm: values.map(|x| x * x).sum::<f64>().sqrt(),
        }
    }
}

/// The `top` most probable classes, best first; the lower class wins a tie.
pub(crate) fn best<L: AsRef<str>>(logits: &[f32], labels: &[L], top: usize) -> Vec<Answer> {
    let mut probabilities = logits.to_vec();
    softmax(&mut probabilities);
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    order
        .into_iter()
        .take(top)
        .map(|class| Answer {
            class,
            label: labels
                .get(class)
                .map_or_else(|| format!("class {class}"), |l| l.as_ref().into()),
            probability: probabilities[class],
        })
        .collect()
}
