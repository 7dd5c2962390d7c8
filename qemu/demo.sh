#!/bin/sh
# The main job, from nothing: sets this machine up, builds everything, starts a lab of two QEMU hosts and a
# client, and moves two services from a to b and back while a download streams and somebody types a note.
#
#   sh qemu/demo.sh
#
# Everything is ended and removed at the end, also after Ctrl-C. What is kept: target/demo/timeline.svg, the
# picture of the first move, and the clients' reports beside it. Exit status 0: not a byte was lost.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/sbin:/sbin
export PATH

out=$root/target/demo
bin=${CARGO_TARGET_DIR:-$root/target}/debug
images=${CARGO_TARGET_DIR:-$root/target}/x86_64-unknown-hermit/release

# Amount and speed of the download: it is under way through both moves, and ends soon after.
download_bytes=120000000
download_rate=8000000

say() { printf '\n== %s\n' "$*"; }
fail() {
  printf '\ndemo: %s\n' "$*" >&2
  exit 1
}

# field NAME LINE: a number or a word out of a line of JSON.
field() { printf '%s\n' "$2" | sed -n "s/.*\"$1\":\"\{0,1\}\([^,\"}]*\).*/\1/p"; }

# ms LINE: the longest gap in it, with one digit after the point.
ms() { printf '%s\n' "$1" | sed -n 's/.*"gap_ms":{[^}]*"max":\([0-9]*\)\(\.[0-9]\)\{0,1\}.*/\1\2 ms/p'; }

# mib BYTES
mib() { echo "$(($1 / 1048576)) MiB"; }

started=
downloader=
typist=
# shellcheck disable=SC2317 # the trap calls it
clean_up() {
  status=$?
  trap '' INT TERM HUP
  # The clients end when their input does.
  exec 3>&- 4>&- 5<&- 6<&-
  for client in $downloader $typist; do kill "$client" 2>/dev/null || true; done
  if [ -n "$started" ]; then
    say "Cleaning up"
    "$bin/host-tools" lab down || status=1
  fi
  rm -f "$out"/*.in "$out"/*.out
  exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

say "Setting up this machine (nothing is done that has been done before)"
sh qemu/setup.sh

say "Building the tools and two service images"
cargo build --locked -p host-tools -p ferry-tests --bins
cargo build --locked --release --target x86_64-unknown-hermit -p transfer -p notes

rm -rf "$out"
mkdir -p "$out"
# A lab of its own, in a directory whose name leaves room for sockets.
FERRY_LAB_DIR=$out/lab
[ ${#FERRY_LAB_DIR} -le 60 ] || FERRY_LAB_DIR=${TMPDIR:-/tmp}/ferry-demo-$$
export FERRY_LAB_DIR
unset FERRY_MANAGER FERRY_CREDENTIALS || true

say "Starting a lab: hosts a and b, a manager, and a client, each with a network of its own"
started=yes
"$bin/host-tools" lab up
"$bin/host-tools" run "$images/transfer" --name transfer --on a --ip 10.77.0.50
"$bin/host-tools" run "$images/notes" --name notes --on a --ip 10.77.0.51
"$bin/host-tools" ps

say "The client downloads $(mib $download_bytes) from transfer and types a note, one WebSocket for all of it"
for pipe in download.in download.out note.in note.out; do mkfifo "$out/$pipe"; done
exec 3<>"$out/download.in" 4<>"$out/note.in"
"$bin/host-tools" lab exec client -- "$bin/ferry-client" download --connect 10.77.0.50:80 \
  --bytes $download_bytes --rate $download_rate <"$out/download.in" >"$out/download.out" 3>&- 4>&- &
downloader=$!
"$bin/host-tools" lab exec client -- "$bin/ferry-client" note --connect 10.77.0.51:80 \
  <"$out/note.in" >"$out/note.out" 3>&- 4>&- &
typist=$!
exec 5<"$out/download.out" 6<"$out/note.out"

# answer MARK: the client's line for a mark, from standard input. Clients give up by themselves when a service
# does not answer for a minute, so this ends.
answer() {
  while IFS= read -r line; do
    case $line in
      *"\"mark\":\"$1\""*)
        printf '%s\n' "$line"
        return ;;
      *'"failures"'*) fail "a client has ended early: $line" ;;
    esac
  done
  fail "a client has ended without a word"
}

# gap MARK WHEN: ends the clients' window of measurement and prints what they felt in it.
gap() {
  echo "$1" >&3
  echo "$1" >&4
  download=$(answer "$1" <&5)
  note=$(answer "$1" <&6)
  printf 'longest gap %s: download %s, typing %s\n' "$2" "$(ms "$download")" "$(ms "$note")"
}

# Both are connected when they have answered a mark.
gap begin "while connecting" >/dev/null
sleep 2
gap quiet "without a move"

number=0
for node in b a; do
  number=$((number + 1))
  for service in transfer notes; do
    say "Moving $service to host $node, its connections open"
    "$bin/host-tools" conns "$service"
    "$bin/host-tools" migrate "$service" --to "$node" --timeline "$out/$service-$number.svg"
    gap "$service-$number" "in this move"
  done
done
cp "$out/transfer-1.svg" "$out/timeline.svg"

say "Both services are back; the download goes on to its end, the last letters are typed"
"$bin/host-tools" ps
# The end of their input tells them to finish.
exec 3>&- 4>&-
download=$(tail -n 1 <&5)
note=$(tail -n 1 <&6)
printf '%s\n' "$download" >"$out/download.json"
printf '%s\n' "$note" >"$out/note.json"
status=0
wait "$downloader" || status=$?
downloader=
[ "$status" -eq 0 ] || fail "the download failed: $download"
wait "$typist" || status=$?
typist=
[ "$status" -eq 0 ] || fail "the note failed: $note"

say "Not a byte was lost"
cat <<END
download  $(field bytes_received "$download") bytes, every one compared with what it should be
          sha256 $(printf '%s\n' "$download" | sed -n 's/.*"sha256":\["\([0-9a-f]*\)"\].*/\1/p')
          longest gap $(ms "$download"), resets $(field resets "$download")
note      $(field bytes_sent "$note") letters typed, read by a second person, and kept by the service: all equal
          longest gap $(ms "$note"), the WebSocket was never reopened
picture   $out/timeline.svg
END
