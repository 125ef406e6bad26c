//! Bytes of a file to RGB u8, as Pillow's `Image.open(file).convert("RGB")`.
//!
//! - JPEG (grey, RGB, CMYK), PNG (every colour type and depth), WebP (the first frame).
//! - Grey is repeated; a palette is looked up; alpha is dropped, not blended.
//! - Of 16 bits the upper 8 stay.
//! - The EXIF orientation is **not** applied: neither Pillow's `open` nor timm
//!   applies it, and accuracies were measured so.
//! - A JPEG that ends early is an error, as in Pillow, not a half-grey picture.
//!
//! - Where Pillow clips 16-bit grey to white, we keep its upper 8 bits too.
//!
//! PNG and WebP give Pillow's pixels exactly. JPEG decoders round their
//! transforms differently: measured against Pillow 13 (libjpeg-turbo 3.2) on
//! six photographs, values differ by at most 3, 0.15 to 0.35 in the mean; after
//! resize and crop to 224x224 by at most 4, 0.11 in the mean (`tests/pictures.rs`).

use std::any::Any;
use std::fs::File;
use std::io::{Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::{DynamicImage, ImageFormat, ImageReader, Limits};

use super::{PictureError, Pixels, Problem};

/// The longest side that is read, in pixels.
pub const MAX_SIDE: u32 = 32_768;

/// The most that decoding one picture may allocate, in bytes; also the
/// largest file. Enough for 89 million pixels in RGB.
pub const MAX_ALLOC_BYTES: u64 = 256 << 20;

/// Reads the picture at `path` into `[height, width, 3]` RGB u8.
///
/// # Errors
/// If the file cannot be read, is no complete JPEG, PNG or WebP, exceeds
/// [`MAX_SIDE`] or [`MAX_ALLOC_BYTES`], or the decoder gives up.
pub fn decode(path: &Path) -> Result<Pixels, PictureError> {
    read(path)
        .and_then(|bytes| decode_bytes(&bytes))
        .map_err(|problem| PictureError::new(path, problem))
}

fn read(path: &Path) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| Problem::Read(e.to_string()))?;
    file.take(MAX_ALLOC_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Problem::Read(e.to_string()))?;
    if bytes.len() as u64 > MAX_ALLOC_BYTES {
        return Err(Problem::FileTooLarge);
    }
    Ok(bytes)
}

/// [`decode`] of bytes in memory. The format is told by content.
///
/// # Errors
/// As [`decode`].
pub fn decode_bytes(bytes: &[u8]) -> Result<Pixels, Problem> {
    let format = image::guess_format(bytes).map_err(|_| Problem::UnknownFormat)?;
    if !matches!(
        format,
        ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP
    ) {
        return Err(Problem::UnknownFormat);
    }
    if format == ImageFormat::Jpeg && !jpeg_is_complete(bytes) {
        return Err(Problem::Truncated);
    }
    // The decoders' authors do not promise freedom from panics.
    let decoded = catch_unwind(AssertUnwindSafe(|| {
        let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
        let mut limits = Limits::default();
        limits.max_image_width = Some(MAX_SIDE);
        limits.max_image_height = Some(MAX_SIDE);
        limits.max_alloc = Some(MAX_ALLOC_BYTES);
        reader.limits(limits);
        reader.decode().map(to_rgb)
    }));
    match decoded {
        Ok(Ok(pixels)) if pixels.data.is_empty() => Err(Problem::Empty),
        Ok(Ok(pixels)) => Ok(pixels),
        Ok(Err(error)) => Err(Problem::Decode(error.to_string())),
        Err(panic) => Err(Problem::Panicked(panic_message(&*panic))),
    }
}

fn to_rgb(image: DynamicImage) -> Pixels {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let data = match image {
        DynamicImage::ImageLuma16(_)
        | DynamicImage::ImageLumaA16(_)
        | DynamicImage::ImageRgb16(_)
        | DynamicImage::ImageRgba16(_) => {
            let wide = image.into_rgb16().into_raw();
            wide.into_iter().map(|value| (value >> 8) as u8).collect()
        }
        // 8 bits; the enum is non-exhaustive, and float formats are not built in.
        narrow => narrow.into_rgb8().into_raw(),
    };
    Pixels {
        height,
        width,
        data,
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
        .to_owned()
}

/// Whether the end-of-image marker stands where the scans end. The decoder
/// itself fills what is missing with grey.
///
/// A marker is 0xFF and a code. Inside a scan 0xFF is followed by 0 (an
/// escaped 0xFF), D0..D7 (restart) or 0xFF (fill); other segments carry their
/// length. ITU T.81, annex B.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    const START_OF_IMAGE: u8 = 0xD8;
    const END_OF_IMAGE: u8 = 0xD9;
    let mut at = 0;
    while let Some(&[first, code]) = bytes.get(at..at + 2).and_then(|b| b.first_chunk::<2>()) {
        at += match (first, code) {
            (0xFF, END_OF_IMAGE) => return true,
            (0xFF, START_OF_IMAGE | 0x00 | 0x01 | 0xD0..=0xD7) => 2,
            (0xFF, 0xFF) => 1,
            (0xFF, _) => match bytes.get(at + 2..at + 4) {
                Some(&[high, low]) => 2 + usize::from(u16::from_be_bytes([high, low])),
                Some(_) | None => return false,
            },
            // Entropy-coded data.
            _ => 1,
        };
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completeness_follows_the_segments() {
        let thumbnail = [0xFF, 0xE1, 0, 4, 0xFF, 0xD9]; // an EOI inside a segment
        let scan = [0xFF, 0xDA, 0, 2, 1, 0xFF, 0, 0xFF, 0xD0, 2];
        let head = [&[0xFF, 0xD8][..], &thumbnail, &scan].concat();
        assert!(!jpeg_is_complete(&head));
        assert!(jpeg_is_complete(&[&head[..], &[0xFF, 0xD9]].concat()));
        assert!(jpeg_is_complete(
            &[&head[..], &[0xFF, 0xFF, 0xD9, 7, 7]].concat()
        ));
        for len in 0..head.len() {
            assert!(!jpeg_is_complete(&head[..len]), "{len}");
        }
    }
}
