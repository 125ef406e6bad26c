//! The forward pass of one lane.
//!
//! One operation after the other, each on the rows that this lane owns. An
//! operation reads and writes disjoint places of the lane's two arenas (floats
//! and codes), all allocated beforehand; where it needs rows of other lanes,
//! they meet and [`Exchange`] has them.

use alloc::vec::Vec;
use core::ops::Range;

use tpvit_kernels::{
    ActCodebook, HeadOutput, HeadRequant, Kernels, KeysValues, Lines, Output, Queries, Requant,
};
use tpvit_models::{Activation, Codebook, Program};

use crate::aligned::Aligned;
use crate::compile::{
    Attention, LayerNorm, Linear, PatchEmbed, Product, Residual, SelectToken, Sizes, Step, Target,
    Work,
};
use crate::lanes::{Exchange, Part, Shared, share};
use crate::plan::Place;
use crate::session::{Observer, View};

/// What all lanes of a session read.
pub(crate) struct Network {
    pub(crate) kernels: &'static Kernels,
    pub(crate) program: Program,
    pub(crate) sizes: Sizes,
    pub(crate) steps: Vec<Step>,
}

/// Everything a lane writes.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) floats: Aligned<f32>,
    bytes: Aligned<u8>,
    sums: Aligned<i32>,
    scratch: Aligned<u8>,
}

impl Memory {
    /// A lane's memory.
    pub(crate) fn new(sizes: Sizes) -> Memory {
        Memory {
            floats: Aligned::zeroed(sizes.floats_len),
            bytes: Aligned::zeroed(sizes.bytes_len),
            sums: Aligned::zeroed(sizes.sums_len),
            scratch: Aligned::zeroed(sizes.scratch_len),
        }
    }
}

/// One lane of a run.
pub(crate) struct Lane<'a> {
    pub(crate) network: &'a Network,
    pub(crate) index: usize,
    pub(crate) memory: &'a mut Memory,
    /// `None` where there is no other lane.
    pub(crate) exchange: Option<&'a Exchange>,
}

impl Lane<'_> {
    /// Runs every operation on this lane's rows of one picture.
    pub(crate) fn forward(&mut self, pixels: &[u8]) {
        let network = self.network;
        for step in &network.steps {
            self.step(step).run(pixels);
        }
    }

    /// As [`forward`](Lane::forward); after each operation `observer`, which
    /// lane 0 has, sees the rows of all lanes.
    pub(crate) fn forward_observed(
        &mut self,
        pixels: &[u8],
        mut observer: Option<&mut dyn Observer>,
    ) {
        let network = self.network;
        for (index, step) in network.steps.iter().enumerate() {
            let mut run = self.step(step);
            run.run(pixels);
            let observer = observer.as_deref_mut();
            run.observe(observer.map(|observer| {
                |view: View<'_>| observer.after(index, step.output, step.rows.clone(), view)
            }));
        }
    }

    fn step<'s>(&'s mut self, step: &'s Step) -> Run<'s> {
        let buffer = &self.network.program.buffers[step.output.index()];
        let own = share(buffer.rows, self.index, self.network.sizes.lanes);
        let start = step.rows.start.clamp(own.start, own.end);
        Run {
            kernels: self.network.kernels,
            image_width: self.network.program.image[1],
            step,
            rows: start..step.rows.end.clamp(start, own.end),
            own,
            index: self.index,
            lanes: self.network.sizes.lanes,
            cols: buffer.cols,
            memory: self.memory,
            exchange: self.exchange,
        }
    }
}

/// One operation of one lane.
struct Run<'a> {
    kernels: &'static Kernels,
    /// Of the picture, in pixels.
    image_width: usize,
    step: &'a Step,
    /// The rows of the output to compute here, numbered as in the whole buffer.
    rows: Range<usize>,
    /// The rows of the output that are this lane's, computed or not.
    own: Range<usize>,
    index: usize,
    lanes: usize,
    /// Columns of the output.
    cols: usize,
    memory: &'a mut Memory,
    exchange: Option<&'a Exchange>,
}

