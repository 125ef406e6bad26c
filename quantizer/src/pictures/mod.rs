//! Pictures: from a file to the u8 pixels that a model takes.
//!
//! ```text
//! file ─ decode ─▶ RGB u8 ─ prepare (resize, centre crop) ─▶ Pixels of the model's size
//! ```
//!
//! Everything follows Pillow and torchvision, because models are trained
//! through them: the resize is Pillow's to the last bit, decoding a JPEG differs
//! by a few least significant bits; `resize.rs` and `decode.rs` have the
//! numbers. Pixels are the same on every CPU and thread count.

mod decode;
mod prepare;
mod resize;

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use tpvit_models::Preprocess;

pub use decode::{MAX_ALLOC_BYTES, MAX_SIDE, decode, decode_bytes};
pub use prepare::prepare;

/// An RGB picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// `[height, width, 3]` row-major: red, green, blue, 0..=255.
    pub data: Vec<u8>,
}

impl Pixels {
    /// The same values as `Executor::run` takes them, 0.0 to 255.0.
    pub fn to_f32(&self) -> Vec<f32> {
        self.data.iter().map(|&p| f32::from(p)).collect()
    }
}

/// A picture that cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("picture {}: {problem}", path.display())]
pub struct PictureError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

impl PictureError {
    fn new(path: &Path, problem: Problem) -> Self {
        Self {
            path: path.to_owned(),
            problem,
        }
    }
}

/// What can be wrong with a picture.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The operating system refused.
    #[error("cannot be read: {0}")]
    Read(String),
    /// The file exceeds [`MAX_ALLOC_BYTES`].
    #[error("the file is larger than {} MiB", MAX_ALLOC_BYTES >> 20)]
    FileTooLarge,
    /// No format that we read.
    #[error("is no JPEG, PNG or WebP; convert it first")]
    UnknownFormat,
    /// A JPEG without its end.
    #[error("the JPEG ends early; the file is truncated")]
    Truncated,
    /// The decoder's words.
    #[error("cannot be decoded: {0}")]
    Decode(String),
    /// The decoder panicked, with this message.
    #[error("the decoder failed on it: {0}")]
    Panicked(String),
    /// No pixels.
    #[error("has no pixels")]
    Empty,
    /// The resize leaves less than the model takes.
    #[error(
        "resized to {}x{} it is smaller than the model's input {}x{} (height x width); \
         raise the shorter side",
        resized[0], resized[1], crop[0], crop[1]
    )]
    SmallerThanCrop {
        /// `[height, width]` after the resize.
        resized: [usize; 2],
        /// `[height, width]` of the model's input.
        crop: [usize; 2],
    },
}

/// Decodes the picture at `path` and brings it to `size`, `[height, width]`.
///
/// # Errors
/// As [`decode`] and [`prepare`].
pub fn load(
    path: &Path,
    preprocess: &Preprocess,
    size: [usize; 2],
) -> Result<Pixels, PictureError> {
    let picture = decode(path)?;
    prepare(&picture, preprocess, size).map_err(|problem| PictureError::new(path, problem))
}

/// [`load`] of each path, in order, on all threads of the current rayon pool.
///
/// Pictures are loaded a chunk (four a thread) at a time as the iterator
/// advances, so memory stays bounded however many paths there are. A picture
/// that fails does not end the others.
pub fn load_many<'a>(
    paths: &'a [PathBuf],
    preprocess: &'a Preprocess,
    size: [usize; 2],
) -> impl Iterator<Item = Result<Pixels, PictureError>> + 'a {
    paths
        .chunks(4 * rayon::current_num_threads())
        .flat_map(move |chunk| -> Vec<_> {
            chunk
                .par_iter()
                .map(|path| load(path, preprocess, size))
                .collect()
        })
}
