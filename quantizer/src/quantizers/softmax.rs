//! What the quantizers of post-softmax attention share.
//!
//! All of them end as a [`SoftmaxQuant`]: with `t = -log2(p)` in octaves
//! (relative to the row's largest `p` for [`SoftmaxKind::RowMax`]),
//!
//! ```text
//! code = #{ c : t > thresholds[c] }
//! p   ~= scale * multipliers[code]           (static)
//! p   ~= multipliers[code] / row sum of them (renormalised)
//! ```
//!
//! and never have more than `2^bits` levels. They differ in where thresholds
//! and multipliers lie. Those with parameters search them for the least error
//! of the product with the values, `|(P - P^) V|^2`, the criterion of AdaLog
//! (arXiv:2407.12951), which is also how [`AttentionSamples`] judges them.
//!
//! Relative error of the product, `|(P - P^) V| / |P V|`, median over the 12
//! layers of ViT-Ti/16, fitted to 6 calibration pictures and judged on 6 others
//! (the ignored test of `tests/quantizers_vit.rs` prints it). One codebook for
//! all heads or one for each; rows as published or divided by their integer sum:
//!
//! | | 3 bits | per head | divided | both | 4 bits | per head | divided | both |
//! |---|---|---|---|---|---|---|---|---|
//! | uniform | .319 | .252 | .303 | .252 | .244 | .187 | .215 | .186 |
//! | twin uniform | .326 | .298 | .280 | .279 | .164 | .148 | .148 | .156 |
//! | log2 | .387 | .387 | .411 | .411 | .089 | .089 | .074 | .074 |
//! | log√2 | .553 | .489 | .644 | .576 | .114 | .104 | .105 | .100 |
//! | AdaLog | .165 | .153 | .127 | .128 | .071 | .072 | .061 | .061 |
//! | SULQ | .213 | .209 | .150 | .137 | .119 | .121 | .093 | .097 |
//! | TULQ-A | .142 | .135 | .105 | .110 | .069 | .070 | .057 | .057 |
//! | TULQ-Z | .123 | .127 | .101 | .106 | .066 | .067 | .056 | .053 |
//! | TULQ-ZA | .108 | .108 | .090 | .089 | .052 | .051 | .042 | .043 |
//! | row maximum | .061 | .061 | .061 | .061 | .043 | .043 | .043 | .043 |
//!
//! A codebook per head helps the evenly spaced codes most; a truncated log grid
//! covers the heads' ranges already. Row maximum is the only one whose range
//! follows the row; its multipliers end at 127 here, those of the others at 16384.

use rayon::prelude::*;
use tpvit_models::{BitWidth, SoftmaxCodebook, SoftmaxKind, SoftmaxMethod, SoftmaxQuant};

use super::octave_histogram::OctaveHistogram;

/// Probabilities below this count as this: `t` stays finite.
const SMALLEST: f32 = f32::MIN_POSITIVE;

/// A quantizer of post-softmax attention.
pub trait SoftmaxQuantizer: Sync {
    /// Which one, as stored in the file.
    fn method(&self) -> SoftmaxMethod;

    /// The static quantizer of this method that has `codebook` for all heads.
    fn with_codebook(
        &self,
        bits: BitWidth,
        renormalise: bool,
        codebook: SoftmaxCodebook,
    ) -> SoftmaxQuant {
        SoftmaxQuant {
            bits,
            method: self.method(),
            kind: SoftmaxKind::Static,
            renormalise,
            codebooks: vec![codebook],
        }
    }

    /// What people call it.
    fn name(&self) -> &'static str;

    /// Fits it to what was sampled of one attention operation, all heads
    /// together: one codebook.
    ///
    /// # Panics
    /// If `samples` is empty and the quantizer has parameters to fit.
    fn fit(&self, bits: BitWidth, samples: &AttentionSamples) -> SoftmaxQuant;
}

/// Fits `quantizer` to each head by itself: one codebook for each, or one for
/// all where they come out the same, as those do that have nothing to fit.
///
/// # Panics
/// If `samples` is empty.
pub fn fit_per_head(
    quantizer: &dyn SoftmaxQuantizer,
    bits: BitWidth,
    samples: &AttentionSamples,
) -> SoftmaxQuant {
    let mut heads = (0..samples.heads()).map(|head| quantizer.fit(bits, &samples.of_head(head)));
    let mut all = heads.next().expect("attention has a head");
    for head in heads {
        all.codebooks.extend(head.codebooks);
    }
    if all.codebooks.iter().all(|c| *c == all.codebooks[0]) {
        all.codebooks.truncate(1);
    }
    all
}

/// Rows of probabilities of one head in one picture, with the values they weigh.
#[derive(Clone, Debug, PartialEq)]
struct AttentionGroup {
    head: usize,
    /// `[rows, tokens]`, each row of sum 1.
    probabilities: Vec<f32>,
    /// `-log2` of the probabilities.
    octaves: Vec<f32>,
    /// `[tokens, head_dim]`.
    values: Vec<f32>,
}

