"""Which tensors are refreshed together, and what memory of a step their refresh uses again.

Between steps nothing in the planes is needed. So the operator finds there copies of factors, and
leaves there the carrying matrices, which `derive` reads before any launch writes a plane.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

import torch

from soap_fast.backends.triton.ops.tiles import FLOAT
from soap_fast.step.layout import padded

# Bytes of the operator's workspace for the tensors of a round. A round has launches of its own that
# carry moments, and copies of factors. The operator takes at most OPERATOR at a time
# (csrc/refresh/rounds.h): factors for two times that, less what such rounds leave empty, make
# hardly more launches of it than all factors together.
OPERATOR = 1 << 30
WORKSPACE = 2 * OPERATOR * 15 // 16
ALIGNED = 64  # elements, 256 bytes as torch's allocator has them


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


class Spare:
    """Memory that nobody needs for now, cut into tensors one behind the other."""

    def __init__(self, pieces: Iterable[torch.Tensor]) -> None:
        """Flat tensors of one dtype on one device."""
        self.pieces = list(pieces)
        self.taken = [piece.storage_offset() for piece in self.pieces]  # up to here
        self.ends = [
            start + len(piece) for start, piece in zip(self.taken, self.pieces, strict=True)
        ]
        self.beside = 0  # bytes for which there was no room

    def room(self, like: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Uninitialised, of the dtype and on the device of another; new memory where none fits."""
        elements = prod(shape)
        for place, piece in enumerate(self.pieces):
            start = self.taken[place]
            alike = piece.dtype == like.dtype and piece.device == like.device
            if alike and start + elements <= self.ends[place]:
                self.taken[place] = start + -(-elements // ALIGNED) * ALIGNED
                strides = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
                return piece.as_strided(shape, strides, start)  # one call, where a view takes three
        self.beside += elements * like.dtype.itemsize
        return like.new_empty(tuple(shape))
