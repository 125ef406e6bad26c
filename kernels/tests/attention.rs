//! Attention equals the reference, bit for bit, on every ISA and by both methods.

mod common;

use common::{Rng, for_each_isa};
use tpvit_kernels::{
    ActQuant, AttentionMethod, BitWidth, Cells, HeadOutput, HeadRequant, HeadShape, Kernels,
    KeysValues, Lines, MAX_BIAS, Queries, ShiftForm, SoftmaxCodes, SoftmaxKind, reference,
};

/// A codebook and its thresholds.
struct Codebook {
    bits: BitWidth,
    thresholds: Vec<i32>,
    multipliers: Vec<i16>,
}

impl Codebook {
    /// The zero-anchored logarithmic codebook of step `delta` octaves and height
    /// `s`, `alpha` octaves being a unit of score.
    fn zero_anchored(bits: BitWidth, delta: f64, s: f64, alpha: f64) -> Self {
        let n = f64::from(bits.max_code());
        let floor = (-n * delta).exp2();
        let threshold = |c: f64| -((-(c - 0.5) * delta).exp2() - floor).log2();
        let multiplier =
            |c: f64| (s * ((-c * delta).exp2() - floor) / (1.0 - floor)).round_ties_even() as i16;
        let codes = 1..=i32::from(bits.max_code());
        Self {
            bits,
            thresholds: codes
                .map(|c| (64.0 * threshold(f64::from(c)) / alpha).round() as i32)
                .collect(),
            multipliers: (0..=i32::from(bits.max_code()))
                .map(|c| multiplier(f64::from(c)))
                .collect(),
        }
    }

    /// Thresholds anywhere, some equal, some never reached; any multipliers.
    fn random(rng: &mut Rng, bits: BitWidth, range: u64, lowest: i16, highest: i16) -> Self {
        let n = usize::from(bits.max_code());
        let mut thresholds: Vec<i32> = (0..n).map(|_| rng.up_to(range) as i32 - 100).collect();
        thresholds[n - 1] = i32::MAX;
        thresholds[n / 2] = thresholds[0];
        thresholds.sort_unstable();
        let width = (i32::from(highest) - i32::from(lowest)) as u64;
        let multipliers = (0..=n)
            .map(|_| (i32::from(lowest) + rng.up_to(width) as i32) as i16)
            .collect();
        Self {
            bits,
            thresholds,
            multipliers,
        }
    }

    fn softmax(&self, kind: SoftmaxKind, renormalise: bool) -> SoftmaxCodes<'_> {
        SoftmaxCodes {
            bits: self.bits,
            thresholds: &self.thresholds,
            multipliers: &self.multipliers,
            kind,
            renormalise,
        }
    }
}

/// One head inside a qkv buffer that holds more.
struct Case {
    shape: HeadShape,
    m: usize,
    qkv: Vec<u8>,
    stride: usize,
    cols: [usize; 3],
    q_zero: u8,
    v_zero: Vec<u8>,
    v_scale: Vec<f32>,
    inv_scale: Vec<f32>,
    zero_point: Vec<u8>,
    max_code: u8,
}

impl Case {
    fn new(rng: &mut Rng, m: usize, shape: HeadShape, extreme: bool) -> Self {
        let HeadShape {
            tokens,
            head_dim,
            act_max,
        } = shape;
        let stride = 3 * head_dim + 5;
        let rows = tokens.max(m);
        let qkv = if extreme {
            (0..rows * stride)
                .map(|_| act_max * rng.up_to(1) as u8)
                .collect()
        } else {
            rng.codes(rows * stride, act_max)
        };
        Self {
            shape,
            m,
            qkv,
            stride,
            cols: [1, head_dim + 2, 2 * head_dim + 5],
            q_zero: rng.up_to(u64::from(act_max)) as u8,
            v_zero: rng.codes(head_dim, act_max),
            v_scale: rng.floats(head_dim, 0.01, 0.1),
            inv_scale: rng.floats(head_dim, 10.0, 200.0),
            zero_point: rng.codes(head_dim, 15),
            max_code: if rng.up_to(1) == 0 { 15 } else { 255 },
        }
    }

