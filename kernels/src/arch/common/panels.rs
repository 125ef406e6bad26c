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

use core::slice::Chunks;

use crate::{BitWidth, GemmShape};

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

/// Bytes of a cache line.
const LINE: usize = 64;

/// Codes unpacked at once: whole bytes at every width, whole pairs of groups at every `kr`.
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
        // A constant `KR` makes the move of a group one instruction.
        match self.kr {
            2 => self.pack_groups::<2>(shape, dense, out),
            4 => self.pack_groups::<4>(shape, dense, out),
            8 => self.pack_groups::<8>(shape, dense, out),
            16 => self.pack_groups::<16>(shape, dense, out),
            kr => unreachable!("no tile takes groups of {kr}"),
        }
    }

    /// [`CHUNK`] codes of one output after the other, so that what they are
    /// scattered to stays in L1 until the panel's outputs have filled it.
    fn pack_groups<const KR: usize>(&self, shape: &GemmShape, dense: &[u8], out: &mut [u8]) {
        let GemmShape {
            n,
            k,
            weight_bits: bits,
            act_max: _,
        } = *shape;
        let stored_len = self.stored_len(k, bits);
        if stored_len == 0 {
            return;
        }
        let row_bytes = bits.row_bytes(k);
        // Two groups of nibbles share their bytes.
        let groups = self.groups(k, bits) / if nibbles(bits) { 2 } else { 1 };
        let chunk = CHUNK / KR / if nibbles(bits) { 2 } else { 1 };
        for (p, panel) in out.chunks_exact_mut(stored_len).enumerate() {
            let (header, body) = panel.split_at_mut(self.header_len());
            let (body, _) = body.as_chunks_mut::<KR>();
            let outputs = usize::min(self.nr, n - p * self.nr);
            if outputs < self.nr {
                header.fill(0);
                body.fill([if nibbles(bits) { 0x88 } else { 0 }; KR]);
            }
            let (sums, _) = header.as_chunks_mut::<4>();
            sums.fill([0; 4]);
            for start in (0..k).step_by(CHUNK) {
                let first = start / CHUNK * chunk;
                let len = usize::min(chunk, groups - first);
                for j in 0..outputs {
                    let row = &dense[(p * self.nr + j) * row_bytes..][..row_bytes];
                    let codes = codes(bits, row, start, k);
                    let strip = j / self.sub * groups * self.sub;
                    let slots = &mut body[strip + first * self.sub + j % self.sub..];
                    let slots = slots.iter_mut().step_by(self.sub).take(len);
                    if nibbles(bits) {
                        scatter(slots, &nibble_pairs::<KR>(&codes, bits));
                    } else {
                        scatter(slots, &codes.map(|code| code.wrapping_sub(bits.center())));
                    }
                    if let Some(sum) = sums.get_mut(j) {
                        let more: i32 = codes.iter().map(|&code| i32::from(code)).sum();
                        let more = more - CHUNK as i32 * i32::from(bits.center());
                        *sum = (i32::from_le_bytes(*sum) + more).to_le_bytes();
                    }
                }
            }
        }
    }
}

/// Moves groups to every `sub`-th slot.
fn scatter<'s, const KR: usize>(
    slots: impl Iterator<Item = &'s mut [u8; KR]>,
    weights: &[u8; CHUNK],
) {
    let (groups, _) = weights.as_chunks::<KR>();
    for (slot, group) in slots.zip(groups) {
        *slot = *group;
    }
}

/// Two groups of codes in each group of bytes, as `w + 8`; the first half counts.
fn nibble_pairs<const KR: usize>(codes: &[u8; CHUNK], bits: BitWidth) -> [u8; CHUNK] {
    let offset = 8 - bits.center();
    let mut bytes = [0; CHUNK];
    let (pairs, _) = bytes.as_chunks_mut::<KR>();
    let (groups, _) = codes.as_chunks::<KR>();
    let (twos, _) = groups.as_chunks::<2>();
    for (pair, [even, odd]) in pairs.iter_mut().zip(twos) {
        for i in 0..KR {
            pair[i] = (even[i] + offset) | (odd[i] + offset) << 4;
        }
    }
    bytes
}

/// Codes `start .. start + CHUNK` of a dense row of `k`; beyond its end, weight 0.
fn codes(bits: BitWidth, row: &[u8], start: usize, k: usize) -> [u8; CHUNK] {
    let dense = &row[bits.row_bytes(start)..];
    let width = bits.bits() as usize;
    let mut bytes = [0; CHUNK];
    let len = usize::min(CHUNK / 8 * width, dense.len());
    if len == CHUNK {
        bytes.copy_from_slice(&dense[..CHUNK]);
    } else {
        bytes[..len].copy_from_slice(&dense[..len]);
    }
    let mut codes = match bits {
        BitWidth::B8 => bytes,
        BitWidth::B6 => spread::<6>(&bytes),
        BitWidth::B4 => spread::<4>(&bytes),
        BitWidth::B3 => spread::<3>(&bytes),
        BitWidth::B2 => spread::<2>(&bytes),
    };
    if k - start < CHUNK {
        codes[k - start..].fill(bits.center());
    }
    codes
}

/// Codes of `WIDTH` bits to bytes. Eight codes are `WIDTH` bytes; they are parted
/// in halves three times:
///
/// ```text
/// 8 codes side by side  ->  4 in each 32 bits  ->  2 in each 16 bits  ->  1 in each byte
/// ```
fn spread<const WIDTH: usize>(bytes: &[u8; CHUNK]) -> [u8; CHUNK] {
    let mut codes = [0; CHUNK];
    let (eights, _) = codes.as_chunks_mut::<8>();
    for (i, eight) in eights.iter_mut().enumerate() {
        let mut word = [0; 8];
        word[..WIDTH].copy_from_slice(&bytes[i * WIDTH..][..WIDTH]);
        let mut word = u64::from_le_bytes(word);
        for (lane, count) in [(64, 4), (32, 2), (16, 1)] {
            let low = every(lane, (1 << (count * WIDTH)) - 1);
            let high = low << (count * WIDTH);
            word = (word & low) | (word & high) << (lane / 2 - count * WIDTH);
        }
        *eight = word.to_le_bytes();
    }
    codes
}

/// `mask` in every `lane` bits.
const fn every(lane: usize, mask: u64) -> u64 {
    let mut every = 0;
    let mut at = 0;
    while at < 64 {
        every |= mask << at;
        at += lane;
    }
    every
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

    /// The cache lines of panel `p` as stored, if there is such a panel.
    #[inline(always)]
    pub(crate) fn lines(&self, p: usize) -> Chunks<'p, u8> {
        let len = self.layout.stored_len(self.k, self.bits);
        let panel = self.packed.get(p * len..(p + 1) * len);
        panel.unwrap_or_default().chunks(LINE)
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