impl Run<'_> {
    fn run(&mut self, pixels: &[u8]) {
        let step = self.step;
        if self.rows.is_empty() && !step.work.meets() {
            return;
        }
        match &step.work {
            Work::PatchEmbed(work) => self.patch_embed(work, pixels),
            Work::LayerNorm(work) => self.layer_norm(work),
            Work::Linear(work) => self.linear(work),
            Work::Attention(work) => self.attention(work),
            Work::SelectToken(work) => self.select_token(work),
        }
        self.snap();
    }

    /// Moves the codes just written to the levels of their codebook, if they
    /// have one: the operations themselves know nothing but uniform codes.
    fn snap(&mut self) {
        if let Some(Codebook { thresholds, levels }) = &self.step.codebook {
            let book = ActCodebook { thresholds, levels };
            let output = self.output();
            self.kernels.snap(book, &mut self.memory.bytes[output]);
        }
    }

    /// The computed rows of a buffer with `cols` columns, of which the lane
    /// has its rows at `place`.
    fn part(&self, place: &Place, cols: usize) -> Range<usize> {
        let at = |row: usize| place.start + (row - self.own.start) * cols;
        at(self.rows.start)..at(self.rows.end)
    }

    /// The computed rows of the output.
    fn output(&self) -> Range<usize> {
        let (Target::Codes(place) | Target::Floats(place)) = &self.step.target;
        self.part(place, self.cols)
    }

    /// Shows the output: this lane's rows if there is no other, else all lanes'.
    fn observe(&self, look: Option<impl FnOnce(View<'_>)>) {
        let own = self.output();
        let Some(exchange) = self.exchange else {
            if let Some(look) = look {
                look(match self.step.target {
                    Target::Codes(_) => View::Codes(&self.memory.bytes[own]),
                    Target::Floats(_) => View::Floats(&self.memory.floats[own]),
                });
            }
            return;
        };
        let len = self.step.rows.len() * self.cols;
        let start = self.rows.start.saturating_sub(self.step.rows.start) * self.cols;
        let start = start.min(len); // of a lane that has none of these rows
        let part = match self.step.target {
            Target::Codes(_) => Part::Codes {
                start,
                codes: &self.memory.bytes[own],
            },
            Target::Floats(_) => Part::Floats {
                start,
                floats: &self.memory.floats[own],
            },
        };
        exchange.observe(
            len,
            part,
            look.map(|look| {
                move |all: &Shared| {
                    look(match self.step.target {
                        Target::Codes(_) => View::Codes(&all.codes[..len]),
                        Target::Floats(_) => View::Floats(&all.floats[..len]),
                    })
                }
            }),
        );
    }

    /// Gathers the patches of its rows, `(y, x, channel)` each, then projects
    /// them. The first rows are no patches.
    fn patch_embed(&mut self, work: &PatchEmbed, pixels: &[u8]) {
        let (d, k) = (self.cols, work.product.shape.k);
        let output = self.output();
        let (bytes, floats) = (&mut self.memory.bytes, &mut self.memory.floats);
        let prefix_rows = work.prefix.len() / d;
        let prefix = self.rows.start.min(prefix_rows)..self.rows.end.min(prefix_rows);
        let patches = self.rows.start.max(prefix_rows) - prefix_rows
            ..self.rows.end.max(prefix_rows) - prefix_rows;

        let (prefix_out, out) = floats[output].split_at_mut(prefix.len() * d);
        prefix_out.copy_from_slice(&work.prefix[prefix.start * d..prefix.end * d]);
        let a = &mut bytes[work.patches.start..][..patches.len() * k];
        gather_patches(work.patch, self.image_width, pixels, patches.start, a);
        let out = match work.position.as_slice() {
            [] => Output::F32 { out },
            position => Output::Residual {
                residual: &position[patches.start * d..patches.end * d],
                out,
            },
        };
        let (sums, scratch) = (&mut self.memory.sums, &mut self.memory.scratch);
        work.product.run(self.kernels, a, sums, scratch, out);
    }

    fn layer_norm(&mut self, work: &LayerNorm) {
        let (m, d) = (self.rows.len(), self.cols);
        let (input, output) = (self.part(&work.input, d), self.output());
        let (gamma, beta, eps) = (&work.gamma, &work.beta, work.eps);
        match &work.quant {
            Some(quant) => {
                let x = &self.memory.floats[input];
                let out = &mut self.memory.bytes[output];
                self.kernels
                    .layer_norm_codes(x, m, d, gamma, beta, eps, quant.all(), out);
            }
            None => {
                let (x, out) = two(&mut self.memory.floats, input, output);
                self.kernels.layer_norm(x, m, d, gamma, beta, eps, out);
            }
        }
    }

    fn linear(&mut self, work: &Linear) {
        let (k, n) = (work.product.shape.k, self.cols);
        let (input, output) = (self.part(&work.input, k), self.output());
        let residual = match &work.residual {
            Residual::From(place) => Some(self.part(place, n)),
            Residual::None | Residual::InPlace => None,
        };
        let Memory {
            floats,
            bytes,
            sums,
            scratch,
        } = &mut *self.memory;
        let (a, out) = match (&work.quant, &work.residual, work.activation) {
            (Some(quant), _, activation) => {
                let (a, out) = two(bytes, input, output);
                let quant = quant.all();
                let out = match activation {
                    Activation::Identity => Output::Codes { out, quant },
                    Activation::Gelu => Output::GeluCodes { out, quant },
                };
                (a, out)
            }
            (None, Residual::InPlace, _) => {
                let inout = &mut floats[output];
                (&bytes[input], Output::Accumulate { inout })
            }
            (None, Residual::None | Residual::From(_), activation) => {
                let out = match (residual, activation) {
                    (Some(residual), _) => {
                        let (residual, out) = two(floats, residual, output);
                        Output::Residual { residual, out }
                    }
                    (None, Activation::Identity) => Output::F32 {
                        out: &mut floats[output],
                    },
                    (None, Activation::Gelu) => Output::Gelu {
                        out: &mut floats[output],
                    },
                };
                (&bytes[input], out)
            }
        };
        work.product.run(self.kernels, a, sums, scratch, out);
    }

    /// Puts this lane's keys and values where all lanes find them, packs its
    /// share of the heads, then takes its query rows through all heads.
    fn attention(&mut self, work: &Attention) {
        let d = self.cols;
        let own = work.qkv.start..work.qkv.start + self.own.len() * 3 * d;
        let queries = self.part(&work.qkv, 3 * d);
        let queries = queries.start - own.start..queries.end - own.start;
        let output = self.output();
        let [qkv, packed, out] = self
            .memory
            .bytes
            .get_disjoint_mut([own, work.packed.clone(), output])
            .expect("the plan keeps buffers of one step apart");
        let mut heads = Heads {
            kernels: self.kernels,
            work,
            d,
            queries: &qkv[queries],
            scratch: &mut self.memory.scratch,
            out,
        };
        let head_dim = work.shape.head_dim;
        let count = work.heads.len();
        let Some(exchange) = self.exchange else {
            for head in 0..count {
                let keys_values = KeysValues {
                    rows: qkv,
                    row_stride: 3 * d,
                    lines: Lines::ONE,
                    k_col: d + head * head_dim,
                    v_col: 2 * d + head * head_dim,
                };
                // Still in a near cache while its queries pass.
                self.kernels
                    .attention_pack(&work.shape, &keys_values, packed);
                heads.attend(head, packed);
            }
            return;
        };
        let own_heads = share(count, self.index, self.lanes);
        let place = self.own.start * 2 * head_dim..self.own.end * 2 * head_dim;
        for head in (own_heads.start..count).chain(0..own_heads.start) {
            exchange.put_head(head, |rows| {
                let rows = rows[place.clone()].chunks_exact_mut(2 * head_dim);
                for (to, from) in rows.zip(qkv.chunks_exact(3 * d)) {
                    let (k, v) = to.split_at_mut(head_dim);
                    k.copy_from_slice(&from[d + head * head_dim..][..head_dim]);
                    v.copy_from_slice(&from[2 * d + head * head_dim..][..head_dim]);
                }
            });
        }
        exchange.meet();
        for head in own_heads {
            exchange.pack_head(head, |rows, packed| {
                let keys_values = KeysValues {
                    rows: &rows[..work.shape.tokens * 2 * head_dim],
                    row_stride: 2 * head_dim,
                    lines: Lines::ONE,
                    k_col: 0,
                    v_col: head_dim,
                };
                let packed = &mut packed[..work.pack_len];
                self.kernels
                    .attention_pack(&work.shape, &keys_values, packed);
            });
        }
        exchange.meet();
        if self.rows.is_empty() {
            return;
        }
        for head in 0..count {
            exchange.packed_head(head, |packed| heads.attend(head, &packed[..work.pack_len]));
        }
    }

    fn select_token(&mut self, work: &SelectToken) {
        let start = work.input.start + work.row * self.cols;
        let row = start..start + self.cols;
        if work.owner == 0 {
            let output = self.output();
            self.memory.floats.copy_within(row, output.start);
            return;
        }
        let exchange = self.exchange.expect("lane 0 is not the only one");
        if self.index == work.owner {
            exchange.put_row(&self.memory.floats[row]);
        }
        exchange.meet();
        if !self.rows.is_empty() {
            let output = self.output();
            exchange.get_row(&mut self.memory.floats[output]);
        }
        exchange.meet(); // before the next row is put in its place
    }
}

