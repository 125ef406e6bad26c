//! The parts of a network that are reconstructed one after the other.
//!
//! A *cut* is a place between two operations that a single buffer crosses.
//! Between cuts lie the patch embedding, the two halves of each transformer
//! block, the head. The halves of a block make one unit, as BRECQ (Li et al.
//! 2021, arXiv:2102.05426) found best: what one half gets wrong the other can
//! mend.

use std::ops::Range;

use tpvit_models::{BufferId, Op, Program};

/// A range of operations with one input and one output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) name: String,
    pub(super) ops: Range<usize>,
    /// `None` for the picture.
    pub(super) input: Option<BufferId>,
    pub(super) output: BufferId,
    /// Rows of the output that anything later looks at.
    pub(super) rows: Range<usize>,
}

/// The units of `program`, in order.
pub(super) fn units(program: &Program) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    let (mut start, mut input, mut blocks) = (0, None, 0);
    for (index, rows) in program.needed_rows().into_iter().enumerate() {
        let Some(output) = cut_after(program, index) else {
            continue;
        };
        let ops = start..index + 1;
        let attends = |ops: &Range<usize>| {
            let mut ops = program.ops[ops.clone()].iter();
            ops.any(|op| matches!(op, Op::Attention { .. }))
        };
        let adds = program.ops[index].inputs()[1].is_some();
        match units.last_mut() {
            // The second half of a block.
            Some(last) if adds && !attends(&ops) && attends(&last.ops) => {
                *last = Unit {
                    ops: last.ops.start..ops.end,
                    output,
                    rows,
                    ..last.clone()
                };
            }
            Some(_) | None => {
                let name = match program.ops[ops.start] {
                    Op::PatchEmbed { .. } => "patch embedding".to_string(),
                    _ if attends(&ops) => {
                        blocks += 1;
                        format!("block {}", blocks - 1)
                    }
                    _ if index + 1 == program.ops.len() => "head".to_string(),
                    _ => program.buffers[output.index()].name.clone(),
                };
                units.push(Unit {
                    name,
                    ops,
                    input,
                    output,
                    rows,
                });
            }
        }
        (start, input) = (index + 1, Some(output));
    }
    merge_head(program, &mut units);
    units
}

/// The buffer that crosses from `index` to what follows, if it is one alone.
fn cut_after(program: &Program, index: usize) -> Option<BufferId> {
    let output = program.ops[index].output();
    let (before, after) = program.ops.split_at(index + 1);
    let written = |id: BufferId| before.iter().any(|op| op.output() == id);
    let mut read = after.iter().flat_map(|op| op.inputs()).flatten();
    read.all(|id| id == output || !written(id))
        .then_some(output)
}

/// Everything after the last block: one unit.
fn merge_head(program: &Program, units: &mut Vec<Unit>) {
    let is_block = |u: &Unit| {
        let mut ops = program.ops[u.ops.clone()].iter();
        ops.any(|op| matches!(op, Op::Attention { .. }))
    };
    let Some(last) = units.iter().rposition(is_block) else {
        return;
    };
    if last + 2 < units.len() {
        let tail = units.split_off(last + 1);
        let (first, end) = (&tail[0], &tail[tail.len() - 1]);
        units.push(Unit {
            name: "head".into(),
            ops: first.ops.start..end.ops.end,
            input: first.input,
            output: end.output,
            rows: end.rows.clone(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tpvit_models::synthetic;

    #[test]
    fn a_vision_transformer_is_patches_blocks_and_a_head() {
        let program = synthetic::tiny().program;
        let units = units(&program);
        let blocks = program
            .ops
            .iter()
            .filter(|op| matches!(op, Op::Attention { .. }))
            .count();
        assert_eq!(units.len(), blocks + 2);
        assert_eq!(units[0].name, "patch embedding");
        assert_eq!(units[1].name, "block 0");
        assert_eq!(units[blocks + 1].name, "head");
        let mut next = 0;
        for (i, unit) in units.iter().enumerate() {
            assert_eq!(unit.ops.start, next, "units follow each other");
            assert_eq!(unit.input, i.checked_sub(1).map(|i| units[i].output));
            next = unit.ops.end;
        }
        assert_eq!(next, program.ops.len());
    }
}
