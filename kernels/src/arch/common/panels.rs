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

use core::fmt;
use core::slice::Chunks;

use crate::{BitWidth, GemmShape, Isa, MAX_K};

/// The numbers that fix the order of packed weights.
///
/// They say all there is to know: weights that lie in one order can be read, and moved
/// to another, on every CPU. `models/SPEC.md`, section 7, draws it, for files hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Outputs of a panel, a multiple of 16.
    pub nr: usize,
    /// Outputs of a strip; divides `nr`.
    pub sub: usize,
    /// Consecutive k that lie side by side: 2, 4, 8 or 16.
    pub kr: usize,
    /// Whether panels begin with weight sums.
    pub sums: bool,
}

/// Why bytes are no packed weights of a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PanelFault {
    /// A weight exceeds the range of its width.
    Range {
        /// The panel it is in.
        panel: usize,
    },
    /// What lies beyond the edges of n or k is not weight 0.
    Edge {
        /// The panel it is in.
        panel: usize,
    },
    /// A sum is not that of an output's weights.
    Sum {
        /// The output.
        output: usize,
    },
}

impl fmt::Display for PanelFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range { panel } => write!(f, "panel {panel} has a weight that its bits exclude"),
            Self::Edge { panel } => write!(f, "panel {panel} is not filled with zeros"),
            Self::Sum { output } => {
                write!(f, "the sum of output {output} is not that of its weights")
            }
        }
    }
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

/// `$body` with `$KR` a constant, which makes the move of a group one instruction.
macro_rules! by_kr {
    ($kr:expr, $KR:ident => $body:expr) => {
        match $kr {
            2 => {
                const $KR: usize = 2;
                $body
            }
            4 => {
                const $KR: usize = 4;
                $body
            }
            8 => {
                const $KR: usize = 8;
                $body
            }
            16 => {
                const $KR: usize = 16;
                $body
            }
            kr => unreachable!("no tile takes groups of {kr}"),
        }
    };
}

/// Codes unpacked at once: whole bytes at every width, whole pairs of groups at every `kr`.
const CHUNK: usize = 64;

impl Layout {
    /// The order that the kernels of `isa` take weights of this shape in, whether or
    /// not this CPU has it.
    pub const fn of(isa: Isa, shape: &GemmShape) -> Self {
        const fn layout(nr: usize, sub: usize, kr: usize, sums: bool) -> Layout {
            Layout { nr, sub, kr, sums }
        }
        match isa {
            Isa::Portable => layout(16, 1, 16, false),
            Isa::Avx2 => {
                // Bytes where 16 bits hold four pairs of products, else words.
                let pair = 2 * shape.act_max as usize * shape.weight_bits.center() as usize;
                layout(
                    16,
                    16,
                    if 4 * pair <= i16::MAX as usize { 4 } else { 2 },
                    false,
                )
            }
            Isa::AvxVnni => layout(16, 16, 4, false),
            Isa::Avx512Vnni => layout(48, 48, 4, false),
            Isa::Neon => layout(16, 4, 16, true),
            Isa::Dotprod => layout(16, 8, 4, true),
            Isa::I8mm => layout(16, 8, 8, false),
        }
    }

    /// Whether the numbers are in their ranges, `nr` at most 240.
    pub const fn is_valid(&self) -> bool {
        let panel = self.nr > 0 && self.nr <= 240 && self.nr.is_multiple_of(16);
        let strip = self.sub > 0 && self.nr.is_multiple_of(self.sub);
        panel && strip && matches!(self.kr, 2 | 4 | 8 | 16)
    }

