//! `tpvit quantize`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::json;
use tpvit_models::{BitWidth, Preprocess, SoftmaxMethod, TensorRole};
use tpvit_quantizer::calibration::{Compensation, ObserveSettings, Settings};
use tpvit_quantizer::dataset::{Pictures, read_class_names};
use tpvit_quantizer::import::{self, Imported};
use tpvit_quantizer::pictures;
use tpvit_quantizer::pipeline::{self, Job, Quantized, Stage};
use tpvit_quantizer::preprocessing::{PreprocessArgs, describe};
use tpvit_quantizer::quantizers::RangeFit;

use super::model_file::preprocess_of;
use super::output::{
    Table, bytes, check_writable, duration, print, print_json, progress, tell, write_whole,
};

/// Arguments of `tpvit quantize`.
#[derive(Args)]
pub(crate) struct QuantizeArgs {
    /// The trained model, an ONNX file
    model: PathBuf,
    /// Pictures like those the model will see: a folder of JPEG, PNG or WebP files, and the
    /// folders in it. A hundred or two are enough; labels are not needed
    #[arg(long, value_name = "DIR")]
    calibration: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "FILE.tpv")]
    output: PathBuf,
    #[command(flatten)]
    method: MethodArgs,
    /// At most this many calibration pictures, evenly spread over the folder
    #[arg(long, default_value_t = 256, value_name = "N")]
    pictures: usize,
    /// Class names, one a line, to be stored in the file
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    #[command(flatten)]
    preprocess: PreprocessArgs,
    /// Rows of the table of errors; --json has them all
    #[arg(long, default_value_t = 20, value_name = "N")]
    layers: usize,
    /// Do not compare the import with a run of the original graph
    #[arg(long)]
    no_verify: bool,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
}

/// How to quantize.
#[derive(Args, Clone, Copy)]
#[command(next_help_heading = "Quantization")]
pub(crate) struct MethodArgs {
    /// Bits of a weight: 8, 6, 4 or 3
    #[arg(short = 'w', long, default_value = "8", value_parser = parse_bits, value_name = "BITS")]
    pub(crate) weight_bits: BitWidth,
    /// Bits of an activation: 8, 6, 4 or 3
    #[arg(short = 'a', long, default_value = "8", value_parser = parse_bits, value_name = "BITS")]
    pub(crate) act_bits: BitWidth,
    /// Bits of patch embedding and classifier [default: as the rest]
    #[arg(long, value_parser = parse_bits, value_name = "BITS")]
    first_last_bits: Option<BitWidth>,
    /// How the float network becomes integers
    #[arg(long, value_enum, default_value = "compensate")]
    method: MethodArg,
    /// How post-softmax attention becomes codes
    #[arg(long, value_enum, default_value = "tulq")]
    pub(crate) softmax: SoftmaxArg,
    /// Bits of an attention code [default: chosen by method and activation bits]
    #[arg(long, value_parser = parse_bits, value_name = "BITS")]
    softmax_bits: Option<BitWidth>,
    /// Only whole octaves between attention codes, so that shifts alone execute them
    #[arg(long)]
    integer_steps: bool,
    /// Divide each row of attention by the sum of its integers (row-max always does)
    #[arg(long)]
    renormalise: bool,
    /// Fit attention codes to each head by itself (row-max and log2 have nothing to fit)
    #[arg(long)]
    softmax_per_head: bool,
    /// How an activation's range is found
    #[arg(long, value_enum, default_value = "mse")]
    observer: ObserverArg,
    /// The percentile of `--observer percentile`
    #[arg(long, default_value_t = 99.99, value_name = "PERCENT")]
    percentile: f64,
    /// Chooses which rows of which pictures are remembered
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum MethodArg {
    /// Ranges and codes from statistics of the calibration pictures; each weight is rounded by itself
    Calibrate,
    /// The same, and the weights of a row are rounded so that their errors cancel in the layer's
    /// output (GPTQ), where held-back calibration pictures say that it helps
    Compensate,
}

/// Names of the attention quantizers.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SoftmaxArg {
    /// TP-ViT's truncated uniform-log2 quantizer
    Tulq,
    /// The same with its last code for exactly zero, beside the grid
    TulqZ,
    /// The same with its last code for exactly zero, to which the grid is anchored
    TulqZa,
    /// Relative to each row's largest value: no exponentials at run time, most accurate
    RowMax,
    /// Evenly spaced probabilities, as in APHQ-ViT, FIMA-Q and GLF-Q
    Uniform,
    /// PTQ4ViT's twin uniform: one spacing for small probabilities, one for large
    Twin,
    /// FQ-ViT's log2: octaves
    Log2,
    /// RepQ-ViT's log2 of half octaves
    LogSqrt2,
    /// AdaLog's logarithm, whose base is fitted
    Adalog,
    /// I&S-ViT's shift-uniform-log2
    Sulq,
}

