//! One block of memory, and the numbers in it.
//!
//! A session lives in two: what it reads, and what it writes.
//!
//! ```text
//! image    steps, tables, weights        written once, when the session is made (image.rs)
//! arena    activations and scratch       written by every run (exec.rs)
//! ```
//!
//! Both come from the heap, or from bytes that the caller hands in: nothing else tells
//! the two kinds of sessions apart.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::{Deref, DerefMut};

use bytemuck::Pod;

/// Bytes of a cache line, and of the widest vector: a load that starts on a
/// multiple of it touches one line, not two.
pub(crate) const LINE: usize = 64;

/// Bytes of `len` numbers, up to the next line.
pub(crate) const fn lines<T>(len: usize) -> usize {
    (len * size_of::<T>()).next_multiple_of(LINE)
}

/// Memory whose first byte lies at a multiple of [`LINE`].
pub(crate) enum Block<'m> {
    /// From the heap, all zeros. An allocator promises less, so this is a line longer
    /// and starts later.
    Owned {
        memory: Vec<u8>,
        start: usize,
        len: usize,
    },
    /// The caller's.
    Lent(&'m mut [u8]),
}

impl Block<'static> {
    /// `len` zeros.
    pub(crate) fn owned(len: usize) -> Block<'static> {
        let memory = vec![0; len + LINE];
        // The heap block stays where it is, whoever owns the vector.
        let start = memory.as_ptr().align_offset(LINE);
        Block::Owned { memory, start, len }
    }
}

impl Deref for Block<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Block::Owned { memory, start, len } => &memory[*start..][..*len],
            Block::Lent(memory) => memory,
        }
    }
}

impl DerefMut for Block<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Block::Owned { memory, start, len } => &mut memory[*start..][..*len],
            Block::Lent(memory) => memory,
        }
    }
}

/// Bytes before the first line that begins in `memory`; none of it does if they are
/// more than there are.
pub(crate) fn before_line(memory: &[u8]) -> usize {
    memory.as_ptr().align_offset(LINE)
}

/// Cuts `len` numbers off the front of `memory`, whole lines of it.
///
/// # Panics
/// If `memory` does not begin on a line, or is too short.
pub(crate) fn cut<'b, T: Pod>(memory: &mut &'b mut [u8], len: usize) -> &'b mut [T] {
    let (piece, rest) = core::mem::take(memory).split_at_mut(lines::<T>(len));
    *memory = rest;
    bytemuck::cast_slice_mut(&mut piece[..len * size_of::<T>()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_begin_on_a_line_and_are_zero() {
        for len in [0, 1, 63, 64, 1000, 100_000] {
            let mut block = Block::owned(len);
            assert_eq!(*block, vec![0; len][..]);
            assert_eq!(block.iter_mut().count(), len);
            assert!(before_line(&block) == 0);
        }
    }

    #[test]
    fn pieces_follow_each_other_on_lines() {
        let mut block = Block::owned(3 * LINE);
        let mut rest = &mut *block;
        let floats = cut::<f32>(&mut rest, 17);
        assert_eq!(floats, [0.0; 17]);
        assert_eq!(cut::<u8>(&mut rest, LINE).len(), LINE);
        assert!(rest.is_empty());
    }
}
