#!/usr/bin/env bash
# Static evidence for the Arm tiles: cycles of each inner loop as llvm-mca's
# models of the cores see it. Nothing is run, so no Arm machine is needed, and no
# memory, cache or branch is modelled (docs/kernels.md says how far to trust it).
#
#   bench/mca.sh             the table
#   bench/mca.sh --loops     the instructions of each loop too
#
# Needs llvm-mca 19 or later (Debian: llvm-19, or llvm-22 of bookworm-security;
# LLVM_MCA names another one), aarch64-linux-gnu-objdump, and a Rust compiler with
# the target's standard library (.ci/aarch64.sh installs the last two). llvm-mca 14
# works, but takes a Cortex-A57 for a Neoverse N1.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
target=aarch64-unknown-linux-gnu
export LC_ALL=C

die() {
  echo "mca: $*" >&2
  exit 1
}

find_mca() {
  local name
  for name in "${LLVM_MCA:-}" llvm-mca-22 llvm-mca-21 llvm-mca-20 llvm-mca-19 llvm-mca; do
    if [ -n "$name" ] && command -v "$name"; then return; fi
  done
  die "no llvm-mca; on Debian: apt-get install llvm-19"
}
mca=$(find_mca)
objdump=aarch64-linux-gnu-objdump
command -v $objdump >/dev/null || die "no $objdump; on Debian: apt-get install binutils-aarch64-linux-gnu"

has_std() { [ -d "$("$1" --print sysroot)/lib/rustlib/$target/lib" ]; }
if ! has_std rustc; then
  has_std /usr/bin/rustc || die "no Rust standard library for $target; .ci/aarch64.sh installs one"
  export RUSTC=/usr/bin/rustc
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# v0 mangling keeps the constants of a generic function in its symbol.
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/aarch64 cargo rustc --quiet --locked \
  -p tpvit-kernels --lib --no-default-features --release --target $target -- \
  -C symbol-mangling-version=v0 --emit "obj=$work/kernels.o" -C codegen-units=1
$objdump -d --no-show-raw-insn "$work/kernels.o" >"$work/all.s"

# loop_of SYMBOL: the innermost loop of the function whose symbol contains SYMBOL
# that multiplies most, as text that llvm-mca reads; its first line is a comment
# with its MACs and instructions.
loop_of() {
  awk -v symbol="$1" '
    # Products of bytes of one instruction.
    function macs(mnemonic, operands) {
      if (mnemonic ~ /^(smull2?|smlal2?)$/ && operands ~ /\.8h/) return 8
      if (mnemonic ~ /^(mul|mla)$/ && operands ~ /\.16b/) return 16
      if (mnemonic ~ /^(sdot|udot|usdot)$/) return 16
      if (mnemonic ~ /^(smmla|ummla|usmmla)$/) return 32
      return 0
    }
    /^[0-9a-f]+ </ { if (inside) exit; inside = index($0, symbol) > 0; next }
    inside && /^ +[0-9a-f]+:/ {
      split($0, part, "\t")
      sub(/^ +/, "", part[1]); sub(/:$/, "", part[1])
      sub(/ *\/\/.*/, "", part[3])
      at[part[1]] = ++count
      name[count] = part[2]; operands[count] = part[3]
    }
    END {
      if (!count) exit 1
      best = 0
      for (last = 1; last <= count; last++) {
        if (name[last] !~ /^(b|b\..*|cbn?z|tbn?z)$/) continue
        line = operands[last]; sub(/ *<.*/, "", line); sub(/.*, */, "", line)
        first = at[line]
        if (!first || first > last) continue
        # Of nested loops the innermost ends first.
        nested = 0
        for (i in begin) if (begin[i] >= first && i + 0 < last) nested = 1
        begin[last] = first
        if (nested) continue
        sum = 0
        for (i = first; i <= last; i++) sum += macs(name[i], operands[i])
        if (sum > best) { best = sum; from = first; to = last }
      }
      if (!best) exit 1
      print "// " best " MAC, " to - from + 1 " instructions"
      print ".Lloop:"
      for (i = from; i <= to; i++) {
        if (name[i] ~ /^(b|b\..*|cbn?z|tbn?z)$/) sub(/[0-9a-f]+ <.*/, ".Lloop", operands[i])
        print "\t" name[i] "\t" operands[i]
      }
    }' "$work/all.s"
}

