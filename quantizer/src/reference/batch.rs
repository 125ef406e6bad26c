//! Many pictures on all threads, results in picture order.

use super::Executor;
use crate::weights::Weights;
use rayon::prelude::*;
use std::sync::Mutex;
use tpvit_models::Program;

/// Pictures under way per thread: enough to keep threads busy over uneven
/// loading times, few enough that results waiting for their turn stay small.
const WAVE_PER_THREAD: usize = 4;

/// Runs pictures `0..count`: `load` and `run` on rayon's threads, in any
/// order; `collect` on the calling thread, in picture order.
///
/// `load(i)` gives picture `i` as [`Executor::run`] wants it. `run` gets an
/// executor and the picture, and returns what `collect` is to see: logits, or
/// what a hook gathered. What is collected does not depend on the number of
/// threads. At most four pictures per thread are held at a time.
///
/// # Errors
/// The first error in picture order, of `load`, `run` or `collect`; later
/// pictures are not collected.
pub fn run_many<T, E>(
    program: &Program,
    weights: &Weights,
    count: usize,
    load: impl Fn(usize) -> Result<Vec<f32>, E> + Sync,
    run: impl Fn(usize, &mut Executor<'_>, &[f32]) -> Result<T, E> + Sync,
    mut collect: impl FnMut(usize, T) -> Result<(), E>,
) -> Result<(), E>
where
    T: Send,
    E: Send,
{
    let idle: Mutex<Vec<Executor<'_>>> = Mutex::new(Vec::new());
    let one = |index: usize| {
        let image = load(index)?;
        let waiting = idle
            .lock()
            .expect("no thread panics while it holds the list")
            .pop();
        let mut executor = waiting.unwrap_or_else(|| Executor::new(program, weights));
        let result = run(index, &mut executor, &image);
        idle.lock().expect("as above").push(executor);
        result
    };
    let wave = WAVE_PER_THREAD * rayon::current_num_threads();
    for start in (0..count).step_by(wave) {
        let indexes = start..count.min(start + wave);
        let results: Vec<_> = indexes.clone().into_par_iter().map(one).collect();
        for (index, result) in indexes.zip(results) {
            collect(index, result?)?;
        }
    }
    Ok(())
}
