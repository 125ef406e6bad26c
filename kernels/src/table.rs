//! The one door: a [`Kernels`] value proves that the CPU has its ISA.

use crate::{
    ActCodebook, ActQuant, AttentionMethod, BitWidth, Cells, GemmShape, HeadOutput, HeadRequant,
    HeadShape, Isa, KeysValues, MAX_K, Output, PanelLayout, PeakRun, Queries, Requant,
    SoftmaxCodes, arch,
};

/// The kernels of one ISA.
///
/// Every method checks the shapes it is given and panics where they disagree;
/// results equal [`reference`](crate::reference) bit for bit, on every ISA.
#[derive(Debug)]
pub struct Kernels {
    pub(crate) isa: Isa,
    pub(crate) functions: Functions,
}

/// One function per kernel. The `unsafe` ones need the ISA.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Functions {
    pub(crate) panels: fn(&GemmShape) -> PanelLayout,
    pub(crate) gemm_scratch_len: fn(&GemmShape, usize) -> usize,
    pub(crate) gemm: unsafe fn(GemmCall),
    pub(crate) row_sums: unsafe fn(&[u8], usize, &mut [i32]),
    pub(crate) layer_norm: unsafe fn(&NormCall, &mut [f32]),
    pub(crate) layer_norm_codes: unsafe fn(&NormCall, &ActQuant, &mut [u8]),
    pub(crate) quantize: unsafe fn(&[f32], usize, &ActQuant, &mut [u8]),
    pub(crate) snap: unsafe fn(&ActCodebook, &mut [u8]),
    pub(crate) gate: unsafe fn(&[f32], &[f32], &mut [f32]),
    pub(crate) add: unsafe fn(&[f32], &[f32], &mut [f32]),
    pub(crate) attention_pack_len: fn(&HeadShape) -> usize,
    pub(crate) attention_pack: unsafe fn(&HeadShape, &KeysValues, &mut [u8]),
    pub(crate) attention_scratch_len: fn(&HeadShape) -> usize,
    pub(crate) attention: unsafe fn(AttentionCall),
    pub(crate) peak: unsafe fn(u8, BitWidth, u64) -> PeakRun,
}

/// A checked matrix product.
pub(crate) struct GemmCall<'a> {
    pub(crate) shape: &'a GemmShape,
    pub(crate) m: usize,
    pub(crate) a: &'a [u8],      // [m, k]
    pub(crate) packed: &'a [u8], // [packed_len]
    pub(crate) requant: &'a Requant<'a>,
    pub(crate) a_row_sums: Option<&'a [i32]>, // [m]
    pub(crate) scratch: &'a mut [u8],         // [gemm_scratch_len]
    pub(crate) out: Output<'a>,
}

/// A checked layer normalisation.
pub(crate) struct NormCall<'a> {
    pub(crate) x: &'a [f32], // [m, d]
    pub(crate) d: usize,
    pub(crate) gamma: &'a [f32], // [d]
    pub(crate) beta: &'a [f32],  // [d]
    pub(crate) eps: f32,
}

/// A checked attention head.
pub(crate) struct AttentionCall<'a> {
    pub(crate) shape: &'a HeadShape,
    pub(crate) queries: &'a Queries<'a>,
    pub(crate) source: Source<'a>,
    pub(crate) softmax: &'a SoftmaxCodes<'a>,
    pub(crate) method: AttentionMethod<'a>,
    pub(crate) requant: &'a HeadRequant<'a>,
    pub(crate) scratch: &'a mut [u8], // [attention_scratch_len]
    pub(crate) out: HeadOutput<'a>,
}

/// Where the keys and values of an attention call are.
pub(crate) enum Source<'a> {
    /// One head, packed before: `[attention_pack_len]`.
    Packed(&'a [u8]),
    /// Cells, each packed into `packed`, `[attention_pack_len]`, when its turn comes.
    Cells {
        cells: &'a Cells<'a>,
        keys_values: &'a KeysValues<'a>,
        packed: &'a mut [u8],
    },
}