#[derive(Clone, Copy, ValueEnum)]
enum ObserverArg {
    /// Smallest and largest value seen
    Minmax,
    /// Without the outermost values
    Percentile,
    /// The range with the least squared error
    Mse,
}

fn parse_bits(text: &str) -> Result<BitWidth, String> {
    match text {
        "8" => Ok(BitWidth::B8),
        "6" => Ok(BitWidth::B6),
        "4" => Ok(BitWidth::B4),
        "3" => Ok(BitWidth::B3),
        _ => Err("must be 8, 6, 4 or 3".into()),
    }
}

impl MethodArgs {
    /// The settings these flags describe.
    pub(crate) fn settings(&self) -> Result<Settings> {
        let mut settings = Settings::new(self.weight_bits, self.act_bits);
        settings.first_last_bits = self.first_last_bits;
        settings.range = match self.observer {
            ObserverArg::Minmax => RangeFit::MinMax,
            ObserverArg::Mse => RangeFit::Mse,
            ObserverArg::Percentile => {
                let p = self.percentile / 100.0;
                anyhow::ensure!(
                    p > 0.5 && p <= 1.0,
                    "--percentile is {}, must be above 50 and at most 100",
                    self.percentile
                );
                RangeFit::Percentile(p)
            }
        };
        settings.softmax.method = match self.softmax {
            SoftmaxArg::Tulq => SoftmaxMethod::TulqA,
            SoftmaxArg::TulqZ => SoftmaxMethod::TulqZ,
            SoftmaxArg::TulqZa => SoftmaxMethod::TulqZa,
            SoftmaxArg::Uniform => SoftmaxMethod::Uniform,
            SoftmaxArg::Twin => SoftmaxMethod::TwinUniform,
            SoftmaxArg::LogSqrt2 => SoftmaxMethod::LogSqrt2,
            SoftmaxArg::Adalog => SoftmaxMethod::AdaLog,
            SoftmaxArg::RowMax => SoftmaxMethod::RowMax,
            SoftmaxArg::Log2 => SoftmaxMethod::Log2,
            SoftmaxArg::Sulq => SoftmaxMethod::Sulq,
        };
        settings.softmax.bits = self.softmax_bits;
        settings.softmax.integer_step = self.integer_steps;
        settings.softmax.renormalise = self.renormalise.then_some(true);
        settings.softmax.per_head = self.softmax_per_head;
        Ok(settings)
    }

    pub(crate) fn compensation(&self) -> Option<Compensation> {
        match self.method {
            MethodArg::Calibrate => None,
            MethodArg::Compensate => Some(Compensation::default()),
        }
    }

    pub(crate) fn observe(&self) -> ObserveSettings {
        ObserveSettings {
            seed: self.seed,
            ..ObserveSettings::default()
        }
    }
}

