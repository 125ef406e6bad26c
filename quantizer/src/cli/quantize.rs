//! `tpvit quantize`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::json;
use tpvit_models::{BitWidth, Preprocess, SoftmaxMethod, TensorRole};
use tpvit_quantizer::calibration::{
    ActivationCode, Allocation, Budget, Compensation, ObserveSettings, Rotation, Settings,
    distance_name, rotate,
};
use tpvit_quantizer::checkpoint::Loaded;
use tpvit_quantizer::dataset::{Pictures, read_class_names};
use tpvit_quantizer::pictures::{self, Pixels};
use tpvit_quantizer::pipeline::{self, Job, Quantized};
use tpvit_quantizer::preprocessing::{PreprocessArgs, describe};
use tpvit_quantizer::quantizers::RangeFit;
use tpvit_quantizer::reconstruct::{self, with_relu};
use tpvit_quantizer::report::{Accuracy, ReportData, Run, decision_json, duration, unit_json};

use super::allocate::{self, BudgetArgs, allocate_with_bar};
use super::model_file::{load_float, need_classifier, preprocess_of};
use super::output::{Table, bytes, check_writable, print, print_json, progress, tell, write_whole};
use super::reconstruct::{EffortArgs, Watch, announce, checkpoint_path};
use super::report::ReportArgs;

