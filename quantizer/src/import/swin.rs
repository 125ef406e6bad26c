//! Recognises Swin: see [`tpvit_models::swin`].

use super::error::Misfit;
use super::parts::Draft;
use super::reduce::{Kind, Reduced, Step};
use super::trace::{Trace, only_use};
use super::walk::{BlockShape, Stream, Walk, linear_parts};
use tpvit_models::program::merged_tokens;
use tpvit_models::swin::{Config, Stage, program};
use tpvit_models::{Mlp, NormAt, Readout};

pub(crate) fn recognise(reduced: &Reduced<'_>) -> Result<Draft, Misfit> {
    let mut walk = Walk::new(reduced);
    let (picture, image) = walk.picture()?;
    let embedding = walk.embed(picture)?;
    let mut x = embedding.stream;
    if embedding.prefix > 0 || embedding.position {
        let step = reduced.source(x.value);
        let expected = "patches alone, without class token and position";
        return Err(step.map_or_else(|| Misfit::nowhere(expected), |s| Misfit::at(s, expected)));
    }
    let patch_norm = walk.norm_before("patch_embed.norm", &mut x);
    let mut grid = embedding.grid;
    let mut stages = Vec::new();
    loop {
        let stage;
        (x, stage) = walk.stage(stages.len(), x, grid)?;
        stages.push(stage);
        match walk.patch_merge(stages.len(), x, grid)? {
            Some(merged) => x = merged,
            None => break,
        }
        grid = grid.map(|side| side / 2);
    }
    let (readout, classes) = walk.readout(x)?;
    let whole = Readout::Mean {
        first: 0,
        count: x.tokens,
        norm: NormAt::Tokens,
    };
    if readout != whole && readout != Readout::Tokens {
        let expected = format!("the mean of all {} tokens, normalised", x.tokens);
        let step = reduced.source(reduced.folded.graph.outputs[0]);
        return Err(step.map_or_else(
            || Misfit::nowhere(expected.clone()),
            |step| Misfit::at(step, expected.clone()),
        ));
    }
    let config = Config {
        image,
        patch: embedding.patch,
        patch_norm,
        stages,
        eps: 1e-5, // of a norm that has none of its own: here, all have
        readout,
        classes,
    };
    Ok(walk.finish(program(&config)))
}

impl<'r> Walk<'r, '_> {
    fn stage(
        &mut self,
        index: usize,
        mut x: Stream,
        grid: [usize; 2],
    ) -> Result<(Stream, Stage), Misfit> {
        let mut half = self.residual(x.value)?;
        let mut stage: Option<Stage> = None;
        let mut first = None;
        for depth in 0.. {
            let name = format!("stages.{index}.blocks.{depth}");
            let block;
            (x, block) = self.block(&name, x, half, Some(grid))?;
            if let Some(expected) = block.difference(first.get_or_insert(block)) {
                return Err(Misfit::at(half.sum, expected));
            }
            let stage = stage.get_or_insert(new_stage(&block, x.dim));
            grow(stage, &block).map_err(|expected| Misfit::at(half.sum, expected))?;
            match self.block_ahead(x.value) {
                Some(next) => half = next,
                None => break,
            }
        }
        Ok((x, stage.expect("the loop found a block")))
    }

    /// Merging of the grid, two by two, if the stream does not end here.
    ///
    /// An exporter may put the four tokens side by side in another order; the
    /// norm and the reduction are then put in order instead, for the mean and the
    /// variance of a LayerNorm do not depend on it.
    fn patch_merge(
        &mut self,
        stage: usize,
        x: Stream,
        [rows, cols]: [usize; 2],
    ) -> Result<Option<Stream>, Misfit> {
        let readers = self.readers(x.value);
        let width = |step: &Step| self.r.shape(step.output).last().copied();
        let norm = match readers[..] {
            [norm] if matches!(norm.kind, Kind::LayerNorm { .. }) => norm,
            [step, ..] => {
                let expected = "a block, a merge of patches, or the final LayerNorm";
                return Err(self.strange(step, expected));
            }
            [] => return Ok(None), // the readout says what is missing
        };
        if width(norm) != Some(4 * x.dim) {
            return Ok(None);
        }
        let trace = Trace::new(self.r, norm.inputs[0]);
        let order = trace
            .rows(x.dim)
            .filter(|_| rows % 2 == 0 && cols % 2 == 0)
            .and_then(|tokens| corner_order(&tokens, [rows, cols]));
        let Some(order) = order else {
            return Err(Misfit::at(
                norm,
                format!(
                    "the tokens of each 2 by 2 square of a grid of {rows} by {cols}, in the same order"
                ),
            ));
        };
        let name = format!("stages.{stage}");
        let d = x.dim;
        let from = |i: usize| order[i / d] * d + i % d;
        self.layer_norm(&format!("{name}.merge.norm"), norm, 4 * d, from);
        let expected = "the linear layer that reduces merged patches";
        let step = only_use(self.r, norm.output, expected)?;
        let layer = linear_parts(step).filter(|layer| layer.k == 4 * d);
        let mut layer = layer.ok_or_else(|| self.strange(step, expected))?;
        let mut to = vec![0; 4 * d];
        (0..4 * d).for_each(|i| to[from(i)] = i);
        layer.permute(&to);
        let dim = layer.bias.len();
        let reduction = format!("{name}.reduction");
        self.linear(&reduction, layer);
        self.tap(&reduction, step.output, &reduction);
        Ok(Some(Stream {
            value: step.output,
            tokens: x.tokens / 4,
            dim,
        }))
    }
}

/// A stage without blocks, but of blocks like this one.
fn new_stage(block: &BlockShape, dim: usize) -> Stage {
    Stage {
        depth: 0,
        dim,
        heads: block.heads,
        head_dim: block.head_dim,
        scale: block.scale,
        hidden: block.hidden,
        window: block.window.map_or([0; 2], |window| window.size),
        shift: [0; 2],
    }
}

/// Adds a block to a stage; or says what was expected instead of it.
fn grow(stage: &mut Stage, block: &BlockShape) -> Result<(), String> {
    if block.qk_norm || block.mlp != Mlp::Gelu {
        return Err("a block of Swin: no QK-norm, and an MLP with GELU,".into());
    }
    let Some(window) = block.window else {
        return Err("attention in windows".into());
    };
    if stage.depth == 1 {
        stage.shift = window.shift;
    }
    let shift = if stage.depth % 2 == 1 {
        stage.shift
    } else {
        [0; 2]
    };
    stage.depth += 1;
    match (window.size, window.shift) == (stage.window, shift) {
        true => Ok(()),
        false => Err(format!(
            "windows of {:?} shifted by {shift:?}, as in the blocks before, not of {:?} by {:?},",
            stage.window, window.size, window.shift
        )),
    }
}

/// For each corner in the order of `Op::PatchMerge`, its place in the graph's.
/// `None` if the squares are not those of the grid, or differ in order.
fn corner_order(tokens: &[usize], [_, cols]: [usize; 2]) -> Option<[usize; 4]> {
    let place = |token: usize| tokens.iter().take(4).position(|t| *t == token);
    let order = merged_tokens(cols, 0).map(place);
    let [Some(a), Some(b), Some(c), Some(d)] = order else {
        return None;
    };
    let order = [a, b, c, d];
    let fits = |(square, tokens): (usize, &[usize])| {
        merged_tokens(cols, square) == order.map(|place| tokens[place])
    };
    tokens
        .chunks_exact(4)
        .enumerate()
        .all(fits)
        .then_some(order)
}
