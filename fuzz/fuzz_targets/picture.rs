//! Decoding and preparing a picture. The decoders' panics are caught, so they are no
//! finding here; whatever else panics is.
#![no_main]

use std::sync::Once;

use libfuzzer_sys::fuzz_target;
use tpvit_models::{Interpolation, Preprocess, Resize};
use tpvit_quantizer::pictures::{decode_bytes, prepare};

fuzz_target!(|bytes: &[u8]| {
    static QUIET: Once = Once::new();
    // libFuzzer's hook would end the process before a panic is caught.
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| ())));
    let Ok(picture) = decode_bytes(bytes) else {
        return;
    };
    assert_eq!(picture.data.len(), picture.height * picture.width * 3);
    if picture.data.len() > 1 << 22 {
        return; // its time is known
    }
    for (resize, interpolation) in [
        (Resize::ShorterSide(20), Interpolation::Bicubic),
        (Resize::Squash, Interpolation::Bilinear),
    ] {
        let preprocess = Preprocess {
            resize,
            interpolation,
            mean: [0.5; 3],
            std: [0.5; 3],
        };
        if let Ok(prepared) = prepare(&picture, &preprocess, [16, 16]) {
            assert_eq!(prepared.data.len(), 16 * 16 * 3);
        }
    }
});
