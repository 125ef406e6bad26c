//! Preprocessing of timm's and Hugging Face's JSON: what is accepted can be done to a
//! picture.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tpvit_quantizer::pictures::{Pixels, prepare};
use tpvit_quantizer::preprocessing::{check, describe, from_json};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    for input in [[32, 32], [24, 40]] {
        let Ok(preprocess) = from_json(text, Path::new("config.json"), input) else {
            continue;
        };
        check(&preprocess, input).expect("it was checked");
        std::hint::black_box(describe(&preprocess, input));
        let picture = Pixels {
            height: 9,
            width: 7,
            data: vec![77; 9 * 7 * 3],
        };
        if let Ok(prepared) = prepare(&picture, &preprocess, input) {
            assert_eq!([prepared.height, prepared.width], input);
        }
    }
});
