//! Files of each version of the format, kept and read forever.
#![forbid(unsafe_code)]

mod common;

use common::hand::{golden, golden_per_head};
use std::path::Path;
use tpvit_models::{Model, ModelData, write};

/// The file of version 1.0, which never changes.
const V1: &[u8] = include_bytes!("golden/v1.tpv");

/// One that requires attention codebooks for each head.
const PER_HEAD: &[u8] = include_bytes!("golden/v1_per_head.tpv");

#[test]
fn version_1_can_be_read() {
    let model = Model::parse(V1).expect("the golden file is valid");
    assert_eq!(model.version(), (1, 0));
    assert_eq!(model.to_data(), golden());
}

#[test]
fn version_1_is_what_is_written_today() {
    unchanged("v1.tpv", &golden(), V1);
}

#[test]
fn codebooks_for_each_head_can_be_read_and_are_written_so() {
    unchanged("v1_per_head.tpv", &golden_per_head(), PER_HEAD);
    let model = Model::parse(PER_HEAD).expect("the golden file is valid");
    assert_eq!(model.to_data(), golden_per_head());
}

fn unchanged(name: &str, data: &ModelData, golden: &[u8]) {
    let bytes = write(data).expect("the golden model is valid");
    if bytes != golden {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&path, &bytes).unwrap();
        panic!(
            "the format changed; today's bytes are in {}",
            path.display()
        );
    }
}
