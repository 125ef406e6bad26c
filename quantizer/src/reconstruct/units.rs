//! The parts of a network that are reconstructed one after the other.
//!
//! A *cut* is a place between two operations that a single buffer crosses.
//! Between cuts lie the patch embedding, the two halves of each transformer
//! block, the head. The halves of a block make one unit, as BRECQ (Li et al.
//! 2021, arXiv:2102.05426) found best: what one half gets wrong the other can
//! mend. Whatever lies between two blocks, before the first or after the last
//! is one unit too: a norm of the patches belongs to their embedding, and
//! merging patches, normalising and projecting them is one step of Swin.

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
        let block = attends(program, &ops);
        let adds = program.ops[index].inputs()[1].is_some();
        let is_last = index + 1 == program.ops.len();
        let name = match program.ops[ops.start] {
            _ if block => {
                blocks += 1;
                format!("block {}", blocks - 1)
            }
            Op::PatchEmbed { .. } => "patch embedding".to_string(),
            _ if is_last && program.classifies() => "head".to_string(),
            _ => program.buffers[output.index()].name.clone(),
        };
        match units.last_mut() {
            // The second half of a block.
            Some(last) if adds && !is_last && !block && attends(program, &last.ops) => {
                (last.ops.end, last.output, last.rows) = (ops.end, output, rows);
            }
            // One more step from one block to the next.
            Some(last) if !block && !attends(program, &last.ops) => {
                if last.input.is_some() {
                    last.name = name;
                }
                (last.ops.end, last.output, last.rows) = (ops.end, output, rows);
            }
            Some(_) | None => units.push(Unit {
                name,
                ops,
                input,
                output,
                rows,
            }),
        }
        (start, input) = (index + 1, Some(output));
    }
    units
}

/// Whether there is attention among `ops`.
fn attends(program: &Program, ops: &Range<usize>) -> bool {
    let mut ops = program.ops[ops.clone()].iter();
    ops.any(|op| matches!(op, Op::Attention { .. }))
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

    /// The names of the units of one architecture.
    fn names(name: &str) -> Vec<String> {
        let mut all = synthetic::architectures().into_iter();
        let (_, program) = all.find(|(n, _)| *n == name).expect("an architecture");
        units(&program).into_iter().map(|unit| unit.name).collect()
    }

    #[test]
    fn every_architecture_is_cut_into_named_parts() {
        let ends = |last| ["patch embedding", "block 0", "block 1", last].map(String::from);
        for name in [
            "vit",
            "deit-distilled",
            "vit-mean",
            "clip-mean-of-patches",
            "vit-qk-norm",
            "dinov2-classifier",
        ] {
            assert_eq!(names(name), ends("head"), "{name}");
        }
        assert_eq!(names("dinov2-giant"), ends("norm"));
        assert_eq!(
            names("swin"),
            [
                "patch embedding",
                "block 0",
                "block 1",
                "stages.1.reduction",
                "block 2",
                "block 3",
                "head"
            ]
        );
        assert_eq!(names("swin-one-window"), ends("norm"));
    }

    #[test]
    fn units_follow_each_other_and_cover_the_program() {
        for (name, program) in synthetic::architectures() {
            let units = units(&program);
            let mut next = 0;
            for (i, unit) in units.iter().enumerate() {
                assert_eq!(unit.ops.start, next, "{name}: {}", unit.name);
                assert_eq!(unit.input, i.checked_sub(1).map(|i| units[i].output));
                assert_eq!(unit.output, program.ops[unit.ops.end - 1].output());
                assert!(units[..i].iter().all(|u| u.name != unit.name), "{name}");
                next = unit.ops.end;
            }
            assert_eq!(next, program.ops.len(), "{name}");
        }
    }
}
