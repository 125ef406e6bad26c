//! Seeded random models with the shapes of real ones: for benches, examples
//! and tests, which then need no download.
//!
//! A synthetic model computes nothing useful, but its numbers are like a real
//! model's: LayerNorm outputs near unit variance in quantizers that span
//! -4 to 4, weights with variance `1 / inputs`, so that nothing vanishes,
//! grows or saturates through the depth.
//!
//! ```
//! use tpvit_models::synthetic::{self, VitConfig};
//! use tpvit_models::{BitWidth, Model, write};
//!
//! let softmax = synthetic::row_max_softmax(BitWidth::B4);
//! let config = VitConfig { depth: 2, ..VitConfig::DEIT_TINY };
//! let data = synthetic::vit(config, BitWidth::B4, BitWidth::B8, &softmax, 1);
//! let bytes = write(&data)?;
//! assert_eq!(Model::parse(&bytes).unwrap().program().classes(), 1000);
//! # Ok::<(), tpvit_models::WriteError>(())
//! ```

use crate::file::{ModelData, TensorData};
use crate::preprocess::{Interpolation, Preprocess, Resize};
use crate::program::{Activation, BufferId, Mlp, NormAt, Op, Program, Readout, TensorId};
use crate::quant::{
    ActivationQuant, BitWidth, Codebook, Quantization, SoftmaxCodebook, SoftmaxKind, SoftmaxMethod,
    SoftmaxQuant, WeightQuant,
};
use crate::{swin, vit};
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

/// Shape of a plain Vision Transformer with a class token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VitConfig {
    /// Height and width of the picture in pixels; a multiple of `patch`.
    pub image: usize,
    /// Height and width of a patch in pixels.
    pub patch: usize,
    /// Channels of a token; a multiple of `heads`.
    pub dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads of a block.
    pub heads: usize,
    /// Width of the MLP, in multiples of `dim`.
    pub mlp_ratio: usize,
    /// Number of classes.
    pub classes: usize,
}

impl VitConfig {
    /// DeiT-T, 5.7 M parameters.
    pub const DEIT_TINY: VitConfig = VitConfig {
        image: 224,
        patch: 16,
        dim: 192,
        depth: 12,
        heads: 3,
        mlp_ratio: 4,
        classes: 1000,
    };

    /// DeiT-S, 22 M parameters.
    pub const DEIT_SMALL: VitConfig = VitConfig {
        dim: 384,
        heads: 6,
        ..VitConfig::DEIT_TINY
    };

    /// ViT-S with patches of 14 pixels, DINOv2's: 257 tokens, 22 M parameters.
    pub const VIT_SMALL_14: VitConfig = VitConfig {
        patch: 14,
        ..VitConfig::DEIT_SMALL
    };

    /// ViT-B and DeiT-B, 86 M parameters.
    pub const VIT_BASE: VitConfig = VitConfig {
        dim: 768,
        heads: 12,
        ..VitConfig::DEIT_TINY
    };

    /// The smallest one in which nothing is trivial: 5 tokens, 2 heads, 2 blocks.
    pub const SMALLEST: VitConfig = VitConfig {
        image: 8,
        patch: 4,
        dim: 12,
        depth: 2,
        heads: 2,
        mlp_ratio: 2,
        classes: 10,
    };

    /// Patches and the class token.
    pub fn tokens(&self) -> usize {
        let side = self.image / self.patch;
        side * side + 1
    }
}

/// A whole model of shape `config`, the same for the same arguments.
///
/// All weights have `weight_bits` (the patch embedding too), all coded
/// buffers `act_bits`, all attention codes `softmax`. The scales of q and k
/// differ between heads, those of v between columns.
///
/// # Panics
/// If `image` is no multiple of `patch`, or `dim` none of `heads`, or a size
/// is zero.
pub fn vit(
    config: VitConfig,
    weight_bits: BitWidth,
    act_bits: BitWidth,
    softmax: &SoftmaxQuant,
    seed: u64,
) -> ModelData {
    assert_eq!(config.image % config.patch, 0, "image and patch size");
    assert_eq!(config.dim % config.heads, 0, "channels and heads");
    let head_dim = config.dim / config.heads;
    let program = vit::program(&vit::Config {
        patch: [config.patch; 2],
        dim: config.dim,
        depth: config.depth,
        heads: config.heads,
        head_dim,
        scale: 1.0 / sqrt(head_dim),
        hidden: config.mlp_ratio * config.dim,
        ..vit::Config::tiny([config.image; 2], config.classes)
    });
    model(program, weight_bits, act_bits, softmax, seed)
}

