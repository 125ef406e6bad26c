//! Files of each version of the format, kept and read forever.
#![forbid(unsafe_code)]

mod common;

use common::hand::{golden, operations, with_codebook, with_codebook_per_head};
use std::path::Path;
use tpvit_kernels::Isa;
use tpvit_models::{Model, ModelData, write, write_for};

/// The file of version 1.0, which never changes.
const V1: &[u8] = include_bytes!("golden/v1.tpv");

/// The same with a feature required: a codebook.
const V1_CODEBOOK: &[u8] = include_bytes!("golden/v1_codebook.tpv");

/// The same with another: a codebook for each head of an attention.
const V1_PER_HEAD: &[u8] = include_bytes!("golden/v1_per_head.tpv");

/// Another model, with the operations that are a feature.
const V1_OPERATIONS: &[u8] = include_bytes!("golden/v1_operations.tpv");

/// The golden model with its weights in the order of NEON's kernels, a feature too.
const V1_PANELS: &[u8] = include_bytes!("golden/v1_panels.tpv");

#[test]
fn version_1_can_be_read() {
    for (file, data) in [
        (V1, golden()),
        (V1_CODEBOOK, with_codebook()),
        (V1_PER_HEAD, with_codebook_per_head()),
        (V1_OPERATIONS, operations()),
        (V1_PANELS, golden()),
    ] {
        let model = Model::parse(file).expect("the golden file is valid");
        assert_eq!(model.version(), (1, 0));
        assert_eq!(model.to_data(), data);
    }
}

#[test]
fn version_1_is_what_is_written_today() {
    let written = |data: &ModelData| write(data).expect("the golden model is valid");
    is_written("v1.tpv", V1, written(&golden()));
    is_written("v1_codebook.tpv", V1_CODEBOOK, written(&with_codebook()));
    is_written(
        "v1_per_head.tpv",
        V1_PER_HEAD,
        written(&with_codebook_per_head()),
    );
    is_written("v1_operations.tpv", V1_OPERATIONS, written(&operations()));
    let panels = write_for(&golden(), Isa::Neon).expect("the golden model is valid");
    is_written("v1_panels.tpv", V1_PANELS, panels);
}

fn is_written(name: &str, file: &[u8], bytes: Vec<u8>) {
    if bytes != file {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&path, &bytes).unwrap();
        panic!(
            "the format changed; today's bytes are in {}",
            path.display()
        );
    }
}
