"""Which tensors are refreshed together, and what memory of a step their refresh uses again.

Between steps nothing in the planes is needed. So the operator leaves there the carrying matrices,
which `derive` reads before any launch writes a plane, and works behind them. Where all operands are
derived anew once the refresh is over, it works in their place too, whatever round it is in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import NamedTuple

import torch

from soap_fast.backends.triton.ops.tiles import FLOAT
from soap_fast.step import capture
from soap_fast.step.layout import padded
from soap_fast.step.refresh import Lent

# Bytes of the operator's workspace for the tensors of a round. A round has launches of its own that
# carry moments. The operator takes at most OPERATOR at a time (csrc/refresh/rounds.h): factors for
# two times that, less what such rounds leave empty, make hardly more launches of it than all
# factors together.
OPERATOR = 1 << 30
WORKSPACE = 2 * OPERATOR * 15 // 16
ALIGNED = 64  # elements, 256 bytes as torch's allocator has them
HOUSEHOLDER = 32  # sizes up to this have no workspace (csrc/refresh/factor.h)
# Where what there is holds less than a round of the operator's, the operator may have up to twice
# as many, of some 25 launches each. Below this many bytes that is not worth it.
CUT_FROM = 256 << 20


def rounds_of(sizes: Mapping[int, Sequence[int]], most: int) -> list[list[int]]:
    """The tensors of each round, those with the largest factors first, as the operator has them.

    All factors of a tensor are refreshed together. Within a round tensors keep their order, so that
    the factors of a stack can be all of it, in its order.

    Args:
        sizes: of the factors that are due, by a tensor's number.
        most: bytes of workspace for a round; one tensor alone may need more.
    """
    rounds: list[list[int]] = []
    left = 0
    for number in sorted(sizes, key=lambda number: -max(sizes[number], default=0)):
        needed = workspace_bytes(sizes[number])
        if not rounds or needed > left:
            rounds.append([])
            left = most
        rounds[-1].append(number)
        left -= needed
    return [sorted(found) for found in rounds]


def workspace_bytes(sizes: Iterable[int]) -> int:
    """What the operator needs for factors of these sizes.

    Four matrices each. Sizes are rounded up to a multiple of 4; there the carrying matrix is one
    more (csrc/refresh/phases/table.h).
    """
    return FLOAT * sum((4 if d % 4 == 0 else 5) * padded(d) ** 2 for d in sizes)


def operator_rounds(sizes: Iterable[int], most: int) -> list[int]:
    """Bytes of workspace of each of the operator's rounds, the largest factors first.

    Args:
        sizes: of all factors.
        most: bytes that a round may have; one factor alone may need more.
    """
    rounds: list[int] = []
    for d in sorted((d for d in sizes if d > HOUSEHOLDER), reverse=True):
        needed = workspace_bytes([d])
        if not rounds or rounds[-1] + needed > most:
            rounds.append(0)
        rounds[-1] += needed
    return rounds


def workspace_within(sizes: Sequence[int], there: int) -> int:
    """Bytes of workspace to lend the operator for factors of these sizes; 0: it takes its own.

    Args:
        there: bytes that nobody needs meanwhile.
    """
    rounds = operator_rounds(sizes, OPERATOR)
    most, every = max(rounds, default=0), sum(rounds)
    if most <= there or most < CUT_FROM:
        return most if most <= there else 0
    largest = workspace_bytes([max(sizes)])
    for number in range(len(rounds) + 1, 2 * len(rounds) + 1):
        for unfilled in (largest, 0):  # what a round may leave empty, or what it may not
            found = operator_rounds(sizes, every // number + unfilled)
            if len(found) <= 2 * len(rounds) and max(found) <= there:
                return max(found)
    return 0


def most_within(most: int, free: int | None) -> int:
    """Bytes of workspace for a round, less where less is free.

    New bases are a quarter of a round's workspace, and carrying matrices that find no place in the
    step's memory are as much again. All of that is allocated.

    Args:
        most: bytes that it may have.
        free: bytes that may be allocated; None where nobody knows.
    """
    return most if free is None else min(most, 2 * free)


def free_bytes(device: torch.device) -> int | None:
    """What may be allocated on a GPU; nobody asks while a graph is captured."""
    if device.type != "cuda" or capture.underway():
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


class Room(NamedTuple):
    """Memory of a step, lent to a refresh.

    Attributes:
        carries: flat, for carrying matrices.
        workspace: flat, for the operator; None where it takes its own.
    """

    carries: torch.Tensor
    workspace: torch.Tensor | None

    def lent(self) -> Lent:
        return Lent(Spare(self.carries).room, self.workspace)


def room_for(sizes: Sequence[int], there: torch.Tensor, planes: int) -> Room:
    """The place of workspace and carrying matrices for factors of these sizes.

    Args:
        there: flat, that nobody needs meanwhile, at least the planes.
        planes: elements of the planes, at its beginning; `derive` writes behind them while it reads
            carrying matrices.
    """
    elements = workspace_within(sizes, there.nbytes) // FLOAT
    if not elements:
        return Room(there[:planes], None)
    start = (len(there) - elements) // ALIGNED * ALIGNED
    return Room(there[: min(start, planes)], there[start : start + elements])


class Spare:
    """Memory that nobody needs for now, cut into tensors one behind the other."""

    def __init__(self, piece: torch.Tensor) -> None:
        """A flat tensor."""
        self.piece = piece
        self.taken = piece.storage_offset()  # up to here
        self.end = self.taken + len(piece)
        self.beside = 0  # bytes for which there was no room

    def room(self, like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Uninitialised, of the dtype and on the device of another; new memory where none fits."""
        found = self.place(like, shape)
        if found is not None:
            return found
        self.beside += prod(shape) * like.dtype.itemsize
        return like.new_empty(tuple(shape))

    def place(self, like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor | None:
        """The same, None where none fits."""
        start, end = self.taken, self.taken + prod(shape)
        if end > self.end or self.piece.dtype != like.dtype or self.piece.device != like.device:
            return None
        self.taken = start + -(-prod(shape) // ALIGNED) * ALIGNED
        strides = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
        return self.piece.as_strided(shape, strides, start)  # one call, where a view takes three
