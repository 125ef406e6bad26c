//! Writes a small model, a picture and the model's logits to a folder: every
//! binding must give these logits, bit for bit.
//!
//! ```text
//! golden_run FOLDER ─▶ model.tpv, pixels.rgb (32 x 32 x 3 bytes), logits.f32 (11 floats, little-endian)
//! ```
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use tpvit_models::synthetic::{self, VitConfig};
use tpvit_models::{BitWidth, Model, write};
use tpvit_runtime::{Isa, Options, Session};

const CONFIG: VitConfig = VitConfig {
    image: 32,
    patch: 8,
    dim: 48,
    depth: 3,
    heads: 3,
    mlp_ratio: 4,
    classes: 11,
};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.ok_or("usage: golden_run FOLDER")?;
    fs::create_dir_all(&folder)?;

    let softmax = synthetic::row_max_softmax(BitWidth::B4);
    let bytes = write(&synthetic::vit(
        CONFIG,
        BitWidth::B4,
        BitWidth::B8,
        &softmax,
        7,
    ))?;
    let len = CONFIG.image * CONFIG.image * 3;
    let pixels: Vec<u8> = (0..len).map(|i| (i * i / 7 % 256) as u8).collect();

    let options = Options {
        isa: Some(Isa::Portable),
        ..Options::default()
    };
    let mut session = Session::new(&Model::parse(&bytes)?, &options)?;
    let logits = session.run(&pixels)?;
    let logits: Vec<u8> = logits.iter().flat_map(|x| x.to_le_bytes()).collect();

    fs::write(folder.join("model.tpv"), &bytes)?;
    fs::write(folder.join("pixels.rgb"), &pixels)?;
    fs::write(folder.join("logits.f32"), &logits)?;
    Ok(())
}
