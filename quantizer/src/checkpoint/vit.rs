//! ViT, DeiT and DINOv2: [`tpvit_models::vit`].

use tpvit_models::vit::{Config as Vit, program as vit_program};
use tpvit_models::{Mlp, NormAt, Program, Readout};

use super::config::{Config, Library};
use super::{CheckpointError, Linear, Tensors, block, norm, patch_embed};
use crate::import::{Parts, attention_scale};

pub(super) fn program(
    config: &Config,
    tensors: &mut Tensors,
    parts: &mut Parts,
) -> Result<Program, CheckpointError> {
    let (dim, patch) = patch_embed(tensors, parts)?;
    config.agrees("the patch size", config.patch, patch)?;
    config.agrees("the number of channels", config.dim, dim)?;
    let [rows, cols] = config.grid(patch)?;
    let embedding = embedding(config, tensors, parts, dim, rows * cols)?;
    let norm_pre = tensors.has("norm_pre.weight");
    if norm_pre {
        norm(tensors, parts, ["norm_pre"; 2], dim)?;
    }

    let depth = tensors.count("blocks.{}.norm1.weight");
    config.agrees("the number of blocks", config.depths.clone(), vec![depth])?;
    let mut shape = None;
    for index in 0..depth {
        let name = format!("blocks.{index}");
        let found = block(tensors, parts, [&name, &name], dim)?;
        let first = *shape.get_or_insert(found);
        config.agrees(
            "the width of attention of every block",
            Some(first.width),
            found.width,
        )?;
        config.agrees(
            "the width of the MLP of every block",
            Some(first.hidden),
            found.hidden,
        )?;
    }
    let shape = shape.ok_or_else(|| CheckpointError::Missing {
        path: tensors.path(),
        tensor: "blocks.0.norm1.weight".into(),
    })?;
    let hidden = config.hidden.filter(|_| !shape.gated);
    config.agrees("the width of the MLP", hidden, shape.hidden)?;
    let heads = heads(config, dim);
    if heads == 0 || !shape.width.is_multiple_of(heads) {
        let problem = format!(
            "is {heads}, of which {} channels are no multiple",
            shape.width
        );
        return Err(config.wrong("num_attention_heads", problem));
    }
    let head_dim = shape.width / heads;
    let qk_norm = tensors.has("blocks.0.attn.q_norm.weight");
    if qk_norm {
        for index in 0..depth {
            head_norms(tensors, parts, &format!("blocks.{index}.attn"), head_dim)?;
        }
    }
    let (readout, classes) = readout(config, tensors, parts, dim, &embedding)?;
    let eps = config.eps.unwrap_or(if norm_pre { 1e-5 } else { 1e-6 });
    Ok(vit_program(&Vit {
        image: config.image,
        patch,
        dim,
        prefix: embedding.prefix,
        position: embedding.position,
        norm_pre,
        depth,
        heads,
        head_dim,
        scale: attention_scale(1.0 / (head_dim as f64).sqrt(), head_dim),
        qk_norm,
        mlp: match shape.gated {
            true => Mlp::SwiGlu,
            false => Mlp::Gelu,
        },
        hidden: shape.hidden,
        eps,
        readout,
        classes,
    }))
}

/// As the config says; timm's models have 64 channels a head, but for the
/// largest, which have 16 heads.
fn heads(config: &Config, dim: usize) -> usize {
    match (&config.heads, dim) {
        (Some(heads), _) => heads.first().copied().unwrap_or(0),
        (None, 1280 | 1408 | 1664) => 16,
        (None, dim) => dim / 64,
    }
}

struct Embedding {
    /// Tokens before the patches.
    prefix: usize,
    class_token: bool,
    position: bool,
    patches: usize,
}

/// Class token, distillation token and registers, with their positions added.
fn embedding(
    config: &Config,
    tensors: &mut Tensors,
    parts: &mut Parts,
    dim: usize,
    patches: usize,
) -> Result<Embedding, CheckpointError> {
    let mut prefix = Vec::new();
    let class_token = tensors.has("cls_token");
    for name in ["cls_token", "dist_token", "reg_token"] {
        if tensors.has(name) {
            let (shape, values) = tensors.take(name)?;
            if shape.last() != Some(&dim) {
                return Err(CheckpointError::Shape {
                    path: tensors.path(),
                    tensor: name.into(),
                    expected: vec![1, 0, dim],
                    found: shape,
                });
            }
            prefix.push(values);
        }
    }
    // Hugging Face inserts registers after the positions are added.
    let registers = match (config.library, prefix.len()) {
        (Library::HuggingFace, 2..) if config.name == "dinov2_with_registers" => prefix.pop(),
        _ => None,
    };
    let mut prefix = prefix.concat();
    let mut tail = Vec::new();
    if tensors.has("pos_embed") {
        let (shape, mut positions) = tensors.take("pos_embed")?;
        let found = shape.iter().rev().nth(1).copied().unwrap_or(0);
        let before = prefix.len() / dim;
        // timm's `no_embed_class`: positions of patches alone.
        let count = if found == patches { 0 } else { before };
        let fits = shape.last() == Some(&dim) && found * dim == positions.len();
        if !fits || found != patches + count {
            return Err(CheckpointError::Contradiction {
                path: config.path.clone(),
                what: "the number of positions (patches of image_size, and tokens before them)",
                config: format!("{}", patches + before),
                tensors: format!("{found}"),
            });
        }
        tail = positions.split_off(count * dim);
        for (token, position) in prefix.iter_mut().zip(positions) {
            *token += position;
        }
    }
    prefix.extend(registers.into_iter().flatten());
    let count = prefix.len() / dim;
    if count > 0 {
        parts.tensor("prefix".into(), prefix);
    }
    // As an exporter would: positions that are all 0 are none.
    let position = tail.iter().any(|v| *v != 0.0);
    if position {
        parts.tensor("position".into(), tail);
    }
    Ok(Embedding {
        prefix: count,
        class_token,
        position,
        patches,
    })
}

