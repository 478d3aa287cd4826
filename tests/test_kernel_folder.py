"""Kernels are found where they lie: beside the package in a clone, within it when installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Without the finder of an editable install, which knows of this very clone.
WHERE = """
import sys
sys.meta_path[:] = [one for one in sys.meta_path if "editable" not in repr(one).lower()]
import soap_fast.triton_kernels.columns
from soap_fast.backends.triton.ops.fold_gram import FOLD_GRAM
assert FOLD_GRAM is soap_fast.triton_kernels.columns.FOLD_GRAM
print(soap_fast.__file__, soap_fast.triton_kernels.columns.__file__, sep="\\n")
"""


@pytest.mark.parametrize("kernels", ["triton_kernels", "soap_fast/triton_kernels"])
def test_kernels_are_those_of_the_package(tmp_path, kernels):
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "soap_fast", tmp_path / "soap_fast", ignore=ignored)
    shutil.copytree(ROOT / "triton_kernels", tmp_path / kernels, ignore=ignored)
    command = [sys.executable, "-c", WHERE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    package, columns = done.stdout.split()
    assert package == str(tmp_path / "soap_fast/__init__.py")
    assert columns == str(tmp_path / kernels / "columns.py")