/// A model of any program, the same for the same arguments.
///
/// Widths and scales as in [`vit()`].
///
/// # Panics
/// If the program is not valid.
pub fn model(
    program: Program,
    weight_bits: BitWidth,
    act_bits: BitWidth,
    softmax: &SoftmaxQuant,
    seed: u64,
) -> ModelData {
    assert_eq!(program.validate(), Ok(()), "the program is valid");
    let filler = Filler {
        program: &program,
        random: Random(seed),
        weight_bits,
        act_bits,
    };
    let (quantization, tensors) = filler.fill(softmax);
    let side = program.image[0].max(program.image[1]);
    let classes = program.classes();
    ModelData {
        program,
        quantization,
        tensors,
        preprocess: Preprocess {
            resize: Resize::ShorterSide((side * 8 / 7) as u32),
            interpolation: Interpolation::Bicubic,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
        },
        labels: (0..classes).map(|c| format!("class {c}")).collect(),
        provenance: format!("{{\"synthetic\":{{\"seed\":{seed}}}}}"),
    }
}

/// A model of [`VitConfig::SMALLEST`] with 4-bit weights, 8-bit activations
/// and 3-bit attention.
pub fn tiny() -> ModelData {
    let softmax = row_max_softmax(BitWidth::B3);
    vit(VitConfig::SMALLEST, BitWidth::B4, BitWidth::B8, &softmax, 0)
}

/// A small program of every kind there is, by name: each operation, each way to
/// read a result off, each shape that is not a square.
pub fn architectures() -> Vec<(&'static str, Program)> {
    let small = vit::Config {
        patch: [4, 8],
        dim: 20,
        depth: 2,
        heads: 2,
        head_dim: 10,
        scale: 0.316_227_77,
        hidden: 36,
        ..vit::Config::tiny([12, 16], 7)
    };
    let mean = |first, count, norm| Readout::Mean { first, count, norm };
    let swin = swin::Config {
        image: [32, 64],
        stages: [(0, 2), (1, 2)]
            .map(|(index, depth)| swin::Stage {
                depth,
                dim: 16 << index,
                heads: 2 << index,
                head_dim: 8,
                scale: 0.353_553_4,
                hidden: 40,
                window: [4, 4],
                shift: [[2, 1], [0, 3]][index],
            })
            .to_vec(),
        readout: mean(0, 32, NormAt::Tokens),
        ..swin::Config::tiny([224, 224], 7)
    };
    let one_window = swin::Config {
        image: [12, 20],
        patch_norm: false,
        stages: vec![swin::Stage {
            window: [3, 5],
            shift: [0, 0],
            ..swin.stages[0]
        }],
        readout: Readout::Tokens,
        classes: 0,
        ..swin.clone()
    };
    vec![
        ("vit", vit::program(&small)),
        (
            "deit-distilled",
            vit::program(&vit::Config {
                prefix: 2,
                readout: Readout::Concat { first: 0, count: 2 },
                ..small.clone()
            }),
        ),
        (
            "vit-mean",
            vit::program(&vit::Config {
                prefix: 0,
                readout: mean(0, 6, NormAt::Mean),
                ..small.clone()
            }),
        ),
        (
            "clip-mean-of-patches",
            vit::program(&vit::Config {
                norm_pre: true,
                readout: mean(1, 6, NormAt::Tokens),
                ..small.clone()
            }),
        ),
        (
            "vit-qk-norm",
            vit::program(&vit::Config {
                qk_norm: true,
                ..small.clone()
            }),
        ),
        (
            "dinov2-giant",
            vit::program(&vit::Config {
                prefix: 5,
                mlp: Mlp::SwiGlu,
                readout: Readout::Tokens,
                classes: 0,
                ..small.clone()
            }),
        ),
        ("vit-relu", {
            let mut program = vit::program(&small);
            for op in &mut program.ops {
                if let Op::Linear { activation, .. } = op
                    && *activation == Activation::Gelu
                {
                    *activation = Activation::Relu;
                }
            }
            program
        }),
        (
            "dinov2-classifier",
            vit::program(&vit::Config {
                readout: Readout::TokenAndMean {
                    token: 0,
                    first: 1,
                    count: 6,
                },
                ..small
            }),
        ),
        ("swin", swin::program(&swin)),
        ("swin-one-window", swin::program(&one_window)),
    ]
}

