//! Each hot kernel on each instruction set, at the shapes of ViT-T, -S and -B.

use std::{hint::black_box, ops::Range, time::Duration};

use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use tpvit_bench::{Bytes, kernels_here};
use tpvit_kernels::{
    ActCodebook, ActQuant, AttentionMethod, BitWidth, Cells, GemmShape, HeadOutput, HeadRequant,
    HeadShape, Kernels, KeysValues, Lines, Output, Queries, Requant, ShiftForm, SoftmaxCodes,
    SoftmaxKind, reference,
};

const TOKENS: usize = 197;

/// A group whose functions take under a second each: there are hundreds.
fn short(c: &mut Criterion, name: String) -> BenchmarkGroup<'_, WallTime> {
    let mut group = c.benchmark_group(name);
    group
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500));
    group
}

/// Widths of the models' vectors.
const DIMS: [(&str, usize); 3] = [("vit-t", 192), ("vit-s", 384), ("vit-b", 768)];

/// What a model does with a product.
#[derive(Clone, Copy, Debug)]
enum Use {
    /// q, k and v: codes for attention.
    Codes,
    /// proj and fc2: added to the residual stream.
    Accumulate,
    /// fc1: codes of GELU.
    GeluCodes,
}

/// The linear layers of a block of width `d`: name, `[n, k]`, and what follows.
const fn linears(d: usize) -> [(&'static str, [usize; 2], Use); 4] {
    [
        ("qkv", [3 * d, d], Use::Codes),
        ("proj", [d, d], Use::Accumulate),
        ("fc1", [4 * d, d], Use::GeluCodes),
        ("fc2", [d, 4 * d], Use::Accumulate),
    ]
}

/// Each weight width with activations of the same width.
fn gemm(c: &mut Criterion) {
    for (model, d) in DIMS {
        for bits in BitWidth::ALL.into_iter().rev() {
            for (layer, [n, k], output) in linears(d) {
                let width = bits.bits();
                let name = format!("gemm/a{width}w{width}/{model}/{layer} {n}x{k}");
                let mut group = short(c, name);
                group.throughput(Throughput::Elements((TOKENS * n * k) as u64));
                let shape = GemmShape {
                    n,
                    k,
                    weight_bits: bits,
                    act_max: bits.max_code(),
                };
                let case = Gemm::new(shape, output);
                let expected = case.expected();
                for kernels in kernels_here() {
                    // The portable kernels are a definition, not a product.
                    if kernels.isa() == tpvit_kernels::Isa::Portable && model != "vit-t" {
                        continue;
                    }
                    let mut ready = case.on(kernels);
                    ready.check(&case, &expected);
                    group.bench_function(kernels.isa().name(), |b| b.iter(|| ready.run(&case)));
                }
                group.finish();
            }
        }
    }
}

/// Re-ordering the weights of ViT-B's fc1, as a session does when it loads a model.
fn pack(c: &mut Criterion) {
    for bits in BitWidth::ALL.into_iter().rev() {
        let mut group = short(c, format!("pack/w{}/3072x768", bits.bits()));
        let shape = GemmShape {
            n: 3072,
            k: 768,
            weight_bits: bits,
            act_max: bits.max_code(),
        };
        let dense = Bytes::new(11).vec(shape.dense_len(), 255);
        for kernels in kernels_here() {
            let mut packed = vec![0; kernels.packed_len(&shape)];
            group.throughput(Throughput::Bytes(packed.len() as u64));
            group.bench_function(kernels.isa().name(), |b| {
                b.iter(|| kernels.pack_weights(&shape, &dense, black_box(&mut packed)));
            });
        }
        group.finish();
    }
}

/// One product.
struct Gemm {
    shape: GemmShape,
    output: Use,
    a: Vec<u8>,
    dense: Vec<u8>,
    scale: Vec<f32>,
    bias: Vec<f32>,
    correction: Vec<i32>,
    inv_scale: Vec<f32>,
    zero_point: Vec<u8>,
}

/// What the reference gives for some rows.
struct Expected {
    rows: Range<usize>,
    floats: Vec<f32>,
    codes: Vec<u8>,
}

/// A product packed for one instruction set.
struct Packed {
    kernels: &'static Kernels,
    packed: Vec<u8>,
    scratch: Vec<u8>,
    floats: Vec<f32>,
    codes: Vec<u8>,
}

impl Gemm {
    fn new(shape: GemmShape, output: Use) -> Gemm {
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
        // Results of about unit size, as a model's are: GELU must see its bend.
        let size = (k as f32).sqrt() * f32::from(act_max) * f32::from(weight_bits.max_code());
        Gemm {
            shape,
            output,
            a: bytes.vec(TOKENS * k, act_max),
            dense,
            scale: vec![6.0 / size; n],
            bias: vec![0.5; n],
            correction: vec![-3; n],
            inv_scale: vec![f32::from(act_max) / 4.0; n],
            zero_point: vec![act_max / 4; n],
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

    fn target<'a>(&'a self, floats: &'a mut [f32], codes: &'a mut [u8]) -> Output<'a> {
        let quant = ActQuant {
            inv_scale: &self.inv_scale,
            zero_point: &self.zero_point,
            max_code: self.shape.act_max,
        };
        match self.output {
            Use::Codes => Output::Codes { out: codes, quant },
            Use::Accumulate => Output::Accumulate { inout: floats },
            Use::GeluCodes => Output::GeluCodes { out: codes, quant },
        }
    }

    /// The first and the last rows, in a whole tile and at the edge: the reference is slow.
    fn expected(&self) -> [Expected; 2] {
        [0..2, TOKENS - 2..TOKENS].map(|rows| {
            let GemmShape { n, k, .. } = self.shape;
            let (mut floats, mut codes) = (vec![0.0; 2 * n], vec![0; 2 * n]);
            reference::gemm::gemm(
                &self.shape,
                2,
                &self.a[rows.start * k..rows.end * k],
                &self.dense,
                &self.requant(),
                None,
                &mut self.target(&mut floats, &mut codes),
            );
            Expected {
                rows,
                floats,
                codes,
            }
        })
    }

    fn on(&self, kernels: &'static Kernels) -> Packed {
        let mut packed = vec![0; kernels.packed_len(&self.shape)];
        kernels.pack_weights(&self.shape, &self.dense, &mut packed);
        let len = TOKENS * self.shape.n;
        Packed {
            kernels,
            packed,
            scratch: vec![0; kernels.gemm_scratch_len(&self.shape, TOKENS)],
            floats: vec![0.0; len],
            codes: vec![0; len],
        }
    }
}

impl Packed {
    fn run(&mut self, case: &Gemm) {
        let Packed {
            kernels,
            packed,
            scratch,
            floats,
            codes,
        } = self;
        let output = case.target(black_box(floats), black_box(codes));
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

    fn check(&mut self, case: &Gemm, expected: &[Expected; 2]) {
        self.run(case);
        let name = self.kernels.isa().name();
        for Expected {
            rows,
            floats,
            codes,
        } in expected
        {
            let at = rows.start * case.shape.n..rows.end * case.shape.n;
            assert_eq!(
                self.floats[at.clone()],
                *floats,
                "{name} differs from the reference"
            );
            assert_eq!(self.codes[at], *codes, "{name} differs from the reference");
        }
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
            lines: Lines::ONE,
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
            &[],
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

/// One head of Swin's first stage: 64 windows of 7 by 7 tokens in a grid of 56 by 56,
/// packed and attended in one call, with a position bias.
///
/// `attention-cells/a<activation bits>/64x49x64/<code bits>-bit <kind>/<method>/<isa>`.
fn attention_cells(c: &mut Criterion) {
    const GRID: usize = 56;
    const WINDOW: usize = 7;
    let tokens = WINDOW * WINDOW;
    let line = |y: usize| {
        (0..GRID)
            .step_by(WINDOW)
            .map(move |x| (y * GRID + x) as u32)
    };
    let first: Vec<u32> = (0..GRID).step_by(WINDOW).flat_map(line).collect();
    let bias: Vec<i32> = (0..tokens * Cells::bias_row_len(tokens))
        .map(|i| (i as i32 * 37) % 401 - 200)
        .collect();
    let cells = Cells {
        lines: Lines {
            len: WINDOW,
            stride: GRID,
        },
        first: &first,
        own: 0..GRID * GRID,
        bias: &bias,
    };
    for (act, act_max) in [(8, 255), (4, 15)] {
        for (bits, is_static) in [
            (BitWidth::B3, false),
            (BitWidth::B4, false),
            (BitWidth::B8, true),
        ] {
            let grid = Head::new(GRID * GRID, act_max, bits, is_static);
            let shape = HeadShape {
                tokens,
                ..grid.shape
            };
            let form = ShiftForm::from_multipliers(&grid.multipliers);
            let mut methods = vec![("decode", AttentionMethod::Decode)];
            methods.extend(
                form.as_ref()
                    .map(|form| ("shift", AttentionMethod::Shift(form))),
            );
            let kind = if is_static { "static" } else { "row-maximum" };
            let mut group = c.benchmark_group(format!(
                "attention-cells/a{act}/{}x{tokens}x{}/{}-bit {kind}",
                first.len(),
                Head::DIM,
                bits.bits()
            ));
            group.sample_size(10);
            let pairs = first.len() * tokens * tokens;
            group.throughput(Throughput::Elements((2 * pairs * Head::DIM) as u64));
            let mut expected = None;
            for kernels in kernels_here() {
                let mut packed = vec![0; kernels.attention_pack_len(&shape)];
                let mut scratch = vec![0; kernels.attention_scratch_len(&shape)];
                let mut out = vec![0; GRID * GRID * Head::DIM];
                for &(name, method) in &methods {
                    let mut run = |out: &mut [u8]| {
                        kernels.attention_cells(
                            &shape,
                            &cells,
                            &grid.queries(),
                            &grid.keys_values(),
                            &grid.softmax(),
                            method,
                            &grid.requant(),
                            &mut packed,
                            &mut scratch,
                            grid.output(out),
                        );
                    };
                    run(&mut out);
                    let isa = kernels.isa().name();
                    let expected = expected.get_or_insert_with(|| out.clone());
                    assert_eq!(out, *expected, "{name} on {isa} differs");
                    group.bench_function(format!("{name}/{isa}"), |b| {
                        b.iter(|| run(black_box(&mut out)));
                    });
                }
            }
            group.finish();
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
    for (_, d) in DIMS {
        layer_norm_of(c, d);
    }
}

fn layer_norm_of(c: &mut Criterion, d: usize) {
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
    let mut group = short(c, format!("layer-norm-codes/197x{d}"));
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

/// The output of fc1 to 16 levels.
fn snap(c: &mut Criterion) {
    let thresholds: Vec<u8> = (1..16).map(|i| 16 * i).collect();
    let levels: Vec<u8> = (0..16).map(|i| 17 * i).collect();
    let book = ActCodebook {
        thresholds: &thresholds,
        levels: &levels,
    };
    for (model, d) in DIMS {
        let codes = Bytes::new(6).vec(TOKENS * 4 * d, 255);
        let mut expected = codes.clone();
        reference::snap::snap(&book, &mut expected);
        let mut group = short(c, format!("snap/{model}/197x{}", 4 * d));
        group.throughput(Throughput::Elements(codes.len() as u64));
        for kernels in kernels_here() {
            // Levels stay where they are: running again takes as long.
            let mut out = codes.clone();
            kernels.snap(book, &mut out);
            let name = kernels.isa().name();
            assert_eq!(out, expected, "{name} differs from the reference");
            group.bench_function(name, |b| {
                b.iter(|| kernels.snap(book, black_box(&mut out)));
            });
        }
        group.finish();
    }
}

criterion_group!(
    benches,
    attention,
    attention_cells,
    attention_pack,
    gemm,
    pack,
    layer_norm,
    snap
);
criterion_main!(benches);