/// Attention of some query rows, head by head.
struct Heads<'a> {
    kernels: &'static Kernels,
    work: &'a Attention,
    d: usize,
    queries: &'a [u8],     // [m, 3 * d]
    scratch: &'a mut [u8], // [attention_scratch_len]
    out: &'a mut [u8],     // [m, d]
}

impl Heads<'_> {
    /// The columns of one head of the output.
    fn attend(&mut self, head: usize, packed: &[u8]) {
        let (work, this) = (self.work, &self.work.heads[head]);
        let head_dim = work.shape.head_dim;
        let col = head * head_dim;
        let queries = Queries {
            rows: self.queries,
            row_stride: 3 * self.d,
            col,
            zero: this.q_zero,
        };
        let requant = HeadRequant {
            v_zero: &this.v_zero,
            v_scale: &this.v_scale,
            quant: work.quant.columns(col..col + head_dim),
        };
        self.kernels.attention(
            &work.shape,
            &queries,
            packed,
            &work.softmax(head),
            work.method(head),
            &requant,
            self.scratch,
            HeadOutput {
                rows: self.out,
                row_stride: self.d,
                col,
            },
        );
    }
}

impl Product {
    /// `output` of `a * weight^T`, `a` being `[m, k]` codes.
    fn run(
        &self,
        kernels: &Kernels,
        a: &[u8],
        sums: &mut [i32],
        scratch: &mut [u8],
        output: Output<'_>,
    ) {
        let k = self.shape.k;
        let m = a.len() / k;
        let weight_zero = self.weight_zero.as_deref();
        let row_sums = weight_zero.map(|_| {
            kernels.row_sums(a, k, &mut sums[..m]);
            &sums[..m]
        });
        let requant = Requant {
            scale: &self.scale,
            bias: &self.bias,
            correction: &self.correction,
            weight_zero,
        };
        kernels.gemm(
            &self.shape,
            a,
            &self.packed,
            &requant,
            row_sums,
            scratch,
            output,
        );
    }
}

/// A place to read and a place to write, of one arena.
fn two<T>(arena: &mut [T], read: Range<usize>, write: Range<usize>) -> (&[T], &mut [T]) {
    let [read, write] = arena
        .get_disjoint_mut([read, write])
        .expect("the plan keeps buffers of one step apart");
    (read, write)
}

/// `out[i, :]` = the pixels of patch `first + i`, row by row.
fn gather_patches(patch: [usize; 2], width: usize, pixels: &[u8], first: usize, out: &mut [u8]) {
    let [patch_h, patch_w] = patch;
    let (line, run) = (width * 3, patch_w * 3);
    let across = width / patch_w;
    for (g, out) in (first..).zip(out.chunks_exact_mut(patch_h * run)) {
        let start = (g / across) * patch_h * line + (g % across) * run;
        for (y, out) in out.chunks_exact_mut(run).enumerate() {
            out.copy_from_slice(&pixels[start + y * line..][..run]);
        }
    }
}