/// Codes relative to the row's largest probability, as the quantizer's: 2 and
/// 3 bits step by an octave, more bits by half an octave, and the last code
/// used is 0. Codes beyond the sixteenth are never used.
pub fn row_max_softmax(bits: BitWidth) -> SoftmaxQuant {
    const HALF_OCTAVES: [i16; 16] = [127, 90, 64, 45, 32, 22, 16, 11, 8, 6, 4, 3, 2, 1, 1, 0];
    let (step, multipliers): (f32, &[i16]) = match bits {
        BitWidth::B2 => (1.0, &[127, 63, 31, 0]),
        BitWidth::B3 => (1.0, &[127, 63, 31, 15, 7, 3, 1, 0]),
        BitWidth::B4 | BitWidth::B6 | BitWidth::B8 => (0.5, &HALF_OCTAVES),
    };
    SoftmaxQuant {
        bits,
        method: SoftmaxMethod::RowMax,
        kind: SoftmaxKind::RowMax,
        renormalise: true,
        codebooks: vec![codebook(bits, 0.0, step, multipliers)],
    }
}

/// FQ-ViT's log2 codes: code `c` stands for `2^-c`, the last one used for 0.
/// Codes beyond the sixteenth are never used: an i16 reaches no further.
pub fn log2_softmax(bits: BitWidth) -> SoftmaxQuant {
    let top = usize::from(bits.max_code()).min(15) - 1; // exponent of code 0
    let mut powers: Vec<i16> = (0..=top).rev().map(|exponent| 1 << exponent).collect();
    powers.push(0);
    let scale = 1.0 / (1u32 << top) as f32;
    SoftmaxQuant {
        bits,
        method: SoftmaxMethod::Log2,
        kind: SoftmaxKind::Static,
        renormalise: false,
        codebooks: vec![codebook(bits, scale, 1.0, &powers)],
    }
}

/// [`log2_softmax`], but no two of `heads` alike: head `h` ends `h` codes early.
///
/// # Panics
/// If there are more heads than codes to leave out.
pub fn log2_softmax_per_head(bits: BitWidth, heads: usize) -> SoftmaxQuant {
    let mut quant = log2_softmax(bits);
    let [shared] = &quant.codebooks[..] else {
        unreachable!("one for all heads")
    };
    let head = |head: usize| {
        let mut codebook = shared.clone();
        let used = codebook.multipliers.iter().filter(|&&m| m != 0).count();
        assert!(head < used, "head {head} of {used} codes");
        codebook.multipliers[used - head..].fill(0);
        codebook
    };
    quant.codebooks = (0..heads).map(head).collect();
    quant
}

/// Code `c` is `c * step` octaves down, give or take half a step. Codes
/// beyond the given multipliers are never reached.
fn codebook(bits: BitWidth, scale: f32, step: f32, used: &[i16]) -> SoftmaxCodebook {
    let codes = usize::from(bits.max_code()) + 1;
    let threshold = |code: usize| {
        if code + 1 < used.len() {
            (code as f32 + 0.5) * step
        } else {
            f32::INFINITY
        }
    };
    let mut multipliers = used.to_vec();
    multipliers.resize(codes, 0);
    SoftmaxCodebook {
        scale,
        thresholds: (0..codes - 1).map(threshold).collect(),
        multipliers,
    }
}

/// Makes up the numbers of a program.
struct Filler<'a> {
    program: &'a Program,
    random: Random,
    weight_bits: BitWidth,
    act_bits: BitWidth,
}