fn head_norms(
    tensors: &mut Tensors,
    parts: &mut Parts,
    name: &str,
    head_dim: usize,
) -> Result<(), CheckpointError> {
    let (mut gamma, mut beta) = (Vec::new(), Vec::new());
    for part in ["q_norm", "k_norm"] {
        gamma.extend(tensors.exactly(&format!("{name}.{part}.weight"), &[head_dim])?);
        beta.extend(tensors.vector(&format!("{name}.{part}.bias"), head_dim, 0.0)?);
    }
    parts.tensor(format!("{name}.qk_norm.gamma"), gamma);
    parts.tensor(format!("{name}.qk_norm.beta"), beta);
    Ok(())
}

/// What is read off, the last norm, and the classifier.
fn readout(
    config: &Config,
    tensors: &mut Tensors,
    parts: &mut Parts,
    dim: usize,
    embedding: &Embedding,
) -> Result<(Readout, usize), CheckpointError> {
    let first = embedding.prefix;
    let count = embedding.patches;
    let pooled = tensors.has("fc_norm.weight");
    norm(
        tensors,
        parts,
        [if pooled { "fc_norm" } else { "norm" }, "norm"],
        dim,
    )?;
    let average = match config.pool.as_deref() {
        Some("avg") => true,
        Some("token") => false,
        Some(other) if !other.is_empty() => {
            let problem = format!("is {other:?}; \"token\" and \"avg\" are supported");
            return Err(config.wrong("global_pool", problem));
        }
        Some(_) | None => pooled || config.library == Library::Timm && !embedding.class_token,
    };
    let mean = |norm| Readout::Mean { first, count, norm };
    let cols = tensors
        .shape("head.weight")
        .map(|shape| shape.last().copied());
    let Some(cols) = cols else {
        config.agrees(
            "the number of classes",
            config.classes.filter(|_| config.library == Library::Timm),
            0,
        )?;
        let readout = match (config.library, config.pool.as_deref()) {
            (Library::HuggingFace, _) | (Library::Timm, Some("") | None) => Readout::Tokens,
            (Library::Timm, Some(_)) if average => {
                mean(if pooled { NormAt::Mean } else { NormAt::Tokens })
            }
            (Library::Timm, Some(_)) => Readout::Token(0),
        };
        return Ok((readout, 0));
    };
    let distilled = tensors.has("head_dist.weight");
    let both = cols == Some(2 * dim) && !distilled;
    let mut head = tensors.linear("head", if both { 2 * dim } else { dim })?;
    let classes = head.shape[0];
    let claimed = config.classes.filter(|_| config.library == Library::Timm);
    config.agrees("the number of classes", claimed, classes)?;
    let readout = if distilled {
        head = mean_of(head, tensors.linear("head_dist", dim)?);
        Readout::Concat { first: 0, count: 2 }
    } else if both {
        let rows = head.weight.chunks_exact(2 * dim);
        let (token, mean): (Vec<_>, Vec<_>) = rows.map(|row| row.split_at(dim)).unzip();
        parts.tensor("head.token.weight".into(), token.concat());
        parts.tensor("head.token.bias".into(), vec![0.0; classes]);
        head.weight = mean.concat();
        Readout::TokenAndMean {
            token: 0,
            first,
            count,
        }
    } else if average {
        mean(if pooled { NormAt::Mean } else { NormAt::Tokens })
    } else {
        Readout::Token(0)
    };
    head.put("head", parts);
    Ok((readout, classes))
}

/// One layer of both heads' inputs side by side, which gives their mean.
fn mean_of(a: Linear, b: Linear) -> Linear {
    let k = a.shape[1];
    let rows = a.weight.chunks_exact(k).zip(b.weight.chunks_exact(k));
    let weight = rows.flat_map(|(a, b)| a.iter().chain(b).map(|w| 0.5 * w));
    let bias = a.bias.iter().zip(&b.bias).map(|(a, b)| 0.5 * (a + b));
    Linear {
        weight: weight.collect(),
        bias: bias.collect(),
        shape: [a.shape[0], 2 * k],
    }
}
