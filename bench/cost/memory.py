"""Memory as kernels see it: tables that are read for what they hold, and 1.0 everywhere else."""

from __future__ import annotations

from collections.abc import Iterable

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


def touched(addresses: Array, width: int, mask: Array) -> tuple[int, int]:
    """Of one instruction: sectors its warps touch, and distinct bytes they ask for.

    Args:
        addresses: [threads] uint64, multiples of the width.
        width: bytes of a thread.
    """
    by_warp = addresses.reshape(-1, 32)
    active = mask.reshape(-1, 32)
    warps = active.any(axis=1)
    if not warps.any():
        return 0, 0
    by_warp, active = by_warp[warps], active[warps]
    first = by_warp[np.arange(len(by_warp)), active.argmax(axis=1)]
    ordered = np.sort(np.where(active, by_warp, first[:, None]), axis=1)
    apart = int((ordered[:, 1:] != ordered[:, :-1]).sum()) + len(ordered)
    sectors = ordered >> np.uint64(SECTOR)
    count = int((sectors[:, 1:] != sectors[:, :-1]).sum()) + len(ordered)
    return count * max(1, width >> SECTOR), apart * width
