//! Named preprocessing of model families.

use tpvit_models::{Interpolation, Preprocess, Resize};

use super::shorter_side;

const HALF: [f32; 3] = [0.5; 3];
const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];
const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Preprocessing of a model family, independent of the input's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// timm's ViT (AugReg, ImageNet-21k): crop 0.9, bicubic, 0.5.
    VitAugreg,
    /// Google's ViT as Hugging Face runs it: squash, bilinear, 0.5.
    VitHf,
    /// timm's default: crop 0.875, bicubic, ImageNet.
    Imagenet,
    /// DeiT: crop 0.875, bicubic, ImageNet.
    Deit,
    /// Swin: crop 0.9, bicubic, ImageNet.
    Swin,
    /// DINOv2 in timm: the shorter side is the input's, bicubic, ImageNet.
    Dinov2,
    /// Both sides resized to the input, bicubic, ImageNet.
    SquashImagenet,
    /// CLIP: the shorter side is the input's, bicubic, CLIP's mean.
    Clip,
    /// SigLIP: squash, bicubic, 0.5.
    Siglip,
}

impl Preset {
    /// Every preset, in the order of the help.
    pub const ALL: [Self; 9] = [
        Self::VitAugreg,
        Self::VitHf,
        Self::Imagenet,
        Self::Deit,
        Self::Swin,
        Self::Dinov2,
        Self::SquashImagenet,
        Self::Clip,
        Self::Siglip,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::VitAugreg => "vit-augreg",
            Self::VitHf => "vit-hf",
            Self::Imagenet => "imagenet",
            Self::Deit => "deit",
            Self::Swin => "swin",
            Self::Dinov2 => "dinov2",
            Self::SquashImagenet => "squash-imagenet",
            Self::Clip => "clip",
            Self::Siglip => "siglip",
        }
    }

    /// One line of help.
    pub fn help(self) -> &'static str {
        match self {
            Self::VitAugreg => {
                "shorter side input/0.9 bicubic (224: 248), centre crop, mean and std 0.5 (timm ViT)"
            }
            Self::VitHf => {
                "both sides to the input, bilinear, mean and std 0.5 (google/vit-* on Hugging Face)"
            }
            Self::Imagenet => {
                "shorter side input/0.875 bicubic (224: 256), centre crop, ImageNet mean and std \
                 (timm's default)"
            }
            Self::Deit => "as imagenet (DeiT's own evaluation)",
            Self::Swin => "shorter side input/0.9 bicubic, centre crop, ImageNet mean and std",
            Self::Dinov2 => {
                "shorter side to the input, bicubic, centre crop, ImageNet mean and std"
            }
            Self::SquashImagenet => {
                "both sides to the input whatever the aspect, bicubic, ImageNet mean and std"
            }
            Self::Clip => "shorter side to the input, bicubic, centre crop, CLIP's mean and std",
            Self::Siglip => "both sides to the input, bicubic, mean and std 0.5",
        }
    }

    /// The preset for an input of `[height, width]`.
    pub fn preprocess(self, input: [usize; 2]) -> Preprocess {
        let (resize, mean, std) = match self {
            Self::VitAugreg => (shorter_side(input, 0.9), HALF, HALF),
            Self::Imagenet | Self::Deit => {
                (shorter_side(input, 0.875), IMAGENET_MEAN, IMAGENET_STD)
            }
            Self::Swin => (shorter_side(input, 0.9), IMAGENET_MEAN, IMAGENET_STD),
            Self::Dinov2 => (shorter_side(input, 1.0), IMAGENET_MEAN, IMAGENET_STD),
            Self::SquashImagenet => (Resize::Squash, IMAGENET_MEAN, IMAGENET_STD),
            Self::Clip => (shorter_side(input, 1.0), CLIP_MEAN, CLIP_STD),
            Self::VitHf | Self::Siglip => (Resize::Squash, HALF, HALF),
        };
        let interpolation = match self {
            Self::VitHf => Interpolation::Bilinear,
            Self::VitAugreg
            | Self::Imagenet
            | Self::Deit
            | Self::Swin
            | Self::Dinov2
            | Self::SquashImagenet
            | Self::Clip
            | Self::Siglip => Interpolation::Bicubic,
        };
        Preprocess {
            resize,
            interpolation,
            mean,
            std,
        }
    }
}

/// All names, separated by commas.
pub(super) fn names() -> String {
    Preset::ALL.map(Preset::name).join(", ")
}

/// The presets, one a line, for `--help`.
pub fn presets_help() -> String {
    let width = Preset::ALL.map(|p| p.name().len()).into_iter().max();
    let width = width.unwrap_or(0);
    Preset::ALL
        .map(|p| format!("  {:width$}  {}", p.name(), p.help()))
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_passes_the_check() {
        for preset in Preset::ALL {
            for input in [[224, 224], [112, 112], [518, 518], [96, 160]] {
                let preprocess = preset.preprocess(input);
                assert!(
                    crate::preprocessing::check(&preprocess, input).is_ok(),
                    "{preset:?}"
                );
            }
            assert!(presets_help().contains(preset.name()));
        }
    }
}
