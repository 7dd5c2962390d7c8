#!/bin/sh
# Sets this machine up and runs every check and test. The last line is "N passed, N failed".
#
#   sh tests/run.sh            everything
#   sh tests/run.sh lint sim   the steps whose name contains one of the words (set-up always)
#   sh tests/run.sh --list     the names of the steps
#
# A failing step does not stop the others. What a step printed is in target/ferry/tests/STEP.log.
# FERRY_TEST_MINUTES bounds the whole run (default 75), and each step in proportion: what has not ended by then
# has failed.
set -eu

PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/sbin:/sbin
export PATH TERM=dumb CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-never}" CARGO_TERM_PROGRESS_WHEN=never
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
logs=$root/target/ferry/tests
started=$(date +%s)
budget=$((${FERRY_TEST_MINUTES:-75} * 60))

# The smallest service, and how large its image may be, in bytes.
smallest=pingpong
image_limit=$((2 << 20))

# Packages that are built as images: the services, and those that only tests run.
images() {
  for manifest in services/*/Cargo.toml tests/services/*/Cargo.toml; do
    sed -n '/^\[package\]/,/^name/s/^name = "\(.*\)"/\1/p' "$manifest"
  done
}

build_images() {
  # shellcheck disable=SC2046 # a list of words
  cargo build --locked --release --target x86_64-unknown-hermit $(images | sed 's/^/-p /')
}

# Programs and tests of the host, always of all packages: cargo chooses the features of what they depend on
# by the packages that are asked for, so another choice would compile most of it once more. Tests that need
# more than this machine as it is have `test = false`: they run only when named.
host_test() {
  cargo test --locked --no-fail-fast --workspace --exclude runtime "$@"
}
build_programs() {
  cargo build --locked --workspace --exclude runtime --all-targets
}

# Lints of the compiler that compiles; rustup's own cargo-clippy belongs to another.
clippy() {
  # shellcheck source=/dev/null
  . "$root/target/ferry/toolchain/env"
  "$(dirname "$FERRY_RUSTC")/cargo-clippy" clippy --locked "$@" -- -D warnings
}

# Each step and the minutes it may take, of a run of 28.
steps() {
  cat <<END
scripts 1
format 1
images 8
lint-guest 8
unit 16
lint-host 8
docs 6
sim 6
system 14
browser 10
state-sleep-faults-fuzz 20
END
}

# Images are built with the release profile, all else with the dev profile: what one step has compiled serves the
# next.
step() {
  case $1 in
    scripts)
      find . -name target -prune -o -name node_modules -prune -o -type f \
        \( -name '*.sh' -o -path ./qemu/rustc -o -path ./.ci/run \) -print | sort | xargs shellcheck -x -e SC1091 ;;
    format)
      cargo fmt --all --check
      (cd runtime/machine && cargo fmt --check)
      (cd tests/fuzz && cargo fmt --check) ;;
    lint-host) clippy --all-targets ;;
    # Without the examples of documentation, of which there are none. Most of these tests wait for processes.
    unit) RUST_TEST_THREADS=6 host_test --all-targets ;;
    docs)
      export RUSTDOCFLAGS='-D warnings'
      cargo doc --locked --no-deps
      cargo doc --locked --release --no-deps --target x86_64-unknown-hermit -p runtime ;;
    # What is compiled for a guest only: the runtime and the images, and apart from them the host-bound unit.
    lint-guest)
      # shellcheck disable=SC2046 # a list of words
      clippy --release --target x86_64-unknown-hermit -p runtime $(images | sed 's/^/-p /')
      (cd runtime/machine && clippy --release --target x86_64-unknown-none --target-dir "$root/target/ferry/machine") ;;
    images)
      build_images
      size=$(wc -c <"${CARGO_TARGET_DIR:-target}/x86_64-unknown-hermit/release/$smallest")
      echo "image of $smallest: $size bytes, limit $image_limit"
      [ "$size" -le "$image_limit" ] ;;
    sim) host_test --test sim ;;
    # Time is part of what is tested here: one test at a time, and nothing beside it.
    system)
      build_images
      build_programs
      host_test --test system -- --test-threads=1 gap:: moves:: wire:: ;;
    # The rest of the system tests, and a thousand connections asleep for two minutes; by hand
    # FERRY_TEST_SLEEP=43200 is a night. The machine waits most of the time, so two other things are done side by
    # side with that: faults in the middle of moves (tests/faults.sh is that with arguments), and fuzzing.
    state-sleep-faults-fuzz)
      FERRY_TEST_SLEEP=${FERRY_TEST_SLEEP:-120}
      export FERRY_TEST_SLEEP
      build_images
      build_programs
      host_test --test system --test faults --no-run
      nice -n 19 sh tests/fuzz.sh --seconds "${FERRY_FUZZ_SECONDS:-20}" >"$logs/fuzz.out" 2>&1 &
      fuzz=$!
      failed=0
      host_test --test system -- --test-threads=1 \
        --skip gap:: --skip moves:: --skip wire:: --skip sleep:: || failed=1
      sh tests/run.sh --step faults >"$logs/faults.out" 2>&1 &
      faults=$!
      host_test --test system -- --test-threads=1 sleep:: || failed=1
      wait "$faults" || failed=1
      wait "$fuzz" || failed=1
      cat "$logs/faults.out" "$logs/fuzz.out"
      [ "$failed" -eq 0 ] ;;
    browser)
      build_images
      build_programs
      host_test --test native
      sh tests/browser/moves.sh
      sh tests/browser/overlook.sh ;;
    # For tests/faults.sh.
    faults)
      build_images
      build_programs
      # shellcheck disable=SC2086 # a list of words
      host_test --test faults -- ${FERRY_FAULTS:---runs 20 --seed 1} ;;
    *)
      echo "tests: no step is called $1" >&2
      exit 2 ;;
  esac
}

