//! From a model to steps: every number an operation needs, ready to use.
//!
//! A linear layer's codes mean
//!
//! ```text
//! y[m, n] = s_x s_w[n] * sum_k (x[m, k] - z_x[k]) (w[n, k] - z_w[n]) + bias[n]
//! ```
//!
//! (algorithm.md §2.1 of Jacob et al.'s form). With x unsigned and w, z_w
//! re-centred to signed, the parts that do not depend on the picture become
//! `correction[n] = z_w[n] sum_k z_x[k] - sum_k z_x[k] w[n, k]`. A scale per
//! column of x is folded into the weight by the quantizer, and s_x is then 1. An
//! input with a codebook is one of 8 bits here: its codes are levels of that grid.

use alloc::vec;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::ops::Range;
#[cfg(feature = "std")]
use std::io::{Read, Seek};

use tpvit_kernels::{
    ActQuant, Cells, GemmShape, HeadShape, Kernels, Lines, MAX_BIAS, MAX_HEAD_DIM, MAX_TOKENS,
    ShiftForm, SoftmaxCodes, SoftmaxKind as Kind,
};
use tpvit_models::{
    Activation, ActivationQuant, BitWidth, BufferId, Cell, Codebook, Model, ModelInfo, Op, Pooling,
    Program, SoftmaxCodebook, SoftmaxKind, SoftmaxQuant, Tensor, TensorId, WeightTensor, Window,
};
#[cfg(feature = "std")]
use tpvit_models::{ReadError, TensorReader};

use crate::aligned::Aligned;
use crate::lanes::{ExchangeSize, owner, share};
use crate::plan::{self, Life, Place};
use crate::session::{AttentionMethod, MemoryPlan, Options, SessionError};

/// Where an operation writes.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Codes(Place),
    Floats(Place),
}

/// One operation, ready to run.
pub(crate) struct Step {
    /// The rows of the output to compute.
    pub(crate) rows: Range<usize>,
    pub(crate) output: BufferId,
    pub(crate) target: Target,
    /// The levels that the codes of the output are moved to.
    pub(crate) codebook: Option<Codebook>,
    pub(crate) work: Work,
}

pub(crate) enum Work {
    PatchEmbed(PatchEmbed),
    LayerNorm(LayerNorm),
    Linear(Linear),
    Attention(Attention),
    HeadNorm(HeadNorm),
    Gate(Gate),
    SelectToken(SelectToken),
    Pool(Pool),
    /// A patch merge, done by the LayerNorm that reads it; with several lanes they
    /// give each other their rows here.
    Merge(Rows),
}

impl Work {
    /// Whether all lanes meet in it, even those that compute no row.
    pub(crate) fn meets(&self) -> bool {
        match self {
            Work::Attention(_) | Work::Pool(_) | Work::Merge(_) => true,
            Work::SelectToken(work) => work.owner != 0,
            Work::LayerNorm(work) => work.merge.is_some(),
            Work::PatchEmbed(_) | Work::Linear(_) | Work::HeadNorm(_) | Work::Gate(_) => false,
        }
    }
}

pub(crate) struct PatchEmbed {
    pub(crate) patch: [usize; 2],
    /// Where a lane gathers its patches, `[patches, patch_h * patch_w * 3]`.
    pub(crate) patches: Place,
    pub(crate) product: Product,
    /// `[p, d]`.
    pub(crate) prefix: Vec<f32>,
    /// `[patches, d]`, or empty.
    pub(crate) position: Vec<f32>,
}

pub(crate) struct LayerNorm {
    pub(crate) input: Place,
    /// Set where a row is four rows of what is merged.
    pub(crate) merge: Option<MergedRows>,
    pub(crate) gamma: Vec<f32>,
    pub(crate) beta: Vec<f32>,
    pub(crate) eps: f32,
    pub(crate) quant: Option<Quant>,
}

/// LayerNorm of q and k within each head.
pub(crate) struct HeadNorm {
    pub(crate) input: Place,
    pub(crate) head_dim: usize,
    /// `[2, head_dim]`, and so is `beta`.
    pub(crate) gamma: Vec<f32>,
    pub(crate) beta: Vec<f32>,
    pub(crate) eps: f32,
    pub(crate) quant: Quant,
}

/// The gate of SwiGLU.
pub(crate) struct Gate {
    pub(crate) input: Place,
    pub(crate) quant: Option<Quant>,
}

/// Rows that are four of another buffer, `[h * w, d]`.
pub(crate) struct MergedRows {
    /// Columns of the grid, w.
    pub(crate) grid_width: usize,
    /// Channels of a row, d.
    pub(crate) d: usize,
}

/// An f32 buffer that lanes read each other's rows of.
pub(crate) struct Rows {
    /// Where a lane has its own.
    pub(crate) place: Place,
    /// Of all lanes.
    pub(crate) count: usize,
    pub(crate) cols: usize,
}

/// Several rows made one, in lane 0.
pub(crate) struct Pool {
    pub(crate) input: Rows,
    pub(crate) tokens: Range<usize>,
    pub(crate) pool: Pooling,
    pub(crate) quant: Option<Quant>,
}

