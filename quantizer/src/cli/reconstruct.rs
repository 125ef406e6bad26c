//! `--effort`, `--resume`, and what is shown while training.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use tpvit_models::BitWidth;
use tpvit_quantizer::calibration::Settings;
use tpvit_quantizer::pipeline::{Observer, Stage};
use tpvit_quantizer::reconstruct::{
    Choices, Effort, FEWEST_PICTURES, Importance, Recipe, Rounding,
};
use tpvit_quantizer::report::duration;

use super::output::{tell, write_whole};
use super::quantize::parse_bits;

/// How hard to try.
#[derive(Args, Clone)]
#[command(next_help_heading = "Training")]
pub(crate) struct EffortArgs {
    /// How much work goes into weights and scales; times are for a ViT-Ti/16 on two cores, and
    /// the command tells its own before it starts [default: balanced where weights or activations
    /// have at most 4 bits and there are pictures enough, else fast]
    #[arg(long, value_enum)]
    effort: Option<EffortArg>,
    /// Which training
    #[arg(long, value_enum, default_value = "best")]
    recipe: RecipeArg,
    /// Steps of training in place of the effort's; time goes with them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    steps: Option<u32>,
    /// How weights find their codes while they are trained
    #[arg(long, value_enum, default_value = "straight-through")]
    rounding: RoundingArg,
    /// What the losses at the blocks look at [default: aph with --recipe best, else alike]
    #[arg(long, value_enum)]
    importance: Option<ImportanceArg>,
    /// With --recipe tp-vit, the widths of the weights before their last [default: 6,4 for 3 bits,
    /// 8,6 for 4, 8 for 6]; `none` goes straight to the last
    #[arg(long, value_name = "BITS,...")]
    decline: Option<Decline>,
    /// With --recipe tp-vit, what a transition weight is
    #[arg(long, value_enum, value_name = "WHAT")]
    transition: Option<TransitionArg>,
    /// With a block-wise recipe, keep what it remembers of every picture in files in this folder
    /// instead of memory; they vanish with the process, and the result is the same
    #[arg(long, value_name = "DIR")]
    pub(crate) scratch: Option<PathBuf>,
    /// Go on where an interrupted run with the same arguments stopped
    #[arg(long)]
    resume: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum EffortArg {
    /// No training, closed forms only: 1 minute
    Fast,
    /// Training: 5 minutes
    Balanced,
    /// Five times that: 20 minutes. It pays at 3 bits
    Best,
}

/// Names of the recipes.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RecipeArg {
    /// What measured best: all blocks at once, with losses at each and at the logits
    Best,
    /// TP-ViT: block by block, widths declining by transition weights
    TpVit,
    /// I&S-ViT: smooth optimisation in three stages, block by block
    Sos,
    /// GLF-Q: block by block, with a loss at the classifier's input through the float rest
    Glf,
    /// QDrop: block by block, half of the activations float at random
    Qdrop,
}

/// How weights find their codes.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RoundingArg {
    /// The nearest code; gradients pass straight through
    StraightThrough,
    /// AdaRound: of the two nearest codes, which one is learnt
    Adaround,
}

/// What counts in the losses at the units.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ImportanceArg {
    /// Every channel of a block's output alike
    Alike,
    /// APHQ-ViT: each channel by its average perturbation Hessian
    Aph,
}

/// What a transition weight is.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TransitionArg {
    /// A mixture of two widths, which moves from the wider to the narrower
    Blend,
    /// Where training at the wider width ended, and at the narrower begins
    Step,
}

/// `8,6,4`, or `none`.
#[derive(Clone)]
struct Decline(Vec<BitWidth>);

impl FromStr for Decline {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let widths: Vec<BitWidth> = match text {
            "none" => Vec::new(),
            _ => text.split(',').map(parse_bits).collect::<Result<_, _>>()?,
        };
        match widths.is_sorted_by(|a, b| a > b) {
            true => Ok(Decline(widths)),
            false => Err("each width has to be less than the one before".into()),
        }
    }
}

impl EffortArgs {
    /// What to train and how long, or `None` for no training, with so many pictures.
    ///
    /// # Errors
    /// Flags that contradict each other.
    pub(crate) fn choices(
        &self,
        settings: &Settings,
        pictures: usize,
        seed: u64,
    ) -> Result<Option<Choices>> {
        let of_tp_vit = self.decline.is_some() || self.transition.is_some();
        if of_tp_vit && self.recipe != RecipeArg::TpVit {
            bail!(
                "--decline and --transition are of --recipe tp-vit, the only one whose widths decline"
            );
        }
        if let Some(Decline(widths)) = &self.decline
            && widths.iter().any(|&width| width <= settings.weight_bits)
        {
            bail!(
                "--decline: every width has to be more than the {} bits that weights end with",
                settings.weight_bits.bits()
            );
        }
        let narrow = settings.weight_bits.min(settings.act_bits) <= BitWidth::B4;
        let effort = match self.effort {
            Some(EffortArg::Fast) if self.steps.is_some() => {
                bail!("--effort fast trains nothing: leave out --steps, or choose another effort")
            }
            Some(EffortArg::Fast) => return Ok(None),
            Some(EffortArg::Balanced) => Effort::Balanced,
            Some(EffortArg::Best) => Effort::Best,
            None if self.steps.is_some() => Effort::Balanced,
            None if narrow && pictures >= FEWEST_PICTURES => Effort::Balanced,
            None => return Ok(None),
        };
        let recipe = match self.recipe {
            RecipeArg::Best => Recipe::Best,
            RecipeArg::TpVit => Recipe::TpVit,
            RecipeArg::Sos => Recipe::Sos,
            RecipeArg::Glf => Recipe::Glf,
            RecipeArg::Qdrop => Recipe::QDrop,
        };
        let standard = Choices::new(recipe, effort, seed);
        Ok(Some(Choices {
            steps: self.steps,
            rounding: match self.rounding {
                RoundingArg::StraightThrough => Rounding::StraightThrough,
                RoundingArg::Adaround => Rounding::AdaRound,
            },
            importance: match self.importance {
                Some(ImportanceArg::Alike) => Importance::Alike,
                Some(ImportanceArg::Aph) => Importance::Perturbation,
                None => standard.importance,
            },
            decline: self.decline.clone().map(|d| d.0),
            blend: self.transition != Some(TransitionArg::Step),
            ..standard
        }))
    }

