//! Time and memory of this process.

use std::time::{Duration, Instant};

/// Latencies of one thing, run again and again.
#[derive(Default)]
pub(crate) struct Latencies {
    sorted: Vec<f64>,
}

impl Latencies {
    /// Adds one run.
    pub(crate) fn push(&mut self, d: Duration) {
        let ms = d.as_secs_f64() * 1e3;
        let at = self.sorted.partition_point(|&x| x < ms);
        self.sorted.insert(at, ms);
    }

    /// Adds the time that `f` takes.
    pub(crate) fn time<R>(&mut self, f: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = f();
        self.push(start.elapsed());
        result
    }

    pub(crate) fn len(&self) -> usize {
        self.sorted.len()
    }

    /// The value below which a share of `q` of the runs lies, in milliseconds.
    pub(crate) fn quantile(&self, q: f64) -> f64 {
        let last = self.sorted.len().saturating_sub(1);
        self.sorted
            .get((q * last as f64).round() as usize)
            .copied()
            .unwrap_or(f64::NAN)
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    pub(crate) fn min(&self) -> f64 {
        self.quantile(0.0)
    }
}

/// The most memory this process has had resident, in bytes; 0 where the
/// system does not tell.
pub(crate) fn peak_rss_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|kb| kb.trim().parse::<usize>().ok())
        .map_or(0, |kb| kb * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_a_known_list() {
        let mut l = Latencies::default();
        for ms in [5, 1, 4, 2, 3] {
            l.push(Duration::from_millis(ms));
        }
        assert_eq!((l.min(), l.median(), l.quantile(1.0)), (1.0, 3.0, 5.0));
    }
}
