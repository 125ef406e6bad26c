//! Each hot kernel on each instruction set, at the shapes of ViT-T, -S and -B.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tpvit_bench::{Bytes, kernels_here};
use tpvit_kernels::{
    ActQuant, AttentionMethod, BitWidth, GemmShape, HeadOutput, HeadRequant, HeadShape, Kernels,
    KeysValues, Output, Queries, Requant, ShiftForm, SoftmaxCodes, SoftmaxKind, reference,
};

const TOKENS: usize = 197;

/// Model, and the `[n, k]` of qkv, fc1 and fc2.
const LINEARS: [(&str, [[usize; 2]; 3]); 3] = [
    ("vit-t", [[576, 192], [768, 192], [192, 768]]),
    ("vit-s", [[1152, 384], [1536, 384], [384, 1536]]),
    ("vit-b", [[2304, 768], [3072, 768], [768, 3072]]),
];

const WIDTHS: [(u32, BitWidth, BitWidth); 4] = [
    (8, BitWidth::B8, BitWidth::B8),
    (6, BitWidth::B6, BitWidth::B6),
    (4, BitWidth::B4, BitWidth::B4),
    (3, BitWidth::B3, BitWidth::B3),
];

fn gemm(c: &mut Criterion) {
    for (model, shapes) in LINEARS {
        for [n, k] in shapes {
            for (bits, act, weight) in WIDTHS {
                let mut group = c.benchmark_group(format!("gemm/a{bits}w{bits}/{model}/{n}x{k}"));
                group.throughput(Throughput::Elements((TOKENS * n * k) as u64));
                let shape = GemmShape {
                    n,
                    k,
                    weight_bits: weight,
                    act_max: act.max_code(),
                };
                let case = Gemm::new(shape);
                for kernels in kernels_here() {
                    // The portable kernels are a definition, not a product.
                    if kernels.isa() == tpvit_kernels::Isa::Portable && model != "vit-t" {
                        continue;
                    }
                    let mut ready = case.on(kernels);
                    ready.check(&case);
                    group.bench_function(kernels.isa().name(), |b| b.iter(|| ready.run(&case)));
                }
                group.finish();
            }
        }
    }
}

/// One product.
struct Gemm {
    shape: GemmShape,
    a: Vec<u8>,
    dense: Vec<u8>,
    scale: Vec<f32>,
    bias: Vec<f32>,
    correction: Vec<i32>,
}

/// A product packed for one instruction set.
struct Packed {
    kernels: &'static Kernels,
    packed: Vec<u8>,
    scratch: Vec<u8>,
    out: Vec<f32>,
}

impl Gemm {
    fn new(shape: GemmShape) -> Gemm {
        let mut bytes = Bytes::new(7);
        let GemmShape {
            n,
            k,
            weight_bits,
            act_max,
        } = shape;
        let codes = bytes.vec(n * k, weight_bits.max_code());
        let mut dense = vec![0; shape.dense_len()];
        let row_bytes = weight_bits.row_bytes(k);
        for (codes, row) in codes.chunks_exact(k).zip(dense.chunks_exact_mut(row_bytes)) {
            reference::unpack::pack_codes(weight_bits, codes, row);
        }
        Gemm {
            shape,
            a: bytes.vec(TOKENS * k, act_max),
            dense,
            scale: vec![1.0 / 1024.0; n],
            bias: vec![0.5; n],
            correction: vec![-3; n],
        }
    }

    fn requant(&self) -> Requant<'_> {
        Requant {
            scale: &self.scale,
            bias: &self.bias,
            correction: &self.correction,
            weight_zero: None,
        }
    }

    fn on(&self, kernels: &'static Kernels) -> Packed {
        let mut packed = vec![0; kernels.packed_len(&self.shape)];
        kernels.pack_weights(&self.shape, &self.dense, &mut packed);
        Packed {
            kernels,
            packed,
            scratch: vec![0; kernels.gemm_scratch_len(&self.shape, TOKENS)],
            out: vec![0.0; TOKENS * self.shape.n],
        }
    }
}

impl Packed {
    fn run(&mut self, case: &Gemm) {
        let Packed {
            kernels,
            packed,
            scratch,
            out,
        } = self;
        let output = Output::F32 {
            out: black_box(out),
        };
        kernels.gemm(
            &case.shape,
            &case.a,
            packed,
            &case.requant(),
            None,
            scratch,
            output,
        );
    }

