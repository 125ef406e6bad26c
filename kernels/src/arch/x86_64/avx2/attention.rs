//! Attention on the tiles of [`super::tile`]; the nest is
//! [`crate::arch::common::attention`].
//!
//! Entries have 7 bits: `2 * 127 * 128 < 2^15`, so a pair never saturates,
//! whatever the values.

use super::tile::{BYTES, MR, Path, WORDS, path, spill, tile_bytes, tile_words};
use crate::{
    HeadShape, KeysValues,
    arch::common::attention::{HeadLayout, drive},
    table::AttentionCall,
};

const PLANE_BITS: u32 = 7;

/// Keys as bytes.
const NARROW: HeadLayout = HeadLayout {
    mr: MR,
    keys: BYTES,
    wide_keys: false,
    values: BYTES,
    plane_bits: PLANE_BITS,
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
        Path::Bytes { spill: _ } => NARROW.pack(shape, keys_values, out),
        Path::Words => WIDE.pack(shape, keys_values, out),
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
    let keys = path(act_max, shape.center());
    let value_spill = spill((1 << PLANE_BITS) - 1, shape.center());
    drive::<MR, 1, 1>(
        layout(&shape),
        call,
        |q, stride, rows, panel, acc| match keys {
            Path::Bytes { spill } => tile_bytes(spill, q, stride, rows, head_dim, panel, acc),
            Path::Words => tile_words(q, stride, rows, head_dim.div_ceil(2), panel, acc),
        },
        |entries, stride, rows, panel, acc| {
            tile_bytes(value_spill, entries, stride, rows, tokens, panel, acc)
        },
    );
}
