"""Steps of tensors with float32 state on the CPU, by operators `step_` and `carry_`.

What they compute is `soap_fast/step/update.py` and, after a refresh, `soap_fast/step/carry.py`.
Each tensor goes whole through one thread: its planes stay in the cache, and threads need not wait
for each other. csrc/step/step.h names what the tables hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import Any

import torch

from soap_fast import extension
from soap_fast.backends.metadata import Found, packed, unpacked
from soap_fast.interrupts import at_once
from soap_fast.options import StepOptions
from soap_fast.step.addresses import adopt_moments, state_addresses, straighten_bases
from soap_fast.step.call import (
    UNSCALED,
    Scaling,
    TensorCall,
    count_writes,
    counting,
    paying,
)
from soap_fast.step.carry import ModeChange, writing_bases
from soap_fast.step.layout import Layout, axes_of, layout_of
from soap_fast.step.plan import JOINT
from soap_fast.step.rounding import noise_scale

__all__ = ["CpuStep", "serves"]

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # StepDtype
ALIGNMENT = 16  # elements, see csrc/step/step.h


def serves(call: TensorCall) -> bool:
    """Whether the operator steps a tensor: on the CPU, of float32 state, with something in it."""
    param, grad = call.param, call.grad
    served = param.dtype in DTYPES and grad.dtype in DTYPES
    return served and param.device.type == "cpu" and param.numel() > 0 and _has_step()


def _has_step() -> bool:
    return extension.available() and bool(torch.ops.soap_fast.has_step())


class CpuStep:
    """The tables of the operator, kept from step to step as far as nothing has moved."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, ...]] = {}  # by id of the parameter: where all was
        self._rows: dict[int, _Rows] = {}
        self._order: list[int] = []
        self._workspace = torch.empty(0, 0, dtype=torch.float32, device="cpu")

    def __call__(self, calls: Sequence[TensorCall]) -> list[torch.Tensor]:
        """One step for each tensor after its first call. Returns which were taken, [] bool each.

        All calls are served.
        """
        if not calls:
            return []
        before, self._order = self._order, []  # should what follows be interrupted
        moved = False
        for call in calls:
            moved |= self._follow(call)
        order = [id(call.param) for call in calls]
        if moved or order != before:
            self._stack(order)
        else:
            self._order = before
        self._largest = max(map(_elements, calls))
        options = [_options(call.options, call.scaling) for call in calls]
        self._options = _table(options, torch.float64)
        taken = torch.empty(len(calls), dtype=torch.bool, device="cpu")
        flags = list(taken.unbind())
        self._run([call.param for call in calls], taken, *counting(calls, flags))
        return flags

    def again(
        self,
        params: list[torch.Tensor],
        found: Found,
        options: Sequence[StepOptions],
        *counted: Iterable[object],
    ) -> None:
        """One step for the tensors of the last one, of whose tables nothing else has changed.

        Args:
            found: addresses of gradients and parameters.
            options: of each tensor; none where they are as they were.
            counted: what belongs to the operator's call, for `at_once`.
        """
        gradients, parameters, _ = found
        addresses = parameters, gradients
        if addresses != self._addresses:
            self._move(addresses)
        if options:
            rows = [_options(option, UNSCALED) for option in options]
            self._options = _table(rows, torch.float64)
        taken = torch.empty(len(params), dtype=torch.bool, device="cpu")
        self._run(params, taken, *counted)

    def _run(
        self, params: list[torch.Tensor], taken: torch.Tensor, *counted: Iterable[object]
    ) -> None:
        self._reserve(self._largest)
        tables = (self._tensors, self._options, self._modes, self._walks)
        count_writes(params)
        at_once(_calling("step_", *tables, self._workspace, taken), *counted)

    def carry(
        self,
        calls: Sequence[TensorCall],
        taken: Sequence[torch.Tensor],
        changes: Sequence[Mapping[int, ModeChange]],
    ) -> None:
        """As `carry_each`: bases, the moments that follow, and the counters.

        All calls are served.
        """
        if not calls:
            return
        for call in calls:  # what a state that was loaded owes comes ahead of any step
            device = call.param.device
            adopt_moments([layout_of(call.plan)], [call.state], device, padding=False)
        modes: list[list[int]] = []
        together = zip(calls, taken, changes, strict=True)
        largest_first = sorted(together, key=lambda one: -one[0].param.numel())
        tensors = [_carried(*one, modes) for one in largest_first]
        self._reserve(max(map(_elements, calls)))
        tables = [_table(rows) for rows in (tensors, modes)]
        moments = _calling("carry_", *tables, self._workspace)
        at_once(moments, writing_bases(changes), paying([call.state for call in calls]))

    def _follow(self, call: TensorCall) -> bool:
        """Whether anything of a tensor lies elsewhere than at the last step."""
        layout = layout_of(call.plan)
        adopt_moments([layout], [call.state], call.param.device, padding=False)
        straighten_bases([call.state])
        param, grad = call.param, call.grad
        found = (
            *state_addresses(call),
            param.data_ptr(),
            grad.data_ptr(),
            param.stride(),
            grad.stride(),
            param.dtype,
            grad.dtype,
        )
        if self._known.get(id(param)) == found:
            return False
        self._rows[id(param)] = _Rows(call, layout)
        self._known[id(param)] = found  # last: an interrupt before makes the rows anew
        return True

    def _stack(self, order: list[int]) -> None:
        tensors = list[list[int]]()
        modes, walks = list[list[int]](), list[list[int]]()
        for key in order:
            rows = self._rows[key]
            tensors.append(rows.tensor(len(modes), len(walks)))
            modes += rows.modes
            walks += rows.walks
        self._tensors = _table(tensors)
        self._modes, self._walks = _table(modes).view(-1, 3), _table(walks).view(-1, 2)
        self._addresses = tuple(packed(row[column] for row in tensors) for column in range(2))
        self._order = order
        for key in set(self._rows) - set(order):  # gone, or without a gradient this time
            del self._known[key], self._rows[key]

    def _move(self, addresses: tuple[bytes, ...]) -> None:
        """Parameters and gradients lie elsewhere; rows that are kept do not say so."""
        self._order, self._addresses = [], ()  # so that the whole way stacks them anew
        for column, of_one in enumerate(addresses):
            self._tensors[:, column] = unpacked(of_one)
        self._addresses = addresses

    def _reserve(self, elements: int) -> None:
        threads = torch.get_num_threads()
        if self._workspace.shape[0] != threads or self._workspace.shape[1] < elements:
            self._workspace = torch.empty(threads, elements, dtype=torch.float32, device="cpu")


