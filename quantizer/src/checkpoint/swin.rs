//! Swin: [`tpvit_models::swin`].

use tpvit_models::swin::{Config as Swin, Stage, program as swin_program};
use tpvit_models::{NormAt, Program, Readout};

use super::config::Config;
use super::{CheckpointError, Tensors, block, norm, patch_embed};
use crate::import::{Parts, attention_scale};

pub(super) fn program(
    config: &Config,
    tensors: &mut Tensors,
    parts: &mut Parts,
) -> Result<Program, CheckpointError> {
    let (first_dim, patch) = patch_embed(tensors, parts)?;
    config.agrees("the patch size", config.patch, patch)?;
    config.agrees("the number of channels", config.dim, first_dim)?;
    let patch_norm = tensors.has("patch_embed.norm.weight");
    if patch_norm {
        norm(tensors, parts, ["patch_embed.norm"; 2], first_dim)?;
    }
    let mut grid = config.grid(patch)?;
    let mut dim = first_dim;
    let count = tensors.count("layers.{}.blocks.0.norm1.weight");
    let depths: Vec<usize> = (0..count)
        .map(|stage| tensors.count(&format!("layers.{stage}.blocks.{{}}.norm1.weight")))
        .collect();
    config.agrees(
        "the number of blocks",
        config.depths.clone(),
        depths.clone(),
    )?;
    let heads = heads(config, count, first_dim);
    // timm merges at the beginning of a stage, all others at the end of the one before.
    let early = !tensors.has("layers.0.downsample.norm.weight");
    let mut stages = Vec::new();
    for (index, depth) in depths.into_iter().enumerate() {
        if index > 0 {
            let from = format!(
                "layers.{}.downsample",
                if early { index } else { index - 1 }
            );
            dim = merge(
                config,
                tensors,
                parts,
                [&from, &format!("stages.{index}")],
                dim,
                grid,
            )?;
            grid = grid.map(|side| side / 2);
        }
        let Some(&heads) = heads.get(index) else {
            let problem = format!("has {} numbers for {count} stages", heads.len());
            return Err(config.wrong("num_heads", problem));
        };
        stages.push(stage(
            config,
            tensors,
            parts,
            index,
            [depth, dim, heads],
            grid,
        )?);
    }
    if stages.is_empty() {
        return Err(CheckpointError::Missing {
            path: tensors.path(),
            tensor: "layers.0.blocks.0.norm1.weight".into(),
        });
    }
    norm(tensors, parts, ["norm"; 2], dim)?;
    let mut readout = Readout::Tokens;
    let mut classes = 0;
    if tensors.has("head.weight") {
        let head = tensors.linear("head", dim)?;
        classes = head.shape[0];
        head.put("head", parts);
        readout = Readout::Mean {
            first: 0,
            count: grid[0] * grid[1],
            norm: NormAt::Tokens,
        };
    }
    let claimed = config
        .classes
        .filter(|_| config.pool.is_some() || classes > 0);
    config.agrees("the number of classes", claimed, classes)?;
    Ok(swin_program(&Swin {
        image: config.image,
        patch,
        patch_norm,
        stages,
        eps: config.eps.unwrap_or(1e-5),
        readout,
        classes,
    }))
}

/// As the config says; timm's Swin has 32 channels a head.
fn heads(config: &Config, stages: usize, dim: usize) -> Vec<usize> {
    match &config.heads {
        Some(heads) => heads.clone(),
        None => (0..stages).map(|stage| (dim << stage) / 32).collect(),
    }
}

