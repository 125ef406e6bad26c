//! The forward pass.
//!
//! One step after the other; within a step the rows are split over the
//! threads. A step reads and writes disjoint places of three arenas (floats,
//! codes, sums) and of per-thread scratch, all allocated beforehand.

use alloc::vec::Vec;
use core::ops::Range;

use tpvit_kernels::{HeadOutput, HeadRequant, Kernels, KeysValues, Output, Queries, Requant};
use tpvit_models::Activation;

use crate::compile::{
    Attention, LayerNorm, Linear, PatchEmbed, Product, Residual, Step, Target, Work,
};
use crate::plan::Place;
use crate::pool::{Share, split_rows};
use crate::session::{Observer, Session, View};

/// Everything a run writes.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) floats: Vec<f32>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) sums: Vec<i32>,
    pub(crate) scratch: Vec<u8>,
}

impl Session {
    /// Runs every step on one picture.
    pub(crate) fn forward(&self, pixels: &[u8], memory: &mut Memory, observer: &mut dyn Observer) {
        for (index, step) in self.steps.iter().enumerate() {
            let run = Run {
                session: self,
                step,
                cols: self.cols(step),
            };
            match &step.work {
                Work::PatchEmbed(work) => run.patch_embed(work, pixels, memory),
                Work::LayerNorm(work) => run.layer_norm(work, memory),
                Work::Linear(work) => run.linear(work, memory),
                Work::Attention(work) => run.attention(work, memory),
                Work::SelectToken { input, token } => run.select_token(input, *token, memory),
            }
            observer.after(index, step.output, step.rows.clone(), run.view(memory));
        }
    }

    fn cols(&self, step: &Step) -> usize {
        self.program.buffers[step.output.index()].cols
    }
}

/// One step of one run.
struct Run<'a> {
    session: &'a Session,
    step: &'a Step,
    /// Columns of the output.
    cols: usize,
}

