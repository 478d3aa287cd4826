"""The launches of a plain step in their order, each with its work. Pure: plans in, tables out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from soap_fast.fused import plane_tables, tables
from soap_fast.fused.gram_tables import gram_work
from soap_fast.fused.layout import Layout
from soap_fast.fused.plane_tables import Strided
from soap_fast.fused.rotations import rotate_work
from soap_fast.fused.tuning import GRAM_CHUNKS, TUNING
from soap_fast.fused.work import Member, Work


class Station(NamedTuple):
    """A launch that the tensors' plans decide.

    Attributes:
        name: of the launch; ops that are launched several times are numbered.
        op: name of the kernel.
    """

    name: str
    op: str
    work: Work


def gather_station(members: Sequence[Member], gradients: Sequence[Strided]) -> Station:
    work = plane_tables.gather_work(members, gradients, TUNING["gather"].constants)
    return Station("gather", "gather", work)


def stations_before(members: Sequence[Member]) -> list[Station]:
    """Between the clock and norm: factors, rotations, moments."""
    gram, reduce = gram_work(members, TUNING["gram"].constants["BK"], GRAM_CHUNKS)
    fold_gram = plane_tables.fold_gram_work(members, TUNING["gather"].constants)
    return [
        Station("gram", "gram", gram),
        Station("gram_reduce", "gram_reduce", reduce),
        Station("fold_gram", "fold_gram", fold_gram),
        *_rotations(members, back=False),
        Station("adam", "adam", tables.adam_work(members, TUNING["adam"].constants["ROWS"])),
    ]


def stations_after(members: Sequence[Member]) -> list[Station]:
    """Between norm and apply."""
    return list(_rotations(members, back=True))


def apply_station(members: Sequence[Member], parameters: Sequence[Strided]) -> Station:
    work = plane_tables.apply_work(members, parameters, TUNING["apply"].constants)
    return Station("apply", "apply", work)


def _rotations(members: Sequence[Member], *, back: bool) -> Iterator[Station]:
    deepest = max((len(member.layout.levels) for member in members), default=0)
    for place in range(deepest):
        work = rotate_work(members, place, deepest, back=back)
        yield Station(f"rotate back {place}" if back else f"rotate {place}", "rotate", work)


def plain_step(layouts: Sequence[Layout], parameters: Sequence[Strided]) -> list[Station]:
    """Every launch over tiles of a plain step; gradients lie as the parameters do.

    No tensor is needed, addresses are 0. The clock, and norm where an update is normalised, are
    launches over tensors and left out here.
    """
    nowhere: dict[object, int] = defaultdict(int)
    members = [
        Member(index, layout, 0, 0, 0, 0, nowhere, nowhere, nowhere, 0)  # type: ignore[arg-type]
        for index, layout in enumerate(layouts)
    ]
    stations = [
        gather_station(members, parameters),
        *stations_before(members),
        *stations_after(members),
        apply_station(members, parameters),
    ]
    return [station for station in stations if station.work.count]
