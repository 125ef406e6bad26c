//! Models for the tests.
#![allow(dead_code)] // each test binary uses its part

pub(crate) mod hand;
pub(crate) mod raw;

use proptest::prelude::*;
use tpvit_models::synthetic::{self, VitConfig};
use tpvit_models::{BitWidth, ModelData, SoftmaxQuant};

/// Both kinds at all widths.
pub(crate) fn softmaxes() -> impl Iterator<Item = SoftmaxQuant> {
    let both = |bits| {
        [
            synthetic::row_max_softmax(bits),
            synthetic::log2_softmax(bits),
        ]
    };
    BitWidth::ALL.into_iter().flat_map(both)
}

/// Random small shapes, widths, names and numbers.
pub(crate) fn random_vit() -> impl Strategy<Value = ModelData> {
    let shape = (
        1..4usize,
        1..4usize,
        1..4usize,
        1..9usize,
        0..3usize,
        1..4usize,
        1..12usize,
    );
    let bits = || prop::sample::select(&BitWidth::ALL[..]);
    let softmax = prop::sample::select(softmaxes().collect::<Vec<_>>());
    let text = ("[a-zäö日 ]{1,12}", ".{0,40}");
    (shape, bits(), bits(), softmax, any::<u64>(), text).prop_map(
        |((side, patch, heads, head_dim, depth, mlp_ratio, classes), w, a, softmax, seed, text)| {
            let config = VitConfig {
                image: side * patch,
                patch,
                dim: heads * head_dim,
                depth,
                heads,
                mlp_ratio,
                classes,
            };
            let softmax = match seed % 2 {
                0 => softmax,
                _ => synthetic::log2_softmax_per_head(softmax.bits, heads),
            };
            let mut data = synthetic::vit(config, w, a, &softmax, seed);
            if seed % 2 == 0 {
                synthetic::add_codebooks(&mut data);
            }
            data.labels[0] = text.0;
            data.provenance = text.1;
            if seed % 3 == 0 {
                data.labels.clear();
            }
            data
        },
    )
}