/// Arguments of `tpvit quantize`.
#[derive(Args)]
pub(crate) struct QuantizeArgs {
    /// The trained model: an ONNX file, or safetensors of timm or Hugging Face (ViT, DeiT,
    /// DINOv2, Swin)
    model: PathBuf,
    /// What the safetensors are a model of: timm's or Hugging Face's config.json [default:
    /// config.json beside the model]
    #[arg(long, value_name = "FILE.json")]
    config: Option<PathBuf>,
    /// Pictures like those the model will see: a folder of JPEG, PNG or WebP files, and the
    /// folders in it. A hundred or two are enough; labels are not needed
    #[arg(long, value_name = "DIR")]
    calibration: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "FILE.tpv")]
    output: PathBuf,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    effort: EffortArgs,
    #[command(flatten)]
    budget: BudgetArgs,
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
    /// Do not compare the import of an ONNX file with a run of the original graph
    #[arg(long)]
    no_verify: bool,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    report: ReportArgs,
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
    #[arg(long, value_enum, default_value = "row-max")]
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
    /// Levels of LayerNorms' outputs [default: codebook for at most 4 activation bits]
    #[arg(long, value_enum)]
    normed_code: Option<NormedCodeArg>,
    /// Levels of GELU's output [default: codebook for at most 4 activation bits]
    #[arg(long, value_enum)]
    hidden_code: Option<HiddenCodeArg>,
    /// Fit attention codes to each head by itself (row-max and log2 have nothing to fit)
    #[arg(long)]
    softmax_per_head: bool,
    /// How an activation's range is found
    #[arg(long, value_enum, default_value = "mse")]
    observer: ObserverArg,
    /// The percentile of `--observer percentile`
    #[arg(long, default_value_t = 99.99, value_name = "PERCENT")]
    percentile: f64,
    /// What is rotated beforehand, in the weights alone: the same function with fewer outliers
    /// [default: query-key, where heads allow it]
    #[arg(long, value_enum)]
    rotate: Option<RotateArg>,
    /// The function between the two layers of an MLP
    #[arg(long, value_enum, default_value = "gelu")]
    mlp: MlpArg,
    /// Chooses which rows of which pictures are remembered, and the rotations
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MlpArg {
    /// As it is
    Gelu,
    /// ReLU for GELU: each MLP first learns to do with it what it did before (APHQ-ViT)
    Relu,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RotateArg {
    /// Nothing
    None,
    /// The residual stream
    Residual,
    /// The values of each head
    Values,
    /// Queries and keys of each head
    QueryKey,
    /// Values, queries and keys
    Heads,
    /// All of them
    All,
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

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum NormedCodeArg {
    /// Evenly spaced
    Uniform,
    /// 2^b of the 256 levels of an 8-bit code, with the least squared error
    Codebook,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum HiddenCodeArg {
    /// Evenly spaced
    Uniform,
    /// 2^b of the 256 levels of an 8-bit code, with the least squared error
    Codebook,
    /// The same, their distances from the smallest in equal ratios
    ShiftedLog,
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

pub(crate) fn parse_bits(text: &str) -> Result<BitWidth, String> {
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
        let best = match self.act_bits {
            BitWidth::B2 | BitWidth::B3 | BitWidth::B4 => ActivationCode::Codebook,
            BitWidth::B6 | BitWidth::B8 => ActivationCode::Uniform,
        };
        settings.normed_code = self.normed_code.map_or(best, |code| match code {
            NormedCodeArg::Uniform => ActivationCode::Uniform,
            NormedCodeArg::Codebook => ActivationCode::Codebook,
        });
        settings.hidden_code = self.hidden_code.map_or(best, |code| match code {
            HiddenCodeArg::Uniform => ActivationCode::Uniform,
            HiddenCodeArg::Codebook => ActivationCode::Codebook,
            HiddenCodeArg::ShiftedLog => ActivationCode::ShiftedLog,
        });
        for (option, code) in [
            ("--normed-code", settings.normed_code),
            ("--hidden-code", settings.hidden_code),
        ] {
            anyhow::ensure!(
                code == ActivationCode::Uniform || self.act_bits <= BitWidth::B4,
                "{option} is for activations of at most 4 bits, not {}: add -a 4 or -a 3",
                self.act_bits.bits()
            );
        }
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

    /// The rotation these flags describe, if any.
    fn rotation(&self) -> Option<Rotation> {
        let (residual, values, query_key) = match self.rotate.unwrap_or(RotateArg::QueryKey) {
            RotateArg::None => return None,
            RotateArg::Residual => (true, false, false),
            RotateArg::Values => (false, true, false),
            RotateArg::QueryKey => (false, false, true),
            RotateArg::Heads => (false, true, true),
            RotateArg::All => (true, true, true),
        };
        Some(Rotation {
            residual,
            values,
            query_key,
            seed: self.seed,
        })
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
    args.effort.check_scratch()?;
    let resume = args.effort.resumed(&args.output)?;
    let same = |a: &Path, b: &Path| Some(a.canonicalize().ok()? == b.canonicalize().ok()?);
    if same(&args.model, &args.output) == Some(true) {
        bail!(
            "cannot write {}: it is the model itself",
            args.output.display()
        );
    }
    let report = args.report.files(&[&args.model, &args.output])?;
    let mut imported = load_float(&args.model, args.config.as_deref(), !args.no_verify)?;
    args.report.check(&imported.program, &args.model)?;
    let image = imported.program.image;
    let labels = match &args.labels {
        Some(path) => {
            need_classifier(&imported.program, &args.model).context("--labels")?;
            read_class_names(path, Some(imported.program.classes()))?
        }
        None => std::mem::take(&mut imported.labels),
    };
    let preprocess = preprocess_of(&args.model, &args.preprocess, image)?;
    imported
        .weights
        .fold_preprocessing(&imported.program, preprocess.mean, preprocess.std);
    let mut source = source(&args.model)?;
    if let Some(rotation) = args.method.rotation() {
        match rotate(&imported.program, &mut imported.weights, &rotation) {
            Ok(()) => {
                source["rotated"] = json!({
                    "residual": rotation.residual,
                    "values": rotation.values,
                    "query_key": rotation.query_key,
                    "seed": rotation.seed,
                });
            }
            Err(error) if args.method.rotate.is_some() => {
                return Err(error).context("--rotate");
            }
            Err(error) => tell(format_args!("not rotated: {error}")),
        }
    }
    let Usable {
        paths,
        pixels,
        skipped,
    } = usable(args, &preprocess, image)?;
    let mut warnings = Vec::new();
    let classes = imported.program.classes();
    let labelled = args
        .report
        .labelled(&args.calibration, &paths, classes, &mut warnings)?;
    let training = args
        .effort
        .choices(&settings, paths.len(), args.method.seed)?;
    let mut job = Job {
        settings,
        observe: args.method.observe(),
        compensation: args.method.compensation(),
        reconstruction: training
            .map(|choices| reconstruct::Settings::new(&choices, args.method.weight_bits)),
        scratch: args.effort.scratch.clone(),
        teacher: None,
        preprocess,
        labels,
        source,
    };
    let picture = |i: usize| pixels.get(i).map(Pixels::to_f32);
    let count = paths.len();
    if args.method.mlp == MlpArg::Relu {
        job.teacher = Some((imported.program.clone(), imported.weights.clone()));
        replace_gelu(
            &mut imported,
            &|i| pixels[i].to_f32(),
            count,
            args.method.seed,
        );
        job.source["mlp"] = json!("relu");
    }
    let allocate = |budget: Budget| {
        let (observe, settings) = (&job.observe, &job.settings);
        let made = allocate_with_bar(&imported, &picture, count, observe, settings, budget)?;
        anyhow::Ok((budget, made))
    };
    let allocation = args.budget.budget().map(allocate).transpose()?;
    if let Some((_, allocation)) = &allocation {
        job.settings.widths = allocation.widths.clone();
    }
    let mut checkpoint = None;
    if let Some(settings) = &job.reconstruction {
        let path = checkpoint_path(&args.output);
        check_writable(&path)?;
        announce(settings.macs(&imported.program), &path);
        args.effort
            .tell_memory(settings.activation_bytes(&imported.program, count));
        checkpoint = Some(path);
    }
    let watch = Watch::new(progress(count, "calibrating"), checkpoint.clone());
    let made = quantize_watched(&imported, &picture, &job, resume.as_deref(), watch)?;
    write_whole(&args.output, &made.bytes)?;
    if let Some(path) = checkpoint {
        // Only now is it of no more use; nothing is lost if it stays.
        let _ = std::fs::remove_file(path);
    }
    let mut summary = Summary {
        args,
        imported: &imported,
        made: &made,
        job: &job,
        allocation: &allocation,
        skipped,
        start,
        report: None,
    };
    if let Some(files) = report {
        let seconds = start.elapsed().as_secs_f64();
        let accuracy = labelled.and_then(|labelled| {
            labelled.accuracy(&imported, &preprocess, &made.bytes, &mut warnings)
        });
        let data = summary.report(seconds, accuracy, warnings)?;
        files.write(&data)?;
        summary.report = Some((files.html, data.accuracy));
    }
    match args.json {
        true => print_json(&summary.json()?),
        false => print(&summary.text()?),
    }
}

/// The pictures that can be read.
struct Usable {
    paths: Vec<PathBuf>,
    /// Of each, kept: every stage runs them again, training many times.
    pixels: Vec<Pixels>,
    /// How many others there are.
    skipped: usize,
}

/// Reads the pictures; says on standard error which cannot be read.
fn usable(args: &QuantizeArgs, preprocess: &Preprocess, image: [usize; 2]) -> Result<Usable> {
    anyhow::ensure!(args.pictures > 0, "--pictures must be at least 1");
    let all = Pictures::calibration(&args.calibration)?.spread(args.pictures);
    let bar = progress(all.paths.len(), "reading");
    let (mut paths, mut pixels, mut broken) = (Vec::new(), Vec::new(), Vec::new());
    for (path, loaded) in all
        .paths
        .iter()
        .zip(pictures::load_many(&all.paths, preprocess, image))
    {
        match loaded {
            Ok(loaded) => {
                paths.push(path.clone());
                pixels.push(loaded);
            }
            Err(error) => broken.push(error),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    for error in &broken {
        tell(format_args!("skipped: {error}"));
    }
    let needed = all.paths.len().div_ceil(2);
    if paths.len() < needed {
        bail!(
            "only {} of {} calibration pictures in {} can be used, at least {needed} must be",
            paths.len(),
            all.paths.len(),
            args.calibration.display()
        );
    }
    Ok(Usable {
        paths,
        pixels,
        skipped: broken.len(),
    })
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

/// Puts ReLU where GELU was.
fn replace_gelu(
    imported: &mut Loaded,
    picture: &(dyn Fn(usize) -> Vec<f32> + Sync),
    count: usize,
    seed: u64,
) {
    /// Of each MLP.
    const STEPS: u32 = 1500;
    let bar = progress(count, "MLPs with ReLU");
    let done = |ready: usize, of: usize| {
        bar.set_length(of as u64);
        bar.set_position(ready as u64);
    };
    let (program, weights, logs) = with_relu(
        &imported.program,
        &imported.weights,
        picture,
        count,
        STEPS,
        seed,
        &done,
    );
    bar.finish_and_clear();
    (imported.program, imported.weights) = (program, weights);
    let worst = logs.iter().max_by(|a, b| a.after.total_cmp(&b.after));
    tell(match worst {
        None => "no GELU between two linear layers: --mlp relu changes nothing".to_string(),
        Some(worst) => format!(
            "{} MLPs with ReLU; relative squared error of the worst, {}: {:.3}, at first {:.3}",
            logs.len(),
            worst.name,
            worst.after,
            worst.before
        ),
    });
}

/// [`pipeline::quantize`] under `watch`.
pub(crate) fn quantize_watched(
    imported: &Loaded,
    picture: &(dyn Fn(usize) -> Option<Vec<f32>> + Sync),
    job: &Job,
    resume: Option<&[u8]>,
    mut watch: Watch,
) -> Result<Quantized> {
    let weights = imported.weights.clone();
    let program = &imported.program;
    let made = pipeline::quantize(program, weights, picture, job, resume, &mut watch);
    watch.finish();
    Ok(made?)
}

/// What the command tells at its end.
struct Summary<'a> {
    args: &'a QuantizeArgs,
    imported: &'a Loaded,
    made: &'a Quantized,
    job: &'a Job,
    allocation: &'a Option<(Budget, Allocation)>,
    skipped: usize,
    start: Instant,
    /// The page, and the accuracy it tells.
    report: Option<(PathBuf, Option<Accuracy>)>,
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

    fn report(
        &self,
        seconds: f64,
        accuracy: Option<Accuracy>,
        mut warnings: Vec<String>,
    ) -> Result<ReportData> {
        if self.args.no_verify {
            warnings.push("The import was not compared with a run of the original graph.".into());
        }
        if self.skipped > 0 {
            let all = self.made.pictures + self.skipped;
            let skipped = self.skipped;
            warnings.push(format!(
                "{skipped} of {all} calibration pictures could not be read."
            ));
        }
        let model = self.args.model.file_name().unwrap_or_default();
        let method = self.args.method.method.to_possible_value();
        let run = Run {
            model: model.to_string_lossy().into_owned(),
            source_bytes: self.source_bytes()? as u64,
            method: method.map_or(String::new(), |m| m.get_name().to_owned()),
            skipped: self.skipped,
            seconds,
            accuracy,
            warnings,
        };
        Ok(ReportData::new(
            &self.imported.program,
            self.job,
            self.made,
            run,
        ))
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
            "report": self.report.as_ref().map(|(page, _)| page.display().to_string()),
            "allocation": self.allocation.as_ref()
                .map(|(_, a)| allocate::as_json(&self.imported.program, a)),
            "compensation": self.made.decisions.iter().map(decision_json).collect::<Vec<_>>(),
            "units": self.made.units.iter().map(unit_json).collect::<Vec<_>>(),
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
        let distance = distance_name(&self.imported.program);
        let [before, after] = ["before", "after"].map(|when| format!("{distance} {when}"));
        let mut table = Table::new(["compensated weights of", &before, &after, "damping", "kept"]);
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

    /// What training brought, or nothing.
    fn training(&self) -> String {
        if self.made.units.is_empty() {
            return String::new();
        }
        let mut table = Table::new(["trained", "error before", "error after", "note"]);
        for u in &self.made.units {
            table.row([
                u.name.clone(),
                format!("{:.4}", u.before),
                format!("{:.4}", u.after),
                u.note.clone(),
            ]);
        }
        let all = match self.imported.program.classifies() {
            true => "; of all units, KL of the logits",
            false => "",
        };
        format!(
            "errors on held-back pictures, relative and squared{all}:\n\n{}\n",
            table.render()
        )
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
        let compensation = self.compensation() + &self.training();
        let allocation = match self.allocation {
            Some((budget, made)) => allocate::describe(program, *budget, made),
            None => String::new(),
        };
        let skipped = match self.skipped {
            0 => String::new(),
            n => format!(" ({n} broken ones skipped)"),
        };
        let report = match &self.report {
            None => String::new(),
            Some((page, None)) => format!("report         {}\n", page.display()),
            Some((page, Some(a))) => format!(
                "accuracy       {:.1} % in float, {:.1} % in integers, of {} pictures{}\n\
                 report         {}\n",
                a.float.top1,
                a.integer.top1,
                a.images,
                if a.calibration {
                    " of the calibration"
                } else {
                    ""
                },
                page.display()
            ),
        };
        let made = self.made.bytes.len();
        Ok(format!(
            "error of each output against float, worst first (0 is exact, 1 as wrong as its mean):\n\n\
             {}\n{allocation}{compensation}\
             {}: W{}A{}{}, attention {:?}\n\
             preprocessing  {}\n\
             calibration    {} pictures{skipped}\n\
             size           {} as it came, {} in f32, {} now ({:.1} times smaller than f32)\n\
             time           {}\n{report}",
            table.render(),
            self.args.output.display(),
            s.weight_bits.bits(),
            s.act_bits.bits(),
            if self.allocation.is_some() {
                " at most"
            } else {
                ""
            },
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
