#!/bin/sh
# Feeds invented input to everything that decodes what somebody else wrote (tests/fuzz/src/targets).
#
#   sh tests/fuzz.sh [--seconds N] [TARGET...]   N seconds for each target (default 20); all by default
#   sh tests/fuzz.sh --list                      the targets
#   sh tests/fuzz.sh --build                     only compiles them
#   sh tests/fuzz.sh --only FILE TARGET          one input, as it was reported
#
# Begins with what the encoders themselves write, with inputs that once found something
# (tests/fuzz/regressions/TARGET) and with what earlier runs on this machine have found worth keeping
# (target/ferry/fuzz/corpus). Targets run side by side, one for each processor. The last line is
# "N targets, N failed"; the input that broke a target is in target/ferry/fuzz/found.
set -eu

PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
export PATH
root=$(cd "$(dirname "$0")/.." && pwd)
work=$root/target/ferry/fuzz
cd "$root"
mkdir -p "$work"
program=$work/program

targets() {
  for file in "$root"/tests/fuzz/src/targets/*.rs; do
    basename "$file" .rs
  done | grep -v '^mod$'
}

# The decoders, and what they decode with, are compiled for this: with what libFuzzer needs to see which code an
# input reaches (qemu/rustc), and optimised where most of the time goes. All else is what the other tests use.
build() {
  set --
  for crate in blake3 ferry-net ferry-protocol lz4_flex postcard serde_json smoltcp; do
    set -- "$@" --config "profile.dev.package.$crate.debug='line-directives-only'" \
      --config "profile.dev.package.$crate.opt-level=2"
  done
  for crate in ferry-fuzz host-tools; do
    set -- "$@" --config "profile.dev.package.$crate.debug='line-directives-only'"
  done
  FERRY_COVERAGE=-Cpasses=sancov-module
  for option in level=4 inline-8bit-counters pc-table trace-compares; do
    FERRY_COVERAGE="$FERRY_COVERAGE -Cllvm-args=-sanitizer-coverage-$option"
  done
  export FERRY_COVERAGE
  echo "fuzz: building"
  built=$(cargo test --quiet --locked --no-run --workspace --test fuzz \
    --message-format=json-render-diagnostics "$@") || return
  ln -sf "$(printf '%s\n' "$built" | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')" "$program"
}

# Longest input, in bytes: what a message of the kind can need.
longest() {
  case $1 in
    snapshot | image | records | requests) echo 16384 ;;
    *) echo 2048 ;;
  esac
}

# fuzz TARGET SECONDS: one target; says how it went in one line.
fuzz() {
  target=$1
  mkdir -p "$work/corpus/$target" "$work/found" "$work/log"
  log=$work/log/$target.log
  regressions=$root/tests/fuzz/regressions/$target
  set -- "$work/seeds/$target" -max_total_time="$2" -timeout=10 -rss_limit_mb=1024 \
    -max_len="$(longest "$target")" -artifact_prefix="$work/found/$target-" -print_final_stats=1
  [ ! -d "$regressions" ] || set -- "$regressions" "$@"
  # The first folder takes what is found on the way.
  if FERRY_FUZZ_TARGET=$target "$program" "$work/corpus/$target" "$@" >"$log" 2>&1; then
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    reached=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
    echo "fuzz: $target: $runs inputs, $reached places in the code reached"
  else
    echo "fuzz: $target FAILED; its last lines ($log has all):"
    grep -v '^stat::' "$log" | tail -n 25
    touch "$work/failed/$target"
  fi
}

seconds=20
only=
case ${1-} in
  --list)
    targets
    exit ;;
  --build)
    build
    exit ;;
  --seconds)
    seconds=$2
    shift 2 ;;
  --only)
    only=$2
    shift 2 ;;
  --one)
    fuzz "$2" "$3"
    exit ;;
  -*)
    sed -n '2,13s/^# \{0,1\}//p' "$0"
    exit 2 ;;
esac
case $seconds in
  '' | *[!0-9]*)
    echo "fuzz: --seconds wants a number, not \`$seconds'" >&2
    exit 2 ;;
esac
for target; do
  if ! targets | grep -qx "$target"; then
    echo "fuzz: there is no target \`$target'; there are: $(targets | tr '\n' ' ')" >&2
    exit 2
  fi
done

build
if [ -n "$only" ]; then
  FERRY_FUZZ_TARGET=${1:?fuzz: --only FILE TARGET} exec "$program" "$only"
fi
rm -rf "$work/seeds" "$work/failed"
mkdir -p "$work/failed"
if ! FERRY_FUZZ_TARGET=seeds FERRY_FUZZ_SEEDS=$work/seeds "$program" 2>"$work/seeds.log"; then
  echo "fuzz: the inputs to begin with could not be made:" >&2
  cat "$work/seeds.log" >&2
  exit 1
fi
# shellcheck disable=SC2046 # a list of words
[ $# -gt 0 ] || set -- $(targets)
echo "fuzz: $# targets, $seconds s each"
printf '%s\n' "$@" | xargs -P "$(nproc)" -I '{}' sh "$0" --one '{}' "$seconds"
failed=$(find "$work/failed" -type f | wc -l)
echo "$# targets, $failed failed"
[ "$failed" -eq 0 ]
