//! The steps of a session: each operation with every number it needs, as the image has
//! them.
//!
//! A step is read when its turn comes, some dozen words and slices: nothing is kept but
//! the image. `read` here is the counterpart of what `compile.rs` writes, line by line.

use core::ops::Range;

use tpvit_kernels::{
    ActCodebook, ActQuant, AttentionMethod, GemmShape, HeadShape, Lines, ShiftForm, SoftmaxCodes,
    SoftmaxKind as Kind,
};
use tpvit_models::{Activation, BitWidth, BufferId, Pooling};

use crate::image::Reader;
use crate::plan::Place;

/// Where an operation writes.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Codes(Place),
    Floats(Place),
}

/// One operation, ready to run.
pub(crate) struct Step<'a> {
    pub(crate) head: Head,
    /// The levels that the codes of the output are moved to.
    pub(crate) codebook: Option<ActCodebook<'a>>,
    pub(crate) work: Work<'a>,
}

/// What there is to say of any operation.
pub(crate) struct Head {
    kind: WorkKind,
    /// The rows of the output to compute.
    pub(crate) rows: Range<usize>,
    pub(crate) output: BufferId,
    /// Rows and columns of the whole output.
    pub(crate) shape: [usize; 2],
    pub(crate) target: Target,
}

/// Names an operation in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkKind {
    PatchEmbed,
    LayerNorm,
    Linear,
    Attention,
    HeadNorm,
    Gate,
    SelectToken,
    Pool,
    Merge,
}

impl WorkKind {
    const ALL: [WorkKind; 9] = [
        WorkKind::PatchEmbed,
        WorkKind::LayerNorm,
        WorkKind::Linear,
        WorkKind::Attention,
        WorkKind::HeadNorm,
        WorkKind::Gate,
        WorkKind::SelectToken,
        WorkKind::Pool,
        WorkKind::Merge,
    ];
}

pub(crate) enum Work<'a> {
    PatchEmbed(PatchEmbed<'a>),
    LayerNorm(LayerNorm<'a>),
    Linear(Linear<'a>),
    Attention(Attention<'a>),
    HeadNorm(HeadNorm<'a>),
    Gate(Gate<'a>),
    SelectToken(SelectToken),
    Pool(Pool<'a>),
    /// A patch merge, done by the LayerNorm that reads it; with several lanes they
    /// give each other their rows here.
    Merge(Rows),
}

impl Work<'_> {
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

pub(crate) struct PatchEmbed<'a> {
    pub(crate) patch: [usize; 2],
    /// Of the picture, in pixels.
    pub(crate) image_width: usize,
    /// Where a lane gathers its patches, `[patches, patch_h * patch_w * 3]`.
    pub(crate) patches: Place,
    pub(crate) product: Product<'a>,
    /// `[p, d]`.
    pub(crate) prefix: &'a [f32],
    /// `[patches, d]`, or empty.
    pub(crate) position: &'a [f32],
}

pub(crate) struct LayerNorm<'a> {
    pub(crate) input: Place,
    /// Set where a row is four rows of what is merged.
    pub(crate) merge: Option<MergedRows>,
    pub(crate) gamma: &'a [f32],
    pub(crate) beta: &'a [f32],
    pub(crate) eps: f32,
    pub(crate) quant: Option<ActQuant<'a>>,
}

/// LayerNorm of q and k within each head.
pub(crate) struct HeadNorm<'a> {
    pub(crate) input: Place,
    pub(crate) head_dim: usize,
    /// `[2, head_dim]`, and so is `beta`.
    pub(crate) gamma: &'a [f32],
    pub(crate) beta: &'a [f32],
    pub(crate) eps: f32,
    pub(crate) quant: ActQuant<'a>,
}

/// The gate of SwiGLU.
pub(crate) struct Gate<'a> {
    pub(crate) input: Place,
    pub(crate) quant: Option<ActQuant<'a>>,
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
pub(crate) struct Pool<'a> {
    pub(crate) input: Rows,
    pub(crate) tokens: Range<usize>,
    pub(crate) pool: Pooling,
    pub(crate) quant: Option<ActQuant<'a>>,
}

pub(crate) struct Linear<'a> {
    pub(crate) input: Place,
    pub(crate) product: Product<'a>,
    pub(crate) activation: Activation,
    pub(crate) residual: Residual,
    pub(crate) quant: Option<ActQuant<'a>>,
}

/// What a linear layer's result is added to.
#[derive(Clone, Debug)]
pub(crate) enum Residual {
    None,
    /// What the output's place holds already.
    InPlace,
    From(Place),
}

/// A matrix product with everything but its input.
pub(crate) struct Product<'a> {
    pub(crate) shape: GemmShape,
    pub(crate) packed: &'a [u8],
    pub(crate) scale: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) correction: &'a [i32],
    /// `None` if every zero point is the centre.
    pub(crate) weight_zero: Option<&'a [i32]>,
}

