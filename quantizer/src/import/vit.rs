//! Recognises ViT, DeiT, DINOv2 and their like: see [`tpvit_models::vit`].

use super::error::Misfit;
use super::parts::Draft;
use super::reduce::Reduced;
use super::walk::Walk;
use tpvit_models::vit::{Config, program};

pub(crate) fn recognise(reduced: &Reduced<'_>) -> Result<Draft, Misfit> {
    let mut walk = Walk::new(reduced);
    let (picture, image) = walk.picture()?;
    let embedding = walk.embed(picture)?;
    let mut x = embedding.stream;
    let norm_pre = walk.norm_before("norm_pre", &mut x);

    let mut half = walk.residual(x.value)?;
    let (mut depth, mut first) = (0, None);
    loop {
        let block;
        (x, block) = walk.block(&format!("blocks.{depth}"), x, half, None)?;
        if let Some(expected) = block.difference(first.get_or_insert(block)) {
            return Err(Misfit::at(half.sum, expected));
        }
        depth += 1;
        match walk.block_ahead(x.value) {
            Some(next) => half = next,
            None => break,
        }
    }
    let (readout, classes) = walk.readout(x)?;
    let block = first.expect("the loop found a block");
    let config = Config {
        image,
        patch: embedding.patch,
        dim: x.dim,
        prefix: embedding.prefix,
        position: embedding.position,
        norm_pre,
        depth,
        heads: block.heads,
        head_dim: block.head_dim,
        scale: block.scale,
        qk_norm: block.qk_norm,
        mlp: block.mlp,
        hidden: block.hidden,
        eps: 1e-6, // of a norm that has none of its own: here, all have
        readout,
        classes,
    };
    Ok(walk.finish(program(&config)))
}
