//! The forward pass of one lane.
//!
//! One operation after the other, each on the rows that this lane owns. An
//! operation reads and writes disjoint places of the lane's two arenas (floats
//! and codes), all allocated beforehand; where it needs rows of other lanes,
//! they meet and [`Exchange`] has them.

use alloc::borrow::Cow;
use core::ops::Range;

use tpvit_kernels::{
    Cells, HeadOutput, HeadRequant, Kernels, KeysValues, Lines, Output, Queries, Requant,
};
use tpvit_models::program::merged_tokens;
use tpvit_models::{Activation, Pooling, Program};

use crate::block::{Block, cut};
use crate::compile::Sizes;
use crate::lanes::{Exchange, Part, Shared, share};
use crate::plan::Place;
use crate::session::{Observer, View};
use crate::step::{
    Attention, AttentionHead, CellGroup, CellGroups, Gate, HeadNorm, LayerNorm, Linear, MergedRows,
    PatchEmbed, Pool, Product, Residual, Rows, SelectToken, Step, Steps, Target, Work,
    quant_columns,
};

/// What all lanes of a session read.
pub(crate) struct Network<'m> {
    pub(crate) kernels: &'static Kernels,
    pub(crate) program: Cow<'m, Program>,
    pub(crate) sizes: Sizes,
    pub(crate) image: Block<'m>,
    /// The model's file, if weights are read where it has them; else nothing.
    pub(crate) file: &'m [u8],
}

impl Network<'_> {
    pub(crate) fn steps(&self) -> Steps<'_> {
        Steps::new(&self.image, self.file, self.sizes.steps)
    }
}

/// Everything a lane writes.
pub(crate) struct Memory<'a> {
    pub(crate) floats: &'a mut [f32],
    bytes: &'a mut [u8],
    sums: &'a mut [i32],
    scratch: &'a mut [u8],
    row: &'a mut [f32],
}

impl<'a> Memory<'a> {
    /// Divides a lane's arena.
    pub(crate) fn of(mut arena: &'a mut [u8], sizes: &Sizes) -> Memory<'a> {
        Memory {
            floats: cut(&mut arena, sizes.floats_len),
            bytes: cut(&mut arena, sizes.bytes_len),
            sums: cut(&mut arena, sizes.sums_len),
            scratch: cut(&mut arena, sizes.scratch_len),
            row: cut(&mut arena, sizes.row_len),
        }
    }
}

/// One lane of a run.
pub(crate) struct Lane<'a> {
    pub(crate) network: &'a Network<'a>,
    pub(crate) index: usize,
    pub(crate) memory: Memory<'a>,
    /// `None` where there is no other lane.
    pub(crate) exchange: Option<&'a Exchange>,
}

impl<'a> Lane<'a> {
    /// Runs every operation on this lane's rows of one picture.
    pub(crate) fn forward(&mut self, pixels: &[u8]) {
        let network = self.network;
        for step in network.steps() {
            self.step(&step).run(pixels);
        }
        self.give_result();
    }

    /// Gives this lane's rows of the result to the others, where it has more
    /// rows than lane 0's.
    fn give_result(&mut self) {
        if self.network.sizes.shared_result == 0 {
            return;
        }
        let Some(exchange) = self.exchange else {
            return;
        };
        let last = self.network.steps().last();
        let last = last.expect("a program has operations");
        let run = self.step(&last);
        let rows = run.output();
        exchange.put_floats(run.own.start * run.cols, &run.memory.floats[rows]);
        exchange.meet();
    }

    /// As [`forward`](Lane::forward); after each operation `observer`, which
    /// lane 0 has, sees the rows of all lanes.
    pub(crate) fn forward_observed(
        &mut self,
        pixels: &[u8],
        mut observer: Option<&mut dyn Observer>,
    ) {
        let network = self.network;
        for (index, step) in network.steps().enumerate() {
            let mut run = self.step(&step);
            run.run(pixels);
            if let Work::Merge(_) = step.work {
                continue; // it writes nothing
            }
            let observer = observer.as_deref_mut();
            run.observe(observer.map(|observer| {
                |view: View<'_>| {
                    observer.after(index, step.head.output, step.head.rows.clone(), view);
                }
            }));
        }
        self.give_result();
    }

    fn step<'s>(&'s mut self, step: &'s Step<'s>) -> Run<'s, 'a> {
        let [rows, cols] = step.head.shape;
        let own = share(rows, self.index, self.network.sizes.lanes);
        let start = step.head.rows.start.clamp(own.start, own.end);
        Run {
            kernels: self.network.kernels,
            step,
            rows: start..step.head.rows.end.clamp(start, own.end),
            own,
            index: self.index,
            lanes: self.network.sizes.lanes,
            cols,
            memory: &mut self.memory,
            exchange: self.exchange,
        }
    }
}

