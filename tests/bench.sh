#!/bin/sh
# Measures Ferry beside its peers on this machine, and writes target/bench/report.md, report.json and plots.
#
#   sh tests/bench.sh                     every figure, few runs
#   sh tests/bench.sh full                more runs of each
#   sh tests/bench.sh quick --only PART   one part
#
# Installs what is missing, after saying what and why.
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/sbin:/sbin
export PATH

sh qemu/setup.sh --bench
cargo build --locked --release --target x86_64-unknown-hermit -p pingpong -p transfer -p stateful
cargo build --locked --release --workspace --bins
# The same services for the peers: as Linux programs that need no library.
RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --release --target x86_64-unknown-linux-gnu \
  --target-dir "${CARGO_TARGET_DIR:-target}/static" -p pingpong -p transfer
# The address that tests/bench/peers/hermit.rs expects.
sh tests/bench/peers/hermit/build.sh 10.77.0.60 "${CARGO_TARGET_DIR:-target}/hermit"
exec "${CARGO_TARGET_DIR:-target}/release/ferry-bench" "$@"
