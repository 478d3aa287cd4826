#!/usr/bin/env bash
# The algorithms of our CUDA kernels on the host: hard matrices under AddressSanitizer and UBSan,
# and by teams of several threads under ThreadSanitizer, which finds a missing sync().
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH # cmake and ninja
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

build() { # sanitizers
  cmake -G Ninja -S tests/native -B "$work/$1" -DSOAP_FAST_SANITIZERS="$1" >"$work/log" 2>&1 &&
    cmake --build "$work/$1" >"$work/log" 2>&1 || { cat "$work/log" >&2 && exit 1; }
}

build address,undefined
for program in teams refresh; do
  "$work/address,undefined/$program"
done

# Where it may be turned off: ThreadSanitizer does not start under much address randomisation.
plain=()
if setarch "$(uname -m)" -R true 2>/dev/null; then plain=(setarch "$(uname -m)" -R); fi
build thread
for program in teams refresh; do
  "${plain[@]}" "$work/thread/$program" races
done
echo "sanitizers: address, undefined and thread: good"
