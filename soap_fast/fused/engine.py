"""The fused step of a set of tensors: its memory, its uploads, and the order of its launches."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any

import torch

from soap_fast.call import TensorCall
from soap_fast.fused import tables
from soap_fast.fused.columns import OPTIONS, SCALARS, TENSOR
from soap_fast.fused.launcher import Launch, Launcher
from soap_fast.fused.layout import layout_of, padded
from soap_fast.fused.operands import Operands
from soap_fast.fused.tuning import GRAM_CHUNKS, TUNING
from soap_fast.fused.work import Member, Work
from soap_fast.options import StepOptions

FLOAT = 4  # bytes


class Engine:
    """Steps one set of tensors on one device, always all of them in the same launches.

    A tensor without a gradient takes no part in a step; its address in the table is 0. Everything
    else that changes between steps lies in tables on the device as well: addresses and strides of
    gradients and parameters, options, clocks. They are compared on the host and uploaded when they
    differ, which nothing waits for.
    """

    def __init__(self, calls: Sequence[TensorCall], launcher: Launcher, precision: str) -> None:
        self.launcher, self.precision = launcher, precision
        self.params = [call.param for call in calls]
        self.states = [call.state for call in calls]
        self.layouts = [layout_of(call.plan) for call in calls]
        self.device = self.params[0].device
        self.works: dict[str, Work] = {}  # by launch, for those who ask what a step costs
        self._options: list[tuple[Any, ...]] = []
        self._option_rows = [0] * len(calls)
        self._gradients: list[tuple[Any, ...]] = []
        self._parameters: list[tuple[Any, ...]] = []
        self._gradient_list: list[int] = []
        self._parameter_list: list[int] = []

        self._allocate(calls)
        members = self._members()
        self._members_ = members
        self._fixed_launches(members)
        self._places = {id(param): place for place, param in enumerate(self.params)}
        self._known = [self._layout_state(call) for call in calls]

    def holds(self, calls: Sequence[TensorCall]) -> bool:
        """Whether these tensors are among the engine's, their state where it was."""
        for call in calls:
            place = self._places.get(id(call.param))
            if place is None or self._layout_state(call) != self._known[place]:
                return False
        return True

    def _layout_state(self, call: TensorCall) -> tuple[Any, ...]:
        state = call.state
        matrices = [m for m in (*state["GG"], *state["Q"]) if m is not None]
        tensors = (
            state["step"],
            state["skipped"],
            state["exp_avg"],
            state["exp_avg_sq"],
            *matrices,
        )
        return (call.plan, *(tensor.data_ptr() for tensor in tensors))

    # Memory -----------------------------------------------------------------------------------

    def _allocate(self, calls: Sequence[TensorCall]) -> None:
        n = len(self.layouts)
        self._adopt_moments()
        self.operands = Operands(self.layouts, [call.state["Q"] for call in calls])
        planes = sum(layout.memory[0] for layout in self.layouts)
        second = sum(layout.memory[1] for layout in self.layouts)
        self._fold_partials, total = [], 0
        for layout in self.layouts:
            self._fold_partials.append(total)
            if layout.folded:
                rows = tables.plane_rows(layout, TUNING["gather"].constants)
                total += -(-layout.positions // rows) * layout.fold_block**2
        self._gram_partials = padded(total)
        parts = tables.gram_parts(self.layouts, TUNING["gram"].constants["BK"], GRAM_CHUNKS)
        self.a = self._empty(planes)
        # While Gram matrices are in parts the second planes are not in use yet.
        self.b = self._empty(max(second, self._gram_partials + parts))
        self.scalars = self._empty(n * len(SCALARS))
        self.one = torch.ones(1, dtype=torch.float32, device=self.device)
        self.zero = torch.zeros(1, dtype=torch.float32, device=self.device)
        self.gradient_addresses = torch.zeros(n, dtype=torch.int64, device=self.device)
        self.parameter_addresses = torch.zeros(n, dtype=torch.int64, device=self.device)

    def _empty(self, elements: int) -> torch.Tensor:
        return torch.empty(max(elements, 1), dtype=torch.float32, device=self.device)

    def _adopt_moments(self) -> None:
        """exp_avg and exp_avg_sq lie in the order of the planes from here on."""
        for layout, state in zip(self.layouts, self.states, strict=True):
            for name in ("exp_avg", "exp_avg_sq"):
                flat = torch.empty(layout.numel, dtype=torch.float32, device=self.device)
                view = layout.state_view(flat)
                if state[name].stride() != view.stride():
                    state[name] = view.copy_(state[name])

    def _members(self) -> list[Member]:
        members, a, b = [], self.a.data_ptr(), self.b.data_ptr()
        partials = self.b.data_ptr()
        for index, (layout, state) in enumerate(zip(self.layouts, self.states, strict=True)):
            members.append(
                Member(
                    index,
                    layout,
                    a,
                    b,
                    state["exp_avg"].data_ptr(),
                    state["exp_avg_sq"].data_ptr(),
                    self.operands.forward[index],
                    self.operands.backward[index],
                    {m: k.data_ptr() for m, k in enumerate(state["GG"]) if k is not None},
                    partials + FLOAT * self._fold_partials[index],
                )
            )
            a += FLOAT * layout.memory[0]
            b += FLOAT * layout.memory[1]
        return members

    # Launches ---------------------------------------------------------------------------------

    def _fixed_launches(self, members: Sequence[Member]) -> None:
        deepest = max((len(layout.levels) for layout in self.layouts), default=0)
        gram, gram_reduce = tables.gram_work(members, TUNING["gram"].constants["BK"], GRAM_CHUNKS)
        fold_gram = tables.fold_gram_work(members, TUNING["gather"].constants)
        forward = [
            tables.rotate_work(members, place, deepest, back=False) for place in range(deepest)
        ]
        backward = [
            tables.rotate_work(members, place, deepest, back=True) for place in range(deepest)
        ]
        adam = tables.adam_work(members, TUNING["adam"].constants["ROWS"])
        self._tensor_table(forward[-1] if forward else Work(), adam)

        tables_ = (self.tensors, self.options, self.scalars)
        partials = self.b[self._gram_partials :]
        gram_precision = "ieee" if self.precision == "ieee" else "tf32x3"
        precision: dict[str, Any] = {"PRECISION": self.precision}
        self.before: list[Launch] = []
        self._add("gram", gram, *tables_, partials, PRECISION=gram_precision)
        self._add("gram_reduce", gram_reduce, *tables_, partials)
        self._add_tasks("fold_gram", fold_gram, *tables_)
        for place, work in enumerate(forward):
            last = place == deepest - 1
            self._add(
                "rotate",
                work,
                *tables_,
                self.directions,
                ADAM=last,
                name=f"rotate {place}",
                **precision,
            )
        if adam.count:
            self._add("adam", adam, *tables_, self.directions)
        n = len(self.layouts)
        constants = TUNING["norm"].constants
        self.norm = Launch("norm", (*tables_, self.directions, n), constants, n)
        self.after: list[Launch] = []
        for place, work in enumerate(backward):
            self._add(
                "rotate", work, *tables_, self.directions, ADAM=False, name=f"rotate back {place}",
                into=self.after, **precision,
            )  # fmt: skip
        derive = tables.derive_work(self.operands.matrices, TUNING["derive"].constants["BLOCK"])
        self.derive: list[Launch] = []
        self._add("derive", derive, into=self.derive)

    def _add(
        self,
        op: str,
        work: Work,
        *arguments: Any,
        name: str | None = None,
        into: list[Launch] | None = None,
        **constants: Any,
    ) -> None:
        """A launch over tiles, left out where there are none."""
        self.works[name or op] = work
        if work.count:
            tiles = torch.cat(work.tiles).to(self.device)
            tasks = torch.tensor(work.tasks, dtype=torch.int64, device=self.device)
            launch = Launch(
                op,
                (tiles, tasks, *arguments, work.count),
                {**TUNING[op].constants, **constants},
                work.count,
            )
            (self.before if into is None else into).append(launch)

    def _add_tasks(self, op: str, work: Work, *arguments: Any) -> None:
        """A launch over tasks."""
        self.works[op] = work
        if work.count:
            tasks = torch.tensor(work.tasks, dtype=torch.int64, device=self.device)
            launch = Launch(op, (tasks, *arguments, work.count), TUNING[op].constants, work.count)
            self.before.append(launch)

    def _tensor_table(self, last: Work, adam: Work) -> None:
        """Where each tensor's clocks and its shares of the sums lie."""
        squares, directions = 0, 0
        by_tensor = {}
        for work in (last, adam):
            for task, covered in zip(work.tasks, work.tiles, strict=True):
                by_tensor[task[0]] = (directions, len(covered))
                directions += len(covered)
        rows = []
        for index, (layout, state) in enumerate(zip(self.layouts, self.states, strict=True)):
            rows_of_tile = tables.plane_rows(layout, TUNING["gather"].constants)
            tiles = -(-layout.positions // rows_of_tile)
            row = [0] * len(TENSOR)
            row[TENSOR["step"]] = state["step"].data_ptr()
            row[TENSOR["skipped"]] = state["skipped"].data_ptr()
            row[TENSOR["first_square"]], row[TENSOR["squares"]] = squares, tiles
            row[TENSOR["first_direction"]], row[TENSOR["directions"]] = by_tensor[index]
            row[TENSOR["numel"]] = layout.numel
            squares += tiles
            rows.append(row)
        self._tensor_rows = torch.tensor(rows, dtype=torch.int64)
        self.tensors = self._tensor_rows.to(self.device)
        self.options = torch.zeros(
            len(rows) * len(OPTIONS), dtype=torch.float64, device=self.device
        )
        self.squares = self._empty(squares)
        self.directions = self._empty(directions)

    # A step -----------------------------------------------------------------------------------

    def derive_operands(self) -> None:
        """After bases have changed."""
        for launch in self.derive:
            self.launcher(launch)

    def upload(self, grads: Sequence[torch.Tensor | None], options: Sequence[StepOptions]) -> None:
        """What is different from the last call goes to the device."""
        self.upload_options(options)
        gradients = [
            (0, None, None) if g is None else (g.data_ptr(), g.stride(), g.dtype) for g in grads
        ]
        if gradients != self._gradients:
            self._upload_gradients(grads, gradients)
        parameters = [(p.data_ptr(), p.stride(), p.dtype) for p in self.params]
        if parameters != self._parameters:
            self._upload_parameters(parameters)

    def accept(self, gradients: list[int], params: list[torch.Tensor]) -> bool:
        """Addresses of gradients with the strides and dtypes of the last call, and of parameters.

        Parameters may have moved, as those of masked convolutions do at every forward. Others than
        before, or with other strides, are not accepted: `upload` is the way then.
        """
        parameters = list(map(torch.Tensor.data_ptr, params))
        if parameters != self._parameter_list:
            now = [(p.data_ptr(), p.stride(), p.dtype) for p in params]
            kept = [(stride, dtype) for _, stride, dtype in now] == self._parameter_strides
            if not kept or not all(map(is_, params, self.params)):
                return False
            self._upload_parameters(now)
        if gradients != self._gradient_list:
            addresses = torch.tensor(gradients, dtype=torch.int64)
            self.gradient_addresses.copy_(self._staged(addresses), non_blocking=True)
            self._gradient_list = gradients
            self._gradients = []  # no longer what `upload` compares with
        return True

    def upload_options(self, options: Sequence[StepOptions]) -> None:
        distinct = list(dict.fromkeys(options))
        values = [_values(option) for option in distinct]
        rows = [distinct.index(option) for option in options]
        if rows != self._option_rows:
            self._tensor_rows[:, TENSOR["options"]] = torch.tensor(rows)
            self.tensors.copy_(self._staged(self._tensor_rows), non_blocking=True)
            self._option_rows = rows
        if values != self._options:
            table = torch.stack([_option_row(option) for option in distinct]).flatten()
            self.options[: table.numel()].copy_(self._staged(table), non_blocking=True)
            self._options = values
            self._normalizes = any(option.normalize_grads for option in distinct)

    def _upload_gradients(
        self, grads: Sequence[torch.Tensor | None], gradients: list[tuple[Any, ...]]
    ) -> None:
        addresses = torch.tensor([address for address, _, _ in gradients], dtype=torch.int64)
        self.gradient_addresses.copy_(self._staged(addresses), non_blocking=True)
        strided = [
            (p.stride(), p.dtype) if g is None else (g.stride(), g.dtype)
            for p, g in zip(self.params, grads, strict=True)
        ]
        if strided != getattr(self, "_gradient_strides", None):
            work = tables.gather_work(self._members_, strided, TUNING["gather"].constants)
            self._gradient_strides = strided
            self.works["gather"] = work
            arguments = (
                torch.cat(work.tiles).to(self.device),
                torch.tensor(work.tasks, dtype=torch.int64).to(self.device),
                self.gradient_addresses,
                self.one,
                self.squares,
                work.count,
            )
            precision = "ieee" if self.precision == "ieee" else "tf32x3"
            constants = {**TUNING["gather"].constants, "PRECISION": precision}
            self.gather = Launch("gather", arguments, constants, work.count)
            n = len(self.params)
            clock = (
                self.tensors, self.options, self.gradient_addresses, self.squares, self.zero,
                self.scalars, n,
            )  # fmt: skip
            self.clock = Launch("clock", clock, TUNING["clock"].constants, n)
        self._gradients = gradients
        self._gradient_list = [address for address, _, _ in gradients]

    def _upload_parameters(self, parameters: list[tuple[Any, ...]]) -> None:
        addresses = torch.tensor([address for address, _, _ in parameters], dtype=torch.int64)
        self.parameter_addresses.copy_(self._staged(addresses), non_blocking=True)
        strided = [(stride, dtype) for _, stride, dtype in parameters]
        if strided != getattr(self, "_parameter_strides", None):
            work = tables.apply_work(self._members_, strided, TUNING["apply"].constants)
            self._parameter_strides = strided
            self.works["apply"] = work
            arguments = (
                torch.cat(work.tiles).to(self.device),
                torch.tensor(work.tasks, dtype=torch.int64).to(self.device),
                self.parameter_addresses,
                self.scalars,
                work.count,
            )
            constants = {**TUNING["apply"].constants, "PRECISION": self.precision}
            self.apply = Launch("apply", arguments, constants, work.count)
        self._parameters = parameters
        self._parameter_list = [address for address, _, _ in parameters]

    def _staged(self, table: torch.Tensor) -> torch.Tensor:
        """Pinned, so that the copy waits for nothing; torch keeps it until the copy is done."""
        return table.pin_memory() if self.device.type == "cuda" else table

    def run(self) -> None:
        """One step, launched."""
        launcher = self.launcher
        launcher(self.gather)
        launcher(self.clock)
        for launch in self.before:
            launcher(launch)
        if self._normalizes:
            launcher(self.norm)
        for launch in self.after:
            launcher(launch)
        launcher(self.apply)

    def taken(self) -> torch.Tensor:  # [n] bool
        """Which tensors took the last step, on the device."""
        return self.scalars.view(-1, len(SCALARS))[:, SCALARS["taken"]] != 0


def _values(options: StepOptions) -> tuple[Any, ...]:
    """What tells whether options have changed: an lr on the device may, its address may not."""
    lr = options.lr
    if isinstance(lr, torch.Tensor):
        lr = float(lr) if lr.device.type == "cpu" else lr.data_ptr()
    return (
        lr, options.beta1, options.beta2, options.shampoo_beta, options.eps, options.weight_decay,
        options.correct_bias, options.normalize_grads,
    )  # fmt: skip


def _option_row(options: StepOptions) -> torch.Tensor:  # [len(OPTIONS)] float64
    row = torch.zeros(len(OPTIONS), dtype=torch.float64)
    lr = options.lr
    if isinstance(lr, torch.Tensor) and lr.device.type != "cpu":
        row.view(torch.int64)[OPTIONS["lr_address"]] = lr.data_ptr()
        row[OPTIONS["lr_double"]] = float(lr.dtype == torch.float64)
    else:
        row[OPTIONS["lr"]] = float(lr)
    row[OPTIONS["beta1"]], row[OPTIONS["beta2"]] = options.beta1, options.beta2
    row[OPTIONS["beta_s"]], row[OPTIONS["eps"]] = options.shampoo_beta, options.eps
    row[OPTIONS["weight_decay"]] = options.weight_decay
    row[OPTIONS["correct_bias"]] = float(options.correct_bias)
    row[OPTIONS["normalize"]] = float(options.normalize_grads)
    return row