    fn queries(&self) -> Queries<'_> {
        let rows = &self.qkv[..self.m * self.stride];
        Queries {
            rows,
            row_stride: self.stride,
            col: self.cols[0],
            zero: self.q_zero,
        }
    }

    fn keys_values(&self) -> KeysValues<'_> {
        let rows = &self.qkv[..self.shape.tokens * self.stride];
        KeysValues {
            rows,
            row_stride: self.stride,
            lines: Lines::ONE,
            k_col: self.cols[1],
            v_col: self.cols[2],
        }
    }

    fn requant(&self) -> HeadRequant<'_> {
        let quant = ActQuant {
            inv_scale: &self.inv_scale,
            zero_point: &self.zero_point,
            max_code: self.max_code,
        };
        HeadRequant {
            v_zero: &self.v_zero,
            v_scale: &self.v_scale,
            quant,
        }
    }

    fn out_stride(&self) -> usize {
        self.shape.head_dim + 3
    }

    fn expected(&self, softmax: &SoftmaxCodes, form: Option<&ShiftForm>) -> Vec<u8> {
        let mut rows = vec![0xee; self.m * self.out_stride()];
        let mut scores = vec![0; self.shape.tokens];
        let mut codes = vec![0; self.shape.tokens];
        let mut out = HeadOutput {
            rows: &mut rows,
            row_stride: self.out_stride(),
            col: 2,
        };
        let (queries, keys_values, requant) = (self.queries(), self.keys_values(), self.requant());
        match form {
            None => reference::attention::attention(
                &self.shape,
                &queries,
                &keys_values,
                &[],
                softmax,
                &requant,
                &mut scores,
                &mut codes,
                &mut out,
            ),
            Some(form) => reference::attention::attention_shift(
                &self.shape,
                &queries,
                &keys_values,
                &[],
                softmax,
                form,
                &requant,
                &mut scores,
                &mut codes,
                &mut out,
            ),
        }
        rows
    }

    fn actual(
        &self,
        kernels: &Kernels,
        softmax: &SoftmaxCodes,
        method: AttentionMethod,
    ) -> Vec<u8> {
        let mut packed = vec![0xaa; kernels.attention_pack_len(&self.shape)];
        kernels.attention_pack(&self.shape, &self.keys_values(), &mut packed);
        let mut scratch = vec![0xaa; kernels.attention_scratch_len(&self.shape)];
        let mut rows = vec![0xee; self.m * self.out_stride()];
        let out = HeadOutput {
            rows: &mut rows,
            row_stride: self.out_stride(),
            col: 2,
        };
        kernels.attention(
            &self.shape,
            &self.queries(),
            &packed,
            softmax,
            method,
            &self.requant(),
            &mut scratch,
            out,
        );
        rows
    }

    fn check(&self, softmax: &SoftmaxCodes) {
        let expected = self.expected(softmax, None);
        let form = ShiftForm::from_multipliers(softmax.multipliers);
        if let Some(form) = &form {
            assert_eq!(
                self.expected(softmax, Some(form)),
                expected,
                "reference, by shifts"
            );
        }
        for_each_isa(|kernels| {
            let label = format!(
                "{:?} m {} {:?} {:?}",
                kernels.isa(),
                self.m,
                self.shape,
                softmax.bits
            );
            assert_eq!(
                self.actual(kernels, softmax, AttentionMethod::Decode),
                expected,
                "decode {label}"
            );
            if let Some(form) = &form {
                assert_eq!(
                    self.actual(kernels, softmax, AttentionMethod::Shift(form)),
                    expected,
                    "shift {label}"
                );
            }
        });
    }
}

