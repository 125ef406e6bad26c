//! Reads the tokens of the picture: patches, and what is put before them.

use super::error::Misfit;
use super::reduce::{Kind, Reduced, Step};
use super::trace::only_use;
use super::view::View;
use super::walk::{Stream, Walk, vector};
use crate::onnx::{Tensor, ValueId};
use std::collections::{BTreeMap, HashMap};

/// Marks an element that comes from a constant, not from a patch.
const CONSTANT: u32 = u32::MAX;

/// What the patch embedding is made of, beside its weights.
pub(crate) struct Embedding {
    pub(crate) patch: [usize; 2],
    /// Rows and columns of patches.
    pub(crate) grid: [usize; 2],
    /// Tokens before the patches.
    pub(crate) prefix: usize,
    pub(crate) position: bool,
    pub(crate) stream: Stream,
}

/// Tokens on their way to the first block:
/// `value[i] = offset[i] + patches[index[i]]`.
struct Tokens {
    index: Vec<u32>,
    offset: Vec<f32>,
}

impl<'r> Walk<'r, '_> {
    pub(crate) fn embed(&mut self, picture: ValueId) -> Result<Embedding, Misfit> {
        let conv = only_use(self.r, picture, "a patch embedding")?;
        let patch = self.patch_size(conv)?;
        let [_, d, rows, cols] = *self.r.shape(conv.output) else {
            return Err(Misfit::at(conv, "a two-dimensional convolution"));
        };
        let (value, tokens) = self.tokens(conv, d * rows * cols)?;
        let last = self.r.source(value).unwrap_or(conv);
        let stream = Stream {
            value,
            tokens: tokens.index.len() / d,
            dim: d,
        };
        let (prefix, position) = self
            .take_embedding(conv, patch, &tokens, stream)
            .ok_or_else(|| {
                Misfit::at(
                    last,
                    "prefix tokens followed by the patches in row-major order",
                )
            })?;
        self.tap("embed", value, "embed");
        Ok(Embedding {
            patch,
            grid: [rows, cols],
            prefix,
            position,
            stream,
        })
    }

    /// The value that the first step reads which does more than to arrange tokens.
    ///
    /// Steps are taken in their order, so that each finds its inputs known; class
    /// token, positions and registers may join one after the other.
    fn tokens(&self, conv: &'r Step, len: usize) -> Result<(ValueId, Tokens), Misfit> {
        let patches = Tokens {
            index: (0..len as u32).collect(),
            offset: vec![0.0; len],
        };
        let mut last = self.r.base(conv.output);
        let mut known = HashMap::from([(last, patches)]);
        let order = |step: &'r Step| (step.node.0, step);
        let mut waiting: BTreeMap<_, _> = self.r.uses(conv.output).into_iter().map(order).collect();
        while let Some((_, step)) = waiting.pop_first() {
            let mut inputs = step.inputs.iter().map(|id| self.r.base(*id));
            let input = inputs.find(|id| known.contains_key(id));
            let input = input.expect("a step that waits reads a known value");
            let tokens = &known[&input];
            let arranged = match &step.kind {
                Kind::Offset { by } => tokens.plus(by, self.r.shape(step.inputs[0])),
                Kind::Concat => beside(self.r, step, &known),
                kind => match kind.moves() {
                    Some(moved) => Some(tokens.moved(&moved)),
                    None => {
                        last = input;
                        break;
                    }
                },
            };
            let arranged = arranged.ok_or_else(|| {
                Misfit::at(
                    step,
                    "class token, patches and positions as [1, tokens, channels]",
                )
            })?;
            last = self.r.base(step.output);
            known.insert(last, arranged);
            waiting.extend(self.r.uses(step.output).into_iter().map(order));
        }
        let tokens = known.remove(&last).expect("the value was just looked at");
        Ok((last, tokens))
    }

    /// A LayerNorm of the tokens before the first block.
    pub(crate) fn norm_before(&mut self, name: &str, x: &mut Stream) -> bool {
        let [norm] = self.r.uses(x.value)[..] else {
            return false;
        };
        let found = matches!(norm.kind, Kind::LayerNorm { .. });
        if found {
            self.layer_norm(name, norm, x.dim, |i| i);
            x.value = norm.output;
        }
        found
    }

    /// Patch height and width, if `step` cuts the picture into patches.
    fn patch_size(&self, step: &Step) -> Result<[usize; 2], Misfit> {
        let expected = "a patch embedding (a convolution whose stride is its kernel, unpadded, of a picture that it tiles)";
        let misfit = || Misfit::at(step, expected);
        let Kind::Conv { weight, bias } = &step.kind else {
            return Err(misfit());
        };
        let node = self.r.node(step);
        let [d, 3, h, w] = weight.shape[..] else {
            return Err(misfit());
        };
        let [1, 3, height, width] = *self.r.shape(step.inputs[0]) else {
            return Err(misfit());
        };
        let all = |name: &str, value: i64| {
            node.ints(name)
                .is_none_or(|v| v.iter().all(|v| *v == value))
        };
        if d * h * w == 0 {
            return Err(misfit());
        }
        let strides = node.ints("strides").unwrap_or(&[1, 1]);
        let tiles = strides == [h as i64, w as i64] && height % h == 0 && width % w == 0;
        let plain = all("pads", 0) && all("dilations", 1) && node.int("group").unwrap_or(1) == 1;
        let biased = bias
            .as_ref()
            .is_none_or(|b| b.floats().is_some_and(|v| v.len() == d));
        (tiles && plain && biased)
            .then_some([h, w])
            .ok_or_else(misfit)
    }

    /// Tokens before the patches, and whether these have a position. `None` if the
    /// tokens are not a constant prefix and then the patches.
    fn take_embedding(
        &mut self,
        conv: &Step,
        patch: [usize; 2],
        tokens: &Tokens,
        x: Stream,
    ) -> Option<(usize, bool)> {
        let Kind::Conv { weight, bias } = &conv.kind else {
            return None;
        };
        let d = x.dim;
        let [_, _, rows, cols] = *self.r.shape(conv.output) else {
            return None;
        };
        let patches = rows * cols;
        let prefix = x.tokens.checked_sub(patches)?;
        let (head, tail) = tokens.index.split_at(prefix * d);
        let from_patch = |(i, from): (usize, &u32)| *from as usize == i % d * patches + i / d;
        let ordered = tail.len() == patches * d && tail.iter().enumerate().all(from_patch);
        if !ordered || head.iter().any(|i| *i != CONSTANT) {
            return None;
        }
        let cols = patch[0] * patch[1] * 3;
        let rows = weight
            .floats()?
            .chunks(cols)
            .flat_map(|row| by_pixel(row, patch));
        let parts = &mut self.parts;
        parts.tensor("patch_embed.weight".into(), rows.collect());
        parts.tensor("patch_embed.bias".into(), vector(bias.as_ref(), d, 0.0));
        let (head, tail) = tokens.offset.split_at(prefix * d);
        let position = tail.iter().any(|v| *v != 0.0);
        if prefix > 0 {
            parts.tensor("prefix".into(), head.to_vec());
        }
        if position {
            parts.tensor("position".into(), tail.to_vec());
        }
        Some((prefix, position))
    }
}

