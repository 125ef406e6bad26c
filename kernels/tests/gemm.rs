//! Every matrix product equals the reference, bit for bit, on every ISA.

mod common;

use common::{Rng, bits, for_each_isa};
use tpvit_kernels::{ActQuant, BitWidth, GemmShape, Isa, Kernels, Output, Requant, reference};

/// Operands and tables of one product.
struct Case {
    shape: GemmShape,
    m: usize,
    a: Vec<u8>,
    dense: Vec<u8>,
    scale: Vec<f32>,
    bias: Vec<f32>,
    correction: Vec<i32>,
    weight_zero: Option<Vec<i32>>,
    row_sums: Vec<i32>,
    residual: Vec<f32>,
    inv_scale: Vec<f32>,
    zero_point: Vec<u8>,
}

/// Which codes a case holds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fill {
    /// Largest activations against the lowest weights: the most negative sums.
    Lowest,
    /// Largest activations against the highest weights.
    Highest,
    /// Activations 0 or largest, weights lowest or highest, at random.
    Extremes,
    Random,
}

const FILLS: [Fill; 4] = [Fill::Lowest, Fill::Highest, Fill::Extremes, Fill::Random];

impl Case {
    fn new(rng: &mut Rng, m: usize, shape: GemmShape, fill: Fill, weight_zero: bool) -> Self {
        let GemmShape {
            n,
            k,
            weight_bits,
            act_max,
        } = shape;
        let max = weight_bits.max_code();
        let (a, weights) = match fill {
            Fill::Lowest => (vec![act_max; m * k], vec![0; n * k]),
            Fill::Highest => (vec![act_max; m * k], vec![max; n * k]),
            Fill::Extremes => (
                (0..m * k).map(|_| act_max * rng.up_to(1) as u8).collect(),
                (0..n * k).map(|_| max * rng.up_to(1) as u8).collect(),
            ),
            Fill::Random => (rng.codes(m * k, act_max), rng.codes(n * k, max)),
        };
        let row_bytes = weight_bits.row_bytes(k);
        let mut dense = vec![0; shape.dense_len()];
        for j in 0..n {
            reference::unpack::pack_codes(
                weight_bits,
                &weights[j * k..][..k],
                &mut dense[j * row_bytes..][..row_bytes],
            );
        }
        let mut row_sums = vec![0; m];
        reference::gemm::row_sums(&a, k, &mut row_sums);
        Self {
            shape,
            m,
            a,
            dense,
            scale: rng.floats(n, 1e-4, 1e-3),
            bias: rng.floats(n, -1.0, 1.0),
            correction: (0..n).map(|_| rng.up_to(2000) as i32 - 1000).collect(),
            weight_zero: weight_zero.then(|| (0..n).map(|_| rng.up_to(14) as i32 - 7).collect()),
            row_sums,
            residual: rng.floats(m * n, -3.0, 3.0),
            inv_scale: rng.floats(n, 0.5, 40.0),
            zero_point: rng.codes(n, 15),
        }
    }

