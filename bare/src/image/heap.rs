//! The heap: first fit in one block of memory, that counts.
//!
//! Free blocks are a list in the order of their addresses; each begins with its size
//! and a pointer to the next. A block that is given back is joined with its
//! neighbours. What is in use has no header, for whoever frees it knows its size.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{self, from_ref, null_mut};

/// Sizes and addresses are multiples of it: a free block has room for its header.
const GRAIN: usize = size_of::<Free>();

#[global_allocator]
static HEAP: Heap = Heap(UnsafeCell::new(State {
    first: null_mut(),
    started: false,
    usage: Usage {
        live: 0,
        peak: 0,
        extent: 0,
        allocations: 0,
    },
}));

unsafe extern "C" {
    static __heap_start: u8;
    static __heap_end: u8;
}

struct Heap(UnsafeCell<State>);

// SAFETY: one core runs, and no interrupt is ever taken.
unsafe impl Sync for Heap {}

struct State {
    first: *mut Free,
    started: bool,
    usage: Usage,
}

#[repr(C)]
struct Free {
    size: usize,
    next: *mut Free,
}

/// What has been asked of the heap.
#[derive(Clone, Copy)]
pub(crate) struct Usage {
    /// Bytes in use.
    pub(crate) live: usize,
    /// The most that were in use at a time, since [`watch`].
    pub(crate) peak: usize,
    /// Bytes of it that were ever touched: `peak` and what lay between.
    pub(crate) extent: usize,
    /// Allocations so far.
    pub(crate) allocations: usize,
}

/// What has been asked of the heap so far.
pub(crate) fn usage() -> Usage {
    // SAFETY: nobody else has a reference: allocations return before anyone asks.
    unsafe { (*HEAP.0.get()).usage }
}

/// Bytes of the heap.
pub(crate) fn len() -> usize {
    let (start, end) = ends();
    end as usize - start as usize
}

fn ends() -> (*mut u8, *mut u8) {
    // SAFETY: the linker script defines it; only its address is taken.
    let start = from_ref(unsafe { &__heap_start });
    // SAFETY: the same.
    let end = from_ref(unsafe { &__heap_end });
    (start.cast_mut(), end.cast_mut())
}

// SAFETY: blocks come from the heap, are in no other block, and as large and aligned
// as asked; an unwinding allocator there is not, since nothing unwinds.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: one core and no interrupts: this is the only reference.
        let state = unsafe { &mut *self.0.get() };
        state.start();
        // SAFETY: the list is sound once it is started.
        let block = unsafe { state.take(size_of_block(&layout), layout.align().max(GRAIN)) };
        if !block.is_null() {
            state.usage.allocations += 1;
            state.usage.live += layout.size();
            state.usage.peak = state.usage.peak.max(state.usage.live);
            let end = block as usize + layout.size() - ends().0 as usize;
            state.usage.extent = state.usage.extent.max(end);
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`.
        let state = unsafe { &mut *self.0.get() };
        state.usage.live -= layout.size();
        // SAFETY: `block` was taken with this layout, and is not used any more.
        unsafe { state.give(block.cast(), size_of_block(&layout)) };
    }
}

fn size_of_block(layout: &Layout) -> usize {
    layout.size().max(1).next_multiple_of(GRAIN)
}

impl State {
    fn start(&mut self) {
        if self.started {
            return;
        }
        self.started = true;
        let (start, _) = ends();
        let size = len() / GRAIN * GRAIN;
        // SAFETY: the whole heap is free, and begins at a multiple of 64.
        unsafe { self.give(start.cast(), size) };
    }

    /// `size` bytes at a multiple of `align`, or null. Both are multiples of [`GRAIN`].
    ///
    /// # Safety
    /// The list is sound.
    unsafe fn take(&mut self, size: usize, align: usize) -> *mut u8 {
        let mut link: *mut *mut Free = &mut self.first;
        loop {
            // SAFETY: `link` is the list's first pointer or one in a free block.
            let block = unsafe { *link };
            if block.is_null() {
                return null_mut();
            }
            // SAFETY: a block in the list has a header.
            let Free { size: free, next } = unsafe { block.read() };
            let before = (block as usize).next_multiple_of(align) - block as usize;
            if free < before || free - before < size {
                // SAFETY: the same.
                link = unsafe { &raw mut (*block).next };
                continue;
            }
            let taken = block.cast::<u8>().wrapping_add(before);
            let mut rest = next;
            if free > before + size {
                rest = taken.wrapping_add(size).cast();
                let size = free - before - size;
                // SAFETY: at least GRAIN bytes of this block lie behind what is taken.
                unsafe { rest.write(Free { size, next }) };
            }
            if before > 0 {
                let first = Free {
                    size: before,
                    next: rest,
                };
                // SAFETY: at least GRAIN bytes lie before what is taken.
                unsafe { block.write(first) };
            } else {
                // SAFETY: as above.
                unsafe { *link = rest };
            }
            return taken;
        }
    }

    /// Puts a block into the list.
    ///
    /// # Safety
    /// The list is sound, the block lies in the heap, is in no other and not used.
    unsafe fn give(&mut self, block: *mut Free, mut size: usize) {
        let mut before: *mut Free = null_mut();
        let mut next = self.first;
        while !next.is_null() && next < block {
            before = next;
            // SAFETY: a block in the list has a header.
            next = unsafe { (*next).next };
        }
        if !next.is_null() && end_of(block, size) == next {
            // SAFETY: the same.
            let behind = unsafe { next.read() };
            size += behind.size;
            next = behind.next;
        }
        if before.is_null() {
            self.first = block;
        } else {
            // SAFETY: the same.
            let header = unsafe { &mut *before };
            if end_of(before, header.size) == block {
                header.size += size;
                header.next = next;
                return;
            }
            header.next = block;
        }
        // SAFETY: a block has at least GRAIN bytes.
        unsafe { ptr::write(block, Free { size, next }) };
    }
}

fn end_of(block: *mut Free, size: usize) -> *mut Free {
    block.wrapping_byte_add(size)
}
