//! What `Program::validate` refuses beyond shapes that disagree, and which rows it needs.
#![forbid(unsafe_code)]

mod common;

use common::hand::operations;
use tpvit_models::synthetic::{self, VitConfig};
use tpvit_models::{BitWidth, Buffer, BufferId, Op, Program, ProgramError, TensorId, Window};

#[test]
fn a_buffer_that_no_operation_writes_is_refused() {
    let mut program = synthetic::tiny().program;
    program.buffers.push(Buffer {
        name: "spare".into(),
        rows: 1,
        cols: 1,
    });
    let buffer = program.buffers.len() - 1;
    assert_eq!(
        program.validate(),
        Err(ProgramError::NeverWritten { buffer })
    );
}

/// On a 32-bit CPU `3 * heads * head_dim` would wrap to a small number.
#[test]
fn products_of_sizes_do_not_wrap() {
    let mut program = synthetic::tiny().program;
    let attention = |op: &Op| matches!(op, Op::Attention { .. });
    let index = program.ops.iter().position(attention).unwrap();
    if let Op::Attention {
        heads, head_dim, ..
    } = &mut program.ops[index]
    {
        (*heads, *head_dim) = (1 << 16, 1 << 16);
    }
    let refused = matches!(program.validate(), Err(ProgramError::Value { op, .. }) if op == index);
    assert!(refused);
}

/// In the last block of a classifier everything after the keys and values is one
/// row: the class token's. Before it, all rows count.
#[test]
fn only_the_class_token_is_needed_at_the_end() {
    let config = VitConfig::SMALLEST;
    let softmax = synthetic::row_max_softmax(BitWidth::B4);
    let program = synthetic::vit(config, BitWidth::B8, BitWidth::B8, &softmax, 1).program;
    let needed = program.needed_rows();
    let last_attention = program
        .ops
        .iter()
        .rposition(|op| matches!(op, Op::Attention { .. }))
        .expect("a ViT has attention");
    for (index, (op, rows)) in program.ops.iter().zip(needed).enumerate() {
        let all = 0..program.buffers[op.output().index()].rows;
        let expected = if index < last_attention { all } else { 0..1 };
        assert_eq!(rows, expected, "operation {index}, {}", op.kind());
    }
}

/// A buffer that nothing reads is needed whole: its writer was asked for.
#[test]
fn without_a_selected_token_all_rows_are_needed() {
    let softmax = synthetic::row_max_softmax(BitWidth::B4);
    let mut program =
        synthetic::vit(VitConfig::SMALLEST, BitWidth::B8, BitWidth::B8, &softmax, 1).program;
    let select = program
        .ops
        .iter()
        .position(|op| matches!(op, Op::SelectToken { .. }))
        .expect("a classifier selects the class token");
    program.ops.truncate(select);
    for (op, rows) in program.ops.iter().zip(program.needed_rows()) {
        assert_eq!(rows, 0..program.buffers[op.output().index()].rows);
    }
}

// Operations of `operations()`.
const HEAD_NORM: usize = 3;
const ATTENTION: usize = 4;
const MERGE: usize = 6;
const GATE: usize = 9;
const CONCAT: usize = 13;
const MEAN: usize = 15;

/// What is wrong with [`operations`] after a change of one of its operations.
fn refused(op: usize, change: impl FnOnce(&mut Op)) -> ProgramError {
    let mut program = operations().program;
    assert_eq!(program.validate(), Ok(()));
    change(&mut program.ops[op]);
    program.validate().expect_err("the program is invalid")
}

fn buffer(program: &Program, name: &str) -> usize {
    let found = program.buffers.iter().position(|b| b.name == name);
    found.expect("a buffer of that name")
}

