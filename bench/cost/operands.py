"""Operands of instructions: which registers they name, and how to read them for all threads.

Registers are arrays, an element per thread: uint32, predicates bool. `R4`, `UR4`, `P0` and `UP0`
are names; RZ, URZ, PT and UPT are none. What a uniform register holds, every thread holds here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any  # of numpy, an element per thread
Read = Callable[["Registers"], Array]
REGISTER = re.compile(r"(U?R)(\d+|Z)\b")
PREDICATE = re.compile(r"!?(U?P)(\d|T)$")
Operation = tuple[int, Callable[["Registers"], Any]]  # bits of a result, and what computes it
ONE = 0x3F800000  # 1.0, which stands for every number that decides nothing


class Registers:
    """What the threads of one program hold.

    Attributes:
        words: by name, [threads] uint32.
        flags: by name, [threads] bool.
        constants: bank 0 as the driver fills it, and bank 2 of the code.
        special: by name of a special register.
    """

    def __init__(
        self, threads: int, constants: dict[int, bytes], special: dict[str, Array]
    ) -> None:
        self.zero = np.zeros(threads, np.uint32)
        self.true = np.ones(threads, bool)
        self.words: dict[str, Array] = {}
        self.flags: dict[str, Array] = {}
        self.constants = constants
        self.special = special

    def set(self, name: str, value: Array, mask: Array | None) -> None:
        """Where `mask` holds; None: everywhere."""
        predicate = name[0] == "P" or name[1] == "P"
        held = self.flags if predicate else self.words
        if mask is None:
            held[name] = value
        else:
            old = held.get(name)
            if old is None:
                old = ~self.true if predicate else self.zero
            held[name] = np.where(mask, value, old)

    def constant(self, bank: int, offset: int) -> int:
        return int.from_bytes(self.constants[bank][offset : offset + 4], "little")


def next_name(name: str, step: int = 1) -> str:
    """The register behind one: R4 -> R5."""
    match = REGISTER.match(name)
    assert match is not None
    return name if match[2] == "Z" else f"{match[1]}{int(match[2]) + step}"


def immediate(text: str) -> int:
    """The 32 bits of a constant in an instruction, an integer or a number."""
    try:
        return int(text, 0) & 0xFFFFFFFF
    except ValueError:
        number = text.replace("QNAN", "nan").replace("INF", "inf")
        return int(np.float32(float(number)).view(np.uint32))


def nothing(name: str) -> bool:
    return name.endswith("Z") or name in ("PT", "UPT", "!PT", "!UPT")


def is_predicate(text: str) -> bool:
    return PREDICATE.match(text) is not None


class Operands:
    """Turns operands into readers, and remembers the registers that they name."""

    def __init__(self) -> None:
        self.uses: set[str] = set()

    def flag(self, text: str) -> Read:
        inverted, name = text.startswith("!"), text.lstrip("!")
        if nothing(name):
            return (lambda s: ~s.true) if inverted else (lambda s: s.true)
        self.uses.add(name)
        if inverted:
            return lambda s: ~s.flags.get(name, ~s.true)
        return lambda s: s.flags.get(name, ~s.true)

    def word(self, text: str) -> Read:
        """32 bits of an integer operand."""
        if text.startswith("-") and not text[1].isdigit():
            positive = self.word(text[1:])
            return lambda s: np.negative(positive(s))
        if text.startswith("~"):
            inner = self.word(text[1:])
            return lambda s: ~inner(s)
        text = text.split(".")[0] if text[0] in "RU" else text
        if constant := re.match(r"c\[(0x\w+)\]\[(0x\w+)\]", text):
            bank, offset = int(constant[1], 16), int(constant[2], 16)
            return lambda s: s.zero + np.uint32(s.constant(bank, offset))
        if not REGISTER.match(text):
            value = np.uint32(immediate(text))
            return lambda s: s.zero + value
        if nothing(text):
            return lambda s: s.zero
        self.uses.add(text)
        return lambda s: s.words.get(text, s.zero)

    def pair(self, text: str) -> Read:
        """64 bits of an integer operand, uint64."""
        if text.startswith("-") and not text[1].isdigit():
            positive = self.pair(text[1:])
            return lambda s: np.negative(positive(s))
        text = text.split(".")[0] if text[0] in "RU" else text
        low = self.word(text)
        if constant := re.match(r"c\[(0x\w+)\]\[(0x\w+)\]", text):
            high = self.word(f"c[{constant[1]}][{int(constant[2], 16) + 4:#x}]")
        elif REGISTER.match(text):
            high = self.word(next_name(text))
        else:
            value = int(text, 0)
            high = self.word(hex(value >> 32 & 0xFFFFFFFF))
        return lambda s: high(s).astype(np.uint64) << np.uint64(32) | low(s)

    def carrying(self, text: str) -> Read:
        """32 bits as uint64 such that a sum's upper half is the carry, also of a difference."""
        if text.startswith("-") and not text[1].isdigit():
            inverse = self.word("~" + text[1:])
            return lambda s: inverse(s).astype(np.uint64) + np.uint64(1)
        read = self.word(text)
        return lambda s: read(s).astype(np.uint64)

    def signed(self, text: str) -> Read:
        """32 bits as int64."""
        read = self.word(text)
        return lambda s: read(s).view(np.int32).astype(np.int64)

    def unsigned(self, text: str) -> Read:
        """32 bits as uint64, of them 32."""
        read = self.word(text)
        return lambda s: read(s).astype(np.uint64)

    def real(self, text: str, *, double: bool = False) -> Read:
        """A floating point operand."""
        negative, magnitude = text.startswith("-"), "|" in text
        bare = text.lstrip("-").strip("|")
        if REGISTER.match(bare) or bare.startswith("c["):
            inner = self.pair(bare) if double else self.word(bare)
            kind = np.float64 if double else np.float32
            read: Read = lambda s: inner(s).view(kind)  # noqa: E731
        else:
            number = np.float64(float(bare.replace("QNAN", "nan").replace("INF", "inf")))
            read = lambda s: s.zero + number  # noqa: E731
        if magnitude:
            return lambda s: np.negative(np.abs(read(s))) if negative else np.abs(read(s))
        return (lambda s: np.negative(read(s))) if negative else read

    def address(self, text: str, *, wide: bool) -> Read:
        """The sum within the last brackets of a memory operand; uint64."""
        terms: list[Read] = []
        inner = text[text.rindex("[") + 1 : text.rindex("]")]
        for term in re.findall(r"[^+]+", inner):
            register, _, kind = term.partition(".")
            if "64" in kind:
                terms.append(self.pair(register))
            elif register[0] in "RU" or "c[" in register:
                scale = int(kind[1:]) if kind[:1] == "X" else 1
                terms.append(_scaled(self.word(register), scale))
            else:
                value = np.uint64(int(term, 0) & 0xFFFFFFFFFFFFFFFF)
                terms.append(lambda s, value=value: value)  # type: ignore[misc]
        limit = np.uint64(0xFFFFFFFFFFFFFFFF if wide else 0xFFFFFFFF)

        def read(s: Registers) -> Array:
            total = s.zero.astype(np.uint64)
            for term in terms:
                total = total + term(s)
            return total & limit

        return read


def _scaled(read: Read, scale: int) -> Read:
    return lambda s: read(s).astype(np.uint64) * np.uint64(scale)
