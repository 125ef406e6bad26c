//! Grows a program layer by layer, with the names that every architecture uses.
//!
//! A norm or a linear layer `x` has the tensors `x.gamma` and `x.beta`, or
//! `x.weight` and `x.bias`. A buffer is named after the layer that writes it, or
//! after the sum that it holds: `res1` after attention, `res2` after the MLP.

use super::{
    Activation, Buffer, BufferId, Op, Pooling, Program, TensorId, TensorInfo, TensorRole, Window,
};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// What stands between two linear layers of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mlp {
    /// `fc2(gelu(fc1(x)))`, `fc1` making `hidden` channels.
    Gelu,
    /// `fc2(silu(a) * b)`, `[a, b] = fc1(x)`, each of `hidden` channels.
    SwiGlu,
}

/// What is read off the tokens that leave the last block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readout {
    /// Every token, normalised: features.
    Tokens,
    /// One token, normalised.
    Token(usize),
    /// The mean of some tokens.
    Mean {
        /// The first token.
        first: usize,
        /// How many.
        count: usize,
        /// Whether each token is normalised, or their mean.
        norm: NormAt,
    },
    /// Normalised tokens side by side: DeiT's class and distillation token.
    Concat {
        /// The first token.
        first: usize,
        /// How many.
        count: usize,
    },
    /// One normalised token beside the mean of others: DINOv2's classifier. Its
    /// weight is two layers whose results are added, `head.token` and `head`.
    TokenAndMean {
        /// The token.
        token: usize,
        /// The first of the others.
        first: usize,
        /// How many others.
        count: usize,
    },
}

/// Where the last LayerNorm stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormAt {
    /// Before the mean.
    Tokens,
    /// After it.
    Mean,
}

/// The picture's tokens.
pub(crate) struct Patches {
    pub(crate) patch: [usize; 2],
    pub(crate) dim: usize,
    /// Rows put before the patches.
    pub(crate) prefix: usize,
    pub(crate) position: bool,
}

/// A pre-norm block:
///
/// ```text
/// x = x + proj(attention(qkv(norm1(x))))
/// x = x + mlp(norm2(x))
/// ```
pub(crate) struct Block {
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) scale: f32,
    pub(crate) qk_norm: bool,
    /// Windows, which have a position bias.
    pub(crate) window: Option<Window>,
    pub(crate) mlp: Mlp,
    pub(crate) hidden: usize,
    pub(crate) eps: f32,
}

pub(crate) struct Builder {
    program: Program,
}

impl Builder {
    pub(crate) fn new(image: [usize; 2]) -> Self {
        Builder {
            program: Program {
                image,
                buffers: Vec::new(),
                tensors: Vec::new(),
                ops: Vec::new(),
            },
        }
    }

    pub(crate) fn finish(self) -> Program {
        self.program
    }

    /// Tokens of the picture, in `embed`.
    pub(crate) fn patch_embed(&mut self, patches: &Patches) -> BufferId {
        let Patches {
            patch: [h, w],
            dim,
            prefix,
            position,
        } = *patches;
        let [height, width] = self.program.image;
        let count = (height / h) * (width / w);
        let weight = self.weight("patch_embed.weight", [dim, h * w * 3]);
        let bias = self.float("patch_embed.bias", [1, dim]);
        let position = position.then(|| self.float("position", [count, dim]));
        let tokens = (prefix > 0).then(|| self.float("prefix", [prefix, dim]));
        let output = self.buffer("embed", [prefix + count, dim]);
        self.op(Op::PatchEmbed {
            patch: [h, w],
            weight,
            bias,
            prefix: tokens,
            position,
            output,
        })
    }