/// Every codebook shape: one plane with and without a shift form, several planes, negatives.
fn codebooks(rng: &mut Rng, alpha: f64) -> Vec<Codebook> {
    let step = |bits, delta, s| Codebook::zero_anchored(bits, delta, s, alpha);
    let powers = Codebook {
        multipliers: vec![64, 32, 16, 8, 4, 2, 1, 0],
        ..step(BitWidth::B3, 1.0, 127.0)
    };
    let negative = Codebook {
        multipliers: vec![30, 14, 6, -2],
        ..step(BitWidth::B2, 1.0, 127.0)
    };
    vec![
        step(BitWidth::B3, 1.0, 127.0),
        powers,
        negative,
        step(BitWidth::B2, 1.5, 127.0),
        step(BitWidth::B4, 0.5, 127.0),
        step(BitWidth::B4, 0.5, 255.0),
        step(BitWidth::B4, 1.0, 16384.0),
        step(BitWidth::B6, 0.125, 127.0),
        step(BitWidth::B8, 1.0 / 32.0, 255.0),
        step(BitWidth::B8, 1.0 / 32.0, 4096.0),
        Codebook::random(rng, BitWidth::B2, 100_000, -3, 127),
        Codebook::random(rng, BitWidth::B4, 1_000_000, -16384, 16384),
        Codebook::random(rng, BitWidth::B6, 1_000_000, -100, 100),
        Codebook::random(rng, BitWidth::B8, 2000, 0, 127),
    ]
}

#[test]
fn every_codebook_and_kind() {
    let mut rng = Rng(1);
    for (act_max, alpha) in [
        (255, 2e-4),
        (127, 1e-3),
        (63, 4e-3),
        (15, 0.05),
        (7, 0.2),
        (3, 1.0),
    ] {
        for codebook in codebooks(&mut rng, alpha) {
            for extreme in [true, false] {
                let shape = HeadShape {
                    tokens: 37,
                    head_dim: 20,
                    act_max,
                };
                let case = Case::new(&mut rng, 7, shape, extreme);
                case.check(&codebook.softmax(SoftmaxKind::RowMax, true));
                let kind = SoftmaxKind::Static {
                    alpha: alpha as f32,
                    scale: 0.007,
                };
                case.check(&codebook.softmax(kind, true));
                case.check(&codebook.softmax(kind, false));
            }
        }
    }
}

#[test]
fn every_shape_around_a_tile() {
    let mut rng = Rng(2);
    for act_max in [255, 15] {
        let alpha = if act_max == 255 { 2e-4 } else { 0.05 };
        let three = Codebook::zero_anchored(BitWidth::B3, 1.0, 127.0, alpha);
        let eight = Codebook::zero_anchored(BitWidth::B8, 1.0 / 32.0, 255.0, alpha);
        let shapes = (0..=50)
            .map(|tokens| (tokens, 8, 3))
            .chain((0..=35).map(|head_dim| (9, head_dim, 2)))
            .chain((0..=17).map(|m| (18, 6, m)))
            .chain([(197, 64, 13), (257, 32, 5), (130, 128, 3), (66, 80, 4)]);
        for (tokens, head_dim, m) in shapes {
            let case = Case::new(
                &mut rng,
                m,
                HeadShape {
                    tokens,
                    head_dim,
                    act_max,
                },
                tokens % 2 == 0,
            );
            case.check(&three.softmax(SoftmaxKind::RowMax, true));
            case.check(&eight.softmax(
                SoftmaxKind::Static {
                    alpha: alpha as f32,
                    scale: 0.004,
                },
                false,
            ));
        }
    }
}

/// Thresholds that repeat, are negative, are never reached, lie closer than a score
/// apart, or on both sides of what 16 bits tell apart (64 * 65533): at every width,
/// at every number of tokens around a block, by both kinds.
#[test]
fn every_width_at_every_length() {
    let mut rng = Rng(8);
    let ranges = [300, 50_000, 4_194_112, 8_000_000, 2_000_000_000];
    for bits in BitWidth::ALL {
        for tokens in (1..=40).chain([197, 257]) {
            for (act_max, alpha) in [(255, 2e-4), (15, 0.05)] {
                let range = ranges[rng.up_to(4) as usize];
                let codebook = Codebook::random(&mut rng, bits, range, 0, 127);
                let head_dim = 8 + rng.up_to(24) as usize;
                let shape = HeadShape {
                    tokens,
                    head_dim,
                    act_max,
                };
                let case = Case::new(&mut rng, 3, shape, tokens % 3 == 0);
                case.check(&codebook.softmax(SoftmaxKind::RowMax, true));
                let kind = SoftmaxKind::Static { alpha, scale: 0.01 };
                case.check(&codebook.softmax(kind, tokens % 2 == 0));
            }
        }
    }
}

