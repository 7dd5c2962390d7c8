#!/bin/sh
# Puts the Hermit kernel's source, fit for today's compilers, where ../machine/Cargo.toml expects it.
# The source is the crate that Cargo.lock pins by checksum; the copy gets the edits below, none of which changes
# what the kernel does. Does nothing when the copy is there.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
destination=$root/target/ferry/hermit-kernel-0.11.0
# Naked functions became stable, and their attribute unsafe, in Rust 1.88; the crate is older.
naked='s/#\[naked\]/#[unsafe(naked)]/'
# The x86_64 crate's default features implement std's unstable `Step`, each release for another set of nightly
# compilers. The kernel uses none of it.
features='/^\[.*dependencies\.x86_64\]/,/^version/ s/^version.*/&\
default-features = false\
features = ["instructions", "abi_x86_interrupt"]/'
# cargo silences lints in what it downloads, but not in a path dependency.
silence='s/^\[lints\.rust\]/&\
warnings = "allow"/'

# A copy made by other edits, or from another lock file, is not the copy.
stamp=$({ printf '%s\n' "$naked" "$features" "$silence"; cat "$here/Cargo.lock"; } | cksum)
if [ "$stamp" = "$(cat "$destination/.prepared" 2>/dev/null)" ]; then
  exit 0
fi

# Where cargo unpacked it, after checking it against Cargo.lock.
manifest=$(cd "$here" && cargo metadata --quiet --locked --format-version 1 |
  sed -n 's/.*"manifest_path":"\([^"]*\/hermit-kernel-0\.11\.0\/Cargo\.toml\)".*/\1/p')
if [ ! -f "$manifest" ]; then
  echo "kernel: cargo did not say where hermit-kernel 0.11.0 is; try \`cd runtime/kernel && cargo fetch --locked\`" >&2
  exit 1
fi

new=$destination.new-$$
trap 'rm -rf "$new"' EXIT
trap 'exit 130' INT TERM
mkdir -p "$(dirname "$destination")"
cp -R "$(dirname "$manifest")" "$new"
chmod -R u+w "$new"
# The crate's choice of compiler is for its own developers.
rm -f "$new/rust-toolchain.toml"
grep -rl '#\[naked\]' "$new/src" | while read -r file; do
  sed "$naked" "$file" >"$file.new"
  mv "$file.new" "$file"
done
sed -e "$features" -e "$silence" "$new/Cargo.toml" >"$new/Cargo.toml.new"
mv "$new/Cargo.toml.new" "$new/Cargo.toml"
echo "$stamp" >"$new/.prepared"
rm -rf "$destination"
mv "$new" "$destination"
echo "kernel: hermit-kernel 0.11.0 is in target/ferry/hermit-kernel-0.11.0"
