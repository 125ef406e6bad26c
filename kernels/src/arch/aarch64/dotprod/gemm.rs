//! Matrix products: one s8 tile serves every width; low-bit panels are unpacked
//! once and used by all rows, and activations are re-ordered once for all panels.

use super::tile::{MR, PANELS, shift, tile};
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

#[target_feature(enable = "neon,dotprod")]
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
        act_max,
    } = *shape;
    let panels = Panels::new(PANELS, shape, packed);
    let unpacked = cut::<u8>(&mut scratch, PANELS.unpacked_len(k, weight_bits));
    let shift = shift(act_max);
    let stride = row_len(k);
    let a_packed = cut::<u8>(&mut scratch, m * stride);
    pack_rows::<16>(a, k, m, MR, shift, a_packed);
    let mut epilogue = Epilogue::new(n, requant, a_row_sums, out);
    drive::<_, MR, 1>(
        Neon::new(),
        m,
        n,
        &panels,
        i32::from(shift),
        &mut epilogue,
        unpacked,
        |p, scratch, panels| panels.load::<64>(p, scratch),
        |i, rows, panel, acc| tile(&a_packed[i * stride..][..rows * stride], rows, panel, acc),
    );
}
