//! Weights in the order a tile reads them.
//!
//! ```text
//! panel    nr outputs, all k                        [n / nr]
//!   strip  sub outputs of the panel, all k          [nr / sub]
//!     group  kr consecutive k of sub outputs        [k / kr]
//!              [sub][kr] bytes: one or more vector loads
//! ```
//!
//! On x86 a strip is a whole panel and kr is what one lane of a dot product
//! takes (4 bytes, or 2 words); NEON's strips are four outputs of 16 k each.
//! What is missing at the edges of n and k is weight 0.
//!
//! 8- and 6-bit weights are stored signed, one byte each. 4-, 3- and 2-bit
//! weights are nibbles `w + 8`; two groups share their bytes, so that unpacking
//! is a mask, a shift and a subtraction, with no shuffle:
//!
//! ```text
//! byte i of a pair of groups:   low nibble = byte i of group 2g,  high nibble = byte i of group 2g + 1
//! ```
//!
//! With `sums`, each panel begins with the sum of each output's weights, `[nr]`
//! i32, for tiles that shift the activations by a constant.

use crate::{BitWidth, GemmShape, reference::unpack};

/// The numbers that fix the order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Outputs of a panel, a multiple of 16.
    pub(crate) nr: usize,
    /// Outputs of a strip; divides `nr`.
    pub(crate) sub: usize,
    /// Consecutive k that lie side by side.
    pub(crate) kr: usize,
    /// Whether panels begin with weight sums.
    pub(crate) sums: bool,
}

/// Whether weights of this width are stored as nibbles.
pub(crate) const fn nibbles(bits: BitWidth) -> bool {
    match bits {
        BitWidth::B2 | BitWidth::B3 | BitWidth::B4 => true,
        BitWidth::B6 | BitWidth::B8 => false,
    }
}

/// Codes unpacked at once: whole bytes at every width, whole groups at every `kr`.
const CHUNK: usize = 64;

impl Layout {
    /// Groups of a strip; nibbles come in pairs of groups.
    pub(crate) const fn groups(&self, k: usize, bits: BitWidth) -> usize {
        let groups = k.div_ceil(self.kr);
        if nibbles(bits) {
            groups.next_multiple_of(2)
        } else {
            groups
        }
    }

    /// Bytes of a panel of s8.
    pub(crate) const fn unpacked_len(&self, k: usize, bits: BitWidth) -> usize {
        self.groups(k, bits) * self.kr * self.nr
    }

    const fn header_len(&self) -> usize {
        if self.sums {
            self.nr * size_of::<i32>()
        } else {
            0
        }
    }

    /// Bytes of a panel as stored.
    const fn stored_len(&self, k: usize, bits: BitWidth) -> usize {
        let unpacked = self.unpacked_len(k, bits);
        self.header_len()
            + if nibbles(bits) {
                unpacked / 2
            } else {
                unpacked
            }
    }

    /// Bytes of all panels.
    pub(crate) const fn packed_len(&self, shape: &GemmShape) -> usize {
        shape.n.div_ceil(self.nr) * self.stored_len(shape.k, shape.weight_bits)
    }

    /// Where the weight of output `j` of a panel at `k` lies among its bytes.
    pub(crate) const fn position(&self, j: usize, k: usize, groups: usize) -> usize {
        ((j / self.sub * groups + k / self.kr) * self.sub + j % self.sub) * self.kr + k % self.kr
    }

    /// Re-orders dense weights into panels.
    pub(crate) fn pack(&self, shape: &GemmShape, dense: &[u8], out: &mut [u8]) {
        let bits = shape.weight_bits;
        let stored_len = self.stored_len(shape.k, bits);
        if stored_len == 0 {
            return;
        }
        for (p, panel) in out.chunks_exact_mut(stored_len).enumerate() {
            let (header, body) = panel.split_at_mut(self.header_len());
            let padding = if nibbles(bits) { 0x88 } else { 0 };
            body.fill(padding);
            header.fill(0);
            let outputs = usize::min(self.nr, shape.n - p * self.nr);
            for j in 0..outputs {
                let sum = self.pack_output(shape, dense, p * self.nr + j, j, body);
                if self.sums {
                    header[4 * j..][..4].copy_from_slice(&sum.to_le_bytes());
                }
            }
        }
    }