    /// Bytes of all panels; `None` where that exceeds a `usize`.
    ///
    /// # Panics
    /// If the layout is not [valid](Self::is_valid), or `shape.k > MAX_K`.
    pub const fn checked_packed_len(&self, shape: &GemmShape) -> Option<usize> {
        assert!(self.is_valid(), "the numbers of the order are in range");
        assert!(shape.k <= MAX_K, "k is at most MAX_K");
        // 240 outputs of MAX_K weights and their sums: far below 2^31.
        let panel = self.stored_len(shape.k, shape.weight_bits);
        shape.n.div_ceil(self.nr).checked_mul(panel)
    }

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

    /// Re-orders dense weights ([`GemmShape::dense_len`]) into panels, of which `out`
    /// has the bytes.
    ///
    /// # Panics
    /// If a length disagrees with `shape`, the layout is not [valid](Self::is_valid),
    /// or `shape.k > MAX_K`.
    pub fn pack(&self, shape: &GemmShape, dense: &[u8], out: &mut [u8]) {
        assert_eq!(
            dense.len(),
            shape.dense_len(),
            "dense weights are n rows of ceil(k * b / 8) bytes"
        );
        let row_bytes = shape.weight_bits.row_bytes(shape.k);
        self.pack_codes(shape, out, &|n, start| {
            let row = &dense[n * row_bytes..][..row_bytes];
            codes(shape.weight_bits, row, start, shape.k)
        });
    }

    /// Moves weights that lie in panels of another order.
    ///
    /// # Panics
    /// As [`pack`](Self::pack).
    pub fn repack(&self, shape: &GemmShape, from: &Layout, panels: &[u8], out: &mut [u8]) {
        from.check_len(shape, panels.len());
        self.pack_codes(
            shape,
            out,
            &|n, start| by_kr!(from.kr, KR => from.codes::<KR>(shape, panels, n, start)),
        );
    }

    /// The codes of one output, `[k]`, one a byte.
    ///
    /// # Panics
    /// If there is no such output, or as [`pack`](Self::pack).
    pub fn unpack_row(&self, shape: &GemmShape, panels: &[u8], output: usize, out: &mut [u8]) {
        self.check_len(shape, panels.len());
        assert!(output < shape.n, "there is such an output");
        assert_eq!(out.len(), shape.k, "one byte for each code");
        for (i, out) in out.chunks_mut(CHUNK).enumerate() {
            let start = i * CHUNK;
            let codes = by_kr!(self.kr, KR => self.codes::<KR>(shape, panels, output, start));
            out.copy_from_slice(&codes[..out.len()]);
        }
    }

    /// `out[n] = sum over k of factors[k] * weight[n, k]`, weights signed; `factors`
    /// are `[k]`, or `[1]` for all k. Exact: `255 * 128 * MAX_K < 2^31`.
    ///
    /// # Panics
    /// If `out` is not `[n]`, or as [`pack`](Self::pack).
    pub fn dots(&self, shape: &GemmShape, panels: &[u8], factors: &[u8], out: &mut [i32]) {
        self.check_len(shape, panels.len());
        assert_eq!(out.len(), shape.n, "one sum for each output");
        if let [factor] = *factors {
            self.weight_sums(shape, panels, out);
            out.iter_mut().for_each(|sum| *sum *= i32::from(factor));
            return;
        }
        assert_eq!(factors.len(), shape.k, "one factor for each k");
        self.sum(shape, panels, Some(factors), out);
    }

    /// The sum of each output's weights: those that the panels begin with, if they do.
    fn weight_sums(&self, shape: &GemmShape, panels: &[u8], out: &mut [i32]) {
        if !self.sums {
            self.sum(shape, panels, None, out);
            return;
        }
        let panel_len = self.stored_len(shape.k, shape.weight_bits);
        for (panel, out) in panels.chunks_exact(panel_len).zip(out.chunks_mut(self.nr)) {
            let (words, _) = panel.as_chunks::<4>();
            for (out, word) in out.iter_mut().zip(words) {
                *out = i32::from_le_bytes(*word);
            }
        }
    }

