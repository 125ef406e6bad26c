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

fn attention(c: &mut Criterion) {
    let shape = HeadShape {
        tokens: TOKENS,
        head_dim: 64,
        act_max: 15,
    };
    let macs = (2 * TOKENS * TOKENS * 64) as u64;
    let stride = 3 * 64;
    let qkv = Bytes::new(3).vec(TOKENS * stride, 15);
    // Row-maximum codes of 3 bits, one octave apart: the codebook that shifts too.
    let multipliers = [127, 63, 31, 15, 7, 3, 1, 0];
    let thresholds: Vec<i32> = (1..8).map(|code| code * 64 * 24 - 700).collect();
    let softmax = SoftmaxCodes {
        bits: BitWidth::B3,
        thresholds: &thresholds,
        multipliers: &multipliers,
        kind: SoftmaxKind::RowMax,
        renormalise: true,
    };
    let form = ShiftForm::from_multipliers(&multipliers).expect("powers of two minus one");
    let inv_scale = vec![4.0; 64];
    let zeros = vec![8; 64];
    let scales = vec![0.25; 64];
    let requant = HeadRequant {
        v_zero: &zeros,
        v_scale: &scales,
        quant: ActQuant {
            inv_scale: &inv_scale,
            zero_point: &zeros,
            max_code: 15,
        },
    };
    let queries = Queries {
        rows: &qkv,
        row_stride: stride,
        col: 0,
        zero: 8,
    };
    let keys_values = KeysValues {
        rows: &qkv,
        row_stride: stride,
        k_col: 64,
        v_col: 128,
    };
    let mut group = c.benchmark_group("attention/3-bit row-maximum/197x64");
    group.throughput(Throughput::Elements(macs));
    let mut expected: Option<Vec<u8>> = None;
    for kernels in kernels_here() {
        let mut packed = vec![0; kernels.attention_pack_len(&shape)];
        kernels.attention_pack(&shape, &keys_values, &mut packed);
        let mut scratch = vec![0; kernels.attention_scratch_len(&shape)];
        let mut out = vec![0; TOKENS * 64];
        let methods = [
            ("decode", AttentionMethod::Decode),
            ("shift", AttentionMethod::Shift(&form)),
        ];
        for (name, method) in methods {
            let mut run = || {
                let out = HeadOutput {
                    rows: black_box(&mut out),
                    row_stride: 64,
                    col: 0,
                };
                let scratch = &mut scratch;
                kernels.attention(
                    &shape, &queries, &packed, &softmax, method, &requant, scratch, out,
                );
            };
            run();
            group.bench_function(format!("{name}/{}", kernels.isa().name()), |b| {
                b.iter(&mut run)
            });
            let first = expected.get_or_insert_with(|| out.clone());
            assert_eq!(*first, out, "{name} on {} differs", kernels.isa().name());
        }
    }
    group.finish();
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

criterion_group!(benches, gemm, attention, layer_norm);
criterion_main!(benches);