    fn requant(&self) -> Requant<'_> {
        Requant {
            scale: &self.scale,
            bias: &self.bias,
            correction: &self.correction,
            weight_zero: self.weight_zero.as_deref(),
        }
    }

    fn quant(&self, max_code: u8) -> ActQuant<'_> {
        ActQuant {
            inv_scale: &self.inv_scale,
            zero_point: &self.zero_point,
            max_code,
        }
    }

    /// Runs `product` into each kind of output and returns all results as bits.
    fn outputs(&self, mut product: impl FnMut(Output)) -> Vec<Vec<u32>> {
        let len = self.m * self.shape.n;
        let mut results = Vec::new();
        let mut out = vec![0.0; len];
        product(Output::F32 { out: &mut out });
        results.push(bits(&out));
        product(Output::Residual {
            residual: &self.residual,
            out: &mut out,
        });
        results.push(bits(&out));
        let mut inout = self.residual.clone();
        product(Output::Accumulate { inout: &mut inout });
        results.push(bits(&inout));
        product(Output::Gelu { out: &mut out });
        results.push(bits(&out));
        for max_code in [15, 255] {
            let mut codes = vec![0; len];
            product(Output::Codes {
                out: &mut codes,
                quant: self.quant(max_code),
            });
            results.push(codes.iter().map(|&c| u32::from(c)).collect());
            product(Output::GeluCodes {
                out: &mut codes,
                quant: self.quant(max_code),
            });
            results.push(codes.iter().map(|&c| u32::from(c)).collect());
        }
        results
    }

    fn expected(&self) -> Vec<Vec<u32>> {
        self.outputs(|mut out| {
            let sums = Some(&self.row_sums[..]);
            reference::gemm::gemm(
                &self.shape,
                self.m,
                &self.a,
                &self.dense,
                &self.requant(),
                sums,
                &mut out,
            );
        })
    }

    fn actual(&self, kernels: &Kernels) -> Vec<Vec<u32>> {
        let mut packed = vec![0xaa; kernels.packed_len(&self.shape)];
        kernels.pack_weights(&self.shape, &self.dense, &mut packed);
        let mut scratch = vec![0xaa; kernels.gemm_scratch_len(&self.shape, self.m)];
        let sums = self.weight_zero.is_some().then_some(&self.row_sums[..]);
        self.outputs(|out| {
            kernels.gemm(
                &self.shape,
                &self.a,
                &packed,
                &self.requant(),
                sums,
                &mut scratch,
                out,
            );
        })
    }

    /// Compares the floats alone: for long rows, whose reference is slow.
    fn check_floats(&self, label: &str) {
        let mut expected = vec![0.0; self.m * self.shape.n];
        let mut out = Output::F32 { out: &mut expected };
        let (requant, sums) = (self.requant(), Some(&self.row_sums[..]));
        reference::gemm::gemm(
            &self.shape,
            self.m,
            &self.a,
            &self.dense,
            &requant,
            sums,
            &mut out,
        );
        for_each_isa(|kernels| {
            let mut packed = vec![0xaa; kernels.packed_len(&self.shape)];
            kernels.pack_weights(&self.shape, &self.dense, &mut packed);
            let mut scratch = vec![0xaa; kernels.gemm_scratch_len(&self.shape, self.m)];
            let mut y = vec![0.0; self.m * self.shape.n];
            let out = Output::F32 { out: &mut y };
            kernels.gemm(
                &self.shape,
                &self.a,
                &packed,
                &requant,
                None,
                &mut scratch,
                out,
            );
            assert_eq!(
                bits(&y),
                bits(&expected),
                "{label} {:?} {:?}",
                kernels.isa(),
                self.shape
            );
        });
    }

    /// Compares every kind of output.
    fn check(&self, kernels: &Kernels, label: &str) {
        assert_eq!(
            self.actual(kernels),
            self.expected(),
            "{label} {:?} m {} {:?}",
            kernels.isa(),
            self.m,
            self.shape
        );
    }
}

/// Weight width and largest activation of each scheme.
const SCHEMES: [(BitWidth, u8); 14] = [
    (BitWidth::B8, 255),
    (BitWidth::B8, 127),
    (BitWidth::B8, 63),
    (BitWidth::B8, 15),
    (BitWidth::B8, 0),
    (BitWidth::B6, 255),
    (BitWidth::B6, 63),
    (BitWidth::B4, 255),
    (BitWidth::B4, 63),
    (BitWidth::B4, 15),
    (BitWidth::B3, 255),
    (BitWidth::B3, 7),
    (BitWidth::B2, 255),
    (BitWidth::B2, 3),
];

#[test]
fn every_scheme_at_edge_shapes() {
    let mut rng = Rng(1);
    let shapes = [
        (0, 5, 7),
        (1, 1, 1),
        (2, 15, 2),
        (3, 16, 3),
        (4, 17, 4),
        (5, 31, 5),
        (6, 33, 8),
        (7, 48, 15),
        (9, 64, 16),
        (12, 65, 17),
        (13, 70, 33),
        (17, 129, 36),
        (25, 20, 96),
    ];
    for (bits, act_max) in SCHEMES {
        for (index, &(m, n, k)) in shapes.iter().enumerate() {
            let shape = GemmShape {
                n,
                k,
                weight_bits: bits,
                act_max,
            };
            let case = Case::new(&mut rng, m, shape, FILLS[index % 4], index % 3 == 0);
            for_each_isa(|kernels| case.check(kernels, "edge"));
        }
    }
}