pub(crate) struct Linear {
    pub(crate) input: Place,
    pub(crate) product: Product,
    pub(crate) activation: Activation,
    pub(crate) residual: Residual,
    pub(crate) quant: Option<Quant>,
}

/// What a linear layer's result is added to.
pub(crate) enum Residual {
    None,
    /// What the output's place holds already.
    InPlace,
    From(Place),
}

/// A matrix product with everything but its input.
pub(crate) struct Product {
    pub(crate) shape: GemmShape,
    pub(crate) packed: Aligned<u8>,
    pub(crate) scale: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    pub(crate) correction: Vec<i32>,
    /// `None` if every zero point is the centre.
    pub(crate) weight_zero: Option<Vec<i32>>,
}

/// An activation quantizer, spread over the columns.
pub(crate) struct Quant {
    pub(crate) inv_scale: Vec<f32>,
    pub(crate) zero_point: Vec<u8>,
    pub(crate) max_code: u8,
}

impl Quant {
    fn new(quant: &ActivationQuant, cols: usize) -> Quant {
        Quant {
            inv_scale: (0..cols).map(|c| 1.0 / quant.scale_at(c)).collect(),
            zero_point: (0..cols).map(|c| quant.zero_point_at(c)).collect(),
            max_code: quant.grid_bits().max_code(),
        }
    }

    /// The columns `cols` of it, as the kernels take them.
    pub(crate) fn columns(&self, cols: Range<usize>) -> ActQuant<'_> {
        ActQuant {
            inv_scale: &self.inv_scale[cols.clone()],
            zero_point: &self.zero_point[cols],
            max_code: self.max_code,
        }
    }

    /// All columns.
    pub(crate) fn all(&self) -> ActQuant<'_> {
        self.columns(0..self.inv_scale.len())
    }
}

pub(crate) struct Attention {
    pub(crate) qkv: Place,
    /// Keys and values of one head in the order of this CPU, where one lane
    /// has all rows.
    pub(crate) packed: Place,
    pub(crate) pack_len: usize,
    pub(crate) heads: Vec<Head>,
    pub(crate) shape: HeadShape,
    pub(crate) bits: BitWidth,
    pub(crate) renormalise: bool,
    /// One for all heads, or one for each.
    pub(crate) codebooks: Vec<AttentionCodebook>,
    pub(crate) quant: Quant,
    /// Where the tokens are cut into cells: those of each shape.
    pub(crate) cells: Option<Vec<CellGroup>>,
}

/// Cells of one height and width.
pub(crate) struct CellGroup {
    pub(crate) shape: HeadShape,
    pub(crate) pack_len: usize,
    pub(crate) lines: Lines,
    /// The first token of each.
    pub(crate) first: Vec<u32>,
    /// Of each head, as [`Cells::bias`]; empty without a bias.
    pub(crate) bias: Vec<Vec<i32>>,
}

/// What attention codes stand for.
pub(crate) struct AttentionCodebook {
    pub(crate) multipliers: Vec<i16>,
    /// Set where the session shifts instead of multiplying.
    pub(crate) shift: Option<ShiftForm>,
}

/// What differs between heads.
pub(crate) struct Head {
    pub(crate) q_zero: u8,
    pub(crate) v_zero: Vec<u8>,
    pub(crate) v_scale: Vec<f32>,
    /// In 1/64 of a score step; see [`integer_thresholds`].
    pub(crate) thresholds: Vec<i32>,
    pub(crate) kind: Kind,
}

/// Copies one row into the one row of its output.
pub(crate) struct SelectToken {
    pub(crate) input: Place,
    /// The lane that has the row, and which of its rows it is.
    pub(crate) owner: usize,
    pub(crate) row: usize,
}

impl Attention {
    fn codebook(&self, head: usize) -> &AttentionCodebook {
        match &self.codebooks[..] {
            [shared] => shared,
            each => &each[head],
        }
    }

    pub(crate) fn method(&self, head: usize) -> tpvit_kernels::AttentionMethod<'_> {
        match &self.codebook(head).shift {
            None => tpvit_kernels::AttentionMethod::Decode,
            Some(form) => tpvit_kernels::AttentionMethod::Shift(form),
        }
    }

    pub(crate) fn softmax(&self, head: usize) -> SoftmaxCodes<'_> {
        SoftmaxCodes {
            bits: self.bits,
            thresholds: &self.heads[head].thresholds,
            multipliers: &self.codebook(head).multipliers,
            kind: self.heads[head].kind,
            renormalise: self.renormalise,
        }
    }
}

impl Step {
    /// Where the floats it writes are; the logits of the last step.
    pub(crate) fn float_output(&self) -> Place {
        match &self.target {
            Target::Floats(place) => place.clone(),
            Target::Codes(_) => unreachable!("a valid program ends in floats"),
        }
    }
}

/// Where everything goes, before anything is allocated.
pub(crate) struct Layout {
    targets: Vec<Target>,
    /// By operation: extra bytes it needs while it runs (patches, a packed head).
    extra: Vec<Place>,
    rows: Vec<Range<usize>>,
    pub(crate) sizes: Sizes,
    weight_bytes: usize,
    constant_bytes: usize,
    attention: AttentionMethod,
}

