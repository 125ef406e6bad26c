//! Attention on 512-bit registers; the nest is [`crate::arch::common::attention`].

use super::{
    attention_tile::{MR, NV, scores, values},
    codes::encode,
    lanes::Zmm,
    tile::panels,
};
use crate::{
    HeadShape, KeysValues,
    arch::{
        common::{
            attention::{HeadLayout, HeadSums, drive},
            softmax::Codebook,
        },
        x86_64::{avx2::attention_pack::pack_bytes, search::Search},
    },
    table::AttentionCall,
};

/// `vpdpbusd` takes entries up to 255.
const PLANE_BITS: u32 = 8;

const LAYOUT: HeadLayout = HeadLayout {
    mr: MR,
    keys: panels(1),
    key_panels: NV,
    wide_keys: false,
    values: panels(1),
    q_shift: 0,
};

pub(super) fn attention_pack_len(shape: &HeadShape) -> usize {
    LAYOUT.packed_len(shape)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn attention_pack(shape: &HeadShape, keys_values: &KeysValues, out: &mut [u8]) {
    pack_bytes(&LAYOUT, shape, keys_values, out);
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
    let book = Codebook::new(call.softmax, &call.method, PLANE_BITS);
    let search = Search::new(&book);
    drive::<_, MR, NV>(
        Zmm::new(),
        &LAYOUT,
        &book,
        call,
        |shape, keys_values, out| attention_pack(shape, keys_values, out),
        |tile| scores(head_dim, tile),
        |entries, stride, _rows, panels, acc| values(entries, stride, tokens, panels, acc),
        |row, out| encode(&search, row, out),
        |sums| finish(sums),
    );
}

#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn finish(sums: HeadSums<'_, MR, NV>) {
    sums.store(Zmm::new());
}
