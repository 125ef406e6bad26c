//! From a model to the image of its steps: every number an operation needs, ready to use.
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
//!
//! The image is written twice: without memory, which counts its bytes, then into a block
//! of so many. `step.rs` reads it.

use core::convert::Infallible;
#[cfg(feature = "std")]
use std::io::{Read, Seek};

use bytemuck::Pod;
use tpvit_kernels::{
    Cells, GemmShape, HeadShape, Kernels, Lines, MAX_BIAS, MAX_HEAD_DIM, MAX_TOKENS, PanelLayout,
    ShiftForm,
};
use tpvit_models::{
    Activation, ActivationQuant, BufferId, Cell, Codebook, Model, ModelInfo, Op, Pooling, Program,
    SoftmaxCodebook, SoftmaxKind, SoftmaxQuant, Tensor, TensorId, WeightTensor, Window,
};
#[cfg(feature = "std")]
use tpvit_models::{ReadError, TensorReader};

use crate::block::lines;
use crate::image::Writer;
use crate::lanes::{ExchangeSize, owner, share};
use crate::plan::{self, Place, Places};
use crate::session::{AttentionMethod, MemoryPlan, Options, SessionError};
use crate::step::{Residual, Target, WorkKind};

/// Where everything goes, before any of it is written.
pub(crate) struct Layout<'w> {
    places: Places<'w>,
    pub(crate) sizes: Sizes,
    attention: AttentionMethod,
}

/// A bound of what a lane takes beside its numbers; `tests/no_alloc.rs` and `bare/run.sh`
/// hold it.
const LANE_BYTES: usize = 4096;

/// How much memory each lane has, and all together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) lanes: usize,
    /// Operations.
    pub(crate) steps: usize,
    pub(crate) floats_len: usize,
    pub(crate) bytes_len: usize,
    pub(crate) sums_len: usize,
    pub(crate) scratch_len: usize,
    /// f32 of a row between two steps of one operation.
    pub(crate) row_len: usize,
    /// Where lane 0 has its part of the result, among the floats.
    pub(crate) result: [usize; 2],
    /// Elements of the result, where lanes other than 0 have a part of it; else 0.
    pub(crate) shared_result: usize,
    /// Nothing if there is one lane.
    pub(crate) exchange: ExchangeSize,
}

impl Sizes {
    /// Bytes of a lane's arena; `exec::Memory` divides it.
    pub(crate) fn arena_bytes(&self) -> usize {
        lines::<f32>(self.floats_len)
            + lines::<u8>(self.bytes_len)
            + lines::<i32>(self.sums_len)
            + lines::<u8>(self.scratch_len)
            + lines::<f32>(self.row_len)
    }
}

