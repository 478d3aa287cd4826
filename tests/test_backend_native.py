"""Where backend `native` computes: the CPU, CUDA if it is asked for, and nowhere else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from streams import needs_native

from soap_fast import extension
from soap_fast.backends import choose
from soap_fast.backends.native import NativeBackend

pytestmark = needs_native


def on(device: str) -> SimpleNamespace:
    """As much of a parameter as a backend looks at."""
    return SimpleNamespace(device=torch.device(device))


def test_asked_for_by_name_it_takes_cuda_where_that_was_built(monkeypatch):
    backend = choose("native")
    assert backend.device_types == ("cpu", "cuda")
    assert backend.refuses(on("cpu")) is None
    assert "does not compute: use backend=None" in backend.refuses(on("mps"))
    monkeypatch.setattr(extension, "build_info", lambda: {"cuda": True})
    assert backend.refuses(on("cuda:1")) is None
    assert backend.computes(torch.device("cuda", 1), torch.float64)
    monkeypatch.setattr(extension, "build_info", lambda: {"cuda": False})
    assert "was built without CUDA" in backend.refuses(on("cuda:1"))


@pytest.mark.parametrize("types", [("cpu",), ("cpu", "meta"), ()])
def test_each_device_has_one_call_and_results_keep_their_order(types):
    """`meta` stands for a second device."""
    stacks = [torch.empty(n + 1, device=d) for n, d in enumerate(["meta", "cpu", "meta", "cpu"])]
    calls = []

    def op(who):
        def run(values, doubled):
            calls.append((who, values[0].device.type))
            assert all(
                torch.Size([2 * len(v)]) == w.shape for v, w in zip(values, doubled, strict=True)
            )
            return [list(values), [f"{who} {len(v)}" for v in values]]

        return run

    doubled = [torch.empty(2 * len(s), device=s.device) for s in stacks]
    native, eager = op("native"), op("eager")
    values, who = NativeBackend(types)._by_device(2, native, eager, stacks, doubled)
    assert all(value is stack for value, stack in zip(values, stacks, strict=True))
    expected = ["native" if s.device.type in types else "eager" for s in stacks]
    assert who == [f"{name} {n + 1}" for n, name in enumerate(expected)]
    assert sorted(device for _, device in calls) == ["cpu", "meta"]
    assert NativeBackend(types)._by_device(2, native, eager, [], []) == [[], []]
