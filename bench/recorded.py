"""An optimizer on the shapes of a model whose launches are recorded and not made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.shapes import Inventory
from soap_fast import SOAP
from soap_fast.backends.triton.backend import Precision, TritonBackend
from soap_fast.backends.triton.engine import Engine
from soap_fast.backends.triton.launch.launcher import Launch, RecordingLauncher, TritonLauncher
from soap_fast.backends.triton.ops.work import Work
from soap_fast.options import plan_options
from soap_fast.step.plan import plan_tensor
from soap_fast.step.refresh import Refreshed, lent_bytes, refresh_launches, uninitialised
from soap_fast.step.state import allocate, bind, fresh, not_begun


class RecordingBackend(TritonBackend):
    """Refreshes bases in name only; keeps each call's factors, selections and bytes it was lent."""

    def __init__(self, launcher: Any, precision: Precision = "tf32x3") -> None:
        super().__init__(precision, launcher=launcher)
        self.refreshed: list[tuple[list[torch.Tensor], list[torch.Tensor], int]] = []

    def refresh_op(self, factors: Any, bases: Any, selections: Any, *_: Any) -> Refreshed:
        self.refreshed.append((factors, selections, lent_bytes()))
        return uninitialised(factors, selections)


class CallingLauncher(TritonLauncher):
    """Calls every launch as one that has been compiled to a kernel that does nothing."""

    def __init__(self) -> None:
        super().__init__(multiprocessors=132)
        self.launched: list[Launch] = []

    def __call__(self, launch: Launch) -> None:
        self.launched.append(launch)
        super().__call__(launch)

    def _compile(self, launch: Launch) -> None:
        launch.kept |= {"constants": list(launch.constants.values()), "run": lambda *_: None}


class Computes(TorchDispatchMode):
    """Counts calls of torch's operators that are a kernel each on a GPU."""

    KERNELS = ("index_select", "index_copy_", "ne", "reciprocal")
    CHUNK, CHUNKS = 65536, 320  # elements, and how many of so many a kernel for lists takes

    count = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = op.overloadpacket.__name__
        self.count += name in self.KERNELS
        if name == "_foreach_copy_":
            chunks = sum(ceil(tensor.numel() / self.CHUNK) for tensor in args[0])
            self.count += ceil(chunks / self.CHUNKS)
        return op(*args, **(kwargs or {}))


@dataclass
class Recorded:
    """Everything of a step but the kernels: its own tables, its own order of launches."""

    optimizer: SOAP
    params: list[torch.nn.Parameter]
    launcher: Any  # keeps what is `launched`
    backend: RecordingBackend

    @property
    def engine(self) -> Engine:
        (engine,) = self.backend.engines.values()
        return engine

    def step(self) -> int:
        """Take one step; how many launches it would have been."""
        self.launcher.launched.clear()
        self.optimizer.step()
        return len(self.launcher.launched)

    def refresh(self) -> dict[str, int]:
        """What a refresh at a step's end adds to its launches, by whom; needs the extension."""
        plain = self.step()
        with Computes() as computes:
            ours = self.refreshing_step() - plain
        extension = sum(refresh_launches(*refreshed) for refreshed in self.backend.refreshed)
        return {"triton": ours, "extension": extension, "torch": computes.count}

    def refreshing_step(self) -> int:
        """As `step`, and a refresh at its end."""
        frequency = self.optimizer.param_groups[0]["precondition_frequency"]
        for state in self.optimizer.state.values():
            state["calls"] = frequency  # the coming call is due
        self.backend.forget_steadiness()
        self.backend.refreshed.clear()
        return self.step()


def record(inventory: Inventory, precision: Precision = "tf32x3", launcher: Any = None) -> Recorded:
    """After the first call and one plain step; memory is reserved and never computed with."""
    launcher = launcher or RecordingLauncher()
    # Values matter to no launch, and memory that nobody touches costs nothing.
    params = [torch.nn.Parameter(torch.empty(e.shape)) for e in inventory.entries]
    optimizer = SOAP(params, backend="eager")
    backend = RecordingBackend(launcher, precision)
    optimizer._backend = backend
    options = plan_options(optimizer.param_groups[0])
    plans = [(param, plan_tensor(tuple(param.shape), options)) for param in params]
    for param, plan in plans:
        param.grad = torch.empty_like(param)
        optimizer.state[param] = fresh(param, plan, not_begun(param)["skipped"])
        for name in ("exp_avg", "exp_avg_sq"):
            optimizer.state[param][name] = torch.empty(plan.shape)
    bind(allocate(plans), optimizer.state)
    recorded = Recorded(optimizer, params, launcher, backend)
    recorded.step()
    return recorded


def named(ops: Iterable[str], works: Mapping[str, Work]) -> list[tuple[str, Work | None]]:
    """Launches by the names in an engine's `works`, which number an op that is launched again."""
    left = {name: work for name, work in works.items() if work.count}
    found = []
    for op in ops:
        name = next((n for n in left if n == op or (op == "rotate" and n.startswith(op))), op)
        found.append((name, left.pop(name, None)))
    return found