#[test]
fn a_grid_is_whole_windows_and_a_shift_less_than_one() {
    let refused = |grid, size, shift| {
        refused(ATTENTION, |op| {
            let Op::Attention { window, .. } = op else {
                panic!("operation {ATTENTION} is attention")
            };
            *window = Some(Window { grid, size, shift });
        })
    };
    let most = usize::MAX;
    for (grid, size, shift) in [
        ([2, 2], [2, 2], [0, 1]), // 4 of 8 tokens
        ([3, 4], [1, 2], [0, 1]), // 12 of them
        ([2, 4], [2, 3], [0, 1]), // 4 is no multiple of 3
        ([1, 8], [2, 2], [0, 1]), // 1 is none of 2
        ([2, 4], [0, 2], [0, 1]),
        ([2, 4], [2, 2], [0, 2]),
        ([2, 4], [2, 2], [2, 0]),
        ([2, 4], [most, most], [0, 0]),
        ([most, most], [2, 2], [0, 0]), // must not wrap: the square is 1
        ([most / 2 + 1, 16], [2, 2], [0, 0]),
        ([0, 4], [2, 2], [0, 0]),
    ] {
        let expected = ProgramError::Value {
            op: ATTENTION,
            what: "window",
        };
        let grid_product = ProgramError::Value {
            op: ATTENTION,
            what: "grid",
        };
        let found = refused(grid, size, shift);
        assert!(
            found == expected || found == grid_product,
            "{grid:?}, {size:?}, {shift:?}: {found}"
        );
    }
}

#[test]
fn a_position_bias_fits_its_windows_and_heads() {
    let without = refused(ATTENTION, |op| {
        let Op::Attention { window, .. } = op else {
            panic!("operation {ATTENTION} is attention")
        };
        *window = None;
    });
    let expected = ProgramError::Value {
        op: ATTENTION,
        what: "position bias without a window",
    };
    assert_eq!(without, expected);
    // Windows of 1 x 4 have 1 * 7 offsets, those of 2 x 2 have 3 * 3.
    let other = refused(ATTENTION, |op| {
        let Op::Attention {
            window: Some(window),
            ..
        } = op
        else {
            panic!("operation {ATTENTION} has a window")
        };
        window.size = [1, 4];
    });
    let expected = ProgramError::Shape {
        op: ATTENTION,
        what: "position bias",
        expected: [1, 7],
        found: [1, 9],
    };
    assert_eq!(other, expected);
    // A weight in its place; a tensor that does not exist.
    for (id, missing) in [(0, false), (1000, true)] {
        let found = refused(ATTENTION, |op| {
            if let Op::Attention { bias, .. } = op {
                *bias = Some(TensorId(id));
            }
        });
        let (op, tensor) = (ATTENTION, id);
        let expected = match missing {
            true => ProgramError::NoSuchTensor { op, tensor },
            false => ProgramError::Role { op, tensor },
        };
        assert_eq!(found, expected);
    }
}

#[test]
fn a_head_norm_fits_its_heads() {
    let with = |change: &dyn Fn(&mut usize, &mut usize, &mut f32)| {
        refused(HEAD_NORM, |op| {
            let Op::HeadNorm {
                heads,
                head_dim,
                eps,
                ..
            } = op
            else {
                panic!("operation {HEAD_NORM} is a head norm")
            };
            change(heads, head_dim, eps);
        })
    };
    let op = HEAD_NORM;
    for eps in [0.0, -1e-6, 1.0, f32::NAN, f32::INFINITY] {
        let what = "epsilon";
        let expected = ProgramError::Value { op, what };
        assert_eq!(with(&|_, _, found| *found = eps), expected, "{eps}");
    }
    for (heads, head_dim) in [(0, 2), (1, 0), (1 << 16, 1 << 16), (usize::MAX, 2)] {
        let found = with(&|h, d, _| (*h, *d) = (heads, head_dim));
        let what = "head count or size";
        assert_eq!(found, ProgramError::Value { op, what });
    }
    let found = with(&|heads, _, _| *heads = 2);
    let (expected, found_shape) = ([8, 12], [8, 6]);
    let what = "q, k and v";
    let shape = ProgramError::Shape {
        op,
        what,
        expected,
        found: found_shape,
    };
    assert_eq!(found, shape);
    // The gains of 2 heads of 1 are [2, 1].
    let found = with(&|heads, head_dim, _| (*heads, *head_dim) = (2, 1));
    let gamma = matches!(
        found,
        ProgramError::Shape {
            what: "gamma",
            expected: [2, 1],
            ..
        }
    );
    assert!(gamma, "{found}");
}