    /// Packs output `n` as output `j` of its panel and returns its weight sum.
    fn pack_output(
        &self,
        shape: &GemmShape,
        dense: &[u8],
        n: usize,
        j: usize,
        body: &mut [u8],
    ) -> i32 {
        let bits = shape.weight_bits;
        let center = bits.center();
        let row_bytes = bits.row_bytes(shape.k);
        let row = &dense[n * row_bytes..][..row_bytes];
        debug_assert_eq!(CHUNK % self.kr, 0);
        // Where the output's first weight lies, and how far apart its groups are.
        let group_len = self.sub * self.kr;
        let lane = j % self.sub * self.kr;
        let strip = j / self.sub * self.groups(shape.k, bits) * group_len;
        let mut sum = 0;
        let mut codes = [0; CHUNK];
        for start in (0..shape.k).step_by(CHUNK) {
            let len = usize::min(CHUNK, shape.k - start);
            unpack_chunk(bits, &row[bits.row_bytes(start)..], &mut codes[..len]);
            let groups = (start / self.kr..).zip(codes[..len].chunks(self.kr));
            for (group, codes) in groups {
                let weights = codes.iter().map(|code| code.wrapping_sub(center));
                sum += weights.clone().map(|w| i32::from(w as i8)).sum::<i32>();
                if nibbles(bits) {
                    // Two groups share their bytes; a strip has an even number of them.
                    let (at, shift) = (strip / 2 + group / 2 * group_len + lane, group % 2 * 4);
                    for (byte, weight) in body[at..].iter_mut().zip(weights) {
                        let nibble = weight.wrapping_add(8) & 0x0f;
                        *byte = *byte & (0xf0 >> shift) | nibble << shift;
                    }
                } else {
                    let at = strip + group * group_len + lane;
                    for (byte, weight) in body[at..].iter_mut().zip(weights) {
                        *byte = weight;
                    }
                }
            }
        }
        sum
    }
}

/// The first `out.len()` codes of `dense`, which begins on a byte.
fn unpack_chunk(bits: BitWidth, dense: &[u8], out: &mut [u8]) {
    match bits {
        BitWidth::B8 => out.copy_from_slice(&dense[..out.len()]),
        BitWidth::B4 => {
            for (i, code) in out.iter_mut().enumerate() {
                *code = dense[i / 2] >> (i % 2 * 4) & 0x0f;
            }
        }
        BitWidth::B2 | BitWidth::B3 | BitWidth::B6 => {
            // Eight codes are b bytes; `unpack` finishes a row that ends earlier.
            let width = bits.bits() as usize;
            let (eights, rest) = out.as_chunks_mut::<8>();
            for (eight, bytes) in eights.iter_mut().zip(dense.chunks_exact(width)) {
                let mut word = [0; 8];
                word[..width].copy_from_slice(bytes);
                let word = u64::from_le_bytes(word);
                for (i, code) in eight.iter_mut().enumerate() {
                    *code = (word >> (i * width)) as u8 & bits.max_code();
                }
            }
            unpack::unpack_row(bits, &dense[eights.len() * width..], rest);
        }
    }
}

/// Packed weights, read one panel at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panels<'p> {
    layout: Layout,
    bits: BitWidth,
    k: usize,
    packed: &'p [u8],
}

impl<'p> Panels<'p> {
    pub(crate) fn new(layout: Layout, shape: &GemmShape, packed: &'p [u8]) -> Self {
        Self {
            layout,
            bits: shape.weight_bits,
            k: shape.k,
            packed,
        }
    }

    /// The stored bytes of panel `p`.
    #[inline(always)]
    fn stored(&self, p: usize) -> &'p [u8] {
        let len = self.layout.stored_len(self.k, self.bits);
        &self.packed[p * len..][..len]
    }

    /// Whether some weight is `lowest`; says so too of nibbles, unseen.
    #[cfg_attr(not(target_arch = "aarch64"), allow(dead_code))]
    #[inline(always)]
    pub(crate) fn hold(&self, lowest: u8) -> bool {
        let len = self.layout.stored_len(self.k, self.bits);
        if nibbles(self.bits) || len == 0 {
            return true;
        }
        self.packed.chunks_exact(len).any(|panel| {
            let body = &panel[self.layout.header_len()..];
            body.iter()
                .fold(false, |held, &weight| held | (weight == lowest))
        })
    }

    /// The weight sum of each output of block `v` of panel `p`; 0 without `sums`.
    #[inline(always)]
    pub(crate) fn sums(&self, p: usize, v: usize) -> [i32; 16] {
        let mut sums = [0; 16];
        if self.layout.sums {
            let (words, _) = self.stored(p)[64 * v..][..64].as_chunks::<4>();
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum = i32::from_le_bytes(*word);
            }
        }
        sums
    }

    /// Panel `p` as s8; `scratch` (`[unpacked_len]`) receives it if it is stored as nibbles.
    /// `PAIR` is `2 * sub * kr`, a constant so that the loop becomes vector code.
    #[inline(always)]
    pub(crate) fn load<'s, const PAIR: usize>(&self, p: usize, scratch: &'s mut [u8]) -> &'s [u8]
    where
        'p: 's,
    {
        debug_assert_eq!(PAIR, 2 * self.layout.sub * self.layout.kr);
        let body = &self.stored(p)[self.layout.header_len()..];
        if !nibbles(self.bits) {
            return body;
        }
        let (pairs, _) = scratch.as_chunks_mut::<PAIR>();
        for (pair, bytes) in pairs.iter_mut().zip(body.chunks_exact(PAIR / 2)) {
            let (even, odd) = pair.split_at_mut(PAIR / 2);
            for ((even, odd), byte) in even.iter_mut().zip(odd).zip(bytes) {
                *even = (byte & 0x0f).wrapping_sub(8);
                *odd = (byte >> 4).wrapping_sub(8);
            }
        }
        scratch
    }
}
