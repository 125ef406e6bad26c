#!/usr/bin/env bash
# The command for a device, which only runs .tpv files: small, and one file that needs
# nothing of the system it is copied to.
#
#   .ci/device.sh                     for this computer and for 64-bit Arm
#   .ci/device.sh x86_64              one of them; armv7 is only built where named
#
# Static, so that no glibc can be too old; checked in an empty root folder, without
# the optimisation for size, which takes minutes. Arm's runs emulated, and has to answer
# what x86-64 answers.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
most_bytes=2000000 # of the small one, with the system's C library
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
target_dir=$(realpath -m "${CARGO_TARGET_DIR:-target}")
arguments=(-p tpvit-quantizer --no-default-features --features run --locked)

die() {
  echo "device: $*" >&2
  exit 1
}

# build TRIPLE [ARGUMENT ...]: a static command; its path in $made
build() {
  local triple=$1 dir=$target_dir/device
  shift
  RUSTFLAGS="-C target-feature=+crt-static" CARGO_TARGET_DIR=$dir \
    cargo build "${arguments[@]}" --target "$triple" "$@"
  made=$dir/$triple/debug/tpvit
}

# Neither a loader to look for nor libraries to load.
check_static() {
  local headers
  headers=$(readelf -lW "$1")
  ! grep -q INTERP <<<"$headers" || die "$1 asks for a loader"
  ! readelf -dW "$1" | grep NEEDED || die "$1 asks for libraries"
}

# A model and a picture, in the folder that becomes the whole world of the command.
prepare() {
  mkdir "$work/root"
  CARGO_TARGET_DIR=$target_dir cargo run --quiet --locked -p tpvit-bindings \
    --example golden_run -- "$work/root"
  cp models/zoo/photos/cat.jpg "$work/root/"
}

# answer PROGRAM [EMULATOR ...]: what it says of the picture, without the time
answer() {
  local program=$1
  shift
  cp "$program" "$work/root/tpvit"
  for emulator in "$@"; do cp "$emulator" "$work/root/"; done
  local in_root=(./tpvit)
  if [ $# != 0 ]; then in_root=("./$(basename "$1")" -cpu max ./tpvit); fi
  if unshare -r chroot "$work/root" /tpvit --version >/dev/null 2>&1 || [ $# != 0 ]; then
    unshare -r chroot "$work/root" "${in_root[@]}" run model.tpv cat.jpg --json
  else
    echo "no empty root folder here: run in this one" >&2
    (cd "$work/root" && "${in_root[@]}" run model.tpv cat.jpg --json)
  fi | grep -v milliseconds
}

for_x86_64() {
  local small=$target_dir/release-small/tpvit bytes
  CARGO_TARGET_DIR=$target_dir cargo build "${arguments[@]}" --profile release-small
  bytes=$(stat -c %s "$small")
  echo "release-small: $bytes bytes"
  [ "$bytes" -lt $most_bytes ] || die "$small has $bytes bytes, must have less than $most_bytes"
  build x86_64-unknown-linux-gnu
  check_static "$made"
  answer "$made" >"$work/x86_64"
  diff <("$small" run "$work/root/model.tpv" "$work/root/cat.jpg" --json |
    grep -v milliseconds | sed "s#$work/root/##") "$work/x86_64"
}

for_aarch64() {
  local triple=aarch64-unknown-linux-gnu
  has_std() { [ -d "$("$1" --print sysroot)/lib/rustlib/$triple/lib" ]; }
  command -v aarch64-linux-gnu-gcc >/dev/null || die "as root, once: .ci/aarch64.sh"
  if ! has_std rustc; then export RUSTC=/usr/bin/rustc; fi
  has_std "${RUSTC:-rustc}" || die "as root, once: .ci/aarch64.sh"
  CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc build $triple
  unset RUSTC
  check_static "$made"
  answer "$made" "$(command -v qemu-aarch64-static)" >"$work/aarch64"
  if [ -f "$work/x86_64" ]; then diff "$work/x86_64" "$work/aarch64"; fi
}

# Debian has no standard library of this compiler for 32-bit Arm (its armhf packages
# are of Rust 1.85 and 1.63): it is compiled from the sources.
for_armv7() {
  command -v arm-linux-gnueabihf-gcc >/dev/null ||
    die "as root: apt-get install gcc-arm-linux-gnueabihf libc6-dev-armhf-cross rust-web-src"
  RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 \
    CARGO_TARGET_ARMV7_UNKNOWN_LINUX_GNUEABIHF_LINKER=arm-linux-gnueabihf-gcc \
    build armv7-unknown-linux-gnueabihf -Z build-std=std,panic_unwind
  check_static "$made"
  answer "$made" "$(command -v qemu-arm-static)" >"$work/armv7"
  if [ -f "$work/x86_64" ]; then diff "$work/x86_64" "$work/armv7"; fi
}

prepare
for name in "${@:-x86_64 aarch64}"; do
  for target in $name; do
    echo "--- $target"
    "for_$target"
  done
done
if [ -f "$work/x86_64" ]; then echo "the same answer everywhere"; fi
