#!/usr/bin/env bash
# The highest Triton that is supported interprets the fused step too, and binds, specialises and
# compiles its launches; .venv holds the lowest.
set -euo pipefail
cd "$(dirname "$0")/.."
version=3.9.0
folder=build/triton-$version
[ -d "$folder/triton" ] ||
  .venv/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --target "$folder" "triton==$version"
export PYTHONPATH=$folder TRITON_INTERPRET=1
.venv/bin/python -c "import sys, triton; sys.exit(triton.__version__ != '$version')"
# Every test of the step, and of the recorded trajectories one; all of them take two minutes.
.venv/bin/python -m pytest -q tests/test_fused.py -k "merge_nhwc or not trajectories"
.venv/bin/python -m pytest -q tests/jit
