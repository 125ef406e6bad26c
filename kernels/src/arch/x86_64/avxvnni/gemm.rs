//! Matrix products: one s8 tile serves every width; low-bit panels are unpacked
//! once and used by all rows.

use super::{
    super::avx2::lanes::Ymm,
    tile::{MR, PANELS, tile},
};
use crate::{
    GemmShape,
    arch::common::{
        epilogue::Epilogue,
        gemm::drive,
        panels::{Layout, Panels},
        scratch::{cut, cut_len},
    },
    table::GemmCall,
};

pub(super) fn layout(_: &GemmShape) -> Layout {
    PANELS
}

pub(super) fn gemm_scratch_len(shape: &GemmShape, _m: usize) -> usize {
    cut_len::<u8>(PANELS.unpacked_len(shape.k, shape.weight_bits))
}

#[target_feature(enable = "avx2,avxvnni")]
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
    let unpacked = cut::<u8>(&mut scratch, PANELS.unpacked_len(k, weight_bits));
    let mut epilogue = Epilogue::new(n, requant, a_row_sums, out);
    drive::<_, MR, 1>(
        Ymm::new(),
        m,
        n,
        &panels,
        0,
        &mut epilogue,
        unpacked,
        |p, scratch, panels| panels.load::<128>(p, scratch),
        |i, rows, panel, acc| tile(&a[i * k..], k, rows, k, panel, acc),
    );
}
