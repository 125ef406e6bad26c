//! Resize and centre crop, with torchvision's rounding.
//!
//! `Resize(s)` makes the shorter side `s` and the longer `floor(s * long /
//! short)`; `CenterCrop` starts at `(side - crop) / 2`, halves rounded to
//! even as Python's `round` does.

use std::ops::Range;

use tpvit_models::{Preprocess, Resize};

use super::resize::resize;
use super::{Pixels, Problem};

/// Brings `picture` to `size`, `[height, width]` of the model's input.
///
/// Only resize and crop happen here: mean and deviation are folded into the
/// model.
///
/// # Errors
/// [`Problem::SmallerThanCrop`] if the resized picture does not cover `size`;
/// [`preprocessing::check`](crate::preprocessing::check) excludes it for
/// square inputs.
///
/// # Panics
/// If `picture` or `size` is empty.
pub fn prepare(
    picture: &Pixels,
    preprocess: &Preprocess,
    size: [usize; 2],
) -> Result<Pixels, Problem> {
    let resized = resized_size([picture.height, picture.width], preprocess.resize, size);
    let window = centre_crop(resized, size).ok_or(Problem::SmallerThanCrop {
        resized,
        crop: size,
    })?;
    Ok(resize(picture, resized, window, preprocess.interpolation))
}

/// `[height, width]` after the resize, before the crop.
fn resized_size(picture: [usize; 2], how: Resize, input: [usize; 2]) -> [usize; 2] {
    match how {
        Resize::Squash => input,
        Resize::ShorterSide(side) => {
            let side = side as usize;
            let [height, width] = picture;
            if height <= width {
                [side, side * width / height]
            } else {
                [side * height / width, side]
            }
        }
    }
}

/// Rows and columns of the centre; `None` if `crop` is larger than `picture`.
fn centre_crop(picture: [usize; 2], crop: [usize; 2]) -> Option<[Range<usize>; 2]> {
    let start = |side: usize, crop: usize| side.checked_sub(crop).map(half_to_even);
    let top = start(picture[0], crop[0])?;
    let left = start(picture[1], crop[1])?;
    Some([top..top + crop[0], left..left + crop[1]])
}

/// Python's `round(n / 2)`.
fn half_to_even(n: usize) -> usize {
    n / 2 + usize::from(n % 4 == 3)
}

#[cfg(test)]
mod tests {
    use tpvit_models::Interpolation;

    use super::*;

    #[test]
    fn sizes_are_torchvisions() {
        // torchvision.transforms.functional._compute_resized_output_size
        let shorter = |h, w| resized_size([h, w], Resize::ShorterSide(248), [224, 224]);
        assert_eq!(shorter(320, 480), [248, 372]);
        assert_eq!(shorter(500, 375), [330, 248]); // 330.67
        assert_eq!(shorter(248, 300), [248, 300]);
        assert_eq!(shorter(1, 1), [248, 248]);
        assert_eq!(resized_size([3, 9], Resize::Squash, [224, 112]), [224, 112]);
    }

    #[test]
    fn crop_starts_where_torchvision_starts_it() {
        let rounds = [0, 0, 1, 2, 2, 2, 3, 4, 4]; // round(n / 2) in Python
        for (n, expected) in rounds.into_iter().enumerate() {
            assert_eq!(half_to_even(n), expected, "{n}");
        }
        assert_eq!(
            centre_crop([248, 331], [224, 224]),
            Some([12..236, 54..278])
        );
        assert_eq!(centre_crop([223, 331], [224, 224]), None);
    }

    #[test]
    fn tiny_and_narrow_pictures_work() {
        let preprocess = Preprocess {
            resize: Resize::ShorterSide(248),
            interpolation: Interpolation::Bicubic,
            mean: [0.5; 3],
            std: [0.5; 3],
        };
        for [height, width] in [[1, 1], [1, 5000], [5000, 1], [2, 3]] {
            let data = vec![77; height * width * 3];
            let out = prepare(
                &Pixels {
                    height,
                    width,
                    data,
                },
                &preprocess,
                [224, 224],
            );
            let out = out.expect("covers the crop");
            assert_eq!([out.height, out.width], [224, 224]);
            assert!(out.data.iter().all(|&v| v == 77));
        }
    }

    #[test]
    fn too_small_a_resize_is_an_error() {
        let preprocess = Preprocess {
            resize: Resize::ShorterSide(100),
            interpolation: Interpolation::Bilinear,
            mean: [0.5; 3],
            std: [0.5; 3],
        };
        let picture = Pixels {
            height: 10,
            width: 20,
            data: vec![0; 600],
        };
        let error = prepare(&picture, &preprocess, [112, 112]).expect_err("100 < 112");
        assert_eq!(
            error,
            Problem::SmallerThanCrop {
                resized: [100, 200],
                crop: [112, 112]
            }
        );
    }
}