/// Copies one row into the one row of its output.
pub(crate) struct SelectToken {
    pub(crate) input: Place,
    /// The lane that has the row, and which of its rows it is.
    pub(crate) owner: usize,
    pub(crate) row: usize,
}

pub(crate) struct Attention<'a> {
    pub(crate) qkv: Place,
    /// Keys and values of one head in the order of this CPU, where one lane
    /// has all rows.
    pub(crate) packed: Place,
    pub(crate) pack_len: usize,
    pub(crate) heads: usize,
    pub(crate) shape: HeadShape,
    bits: BitWidth,
    renormalise: bool,
    row_max: bool,
    shifts: bool,
    /// `[heads]`, and of v `[heads, head_dim]`.
    q_zero: &'a [u8],
    v_zero: &'a [u8],
    v_scale: &'a [f32],
    /// `[heads, 2^bits - 1]`, in 1/64 of a score step.
    thresholds: &'a [i32],
    /// `[heads, 2]`: octaves of a score step, value of multiplier 1.
    units: &'a [[f32; 2]],
    /// `[1 or heads, 2^bits]`.
    multipliers: &'a [i16],
    pub(crate) quant: ActQuant<'a>,
    /// Where the tokens are cut into cells: those of each shape.
    pub(crate) cells: Option<CellGroups<'a>>,
}

/// What differs between heads.
pub(crate) struct AttentionHead<'a> {
    pub(crate) q_zero: u8,
    pub(crate) v_zero: &'a [u8],
    pub(crate) v_scale: &'a [f32],
    pub(crate) softmax: SoftmaxCodes<'a>,
    /// Set where the session shifts instead of multiplying.
    pub(crate) shift: Option<ShiftForm>,
}

impl AttentionHead<'_> {
    pub(crate) fn method(&self) -> AttentionMethod<'_> {
        match &self.shift {
            None => AttentionMethod::Decode,
            Some(form) => AttentionMethod::Shift(form),
        }
    }
}

impl<'a> Attention<'a> {
    pub(crate) fn head(&self, head: usize) -> AttentionHead<'a> {
        let levels = usize::from(self.bits.max_code()) + 1;
        let multipliers = match self.multipliers.len() == levels {
            true => self.multipliers,
            false => &self.multipliers[head * levels..][..levels],
        };
        let [alpha, scale] = self.units[head];
        let of_v = head * self.shape.head_dim..(head + 1) * self.shape.head_dim;
        AttentionHead {
            q_zero: self.q_zero[head],
            v_zero: &self.v_zero[of_v.clone()],
            v_scale: &self.v_scale[of_v],
            softmax: SoftmaxCodes {
                bits: self.bits,
                thresholds: &self.thresholds[head * (levels - 1)..][..levels - 1],
                multipliers,
                kind: match self.row_max {
                    true => Kind::RowMax,
                    false => Kind::Static { alpha, scale },
                },
                renormalise: self.renormalise,
            },
            // Some hundred instructions, and 264 bytes less to keep.
            shift: match self.shifts {
                true => ShiftForm::from_multipliers(multipliers),
                false => None,
            },
        }
    }
}

/// Cells of one height and width.
pub(crate) struct CellGroup<'a> {
    pub(crate) shape: HeadShape,
    pub(crate) pack_len: usize,
    pub(crate) lines: Lines,
    /// The first token of each.
    pub(crate) first: &'a [u32],
    /// `[heads, bias_len]`, of each head as [`tpvit_kernels::Cells::bias`]; empty
    /// without a bias.
    bias: &'a [i32],
    bias_len: usize,
}

impl<'a> CellGroup<'a> {
    /// The bias of a head.
    pub(crate) fn bias(&self, head: usize) -> &'a [i32] {
        match self.bias {
            [] => &[],
            bias => &bias[head * self.bias_len..][..self.bias_len],
        }
    }
}

/// The cells of each shape, read when they are asked for.
#[derive(Clone)]
pub(crate) struct CellGroups<'a> {
    from: Reader<'a>,
    left: usize,
    whole: HeadShape,
    heads: usize,
}

impl<'a> Iterator for CellGroups<'a> {
    type Item = CellGroup<'a>;

