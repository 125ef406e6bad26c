//! The C library: `libtpvit.so` and `libtpvit.a`, described by `tpvit.h`; and
//! `tpvit.wasm`, the same functions for a web page.
//!
//! ```text
//! C ─ tpvit_session_run ─▶ abi: pointers become references, once  ─▶ tpvit_bindings, tpvit_runtime
//!   ◀─ tpvit_status ────── failure: errors and panics become a code and a text of this thread
//! ```
//!
//! `tpvit.h` is made by cbindgen from the documentation of [`abi`], which is
//! why that speaks to people who write C. `tests/header.rs` holds it up to date.
#![deny(unsafe_code)]

#[allow(unsafe_code)]
pub mod abi;
pub mod failure;
#[cfg(target_family = "wasm")]
#[allow(unsafe_code)]
pub mod wasm;
