"""The cases: an op, a class of shapes, a backend and a device; and each made ready to be called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from bench.measuring.factors import DEFAULTS, Factors
from bench.roofline.costs import Cost, costs
from bench.suite.classes import CLASSES, has_factors, inventory
from bench.suite.launches import kernels_of_a_step, operators
from soap_fast import SOAP
from soap_fast.backends import Backend, choose
from soap_fast.options import plan_options, step_options
from soap_fast.step.call import TensorCall
from soap_fast.step.carry import ModeChange
from soap_fast.step.modes import grams, rotate
from soap_fast.step.plan import plan_tensor
from soap_fast.step.refresh import REFRESHED

NEVER = 10**9  # as precondition_frequency: no call refreshes

Call = Callable[[], object]

# By op and kind of device, who has it. `native` has a step of its own on the CPU only.
BACKENDS: dict[str, dict[str, tuple[str, ...]]] = {
    "step_": {"cpu": ("eager", "native"), "cuda": ("eager", "triton")},
    "refresh_": {"cpu": ("eager", "native"), "cuda": ("eager", "native", "triton")},
    "carry_": {"cpu": ("eager", "native"), "cuda": ("eager",)},
    "eigh": {"cpu": ("eager", "native"), "cuda": ("eager", "native")},
    "rotate": {"cpu": ("eager",), "cuda": ("eager",)},
    "grams": {"cpu": ("eager",), "cuda": ("eager",)},
    "SOAP.step": {"cpu": ("eager", "native"), "cuda": ("eager", "triton")},
}
OF_FACTORS = ("refresh_", "carry_", "eigh", "rotate", "grams")  # nothing to do without any
STEPS = ("step_", "SOAP.step")
CAPTURED = ("rotate", "grams")  # on CUDA timed as graphs: many small operators, none waits


@dataclass(frozen=True)
class Case:
    op: str
    shapes: str
    backend: str
    device: str

    @property
    def id(self) -> str:
        return f"{self.op}-{self.shapes}-{self.backend}-{self.device}"

    @property
    def group(self) -> str:
        """Cases that do the same, so that the plugin's table has them side by side."""
        return f"{self.op} {self.shapes} {self.device}"


def cases(devices: tuple[str, ...]) -> Iterator[Case]:
    """Every case of these devices."""
    for op, by_device in BACKENDS.items():
        for shapes in CLASSES:
            if op not in OF_FACTORS or has_factors(shapes):
                for device in devices:
                    for backend in by_device[device]:
                        yield Case(op, shapes, backend, device)


@dataclass(frozen=True)
class Work:
    """What one call does.

    Attributes:
        flops, bytes: see `bench.roofline.costs`.
        launches: kernels of the Triton backend; of the others operators that compute, which on a
            GPU are a kernel each or more.
    """

    flops: float
    bytes: float
    launches: int


def prepare(case: Case) -> tuple[Call, Work]:
    """What is to be timed, after one call of it, and what it has to do.

    It may be called again and again: steps repeat one gradient, refreshes move bases that have
    arrived. What they compute is the same each time, but for the values.
    """
    call = torch.no_grad()(MAKERS[case.op](case))
    call()
    return call, Work(*cost(case), _launches(case, call))


def cost(case: Case) -> Cost:
    """A whole step is its update: what else it does is the host's."""
    known = costs((entry.shape for entry in inventory(case.shapes).entries), DEFAULTS)
    name = "step_" if case.op == "SOAP.step" else case.op
    return known.get(f"soap_fast::{name}") or known[f"soap_fast.{name}"]


def _launches(case: Case, call: Call) -> int:
    if case.backend == "triton" and case.op in STEPS:
        return kernels_of_a_step(SOAP(inventory(case.shapes).parameters(case.device)))
    return operators(call)


# Whole steps and their parts --------------------------------------------------------------------


def _whole_step(case: Case) -> Call:
    optimizer, _ = _begun(case, case.backend)
    return optimizer.step


def _plain_step(case: Case) -> Call:
    _, calls = _begun(case, "eager")
    backend = _backend(case)
    return lambda: backend.update(calls)


def _rotate(case: Case) -> Call:
    _, calls = _begun(case, "eager")
    return lambda: [rotate(one.grad, one.state["Q"], one.plan) for one in calls]


def _grams(case: Case) -> Call:
    _, calls = _begun(case, "eager")
    return lambda: [grams(one.grad, one.plan) for one in calls]


def _carry(case: Case) -> Call:
    _, calls = _begun(case, "eager")
    backend: Any = _backend(case)
    taken = [torch.ones((), dtype=torch.bool, device=case.device) for _ in calls]
    changes = {index: _changes(call) for index, call in enumerate(calls)}
    return lambda: backend.carry(calls, taken, changes)


def _changes(call: TensorCall) -> dict[int, ModeChange]:
    """Outcomes of a refresh that turns every basis by another one."""
    device = call.param.device
    return {
        mode: ModeChange(
            torch.arange(len(q), device=device),
            q.clone(),
            torch.tensor(REFRESHED, device=device),
            torch.tensor(0.0, device=device),
        )
        for mode, q in enumerate(call.state["Q"])
        if q is not None
    }


# Factors ----------------------------------------------------------------------------------------


def _refresh(case: Case) -> Call:
    backend: Any = _backend(case)
    factors = Factors.of(inventory(case.shapes), case.device)
    stacks = (factors.K, factors.Q, factors.chosen, factors.allowed)
    return lambda: backend.refresh_op(*stacks, 0.0)


def _eigh(case: Case) -> Call:
    backend: Any = _backend(case)
    factors = Factors.of(inventory(case.shapes), case.device)
    return lambda: backend.eigh(factors.K, factors.chosen)


# What they start from ---------------------------------------------------------------------------


def _begun(case: Case, backend: str) -> tuple[SOAP, list[TensorCall]]:
    """An optimizer after its first call and a plain one, and its next call on every tensor."""
    shapes = inventory(case.shapes)
    params = shapes.parameters(case.device)
    shapes.set_gradients(params, seed=1)
    optimizer = SOAP(params, precondition_frequency=NEVER, backend=backend)
    for _ in range(2):
        optimizer.step()
    (group,) = optimizer.param_groups
    planning, options = plan_options(group), step_options(group)
    calls = [
        TensorCall(
            param,
            param.grad,  # type: ignore[arg-type]
            optimizer.state[param],
            plan_tensor(tuple(param.shape), planning),
            options,
        )
        for param in params
    ]
    return optimizer, calls


def _backend(case: Case) -> Backend:
    return choose(case.backend)


MAKERS: dict[str, Callable[[Case], Call]] = {
    "step_": _plain_step,
    "refresh_": _refresh,
    "carry_": _carry,
    "eigh": _eigh,
    "rotate": _rotate,
    "grams": _grams,
    "SOAP.step": _whole_step,
}
