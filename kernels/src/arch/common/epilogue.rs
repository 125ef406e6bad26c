//! From exact sums to floats and codes, sixteen columns at a time.
//!
//! Written on the [lanes](super::lanes) of an ISA, several rows side by side. The
//! operations and their order are those of [`crate::reference`].

use super::lanes::{Lanes, gelu, interleave};
use crate::{ActQuant, Output, Requant, reference::quantize::MAGIC};

/// Copies `from[start ..]`, up to sixteen entries; the rest is `T::default()`.
#[inline(always)]
pub(crate) fn sixteen<T: Copy + Default>(from: &[T], start: usize) -> [T; 16] {
    if let Some(whole) = from.get(start..).and_then(<[T]>::first_chunk) {
        return *whole;
    }
    let mut block = [T::default(); 16];
    let from = from.get(start..).unwrap_or_default();
    block[..from.len()].copy_from_slice(from);
    block
}

/// Sixteen entries of `from`; `WHOLE` if there are sixteen, else [`sixteen`].
#[inline(always)]
fn block<T: Copy + Default, const WHOLE: bool>(from: &[T], start: usize) -> [T; 16] {
    if WHOLE {
        let mut block = [T::default(); 16];
        block.copy_from_slice(&from[start..start + 16]);
        block
    } else {
        sixteen(from, start)
    }
}

/// Sixteen floats of `from`; `WHOLE` if there are sixteen, else 0 follows the last.
#[inline(always)]
pub(crate) fn load<L: Lanes, const WHOLE: bool>(l: L, from: &[f32], start: usize) -> L::F {
    l.load(&block::<f32, WHOLE>(from, start))
}

/// The quantizer of sixteen columns, in registers.
#[derive(Clone, Copy)]
pub(crate) struct Quant<L: Lanes> {
    inv_scale: L::F,
    lo: L::F,
    hi: L::F,
    /// Zero point minus the bits of MAGIC.
    offset: L::I,
}

impl<L: Lanes> Quant<L> {
    /// Columns `start .. start + 16` of `quant`, all there if `WHOLE`.
    #[inline(always)]
    pub(crate) fn new<const WHOLE: bool>(l: L, quant: &ActQuant, start: usize) -> Self {
        let zero = l.load_u8(&block::<u8, WHOLE>(quant.zero_point, start));
        let zeros = l.to_f32(zero);
        Self {
            inv_scale: load::<L, WHOLE>(l, quant.inv_scale, start),
            // 0.0 where the reference has -0.0: the addition of MAGIC makes them one.
            lo: l.sub(l.splat(0.0), zeros),
            hi: l.sub(l.splat(f32::from(quant.max_code)), zeros),
            offset: l.sub_i32(zero, l.splat_i32(MAGIC.to_bits() as i32)),
        }
    }

    /// Sixteen codes of each of `R` rows: [`crate::reference::quantize::code`].
    #[inline(always)]
    pub(crate) fn codes<const R: usize>(&self, l: L, y: [L::F; R]) -> [L::I; R] {
        let t = interleave!(r, l.mul(y[r], self.inv_scale));
        let t = interleave!(r, l.greater(t[r], self.lo));
        let t = interleave!(r, l.less(t[r], self.hi));
        let rounded = interleave!(r, l.add(t[r], l.splat(MAGIC)));
        interleave!(r, l.add_i32(l.bits(rounded[r]), self.offset))
    }
}

/// What the epilogue of sixteen output columns needs, loaded once per panel.
#[derive(Clone, Copy)]
pub(crate) struct Columns<L: Lanes> {
    start: usize,
    scale: L::F,
    bias: L::F,
    correction: L::I,
    weight_zero: L::I,
    quant: Quant<L>,
}

/// Block `v` of the rows of a tile.
struct Block<'t, L: Lanes, const NV: usize> {
    columns: Columns<L>,
    rows: &'t [[[i32; 16]; NV]],
    v: usize,
    row_sums: Option<&'t [i32]>,
}

impl<L: Lanes, const NV: usize> Block<'_, L, NV> {
    /// The requantized sums of rows `first ..`.
    #[inline(always)]
    fn y<const R: usize>(&self, l: L, first: usize) -> [L::F; R] {
        let Columns {
            scale,
            bias,
            correction,
            weight_zero,
            ..
        } = self.columns;
        let rows = &self.rows[first..first + R];
        let mut exact = interleave!(r, l.add_i32(l.load_i32(&rows[r][self.v]), correction));
        if let Some(sums) = self.row_sums {
            let sums = &sums[first..first + R];
            let owed = interleave!(r, l.mul_i32(weight_zero, l.splat_i32(sums[r])));
            exact = interleave!(r, l.sub_i32(exact[r], owed[r]));
        }
        let y = interleave!(r, l.mul(l.to_f32(exact[r]), scale));
        interleave!(r, l.add(y[r], bias))
    }
}