    fn next(&mut self) -> Option<CellGroup<'a>> {
        self.left = self.left.checked_sub(1)?;
        let from = &mut self.from;
        let [tokens, pack_len, len, stride, count, bias_len] = from.words();
        Some(CellGroup {
            shape: HeadShape {
                tokens,
                ..self.whole
            },
            pack_len,
            lines: Lines { len, stride },
            first: from.array(count),
            bias: from.array(self.heads * bias_len),
            bias_len,
        })
    }
}

/// All steps in order.
#[derive(Clone)]
pub(crate) struct Steps<'a> {
    from: Reader<'a>,
    left: usize,
}

impl<'a> Steps<'a> {
    /// Those of an image, of which there are `count`; `file` has the weights that the
    /// image has not.
    pub(crate) fn new(image: &'a [u8], file: &'a [u8], count: usize) -> Steps<'a> {
        Steps {
            from: Reader::new(image, file),
            left: count,
        }
    }

    /// What there is to say of each, and where the rest of it begins.
    fn next_head(&mut self) -> Option<(Head, Reader<'a>)> {
        self.left = self.left.checked_sub(1)?;
        let [next] = self.from.words();
        let mut from = self.from;
        self.from.skip_to(next);
        Some((Head::read(&mut from), from))
    }

    /// The heads alone.
    pub(crate) fn heads(mut self) -> impl Iterator<Item = Head> {
        core::iter::from_fn(move || Some(self.next_head()?.0))
    }
}

impl<'a> Iterator for Steps<'a> {
    type Item = Step<'a>;

    fn next(&mut self) -> Option<Step<'a>> {
        let (head, mut from) = self.next_head()?;
        Some(Step::read(head, &mut from))
    }
}

impl Head {
    fn read(from: &mut Reader<'_>) -> Head {
        let [kind, start, end, output, rows, cols, coded] = from.words();
        let place = place(from);
        Head {
            kind: WorkKind::ALL[kind],
            rows: start..end,
            output: BufferId(output as u16),
            shape: [rows, cols],
            target: match coded {
                0 => Target::Floats(place),
                _ => Target::Codes(place),
            },
        }
    }
}

