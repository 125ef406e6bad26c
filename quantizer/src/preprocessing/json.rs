//! Preprocessing from the JSON that comes with the weights.
//!
//! - timm: `pretrained_cfg`, alone or inside `config.json`. `crop_mode`
//!   `center` resizes the shorter side to `floor(input / crop_pct)`;
//!   `squash` is followed when `crop_pct` is 1.
//! - Hugging Face: `preprocessor_config.json`. `size` with `shortest_edge`
//!   and a centre crop, or with `height` and `width` of the model's input.
//!
//! What we cannot follow is an error naming the file and the key; nothing is
//! guessed, and keys that do not touch inference are not looked at.

use std::path::Path;

use serde_json::Value;
use tpvit_models::{Interpolation, Preprocess, Resize};

use super::args::parse_interpolation;
use super::{PreprocessError, check, shorter_side};

/// [`from_json`] of the file at `path`.
///
/// # Errors
/// If the file cannot be read, and as [`from_json`].
pub fn read_json(path: &Path, input: [usize; 2]) -> Result<Preprocess, PreprocessError> {
    let text = std::fs::read_to_string(path).map_err(|source| PreprocessError::Read {
        file: path.to_owned(),
        source,
    })?;
    from_json(&text, path, input)
}

/// Reads `text`, the contents of `file`, for a model whose input is `input`,
/// `[height, width]`.
///
/// # Errors
/// If it is no JSON of timm or Hugging Face, a key is missing, has a value
/// that we cannot follow, or contradicts the model's input.
pub fn from_json(
    text: &str,
    file: &Path,
    input: [usize; 2],
) -> Result<Preprocess, PreprocessError> {
    let json: Value = serde_json::from_str(text).map_err(|source| PreprocessError::Json {
        file: file.to_owned(),
        source,
    })?;
    let nested = json.get("pretrained_cfg").unwrap_or(&json);
    let has = |keys: [&str; 2]| keys.iter().any(|key| nested.get(key).is_some());
    let reader = Reader {
        file,
        json: nested,
        input,
    };
    let preprocess = if has(["input_size", "crop_pct"]) {
        reader.timm()?
    } else if has(["image_mean", "do_resize"]) {
        reader.hugging_face()?
    } else {
        return Err(PreprocessError::Kind {
            file: file.to_owned(),
        });
    };
    check(&preprocess, input)?;
    Ok(preprocess)
}

/// One JSON object, with what its errors must name.
struct Reader<'a> {
    file: &'a Path,
    json: &'a Value,
    input: [usize; 2],
}