/// Bounds of what an operation and a lane take beside their numbers; `tests/no_alloc.rs`
/// and `bare/run.sh` hold them.
const OP_BYTES: usize = 2048;
const LANE_BYTES: usize = 4096;

/// How much memory each lane has, and all together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) lanes: usize,
    pub(crate) floats_len: usize,
    pub(crate) bytes_len: usize,
    pub(crate) sums_len: usize,
    pub(crate) scratch_len: usize,
    /// f32 of a row between two steps of one operation.
    pub(crate) row_len: usize,
    /// Elements of the result, where lanes other than 0 have a part of it; else 0.
    pub(crate) shared_result: usize,
    /// Nothing if there is one lane.
    pub(crate) exchange: ExchangeSize,
}

impl Layout {
    pub(crate) fn new(
        info: &ModelInfo<'_>,
        kernels: &Kernels,
        options: &Options,
    ) -> Result<Layout, SessionError> {
        let program = info.program();
        let lanes = options.threads.max(1);
        let mut lives = plan::lives(program, lanes);
        let rows = match options.all_rows {
            true => program
                .ops
                .iter()
                .map(|op| 0..program.buffers[op.output().index()].rows)
                .collect(),
            false => program.needed_rows(),
        };
        let mut needs = Needs::new(options.attention, lanes);
        let mut extra_lives = Vec::new();
        for (index, op) in program.ops.iter().enumerate() {
            let len = needs.add(info, kernels, index, op)?;
            extra_lives.push(lives.bytes.len());
            lives.bytes.push(Life {
                first: index,
                last: index,
                len,
            });
        }
        needs.result(program);
        let (float_places, floats_len) = plan::place(&lives.floats);
        let (byte_places, bytes_len) = plan::place(&lives.bytes);
        let targets = lives
            .buffers
            .iter()
            .map(|b| match b.coded {
                true => Target::Codes(byte_places[b.life].clone()),
                false => Target::Floats(float_places[b.life].clone()),
            })
            .collect();
        Ok(Layout {
            targets,
            extra: extra_lives
                .into_iter()
                .map(|l| byte_places[l].clone())
                .collect(),
            rows,
            sizes: Sizes {
                lanes,
                floats_len,
                bytes_len,
                sums_len: needs.sums,
                scratch_len: needs.scratch,
                row_len: needs.row,
                shared_result: needs.shared_result,
                exchange: needs.exchange,
            },
            weight_bytes: needs.weights,
            constant_bytes: needs.constants,
            attention: options.attention,
        })
    }

    pub(crate) fn memory(&self) -> MemoryPlan {
        let sizes = &self.sizes;
        let exchange = &sizes.exchange;
        let shared = exchange.floats + sizes.shared_result;
        let floats = sizes.lanes * (sizes.floats_len + sizes.row_len) + shared;
        let head = exchange.head_len + exchange.pack_len;
        let exchanged = exchange.pixels + exchange.heads * head;
        MemoryPlan {
            float_bytes: floats * size_of::<f32>(),
            code_bytes: sizes.lanes * sizes.bytes_len + exchanged,
            scratch_bytes: sizes.lanes * (sizes.scratch_len + sizes.sums_len * size_of::<i32>()),
            weight_bytes: self.weight_bytes,
            constant_bytes: self.constant_bytes,
            description_bytes: OP_BYTES * self.rows.len() + LANE_BYTES * sizes.lanes,
        }
    }

    /// Builds the steps: the one place where weights are re-ordered.
    pub(crate) fn steps<S: TensorSource>(
        &self,
        info: &ModelInfo<'_>,
        tensors: &mut S,
        kernels: &Kernels,
    ) -> Result<Vec<Step>, S::Error> {
        let mut build = Build {
            layout: self,
            info,
            tensors,
            kernels,
        };
        let ops = info.program().ops.iter().enumerate();
        ops.map(|(index, op)| {
            Ok(Step {
                rows: self.rows[index].clone(),
                output: op.output(),
                target: self.targets[op.output().index()].clone(),
                codebook: codebook(info, op.output()).cloned(),
                work: build.work(index, op)?,
            })
        })
        .collect()
    }
}

/// Gives the tensors of a model, of which one at a time need be in memory.
pub(crate) trait TensorSource {
    /// Why it may not.
    type Error;

    fn tensor(&mut self, id: TensorId) -> Result<Tensor<'_>, Self::Error>;
}

/// All in memory.
impl TensorSource for &Model<'_> {
    type Error = Infallible;

    fn tensor(&mut self, id: TensorId) -> Result<Tensor<'_>, Infallible> {
        Ok(Model::tensor(self, id))
    }
}

#[cfg(feature = "std")]
impl<R: Read + Seek> TensorSource for &mut TensorReader<'_, R> {
    type Error = ReadError;

    fn tensor(&mut self, id: TensorId) -> Result<Tensor<'_>, ReadError> {
        TensorReader::tensor(self, id)
    }
}

/// Sizes that grow over the operations.
struct Needs {
    attention: AttentionMethod,
    lanes: usize,
    exchange: ExchangeSize,
    sums: usize,
    scratch: usize,
    row: usize,
    /// Elements of the result that lanes other than 0 have a part of.
    shared_result: usize,
    weights: usize,
    constants: usize,
}

