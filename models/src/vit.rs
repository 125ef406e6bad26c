//! ViT (Dosovitskiy et al. 2020, arXiv:2010.11929) and what is built like it:
//! DeiT, DINOv2, CLIP's picture tower.
//!
//! ```text
//! x = norm_pre([prefix; patches + position])          norm_pre: CLIP
//! per block:  q, k, v = qkv(norm1(x))
//!             x = x + proj(attention(norm(q), norm(k), v))     QK-norm
//!             x = x + fc2(gelu(fc1(norm2(x))))                 or SwiGLU
//! result = head(read(norm(x)))                        read: a token, a mean, ..
//! ```
//!
//! LayerScale needs nothing of its own: its factors are folded into `proj` and
//! `fc2`. What a checkpoint or a graph is made of becomes a [`Config`]; its
//! tensors are then those of [`program`], by name.
//!
//! ```
//! use tpvit_models::vit::{Config, program};
//!
//! let deit = program(&Config::tiny([224, 224], 1000));
//! assert_eq!(deit.validate(), Ok(()));
//! assert_eq!(deit.output_shape(), [1, 1000]);
//! ```

use crate::program::builder::{Block, Builder, Patches};
use crate::program::{Mlp, Program, Readout};
use alloc::format;

/// What there is to know about a ViT before its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Height and width of the picture in pixels, whole patches.
    pub image: [usize; 2],
    /// Height and width of a patch in pixels.
    pub patch: [usize; 2],
    /// Channels of a token.
    pub dim: usize,
    /// Tokens before the patches, their positions added: class token,
    /// distillation token, registers.
    pub prefix: usize,
    /// Whether the patches have a position embedding.
    pub position: bool,
    /// Whether the tokens are normalised before the first block.
    pub norm_pre: bool,
    /// Blocks.
    pub depth: usize,
    /// Attention heads of a block.
    pub heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Multiplies the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Whether q and k are normalised within each head.
    pub qk_norm: bool,
    /// What the MLP computes.
    pub mlp: Mlp,
    /// Channels between the linear layers of the MLP.
    pub hidden: usize,
    /// Added to the variance by every norm.
    pub eps: f32,
    /// What the result is made of.
    pub readout: Readout,
    /// Classes; 0 for features.
    pub classes: usize,
}

impl Config {
    /// DeiT-T (Touvron et al. 2021, arXiv:2012.12877) for pictures of any size.
    pub const fn tiny(image: [usize; 2], classes: usize) -> Self {
        Config {
            image,
            patch: [16, 16],
            dim: 192,
            prefix: 1,
            position: true,
            norm_pre: false,
            depth: 12,
            heads: 3,
            head_dim: 64,
            scale: 0.125,
            qk_norm: false,
            mlp: Mlp::Gelu,
            hidden: 768,
            eps: 1e-6,
            readout: Readout::Token(0),
            classes,
        }
    }
}

/// The program of a ViT; [`Program::validate`] says if the numbers do not fit.
///
/// Buffers are `embed`, `norm_pre`, `blocks.3.norm1`, `.attn.qkv`,
/// `.attn.qk_norm`, `.attn`, `.res1`, `.norm2`, `.mlp.fc1`, `.mlp.gate`, `.res2`,
/// then `class_token`, `pooled`, `norm` and `logits`, where there are such.
///
/// # Panics
/// If there are more than 65536 tensors, or a patch has no pixels.
pub fn program(config: &Config) -> Program {
    let mut builder = Builder::new(config.image);
    let mut x = builder.patch_embed(&Patches {
        patch: config.patch,
        dim: config.dim,
        prefix: config.prefix,
        position: config.position,
    });
    if config.norm_pre {
        x = builder.layer_norm("norm_pre", x, config.eps);
    }
    let block = Block {
        heads: config.heads,
        head_dim: config.head_dim,
        scale: config.scale,
        qk_norm: config.qk_norm,
        window: None,
        mlp: config.mlp,
        hidden: config.hidden,
        eps: config.eps,
    };
    for index in 0..config.depth {
        x = builder.block(&format!("blocks.{index}"), x, &block);
    }
    builder.readout(x, config.readout, config.classes, config.eps);
    builder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{NormAt, Op};
    use alloc::vec::Vec;

    const SMALL: Config = Config {
        depth: 1,
        ..Config::tiny([32, 48], 10)
    };

    fn kinds(config: &Config) -> Vec<&'static str> {
        let program = program(config);
        assert_eq!(program.validate(), Ok(()), "{config:?}");
        program.ops.iter().map(Op::kind).collect()
    }

    #[test]
    fn every_variant_is_a_valid_program() {
        let block = [
            "layer-norm",
            "linear",
            "attention",
            "linear",
            "layer-norm",
            "linear",
            "linear",
        ];
        let whole = |head: &[&'static str]| [&["patch-embed"], &block[..], head].concat();
        let head = ["select-token", "layer-norm", "linear"];
        assert_eq!(kinds(&SMALL), whole(&head));

        let mean = |norm| Config {
            readout: Readout::Mean {
                first: 1,
                count: 6,
                norm,
            },
            ..SMALL
        };
        let (normed, pooled) = (kinds(&mean(NormAt::Tokens)), kinds(&mean(NormAt::Mean)));
        assert_eq!(normed, whole(&["layer-norm", "pool", "linear"]));
        assert_eq!(pooled, whole(&["pool", "layer-norm", "linear"]));

        let features = Config {
            readout: Readout::Tokens,
            classes: 0,
            ..SMALL
        };
        assert_eq!(kinds(&features), whole(&["layer-norm"]));
        assert_eq!(program(&features).output_shape(), [7, 192]);

        let both = Config {
            readout: Readout::TokenAndMean {
                token: 0,
                first: 1,
                count: 6,
            },
            ..SMALL
        };
        let head = ["layer-norm", "pool", "pool", "linear", "linear"];
        assert_eq!(kinds(&both), whole(&head));

        let giant = Config {
            prefix: 5,
            norm_pre: true,
            qk_norm: true,
            mlp: Mlp::SwiGlu,
            hidden: 100,
            readout: Readout::Concat { first: 0, count: 2 },
            ..SMALL
        };
        let expected = [
            "patch-embed",
            "layer-norm",
            "layer-norm",
            "linear",
            "head-norm",
            "attention",
            "linear",
            "layer-norm",
            "linear",
            "gate",
            "linear",
            "layer-norm",
            "pool",
            "linear",
        ];
        assert_eq!(kinds(&giant), expected);
    }
}
