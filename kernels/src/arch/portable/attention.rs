//! Attention on the tile of the matrix product; [`crate::arch::common::attention`].

use super::tile::{MR, PANELS, tile};
use crate::{
    HeadShape, KeysValues,
    arch::common::{
        attention::{HeadLayout, HeadSums, drive},
        lanes::Arrays,
        softmax::{Codebook, Coder},
    },
    table::AttentionCall,
};

const PLANE_BITS: u32 = 8;

const LAYOUT: HeadLayout = HeadLayout {
    mr: MR,
    keys: PANELS,
    key_panels: 1,
    wide_keys: false,
    values: PANELS,
    q_shift: 0,
};

pub(super) fn attention_pack_len(shape: &HeadShape) -> usize {
    LAYOUT.packed_len(shape)
}

pub(super) fn attention_pack(shape: &HeadShape, keys_values: &KeysValues, out: &mut [u8]) {
    LAYOUT.pack(shape, keys_values, out);
}

pub(super) fn attention_scratch_len(shape: &HeadShape) -> usize {
    LAYOUT.scratch_len(shape)
}

pub(super) fn attention(call: AttentionCall) {
    let HeadShape {
        tokens,
        head_dim,
        act_max: _,
    } = *call.shape;
    let book = Codebook::new(call.softmax, &call.method, PLANE_BITS);
    let coder = Coder::new(&book);
    drive::<_, MR, 1>(
        Arrays,
        &LAYOUT,
        &book,
        call,
        attention_pack,
        |scores| {
            scores.by_panel(Arrays, |q, stride, rows, panel, acc| {
                tile(q, stride, rows, head_dim, panel, acc)
            })
        },
        |entries, stride, rows, panel, acc| tile(entries, stride, rows, tokens, panel, acc),
        |row, out| coder.encode(row, out),
        finish,
    );
}

#[inline(never)]
fn finish(sums: HeadSums<'_, MR, 1>) {
    sums.store(Arrays);
}
