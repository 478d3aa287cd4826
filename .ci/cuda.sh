#!/usr/bin/env bash
# Prints where a part of CUDA is, after installing it from PyPI beside the environment if need be:
#   .ci/cuda.sh nvcc       the compiler, PATH's if there is one
#   .ci/cuda.sh cusolver   a folder with cuSOLVER's headers (include) and library (lib)
# No GPU is needed for either.
set -euo pipefail
cd "$(dirname "$0")/.."
test -x .venv/bin/python || "${PYTHON:-python3}" -m venv .venv

install() { # folder, what of it to keep, wheels
  local folder=$1 keep=$2 work
  shift 2
  if [ -d "$folder" ]; then return; fi
  work=$(mktemp -d .venv/cuda-XXXXXX)
  # Of a wheel's own requirements pip would take the newest, of another CUDA.
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
    --target "$work" "$@" >&2
  find "$work" -type f ! -regex "$keep" -delete
  ln -s lib "$work/nvidia/cu13/lib64" # where nvcc looks for what it links
  mv "$work" "$folder"
}

case "$1" in
nvcc)
  if command -v nvcc; then exit; fi
  install .venv/cuda-13.0.88 '.*' nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 \
    nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
  echo "$PWD/.venv/cuda-13.0.88/nvidia/cu13/bin/nvcc"
  ;;
cusolver) # of CUDA 13.0 as torch's wheels pin it; its headers need cuBLAS's
  install .venv/cusolver-12.0.4 '.*/\(include/.*\|libcusolver\.so.*\)' \
    nvidia-cusolver==12.0.4.66 nvidia-cublas==13.1.0.3
  echo "$PWD/.venv/cusolver-12.0.4/nvidia/cu13"
  ;;
esac
