"""Who carries a step out. Asked for by name: that backend or an error. For none: the best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch

from soap_fast import extension
from soap_fast.backends.eager import EagerBackend
from soap_fast.backends.native import NativeBackend
from soap_fast.backends.triton import PRECISIONS, Precision, TritonBackend, missing_for_triton
from soap_fast.call import Scaling, TensorCall
from soap_fast.state import Stacks, State

__all__ = ["Backend", "BackendStatus", "Precision", "choose", "survey"]


class Backend(Protocol):
    """The stations of a step that backends carry out, in the order of a step."""

    name: str

    def refuses(self, param: torch.Tensor) -> str | None: ...

    def refuses_call(self, call: TensorCall) -> str | None: ...

    def steady_step(
        self, groups: Sequence[dict[str, Any]], state: State, scaling: Scaling
    ) -> bool: ...

    def settle(
        self, groups: Sequence[dict[str, Any]], state: State, calls: Sequence[TensorCall]
    ) -> None: ...

    def forget(self, devices: Iterable[torch.device] = ()) -> None: ...

    def check_whole(self) -> None: ...

    def prepare_capture(self, calls: Sequence[TensorCall]) -> None: ...

    def captured(self, calls: Sequence[TensorCall]) -> AbstractContextManager[None]: ...

    def replayed(self) -> None: ...

    def usable(self, calls: Sequence[TensorCall]) -> list[bool]: ...

    def first_bases(self, calls: Sequence[TensorCall]) -> Stacks: ...

    def update(self, calls: Sequence[TensorCall]) -> list[torch.Tensor]: ...

    def refresh(self, calls: Sequence[TensorCall], taken: Sequence[torch.Tensor]) -> None: ...


class BackendStatus(NamedTuple):
    """A backend, whether it can run here, and why or why not."""

    name: str
    usable: bool
    reason: str


BACKENDS: dict[str, type[Backend]] = {
    "triton": TritonBackend,
    "native": NativeBackend,
    "eager": EagerBackend,
}


def _asked_for(name: str, input_precision: Precision) -> Backend:
    # The extension's CUDA kernels have never run on a GPU: nobody gets them without asking.
    if name == "native":
        return NativeBackend(("cpu", "cuda"))
    return _of(name, input_precision)


def _of(name: str, input_precision: Precision) -> Backend:
    return TritonBackend(input_precision) if name == "triton" else BACKENDS[name]()


def survey() -> list[BackendStatus]:
    """Every backend of this version."""
    native = (
        "the extension computes float32 steps, first bases and refreshes on the CPU, the last two "
        "on CUDA where backend='native' asks for it; the rest as eager"
    )
    unfit = missing_for_triton()
    triton = (
        "the step in a handful of launches on CUDA where backend='triton' asks for it; no GPU has "
        "run it yet"
    )
    return [
        BackendStatus("triton", unfit is None, unfit or triton),
        BackendStatus("native", extension.available(), extension.reason() or native),
        BackendStatus("eager", True, "plain torch, runs on every device"),
    ]


def best(statuses: Sequence[BackendStatus]) -> str:
    """Name of the backend that None takes; kernels that no GPU has run are not among them."""
    return next(s.name for s in statuses if s.usable and s.name != TritonBackend.name)


def choose(name: str | None, input_precision: Precision = "tf32x3") -> Backend:
    """The backend of this name, or the best usable one for None.

    Args:
        name: of a backend, or None.
        input_precision: of Triton's products; other backends have none to choose.

    Raises:
        ValueError: no backend has this name, or it cannot run here; no precision has this one.
    """
    if input_precision not in PRECISIONS:
        rule = f"one of {PRECISIONS}: 'tf32x3' has float32's accuracy on tensor cores"
        raise ValueError(f"input_precision={input_precision!r} is not {rule}")
    statuses = survey()
    if name is None:
        return _of(best(statuses), input_precision)
    for status in statuses:
        if status.name == name:
            if not status.usable:
                raise ValueError(f"backend={name!r} cannot run here: {status.reason}")
            return _asked_for(name, input_precision)
    names = [status.name for status in statuses]
    raise ValueError(f"backend={name!r} is not one of {names}: None takes the best that runs here")
