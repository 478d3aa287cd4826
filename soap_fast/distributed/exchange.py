"""Factors dealt to the ranks of a group, and what each made of its own brought back to all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from soap_fast.distributed.messages import Form, Packing, Sent, lasting
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
NEW = len(TOLD) - 1  # the place of the new basis among these
STATUS = Form((1,), torch.int64)  # 0, or 1 where the owner's computation raised

Parts = dict[int, Tensor]  # by number of the stack, what one rank has of it
Column = list[Any]  # per stack [k, ..], or k of [..]


class Deal:
    """Which rank computes which factors of some stacks, by the cube of their size.

    Factors of a stack cost alike, so that each rank can have neighbours in it: what comes back is
    in order, and what a rank computes is a view.

    Attributes:
        positions: per rank and stack the factors that are its own.
    """

    def __init__(self, stacks: Sequence[StackForm], ranks: int) -> None:
        self.stacks = stacks
        places = [s for s, stack in enumerate(stacks) for _ in range(stack.number)]
        owners = dealt([stacks[s].size ** 3 for s in places], [0] * ranks)
        counts = Counter(zip(places, owners, strict=True))
        self.positions: list[dict[int, range]] = [{} for _ in range(ranks)]
        for stack in range(len(stacks)):
            start = 0
            for rank in range(ranks):
                count = counts[stack, rank]
                if count:
                    self.positions[rank][stack] = range(start, start + count)
                start += count

    @property
    def work(self) -> list[tuple[Any, ...]]:
        """What of it must be the same on every rank."""
        return [(s.number, s.size, str(s.dtype), s.device.type) for s in self.stacks]

    def of(self, rank: int, stack: int) -> slice:
        """A rank's part of a stack."""
        positions = self.positions[rank][stack]
        return slice(positions.start, positions.stop)


class Shares(NamedTuple):
    """Who has computed which factors of some stacks, and whether that has raised.

    Attributes:
        deal: of these stacks.
        senders: of each message the rank, and the stacks of which it tells.
        statuses: [1] int64 of each message, once it has come; 0, or 1 where its rank has failed.
    """

    deal: Deal
    senders: list[tuple[int, list[int]]]
    statuses: list[Tensor]

    def failed(self) -> Iterator[tuple[int, int]]:
        """Stack and place of each factor whose rank has failed; waits for the device."""
        for (rank, stacks), status in zip(self.senders, self.statuses, strict=True):
            if bool(status):
                for stack in stacks:
                    yield from ((stack, place) for place in self.deal.positions[rank][stack])


class Exchange:
    """Every rank's results to all of them, one message from each that has some, per device.

    Nothing is computed from what is sent, so all ranks end with the bits of the owner.

    Attributes:
        own: per field this rank's part of each stack, views of its messages, to be written.
        messages, bytes: that are sent, by all ranks together.
        shares: who has computed what, without messages.
    """

    def __init__(
        self, group: dist.ProcessGroup, deal: Deal, fields: Sequence[Field], room: Room
    ) -> None:
        """
        Args:
            fields: that are told of each factor.
            room: memory of messages.
        """
        self.group, self.deal, self.fields = group, deal, fields
        self.sent: list[tuple[list[int], Sent]] = []  # which stacks, and of them
        self.own: list[Parts] = [{} for _ in fields]
        self.own_statuses: list[Tensor] = []
        rank = dist.get_rank(group)
        for device in dict.fromkeys(stack.device for stack in deal.stacks):
            for owner, positions in enumerate(deal.positions):
                stacks = [s for s in positions if deal.stacks[s].device == device]
                if not stacks:
                    continue
                forms = [f.form(deal.stacks[s], len(positions[s])) for f in fields for s in stacks]
                packing = Packing([STATUS, *forms])
                message = Sent(owner, packing, room.of(owner, packing.bytes, device))
                self.sent.append((stacks, message))
                if owner == rank:
                    status, *parts = message.tensors()
                    self.own_statuses.append(status)
                    self._put(self.own, stacks, parts)
        self.messages = len(self.sent)
        # Not views of messages, whose memory the next exchange takes.
        with lasting():
            statuses = [
                torch.zeros(STATUS.shape, dtype=STATUS.dtype, device=message.message.device)
                for _, message in self.sent
            ]
        senders = [(message.owner, stacks) for stacks, message in self.sent]
        self.shares = Shares(deal, senders, statuses)
        self.bytes = sum(message.bytes for _, message in self.sent)

    def mark(self, *, failed: bool) -> None:
        """Ahead of sending: whether this rank's computation raised; its parts then say nothing
        changes.
        """
        for status in self.own_statuses:
            status.fill_(int(failed))

    def run(self) -> None:
        """Send and receive."""
        self.start()
        self.receive()

    def start(self) -> None:
        """Send, and have what others send received; does not wait."""
        for _, message in self.sent:
            message.start(self.group)

    def receive(self) -> None:
        """Wait until all of it has come."""
        self.parts: list[list[Parts]] = []  # per rank that sent and per field
        for (stacks, message), kept in zip(self.sent, self.shares.statuses, strict=True):
            status, *parts = message.received()
            kept.copy_(status)
            if kept.is_cuda:
                kept.record_stream(torch.cuda.current_stream(kept.device))
            self.parts.append([{} for _ in self.fields])
            self._put(self.parts[-1], stacks, parts)

    def _put(self, columns: Sequence[Parts], stacks: Sequence[int], parts: list[Tensor]) -> None:
        for column in columns:
            column.update(zip(stacks, parts[: len(stacks)], strict=True))
            parts = parts[len(stacks) :]

    def of(self, field: int, stack: int) -> list[Tensor]:
        """What came of a stack, in order; views of messages."""
        return [rank[field][stack] for rank in self.parts if stack in rank[field]]

    def together(self, field: int) -> list[Tensor]:  # [k, ..] per stack
        """What came, in memory of its own."""
        return [torch.cat(self.of(field, stack)) for stack in range(len(self.deal.stacks))]

    def apart(self, field: int) -> Column:
        """On the CPU k views for each stack, which hold until the next exchange; else `together`.

        New memory costs more there than what is copied into it.
        """
        return [
            [one for part in self.of(field, s) for one in part.unbind()]
            if stack.device.type == "cpu"
            else torch.cat(self.of(field, s))
            for s, stack in enumerate(self.deal.stacks)
        ]


class Room:
    """Memory of messages, which on the CPU is kept: new memory costs five times its copying there.

    On a GPU torch's allocator keeps it, and knows which streams use it.
    """

    def __init__(self) -> None:
        self.kept: dict[int, Tensor] = {}

    def of(self, owner: int, size: int, device: torch.device) -> Tensor:  # [size] uint8
        """For what one rank sends."""
        with lasting():
            if device.type != "cpu":
                return torch.empty(size, dtype=torch.uint8, device=device)
            kept = self.kept.get(owner)
            if kept is None or len(kept) < size:
                self.kept[owner] = kept = torch.empty(size, dtype=torch.uint8, device=device)
        return kept[:size]
