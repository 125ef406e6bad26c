//! Attention on the tile of the matrix product; the nest is
//! [`crate::arch::common::attention`].

use super::tile::{MR, panels, tile};
use crate::{
    HeadShape, KeysValues,
    arch::common::attention::{HeadLayout, drive},
    table::AttentionCall,
};

/// Registers of outputs of a tile: heads of 32 and 197 tokens waste little at 16.
const NV: usize = 1;

const LAYOUT: HeadLayout = HeadLayout {
    mr: MR,
    keys: panels(NV),
    wide_keys: false,
    values: panels(NV),
    plane_bits: 8,
    q_shift: 0,
};

pub(super) fn attention_pack_len(shape: &HeadShape) -> usize {
    LAYOUT.packed_len(shape)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn attention_pack(shape: &HeadShape, keys_values: &KeysValues, out: &mut [u8]) {
    LAYOUT.pack(shape, keys_values, out);
}

pub(super) fn attention_scratch_len(shape: &HeadShape) -> usize {
    LAYOUT.scratch_len(shape)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn attention(call: AttentionCall) {
    let HeadShape {
        tokens,
        head_dim,
        act_max: _,
    } = *call.shape;
    drive::<MR, NV, NV>(
        &LAYOUT,
        call,
        |q, stride, rows, panel, acc| tile::<NV>(q, stride, rows, head_dim, panel, acc),
        |entries, stride, rows, panel, acc| tile::<NV>(entries, stride, rows, tokens, panel, acc),
    );
}
