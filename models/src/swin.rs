//! Swin (Liu et al. 2021, arXiv:2103.14030): attention within windows of a grid
//! of tokens that is halved from stage to stage.
//!
//! ```text
//! x = norm(patches)
//! per stage:  x = reduction(norm(merge 2 by 2 of x))          but for the first
//!             per block:  x = x + proj(windows(norm1(x)))     every second one shifted
//!                         x = x + fc2(gelu(fc1(norm2(x))))
//! logits = head(mean(norm(x)))
//! ```
//!
//! The cyclic roll and the mask of shifted windows are no operations here: what
//! they amount to is another cut of the grid, [`Window`].
//!
//! ```
//! use tpvit_models::swin::{Config, program};
//!
//! let tiny = program(&Config::tiny([224, 224], 1000));
//! assert_eq!(tiny.validate(), Ok(()));
//! assert_eq!(tiny.output_shape(), [1, 1000]);
//! ```

use crate::program::builder::{Block, Builder, Patches};
use crate::program::{Mlp, Program, Readout, Window};
use alloc::format;
use alloc::vec::Vec;

/// What there is to know about a Swin before its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Height and width of the picture in pixels, whole patches.
    pub image: [usize; 2],
    /// Height and width of a patch in pixels.
    pub patch: [usize; 2],
    /// Whether the tokens are normalised before the first stage.
    pub patch_norm: bool,
    /// The stages; between two of them, both sides of the grid are halved.
    pub stages: Vec<Stage>,
    /// Added to the variance by every norm.
    pub eps: f32,
    /// What the result is made of.
    pub readout: Readout,
    /// Classes; 0 for features.
    pub classes: usize,
}

/// Blocks of the same grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    /// Blocks.
    pub depth: usize,
    /// Channels of a token.
    pub dim: usize,
    /// Attention heads of a block.
    pub heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Multiplies the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Channels between the linear layers of the MLP.
    pub hidden: usize,
    /// Rows and columns of a window.
    pub window: [usize; 2],
    /// How far the windows of every second block are shifted.
    pub shift: [usize; 2],
}

impl Config {
    /// Swin-T, for pictures whose sides are multiples of 224.
    pub fn tiny(image: [usize; 2], classes: usize) -> Self {
        let grid = image.map(|side| side / 4);
        let stage = |(index, depth): (usize, usize)| {
            let grid = grid.map(|side| side >> index);
            Stage {
                depth,
                dim: 96 << index,
                heads: 3 << index,
                head_dim: 32,
                scale: 0.176_776_7, // 1 / sqrt(32)
                hidden: 384 << index,
                window: [7, 7],
                shift: grid.map(|side| if side > 7 { 3 } else { 0 }),
            }
        };
        let last = grid.map(|side| side >> 3);
        Config {
            image,
            patch: [4, 4],
            patch_norm: true,
            stages: [2, 2, 6, 2].into_iter().enumerate().map(stage).collect(),
            eps: 1e-5,
            readout: Readout::Mean {
                first: 0,
                count: last[0] * last[1],
                norm: crate::program::NormAt::Tokens,
            },
            classes,
        }
    }
}

/// The program of a Swin; [`Program::validate`] says if the numbers do not fit.
///
/// Buffers are `embed`, `patch_embed.norm`, `stages.1.merge`, `.merge.norm`,
/// `.reduction`, `stages.1.blocks.0.norm1` and so on as in
/// [`vit`](crate::vit::program), then `norm`, `pooled` and `logits`.
///
/// # Panics
/// If there are no stages, more than 65536 tensors, or a patch has no pixels.
pub fn program(config: &Config) -> Program {
    let [first, ..] = config.stages[..] else {
        panic!("a Swin has stages");
    };
    let mut builder = Builder::new(config.image);
    let mut x = builder.patch_embed(&Patches {
        patch: config.patch,
        dim: first.dim,
        prefix: 0,
        position: false,
    });
    if config.patch_norm {
        x = builder.layer_norm("patch_embed.norm", x, config.eps);
    }
    let mut grid = [0, 1].map(|i| config.image[i] / config.patch[i]);
    for (index, stage) in config.stages.iter().enumerate() {
        let name = format!("stages.{index}");
        if index > 0 {
            x = builder.patch_merge(&name, x, grid, stage.dim, config.eps);
            grid = grid.map(|side| side / 2);
        }
        for block in 0..stage.depth {
            let window = Window {
                grid,
                size: stage.window,
                shift: if block % 2 == 1 { stage.shift } else { [0; 2] },
            };
            let block_name = format!("{name}.blocks.{block}");
            x = builder.block(&block_name, x, &stage.block(window, config.eps));
        }
    }
    builder.readout(x, config.readout, config.classes, config.eps);
    builder.finish()
}

impl Stage {
    fn block(&self, window: Window, eps: f32) -> Block {
        Block {
            heads: self.heads,
            head_dim: self.head_dim,
            scale: self.scale,
            qk_norm: false,
            window: Some(window),
            mlp: Mlp::Gelu,
            hidden: self.hidden,
            eps,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Op;

    #[test]
    fn windows_shift_where_the_grid_has_more_than_one() {
        let program = program(&Config::tiny([224, 448], 10));
        assert_eq!(program.validate(), Ok(()));
        let windows: Vec<Window> = program
            .ops
            .iter()
            .filter_map(|op| match op {
                Op::Attention { window, .. } => *window,
                _ => None,
            })
            .collect();
        let shifts: Vec<[usize; 2]> = windows.iter().map(|w| w.shift).collect();
        assert_eq!(shifts[..2], [[0, 0], [3, 3]]);
        assert_eq!(shifts[10..], [[0, 0], [0, 3]]);
        assert_eq!(windows[11].grid, [7, 14]);
    }

    #[test]
    fn swin_t_has_the_published_cost() {
        // Table 7 of the paper: 4.5 G multiply-adds at 224 x 224.
        let macs = program(&Config::tiny([224, 224], 1000)).macs();
        assert!((4_350_000_000..4_550_000_000).contains(&macs), "{macs}");
    }
}
