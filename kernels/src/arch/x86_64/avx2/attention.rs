//! Attention without a dot-product instruction; the nest is
//! [`crate::arch::common::attention`].
//!
//! Entries have 7 bits: `2 * 127 * 128 < 2^15`, so a pair never saturates,
//! whatever the values.

use super::{
    attention_pack::{pack_bytes, pack_wide},
    attention_tile::{scores, values},
    codes::{Codes, encode},
    lanes::Ymm,
    tile::{BYTES, MR, Path, WORDS, path, spill},
};
use crate::{
    HeadShape, KeysValues,
    arch::common::{
        attention::{HeadLayout, HeadSums, drive},
        softmax::Codebook,
    },
    table::AttentionCall,
};

const PLANE_BITS: u32 = 7;

/// Keys as bytes.
const NARROW: HeadLayout = HeadLayout {
    mr: MR,
    keys: BYTES,
    key_panels: 1,
    wide_keys: false,
    values: BYTES,
    q_shift: 0,
};

/// Keys as words.
const WIDE: HeadLayout = HeadLayout {
    keys: WORDS,
    wide_keys: true,
    ..NARROW
};

fn layout(shape: &HeadShape) -> &'static HeadLayout {
    match path(shape.act_max, shape.center()) {
        Path::Bytes { spill: _ } => &NARROW,
        Path::Words => &WIDE,
    }
}

pub(super) fn attention_pack_len(shape: &HeadShape) -> usize {
    layout(shape).packed_len(shape)
}

#[target_feature(enable = "avx2")]
pub(super) fn attention_pack(shape: &HeadShape, keys_values: &KeysValues, out: &mut [u8]) {
    match path(shape.act_max, shape.center()) {
        Path::Bytes { spill: _ } => pack_bytes(&NARROW, shape, keys_values, out),
        Path::Words => pack_wide(&WIDE, shape, keys_values, out),
    }
}

pub(super) fn attention_scratch_len(shape: &HeadShape) -> usize {
    layout(shape).scratch_len(shape)
}

#[target_feature(enable = "avx2")]
pub(super) fn attention(call: AttentionCall) {
    let shape = *call.shape;
    let HeadShape {
        tokens,
        head_dim,
        act_max,
    } = shape;
    let path = path(act_max, shape.center());
    let value_spill = spill((1 << PLANE_BITS) - 1, shape.center());
    let book = Codebook::new(call.softmax, &call.method, PLANE_BITS);
    let codes = Codes::new(&book);
    drive::<_, MR, 1>(
        Ymm::new(),
        layout(&shape),
        &book,
        call,
        |shape, keys_values, out| attention_pack(shape, keys_values, out),
        |tile| scores(path, head_dim, tile),
        |entries, stride, _rows, panel, acc| {
            values(value_spill, entries, stride, tokens, panel, acc)
        },
        |row, out| encode(&codes, row, out),
        |sums| finish(sums),
    );
}

#[inline(never)]
#[target_feature(enable = "avx2")]
fn finish(sums: HeadSums<'_, MR, 1>) {
    sums.store(Ymm::new());
}
