#!/usr/bin/env bash
# Makes the accuracy table of the README: top-1 in float and in integers.
#
#   TPVIT_DATA=... [EFFORTS="fast balanced best"] bench/accuracy.sh [FOLDER FOR THE .tpv FILES]
#
# TPVIT_DATA holds models/, imagenet/ and cifar10/. Quantization uses the
# calibration folders alone; the validation folders are only ever evaluated.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${TPVIT_DATA:?set it to the folder of models and pictures}"
out=${1:-$(mktemp -d)}
mkdir -p "$out"
cargo build --release --quiet
tpvit=${CARGO_TARGET_DIR:-target}/release/tpvit

top1() { "$tpvit" eval "$@" --json | sed -n 's/.*"top1": \([0-9.]*\).*/\1/p'; }

echo '| model | effort | float | W8A8 | W6A6 | W4A8 | W4A4 | W3A8 | W3A3 | file at 8 / 6 / 4 / 3 bits (MB) |'
echo '|---|---|---|---|---|---|---|---|---|---|'
row() {
  local model=$1 preset=$2 data=$3
  local onnx=$TPVIT_DATA/models/$model.onnx valid=$TPVIT_DATA/$data/validation
  local float
  float=$(top1 "$onnx" --data "$valid" --preprocess "$preset")
  for effort in ${EFFORTS:-fast balanced best}; do
    local cells='' sizes=''
    for width in 8,8 6,6 4,8 4,4 3,8 3,3; do
      local w=${width%,*} a=${width#*,}
      local tpv=$out/$model.w${w}a$a.$effort.tpv
      "$tpvit" quantize "$onnx" --calibration "$TPVIT_DATA/$data/calibration" \
        --preprocess "$preset" --labels "$TPVIT_DATA/$data/labels.txt" --pictures 1000 \
        -w "$w" -a "$a" --effort "$effort" -o "$tpv" --json >/dev/null
      cells+=" $(top1 "$tpv" --data "$valid") |"
      [ "$a" != "$w" ] || sizes+="${sizes:+ / }$(awk "BEGIN { printf \"%.2f\", $(stat -c %s "$tpv") / 1e6 }")"
    done
    echo "| $model | $effort | $float |$cells $sizes |"
  done
}
row vit_ti16_imagenet vit-augreg imagenet
row vit_ti14_cifar10 squash-imagenet cifar10
