#!/usr/bin/env bash
# Tests kernels, models and runtime on emulated Arm processors, from x86-64
# Debian and with Debian's packages alone.
#
# One processor for each class of instructions. On A53 and A72 a stray dot
# product traps, so a wrong dispatch fails. REQUIRE_ISA makes a skipped ISA a
# failure. Emulation says nothing about speed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
target=aarch64-unknown-linux-gnu
crates=(-p tpvit-kernels -p tpvit-models -p tpvit-runtime)
# processor:the ISAs it must have
processors=(
  cortex-a53:neon
  cortex-a72:neon
  cortex-a76:neon,dotprod
  max:neon,dotprod,i8mm
)

has_std() { [ -d "$("$1" --print sysroot)/lib/rustlib/$target/lib" ]; }

install_packages() {
  if [ "$(id -u)" != 0 ]; then
    echo "aarch64: run .ci/aarch64.sh once as root, it installs the cross compiler and QEMU" >&2
    exit 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  dpkg --add-architecture arm64
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends \
    rustc-web qemu-user-static gcc-aarch64-linux-gnu libc6-dev-arm64-cross
  # Only the standard library's files: the package itself would replace the
  # host's compiler.
  local work
  work=$(mktemp -d)
  chmod 755 "$work" # apt downloads as another user
  (cd "$work" && apt-get download -qq libstd-rust-web-dev:arm64)
  dpkg -x "$work"/libstd-rust-web-dev_*_arm64.deb "$work/unpacked"
  mkdir -p /usr/lib/rustlib
  cp -r "$work/unpacked/usr/lib/rustlib/$target" /usr/lib/rustlib/
  rm -rf "$work"
}

if ! command -v qemu-aarch64-static >/dev/null || ! command -v aarch64-linux-gnu-gcc >/dev/null ||
  ! { has_std rustc || { [ -x /usr/bin/rustc ] && has_std /usr/bin/rustc; }; }; then
  install_packages
fi
# rustup's compiler if it has the target's standard library, else Debian's.
if ! has_std rustc; then export RUSTC=/usr/bin/rustc; fi
"${RUSTC:-rustc}" --version

# Another compiler's objects must not meet the host's.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/aarch64
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc

echo "--- without std"
cargo build "${crates[@]}" --no-default-features --target $target --locked

for processor in "${processors[@]}"; do
  cpu=${processor%%:*}
  isas=${processor#*:}
  echo "--- $cpu, must have $isas"
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -cpu $cpu -L /usr/aarch64-linux-gnu"
  # models has no instructions of its own: one processor speaks for all.
  tested=(-p tpvit-kernels -p tpvit-runtime)
  if [ "$cpu" = cortex-a72 ]; then tested+=(-p tpvit-models); fi
  # Not the documentation's examples: they would need a matching rustdoc.
  REQUIRE_ISA=$isas cargo test "${tested[@]}" --target $target --lib --tests --locked
done