/// One operation of one lane.
struct Run<'a, 'm> {
    kernels: &'static Kernels,
    step: &'a Step<'a>,
    /// The rows of the output to compute here, numbered as in the whole buffer.
    rows: Range<usize>,
    /// The rows of the output that are this lane's, computed or not.
    own: Range<usize>,
    index: usize,
    lanes: usize,
    /// Columns of the output.
    cols: usize,
    memory: &'a mut Memory<'m>,
    exchange: Option<&'a Exchange>,
}

impl Run<'_, '_> {
    fn run(&mut self, pixels: &[u8]) {
        let step = self.step;
        if self.rows.is_empty() && !step.work.meets() {
            return;
        }
        match &step.work {
            Work::PatchEmbed(work) => self.patch_embed(work, pixels),
            Work::LayerNorm(work) => self.layer_norm(work),
            Work::Linear(work) => self.linear(work),
            Work::Attention(work) => match &work.cells {
                None => self.attention(work),
                Some(cells) => self.window_attention(work, cells),
            },
            Work::HeadNorm(work) => self.head_norm(work),
            Work::Gate(work) => self.gate(work),
            Work::SelectToken(work) => self.select_token(work),
            Work::Pool(work) => self.pool(work),
            Work::Merge(rows) => self.give(rows, 0..rows.count),
        }
        self.snap();
    }

