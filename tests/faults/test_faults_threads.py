"""Two optimizers that step on two threads at once end in the bits of one after the other."""

from __future__ import annotations

import threading

import pytest
import torch
from streams import assert_same_bits
from subjects import (
    BACKENDS,
    SHAPES,
    one_thread,  # noqa: F401
    parameters,
    take,
    tensor_by_tensor,
)

from soap_fast import SOAP, ambient
from soap_fast.backends.triton.launch.launcher import TritonLauncher

pytestmark = pytest.mark.usefixtures("one_thread")
CALLS = {"eager": 60, "native": 200, "triton": 6}


def optimizers(backend: str) -> list[tuple[list[torch.nn.Parameter], SOAP]]:
    found = []
    for seed in (1, 2):
        params = parameters(SHAPES[backend], seed=seed)
        found.append((params, SOAP(params, backend=backend, precondition_frequency=3)))
    return found


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_bits_of_one_after_the_other(backend, precision, monkeypatch):
    """Also where the user allows less precise products, which each step overrides and restores."""
    one_interpreter_at_a_time(monkeypatch)
    before = torch.get_float32_matmul_precision()
    calls = range(CALLS[backend] if precision == "highest" else CALLS[backend] // 2)
    expected = []
    for params, optimizer in optimizers(backend):
        take(optimizer, params, calls)
        expected.append(tensor_by_tensor(optimizer, params))

    pairs = optimizers(backend)
    barrier, errors = threading.Barrier(2), []
    seen: set[str] = set()
    for _, optimizer in pairs:
        watch(optimizer._backend, seen)

    def steps(params, optimizer):
        try:
            barrier.wait(30)
            for call in calls:
                take(optimizer, params, [call])
        except BaseException as error:
            errors.append(error)

    torch.set_float32_matmul_precision(precision)
    try:
        threads = [threading.Thread(target=steps, args=pair) for pair in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not errors
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    for (params, optimizer), end in zip(pairs, expected, strict=True):
        assert_same_bits(tensor_by_tensor(optimizer, params), end)
    assert not torch.equal(pairs[0][0][0], pairs[1][0][0])
    assert seen == {"highest"}
    assert ambient._precision._inside == 0


def watch(backend, seen: set[str]) -> None:
    """Adds the matmul precision that products of a step ran at: no other step may restore it."""
    update = backend.update

    def watched(calls):
        taken = update(calls)
        seen.add(torch.get_float32_matmul_precision())
        return taken

    backend.update = watched


def one_interpreter_at_a_time(monkeypatch) -> None:
    """Triton's interpreter patches its own module while a kernel runs: launches take turns.

    All that the optimizer does on the host around them still runs side by side.
    """
    launch, turn = TritonLauncher.__call__, threading.Lock()

    def in_turn(self, one):
        with turn:
            launch(self, one)

    monkeypatch.setattr(TritonLauncher, "__call__", in_turn)