impl Needs {
    fn new(attention: AttentionMethod, lanes: usize) -> Needs {
        Needs {
            attention,
            lanes,
            exchange: ExchangeSize::default(),
            sums: 0,
            scratch: 0,
            row: 0,
            shared_result: 0,
            weights: 0,
            constants: 0,
        }
    }

    /// Adds what `op` needs; returns the bytes that a lane wants while it runs.
    fn add(
        &mut self,
        info: &ModelInfo<'_>,
        kernels: &Kernels,
        index: usize,
        op: &Op,
    ) -> Result<usize, SessionError> {
        let program = info.program();
        let buffer = |b: BufferId| &program.buffers[b.index()];
        let quant_bytes = |b: BufferId| match info.quantization().activations[b.index()] {
            Some(_) => buffer(b).cols * (size_of::<f32>() + 1),
            None => 0,
        };
        let codebook_bytes = |c: &Codebook| c.thresholds.len() + c.levels.len();
        self.constants += quant_bytes(op.output());
        self.constants += codebook(info, op.output()).map_or(0, codebook_bytes);
        match *op {
            Op::PatchEmbed {
                patch,
                weight,
                prefix,
                position,
                output,
                ..
            } => {
                let d = buffer(output).cols;
                let prefix_rows = prefix.map_or(0, |p| program.tensors[p.index()].rows);
                let patches = buffer(output).rows - prefix_rows;
                let own = share(buffer(output).rows, 0, self.lanes).len().min(patches);
                self.product(kernels, product_shape(info, weight, u8::MAX), own);
                if self.lanes > 1 {
                    self.exchange.pixels = program.image[0] * program.image[1] * 3;
                }
                self.constants += prefix_rows * d * size_of::<f32>();
                self.constants += position.map_or(0, |_| patches * d * size_of::<f32>());
                Ok(own * patch[0] * patch[1] * 3)
            }
            Op::LayerNorm { input, .. } => {
                self.constants += 2 * buffer(input).cols * size_of::<f32>();
                Ok(0)
            }
            Op::Linear {
                input,
                weight,
                activation,
                residual,
                ..
            } => {
                if activation != Activation::Identity && residual.is_some() {
                    let what = "an activation before a residual";
                    return Err(SessionError::Unsupported { op: index, what });
                }
                let act_max = act_quant(info, input).grid_bits().max_code();
                self.product(
                    kernels,
                    product_shape(info, weight, act_max),
                    share(buffer(input).rows, 0, self.lanes).len(),
                );
                Ok(0)
            }
            Op::Attention {
                qkv,
                heads,
                head_dim,
                window,
                bias,
                ..
            } => {
                let whole = head_shape(info, qkv, head_dim);
                let shapes = match window {
                    None => vec![whole],
                    Some(window) => {
                        if bias.is_some() && window.largest() > MAX_BIASED_TOKENS {
                            let what = "a position bias of windows of more than 1024 tokens";
                            return Err(SessionError::Unsupported { op: index, what });
                        }
                        let cells = CellKind::of(&window);
                        self.constants += cells
                            .iter()
                            .map(|kind| kind.bytes(heads, bias.is_some()))
                            .sum::<usize>();
                        cells.iter().map(|kind| kind.shape(&whole)).collect()
                    }
                };
                let mut pack_len = 0;
                for shape in &shapes {
                    self.check_attention(info, index, shape)?;
                    self.scratch = self.scratch.max(kernels.attention_scratch_len(shape));
                    pack_len = pack_len.max(kernels.attention_pack_len(shape));
                }
                let codes = softmax_quant(info, index);
                let thresholds = usize::from(codes.bits.max_code());
                let multipliers = codes.codebooks.iter().map(|c| c.multipliers.len());
                self.constants += heads * thresholds * size_of::<i32>();
                self.constants += multipliers.sum::<usize>() * size_of::<i16>();
                self.constants += heads * head_dim * (size_of::<f32>() + 1);
                if self.lanes == 1 {
                    return Ok(pack_len);
                }
                let exchange = &mut self.exchange;
                exchange.heads = exchange.heads.max(heads);
                exchange.head_len = exchange.head_len.max(whole.tokens * 2 * head_dim);
                if window.is_some() {
                    return Ok(pack_len); // each lane packs the cells of its rows
                }
                exchange.pack_len = exchange.pack_len.max(pack_len);
                Ok(0)
            }
            Op::HeadNorm {
                head_dim, output, ..
            } => {
                self.constants += 4 * head_dim * size_of::<f32>();
                self.row = self.row.max(buffer(output).cols / 3);
                Ok(0)
            }
            Op::Gate { output, .. } => {
                self.row = self.row.max(buffer(output).cols);
                Ok(0)
            }
            Op::Pool {
                input,
                count,
                output,
                ..
            } => {
                self.row = self.row.max(buffer(output).cols);
                self.give(count * buffer(input).cols);
                Ok(0)
            }
            Op::PatchMerge { input, output, .. } => {
                if !merged_by_norm(program, index) {
                    let what = "merged patches that no LayerNorm alone reads";
                    return Err(SessionError::Unsupported { op: index, what });
                }
                self.row = self.row.max(buffer(output).cols);
                self.give(buffer(input).rows * buffer(input).cols);
                Ok(0)
            }
            Op::SelectToken { output, .. } => {
                self.give(buffer(output).cols);
                Ok(0)
            }
        }
    }

