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
mkdir -p "$logs"
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
  cargo test --locked --no-fail-fast --workspace "$@"
}

# compile_tests LIST SELECTION...: test programs; LIST becomes a line for each: folder of its package, path, name.
# Without them there is no LIST, and false is returned.
compile_tests() {
  list=$1
  shift
  rm -f "$list"
  host_test --no-run --message-format json-render-diagnostics "$@" >"$logs/built"
  jq -r 'select(.executable and .profile.test)
    | "\(.manifest_path | rtrimstr("/Cargo.toml"))\t\(.executable)\t\(.target.name)"' "$logs/built" >"$list"
  [ -s "$list" ] || { rm -f "$list"; echo "tests: cargo named no test program" >&2; return 1; }
}

# Images, the test programs that run when named, and last the programs themselves: those that unit tests are linked
# with lie in the same place. (One test program among them: with it, the features are those of the tests.)
build_programs() {
  build_images
  compile_tests "$logs/named.programs" --test sim --test system --test faults --test native
  cargo build --locked --workspace --bins --test sim
}

# Test programs run without cargo, which would wait for what compiles beside them, but as cargo does: from the folder
# of their package.
tab=$(printf '\t')

# program NAME ARGUMENTS...: a test program that runs when named.
program() {
  called=$1
  shift
  while IFS=$tab read -r folder path name <&4; do
    [ "$name" != "$called" ] || { (cd "$folder" && "$path" "$@"); return; }
  done 4<"$logs/named.programs"
  echo "tests: no test program is called $called" >&2
  return 1
}

# All the others, to the last; false if one of them has failed.
unit_programs() {
  code=0
  while IFS=$tab read -r folder path name <&4; do
    echo "tests: $name, of ${folder#"$root"/}"
    (cd "$folder" && "$path") || code=1
  done 4<"$logs/unit.programs"
  return "$code"
}

# Lints of the compiler that compiles; rustup's own cargo-clippy belongs to another.
clippy() {
  # shellcheck source=/dev/null
  . "$root/target/ferry/toolchain/env"
  "$(dirname "$FERRY_RUSTC")/cargo-clippy" clippy --locked "$@" -- -D warnings
}

# Each step, the minutes it may take, of a run of 28, and what it is. `programs` wants images and test programs,
# which are built before the first of them. `beside` compiles or computes; the first of these starts a lane in which
# they run one after the other, when the processors have nothing else to do, while the steps after it mostly wait.
steps() {
  cat <<END
scripts 1 alone
format 1 alone
images 8 alone
sim 6 programs
gap 8 programs
lint-guest 8 beside
lint-host 14 beside
docs 8 beside
fuzz 16 beside
unit 10 programs
browser 10 programs
moves 14 programs
state 10 programs
sleep-faults 14 programs
END
}

# Images are built with the release profile, all else with the dev profile and with that of tests: what one step has
# compiled serves the next.
step() {
  case $1 in
    scripts)
      find . -name target -prune -o -name node_modules -prune -o -type f \
        \( -name '*.sh' -o -path ./qemu/rustc -o -path ./.ci/run \) -print | sort | xargs shellcheck -x -e SC1091 ;;
    format)
      cargo fmt --all --check
      (cd runtime/machine && cargo fmt --check) ;;
    # The programs that run only when named are none of `all`.
    lint-host)
      clippy --workspace --all-targets &&
        clippy --workspace --test '*' ;;
    # Without the examples of documentation, of which there are none. Most of these tests wait for processes.
    unit)
      RUST_TEST_THREADS=6
      export RUST_TEST_THREADS
      unit_programs ;;
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
    unit-programs) compile_tests "$logs/unit.programs" --all-targets ;;
    programs) build_programs ;;
    sim) program sim ;;
    browser)
      program native
      sh tests/browser/moves.sh
      sh tests/browser/overlook.sh ;;
    # Tests of whole systems, one at a time. Those of `gap` measure: nothing runs beside them.
    gap) program system --test-threads=1 gap:: ;;
    moves) program system --test-threads=1 moves:: wire:: ;;
    state) program system --test-threads=1 --skip gap:: --skip moves:: --skip wire:: --skip sleep:: ;;
    # A thousand connections asleep for two minutes; by hand FERRY_TEST_SLEEP=43200 is a night. The machine waits
    # most of that time, so faults in the middle of moves are tested meanwhile.
    sleep-faults)
      FERRY_TEST_SLEEP=${FERRY_TEST_SLEEP:-120}
      export FERRY_TEST_SLEEP
      failed=0
      sh tests/run.sh --step faults >"$logs/faults.out" 2>&1 &
      faults=$!
      program system --test-threads=1 sleep:: || failed=1
      wait "$faults" || failed=1
      cat "$logs/faults.out"
      [ "$failed" -eq 0 ] ;;
    faults)
      # shellcheck disable=SC2086 # a list of words
      program faults ${FERRY_FAULTS:---runs 20 --seed 1} ;;
    fuzz) sh tests/fuzz.sh --seconds "${FERRY_FUZZ_SECONDS:-10}" ;;
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
lane=
finish() {
  trap '' INT TERM HUP
  for process in $child $lane; do kill "$process" 2>/dev/null || true; done
  printf '\n%s\n' "step                 passed  failed  seconds$summary"
  echo "$total_passed passed, $total_failed failed"
  [ "$total_failed" -eq 0 ] && [ "$total_passed" -gt 0 ]
  exit
}
trap 'total_failed=$((total_failed + 1)); finish' INT TERM HUP