def _elements(call: TensorCall) -> int:
    """Of workspace that a tensor needs: step_workspace in csrc/step/step.h."""
    sizes = (size for size in call.plan.factors if size is not None)
    copied = max((size**2 for size in sizes), default=0)  # what others sent is aligned to nothing
    return 2 * _padded(call.param.numel()) + 2 * JOINT**2 + _padded(copied)


def _padded(elements: int) -> int:
    return -(-elements // ALIGNMENT) * ALIGNMENT


def _table(
    rows: Sequence[Sequence[float]], dtype: torch.dtype = torch.int64
) -> torch.Tensor:  # [rows, columns]
    return torch.tensor(rows, dtype=dtype, device="cpu")


def _calling(operator: str, *arguments: torch.Tensor) -> Iterable[object]:
    """For `at_once`: an operator of the extension, by its function in C."""
    found = getattr(torch.ops.soap_fast, operator).default._op
    return map(found, *((argument,) for argument in arguments))


class _Rows:
    """A tensor's rows of the tables, but for where the other tables' rows begin."""

    def __init__(self, call: TensorCall, layout: Layout) -> None:
        state = call.state
        folded, products = _mode_numbers(layout)
        self.modes = [
            [call.plan.modes[mode], state["Q"][mode].data_ptr(), state["GG"][mode].data_ptr()]
            for mode in (*folded, *products)
        ]
        axes = (*_axes(layout, call.grad.stride()), *_axes(layout, call.param.stride()))
        self.walks = [list(axis) for one in axes for axis in one]
        tensors = (call.param, call.grad, state["exp_avg"], state["exp_avg_sq"], state["step"])
        self.before = [tensor.data_ptr() for tensor in (*tensors, state["skipped"])]
        self.before += [layout.fold, _batch(layout), len(folded), len(products)]
        self.after = [len(one) for one in axes]
        self.after += [DTYPES[call.grad.dtype], DTYPES[call.param.dtype]]

    def tensor(self, first_mode: int, first_walk: int) -> list[int]:
        return [*self.before, first_mode, first_walk, *self.after]


def _carried(
    call: TensorCall,
    taken: torch.Tensor,
    changes: Mapping[int, ModeChange],
    modes: list[list[int]],
) -> list[int]:
    """A tensor's row of the carry's table; those of its modes are added to theirs."""
    layout, state = layout_of(call.plan), call.state
    folded, products = _mode_numbers(layout)
    first = len(modes)
    for mode in (*folded, *products):
        change = changes.get(mode)
        results = [0, 0, 0, 0]
        if change is not None:
            found = (change.carry, change.order, change.outcome, change.off_diagonal)
            results = [result.data_ptr() for result in found]
        modes.append([call.plan.modes[mode], mode, *results])
    names = ("exp_avg", "exp_avg_sq")
    tensors = (*(state[name] for name in names), taken, state["refreshes"], state["off_diagonal"])
    addresses = (tensor.data_ptr() for tensor in tensors)
    return [*addresses, layout.fold, _batch(layout), len(folded), len(products), first]


def _mode_numbers(layout: Layout) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The folded modes, and those that products rotate."""
    folded = layout.folded.modes if layout.folded else ()
    return folded, tuple(mode for group in layout.products for mode in group.modes)


@lru_cache(maxsize=4096)
def _axes(layout: Layout, stride: tuple[int, ...]) -> tuple[list[tuple[int, int]], ...]:
    """`axes_of`: gradients are elsewhere at every step, and lie as they did."""
    return axes_of(layout, stride)


def _batch(layout: Layout) -> int:
    return prod(group.size for group in layout.plain)


def _options(options: StepOptions, scaling: Scaling) -> list[float]:
    """A row of the operator's options."""
    scale, found = scaling
    return [
        float(options.lr),
        options.beta1,
        options.beta2,
        options.shampoo_beta,
        options.eps,
        options.weight_decay,
        float(options.correct_bias),
        float(options.normalize_grads),
        1.0 if scale is None else 1.0 / float(scale),
        0.0 if found is None else float(found),
        noise_scale(options, torch.float32),
    ]
