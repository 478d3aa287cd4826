"""The fused step of a set of tensors: its tables, its uploads and its launches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakSet

import torch

from soap_fast.backends.metadata import packed, unpacked
from soap_fast.backends.triton.carry import RefreshContext
from soap_fast.backends.triton.launch.balance import dealt
from soap_fast.backends.triton.launch.launcher import Launch, Launcher
from soap_fast.backends.triton.launch.mirror import Mirror
from soap_fast.backends.triton.launch.stream_order import StreamOrder
from soap_fast.backends.triton.launch.tuning import TUNING
from soap_fast.backends.triton.launch.underway import Underway
from soap_fast.backends.triton.launch.upload import upload
from soap_fast.backends.triton.memory import Memory, empty
from soap_fast.backends.triton.ops.clock import (
    fingerprint,
    option_row,
    shares_of_directions,
    tensor_rows,
)
from soap_fast.backends.triton.ops.derive import derive_work
from soap_fast.backends.triton.ops.plane import Strided
from soap_fast.backends.triton.ops.work import Work
from soap_fast.backends.triton.programs import (
    STEP,
    Planned,
    apply_launch,
    fixed_launches,
    gather_launch,
)
from soap_fast.backends.triton.refresh import Refresher, by_tolerance
from soap_fast.backends.triton.rounds import WORKSPACE
from soap_fast.backends.triton.staggered import StaggeredSet
from soap_fast.backends.triton.turns import Turn
from soap_fast.options import StepOptions
from soap_fast.step.addresses import state_addresses, state_tensors
from soap_fast.step.call import Scaling, TensorCall
from soap_fast.step.carry import RefreshOp
from soap_fast.step.layout import layout_of
from soap_fast.triton_kernels.columns import OPTIONS, SCALARS, TENSOR


class Engine:
    """Steps one set of tensors on one device, always all of them in the same launches.

    A tensor without a gradient takes no part in a step; its address in the table is 0. Everything
    else that changes between steps lies in tables on the device as well: addresses and strides of
    gradients and parameters, options, clocks. They are compared on the host and uploaded when they
    differ, which nothing waits for.
    """

    def __init__(
        self,
        calls: Sequence[TensorCall],
        launcher: Launcher,
        precision: str,
        order: StreamOrder | None = None,
        workspace: int = WORKSPACE,
        by_free: bool = True,
    ) -> None:
        """An engine before it gives its order, for what it has launched may be underway.

        Args:
            workspace, by_free: of refreshes, as in `RefreshContext`.
        """
        self.launcher, self.precision = launcher, precision
        self.params = [call.param for call in calls]
        self.states = [call.state for call in calls]
        self.layouts = [layout_of(call.plan) for call in calls]
        self.device = self.params[0].device
        self.order = order or StreamOrder(self.device)
        self.order.follow()  # moments change their places below
        self.stream: torch.cuda.Stream | None = None  # that all memory is known to be used on
        on_gpu = self.device.type == "cuda"
        # Triton launches on the current device, which need not be that of the tensors.
        self._guard: AbstractContextManager[Any]
        self._guard = torch.cuda.device(self.device) if on_gpu else nullcontext()
        self.memory = Memory(self.layouts, self.states, self.device)
        self.works: dict[str, Work] = {}  # by launch, for those who ask what a step costs
        n = len(calls)
        self.gradients, self.parameters = (
            Mirror(torch.zeros(n, dtype=torch.int64, device=self.device)) for _ in range(2)
        )
        # Meaningful where all tensors share one clock, which graphs of staggered refreshes ask for.
        clock = torch.tensor([calls[0].state["calls"]])
        self.calls = upload(clock, self.device)
        self.launches: dict[str, list[Launch]] = {place: [] for place in STEP}
        self._fixed_launches()
        self.staggered: list[StaggeredSet] = []
        self.turns = WeakSet[Turn]()  # that steady steps hold
        self._scaled = False
        self.underway = Underway()
        context = RefreshContext(
            self.states,
            self.memory,
            self.squares,
            (self.tensors, self.options, self.directions),
            self._sum_precision(),
            workspace,
            by_free,
        )
        self.refresher = Refresher(context, launcher, self.underway, self.derive)
        self.forget_uploads()
        self._taken = self.memory.scalars.view(-1, len(SCALARS))[:, SCALARS["taken"]]  # [n + 1]
        self.places = {id(param): place for place, param in enumerate(self.params)}
        self._known = [state_addresses(call) for call in calls]
        # Should a user replace a tensor of the state, or its data, the memory lives until that is
        # noticed.
        self._kept = [tensor.detach() for call in calls for tensor in state_tensors(call)]

    def forget_uploads(self) -> None:
        """Whatever lies on the device, the next step uploads all that it reads."""
        for mirror in (self.gradients, self.parameters, self.rows_of_options, self.options_given):
            mirror.forget()
        self._rates: list[torch.Tensor] = []
        self._gradient_strides: list[Strided] = []
        self._parameter_strides: list[Strided] = []
        self.refresher.forget()

    def follow_stream(self, read: Iterable[torch.Tensor] = ()) -> None:
        """Ahead of all that a step writes: wait for the stream of the last one, if it is another.

        The caching allocator then learns that this stream uses what a step reads, so that nobody
        gets the memory of something given up while a kernel still reads it.

        Args:
            read: what the coming step alone reads, its gradients.
        """
        now = self.order.follow()
        if now is None or now == self.stream:
            return
        for tensor in {t.untyped_storage().data_ptr(): t for t in self._in_use(read)}.values():
            tensor.record_stream(now)
        self.stream = now

    def _in_use(self, read: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """All tensors on the device that a launch names, or a table by their address."""
        memory = self.memory
        yield from read
        yield from self.params
        yield from self._kept
        yield memory.whole
        yield from (self.gradients.table, self.parameters.table, self.calls)
        yield from self._rates
        for launch in (*self._in_order(), self.norm, *self.derive):
            yield from (x for x in launch.arguments if isinstance(x, torch.Tensor))
        yield from self.refresher.in_use()
        yield from (turn.taken for turn in self.turns)
        for prepared in self.staggered:
            yield from prepared.in_use()

    def holds(self, calls: Sequence[TensorCall]) -> bool:
        """Whether these tensors are among the engine's, their state where it was."""
        for call in calls:
            place = self.places.get(id(call.param))
            if place is None or state_addresses(call) != self._known[place]:
                return False
        return True

    # Launches ---------------------------------------------------------------------------------

    def _fixed_launches(self) -> None:
        """Those that no address or stride of a gradient or parameter decides."""
        memory, members = self.memory, self.memory.members
        fixed = fixed_launches(members)
        rotations = [p for p in fixed if p.place == "rotate"]
        adam = next(p.work for p in fixed if p.op == "adam")
        self._tensor_table(rotations[-1].work if rotations else Work(), adam)

        products = {"PRECISION": self.precision}
        sums = {"PRECISION": self._sum_precision()}
        common = (self.tensors, self.options, memory.scalars)
        for planned in fixed:
            arguments: tuple[torch.Tensor, ...] = common
            constants: dict[str, Any] = {}
            if planned.op in ("gram", "gram_reduce"):
                arguments = (*common, memory.gram_partials)
                constants = sums if planned.op == "gram" else {}
            elif planned.op == "rotate":
                arguments = (*common, self.directions)
                constants = {**products, "ADAM": planned is rotations[-1]}
            elif planned.op == "adam":
                arguments = (*common, self.directions[self._of_adam :])
            self.launches[planned.place] += self._launches(planned, *arguments, **constants)
        n = len(self.layouts)
        self.norm = Launch("norm", (*common, self.directions, n), TUNING["norm"].constants, n)
        derive = derive_work(memory.operands.derived, TUNING["derive"].constants["BLOCK"])
        self.derive = self._launches(Planned("derive", "derive", "derive", derive))

    def _in_order(self) -> list[Launch]:
        return [launch for place in STEP for launch in self.launches[place]]

    def _sum_precision(self) -> str:
        """Of Gram matrices, which plain tf32 would spoil."""
        return "ieee" if self.precision == "ieee" else "tf32x3"

    def _launches(self, planned: Planned, *arguments: Any, **constants: Any) -> list[Launch]:
        """One launch over tiles, or over tasks where a kernel walks these; none without any."""
        work = planned.work
        self.works[planned.name] = work
        if not work.count:
            return []
        constants = {**TUNING[planned.op].constants, **constants}
        walked = []
        if work.tiles[0].numel():
            tiles = torch.cat(work.tiles)
            if not constants.get("ADAM"):  # whose tiles have a sum each, by their number
                programs = self.launcher.programs(Launch(planned.op, (), {}, work.count))
                tiles = dealt(planned.op, tiles, programs)
            walked.append(upload(tiles, self.device))
        if work.tasks:
            walked.append(upload(torch.tensor(work.tasks, dtype=torch.int64), self.device))
        return [Launch(planned.op, (*walked, *arguments, work.count), constants, work.count)]

    def _tensor_table(self, last: Work, adam: Work) -> None:
        """Where each tensor's clocks and its shares of the sums lie."""
        shares, self._of_adam, directions = shares_of_directions(last, adam)
        rows, squares = tensor_rows(self.layouts, self.states, shares)
        self._tensor_rows = torch.tensor(rows, dtype=torch.int64)
        self.tensors = upload(self._tensor_rows, self.device)
        n_options = len(rows) * len(OPTIONS)
        self.options = torch.zeros(n_options, dtype=torch.float64, device=self.device)
        self.rows_of_options, self.options_given = Mirror(self.tensors), Mirror(self.options)
        self.squares = empty(squares, self.device)
        self.directions = empty(directions, self.device)

    # Uploads ----------------------------------------------------------------------------------

    def upload(self, grads: Sequence[torch.Tensor | None], options: Sequence[StepOptions]) -> None:
        """What is different from the last call goes to the device."""
        self.upload_options(options)
        gradients = packed(0 if g is None else g.data_ptr() for g in grads)
        self.accept(gradients, packed(p.data_ptr() for p in self.params))
        as_gradients = [
            (p.stride(), p.dtype) if g is None else (g.stride(), g.dtype)
            for p, g in zip(self.params, grads, strict=True)
        ]
        if as_gradients != self._gradient_strides:
            self._walk_gradients(as_gradients)
        as_parameters = [(p.stride(), p.dtype) for p in self.params]
        if as_parameters != self._parameter_strides:
            self._walk_parameters(as_parameters)

    def accept(self, gradients: bytes, parameters: bytes) -> None:
        """Take addresses, packed, alone: all else of these tensors is as it was at the last call.

        Parameters may have moved, as those of masked convolutions do at every forward.
        """
        self.gradients.follow(gradients, unpacked)
        self.parameters.follow(parameters, unpacked)

    def upload_options(self, options: Sequence[StepOptions]) -> None:
        distinct = list(dict.fromkeys(options))
        self.rows_of_options.follow([distinct.index(o) for o in options], self._with_options)
        values = [fingerprint(option) for option in distinct]
        if self.options_given.follow(values, lambda _: torch.cat([*map(option_row, distinct)])):
            rates = [option.lr for option in distinct if isinstance(option.lr, torch.Tensor)]
            self._rates = [rate for rate in rates if rate.device == self.device]
            normalizes = any(option.normalize_grads for option in distinct)
            self.launches["norm"] = [self.norm] if normalizes else []

    def _with_options(self, rows: Sequence[int]) -> torch.Tensor:
        """The table of tensors, each with the row of its options."""
        self._tensor_rows[:, TENSOR["options"]] = unpacked(packed(rows))
        return self._tensor_rows

    def _walk_gradients(self, strided: list[Strided]) -> None:
        """Make the launches that gradients of these strides and dtypes decide."""
        memory, n = self.memory, len(self.params)
        self.launches["gather"] = self._launches(
            gather_launch(memory.members, strided),
            self.gradients.table,
            memory.inverse_scale,
            self.squares,
        )
        clock = (
            self.tensors, self.options, self.gradients.table, self.squares,
            memory.found_inf, memory.scalars, self.calls, n,
        )  # fmt: skip
        self.launches["clock"] = [Launch("clock", clock, TUNING["clock"].constants, n)]
        self._gradient_strides = strided

    def _walk_parameters(self, strided: list[Strided]) -> None:
        """Make the launch that parameters of these strides and dtypes decide."""
        planned = apply_launch(self.memory.members, strided)
        addresses, scalars = self.parameters.table, self.memory.scalars
        self.launches["apply"] = self._launches(planned, addresses, scalars)
        self._parameter_strides = strided

    # A step -----------------------------------------------------------------------------------

    def run(self, scaling: Scaling, *counted: Iterable[object]) -> None:
        """One step, launched; its stream has followed the last one, and all is uploaded.

        Args:
            counted: what belongs to the last launch, for `at_once`.

        Raises:
            RuntimeError: an earlier one has failed between its launches.
        """
        self.underway.check_whole()
        with self._guard:
            if scaling.given or self._scaled:
                self._scale(scaling)
            gather, *launches = self._in_order()
            self.launcher(gather)  # which writes to the workspace alone
            self.underway.launch(self.launcher, launches, *counted)

    def _scale(self, scaling: Scaling) -> None:
        """What a gradient scaler handed over for this step, or its absence."""
        scale, found = scaling
        self._scaled = True  # until what was written is known to say that there is none
        if scale is None:
            self.memory.inverse_scale.fill_(1)
        else:
            self.memory.inverse_scale.copy_(scale.reshape(1), non_blocking=True).reciprocal_()
        if found is None:
            self.memory.found_inf.zero_()
        else:
            self.memory.found_inf.copy_(found.reshape(1), non_blocking=True)
        self._scaled = scaling.given

    def taken(self) -> torch.Tensor:  # [n + 1] bool
        """Which tensors took the last step, on the device; the one behind them never does."""
        return self._taken != 0

    def flags(self) -> torch.Tensor:  # [n + 1] bool
        """Memory for what `taken` says of a step."""
        return torch.empty(len(self.params) + 1, dtype=torch.bool, device=self.device)

    def noting_taken(self, flags: torch.Tensor) -> Iterable[object]:
        """For `at_once`: what `taken` says of the step that was launched."""
        return map(torch.Tensor.copy_, (flags,), (self._taken,))

    def derive_operands(self) -> None:
        """Of bases that this engine has not refreshed itself."""
        self.follow_stream()
        with self._guard:
            for launch in self.derive:
                self.launcher(launch)

    def refresh(
        self,
        calls: Sequence[TensorCall],
        op: RefreshOp,
        taken: Sequence[torch.Tensor] | None = None,
    ) -> None:
        """Refresh what is due of these tensors.

        Args:
            taken: [] bool per call, whether its step was taken; None where it was the last one.
        """
        places = [self.places[id(call.param)] for call in calls]
        self.follow_stream()
        with self._guard:
            if taken is None:
                flags = self.taken()
            else:
                flags = torch.zeros(len(self.params) + 1, dtype=torch.bool, device=self.device)
                torch._foreach_copy_([flags[place] for place in places], list(taken))
            self.refresher.refresh(calls, places, flags, op)

    def refresh_turn(self, turn: Turn, op: RefreshOp) -> None:
        """Refresh what recurs."""
        with self._guard:
            if turn.sets is None:
                self.turns.add(turn)
                turn.sets = self.refresher.due_sets(turn.calls, turn.places)
            self.refresher.refresh_sets(turn.sets, turn.taken, op)

    def prepare_staggered(self, calls: Sequence[TensorCall]) -> None:
        """Upload what a graph of staggered refreshes reads, ahead of its capture."""
        self.follow_stream()
        self.calls.fill_(calls[0].state["calls"])  # also where some had no gradient at times
        self.staggered = []
        for indices in by_tolerance(calls).values():
            chosen = [calls[i] for i in indices]
            places = [self.places[id(call.param)] for call in chosen]
            self.staggered.append(StaggeredSet(chosen, places, self.refresher.context))

    def refresh_staggered(self, op: RefreshOp) -> None:
        """Refresh what is due by the clock on the device, for a graph."""
        with self._guard:
            for prepared in self.staggered:
                prepared.refresh(self.calls, self.taken(), op, self.launcher)
