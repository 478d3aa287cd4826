"""Whole parameters shared among processes: each is stepped by one, which alone has its state.

A rank steps its own parameters as a process of its own would, and sends them to the others. So a
step costs, and its state takes, a part of the whole on each rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parameter import is_lazy

from soap_fast.distributed.agreement import EXCHANGE, Point, gradients, points_of_all, unable
from soap_fast.distributed.gathering import gathered
from soap_fast.distributed.messages import Form, Packing, Sent, digest
from soap_fast.distributed.partition import dealt, loads_of
from soap_fast.distributed.spread import check_alike, local_of, spread_of
from soap_fast.distributed.together import Entries, Groups, State, Step, Steps, Together
from soap_fast.distributed.wholes import Moves, Wholes
from soap_fast.names import label_of
from soap_fast.options import PlanOptions, plan_options
from soap_fast.step.call import state_dtype
from soap_fast.step.checks import check_memory, is_dtensor
from soap_fast.step.plan import TensorPlan, plan_tensor

SPREAD = (
    "the state lies with the ranks that own its parameters (sharding='state'): call "
    "optimizer.consolidate_state_dict() on every rank first, after the last step"
)


class Owning(Together):
    """This process's parameters, and the exchange of all."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__(group)
        self._owners: dict[Tensor, int] = {}
        self._sizes: dict[Tensor, int] = {}  # bytes of their state
        self._gathered: dict[Any, dict[str, Any]] | None = None
        self._always = False
        self._wholes = Wholes(group)

    def take(self, step: Step, groups: Groups, state: Entries, backend: Steps) -> None:
        """Step this rank's parameters, and send them to the others, whatever the step raised.

        Raises:
            RuntimeError: ranks are at different steps, or with different gradients, or one cannot
                take part; nothing is written. It is seen where they can meet on the host.
        """
        self._gathered = None
        error: Exception | None = None
        try:
            self.deal(groups, state)
        except Exception as found:  # whatever it is, all ranks are told, and then all raise
            error = found
        for param in self._owners if self.ranks > 1 else ():
            state.setdefault(param, {})  # keys are the same on every rank
        self.enter(groups, state, backend)
        if error is None:
            try:
                moves, messages = self._prepare()
            except Exception as found:  # whatever it is, all ranks are told and raise, as above
                error = found
        self._check_alike(error)
        self._wholes.gather(moves)
        try:
            with self._standing_in(groups, state) as (own_groups, own_state):
                step(own_groups, own_state)
        except Exception as found:  # raised below, once the others have what they wait for
            error = found
        try:
            self._wholes.scatter(moves)
            self._exchange(messages)
        finally:
            if error is not None:
                raise error

    def _prepare(self) -> tuple[Moves, list[Message]]:
        """What moves in this step, and memory for all of it.

        Raises:
            ValueError: a gradient is spread in another way than its parameter.
        """
        params = [param for param in self._params() if self._moves(param)]
        spread = [param for param in params if is_dtensor(param)]
        for param in params:
            with named(self.groups, param):
                check_memory(local_of(param))
                if is_dtensor(param) and param.grad is not None:
                    check_alike(param)
        moves = self._wholes.prepare(spread)
        return moves, self._messages([param for param in params if not is_dtensor(param)])

    def _moves(self, param: Tensor) -> bool:
        """Whether a parameter is sent in this step.

        Where ranks cannot compare their gradients, it is whatever may have one: sizes of messages
        do not depend on which have, and its owner alone decides whether it is stepped.
        """
        return param.grad is not None or (not self.by_host and param.requires_grad)

    @contextmanager
    def _standing_in(self, groups: Groups, state: Entries) -> Iterator[tuple[Groups, Entries]]:
        """Groups and state with whole parameters in place of those that are gathered."""
        pairs = self._wholes.standing_in
        if not pairs:
            yield groups, state
            return
        place = self._wholes.place
        own = [{**group, "params": list(map(place, group["params"]))} for group in groups]
        entries = {place(key): entry for key, entry in state.items()}
        try:
            yield own, entries
        finally:
            params = {whole: param for param, whole in pairs.items()}
            state.update({params.get(key, key): entry for key, entry in entries.items()})

    def owns(self, param: Tensor) -> bool:
        return self._owners.get(param, self.rank) == self.rank  # others stand in for its own

    def gathered(self, param: Tensor) -> Tensor:
        if is_dtensor(param):
            spread_of(param, self.group)
        return local_of(param)

    def own(self, groups: Groups, state: dict[Any, Any]) -> dict[Any, Any]:
        """Of a whole state this rank's entries; empty ones for the parameters of others."""
        self.deal(groups, state)
        self._gathered = None
        foreign: Entries = {
            param: {} for param in state if self._owners.get(param, self.rank) != self.rank
        }
        return {**state, **foreign}

    def state_of_all(self) -> State:
        """Each rank has entries of its own."""
        return {}

    def deal(self, groups: Groups, state: Mapping[Any, Any]) -> None:
        """Give parameters that have no owner one, by the bytes of their state.

        Those that are in no group and have no state any more are forgotten; every rank has a key
        for each parameter in its state.
        """
        listed: dict[Tensor, int] = {}
        for group in groups:
            options = plan_options(group)
            for param in group["params"]:
                if not is_lazy(param):
                    listed[param] = self._sizes.get(param) or _size_of(param, options)
        if any(param not in listed for param in self._owners):
            for param in [p for p in self._owners if p not in listed and p not in state]:
                del self._owners[param], self._sizes[param]
                self._wholes.remove(param)
        new = [param for param in listed if param not in self._owners]
        sizes = [listed[param] for param in new]
        loads = loads_of([*self._sizes.values()], [*self._owners.values()], self.ranks)
        owners = dealt(sizes, loads)
        try:
            for param, owner in zip(new, owners, strict=True):
                with named(groups, param):
                    self._wholes.add(param, owner)
        except BaseException:  # Ctrl-C too: half of a deal kept would part this rank from others
            for param in new:
                self._wholes.remove(param)
            raise
        self._owners.update(zip(new, owners, strict=True))
        self._sizes.update(zip(new, sizes, strict=True))

    def _params(self) -> list[Tensor]:
        return list(dict.fromkeys(p for group in self.groups for p in group["params"]))

    def _messages(self, params: Sequence[Tensor]) -> list[Message]:
        """One from each rank that owns some of these, per device."""
        found: list[Message] = []
        stepped = [p for p in params if not is_lazy(p) and p.numel()] if self.ranks > 1 else []
        for device in dict.fromkeys(param.device for param in stepped):
            for owner in range(self.ranks):
                own = [p for p in stepped if p.device == device and self._owners[p] == owner]
                if own:
                    packing = Packing([Form(tuple(p.shape), p.dtype) for p in own])
                    found.append(Message(own, Sent(owner, packing, packing.memory(device))))
        return found

    def _exchange(self, messages: Sequence[Message]) -> None:
        """Every rank's parameters, of these, to all of them."""
        for params, sent in messages:
            if sent.owner == self.rank:
                torch._foreach_copy_(sent.tensors(), params)
            sent.start(self.group)
        for params, sent in messages:
            found = sent.received()
            if sent.owner != self.rank:
                torch._foreach_copy_(params, found)
        if messages:
            self.traffic = len(messages), sum(sent.bytes for _, sent in messages)

    def _check_alike(self, error: Exception | None) -> None:
        """That ranks are at the same step, with the same gradients, and all can take it.

        Where they meet on no host that would wait for the device. There an error is raised alone.

        Args:
            error: why this one cannot.
        """
        if self.ranks > 1 and self.by_host:
            params = self._params()
            numbers = [digest(gradients(self.groups))]
            point = Point(EXCHANGE, self.steps, error is not None, numbers)
            device = params[0].device if params else torch.device("cpu")
            found = points_of_all(point, self.group, device)
            failed = unable(found)
            if failed and error is None:
                raise RuntimeError(
                    f"ranks {failed} could not take a step: what they raise says why"
                )
            for rank, other in enumerate(() if failed else found):
                if other.numbers != found[0].numbers:
                    raise RuntimeError(
                        f"rank {rank} has gradients of other parameters than rank 0, or of other "
                        "dtypes: they must be the same on every rank"
                    )
        if error is not None:
            raise error

    def gather(self, state: State, *, always: bool = False) -> None:
        """Every rank's entries to all of them, into the host's memory.

        Args:
            always: `whole_state` gathers from now on, and every rank must call it.
        """
        self._always |= always
        self._gathered = gathered(state, self._owners, self.group)

    def whole_state(self, state: State) -> State:
        """The state of all ranks.

        Raises:
            RuntimeError: it has not been gathered.
        """
        if self.ranks == 1:
            return state
        if self._gathered is None and self._always:
            self.gather(state)
        if self._gathered is None:
            raise RuntimeError(SPREAD)
        return self._gathered

    def check_whole(self) -> None:
        """
        Raises:
            RuntimeError: other ranks have a part of the state.
        """
        if self.ranks > 1:
            raise RuntimeError(
                "the state lies with the ranks that own its parameters (sharding='state'): load "
                "its state_dict into an optimizer of sharding='none' for this"
            )


class Message(NamedTuple):
    """A rank's own parameters, and what carries them to the others."""

    params: list[Tensor]
    sent: Sent


@contextmanager
def named(groups: Groups, param: Tensor) -> Iterator[None]:
    """Put a parameter's name in front of what is refused of it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{label_of(groups, param)} {error}") from None


def _size_of(param: Tensor, options: PlanOptions) -> int:
    return bytes_of_state(plan_tensor(tuple(param.shape), options), state_dtype(param))


def bytes_of_state(plan: TensorPlan, dtype: torch.dtype) -> int:
    """Of a tensor's moments, factors and bases."""
    squares = sum(size**2 for size in plan.factors if size is not None)
    return 2 * (prod(plan.shape) + squares) * dtype.itemsize
