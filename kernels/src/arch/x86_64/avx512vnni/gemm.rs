//! Matrix products: one s8 tile serves every width; low-bit panels are unpacked
//! once and used by all rows.

use super::{
    lanes::Zmm,
    tile::{MR, panels, tile},
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

/// Registers of outputs of a tile.
const NV: usize = 3;

/// Bytes of two groups: what low-bit weights are unpacked to at once.
const PAIR: usize = 2 * 4 * 16 * NV;

const PANELS: Layout = panels(NV);

pub(super) fn layout(_: &GemmShape) -> Layout {
    PANELS
}

pub(super) fn gemm_scratch_len(shape: &GemmShape, _m: usize) -> usize {
    cut_len::<u8>(PANELS.unpacked_len(shape.k, shape.weight_bits))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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
    drive::<_, MR, NV>(
        Zmm::new(),
        m,
        n,
        &panels,
        0,
        &mut epilogue,
        unpacked,
        |p, scratch, panels| panels.load::<PAIR>(p, scratch),
        |i, rows, panel, acc| tile::<NV>(&a[i * k..], k, rows, k, panel, acc),
    );
}
