"""Walks one program of a kernel through its machine code, all of its threads at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.cost.memory import Memory, touched
from bench.cost.operands import ONE, Array, Registers, next_name
from bench.cost.program import Access, Block, Step, Unmodelled

MOST = 50_000  # blocks of a walk, or repetitions of a loop, which then cannot be right
PERIODS = (1, 2, 3, 4, 6)  # iterations after which a loop may repeat itself: buffers take turns
SHARED_WORDS = 2**16  # 256 KiB, more than a multiprocessor has
LAST = 4  # of a loop's repetitions, which are walked: there loads ahead come to their end
LINE = 7  # log2 of the bytes of a line of the L1
NOWHERE = ("RZ", "URZ", "PT", "UPT")


# A block's address, or blocks and how often they follow in a row.
Path = Sequence["int | tuple[Path, int]"]


@dataclass
class Tally:
    """What a program has issued and moved.

    Attributes:
        instructions: executed by warps, as ncu counts them.
        sectors, bytes: by `load` and `store`: sectors touched per access of a warp, and distinct
            bytes asked for.
        partial: of stores, sectors that no warp writes whole.
        near: of loads by address, how much more often they came to a line again than to a new one.
        path: what the first warp took.
        ahead: what the program had done before, where that is known.
    """

    instructions: int = 0
    sectors: dict[str, int] = field(default_factory=lambda: {"load": 0, "store": 0})
    bytes: dict[str, int] = field(default_factory=lambda: {"load": 0, "store": 0})
    partial: int = 0
    near: Counter[int] = field(default_factory=Counter)
    path: list[int | tuple[Path, int]] = field(default_factory=list)
    ahead: Tally | None = None

    def add(self, other: Tally, times: int) -> None:
        """What was done so many times more; the path is left alone."""
        self.instructions += times * other.instructions
        self.partial += times * other.partial
        self.near.update(other.near)
        for mine, theirs in ((self.sectors, other.sectors), (self.bytes, other.bytes)):
            for kind, value in theirs.items():
                mine[kind] += times * value


def longest_loop(blocks: dict[int, Block]) -> int | None:
    """Where the loop begins that spans most of a kernel: persistent programs walk tiles by it."""
    jumps = [
        (start - target, target)
        for start, block in blocks.items()
        for target in block.last.targets
        if block.last.name == "BRA" and target <= start
    ]
    return max(jumps)[1] if jumps else None


@dataclass
class Visit:
    """What decides the rest of a walk, at the beginning of a loop's iteration."""

    words: dict[str, Array]
    flags: dict[str, Array]
    place: int  # in the path

    def change(self, other: Visit) -> dict[str, Array] | None:
        """What is added to the words until `other`; None where a flag differs."""
        if any((v != other.flags.get(n, ~v)).any() for n, v in self.flags.items()):
            return None
        return {n: other.words[n] - v for n, v in self.words.items() if n in other.words}