impl<'w> Layout<'w> {
    /// `memory` is [`plan::words`] of it, whatever it holds.
    pub(crate) fn new(
        info: &ModelInfo<'_>,
        kernels: &Kernels,
        options: &Options,
        memory: &'w mut [usize],
    ) -> Result<Layout<'w>, SessionError> {
        let program = info.program();
        let lanes = options.threads.max(1);
        let mut needs = Needs::new(options.attention, lanes);
        for (index, op) in program.ops.iter().enumerate() {
            needs.add(info, kernels, index, op)?;
        }
        needs.result(program);
        let coded = |buffer: usize| info.quantization().activations[buffer].is_some();
        let extra = |op: usize| extra_len(info, kernels, lanes, &program.ops[op]);
        let places = Places::new(program, lanes, options.all_rows, coded, extra, memory);
        let scratch_len = match lanes {
            // The same memory is where a session in a block is planned.
            1 => {
                let planning = plan::words(program) * size_of::<usize>();
                let other = lines::<f32>(places.floats_len) + lines::<u8>(places.bytes_len);
                needs.scratch.max(planning.saturating_sub(other))
            }
            _ => needs.scratch,
        };
        let result = program.ops.last().map(|op| op.output().index());
        let result = result.map_or(0..0, |buffer| places.buffer(buffer));
        Ok(Layout {
            sizes: Sizes {
                lanes,
                steps: program.ops.len(),
                floats_len: places.floats_len,
                bytes_len: places.bytes_len,
                sums_len: needs.sums,
                scratch_len,
                row_len: needs.row,
                result: [result.start, result.end],
                shared_result: needs.shared_result,
                exchange: needs.exchange,
            },
            places,
            attention: options.attention,
        })
    }

    /// What a session takes.
    ///
    /// `lasts` says whether the file stays where it is as long as the session lives.
    pub(crate) fn memory(
        &self,
        info: &ModelInfo<'_>,
        lasts: bool,
        kernels: &Kernels,
    ) -> MemoryPlan {
        let sizes = &self.sizes;
        let exchange = &sizes.exchange;
        let shared = exchange.floats + sizes.shared_result;
        let floats = lines::<f32>(sizes.floats_len) + lines::<f32>(sizes.row_len);
        let head = exchange.head_len + exchange.pack_len;
        let exchanged = exchange.pixels + exchange.heads * head;
        let scratch = lines::<u8>(sizes.scratch_len) + lines::<i32>(sizes.sums_len);
        let image = self.image(info, lasts, None::<Nothing>, kernels, Writer::counting());
        let Ok(image) = image;
        MemoryPlan {
            float_bytes: sizes.lanes * floats + shared * size_of::<f32>(),
            code_bytes: sizes.lanes * lines::<u8>(sizes.bytes_len) + exchanged,
            scratch_bytes: sizes.lanes * scratch,
            weight_bytes: image.weights,
            borrowed_bytes: image.borrowed,
            constant_bytes: image.bytes - image.weights,
            description_bytes: program_bytes(info.program())
                + plan::words(info.program()) * size_of::<usize>()
                + LANE_BYTES * sizes.lanes,
        }
    }

    /// Writes the steps: the one place where weights are re-ordered, unless they lie in
    /// the order of `kernels` already, in a file that `lasts`.
    ///
    /// Without `tensors` nothing is written, and `out` must only count.
    pub(crate) fn image<S: TensorSource>(
        &self,
        info: &ModelInfo<'_>,
        lasts: bool,
        tensors: Option<S>,
        kernels: &Kernels,
        out: Writer<'_>,
    ) -> Result<ImageSize, S::Error> {
        let mut kept = tensors.map(|source| Kept {
            source,
            error: None,
        });
        let tensors = kept.as_mut().map(|kept| kept as &mut dyn Tensors);
        let written = self.written(info, lasts, tensors, kernels, out);
        written.map_err(|Unread| {
            let error = kept.and_then(|kept| kept.error);
            error.expect("only a source can fail, and leaves why")
        })
    }

    fn written<'a>(
        &'a self,
        info: &'a ModelInfo<'a>,
        lasts: bool,
        tensors: Option<&'a mut (dyn Tensors + 'a)>,
        kernels: &'a Kernels,
        out: Writer<'a>,
    ) -> Result<ImageSize, Unread> {
        let mut build = Build {
            layout: self,
            info,
            lasts,
            tensors,
            kernels,
            out,
            weights: 0,
            borrowed: 0,
        };
        for (index, op) in info.program().ops.iter().enumerate() {
            let next = build.out.later();
            build.step(index, op)?;
            build.out.set(next, build.out.len());
        }
        Ok(ImageSize {
            bytes: build.out.len().next_multiple_of(crate::block::LINE),
            weights: build.weights,
            borrowed: build.borrowed,
        })
    }

    fn target(&self, info: &ModelInfo<'_>, buffer: BufferId) -> Target {
        let place = self.places.buffer(buffer.index());
        match info.quantization().activations[buffer.index()] {
            Some(_) => Target::Codes(place),
            None => Target::Floats(place),
        }
    }
}

/// Bytes of an image, weights among them, and of weights that it leaves in the file.
pub(crate) struct ImageSize {
    bytes: usize,
    weights: usize,
    borrowed: usize,
}