    /// Moves the codes just written to the levels of their codebook, if they
    /// have one: the operations themselves know nothing but uniform codes.
    fn snap(&mut self) {
        if let Some(book) = self.step.codebook {
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
        let (Target::Codes(place) | Target::Floats(place)) = &self.step.head.target;
        self.part(place, self.cols)
    }

    /// Shows the output: this lane's rows if there is no other, else all lanes'.
    fn observe(&self, look: Option<impl FnOnce(View<'_>)>) {
        let own = self.output();
        let Some(exchange) = self.exchange else {
            if let Some(look) = look {
                look(match self.step.head.target {
                    Target::Codes(_) => View::Codes(&self.memory.bytes[own]),
                    Target::Floats(_) => View::Floats(&self.memory.floats[own]),
                });
            }
            return;
        };
        let len = self.step.head.rows.len() * self.cols;
        let start = self.rows.start.saturating_sub(self.step.head.rows.start) * self.cols;
        let start = start.min(len); // of a lane that has none of these rows
        let part = match self.step.head.target {
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
                    look(match self.step.head.target {
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
        gather_patches(work.patch, work.image_width, pixels, patches.start, a);
        let out = match work.position {
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
        if let Some(merge) = &work.merge {
            self.merge_norm(work, merge);
            return;
        }
        let (m, d) = (self.rows.len(), self.cols);
        let (input, output) = (self.part(&work.input, d), self.output());
        let (gamma, beta, eps) = (work.gamma, work.beta, work.eps);
        match work.quant {
            Some(quant) => {
                let x = &self.memory.floats[input];
                let out = &mut self.memory.bytes[output];
                self.kernels
                    .layer_norm_codes(x, m, d, gamma, beta, eps, quant, out);
            }
            None => {
                let (x, out) = two(self.memory.floats, input, output);
                self.kernels.layer_norm(x, m, d, gamma, beta, eps, out);
            }
        }
    }

    /// Normalises rows that are four rows of another buffer, each gathered when
    /// its turn comes.
    fn merge_norm(&mut self, work: &LayerNorm, merge: &MergedRows) {
        let output = self.output();
        let (rows, cols, kernels) = (self.rows.clone(), self.cols, self.kernels);
        let Memory {
            floats, bytes, row, ..
        } = &mut *self.memory;
        let row = &mut row[..cols];
        let gather = |number: usize, from: &[f32], row: &mut [f32]| {
            let (width, d) = (merge.grid_width, merge.d);
            let tokens = merged_tokens(width, number);
            for (token, to) in tokens.into_iter().zip(row.chunks_exact_mut(d)) {
                to.copy_from_slice(&from[token * d..][..d]);
            }
        };
        let (gamma, beta, eps) = (work.gamma, work.beta, work.eps);
        let mut norm = |from: &[f32], out: &mut [f32], bytes: &mut [u8]| {
            for (i, number) in rows.clone().enumerate() {
                gather(number, from, row);
                let at = output.start + i * cols..output.start + (i + 1) * cols;
                match work.quant {
                    Some(quant) => {
                        let (quant, out) = (quant, &mut bytes[at]);
                        kernels.layer_norm_codes(row, 1, cols, gamma, beta, eps, quant, out);
                    }
                    None => {
                        let out = &mut out[i * cols..(i + 1) * cols];
                        kernels.layer_norm(row, 1, cols, gamma, beta, eps, out);
                    }
                }
            }
        };
        match (self.exchange, &work.quant) {
            (None, Some(_)) => norm(&floats[work.input.clone()], &mut [], bytes),
            (None, None) => {
                let (from, out) = two(floats, work.input.clone(), output.clone());
                norm(from, out, bytes);
            }
            (Some(exchange), Some(_)) => {
                exchange.floats(|from| norm(from, &mut [], bytes));
                exchange.meet();
            }
            (Some(exchange), None) => {
                let out = &mut floats[output.clone()];
                exchange.floats(|from| norm(from, out, bytes));
                exchange.meet();
            }
        }
    }

    /// Lets the other lanes see those of `wanted` that are this lane's rows.
    fn give(&mut self, rows: &Rows, wanted: Range<usize>) {
        let Some(exchange) = self.exchange else {
            return;
        };
        let own = share(rows.count, self.index, self.lanes);
        let start = wanted.start.clamp(own.start, own.end);
        let end = wanted.end.clamp(start, own.end);
        if start < end {
            let from = rows.place.start + (start - own.start) * rows.cols;
            let part = &self.memory.floats[from..][..(end - start) * rows.cols];
            exchange.put_floats((start - wanted.start) * rows.cols, part);
        }
        exchange.meet();
    }

    fn head_norm(&mut self, work: &HeadNorm) {
        let (d, head_dim) = (self.cols / 3, work.head_dim);
        let (input, output) = (self.part(&work.input, 3 * d), self.output());
        let Memory {
            floats, bytes, row, ..
        } = &mut *self.memory;
        let rows = floats[input].chunks_exact(3 * d);
        for (x, out) in rows.zip(bytes[output].chunks_exact_mut(3 * d)) {
            for part in 0..2 {
                let columns = part * d..(part + 1) * d;
                let [gamma, beta] =
                    [&work.gamma, &work.beta].map(|a| &a[part * head_dim..][..head_dim]);
                let (heads, x, normed) = (d / head_dim, &x[columns.clone()], &mut row[..d]);
                self.kernels
                    .layer_norm(x, heads, head_dim, gamma, beta, work.eps, normed);
                let quant = quant_columns(&work.quant, columns.clone());
                self.kernels
                    .quantize(normed, 1, d, quant, &mut out[columns]);
            }
            let quant = quant_columns(&work.quant, 2 * d..3 * d);
            self.kernels
                .quantize(&x[2 * d..], 1, d, quant, &mut out[2 * d..]);
        }
    }

    fn gate(&mut self, work: &Gate) {
        let h = self.cols;
        let (input, output) = (self.part(&work.input, 2 * h), self.output());
        let Memory {
            floats, bytes, row, ..
        } = &mut *self.memory;
        match work.quant {
            Some(quant) => {
                let rows = floats[input].chunks_exact(2 * h);
                for (x, out) in rows.zip(bytes[output].chunks_exact_mut(h)) {
                    let (gates, values) = x.split_at(h);
                    let gated = &mut row[..h];
                    self.kernels.gate(gates, values, gated);
                    self.kernels.quantize(gated, 1, h, quant, out);
                }
            }
            None => {
                let (x, out) = two(floats, input, output);
                for (x, out) in x.chunks_exact(2 * h).zip(out.chunks_exact_mut(h)) {
                    let (gates, values) = x.split_at(h);
                    self.kernels.gate(gates, values, out);
                }
            }
        }
    }

    /// Sums in the order of the tokens, whichever lanes have them.
    fn pool(&mut self, work: &Pool) {
        let d = work.input.cols;
        self.give(&work.input, work.tokens.clone());
        if !self.rows.is_empty() {
            let output = self.output();
            let kernels = self.kernels;
            let Memory {
                floats, bytes, row, ..
            } = &mut *self.memory;
            let row = &mut row[..self.cols];
            let mut pool = |tokens: &[f32]| match work.pool {
                Pooling::Concat => row.copy_from_slice(tokens),
                Pooling::Mean => {
                    row.fill(0.0);
                    for token in tokens.chunks_exact(d) {
                        row.iter_mut().zip(token).for_each(|(sum, x)| *sum += x);
                    }
                    let count = work.tokens.len() as f32;
                    row.iter_mut().for_each(|sum| *sum /= count);
                }
            };
            match self.exchange {
                None => pool(
                    &floats[work.input.place.start + work.tokens.start * d..]
                        [..work.tokens.len() * d],
                ),
                Some(exchange) => exchange.floats(|rows| pool(&rows[..work.tokens.len() * d])),
            }
            match work.quant {
                Some(quant) => kernels.quantize(row, 1, self.cols, quant, &mut bytes[output]),
                None => floats[output].copy_from_slice(row),
            }
        }
        if let Some(exchange) = self.exchange {
            exchange.meet(); // before the next rows are put in their place
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
            row: _,
        } = &mut *self.memory;
        let (a, out) = match (work.quant, &work.residual, work.activation) {
            (Some(quant), _, activation) => {
                let (a, out) = two(bytes, input, output);
                let out = match activation {
                    // The codes of a ReLU end at zero.
                    Activation::Identity | Activation::Relu => Output::Codes { out, quant },
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
                    // A ReLU's output is coded.
                    (None, Activation::Identity | Activation::Relu) => Output::F32 {
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
            scratch: self.memory.scratch,
            out,
        };
        let count = work.heads;
        let Some(exchange) = self.exchange else {
            for head in 0..count {
                let keys_values = own_keys_values(work, head, qkv);
                // Still in a near cache while its queries pass.
                self.kernels
                    .attention_pack(&work.shape, &keys_values, packed);
                heads.attend(head, packed);
            }
            return;
        };
        give_heads(
            exchange,
            self.index,
            self.lanes,
            self.own.clone(),
            work,
            qkv,
        );
        exchange.meet();
        let own_heads = share(count, self.index, self.lanes);
        for head in own_heads {
            exchange.pack_head(head, |rows, packed| {
                let keys_values = given_keys_values(work, rows);
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

    /// Attention in cells: each lane packs those that its rows lie in.
    fn window_attention(&mut self, work: &Attention<'_>, groups: &CellGroups<'_>) {
        let d = self.cols;
        let own = work.qkv.start..work.qkv.start + self.own.len() * 3 * d;
        let queries = self.part(&work.qkv, 3 * d);
        let queries = queries.start - own.start..queries.end - own.start;
        let output = self.output();
        let rows = self.rows.clone();
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
            scratch: self.memory.scratch,
            out,
        };
        let mut attend = |head: usize, keys_values: &KeysValues<'_>| {
            for group in groups.clone() {
                heads.attend_cells(head, &group, rows.clone(), keys_values, packed);
            }
        };
        let count = work.heads;
        let Some(exchange) = self.exchange else {
            for head in 0..count {
                let keys_values = own_keys_values(work, head, qkv);
                attend(head, &keys_values);
            }
            return;
        };
        give_heads(
            exchange,
            self.index,
            self.lanes,
            self.own.clone(),
            work,
            qkv,
        );
        exchange.meet();
        for head in 0..count {
            exchange.head(head, |rows| {
                let keys_values = given_keys_values(work, rows);
                attend(head, &keys_values);
            });
        }
        exchange.meet(); // before the next keys and values are put in their place
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
            exchange.put_floats(0, &self.memory.floats[row]);
        }
        exchange.meet();
        if !self.rows.is_empty() {
            let output = self.output();
            let out = &mut self.memory.floats[output];
            exchange.floats(|rows| out.copy_from_slice(&rows[..out.len()]));
        }
        exchange.meet(); // before the next row is put in its place
    }
}

/// One head's keys and values where they lie in the rows `qkv` of all tokens.
fn own_keys_values<'a>(work: &Attention, head: usize, qkv: &'a [u8]) -> KeysValues<'a> {
    let head_dim = work.shape.head_dim;
    let d = work.heads * head_dim;
    KeysValues {
        rows: qkv, // [tokens, 3 * d]
        row_stride: 3 * d,
        lines: Lines::ONE,
        k_col: d + head * head_dim,
        v_col: 2 * d + head * head_dim,
    }
}

/// One head's keys and values as [`give_heads`] puts them at the start of `rows`.
fn given_keys_values<'a>(work: &Attention, rows: &'a [u8]) -> KeysValues<'a> {
    let (tokens, head_dim) = (work.shape.tokens, work.shape.head_dim);
    KeysValues {
        rows: &rows[..tokens * 2 * head_dim], // [tokens, 2 * head_dim]
        row_stride: 2 * head_dim,
        lines: Lines::ONE,
        k_col: 0,
        v_col: head_dim,
    }
}

/// Puts a lane's keys and values where all lanes find them; `qkv` are its rows `own`.
fn give_heads(
    exchange: &Exchange,
    lane: usize,
    lanes: usize,
    own: Range<usize>,
    work: &Attention,
    qkv: &[u8],
) {
    let (count, head_dim) = (work.heads, work.shape.head_dim);
    let d = count * head_dim;
    let place = own.start * 2 * head_dim..own.end * 2 * head_dim;
    // Each begins with another head, so that they seldom wait for each other.
    let first = share(count, lane, lanes).start;
    for head in (first..count).chain(0..first) {
        exchange.put_head(head, |rows| {
            let rows = rows[place.clone()].chunks_exact_mut(2 * head_dim);
            for (to, from) in rows.zip(qkv.chunks_exact(3 * d)) {
                let (k, v) = to.split_at_mut(head_dim);
                k.copy_from_slice(&from[d + head * head_dim..][..head_dim]);
                v.copy_from_slice(&from[2 * d + head * head_dim..][..head_dim]);
            }
        });
    }
}

/// Attention of some query rows, head by head.
struct Heads<'a> {
    kernels: &'static Kernels,
    work: &'a Attention<'a>,
    d: usize,
    queries: &'a [u8],     // [m, 3 * d]
    scratch: &'a mut [u8], // [attention_scratch_len]
    out: &'a mut [u8],     // [m, d]
}

impl<'a> Heads<'a> {
    /// The columns of one head of the output.
    fn attend(&mut self, head: usize, packed: &[u8]) {
        let work = self.work;
        let this = work.head(head);
        let (queries, requant) = self.operands(head, &this);
        self.kernels.attention(
            &work.shape,
            &queries,
            packed,
            &this.softmax,
            this.method(),
            &requant,
            self.scratch,
            HeadOutput {
                rows: self.out,
                row_stride: self.d,
                col: head * work.shape.head_dim,
            },
        );
    }

    /// The same in cells, `own` being the tokens of the queries.
    fn attend_cells(
        &mut self,
        head: usize,
        group: &CellGroup,
        own: Range<usize>,
        keys_values: &KeysValues<'_>,
        packed: &mut [u8],
    ) {
        let work = self.work;
        let this = work.head(head);
        let (queries, requant) = self.operands(head, &this);
        let cells = Cells {
            lines: group.lines,
            first: group.first,
            own,
            bias: group.bias(head),
        };
        self.kernels.attention_cells(
            &group.shape,
            &cells,
            &queries,
            keys_values,
            &this.softmax,
            this.method(),
            &requant,
            &mut packed[..group.pack_len],
            self.scratch,
            HeadOutput {
                rows: self.out,
                row_stride: self.d,
                col: head * work.shape.head_dim,
            },
        );
    }

    fn operands(&self, head: usize, this: &AttentionHead<'a>) -> (Queries<'a>, HeadRequant<'a>) {
        let head_dim = self.work.shape.head_dim;
        let col = head * head_dim;
        let queries = Queries {
            rows: self.queries,
            row_stride: 3 * self.d,
            col,
            zero: this.q_zero,
        };
        let requant = HeadRequant {
            v_zero: this.v_zero,
            v_scale: this.v_scale,
            quant: quant_columns(&self.work.quant, col..col + head_dim),
        };
        (queries, requant)
    }
}

impl Product<'_> {
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
        let weight_zero = self.weight_zero;
        let row_sums = weight_zero.map(|_| {
            kernels.row_sums(a, k, &mut sums[..m]);
            &sums[..m]
        });
        let requant = Requant {
            scale: self.scale,
            bias: self.bias,
            correction: self.correction,
            weight_zero,
        };
        kernels.gemm(
            &self.shape,
            a,
            self.packed,
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