    fn check_attention(
        &self,
        info: &ModelInfo<'_>,
        index: usize,
        shape: &HeadShape,
    ) -> Result<(), SessionError> {
        let mut codebooks = softmax_quant(info, index).codebooks.iter();
        let shifts = |c: &SoftmaxCodebook| ShiftForm::from_multipliers(&c.multipliers).is_some();
        let unsupported = |what| Err(SessionError::Unsupported { op: index, what });
        if shape.tokens > MAX_TOKENS || shape.head_dim > MAX_HEAD_DIM {
            return unsupported("too many tokens or too wide a head");
        }
        match self.attention {
            AttentionMethod::Shift if !codebooks.all(shifts) => {
                unsupported("attention codes that are not powers of two (use the decode method)")
            }
            AttentionMethod::Shift | AttentionMethod::Decode => Ok(()),
        }
    }

    /// Lanes, if there are several, give each other `len` elements of f32 rows.
    fn give(&mut self, len: usize) {
        if self.lanes > 1 {
            self.exchange.floats = self.exchange.floats.max(len);
        }
    }

    /// The result of more than one row belongs to all lanes.
    fn result(&mut self, program: &Program) {
        let [rows, cols] = program.output_shape();
        if rows > 1 && self.lanes > 1 {
            self.give(rows * cols);
            self.shared_result = rows * cols;
        }
    }

    fn product(&mut self, kernels: &Kernels, shape: GemmShape, m: usize) {
        self.weights += kernels.packed_len(&shape);
        self.scratch = self.scratch.max(kernels.gemm_scratch_len(&shape, m));
        self.sums = self.sums.max(m);
        self.constants += shape.n * (2 * size_of::<f32>() + 2 * size_of::<i32>());
    }
}

/// Makes the work of each operation.
struct Build<'a, S> {
    layout: &'a Layout,
    info: &'a ModelInfo<'a>,
    tensors: &'a mut S,
    kernels: &'a Kernels,
}