    pub(crate) fn block(&mut self, name: &str, x: BufferId, block: &Block) -> BufferId {
        let [rows, dim] = self.shape(x);
        let part = |part: &str| format!("{name}.{part}");
        let width = block.heads * block.head_dim;

        let normed = self.layer_norm(&part("norm1"), x, block.eps);
        let mut qkv = self.linear(&part("attn.qkv"), normed, 3 * width);
        if block.qk_norm {
            qkv = self.head_norm(&part("attn.qk_norm"), qkv, block);
        }
        let bias = block.window.map(|window| {
            let table = [block.heads, window.bias_len()];
            self.float(&part("attn.bias"), table)
        });
        let output = self.buffer(&part("attn"), [rows, width]);
        let attention = self.op(Op::Attention {
            qkv,
            heads: block.heads,
            head_dim: block.head_dim,
            scale: block.scale,
            window: block.window,
            bias,
            output,
        });
        let x = self.residual(&part("attn.proj"), attention, x, &part("res1"), dim);

        let normed = self.layer_norm(&part("norm2"), x, block.eps);
        let hidden = match block.mlp {
            Mlp::Gelu => self.layer(&part("mlp.fc1"), normed, block.hidden, Activation::Gelu),
            Mlp::SwiGlu => {
                let input = self.linear(&part("mlp.fc1"), normed, 2 * block.hidden);
                let output = self.buffer(&part("mlp.gate"), [rows, block.hidden]);
                self.op(Op::Gate { input, output })
            }
        };
        self.residual(&part("mlp.fc2"), hidden, x, &part("res2"), dim)
    }

    /// The last LayerNorm, the choice of tokens, and the classifier unless there
    /// are no classes.
    pub(crate) fn readout(&mut self, x: BufferId, readout: Readout, classes: usize, eps: f32) {
        let read = match readout {
            Readout::Tokens => self.layer_norm("norm", x, eps),
            Readout::Token(token) => {
                let row = self.select_token(x, token);
                self.layer_norm("norm", row, eps)
            }
            Readout::Mean { first, count, norm } => match norm {
                NormAt::Tokens => {
                    let normed = self.layer_norm("norm", x, eps);
                    self.pool("pooled", normed, [first, count], Pooling::Mean)
                }
                NormAt::Mean => {
                    let mean = self.pool("pooled", x, [first, count], Pooling::Mean);
                    self.layer_norm("norm", mean, eps)
                }
            },
            Readout::Concat { first, count } => {
                let normed = self.layer_norm("norm", x, eps);
                self.pool("pooled", normed, [first, count], Pooling::Concat)
            }
            Readout::TokenAndMean {
                token,
                first,
                count,
            } => {
                let normed = self.layer_norm("norm", x, eps);
                // A mean of one: unlike a selected token, it can be coded.
                let token = self.pool("class_token", normed, [token, 1], Pooling::Mean);
                let mean = self.pool("pooled", normed, [first, count], Pooling::Mean);
                let half = self.linear("head.token", token, classes);
                self.residual("head", mean, half, "logits", classes);
                return;
            }
        };
        if classes > 0 {
            let (none, output) = (Activation::Identity, "logits");
            self.named_layer("head", read, classes, none, None, output);
        }
    }

    /// `[h * w, d]` to `[h * w / 4, outputs]`: merge, norm and reduction.
    pub(crate) fn patch_merge(
        &mut self,
        name: &str,
        input: BufferId,
        grid: [usize; 2],
        outputs: usize,
        eps: f32,
    ) -> BufferId {
        let [rows, dim] = self.shape(input);
        let merged = format!("{name}.merge");
        let output = self.buffer(&merged, [rows / 4, 4 * dim]);
        let merge = self.op(Op::PatchMerge {
            input,
            grid,
            output,
        });
        let normed = self.layer_norm(&format!("{merged}.norm"), merge, eps);
        self.linear(&format!("{name}.reduction"), normed, outputs)
    }

    pub(crate) fn layer_norm(&mut self, name: &str, input: BufferId, eps: f32) -> BufferId {
        let [rows, cols] = self.shape(input);
        let gamma = self.float(&format!("{name}.gamma"), [1, cols]);
        let beta = self.float(&format!("{name}.beta"), [1, cols]);
        let output = self.buffer(name, [rows, cols]);
        self.op(Op::LayerNorm {
            input,
            gamma,
            beta,
            eps,
            output,
        })
    }

