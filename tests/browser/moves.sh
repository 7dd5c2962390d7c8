#!/bin/sh
# Two people in Chromium edit one document of `notes` while the service moves a -> b -> a -> b in a lab of its own.
# Needs the programs and images that `sh tests/run.sh browser` builds before it calls this.
set -eu
cd "$(dirname "$0")/../.."

target=${CARGO_TARGET_DIR:-target}
case $target in /*) ;; *) target=$PWD/$target ;; esac
programs=$target/debug
FERRY_LAB_DIR=$(mktemp -d)
export FERRY_LAB_DIR
unset FERRY_MANAGER FERRY_CREDENTIALS

finish() {
  code=$?
  trap '' INT TERM HUP
  if [ "$code" -ne 0 ]; then
    "$programs/host-tools" logs notes 2>/dev/null | tail -n 40 || true
  fi
  "$programs/host-tools" lab down || true
  rm -rf "$FERRY_LAB_DIR"
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

"$programs/host-tools" lab up
"$programs/host-tools" run "$target/x86_64-unknown-hermit/release/notes" --name notes --on a --ip 10.77.0.50
# Odd moves lead to b, even ones back.
"$programs/host-tools" lab exec client -- "$programs/notes-browser" --url http://10.77.0.50 --moves 3 \
  --pictures "$target/browser" \
  --hook "if [ \$((MOVE % 2)) = 1 ]; then to=b; else to=a; fi; '$programs/host-tools' migrate notes --to \$to"