/// A bounded sample of what one attention operation computes.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSamples {
    tokens: usize,
    head_dim: usize,
    groups: Vec<AttentionGroup>,
}

impl AttentionSamples {
    /// No sample yet, of attention over `tokens` with heads of `head_dim` channels.
    pub fn new(tokens: usize, head_dim: usize) -> Self {
        AttentionSamples {
            tokens,
            head_dim,
            groups: Vec::new(),
        }
    }

    /// Adds `probabilities`, `[rows, tokens]` for any number of rows, of
    /// `head`, with its `values`, `[tokens, head_dim]`.
    ///
    /// # Panics
    /// If a length is wrong.
    pub fn push(&mut self, head: usize, probabilities: Vec<f32>, values: Vec<f32>) {
        assert!(probabilities.len().is_multiple_of(self.tokens));
        assert_eq!(values.len(), self.tokens * self.head_dim);
        self.groups.push(AttentionGroup {
            head,
            octaves: probabilities.iter().map(|&p| octaves(p)).collect(),
            probabilities,
            values,
        });
    }

    /// Appends another sample of the same operation.
    pub fn append(&mut self, mut other: AttentionSamples) {
        assert_eq!([self.tokens, self.head_dim], [other.tokens, other.head_dim]);
        self.groups.append(&mut other.groups);
    }

    /// Columns of a row of probabilities.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Number of (head, picture) pairs sampled.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Number of heads sampled: the highest, and one.
    pub fn heads(&self) -> usize {
        self.groups.iter().map(|g| g.head + 1).max().unwrap_or(0)
    }

    /// What was sampled of one head.
    pub fn of_head(&self, head: usize) -> AttentionSamples {
        let groups = self.groups.iter().filter(|g| g.head == head);
        AttentionSamples {
            groups: groups.cloned().collect(),
            ..*self
        }
    }

    /// The probabilities that these fractions of the sample, 0 to 1, do not exceed.
    ///
    /// # Panics
    /// If the sample is empty.
    pub fn percentiles<const N: usize>(&self, fractions: &[f64; N]) -> [f32; N] {
        let all = self.groups.iter().flat_map(|g| &g.probabilities);
        let mut all: Vec<f32> = all.copied().collect();
        all.sort_unstable_by(f32::total_cmp);
        fractions.map(|fraction| all[((all.len() - 1) as f64 * fraction) as usize])
    }

    /// `|(P - P^) V|^2 / |P V|^2` over the sample.
    pub fn relative_error(&self, quant: &SoftmaxQuant) -> f64 {
        let signal: f64 = self
            .groups
            .iter()
            .flat_map(|g| self.rows(g).map(|(_, p)| self.product(p, &g.values)))
            .sum();
        self.squared_error(quant) / signal.max(f64::MIN_POSITIVE)
    }

    /// `|(P - P^) V|^2` over the sample.
    pub fn squared_error(&self, quant: &SoftmaxQuant) -> f64 {
        let mut shifted = vec![0.0; self.tokens];
        let mut error = vec![0.0; self.tokens];
        let mut sum = 0.0;
        for group in &self.groups {
            for (t, p) in self.rows(group) {
                let origin = row_origin(quant.kind, t);
                for (s, &t) in shifted.iter_mut().zip(t) {
                    *s = t - origin;
                }
                quantize_row(quant, group.head, &shifted, &mut error, None);
                for (e, &p) in error.iter_mut().zip(p) {
                    *e -= p;
                }
                sum += self.product(&error, &group.values);
            }
        }
        sum
    }

    /// Where the probabilities lie, as codes of `kind` see them.
    pub fn histogram(&self, kind: SoftmaxKind) -> OctaveHistogram {
        let mut histogram = OctaveHistogram::default();
        for group in &self.groups {
            for (octaves, probabilities) in self.rows(group) {
                let origin = row_origin(kind, octaves);
                for (t, &p) in octaves.iter().zip(probabilities) {
                    histogram.add(t - origin, p);
                }
            }
        }
        histogram
    }

    fn rows<'a>(
        &self,
        group: &'a AttentionGroup,
    ) -> impl Iterator<Item = (&'a [f32], &'a [f32])> + use<'a> {
        let octaves = group.octaves.chunks(self.tokens);
        octaves.zip(group.probabilities.chunks(self.tokens))
    }

    /// `|row * values|^2`.
    fn product(&self, row: &[f32], values: &[f32]) -> f64 {
        let mut sum = vec![0.0f32; self.head_dim];
        for (&weight, value) in row.iter().zip(values.chunks(self.head_dim)) {
            for (s, &v) in sum.iter_mut().zip(value) {
                *s += weight * v;
            }
        }
        sum.iter().map(|&s| f64::from(s) * f64::from(s)).sum()
    }
}

/// The `t` of a row's largest probability where codes are relative to it.
fn row_origin(kind: SoftmaxKind, octaves: &[f32]) -> f32 {
    match kind {
        SoftmaxKind::RowMax => octaves.iter().copied().fold(f32::INFINITY, f32::min),
        SoftmaxKind::Static => 0.0,
    }
}