/// What a copy of a program takes of the heap.
fn program_bytes(program: &Program) -> usize {
    let buffers = program
        .buffers
        .iter()
        .map(|b| b.name.len() + size_of_val(b));
    let tensors = program
        .tensors
        .iter()
        .map(|t| t.name.len() + size_of_val(t));
    buffers.chain(tensors).sum::<usize>() + size_of_val(&program.ops[..])
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

/// Nothing to read: there is none of it.
enum Nothing {}

impl TensorSource for Nothing {
    type Error = Infallible;

    fn tensor(&mut self, _: TensorId) -> Result<Tensor<'_>, Infallible> {
        match *self {}
    }
}

/// A source of any kind: what writes the image then is there once, not for each kind.
trait Tensors {
    fn tensor(&mut self, id: TensorId) -> Result<Tensor<'_>, Unread>;
}

/// A tensor cannot be read; [`Kept`] has why.
struct Unread;

/// A source, and why it failed.
struct Kept<S: TensorSource> {
    source: S,
    error: Option<S::Error>,
}

impl<S: TensorSource> Tensors for Kept<S> {
    fn tensor(&mut self, id: TensorId) -> Result<Tensor<'_>, Unread> {
        let Kept { source, error } = self;
        source.tensor(id).map_err(|why| {
            *error = Some(why);
            Unread
        })
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
        }
    }

    /// Adds what `op` needs.
    fn add(
        &mut self,
        info: &ModelInfo<'_>,
        kernels: &Kernels,
        index: usize,
        op: &Op,
    ) -> Result<(), SessionError> {
        let program = info.program();
        let buffer = |b: BufferId| &program.buffers[b.index()];
        match *op {
            Op::PatchEmbed { weight, .. } => {
                let own = own_patches(program, self.lanes, op);
                self.product(kernels, product_shape(info, weight, u8::MAX), own);
                if self.lanes > 1 {
                    self.exchange.pixels = program.image[0] * program.image[1] * 3;
                }
                Ok(())
            }
            Op::LayerNorm { .. } => Ok(()),
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
                Ok(())
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
                if bias.is_some() && window.is_some_and(|w| w.largest() > MAX_BIASED_TOKENS) {
                    let what = "a position bias of windows of more than 1024 tokens";
                    return Err(SessionError::Unsupported { op: index, what });
                }
                let mut pack_len = 0;
                for shape in head_shapes(&whole, window) {
                    self.check_attention(info, index, &shape)?;
                    self.scratch = self.scratch.max(kernels.attention_scratch_len(&shape));
                    pack_len = pack_len.max(kernels.attention_pack_len(&shape));
                }
                if self.lanes == 1 {
                    return Ok(());
                }
                let exchange = &mut self.exchange;
                exchange.heads = exchange.heads.max(heads);
                exchange.head_len = exchange.head_len.max(whole.tokens * 2 * head_dim);
                if window.is_none() {
                    exchange.pack_len = exchange.pack_len.max(pack_len);
                }
                Ok(())
            }
            Op::HeadNorm { output, .. } => {
                self.row = self.row.max(buffer(output).cols / 3);
                Ok(())
            }
            Op::Gate { output, .. } => {
                self.row = self.row.max(buffer(output).cols);
                Ok(())
            }
            Op::Pool {
                input,
                count,
                output,
                ..
            } => {
                self.row = self.row.max(buffer(output).cols);
                self.give(count * buffer(input).cols);
                Ok(())
            }
            Op::PatchMerge { input, output, .. } => {
                if !merged_by_norm(program, index) {
                    let what = "merged patches that no LayerNorm alone reads";
                    return Err(SessionError::Unsupported { op: index, what });
                }
                self.row = self.row.max(buffer(output).cols);
                self.give(buffer(input).rows * buffer(input).cols);
                Ok(())
            }
            Op::SelectToken { output, .. } => {
                self.give(buffer(output).cols);
                Ok(())
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
        self.scratch = self.scratch.max(kernels.gemm_scratch_len(&shape, m));
        self.sums = self.sums.max(m);
    }
}

