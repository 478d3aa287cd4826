"""A kernel made ready to be walked: of its instructions only what decides addresses and branches.

Results of all others are never computed. Which those are is found from the end of the code to its
beginning, as a compiler finds dead code: an instruction decides where a register it writes is read
by one that does, by a jump, or as an address.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.cost import alu
from bench.cost.alu import Computed
from bench.cost.operands import Array, Operands, Registers, is_predicate, next_name, nothing
from bench.cost.sass import STEP, Code, Instruction

GLOBAL = {
    "LDG": "load",
    "LD": "load",
    "LDGSTS": "load",
    "STG": "store",
    "ST": "store",
    "REDG": "store",
}
UNKNOWN = ("UBLKCP", "UTMALDG", "UTMASTG", "UBLKRED", "LDGMC", "RED", "ATOMG", "ATOM")
SHARED = ("LDS", "STS")
BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}


@dataclass(frozen=True)
class Access:
    """How an instruction reaches memory.

    Attributes:
        kind: load or store, of global or of shared memory.
        width: bytes of a thread.
        wanted: whether a thread's access takes place, beside the guard.
        data: first register that is loaded or stored.
    """

    kind: str
    width: int
    address: Callable[[Registers], Array]
    wanted: Callable[[Registers], Array] | None
    data: str
    uses: frozenset[str]


@dataclass(frozen=True)
class Step:
    """One instruction that is carried out.

    Attributes:
        guard: whether a thread takes part.
        names: registers it writes.
        values: what they receive, of arithmetic.
        access: of an access to memory.
        steers: whether it decides a branch, not an address alone.
    """

    instruction: Instruction
    guard: Callable[[Registers], Array] | None
    names: tuple[str, ...]
    values: Callable[[Registers], tuple[Array, ...]] | None
    access: Access | None
    steers: bool


@dataclass(frozen=True)
class Block:
    """Steps of a basic block, and the instruction that ends it.

    Attributes:
        length: instructions, also those that are not carried out.
        end: address behind it.
        live: registers that decide something later and are set before.
        steer: those of them that decide branches.
        jump: reads the address that an indirect jump goes to.
    """

    start: int
    end: int
    length: int
    steps: tuple[Step, ...]
    steering: tuple[Step, ...]
    last: Instruction
    taken: Callable[[Registers], Array] | None
    jump: Callable[[Registers], Array] | None
    live: frozenset[str]
    steer: frozenset[str]


class Unmodelled(Exception):
    """Machine code that decides addresses or branches in a way this model does not know."""


def prepare(code: Code) -> dict[int, Block]:
    """Blocks by address, ready to be walked.

    Raises:
        Unmodelled: of an access to memory.
    """
    known = {i.address: computed(i) for i in code.instructions}
    accesses = {i.address: _access(i) for i in code.instructions}
    jumps = {i.address: _jump(i) for i in code.instructions if i.ends_block}
    needed, live = _needed(code, known, accesses, jumps, addresses=True)
    steering, steer = _needed(code, known, accesses, jumps, addresses=False)
    blocks = {}
    for start, block in code.blocks.items():
        steps = []
        for instruction in block:
            access = accesses[instruction.address]
            if instruction.address not in needed and (access is None or "shared" in access.kind):
                continue
            made = known[instruction.address]
            if instruction.address in needed and not _modelled(instruction):
                raise Unmodelled(f"{instruction.opcode} at {instruction.address:#x} decides")
            guard = Operands().flag(instruction.guard) if instruction.guard else None
            if not instruction.ends_block:
                steers = instruction.address in steering
                steps.append(Step(instruction, guard, made.names, made.values, access, steers))
        last = block[-1]
        taken, jump, _ = jumps.get(last.address, (None, None, frozenset()))
        end = last.address + STEP
        blocks[start] = Block(
            start,
            end,
            len(block),
            tuple(steps),
            tuple(s for s in steps if s.steers),
            last,
            taken,
            jump,
            live[start],
            steer[start],
        )
    return blocks


def _modelled(instruction: Instruction) -> bool:
    return instruction.name in ("SHFL", "LDGSTS", "STG", "ST", "REDG", "STS") or alu.known(
        instruction
    )


def computed(instruction: Instruction) -> Computed:
    """What an instruction writes beside memory, and what it reads for that."""
    loads = instruction.name in ("LDC", "LDCU", "ULDC")
    if loads and (match := re.search(r"\[(U?R\d+)\]$", instruction.operands[1])):
        return _indexed(instruction, match[1])
    if instruction.name == "SHFL":
        return _shuffled(instruction)
    if instruction.ends_block or instruction.name in ("STS", "STG", "ST", "REDG", "LDGSTS"):
        return Computed((), lambda s: (), frozenset())
    return alu.integer(instruction) or alu.numbers(instruction)


def _indexed(instruction: Instruction, register: str) -> Computed:
    """A word of a constant bank at an address that threads compute: tables of jumps."""
    operands = Operands()
    place = operands.word(register)
    bank = int(instruction.operands[1][2:].split("]")[0], 16)

    def values(s: Registers) -> tuple[Array, ...]:
        held = np.frombuffer(s.constants[bank], np.uint32)
        return (held[np.minimum(place(s) // 4, len(held) - 1)],)

    return Computed((instruction.operands[0],), values, frozenset(operands.uses))


def _shuffled(instruction: Instruction) -> Computed:
    """A register of another thread of the warp."""
    flag, result, source, *where = instruction.operands
    operands = Operands()
    value, by = operands.word(source), operands.word(where[0])
    kind = instruction.modifiers[0]

    def values(s: Registers) -> tuple[Array, ...]:
        lane = np.arange(len(s.zero), dtype=np.int64)
        within, other = lane % 32, by(s).astype(np.int64)
        there = {
            "BFLY": within ^ other,
            "IDX": other,
            "UP": within - other,
            "DOWN": within + other,
        }[kind]
        there = np.where((there >= 0) & (there < 32), there, within)
        return value(s)[lane - within + there], s.true

    return Computed((result, flag), values, frozenset(operands.uses))


def _access(instruction: Instruction) -> Access | None:
    name = instruction.name
    if name in UNKNOWN:
        raise Unmodelled(f"{instruction.opcode} at {instruction.address:#x}")
    kind = GLOBAL.get(name) or (f"shared {'load' if name == 'LDS' else 'store'}")
    if name not in GLOBAL and name not in SHARED:
        return None
    operands = Operands()
    width = next((BYTES[m] for m in instruction.modifiers if m in BYTES), 4)
    place = next(x for x in reversed(instruction.operands) if x.endswith("]"))
    address = operands.address(place, wide=name in GLOBAL)
    wanted = None
    if name in ("LDGSTS", "LDG") and is_predicate(instruction.operands[-1]):
        wanted = operands.flag(instruction.operands[-1])
    if kind.endswith("store"):
        data = next(x for x in reversed(instruction.operands) if not x.endswith("]"))
    else:
        data = "RZ" if name == "LDGSTS" else instruction.operands[0]
    return Access(kind, width, address, wanted, data, frozenset(operands.uses))


def _jump(instruction: Instruction) -> tuple[Any, Any, frozenset[str]]:
    """Whether a thread jumps, where an indirect jump goes, and the registers that decide both."""
    operands = Operands()
    taken = operands.flag(instruction.guard) if instruction.guard else None
    jump = None
    if instruction.name == "BRA" and instruction.operands:
        if instruction.modifiers == ("DIV",):  # where a warp has gone apart: none does for long
            return (lambda s: ~s.true), None, frozenset()
        both, also = taken, operands.flag(instruction.operands[0])
        taken = also if both is None else (lambda s: both(s) & also(s))
    elif instruction.name in ("BRX", "BRXU"):
        register, _, offset = instruction.operands[0].partition(" ")
        place = operands.word(register)
        base = np.uint32(instruction.address + STEP + int(offset or "0", 0) & 0xFFFFFFFF)
        jump = lambda s: place(s) + base  # noqa: E731
    elif instruction.name == "RET":
        jump = operands.word(instruction.operands[0])
    return taken, jump, frozenset(operands.uses)


def _needed(
    code: Code,
    known: dict[int, Computed],
    accesses: dict[int, Access | None],
    jumps: dict[int, tuple[Any, Any, frozenset[str]]],
    *,
    addresses: bool,
) -> tuple[set[int], dict[int, frozenset[str]]]:
    """Addresses of the instructions that decide; by block, registers alive at its beginning.

    Args:
        addresses: whether addresses count, or branches alone.
    """
    needed: set[int] = set()
    live: dict[int, frozenset[str]] = dict.fromkeys(code.blocks, frozenset())
    shared = False
    pending = True
    following = {start: code.successors(block) for start, block in code.blocks.items()}
    while pending:
        pending = False
        for start, block in sorted(code.blocks.items(), reverse=True):
            after = frozenset().union(*(live[x] for x in following[start]))
            alive = set(after)
            for instruction in reversed(block):
                address = instruction.address
                access = accesses[address]
                decides = addresses and access is not None and "shared" not in access.kind
                if access is not None and access.kind == "shared store" and shared:
                    decides = True
                if alive & set(known[address].names):
                    decides = True
                    if access is not None and access.kind == "shared load" and not shared:
                        shared = pending = True
                if decides:
                    needed.add(address)
                _pass(instruction, decides, known[address], access, alive)
                if instruction.ends_block:
                    alive |= jumps[address][2]
            if alive != live[start]:
                live[start] = frozenset(alive)
                pending = True
    return needed, live


def _pass(
    instruction: Instruction,
    decides: bool,
    computed: Computed,
    access: Access | None,
    alive: set[str],
) -> None:
    """Registers alive behind an instruction -> ahead of it."""
    if not instruction.guard:
        alive.difference_update(computed.names)
    if not decides:
        return
    alive |= computed.uses
    if instruction.guard and not nothing(instruction.guard):
        alive.add(instruction.guard.lstrip("!"))
    if access is not None:
        alive |= access.uses
        if access.kind == "shared store":
            alive |= {next_name(access.data, n) for n in range(max(1, access.width // 4))}
            alive.discard("RZ")
