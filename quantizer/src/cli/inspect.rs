//! `tpvit inspect`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use tpvit_models::{ActivationQuant, Model, Op, Program, SoftmaxKind, SoftmaxQuant, Tensor};
use tpvit_quantizer::preprocessing::describe as describe_preprocess;
use tpvit_runtime::{Kernels, MemoryPlan, Options};

use super::model_file::WholeTpvFile;
use super::output::{Table, bytes, print, print_json};

/// Arguments of `tpvit inspect`.
#[derive(Args)]
pub(crate) struct InspectArgs {
    /// The model, a .tpv file
    model: PathBuf,
    /// Check the checksum of every section and print them; the exit status says if all hold
    #[arg(long)]
    verify: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn execute(args: &InspectArgs) -> Result<()> {
    let file = WholeTpvFile::open(&args.model)?;
    // Reading verifies every checksum; a wrong one is an error that names its section.
    let model = file.model()?;
    let plan = MemoryPlan::new(&model, &Options::default())?;
    if args.json {
        return print_json(&describe(&model, &plan, file.len()));
    }
    let mut text = header(&model, &plan, file.len());
    if args.verify {
        text.push_str(&sections(&model));
    }
    text.push('\n');
    text.push_str(&layers(&model));
    text.push('\n');
    text.push_str(&provenance(&model)?);
    print(&text)
}

fn header(model: &Model<'_>, plan: &MemoryPlan, len: usize) -> String {
    let program = model.program();
    let p = model.preprocess();
    let (major, minor) = model.version();
    format!(
        "format       .tpv {major}.{minor}, {}\n\
         input        {} x {} pixels, RGB; {}\n\
         {}\n\
         work         {:.1} MMAC in {} operations\n\
         weights      {}\n\
         memory here  arena {}, weights {}, constants {}; at most {} of heap, {} of stack\n",
        bytes(len),
        program.image[0],
        program.image[1],
        describe_preprocess(p, program.image),
        result(model),
        program.macs() as f64 / 1e6,
        program.ops.len(),
        order(model, plan),
        bytes(plan.arena_bytes()),
        bytes(plan.weight_bytes),
        bytes(plan.constant_bytes),
        bytes(plan.heap_bytes()),
        bytes(MemoryPlan::STACK_BYTES),
    )
}

/// How the weights lie, and what that means here.
fn order(model: &Model<'_>, plan: &MemoryPlan) -> String {
    let weights = model.program().ops.iter().filter_map(Op::weight);
    let here = Kernels::best().isa().name();
    match (
        weights.clone().any(|id| model.panel_layout(id).is_some()),
        plan.borrowed_bytes,
        plan.weight_bytes,
    ) {
        (false, _, _) => format!("in rows; {here} puts them into its own order"),
        (true, 0, _) => format!("in panels of another order than {here}'s, which re-orders them"),
        (true, borrowed, 0) => format!(
            "in the order of {here}, which reads them in place: {}",
            bytes(borrowed)
        ),
        (true, borrowed, _) => format!(
            "in panels; {here} reads {} of them in place",
            bytes(borrowed)
        ),
    }
}

/// Classes, or the shape of the features.
fn result(model: &Model<'_>) -> String {
    let program = model.program();
    match program.classifies() {
        true => {
            let labels = model.labels().len();
            format!("classes      {} ({labels} labels)", program.classes())
        }
        false => {
            let [rows, cols] = program.output_shape();
            format!("features     {rows} x {cols}, no classifier")
        }
    }
}

fn sections(model: &Model<'_>) -> String {
    let mut table = Table::new(["section", "offset", "bytes", "crc32", "checksum"]);
    for s in model.sections() {
        table.row([
            s.kind.to_string(),
            s.offset.to_string(),
            s.len.to_string(),
            format!("{:08x}", s.crc32),
            "holds".into(),
        ]);
    }
    format!("\n{}", table.render())
}

fn layers(model: &Model<'_>) -> String {
    let program = model.program();
    let mut table = Table::new(["layer", "shape", "weights", "bytes", "output"]);
    for (index, op) in program.ops.iter().enumerate() {
        let output = op.output().index();
        let activation = match &model.quantization().activations[output] {
            Some(quant) => activation_text(quant),
            None => "f32".into(),
        };
        let softmax = model.quantization().softmax[index]
            .as_ref()
            .map(softmax_text);
        let (shape, bits, size) = weight_cells(model, program, op);
        table.row([
            program.buffers[output].name.clone(),
            shape,
            bits,
            size,
            match softmax {
                Some(codes) => format!("{activation}; attention {codes}"),
                None => activation,
            },
        ]);
    }
    table.render()
}

/// Shape, width and stored bytes of an operation's weight.
fn weight_cells(model: &Model<'_>, program: &Program, op: &Op) -> (String, String, String) {
    let buffer = &program.buffers[op.output().index()];
    let dash = || String::from("-");
    let Some(id) = op.weight() else {
        return (format!("{} x {}", buffer.rows, buffer.cols), dash(), dash());
    };
    match model.tensor(id) {
        Tensor::Weight(w) => (
            format!("{} x {}", w.rows(), w.cols()),
            format!("{} bit", w.bits().bits()),
            (w.codes().len() + w.zero_points().len() + 4 * w.scales().len()).to_string(),
        ),
        Tensor::Float(f) => (
            format!("{}", f.len()),
            "f32".into(),
            (4 * f.len()).to_string(),
        ),
    }
}

fn activation_text(quant: &ActivationQuant) -> String {
    let per = if quant.scale.len() == 1 {
        "tensor"
    } else {
        "column"
    };
    let scale = scale_text(quant.scale.iter().copied());
    let levels = match &quant.codebook {
        None => String::new(),
        Some(codebook) => {
            let levels: Vec<String> = codebook.levels.iter().map(u8::to_string).collect();
            format!(", levels {} of 0..255", levels.join(" "))
        }
    };
    format!("{} bit per {per}, {scale}{levels}", quant.bits.bits())
}

/// The scale, or the least and the largest.
fn scale_text(scales: impl Iterator<Item = f32>) -> String {
    let (low, high) = scales.fold((f32::INFINITY, 0.0_f32), |(l, h), s| (l.min(s), h.max(s)));
    if low == high {
        format!("scale {low:.3e}")
    } else {
        format!("scale {low:.3e}..{high:.3e}")
    }
}

fn softmax_text(quant: &SoftmaxQuant) -> String {
    let per = match quant.codebooks.len() {
        1 => "",
        _ => " per head",
    };
    let kind = match quant.kind {
        SoftmaxKind::RowMax => "relative to the row's largest".to_string(),
        SoftmaxKind::Static => scale_text(quant.codebooks.iter().map(|c| c.scale)),
    };
    let sum = if quant.renormalise {
        ", renormalised"
    } else {
        ""
    };
    let (method, bits) = (quant.method, quant.bits.bits());
    format!("{method:?} {bits} bit{per}, {kind}{sum}")
}

fn provenance(model: &Model<'_>) -> Result<String> {
    let value: serde_json::Value =
        serde_json::from_str(model.provenance()).context("the provenance section is not JSON")?;
    Ok(format!("provenance\n{value:#}\n"))
}

fn describe(model: &Model<'_>, plan: &MemoryPlan, len: usize) -> serde_json::Value {
    let program = model.program();
    let p = model.preprocess();
    let layers: Vec<_> = program
        .ops
        .iter()
        .enumerate()
        .map(|(index, op)| {
            let output = op.output().index();
            let (shape, bits, size) = weight_cells(model, program, op);
            json!({
                "name": program.buffers[output].name,
                "kind": op.kind(),
                "macs": program.op_macs(op),
                "weight_shape": shape,
                "weights": bits,
                "weight_bytes": size.parse::<usize>().ok(),
                "output": model.quantization().activations[output].as_ref().map(activation_text),
                "attention": model.quantization().softmax[index].as_ref().map(softmax_text),
            })
        })
        .collect();
    json!({
        "file_bytes": len,
        "version": [model.version().0, model.version().1],
        "image": program.image,
        "classes": program.classes(),
        "result": program.output_shape(),
        "labels": model.labels(),
        "macs": program.macs(),
        "preprocess": {
            "resize": format!("{:?}", p.resize),
            "interpolation": format!("{:?}", p.interpolation),
            "mean": p.mean,
            "std": p.std,
        },
        "memory": {
            "arena_bytes": plan.arena_bytes(),
            "weight_bytes": plan.weight_bytes,
            "borrowed_bytes": plan.borrowed_bytes,
            "block_bytes": plan.total_bytes(),
            "constant_bytes": plan.constant_bytes,
            "heap_bytes_at_most": plan.heap_bytes(),
            "stack_bytes_at_most": MemoryPlan::STACK_BYTES,
        },
        "sections": model.sections().iter().map(|s| json!({
            "name": s.kind.to_string(), "offset": s.offset, "length": s.len,
            "crc32": format!("{:08x}", s.crc32),
        })).collect::<Vec<_>>(),
        "layers": layers,
        "provenance": serde_json::from_str::<serde_json::Value>(model.provenance()).ok(),
    })
}
