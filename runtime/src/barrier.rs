//! Where the lanes of a session wait for each other.
//!
//! Lanes meet once a layer and the work between two meetings takes less than a
//! millisecond, so that a sleep in the kernel would cost more than the wait. A
//! lane that comes early spins for a while, then yields to whoever needs the
//! processor, and sleeps when the others take long: between pictures, and while
//! one lane computes the class token.
//!
//! A sense-reversing barrier (Mellor-Crummey and Scott 1991, section 3.1) whose
//! sense is a counter, so that it tells each meeting from the next:
//!
//! ```text
//! arrive   the last one resets the count and advances the phase; the others
//!          wait for the phase to change
//! ```

use std::hint;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Looks at the phase before the first yield: some tens of microseconds, what
/// lanes of equal work are apart. Ten times as many gain nothing where each lane
/// has a processor, and double the time where something else runs beside them.
const SPINS: usize = 1000;

/// Yields before the first sleep, for a lane that waits for this processor. More
/// gain nothing; while it sleeps, the system may also move a lane elsewhere.
const YIELDS: usize = 5;

/// A meeting point of a fixed number of lanes.
pub(crate) struct Barrier {
    lanes: usize,
    spins: usize,
    arrived: AtomicUsize,
    phase: AtomicUsize,
    broken: AtomicBool,
    /// How many sleep, or are about to.
    sleeping: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

impl Barrier {
    /// Lets lanes through `lanes` at a time.
    pub(crate) fn new(lanes: usize) -> Barrier {
        // A lane that spins on the processor that the others need delays itself.
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Barrier {
            lanes,
            spins: if lanes <= processors { SPINS } else { 0 },
            arrived: AtomicUsize::new(0),
            phase: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
            sleeping: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    /// Waits until every lane has come here. What they wrote before, all see
    /// after.
    pub(crate) fn wait(&self) -> Result<(), Broken> {
        // It cannot advance before this lane arrives.
        let phase = self.phase.load(Ordering::Relaxed);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.lanes {
            self.arrived.store(0, Ordering::Relaxed);
            self.phase.store(phase.wrapping_add(1), Ordering::SeqCst);
            self.wake_sleepers();
        } else {
            self.wait_after(phase);
        }
        match self.broken.load(Ordering::SeqCst) {
            false => Ok(()),
            true => Err(Broken),
        }
    }

    /// Lets nobody wait here any more: all who do, or come later, are told.
    pub(crate) fn break_up(&self) {
        self.broken.store(true, Ordering::SeqCst);
        self.wake_sleepers();
    }

    /// Breaks the barrier if the thread panics while this lives.
    pub(crate) fn break_on_panic(&self) -> BreakOnPanic<'_> {
        BreakOnPanic(self)
    }

    fn wait_after(&self, phase: usize) {
        for _ in 0..self.spins {
            if self.is_over(phase) {
                return;
            }
            hint::spin_loop();
        }
        for _ in 0..YIELDS {
            if self.is_over(phase) {
                return;
            }
            thread::yield_now();
        }
        let mut lock = self.lock();
        // Either this lane sees the new phase below, or whoever advances it
        // sees this sleeper: both orders are total.
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        while !self.is_over(phase) {
            lock = self.wake.wait(lock).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
    }

    fn is_over(&self, phase: usize) -> bool {
        self.phase.load(Ordering::SeqCst) != phase || self.broken.load(Ordering::SeqCst)
    }

    fn wake_sleepers(&self) {
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            // Nobody is between the look at the phase and the sleep meanwhile.
            let _lock = self.lock();
            self.wake.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.sleep.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody will never come.
#[derive(Debug)]
pub(crate) struct Broken;

/// See [`Barrier::break_on_panic`].
pub(crate) struct BreakOnPanic<'a>(&'a Barrier);

impl Drop for BreakOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.break_up();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;
    use std::panic;
    use std::vec::Vec;

    /// More lanes than most machines have processors, so that some sleep.
    const LANES: usize = 9;

    #[test]
    fn nobody_goes_on_before_all_have_come() {
        let barrier = Barrier::new(LANES);
        let steps: Vec<AtomicUsize> = (0..LANES).map(|_| AtomicUsize::new(0)).collect();
        thread::scope(|scope| {
            for lane in 0..LANES {
                let (barrier, steps) = (&barrier, &steps);
                scope.spawn(move || {
                    let _guard = barrier.break_on_panic();
                    for step in 1..=300 {
                        steps[lane].store(step, Ordering::Relaxed);
                        barrier.wait().expect("nobody panicked");
                        // Nobody is behind, and nobody two meetings ahead.
                        for other in steps {
                            let at = other.load(Ordering::Relaxed);
                            assert!(at == step || at == step + 1, "{at} in step {step}");
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn a_lane_that_panics_frees_those_that_sleep_and_those_that_come_later() {
        let barrier = Barrier::new(LANES);
        thread::scope(|scope| {
            let wait = || barrier.wait().is_err();
            let mut lanes: Vec<_> = (2..LANES).map(|_| scope.spawn(wait)).collect();
            while barrier.sleeping.load(Ordering::SeqCst) < LANES - 2 {
                thread::yield_now();
            }
            let panicking = scope.spawn(|| {
                let _guard = barrier.break_on_panic();
                panic::resume_unwind(Box::new("on purpose"));
            });
            assert!(panicking.join().is_err());
            lanes.push(scope.spawn(wait));
            for lane in lanes {
                assert!(lane.join().expect("no panic"), "every lane is told");
            }
        });
    }
}
