//! Preprocessing as command line options.

use clap::Args;
use tpvit_models::{Interpolation, Preprocess, Resize};

use super::{PreprocessError, Source, check, preset, presets_help, shorter_side};

/// How pictures are preprocessed; flatten it into a command.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Preprocessing")]
pub struct PreprocessArgs {
    /// A preset, or the JSON that came with the weights (timm's config.json,
    /// Hugging Face's preprocessor_config.json)
    #[arg(long, value_name = "PRESET|FILE", long_help = preprocess_help())]
    pub preprocess: Option<Source>,
    /// Single values that override it.
    #[command(flatten)]
    pub overrides: Overrides,
}

fn preprocess_help() -> String {
    format!(
        "How pictures are resized, cropped and normalised: the JSON that came with the weights \
         (timm's config.json, Hugging Face's preprocessor_config.json), or a preset, scaled to \
         the model's input:\n{}",
        presets_help()
    )
}

impl PreprocessArgs {
    /// The preprocessing for an input of `[height, width]`: `--preprocess`, or
    /// else `stored` (what the model file says); then the single flags.
    ///
    /// # Errors
    /// If nobody says anything, or what is said makes no sense ([`check`]).
    pub fn resolve(
        &self,
        stored: Option<Preprocess>,
        input: [usize; 2],
    ) -> Result<Preprocess, PreprocessError> {
        let base = match (&self.preprocess, stored) {
            (Some(source), _) => source.resolve(input)?,
            (None, Some(stored)) => stored,
            (None, None) => {
                return Err(PreprocessError::Unknown {
                    presets: preset::names(),
                });
            }
        };
        self.overrides.apply(base, input)
    }
}

/// Single values that override a preset or a file.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// Shorter side in pixels before the centre crop, or `squash`: both sides
    /// to the model's input
    #[arg(long, value_name = "PIXELS|squash", value_parser = parse_resize, conflicts_with = "crop_pct")]
    pub resize: Option<Resize>,
    /// Shorter side as timm states it: input / CROP_PCT, rounded down
    #[arg(long, value_name = "FRACTION")]
    pub crop_pct: Option<f64>,
    /// `bicubic` or `bilinear`
    #[arg(long, value_name = "FILTER", value_parser = parse_interpolation)]
    pub interpolation: Option<Interpolation>,
    /// Mean of pixels scaled to 0..1: one number, or red,green,blue
    #[arg(long, value_name = "R,G,B", value_parser = parse_channels)]
    pub mean: Option<[f32; 3]>,
    /// Standard deviation, in the same way
    #[arg(long, value_name = "R,G,B", value_parser = parse_channels)]
    pub std: Option<[f32; 3]>,
}

impl Overrides {
    /// `base` with the given values in place, checked for an input of
    /// `[height, width]`.
    ///
    /// # Errors
    /// If a value is out of range, or both `resize` and `crop_pct` are given.
    pub fn apply(
        &self,
        base: Preprocess,
        input: [usize; 2],
    ) -> Result<Preprocess, PreprocessError> {
        let resize = match (self.resize, self.crop_pct) {
            (Some(_), Some(_)) => return Err(PreprocessError::Conflict),
            (Some(resize), None) => resize,
            (None, Some(crop_pct)) if crop_pct > 0.0 && crop_pct <= 1.0 => {
                shorter_side(input, crop_pct)
            }
            (None, Some(crop_pct)) => {
                return Err(PreprocessError::Value {
                    what: "crop-pct",
                    found: crop_pct.to_string(),
                    problem: "must be above 0 and at most 1".to_owned(),
                });
            }
            (None, None) => base.resize,
        };
        let preprocess = Preprocess {
            resize,
            interpolation: self.interpolation.unwrap_or(base.interpolation),
            mean: self.mean.unwrap_or(base.mean),
            std: self.std.unwrap_or(base.std),
        };
        check(&preprocess, input)?;
        Ok(preprocess)
    }
}