/// What `op` has for itself in a lane's arena of bytes while it runs: its patches, or keys
/// and values of one head in the order of this CPU.
fn extra_len(info: &ModelInfo<'_>, kernels: &Kernels, lanes: usize, op: &Op) -> usize {
    match *op {
        Op::PatchEmbed { patch, .. } => {
            own_patches(info.program(), lanes, op) * patch[0] * patch[1] * 3
        }
        Op::Attention {
            qkv,
            head_dim,
            window,
            ..
        } => {
            if lanes > 1 && window.is_none() {
                return 0; // the lanes share them
            }
            let whole = head_shape(info, qkv, head_dim);
            let shapes = head_shapes(&whole, window);
            let lens = shapes.map(|shape| kernels.attention_pack_len(&shape));
            lens.max().unwrap_or(0)
        }
        Op::LayerNorm { .. }
        | Op::Linear { .. }
        | Op::HeadNorm { .. }
        | Op::Gate { .. }
        | Op::SelectToken { .. }
        | Op::Pool { .. }
        | Op::PatchMerge { .. } => 0,
    }
}

/// The most patches of an embedding that a lane has.
fn own_patches(program: &Program, lanes: usize, op: &Op) -> usize {
    let Op::PatchEmbed { prefix, output, .. } = *op else {
        unreachable!("only called for an embedding");
    };
    let rows = program.buffers[output.index()].rows;
    let prefix_rows = prefix.map_or(0, |p| program.tensors[p.index()].rows);
    share(rows, 0, lanes).len().min(rows - prefix_rows)
}

/// Of all tokens, or of each kind of cell.
fn head_shapes(whole: &HeadShape, window: Option<Window>) -> impl Iterator<Item = HeadShape> {
    let whole = *whole;
    let uncut = window.is_none().then_some(whole);
    let cut = window.into_iter().flat_map(|window| CellKind::of(&window));
    uncut
        .into_iter()
        .chain(cut.map(move |kind| kind.shape(&whole)))
}

/// Writes the work of each operation.
struct Build<'a, 'w> {
    layout: &'a Layout<'w>,
    info: &'a ModelInfo<'a>,
    /// Whether the file stays where it is.
    lasts: bool,
    /// None where bytes are counted.
    tensors: Option<&'a mut (dyn Tensors + 'a)>,
    kernels: &'a Kernels,
    out: Writer<'a>,
    /// Bytes of weights so far.
    weights: usize,
    /// And of those in the file.
    borrowed: usize,
}

/// Puts the codes of a weight into panels.
fn pack(tensor: &WeightTensor<'_>, shape: &GemmShape, to: &PanelLayout, out: &mut [u8]) {
    match tensor.panels() {
        None => to.pack(shape, tensor.codes(), out),
        Some(from) if from == *to => out.copy_from_slice(tensor.codes()),
        Some(from) => to.repack(shape, &from, tensor.codes(), out),
    }
}

/// What a product reads: pixels, or a coded buffer.
struct Input<'q> {
    act_max: u8,
    scale: f32,
    /// One, or one for each column.
    zero_point: &'q [u8],
}

impl Input<'_> {
    /// Exact codes.
    const PIXELS: Input<'static> = Input {
        act_max: u8::MAX,
        scale: 1.0,
        zero_point: &[0],
    };

    fn of(quant: &ActivationQuant) -> Input<'_> {
        Input {
            act_max: quant.grid_bits().max_code(),
            // A scale for each column is in the weight.
            scale: match quant.scale[..] {
                [scale] => scale,
                _ => 1.0,
            },
            zero_point: &quant.zero_point,
        }
    }

    fn zero_point_sum(&self, k: usize) -> i32 {
        match *self.zero_point {
            [zero] => i32::from(zero) * k as i32,
            _ => self.zero_point.iter().map(|&zero| i32::from(zero)).sum(),
        }
    }
}

impl Build<'_, '_> {
    fn step(&mut self, index: usize, op: &Op) -> Result<(), Unread> {
        let output = op.output();
        let kind = match op {
            Op::PatchEmbed { .. } => WorkKind::PatchEmbed,
            Op::LayerNorm { .. } => WorkKind::LayerNorm,
            Op::Linear { .. } => WorkKind::Linear,
            Op::Attention { .. } => WorkKind::Attention,
            Op::HeadNorm { .. } => WorkKind::HeadNorm,
            Op::Gate { .. } => WorkKind::Gate,
            Op::SelectToken { .. } => WorkKind::SelectToken,
            Op::Pool { .. } => WorkKind::Pool,
            Op::PatchMerge { .. } => WorkKind::Merge,
        };
        let rows = self.layout.places.rows(index);
        let buffer = &self.info.program().buffers[output.index()];
        let (coded, place) = match self.layout.target(self.info, output) {
            Target::Codes(place) => (1, place),
            Target::Floats(place) => (0, place),
        };
        let shape = [buffer.rows, buffer.cols];
        let id = output.index();
        self.out.words([kind as usize, rows.start, rows.end, id]);
        self.out.words([shape[0], shape[1], coded]);
        self.place(&place);
        self.codebook(output);
        self.work(index, op)
    }

