//! Times one ONNX model on a Rust peer, a round at a time.
//!
//! ```text
//! peer rten  MODEL.onnx INPUT.f32 THREADS
//! peer tract MODEL.onnx INPUT.f32 THREADS
//!
//! <- {"version": "...", "logits": [...]}
//! -> run WARMUP RUNS
//! <- [ms, ms, ...]
//! ```
//!
//! The same protocol as `worker.py`: the process stays alive between rounds, so
//! loading, optimising and packing are never timed. `INPUT.f32` holds the
//! preprocessed picture, `[1, 3, height, width]` little-endian floats.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{BufRead, Write, stdin, stdout};
use std::sync::Arc;
use std::time::Instant;

use rten::{ModelOptions, RunOptions, ThreadPool, Value};
use tract_linalg::multithread::{Executor, set_default_executor};
use tract_onnx::prelude::*;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// One inference; it gives the logits.
type Inference = Box<dyn Fn() -> Result<Vec<f32>>>;

/// The picture of `bytes`, and its shape.
fn picture(bytes: &[u8]) -> Result<(Vec<f32>, [usize; 4])> {
    let (floats, rest) = bytes.as_chunks::<4>();
    let side = (floats.len() / 3).isqrt();
    if !rest.is_empty() || 3 * side * side != floats.len() {
        return Err("the input is not three square planes of floats".into());
    }
    let values = floats.iter().map(|&f| f32::from_le_bytes(f)).collect();
    Ok((values, [1, 3, side, side]))
}

fn rten(path: &str, picture: Vec<f32>, shape: [usize; 4], threads: usize) -> Result<Inference> {
    let mut options = ModelOptions::with_all_ops();
    // Weights in the order of the GEMM, once: what ours does when it loads.
    options.prepack_weights(true);
    let model = options.load_file(path)?;
    let pool = Arc::new(ThreadPool::with_num_threads(threads));
    let options = RunOptions::default().with_thread_pool(Some(pool));
    let input = Value::from_shape(shape, picture)?;
    Ok(Box::new(move || {
        let logits = model.run_one(input.as_view().into(), Some(options.clone()))?;
        let logits = logits.into_tensor::<f32>().ok_or("logits are not f32")?;
        Ok(logits.into_data())
    }))
}

fn tract(path: &str, picture: &[f32], shape: [usize; 4], threads: usize) -> Result<Inference> {
    if threads > 1 {
        set_default_executor(Executor::multithread(threads));
    }
    let model = tract_onnx::onnx()
        .with_ignore_output_shapes(true)
        .with_ignore_value_info(true)
        .model_for_path(path)?
        .with_input_fact(0, f32::fact(shape).into())?
        .into_optimized()?
        .into_runnable()?;
    let input = Tensor::from_shape(&shape, picture)?.into_tvalue();
    Ok(Box::new(move || {
        let outputs = model.run(tvec!(input.clone()))?;
        let logits = outputs[0].to_plain_array_view::<f32>()?;
        Ok(logits.iter().copied().collect())
    }))
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [runtime, model, input, threads] = arguments.as_slice() else {
        return Err("usage: peer rten|tract MODEL.onnx INPUT.f32 THREADS".into());
    };
    let threads: usize = threads.parse()?;
    let (picture, shape) = picture(&std::fs::read(input)?)?;
    let (infer, version) = match runtime.as_str() {
        "rten" => (rten(model, picture, shape, threads)?, "0.27.0"),
        "tract" => (tract(model, &picture, shape, threads)?, "0.23.9"),
        other => return Err(format!("no such runtime: {other}").into()),
    };
    let logits = infer()?;
    println!("{{\"version\": \"{version}\", \"logits\": {logits:?}}}");
    for line in stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["run", warmup, runs] = words[..] else {
            return Err(format!("not a command: {line}").into());
        };
        for _ in 0..warmup.parse::<usize>()? {
            infer()?;
        }
        let mut times = Vec::new();
        for _ in 0..runs.parse::<usize>()? {
            let start = Instant::now();
            infer()?;
            times.push(format!("{:.4}", start.elapsed().as_secs_f64() * 1e3));
        }
        println!("[{}]", times.join(", "));
        stdout().flush()?;
    }
    Ok(())
}
