"""What `pytest bench/` times: an op, a class of shapes, a backend and a device, ready to be called.

Counts are such that a plain step of a class takes milliseconds on a CPU: long against a call's own
cost where that is not what the class is about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from bench.costs import PLAN, Cost, costs
from bench.refresh import Factors
from bench.shapes import Entry, Inventory
from soap_fast import SOAP
from soap_fast.backends import choose
from soap_fast.step.call import UNSCALED, TensorCall
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
NEVER = 10**9  # as precondition_frequency: no call refreshes

Call = Callable[[], object]

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


def inventory(name: str) -> Inventory:
    """The parameters of a class."""
    shapes = (CLASSES | SCALING)[name]
    return Inventory(name, tuple(Entry(f"{name}.{i}", s, True) for i, s in enumerate(shapes)))


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
                for backend in by_device[device]:
                    yield Case(op, shapes, backend, device)


def prepare(case: Case) -> Call:
    """What is to be timed, after one call of it.

    It may be called again and again: steps repeat one gradient, refreshes move bases that have
    arrived. What they compute is the same each time, but for the values.
    """
    call = torch.no_grad()(MAKERS[case.op](case))
    call()
    return call


def cost(case: Case) -> Cost:
    """A whole step is its update: what else it does is the host's."""
    known = costs((entry.shape for entry in inventory(case.shapes).entries), PLAN)
    name = "step_" if case.op == "SOAP.step" else case.op
    return known.get(f"soap_fast::{name}") or known[f"soap_fast.{name}"]


# Calls -----------------------------------------------------------------------------------------


def _whole_step(case: Case) -> Call:
    return _begun(case, case.backend)[0].step


def _plain_step(case: Case) -> Call:
    calls, backend = _begun(case, "eager")[1], choose(case.backend)
    return lambda: backend.update(calls)


def _rotate(case: Case) -> Call:
    calls = _begun(case, "eager")[1]
    return lambda: [rotate(one.grad, one.state["Q"], one.plan) for one in calls]


def _grams(case: Case) -> Call:
    calls = _begun(case, "eager")[1]
    return lambda: [grams(one.grad, one.plan) for one in calls]


def _refresh(case: Case) -> Call:
    backend: Any = choose(case.backend)
    factors = Factors.of(inventory(case.shapes), case.device)
    return lambda: factors.refresh(backend.refresh_op)


def _eigh(case: Case) -> Call:
    backend: Any = choose(case.backend)
    factors = Factors.of(inventory(case.shapes), case.device)
    return lambda: backend.eigh(factors.K, factors.chosen)


def _begun(case: Case, backend: str) -> tuple[SOAP, list[TensorCall]]:
    """An optimizer after its first call and a plain one, and its next call on every tensor."""
    shapes = inventory(case.shapes)
    params = shapes.parameters(case.device)
    shapes.set_gradients(params, seed=1)
    optimizer = SOAP(params, precondition_frequency=NEVER, backend=backend)
    for _ in range(2):
        optimizer.step()
    return optimizer, list(optimizer._calls(UNSCALED))


MAKERS: dict[str, Callable[[Case], Call]] = {
    "step_": _plain_step,
    "refresh_": _refresh,
    "eigh": _eigh,
    "rotate": _rotate,
    "grams": _grams,
    "SOAP.step": _whole_step,
}