/// The epilogue of a matrix product.
pub(crate) struct Epilogue<'a> {
    n: usize,
    requant: &'a Requant<'a>,
    a_row_sums: Option<&'a [i32]>,
    out: Output<'a>,
}

impl<'a> Epilogue<'a> {
    pub(crate) fn new(
        n: usize,
        requant: &'a Requant<'a>,
        a_row_sums: Option<&'a [i32]>,
        out: Output<'a>,
    ) -> Self {
        // Without weight zero points the sums would only be multiplied by 0.
        let a_row_sums = requant.weight_zero.and(a_row_sums);
        Self {
            n,
            requant,
            a_row_sums,
            out,
        }
    }

    /// Loads columns `start .. start + 16`; `extra` is added to their sums.
    #[inline(always)]
    pub(crate) fn columns<L: Lanes>(&self, l: L, start: usize, extra: &[i32; 16]) -> Columns<L> {
        let correction = l.load_i32(&sixteen(self.requant.correction, start));
        let unused = ActQuant {
            inv_scale: &[],
            zero_point: &[],
            max_code: 0,
        };
        let quant = match &self.out {
            Output::Codes { out: _, quant } | Output::GeluCodes { out: _, quant } => quant,
            Output::F32 { .. }
            | Output::Residual { .. }
            | Output::Accumulate { .. }
            | Output::Gelu { .. } => &unused,
        };
        Columns {
            start,
            scale: l.load(&sixteen(self.requant.scale, start)),
            bias: l.load(&sixteen(self.requant.bias, start)),
            correction: l.add_i32(correction, l.load_i32(extra)),
            weight_zero: match self.requant.weight_zero {
                Some(zero) => l.load_i32(&sixteen(zero, start)),
                None => l.splat_i32(0),
            },
            quant: Quant::new::<false>(l, quant, start),
        }
    }

    /// Requantizes block `v` of each row of a tile, whose first row is row `i`, and
    /// stores what exists of it.
    #[inline(always)]
    pub(crate) fn store<L: Lanes, const NV: usize>(
        &mut self,
        l: L,
        i: usize,
        columns: &Columns<L>,
        v: usize,
        rows: &[[[i32; 16]; NV]],
    ) {
        let block = Block {
            columns: *columns,
            rows,
            v,
            row_sums: self.a_row_sums.map(|sums| &sums[i..]),
        };
        if columns.start + 16 > self.n {
            for r in 0..rows.len() {
                self.store_rows::<L, NV, 1, false>(l, i, &block, r);
            }
            return;
        }
        let mut r = 0;
        while L::CHAINS >= 4 && r + 4 <= rows.len() {
            self.store_rows::<L, NV, 4, true>(l, i, &block, r);
            r += 4;
        }
        while L::CHAINS >= 2 && r + 2 <= rows.len() {
            self.store_rows::<L, NV, 2, true>(l, i, &block, r);
            r += 2;
        }
        while r < rows.len() {
            self.store_rows::<L, NV, 1, true>(l, i, &block, r);
            r += 1;
        }
    }

