//! Matrix products on the tiles of [`super::tile`].
//!
//! Bytes: 4-, 3- and 2-bit weights with any activations, 6-bit with up to 6-bit
//! ones. Words: the rest; `a` is widened once per call, a panel once per panel.

use super::{
    lanes::Ymm,
    tile::{BYTES, MR, Path, WORDS, path, tile_bytes, tile_words},
};
use crate::{
    GemmShape,
    arch::common::{
        epilogue::Epilogue,
        gemm::drive,
        panels::{Layout, Panels},
        scratch::{cut, cut_len},
        widen::{wide_row_len, widen_codes, widen_weights},
    },
    table::GemmCall,
};

fn shape_path(shape: &GemmShape) -> Path {
    path(shape.act_max, shape.weight_bits.center())
}

pub(super) fn layout(shape: &GemmShape) -> Layout {
    match shape_path(shape) {
        Path::Bytes { spill: _ } => BYTES,
        Path::Words => WORDS,
    }
}

pub(super) fn gemm_scratch_len(shape: &GemmShape, m: usize) -> usize {
    match shape_path(shape) {
        Path::Bytes { spill: _ } => cut_len::<u8>(BYTES.unpacked_len(shape.k, shape.weight_bits)),
        Path::Words => {
            cut_len::<u8>(2 * WORDS.unpacked_len(shape.k, shape.weight_bits))
                + cut_len::<u8>(m * wide_row_len(shape.k))
        }
    }
}

#[target_feature(enable = "avx2")]
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
    let mut epilogue = Epilogue::new(n, requant, a_row_sums, out);
    match shape_path(shape) {
        Path::Bytes { spill } => {
            let panels = Panels::new(BYTES, shape, packed);
            let unpacked = cut::<u8>(&mut scratch, BYTES.unpacked_len(k, weight_bits));
            drive::<_, MR, 1>(
                Ymm::new(),
                m,
                n,
                &panels,
                0,
                &mut epilogue,
                unpacked,
                |p, scratch, panels| panels.load::<128>(p, scratch),
                |i, rows, panel, acc| tile_bytes(spill, &a[i * k..], k, rows, k, panel, acc),
            );
        }
        Path::Words => {
            let panels = Panels::new(WORDS, shape, packed);
            let wide_panel = cut::<u8>(&mut scratch, 2 * WORDS.unpacked_len(k, weight_bits));
            let stride = wide_row_len(k);
            let wide_a = cut::<u8>(&mut scratch, m * stride);
            widen_codes(a, k, 0, k, m, wide_a);
            drive::<_, MR, 1>(
                Ymm::new(),
                m,
                n,
                &panels,
                0,
                &mut epilogue,
                wide_panel,
                |p, scratch, panels| {
                    widen_weights(panels.load::<64>(p, &mut []), scratch);
                    scratch
                },
                |i, rows, panel, acc| {
                    tile_words(
                        &wide_a[i * stride..],
                        stride,
                        rows,
                        k.div_ceil(2),
                        panel,
                        acc,
                    )
                },
            );
        }
    }
}
