#!/bin/sh
# Makes this machine able to build and run images: compiler with Hermit's standard library, kernel source.
set -eu
here=$(dirname "$0")
sh "$here/toolchain.sh"
sh "$here/../runtime/kernel/prepare.sh"
