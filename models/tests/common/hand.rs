//! The models of the golden files, written out by hand: small, with every
//! operation, every width, both kinds of attention codes, and scales of both
//! counts. They must never change; a new version of the format gets new files.

use tpvit_models::{
    Activation, ActivationQuant, BitWidth, Buffer, BufferId, Codebook, Interpolation, ModelData,
    Op, Pooling, Preprocess, Program, Quantization, Resize, SoftmaxCodebook, SoftmaxKind,
    SoftmaxMethod, SoftmaxQuant, TensorData, TensorId, TensorInfo, TensorRole, WeightQuant, Window,
};

use BitWidth::{B2, B3, B4, B6, B8};

/// 4x4 pixels, 4 patches and a class token, 2 channels, 2 heads, 2 classes.
pub(crate) fn golden() -> ModelData {
    let mut m = Hand::default();
    let x = m.buffer("embedding", [5, 2], None);
    let op = Op::PatchEmbed {
        patch: [2, 2],
        weight: m.weight("patch_embed.proj.weight", [2, 12], B3),
        bias: m.float("patch_embed.proj.bias", [1, 2]),
        prefix: Some(m.float("cls_token", [1, 2])),
        position: Some(m.float("pos_embed", [4, 2])),
        output: x,
    };
    m.op(op, None);

    let quant = ActivationQuant {
        bits: B4,
        scale: vec![0.25, 0.5, 0.125, 0.5, 0.0625, 0.03125],
        zero_point: vec![8, 7, 6, 5, 4, 3],
        codebook: None,
    };
    let norm = m.layer_norm("blocks.0.norm1", x, B3);
    let qkv = m.linear("blocks.0.attn.qkv", norm, (6, B4), Some(quant));
    let attention = m.attention("blocks.0.attn", qkv, row_max());
    let x = m.residual("blocks.0.attn.proj", attention, B8, x);

    let norm = m.layer_norm("blocks.0.norm2", x, B6);
    let hidden = m.gelu("blocks.0.mlp.fc1", norm, B6);
    let x = m.residual("blocks.0.mlp.fc2", hidden, B2, x);

    let norm = m.layer_norm("blocks.1.norm1", x, B2);
    let quant = one_scale(B8);
    let qkv = m.linear("blocks.1.attn.qkv", norm, (6, B3), Some(quant));
    let attention = m.attention("blocks.1.attn", qkv, log2());
    let x = m.residual("blocks.1.attn.proj", attention, B4, x);

    let class = m.buffer("class_token", [1, 2], None);
    m.op(
        Op::SelectToken {
            input: x,
            token: 0,
            output: class,
        },
        None,
    );
    let norm = m.layer_norm("norm", class, B8);
    m.linear("head", norm, (2, B3), None);
    m.finish([4, 4])
}

/// Every operation with a tag above 5: 4x8 pixels, a grid of 2 x 4 patches, 2
/// channels, one head, windows of 2 x 2 that are moved by a column; then half as
/// many rows and columns, one window, and logits from all tokens.
pub(crate) fn operations() -> ModelData {
    let mut m = Hand::default();
    let x = m.buffer("embed", [8, 2], None);
    let op = Op::PatchEmbed {
        patch: [2, 2],
        weight: m.weight("patch_embed.weight", [2, 12], B4),
        bias: m.float("patch_embed.bias", [1, 2]),
        prefix: None,
        position: None,
        output: x,
    };
    m.op(op, None);

    let norm = m.layer_norm("a.norm", x, B8);
    let qkv = m.linear("a.qkv", norm, (6, B4), None);
    let normed = m.buffer("a.qk_norm", [8, 6], Some(one_scale(B4)));
    let op = Op::HeadNorm {
        input: qkv,
        heads: 1,
        head_dim: 2,
        gamma: m.float("a.qk_norm.gamma", [2, 2]),
        beta: m.float("a.qk_norm.beta", [2, 2]),
        eps: 1e-6,
        output: normed,
    };
    m.op(op, None);
    let window = Window {
        grid: [2, 4],
        size: [2, 2],
        shift: [0, 1],
    };
    let bias = m.float("a.bias", [1, window.bias_len()]);
    let cells = (Some(window), Some(bias));
    let attention = m.attend("a.attn", normed, [1, 2], cells, row_max());
    let x = m.residual("a.proj", attention, B4, x);

    let merged = m.buffer("merge", [2, 8], None);
    let op = Op::PatchMerge {
        input: x,
        grid: [2, 4],
        output: merged,
    };
    m.op(op, None);
    let norm = m.layer_norm("merge.norm", merged, B4);
    let both = m.linear("b.fc1", norm, (4, B3), None);
    let gated = m.buffer("b.gate", [2, 2], Some(one_scale(B6)));
    let op = Op::Gate {
        input: both,
        output: gated,
    };
    m.op(op, None);

    let qkv = m.linear("b.qkv", gated, (6, B8), Some(one_scale(B8)));
    let cells = (Some(Window::whole([1, 2])), None);
    let attention = m.attend("b.attn", qkv, [1, 2], cells, log2());
    let x = m.linear("b.proj", attention, (2, B4), None);

    let all = m.pool("all", x, [1, 4], Pooling::Concat);
    let half = m.linear("head.all", all, (2, B4), None);
    let mean = m.pool("mean", x, [1, 2], Pooling::Mean);
    m.residual("head", mean, B4, half);
    let mut data = m.finish([4, 8]);
    data.preprocess.resize = Resize::Squash;
    data
}

