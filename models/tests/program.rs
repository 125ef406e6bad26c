//! What [`Program::validate`] refuses beyond shapes that disagree.
#![forbid(unsafe_code)]

use tpvit_models::{Buffer, Op, ProgramError, synthetic};

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
