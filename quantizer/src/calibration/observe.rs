//! Runs calibration pictures through the f32 network and remembers what flows.

use std::ops::Range;

use rayon::prelude::*;
use tpvit_models::{BufferId, Op, Program};

use super::observers::{BufferStats, Columns, put, slot, spaced_rows};
use crate::quantizers::AttentionSamples;
use crate::reference::{Executor, Hook};
use crate::weights::Weights;

/// How much is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObserveSettings {
    /// Rows of a picture that are kept for the distribution of a channel.
    pub rows: usize,
    /// Pictures of which rows are kept; the rest only adds to bounds,
    /// moments and histograms.
    pub row_pictures: usize,
    /// Rows of probabilities kept of a head in a picture.
    pub attention_rows: usize,
    /// Pictures of which attention is kept.
    pub attention_pictures: usize,
    /// Chooses rows and pictures.
    pub seed: u64,
}

impl Default for ObserveSettings {
    fn default() -> Self {
        ObserveSettings {
            rows: 8,
            row_pictures: 128,
            attention_rows: 16,
            attention_pictures: 12,
            seed: 0,
        }
    }
}

/// What calibration saw.
#[derive(Clone, Debug, PartialEq)]
pub struct Observations {
    /// Number of pictures.
    pub pictures: usize,
    /// By buffer; `Some` exactly for the coded ones.
    pub buffers: Vec<Option<BufferStats>>,
    /// By operation; `Some` exactly for attention.
    pub attention: Vec<Option<AttentionSamples>>,
    /// By operation; `Some` exactly for a patch embedding: the columns of its
    /// patches.
    pub patches: Vec<Option<Columns>>,
}

/// Observes all pictures of `source`.
///
/// `source(i)` is picture `i`, `[height, width, 3]` on the scale that
/// `weights` expect, or `None` from the end on; it is called in parallel.
/// `progress` gets the number of pictures done. The result does not depend on
/// the number of threads.
///
/// # Panics
/// If there is no picture, or one of the wrong size.
pub fn observe(
    program: &Program,
    weights: &Weights,
    source: &(dyn Fn(usize) -> Option<Vec<f32>> + Sync),
    settings: &ObserveSettings,
    progress: &mut dyn FnMut(usize),
) -> Observations {
    let chunk = 4 * rayon::current_num_threads();
    let mut all: Option<Picture> = None;
    let mut done = 0;
    loop {
        let seen: Vec<Option<Picture>> = (done..done + chunk)
            .into_par_iter()
            .map_init(
                || Executor::new(program, weights),
                |executor, index| {
                    let image = source(index)?;
                    let mut picture = Picture::new(program, settings, index);
                    picture.image(program, &image);
                    executor.run(&image, &mut picture);
                    Some(picture)
                },
            )
            .collect();
        let seen: Vec<Picture> = seen.into_iter().map_while(|p| p).collect();
        let count = seen.len();
        for picture in seen {
            match &mut all {
                Some(all) => all.merge(picture),
                None => all = Some(picture),
            }
        }
        done += count;
        progress(done);
        if count < chunk {
            break;
        }
    }
    all.expect("calibration needs at least one picture")
        .finish(done)
}

/// Which cells of an attention are sampled: all tokens, or some of its windows.
struct Cells {
    /// Tokens of the largest ones. Smaller ones, at the edges of a shifted grid,
    /// are not sampled: their rows would have another length.
    tokens: usize,
    /// Every so many-th of the largest is sampled.
    step: usize,
    /// How many of the largest came so far.
    seen: usize,
}

impl Cells {
    /// Largest cells of a picture that are sampled, at most.
    const MOST: usize = 4;

    fn new(program: &Program, op: &Op) -> Self {
        let (tokens, count) = match *op {
            Op::Attention {
                window: Some(window),
                ..
            } => {
                let tokens = window.largest();
                let largest = window.cells().filter(|cell| cell.tokens() == tokens);
                (tokens, largest.count())
            }
            Op::PatchEmbed { .. }
            | Op::LayerNorm { .. }
            | Op::Linear { .. }
            | Op::HeadNorm { .. }
            | Op::Gate { .. }
            | Op::Attention { window: None, .. }
            | Op::SelectToken { .. }
            | Op::Pool { .. }
            | Op::PatchMerge { .. } => (program.buffers[op.output().index()].rows, 1),
        };
        Cells {
            tokens,
            step: count.div_ceil(Self::MOST),
            seen: 0,
        }
    }

