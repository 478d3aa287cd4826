#!/usr/bin/env bash
# What belongs to CUDA and runs on a host: the algorithms of our kernels on hard matrices and the
# logic around cuSOLVER under AddressSanitizer and UBSan, and the algorithms by teams of several
# threads under ThreadSanitizer, which finds a missing sync().
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH # cmake and ninja
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

build() { # folder, sanitizers
  cmake -G Ninja -S tests/native -B "$work/$1" -DSOAP_FAST_SANITIZERS="$2" >"$work/log" 2>&1 &&
    cmake --build "$work/$1" >"$work/log" 2>&1 || { cat "$work/log" >&2 && exit 1; }
}

build memory address,undefined
for program in teams refresh qr batches; do "$work/memory/$program"; done
"$work/memory/cusolver_lookup" "$work/memory/"libtorch_cuda{,_linalg}.so

# Where it may be turned off: ThreadSanitizer does not start under much address randomisation.
plain=()
if setarch "$(uname -m)" -R true 2>/dev/null; then plain=(setarch "$(uname -m)" -R); fi
build thread thread
for program in teams refresh; do "${plain[@]}" "$work/thread/$program" races; done
echo "sanitizers: address, undefined and thread: good"
