"""Memory as kernels see it: tables that are read for what they hold, and 1.0 everywhere else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from bench.cost.operands import ONE, Array

SECTOR = 5  # log2 of a sector's bytes


class Memory:
    """Tables by address.

    Attributes:
        tables: start and bytes of each, by start; no two overlap.
        seen: words that were read of them, by address.
    """

    def __init__(self, tables: Iterable[tuple[int, bytes]]) -> None:
        self.tables = sorted((start, np.frombuffer(held, np.uint8)) for start, held in tables)
        self.starts = np.array([start for start, _ in self.tables], np.uint64)
        self.ends = np.array([start + len(held) for start, held in self.tables], np.uint64)
        self.seen: dict[int, int] = {}

    def word(self, addresses: Array, mask: Array) -> Array:
        """[threads] uint32, the word at each address where `mask` holds."""
        found = np.full(len(addresses), ONE, np.uint32)
        asked = addresses[mask]
        if not len(asked) or not self.tables:
            return found
        if (asked == asked[0]).all():
            asked = asked[:1]
        distinct, places = np.unique(asked, return_inverse=True)
        table = np.searchsorted(self.starts, distinct, "right").astype(np.int64) - 1
        inside = (table >= 0) & (distinct + np.uint64(4) <= self.ends[table])
        values = np.full(len(distinct), ONE, np.uint32)
        for place in np.flatnonzero(inside).tolist():
            values[place] = self._at(int(table[place]), int(distinct[place]))
        found[mask] = values[places]
        return found

    def _at(self, table: int, address: int) -> int:
        start, held = self.tables[table]
        value = int.from_bytes(held[address - start : address - start + 4].tobytes(), "little")
        self.seen[address] = value
        return value


class Touch(NamedTuple):
    """What the warps of one instruction do to memory.

    Attributes:
        sectors: that they touch, each warp for itself.
        partial: those of them that no warp touches whole.
        bytes: distinct ones that they ask for.
    """

    sectors: int
    partial: int
    bytes: int


NONE = Touch(0, 0, 0)


def touched(addresses: Array, width: int, mask: Array) -> Touch:
    """Of one instruction.

    Args:
        addresses: [threads] uint64, multiples of the width.
        width: bytes of a thread.
    """
    by_warp = addresses.reshape(-1, 32)
    active = mask.reshape(-1, 32)
    warps = active.any(axis=1)
    if not warps.any():
        return NONE
    by_warp, active = by_warp[warps], active[warps]
    first = by_warp[np.arange(len(by_warp)), active.argmax(axis=1)]
    ordered = np.sort(np.where(active, by_warp, first[:, None]), axis=1)
    fresh = np.ones(ordered.shape, bool)
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    sectors = ordered >> np.uint64(SECTOR)
    begins = np.ones(ordered.shape, bool)
    begins[:, 1:] = sectors[:, 1:] != sectors[:, :-1]
    count, apart = int(begins.sum()), int(fresh.sum())
    held = np.bincount(np.cumsum(begins) - 1, fresh.ravel())  # threads of each sector
    partial = int((held * width < 32).sum())
    return Touch(count * max(1, width >> SECTOR), partial, apart * width)
