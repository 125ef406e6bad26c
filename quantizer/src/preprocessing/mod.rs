//! Which resize, crop, mean and deviation a model expects.
//!
//! An ONNX file does not say, and a wrong guess costs more accuracy than
//! quantization: ViT-Ti/16 falls from 82.6 to 51.8 % top-1 with the wrong
//! mean and deviation. So somebody must say, in one of three ways, each
//! overriding the one before:
//!
//! 1. a [`Preset`], scaled to the model's input;
//! 2. the JSON that comes with the weights, timm's or Hugging Face's ([`from_json`]);
//! 3. flags for single values ([`Overrides`]).
//!
//! [`PreprocessArgs`] is all three as command line options.

mod args;
mod json;
mod preset;

use std::path::PathBuf;
use std::str::FromStr;

use tpvit_models::{Interpolation, Preprocess, Resize};

pub use args::{Overrides, PreprocessArgs};
pub use json::{from_json, read_json};
pub use preset::{Preset, presets_help};

/// Preprocessing that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PreprocessError {
    /// Neither preset nor file.
    #[error("unknown preprocessing \"{value}\": no such file, and the presets are {presets}")]
    UnknownPreset {
        /// What was given.
        value: String,
        /// The names there are.
        presets: String,
    },
    /// The file cannot be read.
    #[error("preprocessing file {}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The operating system's words.
        source: std::io::Error,
    },
    /// The file is no JSON.
    #[error("preprocessing file {}: not JSON: {source}", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// JSON of another kind.
    #[error(
        "preprocessing file {}: neither a timm config (key \"pretrained_cfg\" or \"input_size\") \
         nor a Hugging Face preprocessor config (key \"image_mean\" or \"do_resize\")",
        file.display()
    )]
    Kind {
        /// The file.
        file: PathBuf,
    },
    /// A key that must be there.
    #[error("preprocessing file {}: key \"{key}\" is missing", file.display())]
    Missing {
        /// The file.
        file: PathBuf,
        /// The key.
        key: &'static str,
    },
    /// A value that we cannot follow.
    #[error("preprocessing file {}: \"{key}\" is {found}: {problem}", file.display())]
    Key {
        /// The file.
        file: PathBuf,
        /// The key.
        key: &'static str,
        /// Its value, as JSON.
        found: String,
        /// Why it cannot be followed, and what to do.
        problem: String,
    },
    /// A value out of range, wherever it came from.
    #[error("{what} is {found}: {problem}")]
    Value {
        /// Which.
        what: &'static str,
        /// The value.
        found: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Two flags that exclude each other.
    #[error("both --resize and --crop-pct say how the picture is resized; give one")]
    Conflict,
    /// Nothing was said.
    #[error(
        "the model file does not say how pictures are preprocessed; \
         give --preprocess, a preset ({presets}) or the JSON that came with the weights"
    )]
    Unknown {
        /// The names there are.
        presets: String,
    },
}

/// Where preprocessing comes from: the value of `--preprocess`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A named preset.
    Preset(Preset),
    /// A JSON file of timm or Hugging Face.
    File(PathBuf),
}

impl FromStr for Source {
    type Err = PreprocessError;

    /// A preset's name, else the path of a file that exists.
    fn from_str(value: &str) -> Result<Self, PreprocessError> {
        if let Some(preset) = Preset::ALL.into_iter().find(|p| p.name() == value) {
            return Ok(Self::Preset(preset));
        }
        let path = PathBuf::from(value);
        if path.is_file() {
            return Ok(Self::File(path));
        }
        Err(PreprocessError::UnknownPreset {
            value: value.to_owned(),
            presets: preset::names(),
        })
    }
}

impl Source {
    /// The preprocessing for a model whose input is `input`, `[height, width]`.
    ///
    /// # Errors
    /// If the file cannot be read, or asks for what we cannot do.
    pub fn resolve(&self, input: [usize; 2]) -> Result<Preprocess, PreprocessError> {
        match self {
            Self::Preset(preset) => Ok(preset.preprocess(input)),
            Self::File(path) => read_json(path, input),
        }
    }
}

/// Checks that `preprocess` makes sense for an input of `[height, width]`:
/// the resize covers the input, mean is in 0..=1, deviation in 0..=1 and
/// positive.
///
/// # Errors
/// [`PreprocessError::Value`], naming the value.
pub fn check(preprocess: &Preprocess, input: [usize; 2]) -> Result<(), PreprocessError> {
    // A square picture is the worst case: its longer side is no longer.
    let side = input[0].max(input[1]);
    match preprocess.resize {
        Resize::Squash => {}
        Resize::ShorterSide(shorter) if (shorter as usize) < side => {
            return Err(PreprocessError::Value {
                what: "resize",
                found: format!("shorter side {shorter}"),
                problem: format!(
                    "smaller than the model's input {}x{}; give at least {side}",
                    input[0], input[1]
                ),
            });
        }
        Resize::ShorterSide(shorter) if shorter as usize > MAX_SHORTER_SIDE * side => {
            return Err(PreprocessError::Value {
                what: "resize",
                found: format!("shorter side {shorter}"),
                problem: format!(
                    "more than {MAX_SHORTER_SIDE} times the model's input {}x{}",
                    input[0], input[1]
                ),
            });
        }
        Resize::ShorterSide(_) => {}
    }
    check_channels("mean", preprocess.mean, |v| (0.0..=1.0).contains(&v))?;
    check_channels("std", preprocess.std, |v| v > 0.0 && v <= 1.0)
}

