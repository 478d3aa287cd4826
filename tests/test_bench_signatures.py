"""Kernels are compiled ahead of time with the types that the optimizer's launches bind."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from bench.measuring import aot, recorded, signatures
from soap_fast.backends.triton.launch.launcher import Launch, kernel
from soap_fast.backends.triton.launch.tuning import TUNING


def test_every_parameter_of_every_kernel_has_the_type_that_a_step_binds():
    found = signatures.signatures()
    assert set(found) == set(TUNING)
    for op, constants in aot.configurations():
        assert {*found[op], *constants} == set(kernel(op).arg_names), op
    assert found["norm"] == {
        "tensors": "*i64",
        "option_rows": "*fp64",
        "scalars": "*fp32",
        "directions": "*fp32",
        "n_tensors": "i32",
    }
    assert found["gather"]["tiles"] == "*i32"


def test_types_are_found_without_the_extension(monkeypatch):
    """Which compiling ahead of time has never needed."""
    monkeypatch.setattr(recorded, "refresh_launches", lambda *_: pytest.fail("asked the extension"))
    assert {launch.op for launch in signatures.launches()} == set(TUNING)


def test_a_renamed_parameter_keeps_its_type(monkeypatch):
    renamed = SimpleNamespace(arg_names=["anything", "at", "all", "BLOCK"])
    monkeypatch.setattr(signatures, "kernel", lambda op: renamed)
    doubles, whole = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    launch = Launch("norm", (doubles, whole, 3), {"BLOCK": 16}, 3)
    found = signatures.signature(launch)
    assert found == {"anything": "*fp64", "at": "*i64", "all": "i32"}


def test_what_does_not_fit_is_an_error(monkeypatch):
    launch = Launch("norm", (torch.zeros(1),), dict(TUNING["norm"].constants), 1)
    with pytest.raises(RuntimeError, match=r"norm has the parameters tensors, .* 1 arg"):
        signatures.signature(launch)

    signatures.signatures.cache_clear()
    known = list(signatures.launches())
    monkeypatch.setattr(signatures, "launches", lambda: known[:-1])
    with pytest.raises(RuntimeError, match="no recorded step launches grouped_matmul"):
        signatures.signatures()

    other = Launch("clock", tuple(range(8)), dict(TUNING["clock"].constants), 1)
    monkeypatch.setattr(signatures, "launches", lambda: [*known, other])
    with pytest.raises(RuntimeError, match="clock is launched with"):
        signatures.signatures()
