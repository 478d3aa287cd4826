"""Machine code as nvdisasm prints it, as instructions and basic blocks.

A text holds one kernel: a line per instruction, `address control instruction`, and the jump tables
of its constant bank 2. `control` is what the compiler tells the hardware's scheduler: for how many
cycles to stall and which of six barriers to wait for or to set.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

STEP = 16  # bytes of an instruction
BARRIERS = 6
ENDS = ("BRA", "BRX", "BRXU", "EXIT", "CALL", "RET", "BPT")
LINE = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;?\s*/\* 0x([0-9a-f]{16}) \*/")
SECOND = re.compile(r"\s*/\* 0x([0-9a-f]{16}) \*/")


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        guard: predicate that must hold, e.g. `!P0`; empty without.
        targets: addresses that it may jump to.
    """

    address: int
    control: int
    guard: str
    opcode: str
    operands: tuple[str, ...]
    targets: tuple[int, ...] = ()

    @cached_property
    def name(self) -> str:
        return self.opcode.split(".")[0]

    @cached_property
    def modifiers(self) -> tuple[str, ...]:
        return tuple(self.opcode.split(".")[1:])

    @property
    def ends_block(self) -> bool:
        return self.name in ENDS

    @property
    def stall(self) -> int:
        return self.control & 15

    @property
    def sets(self) -> tuple[int, int]:
        """Barriers set until a result is there, and until operands have been read; 7 is none."""
        return self.control >> 5 & 7, self.control >> 8 & 7

    @property
    def awaits(self) -> tuple[int, ...]:
        mask = self.control >> 11 & 63
        return tuple(barrier for barrier in range(BARRIERS) if mask >> barrier & 1)


@dataclass(frozen=True)
class Code:
    """A kernel.

    Attributes:
        name: of the kernel.
        instructions: in the order of their addresses, one each STEP bytes.
        tables: constant bank 2, which indirect jumps read.
    """

    name: str
    instructions: tuple[Instruction, ...]
    tables: bytes

    @cached_property
    def blocks(self) -> dict[int, tuple[Instruction, ...]]:
        """Basic blocks by the address of their first instruction."""
        heads = {0}
        for instruction in self.instructions:
            heads.update(instruction.targets)
            if instruction.ends_block:
                heads.add(instruction.address + STEP)
            elif instruction.name == "BSYNC":  # where threads that went apart meet
                heads.add(instruction.address)
        found: dict[int, list[Instruction]] = {}
        for instruction in self.instructions:
            if instruction.address in heads:
                current = found[instruction.address] = []
            current.append(instruction)
        return {head: tuple(block) for head, block in found.items()}

    def successors(self, block: tuple[Instruction, ...]) -> set[int]:
        """Addresses at which execution may go on."""
        last = block[-1]
        if last.name == "RET":
            return {i.address + STEP for i in self.instructions if i.name == "CALL"}
        following = set(last.targets)
        if not (last.ends_block and last.name not in ("CALL", "BPT")) or conditional(last):
            following.add(last.address + STEP)
        return following & set(self.blocks)


def conditional(last: Instruction) -> bool:
    """Whether a jump may not be taken."""
    return bool(last.guard) or (last.name == "BRA" and bool(last.operands))


def disassemble(cubin: bytes, triton_folder: Path) -> str:
    """The text of a compiled kernel, by nvdisasm, which ships inside Triton."""
    tool = triton_folder / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [os.fspath(tool), "-hex", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return condensed(printed)


def condensed(printed: str) -> str:
    """What nvdisasm has printed, without what this model does not read."""
    name, section, current = "", "", None
    lines: list[tuple[int, str]] = []
    labels: dict[str, int] = {}
    jumps: list[str] = []
    for line in printed.splitlines():
        if line.startswith("\t.section\t"):
            section = line.split("\t")[2].split(",")[0]
        elif (label := re.match(r"(\S+):$", line)) and not line.startswith("."):
            name = name or label[1]
            labels[label[1]] = len(lines)
        elif label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
        elif section.startswith(".nv.constant2.") and ".byte" in line:
            jumps += re.findall(r"0x([0-9a-f]{2})\b", line)
        elif section.startswith(".text.") and (found := LINE.match(line)):
            current = found[2]
        elif current is not None and (found := SECOND.match(line)):
            control = int(found[1], 16) >> 41 & 0x1FFFFF
            lines.append((control, re.sub(r"\s+", " ", current)))
            current = None
    text = [f"{control:x} {_resolved(shown, labels)}" for control, shown in lines]
    return "\n".join([name, "".join(jumps), *text, ""])


def _resolved(shown: str, labels: dict[str, int]) -> str:
    """Jumps with addresses in their labels' place."""
    shown = re.sub(r"`\(([^)]*)\)", lambda m: f"@{STEP * labels.get(m[1], 0):x}", shown)
    return re.sub(
        r'\(\*"BRANCH_TARGETS ([^"]*)"\*\)',
        lambda m: " ".join(f"@{STEP * labels[x.strip()]:x}" for x in m[1].split(",")),
        shown,
    )


def parse(text: str) -> Code:
    """A kernel from what `disassemble` returns."""
    name, jumps, *lines = text.splitlines()
    found = tuple(_instruction(STEP * place, line) for place, line in enumerate(lines))
    return Code(name, found, bytes.fromhex(jumps))


def _instruction(address: int, line: str) -> Instruction:
    control, shown = line.split(" ", 1)
    targets = tuple(int(t, 16) for t in re.findall(r"@([0-9a-f]+)\b", shown))
    guard = re.match(r"@(!?U?P\w+) ", shown)
    shown = shown[guard.end() :] if guard else shown
    opcode, _, rest = shown.partition(" ")
    rest = re.sub(r"\s*@[0-9a-f]+\b", "", rest).replace(".reuse", "").strip().strip(",")
    operands = tuple(part.strip() for part in rest.split(",")) if rest else ()
    if guard:  # "@P0" reads as an address: no jump goes there
        targets = tuple(int(t, 16) for t in re.findall(r"@([0-9a-f]+)\b", line.split(" ", 2)[2]))
    if opcode.split(".")[0] in ("RET", "BSSY", "BREAK", "WARPSYNC"):
        targets = ()
    return Instruction(
        address, int(control, 16), guard[1] if guard else "", opcode, operands, targets
    )