impl<'a> Step<'a> {
    fn read(head: Head, from: &mut Reader<'a>) -> Step<'a> {
        let codebook = match from.words() {
            [0] => None,
            [levels] => Some(ActCodebook {
                thresholds: from.array(levels - 1),
                levels: from.array(levels),
            }),
        };
        let work = match head.kind {
            WorkKind::PatchEmbed => Work::PatchEmbed(PatchEmbed::read(from)),
            WorkKind::LayerNorm => Work::LayerNorm(LayerNorm::read(from)),
            WorkKind::Linear => Work::Linear(Linear::read(from)),
            WorkKind::Attention => Work::Attention(Attention::read(from)),
            WorkKind::HeadNorm => Work::HeadNorm(HeadNorm::read(from)),
            WorkKind::Gate => Work::Gate(Gate::read(from)),
            WorkKind::SelectToken => Work::SelectToken(SelectToken::read(from)),
            WorkKind::Pool => Work::Pool(Pool::read(from)),
            WorkKind::Merge => Work::Merge(Rows::read(from)),
        };
        Step {
            head,
            codebook,
            work,
        }
    }
}

impl<'a> PatchEmbed<'a> {
    fn read(from: &mut Reader<'a>) -> PatchEmbed<'a> {
        let [height, width, image_width, prefix, position] = from.words();
        PatchEmbed {
            patch: [height, width],
            image_width,
            patches: place(from),
            product: Product::read(from),
            prefix: from.array(prefix),
            position: from.array(position),
        }
    }
}

impl<'a> LayerNorm<'a> {
    fn read(from: &mut Reader<'a>) -> LayerNorm<'a> {
        let input = place(from);
        let [cols, eps, grid_width, d] = from.words();
        LayerNorm {
            input,
            merge: (grid_width > 0).then_some(MergedRows { grid_width, d }),
            gamma: from.array(cols),
            beta: from.array(cols),
            eps: float(eps),
            quant: optional_quant(from),
        }
    }
}

impl<'a> Linear<'a> {
    fn read(from: &mut Reader<'a>) -> Linear<'a> {
        let input = place(from);
        let [gelu, residual] = from.words();
        let residual_place = place(from);
        Linear {
            input,
            activation: match gelu {
                0 => Activation::Identity,
                _ => Activation::Gelu,
            },
            residual: match residual {
                0 => Residual::None,
                1 => Residual::InPlace,
                _ => Residual::From(residual_place),
            },
            product: Product::read(from),
            quant: optional_quant(from),
        }
    }
}

impl<'a> Product<'a> {
    fn read(from: &mut Reader<'a>) -> Product<'a> {
        let [n, k, bits, act_max, packed_len] = from.words();
        let bias = from.array(n);
        let [has_zero, in_file, start] = from.words();
        Product {
            shape: GemmShape {
                n,
                k,
                weight_bits: width(bits),
                act_max: act_max as u8,
            },
            bias,
            packed: match in_file {
                0 => from.array(packed_len),
                _ => from.of_file(start, packed_len),
            },
            scale: from.array(n),
            correction: from.array(n),
            weight_zero: (has_zero != 0).then(|| from.array(n)),
        }
    }
}

impl<'a> Attention<'a> {
    fn read(from: &mut Reader<'a>) -> Attention<'a> {
        let (qkv, packed) = (place(from), place(from));
        let [pack_len, heads, tokens, head_dim, act_max] = from.words();
        let [bits, renormalise, row_max, shifts, codebooks] = from.words();
        let bits = width(bits);
        let levels = usize::from(bits.max_code()) + 1;
        let shape = HeadShape {
            tokens,
            head_dim,
            act_max: act_max as u8,
        };
        Attention {
            qkv,
            packed,
            pack_len,
            heads,
            shape,
            bits,
            renormalise: renormalise != 0,
            row_max: row_max != 0,
            shifts: shifts != 0,
            q_zero: from.array(heads),
            v_zero: from.array(heads * head_dim),
            v_scale: from.array(heads * head_dim),
            thresholds: from.array(heads * (levels - 1)),
            units: from.array(heads),
            multipliers: from.array(codebooks * levels),
            quant: quant(from),
            cells: match from.words() {
                [0] => None,
                [groups] => Some(CellGroups {
                    from: *from,
                    left: groups,
                    whole: shape,
                    heads,
                }),
            },
        }
    }
}

impl<'a> HeadNorm<'a> {
    fn read(from: &mut Reader<'a>) -> HeadNorm<'a> {
        let input = place(from);
        let [head_dim, eps] = from.words();
        HeadNorm {
            input,
            head_dim,
            gamma: from.array(2 * head_dim),
            beta: from.array(2 * head_dim),
            eps: float(eps),
            quant: quant(from),
        }
    }
}

impl<'a> Gate<'a> {
    fn read(from: &mut Reader<'a>) -> Gate<'a> {
        Gate {
            input: place(from),
            quant: optional_quant(from),
        }
    }
}

impl SelectToken {
    fn read(from: &mut Reader<'_>) -> SelectToken {
        let input = place(from);
        let [owner, row] = from.words();
        SelectToken { input, owner, row }
    }
}

impl<'a> Pool<'a> {
    fn read(from: &mut Reader<'a>) -> Pool<'a> {
        let input = Rows::read(from);
        let [start, end, concat] = from.words();
        Pool {
            input,
            tokens: start..end,
            pool: match concat {
                0 => Pooling::Mean,
                _ => Pooling::Concat,
            },
            quant: optional_quant(from),
        }
    }
}

impl Rows {
    fn read(from: &mut Reader<'_>) -> Rows {
        let place = place(from);
        let [count, cols] = from.words();
        Rows { place, count, cols }
    }
}

fn place(from: &mut Reader<'_>) -> Place {
    let [start, end] = from.words();
    start..end
}

fn float(bits: usize) -> f32 {
    f32::from_bits(bits as u32)
}

fn width(bits: usize) -> BitWidth {
    BitWidth::from_bits(bits as u32).expect("a width was written")
}

/// An activation quantizer, spread over the columns.
fn quant<'a>(from: &mut Reader<'a>) -> ActQuant<'a> {
    optional_quant(from).expect("a quantizer was written")
}

/// Nothing where there are no columns.
fn optional_quant<'a>(from: &mut Reader<'a>) -> Option<ActQuant<'a>> {
    let [cols, max_code] = from.words();
    (cols > 0).then(|| ActQuant {
        inv_scale: from.array(cols),
        zero_point: from.array(cols),
        max_code: max_code as u8,
    })
}

/// The columns `cols` of a quantizer.
pub(crate) fn quant_columns<'a>(quant: &ActQuant<'a>, cols: Range<usize>) -> ActQuant<'a> {
    ActQuant {
        inv_scale: &quant.inv_scale[cols.clone()],
        zero_point: &quant.zero_point[cols],
        max_code: quant.max_code,
    }
}
