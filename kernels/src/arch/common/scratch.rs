//! Cuts typed, aligned pieces out of the caller's bytes.

/// Alignment of every piece: a cache line, and a zmm register.
const ALIGN: usize = 64;

/// A type without padding that any bytes make a value of.
pub(crate) trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for i8 {}
impl Plain for i32 {}

/// Bytes to ask for, so that `len` values of `T` can be cut off.
pub(crate) const fn cut_len<T: Plain>(len: usize) -> usize {
    (len * size_of::<T>()).next_multiple_of(ALIGN) + ALIGN
}

/// Cuts `len` values of `T`, 64-byte aligned, off the front of `scratch`.
///
/// # Panics
/// If `scratch` is shorter than [`cut_len`] says.
pub(crate) fn cut<'s, T: Plain>(scratch: &mut &'s mut [u8], len: usize) -> &'s mut [T] {
    let rest = core::mem::take(scratch);
    let skip = rest.as_ptr().align_offset(ALIGN);
    let (_, rest) = rest.split_at_mut(skip);
    let (piece, rest) = rest.split_at_mut((len * size_of::<T>()).next_multiple_of(ALIGN));
    *scratch = rest;
    // SAFETY: `Plain` types have no invalid values and no padding.
    let (head, values, _) = unsafe { piece.align_to_mut::<T>() };
    debug_assert!(head.is_empty(), "the piece was cut at an aligned address");
    &mut values[..len]
}

#[cfg(test)]
mod tests {
    use super::{cut, cut_len};

    #[test]
    fn pieces_are_aligned_and_fit_at_any_address() {
        let mut bytes = [0_u8; 1024];
        for start in 0..64 {
            let need = cut_len::<i32>(5) + cut_len::<u8>(3);
            let mut scratch = &mut bytes[start..start + need];
            let words = cut::<i32>(&mut scratch, 5);
            let codes = cut::<u8>(&mut scratch, 3);
            assert_eq!((words.len(), codes.len()), (5, 3));
            assert_eq!(words.as_ptr() as usize % 64, 0);
            assert_eq!(codes.as_ptr() as usize % 64, 0);
        }
    }
}