    /// The epilogues of `R` rows, side by side; of sixteen columns if `WHOLE`. Where
    /// results belong is found first: a test between the stores of two rows would part
    /// their chains again.
    #[inline(always)]
    fn store_rows<L: Lanes, const NV: usize, const R: usize, const WHOLE: bool>(
        &mut self,
        l: L,
        i: usize,
        block: &Block<L, NV>,
        first: usize,
    ) {
        let (n, start) = (self.n, block.columns.start);
        let len = if WHOLE { 16 } else { n - start };
        let begin = (i + first) * n + start;
        let quant = &block.columns.quant;
        match &mut self.out {
            Output::F32 { out } => {
                let rows = rows_mut::<f32, R>(&mut out[begin..], n, len);
                put_rows::<L, R, WHOLE>(l, rows, block.y::<R>(l, first));
            }
            Output::Residual { residual, out } => {
                let residual = load_rows::<L, R, WHOLE>(l, &residual[begin..], n, len);
                let rows = rows_mut::<f32, R>(&mut out[begin..], n, len);
                let y = block.y::<R>(l, first);
                let sums = interleave!(r, l.add(residual[r], y[r]));
                put_rows::<L, R, WHOLE>(l, rows, sums);
            }
            Output::Accumulate { inout } => {
                let residual = load_rows::<L, R, WHOLE>(l, &inout[begin..], n, len);
                let rows = rows_mut::<f32, R>(&mut inout[begin..], n, len);
                let y = block.y::<R>(l, first);
                let sums = interleave!(r, l.add(residual[r], y[r]));
                put_rows::<L, R, WHOLE>(l, rows, sums);
            }
            Output::Codes { out, quant: _ } => {
                let rows = rows_mut::<u8, R>(&mut out[begin..], n, len);
                put_codes::<L, R, WHOLE>(l, rows, quant.codes(l, block.y::<R>(l, first)));
            }
            Output::GeluCodes { out, quant: _ } => {
                let rows = rows_mut::<u8, R>(&mut out[begin..], n, len);
                let y = gelu(l, block.y::<R>(l, first));
                put_codes::<L, R, WHOLE>(l, rows, quant.codes(l, y));
            }
            Output::Gelu { out } => {
                let rows = rows_mut::<f32, R>(&mut out[begin..], n, len);
                put_rows::<L, R, WHOLE>(l, rows, gelu(l, block.y::<R>(l, first)));
            }
        }
    }
}

/// The first `len` entries of each of `R` rows, `n` apart; every one is there.
#[inline(always)]
fn rows_mut<T, const R: usize>(out: &mut [T], n: usize, len: usize) -> [Option<&mut [T]>; R] {
    let mut rest = out;
    let mut rows = [const { None }; R];
    for (r, row) in rows.iter_mut().enumerate() {
        let (this, after) = rest.split_at_mut(if r + 1 < R { n } else { len });
        *row = Some(&mut this[..len]);
        rest = after;
    }
    rows
}

/// The first `len` floats of each of `R` rows, `n` apart.
#[inline(always)]
fn load_rows<L: Lanes, const R: usize, const WHOLE: bool>(
    l: L,
    from: &[f32],
    n: usize,
    len: usize,
) -> [L::F; R] {
    interleave!(r, load::<L, WHOLE>(l, &from[r * n..][..len], 0))
}

/// Stores floats of each of `R` rows.
#[inline(always)]
fn put_rows<L: Lanes, const R: usize, const WHOLE: bool>(
    l: L,
    rows: [Option<&mut [f32]>; R],
    y: [L::F; R],
) {
    for (row, y) in rows.into_iter().flatten().zip(y) {
        if WHOLE {
            l.store(y, row.first_chunk_mut().expect("sixteen columns"));
        } else {
            put(l, row, y);
        }
    }
}

/// Stores codes of each of `R` rows.
#[inline(always)]
fn put_codes<L: Lanes, const R: usize, const WHOLE: bool>(
    l: L,
    rows: [Option<&mut [u8]>; R],
    codes: [L::I; R],
) {
    for (row, codes) in rows.into_iter().flatten().zip(codes) {
        if WHOLE {
            l.store_u8(codes, row.first_chunk_mut().expect("sixteen columns"));
        } else {
            put_u8(l, row, codes);
        }
    }
}

/// Stores the first codes of sixteen.
#[inline(always)]
pub(crate) fn put_u8<L: Lanes>(l: L, out: &mut [u8], codes: L::I) {
    if let Some(whole) = out.first_chunk_mut::<16>() {
        l.store_u8(codes, whole);
    } else {
        let mut block = [0; 16];
        l.store_u8(codes, &mut block);
        copy_part(out, &block);
    }
}

/// Stores the first entries of sixteen.
#[inline(always)]
pub(crate) fn put<L: Lanes>(l: L, out: &mut [f32], y: L::F) {
    if let Some(whole) = out.first_chunk_mut::<16>() {
        l.store(y, whole);
    } else {
        let mut block = [0.0; 16];
        l.store(y, &mut block);
        copy_part(out, &block);
    }
}

/// Copies the first entries of a block.
///
/// Out of line: inlined, it is merged with the whole block into one `memcpy`.
#[cold]
#[inline(never)]
fn copy_part<T: Copy>(out: &mut [T], block: &[T; 16]) {
    out.copy_from_slice(&block[..out.len()]);
}