/// Patch merging; returns the channels after it.
fn merge(
    config: &Config,
    tensors: &mut Tensors,
    parts: &mut Parts,
    [from, to]: [&str; 2],
    dim: usize,
    grid: [usize; 2],
) -> Result<usize, CheckpointError> {
    if grid.iter().any(|side| side % 2 != 0) {
        let problem =
            format!("leads to a grid of {grid:?} before {from}, whose sides must be even");
        return Err(config.wrong("image_size", problem));
    }
    let names = [format!("{from}.norm"), format!("{to}.merge.norm")];
    norm(
        tensors,
        parts,
        names.each_ref().map(String::as_str),
        4 * dim,
    )?;
    let reduction = tensors.linear(&format!("{from}.reduction"), 4 * dim)?;
    let outputs = reduction.shape[0];
    reduction.put(&format!("{to}.reduction"), parts);
    Ok(outputs)
}

fn stage(
    config: &Config,
    tensors: &mut Tensors,
    parts: &mut Parts,
    index: usize,
    [depth, dim, heads]: [usize; 3],
    grid: [usize; 2],
) -> Result<Stage, CheckpointError> {
    let mut found = None;
    for number in 0..depth {
        let (from, to) = (
            format!("layers.{index}.blocks.{number}"),
            format!("stages.{index}.blocks.{number}"),
        );
        let shape = block(tensors, parts, [&from, &to], dim)?;
        let table = format!("{from}.attn.relative_position_bias_table");
        let (table_shape, bias) = tensors.take(&table)?;
        let window = window(config, &table_shape, grid).ok_or_else(|| CheckpointError::Shape {
            path: tensors.path(),
            tensor: table.clone(),
            expected: vec![0, heads],
            found: table_shape.clone(),
        })?;
        if table_shape.last() != Some(&heads) || shape.width % heads != 0 {
            return Err(CheckpointError::Contradiction {
                path: config.path.clone(),
                what: "the number of heads of a stage",
                config: heads.to_string(),
                tensors: format!("{table_shape:?} of {table}"),
            });
        }
        let entries = bias.len() / heads;
        let by_head = (0..bias.len()).map(|i| bias[i % entries * heads + i / entries]);
        parts.tensor(format!("{to}.attn.bias"), by_head.collect());
        let first = *found.get_or_insert((shape, window));
        config.agrees(
            "the window of every block of a stage",
            Some(first.1),
            window,
        )?;
        config.agrees(
            "the width of the MLP of a stage",
            Some(first.0.hidden),
            shape.hidden,
        )?;
    }
    let (shape, window) = found.ok_or_else(|| CheckpointError::Missing {
        path: tensors.path(),
        tensor: format!("layers.{index}.blocks.0.norm1.weight"),
    })?;
    if (0..2).any(|i| !grid[i].is_multiple_of(window[i])) {
        let problem = format!(
            "leads to a grid of {grid:?} in stage {index}, which is no whole windows of {window:?}: choose an image size that is (padded windows are not supported)"
        );
        return Err(config.wrong("image_size", problem));
    }
    let head_dim = shape.width / heads;
    // A window as large as the grid is not shifted.
    let shift = [0, 1].map(|i| {
        if grid[i] > window[i] {
            window[i] / 2
        } else {
            0
        }
    });
    Ok(Stage {
        depth,
        dim,
        heads,
        head_dim,
        scale: attention_scale(1.0 / (head_dim as f64).sqrt(), head_dim),
        hidden: shape.hidden,
        window,
        shift,
    })
}

/// Rows and columns of the windows whose bias table has this shape: those of the
/// config, no larger than the grid, or a square.
fn window(config: &Config, table: &[usize], grid: [usize; 2]) -> Option<[usize; 2]> {
    let [entries, _] = *table else {
        return None;
    };
    let entries_of = |[h, w]: [usize; 2]| (2 * h).saturating_sub(1) * (2 * w).saturating_sub(1);
    let side = entries.isqrt().div_ceil(2);
    let claimed = config
        .window
        .map(|window| [0, 1].map(|i| window[i].min(grid[i])));
    let candidates = [claimed, Some([side; 2]), Some(grid)];
    candidates
        .into_iter()
        .flatten()
        .find(|window| entries_of(*window) == entries && entries > 0)
}
