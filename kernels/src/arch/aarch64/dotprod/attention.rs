//! Attention on the tile of the matrix product; the nest is
//! [`crate::arch::common::attention`]. Entries have 7 bits: s8 as they are.

use super::tile::{MR, PANELS, shift, tile_of_rows};
use crate::{
    HeadShape, KeysValues,
    arch::{
        aarch64::lanes::Neon,
        common::{
            attention::{HeadLayout, HeadSums, drive},
            panels::Layout,
            softmax::{Codebook, Coder},
        },
    },
    table::AttentionCall,
};

const PLANE_BITS: u32 = 7;

fn layout(shape: &HeadShape) -> HeadLayout {
    // A shifted query owes sums of keys, which the zero point's term has anyway.
    let panels = Layout {
        sums: false,
        ..PANELS
    };
    let q_shift = i32::from(shift(shape.act_max));
    HeadLayout {
        mr: MR,
        keys: panels,
        key_panels: 1,
        wide_keys: false,
        values: panels,
        q_shift,
    }
}

pub(super) fn attention_pack_len(shape: &HeadShape) -> usize {
    layout(shape).packed_len(shape)
}

pub(super) fn attention_pack(shape: &HeadShape, keys_values: &KeysValues, out: &mut [u8]) {
    layout(shape).pack(shape, keys_values, out);
}

pub(super) fn attention_scratch_len(shape: &HeadShape) -> usize {
    layout(shape).scratch_len(shape)
}

#[target_feature(enable = "neon,dotprod")]
pub(super) fn attention(call: AttentionCall) {
    let shape = *call.shape;
    let HeadShape {
        tokens,
        head_dim,
        act_max,
    } = shape;
    let shift = shift(act_max);
    let book = Codebook::new(call.softmax, &call.method, PLANE_BITS);
    let coder = Coder::new(&book);
    drive::<_, MR, 1>(
        Neon::new(),
        &layout(&shape),
        &book,
        call,
        |shape, keys_values, out| attention_pack(shape, keys_values, out),
        |scores| {
            scores.by_panel(Neon::new(), |q, stride, rows, panel, acc| {
                tile_of_rows(shift, q, stride, rows, head_dim, panel, acc)
            })
        },
        |entries, stride, rows, panel, acc| {
            tile_of_rows(0, entries, stride, rows, tokens, panel, acc)
        },
        |row, out| coder.encode(row, out),
        |sums| finish(sums),
    );
}

#[inline(never)]
#[target_feature(enable = "neon,dotprod")]
fn finish(sums: HeadSums<'_, MR, 1>) {
    sums.store(Neon::new());
}
