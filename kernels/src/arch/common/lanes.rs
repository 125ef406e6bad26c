//! Sixteen lanes of floats or integers: the registers of one ISA behind one set of names.
//!
//! ```text
//! AVX-512   1 register  of 16 lanes
//! AVX2      2 registers of  8 lanes
//! NEON      4 registers of  4 lanes
//! Arrays    [_; 16]
//! ```
//!
//! Loops over `[f32; 16]` leave the choice of instructions to the compiler, which
//! chooses well for plain arithmetic, badly for sums across lanes and not at all
//! for table look-ups. So the float kernels and the epilogues are written on this
//! trait, once. Its operations are those of [`crate::reference`], none fused:
//! every ISA gives the same bits.
//!
//! A value that implements [`Lanes`] is a proof that the CPU has the
//! instructions: it can only be made inside a `#[target_feature]` function.
//! Every method is `#[inline(always)]`, so that it ends up in such a function and
//! becomes one instruction per register there.

use crate::reference::{
    gelu::{LAST, PIECES, STEPS},
    quantize::MAGIC,
};

/// The operations on sixteen lanes.
pub(crate) trait Lanes: Copy {
    /// Rows whose chains of operations are interleaved where registers allow: 1, 2 or 4.
    const CHAINS: usize;
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen i32.
    type I: Copy;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, x: &[f32; 16]) -> Self::F;
    fn store(self, x: Self::F, out: &mut [f32; 16]);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn abs(self, x: Self::F) -> Self::F;
    /// `if a > b { a } else { b }`: `b` where a NaN is compared.
    fn greater(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a < b { a } else { b }`: `b` where a NaN is compared.
    fn less(self, a: Self::F, b: Self::F) -> Self::F;
    /// The sum of all lanes: 8, 4, 2, 1 apart.
    fn sum(self, x: Self::F) -> f32;
    /// `table[i % 8]` for each lane `i`.
    fn look_up(self, table: &[f32; 8], i: Self::I) -> Self::F;
    fn bits(self, x: Self::F) -> Self::I;

    fn splat_i32(self, x: i32) -> Self::I;
    fn load_i32(self, x: &[i32; 16]) -> Self::I;
    /// Bytes to integers.
    fn load_u8(self, x: &[u8; 16]) -> Self::I;
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I;
    fn sub_i32(self, a: Self::I, b: Self::I) -> Self::I;
    fn mul_i32(self, a: Self::I, b: Self::I) -> Self::I;
    fn greater_i32(self, a: Self::I, b: Self::I) -> Self::I;
    /// The largest of all lanes.
    fn largest(self, x: Self::I) -> i32;
    fn store_i32(self, x: Self::I, out: &mut [i32; 16]);
    /// Rounds to nearest even.
    fn to_f32(self, x: Self::I) -> Self::F;
    /// Integers of 0 to 255 as bytes.
    fn store_u8(self, x: Self::I, out: &mut [u8; 16]);
    /// Asks for the cache line in which `bytes` begins, where the ISA can.
    fn prefetch(self, _bytes: &[u8]) {}
}

/// `[value of 0, value of 1, .., value of R - 1]`, `R` being a constant in scope.
///
/// A long chain of dependent operations keeps a CPU waiting; `R` chains, one
/// operation of each after the other, do not.
macro_rules! interleave {
    ($r:ident, $value:expr) => {{
        let mut $r = 0;
        let mut out = [$value; R];
        $r += 1;
        while $r < R {
            out[$r] = $value;
            $r += 1;
        }
        out
    }};
}
pub(crate) use interleave;

/// [`crate::reference::gelu`] of `R` values.
#[inline(always)]
pub(crate) fn gelu<L: Lanes, const R: usize>(l: L, x: [L::F; R]) -> [L::F; R] {
    let magic = l.splat(MAGIC);
    let t = interleave!(r, l.mul(l.abs(x[r]), l.splat(STEPS)));
    let t = interleave!(r, l.less(t[r], l.splat(LAST)));
    let shifted = interleave!(r, l.add(t[r], magic));
    // The low bits of a float of MAGIC's size are an integer: the piece.
    let piece = interleave!(r, l.bits(shifted[r]));
    let s = interleave!(r, l.sub(t[r], l.sub(shifted[r], magic)));
    let [c0, c1, c2, c3, c4, c5] = &PIECES;
    let mut g = interleave!(r, l.look_up(c5, piece[r]));
    for c in [c4, c3, c2, c1, c0] {
        g = interleave!(r, l.mul(g[r], s[r]));
        g = interleave!(r, l.add(g[r], l.look_up(c, piece[r])));
    }
    interleave!(r, l.sub(l.greater(l.splat(0.0), x[r]), g[r]))
}

/// Plain arrays: what the compiler makes of them is as good as its vectoriser.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrays;

#[inline(always)]
fn map<T: Copy, U: Copy + Default>(x: &[T; 16], f: impl Fn(T) -> U) -> [U; 16] {
    let mut out = [U::default(); 16];
    for i in 0..16 {
        out[i] = f(x[i]);
    }
    out
}

#[inline(always)]
fn zip<T: Copy + Default>(a: &[T; 16], b: &[T; 16], f: impl Fn(T, T) -> T) -> [T; 16] {
    let mut out = [T::default(); 16];
    for i in 0..16 {
        out[i] = f(a[i], b[i]);
    }
    out
}

impl Lanes for Arrays {
    const CHAINS: usize = 1;
    type F = [f32; 16];
    type I = [i32; 16];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; 16]
    }
    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> Self::F {
        *x
    }
    #[inline(always)]
    fn store(self, x: Self::F, out: &mut [f32; 16]) {
        *out = x;
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        zip(&a, &b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        zip(&a, &b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        zip(&a, &b, |a, b| a * b)
    }
    #[inline(always)]
    fn abs(self, x: Self::F) -> Self::F {
        map(&x, f32::abs)
    }
    #[inline(always)]
    fn greater(self, a: Self::F, b: Self::F) -> Self::F {
        zip(&a, &b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn less(self, a: Self::F, b: Self::F) -> Self::F {
        zip(&a, &b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn sum(self, mut x: Self::F) -> f32 {
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                x[i] += x[i + half];
            }
        }
        x[0]
    }
    #[inline(always)]
    fn look_up(self, table: &[f32; 8], i: Self::I) -> Self::F {
        map(&i, |i| table[(i & 7) as usize])
    }
    #[inline(always)]
    fn bits(self, x: Self::F) -> Self::I {
        map(&x, |x| x.to_bits() as i32)
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::I {
        [x; 16]
    }
    #[inline(always)]
    fn load_i32(self, x: &[i32; 16]) -> Self::I {
        *x
    }
    #[inline(always)]
    fn load_u8(self, x: &[u8; 16]) -> Self::I {
        map(x, i32::from)
    }
    #[inline(always)]
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I {
        zip(&a, &b, i32::wrapping_add)
    }
    #[inline(always)]
    fn sub_i32(self, a: Self::I, b: Self::I) -> Self::I {
        zip(&a, &b, i32::wrapping_sub)
    }
    #[inline(always)]
    fn mul_i32(self, a: Self::I, b: Self::I) -> Self::I {
        zip(&a, &b, i32::wrapping_mul)
    }
    #[inline(always)]
    fn greater_i32(self, a: Self::I, b: Self::I) -> Self::I {
        zip(&a, &b, i32::max)
    }
    #[inline(always)]
    fn largest(self, mut x: Self::I) -> i32 {
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                x[i] = i32::max(x[i], x[i + half]);
            }
        }
        x[0]
    }
    #[inline(always)]
    fn store_i32(self, x: Self::I, out: &mut [i32; 16]) {
        *out = x;
    }
    #[inline(always)]
    fn to_f32(self, x: Self::I) -> Self::F {
        map(&x, |x| x as f32)
    }
    #[inline(always)]
    fn store_u8(self, x: Self::I, out: &mut [u8; 16]) {
        *out = map(&x, |x| x as u8);
    }
}