    fn check(&mut self, case: &Gemm) {
        self.run(case);
        let mut expected = vec![0.0; self.out.len()];
        let mut output = Output::F32 { out: &mut expected };
        let (a, dense) = (&case.a, &case.dense);
        reference::gemm::gemm(
            &case.shape,
            TOKENS,
            a,
            dense,
            &case.requant(),
            None,
            &mut output,
        );
        assert_eq!(
            self.out,
            expected,
            "{} differs from the reference",
            self.kernels.isa().name()
        );
    }
}

/// One attention head in the qkv buffer of a model with three.
struct Head {
    shape: HeadShape,
    qkv: Vec<u8>,
    multipliers: Vec<i16>,
    thresholds: Vec<i32>,
    bits: BitWidth,
    kind: SoftmaxKind,
    inv_scale: Vec<f32>,
    zeros: Vec<u8>,
    scales: Vec<f32>,
}

impl Head {
    const DIM: usize = 64;
    const STRIDE: usize = 3 * 3 * Self::DIM;

    /// Zero-anchored codes of `2^bits` levels, 7 to 8 octaves in all; `is_static`
    /// makes them relative to the row's sum. Uniform codes whose scores
    /// deviate by one and a half octaves.
    fn new(tokens: usize, act_max: u8, bits: BitWidth, is_static: bool) -> Head {
        let middle = f64::from(act_max) / 2.0;
        let deviation = (Self::DIM as f64).sqrt() * middle * middle / 3.0;
        let alpha = 1.5 / deviation;
        let last = i32::from(bits.max_code());
        let step = match bits {
            BitWidth::B2 | BitWidth::B3 => 1.0,
            BitWidth::B4 => 0.5,
            BitWidth::B6 => 1.0 / 8.0,
            BitWidth::B8 => 1.0 / 32.0,
        };
        let level = |code: f64| (-code * step).exp2() - (-f64::from(last) * step).exp2();
        let threshold = |code: i32| -64.0 * level(f64::from(code) - 0.5).log2() / alpha;
        let kind = if is_static {
            SoftmaxKind::Static {
                alpha: alpha as f32,
                scale: 1.0 / 256.0,
            }
        } else {
            SoftmaxKind::RowMax
        };
        Head {
            shape: HeadShape {
                tokens,
                head_dim: Self::DIM,
                act_max,
            },
            qkv: Bytes::new(3).vec(tokens * Self::STRIDE, act_max),
            multipliers: (0..=last)
                .map(|code| (127.0 * level(f64::from(code)) / level(0.0)).round() as i16)
                .collect(),
            thresholds: (1..=last).map(|code| threshold(code) as i32).collect(),
            bits,
            kind,
            inv_scale: vec![4.0; Self::DIM],
            zeros: vec![act_max / 2; Self::DIM],
            scales: vec![0.25; Self::DIM],
        }
    }

    fn softmax(&self) -> SoftmaxCodes<'_> {
        SoftmaxCodes {
            bits: self.bits,
            thresholds: &self.thresholds,
            multipliers: &self.multipliers,
            kind: self.kind,
            renormalise: true,
        }
    }

    fn queries(&self) -> Queries<'_> {
        Queries {
            rows: &self.qkv,
            row_stride: Self::STRIDE,
            col: 0,
            zero: self.shape.act_max / 2,
        }
    }

    fn keys_values(&self) -> KeysValues<'_> {
        KeysValues {
            rows: &self.qkv,
            row_stride: Self::STRIDE,
            k_col: 3 * Self::DIM,
            v_col: 6 * Self::DIM,
        }
    }

    fn requant(&self) -> HeadRequant<'_> {
        HeadRequant {
            v_zero: &self.zeros,
            v_scale: &self.scales,
            quant: ActQuant {
                inv_scale: &self.inv_scale,
                zero_point: &self.zeros,
                max_code: self.shape.act_max,
            },
        }
    }

    fn output<'a>(&self, rows: &'a mut [u8]) -> HeadOutput<'a> {
        HeadOutput {
            rows,
            row_stride: Self::DIM,
            col: 0,
        }
    }

    fn expected(&self) -> Vec<u8> {
        let tokens = self.shape.tokens;
        let mut rows = vec![0; tokens * Self::DIM];
        let (mut scores, mut codes) = (vec![0; tokens], vec![0; tokens]);
        reference::attention::attention(
            &self.shape,
            &self.queries(),
            &self.keys_values(),
            &self.softmax(),
            &self.requant(),
            &mut scores,
            &mut codes,
            &mut self.output(&mut rows),
        );
        rows
    }
}