/// One score far above the others: differences that saturate 16 bits, and those next
/// to the largest that do not.
#[test]
fn differences_around_sixteen_bits() {
    let mut rng = Rng(9);
    for d in [65_532, 65_533, 65_534, 65_535, 65_536, 131_070] {
        for limit in [65_532, 65_533, 65_534, 65_535] {
            // q - zero = 255 and k - center = 127 or -128 give 255 a column.
            let shape = HeadShape {
                tokens: 35,
                head_dim: 6,
                act_max: 255,
            };
            let mut case = Case::new(&mut rng, 2, shape, false);
            case.q_zero = 0;
            for row in case.qkv.chunks_exact_mut(case.stride) {
                row[case.cols[0]..][..6].copy_from_slice(&[255, 255, 255, 1, 1, 255]);
                row[case.cols[1]..][..6].fill(128);
            }
            // Key 1 is `d` below the others: 255 * (a + b) + c.
            let key = &mut case.qkv[case.stride + case.cols[1]..][..6];
            let (mut whole, rest) = (d / 255, d % 255);
            for at in [0, 1, 2, 5] {
                let step = i32::min(whole, 128);
                key[at] -= step as u8;
                whole -= step;
            }
            assert_eq!(whole, i32::max(0, d / 255 - 512));
            key[3] -= i32::min(rest, 128) as u8;
            key[4] -= (rest - i32::min(rest, 128)) as u8;
            for bits in BitWidth::ALL {
                let n = usize::from(bits.max_code());
                let mut thresholds = vec![64 * limit; n];
                thresholds[n - 1] = i32::MAX;
                thresholds[0] = 64 * (limit - 1);
                let codebook = Codebook {
                    bits,
                    thresholds,
                    multipliers: (0..=n).map(|c| (127 - c / 2) as i16).collect(),
                };
                case.check(&codebook.softmax(SoftmaxKind::RowMax, true));
            }
        }
    }
}

/// The largest sums an i32 must hold, and the largest a kernel may hold in 16
/// bits meanwhile: one multiplier and one value everywhere.
#[test]
fn the_largest_sums_do_not_overflow() {
    let mut rng = Rng(3);
    for act_max in [255, 127, 63, 15, 7, 3] {
        let shape = HeadShape {
            tokens: 513,
            head_dim: 17,
            act_max,
        };
        let mut case = Case::new(&mut rng, 7, shape, false);
        for multiplier in [127, 255, 16_383, 16_384, -16_384] {
            let codebook = Codebook {
                bits: BitWidth::B2,
                thresholds: vec![i32::MAX; 3],
                multipliers: vec![multiplier; 4],
            };
            for code in [0, act_max] {
                case.qkv.fill(code);
                case.check(&codebook.softmax(SoftmaxKind::RowMax, true));
                let kind = SoftmaxKind::Static {
                    alpha: 0.01,
                    scale: 1e-6,
                };
                case.check(&codebook.softmax(kind, false));
            }
        }
    }
}

#[test]
fn a_split_of_the_rows_changes_nothing() {
    let mut rng = Rng(4);
    let codebook = Codebook::zero_anchored(BitWidth::B4, 0.5, 127.0, 0.05);
    let softmax = codebook.softmax(SoftmaxKind::RowMax, true);
    let case = Case::new(
        &mut rng,
        23,
        HeadShape {
            tokens: 23,
            head_dim: 12,
            act_max: 15,
        },
        false,
    );
    for_each_isa(|kernels| {
        let mut packed = vec![0; kernels.attention_pack_len(&case.shape)];
        kernels.attention_pack(&case.shape, &case.keys_values(), &mut packed);
        let mut scratch = vec![0; kernels.attention_scratch_len(&case.shape)];
        let whole = case.actual(kernels, &softmax, AttentionMethod::Decode);
        let stride = case.out_stride();
        let mut rows = vec![0xee; whole.len()];
        for range in [0..5, 5..6, 6..23] {
            let queries = Queries {
                rows: &case.qkv[range.start * case.stride..range.end * case.stride],
                ..case.queries()
            };
            let out = HeadOutput {
                rows: &mut rows[range.start * stride..range.end * stride],
                row_stride: stride,
                col: 2,
            };
            let method = AttentionMethod::Decode;
            kernels.attention(
                &case.shape,
                &queries,
                &packed,
                &softmax,
                method,
                &case.requant(),
                &mut scratch,
                out,
            );
        }
        assert_eq!(rows, whole, "{:?}", kernels.isa());
    });
}