/// [`golden`] with a codebook for the input of the second block's qkv.
pub(crate) fn with_codebook() -> ModelData {
    let mut data = golden();
    let norm = data
        .program
        .buffers
        .iter()
        .position(|b| b.name == "blocks.1.norm1");
    let quant = &mut data.quantization.activations[norm.expect("a buffer of that name")];
    *quant = Some(ActivationQuant {
        bits: B2,
        scale: vec![0.125],
        zero_point: vec![100],
        codebook: Some(Codebook {
            thresholds: vec![40, 90, 160],
            levels: vec![20, 64, 120, 200],
        }),
    });
    data
}

/// [`golden`] with a codebook for each head of the second attention.
pub(crate) fn with_codebook_per_head() -> ModelData {
    let mut data = golden();
    let softmax = data.quantization.softmax.iter_mut().flatten().nth(1);
    let softmax = softmax.expect("two attentions");
    let mut second = softmax.codebooks[0].clone();
    second.scale = 0.0625;
    second.thresholds[5] = f32::INFINITY;
    second.multipliers[5] = 0;
    softmax.codebooks.push(second);
    data
}

fn one_scale(bits: BitWidth) -> ActivationQuant {
    ActivationQuant {
        bits,
        scale: vec![0.5],
        zero_point: vec![bits.center()],
        codebook: None,
    }
}

fn row_max() -> SoftmaxQuant {
    SoftmaxQuant {
        bits: B2,
        method: SoftmaxMethod::RowMax,
        kind: SoftmaxKind::RowMax,
        renormalise: true,
        codebooks: vec![SoftmaxCodebook {
            scale: 0.0,
            thresholds: vec![0.5, 1.5, 2.5],
            multipliers: vec![127, 63, 31, 0],
        }],
    }
}

fn log2() -> SoftmaxQuant {
    SoftmaxQuant {
        bits: B3,
        method: SoftmaxMethod::Log2,
        kind: SoftmaxKind::Static,
        renormalise: false,
        codebooks: vec![SoftmaxCodebook {
            scale: 0.03125,
            thresholds: vec![0.5, 1.5, 2.5, 3.5, 4.5, 5.5, f32::INFINITY],
            multipliers: vec![32, 16, 8, 4, 2, 1, 0, 0],
        }],
    }
}

#[derive(Default)]
struct Hand {
    buffers: Vec<Buffer>,
    activations: Vec<Option<ActivationQuant>>,
    infos: Vec<TensorInfo>,
    tensors: Vec<TensorData>,
    ops: Vec<Op>,
    softmax: Vec<Option<SoftmaxQuant>>,
}

impl Hand {
    fn finish(self, image: [usize; 2]) -> ModelData {
        ModelData {
            program: Program {
                image,
                buffers: self.buffers,
                tensors: self.infos,
                ops: self.ops,
            },
            quantization: Quantization {
                activations: self.activations,
                softmax: self.softmax,
            },
            tensors: self.tensors,
            preprocess: Preprocess {
                resize: Resize::ShorterSide(5),
                interpolation: Interpolation::Bicubic,
                mean: [0.5, 0.25, 0.125],
                std: [0.5, 0.25, 0.125],
            },
            labels: vec!["cat".into(), "Käse".into()],
            provenance: "{\"source\":\"golden\"}".into(),
        }
    }

    fn op(&mut self, op: Op, softmax: Option<SoftmaxQuant>) {
        self.ops.push(op);
        self.softmax.push(softmax);
    }

    fn buffer(
        &mut self,
        name: &str,
        [rows, cols]: [usize; 2],
        q: Option<ActivationQuant>,
    ) -> BufferId {
        self.buffers.push(Buffer {
            name: name.into(),
            rows,
            cols,
        });
        self.activations.push(q);
        BufferId(self.buffers.len() as u16 - 1)
    }

