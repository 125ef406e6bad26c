#!/usr/bin/env bash
# Builds the C library as WebAssembly, and the page with it inside:
#
#   bindings/wasm/build.sh ─▶ target/wasm/tpvit.wasm, target/wasm/tpvit.html
#
# With rustup's wasm32-unknown-unknown if it is there. Otherwise with Debian's
# rustc: Debian has the target's standard library only for rustc 1.63, which
# knows no edition 2024, but the source of the library for the newer compiler,
# so cargo builds it. Needs `node` for the page.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
out=$(realpath -m "${CARGO_TARGET_DIR:-../../target}")/wasm
target=wasm32-unknown-unknown
library=()

has_std() { [ -d "$("$1" --print sysroot)/lib/rustlib/$target/lib" ]; }
source_of() { echo "$("$1" --print sysroot)/lib/rustlib/src/rust/library"; }

if ! has_std rustc; then
  # The linker is rustup's; Debian's is of another LLVM.
  linker=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin/rust-lld
  if [ ! -x /usr/bin/rustc ] || [ ! -d "$(source_of /usr/bin/rustc)/std" ]; then
    if [ "$(id -u)" != 0 ]; then
      echo "wasm: run bindings/wasm/build.sh once as root, it installs rustc-web and rust-web-src" >&2
      exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends rustc-web rust-web-src
  fi
  # Building the standard library is for nightly compilers; this lets it.
  export RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1
  export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=$linker
  library=(-Z "build-std=std,panic_abort")
fi
"${RUSTC:-rustc}" --version

CARGO_TARGET_DIR=$out CARGO_PROFILE_RELEASE_PANIC=abort CARGO_PROFILE_RELEASE_STRIP=true \
  cargo build --quiet --release --locked -p tpvit-c --target "$target" "${library[@]}"
cp "$out/$target/release/tpvit.wasm" "$out/tpvit.wasm"
node page.mjs "$out/tpvit.wasm" "$out/tpvit.html"
ls -sh "$out"/tpvit.*
