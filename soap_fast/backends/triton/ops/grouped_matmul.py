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
from soap_fast.step.grouped_matmul import LEFT_UPPER, RIGHT_LOWER, SUBTRACT, SYMMETRIC
from soap_fast.triton_kernels.columns import GROUPED_KIND, GROUPED_MATMUL

Products = tuple[Launcher, str]  # and the precision
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
        for group in zip(a, b, products, strict=True):
            _by_torch(*group, structure)


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
    served = []
    for group in zip(a, b, products, strict=True):
        if _is_served(*group) and not structure & SUBTRACT:  # which the kernel does not know yet
            served.append(group)
        else:
            _by_torch(*group, structure)
    constants = {**TUNING["grouped_matmul"].constants, "PRECISION": precision}
    most = constants["GROUPS"]
    for first in range(0, len(served), most):
        widest = 32 if precision == "ieee" else 64
        rows, tiles = _rows(served[first : first + most], structure, widest=widest)
        groups = upload(torch.tensor(rows, dtype=torch.int64), served[0][0].device)
        arguments = (groups, len(rows), tiles)
        launcher(Launch("grouped_matmul", arguments, constants, tiles))


def _by_torch(left: Tensor, right: Tensor, product: Tensor, structure: int) -> None:
    if structure & SUBTRACT:
        product.baddbmm_(left, right, alpha=-1)
    else:
        torch.bmm(left, right, out=product)


def _is_served(*group: Tensor) -> bool:
    """Float32, something to sum, and offsets within a matrix that 32 bits hold."""
    spans = (
        max(x.shape[1] * abs(x.stride(1)), x.shape[2] * abs(x.stride(2))) < 2**30 for x in group
    )
    summed = group[2].numel() > 0 and group[0].shape[2] > 0
    return summed and group[0].dtype == torch.float32 and all(spans)


def _rows(
    groups: Sequence[tuple[Tensor, Tensor, Tensor]], structure: int, *, widest: int
) -> tuple[list[list[int]], int]:
    """Rows of the table, and how many tiles there are."""
    rows, tiles = [], 0
    for a, b, product in groups:
        count, m, n = product.shape
        kind, height, width = _kind(a, b, product, widest)
        tiles_m, tiles_n = -(-m // height), -(-n // width)
        symmetric = structure & SYMMETRIC and kind != "any"
        per_matrix = tiles_m * tiles_n
        if symmetric:  # from the diagonal down, a column of tiles after the other
            per_matrix = sum(tiles_m - row for row in range(0, tiles_m, width // height))
        last = tiles + count * per_matrix
        row = {
            "first_tile": tiles,
            "last_tile": last,
            "kind": GROUPED_KIND[kind],
            "m": m,
            "n": n,
            "k": a.shape[2],
            "tiles_m": tiles_m,
            "tiles_n": tiles_n,
            "per_matrix": per_matrix,
            "symmetric": bool(symmetric),
            "from_row": bool(structure & LEFT_UPPER),
            "from_column": bool(structure & RIGHT_LOWER),
        }
        for name, x in (("a", a), ("b", b), ("out", product)):
            row[f"{name}_address"] = x.data_ptr()
            row[f"{name}_matrix"], row[f"{name}_row"], row[f"{name}_column"] = x.stride()
        rows.append([row[name] for name in GROUPED_MATMUL])
        tiles = last
    return rows, tiles


def _kind(a: Tensor, b: Tensor, product: Tensor, widest: int) -> tuple[str, int, int]:
    """How a group is loaded and written, and the height and width of its tiles."""
    along = [axis for axis in (2, 1) if a.stride(axis) == 1]  # rows before columns
    if not along or b.stride(2) != 1 or product.stride(2) != 1:
        return "any", widest, 32
    _, m, n = product.shape
    other = 3 - along[0]
    steps = [m, n, a.shape[2], a.stride(other), b.stride(1), product.stride(1)]
    steps += [x.stride(0) for x in (a, b, product)]
    if any(step % 4 for step in steps) or any(x.data_ptr() % 16 for x in (a, b, product)):
        return "any", widest, 32
    height = 64 if widest == 64 and -(-m // 32) * 32 > 0.8 * (-(-m // 64) * 64) else 32
    return ("rows" if along[0] == 2 else "columns") + f"_{height}", height, widest
