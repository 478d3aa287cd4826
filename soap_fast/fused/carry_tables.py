"""Tasks and tiles of the launches that carry moments over after a refresh. Pure.

Where the results of a refresh lie is known only when there are some: until then tables hold
`Tokens` in their addresses' place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from soap_fast.fused.columns import COUNT, COUNT_MODE, PERMUTE, PERMUTE_AXIS, SETTLE
from soap_fast.fused.work import Member, Work

FLOAT, LONG = 4, 8  # bytes


class Tokens:
    """Negative numbers that stand for addresses: so many bytes behind the start of a result."""

    def __init__(self) -> None:
        self.results: list[int] = []  # by token, number of the result
        self.offsets: list[int] = []

    def add(self, result: int, offset: int) -> int:
        self.results.append(result)
        self.offsets.append(offset)
        return -len(self.results)

    def template(self, rows: Sequence[Sequence[int]]) -> Template:
        flat = torch.tensor([value for row in rows for value in row], dtype=torch.int64)
        places = (flat < 0).nonzero().flatten()
        tokens = -flat[places] - 1
        results = torch.tensor(self.results, dtype=torch.int64)[tokens]
        offsets = torch.tensor(self.offsets, dtype=torch.int64)[tokens]
        return Template(flat, places, results, offsets)


@dataclass(frozen=True)
class Template:
    """A table, flat, in which some addresses are missing."""

    flat: torch.Tensor  # int64
    places: torch.Tensor  # [tokens] where they go
    results: torch.Tensor  # [tokens] the result that an address lies in
    offsets: torch.Tensor  # [tokens] bytes

    def filled(self, starts: torch.Tensor) -> torch.Tensor:
        """With the addresses at which results [n] int64 start."""
        table = self.flat.clone()
        table[self.places] = starts[self.results] + self.offsets
        return table


def mode_rows(modes: Iterable[tuple[int, int, int]]) -> list[list[int]]:
    """Rows of `count` for modes that were due: (index of the mode, outcome, share)."""
    return [_row(COUNT_MODE, mode=m, outcome=o, share=s) for m, o, s in modes]


def count_rows(counters: Iterable[tuple[int, int]], due: Sequence[int]) -> list[list[int]]:
    """Rows of `count` for every tensor.

    Args:
        counters: addresses of refreshes and off_diagonal.
        due: how many modes of each tensor were, whose rows follow each other.
    """
    rows, first = [], 0
    for (refreshes, off_diagonal), modes in zip(counters, due, strict=True):
        values = {"refreshes": refreshes, "off_diagonal": off_diagonal}
        rows.append(_row(COUNT, **values, first_mode=first, modes=modes))
        first += modes
    return rows


def permute_work(
    members: Sequence[Member], orders: Sequence[Mapping[int, int]], rows: int
) -> tuple[Work, list[list[int]]]:
    """exp_avg_sq into the first planes, and the rows of its axes.

    Args:
        orders: per tensor and mode the address of the order; none is the identity.
        rows: elements of a tile.
    """
    work = Work()
    axes: list[list[int]] = []
    for member, by_mode in zip(members, orders, strict=True):
        found: list[tuple[int, int]] = []  # size, order; neighbours that stay are one axis
        for mode in member.layout.physical_modes:
            size, order = member.layout.plan.modes[mode], by_mode.get(mode, 0)
            if found and not order and not found[-1][1]:
                found[-1] = (found[-1][0] * size, 0)
            else:
                found.append((size, order))
        layout = member.layout
        work.add(
            PERMUTE,
            _tiles(len(work.tasks), layout.elements, rows),
            tensor=member.index,
            source=member.exp_avg_sq,
            target=member.a,
            elements=layout.elements,
            inner=layout.inner,
            pitch=layout.pitch,
            first_axis=len(axes),
            axes=len(found),
        )
        axes += [_row(PERMUTE_AXIS, size=size, order=order) for size, order in found]
        work.bytes += 2 * FLOAT * member.layout.numel
    return work, axes


def settle_permuted_work(members: Sequence[Member], rows: int) -> Work:
    """exp_avg_sq back from the first planes."""
    work = Work()
    for member in members:
        _add_settled(work, member, member.a, member.exp_avg_sq, 0, rows)
    return work


def settle_rotated_work(members: Sequence[Member], rows: int) -> Work:
    """exp_avg back from the planes in which its rotation ended."""
    work = Work()
    for member in members:
        plane = member.a if len(member.layout.levels) % 2 == 0 else member.b
        _add_settled(work, member, plane, member.exp_avg, member.exp_avg_sq, rows)
    return work


def _add_settled(
    work: Work, member: Member, plane: int, state: int, squares: int, rows: int
) -> None:
    elements = member.layout.elements
    tiles = _tiles(len(work.tasks), elements, rows)
    values = {"plane": plane, "state": state, "squares": squares, "elements": elements}
    work.add(SETTLE, tiles, tensor=member.index, **values)
    work.bytes += (3 if squares else 2) * FLOAT * member.layout.numel


def _tiles(task: int, elements: int, rows: int) -> torch.Tensor:  # [tiles, 2] int32
    starts = torch.arange(0, elements, rows, dtype=torch.int32)
    return torch.stack([torch.full_like(starts, task), starts], dim=1)


def _row(columns: dict[str, int], **values: int) -> list[int]:
    row = [0] * len(columns)
    for name, value in values.items():
        row[columns[name]] = value
    return row
