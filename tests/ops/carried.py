"""Tensors whose moments a refresh carries, and how one kernel of that is launched."""

from __future__ import annotations

import torch
from kernel_cases import DEVICE
from launched import LaunchedAlone

from soap_fast.backends.triton.launch.launcher import Launch
from soap_fast.backends.triton.launch.tuning import TUNING
from soap_fast.triton_kernels.columns import SCALARS

SHAPES = ((6, 4, 3, 3), (5, 1, 7), (2, 9, 1, 7), (30, 41), (3, 3), (5, 6, 7, 3), (70, 3, 2, 5, 2))


def carried() -> LaunchedAlone:
    """An engine of tensors whose moments are random; the last tensor's are not carried."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator).to(DEVICE)) for s in SHAPES]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(DEVICE)
    engine = LaunchedAlone([{"params": params, "max_precond_dim": 50}], "ieee")
    taken = engine.engine.memory.carried.view(-1, len(SCALARS))
    taken[: len(SHAPES) - 1, SCALARS["taken"]] = 1
    return engine


def table(rows, columns):
    return torch.tensor(rows, dtype=torch.int64).view(-1, len(columns)).to(DEVICE)


def launch(alone, op, work, columns, *late):
    tiles = torch.cat(work.tiles).to(DEVICE)
    arguments = (tiles, table(work.tasks, columns), *late, alone.engine.memory.carried, work.count)
    alone.engine.launcher(Launch(op, arguments, TUNING[op].constants, work.count))