    fn codebook(&mut self, output: BufferId) {
        let quant = self.info.quantization().activations[output.index()].as_ref();
        match quant.and_then(|quant| quant.codebook.as_ref()) {
            None => self.out.words([0]),
            Some(Codebook { thresholds, levels }) => {
                self.out.words([levels.len()]);
                self.array(thresholds.len(), |i| thresholds[i]);
                self.array(levels.len(), |i| levels[i]);
            }
        }
    }

    fn work(&mut self, index: usize, op: &Op) -> Result<(), Unread> {
        match *op {
            Op::PatchEmbed {
                patch,
                weight,
                bias,
                prefix,
                position,
                ..
            } => {
                let image_width = self.info.program().image[1];
                let lens = [prefix, position].map(|tensor| self.float_len(tensor));
                self.out
                    .words([patch[0], patch[1], image_width, lens[0], lens[1]]);
                self.place(&self.layout.places.extra(index));
                self.product(weight, bias, &Input::PIXELS)?;
                self.optional_float(prefix)?;
                self.optional_float(position)
            }
            Op::LayerNorm {
                input,
                gamma,
                beta,
                eps,
                output,
            } => {
                let (source, [width, d]) = match self.merge(input) {
                    Some(merged) => merged,
                    None => (input, [0; 2]),
                };
                self.place(&self.floats(source));
                let cols = self.info.program().buffers[output.index()].cols;
                self.out.words([cols, eps.to_bits() as usize, width, d]);
                self.float(gamma)?;
                self.float(beta)?;
                self.quant(output);
                Ok(())
            }
            Op::Linear {
                input,
                weight,
                bias,
                activation,
                residual,
                output,
            } => {
                self.place(&self.codes(input));
                let gelu = match activation {
                    // The codes of a ReLU end at zero.
                    Activation::Identity | Activation::Relu => 0,
                    Activation::Gelu => 1,
                };
                let (residual, place) = match self.residual(residual, output) {
                    Residual::None => (0, 0..0),
                    Residual::InPlace => (1, 0..0),
                    Residual::From(place) => (2, place),
                };
                self.out.words([gelu, residual]);
                self.place(&place);
                let info = self.info;
                self.product(weight, bias, &Input::of(act_quant(info, input)))?;
                self.quant(output);
                Ok(())
            }
            Op::Attention { .. } => self.attention(index, op),
            Op::HeadNorm {
                input,
                head_dim,
                gamma,
                beta,
                eps,
                output,
                ..
            } => {
                self.place(&self.floats(input));
                self.out.words([head_dim, eps.to_bits() as usize]);
                self.float(gamma)?;
                self.float(beta)?;
                self.quant(output);
                Ok(())
            }
            Op::Gate { input, output } => {
                self.place(&self.floats(input));
                self.quant(output);
                Ok(())
            }
            Op::Pool {
                input,
                first,
                count,
                pool,
                output,
            } => {
                self.rows(input);
                let concat = match pool {
                    Pooling::Mean => 0,
                    Pooling::Concat => 1,
                };
                self.out.words([first, first + count, concat]);
                self.quant(output);
                Ok(())
            }
            Op::PatchMerge { input, .. } => {
                self.rows(input);
                Ok(())
            }
            Op::SelectToken { input, token, .. } => {
                let lanes = self.layout.sizes.lanes;
                let rows = self.info.program().buffers[input.index()].rows;
                let owner = owner(rows, token, lanes);
                self.place(&self.floats(input));
                let row = token - share(rows, owner, lanes).start;
                self.out.words([owner, row]);
                Ok(())
            }
        }
    }