impl Tokens {
    fn moved(&self, index: &[u32]) -> Tokens {
        Tokens {
            index: index.iter().map(|i| self.index[*i as usize]).collect(),
            offset: index.iter().map(|i| self.offset[*i as usize]).collect(),
        }
    }

    /// `by` added to a value of this shape.
    fn plus(&self, by: &Tensor, shape: &[usize]) -> Option<Tokens> {
        let from = View::broadcast(&by.shape, shape)?.indexes();
        let by = by.floats()?;
        let sums = self
            .offset
            .iter()
            .zip(from)
            .map(|(o, i)| o + by[i as usize]);
        Some(Tokens {
            index: self.index.clone(),
            offset: sums.collect(),
        })
    }
}

/// Constants and known tokens side by side, as whole tokens.
fn beside(
    reduced: &Reduced<'_>,
    concat: &Step,
    known: &HashMap<ValueId, Tokens>,
) -> Option<Tokens> {
    let node = reduced.node(concat);
    let [1, _, _] = *reduced.shape(concat.output) else {
        return None;
    };
    if !matches!(node.int("axis"), Some(1 | -2)) {
        return None;
    }
    let mut all = Tokens {
        index: Vec::new(),
        offset: Vec::new(),
    };
    for id in node.inputs.iter().flatten() {
        match reduced.folded.constant(*id) {
            Some(constant) => {
                let values = constant.floats()?;
                all.index
                    .extend(std::iter::repeat_n(CONSTANT, values.len()));
                all.offset.extend_from_slice(values);
            }
            None => {
                let tokens = known.get(&reduced.base(*id))?;
                all.index.extend(&tokens.index);
                all.offset.extend(&tokens.offset);
            }
        }
    }
    Some(all)
}

/// A convolution's `(channel, y, x)` row as `(y, x, channel)`.
fn by_pixel(row: &[f32], [h, w]: [usize; 2]) -> Vec<f32> {
    let from = |i: usize| row[i % 3 * h * w + i / 3];
    (0..row.len()).map(from).collect()
}
