//! The `tpvit` command.
#![forbid(unsafe_code)]
fn main() {}