    fn residual(&self, residual: Option<BufferId>, output: BufferId) -> Residual {
        match residual.map(|r| self.floats(r)) {
            None => Residual::None,
            Some(place) => match self.layout.target(self.info, output) {
                Target::Floats(target) if target == place => Residual::InPlace,
                Target::Floats(_) | Target::Codes(_) => Residual::From(place),
            },
        }
    }

    fn product(
        &mut self,
        weight: TensorId,
        bias: TensorId,
        input: &Input<'_>,
    ) -> Result<(), Unread> {
        let shape = product_shape(self.info, weight, input.act_max);
        let GemmShape { n, k, .. } = shape;
        let packed_len = self.kernels.packed_len(&shape);
        let bits = shape.weight_bits.bits() as usize;
        self.out
            .words([n, k, bits, shape.act_max.into(), packed_len]);
        self.float(bias)?;

        let Build { tensors, out, .. } = self;
        let tensor = match tensors {
            Some(tensors) => Some(tensors.tensor(weight)?.weight()),
            None => None,
        };
        let center = shape.weight_bits.center();
        // As far as one can tell without the values.
        let has_zero = tensor.is_none_or(|t| t.zero_points().iter().any(|&z| z != center));
        let tensor = || tensor.expect("only what has values is written");
        let layout = self.kernels.panel_layout(&shape);
        let in_file = self.lasts && self.info.panel_layout(weight) == Some(layout);
        let start = match in_file {
            true => self.info.codes_range(weight).start,
            false => 0,
        };
        out.words([has_zero.into(), in_file.into(), start]);
        let before = out.len();
        let packed = match in_file {
            true => {
                self.borrowed += packed_len;
                None
            }
            false => {
                out.array(packed_len, |packed| {
                    pack(&tensor(), &shape, &layout, packed)
                });
                Some(out.len() - packed_len..out.len())
            }
        };
        self.weights += out.len() - before;
        out.array(n, |scales: &mut [f32]| {
            let weight_scales = tensor().scales();
            for (to, scale) in scales.iter_mut().zip(weight_scales.iter()) {
                *to = input.scale * scale;
            }
        });
        let zero = |zero_point: u8| i32::from(zero_point) - i32::from(center);
        out.array_after(n, |before, corrections| {
            let packed = packed.map_or(tensor().codes(), |packed| &before[packed]);
            // No sum leaves an i32: a parsed model's do not.
            layout.dots(&shape, packed, input.zero_point, corrections);
            let sum = input.zero_point_sum(k);
            for (correction, &z) in corrections.iter_mut().zip(tensor().zero_points()) {
                *correction = zero(z) * sum - *correction;
            }
        });
        if has_zero {
            out.array(n, |zeros: &mut [i32]| {
                for (to, &z) in zeros.iter_mut().zip(tensor().zero_points()) {
                    *to = zero(z);
                }
            });
        }
        Ok(())
    }

    /// What is merged in `buffer`, columns of its grid and channels of a row of it.
    fn merge(&self, buffer: BufferId) -> Option<(BufferId, [usize; 2])> {
        let program = self.info.program();
        program.ops.iter().find_map(|op| match *op {
            Op::PatchMerge {
                input,
                grid,
                output,
            } if output == buffer => {
                let d = program.buffers[input.index()].cols;
                Some((input, [grid[1], d]))
            }
            _ => None,
        })
    }

