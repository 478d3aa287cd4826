"""Whole tensors in place of parameters that are spread: with their owners, for the time of a step.

Every rank sends each owner its part of the owner's gradients and parameters. The owner steps whole
tensors as if there were no others, and sends every rank its part of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from soap_fast.distributed.messages import Form, Swap
from soap_fast.distributed.spread import Spread, local_of, spread_of
from soap_fast.step.checks import is_dtensor


class Wholes:
    """The spread parameters of an optimizer, and whole ones of this rank's own."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        self.spread: dict[Tensor, Spread] = {}
        self.owners: dict[Tensor, int] = {}
        self.standing_in: dict[Tensor, Tensor] = {}  # for this rank's own
        self.kinds: dict[Tensor, tuple[torch.dtype, torch.device]] = {}

    def add(self, param: Tensor, owner: int) -> None:
        """A parameter that a rank owns, if it is spread.

        Raises:
            ValueError: in a way that cannot be gathered.
        """
        if not is_dtensor(param):
            return
        self.spread[param], self.owners[param] = spread_of(param, self.group), owner
        local = local_of(param)
        self.kinds[param] = local.dtype, local.device
        if owner == self.rank:
            whole = torch.empty(param.shape, dtype=local.dtype, device=local.device)
            self.standing_in[param] = torch.nn.Parameter(whole, param.requires_grad)

    def remove(self, param: Tensor) -> None:
        """A parameter is stepped no more."""
        for table in (self.spread, self.owners, self.kinds, self.standing_in):
            table.pop(param, None)

    def place(self, param: Tensor) -> Tensor:
        """What stands in for a parameter here: of its owner's, a whole one."""
        return self.standing_in.get(param, param)

    def prepare(self, params: Sequence[Tensor]) -> Moves:
        """All memory that moving these parameters takes; nothing is sent.

        Args:
            params: spread ones, on every rank the same. Where one has no gradient, NaN is sent in
                its place.

        Raises:
            ValueError: one was of another dtype or device when it was added.
        """
        for param in params:
            self._check_kind(param)
        by_device = _by_device(params).items()
        return Moves(
            list(params),
            [self._to_owners(some, device) for device, some in by_device],
            [self._from_owners(some, device) for device, some in by_device],
        )

    def _to_owners(self, params: Sequence[Tensor], device: torch.device) -> Move:
        """Values and gradients."""
        move = Move(self.ranks)
        for param in params:
            owner, spread = self.owners[param], self.spread[param]
            value, grad = local_of(param), _grad_of(param)
            if self.rank in spread.senders[owner]:
                move.sent[owner] += (value, grad)
            if owner != self.rank:
                continue
            whole = self.standing_in[param]
            whole.grad = torch.empty_like(whole, dtype=grad.dtype)
            for rank in spread.senders[owner]:
                move.come[rank] += (spread.of(whole.data, rank), spread.of(whole.grad, rank))
        return move.prepared(self.group, device)

    def _from_owners(self, params: Sequence[Tensor], device: torch.device) -> Move:
        """Values, to whoever has a part of them."""
        move = Move(self.ranks)
        for param in params:
            owner, spread = self.owners[param], self.spread[param]
            move.come[owner].append(local_of(param))
            if owner == self.rank:
                for rank, parts in enumerate(move.sent):
                    parts.append(spread.of(self.standing_in[param].data, rank))
        return move.prepared(self.group, device)

    def gather(self, moves: Moves) -> None:
        """Values and gradients to their owners. Who has no gradient itself, steps no whole one."""
        for move in moves.to_owners:
            move.run()
        for param in moves.params:
            if param.grad is None and param in self.standing_in:
                self.standing_in[param].grad = None

    def _check_kind(self, param: Tensor) -> None:
        local, (dtype, device) = local_of(param), self.kinds[param]
        if (local.dtype, local.device) != (dtype, device):
            raise ValueError(
                f"a parameter of shape {tuple(param.shape)} is {local.dtype} on {local.device} and "
                f"was {dtype} on {device}: build the optimizer after the model is converted"
            )

    def scatter(self, moves: Moves) -> None:
        """Values, from their owners to whoever has a part of them."""
        for param in moves.params:
            if param in self.standing_in:
                self.standing_in[param].grad = None
        for move in moves.from_owners:
            move.run()
        if moves.params:
            torch.autograd.graph.increment_version(moves.params)  # parts were written, no wrapper


class Move:
    """What goes to each rank, and the places of what comes from each; in one collective."""

    def __init__(self, ranks: int) -> None:
        self.sent: list[list[Tensor]] = [[] for _ in range(ranks)]
        self.come: list[list[Tensor]] = [[] for _ in range(ranks)]

    def prepared(self, group: dist.ProcessGroup, device: torch.device) -> Move:
        """With the memory of its messages."""
        self.swap = Swap(_forms(self.sent), _forms(self.come), group, device)
        return self

    def run(self) -> None:
        _copy(self.swap.outgoing, self.sent)
        self.swap.run()
        _copy(self.come, self.swap.incoming)


class Moves(NamedTuple):
    """There and back again, of some parameters."""

    params: list[Tensor]
    to_owners: list[Move]
    from_owners: list[Move]


def _forms(tensors: Sequence[Sequence[Tensor]]) -> list[list[Form]]:
    return [[Form(tuple(t.shape), t.dtype) for t in some] for some in tensors]


def _copy(places: Sequence[Sequence[Tensor]], tensors: Sequence[Sequence[Tensor]]) -> None:
    for there, some in zip(places, tensors, strict=True):
        if there:
            torch._foreach_copy_(list(there), list(some))


def _grad_of(param: Tensor) -> Tensor:
    if param.grad is None:
        return torch.full_like(local_of(param), torch.nan)
    return local_of(param.grad)


def _by_device(params: Sequence[Tensor]) -> Mapping[torch.device, list[Tensor]]:
    found: dict[torch.device, list[Tensor]] = {}
    for param in params:
        found.setdefault(local_of(param).device, []).append(param)
    return found
