#!/usr/bin/env bash
# Builds the wheel, installs it into a fresh virtual environment, compares the type
# stubs with what there is and runs pytest. maturin, mypy, numpy and pytest come
# from PyPI.
#
#   bindings/python/test.sh [arguments of pytest]
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
target=$(realpath -m "${CARGO_TARGET_DIR:-../../target}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cargo run --quiet --locked -p tpvit-bindings --manifest-path ../../Cargo.toml \
  --example golden_run -- "$work/golden"

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check maturin mypy numpy pytest
# A folder of its own: other settings than the workspace's.
CARGO_TARGET_DIR=$target/python "$work/venv/bin/maturin" build --quiet --release --locked --out "$work/wheels"
ls -sh "$work/wheels"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check "$work"/wheels/*.whl

cd "$work" # no folder called tpvit here
"$work/venv/bin/python" -m mypy.stubtest tpvit
TPVIT_GOLDEN=$work/golden "$work/venv/bin/python" -m pytest --quiet -p no:cacheprovider \
  "$OLDPWD/tests" "$@"