    /// Whether `panels` hold weights of this shape and nothing else, as
    /// [`pack`](Self::pack) leaves them.
    ///
    /// # Errors
    /// The first thing that is wrong.
    ///
    /// # Panics
    /// If the length is wrong, or as [`pack`](Self::pack).
    pub fn check(&self, shape: &GemmShape, panels: &[u8]) -> Result<(), PanelFault> {
        self.check_len(shape, panels.len());
        let panel_len = self.stored_len(shape.k, shape.weight_bits);
        if panel_len == 0 {
            return Ok(());
        }
        for (index, panel) in panels.chunks_exact(panel_len).enumerate() {
            let (header, body) = panel.split_at(self.header_len());
            if !in_range(body, shape.weight_bits) {
                return Err(PanelFault::Range { panel: index });
            }
            let outputs = usize::min(self.nr, shape.n - index * self.nr);
            let rest = &header[usize::min(4 * outputs, header.len())..];
            if rest.iter().any(|&byte| byte != 0) || !self.edges_are_zero(shape, outputs, body) {
                return Err(PanelFault::Edge { panel: index });
            }
            if self.sums {
                self.check_sums(shape, index, outputs, panel)?;
            }
        }
        Ok(())
    }

    /// Whether all beyond `outputs` and beyond k is weight 0.
    fn edges_are_zero(&self, shape: &GemmShape, outputs: usize, body: &[u8]) -> bool {
        let groups = self.groups(shape.k, shape.weight_bits);
        let width = groups * self.kr;
        let zero = |j: usize, k: usize| self.weight(shape.weight_bits, body, j, k, groups) == 0;
        let columns = |j: usize| {
            if j < outputs {
                shape.k..width
            } else {
                0..width
            }
        };
        (0..self.nr).all(|j| columns(j).all(|k| zero(j, k)))
    }

    /// One weight of a panel without its sums.
    fn weight(&self, bits: BitWidth, body: &[u8], j: usize, k: usize, groups: usize) -> i8 {
        if !nibbles(bits) {
            return body[self.position(j, k, groups)] as i8;
        }
        // A pair of groups shares the bytes of one.
        let column = k / self.kr / 2 * self.kr + k % self.kr;
        let byte = body[self.position(j, column, groups / 2)];
        let nibble = if (k / self.kr).is_multiple_of(2) {
            byte & 0x0f
        } else {
            byte >> 4
        };
        nibble as i8 - 8
    }

    fn check_sums(
        &self,
        shape: &GemmShape,
        index: usize,
        outputs: usize,
        panel: &[u8],
    ) -> Result<(), PanelFault> {
        let one = GemmShape {
            n: outputs,
            ..*shape
        };
        let mut found = [0; 240];
        let found = &mut found[..outputs];
        self.sum(&one, panel, None, found);
        let (words, _) = panel.as_chunks::<4>();
        let stored = words.iter().map(|word| i32::from_le_bytes(*word));
        match found.iter().zip(stored).position(|(a, b)| *a != b) {
            None => Ok(()),
            Some(j) => Err(PanelFault::Sum {
                output: index * self.nr + j,
            }),
        }
    }

    /// Codes `start .. start + CHUNK` of an output, `start` a multiple of [`CHUNK`];
    /// beyond the end of k, weight 0.
    #[inline(always)]
    fn codes<const KR: usize>(
        &self,
        shape: &GemmShape,
        panels: &[u8],
        n: usize,
        start: usize,
    ) -> [u8; CHUNK] {
        let bits = shape.weight_bits;
        let len = self.stored_len(shape.k, bits);
        let body = &panels[n / self.nr * len + self.header_len()..][..len - self.header_len()];
        let (body, _) = body.as_chunks::<KR>();
        let halves = if nibbles(bits) { 2 } else { 1 };
        let groups = self.groups(shape.k, bits) / halves;
        let (chunk, first) = (CHUNK / KR / halves, start / KR / halves);
        let j = n % self.nr;
        let slots = &body[(j / self.sub * groups + first) * self.sub + j % self.sub..];
        let mut bytes = [if nibbles(bits) { 0x88 } else { 0 }; CHUNK];
        let (to, _) = bytes.as_chunks_mut::<KR>();
        let count = usize::min(chunk, groups - first);
        for (to, slot) in to[..count].iter_mut().zip(slots.iter().step_by(self.sub)) {
            *to = *slot;
        }
        if nibbles(bits) {
            part_nibbles::<KR>(&bytes, bits)
        } else {
            bytes.map(|weight| weight.wrapping_add(bits.center()))
        }
    }

