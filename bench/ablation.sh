#!/usr/bin/env bash
# Makes the ablation table of docs/accuracy.md: integer top-1 of every arm.
#
#   TPVIT_DATA=... bench/ablation.sh [MODEL [WIDTHS [ARMS]]]
#
#   bench/ablation.sh                                      everything: some hours
#   bench/ablation.sh vit_ti14_cifar10 "4,4 3,3"           one model, two widths
#   EFFORT=best SEEDS="0 1 2" bench/ablation.sh ...        more steps, more seeds
#
# TPVIT_DATA holds models/, imagenet/ and cifar10/. Quantization sees the
# calibration folders alone. A row is printed as soon as it is known.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${TPVIT_DATA:?set it to the folder of models and pictures}"
models=${1:-vit_ti16_imagenet vit_ti14_cifar10}
widths=${2:-6,6 4,4 4,8 3,8 3,3}
arms=${3:-rounding sos tp-vit tp-vit-r1 tp-vit-r2 tp-vit+adaround tp-vit+row-max tp-vit+rotation tp-vit+codebooks tp-vit+all glf qdrop qdrop+adaround closed-form everything everything+aph everything+adaround}
effort=${EFFORT:-balanced}
seeds=${SEEDS:-0}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
cargo build --release --quiet
tpvit=${CARGO_TARGET_DIR:-target}/release/tpvit

# The flags of an arm at so many activation bits.
flags() {
  local bits=$2
  local plain=(--method calibrate --rotate none --normed-code uniform --hidden-code uniform)
  local codebooks=()
  [ "$bits" -gt 4 ] || codebooks=(--normed-code codebook --hidden-code codebook)
  case $1 in
    rounding) echo "${plain[@]}" --softmax tulq --effort fast ;;
    sos) echo "${plain[@]}" --softmax sulq --effort "$effort" --recipe sos ;;
    tp-vit) echo "${plain[@]}" --softmax tulq --effort "$effort" --recipe tp-vit ;;
    tp-vit-r1) echo "${plain[@]}" --softmax tulq --effort "$effort" --recipe tp-vit --transition step ;;
    tp-vit-r2) echo "${plain[@]}" --softmax tulq --effort "$effort" --recipe tp-vit --decline none ;;
    tp-vit+adaround)
      echo "${plain[@]}" --softmax tulq --effort "$effort" --recipe tp-vit --rounding adaround ;;
    tp-vit+row-max) echo "${plain[@]}" --softmax row-max --effort "$effort" --recipe tp-vit ;;
    tp-vit+rotation)
      echo --method calibrate --rotate query-key --normed-code uniform --hidden-code uniform \
        --softmax tulq --effort "$effort" --recipe tp-vit ;;
    tp-vit+codebooks)
      echo --method calibrate --rotate none "${codebooks[@]}" --softmax tulq --effort "$effort" \
        --recipe tp-vit ;;
    tp-vit+all)
      echo --method calibrate "${codebooks[@]}" --softmax row-max --effort "$effort" --recipe tp-vit ;;
    glf | qdrop) echo --effort "$effort" --recipe "$1" ;;
    closed-form) echo --effort fast ;;
    qdrop+adaround) echo --effort "$effort" --recipe qdrop --rounding adaround ;;
    everything) echo --effort "$effort" ;;
    everything+aph) echo --effort "$effort" --importance aph ;;
    everything+adaround) echo --effort "$effort" --rounding adaround ;;
    *) echo "no arm \"$1\"" >&2; exit 2 ;;
  esac
}

echo '| model | bits | arm | seed | top-1 | seconds |'
echo '|---|---|---|---|---|---|'
for model in $models; do
  case $model in
    vit_ti16_imagenet) data=imagenet preset=vit-augreg ;;
    *) data=cifar10 preset=squash-imagenet ;;
  esac
  for width in $widths; do
    w=${width%,*} a=${width#*,}
    for arm in $arms; do
      for seed in $seeds; do
        read -ra chosen <<<"$(flags "$arm" "$a")"
        start=$SECONDS
        "$tpvit" quantize "$TPVIT_DATA/models/$model.onnx" -w "$w" -a "$a" --pictures 1000 \
          --calibration "$TPVIT_DATA/$data/calibration" --preprocess "$preset" --no-verify \
          --seed "$seed" "${chosen[@]}" -o "$out/arm.tpv" --json >/dev/null 2>&1
        took=$((SECONDS - start))
        top1=$("$tpvit" eval "$out/arm.tpv" --data "$TPVIT_DATA/$data/validation" --json |
          sed -n 's/.*"top1": \([0-9.]*\).*/\1/p')
        echo "| $model | W${w}A${a} | $arm | $seed | $top1 | $took |"
      done
    done
  done
done