# limit MINUTES: seconds that a step may take from now on.
limit() {
  seconds=$(($1 * budget / 28))
  left=$((started + budget - $(date +%s)))
  [ "$seconds" -le "$left" ] || seconds=$left
  echo "$seconds"
}

# account NAME CODE SECONDS: adds what a step's log says to the summary.
account() {
  log=$logs/$1.log
  [ "$2" -ne 124 ] || echo "tests: $1 had not ended after $3 s; stopped"
  found=$(counts "$log")
  passed=${found% *} failed=${found#* }
  if [ "$2" -ne 0 ] && [ "$failed" -eq 0 ]; then
    failed=1
  elif [ "$2" -eq 0 ] && [ "$passed" -eq 0 ]; then
    passed=1
  fi
  total_passed=$((total_passed + passed))
  total_failed=$((total_failed + failed))
  summary="$summary
$(printf '%-20s %6s  %6s  %7s' "$1" "$passed" "$failed" "$3")"
  echo "== $1: $passed passed, $failed failed, $3 s"
}

# run NAME MINUTES COMMAND...
run() {
  name=$1
  begun=$(date +%s)
  seconds=$(limit "$2")
  shift 2
  printf '\n== %s\n' "$name"
  code=124
  : >"$logs/$name.log"
  if [ "$seconds" -gt 0 ]; then
    timeout -k 20 "$seconds" "$@" >"$logs/$name.log" 2>&1 </dev/null &
    child=$!
    # The log is followed, not piped: what a step leaves running must not hold up the next.
    tail -f -s 0.2 --pid="$child" -n +1 "$logs/$name.log"
    code=0
    wait "$child" || code=$?
    child=
  fi
  account "$name" "$code" $(($(date +%s) - begun))
}

# lane < "NAME MINUTES" LINES: steps that run beside the others.
lane() {
  trap 'kill "$child" 2>/dev/null; exit 143' TERM
  while read -r name minutes; do
    begun=$(date +%s)
    code=124
    seconds=$(limit "$minutes")
    if [ "$seconds" -gt 0 ]; then
      $idle timeout -k 20 "$seconds" sh "$root/tests/run.sh" --step "$name" >"$logs/$name.log" 2>&1 </dev/null &
      child=$!
      code=0
      wait "$child" || code=$?
    fi
    echo "$code $(($(date +%s) - begun))" >"$logs/$name.end"
  done
}
# Gives way to whatever else wants to run, at once.
idle='chrt --idle 0'
command -v chrt >/dev/null || idle='nice -n 19'

run setup 12 sh qemu/setup.sh --tests
# Nothing works without it.
[ "$total_failed" -eq 0 ] || finish
total_passed=0

# Not piped into the loops: they count.
steps | while read -r name minutes kind; do
  ! wanted "$name" || echo "$name $minutes $kind"
done >"$logs/steps"
sed -n 's/ beside$//p' "$logs/steps" >"$logs/beside"
rm -f "$logs"/*.end
built=
while read -r next minutes kind <&3; do
  if [ "$kind" = beside ]; then
    [ -z "$lane" ] || continue
    echo "tests: beside the next steps run: $(cut -d' ' -f1 "$logs/beside" | tr '\n' ' ')"
    lane <"$logs/beside" &
    lane=$!
    continue
  fi
  if [ "$kind" = programs ] && [ -z "$built" ]; then
    ! wanted unit || run unit-programs 12 sh "$root/tests/run.sh" --step unit-programs
    run programs 10 sh "$root/tests/run.sh" --step programs
    built=yes
  fi
  run "$next" "$minutes" sh "$root/tests/run.sh" --step "$next"
done 3<"$logs/steps"

if [ -n "$lane" ]; then
  echo "tests: waiting for what runs beside: $(cut -d' ' -f1 "$logs/beside" | tr '\n' ' ')"
  wait "$lane" || true
  lane=
  while read -r name _ <&3; do
    printf '\n== %s\n' "$name"
    cat "$logs/$name.log"
    read -r code seconds <"$logs/$name.end" || code=1 seconds=0
    account "$name" "$code" "$seconds"
  done 3<"$logs/beside"
fi
finish
