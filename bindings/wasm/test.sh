#!/usr/bin/env bash
# Builds the module and the page, runs the module in node, and the page in
# headless Chromium if there are `chromium` and `chromedriver`.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
out=$(realpath -m "${CARGO_TARGET_DIR:-../../target}")/wasm
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cargo run --quiet --locked -p tpvit-bindings --example golden_run -- "$work"
./build.sh
TPVIT_WASM=$out/tpvit.wasm TPVIT_GOLDEN=$work node --test test.mjs
if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then
  node page_test.mjs "$out/tpvit.html" "$work"
else
  echo "skipped: the page in a browser; there is no chromium or no chromedriver"
fi
