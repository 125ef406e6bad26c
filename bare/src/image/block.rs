//! The block of memory that a session lives in.

use core::cell::UnsafeCell;
use core::ptr::from_ref;
use core::slice;

unsafe extern "C" {
    // It may be written, from the start on.
    static __block_start: UnsafeCell<u8>;
    static __block_end: u8;
}

/// All of it, whatever it holds.
///
/// # Safety
/// To be called once.
pub(crate) unsafe fn take() -> &'static mut [u8] {
    // SAFETY: the linker script defines it; only its address is taken.
    let start = unsafe { __block_start.get() };
    // SAFETY: the same.
    let end = from_ref(unsafe { &__block_end });
    // SAFETY: this memory is nobody else's, and is taken once.
    unsafe { slice::from_raw_parts_mut(start, end as usize - start as usize) }
}
