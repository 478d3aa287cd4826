"""What instructions write: exactly where it decides addresses and branches, else 1.0.

Floating point results decide neither, so they are all 1.0; where a comparison of numbers decides a
branch, it sees those. The conversions of integer division are exact.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bench.cost.arithmetic import iadd3, imad, lea, lop3, move, shift
from bench.cost.choices import fsetp, isetp, least, ones, over_a_warp, plop3, select, vote
from bench.cost.conversions import (
    absolute,
    extend,
    halves_of_a_word,
    packed,
    permute,
    reciprocal,
    special,
    to_integer,
    to_real,
)
from bench.cost.operands import (
    ONE,
    REGISTER,
    Array,
    Operands,
    Operation,
    Registers,
    is_predicate,
    next_name,
    nothing,
)
from bench.cost.sass import Instruction

Builder = Callable[[Instruction, list[str], list[str], Operands], Operation | None]
NOTHING = ("BSSY", "BSYNC", "BAR", "WARPSYNC", "NOP", "DEPBAR", "LDGDEPBAR", "MEMBAR", "FENCE")
# Numbers by their first letter, and what is no number and decides nothing but when to go on.
NUMBERS = re.compile(r"[FDH][A-Z0-9]+|MUFU|LDSM|LDTM|I?MMA|SYNCS|UTC\w+|ELECT|LDG|LD|LDS|NANOSLEEP")


class Computed(NamedTuple):
    """An instruction's results.

    Attributes:
        names: registers it writes.
        values: computes what each receives, in their order.
        uses: registers it reads, its guard's among them.
    """

    names: tuple[str, ...]
    values: Callable[[Registers], tuple[Array, ...]]
    uses: frozenset[str]


def integer(instruction: Instruction) -> Computed | None:
    """What an instruction computes; None if its results are numbers that decide nothing."""
    name = instruction.name
    builder = BUILDERS.get(name) or BUILDERS.get(name.removeprefix("U"))
    if builder is None or (name == "MUFU" and instruction.modifiers[0] != "RCP"):
        return None
    operands = Operands()
    results, sources = destinations(instruction)
    made = builder(instruction, results, sources, operands)
    if made is None:
        return None
    width, compute = made
    behind = [next_name(results[0], place) for place in range(1, width // 32)]
    names = [results[0], *behind, *results[1:]]

    def values(s: Registers) -> tuple[Array, ...]:
        found = compute(s)
        return found if isinstance(found, tuple) else (found,)

    return Computed(tuple(names), values, frozenset(operands.uses))


def destinations(instruction: Instruction) -> tuple[list[str], list[str]]:
    """Operands that are written, the register first, and those that are read."""
    operands = list(instruction.operands)
    if instruction.name.removeprefix("U") in ("ISETP", "FSETP", "DSETP", "PLOP3"):
        return operands[:2], operands[2:]
    if instruction.name in ("VOTE", "VOTEU"):
        return operands[:-1], operands[-1:]
    count = 1
    while count < len(operands) - 1 and is_predicate(operands[count]) and count < 3:
        count += 1
    if instruction.name.removeprefix("U") in ("SEL", "FSEL"):
        count = 1
    if is_predicate(operands[0]):  # LOP3 with a predicate ahead of its register
        return [operands[1], operands[0]], operands[2:]
    return operands[:count], operands[count:]


BUILDERS: dict[str, Builder] = {
    "IADD3": iadd3, "IADD": iadd3, "VIADD": iadd3, "IMAD": imad, "LEA": lea, "SHF": shift,
    "LOP3": lop3, "PLOP3": plop3, "ISETP": isetp, "FSETP": fsetp, "DSETP": fsetp,
    "IMNMX": least, "VIMNMX": least, "VIADDMNMX": least, "SEL": select, "FSEL": select,
    "MOV": move, "R2UR": move, "LDC": move, "ULDC": move, "LDCU": move, "S2R": special,
    "S2UR": special, "CS2R": special, "SGXT": extend, "PRMT": permute, "IABS": absolute,
    "I2F": to_real, "I2FP": to_real, "F2I": to_integer, "MUFU": reciprocal, "P2R": packed,
    "VOTE": vote,
    "VOTEU": vote,
    "REDUX": over_a_warp,
    "POPC": ones,
    "HFMA2": halves_of_a_word,
}  # fmt: skip


def numbers(instruction: Instruction) -> Computed:
    """Results that decide nothing: 1.0 in each, and predicates that hold."""
    names = written(instruction)
    return Computed(
        names,
        lambda s: tuple(s.true if is_predicate(n) else s.zero + np.uint32(ONE) for n in names),
        frozenset(),
    )


def written(instruction: Instruction) -> tuple[str, ...]:
    """Registers that an instruction fills whose results are numbers."""
    if instruction.name in NOTHING or not instruction.operands:
        return ()
    results = [x for x in destinations(instruction)[0] if is_predicate(x) or REGISTER.match(x)]
    if not results or is_predicate(results[0]):
        return tuple(x for x in results if not nothing(x))
    count = registers_of(instruction)
    return tuple(
        x
        for x in (*(next_name(results[0], n) for n in range(count)), *results[1:])
        if not nothing(x)
    )


def known(instruction: Instruction) -> bool:
    """Whether an instruction's results are modelled."""
    bare = instruction.name.removeprefix("U")
    return bare in BUILDERS or bool(NUMBERS.match(instruction.name) or NUMBERS.match(bare))


def registers_of(instruction: Instruction) -> int:
    """Registers that results fill, by the width of the instruction."""
    if instruction.name == "HGMMA":
        return int(instruction.modifiers[0].split("x")[1]) // 2
    if instruction.name in ("HMMA", "IMMA"):
        return 4
    for width, count in (("256", 8), ("128", 4), ("64", 2), ("4", 4), ("2", 2)):
        if width in instruction.modifiers:
            return count
    double = instruction.name in ("DADD", "DMUL", "DFMA") or instruction.opcode.startswith(
        "F2F.F64"
    )
    return 2 if double else 1
