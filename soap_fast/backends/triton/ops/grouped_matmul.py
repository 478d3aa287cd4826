"""Products of a refresh by the Triton kernel `grouped_matmul`, in the operator's place on CUDA.

`soap_fast::grouped_matmul_` is what the extension's refresh multiplies with, see
soap_fast/step/grouped_matmul.py. Within `products_by` its products are one launch of ours; outside,
and for groups that the kernel does not serve, a batched product of torch's each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

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
    multiply,
)
from soap_fast.triton_kernels.columns import GROUPED_CLASSES, GROUPED_MATMUL

Products = tuple[Launcher, str]  # and the precision
Group = tuple[Tensor, Tensor, Tensor]  # a, b and their product
_within: ContextVar[Products | None] = ContextVar("products", default=None)
_libraries: dict[str, torch.library.Library] = {}


@contextmanager
def products_by(launcher: Launcher, precision: str, device_type: str = "cuda") -> Iterator[None]:
    """Within it the refresh multiplies by the kernel: tf32x3, or ieee where that is asked for."""
    if device_type not in _libraries:
        library = torch.library.Library("soap_fast", "IMPL")  # type: ignore[no-untyped-call]
        key = device_type.upper()
        library.impl("grouped_matmul_", _operator, key)  # type: ignore[no-untyped-call]
        _libraries[device_type] = library
    token = _within.set((launcher, "ieee" if precision == "ieee" else "tf32x3"))
    try:
        yield
    finally:
        _within.reset(token)


def _operator(
    a: Sequence[Tensor], b: Sequence[Tensor], products: Sequence[Tensor], structure: int = 0
) -> None:
    kept = _within.get()
    if kept is not None:
        grouped_matmul_triton(a, b, products, *kept, structure)
    else:
        for left, right, product in zip(a, b, products, strict=True):
            multiply(left, right, product, structure)


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
        precision: "tf32x3" or "ieee".
    """
    served: dict[bool, list[Group]] = {True: [], False: []}
    for group in zip(a, b, products, strict=True):
        if _is_served(*group):
            served[_in_quads(*group)].append(group)
        else:
            multiply(*group, structure)
    for in_quads, those in served.items():
        _launch(those, in_quads, launcher, precision, structure)


def _launch(
    groups: Sequence[Group], in_quads: bool, launcher: Launcher, precision: str, structure: int
) -> None:
    constants = {
        **TUNING["grouped_matmul"].constants,
        "QUADS": in_quads,
        "PRECISION": _precision(precision, structure),
    }
    most = constants["GROUPS"]
    for first in range(0, len(groups), most):
        rows, tiles = _rows(groups[first : first + most], constants["PRECISION"], structure)
        table = upload(torch.tensor(rows, dtype=torch.int64), groups[0][0].device)
        arguments = (table, len(rows), tiles)
        launcher(Launch("grouped_matmul", arguments, constants, tiles))


def _precision(asked: str, structure: int) -> str:
    return "tf32" if asked == "tf32x3" and structure & ROUNDED else asked


def _is_served(*group: Tensor) -> bool:
    """Float32 by rows, something to sum, and offsets within a matrix that 32 bits hold."""
    a, b, product = group
    by_rows = a.stride(2) == b.stride(1) == product.stride(2) == 1
    spans = (
        max(x.shape[1] * abs(x.stride(1)), x.shape[2] * abs(x.stride(2))) < 2**30 for x in group
    )
    summed = product.numel() > 0 and a.shape[2] > 0
    return by_rows and summed and a.dtype == torch.float32 and all(spans)


def _rows(groups: Sequence[Group], precision: str, structure: int) -> tuple[list[list[int]], int]:
    """Rows of the table, and how many tiles there are."""
    rows, tiles = [], 0
    for a, b, product in groups:
        count, m, n = product.shape
        kind, height, width = _kind(a, b, product, precision)
        tiles_m, tiles_n = -(-m // height), -(-n // width)
        symmetric = structure & SYMMETRIC
        per_matrix = tiles_m * tiles_n
        if symmetric:  # from the diagonal down, a column of tiles after the other
            per_matrix -= sum(column * width // height for column in range(tiles_n))
        last = tiles + count * per_matrix
        row = {
            "first_tile": tiles,
            "last_tile": last,
            "kind": kind,
            "m": m,
            "n": n,
            "k": a.shape[2],
            "tiles_m": tiles_m,
            "tiles_n": tiles_n,
            "per_matrix": per_matrix,
            "symmetric": bool(symmetric),
            "from_row": bool(structure & LEFT_UPPER),
            "from_column": bool(structure & RIGHT_LOWER),
            "subtract": bool(structure & SUBTRACT),
        }
        for name, x, axis in (("a", a, 1), ("b", b, 2), ("out", product, 1)):
            row[f"{name}_address"] = x.data_ptr()
            row[f"{name}_matrix"], row[f"{name}_row"] = x.stride(0), x.stride(axis)
        rows.append([row[name] for name in GROUPED_MATMUL])
        tiles = last
    return rows, tiles


def _kind(a: Tensor, b: Tensor, product: Tensor, precision: str) -> tuple[int, int, int]:
    """How a group is loaded and written, and the height and width of its tiles."""
    _, m, n = product.shape
    in_quads = _in_quads(a, b, product)
    kind = kind_of(m, n, a.shape[2], in_quads, narrow=precision == "ieee")
    height, width, _ = GROUPED_CLASSES[kind]
    return kind, height, width


def _in_quads(a: Tensor, b: Tensor, product: Tensor) -> bool:
    """Whether all rows begin and end at multiples of 16 bytes."""
    steps = [product.shape[2], a.shape[2], *(x.stride(0) for x in (a, b, product))]
    steps += [a.stride(1), b.stride(2), product.stride(1)]
    return not any(step % 4 for step in steps) and not any(
        x.data_ptr() % 16 for x in (a, b, product)
    )