pub(crate) fn execute(args: &QuantizeArgs) -> Result<()> {
    let start = Instant::now();
    let settings = args.method.settings()?;
    check_writable(&args.output)?;
    let same = |a: &Path, b: &Path| Some(a.canonicalize().ok()? == b.canonicalize().ok()?);
    if same(&args.model, &args.output) == Some(true) {
        bail!(
            "cannot write {}: it is the model itself",
            args.output.display()
        );
    }
    let mut imported = import::load(&args.model, !args.no_verify)?;
    let image = imported.program.image;
    let labels = match &args.labels {
        Some(path) => read_class_names(path, Some(imported.program.classes()))?,
        None => Vec::new(),
    };
    let preprocess = preprocess_of(&args.model, &args.preprocess, image)?;
    imported
        .weights
        .fold_preprocessing(&imported.program, preprocess.mean, preprocess.std);
    let (paths, skipped) = usable(args, &preprocess, image)?;
    let job = Job {
        settings,
        observe: args.method.observe(),
        compensation: args.method.compensation(),
        preprocess,
        labels,
        source: source(&args.model)?,
    };
    let picture = |i: usize| {
        let pixels = pictures::load(paths.get(i)?, &preprocess, image).ok()?;
        Some(pixels.data.iter().map(|&p| f32::from(p)).collect())
    };
    let made = quantize_with_bar(&imported, &picture, &job, paths.len())?;
    write_whole(&args.output, &made.bytes)?;
    let summary = Summary {
        args,
        imported: &imported,
        made: &made,
        job: &job,
        skipped,
        start,
    };
    match args.json {
        true => print_json(&summary.json()?),
        false => print(&summary.text()?),
    }
}

