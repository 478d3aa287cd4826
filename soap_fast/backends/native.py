"""Backend `native`: steps, first bases and refreshes by the extension on the CPU.

First bases and refreshes on CUDA as well. Other tensors, and steps of other dtypes than float32,
are computed as `eager` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch

from soap_fast import extension
from soap_fast.backends.base import PLAIN_REFRESH, Backend, BestOn, routed
from soap_fast.backends.cpu_steady import SteadyCpuStep, reads_lr
from soap_fast.backends.cpu_step import CpuStep, serves
from soap_fast.backends.unchanged import Groups
from soap_fast.step.call import Scaling, TensorCall, state_dtype
from soap_fast.step.carry import Changes, carry_each
from soap_fast.step.eigh import Pairs, eigh_eager, eigh_native
from soap_fast.step.plan import TensorPlan
from soap_fast.step.refresh import Refreshed, refresh_native
from soap_fast.step.refresh_batched import refresh_plain
from soap_fast.step.state import State
from soap_fast.step.update import update

__all__ = ["NativeBackend"]

Stacks = list[torch.Tensor]
RefreshOp = Callable[..., Refreshed]


class NativeBackend(Backend):
    name = "native"

    def __init__(
        self,
        device_types: Iterable[str] = ("cpu",),
        best_on: BestOn | None = None,
        refresh_by: RefreshOp = refresh_native,
    ) -> None:
        """The extension computes on devices of these types.

        Args:
            best_on: where nobody was asked for by name, who is best on a device.
            refresh_by: refreshes stacks on one device by the extension.
        """
        self.device_types = tuple(device_types)
        self.best_on = best_on
        self.refresh_by = refresh_by
        self.step = CpuStep()
        self.steady: SteadyCpuStep | None = None

    def name_on(self, device: torch.device) -> str:
        return self.name if self.best_on is None else self.best_on(device)

    def stepped_by(
        self, param: torch.Tensor, grad: torch.Tensor, plan: TensorPlan, lr: float | torch.Tensor
    ) -> tuple[str, str]:
        name = self.name_on(param.device)
        if name != "eager" and not self.computes(param.device, state_dtype(param)):
            return "eager", f"dtype {param.dtype}"
        return name, ""

    def refreshes_on(self, device: torch.device) -> str:
        if self.computes(device, torch.float32):
            return f"by the extension's {'CUDA' if device.type == 'cuda' else 'CPU'} kernels"
        why = extension.missing_cuda() if device.type == "cuda" else extension.reason()
        return f"{PLAIN_REFRESH}: {why}" if why else PLAIN_REFRESH

    def computes(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether the extension has first bases and refreshes of a dtype on a device.

        Asked for by name it has all; by default those of float64 on a GPU are left to plain torch.
        """
        if device.type not in self.device_types:
            return False
        if self.best_on is None or device.type == "cpu":
            return True
        return dtype == torch.float32 and self.best_on(device) != "eager"

    def serves(self, call: TensorCall) -> bool:
        """Whether the operator steps a tensor; others are stepped as `eager` does."""
        return bool(self.device_types) and serves(call)

    def steady_step(self, groups: Groups, state: State, scaling: Scaling) -> bool:
        steady, self.steady = self.steady, None  # for good where an exception leaves it
        if steady is not None and steady.take(groups, state, scaling):
            self.steady = steady
            return True
        return False

    def after_step(self, groups: Groups, state: State, calls: Sequence[TensorCall]) -> None:
        """Whether the step after a whole one of these calls can be a steady one."""
        everything = sum(len(group["params"]) for group in groups) == len(calls)
        if everything and calls and all(map(self._can_be_steady, calls)):
            steady = SteadyCpuStep(groups, state, calls, self.step)
            self.steady = steady if steady.left > 1 else None

    def _can_be_steady(self, call: TensorCall) -> bool:
        known = call.state["calls"] > 1 and reads_lr(call.options.lr)
        return known and not call.scaling.given and self.serves(call)

    def forget(self, devices: Iterable[torch.device] = ()) -> None:
        self.steady = None

    def update(self, calls: Sequence[TensorCall]) -> list[torch.Tensor]:
        ours, others = routed(calls, self.serves)
        taken = dict(zip(ours, self.step([calls[i] for i in ours]), strict=True))
        taken.update((i, update(calls[i])) for i in others)
        return [taken[i] for i in range(len(calls))]

    def carry(
        self, calls: Sequence[TensorCall], taken: Sequence[torch.Tensor], changes: Changes
    ) -> None:
        ours, others = routed(calls, self.serves)
        self.step.carry(
            [calls[i] for i in ours], [taken[i] for i in ours], [changes[i] for i in ours]
        )
        left = {place: changes[i] for place, i in enumerate(others)}
        carry_each([calls[i] for i in others], [taken[i] for i in others], left)

    def refuses(self, param: torch.Tensor) -> str | None:
        kind = param.device.type
        if kind not in self.device_types:
            return f"is on {param.device}, where 'native' does not compute: use backend=None"
        if kind == "cuda" and extension.missing_cuda() is not None:
            return (
                f"is on {param.device}, but {extension.missing_cuda()}, or take backend=None, "
                "which uses what there is"
            )
        return None

    def eigh(self, factors: Stacks, selections: Stacks) -> Pairs:
        values, bases = self._by_device(2, eigh_native, eigh_eager, factors, selections)
        return values, bases

    def refresh_op(
        self,
        factors: Stacks,
        bases: Stacks,
        selections: Stacks,
        allowed: Stacks,
        tolerance: float,
    ) -> Refreshed:
        ops = (self.refresh_by, refresh_plain)
        native, eager = (partial(op, tolerance=tolerance) for op in ops)
        width = len(Refreshed._fields)
        return Refreshed(
            *self._by_device(width, native, eager, factors, bases, selections, allowed)
        )

    def _by_device(
        self,
        width: int,
        native: Callable[..., Sequence[Stacks]],
        eager: Callable[..., Sequence[Stacks]],
        *arguments: Stacks,
    ) -> list[Stacks]:
        """One call per device and op; `width` lists of results, in the order of the stacks."""
        alike = {(stack.device, stack.dtype) for stack in arguments[0]}
        if len(alike) == 1:
            return list((native if self.computes(*alike.pop()) else eager)(*arguments))
        places: dict[tuple[torch.device, bool], list[int]] = {}
        for index, stack in enumerate(arguments[0]):
            key = (stack.device, self.computes(stack.device, stack.dtype))
            places.setdefault(key, []).append(index)
        columns: list[dict[int, torch.Tensor]] = [{} for _ in range(width)]
        for (_, ours), indices in places.items():
            op = native if ours else eager
            found = op(*([values[i] for i in indices] for values in arguments))
            for column, results in zip(columns, found, strict=True):
                column.update(zip(indices, results, strict=True))
        return [[column[i] for i in range(len(arguments[0]))] for column in columns]
