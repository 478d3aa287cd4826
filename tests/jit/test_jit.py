"""Kernels as Triton launches them, by a driver without a GPU; in processes of their own.

The others interpret kernels, and one process cannot do both. A sample runs with every suite, all
architectures and precisions by `make soak` and in CI.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from soap_fast import extension
from soap_fast.backends.triton.launch.tuning import TUNING

pytest.importorskip("triton")

from stub_driver import SHARED

SOAKING = "SOAP_FAST_EXAMPLES" in os.environ  # `make soak`
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PRECISIONS = ("tf32x3", "ieee", "tf32")
DTYPES = ("float32", "bfloat16", "float16")
REFRESH = {"count", "derive", "permute", "settle"}
REFRESH |= {"grouped_matmul"} if extension.available() else set()
PLAIN = set(TUNING) - {"norm", "grouped_matmul", "count", "permute", "settle"}
# What launches of each kind there are, see steps.py; operands are derived for the first step too.
LAUNCHED = {
    "plain": PLAIN,
    "refreshing": PLAIN | REFRESH,
    "staggered": PLAIN | REFRESH,
    "captured_periodic": PLAIN | REFRESH,
    "captured_staggered": PLAIN | REFRESH,
    "normalising": PLAIN | {"norm"},
}


def printed(script: str, *arguments: str) -> list[dict]:
    """The lines of JSON of a script beside this file, where Triton compiles."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    found = [str(ROOT), str(HERE.parent), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, found))
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        capture_output=True, text=True, env=environment, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_compiled(sm: int, precisions: tuple[str, ...]) -> None:
    rows = printed("compile_all.py", str(sm), "--precision", *precisions, "--dtype", *DTYPES)
    steps = [row for row in rows if "kind" in row]
    assert len(steps) == len(LAUNCHED) * len(precisions) * len(DTYPES)
    for row in steps:
        assert set(row["launched"]) == LAUNCHED[row["kind"]], row["kind"]
    kernels = [row for row in rows if "kernel" in row]
    expected = set(TUNING) if extension.available() else set(TUNING) - {"grouped_matmul"}
    assert {row["kernel"] for row in kernels} == expected
    once = {(row["kernel"], str(row["constants"])) for row in kernels}
    assert len(once) == len(kernels), "a kernel is compiled more than once with the same constants"
    exact = {"ieee" if precision == "ieee" else "tf32x3" for precision in precisions}
    small = {"tf32"} if "tf32x3" in exact else set()  # what a refresh may round
    for op, wanted in (("grouped_matmul", exact | small), ("gram", exact)):
        found = {row["constants"]["PRECISION"] for row in kernels if row["kernel"] == op}
        assert found == wanted or op not in expected
    found = {row["constants"]["PRECISION"] for row in kernels if row["kernel"] == "rotate"}
    assert found >= set(precisions)
    for row in kernels:
        assert row["shared_bytes"] <= SHARED[sm], row
        assert row["stack_bytes"] == row["spill_bytes"] == 0, row


def test_every_kernel_launches():
    check_compiled(90, ("tf32x3",))


@pytest.mark.soak
@pytest.mark.skipif(not SOAKING, reason="compiles for half a minute each: make soak runs it")
@pytest.mark.parametrize("sm", SHARED)
def test_every_kernel_launches_on_every_architecture(sm):
    check_compiled(sm, PRECISIONS)


def test_nothing_is_compiled_after_a_refresh_period():
    rows = printed("variants.py")
    assert len(rows) == 10
    for row in rows:
        assert row["late"] == [], row["case"]
        twice = {found for found in row["first"] if row["first"].count(found) > 1}
        assert not twice, f"{row['case']}: specialised by something that changes: {twice}"
    launched = {found.split(" ")[0] for row in rows for found in row["first"]}
    assert launched >= LAUNCHED["refreshing"] | {"norm"}


def test_a_launch_that_takes_too_much_shared_memory_is_an_error():
    """So that kernels which were launched are known to fit."""
    (row,) = printed("too_much.py")
    assert row["error"].startswith("out of resource: shared memory"), row
    assert "gather" not in row["launched"]
