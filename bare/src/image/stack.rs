//! How deep the stack has ever been.
//!
//! `boot.s` paints it; what is still painted was never used. A word that was written
//! with just this value would be missed, and the words above it would not.

use core::ptr::{from_ref, read_volatile};

/// What the stack is painted with.
pub(crate) const PAINT: u64 = 0x5AFE_57AC_C0DE_D00D;

unsafe extern "C" {
    static __stack_bottom: u64;
    static __stack_top: u64;
}

/// Bytes of the stack.
pub(crate) fn len() -> usize {
    let (bottom, top) = ends();
    top as usize - bottom as usize
}

/// Bytes of it that have been used.
pub(crate) fn high_water() -> usize {
    let (mut word, top) = ends();
    // SAFETY: from `__stack_bottom` on there are words up to `__stack_top`.
    while word < top && unsafe { read_volatile(word) } == PAINT {
        word = word.wrapping_add(1);
    }
    top as usize - word as usize
}

fn ends() -> (*const u64, *const u64) {
    // SAFETY: the linker script defines it; only its address is taken.
    let bottom = from_ref(unsafe { &__stack_bottom });
    // SAFETY: the same.
    let top = from_ref(unsafe { &__stack_top });
    (bottom, top)
}
