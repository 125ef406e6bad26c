//! Attention on the tile of the matrix product; the nest is
//! [`crate::arch::common::attention`]. The tile is unsigned x signed: entries have 8
//! bits and queries are codes as they are.

use super::tile::{MR, PANELS, tile_of_rows};
use crate::{
    HeadShape, KeysValues,
    arch::{
        aarch64::lanes::Neon,
        common::{
            attention::{HeadLayout, HeadSums, drive},
            softmax::{Codebook, Coder},
        },
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

#[target_feature(enable = "neon,dotprod,i8mm")]
pub(super) fn attention(call: AttentionCall) {
    let HeadShape {
        tokens,
        head_dim,
        act_max: _,
    } = *call.shape;
    let book = Codebook::new(call.softmax, &call.method, PLANE_BITS);
    let coder = Coder::new(&book);
    drive::<_, MR, 1>(
        Neon::new(),
        &LAYOUT,
        &book,
        call,
        |shape, keys_values, out| attention_pack(shape, keys_values, out),
        |scores| {
            scores.by_panel(Neon::new(), |q, stride, rows, panel, acc| {
                tile_of_rows(q, stride, rows, head_dim, panel, acc)
            })
        },
        |entries, stride, rows, panel, acc| tile_of_rows(entries, stride, rows, tokens, panel, acc),
        |row, out| coder.encode(row, out),
        |sums| finish(sums),
    );
}

#[inline(never)]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn finish(sums: HeadSums<'_, MR, 1>) {
    sums.store(Neon::new());
}