#[test]
fn a_gate_halves_a_pool_reads_tokens_and_a_merge_an_even_grid() {
    // Reads [2, 8] instead of [2, 4].
    let found = refused(GATE, |op| {
        if let Op::Gate { input, .. } = op {
            *input = BufferId(6);
        }
    });
    let expected = ProgramError::Shape {
        op: GATE,
        what: "gate and values",
        expected: [2, 4],
        found: [2, 8],
    };
    assert_eq!(found, expected);

    for op in [CONCAT, MEAN] {
        for (start, len) in [
            (0, 0),
            (0, 3),
            (1, 2),
            (2, 1),
            (usize::MAX, 2),
            (1, usize::MAX),
        ] {
            let found = refused(op, |op| {
                if let Op::Pool { first, count, .. } = op {
                    (*first, *count) = (start, len);
                }
            });
            let what = "pooled tokens";
            assert_eq!(found, ProgramError::Value { op, what }, "{start}, {len}");
        }
    }
    // One token side by side with none is 2 columns, not 4.
    let found = refused(CONCAT, |op| {
        if let Op::Pool { count, .. } = op {
            *count = 1;
        }
    });
    let expected = ProgramError::Shape {
        op: CONCAT,
        what: "pooled tokens",
        expected: [1, 2],
        found: [1, 4],
    };
    assert_eq!(found, expected);

    for shape in [[1, 8], [8, 1], [2, 2], [4, 4], [0, 4], [usize::MAX - 1; 2]] {
        let found = refused(MERGE, |op| {
            if let Op::PatchMerge { grid, .. } = op {
                *grid = shape;
            }
        });
        let what = "grid";
        assert_eq!(found, ProgramError::Value { op: MERGE, what }, "{shape:?}");
    }
}

/// What is read by integer operations is not read by others.
#[test]
fn what_is_coded_is_not_read_as_floats() {
    let read_twice = |name: &str, shape: [usize; 2], read: &dyn Fn(BufferId, BufferId) -> Op| {
        let mut program = operations().program;
        let input = BufferId(buffer(&program, name) as u16);
        let output = BufferId(program.buffers.len() as u16);
        program.buffers.push(Buffer {
            name: "spare".into(),
            rows: shape[0],
            cols: shape[1],
        });
        let at = program.ops.len() - 1;
        program.ops.insert(at, read(input, output));
        assert_eq!(
            program.validate(),
            Err(ProgramError::MixedUse { buffer: input.0 }),
            "{name}"
        );
    };
    let gate = |input, output| Op::Gate { input, output };
    let merge = |input, output| Op::PatchMerge {
        input,
        grid: [2, 4],
        output,
    };
    read_twice("a.qk_norm", [8, 3], &gate);
    read_twice("a.norm", [2, 8], &merge);

    // And what can only be floats is not read as codes: the head reads the merged
    // patches, the residual sum.
    for (reads, rows) in [("merge", 2), ("a.proj", 8)] {
        let mut program = operations().program;
        let id = BufferId(buffer(&program, reads) as u16);
        let cols = program.buffers[id.index()].cols;
        let (weight, bias) = (TensorId(21), TensorId(22));
        let output = program.ops[16].output();
        program.tensors[weight.index()].cols = cols;
        program.ops[16] = Op::Linear {
            input: id,
            weight,
            bias,
            activation: tpvit_models::Activation::Identity,
            residual: None,
            output,
        };
        program.buffers[output.index()].rows = rows;
        let mixed = ProgramError::MixedUse { buffer: id.0 };
        assert_eq!(program.validate(), Err(mixed), "{reads}");
    }
    // The q and k of a head norm are for attention.
    let mut program = operations().program;
    let (qkv, normed) = (BufferId(2), BufferId(3));
    for op in &mut program.ops {
        if let Op::Attention { qkv: input, .. } = op
            && *input == normed
        {
            *input = qkv;
        }
    }
    let found = program.validate();
    assert!(
        matches!(found, Err(ProgramError::MixedUse { .. })),
        "{found:?}"
    );
}