#[test]
fn every_number_of_rows_outputs_and_inputs() {
    let mut rng = Rng(2);
    for (bits, act_max) in [
        (BitWidth::B8, 255),
        (BitWidth::B6, 63),
        (BitWidth::B4, 15),
        (BitWidth::B3, 255),
    ] {
        for m in 0..=25 {
            let shape = GemmShape {
                n: 18,
                k: 22,
                weight_bits: bits,
                act_max,
            };
            let case = Case::new(&mut rng, m, shape, Fill::Extremes, true);
            for_each_isa(|kernels| case.check(kernels, "m"));
        }
        for n in 0..=130 {
            let shape = GemmShape {
                n,
                k: 9,
                weight_bits: bits,
                act_max,
            };
            let case = Case::new(&mut rng, 3, shape, Fill::Extremes, false);
            for_each_isa(|kernels| case.check(kernels, "n"));
        }
        for k in 0..=70 {
            let shape = GemmShape {
                n: 17,
                k,
                weight_bits: bits,
                act_max,
            };
            let case = Case::new(&mut rng, 7, shape, Fill::Random, false);
            for_each_isa(|kernels| case.check(kernels, "k"));
        }
    }
}

/// `vpmaddubsw` adds two u8 * s8 products in 16 bits with saturation, and 16-bit
/// sums overflow after some steps: long rows of extreme codes show both.
#[test]
fn extreme_codes_over_long_rows_neither_saturate_nor_overflow() {
    let mut rng = Rng(3);
    for (bits, act_max) in SCHEMES {
        for fill in FILLS {
            let shape = GemmShape {
                n: 18,
                k: 3079,
                weight_bits: bits,
                act_max,
            };
            let case = Case::new(&mut rng, 7, shape, fill, false);
            case.check_floats("long");
        }
    }
}

#[test]
fn the_longest_row_is_exact() {
    let mut rng = Rng(4);
    let shape = GemmShape {
        n: 2,
        k: tpvit_kernels::MAX_K,
        weight_bits: BitWidth::B8,
        act_max: 255,
    };
    let case = Case::new(&mut rng, 2, shape, Fill::Lowest, false);
    case.check_floats("MAX_K");
}

#[test]
fn a_split_of_the_rows_changes_nothing() {
    let mut rng = Rng(5);
    let shape = GemmShape {
        n: 40,
        k: 50,
        weight_bits: BitWidth::B4,
        act_max: 255,
    };
    let case = Case::new(&mut rng, 23, shape, Fill::Random, true);
    let (n, k) = (shape.n, shape.k);
    for_each_isa(|kernels| {
        let mut packed = vec![0; kernels.packed_len(&shape)];
        kernels.pack_weights(&shape, &case.dense, &mut packed);
        let mut scratch = vec![0; kernels.gemm_scratch_len(&shape, case.m)];
        let mut whole = vec![0.0; case.m * n];
        let sums = Some(&case.row_sums[..]);
        kernels.gemm(
            &shape,
            &case.a,
            &packed,
            &case.requant(),
            sums,
            &mut scratch,
            Output::F32 { out: &mut whole },
        );
        for split in [0, 1, 5, 6, 22, 23] {
            let mut parts = vec![0.0; case.m * n];
            let (head, tail) = parts.split_at_mut(split * n);
            for (rows, out) in [(0..split, head), (split..case.m, tail)] {
                let a = &case.a[rows.start * k..rows.end * k];
                let sums = Some(&case.row_sums[rows]);
                kernels.gemm(
                    &shape,
                    a,
                    &packed,
                    &case.requant(),
                    sums,
                    &mut scratch,
                    Output::F32 { out },
                );
            }
            assert_eq!(bits(&parts), bits(&whole), "{:?} {split}", kernels.isa());
        }
    });
}

