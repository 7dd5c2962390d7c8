#!/bin/sh
# Runs a service image in QEMU on this machine: `cargo run --target x86_64-unknown-hermit -p SERVICE` calls it.
#
#   qemu/run.sh IMAGE [ARGUMENT...]      arguments go to the service, which must end at Ctrl-C or by itself
#
# The guest's log is on the terminal. As soon as the service listens on port p, localhost:8000+p leads there
# (the runtime says "listening on port p" on the console). The exit status is the service's.
#
#   FERRY_MEMORY=64M     guest RAM
#   FERRY_MACHINE=q35    q35 or microvm
#   FERRY_ACCEL=         kvm or tcg; default: kvm where this machine really runs guests with it, else tcg
#   FERRY_LOG=           log level of the runtime: error, warn, info, debug, trace
set -eu

die() {
  echo "run: $*" >&2
  exit 2
}

# A software KVM creates VMs and then never runs them right: the CPU's own flag tells, /dev/kvm does not.
choose_accelerator() {
  case ${FERRY_ACCEL:-} in
    kvm | tcg) echo "$FERRY_ACCEL" ;;
    '') if [ -w /dev/kvm ] && grep -qwE 'vmx|svm' /proc/cpuinfo; then echo kvm; else echo tcg; fi ;;
    *) die "FERRY_ACCEL is \`kvm\` or \`tcg\`, not \`$FERRY_ACCEL\`" ;;
  esac
}

# forward PORT: asks QEMU for localhost:8000+PORT -> guest port PORT, and says how that went.
forward() {
  local_port=$((8000 + $1))
  if [ "$local_port" -gt 65535 ]; then
    echo "run: guest port $1 is not reachable from here: 8000 + $1 is no port number" >&2
    return
  fi
  printf '{"execute":"human-monitor-command","arguments":{"command-line":"%s"}}\n' \
    "hostfwd_add net0 tcp:127.0.0.1:$local_port-:$1" >&5
  while IFS= read -r answer <&6; do
    case $answer in
      '{"return": ""}'*)
        echo "run: localhost:$local_port leads to port $1 of the guest" >&2
        return ;;
      *'"return": "'* | *'"error": '*)
        echo "run: guest port $1 is not reachable from here: port $local_port of this machine is taken" >&2
        return ;;
    esac
  done
}

# watch: reads the console for what this script must know.
watch() {
  # Sent ahead of the first command; QEMU reads it when it has started.
  exec 5>"$work/qmp.in" 6<"$work/qmp.out" 7>&-
  printf '{"execute":"qmp_capabilities"}\n' >&5
  forwarded=' '
  while IFS= read -r line; do
    case $line in
      *'listening on port '*)
        port=${line##*listening on port }
        port=${port%%[!0-9]*}
        case $forwarded in *" $port "*) port= ;; esac
        if [ -n "$port" ]; then
          forwarded="$forwarded$port "
          forward "$port"
        fi ;;
      *'exit status '*)
        status=${line##*exit status }
        printf '%s\n' "${status%%[!0-9-]*}" >"$work/status" ;;
    esac
  done <"$work/lines"
}

[ $# -ge 1 ] || die "which image? qemu/run.sh IMAGE [ARGUMENT...]"
image=$1
shift
[ -f "$image" ] || die "no image at $image"
command -v qemu-system-x86_64 >/dev/null || die "QEMU is not installed: run \`sh qemu/setup.sh\`"

accelerator=$(choose_accelerator)
case $accelerator in kvm) cpu=host ;; *) cpu=max ;; esac
case ${FERRY_MACHINE:-q35} in
  q35) machine=q35,sata=off nic=virtio-net-pci ;;
  # Hermit knows one IOAPIC; microvm's second would have the virtio-mmio interrupts.
  microvm) machine=microvm,ioapic2=off nic=virtio-net-device ;;
  *) die "FERRY_MACHINE is \`q35\` or \`microvm\`, not \`$FERRY_MACHINE\`" ;;
esac
# The guest gets its arguments as one line of words.
for argument; do
  case $argument in *[[:space:]]*) die "the service's argument \`$argument\` has white space in it, which a kernel command line cannot carry" ;; esac
done
# QEMU's user network: the guest is 10.0.2.15, the host 10.0.2.2.
command_line="ip=10.0.2.15/24 gw=10.0.2.2${FERRY_LOG:+ log=$FERRY_LOG} -- $*"

work=$(mktemp -d)
# A second Ctrl-C must not end the cleaning up.
trap 'trap "" INT TERM HUP; rm -rf "$work"' EXIT
mkfifo "$work/console" "$work/lines" "$work/qmp.in" "$work/qmp.out"
# Held open here until QEMU has ended, so that nobody waits for ever for the other end of a pipe.
exec 7<>"$work/qmp.out" 8<>"$work/qmp.in"

watch 8>&- &
watcher=$!
tee "$work/lines" <"$work/console" 7>&- 8>&- &
printer=$!

stopped=
# shellcheck disable=SC2317 # the traps call it
stop() {
  stopped=$1
  kill "$qemu" 2>/dev/null || true
}
qemu-system-x86_64 -machine "$machine" -accel "$accelerator" -cpu "$cpu" -smp 1 -m "${FERRY_MEMORY:-64M}" \
  -nodefaults -no-user-config -no-reboot -display none \
  -kernel "$image" -append "$command_line" \
  -netdev user,id=net0 -device "$nic,netdev=net0" \
  -chardev stdio,id=console,signal=off -serial chardev:console \
  -chardev null,id=control -device isa-serial,chardev=control,index=1 \
  -chardev pipe,id=qmp,path="$work/qmp" -mon chardev=qmp,mode=control \
  </dev/null >"$work/console" 7>&- 8>&- &
qemu=$!
trap 'stop 130' INT
trap 'stop 143' TERM HUP

# A trap ends `wait` early; QEMU itself ends in its own time.
code=0
while kill -0 "$qemu" 2>/dev/null; do
  code=0
  wait "$qemu" || code=$?
done
wait "$qemu" || code=$?
exec 7>&- 8>&-
wait "$printer" "$watcher" || true

if [ -n "$stopped" ]; then
  exit "$stopped"
elif [ "$code" -ne 0 ]; then
  exit "$code"
elif [ -s "$work/status" ]; then
  exit "$(($(cat "$work/status") & 255))"
fi
echo "run: the guest ended before its service did; its last words are above" >&2
exit 1
