//! Splitting rows over threads.
//!
//! Every operation works row by row, so a thread that owns some rows needs
//! nothing from the others, and the split cannot change a result. Without
//! `std`, or with one thread, everything runs on the caller's thread.

use core::ops::Range;

/// The threads of a session.
pub(crate) struct Pool {
    threads: usize,
    #[cfg(feature = "std")]
    workers: Option<rayon::ThreadPool>,
}

/// What one thread gets: its rows, and its share of everything written.
pub(crate) struct Share<'a, T> {
    /// The rows, numbered as in the whole buffer.
    pub(crate) rows: Range<usize>,
    /// Those rows of the output.
    pub(crate) out: &'a mut [T],
    /// One sum per row.
    pub(crate) sums: &'a mut [i32],
    /// Scratch of this thread alone.
    pub(crate) scratch: &'a mut [u8],
}

impl Pool {
    /// A pool of `threads` threads, at least one; `None` if the system
    /// refuses to start them.
    pub(crate) fn new(threads: usize) -> Option<Pool> {
        let threads = threads.max(1);
        #[cfg(feature = "std")]
        return Some(Pool {
            threads,
            workers: match threads {
                1 => None,
                n => Some(
                    rayon::ThreadPoolBuilder::new()
                        .num_threads(n)
                        .build()
                        .ok()?,
                ),
            },
        });
        #[cfg(not(feature = "std"))]
        return (threads == 1).then_some(Pool { threads });
    }

    /// The number of threads.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `f` on the pool, so that what it splits needs no further entry.
    pub(crate) fn enter<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        #[cfg(feature = "std")]
        if let Some(workers) = &self.workers {
            return workers.install(f);
        }
        f()
    }
}

/// Splits `share` into `parts` of nearly equal rows and runs `f` on each.
///
/// `cols` is the row length of `share.out`; scratch is split evenly.
pub(crate) fn split_rows<T: Send>(
    parts: usize,
    cols: usize,
    share: Share<'_, T>,
    f: &(impl Fn(Share<'_, T>) + Sync),
) {
    let rows = share.rows.len();
    if parts <= 1 || rows <= 1 {
        return f(share);
    }
    let left = parts / 2;
    let left_rows = rows * left / parts;
    let (left_out, right_out) = share.out.split_at_mut(left_rows * cols);
    let (left_sums, right_sums) = share.sums.split_at_mut(left_rows.min(share.sums.len()));
    let (left_scratch, right_scratch) = share
        .scratch
        .split_at_mut(share.scratch.len() / parts * left);
    let mid = share.rows.start + left_rows;
    let a = Share {
        rows: share.rows.start..mid,
        out: left_out,
        sums: left_sums,
        scratch: left_scratch,
    };
    let b = Share {
        rows: mid..share.rows.end,
        out: right_out,
        sums: right_sums,
        scratch: right_scratch,
    };
    join(
        || split_rows(left, cols, a, f),
        || split_rows(parts - left, cols, b, f),
    );
}

#[cfg(feature = "std")]
fn join(a: impl FnOnce() + Send, b: impl FnOnce() + Send) {
    rayon::join(a, b);
}

#[cfg(not(feature = "std"))]
fn join(a: impl FnOnce(), b: impl FnOnce()) {
    a();
    b();
}