impl<S: TensorSource> Build<'_, S> {
    fn work(&mut self, index: usize, op: &Op) -> Result<Work, S::Error> {
        Ok(match *op {
            Op::PatchEmbed {
                patch,
                weight,
                bias,
                prefix,
                position,
                ..
            } => {
                // Pixels are exact codes: scale 1, zero point 0.
                let pixels = ActivationQuant {
                    bits: BitWidth::B8,
                    scale: vec![1.0],
                    zero_point: vec![0],
                    codebook: None,
                };
                Work::PatchEmbed(PatchEmbed {
                    patch,
                    patches: self.layout.extra[index].clone(),
                    product: self.product(weight, bias, &pixels)?,
                    prefix: self.optional_float(prefix)?,
                    position: self.optional_float(position)?,
                })
            }
            Op::LayerNorm {
                input,
                gamma,
                beta,
                eps,
                output,
            } => {
                let (source, merge) = match self.merge(input) {
                    Some((source, rows)) => (source, Some(rows)),
                    None => (input, None),
                };
                Work::LayerNorm(LayerNorm {
                    input: self.floats(source),
                    merge,
                    gamma: self.float(gamma)?,
                    beta: self.float(beta)?,
                    eps,
                    quant: self.quant(output),
                })
            }
            Op::Linear {
                input,
                weight,
                bias,
                activation,
                residual,
                output,
            } => Work::Linear(Linear {
                input: self.codes(input),
                product: self.product(weight, bias, act_quant(self.info, input))?,
                activation,
                residual: self.residual(residual, output),
                quant: self.quant(output),
            }),
            Op::Attention { .. } => Work::Attention(self.attention(index, op)?),
            Op::HeadNorm {
                input,
                head_dim,
                gamma,
                beta,
                eps,
                output,
                ..
            } => Work::HeadNorm(HeadNorm {
                input: self.floats(input),
                head_dim,
                gamma: self.float(gamma)?,
                beta: self.float(beta)?,
                eps,
                quant: self
                    .quant(output)
                    .expect("a head norm writes codes in a valid program"),
            }),
            Op::Gate { input, output } => Work::Gate(Gate {
                input: self.floats(input),
                quant: self.quant(output),
            }),
            Op::Pool {
                input,
                first,
                count,
                pool,
                output,
            } => Work::Pool(Pool {
                input: self.rows(input),
                tokens: first..first + count,
                pool,
                quant: self.quant(output),
            }),
            Op::PatchMerge { input, .. } => Work::Merge(self.rows(input)),
            Op::SelectToken { input, token, .. } => {
                let lanes = self.layout.sizes.lanes;
                let rows = self.info.program().buffers[input.index()].rows;
                let owner = owner(rows, token, lanes);
                Work::SelectToken(SelectToken {
                    input: self.floats(input),
                    owner,
                    row: token - share(rows, owner, lanes).start,
                })
            }
        })
    }

    fn residual(&self, residual: Option<BufferId>, output: BufferId) -> Residual {
        match residual.map(|r| self.floats(r)) {
            None => Residual::None,
            Some(place) => match &self.layout.targets[output.index()] {
                Target::Floats(target) if *target == place => Residual::InPlace,
                Target::Floats(_) | Target::Codes(_) => Residual::From(place),
            },
        }
    }

    fn product(
        &mut self,
        weight: TensorId,
        bias: TensorId,
        input: &ActivationQuant,
    ) -> Result<Product, S::Error> {
        let shape = product_shape(self.info, weight, input.grid_bits().max_code());
        let bias = self.float(bias)?;
        let tensor = self.tensors.tensor(weight)?.weight();
        let mut packed = Aligned::zeroed(self.kernels.packed_len(&shape));
        self.kernels
            .pack_weights(&shape, tensor.codes(), &mut packed);
        let input_scale = if input.scale.len() == 1 {
            input.scale[0]
        } else {
            1.0
        };
        let center = i32::from(shape.weight_bits.center());
        let zeros: Vec<i32> = tensor
            .zero_points()
            .iter()
            .map(|&z| i32::from(z) - center)
            .collect();
        Ok(Product {
            scale: tensor.scales().iter().map(|s| input_scale * s).collect(),
            bias,
            correction: corrections(&tensor, input, &zeros),
            weight_zero: zeros.iter().any(|&z| z != 0).then_some(zeros),
            shape,
            packed,
        })
    }

    /// What is merged in `buffer`, and how.
    fn merge(&self, buffer: BufferId) -> Option<(BufferId, MergedRows)> {
        let d = |input: BufferId| self.info.program().buffers[input.index()].cols;
        let mut ops = self.info.program().ops.iter();
        ops.find_map(|op| match *op {
            Op::PatchMerge {
                input,
                grid,
                output,
            } if output == buffer => Some((
                input,
                MergedRows {
                    grid_width: grid[1],
                    d: d(input),
                },
            )),
            _ => None,
        })
    }

    fn attention(&mut self, index: usize, op: &Op) -> Result<Attention, S::Error> {
        let Op::Attention {
            qkv,
            heads,
            head_dim,
            scale,
            window,
            bias,
            output,
        } = *op
        else {
            unreachable!("only called for attention");
        };
        let bias = self.optional_float(bias)?;
        let codes = softmax_quant(self.info, index);
        let input = act_quant(self.info, qkv);
        let d = heads * head_dim;
        let head = |h: usize| {
            let codebook = codes.codebook(h);
            let (q, k, v) = (h * head_dim, d + h * head_dim, 2 * d + h * head_dim);
            let step = f64::from(input.scale_at(q))
                * f64::from(input.scale_at(k))
                * f64::from(scale)
                * core::f64::consts::LOG2_E;
            Head {
                q_zero: input.zero_point_at(q),
                v_zero: (v..v + head_dim).map(|c| input.zero_point_at(c)).collect(),
                v_scale: (v..v + head_dim).map(|c| input.scale_at(c)).collect(),
                thresholds: integer_thresholds(codebook, step),
                kind: match codes.kind {
                    SoftmaxKind::RowMax => Kind::RowMax,
                    SoftmaxKind::Static => Kind::Static {
                        alpha: step as f32,
                        scale: codebook.scale,
                    },
                },
            }
        };
        let codebook = |codebook: &SoftmaxCodebook| AttentionCodebook {
            multipliers: codebook.multipliers.clone(),
            shift: match self.layout.attention {
                AttentionMethod::Decode => None,
                AttentionMethod::Shift => ShiftForm::from_multipliers(&codebook.multipliers),
            },
        };
        let shape = head_shape(self.info, qkv, head_dim);
        let units = |h: usize| {
            let [q, k] = [0, d].map(|part| f64::from(input.scale_at(part + h * head_dim)));
            q * k * f64::from(scale)
        };
        let cells = window.map(|window| {
            let kinds = CellKind::of(&window).into_iter();
            kinds
                .map(|kind| kind.group(self.kernels, &window, &shape, &bias, (0..heads).map(units)))
                .collect()
        });
        Ok(Attention {
            qkv: self.codes(qkv),
            packed: self.layout.extra[index].clone(),
            pack_len: self.kernels.attention_pack_len(&shape),
            heads: (0..heads).map(head).collect(),
            shape,
            bits: codes.bits,
            renormalise: codes.renormalise,
            codebooks: codes.codebooks.iter().map(codebook).collect(),
            quant: self
                .quant(output)
                .expect("attention writes codes in a valid program"),
            cells,
        })
    }

    fn quant(&self, buffer: BufferId) -> Option<Quant> {
        let cols = self.info.program().buffers[buffer.index()].cols;
        let quant = self.info.quantization().activations[buffer.index()].as_ref()?;
        Some(Quant::new(quant, cols))
    }

    fn float(&mut self, tensor: TensorId) -> Result<Vec<f32>, S::Error> {
        Ok(self.tensors.tensor(tensor)?.float().to_vec())
    }

    /// Nothing where there is no tensor.
    fn optional_float(&mut self, tensor: Option<TensorId>) -> Result<Vec<f32>, S::Error> {
        tensor.map_or(Ok(Vec::new()), |tensor| self.float(tensor))
    }

    fn floats(&self, buffer: BufferId) -> Place {
        match &self.layout.targets[buffer.index()] {
            Target::Floats(place) => place.clone(),
            Target::Codes(_) => unreachable!("a valid program reads floats here"),
        }
    }

    fn rows(&self, buffer: BufferId) -> Rows {
        let shape = &self.info.program().buffers[buffer.index()];
        Rows {
            place: self.floats(buffer),
            count: shape.rows,
            cols: shape.cols,
        }
    }

    fn codes(&self, buffer: BufferId) -> Place {
        match &self.layout.targets[buffer.index()] {
            Target::Codes(place) => place.clone(),
            Target::Floats(_) => unreachable!("a valid program reads codes here"),
        }
    }
}

