"""Loads that wait for one another before a tile's first product."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from bench.cost.program import computed
from bench.cost.sass import Code, Instruction
from bench.cost.walk import Path, Tally

PRODUCTS = ("HMMA", "HGMMA", "IMMA", "DMMA", "UTCHMMA", "UTCQMMA")
SINGLE = ("FFMA", "DFMA")  # where no tensor core multiplies
LOADS = ("LDG", "LD", "LDGSTS")
STORES = ("STG", "ST", "REDG")
SHARED = "shared memory"
NAMED = re.compile(r"\bU?R\d+\b|\bU?P\d\b")


def dependent_loads(code: Code, tally: Tally) -> int:
    """Of global memory, one after the other, ahead of a path's first product.

    A load waits for those that its address comes from and for those that decided a branch before
    it. Without a product, ahead of the first store.
    """
    there = {instruction.name for instruction in along(code, tally.path)}
    kinds = (PRODUCTS, SINGLE, STORES)
    wanted = next((names for names in kinds if there & set(names)), STORES)
    depth: dict[str, int] = {}
    decided = 0
    for instruction in along(code, tally.path):
        written, read = _registers(instruction)
        waits = max([decided, *(depth.get(name, 0) for name in read)])
        if instruction.name in wanted:
            return waits
        if instruction.ends_block:
            decided = waits
        elif instruction.name in LOADS:
            waits += 1
        for name in written:
            depth[name] = max(waits, depth.get(name, 0)) if name == SHARED else waits
    return decided


def along(code: Code, path: Path) -> Iterator[Instruction]:
    """Instructions of a path; of a loop's repetitions the first."""
    for item in path:
        if isinstance(item, int):
            yield from code.blocks[item]
        else:
            yield from along(code, item[0])


@cache
def _registers(instruction: Instruction) -> tuple[frozenset[str], frozenset[str]]:
    """What an instruction writes and reads, by names of registers."""
    made = computed(instruction)
    written, read = set(made.names), set(made.uses)
    if not read:  # of numbers, and of stores and jumps, all that is named
        for text in instruction.operands[1 if made.names else 0 :]:
            read |= {match[0] for match in NAMED.finditer(text)}
    if instruction.guard:
        read.add(instruction.guard.lstrip("!"))
    if instruction.name in ("STS", "STSM", "LDGSTS"):
        written.add(SHARED)
    if instruction.name in ("LDS", "LDSM", "HGMMA") or "UTC" in instruction.name:
        read.add(SHARED)
    return frozenset(written), frozenset(read)
