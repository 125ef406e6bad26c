//! Reads what follows the last block: LayerNorm, choice of tokens, classifier.
//!
//! Walked from the graph's output upwards. LayerNorm works row by row, so that
//! choosing a token before or after it is the same.

use super::error::Misfit;
use super::reduce::{Kind, Step};
use super::trace::Trace;
use super::view::View;
use super::walk::{Linear, Stream, Walk, is_linear, linear_parts};
use crate::onnx::ValueId;
use tpvit_models::{NormAt, Readout};

const EXPECTED: &str = "a final LayerNorm, the choice or mean of tokens, and a linear classifier";

/// What a value is made of, and the LayerNorm on the way.
struct Read<'r> {
    readout: Readout,
    norm: &'r Step,
}

impl<'r> Walk<'r, '_> {
    /// What is read off the tokens `x`, and for how many classes.
    pub(crate) fn readout(&mut self, x: Stream) -> Result<(Readout, usize), Misfit> {
        let found = self.result(x);
        found.map_err(|misfit| match self.stranger(x) {
            Some(step) => self.strange(step, EXPECTED),
            None => misfit,
        })
    }

    /// The first step after `x` that is part of no readout.
    fn stranger(&self, x: Stream) -> Option<&'r Step> {
        let mut strangers = Vec::new();
        let (mut waiting, mut seen) = (vec![x.value], std::collections::HashSet::new());
        while let Some(value) = waiting.pop() {
            for step in self.r.uses(value) {
                match step.kind {
                    Kind::View(_)
                    | Kind::Parts { .. }
                    | Kind::LayerNorm { .. }
                    | Kind::Mean { .. }
                    | Kind::Linear { .. }
                    | Kind::Concat
                    | Kind::Sum
                    | Kind::Scale { .. } => {
                        if seen.insert(step.output) {
                            waiting.push(step.output);
                        }
                    }
                    _ => strangers.push(step),
                }
            }
        }
        strangers.into_iter().min_by_key(|step| step.node.0)
    }

    fn result(&mut self, x: Stream) -> Result<(Readout, usize), Misfit> {
        let trace = Trace::new(self.r, self.r.folded.graph.outputs[0]);
        let Some(step) = self.r.source(trace.source) else {
            return Err(Misfit::nowhere("its output is its input"));
        };
        let plain = trace.in_order() && trace.scale == 1.0;
        match step.kind {
            Kind::Sum if trace.in_order() => self.two_heads(step, trace.scale, x),
            Kind::Linear { .. } if plain => {
                let layer = linear_parts(step).expect("it is a linear layer");
                let read = self.read(step.inputs[0], x)?;
                let (tokens, classes) = (row_tokens(read.readout), layer.bias.len());
                if tokens.is_none_or(|tokens| tokens * x.dim != layer.k) {
                    return Err(Misfit::at(step, "a classifier of one row"));
                }
                self.layer_norm("norm", read.norm, x.dim, |i| i);
                self.classifier(read.readout, layer, x.dim);
                self.lone_classifier(step, read.readout, classes)?;
                Ok((read.readout, classes))
            }
            _ => {
                let read = self.read(self.r.folded.graph.outputs[0], x)?;
                if let Readout::Concat { .. } | Readout::TokenAndMean { .. } = read.readout {
                    return Err(Misfit::at(step, "every token or one row as features"));
                }
                self.layer_norm("norm", read.norm, x.dim, |i| i);
                Ok((read.readout, 0))
            }
        }
    }

    fn classifier(&mut self, readout: Readout, mut layer: Linear, dim: usize) {
        if let Readout::TokenAndMean { .. } = readout {
            let rows = layer.weight.chunks_exact(2 * dim);
            let (token, mean): (Vec<_>, Vec<_>) = rows.map(|row| row.split_at(dim)).unzip();
            let token = Linear {
                weight: token.concat(),
                bias: vec![0.0; layer.bias.len()],
                k: dim,
            };
            layer.weight = mean.concat();
            self.linear("head.token", token);
        }
        self.linear("head", layer);
    }

    /// No other output of the graph is a classifier of another token, as it is
    /// of a DeiT that was exported in training mode.
    fn lone_classifier(
        &self,
        classifier: &Step,
        readout: Readout,
        classes: usize,
    ) -> Result<(), Misfit> {
        let graph = self.r.folded.graph;
        let same = |id: &&ValueId| self.r.shape(**id) == [1, classes];
        match graph.outputs[1..].iter().find(same) {
            Some(other) if matches!(readout, Readout::Token(_)) => Err(Misfit::at(
                classifier,
                format!(
                    "the graph's only classifier, but {:?} is another one: export a distilled model in evaluation mode, where both are averaged;",
                    graph.value(*other).name
                ),
            )),
            Some(_) | None => Ok(()),
        }
    }

    /// The mean of two classifiers, as one that reads both tokens.
    fn two_heads(&mut self, sum: &Step, scale: f64, x: Stream) -> Result<(Readout, usize), Misfit> {
        let expected = "the mean of the classifiers of two neighbouring tokens";
        let misfit = || Misfit::at(sum, expected);
        let mut heads = Vec::new();
        let mut norms = Vec::new();
        for input in &sum.inputs {
            let trace = Trace::new(self.r, *input);
            let step = self.expect(&trace, expected, is_linear)?;
            let read = self.read(step.inputs[0], x)?;
            let layer = linear_parts(step).expect("`expect` found a linear layer");
            let half = trace.in_order() && scale * trace.scale == 0.5 && layer.k == x.dim;
            let Readout::Token(token) = read.readout else {
                return Err(Misfit::at(step, expected));
            };
            if !half {
                return Err(misfit());
            }
            heads.push((token, layer));
            norms.push(read.norm);
        }
        heads.sort_by_key(|(token, _)| *token);
        let [(first, a), (second, b)] = &heads[..] else {
            return Err(misfit());
        };
        let classes = a.bias.len();
        let same_norm = norms[0].output == norms[1].output;
        if *second != first + 1 || b.bias.len() != classes || !same_norm {
            return Err(misfit());
        }
        let rows = a.weight.chunks(a.k).zip(b.weight.chunks(b.k));
        let weight = rows.flat_map(|(a, b)| a.iter().chain(b).map(|w| 0.5 * w));
        let bias = a.bias.iter().zip(&b.bias).map(|(a, b)| 0.5 * (a + b));
        let layer = Linear {
            weight: weight.collect(),
            bias: bias.collect(),
            k: 2 * x.dim,
        };
        let readout = Readout::Concat {
            first: *first,
            count: 2,
        };
        self.layer_norm("norm", norms[0], x.dim, |i| i);
        self.linear("head", layer);
        Ok((readout, classes))
    }

    /// What `value` is made of.
    fn read(&self, value: ValueId, x: Stream) -> Result<Read<'r>, Misfit> {
        let trace = Trace::new(self.r, value);
        let step = self.expect(&trace, EXPECTED, |k| {
            matches!(k, Kind::LayerNorm { .. } | Kind::Mean { .. } | Kind::Concat)
        })?;
        let misfit = || Misfit::at(step, EXPECTED);
        let plain = trace.scale == 1.0;
        match &step.kind {
            Kind::Concat if plain && trace.in_order() => self.token_and_mean(step, x),
            Kind::Mean { axes } if plain && trace.in_order() => {
                let (source, [first, count]) =
                    self.mean_of(step, axes, x.dim).ok_or_else(misfit)?;
                let norm = self.made_by(source, step, "a final LayerNorm", |k| {
                    matches!(k, Kind::LayerNorm { .. })
                })?;
                if self.r.base(norm.inputs[0]) != self.r.base(x.value) {
                    return Err(Misfit::at(norm, "the last block's tokens as its input"));
                }
                let readout = Readout::Mean {
                    first,
                    count,
                    norm: NormAt::Tokens,
                };
                Ok(Read { readout, norm })
            }
            Kind::LayerNorm { .. } if plain => {
                let rows = trace.rows(x.dim).ok_or_else(misfit)?;
                let input = Trace::new(self.r, step.inputs[0]);
                let before = self.r.source(input.source);
                if input.source == self.r.base(x.value) && input.scale == 1.0 {
                    let chosen = input.rows(x.dim).ok_or_else(misfit)?;
                    let tokens = rows.iter().map(|row| chosen.get(*row).copied());
                    let tokens = tokens.collect::<Option<Vec<_>>>().ok_or_else(misfit)?;
                    let readout = readout_of(&tokens, x.tokens).ok_or_else(misfit)?;
                    return Ok(Read {
                        readout,
                        norm: step,
                    });
                }
                let Some(mean) = before.filter(|_| input.in_order() && input.scale == 1.0) else {
                    return Err(misfit());
                };
                let Kind::Mean { axes } = &mean.kind else {
                    return Err(Misfit::at(mean, EXPECTED));
                };
                let (source, [first, count]) = self
                    .mean_of(mean, axes, x.dim)
                    .ok_or_else(|| Misfit::at(mean, EXPECTED))?;
                if source != self.r.base(x.value) || rows != [0] {
                    return Err(Misfit::at(mean, "the mean of the last block's tokens"));
                }
                let readout = Readout::Mean {
                    first,
                    count,
                    norm: NormAt::Mean,
                };
                Ok(Read {
                    readout,
                    norm: step,
                })
            }
            _ => Err(misfit()),
        }
    }

    /// A token and the mean of others, side by side.
    fn token_and_mean(&self, concat: &Step, x: Stream) -> Result<Read<'r>, Misfit> {
        let expected = "a token and the mean of others, both of the same LayerNorm, side by side";
        let misfit = || Misfit::at(concat, expected);
        let [token, mean] = concat.inputs[..] else {
            return Err(misfit());
        };
        let (token, mean) = (self.read(token, x)?, self.read(mean, x)?);
        match (token.readout, mean.readout) {
            (
                Readout::Token(token_index),
                Readout::Mean {
                    first,
                    count,
                    norm: NormAt::Tokens,
                },
            ) if token.norm.output == mean.norm.output => Ok(Read {
                readout: Readout::TokenAndMean {
                    token: token_index,
                    first,
                    count,
                },
                norm: token.norm,
            }),
            _ => Err(misfit()),
        }
    }

    /// The value whose rows `mean` is the mean of, the first and how many.
    fn mean_of(&self, mean: &Step, axes: &[usize], dim: usize) -> Option<(ValueId, [usize; 2])> {
        let input = Trace::new(self.r, mean.inputs[0]);
        let groups = View::grouped(self.r.shape(mean.inputs[0]), axes).indexes();
        if input.scale != 1.0 || dim == 0 || !groups.len().is_multiple_of(dim) {
            return None;
        }
        let count = groups.len() / dim;
        let mut first = None;
        for (channel, group) in groups.chunks_exact(count.max(1)).enumerate() {
            let mut from: Vec<usize> = group
                .iter()
                .map(|i| input.index[*i as usize] as usize)
                .collect();
            from.sort_unstable();
            let start = from[0] / dim;
            let run = from
                .iter()
                .enumerate()
                .all(|(i, j)| *j == (start + i) * dim + channel);
            if !run || *first.get_or_insert(start) != start {
                return None;
            }
        }
        Some((input.source, [first?, count]))
    }
}

/// The readout of some rows of a LayerNorm.
fn readout_of(tokens: &[usize], all: usize) -> Option<Readout> {
    let first = *tokens.first()?;
    let run = tokens.iter().enumerate().all(|(i, t)| *t == first + i);
    let count = tokens.len();
    match (run, count) {
        (true, 1) => Some(Readout::Token(first)),
        (true, _) if count == all => Some(Readout::Tokens),
        (true, _) => Some(Readout::Concat { first, count }),
        (false, _) => None,
    }
}

/// How many tokens wide the row is that a classifier reads.
fn row_tokens(readout: Readout) -> Option<usize> {
    match readout {
        Readout::Tokens => None,
        Readout::Token(_) | Readout::Mean { .. } => Some(1),
        Readout::Concat { count, .. } => Some(count),
        Readout::TokenAndMean { .. } => Some(2),
    }
}