fn parse_resize(value: &str) -> Result<Resize, String> {
    if value == "squash" {
        return Ok(Resize::Squash);
    }
    let side = value.parse();
    side.map(Resize::ShorterSide)
        .map_err(|_| "give the shorter side in pixels, or squash".to_owned())
}

pub(super) fn parse_interpolation(value: &str) -> Result<Interpolation, String> {
    match value {
        "bicubic" => Ok(Interpolation::Bicubic),
        "bilinear" => Ok(Interpolation::Bilinear),
        other => Err(format!(
            "only bicubic and bilinear are supported, not {other}"
        )),
    }
}

fn parse_channels(value: &str) -> Result<[f32; 3], String> {
    let numbers: Result<Vec<f32>, _> = value.split(',').map(|v| v.trim().parse()).collect();
    match numbers.as_deref() {
        Ok(&[v]) => Ok([v; 3]),
        Ok(&[r, g, b]) => Ok([r, g, b]),
        Ok(_) | Err(_) => Err("give one number, or three separated by commas".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::preprocessing::Preset;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        preprocess: PreprocessArgs,
    }

    fn resolve(flags: &str, stored: Option<Preprocess>) -> Result<Preprocess, String> {
        let words = std::iter::once("tpvit").chain(flags.split_whitespace());
        let command = Command::try_parse_from(words).map_err(|e| e.to_string())?;
        let resolved = command.preprocess.resolve(stored, [224, 224]);
        resolved.map_err(|e| e.to_string())
    }

    #[test]
    fn flags_override_presets_override_the_file() {
        let deit = Preset::Deit.preprocess([224, 224]);
        assert_eq!(resolve("", Some(deit)), Ok(deit));
        let augreg = resolve("--preprocess vit-augreg", Some(deit)).expect("a preset");
        assert_eq!(augreg, Preset::VitAugreg.preprocess([224, 224]));
        let mixed = resolve(
            "--preprocess vit-augreg --crop-pct 0.5 --interpolation bilinear --mean 0.1,0.2,0.3 --std 1",
            None,
        );
        let expected = Preprocess {
            resize: Resize::ShorterSide(448),
            interpolation: Interpolation::Bilinear,
            mean: [0.1, 0.2, 0.3],
            std: [1.0; 3],
        };
        assert_eq!(mixed, Ok(expected));
        let squashed = resolve("--resize squash", Some(deit)).expect("squash");
        assert_eq!(
            squashed,
            Preprocess {
                resize: Resize::Squash,
                ..deit
            }
        );
    }

    #[test]
    fn nonsense_is_refused_with_its_value() {
        let deit = Some(Preset::Deit.preprocess([224, 224]));
        for (flags, word) in [("", "--preprocess"), ("--preprocess nope", "nope")] {
            let error = resolve(flags, None).expect_err(flags);
            assert!(error.contains(word), "{error}");
        }
        for (flags, word) in [
            ("--crop-pct 0", "crop-pct is 0"),
            ("--crop-pct 1.5", "crop-pct is 1.5"),
            ("--crop-pct NaN", "crop-pct is NaN"),
            ("--resize 100", "shorter side 100"),
            ("--resize wide", "or squash"),
            ("--resize 256 --crop-pct 0.9", "cannot be used with"),
            ("--interpolation lanczos", "lanczos"),
            ("--mean 1,2", "three separated"),
            ("--mean 127.5", "127.5"),
            ("--std 0", "std is"),
        ] {
            let error = resolve(flags, deit).expect_err(flags);
            assert!(error.contains(word), "{flags}: {error}");
        }
    }

    #[test]
    fn help_lists_every_preset() {
        use clap::CommandFactory;
        let help = Command::command().render_long_help().to_string();
        for preset in Preset::ALL {
            assert!(help.contains(preset.name()), "{help}");
        }
    }
}
