"""Factors dealt to the ranks of a group, and what each made of its own brought back to all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from soap_fast.backends.triton.launch.upload import upload
from soap_fast.distributed.messages import Form, Sent
from soap_fast.distributed.partition import dealt


class StackForm(NamedTuple):
    """What all ranks know of some factors of one size.

    Attributes:
        number, size: k factors of [d, d].
        dtype, device: of each.
    """

    number: int
    size: int
    dtype: torch.dtype
    device: torch.device


class Field(NamedTuple):
    """What is told of each factor: an order [d], a basis [d, d], an outcome [].

    Attributes:
        modes: how many sizes d its shape has.
        dtype: None where it is the factor's.
    """

    modes: int
    dtype: torch.dtype | None = None

    def form(self, stack: StackForm, count: int) -> Form:
        return Form((count,) + (stack.size,) * self.modes, self.dtype or stack.dtype)


ORDER, BASIS, OUTCOME, SHARE = Field(1, torch.int64), Field(2), Field(0, torch.int64), Field(0)
TOLD = (ORDER, BASIS, OUTCOME, SHARE, BASIS)  # of a refresh: as in `Refreshed`, and the new basis
STATUS = Form((1,), torch.int64)  # 0, or 1 where the owner's computation raised

Parts = dict[int, Tensor]  # by number of the stack, what one rank has of it


class Deal:
    """Which rank computes which factors of some stacks, by the cube of their size.

    Attributes:
        positions: per rank and stack the factors that are its own, ascending.
    """

    def __init__(self, stacks: Sequence[StackForm], ranks: int) -> None:
        self.stacks = stacks
        places = [(s, i) for s, stack in enumerate(stacks) for i in range(stack.number)]
        owners = dealt([stacks[s].size ** 3 for s, _ in places], [0] * ranks)
        self.positions: list[dict[int, list[int]]] = [{} for _ in range(ranks)]
        for (stack, position), owner in zip(places, owners, strict=True):
            self.positions[owner].setdefault(stack, []).append(position)

    def of(self, rank: int) -> dict[int, Tensor]:
        """A rank's positions, [own] int64 on the device of each stack."""
        return {
            stack: upload(torch.tensor(chosen), self.stacks[stack].device)
            for stack, chosen in self.positions[rank].items()
        }

    def whole(self, stack: int, parts: dict[int, Tensor]) -> Tensor:  # [k, ..]
        """What the ranks have of a stack, by rank, in the order of the stack."""
        come = [i for rank in sorted(parts) for i in self.positions[rank][stack]]
        together = torch.cat([parts[rank] for rank in sorted(parts)])
        if come == sorted(come):
            return together
        places = torch.tensor(come).argsort()
        return together.index_select(0, upload(places, self.stacks[stack].device))


class Exchanged(NamedTuple):
    """What came of an exchange.

    Attributes:
        columns: per field, per stack, [k, ..] of all factors.
        statuses: [1] int64 of each message.
        messages, bytes: that were sent, by all ranks together.
    """

    columns: list[list[Tensor]]
    statuses: list[Tensor]
    messages: int
    bytes: int


def exchange(
    group: dist.ProcessGroup,
    deal: Deal,
    fields: Sequence[Field],
    mine: Sequence[Parts],
    *,
    failed: bool = False,
) -> Exchanged:
    """Every rank's results to all of them, one message from each that has some, per device.

    Nothing is computed from what is sent, so all ranks end with the bits of the owner.

    Args:
        fields: that are told of each factor.
        mine: per field, what this rank has of each stack that it has a part of.
        failed: whether this rank's computation raised; its parts then say that nothing changes.
    """
    rank = dist.get_rank(group)
    sent = []
    for device in dict.fromkeys(stack.device for stack in deal.stacks):
        for owner, positions in enumerate(deal.positions):
            stacks = [s for s in positions if deal.stacks[s].device == device]
            if not stacks:
                continue
            forms = [f.form(deal.stacks[s], len(positions[s])) for f in fields for s in stacks]
            message = Sent(owner, [STATUS, *forms], device)
            tensors = None
            if owner == rank:
                status = torch.full(STATUS.shape, int(failed), dtype=STATUS.dtype, device=device)
                tensors = [status, *(parts[s] for parts in mine for s in stacks)]
            message.start(group, tensors)
            sent.append((owner, stacks, message))

    found: list[list[dict[int, Tensor]]] = [[{} for _ in deal.stacks] for _ in fields]
    statuses = []
    for owner, stacks, message in sent:
        status, *tensors = message.received()
        statuses.append(status)
        places = [column[s] for column in found for s in stacks]
        for place, tensor in zip(places, tensors, strict=True):
            place[owner] = tensor
    columns = [[deal.whole(s, parts) for s, parts in enumerate(column)] for column in found]
    return Exchanged(columns, statuses, len(sent), sum(message.bytes for *_, message in sent))
