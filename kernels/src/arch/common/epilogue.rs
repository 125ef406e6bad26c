//! From exact sums to floats and codes, sixteen columns at a time.
//!
//! Written on `[_; 16]` arrays: inlined into a `#[target_feature]` function, each
//! line becomes one AVX-512, two AVX2 or four NEON instructions. The operations
//! and their order are those of [`crate::reference`].

use crate::{
    ActQuant, Output, Requant,
    reference::{gelu::gelu, quantize::MAGIC},
};

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

/// `f` of each entry. A loop, because `[T; N]::map` is not always inlined.
#[inline(always)]
pub(crate) fn each<T: Copy, U: Copy + Default>(x: &[T; 16], f: impl Fn(T) -> U) -> [U; 16] {
    let mut out = [U::default(); 16];
    for (out, &x) in out.iter_mut().zip(x) {
        *out = f(x);
    }
    out
}

/// The quantizer of sixteen columns.
#[derive(Clone, Copy)]
pub(crate) struct Quant16 {
    inv_scale: [f32; 16],
    lo: [f32; 16],
    hi: [f32; 16],
    /// Zero point minus the bits of MAGIC.
    offset: [i32; 16],
}

impl Quant16 {
    /// Columns `start ..` of `quant`.
    #[inline(always)]
    pub(crate) fn new(quant: &ActQuant, start: usize) -> Self {
        Self::from_blocks(
            &sixteen(quant.inv_scale, start),
            &sixteen(quant.zero_point, start),
            quant.max_code,
        )
    }

    /// From whole blocks.
    #[inline(always)]
    pub(crate) fn from_blocks(inv_scale: &[f32; 16], zero_point: &[u8; 16], max_code: u8) -> Self {
        let max = f32::from(max_code);
        Self {
            inv_scale: *inv_scale,
            lo: each(zero_point, |zero| -f32::from(zero)),
            hi: each(zero_point, |zero| max - f32::from(zero)),
            offset: each(zero_point, |zero| i32::from(zero) - MAGIC.to_bits() as i32),
        }
    }

    /// Sixteen codes: [`crate::reference::quantize::code`].
    #[inline(always)]
    pub(crate) fn codes(&self, y: &[f32; 16]) -> [u8; 16] {
        let mut codes = [0; 16];
        for i in 0..16 {
            let t = y[i] * self.inv_scale[i];
            let t = if t > self.lo[i] { t } else { self.lo[i] };
            let t = if t < self.hi[i] { t } else { self.hi[i] };
            codes[i] = ((t + MAGIC).to_bits() as i32).wrapping_add(self.offset[i]) as u8;
        }
        codes
    }
}

/// What the epilogue of sixteen output columns needs, loaded once per panel.
#[derive(Clone, Copy)]
pub(crate) struct Columns {
    start: usize,
    scale: [f32; 16],
    bias: [f32; 16],
    correction: [i32; 16],
    weight_zero: [i32; 16],
    quant: Quant16,
}

impl Columns {
    /// No columns yet.
    pub(crate) const EMPTY: Self = Self {
        start: 0,
        scale: [0.0; 16],
        bias: [0.0; 16],
        correction: [0; 16],
        weight_zero: [0; 16],
        quant: Quant16 {
            inv_scale: [0.0; 16],
            lo: [0.0; 16],
            hi: [0.0; 16],
            offset: [0; 16],
        },
    };
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
    pub(crate) fn columns(&self, start: usize, extra: &[i32; 16]) -> Columns {
        let mut correction = sixteen(self.requant.correction, start);
        for (correction, extra) in correction.iter_mut().zip(extra) {
            *correction = correction.wrapping_add(*extra);
        }
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
            scale: sixteen(self.requant.scale, start),
            bias: sixteen(self.requant.bias, start),
            correction,
            weight_zero: self
                .requant
                .weight_zero
                .map_or([0; 16], |zero| sixteen(zero, start)),
            quant: Quant16::new(quant, start),
        }
    }

    /// Requantizes sixteen sums of row `i` and stores those that exist.
    #[inline(always)]
    pub(crate) fn store(&mut self, i: usize, columns: &Columns, acc: &[i32; 16]) {
        let mut exact = [0; 16];
        for (j, exact) in exact.iter_mut().enumerate() {
            *exact = acc[j].wrapping_add(columns.correction[j]);
        }
        if let Some(sums) = self.a_row_sums {
            for (j, exact) in exact.iter_mut().enumerate() {
                *exact = exact.wrapping_sub(columns.weight_zero[j].wrapping_mul(sums[i]));
            }
        }
        let mut y = [0.0; 16];
        for (j, y) in y.iter_mut().enumerate() {
            *y = exact[j] as f32 * columns.scale[j] + columns.bias[j];
        }

        let first = i * self.n + columns.start;
        let len = usize::min(16, self.n - columns.start);
        match &mut self.out {
            Output::F32 { out } => copy(&mut out[first..first + len], &y),
            Output::Residual { residual, out } => {
                let residual = sixteen(&residual[first..first + len], 0);
                copy(&mut out[first..first + len], &sum(&residual, &y));
            }
            Output::Accumulate { inout } => {
                let inout = &mut inout[first..first + len];
                let residual = sixteen(inout, 0);
                copy(inout, &sum(&residual, &y));
            }
            Output::Codes { out, quant: _ } => {
                copy(&mut out[first..first + len], &columns.quant.codes(&y))
            }
            Output::GeluCodes { out, quant: _ } => {
                copy(
                    &mut out[first..first + len],
                    &columns.quant.codes(&each(&y, gelu)),
                );
            }
            Output::Gelu { out } => copy(&mut out[first..first + len], &each(&y, gelu)),
        }
    }
}

#[inline(always)]
fn sum(x: &[f32; 16], y: &[f32; 16]) -> [f32; 16] {
    let mut sum = [0.0; 16];
    for i in 0..16 {
        sum[i] = x[i] + y[i];
    }
    sum
}

/// Copies the first entries of a block; a whole block is one vector store.
#[inline(always)]
pub(crate) fn copy<T: Copy>(out: &mut [T], block: &[T; 16]) {
    if let Some(whole) = out.first_chunk_mut::<16>() {
        *whole = *block;
    } else {
        copy_part(out, block);
    }
}

/// Out of line: inlined, it is merged with the whole block into one `memcpy`.
#[cold]
#[inline(never)]
fn copy_part<T: Copy>(out: &mut [T], block: &[T; 16]) {
    out.copy_from_slice(&block[..out.len()]);
}
