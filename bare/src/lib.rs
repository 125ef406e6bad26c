//! What an image without an operating system and the program it is compared with
//! share: the models, their pictures, and how an answer is written down.
//!
//! Floats of this project have one definition on every instruction set, so the lines
//! that [`write_answer`] makes are the same on each machine, bit for bit.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::vec::Vec;
use core::fmt::{self, Write};

use tpvit_models::Model;
use tpvit_runtime::{Isa, softmax};

/// A model and pictures for it.
#[derive(Clone, Copy, Debug)]
pub struct Embedded {
    /// A word.
    pub name: &'static str,
    /// The instruction set in whose order its weights are, if that is known.
    pub order: Option<Isa>,
    /// A `.tpv` file, which begins on a line of the cache: so do its weights.
    pub file: &'static [u8],
    /// `[pictures, height, width, 3]`, RGB.
    pub pictures: &'static [u8],
}

/// Puts what it holds on a line of the cache.
#[repr(C, align(64))]
struct OnALine<T: ?Sized>(T);

macro_rules! on_a_line {
    ($path:literal) => {{
        static FILE: &OnALine<[u8]> = &OnALine(*include_bytes!($path));
        &FILE.0
    }};
}

include!(concat!(env!("OUT_DIR"), "/models.rs"));

impl Embedded {
    /// Each picture, of the size that `model`, parsed from this file, takes.
    pub fn pictures_of(&self, model: &Model<'_>) -> impl Iterator<Item = &'static [u8]> {
        let [height, width] = model.program().image;
        self.pictures.chunks_exact(height * width * 3)
    }
}

/// Writes the bits of `result`, and what a classifier makes of them:
///
/// ```text
/// result deit-t-2-blocks 0: 3f8a0f31 bd2200c4 ...
/// answer deit-t-2-blocks 0: class 281 "tabby" 93.12 %
/// ```
///
/// # Errors
/// Those of `out`.
pub fn write_answer(
    out: &mut impl Write,
    name: &str,
    picture: usize,
    model: &Model<'_>,
    result: &[f32],
) -> fmt::Result {
    write!(out, "result {name} {picture}:")?;
    for value in result {
        write!(out, " {:08x}", value.to_bits())?;
    }
    writeln!(out)?;
    if !model.program().classifies() {
        return Ok(());
    }
    let mut probabilities = Vec::from(result);
    softmax(&mut probabilities);
    // The first of the largest.
    let likelier = |best: usize, class| match probabilities[class] > probabilities[best] {
        true => class,
        false => best,
    };
    let class = (0..probabilities.len()).fold(0, likelier);
    let percent = 100.0 * probabilities[class];
    let label = model.labels().get(class).unwrap_or(&"");
    writeln!(
        out,
        "answer {name} {picture}: class {class} {label:?} {percent:.2} %"
    )
}
