#!/usr/bin/env bash
# Builds the image, boots it on emulated machines without an operating system, and
# compares the bits of its answers with those of a program of this machine.
#
#   bare/run.sh                                     small synthetic models
#   TPVIT_BARE_MODEL=m.tpv bare/run.sh              this model; see bare/build.rs
#   VERBOSE=1 bare/run.sh                           prints all that the machines say
#   TIMEOUT=3600 bare/run.sh                        seconds for each machine; 300 without it
#   QEMU_ARGUMENTS='-icount shift=0' bare/run.sh    more for qemu; this counts instructions
#
# Needs Debian's qemu-system-arm and what .ci/aarch64.sh installs. docs/embedded.md
# explains what is measured. Emulated cycles say nothing about speed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
for variable in TPVIT_BARE_MODEL TPVIT_BARE_PICTURES; do
  # Relative to the caller's folder.
  if [ -n "${!variable:-}" ]; then
    path=$(realpath -e "${!variable}")
    export "$variable=$path"
  fi
done
cd "$root"
target=aarch64-unknown-linux-gnu
# qemu's arguments|the image|what the machine says on starting. On A72 a stray dot
# product is an exception.
machines=(
  "-M virt -cpu cortex-a72|virt|level 1.*kernels neon"
  "-M virt,virtualization=on -cpu cortex-a72|virt|level 2.*kernels neon"
  "-M virt -cpu cortex-a76|virt|level 1.*kernels dotprod"
  "-M virt -cpu max|virt|level 1.*kernels i8mm"
  "-M raspi3b|raspi3b|level [23].*kernels neon"
)

has_std() { [ -d "$("$1" --print sysroot)/lib/rustlib/$target/lib" ]; }

if ! command -v qemu-system-aarch64 >/dev/null || ! command -v aarch64-linux-gnu-gcc >/dev/null ||
  ! { has_std rustc || { [ -x /usr/bin/rustc ] && has_std /usr/bin/rustc; }; }; then
  echo "bare: needs qemu-system-aarch64 and an aarch64 compiler; as root:" >&2
  echo "  apt-get install qemu-system-arm && .ci/aarch64.sh" >&2
  exit 1
fi
# rustup's compiler if it has the target's standard library, else Debian's.
if ! has_std rustc; then export RUSTC=/usr/bin/rustc; fi
"${RUSTC:-rustc}" --version

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/bare
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
cargo=(cargo build --release --locked --manifest-path bare/Cargo.toml)
"${cargo[@]}" --target $target --bin virt --bin raspi3b
"${cargo[@]}" --features native --bin native

said=$(mktemp -d)
trap 'rm -rf "$said"' EXIT
"$CARGO_TARGET_DIR/release/native" >"$said/expected"
echo "expected: $(grep -c '^result' "$said/expected") results"

failed=0
for machine in "${machines[@]}"; do
  IFS='|' read -r arguments image start <<<"$machine"
  echo "--- $arguments"
  status=0
  # shellcheck disable=SC2086
  timeout "${TIMEOUT:-300}" qemu-system-aarch64 $arguments ${QEMU_ARGUMENTS:-} -nic none -nographic -semihosting \
    -kernel "$CARGO_TARGET_DIR/$target/release/$image" </dev/null |
    tr -d '\r' >"$said/all" || status=$? # qemu's: pipefail
  if [ -n "${VERBOSE:-}" ]; then cat "$said/all"; else grep -E '^(tpvit|heap|error)' "$said/all" || true; fi
  grep -E '^(result|answer) ' "$said/all" >"$said/answers" || true
  wrong=
  if [ "$status" != 0 ]; then wrong="exit status $status"; fi
  grep -q "$start" "$said/all" || wrong="did not start as /$start/"
  if ! diff "$said/expected" "$said/answers" | cut -c 1-200 >"$said/difference"; then
    wrong="other answers than this machine's: $(head -n 4 "$said/difference")"
  fi
  if [ -n "$wrong" ]; then
    echo "bare: $arguments: $wrong" >&2
    failed=1
  else
    echo "the same bits"
  fi
done
exit $failed
