//! What a session keeps, as one run of bytes: words and arrays one after the other.
//!
//! [`Writer`] puts them there, [`Reader`] takes them out in the same order; each place
//! in `compile.rs` that writes something has its counterpart in `step.rs`. Without
//! memory a writer only counts: so a plan is exact, for it is made by what it plans.
//!
//! ```text
//! step     next | kind, rows, output ... | array | array | word | array ...
//!          where the step behind begins    each on a line
//! ```

use bytemuck::Pod;

use crate::block::LINE;

/// Writes, or counts.
pub(crate) struct Writer<'b> {
    memory: Option<&'b mut [u8]>,
    at: usize,
}

impl<'b> Writer<'b> {
    /// Writes to `memory`, which begins on a line.
    pub(crate) fn to(memory: &'b mut [u8]) -> Writer<'b> {
        Writer {
            memory: Some(memory),
            at: 0,
        }
    }

    /// Counts bytes.
    pub(crate) fn counting() -> Writer<'b> {
        Writer {
            memory: None,
            at: 0,
        }
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.at
    }

    pub(crate) fn words<const N: usize>(&mut self, words: [usize; N]) {
        self.piece(N, size_of::<usize>(), |_, to| to.copy_from_slice(&words));
    }

    /// A word that is known later.
    pub(crate) fn later(&mut self) -> Later {
        self.words([0]);
        Later(self.at - size_of::<usize>())
    }

    /// The word that [`later`](Writer::later) left out.
    pub(crate) fn set(&mut self, place: Later, word: usize) {
        if let Some(memory) = &mut self.memory {
            memory[place.0..][..size_of::<usize>()].copy_from_slice(&word.to_ne_bytes());
        }
    }

    /// `len` numbers on a line; `fill` is called only if there is memory.
    pub(crate) fn array<T: Pod>(&mut self, len: usize, fill: impl FnOnce(&mut [T])) {
        self.piece(len, LINE, |_, to| fill(to));
    }

    /// As [`array`](Writer::array), with all that was written before, as bytes.
    pub(crate) fn array_after<T: Pod>(&mut self, len: usize, fill: impl FnOnce(&[u8], &mut [T])) {
        self.piece(len, LINE, fill);
    }

    fn piece<T: Pod>(&mut self, len: usize, align: usize, fill: impl FnOnce(&[u8], &mut [T])) {
        let start = self.at.next_multiple_of(align);
        self.at = start + len * size_of::<T>();
        if let Some(memory) = &mut self.memory {
            let (before, rest) = memory.split_at_mut(start);
            let bytes = &mut rest[..len * size_of::<T>()];
            fill(before, bytemuck::cast_slice_mut(bytes));
        }
    }
}

/// Where a word is missing.
pub(crate) struct Later(usize);

/// Reads what a [`Writer`] wrote.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'b> {
    memory: &'b [u8],
    /// What the image leaves where it lies.
    file: &'b [u8],
    at: usize,
}

impl<'b> Reader<'b> {
    pub(crate) fn new(memory: &'b [u8], file: &'b [u8]) -> Reader<'b> {
        Reader {
            memory,
            file,
            at: 0,
        }
    }

    /// `len` bytes of the file, at a place that a word says.
    pub(crate) fn of_file(&self, start: usize, len: usize) -> &'b [u8] {
        &self.file[start..][..len]
    }

    /// Goes on at `at`, which a word says.
    pub(crate) fn skip_to(&mut self, at: usize) {
        self.at = at;
    }

    pub(crate) fn words<const N: usize>(&mut self) -> [usize; N] {
        let mut words = [0; N];
        words.copy_from_slice(self.piece(N, size_of::<usize>()));
        words
    }

    pub(crate) fn array<T: Pod>(&mut self, len: usize) -> &'b [T] {
        self.piece(len, LINE)
    }

    fn piece<T: Pod>(&mut self, len: usize, align: usize) -> &'b [T] {
        let start = self.at.next_multiple_of(align);
        self.at = start + len * size_of::<T>();
        bytemuck::cast_slice(&self.memory[start..self.at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Block;

    fn write(out: &mut Writer<'_>) {
        let next = out.later();
        out.words([7, 8]);
        out.array::<u8>(3, |a| a.copy_from_slice(&[1, 2, 3]));
        out.array_after::<f32>(2, |before, a| {
            assert_eq!(before[LINE..][..3], [1, 2, 3]);
            a.fill(0.5);
        });
        let len = out.len();
        out.set(next, len);
        out.words([9]);
    }

    #[test]
    fn what_was_written_is_read_and_takes_what_was_counted() {
        let mut counted = Writer::counting();
        write(&mut counted);
        let mut block = Block::owned(counted.len());
        let mut out = Writer::to(&mut block);
        write(&mut out);
        assert_eq!(out.len(), counted.len());

        let mut from = Reader::new(&block, &[]);
        let [next, a, b] = from.words();
        assert_eq!([a, b], [7, 8]);
        let mut behind = from;
        assert_eq!(from.array::<u8>(3), [1, 2, 3]);
        assert_eq!(from.array::<f32>(2), [0.5; 2]);
        behind.skip_to(next);
        assert_eq!([from.words(), behind.words()], [[9]; 2]);
    }
}