    fn head_norm(&mut self, name: &str, input: BufferId, block: &Block) -> BufferId {
        let gamma = self.float(&format!("{name}.gamma"), [2, block.head_dim]);
        let beta = self.float(&format!("{name}.beta"), [2, block.head_dim]);
        let shape = self.shape(input);
        let output = self.buffer(name, shape);
        self.op(Op::HeadNorm {
            input,
            heads: block.heads,
            head_dim: block.head_dim,
            gamma,
            beta,
            eps: block.eps,
            output,
        })
    }

    fn select_token(&mut self, input: BufferId, token: usize) -> BufferId {
        let [_, cols] = self.shape(input);
        let output = self.buffer("class_token", [1, cols]);
        self.op(Op::SelectToken {
            input,
            token,
            output,
        })
    }

    fn pool(
        &mut self,
        name: &str,
        input: BufferId,
        [first, count]: [usize; 2],
        pool: Pooling,
    ) -> BufferId {
        let [_, d] = self.shape(input);
        let cols = match pool {
            Pooling::Mean => d,
            Pooling::Concat => count * d,
        };
        let output = self.buffer(name, [1, cols]);
        self.op(Op::Pool {
            input,
            first,
            count,
            pool,
            output,
        })
    }

    fn linear(&mut self, name: &str, input: BufferId, outputs: usize) -> BufferId {
        self.layer(name, input, outputs, Activation::Identity)
    }

    fn layer(
        &mut self,
        name: &str,
        input: BufferId,
        outputs: usize,
        activation: Activation,
    ) -> BufferId {
        self.named_layer(name, input, outputs, activation, None, name)
    }

    /// A linear layer added to `x`, the sum being called `sum`.
    fn residual(
        &mut self,
        name: &str,
        input: BufferId,
        x: BufferId,
        sum: &str,
        outputs: usize,
    ) -> BufferId {
        self.named_layer(name, input, outputs, Activation::Identity, Some(x), sum)
    }

    fn named_layer(
        &mut self,
        name: &str,
        input: BufferId,
        outputs: usize,
        activation: Activation,
        residual: Option<BufferId>,
        buffer: &str,
    ) -> BufferId {
        let [rows, inputs] = self.shape(input);
        let output = self.buffer(buffer, [rows, outputs]);
        let weight = self.weight(&format!("{name}.weight"), [outputs, inputs]);
        let bias = self.float(&format!("{name}.bias"), [1, outputs]);
        self.op(Op::Linear {
            input,
            weight,
            bias,
            activation,
            residual,
            output,
        })
    }

    fn op(&mut self, op: Op) -> BufferId {
        let output = op.output();
        self.program.ops.push(op);
        output
    }

    fn shape(&self, id: BufferId) -> [usize; 2] {
        let buffer = &self.program.buffers[id.index()];
        [buffer.rows, buffer.cols]
    }

    fn weight(&mut self, name: &str, shape: [usize; 2]) -> TensorId {
        self.tensor(name, TensorRole::Weight, shape)
    }

    fn float(&mut self, name: &str, shape: [usize; 2]) -> TensorId {
        self.tensor(name, TensorRole::Float, shape)
    }

    fn tensor(&mut self, name: &str, role: TensorRole, [rows, cols]: [usize; 2]) -> TensorId {
        let id = TensorId(number(self.program.tensors.len()));
        self.program.tensors.push(TensorInfo {
            name: String::from(name),
            role,
            rows,
            cols,
        });
        id
    }

    fn buffer(&mut self, name: &str, [rows, cols]: [usize; 2]) -> BufferId {
        let id = BufferId(number(self.program.buffers.len()));
        self.program.buffers.push(Buffer {
            name: name.to_string(),
            rows,
            cols,
        });
        id
    }
}

fn number(count: usize) -> u16 {
    u16::try_from(count).expect("a model has at most 65536 tensors")
}