/// The reference against softmax in f64: with 256 levels in steps of 1/32 octave
/// a probability is off by at most 2^(1/64) - 1 = 1.1 % plus the codebook's
/// rounding (half of 1/16384 of the maximum, 197 times at most), and so is an average of values.
#[test]
fn the_reference_approximates_softmax() {
    let mut rng = Rng(5);
    let (tokens, head_dim, alpha) = (60, 16, 0.01);
    let shape = HeadShape {
        tokens,
        head_dim,
        act_max: 63,
    };
    let mut case = Case::new(&mut rng, tokens, shape, false);
    case.max_code = 255;
    case.v_scale = vec![1.0; head_dim];
    case.v_zero = vec![0; head_dim];
    case.inv_scale = vec![4.0; head_dim];
    case.zero_point = vec![0; head_dim];
    let codebook = Codebook::zero_anchored(BitWidth::B8, 1.0 / 32.0, 16384.0, alpha);
    let rows = case.expected(&codebook.softmax(SoftmaxKind::RowMax, true), None);
    let code = |row: usize, col: usize| f64::from(case.qkv[row * case.stride + col]);
    for i in 0..tokens {
        let score = |j: usize| -> f64 {
            let product = |d| {
                (code(i, case.cols[0] + d) - f64::from(case.q_zero)) * code(j, case.cols[1] + d)
            };
            alpha * (0..head_dim).map(product).sum::<f64>()
        };
        let max = (0..tokens).map(score).fold(f64::MIN, f64::max);
        let weights: Vec<f64> = (0..tokens).map(|j| (score(j) - max).exp2()).collect();
        let total: f64 = weights.iter().sum();
        for d in 0..head_dim {
            let y: f64 = (0..tokens)
                .map(|j| weights[j] * code(j, case.cols[2] + d))
                .sum::<f64>()
                / total;
            let actual = f64::from(rows[i * case.out_stride() + 2 + d]) / 4.0;
            // Half a code of the output, and 1.1 % of weights on values up to 63, twice (numerator and sum).
            assert!(
                (y - actual).abs() < 0.125 + 2.0 * 0.011 * 63.0,
                "{i} {d}: {y} {actual}"
            );
        }
    }
}

#[test]
#[should_panic(expected = "overflows an i32")]
fn sums_that_could_overflow_are_refused() {
    let mut rng = Rng(6);
    let codebook = Codebook {
        bits: BitWidth::B2,
        thresholds: vec![1, 2, 3],
        multipliers: vec![16384, 1, 1, 0],
    };
    let case = Case::new(
        &mut rng,
        1,
        HeadShape {
            tokens: 515,
            head_dim: 4,
            act_max: 255,
        },
        false,
    );
    case.actual(
        Kernels::best(),
        &codebook.softmax(SoftmaxKind::RowMax, true),
        AttentionMethod::Decode,
    );
}

#[test]
#[should_panic(expected = "not that of the multipliers")]
fn another_codebooks_shift_form_is_refused() {
    let mut rng = Rng(7);
    let codebook = Codebook {
        bits: BitWidth::B2,
        thresholds: vec![1, 2, 3],
        multipliers: vec![8, 4, 2, 0],
    };
    let other = ShiftForm::from_multipliers(&[16, 4, 2, 0]).unwrap();
    let case = Case::new(
        &mut rng,
        1,
        HeadShape {
            tokens: 5,
            head_dim: 4,
            act_max: 255,
        },
        false,
    );
    let softmax = codebook.softmax(SoftmaxKind::RowMax, true);
    case.actual(Kernels::best(), &softmax, AttentionMethod::Shift(&other));
}

