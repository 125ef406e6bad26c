//! What is left when somebody ends the command: Ctrl-C, `kill`, a terminal that
//! is closed.
//!
//! Files under temporary names vanish, and then the signal does what it does to
//! programs that ignore it not: a shell shows 130 after Ctrl-C and stops its own
//! loop. Before the first such file nothing has to be done, so nothing is caught.
//! Where there are no signals, a temporary file stays, and so it does in the run-only
//! build, whose one file is that of `run --features`: catching takes 28 kB of its 2 MB.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The temporary files of this process.
static FILES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn files() -> MutexGuard<'static, Vec<PathBuf>> {
    // The list is whole whatever a thread did that held it.
    FILES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes a file at an interruption, as long as it lives.
pub(crate) struct Guard(PathBuf);

impl Guard {
    /// Makes a file, whose path `path` tells, and guards it: no interruption comes
    /// between.
    pub(crate) fn make<T, E>(
        make: impl FnOnce() -> Result<T, E>,
        path: impl FnOnce(&T) -> PathBuf,
    ) -> Result<(T, Guard), E> {
        watch();
        let mut files = files();
        let made = make()?;
        let path = path(&made);
        files.push(path.clone());
        Ok((made, Guard(path)))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        files().retain(|path| *path != self.0);
    }
}

/// Waits for signals from now on.
#[cfg(all(unix, feature = "onnx"))]
fn watch() {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;
    use std::sync::{Once, mpsc};

    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let (ready, wait) = mpsc::channel::<()>();
        let serve = move || {
            let kept = ignored();
            let signals = [SIGHUP, SIGINT, SIGTERM];
            let signals = signals
                .into_iter()
                .filter(|signal| kept >> (signal - 1) & 1 == 0);
            let Ok(mut signals) = Signals::new(signals) else {
                return;
            };
            drop(ready);
            if let Some(signal) = signals.forever().next() {
                // Held to the end: nobody makes another file.
                let files = files();
                for path in files.iter() {
                    let _ = std::fs::remove_file(path);
                }
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        };
        // Caught by a thread that is there already, or not at all.
        let thread = std::thread::Builder::new().name("signals".into());
        if thread.spawn(serve).is_ok() {
            let _ = wait.recv();
        }
    });
}

#[cfg(not(all(unix, feature = "onnx")))]
fn watch() {}

/// The signals that whoever started the command had ignored, as `nohup` and `&` of a
/// script do: bit 0 is signal 1. Only Linux tells.
#[cfg(all(unix, feature = "onnx"))]
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}