    /// Whether to sample the next cell, of so many tokens; heads come in order.
    fn keep(&mut self, head: usize, tokens: usize, picture: usize) -> bool {
        if tokens != self.tokens {
            return false;
        }
        if head == 0 {
            self.seen += 1;
        }
        (self.seen - 1) % self.step == picture % self.step
    }
}

/// What is remembered of one picture, and of all once merged.
struct Picture {
    settings: ObserveSettings,
    index: usize,
    buffers: Vec<Option<BufferStats>>,
    /// By operation: the samples of each slot.
    attention: Vec<Vec<Option<AttentionSamples>>>,
    /// By operation.
    cells: Vec<Cells>,
    patches: Vec<Option<Columns>>,
}

impl Picture {
    fn new(program: &Program, settings: &ObserveSettings, index: usize) -> Self {
        let coded = program.coded();
        let stats = |id: usize| {
            coded[id].then(|| BufferStats::new(program.buffers[id].cols, &groups(program, id)))
        };
        let patches = |op: &Op| match *op {
            Op::PatchEmbed { patch: [h, w], .. } => Some(Columns::new(h * w * 3)),
            Op::LayerNorm { .. }
            | Op::Linear { .. }
            | Op::Attention { .. }
            | Op::HeadNorm { .. }
            | Op::Gate { .. }
            | Op::SelectToken { .. }
            | Op::Pool { .. }
            | Op::PatchMerge { .. } => None,
        };
        Picture {
            settings: *settings,
            index,
            buffers: (0..coded.len()).map(stats).collect(),
            attention: vec![Vec::new(); program.ops.len()],
            cells: program
                .ops
                .iter()
                .map(|op| Cells::new(program, op))
                .collect(),
            patches: program.ops.iter().map(patches).collect(),
        }
    }

    /// Looks at the patches of the picture itself.
    fn image(&mut self, program: &Program, image: &[f32]) {
        let [height, width] = program.image;
        for (op, columns) in program.ops.iter().zip(&mut self.patches) {
            let (Op::PatchEmbed { patch: [h, w], .. }, Some(columns)) = (op, columns) else {
                continue;
            };
            let mut row = Vec::with_capacity(columns.cols());
            for top in (0..height).step_by(*h) {
                for left in (0..width).step_by(*w) {
                    row.clear();
                    for y in top..top + h {
                        row.extend_from_slice(&image[(y * width + left) * 3..][..w * 3]);
                    }
                    columns.add(&row);
                }
            }
        }
    }

    fn merge(&mut self, next: Picture) {
        for (to, from) in self.buffers.iter_mut().zip(next.buffers) {
            if let (Some(to), Some(from)) = (to, from) {
                to.merge(from);
            }
        }
        for (to, from) in self.patches.iter_mut().zip(&next.patches) {
            if let (Some(to), Some(from)) = (to, from) {
                to.merge(from);
            }
        }
        for (to, from) in self.attention.iter_mut().zip(next.attention) {
            for (slot, samples) in from.into_iter().enumerate() {
                if samples.is_some() {
                    put(to, slot, samples);
                }
            }
        }
    }

    fn finish(self, pictures: usize) -> Observations {
        let join = |slots: Vec<Option<AttentionSamples>>| {
            slots.into_iter().flatten().reduce(|mut all, next| {
                all.append(next);
                all
            })
        };
        Observations {
            pictures,
            buffers: self.buffers,
            attention: self.attention.into_iter().map(join).collect(),
            patches: self.patches,
        }
    }
}

impl Hook for Picture {
    fn buffer(&mut self, _op: usize, id: BufferId, values: &mut [f32]) {
        let Some(stats) = &mut self.buffers[id.index()] else {
            return;
        };
        stats.add(values);
        let ObserveSettings {
            seed,
            rows,
            row_pictures,
            ..
        } = self.settings;
        let Some(slot) = slot(seed, self.index, row_pictures) else {
            return;
        };
        let cols = stats.columns.cols();
        let mut chosen = spaced_rows(seed, self.index, values.len() / cols, rows);
        // The class token holds the outliers, and the classifier reads it.
        chosen[0] = 0;
        let kept = chosen.iter().flat_map(|r| &values[r * cols..][..cols]);
        stats.keep(slot, kept.copied().collect());
    }

