#!/bin/sh
# Builds dist/notes.js, the page's script, from src/ and the packages that package-lock.json pins.
# The result is committed, so that building the image needs no Node.js.
set -eu
cd "$(dirname "$0")"

if ! command -v npm >/dev/null; then
    echo "build.sh: npm is missing; on Debian: apt-get install npm" >&2
    exit 1
fi
npm ci --no-audit --no-fund
npx --no-install esbuild src/main.js \
    --bundle --minify --format=iife --target=es2021 --charset=utf8 --legal-comments=none \
    --banner:js="$(cat src/licence.txt)" --outfile=dist/notes.js
