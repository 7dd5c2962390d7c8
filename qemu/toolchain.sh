#!/bin/sh
# Chooses the compiler and builds its standard library for the two image targets, once for each compiler:
#   x86_64-unknown-hermit   std           services and runtime
#   x86_64-unknown-none     core, alloc   kernel, drivers, mover
# The result is target/ferry/toolchain/<key>/ and target/ferry/toolchain/env, which qemu/rustc and build scripts
# read. setup.sh calls this; it needs a compiler with its std source, cargo, lld and llvm-objcopy, and installs
# nothing. FERRY_TOOLCHAIN names a rustup toolchain, or `debian`, to override the choice. `toolchain.sh --which`
# only prints the compiler that it would take.
set -eu

PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
root=$(cd "$(dirname "$0")/.." && pwd)
toolchain=$root/target/ferry/toolchain
debian_rustc=/usr/bin/rustc

# What the source is written for; see rust-version in Cargo.toml.
oldest_minor=95

features=compiler-builtins-mem
# Images are linked to fixed addresses. Bitcode is kept so that they can be linked with LTO.
hermit_flags='-Cembed-bitcode=yes -Crelocation-model=static'
none_flags='-Cembed-bitcode=yes -Zmutable-noalias=no'

die() {
  echo "toolchain: $*" >&2
  exit 1
}

# usable RUSTC: true if it is recent enough and its std source lies beside it.
usable() {
  [ -x "$1" ] || return 1
  version=$("$1" -V 2>/dev/null) || return 1
  minor=${version#rustc 1.}
  minor=${minor%%.*}
  case $minor in '' | *[!0-9]*) return 1 ;; esac
  [ "$minor" -ge "$oldest_minor" ] || return 1
  sysroot=$("$1" --print sysroot) || return 1
  [ -f "$sysroot/lib/rustlib/src/rust/library/std/Cargo.toml" ]
}

# rustup_rustc NAME: the compiler itself, not rustup's proxy, which would choose anew at each call.
rustup_rustc() {
  command -v rustup >/dev/null && RUSTUP_AUTO_INSTALL=0 rustup which --toolchain "$1" rustc 2>/dev/null
}

# Debian's compiler first: the version this was tested with. Then any rustup toolchain that has rust-src.
choose_rustc() {
  case ${FERRY_TOOLCHAIN:-} in
    '') ;;
    debian)
      usable "$debian_rustc" && echo "$debian_rustc"
      return ;;
    *)
      rustc=$(rustup_rustc "$FERRY_TOOLCHAIN") && usable "$rustc" && echo "$rustc"
      return ;;
  esac
  if usable "$debian_rustc"; then
    echo "$debian_rustc"
    return
  fi
  command -v rustup >/dev/null || return 1
  for name in nightly $(rustup toolchain list | cut -d' ' -f1); do
    if rustc=$(rustup_rustc "$name") && usable "$rustc"; then
      echo "$rustc"
      return
    fi
  done
  return 1
}

# choose_lld: the linker of any Rust toolchain at hand, else the distribution's.
choose_lld() {
  for candidate in "$sysroot"/lib/rustlib/*/bin/rust-lld \
    "${RUSTUP_HOME:-$HOME/.rustup}"/toolchains/*/lib/rustlib/*/bin/rust-lld; do
    if [ -x "$candidate" ] && "$candidate" -flavor gnu --version >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  command -v ld.lld
}

# build_library TARGET CRATES RUSTFLAGS: compiles std's crates for TARGET into the new sysroot.
build_library() {
  echo "toolchain: compiling $2 for $1 with $version (once, a minute or two)"
  build=$new/build-$1
  mkdir -p "$build/src" "$new/lib/rustlib/$1/lib"
  # A crate to hang `-Zbuild-std` on; only what it depends on is kept.
  echo '#![no_std]' >"$build/src/lib.rs"
  printf '%s\n' '[package]' 'name = "library"' 'edition = "2024"' '[workspace]' \
    '[profile.release]' 'panic = "abort"' 'debug = false' 'codegen-units = 1' >"$build/Cargo.toml"
  # No wrapper here: it is what this builds for. Panic messages name std's files as everywhere else.
  (
    cd "$build"
    unset CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET
    RUSTC=$rustc RUSTC_WRAPPER='' RUSTC_WORKSPACE_WRAPPER='' RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR="$build/target" \
      RUSTFLAGS="$3 --remap-path-prefix=$(readlink -f "$source")=/rustc/library --remap-path-prefix=$source=/rustc/library" \
      "$cargo" build --quiet --release --target "$1" -Zbuild-std="$2" -Zbuild-std-features="$features"
  ) || die "the standard library for $1 did not compile with $rustc ($version); nothing was changed"
  for rlib in "$build/target/$1/release/deps"/*.rlib; do
    case $rlib in */liblibrary-*) ;; *) cp "$rlib" "$new/lib/rustlib/$1/lib/" ;; esac
  done
  rm -rf "$build"
}

