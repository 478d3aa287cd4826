"""`pytest bench/`: every op on every class of shapes by every backend that has it.

`--benchmark-autosave` keeps a run of pytest-benchmark, and a later one is held to it by
`--benchmark-compare --benchmark-compare-fail=median:10%`; `-k` chooses an op, a class of shapes, a
backend, a device. A plain step of a class takes milliseconds on a CPU: long against a call's own
cost where that is not what the class is about.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch

from bench.clock import captured
from bench.costs import PLAN, Cost, costs
from bench.kernels import Stepper
from bench.refresh import Factors
from bench.shapes import Entry, Inventory
from soap_fast.backends import choose, survey
from soap_fast.step.call import UNSCALED
from soap_fast.step.modes import grams, rotate

CLASSES: dict[str, tuple[tuple[int, ...], ...]] = {
    "small_conv": ((32, 32, 3, 3),) * 12,
    "large_conv": ((192, 192, 5, 5),),
    "square": ((512, 512),),
    "tall": ((1024, 64),),
    "vectors": ((192,),) * 64,  # no factors: Adam alone
    "tiny": ((8, 4),) * 200,  # the cost of a tensor, whatever is in it
}
# One thing made larger at a time; of these whole steps alone.
SCALING: dict[str, tuple[tuple[int, ...], ...]] = {
    **{f"width_{d}": ((d, d),) for d in (32, 64, 128, 256, 512, 1024)},
    **{f"tensors_{n}": ((16, 16),) * n for n in (1, 10, 100, 1000)},
    **{f"kernel_{k}": ((64, 64, k, k),) for k in (1, 3, 5, 7, 9)},
}
# By op and kind of device, who has it. `native` has a step of its own on the CPU only.
BACKENDS: dict[str, dict[str, tuple[str, ...]]] = {
    "step_": {"cpu": ("eager", "native"), "cuda": ("eager", "triton")},
    "refresh_": {"cpu": ("eager", "native"), "cuda": ("eager", "native", "triton")},
    "eigh": {"cpu": ("eager", "native"), "cuda": ("eager", "native")},
    "rotate": {"cpu": ("eager",), "cuda": ("eager",)},
    "grams": {"cpu": ("eager",), "cuda": ("eager",)},
    "SOAP.step": {"cpu": ("eager", "native"), "cuda": ("eager", "triton")},
}
OF_FACTORS = ("refresh_", "eigh", "rotate", "grams")  # nothing to do without any
CAPTURED = ("rotate", "grams")  # on CUDA timed as graphs: many small operators, none waits
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


class Case(NamedTuple):
    op: str
    shapes: str
    backend: str
    device: str


def cases(devices: tuple[str, ...]) -> Iterator[Case]:
    """Every case of these devices."""
    for op, by_device in BACKENDS.items():
        for shapes in (*CLASSES, *(SCALING if op == "SOAP.step" else ())):
            if op in OF_FACTORS and shapes == "vectors":
                continue
            for device in devices:
                yield from (Case(op, shapes, by, device) for by in by_device[device])


def inventory(name: str) -> Inventory:
    """The parameters of a class."""
    shapes = (CLASSES | SCALING)[name]
    return Inventory(name, tuple(Entry(f"{name}.{i}", s, True) for i, s in enumerate(shapes)))


def cost(case: Case) -> Cost:
    """A whole step is its update: what else it does is the host's."""
    known = costs((entry.shape for entry in inventory(case.shapes).entries), PLAN)
    return known["step_" if case.op == "SOAP.step" else case.op]


def prepare(case: Case) -> Callable[[], object]:
    """What is to be timed, after one call of it.

    It may be called again and again: steps repeat one gradient, refreshes move bases that have
    arrived. What they compute is the same each time, but for the values.
    """
    made = _refreshing if case.op in ("refresh_", "eigh") else _stepping
    call = torch.no_grad()(made(case))
    call()
    return call


def _refreshing(case: Case) -> Callable[[], object]:
    backend: Any = choose(case.backend)
    factors = Factors.of(inventory(case.shapes), case.device)
    if case.op == "eigh":
        return lambda: backend.eigh(factors.K, factors.chosen)
    return lambda: factors.refresh(backend.refresh_op)


def _stepping(case: Case) -> Callable[[], object]:
    """Of an optimizer after its first call and a plain one; parts of a step from its next call."""
    backend = choose(case.backend)
    begun_by = case.backend if case.op == "SOAP.step" else "eager"
    stepper = Stepper(inventory(case.shapes), case.device, begun_by)
    for phase in ("first", "plain"):
        stepper.step(phase)
    calls = list(stepper.optimizer._calls(UNSCALED))
    return {
        "SOAP.step": stepper.optimizer.step,
        "step_": lambda: backend.update(calls),
        "rotate": lambda: [rotate(one.grad, one.state["Q"], one.plan) for one in calls],
        "grams": lambda: [grams(one.grad, one.plan) for one in calls],
    }[case.op]


def device_time() -> float:
    """In place of the plugin's timer: also the work that the GPU still has to do."""
    torch.cuda.synchronize()
    return time.perf_counter()


def parameters() -> Iterator[Any]:
    usable = {status.name: status for status in survey()}
    for case in cases(DEVICES):
        status = usable[case.backend]
        timer = {"timer": device_time} if case.device == "cuda" else {}
        # Cases that do the same stand side by side in the plugin's table.
        group = f"{case.op} {case.shapes} {case.device}"
        marks = (
            pytest.mark.skipif(not status.usable, reason=status.reason),
            pytest.mark.benchmark(group=group, **timer),
        )
        yield pytest.param(case, id="-".join(case), marks=marks)


@pytest.mark.parametrize("case", list(parameters()))
def test_op(case: Case, benchmark: Any) -> None:
    call, work = prepare(case), cost(case)
    if case.device == "cuda" and case.op in CAPTURED:
        call = captured(call)
    benchmark(call)
    benchmark.extra_info.update(case._asdict() | work._asdict())
