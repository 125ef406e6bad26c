//! Memory for JavaScript, which has no `malloc` of ours: WebAssembly only.
//!
//! All else that a page calls is [`abi`](crate::abi); its pointers are offsets
//! in the module's memory.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr;

/// Enough for everything that `abi` takes.
const ALIGN: usize = 8;

fn layout(len: usize) -> Option<Layout> {
    Layout::from_size_align(len.max(1), ALIGN).ok()
}

/// `len` bytes that are not initialised, at a multiple of 8; NULL if there is
/// no room.
#[unsafe(no_mangle)]
pub extern "C" fn tpvit_alloc(len: usize) -> *mut u8 {
    match layout(len) {
        // SAFETY: at least one byte.
        Some(layout) => unsafe { alloc(layout) },
        None => ptr::null_mut(),
    }
}

/// Gives them back. NULL is allowed.
///
/// # Safety
/// `bytes` came from [`tpvit_alloc`] with the same `len` and was not given back
/// before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tpvit_dealloc(bytes: *mut u8, len: usize) {
    if let (Some(layout), false) = (layout(len), bytes.is_null()) {
        // SAFETY: the caller's promise; `alloc` got the same layout.
        unsafe { dealloc(bytes, layout) };
    }
}
