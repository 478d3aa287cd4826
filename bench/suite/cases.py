"""The cases: an op, a class of shapes, a backend and a device; and each made ready to be called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from bench.measuring.factors import Factors
from bench.suite.classes import CLASSES, has_factors, inventory
from bench.suite.work import StepFlops, Work, kernels_of_a_step, nbytes, operators, products
from soap_fast import SOAP
from soap_fast.backends import Backend, choose
from soap_fast.call import TensorCall
from soap_fast.carry import ModeChange
from soap_fast.modes import grams, rotate
from soap_fast.options import plan_options, step_options
from soap_fast.plan import plan_tensor
from soap_fast.refresh import REFRESHED, refresh_eager

NEVER = 10**9  # as precondition_frequency: no call refreshes
MOMENTS = ("exp_avg", "exp_avg_sq")

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


def prepare(case: Case) -> tuple[Call, Work]:
    """What is to be timed, after one call of it, and what it has to do.

    It may be called again and again: steps repeat one gradient, refreshes move bases that have
    arrived. What they compute is the same each time, but for the values.
    """
    with torch.no_grad():
        call, work = MAKERS[case.op](case)
    return torch.no_grad()(call), work


# Whole steps ------------------------------------------------------------------------------------


def _whole_step(case: Case) -> tuple[Call, Work]:
    optimizer, _ = _begun(case, case.backend)
    return optimizer.step, _step_work(case, optimizer, optimizer.step)


def _plain_step(case: Case) -> tuple[Call, Work]:
    optimizer, calls = _begun(case, "eager")
    backend = _backend(case)

    def call() -> None:
        backend.update(calls)

    return call, _step_work(case, optimizer, call)


def _step_work(case: Case, optimizer: SOAP, call: Call) -> Work:
    """Parameters, moments and K are read and written, gradients and Q read."""
    moved = 0
    for param, state in optimizer.state.items():
        both = (param, *(state[name] for name in MOMENTS), *state["GG"])
        moved += 2 * nbytes(both) + nbytes((param.grad, *state["Q"]))
    call()
    launches = kernels_of_a_step(optimizer) if case.backend == "triton" else operators(call)
    return Work(StepFlops.of(optimizer).step, moved, launches)


# Parts of a step --------------------------------------------------------------------------------


def _rotate(case: Case) -> tuple[Call, Work]:
    optimizer, calls = _begun(case, "eager")

    def call() -> list[torch.Tensor]:
        return [rotate(one.grad, one.state["Q"], one.plan) for one in calls]

    bases = [q for one in calls for q in one.state["Q"]]
    moved = nbytes([one.grad for one in calls]) + nbytes(bases) + nbytes(call())
    return call, Work(StepFlops.of(optimizer).rotation, moved, operators(call))


def _grams(case: Case) -> tuple[Call, Work]:
    optimizer, calls = _begun(case, "eager")

    def call() -> list[torch.Tensor | None]:
        return [k for one in calls for k in grams(one.grad, one.plan)]

    moved = nbytes([one.grad for one in calls]) + nbytes(call())
    return call, Work(StepFlops.of(optimizer).grams, moved, operators(call))


def _carry(case: Case) -> tuple[Call, Work]:
    optimizer, calls = _begun(case, "eager")
    backend: Any = _backend(case)
    taken = [torch.ones((), dtype=torch.bool, device=case.device) for _ in calls]
    changes = {index: _changes(call) for index, call in enumerate(calls)}

    def call() -> None:
        for _ in backend.carry(calls, taken, changes):
            pass

    call()
    moments = [one.state[name] for one in calls for name in MOMENTS]
    carries = [change.carry for modes in changes.values() for change in modes.values()]
    orders = [change.order for modes in changes.values() for change in modes.values()]
    moved = 2 * nbytes(moments) + nbytes(carries) + nbytes(orders)
    # exp_avg is rotated by the carrying matrices, exp_avg_sq is only permuted.
    return call, Work(StepFlops.of(optimizer).rotation, moved, operators(call))


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


def _refresh(case: Case) -> tuple[Call, Work]:
    backend: Any = _backend(case)
    factors = _factors(case)
    stacks = (factors.K, factors.Q, factors.chosen, factors.allowed)

    def call() -> tuple[list[torch.Tensor], ...]:
        return tuple(backend.refresh_op(*stacks, 0.0))

    orders, carries, *_ = call()
    moved = nbytes(factors.K) + 2 * nbytes(factors.Q) + nbytes(carries) + nbytes(orders)
    # The products of the definition; its QR, which torch does not count, comes on top.
    flops = products(lambda: refresh_eager(*stacks, 0.0))
    return call, Work(flops, moved, operators(call))


def _eigh(case: Case) -> tuple[Call, Work]:
    backend: Any = _backend(case)
    factors = _factors(case)

    def call() -> tuple[list[torch.Tensor], ...]:
        return tuple(backend.eigh(factors.K, factors.chosen))

    values, bases = call()
    moved = nbytes(factors.K) + nbytes(values) + nbytes(bases)
    return call, Work(None, moved, operators(call))


def _factors(case: Case) -> Factors:
    found = Factors.of(inventory(case.shapes))
    moved = (
        [stack.to(case.device) for stack in stacks]
        for stacks in (found.K, found.Q, found.first_Q, found.chosen, found.allowed)
    )
    return Factors(*moved)


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


MAKERS: dict[str, Callable[[Case], tuple[Call, Work]]] = {
    "step_": _plain_step,
    "refresh_": _refresh,
    "carry_": _carry,
    "eigh": _eigh,
    "rotate": _rotate,
    "grams": _grams,
    "SOAP.step": _whole_step,
}
