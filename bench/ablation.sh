#!/usr/bin/env bash
# Makes the ablation table of docs/accuracy.md: integer top-1 of every arm.
#
#   TPVIT_DATA=... bench/ablation.sh [MODEL [WIDTHS [ARMS]]]
#   bench/ablation.sh table
#
#   bench/ablation.sh                                      everything: a day on two cores
#   bench/ablation.sh vit_ti14_cifar10 "4,4 3,3"           one model, two widths
#   STEPS=1000 SEEDS="0 1 2" bench/ablation.sh ...         more steps, more seeds
#
# TPVIT_DATA holds models/, imagenet/ and cifar10/. Quantization sees the
# calibration folders alone. Each result becomes a line of bench/ablation.tsv as
# soon as it is known, and what has a line there is not run again: interrupt it
# and start it again as you like. `table` prints those lines as the tables.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
record=${RECORD:-bench/ablation.tsv}

# Rows are arms, columns widths; a cell is the mean over seeds.
table() {
  awk -F '\t' '
    NR == 1 { next }
    {
      group = $1 ", " $4 " steps"
      if (!(group in seen)) { seen[group]; groups[++g] = group }
      if (!((group, $3) in row)) { row[group, $3]; arms[group, ++n[group]] = $3 }
      sum[group, $3, $2] += $6; count[group, $3, $2]++
    }
    END {
      w = split("W8A8 W6A6 W4A8 W4A4 W3A8 W3A3", widths, " ")
      for (i = 1; i <= g; i++) {
        group = groups[i]; line = "| " group " |"; rule = "|---|"; cols = 0
        for (j = 1; j <= w; j++) {
          used[j] = 0
          for (a = 1; a <= n[group]; a++) if ((group, arms[group, a], widths[j]) in sum) used[j] = 1
          if (used[j]) { line = line " " widths[j] " |"; rule = rule "---|" }
        }
        print line; print rule
        for (a = 1; a <= n[group]; a++) {
          arm = arms[group, a]; line = "| " arm " |"
          for (j = 1; j <= w; j++) if (used[j]) {
            key = group SUBSEP arm SUBSEP widths[j]
            cell = "–"
            if (key in sum) {
              cell = sprintf("%.1f", sum[key] / count[key])
              if (count[key] > 1) cell = cell " (" count[key] ")"
            }
            line = line " " cell " |"
          }
          print line
        }
        print ""
      }
    }' "$record"
}

if [ "${1:-}" = table ]; then
  table
  exit
fi

: "${TPVIT_DATA:?set it to the folder of models and pictures}"
models=${1:-vit_ti16_imagenet vit_ti14_cifar10}
widths=${2:-6,6 4,4 4,8 3,8 3,3}
arms=${3:-rounding sos tp-vit tp-vit-r1 tp-vit-r2 tp-vit+adaround tp-vit+aph tp-vit+relu tp-vit+row-max tp-vit+rotation tp-vit+codebooks tp-vit+all glf qdrop closed-form everything everything+aph everything+adaround everything+relu}
steps=${STEPS:-200}
seeds=${SEEDS:-0}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
[ -n "${TPVIT:-}" ] || cargo build --release --quiet
tpvit=${TPVIT:-${CARGO_TARGET_DIR:-target}/release/tpvit}
[ -s "$record" ] || printf 'model\twidths\tarm\tsteps\tseed\ttop-1\tseconds\n' >"$record"

# The flags of an arm at so many activation bits.
flags() {
  local bits=$2
  local plain=(--method calibrate --rotate none --normed-code uniform --hidden-code uniform)
  local codebooks=()
  [ "$bits" -gt 4 ] || codebooks=(--normed-code codebook --hidden-code codebook)
  local published=("${plain[@]}" --softmax tulq --steps "$steps" --recipe tp-vit)
  case $1 in
    rounding) echo "${plain[@]}" --softmax tulq --effort fast ;;
    sos) echo "${plain[@]}" --softmax sulq --steps "$steps" --recipe sos ;;
    tp-vit) echo "${published[@]}" ;;
    tp-vit-r1) echo "${published[@]}" --transition step ;;
    tp-vit-r2) echo "${published[@]}" --decline none ;;
    tp-vit+adaround) echo "${published[@]}" --rounding adaround ;;
    tp-vit+aph) echo "${published[@]}" --importance aph ;;
    tp-vit+relu) echo "${published[@]}" --mlp relu ;;
    tp-vit+row-max) echo "${plain[@]}" --softmax row-max --steps "$steps" --recipe tp-vit ;;
    tp-vit+rotation)
      echo --method calibrate --rotate query-key --normed-code uniform --hidden-code uniform \
        --softmax tulq --steps "$steps" --recipe tp-vit ;;
    tp-vit+codebooks)
      echo --method calibrate --rotate none "${codebooks[@]}" --softmax tulq --steps "$steps" \
        --recipe tp-vit ;;
    tp-vit+all)
      echo --method calibrate "${codebooks[@]}" --softmax row-max --steps "$steps" --recipe tp-vit ;;
    glf | qdrop) echo --steps "$steps" --recipe "$1" ;;
    closed-form) echo --effort fast ;;
    everything) echo --steps "$steps" --importance alike ;;
    everything+aph) echo --steps "$steps" --importance aph ;;
    everything+adaround) echo --steps "$steps" --importance alike --rounding adaround ;;
    everything+relu) echo --steps "$steps" --importance alike --mlp relu ;;
    *) echo "no arm \"$1\"" >&2; exit 2 ;;
  esac
}

for model in $models; do
  case $model in
    vit_ti16_imagenet) data=imagenet preset=vit-augreg ;;
    *) data=cifar10 preset=squash-imagenet ;;
  esac
  for width in $widths; do
    w=${width%,*} a=${width#*,}
    for arm in $arms; do
      read -ra chosen <<<"$(flags "$arm" "$a")"
      trained=$steps
      [[ " ${chosen[*]} " != *" --effort fast "* ]] || trained=0
      for seed in $seeds; do
        key=$(printf '%s\tW%sA%s\t%s\t%s\t%s\t' "$model" "$w" "$a" "$arm" "$trained" "$seed")
        if grep -qF -- "$key" "$record"; then continue; fi
        start=$SECONDS
        "$tpvit" quantize "$TPVIT_DATA/models/$model.onnx" -w "$w" -a "$a" --pictures 1000 \
          --calibration "$TPVIT_DATA/$data/calibration" --preprocess "$preset" --no-verify \
          --seed "$seed" "${chosen[@]}" -o "$out/arm.tpv" --json >/dev/null 2>"$out/errors" ||
          { cat "$out/errors" >&2; exit 1; }
        took=$((SECONDS - start))
        top1=$("$tpvit" eval "$out/arm.tpv" --data "$TPVIT_DATA/$data/validation" --json |
          sed -n 's/.*"top1": \([0-9.]*\).*/\1/p')
        printf '%s%s\t%s\n' "$key" "$top1" "$took" | tee -a "$record"
      done
    done
  done
done
