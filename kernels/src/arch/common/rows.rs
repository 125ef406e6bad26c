//! The activations of a tile, a group of k at a time.

/// `R` rows, cut into groups of `G` codes.
///
/// Built by loops, because `array::from_fn` and `map` are not always inlined.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a, const R: usize, const G: usize> {
    whole: [&'a [[u8; G]]; R],
    /// The last codes of each row, filled up with zeros (they meet weights of 0).
    rest: [[[u8; G]; 1]; R],
}

impl<'a, const R: usize, const G: usize> Rows<'a, R, G> {
    /// Rows of `k` codes, `stride` apart.
    #[inline(always)]
    pub(crate) fn new(a: &'a [u8], stride: usize, k: usize) -> Self {
        Self::repeated(a, stride, R, k)
    }

    /// `rows` rows of `k` codes, `stride` apart; the last one stands in for those
    /// that are missing.
    #[inline(always)]
    pub(crate) fn repeated(a: &'a [u8], stride: usize, rows: usize, k: usize) -> Self {
        let mut whole: [&[[u8; G]]; R] = [&[]; R];
        let mut rest = [[[0; G]]; R];
        for r in 0..R {
            let row = usize::min(r, rows - 1);
            let (groups, tail) = a[row * stride..][..k].as_chunks::<G>();
            whole[r] = &groups[..k / G];
            if !tail.is_empty() {
                rest[r][0][..tail.len()].copy_from_slice(tail);
            }
        }
        Self { whole, rest }
    }

    /// Groups `start .. end` of each row, all whole.
    #[inline(always)]
    pub(crate) fn groups(&self, start: usize, end: usize) -> [&'a [[u8; G]]; R] {
        let mut groups: [&[[u8; G]]; R] = [&[]; R];
        for (groups, whole) in groups.iter_mut().zip(self.whole) {
            *groups = &whole[start..end];
        }
        groups
    }

    /// The one group that is not whole.
    #[inline(always)]
    pub(crate) fn rest(&self) -> [&[[u8; G]]; R] {
        let mut groups: [&[[u8; G]]; R] = [&[]; R];
        for (groups, rest) in groups.iter_mut().zip(&self.rest) {
            *groups = rest;
        }
        groups
    }
}
