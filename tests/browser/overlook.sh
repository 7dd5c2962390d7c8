#!/bin/sh
# Somebody looks at the manager's page in Chromium while a service with connections moves a -> b in a lab of its
# own. Needs the programs and images that `sh tests/run.sh browser` builds before it calls this.
set -eu
cd "$(dirname "$0")/../.."

target=${CARGO_TARGET_DIR:-target}
case $target in /*) ;; *) target=$PWD/$target ;; esac
programs=$target/debug
images=$target/x86_64-unknown-hermit/release
FERRY_LAB_DIR=$(mktemp -d)
export FERRY_LAB_DIR
unset FERRY_MANAGER
web=
holder=

finish() {
  code=$?
  trap '' INT TERM HUP
  for pid in $web $holder; do kill "$pid" 2>/dev/null || true; done
  if [ "$code" -ne 0 ]; then
    "$programs/host-tools" top --once 2>/dev/null || true
  fi
  "$programs/host-tools" lab down || true
  rm -rf "$FERRY_LAB_DIR"
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

"$programs/host-tools" lab up --hosts 3
"$programs/host-tools" run "$images/pingpong" --name echo --on a --ip 10.77.0.50
"$programs/host-tools" run "$images/notes" --name notes --on a --ip 10.77.0.51
"$programs/host-tools" run "$images/transfer" --name files --on b --ip 10.77.0.52
"$programs/host-tools" lab exec client -- "$programs/ferry-client" hold --connect 10.77.0.50:7 --connections 40 --seconds 600 \
  >/dev/null 2>&1 &
holder=$!

"$programs/host-tools" web -o json >"$FERRY_LAB_DIR/web" &
web=$!
# The line is there within moments, or the command has ended.
until grep -q url "$FERRY_LAB_DIR/web"; do
  kill -0 "$web"
  sleep 0.1
done
url=$(sed 's/.*"url":"\([^"]*\)".*/\1/' "$FERRY_LAB_DIR/web")

"$programs/overlook-browser" --url "$url" --service echo --from a --to b --pictures "$target/browser" \
  --hook "'$programs/host-tools' migrate echo --to b" \
  --restart "'$programs/host-tools' lab restart manager"

# The same in a terminal, once the manager that was started again has heard of all hosts.
tries=0
until
  "$programs/host-tools" top --once >"$FERRY_LAB_DIR/top"
  grep -q '3 of 3 hosts up' "$FERRY_LAB_DIR/top"
do
  tries=$((tries + 1))
  [ "$tries" -lt 100 ] || break
  sleep 0.1
done
cat "$FERRY_LAB_DIR/top"
grep -q '3 of 3 hosts up' "$FERRY_LAB_DIR/top"
grep -Eq '^ echo +running +b +40 ' "$FERRY_LAB_DIR/top"