impl Reader<'_> {
    fn timm(&self) -> Result<Preprocess, PreprocessError> {
        self.timm_input_size()?;
        let crop_pct = self.required("crop_pct")?;
        let crop_pct = crop_pct
            .as_f64()
            .filter(|pct| *pct > 0.0 && *pct <= 1.0)
            .ok_or_else(|| self.wrong("crop_pct", "must be a number above 0 and at most 1"))?;
        let resize = match self.json.get("crop_mode").map(Value::as_str) {
            None | Some(Some("center")) => shorter_side(self.input, crop_pct),
            Some(Some("squash")) if crop_pct == 1.0 => Resize::Squash,
            Some(Some("squash")) => {
                return Err(self.wrong("crop_pct", "squash with a crop is not supported"));
            }
            Some(_) => {
                return Err(self.wrong("crop_mode", "only \"center\" and \"squash\" are supported"));
            }
        };
        let interpolation = self
            .required("interpolation")?
            .as_str()
            .unwrap_or("no text");
        Ok(Preprocess {
            resize,
            interpolation: parse_interpolation(interpolation)
                .map_err(|problem| self.wrong("interpolation", &problem))?,
            mean: self.channels("mean")?,
            std: self.channels("std")?,
        })
    }

    /// `[3, height, width]` must be the model's.
    fn timm_input_size(&self) -> Result<(), PreprocessError> {
        let [height, width] = self.input.map(|side| side as u64);
        let size = self.required("input_size")?.as_array();
        let size: Option<Vec<u64>> = size.and_then(|s| s.iter().map(Value::as_u64).collect());
        if size.as_deref() == Some(&[3, height, width]) {
            return Ok(());
        }
        Err(self.wrong(
            "input_size",
            &format!("the model's input is [3,{height},{width}]"),
        ))
    }

    fn hugging_face(&self) -> Result<Preprocess, PreprocessError> {
        self.rescale()?;
        if !self.flag("do_resize", true)? {
            return Err(self.wrong("do_resize", "pictures of any size must be resized"));
        }
        let (mean, std) = if self.flag("do_normalize", true)? {
            (self.channels("image_mean")?, self.channels("image_std")?)
        } else {
            ([0.0; 3], [1.0; 3])
        };
        Ok(Preprocess {
            resize: self.hugging_face_resize()?,
            interpolation: self.resample()?,
            mean,
            std,
        })
    }

    /// Pixels must be divided by 255, no more and no less.
    fn rescale(&self) -> Result<(), PreprocessError> {
        const SCALED: &str = "pixels must be scaled to 0..1 (factor 1/255)";
        if !self.flag("do_rescale", true)? {
            return Err(self.wrong("do_rescale", SCALED));
        }
        let factor = self.json.get("rescale_factor").map(Value::as_f64);
        match factor {
            None => Ok(()),
            // Files round 1/255 to as few as four digits.
            Some(Some(factor)) if (factor * 255.0 - 1.0).abs() < 1e-3 => Ok(()),
            Some(_) => Err(self.wrong("rescale_factor", SCALED)),
        }
    }

    /// Pillow's number of the filter.
    fn resample(&self) -> Result<Interpolation, PreprocessError> {
        match self.required("resample")?.as_u64() {
            Some(2) => Ok(Interpolation::Bilinear),
            Some(3) => Ok(Interpolation::Bicubic),
            Some(_) | None => Err(self.wrong(
                "resample",
                "only 2 (bilinear) and 3 (bicubic) are supported",
            )),
        }
    }

    fn hugging_face_resize(&self) -> Result<Resize, PreprocessError> {
        let crops = self.flag("do_center_crop", false)?;
        if crops && self.sides("crop_size")? != Some(self.input) {
            return Err(self.wrong("crop_size", &self.model_input()));
        }
        if let Some(shortest) = self.shortest_edge()? {
            if !crops {
                return Err(self.wrong(
                    "size",
                    "a shortest edge without \"do_center_crop\" leaves pictures of any shape",
                ));
            }
            return Ok(Resize::ShorterSide(shortest));
        }
        match self.sides("size")? {
            Some(size) if size == self.input => Ok(Resize::Squash),
            Some(_) if crops => Err(self.wrong(
                "size",
                "resizing both sides and then cropping is not supported; \
                 for pictures that are nearly square a preset with that crop does the same",
            )),
            Some(_) => Err(self.wrong("size", &self.model_input())),
            None => Err(self.wrong(
                "size",
                "give {\"shortest_edge\": …} or {\"height\": …, \"width\": …}",
            )),
        }
    }

    fn model_input(&self) -> String {
        let [height, width] = self.input;
        format!("the model's input is height {height}, width {width}")
    }

    /// The shorter side, if `size` states one. A bare number does so for
    /// CLIP's processor, while ViT's and DeiT's mean both sides by it.
    fn shortest_edge(&self) -> Result<Option<u32>, PreprocessError> {
        let size = self.required("size")?;
        let edge = match size {
            Value::Object(size) => size.get("shortest_edge"),
            Value::Number(_) if self.is_processor("CLIP") => Some(size),
            Value::Number(_) if self.is_processor("ViT") || self.is_processor("DeiT") => None,
            Value::Number(_) => {
                return Err(self.wrong(
                    "size",
                    "whether it is the shorter side or both depends on the processor; \
                     give {\"shortest_edge\": …} or {\"height\": …, \"width\": …}",
                ));
            }
            Value::Null | Value::Bool(_) | Value::String(_) | Value::Array(_) => None,
        };
        let Some(edge) = edge else { return Ok(None) };
        let pixels = edge.as_u64().and_then(|edge| u32::try_from(edge).ok());
        pixels
            .map(Some)
            .ok_or_else(|| self.wrong("size", "the shortest edge must be a number of pixels"))
    }

    fn is_processor(&self, family: &str) -> bool {
        ["image_processor_type", "feature_extractor_type"]
            .iter()
            .filter_map(|key| self.json.get(key)?.as_str())
            .any(|name| name.starts_with(family))
    }

    /// `[height, width]` of `{"height", "width"}` or of one number.
    fn sides(&self, key: &'static str) -> Result<Option<[usize; 2]>, PreprocessError> {
        let value = self.required(key)?;
        let (height, width) = match value {
            Value::Number(_) => (Some(value), Some(value)),
            other => (other.get("height"), other.get("width")),
        };
        let pixels = |side: Option<&Value>| usize::try_from(side?.as_u64()?).ok();
        Ok(pixels(height).zip(pixels(width)).map(|(h, w)| [h, w]))
    }

    fn flag(&self, key: &'static str, default: bool) -> Result<bool, PreprocessError> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.wrong(key, "must be true or false")),
        }
    }

    fn channels(&self, key: &'static str) -> Result<[f32; 3], PreprocessError> {
        let values = self.required(key)?.as_array();
        let values: Option<Vec<f32>> =
            values.and_then(|v| v.iter().map(|v| v.as_f64().map(|v| v as f32)).collect());
        values
            .and_then(|v| <[f32; 3]>::try_from(v).ok())
            .ok_or_else(|| self.wrong(key, "must be three numbers"))
    }

    fn required(&self, key: &'static str) -> Result<&Value, PreprocessError> {
        self.json.get(key).ok_or_else(|| PreprocessError::Missing {
            file: self.file.to_owned(),
            key,
        })
    }

    fn wrong(&self, key: &'static str, problem: &str) -> PreprocessError {
        PreprocessError::Key {
            file: self.file.to_owned(),
            key,
            found: self.json.get(key).unwrap_or(&Value::Null).to_string(),
            problem: problem.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::preprocessing::Preset;

    fn read(json: &Value) -> Result<Preprocess, String> {
        from_json(&json.to_string(), Path::new("p.json"), [224, 224]).map_err(|e| e.to_string())
    }

    fn timm() -> Value {
        json!({
            "input_size": [3, 224, 224], "fixed_input_size": true, "crop_pct": 0.9,
            "crop_mode": "center", "interpolation": "bicubic",
            "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "num_classes": 1000,
        })
    }

    fn hugging_face() -> Value {
        json!({
            "crop_size": {"height": 224, "width": 224}, "do_center_crop": true,
            "do_convert_rgb": true, "do_normalize": true, "do_rescale": true, "do_resize": true,
            "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
            "image_processor_type": "BitImageProcessor", "resample": 3,
            "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 256},
        })
    }

    fn with(mut json: Value, key: &str, value: Value) -> Value {
        json[key] = value;
        json
    }

    #[test]
    fn timm_alone_and_nested() {
        let expected = Preset::VitAugreg.preprocess([224, 224]);
        assert_eq!(read(&timm()), Ok(expected));
        let nested = json!({"architecture": "vit_tiny_patch16_224", "pretrained_cfg": timm()});
        assert_eq!(read(&nested), Ok(expected));
        let squash = with(
            with(timm(), "crop_mode", json!("squash")),
            "crop_pct",
            json!(1.0),
        );
        assert_eq!(
            read(&squash),
            Ok(Preprocess {
                resize: Resize::Squash,
                ..expected
            })
        );
    }

    #[test]
    fn hugging_face_as_dinov2_vit_and_clip_write_it() {
        assert_eq!(
            read(&hugging_face()),
            Ok(Preset::Imagenet.preprocess([224, 224]))
        );
        let vit = json!({
            "do_normalize": true, "do_resize": true, "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5], "resample": 2, "size": 224,
            "feature_extractor_type": "ViTFeatureExtractor",
        });
        assert_eq!(read(&vit), Ok(Preset::VitHf.preprocess([224, 224])));
        let clip = with(
            with(hugging_face(), "size", json!(224)),
            "crop_size",
            json!(224),
        );
        let clip = with(clip, "image_processor_type", json!("CLIPImageProcessor"));
        assert_eq!(read(&clip).map(|p| p.resize), Ok(Resize::ShorterSide(224)));
        let raw = with(hugging_face(), "do_normalize", json!(false));
        assert_eq!(
            read(&raw).map(|p| (p.mean, p.std)),
            Ok(([0.0; 3], [1.0; 3]))
        );
    }

    #[test]
    fn what_we_cannot_follow_names_file_and_key() {
        let both = json!({"height": 256, "width": 256});
        for (json, key) in [
            (
                with(timm(), "input_size", json!([3, 384, 384])),
                "input_size",
            ),
            (with(timm(), "crop_pct", json!(1.2)), "crop_pct"),
            (with(timm(), "crop_pct", json!(null)), "crop_pct"),
            (with(timm(), "crop_mode", json!("border")), "crop_mode"),
            (with(timm(), "crop_mode", json!("squash")), "crop_pct"),
            (
                with(timm(), "interpolation", json!("lanczos")),
                "interpolation",
            ),
            (with(timm(), "mean", json!([0.5])), "mean"),
            (with(hugging_face(), "crop_size", json!(192)), "crop_size"),
            (with(hugging_face(), "size", both.clone()), "size"),
            (with(hugging_face(), "size", json!(256)), "size"),
            (with(hugging_face(), "size", json!("big")), "size"),
            (with(hugging_face(), "do_center_crop", json!(false)), "size"),
            (
                with(hugging_face(), "do_center_crop", json!("yes")),
                "do_center_crop",
            ),
            (with(hugging_face(), "do_resize", json!(false)), "do_resize"),
            (
                with(hugging_face(), "do_rescale", json!(false)),
                "do_rescale",
            ),
            (
                with(hugging_face(), "rescale_factor", json!(0.0078125)),
                "rescale_factor",
            ),
            (with(hugging_face(), "resample", json!(1)), "resample"),
            (
                with(hugging_face(), "image_std", json!(["a", 1, 1])),
                "image_std",
            ),
        ] {
            let error = read(&json).expect_err(key);
            assert!(
                error.contains("p.json") && error.contains(&format!("\"{key}\"")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_missing_key_is_named() {
        for (json, keys) in [
            (timm(), &["crop_pct", "interpolation", "mean", "std"][..]),
            (
                hugging_face(),
                &["size", "resample", "image_std", "crop_size"][..],
            ),
        ] {
            for key in keys {
                let mut json = json.clone();
                json.as_object_mut().expect("an object").remove(*key);
                let error = read(&json).expect_err(key);
                assert!(error.contains(&format!("\"{key}\" is missing")), "{error}");
            }
        }
    }

    #[test]
    fn other_files_are_refused() {
        assert!(read(&json!({"hidden_size": 192})).is_err_and(|e| e.contains("neither a timm")));
        assert!(read(&json!([1, 2])).is_err());
        let error = from_json("{", Path::new("p.json"), [224, 224]).expect_err("no JSON");
        assert!(error.to_string().contains("not JSON"), "{error}");
    }
}
