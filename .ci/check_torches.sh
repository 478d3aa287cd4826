#!/usr/bin/env bash
# soap_fast installs from source and steps on the lowest torch that it supports and on a high one,
# as `pip install torch==X` brings them: on Linux builds with CUDA and a Triton of their own, here
# without a driver. .venv holds a version between them, without CUDA.
# TORCHES="2.12.0 2.13.0" takes others. An environment takes 5 GB: one is made at a time, in a
# temporary folder (TMPDIR says where), and removed, whatever comes of it.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath --no-symlinks "${PYTHON:-.venv/bin/python}")
root=$PWD
read -ra torches <<<"${TORCHES:-2.11.0 2.14.1}"
needed=9 # GiB: 6 were taken at most by 2.12, with the wheels, and 2.14 is larger by one

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR=$work # pip's wheels too
export SOAP_FAST_EXTENSION=ON SOAP_FAST_CUDA=OFF
unset PYTHONPATH TRITON_INTERPRET

# No lightning, no accelerate; what concerns torch itself.
tests=(tests/test_golden.py tests/test_semantics.py tests/test_checkpoint.py
  tests/test_stored_checkpoints.py tests/test_bad_input.py tests/contract)
left_out=(--ignore=tests/contract/test_frameworks.py --ignore=tests/contract/test_lightning_mixed.py)

check() { # version of torch
  local env=$work/env sources=$work/sources free
  free=$(($(df --output=avail -B1M "$work" | tail -1) / 1024))
  if ((free < needed)); then
    echo "check_torches: torch $1 needs $needed GiB for a while, $work has $free free: set TMPDIR" >&2
    exit 1
  fi
  "$python" -m venv "$env"
  pip() { "$env/bin/python" -m pip --disable-pip-version-check --no-cache-dir "$@"; }
  pip install --quiet "torch==$1"
  pip install --quiet --constraint .ci/constraints.txt "torch==$1" setuptools wheel cmake ninja \
    pybind11 numpy expecttest pytest pytest-xdist safetensors

  # A copy: nothing of the editable install slips in, and tests import what was installed.
  mkdir "$sources"
  cp -r pyproject.toml setup.py CMakeLists.txt README.md LICENSE csrc soap_fast triton_kernels \
    "$sources"
  find "$sources" \( -name '*.so' -o -name __pycache__ \) -prune -exec rm -rf {} +
  pip install --quiet --no-deps --no-build-isolation "$sources"
  rm -rf "$sources"

  mkdir "$work/clone"
  cp -r pyproject.toml tests "$work/clone"
  cd "$work/clone"
  "$env/bin/python" -m soap_fast
  "$env/bin/python" -m pytest -q -n 2 "${tests[@]}" "${left_out[@]}"
  cd "$root"
  rm -rf "$env" "$work/clone"
}

for torch in "${torches[@]}"; do
  check "$torch"
done
echo "torch ${torches[*]}: source builds, steps, traces, checkpoints, contract: good"
