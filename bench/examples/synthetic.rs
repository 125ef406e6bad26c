//! Writes a seeded-random `.tpv` model in the shape of a real one: what
//! `tpvit run`, `bench` and `inspect` take where no trained model is at hand.
//!
//! ```text
//! cargo run --release -p tpvit-bench --example synthetic -- MODEL WIDTHS OUTPUT
//! cargo run --release -p tpvit-bench --example synthetic -- deit-s w8a8 deit-s.w8a8.tpv
//! ```
//!
//! The same arguments always give the same bytes.
#![forbid(unsafe_code)]

use std::error::Error;

use tpvit_models::synthetic::{VitConfig, row_max_softmax, vit};
use tpvit_models::{BitWidth, write};

const USAGE: &str = "usage: synthetic deit-t|deit-s|vit-s14|vit-b wWaA OUTPUT.tpv, \
                     where W and A are 2, 3, 4, 6 or 8 bits";

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, widths, output] = &args[..] else {
        return Err(USAGE.into());
    };
    let config = config(model).ok_or(USAGE)?;
    let (weights, activations) = parse_widths(widths).ok_or(USAGE)?;
    // As the quantizer's default: no more than four bits of attention.
    let softmax = row_max_softmax(activations.min(BitWidth::B4));
    let bytes = write(&vit(config, weights, activations, &softmax, 1))?;
    std::fs::write(output, bytes)?;
    Ok(())
}

fn config(model: &str) -> Option<VitConfig> {
    match model {
        "deit-t" => Some(VitConfig::DEIT_TINY),
        "deit-s" => Some(VitConfig::DEIT_SMALL),
        "vit-s14" => Some(VitConfig::VIT_SMALL_14),
        "vit-b" => Some(VitConfig::VIT_BASE),
        _ => None,
    }
}

/// `w4a8` and the like.
fn parse_widths(text: &str) -> Option<(BitWidth, BitWidth)> {
    let (weights, activations) = text.strip_prefix('w')?.split_once('a')?;
    let bits = |text: &str| BitWidth::from_bits(text.parse().ok()?);
    Some((bits(weights)?, bits(activations)?))
}
