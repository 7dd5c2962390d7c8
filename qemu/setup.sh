#!/bin/sh
# Makes this machine able to build service images and run them:
#
#   sh qemu/setup.sh           compiler, Hermit's standard library, kernel source, QEMU, the lab's network tools
#   sh qemu/setup.sh --tests   also what tests/run.sh needs
#   sh qemu/setup.sh --bench   also what tests/bench.sh needs beside that
#
# Installs what is missing, after saying what and why; ends quickly when nothing is. See toolchain.sh for the
# choice of compiler (FERRY_TOOLCHAIN overrides it).
set -eu

# Where rustup and Debian put what a bare PATH leaves out.
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/sbin:/sbin
export PATH
here=$(cd "$(dirname "$0")" && pwd)

tests=
bench=
case ${1-} in
  '') ;;
  --tests) tests=yes ;;
  --bench) tests=yes bench=yes ;;
  *)
    sed -n '2,9s/^# \{0,1\}//p' "$0"
    exit 2 ;;
esac

packages=
reasons=
# need PACKAGE REASON
need() {
  packages="$packages $1"
  reasons="$reasons
  $(printf '%-18s %s' "$1" "$2")"
}

# need_command COMMAND PACKAGE REASON
need_command() {
  command -v "$1" >/dev/null || need "$2" "$3"
}

# Any rustup toolchain brings a linker that will do.
have_rust_lld() {
  for candidate in "${RUSTUP_HOME:-$HOME/.rustup}"/toolchains/*/lib/rustlib/*/bin/rust-lld; do
    [ ! -x "$candidate" ] || return 0
  done
  return 1
}

if rustc=$(sh "$here/toolchain.sh" --which 2>/dev/null); then
  :
elif [ -n "${FERRY_TOOLCHAIN:-}" ] && [ "$FERRY_TOOLCHAIN" != debian ]; then
  echo "setup: FERRY_TOOLCHAIN=$FERRY_TOOLCHAIN names no usable toolchain; this would add what it lacks:" >&2
  echo "  rustup toolchain install $FERRY_TOOLCHAIN --component rust-src,clippy,rustfmt" >&2
  exit 1
else
  need rustc-web "compiler whose standard library can be built for Hermit"
  need rust-web-src "source of that standard library"
  rustc=/usr/bin/rustc
fi
need_command cargo cargo-web "builds everything"
need_command cc gcc "links the programs of this machine"
[ -e /usr/include/stdio.h ] || [ ! -e /etc/debian_version ] ||
  need libc6-dev "C library to link them with"
need_command protoc protobuf-compiler "translates etcd's protocol for host-tools"
[ -e /usr/include/google/protobuf/descriptor.proto ] || [ ! -e /etc/debian_version ] ||
  need libprotobuf-dev "definitions that etcd's protocol uses"
have_rust_lld || need_command ld.lld lld "links the images"
need_command llvm-objcopy llvm "separates kernel and service symbols in the images"
need_command qemu-system-x86_64 qemu-system-x86 "runs the images"
need_command ip iproute2 "network of the lab (ip, tc) and its measurements (ss)"
need_command curl curl "client of the demo"

if [ -n "$tests" ]; then
  tools=$(dirname "$rustc")
  if [ "$tools" = /usr/bin ]; then
    need_command "$tools/cargo-clippy" rust-web-clippy "lints, of the same compiler"
  elif [ ! -x "$tools/cargo-clippy" ]; then
    echo "setup: the lints of this compiler are missing: rustup component add clippy --toolchain $(basename "${tools%/bin}")" >&2
    exit 1
  fi
  cargo fmt --version >/dev/null 2>&1 || need rustfmt-web "checks the formatting"
  need_command shellcheck shellcheck "lints of the shell scripts"
  need_command wrk wrk "HTTP load on a service while it moves"
  # The shell's own kill hides whether there is a program.
  need_command ps procps "ends recordings (kill)"
  need_command c++ g++ "compiles the fuzzer"
  need_command etcd etcd-server "store of the tests with several managers"
  need_command tcpdump tcpdump "network trace of a move"
  need_command jq jq "reads the commands' JSON"
  need_command chromium chromium "browser that edits a note through moves"
fi

