"""Integers from and to numbers, bytes and bits of them, and registers of the machine."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.cost.operands import Array, Operands, Operation, Registers
from bench.cost.sass import Instruction
from bench.cost.words import HALF, halves, word


def special(i: Instruction, results: list[str], sources: list[str], o: Operands) -> Operation:
    wide = i.name == "CS2R" and "32" not in i.modifiers
    read = lambda s: s.special.get(sources[0], s.zero)  # noqa: E731
    return (64, lambda s: (read(s), s.zero)) if wide else (32, read)


def extend(i: Instruction, results: list[str], sources: list[str], o: Operands) -> Operation:
    a, bits = o.word(sources[0]), np.uint32(32 - int(sources[1], 0))
    if "U32" in i.modifiers:
        return 32, lambda s: a(s) << bits >> bits
    return 32, lambda s: ((a(s) << bits).view(np.int32) >> np.int32(bits)).view(np.uint32)


def permute(i: Instruction, results: list[str], sources: list[str], o: Operands) -> Operation:
    """Bytes of two words, chosen by the digits of a third."""
    a, chosen, b = (o.word(s) for s in sources[:3])

    def compute(s: Registers) -> Array:
        value = b(s).astype(np.uint64) << HALF | a(s)
        found, digits = s.zero, chosen(s)
        for place in range(4):
            digit = digits >> np.uint32(4 * place) & np.uint32(15)
            byte = word(
                value >> (digit & np.uint32(7)).astype(np.uint64) * np.uint64(8)
            ) & np.uint32(255)
            byte = np.where(digit & 8, np.where(byte & 128, 255, 0), byte).astype(np.uint32)
            found = found | byte << np.uint32(8 * place)
        return found

    return 32, compute


def absolute(i: Instruction, results: list[str], sources: list[str], o: Operands) -> Operation:
    a = o.word(sources[0])
    return 32, lambda s: np.abs(a(s).view(np.int32)).view(np.uint32)


def to_real(i: Instruction, results: list[str], sources: list[str], o: Operands) -> Operation:
    """An integer as float32, rounded up where the instruction says so."""
    wide = "U64" in i.modifiers
    unsigned = wide or "U32" in i.modifiers
    a = o.pair(sources[0]) if wide else o.unsigned(sources[0]) if unsigned else o.signed(sources[0])
    up = "RP" in i.modifiers

    def compute(s: Registers) -> Array:
        exact = a(s)
        near = exact.astype(np.float32)
        if up:
            below = near.astype(np.float64) < exact.astype(np.float64)
            near = np.where(below, np.nextafter(near, np.float32(np.inf)), near)
        return near.astype(np.float32).view(np.uint32)

    return 32, compute


def to_integer(i: Instruction, results: list[str], sources: list[str], o: Operands) -> Operation:
    a = o.real(sources[0])
    wide = {"U64", "S64"} & {*i.modifiers}
    unsigned = {"U32", "U64"} & {*i.modifiers}
    least, most = (0, 2.0**63) if wide else (0, 2**32 - 1) if unsigned else (-(2**31), 2**31 - 1)

    def compute(s: Registers) -> Any:
        whole = np.trunc(np.nan_to_num(a(s).astype(np.float64)).clip(least, most))
        value = whole.astype(np.uint64) if unsigned else whole.astype(np.int64).view(np.uint64)
        return halves(value) if wide else word(value)

    return 64 if wide else 32, compute


def reciprocal(i: Instruction, results: list[str], sources: list[str], o: Operands) -> Operation:
    a = o.real(sources[0])

    def compute(s: Registers) -> Array:
        with np.errstate(divide="ignore"):
            return (np.float32(1) / a(s).astype(np.float32)).view(np.uint32)

    return 32, compute


def packed(i: Instruction, results: list[str], sources: list[str], o: Operands) -> Operation:
    flags, mask = [o.flag(f"P{n}") for n in range(7)], o.word(sources[2])

    def compute(s: Registers) -> Array:
        value = s.zero
        for place, flag in enumerate(flags):
            value = value | flag(s).astype(np.uint32) << np.uint32(place)
        return value & mask(s)

    return 32, compute


def halves_of_a_word(
    i: Instruction, results: list[str], sources: list[str], o: Operands
) -> Operation | None:
    """A constant that compilers make by a sum of halves: 0 * 0 + (upper, lower)."""
    if len(sources) != 4 or any(s.lstrip("-") != "RZ" for s in sources[:2]):
        return None
    upper, lower = (int(np.float16(float(s)).view(np.uint16)) for s in sources[2:])
    value = np.uint32(upper << 16 | lower)
    return 32, lambda s: s.zero + value
