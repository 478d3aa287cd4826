"""What an instruction keeps busy, and how long its result takes."""

from __future__ import annotations

from bench.cost import constants
from bench.cost.sass import Instruction

ALU = ("ISETP", "FSETP", "SEL", "FSEL", "LOP3", "VIADD", "IADD3", "LEA", "SHF", "IABS", "PRMT",
       "VIMNMX", "VIADDMNMX", "IMNMX", "FMNMX", "SGXT", "PLOP3", "P2R", "R2P", "F2FP")  # fmt: skip
LATENCIES = {
    constants.FAR: ("LDG", "LD", "LDGSTS"),
    constants.SHARED: ("LDS", "LDSM", "SHFL", "LDTM"),
    constants.CONSTANT: ("LDC", "ULDC", "LDCU", "S2R", "S2UR"),
}
LATENCY = {name: cycles for cycles, names in LATENCIES.items() for name in names}
PIPES = {
    **dict.fromkeys(ALU, ("alu", constants.ALU)),
    "IMAD": ("fma", constants.MULTIPLY),
    **dict.fromkeys(("FADD", "FMUL", "FFMA", "HFMA2", "HADD2"), ("fma", constants.ADD)),
    **dict.fromkeys(("MUFU", "I2F", "F2I", "F2F", "POPC", "FLO"), ("special", constants.CONVERT)),
    "HMMA": ("tensor", constants.HMMA),
}
MEMORY = ("LDS", "STS", "LDSM", "STSM", "LDG", "STG", "LDGSTS", "SHFL", "LD", "ST", "REDG")
WIDE = {"128": 4, "64": 2, "4": 4, "2": 2}  # wavefronts by a modifier


def latency(instruction: Instruction) -> float:
    """Cycles until a result is there."""
    return LATENCY.get(instruction.name, constants.SPECIAL)


def pipe(instruction: Instruction) -> tuple[str, float]:
    """The pipe that an instruction needs, and for how many cycles; "" for none that is scarce."""
    if instruction.name in PIPES:
        return PIPES[instruction.name]
    if instruction.name == "HGMMA":  # e.g. HGMMA.64x64x8
        m, n, k = map(int, instruction.modifiers[0].split("x"))
        return "tensor", m * n * k / constants.WARPGROUP_PRODUCTS
    if instruction.name in MEMORY:
        wavefronts = next((WIDE[m] for m in instruction.modifiers if m in WIDE), 1)
        return "memory", constants.WAVEFRONT * wavefronts
    return "", 0.0
