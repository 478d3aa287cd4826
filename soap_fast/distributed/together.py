"""Who takes part in the work of an optimizer: this process alone, or the ranks of a group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from soap_fast.distributed.agreement import (
    FIRST_STEP,
    Point,
    check_alike,
    points_of_all,
    subjects,
)
from soap_fast.distributed.messages import meets_on_host
from soap_fast.interrupts import held
from soap_fast.step import capture
from soap_fast.step.call import TensorCall
from soap_fast.step.eigh import Pairs
from soap_fast.step.refresh import Refreshed
from soap_fast.step.state import Owner

EighOp = Callable[[list[Tensor], list[Tensor]], Pairs]
RefreshOp = Callable[..., Refreshed]
Groups = Sequence[dict[str, Any]]
State = Mapping[torch.Tensor, dict[str, Any]]
Entries = dict[torch.Tensor, dict[str, Any]]
BeginOp = Callable[..., Entries]
Step = Callable[[Groups, Entries], None]  # of the parameters of these groups, with this state


class Steps(Protocol):
    """What is asked of the backend that takes the steps."""

    def alike_on(self, device: torch.device) -> str:
        """What of it must be the same on all ranks."""

    def make_up(self, calls: Sequence[TensorCall]) -> None:
        """The refreshes that these calls owe."""

    def forget(self, devices: Iterable[torch.device] = ()) -> None:
        """Nothing known of the state holds any more."""


class Alone:
    """The work of an optimizer that shares none of it."""

    held: AbstractContextManager[None] = nullcontext()  # around a step
    refreshes_alone = True  # so that nobody else has to do it in the same rounds

    def take(self, step: Step, groups: Groups, state: Entries, backend: Steps) -> None:
        """Take one step of this optimizer."""
        step(groups, state)

    def finish(self, backend: Steps) -> None:
        """Ahead of reading the state: what the last step left to come is waited for and written."""

    def forget(self) -> None:
        """Parameters, options or state have changed."""

    def gathered(self, param: Tensor) -> Tensor:
        """Of a parameter that is gathered for its step, what this process has of it.

        Raises:
            ValueError: it would have to be and cannot.
        """
        return param

    def owns(self, param: Tensor) -> bool:
        """Whether this process steps a parameter."""
        return True

    def own(self, groups: Groups, state: dict[Any, Any]) -> dict[Any, Any]:
        """What of a state that is loaded this process keeps."""
        return state

    def gather(self, state: State, *, always: bool = False) -> None:
        """Make the state of all processes known to each, now or whenever it is asked for."""

    def whole_state(self, state: State) -> State:
        """The state of all processes."""
        return state

    def check_whole(self) -> None:
        """Refuse what needs the state of all parameters."""

    def check_no_graph(self) -> None:
        """Refuse that a step is captured in a CUDA graph."""

    def make_up(self, calls: Sequence[TensorCall], backend: Steps) -> None:
        """Ahead of the update of these calls: the refreshes that steps before still owe."""
        backend.make_up(calls)

    def begin(self, op: BeginOp, *arguments: Any) -> Entries:
        """What `op` makes of tensors on their first calls: entries, not part of the state yet."""
        return op(*arguments)

    def first_bases(
        self,
        op: EighOp,
        factors: list[Tensor],
        selections: list[Tensor],
        owners: Sequence[Sequence[Owner]],
    ) -> list[Tensor]:  # [k, d, d] per stack
        return op(factors, selections)[1]

    def refresh(self, op: RefreshOp, *arguments: Any) -> Refreshed | None:
        """None where it comes later, and stays owed until then."""
        return op(*arguments)


ALONE = Alone()


class Together(Alone):
    """The work of an optimizer among several processes.

    Attributes:
        group: the processes; `rank` is this one's place among its `ranks`.
        by_host: whether they can meet without waiting for a device.
        overlap: whether what is exchanged may come after the step.
        traffic: of the last exchange, messages and bytes of all ranks together.
    """

    overlap = False

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        self.by_host = meets_on_host(group)
        self.traffic = (0, 0)
        # A handler of a signal that raised in the middle of a step would leave the others waiting.
        self.held = held
        self.known = False  # that all ranks are built alike
        self.steps = 0
        self.groups: Groups = ()
        self.state: State = {}

    def take(self, step: Step, groups: Groups, state: Entries, backend: Steps) -> None:
        self.enter(groups, state, backend)
        step(groups, state)

    def enter(self, groups: Groups, state: Entries, backend: Steps) -> None:
        """A step begins.

        Raises:
            ValueError: ranks are not alike; nothing is written.
            RuntimeError: the step is captured in a CUDA graph.
        """
        if capture.underway():
            self.check_no_graph()
        self.steps += 1
        self.groups, self.state = groups, state
        self._greet(backend)

    def forget(self) -> None:
        """Ranks compare at their next step once more."""
        self.known = False

    def _greet(self, backend: Steps) -> None:
        """At the first step: see that all ranks have been built and loaded alike.

        Raises:
            ValueError: they are not; nothing is written.
        """
        if self.known:
            return
        params = [param for group in self.groups for param in group["params"]]
        device = params[0].device if params else torch.device("cpu")
        devices = {param.device for param in params}
        backends = sorted(f"{one.type}: {backend.alike_on(one)}" for one in devices)
        numbers = subjects(self.groups, self.state_of_all(), backends, self.overlap)
        point = Point(FIRST_STEP, self.steps, False, numbers)
        points = points_of_all(point, self.group, device)
        check_alike(points)
        self.known, self.steps = True, max(point.step for point in points)

    def state_of_all(self) -> State:
        """What of the state every rank has."""
        return self.state

    def check_no_graph(self) -> None:
        """
        Raises:
            RuntimeError: there are others to share with.
        """
        if self.ranks > 1:
            raise RuntimeError(
                "a CUDA graph repeats no exchange between processes: take sharding='none', or "
                "steps outside of graphs"
            )
