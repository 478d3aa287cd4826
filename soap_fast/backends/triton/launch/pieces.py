"""Tables that lie behind one another in one upload, each at a multiple of 16 bytes.

Triton compiles a kernel by whether 16 divides the addresses it is launched with. A table anywhere
else would have kernels compiled once more in the middle of a training run, or of a capture.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

STEP = 16  # bytes


def room(length: int, dtype: torch.dtype) -> int:
    """Elements from the start of a piece to the start of the next one."""
    step = STEP // dtype.itemsize
    return -(-length // step) * step


def joined(pieces: Sequence[torch.Tensor], lengths: Sequence[int] | None = None) -> torch.Tensor:
    """Flat pieces of one dtype, zeros between them.

    Args:
        lengths: of the pieces; where it is longer than a piece is, zeros follow that.
    """
    lengths = [len(piece) for piece in pieces] if lengths is None else lengths
    return torch.cat(
        [
            torch.nn.functional.pad(piece, (0, room(length, piece.dtype) - len(piece)))
            for piece, length in zip(pieces, lengths, strict=True)
        ]
    )


def apart(table: torch.Tensor, lengths: Sequence[int]) -> list[torch.Tensor]:
    """The pieces of these lengths again, as views."""
    found, start = [], 0
    for length in lengths:
        found.append(table[start : start + length])
        start += room(length, table.dtype)
    return found
