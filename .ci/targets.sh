#!/usr/bin/env bash
# Type-checks runtime, and all below it, without std for processors that have no
# kernels of their own, some without atomics, a float unit or little-endian memory.
#
# No package has their core and alloc: they are compiled from Debian's sources of the
# compiler, which needs a nightly option of cargo's, and so RUSTC_BOOTSTRAP.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
targets=(
  thumbv6m-none-eabi         # Cortex-M0: no compare-and-swap
  riscv32i-unknown-none-elf  # no atomics, no multiplication
  armv7a-none-eabi           # 32-bit Arm
  wasm32-unknown-unknown
  powerpc-unknown-linux-gnu  # big-endian
)

export RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1
if [ ! -x "$RUSTC" ] || [ ! -d "$("$RUSTC" --print sysroot)/lib/rustlib/src/rust/library" ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "targets: run .ci/targets.sh once as root, it installs a compiler and its sources" >&2
    exit 1
  fi
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    rustc-web rust-web-src
fi
"$RUSTC" --version

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/targets
for target in "${targets[@]}"; do
  echo "--- $target"
  RUSTFLAGS="-D warnings" cargo check -p tpvit-runtime --no-default-features --locked \
    -Z build-std=core,alloc --target "$target"
done