    /// `out[n] = sum over k of factors[k] * weight[n, k]`; without factors, those are 1.
    fn sum(&self, shape: &GemmShape, panels: &[u8], factors: Option<&[u8]>, out: &mut [i32]) {
        match self.kr {
            2 => self.sum_across::<2>(shape, panels, factors, out),
            4 => self.sum_across::<4>(shape, panels, factors, out),
            8 => self.sum_along::<8>(shape, panels, factors, out),
            16 => self.sum_along::<16>(shape, panels, factors, out),
            kr => unreachable!("no tile takes groups of {kr}"),
        }
    }

    /// One output after the other: where groups are long.
    fn sum_along<const KR: usize>(
        &self,
        shape: &GemmShape,
        panels: &[u8],
        factors: Option<&[u8]>,
        out: &mut [i32],
    ) {
        let center = i32::from(shape.weight_bits.center());
        for (n, out) in out.iter_mut().enumerate() {
            *out = 0;
            for start in (0..shape.k).step_by(CHUNK) {
                // Beyond k the code is the centre, and counts nothing.
                let codes = self.codes::<KR>(shape, panels, n, start);
                *out += match factors.map(|factors| &factors[start..]) {
                    None => {
                        let sum: u32 = codes.iter().map(|&code| u32::from(code)).sum();
                        sum as i32 - CHUNK as i32 * center
                    }
                    Some(factors) => match factors.first_chunk::<CHUNK>() {
                        Some(factors) => dot(factors, &codes, center),
                        None => dot(factors, &codes[..factors.len()], center),
                    },
                };
            }
        }
    }

    /// One group of all outputs of a strip after the other, each group a word.
    fn sum_across<const KR: usize>(
        &self,
        shape: &GemmShape,
        panels: &[u8],
        factors: Option<&[u8]>,
        out: &mut [i32],
    ) {
        out.fill(0);
        if shape.k == 0 {
            return;
        }
        let bits = shape.weight_bits;
        let panel_len = self.stored_len(shape.k, bits);
        let strip_len = (panel_len - self.header_len()) / (self.nr / self.sub);
        let factor = |k: usize| match factors {
            None => u8::from(k < shape.k),
            Some(factors) => factors.get(k).copied().unwrap_or(0),
        };
        let factors = |g: usize| core::array::from_fn(|i| factor(g * KR + i));
        for (panel, out) in panels.chunks_exact(panel_len).zip(out.chunks_mut(self.nr)) {
            let strips = panel[self.header_len()..].chunks_exact(strip_len);
            for (strip, out) in strips.zip(out.chunks_mut(self.sub)) {
                for (g, group) in strip.chunks_exact(self.sub * KR).enumerate() {
                    let (words, _) = group.as_chunks::<KR>();
                    if nibbles(bits) {
                        let (even, odd) = (factors(2 * g), factors(2 * g + 1));
                        add_words(out, words, even, 8, |w| w & 0x0f0f_0f0f);
                        add_words(out, words, odd, 8, |w| w >> 4 & 0x0f0f_0f0f);
                    } else {
                        add_words(out, words, factors(g), 128, |w| w ^ 0x8080_8080);
                    }
                }
            }
        }
    }

