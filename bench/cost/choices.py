"""Comparisons, predicates and what is chosen by them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bench.cost.operands import Array, Operands, Operation, Registers, is_predicate
from bench.cost.sass import Instruction


def plop3(i: Instruction, results: list[str], sources: list[str], o: Operands) -> Operation:
    a, b, c = (o.flag(s) for s in sources[:3])
    tables = [int(s, 0) for s in sources[3:5]]

    def compute(s: Registers) -> tuple[Array, ...]:
        place = a(s) * 4 + b(s) * 2 + c(s) * 1
        return tuple((table >> place & 1).astype(bool) for table in tables)

    return 32, compute


COMPARED = {
    "EQ": np.equal, "NE": np.not_equal, "LT": np.less, "LE": np.less_equal,
    "GT": np.greater, "GE": np.greater_equal,
}  # fmt: skip


def _combine(modifiers: tuple[str, ...]) -> Callable[[Array, Array], Array]:
    if "OR" in modifiers:
        return np.logical_or
    return np.logical_xor if "XOR" in modifiers else np.logical_and


def isetp(i: Instruction, results: list[str], sources: list[str], o: Operands) -> Operation:
    compare, combine = COMPARED[i.modifiers[0]], _combine(i.modifiers)
    read = o.unsigned if "U32" in i.modifiers else o.signed
    a, b, other = read(sources[0]), read(sources[1]), o.flag(sources[2])
    lower = o.flag(sources[3]) if "EX" in i.modifiers else None

    def compute(s: Registers) -> tuple[Array, Array]:
        x, y = a(s), b(s)
        found = compare(x, y)
        if lower is not None:  # of the words below
            strictly = compare(x, y) & (x != y)
            found = strictly | ((x == y) & lower(s))
        return combine(found, other(s)), combine(~found, other(s))

    return 32, compute


def fsetp(i: Instruction, results: list[str], sources: list[str], o: Operands) -> Operation:
    double = i.name.startswith("D")
    kind, combine = i.modifiers[0], _combine(i.modifiers)
    a, b = (o.real(s, double=double) for s in sources[:2])
    other = o.flag(sources[2])

    def compute(s: Registers) -> tuple[Array, Array]:
        x, y = a(s), b(s)
        unordered = np.isnan(x) | np.isnan(y)
        if kind in ("NAN", "NUM"):
            found = unordered if kind == "NAN" else ~unordered
        else:
            found = COMPARED[kind.removesuffix("U")](x, y) & ~unordered
            found = found | unordered if len(kind) == 3 else found
        return combine(found, other(s)), combine(~found, other(s))

    return 32, compute


def least(i: Instruction, results: list[str], sources: list[str], o: Operands) -> Operation:
    """Minimum or maximum, by a predicate; after a sum where the name has one."""
    *parts, chooses = sources
    flag = o.flag(chooses)
    unsigned = "U32" in i.modifiers
    reads = [o.word(s) for s in parts if not is_predicate(s)]
    summed = "VIADD" in i.name
    kind = np.uint32 if unsigned else np.int32

    def compute(s: Registers) -> Array:
        values = [read(s) for read in reads]
        if summed:
            values = [values[0] + values[1], values[2]]
        x, y = (v.view(kind) for v in values)
        return np.where(flag(s), np.minimum(x, y), np.maximum(x, y)).view(np.uint32)

    return 32, compute


def select(i: Instruction, results: list[str], sources: list[str], o: Operands) -> Operation:
    a, b, flag = o.word(sources[0]), o.word(sources[1]), o.flag(sources[2])
    return 32, lambda s: np.where(flag(s), a(s), b(s))


def vote(i: Instruction, results: list[str], sources: list[str], o: Operands) -> Operation:
    """Whether a predicate holds for all or any of a warp's threads, or for which, as bits."""
    flag, kind = o.flag(sources[0]), i.modifiers[0]
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)

    def compute(s: Registers) -> tuple[Array, ...]:
        by_warp = flag(s).reshape(-1, 32)
        holds = by_warp.all(axis=1) if kind == "ALL" else by_warp.any(axis=1)
        ballot = np.repeat((by_warp * bits).sum(axis=1, dtype=np.uint32), 32)
        found = {False: ballot, True: np.repeat(holds, 32)}
        return tuple(found[is_predicate(name)] for name in results)

    return 32, compute


OVER_A_WARP = {"SUM": np.add, "OR": np.bitwise_or, "XOR": np.bitwise_xor}


def over_a_warp(i: Instruction, results: list[str], sources: list[str], o: Operands) -> Operation:
    """A register's sum over a warp or, without a name, its bits in common; in all threads."""
    value = o.word(sources[0])
    combine = next((OVER_A_WARP[m] for m in i.modifiers if m in OVER_A_WARP), np.bitwise_and)

    def compute(s: Registers) -> tuple[Array, ...]:
        found = combine.reduce(value(s).astype(np.uint32).reshape(-1, 32), axis=1)
        return (np.repeat(found.astype(np.uint32), 32),)

    return 32, compute


def ones(i: Instruction, results: list[str], sources: list[str], o: Operands) -> Operation:
    """How many bits of a word are set."""
    value = o.word(sources[0])

    def compute(s: Registers) -> tuple[Array, ...]:
        return (np.bitwise_count(value(s)).astype(np.uint32),)

    return 32, compute
