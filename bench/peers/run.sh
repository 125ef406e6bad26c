#!/usr/bin/env bash
# Times tpvit and five other runtimes on the same Vision Transformers, in turn,
# and prints the tables of docs/performance.md.
#
#   bench/peers/run.sh                                       DeiT-T/S, ViT-S/14, ViT-B; 1 thread
#   bench/peers/run.sh --models deit-t --threads 1,2 --mask none,vnni
#   bench/peers/run.sh --report                              the tables again, nothing timed
#   bench/peers/run.sh --help                                all options
#
# The first run downloads the peers (1.4 GB of Python packages, from PyPI), builds
# rten and tract (some 10 minutes) and makes the models; all of it stays in
# target/peers. Needs Rust, Python 3.11 or later, gcc and objdump.
#
#   PYTHON=python3.12   another Python
#   TPVIT=path          time this program and do not build ours
#   PEERS_VENV=path     an environment that has requirements.txt already
#
# onnx2tf, which writes LiteRT's files, needs Python 3.12 or later; if none is
# found LiteRT is left out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
here=bench/peers
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
build=$target/peers
export PYTHONPYCACHEPREFIX=$build/pycache
mkdir -p "$build"

# A virtual environment with what a list names, made again when the list changes.
environment() {
  local folder=$1 list=$2 python=$3
  if ! cmp -s "$list" "$folder/installed.txt"; then
    echo "installing $list into $folder" >&2
    rm -rf "$folder"
    "$python" -m venv "$folder"
    "$folder/bin/pip" install --quiet --disable-pip-version-check -r "$list"
    cp "$list" "$folder/installed.txt"
  fi
}

newest_python() {
  local python
  for python in "${PYTHON:-python3}" python3.14 python3.13 python3.12; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
      echo "$python"
      return
    fi
  done
}

venv=${PEERS_VENV:-}
if [ -z "$venv" ]; then
  venv=$build/venv
  environment "$venv" $here/requirements.txt "${PYTHON:-python3}"
fi
onnx2tf=()
python=$(newest_python)
if [ -n "$python" ]; then
  environment "$build/onnx2tf" $here/requirements-onnx2tf.txt "$python"
  onnx2tf=(--onnx2tf "$build/onnx2tf/bin/onnx2tf")
fi
if [ -z "${TPVIT:-}" ]; then
  cargo build --release --locked
  TPVIT=$target/release/tpvit
fi
(cd $here/rust && CARGO_TARGET_DIR=$build/rust cargo build --release --locked)
exec "$venv/bin/python" $here/run.py --build "$build" --tpvit "$TPVIT" "${onnx2tf[@]}" "$@"