    /// Finds out before any work whether there can be files in the scratch folder.
    ///
    /// # Errors
    /// There cannot, or nothing would be in them.
    pub(crate) fn check_scratch(&self) -> Result<()> {
        let Some(folder) = &self.scratch else {
            return Ok(());
        };
        if self.recipe == RecipeArg::Best || self.effort == Some(EffortArg::Fast) {
            bail!(
                "--scratch is of the block-wise recipes (--recipe tp-vit, sos, glf or qdrop): nothing else remembers activations"
            );
        }
        tempfile::tempfile_in(folder)
            .map(drop)
            .with_context(|| format!("--scratch: cannot write in {}", folder.display()))
    }

    /// Says so if a training will keep many `bytes` of activations in memory.
    pub(crate) fn tell_memory(&self, bytes: u64) {
        /// Less is not worth a word.
        const MUCH: u64 = 1 << 30;
        if self.scratch.is_none() && bytes >= MUCH {
            tell(format_args!(
                "this recipe keeps {:.1} GB of activations in memory; --scratch DIR keeps them in files",
                bytes as f64 / 1e9
            ));
        }
    }

    /// The checkpoint beside `output` that the run is to resume from.
    pub(crate) fn resumed(&self, output: &Path) -> Result<Option<Vec<u8>>> {
        if !self.resume {
            return Ok(None);
        }
        if self.effort == Some(EffortArg::Fast) {
            bail!("--resume needs --effort balanced or best: there is no training to resume");
        }
        let path = checkpoint_path(output);
        let bytes = std::fs::read(&path)
            .with_context(|| format!("cannot resume: cannot read {}", path.display()))?;
        Ok(Some(bytes))
    }
}

/// Where the checkpoints of a run that makes `output` lie.
pub(crate) fn checkpoint_path(output: &Path) -> PathBuf {
    let mut path = output.as_os_str().to_owned();
    path.push(".checkpoint");
    PathBuf::from(path)
}

/// A progress bar over all stages, and the checkpoint file.
pub(crate) struct Watch {
    bar: ProgressBar,
    checkpoint: Option<PathBuf>,
    training: Option<(Instant, f64)>,
}

impl Watch {
    /// `checkpoint` is `None` where none shall be written.
    pub(crate) fn new(bar: ProgressBar, checkpoint: Option<PathBuf>) -> Self {
        Watch {
            bar,
            checkpoint,
            training: None,
        }
    }

    /// The work is done: the bar vanishes.
    pub(crate) fn finish(self) {
        self.bar.finish_and_clear();
    }

    /// Seconds left, from the part done since training began or was resumed.
    fn left(&mut self, done: f64) -> Option<Duration> {
        let (start, first) = *self.training.get_or_insert((Instant::now(), done));
        let part = done - first;
        let took = start.elapsed().as_secs_f64();
        (part > 0.0 && took > 5.0).then(|| Duration::from_secs_f64((1.0 - done) * took / part))
    }
}

impl Observer for Watch {
    fn stage(&mut self, stage: Stage) {
        match stage {
            Stage::Observing(done) => self.bar.set_position(done as u64),
            Stage::Planning => self.bar.set_message("quantizing"),
            Stage::Compensating(done, total) => {
                self.bar.set_length(total as u64);
                self.bar.set_position(done as u64);
                self.bar.set_message("compensating");
            }
            Stage::Reconstructing(progress) => {
                self.bar.set_length(1000);
                self.bar.set_position((1000.0 * progress.done) as u64);
                let left = match self.left(progress.done) {
                    Some(left) => format!(", {} left", duration(left)),
                    None => String::new(),
                };
                self.bar
                    .set_message(format!("training: {}{left}", progress.doing));
            }
            Stage::Comparing => self.bar.set_message("comparing"),
        }
    }

    fn checkpoint(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let Some(path) = &self.checkpoint else {
            return Ok(());
        };
        write_whole(path, bytes).map_err(std::io::Error::other)
    }
}

/// Says how long training will take, by a rough model of this machine, if it
/// takes long at all.
pub(crate) fn announce(macs: f64, checkpoint: &Path) {
    /// Less is not worth a word.
    const LONG: f64 = 10.0;
    /// Multiply-accumulates a second and thread, measured on two x86-64 CPUs
    /// with AVX-512; with AVX2 about half.
    const RATE: f64 = 4e10;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let seconds = macs / (RATE * threads.min(8) as f64);
    if seconds < LONG {
        return;
    }
    tell(format_args!(
        "training takes roughly {} here; if interrupted, --resume goes on from {}",
        duration(Duration::from_secs_f64(seconds)),
        checkpoint.display()
    ));
}
