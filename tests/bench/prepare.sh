#!/bin/sh
# Gets what Ferry is measured beside, into target/ferry/bench: a Linux kernel with the modules of its NIC, busybox,
# nginx, a bare epoll server, and a CRIU that works on this kernel. `sh qemu/setup.sh --bench` calls it; ends quickly when everything is there.
# Nothing of it is installed.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
out=$root/target/ferry/bench
mkdir -p "$out"
work=
trap '[ -z "$work" ] || rm -rf "$work"' EXIT

# CRIU 4.2: the first Linux with a mapping named vvar_vclock is too new for those before 4.1.
criu_source=https://github.com/checkpoint-restore/criu
criu_tag=v4.2
criu_commit=3c7d4fa013297b431da48eff821db7f2e8b90c27

# Debian's packages, unpacked and not installed: this machine boots what it booted before.
unpack_guest() {
  if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    echo "bench: this is no Debian: the Linux guest needs $out/vmlinuz, modules/*.ko and a static busybox" >&2
    return
  fi
  echo "bench: getting Debian's kernel for virtual machines and busybox, for the Linux guest beside Ferry"
  work=$(mktemp -d)
  kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
  (cd "$work" && apt-get -q -o APT::Sandbox::User=root download "$kernel" busybox-static)
  for package in "$work"/*.deb; do
    dpkg-deb -x "$package" "$work/root"
  done
  mkdir -p "$out/modules"
  find "$work/root/lib/modules" -name 'virtio*.ko' -exec cp {} "$out/modules" \;
  find "$work/root/lib/modules" -name '*failover.ko' -exec cp {} "$out/modules" \;
  cp "$work/root/bin/busybox" "$out/busybox"
  # Last: it is what is looked for.
  cp "$work"/root/boot/vmlinuz-* "$out/vmlinuz"
  rm -rf "$work"
  work=
}

# The program itself; its libraries are this machine's.
unpack_nginx() {
  if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    echo "bench: this is no Debian: nginx in the Linux guest needs $out/nginx/usr/sbin/nginx" >&2
    return
  fi
  echo "bench: getting Debian's nginx, for the Linux guest beside Ferry"
  work=$(mktemp -d)
  (cd "$work" && apt-get -q -o APT::Sandbox::User=root download nginx)
  dpkg-deb -x "$work"/nginx_*.deb "$work/root"
  mkdir -p "$out/nginx/usr/sbin"
  cp "$work/root/usr/sbin/nginx" "$out/nginx/usr/sbin/nginx"
  rm -rf "$work"
  work=
}

build_epoll() {
  if ! command -v cc >/dev/null; then
    echo "bench: no C compiler, so a bare epoll server is not measured" >&2
    return
  fi
  cc -O2 -static -Wall -Wextra -Werror -o "$out/epoll" "$root/tests/bench/peers/epoll.c"
}

build_criu() {
  echo "bench: building CRIU $criu_tag: Debian's does not know this kernel's processes"
  work=$(mktemp -d)
  if ! git clone -q --depth 1 --branch "$criu_tag" "$criu_source" "$work/criu" 2>"$work/said"; then
    echo "bench: no source of CRIU, so it is not measured: $(tail -n 1 "$work/said")" >&2
  elif [ "$(git -C "$work/criu" rev-parse HEAD)" != "$criu_commit" ]; then
    echo "bench: $criu_tag of $criu_source is not the commit that was examined: CRIU is not measured" >&2
  elif ! make -C "$work/criu" -j "$(nproc)" criu >"$work/said" 2>&1; then
    echo "bench: CRIU cannot be built, so it is not measured: $(tail -n 3 "$work/said")" >&2
  else
    cp "$work/criu/criu/criu" "$out/criu"
  fi
  rm -rf "$work"
  work=
}

[ -e "$out/vmlinuz" ] || unpack_guest
[ -e "$out/nginx/usr/sbin/nginx" ] || unpack_nginx
[ -n "$(find "$out/epoll" -newer "$root/tests/bench/peers/epoll.c" 2>/dev/null)" ] || build_epoll
if [ ! -x "$out/criu" ]; then
  if [ "$(id -u)" -ne 0 ]; then
    echo "bench: CRIU needs root, so it is not measured" >&2
  elif command -v criu >/dev/null && criu check >/dev/null 2>&1; then
    ln -s "$(command -v criu)" "$out/criu"
  else
    build_criu
  fi
fi