/// Every piece of GELU's approximation, its ends, and what is not a number: with
/// no inputs, the bias alone is what the epilogue gets.
#[test]
fn gelu_of_every_kind_of_float() {
    let mut bias: Vec<f32> = (-640..=640).map(|i| i as f32 / 80.0).collect();
    for piece in 0..8_u8 {
        let end = (f32::from(piece) + 0.5) / 1.343_75;
        for x in [end.next_down(), end, end.next_up()] {
            bias.extend([x, -x]);
        }
    }
    for x in [0.0, 1e-42, f32::MIN_POSITIVE, f32::MAX, f32::INFINITY] {
        bias.extend([x, -x]);
    }
    bias.push(f32::NAN);
    let n = bias.len();
    let shape = GemmShape {
        n,
        k: 0,
        weight_bits: BitWidth::B8,
        act_max: 255,
    };
    let mut case = Case::new(&mut Rng(9), 0, shape, Fill::Random, false);
    case.m = 7;
    case.correction = vec![0; n];
    case.residual = vec![0.0; 7 * n];
    case.bias = bias;
    for_each_isa(|kernels| case.check(kernels, "gelu"));
}

#[test]
fn row_sums_are_exact() {
    let mut rng = Rng(6);
    for k in [0, 1, 15, 16, 17, 64, 197, 3072] {
        for m in [0, 1, 5] {
            let mut a = rng.codes(m * k, 255);
            a.iter_mut().take(k).for_each(|code| *code = 255);
            let mut expected = vec![0; m];
            reference::gemm::row_sums(&a, k, &mut expected);
            for_each_isa(|kernels| {
                let mut sums = vec![0; m];
                kernels.row_sums(&a, k, &mut sums);
                assert_eq!(sums, expected, "{:?}", kernels.isa());
            });
        }
    }
}

/// The reference against the formula with zero points, in f64: with scales that
/// are powers of two every step is exact.
#[test]
fn the_reference_is_the_product_of_the_dequantized_operands() {
    let mut rng = Rng(7);
    let (m, n, k, act_zero) = (5, 6, 40, 3_i32);
    let shape = GemmShape {
        n,
        k,
        weight_bits: BitWidth::B4,
        act_max: 15,
    };
    let mut case = Case::new(&mut rng, m, shape, Fill::Random, true);
    case.scale = vec![0.25; n];
    case.bias = vec![1.5; n];
    let zero = case.weight_zero.clone().unwrap();
    let weight = |j: usize, i: usize| {
        let row = &case.dense[j * 20..][..20];
        i32::from(reference::unpack::code_at(BitWidth::B4, row, i)) - 8
    };
    // sum (a - za)(w - zw) = sum a w - zw sum a - za sum w + k za zw
    case.correction = (0..n)
        .map(|j| act_zero * (k as i32 * zero[j] - (0..k).map(|i| weight(j, i)).sum::<i32>()))
        .collect();
    let mut y = vec![0.0; m * n];
    let sums = Some(&case.row_sums[..]);
    let mut out = Output::F32 { out: &mut y };
    reference::gemm::gemm(
        &shape,
        m,
        &case.a,
        &case.dense,
        &case.requant(),
        sums,
        &mut out,
    );
    for i in 0..m {
        for j in 0..n {
            let exact: f64 = (0..k)
                .map(|t| {
                    f64::from(i32::from(case.a[i * k + t]) - act_zero)
                        * f64::from(weight(j, t) - zero[j])
                })
                .sum();
            assert_eq!(f64::from(y[i * n + j]), exact * 0.25 + 1.5);
        }
    }
}

#[test]
#[should_panic(expected = "weight zero points need the row sums")]
fn missing_row_sums_are_refused() {
    let mut rng = Rng(8);
    let shape = GemmShape {
        n: 4,
        k: 4,
        weight_bits: BitWidth::B8,
        act_max: 255,
    };
    let case = Case::new(&mut rng, 1, shape, Fill::Random, true);
    let kernels = Kernels::for_isa(Isa::Portable).unwrap();
    let packed = vec![0; kernels.packed_len(&shape)];
    let mut scratch = vec![0; kernels.gemm_scratch_len(&shape, 1)];
    let mut y = [0.0; 4];
    kernels.gemm(
        &shape,
        &case.a,
        &packed,
        &case.requant(),
        None,
        &mut scratch,
        Output::F32 { out: &mut y },
    );
}