/// The largest shorter side, in multiples of the input: a crop of less than a
/// hundredth of the picture is a slip of the pen.
const MAX_SHORTER_SIDE: usize = 10;

fn check_channels(
    what: &'static str,
    values: [f32; 3],
    fits: impl Fn(f32) -> bool,
) -> Result<(), PreprocessError> {
    if values.into_iter().all(fits) {
        return Ok(());
    }
    Err(PreprocessError::Value {
        what,
        found: format!("{values:?}"),
        problem: "must be three numbers for pixels scaled to 0..1 (divide 0..255 values by 255)"
            .to_owned(),
    })
}

/// One line for people: `shorter side 248 bicubic, crop 224x224, mean 0.5 0.5 0.5, std …`.
pub fn describe(preprocess: &Preprocess, input: [usize; 2]) -> String {
    let [height, width] = input;
    let filter = interpolation_name(preprocess.interpolation);
    let resize = match preprocess.resize {
        Resize::ShorterSide(side) => format!("shorter side {side} {filter}, crop {height}x{width}"),
        Resize::Squash => format!("resize {height}x{width} {filter}"),
    };
    let [mr, mg, mb] = preprocess.mean;
    let [sr, sg, sb] = preprocess.std;
    format!("{resize}, mean {mr} {mg} {mb}, std {sr} {sg} {sb}")
}

/// `bicubic` or `bilinear`.
pub fn interpolation_name(interpolation: Interpolation) -> &'static str {
    match interpolation {
        Interpolation::Bicubic => "bicubic",
        Interpolation::Bilinear => "bilinear",
    }
}

/// timm's `floor(size / crop_pct)`; of the longer side of `input`, so that
/// any picture covers it.
///
/// `crop_pct` is in (0, 1]; a result beyond u32 saturates.
fn shorter_side(input: [usize; 2], crop_pct: f64) -> Resize {
    let side = input[0].max(input[1]) as f64;
    Resize::ShorterSide((side / crop_pct).floor() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shorter_side_is_timms() {
        assert_eq!(shorter_side([224, 224], 0.9), Resize::ShorterSide(248));
        assert_eq!(shorter_side([224, 224], 0.875), Resize::ShorterSide(256));
        assert_eq!(shorter_side([384, 384], 1.0), Resize::ShorterSide(384));
        assert_eq!(shorter_side([112, 112], 0.9), Resize::ShorterSide(124));
        assert_eq!(shorter_side([96, 160], 0.8), Resize::ShorterSide(200));
    }

    #[test]
    fn check_names_the_value() {
        let good = Preset::VitAugreg.preprocess([224, 224]);
        assert!(check(&good, [224, 224]).is_ok());
        let message = |p: Preprocess| check(&p, [224, 224]).expect_err("bad").to_string();

        let small = Preprocess {
            resize: Resize::ShorterSide(200),
            ..good
        };
        assert!(message(small).starts_with("resize is shorter side 200: smaller than"));
        let huge = Preprocess {
            resize: Resize::ShorterSide(u32::MAX),
            ..good
        };
        assert!(message(huge).contains("more than 10 times"));
        let mean = Preprocess {
            mean: [123.7, 116.3, 103.5],
            ..good
        };
        assert!(message(mean).starts_with("mean is [123.7"));
        for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let std = Preprocess {
                std: [0.5, bad, 0.5],
                ..good
            };
            assert!(message(std).starts_with("std is"), "{bad}");
        }
    }

    #[test]
    fn a_value_is_a_preset_or_a_file() {
        let source: Source = "deit".parse().expect("a preset");
        assert_eq!(source, Source::Preset(Preset::Deit));
        let error = "no-such-thing".parse::<Source>().expect_err("neither");
        assert!(error.to_string().contains("vit-augreg"), "{error}");
    }

    #[test]
    fn description_is_one_line() {
        let text = describe(&Preset::VitAugreg.preprocess([224, 224]), [224, 224]);
        assert_eq!(
            text,
            "shorter side 248 bicubic, crop 224x224, mean 0.5 0.5 0.5, std 0.5 0.5 0.5"
        );
    }
}
