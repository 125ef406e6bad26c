//! What `Program::validate` refuses beyond shapes that disagree, and which rows it needs.
#![forbid(unsafe_code)]

use tpvit_models::synthetic::{self, VitConfig};
use tpvit_models::{BitWidth, Buffer, Op, ProgramError};

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