class Walker:
    """Of one kernel on given memory.

    Args:
        threads: of a program.
        constants: bank 0, which holds the arguments, without the number of programs; and bank 2.
        grid_at: where bank 0 has the number of programs.
    """

    def __init__(
        self,
        blocks: dict[int, Block],
        memory: Memory,
        threads: int,
        constants: dict[int, bytes],
        grid_at: int,
    ) -> None:
        self.blocks, self.memory, self.threads = blocks, memory, threads
        self.constants, self.grid_at = constants, grid_at
        calls = [b.last.targets[0] for b in blocks.values() if b.last.name == "CALL"]
        self.subroutines = min(calls, default=1 << 62)  # they lie behind all else
        self.tile_loop = longest_loop(blocks)

    def run(self, program: int, programs: int, tiles: int | None = None) -> Tally:
        """One program of so many.

        Args:
            tiles: of the launch, other than its arguments say.

        Raises:
            Unmodelled: it comes to no end.
        """
        self.registers = self._at_first(program, programs, tiles)
        self.shared = np.full(SHARED_WORDS, ONE, np.uint32)
        self.lines: set[int] = set()
        self.tally = Tally()
        self.pending = {0: self.registers.true}
        visits: dict[int, list[Visit]] = {}
        before, turns = -1, 0
        for _ in range(MOST):
            if not self.pending:
                return self.tally
            start = next(iter(self.pending))
            turns += start == self.tile_loop
            if tiles is not None and start == self.tile_loop and turns == 2:
                self.tally, self.lines = Tally(ahead=self.tally), set()
                visits.clear()
            if start <= before and len(self.pending) == 1:
                self._look_ahead(start, visits.setdefault(start, []))
            before = self._block()
        raise Unmodelled("a program that does not end")

    def second_tile(self, tile: int) -> Tally:
        """A tile by a program that has done the one before: what it fetched ahead is there."""
        return self.run(tile - 1, 1, tile + 1)

    def _at_first(self, program: int, programs: int, tiles: int | None) -> Registers:
        bank = bytearray(self.constants[0])
        bank[self.grid_at : self.grid_at + 4] = programs.to_bytes(4, "little")
        if tiles is not None:  # the last argument
            bank[-4:] = tiles.to_bytes(4, "little")
        lanes = np.arange(self.threads, dtype=np.uint32)
        special = {
            "SR_TID.X": lanes,
            "SR_CTAID.X": np.full(self.threads, program, np.uint32),
            "SR_LANEID": lanes % np.uint32(32),
        }
        return Registers(self.threads, {**self.constants, 0: bytes(bank)}, special)

    def _block(self, *, steering: bool = False) -> int:
        """One block by all threads that have come to it; returns its address.

        Subroutines go first, then whoever lags behind: so threads meet again where they parted.
        """
        start = min(self.pending, key=lambda start: (start < self.subroutines, start))
        block, mask = self.blocks[start], self.pending.pop(start)
        warps = int(mask.reshape(-1, 32).any(axis=1).sum())
        self.tally.instructions += warps * block.length
        if mask[0]:
            self.tally.path.append(start)
        whole = None if mask.all() else mask
        for step in block.steering if steering else block.steps:
            self._step(step, mask, whole)
        for target, there in self._leave(block, mask):
            others = self.pending.get(target)
            self.pending[target] = there if others is None else others | there
        return start

    def _look_ahead(self, start: int, visits: list[Visit]) -> None:
        """Skips iterations of a loop that only add to registers what the ones before have added."""
        visits.append(self._visit(start))
        for period in PERIODS:
            if len(visits) <= 2 * period:
                return
            earlier, middle, now = (visits[-1 - n * period] for n in (2, 1, 0))
            path, (a, b, c) = self.tally.path, (earlier.place, middle.place, now.place)
            if path[a:b] != path[b:c]:
                continue
            change, same = middle.change(now), earlier.change(middle)
            if change is None or same is None or change.keys() != same.keys():
                continue
            if all((change[name] == same[name]).all() for name in change):
                visits.clear()
                self._leap(start, period, now, change)
                return

    def _visit(self, start: int) -> Visit:
        live, registers = self.blocks[start].live, self.registers
        return Visit(
            {n: v for n, v in registers.words.items() if n in live},
            {n: v for n, v in registers.flags.items() if n in live},
            len(self.tally.path),
        )

    def _leap(self, start: int, period: int, now: Visit, change: dict[str, Array]) -> None:
        """Goes on while the loop does the same: only what decides branches is carried out.

        The iterations that are skipped have added to the other registers what these always add.
        """
        registers, tally = self.registers, self.tally
        words, flags = registers.words, registers.flags
        lap = self._lap(start, period, steering=False)
        states = [(now.words, now.flags), (dict(registers.words), dict(registers.flags))]
        while lap is not None:
            found = self._lap(start, period, steering=True)
            if found is None or found.path != lap.path:
                break
            states.append((dict(registers.words), dict(registers.flags)))
            if len(states) > MOST:
                raise Unmodelled("a loop that does not end")
        done = max(0, len(states) - 1 - LAST)
        after = states[done] if lap is not None else states[0]
        steer = self.blocks[start].steer
        ahead = {n: now.words[n] + c * np.uint32(done) for n, c in change.items() if n not in steer}
        registers.words = {**words, **after[0], **ahead}
        registers.flags = {**flags, **after[1]}
        self.tally, self.pending = tally, {start: registers.true}
        if done:
            assert lap is not None
            tally.add(lap, done)
            tally.path.append((tuple(lap.path), done))

    def _lap(self, start: int, period: int, *, steering: bool) -> Tally | None:
        """So many iterations; None where the loop ends or threads part for longer."""
        self.tally, self.pending = Tally(), {start: self.registers.true}
        for _ in range(period):
            for _ in range(len(self.blocks)):
                self._block(steering=steering)
                if start in self.pending or not self.pending:
                    break
            if list(self.pending) != [start]:
                return None
        return self.tally

    def _step(self, step: Step, mask: Array, whole: Array | None) -> None:
        registers = self.registers
        if step.guard is not None:
            mask = whole = mask & step.guard(registers)
        if step.access is not None:
            self._reach(step.instruction.address, step.access, step.names, mask, whole)
            return
        assert step.values is not None
        for name, value in zip(step.names, step.values(registers), strict=False):
            if name not in NOWHERE:
                registers.set(name, value, whole)

    def _reach(
        self, place: int, access: Access, names: tuple[str, ...], mask: Array, whole: Array | None
    ) -> None:
        addresses = access.address(self.registers)
        if "shared" in access.kind:
            self._share(access, addresses, mask, whole)
            return
        wanted = mask if access.wanted is None else mask & access.wanted(self.registers)
        touch = touched(addresses, access.width, wanted)
        self.tally.sectors[access.kind] += touch.sectors
        self.tally.bytes[access.kind] += touch.bytes
        if access.kind == "store":
            self.tally.partial += touch.partial
        elif touch.sectors:
            line = int(addresses[wanted.argmax()]) >> LINE
            self.tally.near[place] += 1 if line in self.lines else -1
            self.lines.add(line)
        for behind, name in enumerate(names):
            if name[0] != "P":
                value = self.memory.word(addresses + np.uint64(4 * behind), wanted)
                self.registers.set(name, value, whole)

    def _share(self, access: Access, addresses: Array, mask: Array, whole: Array | None) -> None:
        """Words of shared memory, by address."""
        for place in range(max(1, access.width // 4)):
            name = next_name(access.data, place)
            where = (addresses // np.uint64(4)).astype(np.int64) + place
            where %= SHARED_WORDS
            if access.kind == "shared store":
                held = self.registers.words.get(name, self.registers.zero)
                self.shared[where[mask]] = held[mask]
            elif name != "RZ":
                self.registers.set(name, self.shared[where], whole)

    def _leave(self, block: Block, mask: Array) -> list[tuple[int, Array]]:
        """Where the threads of a block go on."""
        name = block.last.name
        if not block.last.ends_block or name == "BPT":
            return [(block.end, mask)]
        taken = mask if block.taken is None else mask & block.taken(self.registers)
        stay = mask & ~taken
        found = [(block.end, stay)] if stay.any() else []
        if not taken.any() or name == "EXIT":
            return found
        if block.jump is None:
            return [*found, (block.last.targets[0], taken)]
        places = block.jump(self.registers)
        return [
            *found,
            *((place, taken & (places == place)) for place in np.unique(places[taken]).tolist()),
        ]
