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
//! [`Program::needed_rows`] finds this, exactly, without knowing what a block is.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use tpvit_models::{Op, Program};

use crate::lanes::share;

/// Places start at multiples of this many elements, a cache line of bytes.
const ALIGN: usize = 64;

/// A place in an arena, in elements, or none for a buffer that is not there.
pub(crate) type Place = Range<usize>;

/// The life of one piece of memory.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    /// First operation that uses it.
    pub(crate) first: usize,
    /// Last operation that uses it.
    pub(crate) last: usize,
    /// Elements.
    pub(crate) len: usize,
}

/// Gives each life a place; returns the places and the arena's length. A life of
/// no elements is at 0, where it overlaps nothing.
pub(crate) fn place(lives: &[Life]) -> (Vec<Place>, usize) {
    let mut order: Vec<usize> = (0..lives.len()).collect();
    order.sort_by_key(|&i| (core::cmp::Reverse(lives[i].len), lives[i].first, i));
    let mut places = vec![0..0; lives.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut total = 0;
    for i in order {
        let size = lives[i].len.next_multiple_of(ALIGN);
        let mut taken: Vec<Place> = placed
            .iter()
            .filter(|&&j| lives[j].first <= lives[i].last && lives[i].first <= lives[j].last)
            .map(|&j| places[j].start..places[j].start + lives[j].len.next_multiple_of(ALIGN))
            .collect();
        taken.sort_by_key(|p| p.start);
        let mut start = 0;
        for p in taken {
            if start + size <= p.start {
                break;
            }
            start = start.max(p.end);
        }
        places[i] = start..start + lives[i].len;
        total = total.max(start + size);
        placed.push(i);
    }
    (places, total)
}

/// Which memory a buffer of the program uses.
#[derive(Clone, Debug)]
pub(crate) struct BufferPlan {
    /// Whether it holds codes (bytes) or f32.
    pub(crate) coded: bool,
    /// Index into the lives of its arena.
    pub(crate) life: usize,
}

/// Lives of all buffers: those of floats, those of bytes, and which is whose.
pub(crate) struct Lives {
    pub(crate) floats: Vec<Life>,
    pub(crate) bytes: Vec<Life>,
    pub(crate) buffers: Vec<BufferPlan>,
}

/// Finds the lives of the program's buffers, of which a lane of `lanes` has a
/// share of the rows.
pub(crate) fn lives(program: &Program, lanes: usize) -> Lives {
    let coded = program.coded();
    let last = last_uses(program);
    let mut lives = Lives {
        floats: Vec::new(),
        bytes: Vec::new(),
        buffers: Vec::new(),
    };
    lives.buffers = coded
        .iter()
        .map(|&coded| BufferPlan {
            coded,
            life: usize::MAX,
        })
        .collect();
    for (index, op) in program.ops.iter().enumerate() {
        let output = op.output().index();
        if let Some(residual) = overwritten_residual(op, index, &last) {
            let life = lives.buffers[residual].life;
            lives.floats[life].last = last[output];
            lives.buffers[output].life = life;
            continue;
        }
        let buffer = &program.buffers[output];
        let len = match op {
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
        let life = Life {
            first: index,
            last: last[output],
            len,
        };
        let arena = if coded[output] {
            &mut lives.bytes
        } else {
            &mut lives.floats
        };
        lives.buffers[output].life = arena.len();
        arena.push(life);
    }
    lives
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
fn last_uses(program: &Program) -> Vec<usize> {
    let mut last = vec![0; program.buffers.len()];
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
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_that_meet_never_share_and_others_do() {
        let lives = [
            Life {
                first: 0,
                last: 2,
                len: 100,
            },
            Life {
                first: 1,
                last: 3,
                len: 70,
            },
            Life {
                first: 3,
                last: 4,
                len: 100,
            },
            Life {
                first: 5,
                last: 5,
                len: 10,
            },
            Life {
                first: 0,
                last: 5,
                len: 0,
            },
        ];
        let (places, total) = place(&lives);
        for i in 0..lives.len() {
            for j in 0..i {
                let together = lives[i].first <= lives[j].last && lives[j].first <= lives[i].last;
                let apart = places[i].end <= places[j].start || places[j].end <= places[i].start;
                assert!(!together || apart, "{i} and {j} share: {places:?}");
            }
        }
        // 100 -> 128 elements and 70 -> 128: the third reuses the first's place.
        assert_eq!(total, 256);
        assert_eq!(places[2].start, places[0].start);
        assert_eq!(places[4], 0..0);
    }
}
