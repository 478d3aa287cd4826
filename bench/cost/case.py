"""One launch with all that the model reads of it, and what its programs issue and move."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.cost import sass
from bench.cost.memory import Memory
from bench.cost.operands import Array
from bench.cost.program import prepare
from bench.cost.walk import Tally, Walker

# By architecture: where bank 0 has a kernel's arguments, and the number of its programs.
ARGUMENTS_AT = {80: 0x160, 86: 0x160, 89: 0x160, 90: 0x210, 100: 0x380}
PROGRAMS_AT = {80: 0x0C, 86: 0x0C, 89: 0x0C, 90: 0x0C, 100: 0x370}


@dataclass(frozen=True)
class Case:
    """A launch.

    Attributes:
        name: of the launch, e.g. `rotate back 0`.
        sm: architecture.
        code: machine code as `sass.disassemble` prints it.
        threads, registers, shared: of a program, registers each thread's, shared in bytes.
        programs: that share the tiles.
        stands: [tiles] int32, of each tile the one that stands for it.
        arguments: as bank 0 holds them.
        tables: address and bytes of each.
        flops, bytes: of the mathematics; None where nothing tells.
        whole: whether its tables are, so that a tile can be walked behind another.
    """

    name: str
    sm: int
    code: str
    threads: int
    registers: int
    shared: int
    programs: int
    stands: Array
    arguments: bytes
    tables: list[tuple[int, bytes]]
    flops: int | None = None
    bytes: int | None = None
    whole: bool = False

    @property
    def tiles(self) -> int:
        return len(self.stands)

    @property
    def warps(self) -> int:
        return self.threads // 32


@dataclass(frozen=True)
class Walked:
    """A launch, walked.

    Attributes:
        instructions: executed by all warps.
        sectors, bytes: by `load` and `store`, as in Tally, of all programs.
        partial: sectors stored that no warp writes whole.
        tiles: what a program does for a tile, by tile that stands for others: behind another one,
            or with all that it does for itself.
        seen: words that were read of tables, by address.
        empty: what a program without a tile does.
    """

    instructions: int
    sectors: dict[str, int]
    bytes: dict[str, int]
    partial: int
    tiles: dict[int, Tally]
    empty: Tally
    code: sass.Code
    seen: dict[int, int]

    def ratio(self, kind: str) -> float | None:
        """Sectors over the least that could hold the bytes asked for; None without any."""
        least = self.bytes[kind] / 32
        return self.sectors[kind] / least if least else None


def walked(case: Case) -> Walked:
    """Walk the tiles that stand for all.

    A program that is given as many tiles as there are programs does one of them: the tile's number
    is its own. One of one program begins with that tile.
    """
    code = sass.parse(case.code)
    bank = bytes(ARGUMENTS_AT[case.sm]) + case.arguments
    memory = Memory(case.tables)
    walker = Walker(
        prepare(code),
        memory,
        case.threads,
        {0: bank, 2: code.tables},
        PROGRAMS_AT[case.sm],
    )
    empty = walker.run(case.tiles, case.tiles)
    chosen, weights = np.unique(case.stands, return_counts=True)
    tiles = {
        tile: walker.second_tile(tile) if case.whole and tile else walker.run(tile, case.tiles)
        for tile in chosen.tolist()
    }
    total = Tally()
    total.add(empty, case.programs)
    for weight, tally in zip(weights.tolist(), tiles.values(), strict=True):
        total.add(tally, weight)
        if tally.ahead is None:
            total.add(empty, -weight)
    done = (total.instructions, total.sectors, total.bytes, total.partial)
    return Walked(*done, tiles, empty, code, memory.seen)
