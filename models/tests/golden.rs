//! Files of each version of the format, kept and read forever.
#![forbid(unsafe_code)]

mod common;

use common::hand::golden;
use std::path::Path;
use tpvit_models::{Model, write};

/// The file of version 1.0, which never changes.
const V1: &[u8] = include_bytes!("golden/v1.tpv");

#[test]
fn version_1_can_be_read() {
    let model = Model::parse(V1).expect("the golden file is valid");
    assert_eq!(model.version(), (1, 0));
    assert_eq!(model.to_data(), golden());
}

#[test]
fn version_1_is_what_is_written_today() {
    let bytes = write(&golden()).expect("the golden model is valid");
    if bytes != V1 {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("v1.tpv");
        std::fs::write(&path, &bytes).unwrap();
        panic!(
            "the format changed; today's bytes are in {}",
            path.display()
        );
    }
}
