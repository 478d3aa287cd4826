#!/usr/bin/env bash
# A wheel of this tree holds what it should and works in an empty environment, with the extension
# and without it; and a missing compiler is said and, where the extension is demanded, an error.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath --no-symlinks "${PYTHON:-.venv/bin/python}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A copy, or build folders and the modules of an editable install would slip in. bench and tests
# come along to show that they stay out.
mkdir "$work/source" "$work/empty"
cp -r pyproject.toml setup.py CMakeLists.txt README.md LICENSE \
  csrc soap_fast triton_kernels bench tests "$work/source"
find "$work/source" \( -name '*.so' -o -name __pycache__ \) -prune -exec rm -rf {} +

build() { # folder for the wheel; settings come as environment
  rm -rf "$work/source/build"
  "$python" -m pip wheel --quiet --no-build-isolation --no-deps -w "$work/$1" "$work/source"
}

check_contents() { # wheel, native or pure
  "$python" - "$@" <<'EOF'
import sys, sysconfig, zipfile
from pathlib import Path

wheel, kind = Path(sys.argv[1]), sys.argv[2]
names = zipfile.ZipFile(wheel).namelist()
tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
assert tops == {"soap_fast"}, tops
expected = ["__init__.py", "py.typed", "backends/__init__.py", "triton_kernels/__init__.py"]
expected += ["backends/triton/launch/tuning.json", "triton_kernels/columns.py"]
assert not (missing := {f"soap_fast/{name}" for name in expected} - set(names)), missing
modules = {name for name in names if name.endswith(".so")}
tag = "-".join(wheel.stem.split("-")[-3:])
if kind == "native":
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    of_python = {f"soap_fast/{name}{suffix}" for name in ("_build_info", "_unchanged")}
    assert modules == {"soap_fast/_operators.so", *of_python}, modules
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert tag.startswith(f"{python}-{python}-"), tag
else:
    assert not modules, modules
    assert tag == "py3-none-any", tag
assert any(name.endswith("licenses/LICENSE") for name in names)
EOF
}

run_installed() { # wheel, native or pure
  "$work/venv/bin/python" -m pip install --quiet --no-deps --force-reinstall "$1"
  (cd "$work/empty" && "$work/venv/bin/python" -W ignore - "$2" <<'EOF'
import sys
import torch
import soap_fast, soap_fast.triton_kernels
from soap_fast import extension

assert extension.available() == (sys.argv[1] == "native"), extension.reason()
if extension.available():
    assert extension.build_info()["version"] == soap_fast.__version__
    stack, all_of_it = torch.eye(3)[None] * torch.tensor([2.0, 3.0, 1.0]), torch.zeros(1).int()
    (values,), _ = torch.ops.soap_fast.eigh([stack], [all_of_it])
    assert values.tolist() == [[3.0, 2.0, 1.0]], values
else:
    assert "SOAP_FAST_EXTENSION=ON" in extension.reason()

parameter = torch.nn.Parameter(torch.ones(6, 4))
before = parameter.detach().clone()
optimizer = soap_fast.SOAP([parameter], lr=0.01)
for _ in range(2):  # the first call of SOAP only sets up its bases
    parameter.grad = torch.randn(6, 4)
    optimizer.step()
assert parameter.isfinite().all() and not torch.equal(parameter, before)
EOF
  )
}

# The source distribution has all that a build needs, from every folder of csrc.
(cd "$work/source" && SOAP_FAST_EXTENSION=ON SOAP_FAST_CUDA=OFF "$python" -c \
  'import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])' \
  "$work/sdist" >"$work/log" 2>&1) || { cat "$work/log" >&2 && exit 1; }
diff <(cd "$work/source" && find CMakeLists.txt csrc -type f | sort) \
  <(tar -tzf "$work"/sdist/*.tar.gz | sed 's,^[^/]*/,,' | grep -E '^(CMakeLists.txt|csrc/.*[^/])$' | sort)

unset SOAP_FAST_CUDA # .ci/run demands it, which forbids the wheels without an extension
SOAP_FAST_EXTENSION=ON build native
check_contents "$work"/native/*.whl native
SOAP_FAST_EXTENSION=OFF build pure
check_contents "$work"/pure/*.whl pure

CXX=no-such-compiler SOAP_FAST_EXTENSION=AUTO build without_compiler
check_contents "$work"/without_compiler/*.whl pure
if CXX=no-such-compiler SOAP_FAST_EXTENSION=ON build demanded >"$work/log" 2>&1; then
  echo "SOAP_FAST_EXTENSION=ON was ignored" >&2
  exit 1
fi
grep -q "no working C++17 compiler (no-such-compiler)" "$work/log"

torch=$("$python" -c 'from importlib.metadata import version; print(version("torch"))')
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet "torch==$torch"
run_installed "$work"/native/*.whl native
run_installed "$work"/pure/*.whl pure
echo "wheel: contents, empty environment, with and without the extension: good"