/// `-log2(p)`, finite for every probability.
pub fn octaves(p: f32) -> f32 {
    -p.max(SMALLEST).log2()
}

/// The code of a probability `octaves` below 1, or below the row's largest:
/// the number of thresholds it exceeds.
pub fn encode(codebook: &SoftmaxCodebook, octaves: f32) -> u8 {
    let thresholds = &codebook.thresholds;
    thresholds.partition_point(|&limit| octaves > limit) as u8
}

/// What `code` stands for before renormalisation: a probability, or for
/// row-maximum codes a fraction of the row's largest.
pub fn decode(kind: SoftmaxKind, codebook: &SoftmaxCodebook, code: u8) -> f32 {
    let multiplier = f32::from(codebook.multipliers[usize::from(code)]);
    match kind {
        SoftmaxKind::RowMax => multiplier / f32::from(codebook.multipliers[0]),
        SoftmaxKind::Static => codebook.scale * multiplier,
    }
}

/// Quantizes a row of `head` as the integer runtime does: `octaves` to
/// `probabilities`, and to `codes` where wanted.
///
/// A renormalised row whose multipliers sum to 0 or less becomes zeros.
///
/// # Panics
/// If lengths differ.
pub fn quantize_row(
    quant: &SoftmaxQuant,
    head: usize,
    octaves: &[f32],
    probabilities: &mut [f32],
    mut codes: Option<&mut [u8]>,
) {
    assert_eq!(
        octaves.len(),
        probabilities.len(),
        "one result for each value"
    );
    let codebook = quant.codebook(head);
    let mut sum = 0i32;
    for (i, (&t, p)) in octaves.iter().zip(probabilities.iter_mut()).enumerate() {
        let code = encode(codebook, t);
        let multiplier = codebook.multipliers[usize::from(code)];
        sum += i32::from(multiplier);
        *p = f32::from(multiplier);
        if let Some(codes) = codes.as_deref_mut() {
            codes[i] = code;
        }
    }
    let factor = match quant.kind {
        _ if quant.renormalise && sum > 0 => 1.0 / sum as f32,
        _ if quant.renormalise => 0.0,
        SoftmaxKind::Static => codebook.scale,
        SoftmaxKind::RowMax => 1.0 / f32::from(codebook.multipliers[0]),
    };
    for p in probabilities {
        *p *= factor;
    }
}

/// The multiplier of probability `2^-T_lo` in a static quantizer: the largest
/// power of two up to `2^14` for which no sum over `tokens` products with
/// 8-bit values overflows an i32.
///
/// ```text
/// tokens * height * 255 < 2^31
/// ```
pub fn height(tokens: usize) -> i16 {
    let fits = |bits: u32| ((tokens as u64 * 255) << bits) < (1 << 31);
    let bits = (0..=14).rev().find(|&bits| fits(bits)).unwrap_or(0);
    1 << bits
}

/// The candidate whose quantizer, made by `build`, has the least A·V error;
/// the first of equals.
///
/// # Panics
/// If there is no candidate or no sample.
pub fn best<T: Copy + Send + Sync>(
    samples: &AttentionSamples,
    candidates: &[T],
    build: impl Fn(T) -> SoftmaxQuant + Sync,
) -> T {
    assert!(
        samples.groups() > 0,
        "nothing was sampled to fit a softmax quantizer to"
    );
    let judge = |&candidate: &T| (samples.squared_error(&build(candidate)), candidate);
    let judged: Vec<(f64, T)> = candidates.par_iter().map(judge).collect();
    let least = judged
        .into_iter()
        .reduce(|best, next| if next.0 < best.0 { next } else { best });
    least.expect("at least one candidate").1
}

/// The codebook of the nearest of `levels`, integers times `unit` that fall to
/// 0. Codes beyond the levels are never used.
///
/// # Panics
/// If there is no level, or there are more than codes.
pub fn nearest_level(bits: BitWidth, unit: f64, levels: &[i16]) -> SoftmaxCodebook {
    let codes = usize::from(bits.max_code()) + 1;
    assert!(
        (1..=codes).contains(&levels.len()),
        "{} levels",
        levels.len()
    );
    let middle = |code: usize| match levels.get(code..code + 2) {
        Some(pair) => threshold(unit * (f64::from(pair[0]) + f64::from(pair[1])) / 2.0),
        None => f32::INFINITY,
    };
    let mut multipliers = levels.to_vec();
    multipliers.resize(codes, 0);
    SoftmaxCodebook {
        scale: unit as f32,
        thresholds: (0..codes - 1).map(middle).collect(),
        multipliers,
    }
}

/// Turns levels of probability into thresholds in octaves: [`f32::INFINITY`]
/// for a level of 0 or less, which no probability is below.
pub fn threshold(probability: f64) -> f32 {
    if probability > 0.0 {
        -probability.log2() as f32
    } else {
        f32::INFINITY
    }
}