# need_header HEADER PACKAGE
need_header() {
  [ -e "/usr/include/$1" ] || [ ! -e /etc/debian_version ] || need "$2" "headers, to build CRIU with"
}

if [ -n "$bench" ]; then
  need_command nft nftables "locks the address of a process while CRIU moves it"
  # From Linux 6.13 on processes have a mapping that no CRIU of Debian 12 knows.
  if grep -q vvar_vclock /proc/self/maps; then
    need_command git git "gets the source of CRIU, a peer that Ferry is measured beside"
    need_command make make "builds CRIU"
    need_command pkg-config pkg-config "builds CRIU"
    need_command protoc-c protobuf-c-compiler "builds CRIU"
    need_header protobuf-c/protobuf-c.h libprotobuf-c-dev
    need_header libnl3/netlink/netlink.h libnl-3-dev
    need_header libnet.h libnet1-dev
    need_header sys/capability.h libcap-dev
    need_header uuid/uuid.h uuid-dev
  else
    need_command criu criu "a peer that Ferry is measured beside"
  fi
fi

# could_install PACKAGE...: true if apt-get has a way that removes nothing.
could_install() {
  apt-get install -s --no-remove --no-install-recommends "$@" >/dev/null 2>&1
}

# QEMU's packages exclude each other's older versions: beside a qemu-utils from elsewhere (backports), Debian's own
# qemu-system-x86 cannot be installed. Takes the QEMU of that version where apt-get has it, and else Debian's own
# qemu-utils too.
match_qemu_utils() {
  case " $packages " in *' qemu-system-x86 '*) ;; *) return 0 ;; esac
  installed=$(dpkg-query -W -f '${Version}' qemu-utils 2>/dev/null) || return 0
  if [ -z "$installed" ] || could_install qemu-system-x86; then
    return 0
  fi
  # Packages for all architectures do not share the number of a rebuild.
  same="qemu-system-x86=$installed qemu-system-common=$installed qemu-system-data=${installed%+b[0-9]*}"
  offered=$(apt-cache show --no-all-versions qemu-system-x86 | sed -n 's/^Version: //p')
  # shellcheck disable=SC2086 # a list of words
  if could_install $same; then
    echo "setup: taking QEMU $installed, the version of the qemu-utils that is here"
    packages="$packages $same"
  else
    echo "setup: qemu-utils $installed is here, and no QEMU of that version is offered: it becomes $offered, like QEMU"
    packages="$packages qemu-utils=$offered"
    options="$options --allow-downgrades"
  fi
}

if [ -n "$packages" ]; then
  echo "setup: this machine lacks:$reasons"
  install="apt-get install --no-install-recommends$packages"
  if ! command -v apt-get >/dev/null; then
    echo "setup: this is no Debian: install the above by the means of this system, then run this again." >&2
    echo "setup: for the compiler: rustup toolchain install nightly --component rust-src,clippy,rustfmt" >&2
    exit 1
  fi
  as_root=
  if [ "$(id -u)" -ne 0 ]; then
    # Without a terminal nobody can type a password.
    if command -v sudo >/dev/null && { [ -t 0 ] || sudo -n true 2>/dev/null; }; then
      as_root=sudo
    else
      echo "setup: only root can install it. Run this as root, then \`sh qemu/setup.sh${1:+ $1}\` again:" >&2
      echo "  apt-get update && $install" >&2
      exit 1
    fi
  fi
  echo "setup: installing it: ${as_root:+$as_root }$install"
  # Nothing that is here is removed to make room.
  options="-q -y --no-remove --no-install-recommends -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0"
  # shellcheck disable=SC2086 # lists of words
  if ! $as_root apt-get -q update || ! match_qemu_utils ||
    ! $as_root env DEBIAN_FRONTEND=noninteractive apt-get install $options $packages </dev/null; then
    echo "setup: apt-get could not install it (its message is above)." >&2
    echo "setup: a rustup toolchain can take the place of rustc-web and rust-web-src:" >&2
    echo "  rustup toolchain install nightly --component rust-src,clippy,rustfmt" >&2
    exit 1
  fi
fi

sh "$here/toolchain.sh"
sh "$here/../runtime/kernel/prepare.sh"
[ -z "$bench" ] || sh "$here/../tests/bench/prepare.sh"
