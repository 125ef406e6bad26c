//! Every export in the folder `TPVIT_EXPORTS`, as `tools/make_fixtures.py` writes
//! them: imported, compared with a run of the original, and with PyTorch; or
//! refused, if that is their name. `TPVIT_ONLY` limits it to names with that part.
#![cfg(feature = "onnx")]

use std::path::Path;
use tpvit_quantizer::import::{load, verify};
use tpvit_quantizer::reference::Executor;

#[test]
fn exports_give_pytorchs_results() {
    let Some(folder) = std::env::var_os("TPVIT_EXPORTS") else {
        println!("skipped: TPVIT_EXPORTS is not set");
        return;
    };
    let only = std::env::var("TPVIT_ONLY").unwrap_or_default();
    let entries = std::fs::read_dir(&folder).expect("TPVIT_EXPORTS is a folder");
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut failures = 0;
    for path in paths {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.ends_with(".onnx") && name.contains(&only) {
            let refused = name.starts_with("refused");
            match check(&path) {
                Ok(summary) if !refused => println!("{name}: {summary}"),
                Err(error) if refused => println!("{name}: {error}"),
                Ok(summary) | Err(summary) => {
                    failures += 1;
                    println!("{name} FAILED: {summary}");
                }
            }
        }
    }
    assert_eq!(failures, 0, "exports failed");
}

fn check(path: &Path) -> Result<String, String> {
    let imported = load(path, false).map_err(|e| e.to_string())?;
    let report = verify(path, &imported).map_err(|e| e.to_string())?;
    let (_, guarded, tolerated) = report.parts.last().expect("logits").clone();
    let program = &imported.program;
    let [height, width] = program.image;
    let plane = height * width;
    let mut executor = Executor::new(program, &imported.weights);
    let mut worst = 0.0f64;
    for (image, expected) in pictures(path, plane) {
        let found = executor.run(&image, &mut ());
        if found.len() != expected.len() {
            return Err(format!("{} results, not {}", found.len(), expected.len()));
        }
        let scale = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
        let pairs = found.iter().zip(&expected);
        let difference = pairs.fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        worst = worst.max(f64::from(difference / scale));
    }
    let summary = format!(
        "{} ops, {:?} from {height}x{width}; original {guarded:.1e}, PyTorch {worst:.1e}, tolerated {tolerated:.1e}",
        program.ops.len(),
        program.output_shape(),
    );
    match worst <= tolerated {
        true => Ok(summary),
        false => Err(summary),
    }
}

/// Pictures `[height, width, 3]` with PyTorch's results: `NAME.f32` beside
/// `NAME.VARIANT.onnx` holds two pictures and then two results.
fn pictures(path: &Path, plane: usize) -> Vec<(Vec<f32>, Vec<f32>)> {
    let name = path.file_name().unwrap().to_string_lossy();
    let stem = name.split('.').next().unwrap();
    let bytes = std::fs::read(path.with_file_name(format!("{stem}.f32"))).expect("a .f32 file");
    let (chunks, _) = bytes.as_chunks::<4>();
    let values: Vec<f32> = chunks.iter().map(|c| f32::from_le_bytes(*c)).collect();
    let (pictures, results) = values.split_at(6 * plane);
    let picture = |chw: &[f32]| (0..3 * plane).map(|i| chw[i % 3 * plane + i / 3]).collect();
    pictures
        .chunks(3 * plane)
        .map(picture)
        .zip(results.chunks(results.len() / 2).map(<[f32]>::to_vec))
        .collect()
}