impl Run<'_> {
    fn kernels(&self) -> &'static Kernels {
        self.session.kernels
    }

    /// `rows` of the place of a buffer with `cols` columns.
    fn part(place: &Place, rows: &Range<usize>, cols: usize) -> Range<usize> {
        place.start + rows.start * cols..place.start + rows.end * cols
    }

    /// The computed rows of the output's place.
    fn output(&self) -> Range<usize> {
        let (Target::Codes(place) | Target::Floats(place)) = &self.step.target;
        Self::part(place, &self.step.rows, self.cols)
    }

    fn view<'m>(&self, memory: &'m Memory) -> View<'m> {
        match self.step.target {
            Target::Codes(_) => View::Codes(&memory.bytes[self.output()]),
            Target::Floats(_) => View::Floats(&memory.floats[self.output()]),
        }
    }

    /// Splits `rows` of `out` over the threads.
    fn split<T: Send>(
        &self,
        rows: Range<usize>,
        cols: usize,
        out: &mut [T],
        sums: &mut [i32],
        scratch: &mut [u8],
        f: impl Fn(Share<'_, T>) + Sync,
    ) {
        let sums = if sums.is_empty() {
            sums
        } else {
            &mut sums[..rows.len()]
        };
        split_rows(
            self.session.pool.threads(),
            cols,
            Share {
                rows,
                out,
                sums,
                scratch,
            },
            &f,
        );
    }

    /// Gathers the patches, `(y, x, channel)` each, then projects them.
    fn patch_embed(&self, work: &PatchEmbed, pixels: &[u8], memory: &mut Memory) {
        let d = self.cols;
        let k = work.product.shape.k;
        let patches = &mut memory.bytes[work.patches.clone()];
        gather_patches(work.patch, self.session.program.image[1], pixels, patches);
        let out = &mut memory.floats[self.output()];
        let (prefix, out) = out.split_at_mut(work.prefix.len());
        prefix.copy_from_slice(&work.prefix);
        let patches = &*patches;
        let rows = 0..patches.len() / k;
        self.split(
            rows,
            d,
            out,
            &mut memory.sums,
            &mut memory.scratch,
            |share| {
                let a = &patches[share.rows.start * k..share.rows.end * k];
                let out = match work.position.as_slice() {
                    [] => Output::F32 { out: share.out },
                    position => Output::Residual {
                        residual: &position[share.rows.start * d..share.rows.end * d],
                        out: share.out,
                    },
                };
                work.product
                    .run(self.kernels(), a, share.sums, share.scratch, out);
            },
        );
    }

    fn layer_norm(&self, work: &LayerNorm, memory: &mut Memory) {
        let d = self.cols;
        let rows = self.step.rows.clone();
        let input = Self::part(&work.input, &rows, d);
        let local = |r: &Range<usize>| (r.start - rows.start) * d..(r.end - rows.start) * d;
        let (gamma, beta, eps) = (&work.gamma, &work.beta, work.eps);
        match &work.quant {
            Some(quant) => {
                let x = &memory.floats[input];
                let out = &mut memory.bytes[self.output()];
                self.split(rows.clone(), d, out, &mut [], &mut [], |share| {
                    let x = &x[local(&share.rows)];
                    let m = share.rows.len();
                    self.kernels().layer_norm_codes(
                        x,
                        m,
                        d,
                        gamma,
                        beta,
                        eps,
                        quant.all(),
                        share.out,
                    );
                });
            }
            None => {
                let (x, out) = two(&mut memory.floats, input, self.output());
                self.split(rows.clone(), d, out, &mut [], &mut [], |share| {
                    let x = &x[local(&share.rows)];
                    let m = share.rows.len();
                    self.kernels()
                        .layer_norm(x, m, d, gamma, beta, eps, share.out);
                });
            }
        }
    }

    fn linear(&self, work: &Linear, memory: &mut Memory) {
        let (k, n) = (work.product.shape.k, self.cols);
        let rows = self.step.rows.clone();
        let input = Self::part(&work.input, &rows, k);
        let local = |r: &Range<usize>, cols: usize| {
            (r.start - rows.start) * cols..(r.end - rows.start) * cols
        };
        let Memory {
            floats,
            bytes,
            sums,
            scratch,
        } = memory;
        match &work.quant {
            Some(quant) => {
                let (a, out) = two(bytes, input, self.output());
                self.split(rows.clone(), n, out, sums, scratch, |share| {
                    let a = &a[local(&share.rows, k)];
                    let quant = quant.all();
                    let out = match work.activation {
                        Activation::Identity => Output::Codes {
                            out: share.out,
                            quant,
                        },
                        Activation::Gelu => Output::GeluCodes {
                            out: share.out,
                            quant,
                        },
                    };
                    work.product
                        .run(self.kernels(), a, share.sums, share.scratch, out);
                });
            }
            None => {
                let a = &bytes[input];
                let (residual, out) = match &work.residual {
                    Residual::From(place) => {
                        let (r, out) = two(floats, Self::part(place, &rows, n), self.output());
                        (Some(r), out)
                    }
                    Residual::None | Residual::InPlace => (None, &mut floats[self.output()]),
                };
                self.split(rows.clone(), n, out, sums, scratch, |share| {
                    let a = &a[local(&share.rows, k)];
                    let out = match (&work.residual, residual) {
                        (Residual::InPlace, _) => Output::Accumulate { inout: share.out },
                        (Residual::None | Residual::From(_), Some(r)) => Output::Residual {
                            residual: &r[local(&share.rows, n)],
                            out: share.out,
                        },
                        (Residual::None | Residual::From(_), None) => match work.activation {
                            Activation::Identity => Output::F32 { out: share.out },
                            Activation::Gelu => Output::Gelu { out: share.out },
                        },
                    };
                    work.product
                        .run(self.kernels(), a, share.sums, share.scratch, out);
                });
            }
        }
    }

    /// Keys and values are re-ordered head by head; then every thread takes
    /// some query rows through all heads.
    fn attention(&self, work: &Attention, memory: &mut Memory) {
        let d = self.cols;
        let head_dim = work.shape.head_dim;
        let stride = 3 * d;
        let heads = work.heads.len();
        let [qkv, packed, out] = memory
            .bytes
            .get_disjoint_mut([work.qkv.clone(), work.packed.clone(), self.output()])
            .expect("the plan keeps buffers of one step apart");
        let qkv = &*qkv;
        self.split(0..heads, work.pack_len, packed, &mut [], &mut [], |share| {
            for (head, out) in share.rows.zip(share.out.chunks_exact_mut(work.pack_len)) {
                let (k_col, v_col) = (d + head * head_dim, 2 * d + head * head_dim);
                let keys_values = KeysValues {
                    rows: qkv,
                    row_stride: stride,
                    k_col,
                    v_col,
                };
                self.kernels()
                    .attention_pack(&work.shape, &keys_values, out);
            }
        });
        let packed = &*packed;
        self.split(
            self.step.rows.clone(),
            d,
            out,
            &mut [],
            &mut memory.scratch,
            |share| {
                let q_rows = &qkv[share.rows.start * stride..share.rows.end * stride];
                for (head, this) in work.heads.iter().enumerate() {
                    let col = head * head_dim;
                    let queries = Queries {
                        rows: q_rows,
                        row_stride: stride,
                        col,
                        zero: this.q_zero,
                    };
                    let requant = HeadRequant {
                        v_zero: &this.v_zero,
                        v_scale: &this.v_scale,
                        quant: work.quant.columns(col..col + head_dim),
                    };
                    let packed = &packed[head * work.pack_len..(head + 1) * work.pack_len];
                    self.kernels().attention(
                        &work.shape,
                        &queries,
                        packed,
                        &work.softmax(head),
                        work.method(),
                        &requant,
                        share.scratch,
                        HeadOutput {
                            rows: &mut *share.out,
                            row_stride: d,
                            col,
                        },
                    );
                }
            },
        );
    }

    fn select_token(&self, input: &Place, token: usize, memory: &mut Memory) {
        let row = Self::part(input, &(token..token + 1), self.cols);
        memory.floats.copy_within(row, self.output().start);
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

/// `out[g, :]` = the pixels of patch g, row by row.
fn gather_patches(patch: [usize; 2], width: usize, pixels: &[u8], out: &mut [u8]) {
    let [patch_h, patch_w] = patch;
    let (line, run) = (width * 3, patch_w * 3);
    let across = width / patch_w;
    for (g, out) in out.chunks_exact_mut(patch_h * run).enumerate() {
        let start = (g / across) * patch_h * line + (g % across) * run;
        for (y, out) in out.chunks_exact_mut(run).enumerate() {
            out.copy_from_slice(&pixels[start + y * line..][..run]);
        }
    }
}
