//! Reading and recognising an ONNX file, without the run of the graph by tract, whose
//! panics are caught elsewhere.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tpvit_quantizer::import;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, bytes).expect("a file");
    if let Ok(imported) = import::load(&path, false) {
        imported
            .program
            .validate()
            .expect("what is imported is valid");
    }
});