impl Filler<'_> {
    fn fill(mut self, softmax: &SoftmaxQuant) -> (Quantization, Vec<TensorData>) {
        let program = self.program;
        let mut quantization = Quantization {
            activations: vec![None; program.buffers.len()],
            softmax: Vec::new(),
        };
        let mut tensors: Vec<Option<TensorData>> = vec![None; program.tensors.len()];
        let coded = program.coded();
        for op in &program.ops {
            for id in op.tensors() {
                let data = self.tensor(op, id);
                tensors[id.index()].get_or_insert(data);
            }
            let output = op.output();
            let quant = coded[output.index()].then(|| self.activation(op, output));
            quantization.activations[output.index()] = quant;
            let attends = matches!(op, Op::Attention { .. });
            quantization.softmax.push(attends.then(|| softmax.clone()));
        }
        let unused = |id: usize| TensorData::Float(vec![0.0; self.len(id)]);
        let tensors = tensors.into_iter().enumerate();
        let tensors = tensors.map(|(id, data)| data.unwrap_or_else(|| unused(id)));
        (quantization, tensors.collect())
    }

    fn len(&self, tensor: usize) -> usize {
        let info = &self.program.tensors[tensor];
        info.rows * info.cols
    }

    /// Numbers like those of a real model, for a tensor of `op`.
    fn tensor(&mut self, op: &Op, id: TensorId) -> TensorData {
        let (center, reach) = match *op {
            // Pixels are 0 to 255, with a deviation of some 64.
            Op::PatchEmbed { weight, .. } if weight == id => return self.weight(id, 1.0 / 64.0),
            Op::Linear { weight, .. } if weight == id => return self.weight(id, 1.0),
            Op::PatchEmbed { prefix, .. } if prefix == Some(id) => (0.0, 1.0),
            Op::PatchEmbed { position, .. } if position == Some(id) => (0.0, 0.5),
            Op::LayerNorm { gamma, .. } | Op::HeadNorm { gamma, .. } if gamma == id => (1.0, 0.2),
            Op::LayerNorm { .. } | Op::HeadNorm { .. } => (0.0, 0.2),
            Op::Attention { .. } => (0.0, 1.0), // the bias of scores
            Op::PatchEmbed { .. }
            | Op::Linear { .. }
            | Op::Gate { .. }
            | Op::SelectToken { .. }
            | Op::Pool { .. }
            | Op::PatchMerge { .. } => (0.0, 0.1),
        };
        let (len, random) = (self.len(id.index()), &mut self.random);
        let values = (0..len).map(|_| center + reach * random.signed());
        TensorData::Float(values.collect())
    }

    /// The codes of what `op` writes.
    fn activation(&mut self, op: &Op, output: BufferId) -> ActivationQuant {
        if let Some((heads, head_dim)) = self.program.heads(output) {
            return self.qkv_quant(heads, head_dim);
        }
        match op {
            Op::Attention { .. } => self.act_quant(-2.0, 2.0), // an average is narrower
            Op::Linear {
                activation: Activation::Gelu,
                ..
            } => self.act_quant(-0.17, 3.5), // GELU is never below -0.17
            Op::Linear {
                activation: Activation::Relu,
                ..
            } => self.act_quant(0.0, 3.5),
            Op::PatchEmbed { .. }
            | Op::LayerNorm { .. }
            | Op::Linear { .. }
            | Op::HeadNorm { .. }
            | Op::Gate { .. }
            | Op::SelectToken { .. }
            | Op::Pool { .. }
            | Op::PatchMerge { .. } => self.act_quant(-4.0, 4.0),
        }
    }

    /// A weight of random codes and deviation `gain / sqrt(inputs)`, give or
    /// take a fifth per output; zero points one off the centre either way,
    /// but for 8 bits, which are symmetric.
    fn weight(&mut self, id: TensorId, gain: f32) -> TensorData {
        let info = &self.program.tensors[id.index()];
        let (outputs, inputs) = (info.rows, info.cols);
        let bits = self.weight_bits;
        let random = &mut self.random;
        // Even codes deviate by (number of codes) / sqrt(12).
        let scale = gain * 3.4641 / (f32::from(bits.max_code()) + 1.0) / sqrt(inputs);
        let center = bits.center();
        TensorData::Weight(WeightQuant {
            bits,
            scale: (0..outputs)
                .map(|_| scale * (1.0 + 0.2 * random.signed()))
                .collect(),
            zero_point: match bits {
                BitWidth::B8 => vec![center; outputs],
                BitWidth::B2 | BitWidth::B3 | BitWidth::B4 | BitWidth::B6 => (0..outputs)
                    .map(|_| center - 1 + (random.next() % 3) as u8)
                    .collect(),
            },
            codes: random.codes(bits, outputs * inputs),
        })
    }

    /// One scale and zero point that spread all codes over `low..=high`.
    fn act_quant(&self, low: f32, high: f32) -> ActivationQuant {
        let (scale, zero_point) = spread(self.act_bits, low, high);
        ActivationQuant {
            bits: self.act_bits,
            scale: vec![scale],
            zero_point: vec![zero_point],
            codebook: None,
        }
    }

    /// Ranges that differ per head for q and k, per column for v.
    fn qkv_quant(&mut self, heads: usize, head_dim: usize) -> ActivationQuant {
        let dim = heads * head_dim;
        let (mut scale, mut zero_point) = (Vec::new(), Vec::new());
        for start in 0..3 * dim {
            let group = if start < 2 * dim { head_dim } else { 1 };
            if start % group != 0 {
                scale.push(scale[start - 1]);
                zero_point.push(zero_point[start - 1]);
                continue;
            }
            let low = -4.0 + 0.5 * self.random.signed();
            let high = 4.0 + 0.5 * self.random.signed();
            let (s, z) = spread(self.act_bits, low, high);
            scale.push(s);
            zero_point.push(z);
        }
        ActivationQuant {
            bits: self.act_bits,
            scale,
            zero_point,
            codebook: None,
        }
    }
}

