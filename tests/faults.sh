#!/bin/sh
# Seeded faults in the middle of moves, in a lab of three hosts with real QEMUs and ordinary clients, three managers
# and an etcd of three members: processes are killed or stopped and links cut at a random point, then it is checked
# on the wire that one instance of each service answered at a time, that no byte was lost, and that every move has
# ended.
#
#   sh tests/faults.sh                      20 runs of series 1
#   sh tests/faults.sh --runs 500 --seed 7  500 runs of series 7
#   sh tests/faults.sh --only 700123        the run with this seed again
#
# Prints a row for each run and the seed of every failure; fails if there was one. Sets up and builds first.
set -eu
cd "$(dirname "$0")/.."

case " $* " in *' -h '* | *' --help '*)
  sed -n '2,11s/^# \{0,1\}//p' tests/faults.sh
  exit ;;
esac
log=target/ferry/tests/faults-setup.log
mkdir -p "$(dirname "$log")"
sh qemu/setup.sh --tests >"$log" 2>&1 || {
  cat "$log"
  exit 1
}
sh tests/run.sh --step programs
FERRY_FAULTS="$*" exec sh tests/run.sh --step faults
