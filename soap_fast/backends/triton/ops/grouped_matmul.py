"""Products of matrices of many sizes by the Triton kernel `grouped_matmul`.

All float32 groups of a call whose rows are multiples of 16 bytes are one launch, the others a
batched product of torch's each. A refresh in float32 has no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from soap_fast.backends.triton.launch.launcher import Launch, Launcher
from soap_fast.backends.triton.launch.tuning import TUNING
from soap_fast.backends.triton.launch.upload import upload
from soap_fast.backends.triton.ops.grouped_tiles import kind_of
from soap_fast.step.grouped_matmul import (
    LEFT_UPPER,
    RIGHT_LOWER,
    ROUNDED,
    SUBTRACT,
    SYMMETRIC,
    grouped_matmul_as_tensors,
    groups_of,
    multiply,
)
from soap_fast.triton_kernels.columns import GROUPED_CLASSES, GROUPED_MATMUL

FIRST_TILE, LAST_TILE = (GROUPED_MATMUL[name] for name in ("first_tile", "last_tile"))
ADDRESSES = [GROUPED_MATMUL[f"{x}_address"] for x in ("a", "b", "out")]
Triple = tuple[int, int, int]
Alike = tuple[str, int]  # precision and programs


class Multiplication(NamedTuple):
    """Of the groups of one call: launches, and the numbers of those that torch multiplies."""

    launches: list[Launch]
    by_torch: list[int]


def grouped_matmul_triton(
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    products: Sequence[Tensor],
    launcher: Launcher,
    precision: str,
    structure: int = 0,
) -> None:
    """As `grouped_matmul_eager`, all float32 products in one launch.

    Args:
        a, b, products: all of one dtype.
        precision: "tf32x3" or "ieee".
    """
    if not products:
        return
    by = multiplication(products[0], groups_of(a, b, products), launcher, precision, structure)
    for launch in by.launches:
        launcher(launch)
    for number in by.by_torch:
        multiply(a[number], b[number], products[number], structure)


def run(
    by: Multiplication, memory: Tensor, groups: Tensor, launcher: Launcher, structure: int
) -> None:
    for launch in by.launches:
        launcher(launch)
    if by.by_torch:
        grouped_matmul_as_tensors(memory, groups[by.by_torch], structure)


def multiplication(
    memory: Tensor, groups: Tensor, launcher: Launcher, precision: str, structure: int,
    compiled: dict[Alike, dict[str, Any]] | None = None,
) -> Multiplication:  # fmt: skip
    """Of these matrices where they lie; their tables are uploaded.

    Args:
        memory, groups: as of `grouped_matmul_at`.
        compiled: what launches keep of kernels that are called alike, for later ones too.
    """
    asked = "tf32" if precision == "tf32x3" and structure & ROUNDED else precision
    fixed = TUNING["grouped_matmul"].constants
    most = fixed["GROUPS"]
    table: list[list[int]] = []
    made = Multiplication([], [])
    for number, (count, m, n, k, *matrices) in enumerate(groups.tolist()):
        addresses = matrices[::4]
        aligned = not any(address % 16 for address in addresses)
        shapes = (count, m, k), (count, k, n), (count, m, n)
        strides = tuple(tuple(matrices[first : first + 3]) for first in (1, 5, 9))
        found = None
        if memory.dtype == torch.float32:
            found = _geometry(shapes, strides, aligned, asked == "ieee", structure)
        if found is None:
            made.by_torch.append(number)
            continue
        row = list(found.row)
        row[FIRST_TILE] = table[-1][LAST_TILE] if len(table) % most else 0
        row[LAST_TILE] = row[FIRST_TILE] + found.tiles
        for column, address in zip(ADDRESSES, addresses, strict=True):
            row[column] = address
        table.append(row)
    for first in range(0, len(table), most):
        rows = table[first : first + most]
        uploaded = upload(torch.tensor(rows, dtype=torch.int64), memory.device)
        tiles = rows[-1][LAST_TILE]
        constants = {**fixed, "PRECISION": asked}
        launch = Launch("grouped_matmul", (uploaded, len(rows), tiles), constants, tiles)
        if compiled is not None:
            alike = asked, launcher.programs(launch)
            launch = replace(launch, kept=compiled.setdefault(alike, {}))
        made.launches.append(launch)
    return made


class Geometry(NamedTuple):
    """What a table says of a group wherever it lies.

    Attributes:
        tiles: how many.
        row: of the table; addresses and numbers of tiles are not set.
    """

    tiles: int
    row: list[int]


@lru_cache(maxsize=4096)
def _geometry(
    shapes: tuple[Triple, ...], strides: tuple[Triple, ...], aligned: bool, narrow: bool,
    structure: int,
) -> Geometry | None:  # fmt: skip
    """Of a, b and their product; None where torch has to multiply.

    The kernel serves rows of a, columns of b and rows of out that are contiguous, begin and end at
    multiples of 16 bytes, with something to sum, and offsets within a matrix that 32 bits hold.

    Args:
        aligned: whether all three begin at multiples of 16 bytes.
        narrow: without tensor cores.
    """
    (_, _, k), _, (count, m, n) = shapes
    a, b, out = strides
    spans = (m * abs(a[1]), k, n * abs(b[2]), m * abs(out[1]), n)
    if not (a[2] == b[1] == out[2] == 1 and count * m * n * k and max(spans) < 2**30):
        return None
    steps = (n, k, a[0], a[1], b[0], b[2], out[0], out[1])
    if not aligned or any(step % 4 for step in steps):
        return None
    kind = kind_of(m, n, k, narrow)
    height, width = GROUPED_CLASSES[kind]
    tiles_m, tiles_n = -(-m // height), -(-n // width)
    per_matrix = tiles_m * tiles_n
    if structure & SYMMETRIC:  # from the diagonal down, a column of tiles after the other
        per_matrix -= sum(column * width // height for column in range(tiles_n))
    row = {
        "kind": kind,
        "m": m,
        "n": n,
        "k": k,
        "tiles_m": tiles_m,
        "tiles_n": tiles_n,
        "per_matrix": per_matrix,
        "symmetric": bool(structure & SYMMETRIC),
        "from_row": bool(structure & LEFT_UPPER),
        "from_column": bool(structure & RIGHT_LOWER),
        "subtract": bool(structure & SUBTRACT),
        "a_matrix": a[0],
        "a_row": a[1],
        "b_matrix": b[0],
        "b_row": b[2],
        "out_matrix": out[0],
        "out_row": out[1],
    }
    found = [row.get(name, 0) for name in GROUPED_MATMUL]
    return Geometry(count * per_matrix, found)