/// Gives every input of a linear layer that has at most 4 bits a codebook, over
/// the same range: levels that are denser towards the zero point.
pub fn add_codebooks(data: &mut ModelData) {
    for op in &data.program.ops {
        let Op::Linear { input, .. } = *op else {
            continue;
        };
        let quant = data.quantization.activations[input.index()].as_mut();
        let Some(quant) = quant.filter(|q| q.codebook.is_none() && q.bits <= BitWidth::B4) else {
            continue;
        };
        let fine = 255 / quant.bits.max_code();
        for (scale, zero) in quant.scale.iter_mut().zip(&mut quant.zero_point) {
            *scale /= f32::from(fine);
            *zero *= fine;
        }
        quant.codebook = Some(denser_levels(quant.bits, quant.zero_point[0]));
    }
}

/// Levels at squared distances from `zero`, thresholds half way between them.
fn denser_levels(bits: BitWidth, zero: u8) -> Codebook {
    let most = u32::from(bits.max_code());
    let below = (u32::from(zero) * most).div_ceil(255); // levels below the zero point
    let level = |code: u32| {
        let (distance, of, room) = match code < below {
            true => (below - code, below, u32::from(zero)),
            false => (code - below, (most - below).max(1), u32::from(255 - zero)),
        };
        let distance = (room * distance * distance / (of * of)) as u8;
        if code < below {
            zero - distance
        } else {
            zero + distance
        }
    };
    let levels: Vec<u8> = (0..=most).map(level).collect();
    let half_way = |pair: &[u8; 2]| u8::midpoint(pair[0], pair[1]);
    Codebook {
        thresholds: levels.array_windows().map(half_way).collect(),
        levels,
    }
}

/// Scale and zero point that spread all codes over `low..=high`, `low <= 0`.
fn spread(bits: BitWidth, low: f32, high: f32) -> (f32, u8) {
    let scale = (high - low) / f32::from(bits.max_code());
    (scale, (-low / scale + 0.5) as u8)
}

/// Square root to some 5 digits; `core` has none for floats.
fn sqrt(x: usize) -> f32 {
    ((x as u64) << 32).isqrt() as f32 / 65536.0
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Even over -1 to 1.
    fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// Even over all codes, eight from each draw.
    fn codes(&mut self, bits: BitWidth, count: usize) -> Vec<u8> {
        let mut codes = Vec::with_capacity(count);
        while codes.len() < count {
            let draw = self.next().to_le_bytes();
            let wanted = draw.len().min(count - codes.len());
            codes.extend(draw[..wanted].iter().map(|byte| byte & bits.max_code()));
        }
        codes
    }
}