    fn probabilities(&mut self, op: usize, head: usize, probabilities: &mut [f32], values: &[f32]) {
        let settings = self.settings;
        let Some(slot) = slot(settings.seed, self.index, settings.attention_pictures) else {
            return;
        };
        let tokens = probabilities.len().isqrt();
        if !self.cells[op].keep(head, tokens, self.index) {
            return;
        }
        let draw = settings.seed ^ head as u64;
        let mut rows = spaced_rows(draw, self.index, tokens, settings.attention_rows);
        rows[0] = 0;
        let kept = rows
            .iter()
            .flat_map(|r| &probabilities[r * tokens..][..tokens]);
        if self.attention[op].len() <= slot {
            put(&mut self.attention[op], slot, None);
        }
        let samples = self.attention[op][slot]
            .get_or_insert_with(|| AttentionSamples::new(tokens, values.len() / tokens));
        samples.push(head, kept.copied().collect(), values.to_vec());
    }
}

/// The channels of a buffer that may share a scale: each head of q, k and v,
/// each head of an attention's output, otherwise all.
fn groups(program: &Program, id: usize) -> Vec<Range<usize>> {
    let cols = program.buffers[id].cols;
    let head_dim = program.ops.iter().find_map(|op| match *op {
        Op::Attention {
            qkv,
            output,
            head_dim,
            ..
        } => (qkv.index() == id || output.index() == id).then_some(head_dim),
        Op::PatchEmbed { .. }
        | Op::LayerNorm { .. }
        | Op::Linear { .. }
        | Op::HeadNorm { .. }
        | Op::Gate { .. }
        | Op::SelectToken { .. }
        | Op::Pool { .. }
        | Op::PatchMerge { .. } => None,
    });
    let width = head_dim.unwrap_or(cols);
    (0..cols / width)
        .map(|g| g * width..(g + 1) * width)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tpvit_models::synthetic;
    use tpvit_models::{BitWidth, Cell};

    /// Of a grid with several windows, at most four full ones of a picture, others
    /// in the next; of smaller ones at the edges, none.
    #[test]
    fn windows_take_turns_and_all_have_one_size() {
        let mut all = synthetic::architectures().into_iter();
        let (_, program) = all.find(|(name, _)| *name == "swin").expect("a Swin");
        let softmax = synthetic::row_max_softmax(BitWidth::B4);
        let data = synthetic::model(program, BitWidth::B8, BitWidth::B8, &softmax, 1);
        let weights = Weights::dequantize(&data.tensors);
        let program = &data.program;
        let [height, width] = program.image;
        let pictures = 6;
        let source = |i: usize| {
            let pixel = |p: usize| ((p * (i + 3)) as f32 * 0.37).sin() * 90.0 + 120.0;
            (i < pictures).then(|| (0..height * width * 3).map(pixel).collect())
        };
        let settings = ObserveSettings::default();
        let seen = observe(program, &weights, &source, &settings, &mut |_| ());
        let mut counts = Vec::new();
        for (op, samples) in program.ops.iter().zip(&seen.attention) {
            let Op::Attention {
                window: Some(window),
                heads,
                ..
            } = op
            else {
                assert!(samples.is_none());
                continue;
            };
            let samples = samples.as_ref().expect("attention is sampled");
            assert_eq!(samples.tokens(), window.largest());
            assert_eq!(samples.heads(), *heads);
            let full = |cell: &Cell| cell.tokens() == window.largest();
            let full = window.cells().filter(full).count();
            // Every `step`-th of them, beginning elsewhere in each picture.
            let step = full.div_ceil(Cells::MOST);
            let of_picture = |i: usize| (0..full).filter(|w| w % step == i % step).count();
            let expected: usize = (0..pictures).map(of_picture).sum();
            assert_eq!(samples.groups(), expected * heads, "{window:?}");
            counts.push(full);
        }
        assert_eq!(counts, [8, 3, 2, 1], "windows of each grid that are whole");
    }
}
