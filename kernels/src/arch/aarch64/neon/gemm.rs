//! Matrix products on the tiles of [`super::tile`].
//!
//! 8-bit weights are usually symmetric: without a single -128, two products with
//! 8-bit activations fit 16 bits. One look at the panels, 1/m of the work, tells.

use super::{
    operands::{Form, Operands},
    tile::{MR, MR_DENSE, PANELS, tile, tile_dense},
};
use crate::{
    GemmShape,
    arch::{
        aarch64::lanes::Neon,
        aarch64::rows::{pack_rows, row_len},
        common::{
            epilogue::Epilogue,
            gemm::drive,
            panels::{Layout, Panels},
            scratch::{cut, cut_len},
        },
    },
    table::GemmCall,
};

pub(super) fn layout(_: &GemmShape) -> Layout {
    PANELS
}

pub(super) fn gemm_scratch_len(shape: &GemmShape, m: usize) -> usize {
    cut_len::<u8>(PANELS.unpacked_len(shape.k, shape.weight_bits))
        + cut_len::<u8>(m * row_len(shape.k))
}

/// How the codes of `shape` meet these weights.
fn operands(shape: &GemmShape, panels: &Panels) -> Operands {
    let center = shape.weight_bits.center();
    let (lowest, highest) = (center.wrapping_neg() as i8, (center - 1) as i8);
    let full = Operands::new(shape.act_max, lowest, highest);
    if full.form == Form::One && !panels.hold(lowest as u8) {
        return Operands::new(shape.act_max, lowest + 1, highest);
    }
    full
}

#[target_feature(enable = "neon")]
pub(super) fn gemm(call: GemmCall) {
    let GemmCall {
        shape,
        m,
        a,
        packed,
        requant,
        a_row_sums,
        mut scratch,
        out,
    } = call;
    let GemmShape {
        n,
        k,
        weight_bits,
        act_max: _,
    } = *shape;
    let panels = Panels::new(PANELS, shape, packed);
    let operands = operands(shape, &panels);
    let unpacked = cut::<u8>(&mut scratch, PANELS.unpacked_len(k, weight_bits));
    let stride = row_len(k);
    let a_packed = cut::<u8>(&mut scratch, m * stride);
    pack_rows::<16>(a, k, m, operands.rows(), operands.shift, a_packed);
    let mut epilogue = Epilogue::new(n, requant, a_row_sums, out);
    let shift = i32::from(operands.shift);
    match operands.dense {
        None => drive::<_, MR, 1>(
            Neon::new(),
            m,
            n,
            &panels,
            shift,
            &mut epilogue,
            unpacked,
            |p, scratch, panels| panels.load::<128>(p, scratch),
            |i, rows, panel, acc| {
                let a = &a_packed[i * stride..][..rows * stride];
                tile(operands.form, a, rows, panel, acc);
            },
        ),
        Some(form) => drive::<_, MR_DENSE, 1>(
            Neon::new(),
            m,
            n,
            &panels,
            shift,
            &mut epilogue,
            unpacked,
            |p, scratch, panels| panels.load::<128>(p, scratch),
            |i, rows, panel, acc| {
                let a = &a_packed[i * stride..][..rows * stride];
                tile_dense(form, a, rows, panel, acc);
            },
        ),
    }
}
