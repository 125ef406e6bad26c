//! Memory that begins on a cache line.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::{Deref, DerefMut};

/// Bytes of a cache line, and of the widest vector: a load that starts on a
/// multiple of it touches one line, not two.
const LINE: usize = 64;

/// A slice of the heap whose first byte lies at a multiple of [`LINE`].
///
/// An allocator promises less, so this asks for a line more and starts later.
#[derive(Debug, Default)]
pub(crate) struct Aligned<T> {
    memory: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Copy + Default> Aligned<T> {
    /// `len` zeros.
    pub(crate) fn zeroed(len: usize) -> Aligned<T> {
        if len == 0 {
            return Aligned::default();
        }
        let memory = vec![T::default(); len + LINE / size_of::<T>()];
        // The heap block stays where it is, whoever owns the vector.
        let start = memory.as_ptr().align_offset(LINE);
        Aligned { memory, start, len }
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.memory[self.start..][..self.len]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.memory[self.start..][..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Copy + Default + PartialEq + core::fmt::Debug>() {
        for len in [0, 1, 63, 64, 1000, 100_000] {
            let mut block = Aligned::<T>::zeroed(len);
            assert_eq!(*block, vec![T::default(); len][..]);
            assert_eq!(block.iter_mut().count(), len);
            assert!(len == 0 || (block.as_ptr() as usize).is_multiple_of(LINE));
        }
    }

    #[test]
    fn blocks_begin_on_a_line_and_are_zero() {
        check::<u8>();
        check::<f32>();
    }
}
