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

use tpvit_models::synthetic::{self, VitConfig, row_max_softmax};
use tpvit_models::{BitWidth, ModelData, SoftmaxQuant, swin, write};

const USAGE: &str = "usage: synthetic deit-t|deit-s|vit-s14|vit-b|swin-t wWaA OUTPUT.tpv, \
                     where W and A are 2, 3, 4, 6 or 8 bits";

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, widths, output] = &args[..] else {
        return Err(USAGE.into());
    };
    let widths = parse_widths(widths).ok_or(USAGE)?;
    // As the quantizer's default: no more than four bits of attention.
    let softmax = row_max_softmax(widths.1.min(BitWidth::B4));
    let data = model_data(model, widths, &softmax).ok_or(USAGE)?;
    std::fs::write(output, write(&data)?)?;
    Ok(())
}

fn model_data(
    model: &str,
    (weights, activations): (BitWidth, BitWidth),
    softmax: &SoftmaxQuant,
) -> Option<ModelData> {
    let vit = |config| synthetic::vit(config, weights, activations, softmax, 1);
    Some(match model {
        "deit-t" => vit(VitConfig::DEIT_TINY),
        "deit-s" => vit(VitConfig::DEIT_SMALL),
        "vit-s14" => vit(VitConfig::VIT_SMALL_14),
        "vit-b" => vit(VitConfig::VIT_BASE),
        "swin-t" => {
            let program = swin::program(&swin::Config::tiny([224, 224], 1000));
            synthetic::model(program, weights, activations, softmax, 1)
        }
        _ => return None,
    })
}

/// `w4a8` and the like.
fn parse_widths(text: &str) -> Option<(BitWidth, BitWidth)> {
    let (weights, activations) = text.strip_prefix('w')?.split_once('a')?;
    let bits = |text: &str| BitWidth::from_bits(text.parse().ok()?);
    Some((bits(weights)?, bits(activations)?))
}
