//! Reading a checkpoint, safetensors with their config: a length of the config in two
//! bytes, the config, the checkpoint.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tpvit_quantizer::checkpoint;

fuzz_target!(|bytes: &[u8]| {
    let Some((len, rest)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let Some((config, tensors)) = rest.split_at_checked(u16::from_le_bytes(*len).into()) else {
        return;
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("config.json"), config).expect("a file");
    std::fs::write(path("model.safetensors"), tensors).expect("a file");
    if let Ok(loaded) = checkpoint::load(&path("model.safetensors"), &path("config.json")) {
        loaded.program.validate().expect("what is loaded is valid");
    }
});