/// Cells of one height and width.
struct CellKind {
    height: usize,
    width: usize,
    grid_width: usize,
    first: Vec<u32>,
}

impl CellKind {
    /// The cells of a window by their shape.
    fn of(window: &Window) -> Vec<CellKind> {
        let mut kinds: Vec<CellKind> = Vec::new();
        for cell in window.cells() {
            let first = (cell.top * window.grid[1] + cell.left) as u32;
            let same =
                |kind: &&mut CellKind| [kind.height, kind.width] == [cell.height, cell.width];
            match kinds.iter_mut().find(same) {
                Some(kind) => kind.first.push(first),
                None => kinds.push(CellKind {
                    height: cell.height,
                    width: cell.width,
                    grid_width: window.grid[1],
                    first: vec![first],
                }),
            }
        }
        kinds
    }

    fn tokens(&self) -> usize {
        self.height * self.width
    }

    fn shape(&self, whole: &HeadShape) -> HeadShape {
        HeadShape {
            tokens: self.tokens(),
            ..*whole
        }
    }

    /// Bytes that a session keeps of it.
    fn bytes(&self, heads: usize, biased: bool) -> usize {
        let bias = match biased {
            true => heads * self.tokens() * Cells::bias_row_len(self.tokens()) * size_of::<i32>(),
            false => 0,
        };
        bias + self.first.len() * size_of::<u32>()
    }

    /// `units` is what a score of 1 stands for, by head.
    fn group(
        self,
        kernels: &Kernels,
        window: &Window,
        whole: &HeadShape,
        bias: &[f32],
        units: impl Iterator<Item = f64>,
    ) -> CellGroup {
        let shape = self.shape(whole);
        let heads = bias.chunks_exact(window.bias_len()).zip(units);
        CellGroup {
            pack_len: kernels.attention_pack_len(&shape),
            lines: Lines {
                len: self.width,
                stride: self.grid_width,
            },
            bias: heads
                .map(|(bias, unit)| self.bias(window, bias, unit))
                .collect(),
            first: self.first,
            shape,
        }
    }

    /// The bias of a head in units of its scores, [`Cells::bias`].
    fn bias(&self, window: &Window, bias: &[f32], unit: f64) -> Vec<i32> {
        let cell = Cell {
            top: 0,
            left: 0,
            height: self.height,
            width: self.width,
        };
        let tokens = self.tokens();
        let mut out = vec![0; tokens * Cells::bias_row_len(tokens)];
        for (q, row) in out
            .chunks_exact_mut(Cells::bias_row_len(tokens))
            .enumerate()
        {
            for (k, out) in row[..tokens].iter_mut().enumerate() {
                *out = integer_bias(bias[window.bias_index(&cell, q, k)], unit);
            }
        }
        out
    }
}

/// The most tokens of a window with a position bias: a file has some `4 n` numbers of it
/// for a head, a session `n^2`, which a small file must not make large.
const MAX_BIASED_TOKENS: usize = 1024;

/// The nearest integer to `bias / unit`, half to even, within [`MAX_BIAS`].
fn integer_bias(bias: f32, unit: f64) -> i32 {
    // Adding 1.5 * 2^52 leaves no bits for a fraction.
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    let most = f64::from(MAX_BIAS);
    let units = (f64::from(bias) / unit).clamp(-most, most);
    ((units + MAGIC) - MAGIC) as i32
}

/// Whether a LayerNorm, and nothing else, reads the merged patches.
fn merged_by_norm(program: &Program, merge: usize) -> bool {
    let merged = program.ops[merge].output();
    let mut readers = program
        .ops
        .iter()
        .filter(|op| op.inputs().contains(&Some(merged)));
    matches!(
        (readers.next(), readers.next()),
        (Some(Op::LayerNorm { .. }), None)
    )
}

