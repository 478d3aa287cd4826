"""Tables in which addresses are missing until there are results of a refresh. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from soap_fast.backends.triton.launch.pieces import joined, room


class AddressSlots:
    """Negative numbers that stand for addresses: so many bytes behind the start of a result."""

    def __init__(self) -> None:
        self.results: list[int] = []  # by slot, number of the result
        self.offsets: list[int] = []

    def add(self, result: int, offset: int) -> int:
        self.results.append(result)
        self.offsets.append(offset)
        return -len(self.results)

    def table(self, rows: Sequence[Sequence[int]]) -> PatchableTable:
        """These rows, flat."""
        flat = torch.tensor([value for row in rows for value in row], dtype=torch.int64)
        places = (flat < 0).nonzero().flatten()
        slots = -flat[places] - 1
        results = torch.tensor(self.results, dtype=torch.int64)[slots]
        offsets = torch.tensor(self.offsets, dtype=torch.int64)[slots]
        return PatchableTable(flat, places, results, offsets)


@dataclass(frozen=True)
class PatchableTable:
    """A table, flat, in which some addresses are missing."""

    flat: torch.Tensor  # int64
    places: torch.Tensor  # [slots] where they go
    results: torch.Tensor  # [slots] the result that an address lies in
    offsets: torch.Tensor  # [slots] bytes

    def filled(self, starts: torch.Tensor) -> torch.Tensor:
        """With the addresses at which results [n] int64 start."""
        addresses = starts.gather(0, self.results).add_(self.offsets)
        return self.flat.clone().scatter_(0, self.places, addresses)


def one_behind_the_other(tables: Sequence[PatchableTable]) -> PatchableTable:
    """These tables as `joined` lays them, to be filled at once."""
    flats = [table.flat for table in tables]
    starts = accumulate((room(len(flat), flat.dtype) for flat in flats), initial=0)
    places = [table.places + start for table, start in zip(tables, starts, strict=False)]
    results, offsets = [t.results for t in tables], [t.offsets for t in tables]
    return PatchableTable(joined(flats), *map(torch.cat, (places, results, offsets)))