/// A grid of tokens, of which cells attend to themselves.
struct Grid {
    case: Case,
    width: usize,
    /// Lines and columns of a cell.
    cell: [usize; 2],
    first: Vec<u32>,
    bias: Vec<i32>,
}

impl Grid {
    /// As many cells as fit, from line `at[0]` and column `at[1]` on.
    fn new(
        rng: &mut Rng,
        [height, width]: [usize; 2],
        at: [usize; 2],
        cell: [usize; 2],
        (head_dim, act_max, bias): (usize, u8, i32),
    ) -> Self {
        let tokens = cell[0] * cell[1];
        let shape = HeadShape {
            tokens,
            head_dim,
            act_max,
        };
        // The case's rows are those of the grid.
        let mut case = Case::new(rng, height * width, shape, tokens.is_multiple_of(2));
        case.shape.tokens = tokens;
        let lines = (at[0]..=height - cell[0]).step_by(cell[0]);
        let first = lines.flat_map(|y| {
            let columns = (at[1]..=width - cell[1]).step_by(cell[1]);
            columns.map(move |x| (y * width + x) as u32)
        });
        let entries = match bias {
            0 => 0,
            _ => tokens * Cells::bias_row_len(tokens),
        };
        let signed = |rng: &mut Rng| rng.up_to(2 * bias as u64) as i32 - bias;
        Self {
            first: first.collect(),
            bias: (0..entries).map(|_| signed(rng)).collect(),
            case,
            width,
            cell,
        }
    }

    fn lines(&self) -> Lines {
        Lines {
            len: self.cell[1],
            stride: self.width,
        }
    }

    fn expected(&self, softmax: &SoftmaxCodes) -> Vec<u8> {
        let case = &self.case;
        let tokens = case.shape.tokens;
        let mut rows = vec![0xee; case.m * case.out_stride()];
        let bias: Vec<i32> = match self.bias.is_empty() {
            true => vec![],
            false => self
                .bias
                .chunks_exact(Cells::bias_row_len(tokens))
                .flat_map(|row| row[..tokens].to_vec())
                .collect(),
        };
        for &first in &self.first {
            let row_of = |i: usize| first as usize + self.lines().row(i);
            let token = |i: usize| &case.qkv[row_of(i) * case.stride..][..case.stride];
            let cell: Vec<u8> = (0..tokens).flat_map(|i| token(i).to_vec()).collect();
            let (mut scores, mut codes) = (vec![0; tokens], vec![0; tokens]);
            let mut out = vec![0xee; tokens * case.out_stride()];
            reference::attention::attention(
                &case.shape,
                &Queries {
                    rows: &cell,
                    ..case.queries()
                },
                &KeysValues {
                    rows: &cell,
                    ..case.keys_values()
                },
                &bias,
                softmax,
                &case.requant(),
                &mut scores,
                &mut codes,
                &mut HeadOutput {
                    rows: &mut out,
                    row_stride: case.out_stride(),
                    col: 2,
                },
            );
            for (i, out) in out.chunks_exact(case.out_stride()).enumerate() {
                rows[row_of(i) * case.out_stride()..][..out.len()].copy_from_slice(out);
            }
        }
        rows
    }

