"""The launches of a model's plain step as cases: compiled, their tables as a step fills them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch

from bench.cost import aot, sass
from bench.cost.case import Case
from bench.cost.sampling import representatives
from bench.recorded import named, record
from bench.shapes import Inventory
from soap_fast.backends.triton.backend import Precision
from soap_fast.backends.triton.launch.launcher import Launch, persistent_programs
from soap_fast.backends.triton.ops.work import Work

H100 = 132  # multiprocessors; where a launch differs by architecture, this is whose it is
TABLES = (torch.int32, torch.int64, torch.float64)  # what kernels read to find their way


def cases(inventory: Inventory, sm: int, precision: Precision) -> Iterator[Case]:
    """Every launch of a plain step in its order."""
    recorded = record(inventory, precision=precision)
    recorded.step()
    launched = recorded.launcher.launched
    names = named((launch.op for launch in launched), recorded.engine.works)
    for launch, (name, work) in zip(launched, names, strict=True):
        yield case(name, launch, work, sm)


def case(name: str, launch: Launch, work: Work | None, sm: int) -> Case:
    text, registers, shared, warps = _compiled(launch.op, tuple(launch.constants.items()), sm)
    tensors = [a for a in launch.arguments if isinstance(a, torch.Tensor)]
    return Case(
        name,
        sm,
        text,
        32 * warps,
        registers,
        shared,
        persistent_programs(launch, H100),
        representatives(launch),
        _packed(launch.arguments),
        [(t.data_ptr(), t.numpy().tobytes()) for t in tensors if t.dtype in TABLES],
        work.needed if work else None,
        work.bytes if work else None,
        whole=True,
    )


@cache
def _compiled(
    op: str, constants: tuple[tuple[str, Any], ...], sm: int
) -> tuple[str, int, int, int]:
    """Machine code, registers, bytes of shared memory and warps of a kernel."""
    made = aot.binary(op, dict(constants), sm)
    folder = aot.triton_folder()
    registers = aot.usage(made.asm["cubin"], folder)["registers"]
    text = sass.disassemble(made.asm["cubin"], folder)
    return text, registers, made.metadata.shared, made.metadata.num_warps


def _packed(arguments: tuple[Any, ...]) -> bytes:
    """Arguments as the driver lays them out: addresses in 8 bytes, integers in 4."""
    found = bytearray()
    for argument in arguments:
        pointer = isinstance(argument, torch.Tensor)
        if pointer:
            found += bytes(-len(found) % 8)
        value = argument.data_ptr() if pointer else int(argument)
        found += value.to_bytes(8 if pointer else 4, "little")
    return bytes(found)
