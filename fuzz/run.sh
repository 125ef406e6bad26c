#!/usr/bin/env bash
# Fuzzes, with stable Rust and without cargo-fuzz.
#
#   fuzz/run.sh SECONDS [TARGET ...]     each target so long; tpv and run without names
#
# The targets are in fuzz_targets/. preprocessing and picture compile the quantizer too,
# onnx and safetensors also tract, some minutes. The seeds are the files that the tests
# have; what is found new is kept in target/fuzz/corpus, what fails in
# target/fuzz/artifacts.
#
# cargo-fuzz does the same, and minimises:
#
#   cargo fuzz run -s none tpv fuzz/corpus/tpv models/tests/golden -- -max_total_time=60
#   cargo fuzz tmin -s none tpv ARTIFACT
set -euo pipefail

if [ -n "${CARGO_TARGET_DIR:-}" ]; then CARGO_TARGET_DIR=$(realpath -m "$CARGO_TARGET_DIR"); fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
seconds=${1:?how many seconds for each target}
shift
targets=("$@")
if [ ${#targets[@]} = 0 ]; then targets=(tpv run); fi

features=()
for target in "${targets[@]}"; do
  case $target in
    tpv | run) ;;
    preprocessing | picture) features+=(--features pictures) ;;
    onnx | safetensors) features+=(--features onnx) ;;
    *)
      echo "fuzz: no target \"$target\"" >&2
      exit 1
      ;;
  esac
done

host=$(rustc -vV | sed -n 's/^host: //p')
work=${CARGO_TARGET_DIR:-$root/target}/fuzz
# What cargo-fuzz asks of the compiler: coverage for libFuzzer, a pass of LLVM's. No
# sanitizer, which takes a nightly compiler, and finds nothing in safe Rust. With a
# target named the build scripts go without.
passes="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
  -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
for target in "${targets[@]}"; do bins+=(--bin "$target"); done
RUSTFLAGS="$(tr -s '\n ' ' ' <<<"$passes") -Ccodegen-units=1 --cfg fuzzing" \
  CARGO_TARGET_DIR=$work cargo build --manifest-path fuzz/Cargo.toml --release --locked \
  --target "$host" "${bins[@]}" "${features[@]}"

# The seeds of safetensors: a length, the config, the checkpoint.
pack_checkpoints() {
  local folder config length
  mkdir -p "$1"
  for folder in quantizer/tests/fixtures/checkpoints/*/; do
    config=$folder/config.json
    length=$(stat -c %s "$config")
    {
      printf '%b' "$(printf '\\x%02x\\x%02x' $((length % 256)) $((length / 256)))"
      cat "$config" "$folder"/*.safetensors
    } >"$1/$(basename "$folder")"
  done
}

for target in "${targets[@]}"; do
  corpus=$work/corpus/$target
  mkdir -p "$corpus" "$work/artifacts"
  longest=16384
  case $target in
    tpv | run) seeds=models/tests/golden ;;
    preprocessing) seeds=fuzz/seeds/preprocessing ;;
    picture) seeds=quantizer/tests/golden-pictures ;;
    onnx) seeds=quantizer/tests/fixtures longest=1000000 ;;
    safetensors) seeds=$work/seeds longest=1000000 && pack_checkpoints "$seeds" ;;
  esac
  echo "--- $target"
  # 1 GB and 20 s for one input: both far more than any takes.
  "$work/$host/release/$target" "$corpus" "$seeds" -max_total_time="$seconds" \
    -max_len=$longest -rss_limit_mb=1024 -timeout=20 -verbosity=0 -print_final_stats=1 \
    -artifact_prefix="$work/artifacts/$target-"
done