    /// The rows of `own`, the others untouched.
    fn actual(
        &self,
        kernels: &Kernels,
        softmax: &SoftmaxCodes,
        method: AttentionMethod,
        own: std::ops::Range<usize>,
    ) -> Vec<u8> {
        let case = &self.case;
        let cells = Cells {
            lines: self.lines(),
            first: &self.first,
            own: own.clone(),
            bias: &self.bias,
        };
        let mut packed = vec![0xaa; kernels.attention_pack_len(&case.shape)];
        let mut scratch = vec![0xaa; kernels.attention_scratch_len(&case.shape)];
        let mut rows = vec![0xee; own.len() * case.out_stride()];
        let queries = &case.qkv[own.start * case.stride..own.end * case.stride];
        kernels.attention_cells(
            &case.shape,
            &cells,
            &Queries {
                rows: queries,
                ..case.queries()
            },
            &KeysValues {
                rows: &case.qkv,
                ..case.keys_values()
            },
            softmax,
            method,
            &case.requant(),
            &mut packed,
            &mut scratch,
            HeadOutput {
                rows: &mut rows,
                row_stride: case.out_stride(),
                col: 2,
            },
        );
        rows
    }

    /// All rows at once, then in shares that cut cells and lines.
    fn check(&self, softmax: &SoftmaxCodes) {
        let expected = self.expected(softmax);
        let form = ShiftForm::from_multipliers(softmax.multipliers);
        let methods = [
            Some(AttentionMethod::Decode),
            form.as_ref().map(AttentionMethod::Shift),
        ];
        let (m, stride) = (self.case.m, self.case.out_stride());
        for_each_isa(|kernels| {
            for method in methods.into_iter().flatten() {
                for cuts in [vec![0, m], vec![0, m / 3, m / 3 + 1, m]] {
                    let shares = cuts
                        .windows(2)
                        .flat_map(|cut| self.actual(kernels, softmax, method, cut[0]..cut[1]));
                    let found: Vec<u8> = shares.collect();
                    for (row, (found, expected)) in found
                        .chunks(stride)
                        .zip(expected.chunks(stride))
                        .enumerate()
                    {
                        assert_eq!(
                            found,
                            expected,
                            "{:?} row {row} of {:?} in {} columns",
                            kernels.isa(),
                            self.cell,
                            self.width
                        );
                    }
                }
            }
        });
    }
}

#[test]
fn cells_of_a_grid_attend_to_themselves() {
    let mut rng = Rng(10);
    for (grid, at, cell) in [
        ([14, 14], [0, 0], [7, 7]),
        ([14, 14], [3, 3], [7, 7]),
        ([8, 21], [0, 0], [4, 7]),
        ([9, 11], [1, 2], [3, 4]),
        ([6, 8], [0, 5], [6, 3]),
        ([5, 9], [0, 0], [1, 9]),
        ([4, 4], [0, 0], [4, 4]),
        ([12, 12], [0, 0], [1, 1]),
        ([16, 8], [0, 0], [8, 8]),
    ] {
        for (head_dim, act_max, alpha, bias) in
            [(32, 255, 2e-4, 3000), (20, 15, 0.05, 40), (33, 7, 0.2, 0)]
        {
            let grid = Grid::new(&mut rng, grid, at, cell, (head_dim, act_max, bias));
            let three = Codebook::zero_anchored(BitWidth::B3, 1.0, 127.0, alpha);
            grid.check(&three.softmax(SoftmaxKind::RowMax, true));
            let eight = Codebook::zero_anchored(BitWidth::B8, 1.0 / 32.0, 255.0, alpha);
            let kind = SoftmaxKind::Static {
                alpha: alpha as f32,
                scale: 0.01,
            };
            grid.check(&eight.softmax(kind, false));
        }
    }
}

/// Biases as large as they may be, with scores as large as they get.
#[test]
fn the_largest_bias_does_not_overflow() {
    let mut rng = Rng(11);
    let mut grid = Grid::new(&mut rng, [4, 6], [0, 0], [4, 3], (64, 255, 1));
    grid.case.q_zero = 0;
    for code in [0, 255] {
        grid.case.qkv.fill(code);
        for row in grid.case.qkv.chunks_exact_mut(grid.case.stride) {
            row[grid.case.cols[0]..][..64].fill(255);
        }
        grid.bias
            .iter_mut()
            .for_each(|b| *b = MAX_BIAS * (1 - 2 * rng.up_to(1) as i32));
        let codebook = Codebook::zero_anchored(BitWidth::B4, 0.5, 127.0, 1e-7);
        grid.check(&codebook.softmax(SoftmaxKind::RowMax, true));
    }
}
