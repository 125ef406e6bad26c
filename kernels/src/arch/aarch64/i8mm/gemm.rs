//! Matrix products: one tile serves every width; low-bit panels are unpacked once
//! and used by all rows, and activations are re-ordered once for all panels.

use super::tile::{MR, PANELS, tile};
use crate::{
    GemmShape,
    arch::{
        aarch64::lanes::Neon,
        aarch64::rows::{block_len, pack_rows, row_len},
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
        + cut_len::<u8>(block_len::<8>(m, shape.k))
}

#[target_feature(enable = "neon,dotprod,i8mm")]
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
    let a_packed = cut::<u8>(&mut scratch, block_len::<8>(m, k));
    pack_rows::<8>(a, k, m, MR, 0, a_packed);
    let mut epilogue = Epilogue::new(n, requant, a_row_sums, out);
    drive::<_, MR, 1>(
        Neon::new(),
        m,
        n,
        &panels,
        0,
        &mut epilogue,
        unpacked,
        |p, scratch, panels| panels.load::<128>(p, scratch),
        |i, rows, panel, acc| {
            let block = &a_packed[i * row_len(k)..][..block_len::<8>(rows, k)];
            tile(block, rows, panel, acc);
        },
    );
}
