"""Backend `triton`: the step in a handful of launches on CUDA, refreshes by the extension.

Tensors that its kernels do not serve are refused where this backend was asked for by name, and
stepped as `native` does where it was not; `unserved` says why.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

from soap_fast import extension
from soap_fast.backends.base import Backend, BestOn, routed
from soap_fast.backends.native import NativeBackend
from soap_fast.backends.requirements import interpreted, unfit_for_triton
from soap_fast.backends.triton.launch.stream_order import StreamOrder, current
from soap_fast.backends.triton.ops.clock import reads_lr
from soap_fast.backends.triton.rounds import WORKSPACE
from soap_fast.backends.triton.served import DTYPES, unserved
from soap_fast.interrupts import held
from soap_fast.step.call import Scaling, TensorCall, count_writes, counting
from soap_fast.step.carry import Changes
from soap_fast.step.eigh import Pairs
from soap_fast.step.plan import TensorPlan
from soap_fast.step.refresh import Refreshed, refresh_native
from soap_fast.step.state import State

if TYPE_CHECKING:
    from soap_fast.backends.triton.engine import Engine
    from soap_fast.backends.triton.launch.launcher import Launcher
    from soap_fast.backends.triton.products import KeptProducts
    from soap_fast.backends.triton.steady import Steady

Precision = Literal["tf32x3", "ieee", "tf32"]
PRECISIONS = ("tf32x3", "ieee", "tf32")


class TritonBackend(Backend):
    name = "triton"

    def __init__(
        self,
        input_precision: Precision = "tf32x3",
        *,
        launcher: Launcher | None = None,
        best_on: BestOn | None = None,
        refresh_workspace: int = WORKSPACE,
    ) -> None:
        """A launcher other than Triton's own records, on tensors of any device.

        Args:
            input_precision: of products. Those whose small eigenvalues matter, Gram matrices and
                refreshes, are in tf32x3 where this is tf32.
            best_on: where nobody was asked for by name, who is best on a device.
            refresh_workspace: bytes for tensors that are refreshed together.
        """
        has_cuda = extension.missing_cuda() is None
        types = ("cpu", "cuda") if has_cuda else ("cpu",) if extension.available() else ()
        # Steps what the kernels do not, and has first bases and refreshes for all.
        ours = weakref.proxy(self)  # a cycle would keep a step's memory until Python looks for it
        by_extension = partial(TritonBackend._refresh_by_extension, ours)
        self.rest = NativeBackend(types, best_on, by_extension)
        self.best_on = best_on
        self.input_precision = input_precision
        self.launcher = launcher
        self.refresh_workspace = refresh_workspace
        self.engines: dict[torch.device, Engine] = {}
        self.orders: dict[torch.device, StreamOrder] = {}  # longer than engines
        self.products: dict[
            tuple[torch.device, torch.cuda.Stream | None], KeptProducts
        ] = {}  # by stream
        self.steady: Steady | None = None
        self.has_refreshed = False  # at the end of the last whole step
        self.by_device_clock = False  # while a graph of staggered refreshes is captured

    def name_on(self, device: torch.device) -> str:
        return self.name if self.best_on is None else self.best_on(device)

    def alike_on(self, device: torch.device) -> str:
        return f"{self.name_on(device)}, refreshes in rounds of {self.refresh_workspace} bytes"

    def stepped_by(
        self, param: torch.Tensor, grad: torch.Tensor, plan: TensorPlan, lr: float | torch.Tensor
    ) -> tuple[str, str]:
        reason = self.unserved(param, grad, plan, lr)
        if reason is None:
            return self.name, ""
        if self.best_on is None:
            return "native" if param.device.type in self.rest.device_types else "eager", reason
        name, why = self.rest.stepped_by(param, grad, plan, lr)
        if name != self.name:
            return name, why
        return "native" if self.computes(param.device, torch.float32) else "eager", reason

    def unserved(
        self, param: torch.Tensor, grad: torch.Tensor, plan: TensorPlan, lr: float | torch.Tensor
    ) -> str | None:
        """What of a tensor, of its device or lr the kernels do not serve; None if they serve it."""
        if self.best_on is not None and self.best_on(param.device) != self.name:
            return f"on {param.device}"
        if isinstance(lr, torch.Tensor) and not reads_lr(lr):
            return f"an lr of dtype {lr.dtype} on {lr.device}"
        return unserved(param, grad, plan)

    def serves(self, call: TensorCall) -> bool:
        """Whether the kernels take this call of a tensor; others are stepped as `native` does."""
        return self.unserved(call.param, call.grad, call.plan, call.options.lr) is None

    def refreshes_on(self, device: torch.device) -> str:
        found = self.rest.refreshes_on(device)
        if device.type == "cuda" and self.computes(device, torch.float32):
            return f"{found}, products by a Triton kernel"
        return found

    def refuses(self, param: torch.Tensor) -> str | None:
        if param.device.type != "cuda" and self.launcher is None and not interpreted():
            return f"is on {param.device}, where 'triton' does not compute: use backend=None"
        compiled = param.device.type == "cuda" and self.launcher is None and not interpreted()
        if compiled and (reason := unfit_for_triton(param.device)) is not None:
            return f"is on {param.device}: {reason}; use backend=None"
        if param.dtype not in DTYPES:
            return f"has dtype {param.dtype}, which no Triton kernel serves: use backend=None"
        return None

    def refuses_call(self, call: TensorCall) -> str | None:
        lr = call.options.lr
        if isinstance(lr, torch.Tensor) and not reads_lr(lr):
            return f"has an lr of dtype {lr.dtype} on {lr.device}: make it float32"
        reason = unserved(call.param, call.grad, call.plan)
        if reason is None or call.param.numel() == 0:  # nothing to step
            return None
        return f"has {reason}, which no Triton kernel serves: use backend=None"

    def steady_step(self, groups: Sequence[dict[str, Any]], state: State, scaling: Scaling) -> bool:
        steady, self.steady = self.steady, None  # for good where an exception leaves it
        if steady is not None and steady.step(groups, state, scaling):
            with self._forgetting(steady.engine.device):
                steady.refresh(self.shared_refresh)
            self.steady = steady
            return True
        if not self.engines and self.rest.steady_step(groups, state, scaling):
            return True
        # First calls read and write the state as well, ahead of any engine.
        self.follow_streams({param.device for group in groups for param in group["params"]})
        return False

    def after_step(
        self, groups: Sequence[dict[str, Any]], state: State, calls: Sequence[TensorCall]
    ) -> None:
        """Whether the step after a whole one of these calls can be a steady one."""
        if not self.engines:
            self.rest.after_step(groups, state, calls)
        everything = sum(len(group["params"]) for group in groups) == len(calls)
        if everything and len(self.engines) == 1 and all(map(self.serves, calls)):
            (engine,) = self.engines.values()
            same = len(engine.params) == len(calls) and all(
                call.param is param and call.state["calls"] > 1
                for call, param in zip(calls, engine.params, strict=True)
            )
            if same:
                from soap_fast.backends.triton.steady import Steady

                self.steady = Steady(groups, state, calls, engine, refreshed=self.has_refreshed)

    def forget_steadiness(self) -> None:
        """The next step is taken the whole way: a clock, or what else it reads, has changed."""
        self.steady = None

    def forget(self, devices: Iterable[torch.device] = ()) -> None:
        self.follow_streams(devices)
        self.steady = None
        self.rest.forget()
        self.engines.clear()
        self.products.clear()

    def check_whole(self) -> None:
        super().check_whole()
        for engine in self.engines.values():
            engine.underway.check_whole()
        self.follow_streams()

    def follow_streams(self, devices: Iterable[torch.device] = ()) -> None:
        """The current streams of these devices, and of all known ones, work on the state next."""
        for device in {*devices, *self.orders}:
            self._order_on(device).follow()

    @contextmanager
    def captured(self, calls: Sequence[TensorCall]) -> Iterator[None]:
        """What a step uploads is part of the graph, for nobody knows what was uploaded before it.

        Raises:
            RuntimeError: memory or kernels are not ready.
        """
        self.steady = None
        self.check_whole()
        by_device = self._served(calls)
        stepped = sum(call.param.numel() > 0 for call in calls)
        if calls[0].is_staggered and sum(map(len, by_device.values())) < stepped:
            raise RuntimeError(
                "a graph of staggered refreshes needs Triton kernels to step every tensor, and "
                "they do not step some of these (soap_fast.explain says why): use "
                "refresh_schedule='periodic'"
            )
        for device, chosen in by_device.items():
            engine = self.engines.get(device)
            if engine is None or not engine.holds(chosen):
                raise RuntimeError(
                    "these parameters have taken no step together yet, and a graph can only "
                    "repeat one: take a step outside of the capture first"
                )
            staggered = chosen[0].is_staggered
            if (
                staggered or any(call.due_after(call.state["calls"]) for call in chosen)
            ) and not engine.refresher.has_run:
                raise RuntimeError(
                    "the graph would contain a refresh, and the first refresh loads kernels, "
                    "which a capture cannot: take steps outside of the capture until one refreshes"
                )
            if staggered and not engine.staggered:
                raise RuntimeError(
                    "with a staggered schedule call optimizer.prepare_capture() before the capture"
                )
        for device in by_device:
            self.engines[device].forget_uploads()
        self.by_device_clock = calls[0].is_staggered
        try:
            yield
        finally:
            self.by_device_clock = False
            for device in by_device:
                self.engines[device].forget_uploads()
                # A capture that failed has done nothing.
                self.engines[device].underway.halfway = False

    def prepare_capture(self, calls: Sequence[TensorCall]) -> None:
        for device, chosen in self._served(calls).items():
            engine = self.engines.get(device)
            if chosen[0].is_staggered and engine is not None and engine.holds(chosen):
                engine.prepare_staggered([call for call in chosen if any(call.plan.factors)])

    def _route(
        self, calls: Sequence[TensorCall]
    ) -> tuple[dict[torch.device, list[int]], list[int]]:
        """Places of the calls that the engine of each device takes, and of those that none does."""
        ours, others = routed(calls, self.serves)
        by_device: dict[torch.device, list[int]] = {}
        for place in ours:
            by_device.setdefault(calls[place].param.device, []).append(place)
        return by_device, others

    def _served(self, calls: Sequence[TensorCall]) -> dict[torch.device, list[TensorCall]]:
        by_device, _ = self._route(calls)
        return {device: [calls[i] for i in places] for device, places in by_device.items()}

    def replayed(self) -> None:
        self.steady = None  # its count of calls until a refresh
        for engine in self.engines.values():
            engine.follow_stream()  # that of the replay
            engine.forget_uploads()  # the replay has uploaded its own

    def update(self, calls: Sequence[TensorCall]) -> list[torch.Tensor]:
        taken: dict[int, torch.Tensor] = {}
        by_device, others = self._route(calls)
        for device, places in by_device.items():
            flags = self._step(device, [calls[i] for i in places])
            taken.update(zip(places, flags, strict=True))
        flags = self.rest.update([calls[i] for i in others])
        taken.update(zip(others, flags, strict=True))
        return [taken[i] for i in range(len(calls))]

    def _step(self, device: torch.device, calls: list[TensorCall]) -> list[torch.Tensor]:
        engine = self._engine(device, calls)
        by_param = {id(call.param): call for call in calls}
        found = [by_param.get(id(param)) for param in engine.params]
        grads = [None if call is None else call.grad for call in found]
        options = [calls[0].options if call is None else call.options for call in found]
        present = [call for call in found if call is not None]
        taken = engine.flags()
        flags = {id(call.param): taken[engine.places[id(call.param)]] for call in present}
        counted = counting(present, [flags[id(call.param)] for call in present])
        with held:  # what was uploaded is known to be, and what was launched is counted
            engine.follow_stream(call.grad for call in present)
            engine.upload(grads, options)
            count_writes([call.param for call in present])
            engine.run(calls[0].scaling, engine.noting_taken(taken), *counted)
        return [flags[id(call.param)] for call in calls]

    def _engine(self, device: torch.device, calls: list[TensorCall]) -> Engine:
        """The engine of a device, made anew where tensors joined or their state moved."""
        from soap_fast.backends.triton.engine import Engine

        engine = self.engines.get(device)
        if engine is None or not engine.holds(calls):
            if engine is not None:
                engine.underway.check_whole()
            order = self._order_on(device)
            rounds = self.refresh_workspace, self.sharing.refreshes_alone
            engine = Engine(calls, self._launcher(device), self.input_precision, order, *rounds)
            engine.derive_operands()
            self.engines[device], self.steady = engine, None  # which is of the one before
        return engine

    def _order_on(self, device: torch.device) -> StreamOrder:
        return self.orders.setdefault(device, StreamOrder(device))

    def _launcher(self, device: torch.device) -> Launcher:
        from soap_fast.backends.triton.launch.launcher import TritonLauncher

        return self.launcher or TritonLauncher(_multiprocessors(device))

    def computes(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether the extension has first bases and refreshes of a dtype on a device."""
        return self.rest.computes(device, dtype)

    def eigh(self, factors: list[torch.Tensor], selections: list[torch.Tensor]) -> Pairs:
        return self.rest.eigh(factors, selections)

    def refresh_op(
        self,
        factors: list[torch.Tensor],
        bases: list[torch.Tensor],
        selections: list[torch.Tensor],
        allowed: list[torch.Tensor],
        tolerance: float,
    ) -> Refreshed:
        return self.rest.refresh_op(factors, bases, selections, allowed, tolerance)

    def _refresh_by_extension(
        self, factors: list[torch.Tensor], *others: Any, **options: Any
    ) -> Refreshed:
        """Of stacks on one device; the products on CUDA by our kernel."""
        device = factors[0].device
        if device.type != "cuda" or self.name_on(device) != self.name:
            return refresh_native(factors, *others, **options)
        from soap_fast.backends.triton.products import KeptProducts, products_by

        kept = self.products.setdefault((device, current(device)), KeptProducts())
        with products_by(self._launcher(device), self.input_precision, kept=kept):
            return refresh_native(factors, *others, **options)

    def carry(
        self, calls: Sequence[TensorCall], taken: Sequence[torch.Tensor], changes: Changes
    ) -> None:
        """Of tensors that no engine steps."""
        self.rest.carry(calls, taken, changes)

    def make_up(self, calls: Sequence[TensorCall]) -> None:
        for device, chosen in self._served(calls).items():
            self._engine(device, chosen)  # of all that step now, whoever owes something
        owing = [(call, call.owed.taken) for call in calls if call.owed is not None]
        self._refresh([call for call, _ in owing], [flag for _, flag in owing], by_last_step=False)

    def refresh(self, calls: Sequence[TensorCall], taken: Sequence[torch.Tensor]) -> None:
        if self.by_device_clock:
            for each in self.engines.values():
                each.refresh_staggered(self.shared_refresh)
            return
        self.has_refreshed = bool(calls)
        self._refresh(calls, taken, by_last_step=True)

    def _refresh(
        self, calls: Sequence[TensorCall], taken: Sequence[torch.Tensor], *, by_last_step: bool
    ) -> None:
        """Refresh by the engines what they step; they know themselves what their last step took."""
        by_device, others = self._route(calls)
        for device, places in by_device.items():
            chosen, flags = [calls[i] for i in places], [taken[i] for i in places]
            with self._forgetting(device):
                self.engines[device].refresh(
                    chosen, self.shared_refresh, None if by_last_step else flags
                )
        super().refresh([calls[i] for i in others], [taken[i] for i in others])
        for index in others:  # an engine that has stepped it at other times derives from its bases
            param = calls[index].param
            engine = self.engines.get(param.device)
            if engine is not None and id(param) in engine.places:
                del self.engines[param.device]

    @contextmanager
    def _forgetting(self, device: torch.device) -> Iterator[None]:
        """A refresh that fails may leave carrying matrices in the place of an engine's operands."""
        try:
            yield
        except BaseException:
            del self.engines[device]
            self.products.clear()
            raise


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