# row LABEL SYMBOL CPU PEAK: one line of the table. PEAK is MAC per cycle.
row() {
  local label=$1 symbol=$2 cpu=$3 peak=$4 file=$work/loop.s
  loop_of "$symbol" >"$file" || die "no multiplying loop in a function *$symbol*"
  # Every register that a loop needs is counted (docs/kernels.md); a compiler that
  # runs out of them makes a loop several times slower, silently.
  if grep -q '\[sp' "$file"; then die "the loop of *$symbol* keeps values on the stack"; fi
  local macs cycles iterations=200
  macs=$(awk 'NR == 1 { print $2 }' "$file")
  cycles=$("$mca" -mtriple=aarch64 -mcpu="$cpu" -mattr=+dotprod,+i8mm \
    -iterations=$iterations "$file" 2>"$work/error" |
    awk '/^Total Cycles:/ { print $3 }') || die "llvm-mca: $(cat "$work/error")"
  [ -n "$cycles" ] || die "llvm-mca gave no cycles for *$symbol*: $(cat "$work/error")"
  # One vector instruction or load a cycle is all that the model of the A53 issues
  # where they alternate.
  local issued=0
  if [ "$cpu" = cortex-a53 ]; then issued=$(grep -cE '\.(8h|4s|16b),|ldr' "$file"); fi
  awk -v label="$label" -v cpu="$cpu" -v macs="$macs" -v cycles="$cycles" \
    -v n=$iterations -v peak="$peak" -v issued="$issued" 'BEGIN {
      rate = macs * n / cycles
      printf "| %-26s | %-11s | %4d | %5.1f | %5.2f | %5.2f | %3.0f %% | ",
        label, cpu, macs, cycles / n, rate, peak, 100 * rate / peak
      if (issued) printf "%5.2f | %3.0f %% |\n", macs / issued, 100 * rate * issued / macs
      else print "      |       |" }'
}

"$mca" --version | grep -m1 version
"${RUSTC:-rustc}" --version
cat <<'HEAD'

| loop                       | model       |  MAC | cycles | MAC/c |  peak | share | loads too | share |
|----------------------------|-------------|-----:|------:|------:|------:|------:|------:|------:|
HEAD
for cpu in cortex-a53 cortex-a72; do
  # The peak of a form: its products and widenings, one a cycle on A53; on A72
  # only the pipe that multiplies counts, twice for 16 bytes at once.
  peak() { if [ $cpu = cortex-a53 ]; then echo "$1"; else echo 8; fi; }
  row "neon Two: W8A8" 8tile_two $cpu "$(peak 5.33)"
  row "neon Fours: W6A8, W8A6" 10tile_fours $cpu "$(peak 6.4)"
  row "neon Words: W6A6, W4A8" 10tile_words $cpu 8
  row "neon Pairs: W4A4" 9add_pairs $cpu "$(peak 10.67)"
  row "neon Eights: W3A3, W2A2" 11tile_eights $cpu "$(peak 14.22)"
done
for cpu in cortex-a76 neoverse-n1; do
  row "dotprod: all widths" 7dotprod4tile6packedKj8_ $cpu 32
done
row "i8mm: all widths" 4i8mm4tile6packedKj4_ neoverse-n2 64

if [ "${1:-}" = --loops ]; then
  for symbol in 8tile_two 10tile_fours 10tile_words 9add_pairs 11tile_eights \
    7dotprod4tile6packedKj8_ 4i8mm4tile6packedKj4_; do
    printf '\n%s\n' "$symbol"
    loop_of "$symbol"
  done
fi
