"""Where matrices lie in memory: on the CPU the last bits of BLAS and LAPACK depend on it.

A factor lies at another place of its stack in each process that has only some of them. So that all
of them compute the same bits, plain torch computes with matrices that lie as a tensor of its own
would. The extension copies what is not aligned, too.
"""

from __future__ import annotations

import torch

ALIGNMENT = 64  # bytes, of what torch allocates on the CPU


def is_aligned(matrix: torch.Tensor) -> bool:
    """Whether a matrix lies as one with memory of its own would, or it does not matter."""
    return matrix.device.type != "cpu" or matrix.data_ptr() % ALIGNMENT == 0


def all_aligned(k: int, d: int, stack: torch.Tensor) -> bool:
    """The same for each matrix of a new stack [k, d, d], of the device and dtype of `stack`."""
    return k < 2 or stack.device.type != "cpu" or d * d * stack.itemsize % ALIGNMENT == 0
