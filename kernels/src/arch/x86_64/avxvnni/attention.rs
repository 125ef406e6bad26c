//! Attention on 256-bit registers; the nest is [`crate::arch::common::attention`].

use super::{
    attention_tile::{scores, values},
    tile::{MR, PANELS},
};
use crate::{
    HeadShape, KeysValues,
    arch::{
        common::{
            attention::{HeadLayout, HeadSums, drive},
            softmax::Codebook,
        },
        x86_64::avx2::{
            attention_pack::pack_bytes,
            codes::{Codes, encode},
            lanes::Ymm,
        },
    },
    table::AttentionCall,
};

/// `vpdpbusd` takes entries up to 255.
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

#[target_feature(enable = "avx2,avxvnni")]
pub(super) fn attention_pack(shape: &HeadShape, keys_values: &KeysValues, out: &mut [u8]) {
    pack_bytes(&LAYOUT, shape, keys_values, out);
}

pub(super) fn attention_scratch_len(shape: &HeadShape) -> usize {
    LAYOUT.scratch_len(shape)
}

#[target_feature(enable = "avx2,avxvnni")]
pub(super) fn attention(call: AttentionCall) {
    let HeadShape {
        tokens,
        head_dim,
        act_max: _,
    } = *call.shape;
    let book = Codebook::new(call.softmax, &call.method, PLANE_BITS);
    let codes = Codes::new(&book);
    drive::<_, MR, 1>(
        Ymm::new(),
        &LAYOUT,
        &book,
        call,
        |shape, keys_values, out| attention_pack(shape, keys_values, out),
        |tile| scores(head_dim, tile),
        |entries, stride, _rows, panel, acc| values(entries, stride, tokens, panel, acc),
        |row, out| encode(&codes, row, out),
        |sums| finish(sums),
    );
}

#[inline(never)]
#[target_feature(enable = "avx2,avxvnni")]
fn finish(sums: HeadSums<'_, MR, 1>) {
    sums.store(Ymm::new());
}
