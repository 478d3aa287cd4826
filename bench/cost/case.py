"""One launch with all that the model reads of it, and what its programs issue and move."""

from __future__ import annotations

from dataclasses import dataclass

from bench.cost import sass
from bench.cost.memory import Memory
from bench.cost.program import prepare
from bench.cost.walk import Tally, Walker

# By architecture: where bank 0 has a kernel's arguments, and the number of its programs.
ARGUMENTS_AT = {80: 0x160, 90: 0x210, 100: 0x380}
PROGRAMS_AT = {80: 0x0C, 90: 0x0C, 100: 0x370}


@dataclass(frozen=True)
class Case:
    """A launch.

    Attributes:
        name: of the launch, e.g. `rotate back 0`.
        sm: architecture.
        code: machine code as `sass.disassemble` prints it.
        threads, registers, shared: of a program, registers each thread's, shared in bytes.
        programs: that share the tiles.
        tiles: that the launch walks.
        sampled: tiles that stand for all, each with how many it stands for.
        arguments: as bank 0 holds them.
        tables: address and bytes of each.
        flops, bytes: of the mathematics; None where nothing tells.
    """

    name: str
    sm: int
    code: str
    threads: int
    registers: int
    shared: int
    programs: int
    tiles: int
    sampled: dict[int, int]
    arguments: bytes
    tables: list[tuple[int, bytes]]
    flops: int | None = None
    bytes: int | None = None

    @property
    def warps(self) -> int:
        return self.threads // 32


@dataclass(frozen=True)
class Walked:
    """A launch, walked.

    Attributes:
        instructions: executed by all warps.
        sectors, bytes: by `load` and `store`, as in Tally, of all programs.
        tiles: of a tile that stands for others: how many, and what it does beside what a program
            without a tile does.
        empty: what a program without a tile does.
    """

    instructions: int
    sectors: dict[str, int]
    bytes: dict[str, int]
    tiles: list[tuple[int, Tally]]
    empty: Tally
    code: sass.Code

    def ratio(self, kind: str) -> float | None:
        """Sectors over the least that could hold the bytes asked for; None without any."""
        least = self.bytes[kind] / 32
        return self.sectors[kind] / least if least else None


def walked(case: Case) -> Walked:
    """Walk the tiles that stand for all.

    A program that is given as many tiles as there are programs does one of them: the tile's number
    is its own.
    """
    code = sass.parse(case.code)
    bank = bytes(ARGUMENTS_AT[case.sm]) + case.arguments
    walker = Walker(
        prepare(code),
        Memory(case.tables),
        case.threads,
        {0: bank, 2: code.tables},
        PROGRAMS_AT[case.sm],
    )
    empty = walker.run(case.tiles, case.tiles)
    tiles = [(weight, walker.run(tile, case.tiles)) for tile, weight in case.sampled.items()]
    total = Tally()
    total.add(empty, case.programs)
    for weight, tally in tiles:
        total.add(tally, weight)
        total.add(empty, -weight)
    return Walked(total.instructions, total.sectors, total.bytes, tiles, empty, code)