# counts LOG: "passed failed", as the test programs in it say.
counts() {
  sed -n 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed;.*/\1 \2/p' "$1" |
    { passed=0 failed=0
      while read -r p f; do passed=$((passed + p)) failed=$((failed + f)); done
      echo "$passed $failed"; }
}

case ${1-} in
  --step)
    step "$2"
    exit ;;
  --list)
    steps | cut -d' ' -f1
    exit ;;
  -*)
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    exit 2 ;;
esac

wanted() {
  [ -n "$filters" ] || return 0
  for filter in $filters; do
    case $1 in *"$filter"*) return 0 ;; esac
  done
  return 1
}
filters=$*
if ! steps | while read -r name _; do ! wanted "$name" || exit 1; done; then :; else
  echo "tests: no step is called like: $filters; there are: $(steps | cut -d' ' -f1 | tr '\n' ' ')" >&2
  exit 2
fi

total_passed=0
total_failed=0
summary=
child=
finish() {
  trap '' INT TERM HUP
  [ -z "$child" ] || kill "$child" 2>/dev/null || true
  printf '\n%s\n' "step                 passed  failed  seconds$summary"
  echo "$total_passed passed, $total_failed failed"
  [ "$total_failed" -eq 0 ] && [ "$total_passed" -gt 0 ]
  exit
}
trap 'total_failed=$((total_failed + 1)); finish' INT TERM HUP

# run NAME MINUTES COMMAND...
run() {
  name=$1
  begun=$(date +%s)
  limit=$(($2 * budget / 28))
  left=$((started + budget - begun))
  [ "$limit" -le "$left" ] || limit=$left
  shift 2
  log=$logs/$name.log
  printf '\n== %s\n' "$name"
  code=124
  : >"$log"
  if [ "$limit" -gt 0 ]; then
    timeout -k 20 "$limit" "$@" >"$log" 2>&1 </dev/null &
    child=$!
    # The log is followed, not piped: what a step leaves running must not hold up the next.
    tail -f -s 0.2 --pid="$child" -n +1 "$log"
    code=0
    wait "$child" || code=$?
    child=
  fi
  seconds=$(($(date +%s) - begun))
  [ "$code" -ne 124 ] || echo "tests: $name had not ended after $seconds s; stopped"
  found=$(counts "$log")
  passed=${found% *} failed=${found#* }
  if [ "$code" -ne 0 ] && [ "$failed" -eq 0 ]; then
    failed=1
  elif [ "$code" -eq 0 ] && [ "$passed" -eq 0 ]; then
    passed=1
  fi
  total_passed=$((total_passed + passed))
  total_failed=$((total_failed + failed))
  summary="$summary
$(printf '%-20s %6s  %6s  %7s' "$name" "$passed" "$failed" "$seconds")"
  echo "== $name: $passed passed, $failed failed, $seconds s"
}

mkdir -p "$logs"
run setup 12 sh qemu/setup.sh --tests
# Nothing works without it.
[ "$total_failed" -eq 0 ] || finish
total_passed=0

# Not piped into the loop: the loop counts.
steps >"$logs/steps"
while read -r name minutes <&3; do
  ! wanted "$name" || run "$name" "$minutes" sh "$root/tests/run.sh" --step "$name"
done 3<"$logs/steps"
finish