/// The kernels of `isa`, whether or not this CPU has it; `None` on another architecture.
fn compiled(isa: Isa) -> Option<&'static Kernels> {
    match isa {
        Isa::Portable => Some(&arch::portable::KERNELS),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => Some(&arch::x86_64::avx2::KERNELS),
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni => Some(&arch::x86_64::avxvnni::KERNELS),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => Some(&arch::x86_64::avx512vnni::KERNELS),
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => Some(&arch::aarch64::neon::KERNELS),
        #[cfg(target_arch = "aarch64")]
        Isa::Dotprod => Some(&arch::aarch64::dotprod::KERNELS),
        #[cfg(target_arch = "aarch64")]
        Isa::I8mm => Some(&arch::aarch64::i8mm::KERNELS),
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx2 | Isa::AvxVnni | Isa::Avx512Vnni => None,
        #[cfg(not(target_arch = "aarch64"))]
        Isa::Neon | Isa::Dotprod | Isa::I8mm => None,
    }
}

impl Kernels {
    /// The kernels of `isa`, if this CPU has it.
    pub fn for_isa(isa: Isa) -> Option<&'static Self> {
        if isa.is_available() {
            compiled(isa)
        } else {
            None
        }
    }

    /// The kernels of the fastest ISA this CPU has.
    pub fn best() -> &'static Self {
        Self::for_isa(Isa::best()).unwrap_or(&arch::portable::KERNELS)
    }

    /// The kernels of `isa`, taken on trust: for boards whose CPU a no_std build
    /// cannot ask. `None` if `isa` belongs to another architecture.
    ///
    /// # Safety
    /// The CPU must have every instruction of `isa`, and the system, if any,
    /// must save its registers.
    pub unsafe fn assume(isa: Isa) -> Option<&'static Self> {
        compiled(isa)
    }

    /// The ISA of these kernels.
    pub const fn isa(&self) -> Isa {
        self.isa
    }

    /// The order in which these kernels take the weights of `shape`:
    /// [`PanelLayout::of`] of this ISA.
    pub fn panel_layout(&self, shape: &GemmShape) -> PanelLayout {
        (self.functions.panels)(shape)
    }

    /// Bytes of the packed weights of `shape`; differs between ISAs.
    ///
    /// # Panics
    /// If `shape.k > MAX_K`.
    pub fn packed_len(&self, shape: &GemmShape) -> usize {
        check_k(shape);
        self.panel_layout(shape).packed_len(shape)
    }

    /// Re-orders dense weights ([`GemmShape::dense_len`]) for this ISA.
    ///
    /// `out` has [`packed_len`](Self::packed_len) bytes and is overwritten. It
    /// needs no alignment; 64 bytes is the fastest.
    ///
    /// # Panics
    /// If a length disagrees with `shape`, or `shape.k > MAX_K`.
    pub fn pack_weights(&self, shape: &GemmShape, dense: &[u8], out: &mut [u8]) {
        self.panel_layout(shape).pack(shape, dense, out);
    }

    /// Bytes of scratch for a product of up to `m` rows.
    ///
    /// # Panics
    /// If `shape.k > MAX_K`.
    pub fn gemm_scratch_len(&self, shape: &GemmShape, m: usize) -> usize {
        check_k(shape);
        (self.functions.gemm_scratch_len)(shape, m)
    }

    /// The product of `a` with packed weights, requantized into `out`:
    /// [`reference::gemm`](crate::reference::gemm).
    ///
    /// `a` is `[m, k]` row-major codes, each at most `shape.act_max`; `m` follows
    /// from its length, or from `out`'s where `k` is 0. `a_row_sums` is `[m]`
    /// ([`row_sums`](Self::row_sums)) and needed where `requant.weight_zero` is
    /// `Some`. Single-threaded; rows are independent, so a split of the rows over
    /// several calls gives the same bits.
    ///
    /// # Panics
    /// If a length disagrees with `shape`, the row sums are missing, the scratch
    /// is shorter than [`gemm_scratch_len`](Self::gemm_scratch_len), or
    /// `shape.k > MAX_K`.
    #[expect(
        clippy::too_many_arguments,
        reason = "operands, requantization, scratch, result"
    )]
    pub fn gemm(
        &self,
        shape: &GemmShape,
        a: &[u8],
        packed: &[u8],
        requant: &Requant,
        a_row_sums: Option<&[i32]>,
        scratch: &mut [u8],
        out: Output,
    ) {
        let m = a
            .len()
            .checked_div(shape.k)
            .unwrap_or_else(|| out.rows(shape.n));
        assert_eq!(a.len(), m * shape.k, "a is whole rows of k codes");
        assert_eq!(
            packed.len(),
            self.packed_len(shape),
            "packed has packed_len bytes"
        );
        assert!(
            scratch.len() >= self.gemm_scratch_len(shape, m),
            "scratch has gemm_scratch_len bytes"
        );
        requant.check(shape.n);
        out.check(m, shape.n);
        if requant.weight_zero.is_some() {
            assert!(a_row_sums.is_some(), "weight zero points need the row sums");
        }
        if let Some(sums) = a_row_sums {
            assert_eq!(sums.len(), m, "one row sum per row");
        }
        debug_assert!(
            a.iter().all(|&code| code <= shape.act_max),
            "an activation exceeds act_max"
        );
        let call = GemmCall {
            shape,
            m,
            a,
            packed,
            requant,
            a_row_sums,
            scratch,
            out,
        };
        // SAFETY: `self` exists only where the CPU has its ISA.
        unsafe { (self.functions.gemm)(call) }
    }

    /// `out[i] = sum over k of a[i, k]`; `a` is `[m, k]`, `out` is `[m]`.
    ///
    /// # Panics
    /// If `a` is not `out.len()` rows of `k` codes, or `k > MAX_K`.
    pub fn row_sums(&self, a: &[u8], k: usize, out: &mut [i32]) {
        assert!(k <= MAX_K, "k = {k} exceeds {MAX_K}");
        assert_eq!(a.len(), out.len() * k, "a is one row of k codes per sum");
        // SAFETY: `self` exists only where the CPU has its ISA.
        unsafe { (self.functions.row_sums)(a, k, out) }
    }

    /// Layer normalisation of the rows of `x` (`[m, d]`) into `out` (`[m, d]`):
    /// [`reference::layer_norm`](crate::reference::layer_norm).
    ///
    /// # Panics
    /// If a length disagrees with `m` and `d`.
    #[expect(clippy::too_many_arguments, reason = "they are the formula's")]
    pub fn layer_norm(
        &self,
        x: &[f32],
        m: usize,
        d: usize,
        gamma: &[f32],
        beta: &[f32],
        eps: f32,
        out: &mut [f32],
    ) {
        let call = NormCall {
            x,
            d,
            gamma,
            beta,
            eps,
        };
        call.check(m);
        assert_eq!(out.len(), m * d, "out is [m, d]");
        // SAFETY: `self` exists only where the CPU has its ISA.
        unsafe { (self.functions.layer_norm)(&call, out) }
    }

    /// Layer normalisation of the rows of `x` (`[m, d]`), quantized per channel
    /// into `out` (`[m, d]`).
    ///
    /// # Panics
    /// If a length disagrees with `m` and `d`.
    #[expect(clippy::too_many_arguments, reason = "they are the formula's")]
    pub fn layer_norm_codes(
        &self,
        x: &[f32],
        m: usize,
        d: usize,
        gamma: &[f32],
        beta: &[f32],
        eps: f32,
        quant: ActQuant,
        out: &mut [u8],
    ) {
        let call = NormCall {
            x,
            d,
            gamma,
            beta,
            eps,
        };
        call.check(m);
        quant.check(d);
        assert_eq!(out.len(), m * d, "out is [m, d]");
        // SAFETY: `self` exists only where the CPU has its ISA.
        unsafe { (self.functions.layer_norm_codes)(&call, &quant, out) }
    }

    /// `out[m, d] = code(x[m, d])`, one scale and zero point per column.
    ///
    /// # Panics
    /// If a length disagrees with `m` and `d`.
    pub fn quantize(&self, x: &[f32], m: usize, d: usize, quant: ActQuant, out: &mut [u8]) {
        assert_eq!(x.len(), m * d, "x is [m, d]");
        assert_eq!(out.len(), m * d, "out is [m, d]");
        quant.check(d);
        // SAFETY: `self` exists only where the CPU has its ISA.
        unsafe { (self.functions.quantize)(x, d, &quant, out) }
    }

    /// Moves codes of an 8-bit grid to the levels of a codebook:
    /// [`reference::snap`](crate::reference::snap).
    ///
    /// # Panics
    /// If the codebook is not that of a code of at most 4 bits, or its
    /// thresholds do not ascend.
    pub fn snap(&self, book: ActCodebook, codes: &mut [u8]) {
        book.check();
        // SAFETY: `self` exists only where the CPU has its ISA.
        unsafe { (self.functions.snap)(&book, codes) }
    }

    /// `out = silu(gates) * values`, element by element:
    /// [`reference::gate`](crate::reference::gate).
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn gate(&self, gates: &[f32], values: &[f32], out: &mut [f32]) {
        assert_eq!(gates.len(), out.len(), "gates and out have one length");
        assert_eq!(values.len(), out.len(), "values and out have one length");
        // SAFETY: `self` exists only where the CPU has its ISA.
        unsafe { (self.functions.gate)(gates, values, out) }
    }

    /// `out = x + y`, element by element.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add(&self, x: &[f32], y: &[f32], out: &mut [f32]) {
        assert_eq!(x.len(), out.len(), "x and out have one length");
        assert_eq!(y.len(), out.len(), "y and out have one length");
        // SAFETY: `self` exists only where the CPU has its ISA.
        unsafe { (self.functions.add)(x, y, out) }
    }

    /// Bytes of the packed keys and values of a head; differs between ISAs.
    ///
    /// # Panics
    /// If `shape` exceeds [`MAX_HEAD_DIM`](crate::MAX_HEAD_DIM) or
    /// [`MAX_TOKENS`](crate::MAX_TOKENS).
    pub fn attention_pack_len(&self, shape: &HeadShape) -> usize {
        shape.check();
        (self.functions.attention_pack_len)(shape)
    }

    /// Re-orders the keys and values of one head for this ISA, once per head;
    /// [`attention`](Self::attention) then takes any rows on any thread.
    ///
    /// # Panics
    /// If a length disagrees with `shape`, or `shape` exceeds its bounds.
    pub fn attention_pack(&self, shape: &HeadShape, keys_values: &KeysValues, out: &mut [u8]) {
        assert_eq!(
            out.len(),
            self.attention_pack_len(shape),
            "out has attention_pack_len bytes"
        );
        keys_values.check(shape);
        // SAFETY: `self` exists only where the CPU has its ISA.
        unsafe { (self.functions.attention_pack)(shape, keys_values, out) }
    }

    /// Bytes of scratch for an attention call, whatever its number of rows.
    ///
    /// # Panics
    /// If `shape` exceeds its bounds.
    pub fn attention_scratch_len(&self, shape: &HeadShape) -> usize {
        shape.check();
        (self.functions.attention_scratch_len)(shape)
    }

    /// One attention head for some query rows:
    /// [`reference::attention`](crate::reference::attention).
    ///
    /// `packed` comes from [`attention_pack`](Self::attention_pack). Row `i` of
    /// `queries` becomes columns `col .. col + head_dim` of row `i` of `out`;
    /// other columns are left alone. Both methods give the same bits. With no
    /// tokens every sum is 0.
    ///
    /// # Panics
    /// If a length disagrees with `shape`, the scratch is shorter than
    /// [`attention_scratch_len`](Self::attention_scratch_len), the tables of
    /// `softmax` are malformed or could overflow an `i32`, or a
    /// [`ShiftForm`](crate::ShiftForm) is not that of the multipliers.
    #[expect(
        clippy::too_many_arguments,
        reason = "operands, tables, scratch, result"
    )]
    pub fn attention(
        &self,
        shape: &HeadShape,
        queries: &Queries,
        packed: &[u8],
        softmax: &SoftmaxCodes,
        method: AttentionMethod,
        requant: &HeadRequant,
        scratch: &mut [u8],
        out: HeadOutput,
    ) {
        assert_eq!(
            packed.len(),
            self.attention_pack_len(shape),
            "packed has attention_pack_len bytes"
        );
        self.run_attention(AttentionCall {
            shape,
            queries,
            source: Source::Packed(packed),
            softmax,
            method,
            requant,
            scratch,
            out,
        });
    }

    /// One attention head in equal cells of a grid of tokens: in each,
    /// [`reference::attention`](crate::reference::attention) of its own tokens.
    ///
    /// `shape.tokens` are those of a cell. `keys_values.rows` is the whole grid;
    /// its `lines` are not looked at. Row `i` of `queries` and of `out` is token
    /// `cells.own.start + i`. `packed` is where the keys and values of one cell
    /// are re-ordered, [`attention_pack_len`](Self::attention_pack_len) bytes.
    ///
    /// # Panics
    /// As [`attention`](Self::attention), or if a cell lies outside the grid.
    #[expect(
        clippy::too_many_arguments,
        reason = "operands, tables, scratch, result"
    )]
    pub fn attention_cells(
        &self,
        shape: &HeadShape,
        cells: &Cells,
        queries: &Queries,
        keys_values: &KeysValues,
        softmax: &SoftmaxCodes,
        method: AttentionMethod,
        requant: &HeadRequant,
        packed: &mut [u8],
        scratch: &mut [u8],
        out: HeadOutput,
    ) {
        assert_eq!(
            packed.len(),
            self.attention_pack_len(shape),
            "packed has attention_pack_len bytes"
        );
        keys_values.check_columns(shape.head_dim);
        let rows = keys_values
            .rows
            .len()
            .checked_div(keys_values.row_stride)
            .unwrap_or(0);
        cells.check(shape, queries.len(), rows);
        self.run_attention(AttentionCall {
            shape,
            queries,
            source: Source::Cells {
                cells,
                keys_values,
                packed,
            },
            softmax,
            method,
            requant,
            scratch,
            out,
        });
    }

    fn run_attention(&self, call: AttentionCall) {
        let (shape, softmax) = (call.shape, call.softmax);
        assert!(
            call.scratch.len() >= self.attention_scratch_len(shape),
            "scratch has attention_scratch_len bytes"
        );
        call.queries.check(shape.head_dim);
        softmax.check(shape.tokens);
        if let AttentionMethod::Shift(form) = call.method {
            form.check(softmax.multipliers);
        }
        call.requant.check(shape.head_dim);
        call.out.check(call.queries.len(), shape.head_dim);
        // SAFETY: `self` exists only where the CPU has its ISA.
        unsafe { (self.functions.attention)(call) }
    }

    /// Executes `rounds` rounds of the instructions by which this ISA multiplies
    /// activations up to `act_max` by weights of `weight_bits`, on registers alone:
    /// timed, the rate that no product of these operands can exceed on one core.
    ///
    /// A round is some thousand to some hundred thousand multiply-accumulates;
    /// [`PeakRun::macs`] counts them.
    pub fn peak(&self, act_max: u8, weight_bits: BitWidth, rounds: u64) -> PeakRun {
        // SAFETY: `self` exists only where the CPU has its ISA.
        unsafe { (self.functions.peak)(act_max, weight_bits, rounds) }
    }
}

fn check_k(shape: &GemmShape) {
    assert!(shape.k <= MAX_K, "k = {} exceeds {MAX_K}", shape.k);
}

impl NormCall<'_> {
    fn check(&self, m: usize) {
        assert_eq!(self.x.len(), m * self.d, "x is [m, d]");
        assert_eq!(self.gamma.len(), self.d, "gamma has one entry per channel");
        assert_eq!(self.beta.len(), self.d, "beta has one entry per channel");
    }
}
