"""How long a warp takes alone, by what the compiler tells the hardware's scheduler.

Every instruction carries for how many cycles to stall behind it, which of six barriers it sets
until its result is there, and for which to wait. With a latency for each kind of instruction of
variable length, that is the time of a warp that nobody disturbs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from bench.cost import constants
from bench.cost.pipes import latency, pipe
from bench.cost.sass import BARRIERS, Code, Instruction
from bench.cost.walk import Path, Tally

SEEN = 3  # repetitions of a loop that are timed; the others take as long as the last one
AHEAD = 16  # groups of asynchronous copies that may be underway


class Alone(NamedTuple):
    """A warp that nobody disturbs.

    Attributes:
        cycles: from its first instruction to its last.
        busy: of them, those in which it keeps the pipe that it needs most.
    """

    cycles: float
    busy: float


@dataclass
class Timeline:
    """A warp as it goes on.

    Attributes:
        near: of loads by address, more than 0 where most find their line in the L1.
        now: cycles since its first instruction.
        ready: by barrier, when it is passed.
        copied, copies: when the last copy is there, and each closed group of them.
        product: when the last product of a warpgroup is there.
        free: by pipe, when it takes the next instruction; `busy`, for how long it was kept.
    """

    near: Counter[int]
    now: float = 0.0
    ready: list[float] = field(default_factory=lambda: [0.0] * BARRIERS)
    copied: float = 0.0
    copies: list[float] = field(default_factory=list)
    product: float = 0.0
    free: dict[str, float] = field(default_factory=dict)
    busy: Counter[str] = field(default_factory=Counter)

    def issue(self, instruction: Instruction) -> None:
        start = self._begins(instruction)
        needed, keeps = pipe(instruction)
        if needed:
            start = max(start, self.free.get(needed, 0.0))
            self.free[needed] = start + keeps
            self.busy[needed] += keeps  # type: ignore[assignment]
        self.busy["issue"] += 1
        takes = latency(instruction)
        if takes == constants.FAR and self.near[instruction.address] > 0:
            takes = constants.NEAR
        if instruction.name == "LDGSTS":
            self.copied = max(self.copied, start + takes)
        elif instruction.name == "LDGDEPBAR":
            self.copies = [*self.copies, self.copied][-AHEAD:]
        elif instruction.name == "HGMMA":
            self.product = max(self.product, start) + keeps
        result, operands = instruction.sets
        self._set(result, start + takes)
        self._set(operands, start + constants.OPERANDS)
        self.now = start + max(1, instruction.stall)

    def _begins(self, instruction: Instruction) -> float:
        start = max([self.now, *(self.ready[barrier] for barrier in instruction.awaits)])
        if instruction.name == "DEPBAR" and len(instruction.operands) > 1:
            left = int(instruction.operands[1], 0)
            start = max([start, *self.copies[: len(self.copies) - left]])
        elif instruction.name == "WARPGROUP" and "DEPBAR" in instruction.modifiers:
            start = max(start, self.product)
        elif instruction.name == "BAR":
            start += constants.BARRIER
        return start

    def _set(self, barrier: int, moment: float) -> None:
        if barrier < BARRIERS:
            self.ready[barrier] = max(self.ready[barrier], moment)

    def shift(self, by: float) -> None:
        """All that is underway, so much later."""
        self.now += by
        self.copied += by
        self.product += by
        self.free = {name: moment + by for name, moment in self.free.items()}
        self.ready = [moment + by for moment in self.ready]
        self.copies = [moment + by for moment in self.copies]

    def follow(self, code: Code, path: Path) -> None:
        for item in path:
            if isinstance(item, int):
                for instruction in code.blocks[item]:
                    self.issue(instruction)
            else:
                self._repeat(code, *item)

    def _repeat(self, code: Code, path: Path, times: int) -> None:
        seen = min(times, SEEN)
        before, busy = self.now, Counter(self.busy)
        for _ in range(seen):
            before, busy = self.now, Counter(self.busy)
            self.follow(code, path)
        self.shift((times - seen) * (self.now - before))
        for name, cycles in (self.busy - busy).items():
            self.busy[name] += (times - seen) * cycles


def alone(code: Code, tally: Tally) -> Alone:
    """One warp that takes a program's path, behind what the program has done before."""
    line = Timeline(tally.near)
    if tally.ahead is not None:
        line.near = tally.ahead.near
        line.follow(code, tally.ahead.path)
        line.near = tally.near
    start, busy = line.now, Counter(line.busy)
    line.follow(code, tally.path)
    kept = (cycles - busy[pipe] for pipe, cycles in line.busy.items())
    return Alone(line.now - start, max(kept, default=0))
