//! Parsing a `.tpv` file: in memory and as a stream agree, and neither panics.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use tpvit_fuzz::{look_at, mutate_tpv};
use tpvit_models::{FileHead, Model, TensorId, TensorReader};

fuzz_target!(|file: &[u8]| {
    let whole = Model::parse(file);
    if let Ok(model) = &whole {
        look_at(model);
    }
    assert_eq!(stream(file), whole.is_ok(), "two readers, one answer");
});

/// Whether the reader of streams takes all of it.
fn stream(file: &[u8]) -> bool {
    let mut cursor = Cursor::new(file);
    let Ok(head) = FileHead::read(&mut cursor) else {
        return false;
    };
    let Ok(info) = head.parse() else {
        return false;
    };
    let Ok(mut tensors) = TensorReader::open(&info, cursor) else {
        return false;
    };
    let count = info.program().tensors.len();
    (0..count).all(|index| tensors.tensor(TensorId(index as u16)).is_ok())
}

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate_tpv(data, size, max_size, seed, fuzzer_mutate)
});
