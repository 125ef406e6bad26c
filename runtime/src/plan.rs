//! Where every buffer of a lane lives, decided before running.
//!
//! A buffer lives from the operation that writes it to the last one that
//! reads it. Buffers whose lives overlap get disjoint places; others share.
//! The largest are placed first, each at the lowest place that is free during
//! its life. A linear layer that adds its result to a residual nobody reads
//! afterwards writes over it.
//!
//! The last block of a classifier only matters at the class token: keys and
//! values need every token, everything after them one row.
//! [`Program::needed_rows_in`] finds this, exactly, without knowing what a block is.
//!
//! All of it is decided in memory of the caller's, [`words`] of it: making a session in
//! a block allocates nothing either.

use core::cmp::Reverse;
use core::ops::Range;

use tpvit_models::{Op, Program};

use crate::lanes::share;

/// Places start at multiples of this many elements, a cache line of bytes.
const ALIGN: usize = 64;

/// A place in an arena, in elements.
pub(crate) type Place = Range<usize>;

/// The memory that planning `program` takes.
pub(crate) fn words(program: &Program) -> usize {
    let (buffers, ops) = (program.buffers.len(), program.ops.len());
    2 * ops + buffers + Lives::COLUMNS * (buffers + ops)
}

/// Pieces of memory, each by its number: those of the buffers, then one of each
/// operation, which it has for itself while it runs.
struct Lives<'w> {
    /// First operation that uses it.
    first: &'w mut [usize],
    /// Last operation that uses it.
    last: &'w mut [usize],
    /// Elements.
    len: &'w mut [usize],
    /// Where it is.
    start: &'w mut [usize],
    /// Those of one arena, the largest first.
    order: &'w mut [usize],
    /// Those that have a place, by it.
    placed: &'w mut [usize],
}

impl<'w> Lives<'w> {
    const COLUMNS: usize = 6;

    fn new(words: &mut &'w mut [usize], count: usize) -> Lives<'w> {
        let mut column = || cut(words, count);
        Lives {
            first: column(),
            last: column(),
            len: column(),
            start: column(),
            order: column(),
            placed: column(),
        }
    }

    fn set(&mut self, life: usize, first: usize, last: usize, len: usize) {
        (self.first[life], self.last[life]) = (first, last);
        self.len[life] = len;
    }

    /// Gives each life that is `in_arena` a place; returns the arena's length. A life of
    /// no elements is at 0, where it overlaps nothing.
    fn place(&mut self, in_arena: impl Fn(usize) -> bool) -> usize {
        let Lives {
            first,
            last,
            len,
            start,
            order,
            placed,
        } = self;
        let mut count = 0;
        for life in (0..len.len()).filter(|&life| in_arena(life)) {
            order[count] = life;
            count += 1;
        }
        order[..count].sort_unstable_by_key(|&life| (Reverse(len[life]), first[life], life));
        let mut total = 0;
        for done in 0..count {
            let life = order[done];
            let size = len[life].next_multiple_of(ALIGN);
            let mut at = 0;
            for &other in &placed[..done] {
                if last[other] < first[life] || last[life] < first[other] {
                    continue;
                }
                if at + size <= start[other] {
                    break;
                }
                at = at.max(start[other] + len[other].next_multiple_of(ALIGN));
            }
            start[life] = at;
            total = total.max(at + size);
            let index = placed[..done].partition_point(|&other| start[other] <= at);
            placed.copy_within(index..done, index + 1);
            placed[index] = life;
        }
        total
    }
}

/// Cuts `len` words off the front.
fn cut<'w>(words: &mut &'w mut [usize], len: usize) -> &'w mut [usize] {
    let (piece, rest) = core::mem::take(words).split_at_mut(len);
    *words = rest;
    piece
}

/// What is decided.
pub(crate) struct Places<'w> {
    /// By operation: the rows of its output to compute.
    rows: &'w mut [[usize; 2]],
    /// By buffer: its life, or that of the residual it is written over.
    life: &'w mut [usize],
    lives: Lives<'w>,
    /// Elements of the arena of floats.
    pub(crate) floats_len: usize,
    /// Of that of bytes.
    pub(crate) bytes_len: usize,
}

