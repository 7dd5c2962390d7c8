#!/bin/sh
# Makes the image of stock Hermit that the benchmark measures Ferry beside: kernel 0.11.0 with its own TCP and
# virtio-net, a service on std::net. It has the same kernel source, compiler and boot path as Ferry's images.
#
#   build.sh IP DIR      the image that answers at IP goes to DIR/stock-hermit
#
# Needs `sh qemu/setup.sh` before.
set -eu

[ $# -eq 2 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../../.." && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
# shellcheck source=/dev/null # made by set-up
. "$root/target/ferry/toolchain/env"

# Hermit takes its address when it is compiled, or from a boot loader that is not used here.
cd "$here/kernel"
HERMIT_IP=$1 HERMIT_GATEWAY=10.77.0.1 HERMIT_MASK=255.255.255.0 HERMIT_LOG_LEVEL_FILTER=${HERMIT_LOG_LEVEL_FILTER:-warn} \
  cargo build --quiet --locked --release --target x86_64-unknown-none --target-dir "$out/kernel"

# Kernel and application each have a core library, an allocator and a panic handler.
"$FERRY_LLD" -flavor gnu -r --whole-archive "$out/kernel/x86_64-unknown-none/release/libstock_kernel.a" -o "$out/merged.o"
"$FERRY_OBJCOPY" -w --strip-debug --keep-global-symbol='sys_*' --keep-global-symbol=ferry_pvh_start \
  "$out/merged.o" "$out/kernel.o"

cd "$here"
RUSTFLAGS="-Crelocation-model=static -Clink-arg=--no-pie -Clink-arg=-T$here/link.ld -Clink-arg=$out/kernel.o" \
  cargo build --quiet --locked --release --target x86_64-unknown-hermit --target-dir "$out/service"
cp "$out/service/x86_64-unknown-hermit/release/stock-hermit" "$out/stock-hermit"