/// `attention/a<activation bits>/<tokens>x64/<code bits>-bit <kind>/<method>/<isa>`.
fn attention(c: &mut Criterion) {
    for (tokens, act, act_max) in [(197, 8, 255), (197, 4, 15), (257, 8, 255), (257, 4, 15)] {
        for bits in [BitWidth::B3, BitWidth::B4, BitWidth::B8] {
            for (name, is_static) in [("row-maximum", false), ("static", true)] {
                let head = Head::new(tokens, act_max, bits, is_static);
                let expected = head.expected();
                let form = ShiftForm::from_multipliers(&head.multipliers);
                let mut methods = vec![("decode", AttentionMethod::Decode)];
                if let Some(form) = &form {
                    methods.push(("shift", AttentionMethod::Shift(form)));
                }
                let mut group = c.benchmark_group(format!(
                    "attention/a{act}/{tokens}x{}/{}-bit {name}",
                    Head::DIM,
                    bits.bits()
                ));
                group.sample_size(10);
                group.throughput(Throughput::Elements(
                    (2 * tokens * tokens * Head::DIM) as u64,
                ));
                for kernels in kernels_here() {
                    let mut packed = vec![0; kernels.attention_pack_len(&head.shape)];
                    kernels.attention_pack(&head.shape, &head.keys_values(), &mut packed);
                    let mut scratch = vec![0; kernels.attention_scratch_len(&head.shape)];
                    let mut out = vec![0; expected.len()];
                    for &(method_name, method) in &methods {
                        let mut run = |out: &mut [u8]| {
                            kernels.attention(
                                &head.shape,
                                &head.queries(),
                                &packed,
                                &head.softmax(),
                                method,
                                &head.requant(),
                                &mut scratch,
                                head.output(out),
                            );
                        };
                        run(&mut out);
                        let isa = kernels.isa().name();
                        assert_eq!(out, expected, "{method_name} on {isa} differs");
                        group.bench_function(format!("{method_name}/{isa}"), |b| {
                            b.iter(|| run(black_box(&mut out)));
                        });
                    }
                }
                group.finish();
            }
        }
    }
}

/// Keys and values of one head, re-ordered. Attention has compared what comes of it.
fn attention_pack(c: &mut Criterion) {
    for (tokens, act, act_max) in [(197, 8, 255), (197, 4, 15), (257, 8, 255), (257, 4, 15)] {
        let head = Head::new(tokens, act_max, BitWidth::B4, false);
        let mut group = c.benchmark_group(format!("attention-pack/a{act}/{tokens}x{}", Head::DIM));
        group.sample_size(10);
        for kernels in kernels_here() {
            let mut packed = vec![0; kernels.attention_pack_len(&head.shape)];
            group.bench_function(kernels.isa().name(), |b| {
                b.iter(|| {
                    let packed = black_box(&mut packed);
                    kernels.attention_pack(&head.shape, &head.keys_values(), packed);
                });
            });
        }
        group.finish();
    }
}

fn layer_norm(c: &mut Criterion) {
    let d = 384;
    let x: Vec<f32> = Bytes::new(5)
        .vec(TOKENS * d, 255)
        .into_iter()
        .map(|b| f32::from(b) / 32.0)
        .collect();
    let (gamma, beta) = (vec![1.5; d], vec![0.25; d]);
    let (inv_scale, zero_point) = (vec![20.0; d], vec![100; d]);
    let quant = || ActQuant {
        inv_scale: &inv_scale,
        zero_point: &zero_point,
        max_code: 255,
    };
    let mut expected = vec![0; TOKENS * d];
    reference::layer_norm::layer_norm_codes(
        &x,
        TOKENS,
        d,
        &gamma,
        &beta,
        1e-6,
        &quant(),
        &mut expected,
    );
    let mut group = c.benchmark_group("layer-norm-codes/197x384");
    group.throughput(Throughput::Elements((TOKENS * d) as u64));
    for kernels in kernels_here() {
        let mut out = vec![0; TOKENS * d];
        let mut run = || {
            let out = black_box(&mut out);
            kernels.layer_norm_codes(&x, TOKENS, d, &gamma, &beta, 1e-6, quant(), out);
        };
        run();
        group.bench_function(kernels.isa().name(), |b| b.iter(&mut run));
        assert_eq!(
            out,
            expected,
            "{} differs from the reference",
            kernels.isa().name()
        );
    }
    group.finish();
}

criterion_group!(benches, attention, attention_pack, gemm, layer_norm);
criterion_main!(benches);