impl<'w> Places<'w> {
    /// Finds the lives of the program's buffers, of which a lane of `lanes` has a share
    /// of the rows, and gives them places. `extra[op]` bytes are the operation's own
    /// while it runs; `coded` tells which buffers hold codes.
    ///
    /// # Panics
    /// If `memory` is less than [`words`].
    pub(crate) fn new(
        program: &Program,
        lanes: usize,
        all_rows: bool,
        coded: impl Fn(usize) -> bool,
        extra: impl Fn(usize) -> usize,
        mut memory: &'w mut [usize],
    ) -> Places<'w> {
        let (buffers, ops) = (program.buffers.len(), program.ops.len());
        let (rows, _) = cut(&mut memory, 2 * ops).as_chunks_mut::<2>();
        let life = cut(&mut memory, buffers);
        // Read before the lives are written there.
        let (read, _) = memory.as_chunks_mut::<2>();
        program.needed_rows_in(rows, read);
        if all_rows {
            for (rows, op) in rows.iter_mut().zip(&program.ops) {
                *rows = [0, program.buffers[op.output().index()].rows];
            }
        }
        let mut lives = Lives::new(&mut memory, buffers + ops);
        last_uses(program, &mut lives.last[..buffers]);
        for (index, op) in program.ops.iter().enumerate() {
            let output = op.output().index();
            let last = lives.last[output];
            lives.set(output, index, last, 0);
            if let Some(residual) = overwritten_residual(op, index, lives.last) {
                life[output] = life[residual];
                lives.last[life[residual]] = last;
                continue;
            }
            life[output] = output;
            let buffer = &program.buffers[output];
            lives.len[output] = match op {
                Op::PatchMerge { .. } => 0, // its reader takes the rows from its input
                Op::PatchEmbed { .. }
                | Op::LayerNorm { .. }
                | Op::Linear { .. }
                | Op::HeadNorm { .. }
                | Op::Gate { .. }
                | Op::Attention { .. }
                | Op::SelectToken { .. }
                | Op::Pool { .. } => share(buffer.rows, 0, lanes).len() * buffer.cols,
            };
        }
        for index in 0..ops {
            lives.set(buffers + index, index, index, extra(index));
        }
        let own = |index: usize| life.get(index).is_none_or(|life| *life == index);
        let is_codes = |index: usize| index >= buffers || coded(index);
        let floats_len = lives.place(|index| own(index) && !is_codes(index));
        let bytes_len = lives.place(|index| own(index) && is_codes(index));
        Places {
            rows,
            life,
            lives,
            floats_len,
            bytes_len,
        }
    }

    /// The rows of the output of an operation to compute.
    pub(crate) fn rows(&self, op: usize) -> Range<usize> {
        let [start, end] = self.rows[op];
        start..end
    }

    /// Where a buffer is, in its arena.
    pub(crate) fn buffer(&self, buffer: usize) -> Place {
        self.life(self.life[buffer])
    }

    /// What an operation has for itself while it runs, in the arena of bytes.
    pub(crate) fn extra(&self, op: usize) -> Place {
        self.life(self.life.len() + op)
    }

    fn life(&self, life: usize) -> Place {
        let start = self.lives.start[life];
        start..start + self.lives.len[life]
    }
}

/// The residual that `op` may write over: nobody reads it afterwards.
fn overwritten_residual(op: &Op, index: usize, last: &[usize]) -> Option<usize> {
    match op {
        Op::Linear {
            residual: Some(residual),
            ..
        } if last[residual.index()] == index => Some(residual.index()),
        Op::Linear { .. }
        | Op::PatchEmbed { .. }
        | Op::LayerNorm { .. }
        | Op::Attention { .. }
        | Op::HeadNorm { .. }
        | Op::Gate { .. }
        | Op::SelectToken { .. }
        | Op::Pool { .. }
        | Op::PatchMerge { .. } => None,
    }
}

/// The last operation that touches each buffer.
fn last_uses(program: &Program, last: &mut [usize]) {
    last.fill(0);
    for (index, op) in program.ops.iter().enumerate() {
        last[op.output().index()] = index;
        for input in op.inputs().into_iter().flatten() {
            last[input.index()] = index;
        }
    }
    for op in &program.ops {
        if let Op::PatchMerge { input, output, .. } = op {
            last[input.index()] = last[input.index()].max(last[output.index()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_that_meet_never_share_and_others_do() {
        let lives = [
            (0, 2, 100),
            (1, 3, 70),
            (3, 4, 100),
            (5, 5, 10),
            (0, 5, 0),
            (0, 5, 1000), // of another arena
        ];
        let mut memory = [usize::MAX; Lives::COLUMNS * 6];
        let mut found = Lives::new(&mut &mut memory[..], lives.len());
        for (life, (first, last, len)) in lives.into_iter().enumerate() {
            found.set(life, first, last, len);
        }
        let total = found.place(|life| life < 5);
        let place = |life: usize| found.start[life]..found.start[life] + found.len[life];
        for i in 0..5 {
            for j in 0..i {
                let together = found.first[i] <= found.last[j] && found.first[j] <= found.last[i];
                let apart = place(i).end <= place(j).start || place(j).end <= place(i).start;
                assert!(!together || apart, "{i} and {j} share");
            }
        }
        // 100 -> 128 elements and 70 -> 128: the third reuses the first's place.
        assert_eq!(total, 256);
        assert_eq!(place(2).start, place(0).start);
        assert_eq!(place(4), 0..0);
    }
}