/// `z_w[n] sum_k z_x[k] - sum_k z_x[k] w[n, k]`, per output, w and z_w signed.
///
/// The loops run over unsigned codes, which the compiler makes vector code of;
/// the centre comes off the sums. No sum leaves an i32: a parsed model's do not.
fn corrections(tensor: &WeightTensor<'_>, input: &ActivationQuant, zeros: &[i32]) -> Vec<i32> {
    let cols = tensor.cols();
    let z_x: Vec<u8> = (0..cols).map(|k| input.zero_point_at(k)).collect();
    let uniform = z_x.iter().all(|z| *z == z_x[0]);
    let center = i32::from(tensor.bits().center());
    let z_x_sum: i32 = z_x.iter().map(|&z| i32::from(z)).sum();
    let mut codes = vec![0; cols];
    let correction = |(n, zero): (usize, &i32)| {
        tensor.unpack_row(n, &mut codes);
        let dot: u32 = if uniform {
            u32::from(z_x[0]) * codes.iter().map(|&w| u32::from(w)).sum::<u32>()
        } else {
            let products = z_x.iter().zip(&codes);
            products.map(|(&z, &w)| u32::from(z) * u32::from(w)).sum()
        };
        (zero + center) * z_x_sum - dot as i32
    };
    zeros.iter().enumerate().map(correction).collect()
}

/// Thresholds in 1/64 of a score step of `step` octaves.
///
/// `t > threshold` octaves holds exactly when `64 d + offset > result`, where
/// t is `step * d` plus the row's offset; d and offset are integers, so the
/// largest integer not above the quotient decides the same way.
fn integer_thresholds(codebook: &SoftmaxCodebook, step: f64) -> Vec<i32> {
    codebook
        .thresholds
        .iter()
        .map(|&t| floor_to_i32(64.0 * f64::from(t) / step))
        .collect()
}

/// The largest i32 not above `x`, saturating; infinity means never.
fn floor_to_i32(x: f64) -> i32 {
    let truncated = x as i32; // saturates
    let above = f64::from(truncated) > x;
    truncated.saturating_sub(i32::from(above))
}

fn product_shape(info: &ModelInfo<'_>, weight: TensorId, act_max: u8) -> GemmShape {
    let tensor = &info.program().tensors[weight.index()];
    GemmShape {
        n: tensor.rows,
        k: tensor.cols,
        weight_bits: info.weight_bits(weight),
        act_max,
    }
}

fn head_shape(info: &ModelInfo<'_>, qkv: BufferId, head_dim: usize) -> HeadShape {
    HeadShape {
        tokens: info.program().buffers[qkv.index()].rows,
        head_dim,
        act_max: act_quant(info, qkv).bits.max_code(),
    }
}

fn act_quant<'a>(info: &'a ModelInfo<'_>, buffer: BufferId) -> &'a ActivationQuant {
    info.quantization().activations[buffer.index()]
        .as_ref()
        .expect("a parsed model has a quantizer for every coded buffer")
}

fn codebook<'a>(info: &'a ModelInfo<'_>, buffer: BufferId) -> Option<&'a Codebook> {
    let quant = info.quantization().activations[buffer.index()].as_ref();
    quant.and_then(|quant| quant.codebook.as_ref())
}

fn softmax_quant<'a>(info: &'a ModelInfo<'_>, op: usize) -> &'a SoftmaxQuant {
    info.quantization().softmax[op]
        .as_ref()
        .expect("a parsed model has a quantizer for every attention")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tpvit_models::synthetic::{self, VitConfig};
    use tpvit_models::write;

    /// Every width, zero points that are the same everywhere and that are not.
    #[test]
    fn corrections_are_what_the_formula_says() {
        for bits in BitWidth::ALL {
            let softmax = synthetic::row_max_softmax(BitWidth::B3);
            let data = synthetic::vit(VitConfig::SMALLEST, bits, BitWidth::B8, &softmax, 4);
            let bytes = write(&data).expect("a valid model");
            let model = Model::parse(&bytes).expect("a valid file");
            let weights = model.program().ops.iter().filter_map(Op::weight);
            for tensor in weights.map(|id| model.weight(id)) {
                let cols = tensor.cols();
                let each: Vec<u8> = (0..cols).map(|k| (k * 37 % 251) as u8).collect();
                for zero_point in [vec![0], vec![255], vec![9; cols], each] {
                    let input = ActivationQuant {
                        bits: BitWidth::B8,
                        scale: vec![1.0; zero_point.len()],
                        zero_point,
                        codebook: None,
                    };
                    check_corrections(&tensor, &input);
                }
            }
        }
    }

    fn check_corrections(tensor: &WeightTensor<'_>, input: &ActivationQuant) {
        let center = i32::from(tensor.bits().center());
        let zeros: Vec<i32> = (0..tensor.rows() as i32).map(|n| n % 3 - 1).collect();
        let found = corrections(tensor, input, &zeros);
        let mut row = vec![0; tensor.cols()];
        for (n, zero) in zeros.iter().enumerate() {
            tensor.unpack_row(n, &mut row);
            let expected: i32 = (0..tensor.cols())
                .map(|k| i32::from(input.zero_point_at(k)) * (zero - (i32::from(row[k]) - center)))
                .sum();
            assert_eq!(found[n], expected, "output {n}");
        }
    }

    #[test]
    fn floor_is_towards_minus_infinity_and_saturates() {
        for (x, expected) in [
            (2.5, 2),
            (-2.5, -3),
            (3.0, 3),
            (-3.0, -3),
            (f64::INFINITY, i32::MAX),
            (-1e300, i32::MIN),
        ] {
            assert_eq!(floor_to_i32(x), expected, "{x}");
        }
    }
}