/// The pictures that can be read; says on standard error which cannot.
fn usable(
    args: &QuantizeArgs,
    preprocess: &Preprocess,
    image: [usize; 2],
) -> Result<(Vec<PathBuf>, usize)> {
    anyhow::ensure!(args.pictures > 0, "--pictures must be at least 1");
    let all = Pictures::calibration(&args.calibration)?.spread(args.pictures);
    let bar = progress(all.paths.len(), "reading");
    let mut good = Vec::new();
    let mut broken = Vec::new();
    for (path, loaded) in all
        .paths
        .iter()
        .zip(pictures::load_many(&all.paths, preprocess, image))
    {
        match loaded {
            Ok(_) => good.push(path.clone()),
            Err(error) => broken.push(error),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    for error in &broken {
        tell(format_args!("skipped: {error}"));
    }
    let needed = all.paths.len().div_ceil(2);
    if good.len() < needed {
        bail!(
            "only {} of {} calibration pictures in {} can be used, at least {needed} must be",
            good.len(),
            all.paths.len(),
            args.calibration.display()
        );
    }
    Ok((good, broken.len()))
}

/// What the file says about its source.
pub(crate) fn source(model: &Path) -> Result<serde_json::Value> {
    let content =
        std::fs::read(model).with_context(|| format!("cannot read {}", model.display()))?;
    Ok(json!({
        "file": model.file_name().map(|n| n.to_string_lossy()),
        "bytes": content.len(),
        "blake3": blake3::hash(&content).to_hex().to_string(),
    }))
}

/// [`pipeline::quantize`] with a progress bar.
pub(crate) fn quantize_with_bar(
    imported: &Imported,
    picture: &(dyn Fn(usize) -> Option<Vec<f32>> + Sync),
    job: &Job,
    count: usize,
) -> Result<Quantized> {
    let bar = progress(count, "calibrating");
    let mut step = |stage| match stage {
        Stage::Observing(done) => bar.set_position(done as u64),
        Stage::Planning => bar.set_message("quantizing"),
        Stage::Compensating(done, total) => {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message("compensating");
        }
        Stage::Comparing => bar.set_message("comparing"),
    };
    let weights = imported.weights.clone();
    let made = pipeline::quantize(&imported.program, weights, picture, job, &mut step);
    bar.finish_and_clear();
    Ok(made?)
}

/// What the command tells at its end.
struct Summary<'a> {
    args: &'a QuantizeArgs,
    imported: &'a Imported,
    made: &'a Quantized,
    job: &'a Job,
    skipped: usize,
    start: Instant,
}

impl Summary<'_> {
    fn source_bytes(&self) -> Result<usize> {
        Ok(std::fs::metadata(&self.args.model)?.len() as usize)
    }

    /// Bytes of all parameters in f32.
    fn float_bytes(&self) -> usize {
        4 * self
            .imported
            .weights
            .tensors
            .iter()
            .map(Vec::len)
            .sum::<usize>()
    }

    fn json(&self) -> Result<serde_json::Value> {
        Ok(json!({
            "output": self.args.output.display().to_string(),
            "source_bytes": self.source_bytes()?,
            "float_bytes": self.float_bytes(),
            "bytes": self.made.bytes.len(),
            "pictures": self.made.pictures,
            "skipped_pictures": self.skipped,
            "seconds": self.start.elapsed().as_secs_f64(),
            "compensation": self.made.decisions.iter().map(|d| json!({
                "layers": d.group.name(), "kl_rounded": d.rounded,
                "kl_compensated": d.compensated, "damping": d.damping, "kept": d.kept(),
            })).collect::<Vec<_>>(),
            "layers": self.made.layers.iter().map(|l| json!({
                "name": l.name, "error": l.accumulated, "rounding": l.rounding,
            })).collect::<Vec<_>>(),
        }))
    }

    /// What compensation brought, or nothing.
    fn compensation(&self) -> String {
        if self.made.decisions.is_empty() {
            return String::new();
        }
        let mut table = Table::new([
            "compensated weights of",
            "KL before",
            "KL after",
            "damping",
            "kept",
        ]);
        for d in &self.made.decisions {
            table.row([
                d.group.name().into(),
                format!("{:.4}", d.rounded),
                format!("{:.4}", d.compensated),
                d.damping.to_string(),
                if d.kept() { "yes" } else { "no" }.into(),
            ]);
        }
        format!("{}\n", table.render())
    }

    fn text(&self) -> Result<String> {
        let program = &self.imported.program;
        let mut table = Table::new(["output of", "error", "own rounding", "weight bits"]);
        for layer in self.made.layers.iter().take(self.args.layers) {
            let bits = program.ops[layer.op].weight().map(|id| {
                debug_assert_eq!(program.tensors[id.index()].role, TensorRole::Weight);
                self.made.plan.weights[id.index()]
                    .as_ref()
                    .map_or(32, |w| w.bits.bits())
            });
            table.row([
                layer.name.clone(),
                format!("{:.4}", layer.accumulated),
                format!("{:.4}", layer.rounding),
                bits.map_or("-".into(), |b| b.to_string()),
            ]);
        }
        let s = &self.job.settings;
        let compensation = self.compensation();
        let skipped = match self.skipped {
            0 => String::new(),
            n => format!(" ({n} broken ones skipped)"),
        };
        let made = self.made.bytes.len();
        Ok(format!(
            "error of each output against float, worst first (0 is exact, 1 as wrong as its mean):\n\n\
             {}\n{compensation}\
             {}: W{}A{}, attention {:?}\n\
             preprocessing  {}\n\
             calibration    {} pictures{skipped}\n\
             size           {} as ONNX, {} in f32, {} now ({:.1} times smaller than f32)\n\
             time           {}\n",
            table.render(),
            self.args.output.display(),
            s.weight_bits.bits(),
            s.act_bits.bits(),
            s.softmax.method,
            describe(&self.job.preprocess, program.image),
            self.made.pictures,
            bytes(self.source_bytes()?),
            bytes(self.float_bytes()),
            bytes(made),
            self.float_bytes() as f64 / made as f64,
            duration(self.start.elapsed()),
        ))
    }
}