    fn check_len(&self, shape: &GemmShape, len: usize) {
        assert_eq!(
            Some(len),
            self.checked_packed_len(shape),
            "panels have packed_len bytes"
        );
    }

    fn pack_codes(
        &self,
        shape: &GemmShape,
        out: &mut [u8],
        codes: &dyn Fn(usize, usize) -> [u8; CHUNK],
    ) {
        self.check_len(shape, out.len());
        by_kr!(self.kr, KR => self.pack_groups::<KR>(shape, out, codes));
    }

    /// [`CHUNK`] codes of one output after the other, so that what they are
    /// scattered to stays in L1 until the panel's outputs have filled it.
    /// `codes(n, start)` are those of output `n` from k = `start` on, a multiple of
    /// [`CHUNK`]; beyond the end of k, weight 0. A call for each chunk takes little of
    /// its time; a copy of this for each order that they lie in took 46 kB.
    fn pack_groups<const KR: usize>(
        &self,
        shape: &GemmShape,
        out: &mut [u8],
        codes: &dyn Fn(usize, usize) -> [u8; CHUNK],
    ) {
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
                    let codes = codes(p * self.nr + j, start);
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

/// `sum of factor * (code - center)`.
#[inline(always)]
fn dot(factors: &[u8], codes: &[u8], center: i32) -> i32 {
    let (mut dot, mut sum) = (0, 0);
    for (&factor, &code) in factors.iter().zip(codes) {
        dot += u32::from(factor) * u32::from(code);
        sum += u32::from(factor);
    }
    dot as i32 - center * sum as i32
}

/// Adds one group of each output to its sum: `factor * (byte - offset)`, the bytes
/// being those of `part` of the group's word.
#[inline(always)]
fn add_words<const KR: usize>(
    out: &mut [i32],
    words: &[[u8; KR]],
    factors: [u8; KR],
    offset: i32,
    part: impl Fn(u32) -> u32,
) {
    let factors = factors.map(i32::from);
    let owed = offset * factors.iter().sum::<i32>();
    for (out, bytes) in out.iter_mut().zip(words) {
        let mut word = [0; 4];
        word[..KR].copy_from_slice(bytes);
        let word = part(u32::from_le_bytes(word));
        let mut sum = 0;
        for (i, factor) in factors.into_iter().enumerate() {
            sum += (word >> (8 * i) & 0xff) as i32 * factor;
        }
        *out += sum - owed;
    }
}

/// Whether all weights of a panel's bytes are ones that codes of `bits` stand for.
fn in_range(body: &[u8], bits: BitWidth) -> bool {
    let most = bits.max_code();
    let code = |byte: u8| byte.wrapping_add(bits.center());
    let nibble = |nibble: u8| nibble.wrapping_sub(8).wrapping_add(bits.center());
    match bits {
        BitWidth::B8 | BitWidth::B4 => true,
        BitWidth::B6 => body.iter().fold(true, |ok, &b| ok & (code(b) <= most)),
        BitWidth::B2 | BitWidth::B3 => body.iter().fold(true, |ok, &b| {
            ok & (nibble(b & 0x0f) <= most) & (nibble(b >> 4) <= most)
        }),
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

/// The codes of bytes that [`nibble_pairs`] made: the first half of `bytes` counts.
fn part_nibbles<const KR: usize>(bytes: &[u8; CHUNK], bits: BitWidth) -> [u8; CHUNK] {
    let offset = 8 - bits.center();
    let mut codes = [0; CHUNK];
    let (pairs, _) = bytes.as_chunks::<KR>();
    let (groups, _) = codes.as_chunks_mut::<KR>();
    let (twos, _) = groups.as_chunks_mut::<2>();
    for ([even, odd], pair) in twos.iter_mut().zip(pairs) {
        for i in 0..KR {
            even[i] = (pair[i] & 0x0f).wrapping_sub(offset);
            odd[i] = (pair[i] >> 4).wrapping_sub(offset);
        }
    }
    codes
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
