#!/usr/bin/env bash
# Builds the C library, compiles the example and the tests of the header's
# contract against both of its forms, and runs them; under valgrind too, if
# there is one.
#
#   bindings/c/test.sh [MODEL.tpv [PICTURE.rgb]]     the example runs these too
set -euo pipefail

for argument in "$@"; do arguments+=("$(realpath -e "$argument")"); done
cd "$(dirname "${BASH_SOURCE[0]}")"
target=$(realpath -m "${CARGO_TARGET_DIR:-../../target}")
library=$target/debug
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cargo build --locked -p tpvit-c
cargo run --quiet --locked -p tpvit-bindings --example golden_run -- "$work"

echo "--- the library exports what the header declares"
declared=$(grep -oE '\btpvit_[a-z_]+\(' tpvit.h | tr -d '(' | sort -u)
exported=$(nm -D --defined-only "$library/libtpvit.so" | awk '{ print $3 }' | sort -u)
diff <(echo "$declared") <(echo "$exported")

flags=(-std=c11 -O1 -g -Wall -Wextra -Wpedantic -Werror -I.)
compile() { # NAME SOURCE
  cc "${flags[@]}" "$2" -o "$work/$1-static" "$library/libtpvit.a" -lpthread -ldl -lm
  cc "${flags[@]}" "$2" -o "$work/$1-shared" -L"$library" -ltpvit -Wl,-rpath,"$library" -lpthread
}
compile contract tests/contract.c
compile example example.c
if command -v c++ >/dev/null; then
  c++ -x c++ -fsyntax-only -Wall -Wextra -Wpedantic -Werror tpvit.h
fi

for form in static shared; do
  echo "--- $form"
  "$work/contract-$form" "$work"
  "$work/example-$form" "$work/model.tpv"
  "$work/example-$form" "$work/model.tpv" "$work/pixels.rgb"
  if [ -n "${arguments+set}" ]; then "$work/example-$form" "${arguments[@]}"; fi
  if "$work/example-$form" "$work/no-such.tpv" 2>"$work/error"; then exit 1; fi
  grep -q 'no-such.tpv: No such file' "$work/error"
done
if command -v valgrind >/dev/null; then
  echo "--- valgrind"
  valgrind --quiet --error-exitcode=1 --leak-check=full --errors-for-leak-kinds=definite,indirect \
    "$work/contract-shared" "$work"
fi
