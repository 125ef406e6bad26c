//! The `tpvit` command.

#[cfg(feature = "onnx")]
mod allocate;
mod bench;
#[cfg(feature = "onnx")]
mod demo;
mod eval;
mod inspect;
mod interrupt;
mod measure;
#[cfg_attr(
    not(feature = "onnx"),
    allow(dead_code, reason = "a run-only build makes no models")
)]
mod model_file;
mod npy;
#[cfg_attr(
    not(feature = "onnx"),
    allow(dead_code, reason = "a run-only build makes no models")
)]
mod output;
mod pack;
#[cfg(feature = "onnx")]
mod quantize;
#[cfg(feature = "onnx")]
mod reconstruct;
#[cfg(feature = "onnx")]
mod report;
mod run;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tpvit_runtime::{AttentionMethod, Isa, Options};

pub(crate) use output::tell;

#[cfg(feature = "onnx")]
const AFTER_HELP: &str = "\
A first session, from a trained model to answers:

  tpvit demo                                       the whole job on the model that ships
  tpvit quantize vit.onnx --calibration pictures/ --preprocess vit-augreg -o vit.tpv
  tpvit eval vit.onnx --data labelled/ --preprocess vit-augreg     accuracy in float
  tpvit eval vit.tpv --data labelled/                              accuracy in integers
  tpvit run vit.tpv cat.jpg dog.png
  tpvit bench vit.tpv --threads 4

Preprocessing is stored in the .tpv file; an .onnx file does not say its own, so it
must be given. A wrong guess costs more accuracy than quantization does: check with
`tpvit eval MODEL.onnx` that the float accuracy is what you expect.";

#[cfg(not(feature = "onnx"))]
const AFTER_HELP: &str = "\
  tpvit run vit.tpv cat.jpg dog.png
  tpvit eval vit.tpv --data labelled/
  tpvit bench vit.tpv --threads 4

This build runs .tpv files; the full one makes them from ONNX.";

/// Runs Vision Transformers on small computers: quantizes an ONNX ViT to 8, 6, 4 or 3 bits
/// and executes it in integers.
#[derive(Parser)]
#[command(name = "tpvit", version, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes a .tpv file from an ONNX model and a folder of pictures
    #[cfg(feature = "onnx")]
    Quantize(Box<quantize::QuantizeArgs>),
    /// Measures top-1 and top-5 accuracy on labelled pictures
    Eval(eval::EvalArgs),
    /// Classifies pictures: five best labels, probabilities, time; or writes their features
    Run(run::RunArgs),
    /// Shows everything a .tpv file holds
    Inspect(inspect::InspectArgs),
    /// Puts the weights of a .tpv file into the order of an instruction set, which then needs
    /// no copy of them
    Pack(pack::PackArgs),
    /// Measures latency and memory
    Bench(bench::BenchArgs),
    /// Quantizes the model that ships and classifies the photographs that ship
    #[cfg(feature = "onnx")]
    Demo(demo::DemoArgs),
}

impl Cli {
    /// Does what the command line says.
    pub(crate) fn execute(self) -> anyhow::Result<()> {
        match self.command {
            #[cfg(feature = "onnx")]
            Command::Quantize(args) => quantize::execute(&args),
            Command::Eval(args) => eval::execute(&args),
            Command::Run(args) => run::execute(&args),
            Command::Inspect(args) => inspect::execute(&args),
            Command::Pack(args) => pack::execute(&args),
            Command::Bench(args) => bench::execute(&args),
            #[cfg(feature = "onnx")]
            Command::Demo(args) => demo::execute(&args),
        }
    }
}

/// Flags of everything that runs a .tpv file.
#[derive(Args, Clone, Copy)]
pub(crate) struct RuntimeArgs {
    /// Instruction set: portable, avx2, avxvnni, avx512vnni, neon, dotprod or i8mm. Can only
    /// lower what this CPU has [default: the best one]
    #[arg(long, env = "TPVIT_ISA", value_parser = parse_isa, value_name = "NAME")]
    isa: Option<Isa>,
    /// How attention codes meet values; both give the same integers
    #[arg(long, value_enum, default_value = "decode")]
    attention: AttentionArg,
}

#[derive(Clone, Copy, ValueEnum)]
enum AttentionArg {
    /// Each code becomes a multiplier by table; then a dot product
    Decode,
    /// Each code shifts a value, where the codes are powers of two
    Shift,
}

impl RuntimeArgs {
    pub(crate) fn options(&self, threads: usize) -> Options {
        let attention = match self.attention {
            AttentionArg::Decode => AttentionMethod::Decode,
            AttentionArg::Shift => AttentionMethod::Shift,
        };
        Options {
            isa: self.isa,
            threads,
            attention,
            ..Options::default()
        }
    }
}

fn parse_isa(name: &str) -> Result<Isa, String> {
    let isa = Isa::from_name(name).ok_or_else(|| {
        let known: Vec<&str> = Isa::ALL.iter().map(|isa| isa.name()).collect();
        format!("no such instruction set; known are {}", known.join(", "))
    })?;
    match isa.is_available() {
        true => Ok(isa),
        false => Err(format!("this CPU or build has no {name}")),
    }
}

/// A number of threads, at least 1.
pub(crate) fn parse_threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=1024) => Ok(n),
        Ok(_) | Err(_) => Err("must be a number from 1 to 1024".into()),
    }
}
