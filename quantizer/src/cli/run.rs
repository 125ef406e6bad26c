//! `tpvit run`.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use serde_json::json;
use tpvit_quantizer::pictures;
use tpvit_runtime::softmax;

use super::model_file::TpvFile;
use super::output::{print, print_json, tell};
use super::{RuntimeArgs, parse_threads};

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
        let logits = session.run(&pixels.data)?;
        let ms = start.elapsed().as_secs_f64() * 1e3;
        let answers = best(logits, model.labels(), args.top);
        match args.json {
            true => results.push(json!({
                "file": path.display().to_string(),
                "milliseconds": ms,
                "answers": answers.iter().map(|a| json!({
                    "class": a.class, "label": a.label, "probability": a.probability,
                })).collect::<Vec<_>>(),
            })),
            false => print(&text(&path.display().to_string(), ms, &answers))?,
        }
    }
    if args.json {
        print_json(&json!(results))?;
    }
    let all = args.pictures.len();
    anyhow::ensure!(failed == 0, "{failed} of {all} pictures could not be read");
    Ok(())
}

fn text(name: &str, ms: f64, answers: &[Answer]) -> String {
    let mut text = format!("{name}  ({ms:.1} ms)\n");
    for a in answers {
        text.push_str(&format!("  {:5.1} %  {}\n", a.probability * 100.0, a.label));
    }
    text
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
