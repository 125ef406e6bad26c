//! Matrix products: 4 x 16 tiles over panels `[k][16]` of s8.

use super::tile::{MR, spill, tile};
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

const LAYOUT: Layout = Layout {
    nr: 16,
    sub: 16,
    kr: 1,
    sums: false,
};

pub(super) fn packed_len(shape: &GemmShape) -> usize {
    LAYOUT.packed_len(shape)
}

pub(super) fn pack_weights(shape: &GemmShape, dense: &[u8], out: &mut [u8]) {
    LAYOUT.pack(shape, dense, out);
}

pub(super) fn gemm_scratch_len(shape: &GemmShape, _m: usize) -> usize {
    cut_len::<u8>(LAYOUT.unpacked_len(shape.k, shape.weight_bits))
}

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
    let panels = Panels::new(LAYOUT, shape, packed);
    let unpacked = cut::<u8>(&mut scratch, LAYOUT.unpacked_len(k, weight_bits));
    let mut epilogue = Epilogue::new(n, requant, a_row_sums, out);
    let spill = spill(act_max, weight_bits.center());
    drive::<MR, 1>(
        m,
        n,
        &panels,
        0,
        &mut epilogue,
        unpacked,
        |p, scratch, panels| panels.load::<32>(p, scratch),
        |i, rows, panel, acc| tile(spill, &a[i * k..], k, rows, k, panel, acc),
    );
}