    fn attention(&mut self, index: usize, op: &Op) -> Result<(), Unread> {
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
        let info = self.info;
        let codes = softmax_quant(info, index);
        let input = act_quant(info, qkv);
        let d = heads * head_dim;
        let shape = head_shape(info, qkv, head_dim);
        // What a score of 1 stands for.
        let unit = |h: usize| {
            let [q, k] = [0, d].map(|part| f64::from(input.scale_at(part + h * head_dim)));
            q * k * f64::from(scale)
        };
        // The same in octaves.
        let step = |h: usize| unit(h) * core::f64::consts::LOG2_E;

        self.place(&self.codes(qkv));
        self.place(&self.layout.places.extra(index));
        let pack_len = self.kernels.attention_pack_len(&shape);
        let act_max = shape.act_max.into();
        self.out
            .words([pack_len, heads, shape.tokens, head_dim, act_max]);
        let row_max = match codes.kind {
            SoftmaxKind::RowMax => 1,
            SoftmaxKind::Static => 0,
        };
        let shifts = match self.layout.attention {
            AttentionMethod::Shift => 1,
            AttentionMethod::Decode => 0,
        };
        let (bits, renormalise) = (codes.bits.bits() as usize, usize::from(codes.renormalise));
        self.out
            .words([bits, renormalise, row_max, shifts, codes.codebooks.len()]);

        self.array(heads, |h| input.zero_point_at(h * head_dim));
        self.array(d, |c| input.zero_point_at(2 * d + c));
        self.array(d, |c| input.scale_at(2 * d + c));
        let thresholds = usize::from(codes.bits.max_code());
        self.array(heads * thresholds, |i| {
            let head = i / thresholds;
            let threshold = codes.codebook(head).thresholds[i % thresholds];
            integer_threshold(threshold, step(head))
        });
        self.array(heads, |h| [step(h) as f32, codes.codebook(h).scale]);
        self.array(codes.codebooks.len() * (thresholds + 1), |i| {
            codes.codebooks[i / (thresholds + 1)].multipliers[i % (thresholds + 1)]
        });
        self.quant(output);
        let Some(window) = window else {
            self.out.words([0]);
            return Ok(());
        };
        self.out.words([CellKind::of(&window).count()]);
        for kind in CellKind::of(&window) {
            self.cells(&kind, &window, &shape, heads, bias, unit)?;
        }
        Ok(())
    }

    /// The cells of one shape; `unit(head)` is what a score of 1 stands for.
    fn cells(
        &mut self,
        kind: &CellKind,
        window: &Window,
        whole: &HeadShape,
        heads: usize,
        bias: Option<TensorId>,
        unit: impl Fn(usize) -> f64,
    ) -> Result<(), Unread> {
        let shape = kind.shape(whole);
        let tokens = shape.tokens;
        let width = Cells::bias_row_len(tokens);
        let bias_len = bias.map_or(0, |_| tokens * width);
        let pack_len = self.kernels.attention_pack_len(&shape);
        let Lines { len, stride } = kind.lines(window);
        let own = |cell: &Cell| kind.is_of(cell);
        let count = window.cells().filter(own).count();
        self.out
            .words([tokens, pack_len, len, stride, count, bias_len]);
        self.out.array(count, |first: &mut [u32]| {
            for (to, cell) in first.iter_mut().zip(window.cells().filter(own)) {
                *to = (cell.top * window.grid[1] + cell.left) as u32;
            }
        });

        let Build { tensors, out, .. } = self;
        let values = match (tensors, bias) {
            (Some(tensors), Some(bias)) => Some(tensors.tensor(bias)?.float()),
            (None, _) | (_, None) => None,
        };
        out.array(heads * bias_len, |biases: &mut [i32]| {
            let value = |index: usize| values.and_then(|values| values.get(index));
            for (row, biases) in biases.chunks_exact_mut(width).enumerate() {
                let (head, q) = (row / tokens, row % tokens);
                for (k, to) in biases[..tokens].iter_mut().enumerate() {
                    let at = window.bias_index(&kind.cell(), q, k);
                    let bias = value(head * window.bias_len() + at);
                    let bias = bias.expect("a valid program has a bias for each pair");
                    *to = integer_bias(bias, unit(head));
                }
                // Of no token; a block that is handed in may hold anything.
                biases[tokens..].fill(0);
            }
        });
        Ok(())
    }

    /// The quantizer of a buffer, spread over the columns; nothing where it has none.
    fn quant(&mut self, buffer: BufferId) {
        let info = self.info;
        let cols = info.program().buffers[buffer.index()].cols;
        match &info.quantization().activations[buffer.index()] {
            None => self.out.words([0, 0]),
            Some(quant) => {
                self.out.words([cols, quant.grid_bits().max_code().into()]);
                self.array(cols, |c| 1.0 / quant.scale_at(c));
                self.array(cols, |c| quant.zero_point_at(c));
            }
        }
    }

