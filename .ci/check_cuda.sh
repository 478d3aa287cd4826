#!/usr/bin/env bash
# Every CUDA source compiles for all architectures that we ship, no kernel spills registers, and
# what we declare of cuSOLVER is what NVIDIA's headers and library have. No GPU is needed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath --no-symlinks "${PYTHON:-.venv/bin/python}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

nvcc=$(.ci/cuda.sh nvcc)
"$nvcc" --version | grep release

targets=()
for architecture in 80 90 100; do
  targets+=(-gencode "arch=compute_$architecture,code=sm_$architecture")
done
mapfile -t sources < <(find csrc -name '*.cu' | sort)
((${#sources[@]})) || { echo "no CUDA source in csrc" >&2 && exit 1; }
for source in "${sources[@]}"; do
  if ! "$nvcc" -std=c++17 -O3 -DNDEBUG -Werror all-warnings -Xptxas -v "${targets[@]}" \
    -I csrc -c "$source" -o "$work/object" >"$work/words" 2>&1; then
    cat "$work/words" >&2
    exit 1
  fi
  cat "$work/words" >>"$work/all"
done

c++filt <"$work/all" >"$work/readable"
"$python" - "$work/readable" <<'END'
import re
import sys

# A kernel that may spill, by its name without template arguments, and why.
ALLOWED: dict[str, str] = {}

text = open(sys.argv[1]).read()
reports = text.split("Compiling entry function ")[1:]
assert reports, "ptxas reports in other words"

line = "{:36} {:>5} {:>9} {:>13} {:>11} {:>12}".format
print(line("kernel", "sm", "registers", "static shared", "stack bytes", "spill bytes"))
spilling = set()
for report in reports:  # with those of device functions that were not inlined
    signature, architecture = re.match(r"'(.+)' for 'sm_(\d+)'", report).groups()
    signature = signature.replace("(anonymous namespace)::", "").removeprefix("void ")
    kernel = signature.partition("(")[0].replace("soap_fast::", "")
    registers = re.search(r"Used (\d+) registers", report)[1]
    shared = re.search(r"(\d+) bytes smem", report)
    stack = sum(map(int, re.findall(r"(\d+) bytes stack frame", report)))
    spill = sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", report)))
    print(line(kernel, architecture, registers, shared[1] if shared else "0", stack, spill))
    if spill:
        spilling.add(kernel.partition("<")[0])
for kernel in sorted(spilling & set(ALLOWED)):
    print(f"{kernel} may spill: {ALLOWED[kernel]}")
if spilling - set(ALLOWED):
    sys.exit(f"kernels that spill registers: {', '.join(sorted(spilling - set(ALLOWED)))}")
END

# Types and values by assertions in the source; that all functions are there, by linking.
cusolver=$(.ci/cuda.sh cusolver)
"$nvcc" -std=c++17 -Werror all-warnings -I csrc -I "$cusolver/include" -shared -Xcompiler -fPIC \
  --cudart none tests/native/cusolver_api.cpp -o "$work/cusolver_api.so" \
  -Xlinker --no-undefined,"$cusolver"/lib/libcusolver.so.12

echo "cuda: every source compiles, no kernel spills, cuSOLVER is as declared"
