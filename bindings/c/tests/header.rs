//! `tpvit.h` says what the library does.
#![forbid(unsafe_code)]

use std::path::Path;

/// Compares the header with what cbindgen makes of the sources; with
/// `UPDATE_HEADER=1` it writes it instead.
#[test]
fn the_header_is_up_to_date() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(folder.join("cbindgen.toml")).expect("a valid config");
    let mut made = Vec::new();
    cbindgen::Builder::new()
        .with_config(config)
        .with_src(folder.join("src/failure.rs"))
        .with_src(folder.join("src/abi.rs"))
        .generate()
        .expect("sources that cbindgen reads")
        .write(&mut made);
    let made = String::from_utf8(made).expect("a header is text");
    let path = folder.join("tpvit.h");
    if std::env::var_os("UPDATE_HEADER").is_some() {
        std::fs::write(&path, &made).expect("the header can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == made,
        "tpvit.h is out of date; make it with UPDATE_HEADER=1 cargo test -p tpvit-c --test header"
    );
}