    /// Elements of a tensor; none where there is no tensor.
    fn float_len(&self, tensor: Option<TensorId>) -> usize {
        let tensor = tensor.map(|tensor| &self.info.program().tensors[tensor.index()]);
        tensor.map_or(0, |tensor| tensor.rows * tensor.cols)
    }

    fn float(&mut self, tensor: TensorId) -> Result<(), Unread> {
        self.optional_float(Some(tensor))
    }

    /// Nothing where there is no tensor.
    fn optional_float(&mut self, tensor: Option<TensorId>) -> Result<(), Unread> {
        let len = self.float_len(tensor);
        let Build { tensors, out, .. } = self;
        let values = match (tensors, tensor) {
            (Some(tensors), Some(tensor)) => Some(tensors.tensor(tensor)?.float()),
            (None, _) | (_, None) => None,
        };
        out.array(len, |to| {
            if let Some(values) = values {
                values.copy_to(to);
            }
        });
        Ok(())
    }

    fn array<T: Pod>(&mut self, len: usize, value: impl Fn(usize) -> T) {
        self.out.array(len, |array: &mut [T]| {
            for (index, to) in array.iter_mut().enumerate() {
                *to = value(index);
            }
        });
    }

    fn place(&mut self, place: &Place) {
        self.out.words([place.start, place.end]);
    }

    fn floats(&self, buffer: BufferId) -> Place {
        match self.layout.target(self.info, buffer) {
            Target::Floats(place) => place,
            Target::Codes(_) => unreachable!("a valid program reads floats here"),
        }
    }

    fn rows(&mut self, buffer: BufferId) {
        let shape = &self.info.program().buffers[buffer.index()];
        self.place(&self.floats(buffer));
        self.out.words([shape.rows, shape.cols]);
    }

    fn codes(&self, buffer: BufferId) -> Place {
        match self.layout.target(self.info, buffer) {
            Target::Codes(place) => place,
            Target::Floats(_) => unreachable!("a valid program reads codes here"),
        }
    }
}

/// Cells of one height and width.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct CellKind {
    height: usize,
    width: usize,
}

impl CellKind {
    /// The most kinds of a window: along a side the first piece, whole ones, the last.
    const MOST: usize = 9;

    /// The kinds of cells of a window, as they come.
    fn of(window: &Window) -> impl Iterator<Item = CellKind> + use<> {
        let (mut kinds, mut count) = ([CellKind::default(); CellKind::MOST], 0);
        for Cell { height, width, .. } in window.cells() {
            let kind = CellKind { height, width };
            if !kinds[..count].contains(&kind) {
                kinds[count] = kind;
                count += 1;
            }
        }
        kinds.into_iter().take(count)
    }

    fn is_of(&self, cell: &Cell) -> bool {
        [cell.height, cell.width] == [self.height, self.width]
    }

    /// One of them.
    fn cell(&self) -> Cell {
        Cell {
            top: 0,
            left: 0,
            height: self.height,
            width: self.width,
        }
    }

    fn lines(&self, window: &Window) -> Lines {
        Lines {
            len: self.width,
            stride: window.grid[1],
        }
    }

    fn shape(&self, whole: &HeadShape) -> HeadShape {
        HeadShape {
            tokens: self.height * self.width,
            ..*whole
        }
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

/// A threshold of `threshold` octaves in 1/64 of a score step of `step` octaves.
///
/// `t > threshold` octaves holds exactly when `64 d + offset > result`, where
/// t is `step * d` plus the row's offset; d and offset are integers, so the
/// largest integer not above the quotient decides the same way.
fn integer_threshold(threshold: f32, step: f64) -> i32 {
    floor_to_i32(64.0 * f64::from(threshold) / step)
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

fn softmax_quant<'a>(info: &'a ModelInfo<'_>, op: usize) -> &'a SoftmaxQuant {
    info.quantization().softmax[op]
        .as_ref()
        .expect("a parsed model has a quantizer for every attention")
}

#[cfg(test)]
mod tests {
    use super::*;

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
