//! The kernels' tests once more, each slice between pages that nobody may touch: a
//! load or a store one byte past its operand ends the process, on every ISA.
//!
//! ```text
//! unreadable | ......[a slice] | unreadable      or      unreadable | [a slice]...... | unreadable
//! ```
//!
//! The allocator of this test does it to every block, in turn at the end and at the
//! start; a vector's slice is at the end to the byte only if it has no spare capacity,
//! which is how the tests make them.
#![cfg(unix)]
#![allow(clippy::duplicate_mod, reason = "each has its `common`, as by itself")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::{Mutex, OnceLock};

#[path = "attention.rs"]
mod attention;
#[path = "float.rs"]
mod float;
#[path = "gemm.rs"]
mod gemm;
#[path = "snap.rs"]
mod snap;

/// A multiple of every system's page.
const PAGE: usize = 1 << 16;
/// The longest block that is fenced, in pages: more than any operand here.
const LONGEST: usize = 256;
/// The most fenced blocks at a time: the system keeps a list of them. What a panic
/// allocates to describe itself may be more, and does without.
const MOST: usize = 8000;
/// Addresses that are set aside.
const RESERVED: usize = 1 << 35;

#[global_allocator]
static FENCE: Fence = Fence {
    start: OnceLock::new(),
    state: Mutex::new(State {
        heads: [0; LONGEST + 1],
        used: 0,
        live: 0,
        count: 0,
    }),
};

/// Blocks between pages that are never readable, in one range of addresses.
struct Fence {
    start: OnceLock<usize>,
    state: Mutex<State>,
}

struct State {
    /// By number of pages, a place that is free, or 0; it begins with the next one.
    heads: [usize; LONGEST + 1],
    /// Bytes of the range that have become places.
    used: usize,
    /// Blocks that somebody has.
    live: usize,
    /// Blocks ever.
    count: usize,
}

fn pages(size: usize) -> usize {
    size.div_ceil(PAGE).max(1)
}

fn pointer(address: usize) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(address)
}

impl Fence {
    /// Where the range begins, on a page; 0 if the system gives none.
    fn start(&self) -> usize {
        *self.start.get_or_init(|| {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let (any, none) = (std::ptr::null_mut(), libc::PROT_NONE);
            // SAFETY: new memory somewhere; nothing else is touched.
            let start = unsafe { libc::mmap(any, RESERVED, none, flags, -1, 0) };
            match start == libc::MAP_FAILED {
                true => 0,
                false => start.expose_provenance().next_multiple_of(PAGE),
            }
        })
    }

    /// Readable pages between two that are not; none where there is no room.
    fn take(&self, pages: usize) -> Option<(usize, usize)> {
        let start = self.start();
        let mut state = self.state.lock().unwrap();
        if start == 0 || pages > LONGEST || state.live >= MOST {
            return None;
        }
        let free = state.heads[pages];
        let place = if free == 0 {
            let place = start + state.used + PAGE;
            let used = state.used + (pages + 1) * PAGE;
            if used + 3 * PAGE > RESERVED {
                return None;
            }
            let open = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: these pages are of the range, and nobody has them.
            if unsafe { libc::mprotect(pointer(place).cast(), pages * PAGE, open) } != 0 {
                return None;
            }
            state.used = used;
            place
        } else {
            // SAFETY: a free place begins with the next one.
            state.heads[pages] = unsafe { pointer(free).cast::<usize>().read() };
            free
        };
        state.live += 1;
        state.count += 1;
        Some((place, state.count))
    }

    fn give(&self, place: usize, pages: usize) {
        let mut state = self.state.lock().unwrap();
        // SAFETY: the place is free, and has room for an address.
        unsafe { pointer(place).cast::<usize>().write(state.heads[pages]) };
        state.heads[pages] = place;
        state.live -= 1;
    }
}

// SAFETY: each block lies in a place of its own, at an address of its alignment, or is
// the system's.
unsafe impl GlobalAlloc for Fence {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let pages = pages(layout.size());
        let Some((place, count)) = self.take(pages) else {
            // SAFETY: the caller's promise.
            return unsafe { System.alloc(layout) };
        };
        // A mix, so that no operand of a loop is at the same side always.
        let at_start = (count.wrapping_mul(0x9e37_79b9) >> 16).is_multiple_of(3);
        let offset = match at_start {
            true => 0,
            false => (pages * PAGE - layout.size()) & !(layout.align() - 1),
        };
        pointer(place + offset)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let (address, start) = (block.addr(), self.start());
        if start == 0 || !(start..start + RESERVED).contains(&address) {
            // SAFETY: it was the system's.
            return unsafe { System.dealloc(block, layout) };
        }
        let pages = pages(layout.size());
        let end = (address + layout.size()).next_multiple_of(PAGE);
        self.give(end - pages * PAGE, pages);
    }
}

/// Blocks are where the drawing has them, or the rest proves nothing.
#[test]
fn a_read_past_either_end_ends_the_process() {
    use std::os::unix::process::ExitStatusExt;
    let own = std::env::current_exe().expect("a test knows its own path");
    let listed = std::process::Command::new(&own).arg("--list").output();
    if !listed.is_ok_and(|output| output.status.success()) {
        println!("skipped: an emulated program starts no other here");
        return;
    }
    for (name, signal) in [("before", Some(11)), ("behind", Some(11)), ("inside", None)] {
        let mut child = std::process::Command::new(&own);
        child.args(["--exact", "stray_read", "--ignored"]);
        let output = child.env("STRAY", name).output().expect("it starts");
        assert_eq!(output.status.signal(), signal, "{name}: {output:?}");
    }
}

#[test]
#[ignore = "ends the process; another test starts it"]
fn stray_read() {
    let stray = std::env::var("STRAY").unwrap_or_default();
    for len in [1, 7, 64, 4097] {
        // Enough to have some at either side.
        for block in (0..32)
            .map(|_| vec![1u8; len].into_boxed_slice())
            .collect::<Vec<_>>()
        {
            let (start, last) = (block.as_ptr(), len - 1);
            let at_start = (start as usize).is_multiple_of(PAGE);
            let at = match stray.as_str() {
                "before" if at_start => start.wrapping_sub(1),
                "behind" if !at_start => start.wrapping_add(len),
                _ => start.wrapping_add(last),
            };
            // SAFETY: none, but for `inside`: that is what is tested.
            assert_eq!(unsafe { at.read_volatile() }, 1);
        }
    }
}