    fn tensor(
        &mut self,
        name: &str,
        role: TensorRole,
        shape: [usize; 2],
        data: TensorData,
    ) -> TensorId {
        let [rows, cols] = shape;
        self.infos.push(TensorInfo {
            name: name.into(),
            role,
            rows,
            cols,
        });
        self.tensors.push(data);
        TensorId(self.infos.len() as u16 - 1)
    }

    fn float(&mut self, name: &str, shape: [usize; 2]) -> TensorId {
        let values = (0..shape[0] * shape[1]).map(|i| i as f32 - 1.5).collect();
        self.tensor(name, TensorRole::Float, shape, TensorData::Float(values))
    }

    /// Codes 1, 2, 3, ... wrapping around.
    fn weight(&mut self, name: &str, shape: [usize; 2], bits: BitWidth) -> TensorId {
        let [n, k] = shape;
        let codes = u32::from(bits.max_code()) + 1;
        let data = WeightQuant {
            bits,
            scale: (0..n).map(|n| 0.5 / (n + 1) as f32).collect(),
            zero_point: (0..n).map(|n| bits.center() - n as u8 % 2).collect(),
            codes: (1..=n * k).map(|i| (i as u32 % codes) as u8).collect(),
        };
        self.tensor(name, TensorRole::Weight, shape, TensorData::Weight(data))
    }

    fn layer_norm(&mut self, name: &str, input: BufferId, bits: BitWidth) -> BufferId {
        let Buffer { rows, cols, .. } = self.buffers[input.index()];
        let gamma = self.float(&format!("{name}.weight"), [1, cols]);
        let beta = self.float(&format!("{name}.bias"), [1, cols]);
        let output = self.buffer(name, [rows, cols], Some(one_scale(bits)));
        self.op(
            Op::LayerNorm {
                input,
                gamma,
                beta,
                eps: 1e-6,
                output,
            },
            None,
        );
        output
    }

    fn any_linear(
        &mut self,
        name: &str,
        (input, bits): (BufferId, BitWidth),
        (outputs, activation): (usize, Activation),
        residual: Option<BufferId>,
        quant: Option<ActivationQuant>,
    ) -> BufferId {
        let Buffer { rows, cols, .. } = self.buffers[input.index()];
        let weight = self.weight(&format!("{name}.weight"), [outputs, cols], bits);
        let bias = self.float(&format!("{name}.bias"), [1, outputs]);
        let output = self.buffer(name, [rows, outputs], quant);
        self.op(
            Op::Linear {
                input,
                weight,
                bias,
                activation,
                residual,
                output,
            },
            None,
        );
        output
    }

    fn linear(
        &mut self,
        name: &str,
        input: BufferId,
        (outputs, bits): (usize, BitWidth),
        quant: Option<ActivationQuant>,
    ) -> BufferId {
        self.any_linear(
            name,
            (input, bits),
            (outputs, Activation::Identity),
            None,
            quant,
        )
    }

    fn gelu(&mut self, name: &str, input: BufferId, bits: BitWidth) -> BufferId {
        let quant = Some(one_scale(B4));
        self.any_linear(name, (input, bits), (3, Activation::Gelu), None, quant)
    }

    fn residual(&mut self, name: &str, input: BufferId, bits: BitWidth, x: BufferId) -> BufferId {
        self.any_linear(
            name,
            (input, bits),
            (2, Activation::Identity),
            Some(x),
            None,
        )
    }

    fn attention(&mut self, name: &str, qkv: BufferId, softmax: SoftmaxQuant) -> BufferId {
        self.attend(name, qkv, [2, 1], (None, None), softmax)
    }

    fn attend(
        &mut self,
        name: &str,
        qkv: BufferId,
        [heads, head_dim]: [usize; 2],
        (window, bias): (Option<Window>, Option<TensorId>),
        softmax: SoftmaxQuant,
    ) -> BufferId {
        let rows = self.buffers[qkv.index()].rows;
        let output = self.buffer(name, [rows, heads * head_dim], Some(one_scale(B3)));
        self.op(
            Op::Attention {
                qkv,
                heads,
                head_dim,
                scale: 1.0,
                window,
                bias,
                output,
            },
            Some(softmax),
        );
        output
    }

    /// One row of the two tokens of `input`.
    fn pool(&mut self, name: &str, input: BufferId, shape: [usize; 2], pool: Pooling) -> BufferId {
        let output = self.buffer(name, shape, Some(one_scale(B8)));
        self.op(
            Op::Pool {
                input,
                first: 0,
                count: 2,
                pool,
                output,
            },
            None,
        );
        output
    }
}
