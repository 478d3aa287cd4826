"""Tiles that stand for others: those that differ from it in addresses and places alone."""

from __future__ import annotations

import numpy as np
import torch

from bench.cost.operands import Array
from soap_fast.backends.triton.launch.launcher import Launch, kernel
from soap_fast.triton_kernels.columns import RECORDS

ADDRESSES = 2**32  # what is larger is an address
EXACT = ("kind", "k", "chunks", "parts")  # columns of records
LEFT, TALLEST = ("rows", "modes", "stored"), 128
CLASSES = 16  # a column of a tile's row with more values holds places, not kinds


def representatives(launch: Launch) -> Array:
    """[tiles] int32, of each tile the one that stands for it.

    A launch walks the rows of its first table. Records hold all of a tile. In a table of tiles each
    row begins with its task, a row of the second table.
    """
    rows = _table(launch, 0, launch.tiles)
    names = kernel(launch.op).arg_names
    if launch.op in RECORDS:
        return _groups(_extents(rows, RECORDS[launch.op]))
    if names[0] != "tiles":
        return _groups(_plain(rows))
    tasks = rows[:, 0]
    table = _plain(_table(launch, 1, int(tasks.max()) + 1))
    ends = np.append(tasks[1:] != tasks[:-1], True)  # often cut off by the tensor's edge
    most = np.zeros((len(table), rows.shape[1]), np.int64)  # places within a task tell its extent
    np.maximum.at(most, tasks, rows)
    kinds = _kinds(rows[:, 1:])
    return _groups(np.column_stack([table[tasks], most[tasks, 1:], kinds, ends]))


def _extents(records: Array, columns: dict[str, int]) -> Array:
    """Of records what decides how much is done: of what is left, no more than a tile takes."""
    kept = [records[:, columns[name]] for name in EXACT if name in columns]
    left = [np.minimum(records[:, columns[name]], TALLEST) for name in LEFT if name in columns]
    if "m0" in columns:
        left += [
            np.minimum(records[:, columns["size"]] - records[:, columns[name]], TALLEST)
            for name in ("m0", "n0")
        ]
    return np.column_stack([*kept, *left])


def _table(launch: Launch, place: int, rows: int) -> Array:
    tensor = launch.arguments[place]
    assert isinstance(tensor, torch.Tensor)
    return tensor.numpy().reshape(rows, -1)


def _plain(table: Array) -> Array:
    """Without addresses, and without what merely numbers the rows or counts along them."""
    kept = []
    for column in table.T:
        rises = len(column) > 2 and bool((np.diff(column) >= 0).all())
        counts = rises and len(np.unique(column)) > max(2, len(column) // 3)
        if not counts and (np.abs(column) < ADDRESSES).all():
            kept.append(column)
    return np.column_stack([np.zeros(len(table), np.int64), *kept])


def _kinds(rows: Array) -> Array:
    """Columns of few values; of others, whether they are negative."""
    few = [c if len(np.unique(c)) <= CLASSES else np.sign(c) < 0 for c in rows.T]
    return np.column_stack([np.zeros(len(rows), np.int64), *few])


def _groups(features: Array) -> Array:
    """Of rows that are alike, the middle one stands for all."""
    _, places, counts = np.unique(features, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(places.ravel(), kind="stable")
    middles = order[np.cumsum(counts) - counts + counts // 2]
    return middles[places.ravel()].astype(np.int32)
