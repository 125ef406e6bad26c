//! `tpvit pack`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use tpvit_models::{write, write_for};
use tpvit_runtime::Isa;

use super::model_file::WholeTpvFile;
use super::output::{bytes, print, write_whole};

/// Arguments of `tpvit pack`.
#[derive(Args)]
pub(crate) struct PackArgs {
    /// The model, a .tpv file
    model: PathBuf,
    /// Instruction set that reads the weights where they lie, whether or not this CPU has it:
    /// portable, avx2, avxvnni, avx512vnni, neon, dotprod or i8mm. `none` puts them back into
    /// rows, which is the neutral order
    #[arg(long, value_parser = parse_order, value_name = "NAME")]
    isa: Order,
    /// Where to write the result
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// The order of the weights of a file.
#[derive(Clone, Copy)]
enum Order {
    Rows,
    Panels(Isa),
}

pub(crate) fn execute(args: &PackArgs) -> Result<()> {
    let file = WholeTpvFile::open(&args.model)?;
    let data = file.model()?.to_data();
    let (packed, order) = match args.isa {
        Order::Rows => (write(&data), "rows"),
        Order::Panels(isa) => (write_for(&data, isa), isa.name()),
    };
    let packed = packed.with_context(|| format!("cannot pack {}", args.model.display()))?;
    write_whole(&args.output, &packed)?;
    print(&format!(
        "{}: weights in the order of {order}, {}, before {}\n",
        args.output.display(),
        bytes(packed.len()),
        bytes(file.len()),
    ))
}

fn parse_order(name: &str) -> Result<Order, String> {
    if name == "none" {
        return Ok(Order::Rows);
    }
    Isa::from_name(name).map(Order::Panels).ok_or_else(|| {
        let known: Vec<&str> = Isa::ALL.iter().map(|isa| isa.name()).collect();
        format!(
            "no such instruction set; known are {}, and none",
            known.join(", ")
        )
    })
}