rustc=$(choose_rustc) || die "no ${FERRY_TOOLCHAIN:+$FERRY_TOOLCHAIN }compiler of 1.$oldest_minor or later with rust-src beside it: run \`sh qemu/setup.sh\`"
if [ "${1-}" = --which ]; then
  echo "$rustc"
  exit
fi
usable "$rustc"
source=$sysroot/lib/rustlib/src/rust/library
lld=$(choose_lld) || die "no ld.lld or rust-lld found: run \`sh qemu/setup.sh\`"
objcopy=$(command -v llvm-objcopy) || die "no llvm-objcopy found: run \`sh qemu/setup.sh\`"
cargo=$(command -v cargo) || die "no cargo found: install rustup (https://rustup.rs)"

case $root$rustc$lld$objcopy in
  *[[:space:]]*) die "white space in a path: $root, $rustc, $lld, $objcopy; move this folder or the tool" ;;
esac

# Another compiler, or other flags, is another library.
key=$(printf '%s\n' "$("$rustc" -vV)" "$features" "$hermit_flags" "$none_flags" | cksum)
key=$(echo "$version" | cut -d' ' -f2)-${key%% *}
library=$toolchain/$key

mkdir -p "$toolchain"
# Two set-ups at once: the second waits and then finds everything done.
exec 9>"$toolchain/lock"
flock 9

if [ ! -d "$library" ]; then
  # What a set-up that was killed left behind.
  rm -rf "$toolchain"/new-*
  new=$toolchain/new-$$
  trap 'rm -rf "$new"' EXIT
  trap 'exit 130' INT TERM
  # Side by side: much of it is one long compilation each.
  build_library x86_64-unknown-hermit std,panic_abort "$hermit_flags" &
  hermit=$!
  build_library x86_64-unknown-none core,alloc "$none_flags" &
  none=$!
  wait "$hermit" && wait "$none" || exit 1
  # rustc looks for its bundled tools below the sysroot it is given.
  mkdir -p "$new/lib/rustlib/x86_64-unknown-linux-gnu/bin"
  ln -s "$lld" "$new/lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-lld"
  mv "$new" "$library"
fi

tools=$(dirname "$rustc")
env=$(printf '%s\n' "FERRY_RUSTC=$rustc" "FERRY_RUSTDOC=$tools/rustdoc" "FERRY_CLIPPY=$tools/clippy-driver" \
  "FERRY_SYSROOT=$library" "FERRY_LLD=$lld" "FERRY_OBJCOPY=$objcopy" \
  "FERRY_KERNEL_SRC=$root/target/ferry/hermit-kernel-0.11.0")
if [ "$env" != "$(cat "$toolchain/env" 2>/dev/null)" ]; then
  printf '%s\n' "$env" >"$toolchain/env.new"
  mv "$toolchain/env.new" "$toolchain/env"
  # cargo remembers the version of a compiler by the time stamp of the program it calls.
  touch "$root/qemu/rustc"
  echo "toolchain: images are built with $version ($rustc)"
fi
