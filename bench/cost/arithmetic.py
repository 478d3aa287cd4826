"""Sums, products, shifts and logic of integers.

Each function makes an instruction's operation: given the registers it writes and its sources as
text, how wide its result is in bits, and what computes it.
"""

from __future__ import annotations

import numpy as np

from bench.cost.operands import Array, Operands, Operation, Registers, is_predicate
from bench.cost.sass import Instruction
from bench.cost.words import HALF, LOW, halves, word


def _carries(total: Array, results: list[str]) -> tuple[Array, ...]:
    carry = total >> HALF
    return (word(total), carry != 0, carry > 1)[: len(results)]


def iadd3(i: Instruction, results: list[str], sources: list[str], o: Operands) -> Operation:
    if "64" in i.modifiers:
        parts = [o.pair(s) for s in sources if not is_predicate(s)]
        return 64, lambda s: halves(sum(p(s) for p in parts))
    parts = [o.carrying(s) for s in sources if not is_predicate(s)]
    carried = [o.flag(s) for s in sources if is_predicate(s)] if "X" in i.modifiers else []

    def compute(s: Registers) -> tuple[Array, ...]:
        total = s.zero.astype(np.uint64)
        for part in (*parts, *carried):
            total = total + part(s)
        return _carries(total, results)

    return 32, compute


def imad(i: Instruction, results: list[str], sources: list[str], o: Operands) -> Operation:
    carried = [o.flag(s) for s in sources[3:] if is_predicate(s)] if "X" in i.modifiers else []
    if "WIDE" not in i.modifiers and "HI" not in i.modifiers:
        a, b, c = (o.word(s) for s in sources[:3])
        if not carried:
            return 32, lambda s: a(s) * b(s) + c(s)
        return 32, lambda s: a(s) * b(s) + c(s) + carried[0](s)
    read = o.unsigned if "U32" in i.modifiers else o.signed
    a, b, c = read(sources[0]), read(sources[1]), o.pair(sources[2])
    if "HI" in i.modifiers:
        return 32, lambda s: word(((a(s) * b(s)).view(np.uint64) + c(s)) >> HALF)

    def compute(s: Registers) -> tuple[Array, ...]:
        product = (a(s) * b(s)).view(np.uint64)
        total = product + c(s)
        for part in carried:
            total = total + part(s)
        return (*halves(total), total < product)[: 1 + len(results)]

    return 64, compute


def lea(i: Instruction, results: list[str], sources: list[str], o: Operands) -> Operation:
    predicates = [s for s in sources if is_predicate(s)]
    sources = [s for s in sources if not is_predicate(s)]
    shift = np.uint64(int(sources[-1], 0)) if len(sources) > 2 else np.uint64(0)
    a, b = o.unsigned(sources[0]), o.carrying(sources[1])
    carried = o.flag(predicates[-1]) if "X" in i.modifiers else None
    if "SX32" in i.modifiers:
        a = o.signed(sources[0])
    elif "HI" in i.modifiers:
        low, high = a, o.unsigned(sources[2])
        a = lambda s: high(s) << HALF | low(s)  # noqa: E731

    def compute(s: Registers) -> tuple[Array, ...]:
        shifted = a(s).view(np.uint64) << shift
        shifted = shifted >> HALF if "HI" in i.modifiers else shifted & LOW
        total = (shifted & LOW) + b(s)
        return _carries(total if carried is None else total + carried(s), results)

    return 32, compute


def shift(i: Instruction, results: list[str], sources: list[str], o: Operands) -> Operation:
    """Of two words as one number of 64 bits, low word first operand, high word last."""
    low, high = o.unsigned(sources[0]), o.unsigned(sources[2])
    amount, signed = o.unsigned(sources[1]), {"S32", "S64"} & {*i.modifiers}
    upper = "HI" in i.modifiers
    most = np.uint64(31 if "W" in i.modifiers else 63)

    def compute(s: Registers) -> Array:
        by = amount(s)
        by = by & most if "W" in i.modifiers else np.minimum(by, most)
        value = high(s) << HALF | low(s)
        if "L" in i.modifiers:
            value = value << by
        elif "U32" in i.modifiers and not upper:
            value = low(s) >> by
        elif signed:
            value = (value.view(np.int64) >> by.view(np.int64)).view(np.uint64)
        else:
            value = value >> by
        return word(value >> HALF if upper else value)

    return 32, compute


def lop3(i: Instruction, results: list[str], sources: list[str], o: Operands) -> Operation:
    a, b, c = (o.word(s) for s in sources[:3])
    table = int(sources[3], 0)
    common = {
        0xC0: lambda s: a(s) & b(s),
        0xFC: lambda s: a(s) | b(s),
        0x3C: lambda s: a(s) ^ b(s),
        0x33: lambda s: ~b(s),
        0x0F: lambda s: ~a(s),
    }.get(table)

    def by_table(s: Registers) -> Array:
        x, y, z = a(s), b(s), c(s)
        found = s.zero
        for place in range(8):
            if table >> place & 1:
                found = found | (
                    (x if place & 4 else ~x) & (y if place & 2 else ~y) & (z if place & 1 else ~z)
                )
        return found

    compute = common or by_table
    if len(results) == 1:
        return 32, compute
    extra = o.flag(sources[4]) if len(sources) > 4 else o.flag("!PT")

    def with_flag(s: Registers) -> tuple[Array, Array]:
        found = compute(s)
        return found, (found != 0) | extra(s)

    return 32, with_flag


def move(i: Instruction, results: list[str], sources: list[str], o: Operands) -> Operation:
    if "64" in i.modifiers:
        pair = o.pair(sources[0])
        return 64, lambda s: halves(pair(s))
    read = o.word(sources[0])
    return 32, lambda s: read(s)
